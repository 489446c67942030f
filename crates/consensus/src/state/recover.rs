//! ✦ The state with which one member goes on alone when the majority is lost for good (decision 0042).

use super::{ClusterState, Phase};
use crate::command::{Acceptance, ClusterCommand, Member, Outcome, PrepareReason};
use crate::ids::{Epoch, LogIndex, NodeId};

impl ClusterState {
    /// Makes `me` the only member and opens the epoch `index`, in which a person has accepted that
    /// acknowledged commits may be lost. Settings, history, ledger and policies stay; the stores of the
    /// others are not admitted again.
    ///
    /// # Errors
    /// Why this member cannot go on alone; nothing was changed.
    pub fn recover(&mut self, index: LogIndex, me: NodeId, accepted: Acceptance) -> Result<(), String> {
        let Some(member) = self.members.get(&me).cloned() else {
            return Err("the replicated state here does not name this member".to_owned());
        };
        if self.grant.is_none() || matches!(self.phase, Phase::None) {
            return Err("this cluster never had a primary: there is nothing to recover".to_owned());
        }
        if !member.may_lead() {
            return Err(format!(
                "{} could not be primary: it is a witness, has priority 0, or is tagged no-failover or delayed",
                member.name
            ));
        }
        let mut next = self.clone();
        let others: Vec<NodeId> = next.members.keys().copied().filter(|node| *node != me).collect();
        next.members.retain(|node, _: &mut Member| *node == me);
        next.handover = None;
        next.scheduled = None;
        next.restarts.clear();
        next.fenced.clear();
        next.learners.clear();
        next.note_removed(&others);
        let prepare = ClusterCommand::Prepare { reason: PrepareReason::Recovery, at: accepted.at };
        next.apply(index, &prepare);
        let accepted = Acceptance { epoch: Epoch(index.0), to: Some(me), ..accepted };
        match next.apply(index, &ClusterCommand::AcceptLoss(accepted)) {
            Outcome::Done | Outcome::Prepared(_) => {}
            Outcome::Refused(reason) => return Err(reason),
        }
        *self = next;
        Ok(())
    }
}
