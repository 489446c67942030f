//! What Raft's state is, computed when asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ServerState;

use crate::contact::Contacts;
use crate::ids::{LogIndex, NodeId};
use crate::raft::{PeerNode, RaftHandle, Timings};

/// What this member is to Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Replicates without a vote.
    Learner,
    /// Votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Was elected; whether it still leads is [`RaftStatus::leading`].
    Leader,
}

/// Raft's state at the time of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: NodeId,
    /// Who leads: this member while `leading`, another one while heard within twice the longest
    /// election timeout.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// This member was elected *and* a majority answered within the election timeout: nobody
    /// else can have been elected meanwhile. Check it at each use; `role` authorises nothing.
    pub leading: bool,
    /// This member's role.
    pub role: Role,
    /// How long ago a majority answered; none when this member is no leader.
    pub quorum_ack_age: Option<Duration>,
    /// All voters, of both configurations when joint.
    pub voters: BTreeSet<NodeId>,
    /// The configurations whose majorities count: two while changing, none before founding.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// Members without a vote.
    pub learners: BTreeSet<NodeId>,
    /// All members.
    pub nodes: BTreeMap<NodeId, PeerNode>,
    /// The last entry in the log, or 0.
    pub last_log: LogIndex,
    /// The last entry applied, or 0.
    pub applied: LogIndex,
    /// The entry that made this membership, or 0.
    pub membership_index: LogIndex,
}

pub(crate) fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
    }
}

/// Reads the state.
pub(crate) fn read(raft: &RaftHandle, contacts: &Contacts, timings: &Timings, me: NodeId) -> RaftStatus {
    let server = raft.server_metrics().borrow().clone();
    let (last_log, applied) = {
        let data = raft.data_metrics();
        let data = data.borrow();
        (data.last_log, data.last_applied)
    };
    let index = |id: Option<openraft::LogId<NodeId>>| LogIndex(id.map_or(0, |id| id.index));
    let membership = server.membership_config.membership();
    let role = role(server.state);
    let configs = membership.get_joint_config().clone();
    let quorum_ack_age = match role {
        Role::Leader => contacts.quorum_age(me, &server.vote, &configs),
        Role::Learner | Role::Follower | Role::Candidate => None,
    };
    let leading = quorum_ack_age.is_some_and(|age| age < timings.election_min);
    let recent = timings.election_max.saturating_mul(2);
    let leader = match server.current_leader {
        Some(id) if id == me => leading.then_some(id),
        Some(id) => contacts.leader_age().is_some_and(|age| age < recent).then_some(id),
        None => None,
    };
    RaftStatus {
        id: me,
        leader,
        term: server.vote.leader_id.term,
        leading,
        role,
        quorum_ack_age,
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        configs,
        last_log: index(last_log),
        applied: index(applied),
        membership_index: index(*server.membership_config.log_id()),
    }
}
