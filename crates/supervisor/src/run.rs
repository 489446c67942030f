//! `rhone run`: hands the checked configuration to the runtime.

use std::os::unix::process::CommandExt;

use anyhow::Context;

use crate::config::Config;
use crate::runtime::supervisor::{self, After};

/// Runs the supervisor until it is told to stop.
///
/// # Errors
///
/// It could not be put together, or it can no longer keep its promises (a disk that fails).
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Now: once the file has been replaced by an upgrade, the kernel gives its name as a deleted one's.
    let exe = std::env::current_exe().context("find the rhone binary")?;
    match supervisor::run(config).await? {
        After::Exit => Ok(()),
        After::StartOver => {
            tracing::warn!("starts over with a new guardian");
            let mut args = std::env::args_os();
            let program = args.next().unwrap_or_else(|| "rhone".into());
            let error = std::process::Command::new(exe).arg0(program).args(args).exec();
            Err(error).context("start over")
        }
    }
}
