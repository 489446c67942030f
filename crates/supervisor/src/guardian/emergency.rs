//! Freezes and kills an instance without a guardian: for a supervisor whose guardian died.
//!
//! The postmaster ends with its guardian, but a busy backend may go on for seconds and commit. Both
//! functions block for some milliseconds (call them by `spawn_blocking`), may be repeated, and may be
//! called when there is nothing to do.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::cgroup::populated;
use super::proc::{DataDir, Process, instance_processes};
use crate::runtime::clock::Clock;

/// The file name of Postgres's program, by which its processes are known.
const PROGRAM: &str = "postgres";

/// The longest pause between two rounds of killing.
const PAUSE_LIMIT: Duration = Duration::from_millis(100);

/// Why an emergency measure is not known to have worked.
#[derive(Debug, thiserror::Error)]
pub enum EmergencyError {
    /// The data directory or `/proc` could not be read: is there an instance at all?
    #[error("look for the processes of {data_dir}")]
    Look {
        /// The data directory.
        data_dir: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Try again: some process is still there.
    #[error("{left} processes of the instance are left after {limit:?}, one is {pid}")]
    Left {
        /// How many.
        left: usize,
        /// One of them.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
}

/// Kills every process of the instance in `data_dir`, and returns how many were seen.
///
/// First by `cgroup`, if the guardian told of one in its status, and then every process whose current
/// directory it is, postmaster first, again and again until none is left.
///
/// # Errors
/// [`EmergencyError::Left`] after `limit`: then some may still write.
pub fn kill_instance(
    data_dir: &Path,
    cgroup: Option<&Path>,
    limit: Duration,
) -> Result<usize, EmergencyError> {
    if let Some(cgroup) = cgroup {
        // A cgroup that is gone is as good as an empty one, and what is left is found below.
        drop(fs::write(cgroup.join("cgroup.kill"), "1"));
    }
    let clock = Clock;
    let end = clock.now().saturating_add(limit);
    let mut pause = Duration::from_millis(2);
    let mut dying = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        let found = look(data_dir)?;
        // All are stopped before the first is killed: a postmaster that sees a backend die forks others.
        for signal in [Signal::STOP, Signal::KILL] {
            for process in &found {
                // It may be gone by now.
                drop(process.signal(signal));
            }
        }
        let done = found.is_empty();
        seen.extend(found.iter().map(|process| process.pid.as_raw_pid()));
        dying.extend(found);
        dying.retain(|process| !process.ended());
        if done && dying.is_empty() && !cgroup.is_some_and(populated) {
            if let Some(cgroup) = cgroup {
                // One that is not empty yet is removed by the next guardian.
                drop(fs::remove_dir(cgroup));
            }
            return Ok(seen.len());
        }
        if clock.now() >= end {
            let pid = dying.first().map_or(0, |process| process.pid.as_raw_pid().unsigned_abs());
            return Err(EmergencyError::Left { left: dying.len(), pid, limit });
        }
        std::thread::sleep(pause);
        // What waits for a disk that hangs ends with that: no reason to keep a core busy.
        pause = (pause * 2).min(PAUSE_LIMIT);
    }
}

/// Stops every process of the instance in `data_dir` by SIGSTOP, and returns how many there are.
///
/// # Errors
/// [`EmergencyError::Left`] if new ones kept on appearing until `limit`.
pub fn freeze_instance(
    data_dir: &Path,
    cgroup: Option<&Path>,
    limit: Duration,
) -> Result<usize, EmergencyError> {
    if let Some(cgroup) = cgroup {
        drop(fs::write(cgroup.join("cgroup.freeze"), "1"));
    }
    let clock = Clock;
    let end = clock.now().saturating_add(limit);
    let mut stopped = BTreeSet::new();
    loop {
        let found = look(data_dir)?;
        let mut newcomer = None;
        for process in &found {
            drop(process.signal(Signal::STOP));
            if stopped.insert(process.pid.as_raw_pid()) {
                newcomer = Some(process.pid);
            }
        }
        let Some(newcomer) = newcomer else { return Ok(found.len()) };
        if clock.now() >= end {
            let pid = newcomer.as_raw_pid().unsigned_abs();
            return Err(EmergencyError::Left { left: found.len(), pid, limit });
        }
    }
}

fn look(data_dir: &Path) -> Result<Vec<Process>, EmergencyError> {
    match DataDir::of(data_dir) {
        Ok(data) => instance_processes(data, PROGRAM),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(source),
    }
    .map_err(|source| EmergencyError::Look { data_dir: data_dir.to_owned(), source })
}
