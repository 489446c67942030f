//! ✦ Members that an operator holds: their Postgres is stopped and stays so.

use std::collections::BTreeSet;

use super::{ClusterState, refused};
use crate::command::{MemberKind, Outcome};
use crate::ids::NodeId;

impl ClusterState {
    /// Holds a member's instance, or lets it go. The primary is never held: it hands over first.
    pub(super) fn set_fenced(&mut self, node: NodeId, fenced: bool) -> Outcome {
        if !fenced {
            return if self.fenced.remove(&node) { Outcome::Done } else { refused("the member is not fenced") };
        }
        match self.members.get(&node).map(|member| member.kind) {
            None => refused("no such member"),
            Some(MemberKind::Witness) => refused("a witness runs no postgres"),
            Some(MemberKind::Data) if self.last_owner() == Some(node) => {
                refused("the member leads, or led last: hand over first")
            }
            Some(MemberKind::Data) if self.handover.as_ref().is_some_and(|going| going.to == Some(node)) => {
                refused("the primary is being handed over to this member")
            }
            Some(MemberKind::Data) if self.is_fenced(node) => refused("the member is fenced already"),
            Some(MemberKind::Data) => {
                self.fenced.insert(node);
                Outcome::Done
            }
        }
    }

    /// Returns whether that member's instance is held.
    pub fn is_fenced(&self, node: NodeId) -> bool {
        self.fenced.contains(&node)
    }

    /// Keeps the list to members: one that comes back under another id is still held.
    pub(super) fn replace_fenced(&mut self, before: NodeId, after: NodeId) {
        if self.fenced.remove(&before) {
            self.fenced.insert(after);
        }
    }

    /// Forgets a member that is gone.
    pub(super) fn forget_fenced(&mut self, node: NodeId) {
        self.fenced.remove(&node);
    }

    /// Says what is wrong with the list, for the invariants.
    pub(super) fn fenced_beyond_members(&self) -> Option<String> {
        let members: BTreeSet<NodeId> = self.members.keys().copied().collect();
        let stray = self.fenced.difference(&members).next()?;
        Some(format!("{stray} is fenced and no member"))
    }
}
