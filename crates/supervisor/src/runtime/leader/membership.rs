//! The Raft leader's care for the members: who learns, who votes, who is removed (decision 0069).

use std::collections::BTreeSet;
use std::sync::Arc;

use rhone_consensus::RaftStatus;
use rhone_consensus::ids::NodeId;
use rhone_consensus::state::ClusterState;

use super::{ALIVE_MS, Leader, PROPOSE_LIMIT, YIELD_EVERY_MS};
use crate::decide::members::{Voting, may_change};
use crate::runtime::found;
use crate::view::Moment;

impl Leader {
    /// Keeps Raft's membership in step with the state's: who was admitted learns, then votes.
    pub(super) async fn keep_members(&mut self, state: &ClusterState) {
        let status = self.shared.consensus.status();
        if status.configs.len() > 1 {
            self.finish_change(&status).await;
            return;
        }
        for member in state.members.values() {
            let node = found::peer_node(member);
            match status.nodes.get(&member.node) {
                None => {
                    tracing::info!(member = %member.name, "becomes a learner");
                    if let Err(error) =
                        self.shared.consensus.add_learner(member.node, node, PROPOSE_LIMIT).await
                    {
                        tracing::info!(%error, member = %member.name, "is not a learner yet");
                    }
                    return;
                }
                Some(known) if *known != node => {
                    if let Err(error) =
                        self.shared.consensus.update_node(member.node, node, PROPOSE_LIMIT).await
                    {
                        tracing::info!(%error, member = %member.name, "its address is not recorded yet");
                    }
                    return;
                }
                Some(_) => {}
            }
        }
        let gone: Vec<NodeId> =
            status.nodes.keys().filter(|node| !state.members.contains_key(node)).copied().collect();
        let alive = self.alive(state);
        let wanted = self.wanted_voters(state, &status, &alive);
        if wanted != status.voters && !wanted.is_empty() && !may_change(&status.voters, &wanted, &alive) {
            tracing::debug!(voters = wanted.len(), "who votes cannot change: too few of them are there");
            return;
        }
        if wanted != status.voters && !wanted.is_empty() {
            if !wanted.contains(&self.shared.me()) {
                // Who leads does not take its own vote away: its successor does.
                let now = self.shared.now();
                if now.millis_since(self.yielded) >= YIELD_EVERY_MS {
                    self.yielded = now;
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move { shared.consensus.yield_leadership().await });
                }
                return;
            }
            let name =
                |node: &NodeId| state.members.get(node).map_or_else(|| node.to_string(), |m| m.name.clone());
            let names = |nodes: &BTreeSet<NodeId>| nodes.iter().map(name).collect::<Vec<_>>().join(", ");
            tracing::info!(before = %names(&status.voters), after = %names(&wanted), "changes who votes");
            if let Err(error) = self.shared.consensus.change_voters(wanted, true, PROPOSE_LIMIT).await {
                tracing::info!(%error, "who votes is not changed yet");
            }
            return;
        }
        for node in gone.into_iter().filter(|node| !status.voters.contains(node)) {
            if let Err(error) = self.shared.consensus.remove(node, PROPOSE_LIMIT).await {
                tracing::info!(%error, %node, "is not removed yet");
            }
        }
    }

    /// Chooses the voters by what this leader has seen of the members.
    fn wanted_voters(
        &self,
        state: &ClusterState,
        status: &RaftStatus,
        alive: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let timeout_ms = state.settings.dead_member_timeout_ms;
        let dead = self.presence.dead(timeout_ms);
        let mut fit = self.presence.steady(timeout_ms);
        fit.retain(|node| status.learners.contains(node) && self.shared.consensus.keeps_up(*node));
        let leader = self.shared.me();
        Voting { state, voters: &status.voters, leader, alive, dead: &dead, fit: &fit }.wanted()
    }

    /// Notes who is there, unless the cluster is paused: then members are away on purpose.
    pub(super) fn look_at_members(&mut self, state: &ClusterState, now: Moment) {
        if state.paused {
            self.presence.forget();
        } else {
            let alive = self.alive(state);
            self.presence.look(state.members.keys().copied(), &alive, now);
        }
    }

    /// A change of the voters is two entries, and who led may be gone between them: whoever leads then
    /// completes it (decision 0041). While the first is under way this is refused, and tried again.
    async fn finish_change(&self, status: &RaftStatus) {
        let Some(newest) = status.configs.last() else { return };
        tracing::info!(voters = newest.len(), "completes a change of who votes");
        if let Err(error) = self.shared.consensus.change_voters(newest.clone(), true, PROPOSE_LIMIT).await {
            tracing::info!(%error, "the change of who votes is not complete yet");
        }
    }

    /// Returns the members that were heard from lately.
    pub(super) fn alive(&self, state: &ClusterState) -> BTreeSet<NodeId> {
        let (now, me) = (self.shared.now(), self.shared.me());
        let table = self.shared.table.borrow();
        state
            .members
            .keys()
            .filter(|node| **node == me || table.get(node).is_some_and(|r| now.millis_since(r.at) < ALIVE_MS))
            .copied()
            .collect()
    }
}
