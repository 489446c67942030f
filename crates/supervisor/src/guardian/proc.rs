//! Finds the processes of an instance in `/proc`, where no cgroup names them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A data directory, by what cannot be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataDir {
    dev: u64,
    ino: u64,
    owner: u32,
}

impl DataDir {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { dev: meta.dev(), ino: meta.ino(), owner: meta.uid() })
    }
}

/// A process, held by a pidfd so that its number cannot come to mean another.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    fd: OwnedFd,
}

impl Process {
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }

    /// Returns whether it has ended: what is being killed loses its directory sooner than that.
    pub(super) fn ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
    }
}

/// Returns every process of the instance whose data directory is `data`.
///
/// Those are the processes with that current directory which are `program`, or which belong to its owner
/// and have no terminal: a person's shell that stands in the directory is no instance.
pub(super) fn instance_processes(data: DataDir, program: &str) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        if pid == rustix::process::getpid() || !in_directory(&entry.path(), data) {
            continue;
        }
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // Looked at again with the pidfd in hand: the number may have gone to another process meanwhile.
        if in_directory(&entry.path(), data) && belongs(&entry.path(), data, program) {
            found.push(Process { pid, fd });
        }
    }
    Ok(found)
}

fn in_directory(proc: &Path, data: DataDir) -> bool {
    // What the kernel knows already: another process's directory may be on a server that does not answer.
    let flags = AtFlags::STATX_DONT_SYNC;
    statx(CWD, proc.join("cwd"), flags, StatxFlags::INO)
        .is_ok_and(|at| at.stx_ino == data.ino && makedev(at.stx_dev_major, at.stx_dev_minor) == data.dev)
}

fn belongs(proc: &Path, data: DataDir, program: &str) -> bool {
    let owner = fs::metadata(proc).is_ok_and(|meta| meta.uid() == data.owner);
    let exe = fs::read_link(proc.join("exe")).unwrap_or_default();
    let exe = exe.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let same_program = exe.strip_suffix(" (deleted)").unwrap_or(exe) == program;
    same_program || owner && field(proc, Field::Terminal).is_none_or(|terminal| terminal == 0)
}

/// A number in `/proc/PID/stat`, counted from the field after the name.
#[derive(Clone, Copy)]
enum Field {
    Terminal = 4,
}

fn field(proc: &Path, field: Field) -> Option<i64> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(field as usize)?.parse().ok()
}

/// Returns the state letter of a process: `T` is stopped. `None`: it is gone.
pub(super) fn state(pid: Pid) -> Option<u8> {
    let mut path = PathBuf::from("/proc");
    path.push(pid.as_raw_pid().to_string());
    path.push("stat");
    let stat = fs::read(path).ok()?;
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(end.checked_add(2)?).copied()
}
