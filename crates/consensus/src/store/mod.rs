//! The Raft log on sled, the hard state beside it, and snapshots as ordinary files.
//!
//! Nothing is acknowledged before it survives a power cut: sled's `flush` is not an fsync,
//! so each is followed by an fdatasync on a descriptor of our own (RUST.md 2). All writing is
//! done by one thread; an error there ends it, and an fsync is never tried again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) mod disk;
pub mod hard;
pub(crate) mod log;
pub(crate) mod machine;
pub mod medium;
pub(crate) mod mirror;
pub(crate) mod open;
pub(crate) mod slot;
pub(crate) mod snapshot;
pub(crate) mod thread;

pub use thread::Pace;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

/// Returns the directory of the Raft store within the state directory.
pub fn raft_dir(dir: &Path) -> PathBuf {
    dir.join("raft")
}

/// Makes a directory entry durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `dir` and what is missing above it, durably, readable only by its owner.
pub(crate) fn make_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    make_dirs(parent)?;
    fs::create_dir(dir)?;
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    sync_dir(parent)
}
