//! Snapshots: ordinary files, complete or absent.
//!
//! Written under another name, fsynced, renamed, and the directory fsynced; the header has
//! length and checksum.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::SyncCount;
use crate::codec;
use crate::raft::{LogId, SnapshotMeta};

const MAGIC: &[u8; 8] = b"RHONESN1";
const SUFFIX: &str = "snap";

/// A snapshot: what it covers, and the encoded state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: Vec<u8>,
}

fn name(last: Option<&LogId>) -> String {
    let index = last.map_or(0, |id| id.index);
    let term = last.map_or(0, |id| id.leader_id.term);
    format!("{index:020}-{term}.{SUFFIX}")
}

/// Writes `snapshot` durably, and only then removes the others.
pub(crate) fn write(dir: &Path, snapshot: &Stored, syncs: &SyncCount) -> io::Result<()> {
    let content = codec::encode(snapshot).map_err(io::Error::other)?;
    let path = dir.join(name(snapshot.meta.last_log_id.as_ref()));
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(MAGIC)?;
    file.write_all(&u64::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes())?;
    file.write_all(&crc32fast::hash(&content).to_le_bytes())?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    super::sync_dir(dir)?;
    syncs.add();
    for old in list(dir)? {
        if old != path {
            fs::remove_file(old)?;
        }
    }
    Ok(())
}

/// Returns the newest snapshot; removes half-written ones.
pub(crate) fn load(dir: &Path) -> Result<Option<Stored>, String> {
    let text = |error: io::Error| error.to_string();
    for entry in fs::read_dir(dir).map_err(text)? {
        let path = entry.map_err(text)?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(path).map_err(text)?;
        }
    }
    let mut newest: Option<Stored> = None;
    for path in list(dir).map_err(text)? {
        let found = read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if newest.as_ref().is_none_or(|n| found.meta.last_log_id >= n.meta.last_log_id) {
            newest = Some(found);
        }
    }
    Ok(newest)
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == SUFFIX) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> io::Result<Stored> {
    let bad = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let bytes = fs::read(path)?;
    let (magic, rest) = bytes.split_at_checked(8).ok_or_else(|| bad("too short"))?;
    let (length, rest) = rest.split_at_checked(8).ok_or_else(|| bad("too short"))?;
    let (sum, content) = rest.split_at_checked(4).ok_or_else(|| bad("too short"))?;
    if magic != MAGIC {
        return Err(bad("not a snapshot"));
    }
    if length != u64::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes() {
        return Err(bad("truncated"));
    }
    if sum != crc32fast::hash(content).to_le_bytes() {
        return Err(bad("checksum does not match"));
    }
    codec::decode(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
