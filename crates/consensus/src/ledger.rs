//! The ledger of timelines: which epoch made which timeline, and where it left its parent
//! (docs/safety.md 10).
//!
//! Pure. Timeline numbers collide when two servers promote without knowing of each other, so a
//! number means something only when it stands here.

use std::collections::BTreeMap;

use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, NodeId};

/// One timeline of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The epoch whose owner makes it.
    pub epoch: Epoch,
    /// The timeline it leaves.
    pub parent: Timeline,
    /// Where it leaves that timeline: as planned, and as it came out once established.
    pub switch: Lsn,
    /// Who makes it.
    pub owner: NodeId,
    /// Whether the promotion is known to have happened.
    pub promoted: bool,
}

/// Every timeline that the cluster ever planned, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The timelines by number.
    pub entries: BTreeMap<Timeline, LedgerEntry>,
    /// The timeline that the founding data directory was on; older ones are its past.
    pub root: Option<Timeline>,
}

/// How a position relates to the history that ends in a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// It is part of that history: streaming continues from it.
    Within,
    /// It went past the point where that history left its timeline, given here.
    Forked(WalPosition),
    /// Its timeline is not in the ledger.
    Foreign,
}

impl Ledger {
    /// Returns the epoch in which a timeline was made, [`Epoch`] 0 for the founding one, or
    /// nothing when the timeline is foreign.
    pub fn epoch_of(&self, timeline: Timeline) -> Option<Epoch> {
        match self.entries.get(&timeline) {
            Some(entry) => Some(entry.epoch),
            None => (self.root == Some(timeline)).then_some(Epoch(0)),
        }
    }

    /// Returns the key by which positions of revoked members are compared: the epoch of the last
    /// timeline, then the LSN. Foreign positions have none.
    pub fn rank(&self, position: WalPosition) -> Option<(Epoch, Lsn)> {
        self.epoch_of(position.timeline).map(|epoch| (epoch, position.lsn))
    }

    /// Returns the highest timeline number that stands here.
    pub fn highest(&self) -> Timeline {
        self.entries.keys().next_back().copied().max(self.root).unwrap_or_default()
    }

