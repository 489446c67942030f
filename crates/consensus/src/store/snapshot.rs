//! Snapshots: complete or absent. The header has length and checksum.

use std::io;

use serde::{Deserialize, Serialize};

use super::medium::Medium;
use crate::codec;
use crate::raft::{LogId, SnapshotMeta};

const MAGIC: &[u8; 8] = b"RHONESN1";

/// A snapshot: what it covers, and the encoded state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: Vec<u8>,
}

fn name(last: Option<&LogId>) -> String {
    let index = last.map_or(0, |id| id.index);
    let term = last.map_or(0, |id| id.leader_id.term);
    format!("{index:020}-{term}")
}

/// Writes `snapshot` durably, and only then removes the others.
pub(crate) fn write(medium: &mut dyn Medium, snapshot: &Stored) -> io::Result<()> {
    let content = codec::encode(snapshot).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&u64::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
    medium.save_snapshot(&name(snapshot.meta.last_log_id.as_ref()), &bytes)
}

/// Returns the newest snapshot.
pub(crate) fn load(medium: &mut dyn Medium) -> Result<Option<Stored>, String> {
    let mut newest: Option<Stored> = None;
    for (name, bytes) in medium.snapshots().map_err(|error| error.to_string())? {
        let found = read(&bytes).map_err(|error| format!("{name}: {error}"))?;
        if newest.as_ref().is_none_or(|n| found.meta.last_log_id >= n.meta.last_log_id) {
            newest = Some(found);
        }
    }
    Ok(newest)
}

fn read(bytes: &[u8]) -> io::Result<Stored> {
    let bad = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
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
