//! How a guardian comes up: detached, alone, protected, and rehearsed.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{getpriority_process, getrlimit, set_child_subreaper, setpriority_process, setsid};
use rustix::thread::{CapabilitySet, capabilities};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use super::client::FenceChoice;
use super::deadman::DeadMan;
use super::instance::Unprotected;
use super::page::GuardPage;
use super::server::{Outfit, Server, Wakers};
use super::watchdog::Watchdog;
use super::wire::{MemoryLock, Priority};
use super::{cgroup, control, sys};

/// Exit status: another guardian holds the lock.
pub(super) const ANOTHER_ONE: u8 = 3;

const USAGE: &str = "usage: rhone guardian --state-dir DIR [--name NAME] [--fence auto|signals] [--watchdog DEVICE SECONDS] [--dead-man PORT] [--detach]";
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Runs a guardian: `rhone guardian --state-dir DIR …`, with the arguments after `guardian`.
///
/// To be called first thing in a `main`, before there is a second thread or a runtime. With `--detach`
/// it returns when the guardian listens, which then goes on by itself in a session of its own.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    sys::close_inherited();
    let Some(options) = Options::parse(args) else { return complain(2, USAGE) };
    if !options.detach {
        return guard(&options, None);
    }
    match detach() {
        Ok(Detached::Guardian(ready)) => guard(&options, Some(ready)),
        Ok(Detached::Starter(status)) => ExitCode::from(status),
        Err(error) => complain(1, &format!("error: detach the guardian: {error}")),
    }
}

struct Options {
    state_dir: PathBuf,
    name: String,
    fence: FenceChoice,
    watchdog: Option<(PathBuf, u32)>,
    dead_man: Option<u16>,
    detach: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut state_dir, mut name) = (None, String::from("rhone"));
        let (mut fence, mut watchdog, mut dead_man, mut detach) = (FenceChoice::Auto, None, None, false);
        while let Some(arg) = args.next() {
            match arg.to_str()? {
                "--state-dir" => state_dir = Some(PathBuf::from(args.next()?)),
                "--name" => name = args.next()?.into_string().ok()?,
                "--fence" => fence = FenceChoice::parse(args.next()?.to_str()?)?,
                "--watchdog" => {
                    let device = PathBuf::from(args.next()?);
                    watchdog = Some((device, args.next()?.to_str()?.parse().ok()?));
                }
                "--dead-man" => dead_man = Some(args.next()?.to_str()?.parse().ok()?),
                "--detach" => detach = true,
                _ => return None,
            }
        }
        Some(Self { state_dir: state_dir?, name, fence, watchdog, dead_man, detach })
    }
}

fn complain(status: u8, text: &str) -> ExitCode {
    // There is nobody to tell if standard error is closed.
    drop(writeln!(io::stderr(), "{text}"));
    ExitCode::from(status)
}

enum Detached {
    /// The process that was started, and the status that it ends with.
    Starter(u8),
    /// The guardian, and where it says that it listens.
    Guardian(io::PipeWriter),
}

/// Forks: the child is the guardian, the parent ends when that one listens, or could not.
fn detach() -> io::Result<Detached> {
    let (mut reader, writer) = io::pipe()?;
    match sys::fork()? {
        sys::Forked::Child => {
            setsid()?;
            Ok(Detached::Guardian(writer))
        }
        sys::Forked::Parent(_) => {
            drop(writer);
            let mut status = [1];
            // Closed without a word: it has said why on standard error.
            drop(reader.read_exact(&mut status));
            let [status] = status;
            Ok(Detached::Starter(status))
        }
    }
}

fn guard(options: &Options, ready: Option<io::PipeWriter>) -> ExitCode {
    let said = |status: u8| {
        if let Some(mut ready) = ready.as_ref() {
            // The starter may be dead: the guardian goes on.
            drop(ready.write_all(&[status]));
        }
    };
    let (dir, lock) = match lock(&options.state_dir) {
        Ok(Locked::Mine { dir, lock }) => (dir, lock),
        Ok(Locked::Another { pid }) => {
            let text = format!("error: another guardian ({pid}) has {}", options.state_dir.display());
            let code = complain(ANOTHER_ONE, &text);
            said(ANOTHER_ONE);
            return code;
        }
        Err(error) => {
            return complain(1, &format!("error: lock {}: {error}", options.state_dir.display()));
        }
    };
    match prepare(options, &dir) {
        Ok(server) => {
            said(0);
            if options.detach {
                drop(sys::close_standard());
            }
            drop(ready);
            // No mount is kept busy by a guardian.
            let _ = rustix::process::chdir("/");
            server.run();
            control::remove(dir.as_fd());
            drop(lock);
            ExitCode::SUCCESS
        }
        Err(error) => complain(1, &format!("error: prepare the guardian: {error}")),
    }
}

