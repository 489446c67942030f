//! What a member's tags mean to the cluster. A tag never weakens safety: it only takes a member out
//! of a choice.
//!
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::{Member, MemberKind};

/// A member's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a tag of its own")]
pub struct Tags {
    /// Never becomes primary by an election or a switchover; its WAL counts as evidence all the same.
    pub no_failover: bool,
    /// Never acknowledges synchronous commits.
    pub no_sync: bool,
    /// Is left out by `/replica` and the other checks for readers.
    pub no_load_balance: bool,
    /// Is the preferred source of clones while it streams.
    pub clone_from: bool,
    /// Follows that member while it streams from the primary, instead of the primary.
    pub replicate_from: Option<String>,
    /// Replays so many milliseconds later; 0: at once.
    pub delay_ms: u64,
    /// All tags as they were written, also those that mean nothing to the cluster.
    pub labels: BTreeMap<String, String>,
}

impl Tags {
    /// Returns whether the member is to learn only: its label `no-vote`, which needs no field of its own in what
    /// members say to each other.
    pub fn no_vote(&self) -> bool {
        self.labels.get("no-vote").is_some_and(|value| value == "true")
    }
}

impl Member {
    /// Returns whether this member may become primary.
    ///
    /// A delayed standby would have to replay what it holds back first, and does not report where its
    /// WAL ends; it is never chosen.
    pub fn may_lead(&self) -> bool {
        self.kind == MemberKind::Data
            && self.priority > 0
            && !self.tags.no_failover
            && self.tags.delay_ms == 0
    }

    /// Returns whether this member may acknowledge synchronous commits.
    pub fn may_be_sync(&self) -> bool {
        self.kind == MemberKind::Data
            && !self.tags.no_sync
            && self.tags.replicate_from.is_none()
            && self.tags.delay_ms == 0
    }
}
