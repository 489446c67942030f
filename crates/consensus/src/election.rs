//! Elections: openraft's own are off, because 0.9 knows no pre-vote (RUST.md 1).
//!
//! Its heartbeats are off too: its timer would wake every member for them, and the leader alone has any to
//! send (decision 0046).
//!
//! A voter that has heard no leader for a drawn time asks the others whether they would vote
//! for it. Only with a majority's leave (of both configurations when joint) does it raise the
//! term, so that a member that was cut off disturbs nobody when it comes back. All this can
//! only refuse or delay an election, which is always safe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::contact::Contacts;
use crate::host::Moment;
use crate::ids::NodeId;
use crate::patience::Patience;
use crate::raft::{PeerNode, RaftHandle, Timings};
use crate::status::{self, RaftStatus, Role};
use crate::transport::PreVoteRequest;
use crate::transport::client::PeerClient;
use crate::transport::pool::Pool;

/// What the election task needs.
#[derive(Clone)]
pub(crate) struct Election {
    pub(crate) raft: RaftHandle,
    pub(crate) pool: Pool,
    pub(crate) contacts: Arc<Contacts>,
    pub(crate) timings: Timings,
    pub(crate) me: NodeId,
    /// Raised at each change of leader, term, membership or `leading`.
    pub(crate) changes: Arc<watch::Sender<u64>>,
}

/// What a status change is judged by.
type Signature = (Option<NodeId>, u64, bool, Role, u64);

fn signature(status: &RaftStatus) -> Signature {
    (status.leader, status.term, status.leading, status.role, status.membership_index.0)
}

/// What became of a try to be elected.
enum Campaign {
    /// A leader was heard, or this member may not.
    None,
    /// No majority would vote for it.
    NoLeave,
    /// Votes were asked for.
    Begun,
}

