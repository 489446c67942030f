//! The records of the store, as bytes under keys.
//!
//! One tree: `l` + index (big-endian) for each entry, `v` the vote, `p` the last purged id,
//! `c` the last known commit. An entry's value starts with a checksum over its index, its
//! term and its content.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::RaftLogId;

use super::medium::{Change, Medium};
use super::snapshot;
use crate::codec;
use crate::raft::{Entry, LogId, Vote};

/// The most bytes of one record: sled writes larger ones to files that it never syncs.
pub(crate) const RECORD_LIMIT: usize = 60 * 1024;
/// Checksum, index, term.
const HEADER: usize = 4 + 8 + 8;
const VOTE: &[u8] = b"v";
const PURGED: &[u8] = b"p";
const COMMITTED: &[u8] = b"c";

/// How many times the store asked the disk to make something durable.
#[derive(Clone, Debug, Default)]
pub struct SyncCount(Arc<AtomicU64>);

impl SyncCount {
    /// Returns the count since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An entry and its encoding.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) entry: Entry,
    pub(crate) value: Vec<u8>,
}

impl Record {
    /// Encodes an entry; refuses one that the store could not keep safely.
    pub(crate) fn new(entry: Entry) -> io::Result<Self> {
        let id = *entry.get_log_id();
        let content = codec::encode(&entry).map_err(io::Error::other)?;
        let mut value = vec![0; 4];
        value.extend_from_slice(&id.index.to_le_bytes());
        value.extend_from_slice(&id.leader_id.term.to_le_bytes());
        value.extend_from_slice(&content);
        let sum = crc32fast::hash(value.get(4..).unwrap_or_default());
        value.splice(..4, sum.to_le_bytes());
        if value.len() > RECORD_LIMIT.saturating_add(HEADER) {
            return Err(io::Error::other(format!("entry {id} takes {} bytes", value.len())));
        }
        Ok(Self { entry, value })
    }

    fn parse(key: &[u8], value: &[u8]) -> Result<Self, String> {
        let index = key.get(1..).and_then(|k| k.try_into().ok()).map(u64::from_be_bytes);
        let index = index.ok_or_else(|| format!("a key of {} bytes", key.len()))?;
        let bad = |what: &str| format!("log entry {index}: {what}");
        let (head, content) = value.split_at_checked(HEADER).ok_or_else(|| bad("too short"))?;
        let (sum, named) = head.split_at_checked(4).ok_or_else(|| bad("too short"))?;
        let sum = sum.try_into().map(u32::from_le_bytes).map_err(|_| bad("too short"))?;
        if crc32fast::hash(value.get(4..).unwrap_or_default()) != sum {
            return Err(bad("checksum does not match"));
        }
        let entry: Entry = codec::decode(content).map_err(|error| bad(&error.to_string()))?;
        let id = entry.get_log_id();
        let (low, high) = (id.index.to_le_bytes(), id.leader_id.term.to_le_bytes());
        if id.index != index || named != [low, high].concat() {
            return Err(bad("another entry is in its place"));
        }
        Ok(Self { value: value.to_vec(), entry })
    }
}

fn key(index: u64) -> [u8; 9] {
    let mut key = [b'l'; 9];
    for (to, from) in key.iter_mut().skip(1).zip(index.to_be_bytes()) {
        *to = from;
    }
    key
}

fn removal(index: u64) -> Change {
    Change { key: key(index).to_vec(), value: None }
}

/// Everything a store holds, verified.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) records: Vec<Record>,
}

/// The open store. Used by the storage thread only.
#[derive(Debug)]
pub(crate) struct Disk {
    medium: Box<dyn Medium>,
    syncs: SyncCount,
    committed: Option<LogId>,
}

impl Disk {
    /// Makes a store of what `medium` holds.
    pub(crate) fn new(medium: Box<dyn Medium>, syncs: SyncCount) -> Self {
        Self { medium, syncs, committed: None }
    }

    /// Makes durability a lie, so that a test can show that it notices.
    #[cfg(test)]
    pub(crate) fn flush_only(&mut self) {
        self.medium.flush_only();
    }