enum Locked {
    Mine { dir: OwnedFd, lock: OwnedFd },
    Another { pid: String },
}

fn lock(state_dir: &Path) -> io::Result<Locked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(state_dir, flags, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(&dir, "guardian.lock", flags, Mode::RUSR | Mode::WUSR)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        fs::File::from(lock).read_to_string(&mut pid)?;
        return Ok(Locked::Another { pid: format!("process {}", pid.trim()) });
    }
    rustix::fs::ftruncate(&lock, 0)?;
    let pid = format!("{}\n", rustix::process::getpid().as_raw_pid());
    rustix::io::pwrite(&lock, pid.as_bytes(), 0)?;
    Ok(Locked::Mine { dir, lock })
}

/// Gets all that the loop will need: from here on nothing more is opened for the fence.
fn prepare(options: &Options, dir: &OwnedFd) -> io::Result<Server> {
    let _ = rustix::thread::set_name(c"rhone-guardian");
    let state = rustix::fs::fstat(dir)?;
    let cgroup_prefix = format!("{}{:x}-{:x}-", cgroup::PREFIX, state.st_dev, state.st_ino);
    // Left-overs are killed even where no cgroup is to be used.
    let found = cgroup::find_parent(&cgroup_prefix);
    let cgroup_parent = match options.fence {
        FenceChoice::Auto => found,
        FenceChoice::Signals => Err("not wanted".to_owned()),
    };
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = sys::take_signals()?;
    let memfd = sys::create_page()?;
    let page = GuardPage::create(&memfd)?;
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let (unprotected, priority, oom_score_adj) = protect();
    let memory = lock_memory(&page);
    let listener = control::open(dir.as_fd())?;
    let outfit = Outfit {
        name: options.name.clone(),
        cgroup_parent,
        cgroup_prefix,
        memory,
        priority,
        oom_score_adj,
        unprotected,
        watchdog: match options.watchdog.clone() {
            Some((device, seconds)) => Watchdog::new(Some(device), seconds),
            None => Watchdog::new(None, 0),
        },
        dead_man: DeadMan::new(options.dead_man),
    };
    Ok(Server::new(outfit, Wakers { timer, signals, listener, memfd }, page))
}

/// Takes the priority and the protection from the OOM killer that the system allows.
///
/// Children get back what this process had before.
fn protect() -> (Unprotected, Priority, i32) {
    let read = || fs::read_to_string(OOM_SCORE_ADJ).unwrap_or_default().trim().to_owned();
    let before = read();
    let nice = getpriority_process(None).unwrap_or(0);
    if let Ok(mut file) = fs::OpenOptions::new().write(true).open(OOM_SCORE_ADJ) {
        // Reported by what is read back.
        drop(file.write_all(b"-1000"));
    }
    let raised = setpriority_process(None, -15).is_ok();
    let priority = match (sys::real_time(), raised) {
        (Ok(()), _) => Priority::RealTime,
        (Err(_), true) => Priority::Raised,
        (Err(_), false) => Priority::Normal,
    };
    let oom_score_adj = CString::new(before).unwrap_or_default();
    (Unprotected { nice, oom_score_adj }, priority, read().parse().unwrap_or(0))
}

/// Keeps in memory what the system allows.
///
/// Future pages are only included where no limit applies: an allocation that fails would end the guardian.
fn lock_memory(page: &GuardPage) -> MemoryLock {
    let unlimited = getrlimit(rustix::process::Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let now = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    let flags = if unlimited { now | MlockAllFlags::FUTURE } else { now };
    if mlockall(flags).is_ok() {
        return MemoryLock::All;
    }
    match (page.lock(), sys::lock_stack()) {
        (Ok(()), Ok(())) => MemoryLock::Partial,
        _ => MemoryLock::Nothing,
    }
}
