//! A cgroup (version 2) of the instance's own: the only group that a process cannot leave by `setsid`.
//!
//! Every file that the fence needs is held open from the creation on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::sys;
use crate::runtime::clock::{BootTime, Clock};

/// What the names of all guardians' cgroups begin with.
pub(super) const PREFIX: &str = "rhone-";

/// A cgroup, with its control files open.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    freeze: OwnedFd,
    events: OwnedFd,
    procs: OwnedFd,
    /// Since Linux 5.14.
    kill: Option<OwnedFd>,
}

impl Cgroup {
    pub(super) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let path = parent.join(name);
        fs::create_dir(&path)?;
        Self::open(&path).inspect_err(|_| drop(fs::remove_dir(&path)))
    }

    fn open(path: &Path) -> io::Result<Self> {
        let open = |file: &str, flags| {
            rustix::fs::open(path.join(file), flags | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
        };
        Ok(Self {
            freeze: open("cgroup.freeze", OFlags::RDWR)?,
            events: open("cgroup.events", OFlags::RDONLY)?,
            procs: open("cgroup.procs", OFlags::RDWR)?,
            kill: open("cgroup.kill", OFlags::WRONLY).ok(),
            path: path.to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    pub(super) fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        rustix::io::pwrite(&self.freeze, if frozen { b"1" } else { b"0" }, 0)?;
        Ok(())
    }

    /// Waits until every process is frozen, or none, as `frozen` says; at most until `end`.
    pub(super) fn wait_frozen(&self, frozen: bool, end: BootTime) -> bool {
        loop {
            if self.event("frozen") == Some(frozen) {
                return true;
            }
            let left = end.saturating_since(Clock.now());
            if left.is_zero() {
                return false;
            }
            // The kernel says POLLPRI when the file changes; the short limit only guards against a miss.
            let step = left.min(Duration::from_millis(10));
            let step = Timespec { tv_sec: 0, tv_nsec: i64::from(step.subsec_nanos()) };
            let mut fds = [PollFd::new(&self.events, PollFlags::PRI)];
            if poll(&mut fds, Some(&step)).is_err() {
                return self.event("frozen") == Some(frozen);
            }
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.event("frozen") == Some(true)
    }

    /// Returns whether a process is in it. One that cannot be read has none: it is gone.
    pub(super) fn populated(&self) -> bool {
        self.event("populated") == Some(true)
    }

    fn event(&self, name: &str) -> Option<bool> {
        let mut buffer = [0_u8; 256];
        let used = rustix::io::pread(&self.events, &mut buffer, 0).ok()?;
        let text = std::str::from_utf8(buffer.get(..used)?).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line == "1")
    }

    /// Kills every process in it, frozen or not.
    pub(super) fn kill(&self) {
        let by_kernel = self.kill.as_ref().is_some_and(|kill| rustix::io::pwrite(kill, b"1", 0).is_ok());
        if !by_kernel {
            let mut buffer = [0_u8; 4096];
            for_each_number(self.procs(), &mut buffer, |pid| {
                let _ = kill_process(pid, Signal::KILL);
            });
        }
    }

    /// Removes it if it is empty.
    pub(super) fn remove(self) {
        drop(fs::remove_dir(&self.path));
    }
}

/// Returns whether a process is in the cgroup at `path`. One that cannot be read has none: it is gone.
pub(super) fn populated(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Calls `each` with every process number in a file of numbers that is held open. Allocates nothing.
pub(super) fn for_each_number(file: BorrowedFd<'_>, buffer: &mut [u8], mut each: impl FnMut(Pid)) {
    let (mut offset, mut number) = (0_u64, 0_i32);
    while let Ok(used) = rustix::io::pread(file, &mut *buffer, offset) {
        for &byte in buffer.get(..used).unwrap_or_default() {
            if byte.is_ascii_digit() {
                number = number.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
            } else if let Some(pid) = Pid::from_raw(std::mem::take(&mut number)) {
                each(pid);
            }
        }
        if used == 0 {
            break;
        }
        offset = offset.saturating_add(used as u64);
    }
    if let Some(pid) = Pid::from_raw(number) {
        each(pid);
    }
}

/// Finds a cgroup in which children can be made, and in which a rehearsal of the fence succeeds.
///
/// Its own comes first: whoever freezes or kills that one means the instance too. What dead guardians of
/// the same state directory left there is killed and removed; their names begin with `prefix`.
pub(super) fn find_parent(prefix: &str) -> Result<PathBuf, String> {
    let mut problem = "no cgroup2 is mounted here".to_owned();
    for parent in candidates() {
        remove_stale(&parent, prefix);
        let name = format!("{prefix}{}-rehearsal", rustix::process::getpid().as_raw_pid());
        match Cgroup::create(&parent, &name).and_then(rehearse) {
            Ok(()) => return Ok(parent),
            Err(error) => problem = format!("{}: {error}", parent.display()),
        }
    }
    Err(problem)
}

/// Returns the cgroup that a guardian made and this process is in; a guardian that is killed cannot
/// remove it.
pub(crate) fn of_process(pid: i32) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    if !path.file_name()?.to_string_lossy().starts_with(PREFIX) {
        return None;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut full = mounts
        .lines()
        .filter_map(cgroup2_mount)
        .filter_map(|(root, point)| Some(Path::new(point).join(path.strip_prefix(root).ok()?)));
    full.find(|full| full.is_dir())
}

/// The own cgroup and its ancestors, in each cgroup2 that is mounted.
fn candidates() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for (root, point) in mounts.lines().filter_map(cgroup2_mount) {
        let Ok(below) = Path::new(own).strip_prefix(root) else { continue };
        let full = Path::new(point).join(below);
        found.extend(full.ancestors().take_while(|path| path.starts_with(point)).map(Path::to_owned));
    }
    found
}

/// Returns the root and the mount point of a line of mountinfo, if it is of a cgroup2.
fn cgroup2_mount(line: &str) -> Option<(&str, &str)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    kind.starts_with("cgroup2 ").then_some((fields.next()?, fields.next()?))
}

fn remove_stale(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let Ok(cgroup) = Cgroup::open(&entry.path()) else { continue };
        let end = Clock.now().saturating_add(Duration::from_secs(2));
        while cgroup.populated() && Clock.now() < end {
            cgroup.kill();
            std::thread::sleep(Duration::from_millis(2));
        }
        cgroup.remove();
    }
}

