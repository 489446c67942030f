//! ✦ Who is removed, and who is kept from voting.

use super::{ClusterState, refused};
use crate::command::{Member, Outcome};
use crate::ids::NodeId;

/// How many removed stores are remembered: far more than a person removes before their machines are emptied.
const REMOVED_LIMIT: usize = 64;

impl ClusterState {
    /// Removes a member for good: its store is not admitted again. Never the owner, not even while its
    /// successor is sought, and never the last that could lead.
    pub(super) fn remove(&mut self, node: NodeId) -> Outcome {
        if !self.members.contains_key(&node) {
            return refused("no such member");
        }
        if self.leads(node) {
            return refused("the member leads: hand over first");
        }
        if self.last_owner() == Some(node) {
            return refused("the member led last, and its successor is being sought");
        }
        if self.handover.as_ref().is_some_and(|going| going.to == Some(node)) {
            return refused("the primary is being handed over to this member");
        }
        let others = || self.members.values().filter(|member| member.node != node);
        if !others().any(Member::may_lead) && self.members.values().any(Member::may_lead) {
            return refused("no other member could be primary");
        }
        self.members.remove(&node);
        self.forget_fenced(node);
        self.learners.remove(&node);
        self.restarts.remove(&node);
        self.note_removed(&[node]);
        Outcome::Done
    }

    /// Remembers stores that are not admitted again.
    pub(super) fn note_removed(&mut self, nodes: &[NodeId]) {
        self.removed.extend(nodes);
        while self.removed.len() > REMOVED_LIMIT {
            self.removed.pop_front();
        }
    }

    /// Keeps a member from voting, or ends that.
    pub(super) fn set_learner(&mut self, node: NodeId, learner: bool) -> Outcome {
        if !self.members.contains_key(&node) {
            return refused("no such member");
        }
        let changed = if learner { self.learners.insert(node) } else { self.learners.remove(&node) };
        match (changed, learner) {
            (true, _) => Outcome::Done,
            (false, true) => refused("the member is kept from voting already"),
            (false, false) => refused("the member is not kept from voting"),
        }
    }

    /// Keeps the mark to the name: one that comes back under another id still only learns.
    pub(super) fn replace_learner(&mut self, before: NodeId, after: NodeId) {
        if self.learners.remove(&before) {
            self.learners.insert(after);
        }
    }
}