    /// Forgets all but the newest `limit` timelines. The last one that was promoted stays, and the
    /// one it left: a member may still be elected from there. A forgotten timeline is foreign,
    /// which is the safe side.
    pub fn forget_beyond(&mut self, limit: usize) {
        let kept = self.entries.iter().rev().find(|(_, entry)| entry.promoted);
        let kept: Vec<Timeline> =
            kept.into_iter().flat_map(|(number, entry)| [*number, entry.parent]).collect();
        while self.entries.len() > limit {
            let Some(oldest) = self.entries.keys().find(|number| !kept.contains(number)).copied() else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }

    /// Returns the timeline that an epoch made or would have made.
    pub fn timeline_of(&self, epoch: Epoch) -> Option<Timeline> {
        self.entries.iter().find(|(_, entry)| entry.epoch == epoch).map(|(timeline, _)| *timeline)
    }

    /// Returns how many epochs in a row, up to the newest, are not known to have led to a promotion.
    pub fn failures(&self) -> usize {
        self.entries.values().rev().take_while(|entry| !entry.promoted).count()
    }

    /// Returns how many of those ago that member was last tried, or nothing when it was not.
    pub fn last_tried(&self, node: NodeId) -> Option<usize> {
        self.entries.values().rev().take_while(|entry| !entry.promoted).position(|entry| entry.owner == node)
    }

    /// Says whether `position` is part of the history that ends in timeline `tip`.
    pub fn lineage(&self, position: WalPosition, tip: Timeline) -> Lineage {
        let mut timeline = tip;
        let mut end: Option<Lsn> = None;
        // Each step goes to an older timeline; the count bounds a damaged ledger.
        for _ in 0..=self.entries.len() {
            if position.timeline == timeline {
                return match end {
                    Some(end) if position.lsn > end => Lineage::Forked(WalPosition::new(timeline, end)),
                    Some(_) | None => Lineage::Within,
                };
            }
            let Some(entry) = self.entries.get(&timeline) else { break };
            // A later switch point cannot lie after an earlier one on the way down.
            end = Some(end.map_or(entry.switch, |known| known.min(entry.switch)));
            timeline = entry.parent;
        }
        match (self.epoch_of(position.timeline), end) {
            // In the ledger, but on another branch: it left ours at or before our oldest switch point.
            (Some(_), Some(end)) => Lineage::Forked(WalPosition::new(timeline, end)),
            (Some(_) | None, _) => Lineage::Foreign,
        }
    }

    /// Returns where the history that ends in `position` and the one that ends in timeline `tip`
    /// parted: the end of what they have in common, at `position` itself when all of it is. Nothing
    /// when one of them is not in the ledger.
    pub fn parted(&self, position: WalPosition, tip: Timeline) -> Option<WalPosition> {
        let (mut timeline, mut end) = (position.timeline, position.lsn);
        for _ in 0..=self.entries.len() {
            match self.lineage(WalPosition::new(timeline, end), tip) {
                Lineage::Within => return Some(WalPosition::new(timeline, end)),
                Lineage::Forked(at) if at.timeline == timeline => return Some(at),
                // On a branch of its own: what it left is further back.
                Lineage::Forked(_) => {
                    let entry = self.entries.get(&timeline)?;
                    (timeline, end) = (entry.parent, end.min(entry.switch));
                }
                Lineage::Foreign => return None,
            }
        }
        None
    }

    /// Returns the LSN at which the timeline `tip` has to be left to reach a member at `position`,
    /// that is the floor below which a rewound member's data counts as lost.
    pub fn floor_after_rewind(&self, tip: Timeline) -> Option<WalPosition> {
        self.entries.get(&tip).map(|entry| WalPosition::new(tip, entry.switch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timeline 2 left 1 at 0/20; 3 left 2 at 0/30; 4 left 2 at 0/28 (made by an owner that was lost); 5 left 3 at 0/40.
    fn ledger() -> Ledger {
        let mut ledger = Ledger { root: Some(Timeline::new(1)), ..Ledger::default() };
        for (timeline, epoch, parent, switch) in
            [(2, 10, 1, 0x20), (3, 20, 2, 0x30), (4, 15, 2, 0x28), (5, 30, 3, 0x40)]
        {
            ledger.entries.insert(
                Timeline::new(timeline),
                LedgerEntry {
                    epoch: Epoch(epoch),
                    parent: Timeline::new(parent),
                    switch: Lsn::new(switch),
                    owner: NodeId(1),
                    promoted: true,
                },
            );
        }
        ledger
    }

    #[track_caller]
    fn check(position: &str, tip: u32, expected: &str) {
        let position = position.parse().expect("a position");
        let found = match ledger().lineage(position, Timeline::new(tip)) {
            Lineage::Within => "within".to_owned(),
            Lineage::Forked(at) => format!("forked at {at}"),
            Lineage::Foreign => "foreign".to_owned(),
        };
        assert_eq!(found, expected, "{position} against timeline {tip}");
    }

    #[test]
    fn a_position_is_followed_only_along_the_ledger() {
        check("5:0/50", 5, "within");
        check("3:0/40", 5, "within"); // exactly at the switch point
        check("3:0/41", 5, "forked at 3:0/40");
        check("2:0/30", 5, "within");
        check("2:0/38", 5, "forked at 2:0/30");
        check("1:0/20", 5, "within");
        check("1:0/21", 5, "forked at 1:0/20");
        check("4:0/2A", 5, "forked at 1:0/20"); // another branch of the ledger
        check("9:0/10", 5, "foreign"); // a number that nobody planned
    }

    #[test]
    fn two_histories_part_at_the_end_of_what_they_have_in_common() {
        let parted = |position: &str, tip: u32| {
            let position = position.parse().expect("a position");
            ledger().parted(position, Timeline::new(tip)).map(|at| at.to_string())
        };
        assert_eq!(parted("5:0/50", 5).as_deref(), Some("5:0/50"));
        assert_eq!(parted("3:0/48", 5).as_deref(), Some("3:0/40"));
        assert_eq!(parted("4:0/2A", 5).as_deref(), Some("2:0/28")); // both came from timeline 2
        assert_eq!(parted("5:0/50", 4).as_deref(), Some("2:0/28"));
        assert_eq!(parted("9:0/10", 5), None);
    }

    #[test]
    fn positions_rank_by_the_epoch_of_their_timeline_before_the_lsn() {
        let rank = |text: &str| ledger().rank(text.parse().expect("a position"));
        assert!(rank("3:0/31") > rank("4:0/99")); // timeline 4 is an older epoch's
        assert!(rank("1:0/99") < rank("2:0/21"));
        assert_eq!(rank("9:0/99"), None);
        assert_eq!(ledger().highest(), Timeline::new(5));
    }
}