/// Freezes and kills a child of this process in `cgroup`, and removes it.
///
/// Proves that the fence works here, and touches the pages that it will need.
fn rehearse(cgroup: Cgroup) -> io::Result<()> {
    let child = match sys::fork()? {
        sys::Forked::Child => sys::wait_in_cgroup(cgroup.procs()),
        sys::Forked::Parent(child) => child,
    };
    let end = Clock.now().saturating_add(Duration::from_millis(500));
    while !cgroup.populated() && Clock.now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let entered = cgroup.populated();
    let frozen = cgroup.set_frozen(true).is_ok() && cgroup.wait_frozen(true, end);
    cgroup.kill();
    // Killed once more, in case that it never was in the cgroup.
    let _ = kill_process(child, Signal::KILL);
    waitpid(Some(child), WaitOptions::empty())?;
    while cgroup.populated() && Clock.now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let emptied = !cgroup.populated();
    cgroup.remove();
    let done = [(entered, "entered"), (frozen, "frozen"), (emptied, "emptied")];
    match done.iter().find(|(done, _)| !done) {
        None => Ok(()),
        Some((_, what)) => Err(io::Error::other(format!("a cgroup could not be {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup2_is_found_among_the_mounts() {
        let line = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(line), Some(("/", "/sys/fs/cgroup/unified")));
        let line = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd";
        assert_eq!(cgroup2_mount(line), None);
    }

    #[test]
    fn numbers_are_read_across_the_ends_of_a_buffer() {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, b"12 345\n6789 0 7").expect("write it");
        let mut seen = Vec::new();
        for_each_number(file.as_fd(), &mut [0; 4], |pid| seen.push(pid.as_raw_pid()));
        assert_eq!(seen, [12, 345, 6789, 7]);
    }
}
