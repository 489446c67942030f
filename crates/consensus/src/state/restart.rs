//! ✦ Restarts that are to begin later: kept here, begun once for one server, over when another one runs (decision 0043).

use super::{ClusterState, refused};
use crate::command::{MemberKind, Outcome, RestartStep, ScheduledRestart};
use crate::ids::NodeId;

impl ClusterState {
    /// Goes on with the restart of `node` that is to begin later.
    pub(super) fn step_restart(&mut self, node: NodeId, step: &RestartStep) -> Outcome {
        match (step, self.restarts.get_mut(&node)) {
            (RestartStep::Schedule { .. }, Some(_)) => {
                refused("a restart of this member is scheduled already")
            }
            (RestartStep::Schedule { at, by }, None) => {
                match self.members.get(&node) {
                    None => return refused("no such member"),
                    Some(member) if member.kind == MemberKind::Witness => {
                        return refused("a witness runs no postgres");
                    }
                    Some(_) => {}
                }
                self.restarts.insert(node, ScheduledRestart { at: *at, by: by.clone(), server: None });
                self.restart_dropped = None;
                Outcome::Done
            }
            (RestartStep::Cancel, Some(known)) if known.server.is_some() => {
                refused("it is being restarted by now")
            }
            (RestartStep::Cancel, Some(_)) => {
                self.restarts.remove(&node);
                Outcome::Done
            }
            (RestartStep::Begin { at, server }, Some(known)) if known.at == *at && known.server.is_none() => {
                known.server = Some(*server);
                Outcome::Done
            }
            (RestartStep::End { at, why }, Some(known)) if known.at == *at => {
                self.restarts.remove(&node);
                if let Some(why) = why {
                    self.restart_dropped = Some((node, *at, why.clone()));
                }
                Outcome::Done
            }
            (RestartStep::Cancel, None) => refused("no restart of this member is scheduled"),
            (RestartStep::Begin { .. } | RestartStep::End { .. }, Some(_) | None) => {
                refused("no restart of this member is scheduled for that time")
            }
        }
    }
}
