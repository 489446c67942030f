//! `rhone run`: hands the checked configuration to the runtime, and starts over where that helps.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use rhone_consensus::ConsensusError;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::runtime::supervisor::{self, After, RaftStopped};

/// The program to become when the runtime has ended.
static START_OVER: OnceLock<PathBuf> = OnceLock::new();

/// How long a process whose store failed waits before the next one opens it: a primary may be back within its
/// lease.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// How long it waits while the store cannot be opened.
const UNTIL_THE_NEXT_LOOK: Duration = Duration::from_secs(5);

/// Runs the supervisor until it is told to stop. Where a disk fails or is full, the process starts over, with
/// its pid, until the disk is well: nobody has to restart it.
///
/// # Errors
///
/// It could not be put together, or its store is damaged.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Now: once the file has been replaced by an upgrade, the kernel gives its name as a deleted one's.
    let exe = std::env::current_exe().context("find the rhone binary")?;
    match supervisor::run(config).await {
        Ok(After::Exit) => Ok(()),
        Ok(After::StartOver) => {
            tracing::warn!("starts over with a new guardian");
            want_to_start_over(exe);
            Ok(())
        }
        Err(error) => {
            let Some(pause) = pause_after(&error) else { return Err(error) };
            tracing::error!("{error:#}");
            tracing::warn!(after_seconds = pause.as_secs(), "starts over");
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                () = tokio::time::sleep(pause) => {
                    want_to_start_over(exe);
                    Ok(())
                }
                _ = terminate.recv() => Err(error),
                _ = interrupt.recv() => Err(error),
            }
        }
    }
}

/// Returns how long to wait before it is worth starting over, nothing where a person has to look first.
fn pause_after(error: &anyhow::Error) -> Option<Duration> {
    if error.downcast_ref::<RaftStopped>().is_some() {
        return Some(AFTER_A_FAILURE);
    }
    let unavailable =
        matches!(error.downcast_ref::<ConsensusError>(), Some(ConsensusError::StoreUnavailable { .. }));
    unavailable.then_some(UNTIL_THE_NEXT_LOOK)
}

fn want_to_start_over(exe: PathBuf) {
    // Once a process.
    drop(START_OVER.set(exe));
}

/// Becomes a new process with the same pid and arguments, where [`run`] has asked for it; returns why it could not.
/// The runtime has to be gone: with it end the programs that its tasks had started.
pub fn start_over() -> Option<anyhow::Error> {
    let exe = START_OVER.get()?;
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_else(|| "rhone".into());
    let error = std::process::Command::new(exe).arg0(program).args(args).exec();
    Some(anyhow::Error::from(error).context("start over"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_may_get_well_is_waited_for() {
        let store = || "/s/raft".into();
        let full = ConsensusError::StoreUnavailable { store: store(), reason: "no space".to_owned() };
        let bad = ConsensusError::StoreDamaged { store: store(), reason: "no sense".to_owned() };
        let stopped = RaftStopped { reason: "no space".to_owned() };
        let cases: [(anyhow::Error, Option<Duration>); 4] = [
            (anyhow::Error::from(full).context("open the store"), Some(UNTIL_THE_NEXT_LOOK)),
            (stopped.into(), Some(AFTER_A_FAILURE)),
            (bad.into(), None),
            (anyhow::anyhow!("listen on 0.0.0.0:7400"), None),
        ];
        for (error, expected) in cases {
            assert_eq!(pause_after(&error), expected, "{error:#}");
        }
    }
}
