//! The retained log in memory: what the disk holds, durable already.
//!
//! Reads never touch the disk, so a damaged page can neither hang nor mislead a running
//! member. Bounded by compaction: some hundred small entries.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use openraft::{EntryPayload, RaftLogId};

use crate::ids::{Epoch, LogIndex};
use crate::observer::LogHeld;
use crate::raft::{Entry, LogId};

/// Bytes of entries in one answer; with overhead well below the message limit.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Clone, Debug)]
struct Held {
    entry: Entry,
    bytes: usize,
}

/// The log between the last purged entry and the last one.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    entries: BTreeMap<u64, Held>,
    purged: Option<LogId>,
    held: LogHeld,
    /// The membership of the snapshot below the log.
    base_membership: LogIndex,
}

impl Mirror {
    pub(crate) fn new(purged: Option<LogId>, base_membership: LogIndex) -> Self {
        let held = LogHeld { membership: base_membership, ..LogHeld::default() };
        Self { entries: BTreeMap::new(), purged, held, base_membership }
    }

    /// Notes a durable entry of `bytes` encoded bytes.
    pub(crate) fn push(&mut self, entry: Entry, bytes: usize) {
        let index = entry.get_log_id().index;
        self.note(&entry);
        self.entries.insert(index, Held { entry, bytes });
    }

    fn note(&mut self, entry: &Entry) {
        let index = entry.get_log_id().index;
        match &entry.payload {
            EntryPayload::Normal(command) if command.opens_epoch() => {
                self.held.prepare = self.held.prepare.max(Epoch(index));
            }
            EntryPayload::Membership(_) => {
                self.held.membership = self.held.membership.max(LogIndex(index));
            }
            EntryPayload::Normal(command) => {
                if let Some(timing) = command.sets_timing() {
                    let all = self.held.timing.map_or(timing, |(_, known)| known.or_shorter(timing));
                    self.held.timing = Some((LogIndex(index), all));
                }
            }
            EntryPayload::Blank => {}
        }
    }

    fn recount(&mut self) {
        self.held = LogHeld { membership: self.base_membership, ..LogHeld::default() };
        let entries = std::mem::take(&mut self.entries);
        for held in entries.values() {
            self.note(&held.entry);
        }
        self.entries = entries;
    }

    /// Forgets the entries from `index` on.
    pub(crate) fn truncate(&mut self, index: u64) {
        drop(self.entries.split_off(&index));
        self.recount();
    }

    /// Forgets the entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&upto.index.saturating_add(1));
        self.purged = self.purged.max(Some(upto));
        self.recount();
    }

    /// Notes that a snapshot with this membership is below the log now.
    pub(crate) fn rebase(&mut self, membership: LogIndex) {
        self.base_membership = self.base_membership.max(membership);
        self.recount();
    }

    pub(crate) fn held(&self) -> LogHeld {
        self.held
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Returns the last entry's id, or the last purged one's.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|held| *held.entry.get_log_id()).or(self.purged)
    }

    /// Returns the id of the entry before `index`.
    pub(crate) fn before(&self, index: u64) -> Option<LogId> {
        self.entries.range(..index).next_back().map(|(_, held)| *held.entry.get_log_id()).or(self.purged)
    }

    pub(crate) fn range(&self, range: impl RangeBounds<u64>) -> Vec<Entry> {
        self.entries.range(range).map(|(_, held)| held.entry.clone()).collect()
    }

    /// Returns entries from `start` up to `end` that fit into one message, at least one.
    pub(crate) fn limited(&self, start: u64, end: u64) -> Vec<Entry> {
        let mut left = BATCH_BYTES;
        let mut found = Vec::new();
        for (_, held) in self.entries.range(start..end) {
            if !found.is_empty() && held.bytes > left {
                break;
            }
            left = left.saturating_sub(held.bytes);
            found.push(held.entry.clone());
        }
        found
    }
}