impl Election {
    /// Runs until Raft ends.
    pub(crate) async fn run(self) {
        let mut server = self.raft.server_metrics();
        let mut seen: Option<Signature> = None;
        let mut silent_since = self.contacts.now();
        let mut patience = Patience::default();
        let mut drawn = self.draw();
        let mut next_heartbeat = silent_since;
        loop {
            let status = self.status();
            let now = signature(&status);
            if seen.as_ref() != Some(&now) {
                seen = Some(now);
                self.changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            patience.sees(status.leader, status.term, self.contacts.now(), self.timings.election_max);
            let wait = match status.role {
                Role::Leader => {
                    silent_since = self.contacts.now();
                    let due = next_heartbeat.since(silent_since);
                    let due = if due.is_zero() { self.heartbeat(&mut next_heartbeat).await } else { due };
                    if status.leading { due } else { due.min(Duration::from_millis(10)) }
                }
                Role::Learner => self.timings.election_max,
                Role::Follower | Role::Candidate => {
                    let silent = self.silence(silent_since);
                    let extra = self.timings.election_max.saturating_mul(self.contacts.reluctance());
                    let needed = drawn.saturating_mul(patience.factor()).saturating_add(extra);
                    if silent < needed {
                        // Looks again soon enough to notice that reluctance was lifted.
                        needed.saturating_sub(silent).min(self.timings.election_max)
                    } else {
                        match self.campaign(&status, patience).await {
                            Campaign::Begun => patience.campaigned(),
                            Campaign::NoLeave => patience.refused(),
                            Campaign::None => {}
                        }
                        // The next try is counted from now, with a new draw.
                        silent_since = self.contacts.now();
                        drawn = self.draw();
                        Duration::ZERO
                    }
                }
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait.max(Duration::from_millis(5))) => {}
                changed = server.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends a heartbeat to everybody; returns how long until the next.
    async fn heartbeat(&self, next: &mut Moment) -> Duration {
        let between = self.timings.between_heartbeats();
        *next = self.contacts.now().plus(between);
        if let Err(error) = self.raft.trigger().heartbeat().await {
            tracing::debug!(%error, "raft has ended");
        }
        between
    }

    fn status(&self) -> RaftStatus {
        status::read(&self.raft, &self.contacts, &self.timings, self.me)
    }

    /// Returns how long no leader was heard, counted from `since` at the earliest.
    fn silence(&self, since: Moment) -> Duration {
        let own = self.contacts.now().since(since);
        self.contacts.leader_age().map_or(own, |age| age.min(own))
    }

    /// Draws how long to wait for a leader: anew for each campaign, so that two candidates part.
    fn draw(&self) -> Duration {
        let Timings { election_min: min, election_max: max, .. } = self.timings;
        let span = u64::try_from(max.saturating_sub(min).as_micros()).unwrap_or(u64::MAX).max(1);
        let random = self.contacts.random().unwrap_or(self.me.0);
        min.saturating_add(Duration::from_micros(random % span))
    }

    /// Asks for leave, then for votes.
    async fn campaign(&self, status: &RaftStatus, patience: Patience) -> Campaign {
        if !status.voters.contains(&self.me) || self.contacts.muted() {
            return Campaign::None;
        }
        let began = self.contacts.now();
        let granted = self.ask(status, self.timings.election_min.saturating_mul(patience.factor())).await;
        if !majorities(&status.configs, &granted) {
            tracing::debug!(term = status.term, granted = granted.len(), "no leave to campaign");
            return Campaign::NoLeave;
        }
        // A leader may have been heard while asking.
        let lease = self.timings.election_min.max(self.contacts.now().since(began));
        if self.contacts.leader_age().is_some_and(|age| age < lease) || self.status().role == Role::Leader {
            return Campaign::None;
        }
        tracing::info!(term = status.term, "no leader is heard: campaigning");
        if let Err(error) = self.raft.trigger().elect().await {
            tracing::debug!(%error, "raft has ended");
        }
        Campaign::Begun
    }

    /// Asks all voters at once, for `limit` at most; returns those that would vote for this member, itself included.
    async fn ask(&self, status: &RaftStatus, limit: Duration) -> BTreeSet<NodeId> {
        let last_log = self.raft.data_metrics().borrow().last_log;
        let mut granted = BTreeSet::from([self.me]);
        let peers: BTreeMap<NodeId, PeerNode> = status
            .nodes
            .iter()
            .filter(|(id, _)| **id != self.me && status.voters.contains(id))
            .map(|(id, node)| (*id, node.clone()))
            .collect();
        let mut asked: FuturesUnordered<_> = peers
            .into_iter()
            .map(|(id, node)| {
                let peer = PeerClient::new(self.pool.clone(), id, node);
                async move { (id, peer.pre_vote(PreVoteRequest { last_log }, limit).await) }
            })
            .collect();
        while !majorities(&status.configs, &granted) {
            match asked.next().await {
                Some((id, true)) => drop(granted.insert(id)),
                Some((_, false)) => {}
                None => break,
            }
        }
        granted
    }
}

/// Returns whether `granted` holds a majority of each configuration.
fn majorities(configs: &[BTreeSet<NodeId>], granted: &BTreeSet<NodeId>) -> bool {
    !configs.is_empty()
        && configs.iter().all(|voters| voters.intersection(granted).count() > voters.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(configs: &[&[u64]], granted: &[u64], expected: bool) {
        let configs: Vec<BTreeSet<NodeId>> =
            configs.iter().map(|c| c.iter().copied().map(NodeId).collect()).collect();
        let granted = granted.iter().copied().map(NodeId).collect();
        assert_eq!(majorities(&configs, &granted), expected, "{configs:?} by {granted:?}");
    }

    #[test]
    fn a_campaign_needs_a_majority_of_each_configuration() {
        check(&[], &[1], false); // nobody may found a cluster by campaigning
        check(&[&[1]], &[1], true);
        check(&[&[1, 2]], &[1], false);
        check(&[&[1, 2, 3]], &[1, 3], true);
        check(&[&[1, 2, 3], &[1, 4, 5]], &[1, 2], false); // joint: the new one lacks
        check(&[&[1, 2, 3], &[1, 4, 5]], &[1, 2, 4], true);
        check(&[&[1, 2, 3]], &[1, 8, 9], false); // learners do not count
    }
}
