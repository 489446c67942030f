//! One test at a time on this machine, whatever runs the tests.

use std::fs::{File, OpenOptions};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// Holds the machine-wide turn until dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// Waits for the turn (one per user): clusters of several test processes would starve each other of CPU and
/// make every time limit meaningless.
pub fn take_turn() -> Result<Turn> {
    let user = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("rhone-chaos-{user}.lock"));
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
    Ok(Turn { _file: file })
}
