//! Copies another server into a side directory and swaps it in by renames.
//!
//! The old data directory is kept aside until the caller removes it. A crash between any two steps is
//! finished, or left as it was, by [`recover_swap`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::conninfo::ConnInfo;
use crate::error::PgError;
use crate::file::{self, sibling, sync_parent};
use crate::initdb::{make_private, put_in_place, remove_tree, rename_error};
use crate::install::Installation;
use crate::program::Program;
use crate::user::OsUser;

/// A copy that is being made, or was broken off.
const SIDE: &str = ".rhone-clone";
/// A complete copy that is to take the data directory's place.
const READY: &str = ".rhone-ready";
/// What the numbered old data directories have in their names.
const OLD: &str = ".rhone-old-";
/// Between two looks at how much was copied.
const PROGRESS: Duration = Duration::from_millis(500);

/// Where a clone comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneSource {
    /// The server to copy; its role needs REPLICATION.
    pub conninfo: ConnInfo,
    /// An existing slot there, so that no WAL is missing afterwards.
    pub slot: Option<String>,
}

/// Copies a server into the side directory, replacing what a broken attempt left there; returns it.
///
/// `progress` is told the bytes that are on disk. There is no deadline, but when nothing more arrives
/// for `idle` the copy is given up.
///
/// # Errors
/// [`PgError::TimedOut`] when nothing arrived for `idle`; those of [`Program::run`].
pub async fn clone_aside(
    install: &Installation,
    data_dir: &Path,
    user: &OsUser,
    source: &CloneSource,
    idle: Duration,
    mut progress: impl FnMut(u64) + Send,
) -> Result<PathBuf, PgError> {
    let side = sibling(data_dir, SIDE);
    remove_tree(&side).await?;
    make_private(&side, user)?;
    let mut program = Program::new(install.program("pg_basebackup"), user)
        .arg("-D")
        .arg(&side)
        .args(["-X", "stream", "--checkpoint=fast", "--no-password", "-d"])
        .arg(source.conninfo.to_string())
        .args(file::no_sync());
    if let Some(slot) = &source.slot {
        program = program.args(["-S", slot]);
    }
    let copy = program.run();
    tokio::pin!(copy);
    let (mut bytes, mut still) = (0, Duration::ZERO);
    loop {
        tokio::select! {
            done = &mut copy => {
                done?;
                file::sync_tree(&side).await?;
                return Ok(side);
            }
            () = tokio::time::sleep(PROGRESS) => {
                let now = size_of(side.clone()).await;
                still = if now == bytes { still.saturating_add(PROGRESS) } else { Duration::ZERO };
                bytes = now;
                progress(bytes);
                if still >= idle {
                    return Err(PgError::TimedOut { operation: "copy the data directory".into(), limit: idle });
                }
            }
        }
    }
}

async fn size_of(directory: PathBuf) -> u64 {
    tokio::task::spawn_blocking(move || tree_size(&directory)).await.unwrap_or(0)
}

fn tree_size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => tree_size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Swaps a finished clone in: the old data directory is renamed aside, the clone to its place.
///
/// Nothing may run in the data directory. Returns where the old one is, if there was one.
///
/// # Errors
/// [`PgError::DataDirUnusable`] when the data directory is a mount point; [`PgError::Io`].
pub fn swap_in(data_dir: &Path) -> Result<Option<PathBuf>, PgError> {
    let (side, ready) = (sibling(data_dir, SIDE), sibling(data_dir, READY));
    // From this rename on, `recover_swap` finishes what was begun.
    fs::rename(&side, &ready).map_err(PgError::io("rename", &side))?;
    sync_parent(&ready)?;
    finish_swap(data_dir, &ready)
}

/// Finishes a swap that a crash has interrupted; says whether there was one.
///
/// To be called before anything else looks at the data directory.
///
/// # Errors
/// As [`swap_in`].
pub fn recover_swap(data_dir: &Path) -> Result<bool, PgError> {
    let ready = sibling(data_dir, READY);
    if !ready.exists() {
        return Ok(false);
    }
    finish_swap(data_dir, &ready).map(|_| true)
}