    /// Reads and verifies everything.
    pub(crate) fn load(&self) -> Result<Contents, String> {
        let mut contents = Contents {
            vote: self.single(VOTE)?,
            purged: self.single(PURGED)?,
            committed: self.single(COMMITTED)?,
            records: Vec::new(),
        };
        let mut previous = contents.purged;
        for (key, value) in self.medium.scan(b"l").map_err(|error| error.to_string())? {
            let record = Record::parse(&key, &value)?;
            let id = *record.entry.get_log_id();
            let expected = previous.map_or(0, |p| p.index.saturating_add(1));
            if id.index != expected {
                return Err(format!("log entry {expected} is missing; {id} follows"));
            }
            if previous.is_some_and(|p| p.leader_id > id.leader_id) {
                return Err(format!("log entry {id} is older than the one before it"));
            }
            previous = Some(id);
            contents.records.push(record);
        }
        Ok(contents)
    }

    fn single<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, String> {
        let found = self.medium.get(key).map_err(|error| error.to_string())?;
        let Some(value) = found else { return Ok(None) };
        let name = String::from_utf8_lossy(key).into_owned();
        let bad = |what: &str| format!("record `{name}`: {what}");
        let (sum, content) = value.split_at_checked(4).ok_or_else(|| bad("too short"))?;
        if sum != crc32fast::hash(content).to_le_bytes() {
            return Err(bad("checksum does not match"));
        }
        codec::decode(content).map(Some).map_err(|error| bad(&error.to_string()))
    }

    fn put<T: serde::Serialize>(batch: &mut Vec<Change>, key: &[u8], value: &T) -> io::Result<()> {
        let content = codec::encode(value).map_err(io::Error::other)?;
        let mut record = crc32fast::hash(&content).to_le_bytes().to_vec();
        record.extend_from_slice(&content);
        batch.push(Change { key: key.to_vec(), value: Some(record) });
        Ok(())
    }

    /// Applies a batch, with the last known commit, and makes it durable.
    fn commit(&mut self, mut batch: Vec<Change>) -> io::Result<()> {
        if let Some(committed) = self.committed.take() {
            Self::put(&mut batch, COMMITTED, &committed)?;
        }
        self.syncs.add();
        self.medium.commit(batch)
    }

    pub(crate) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let change = |record: &Record| Change {
            key: key(record.entry.get_log_id().index).to_vec(),
            value: Some(record.value.clone()),
        };
        self.commit(records.iter().map(change).collect())
    }

    pub(crate) fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = Vec::new();
        Self::put(&mut batch, VOTE, vote)?;
        self.commit(batch)
    }

    /// Removes the entries from `from` up to and including `last`.
    pub(crate) fn truncate(&mut self, from: u64, last: u64) -> io::Result<()> {
        self.commit((from..=last).map(removal).collect())
    }

    /// Removes the entries of `indexes`, and notes that all up to `upto` are gone.
    pub(crate) fn purge(&mut self, indexes: &[u64], upto: &LogId) -> io::Result<()> {
        let mut batch: Vec<Change> = indexes.iter().copied().map(removal).collect();
        Self::put(&mut batch, PURGED, upto)?;
        self.commit(batch)
    }

    /// Notes how far the log is committed; written with whatever is written next.
    pub(crate) fn save_committed(&mut self, committed: Option<LogId>) {
        self.committed = committed;
    }

    /// Counts a write that was made durable beside the store.
    pub(crate) fn count_sync(&self) {
        self.syncs.add();
    }

    /// Writes a snapshot durably, and only then removes the others.
    pub(crate) fn save_snapshot(&mut self, stored: &snapshot::Stored) -> io::Result<()> {
        self.syncs.add();
        snapshot::write(self.medium.as_mut(), stored)
    }

    /// Returns the newest snapshot.
    pub(crate) fn snapshot(&mut self) -> Result<Option<snapshot::Stored>, String> {
        snapshot::load(self.medium.as_mut())
    }

    /// Writes what only waited for something else to be written.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.committed.is_some() { self.commit(Vec::new()) } else { Ok(()) }
    }
}
