//! PID 1 of a container: starts the supervisor as its child, reaps orphans, passes signals on.
//!
//! The supervisor itself waits for its own children, and would lose their statuses to a reaper in the same
//! process. It must not be PID 1 for another reason too: when that one ends, the kernel kills every process of the
//! container. So a supervisor that crashes is started again here, and within the lease nothing has happened, as
//! under systemd; and whenever this process ends, no Postgres of the container is left.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Exit;
use crate::runtime::clock::{BootTime, Clock};
use crate::telemetry::{self, LogFormat};

/// A supervisor that lives for so long did start.
const STARTED: Duration = Duration::from_secs(10);
/// So many in a row that did not are enough: the container ends, so that its manager sees it.
const TRIES: u32 = 5;
/// How soon the next one is started, well within a lease.
const PAUSE: Duration = Duration::from_millis(100);

/// Returns whether this process is the first one of its PID namespace.
pub fn is_needed() -> bool {
    std::process::id() == 1
}

/// Runs the supervisor as a child with this process's own arguments until it is done.
pub fn main(format: LogFormat) -> ExitCode {
    let filter = std::env::var("RHONE_LOG").ok();
    if telemetry::init(format, filter.as_deref()).is_err() {
        return Exit::Usage.into();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(look_after())) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            tracing::error!(%error, "cannot be the first process of a container");
            Exit::Failed.into()
        }
    }
}

/// What is to happen after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Start,
    End(u8),
}

/// How often a supervisor failed to start, one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Tries(u32);

impl Tries {
    /// Decides what follows an end after `lived`; `told`: somebody asked for it.
    fn after(&mut self, end: WaitStatus, lived: Duration, told: bool) -> Next {
        let status = status_of(end);
        self.0 = if lived < STARTED { self.0.saturating_add(1) } else { 1 };
        // A configuration that is wrong stays wrong.
        let done = end.exited() && (status == 0 || status == Exit::Usage as u8);
        if done || told || self.0 >= TRIES { Next::End(status) } else { Next::Start }
    }
}

/// The exit status as a shell shows it.
fn status_of(end: WaitStatus) -> u8 {
    let signal = || end.terminating_signal().map(|signal| signal.saturating_add(128));
    let status = end.exit_status().or_else(signal).unwrap_or(1);
    u8::try_from(status).unwrap_or(u8::MAX)
}

async fn look_after() -> io::Result<u8> {
    let mut children = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let (mut told, mut tries) = (false, Tries::default());
    loop {
        let (supervisor, since) = (start()?, Clock.now());
        let end = loop {
            if let Some(end) = reap(supervisor) {
                break end;
            }
            let pass_on = tokio::select! {
                _ = children.recv() => continue,
                _ = terminate.recv() => Signal::TERM,
                _ = interrupt.recv() => Signal::INT,
                // As a terminal's end: the supervisor knows one way to go.
                _ = quit.recv() => Signal::TERM,
            };
            told = true;
            if kill_process(supervisor, pass_on).is_err() {
                tracing::debug!("the supervisor has ended already");
            }
        };
        match tries.after(end, lived(since), told) {
            Next::End(status) => return Ok(status),
            Next::Start => {
                tracing::warn!(?end, "the supervisor ended: starts another one");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn lived(since: BootTime) -> Duration {
    Clock.now().saturating_since(since)
}

/// Starts this program once more, with the same arguments.
fn start() -> io::Result<Pid> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| "rhone".into());
    // Not `current_exe`: that name is of no use once the file has been replaced.
    let child = Command::new("/proc/self/exe").arg0(name).args(args).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Takes the statuses of all that have ended, and returns the supervisor's if it is among them.
fn reap(supervisor: Pid) -> Option<WaitStatus> {
    let mut end = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == supervisor {
            end = Some(status);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sh -c` is asked for each end, so that the statuses are the kernel's own.
    #[allow(clippy::zombie_processes, reason = "waited for by its number")]
    fn end(script: &str) -> WaitStatus {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("start a shell");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        rustix::process::waitpid(pid, WaitOptions::empty()).expect("wait").expect("an end").1
    }

    #[test]
    fn a_supervisor_that_crashes_is_started_again_and_one_that_is_done_is_not() {
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(60));
        let check = |script: &str, lived: Duration, told: bool, expected: Next| {
            assert_eq!(Tries::default().after(end(script), lived, told), expected, "{script}");
        };
        check("exit 0", late, false, Next::End(0));
        check("exit 2", soon, false, Next::End(2)); // usage: the file has to change first
        check("exit 1", late, false, Next::Start);
        check("exit 1", soon, true, Next::End(1));
        check("kill -9 $$", soon, false, Next::Start);
        check("kill -9 $$", late, true, Next::End(137));
    }

    #[test]
    fn the_container_ends_when_no_supervisor_starts() {
        let mut tries = Tries::default();
        let failed = end("exit 1");
        for _ in 1..TRIES {
            assert_eq!(tries.after(failed, Duration::ZERO, false), Next::Start);
        }
        assert_eq!(tries.after(failed, Duration::ZERO, false), Next::End(1));
        // One that did start counts anew.
        let mut tries = Tries(TRIES - 1);
        assert_eq!(tries.after(failed, STARTED, false), Next::Start);
        assert_eq!(tries.after(failed, Duration::ZERO, false), Next::Start);
    }
}
