//! Under which conditions a commit of an epoch may have been acknowledged, and which
//! revoked members prove that all such commits are seen (docs/safety.md 6).
//!
//! Pure.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, LogIndex, Replica};

/// When a commit counts as acknowledged in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `required` of `standbys` flushed it.
    Quorum {
        /// How many of them.
        required: u32,
        /// The standbys that may acknowledge.
        standbys: BTreeSet<Replica>,
    },
    /// The owner alone flushed it, and the cluster promised to lose nothing: only that owner covers it.
    Alone,
    /// The owner alone flushed it, and up to `max_lag` bytes may be lost.
    Async {
        /// The bound in bytes of what a failover may leave behind.
        max_lag: u64,
    },
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quorum { required, standbys } => {
                write!(f, "once {required} of {} standbys flushed it", standbys.len())
            }
            Self::Alone => f.write_str("alone, and only its owner may follow itself"),
            Self::Async { max_lag } => {
                write!(f, "at once, and a failover may leave behind up to {max_lag} bytes of wal")
            }
        }
    }
}

/// A policy and the epoch and owner that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The index of the log entry that added it: the newer of two has the higher one.
    pub number: LogIndex,
    /// The epoch whose commits it speaks of.
    pub epoch: Epoch,
    /// The member that owned that epoch, with the data directory it did so with.
    pub owner: Replica,
    /// The condition.
    pub kind: PolicyKind,
}

impl Policy {
    /// Returns whether the revoked replicas, whose reports count, hold every commit acknowledged
    /// under this policy and have ended it, so that no more can follow.
    ///
    /// `leases_aged` stands for the owner's end in asynchronous mode only (docs/safety.md 7); it never
    /// replaces evidence under the other kinds.
    pub fn covered(&self, revoked: &BTreeSet<Replica>, leases_aged: bool) -> bool {
        if revoked.contains(&self.owner) {
            return true;
        }
        match &self.kind {
            PolicyKind::Quorum { required, standbys } => {
                let needed = (standbys.len() + 1).saturating_sub(*required as usize).max(1);
                *required > 0 && standbys.intersection(revoked).count() >= needed
            }
            PolicyKind::Alone => false,
            PolicyKind::Async { .. } => leases_aged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DataId, NodeId};

    /// `2` is member 2 with its first data directory, `2b` the same member with another one.
    fn replica(text: &str) -> Replica {
        let number = text.trim_end_matches('b').parse().expect("a number");
        Replica { node: NodeId(number), data: DataId(number + if text.ends_with('b') { 100 } else { 0 }) }
    }

    fn ids(text: &str) -> BTreeSet<Replica> {
        text.split_whitespace().map(replica).collect()
    }

    #[track_caller]
    #[allow(clippy::fn_params_excessive_bools, reason = "one row of a table")]
    fn check(kind: PolicyKind, revoked: &str, aged: bool, expected: bool) {
        let policy = Policy { number: LogIndex(6), epoch: Epoch(5), owner: replica("1"), kind };
        assert_eq!(policy.covered(&ids(revoked), aged), expected, "revoked {revoked}, aged {aged}");
    }

    fn quorum(required: u32, standbys: &str) -> PolicyKind {
        PolicyKind::Quorum { required, standbys: ids(standbys) }
    }

    #[test]
    fn a_cover_holds_every_acknowledged_commit() {
        check(quorum(1, "2 3"), "2", false, false);
        check(quorum(1, "2 3"), "2", true, false); // a clock is no evidence
        check(quorum(1, "2 3"), "2 3", false, true);
        check(quorum(1, "2 3"), "1", false, true); // the owner with its WAL
        check(quorum(1, "2 3"), "1b", false, false); // the owner with another data directory
        check(quorum(1, "2 3"), "2 3b", false, false); // a wiped or restored one is nobody's witness
        check(quorum(2, "2 3 4 5"), "2 3", false, false);
        check(quorum(2, "2 3 4 5"), "2 3 4", false, true);
        check(quorum(2, "2 3 4 5"), "6 7 8", false, false); // no member of the set
        check(quorum(0, "2 3"), "2 3", false, false); // acknowledged by nobody proves nothing
        check(quorum(4, "2 3"), "", false, false); // nobody's word is no cover
        check(PolicyKind::Alone, "2 3", true, false);
        check(PolicyKind::Alone, "1", false, true);
        check(PolicyKind::Async { max_lag: 0 }, "2 3", false, false);
        check(PolicyKind::Async { max_lag: 0 }, "2", true, true);
        check(PolicyKind::Async { max_lag: 0 }, "1", false, true);
    }
}
