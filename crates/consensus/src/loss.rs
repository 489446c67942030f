//! What a former primary left behind: an estimate when it is replaced, exact once it is back
//! (docs/safety.md 7).
//!
//! Pure.

use rhone_pgctl::wal::{Lsn, WalPosition};

use crate::command::Outcome;
use crate::ids::NodeId;
use crate::ledger::Lineage;
use crate::state::{ClusterState, HistoryEntry, refused};

impl ClusterState {
    /// Returns the change of primary that ended the primaryship of `node` on the timeline of `end`,
    /// by its place in the history, while it is not known yet what that primary left behind; and the
    /// range from where the histories parted to `end`.
    pub fn waits_for_left(&self, node: NodeId, end: WalPosition) -> Option<(usize, (Lsn, Lsn))> {
        let name = &self.members.get(&node)?.name;
        let before = |entry: &HistoryEntry| entry.timeline == end.timeline && entry.to == *name;
        let place = self.history.iter().position(before)?.checked_add(1)?;
        let entry = self.history.get(place).filter(|entry| entry.left.is_none())?;
        match self.ledger.lineage(end, entry.timeline) {
            Lineage::Within => Some((place, (end.lsn, end.lsn))),
            Lineage::Forked(at) if at.timeline == end.timeline => Some((place, (at.lsn, end.lsn))),
            // Forgotten by the ledger: then only the estimate stays.
            Lineage::Forked(_) | Lineage::Foreign => None,
        }
    }

    pub(crate) fn record_left(&mut self, node: NodeId, end: WalPosition) -> Outcome {
        let found = self.waits_for_left(node, end);
        match found.and_then(|(place, range)| Some((self.history.get_mut(place)?, range))) {
            Some((entry, range)) => {
                entry.left = Some(range);
                Outcome::Done
            }
            None => refused("no change of primary waits for that"),
        }
    }
}

impl HistoryEntry {
    /// Returns the range of WAL that was lost as far as it is known, and whether that is exact;
    /// nothing: not known yet. An empty range: nothing was lost.
    pub fn loss(&self) -> Option<((Lsn, Lsn), bool)> {
        // Where commits waited for standbys, only somebody who accepted it can have lost any.
        let can_lose = self.at_once || self.accepted.is_some();
        match (can_lose, self.left, self.lost) {
            (false, _, _) => Some(((self.switch, self.switch), true)),
            (true, Some(range), _) => Some((range, true)),
            (true, None, Some(range)) => Some((range, false)),
            (true, None, None) => None,
        }
    }
}
