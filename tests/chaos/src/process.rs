//! Processes: spawning, reaping, signals by pid, and what `/proc` says.
//!
//! The harness is a child subreaper and reaps what its clusters orphan: where PID 1 is slow, a
//! zombie postmaster would still own its lock files for seconds. Kills only by pid.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, kill_process, set_child_subreaper, waitid, waitpid,
};

use crate::clock::Moment;

/// Children that somebody here waits for; the reaper leaves them alone.
static OWNED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static SUBREAPER: Once = Once::new();

fn owned() -> MutexGuard<'static, BTreeSet<u32>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Becomes a child subreaper and starts the thread that reaps adopted orphans.
pub fn adopt_orphans() {
    SUBREAPER.call_once(|| {
        if set_child_subreaper(Some(rustix::process::getpid())).is_err() {
            return;
        }
        thread::spawn(|| {
            loop {
                reap();
                thread::sleep(Duration::from_millis(20));
            }
        });
    });
}

fn reap() {
    let kept = owned();
    // Asks without reaping, since a status may belong to somebody: most often there is nothing.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(waitid(WaitId::All, look), Ok(Some(_))) {
        return;
    }
    let own = std::process::id();
    for pid in pids() {
        let Some(stat) = stat(pid) else { continue };
        if stat.parent == own
            && stat.state == 'Z'
            && !kept.contains(&pid)
            && let Some(pid) = to_pid(pid)
        {
            waitpid(Some(pid), WaitOptions::NOHANG).ok();
        }
    }
}

/// A child that is waited for by its owner.
#[derive(Debug)]
pub struct Owned {
    child: Child,
}

impl Owned {
    /// Spawns `command` from the calling thread, in that thread's network namespace.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut kept = owned();
        let child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
        kept.insert(child.id());
        Ok(Self { child })
    }

    /// Returns the pid; it stays valid until the child has been waited for.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the child's output, if it was piped and not taken yet.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Returns the exit status if the child has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits up to `limit` for the child's end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Moment::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if start.elapsed() > limit {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Whatever is still running becomes the reaper's.
        self.ended();
        owned().remove(&self.child.id());
    }
}

/// What a finished program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            drop(stream.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program to its end, killing it when it takes longer than `limit`.
///
/// # Errors
/// When it cannot start or does not end in time; a failure status is not an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut owned = Owned::spawn(command)?;
    let stdout = collect(owned.child.stdout.take());
    let stderr = collect(owned.child.stderr.take());
    let Some(status) = owned.wait(limit) else {
        signal(owned.pid(), Signal::KILL);
        owned.wait(Duration::from_secs(2));
        bail!("`{}` did not end within {limit:?}", shown(command));
    };
    let text = |handle: thread::JoinHandle<String>| handle.join().unwrap_or_default();
    Ok(Output { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

/// Runs a program that has to succeed.
pub fn run_ok(command: &mut Command) -> Result<String> {
    let output = run(command, Duration::from_secs(30))?;
    if output.code == Some(0) {
        return Ok(output.stdout);
    }
    bail!("`{}` failed with {:?}: {}", shown(command), output.code, output.stderr.trim())
}

fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Sends `signal` to one pid; whether it was there.
pub fn signal(pid: u32, signal: Signal) -> bool {
    to_pid(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug)]
pub struct Stat {
    /// Program name, at most 15 bytes.
    pub name: String,
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
    /// Parent's pid.
    pub parent: u32,
    /// User and system CPU time, in clock ticks.
    pub ticks: u64,
    /// The same of its children that have ended and been waited for, and of theirs.
    pub ticks_of_ended: u64,
    /// Start, in clock ticks since boot: with the pid it names a process uniquely.
    pub started: u64,
}

/// Reads `/proc/PID/stat`, `None` when the process is gone.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    Some(Stat {
        name: name.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)?.saturating_add(number(12)?),
        ticks_of_ended: number(13)?.saturating_add(number(14)?),
        started: number(19)?,
    })
}

/// Whether the process exists and is more than a zombie.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// All pids of this machine.
pub fn pids() -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The command line, arguments joined by blanks; empty for a zombie.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// The working directory, also when it has been deleted.
pub fn working_directory(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// All live processes that belong to the folder: their working directory is in it, or their
/// command line names it.
pub fn of_folder(folder: &Path) -> Vec<u32> {
    let text = folder.to_string_lossy().into_owned();
    let own = std::process::id();
    pids()
        .into_iter()
        .filter(|&pid| pid != own && alive(pid))
        .filter(|&pid| {
            working_directory(pid).is_some_and(|cwd| cwd.starts_with(folder))
                || command_line(pid).contains(&format!("{text}/"))
        })
        .collect()
}

/// Kills all processes of the folder and looks again until none is left.
pub fn kill_of_folder(folder: &Path) -> bool {
    let start = Moment::now();
    loop {
        let left = of_folder(folder);
        if left.is_empty() {
            return true;
        }
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_stat_and_command_line() {
        let own = std::process::id();
        let stat = stat(own).expect("own stat");
        assert!(alive(own) && stat.started > 0 && stat.parent > 0);
        assert!(command_line(own).contains("chaos"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_its_limit() {
        let start = Moment::now();
        let result = run(Command::new("sleep").arg("20"), Duration::from_millis(100));
        assert!(result.is_err() && start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn adopted_orphans_are_reaped_and_own_children_are_not() {
        adopt_orphans();
        let text =
            run_ok(Command::new("sh").args(["-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"])).expect("runs");
        let orphan: u32 = text.trim().parse().expect("a pid");
        thread::sleep(Duration::from_millis(600));
        assert!(stat(orphan).is_none(), "a zombie is left");
        for _ in 0..20 {
            assert_eq!(
                run(Command::new("false").args(["x"]), Duration::from_secs(5)).expect("runs").code,
                Some(1)
            );
        }
    }
}