fn finish_swap(data_dir: &Path, ready: &Path) -> Result<Option<PathBuf>, PgError> {
    let mut aside = None;
    if data_dir.exists() {
        let old = next_old(data_dir);
        if let Err(error) = fs::rename(data_dir, &old) {
            // Undone, so that the clone is not swapped in by surprise at a later start.
            fs::rename(ready, sibling(data_dir, SIDE)).map_err(PgError::io("rename", ready))?;
            return Err(rename_error(data_dir, error));
        }
        aside = Some(old);
    }
    put_in_place(ready, data_dir)?;
    Ok(aside)
}

fn next_old(data_dir: &Path) -> PathBuf {
    let number = old_directories(data_dir).iter().map(|(number, _)| *number).max().unwrap_or(0) + 1;
    sibling(data_dir, &format!("{OLD}{number}"))
}

/// Lists the data directories that were swapped out, the oldest first.
fn old_directories(data_dir: &Path) -> Vec<(u64, PathBuf)> {
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!("{name}{OLD}");
    let entries =
        data_dir.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Removes what a copy that was given up left in the side directory; says whether there was any.
///
/// # Errors
/// [`PgError::Io`].
pub fn discard_side(data_dir: &Path) -> Result<bool, PgError> {
    let side = sibling(data_dir, SIDE);
    match fs::remove_dir_all(&side) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PgError::io("remove", &side)(error)),
    }
}

/// Removes the data directories that were swapped out, but for the oldest: copies that never came to serve.
///
/// # Errors
/// [`PgError::Io`].
pub async fn remove_all_but_the_oldest(data_dir: &Path) -> Result<usize, PgError> {
    let newer: Vec<_> = old_directories(data_dir).into_iter().skip(1).collect();
    let count = newer.len();
    for (_, path) in newer {
        remove_tree(&path).await?;
    }
    Ok(count)
}

/// Removes the data directories that were swapped out, but for the newest `keep`.
///
/// # Errors
/// [`PgError::Io`].
pub async fn remove_old(data_dir: &Path, keep: usize) -> Result<usize, PgError> {
    let old = old_directories(data_dir);
    let count = old.len().saturating_sub(keep);
    for (_, path) in old.into_iter().take(count) {
        remove_tree(&path).await?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(path: &Path, mark: &str) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("mark"), mark).unwrap();
    }

    #[tokio::test]
    async fn of_copies_that_never_served_only_what_they_replaced_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        for (name, what) in [
            ("", "copy 3"),
            (".rhone-old-1", "first"),
            (".rhone-old-2", "copy 1"),
            (".rhone-old-10", "copy 2"),
        ] {
            marked(&sibling(&data, name), what);
        }
        assert_eq!(remove_all_but_the_oldest(&data).await.unwrap(), 2);
        assert_eq!(remove_all_but_the_oldest(&data).await.unwrap(), 0);
        assert_eq!((mark(&data), mark(&sibling(&data, ".rhone-old-1"))), ("copy 3".into(), "first".into()));
        assert!(!discard_side(&data).unwrap());
        marked(&sibling(&data, SIDE), "half");
        assert!(discard_side(&data).unwrap() && !sibling(&data, SIDE).exists());
        assert_eq!(mark(&data), "copy 3");
    }

    fn mark(path: &Path) -> String {
        fs::read_to_string(path.join("mark")).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_swap_cut_after_any_step_is_finished() {
        for steps in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            marked(&data, "old");
            marked(&sibling(&data, SIDE), "new");
            if steps >= 1 {
                fs::rename(sibling(&data, SIDE), sibling(&data, READY)).unwrap();
            }
            if steps >= 2 {
                fs::rename(&data, sibling(&data, ".rhone-old-1")).unwrap();
            }
            if steps >= 3 {
                fs::rename(sibling(&data, READY), &data).unwrap();
            }
            assert_eq!(recover_swap(&data).unwrap(), steps == 1 || steps == 2, "{steps}");
            assert_eq!(mark(&data), if steps == 0 { "old" } else { "new" }, "{steps}");
            if steps > 0 {
                assert_eq!(mark(&sibling(&data, ".rhone-old-1")), "old");
                assert_eq!(remove_old(&data, 0).await.unwrap(), 1);
            }
        }
    }
}
