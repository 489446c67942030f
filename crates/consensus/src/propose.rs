//! Proposals and changes of members: what goes into the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{
    ChangeMembershipError, CheckIsLeaderError, ClientWriteError, InitializeError, RaftError,
};
use openraft::raft::ClientWriteResponse;

use crate::codec;
use crate::command::{ClusterCommand, Outcome};
use crate::error::ConsensusError;
use crate::handle::Consensus;
use crate::ids::{LogIndex, NodeId};
use crate::raft::{PeerNode, TypeConfig};
use crate::status::Role;
use crate::store::disk::RECORD_LIMIT;

/// A proposal that was committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log.
    pub index: LogIndex,
    /// What became of it.
    pub outcome: Outcome,
}

/// Makes our error of openraft's. It rejects a proposal at once, or long after, when another
/// leader's log displaced the entry: a third one may still revive that, so nothing is known.
fn written(
    result: Result<ClientWriteResponse<TypeConfig>, RaftError<NodeId, ClientWriteError<NodeId, PeerNode>>>,
) -> Result<ClientWriteResponse<TypeConfig>, ConsensusError> {
    result.map_err(|error| match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ConsensusError::Unknown,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => ConsensusError::MembersChanging,
            ChangeMembershipError::EmptyMembership(_) => ConsensusError::refused("no voter would be left"),
            ChangeMembershipError::LearnerNotFound(error) => {
                ConsensusError::refused(format!("{} must be a learner before it can vote", error.node_id))
            }
        },
        RaftError::Fatal(error) => ConsensusError::Fatal { reason: error.to_string() },
    })
}

impl Consensus {
    /// Founds the cluster with these voters, this member among them. Its store must be new.
    ///
    /// # Errors
    /// [`ConsensusError::Refused`], [`ConsensusError::Fatal`].
    pub async fn initialize(&self, voters: BTreeMap<NodeId, PeerNode>) -> Result<(), ConsensusError> {
        self.raft.initialize(voters).await.map_err(|error| match error {
            RaftError::APIError(InitializeError::NotAllowed(_)) => {
                ConsensusError::refused("this member belongs to a cluster already")
            }
            RaftError::APIError(InitializeError::NotInMembers(_)) => {
                ConsensusError::refused("the founder must be one of the voters")
            }
            RaftError::Fatal(error) => ConsensusError::Fatal { reason: error.to_string() },
        })
    }

    /// Returns whether this member has a membership.
    pub fn initialized(&self) -> bool {
        !self.status().configs.is_empty()
    }

    /// Proposes `command` and waits until it is applied here.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`], [`ConsensusError::NoQuorum`] and
    /// [`ConsensusError::TooLarge`]: nothing was proposed. [`ConsensusError::Unknown`]: it may
    /// come to be applied, or not. [`ConsensusError::Fatal`].
    pub async fn propose(&self, command: ClusterCommand, limit: Duration) -> Result<Applied, ConsensusError> {
        let bytes = codec::encode(&command).map_err(|e| ConsensusError::refused(e.to_string()))?.len();
        if bytes > RECORD_LIMIT {
            return Err(ConsensusError::TooLarge { bytes, limit: RECORD_LIMIT });
        }
        self.within(limit, async {
            self.ready().await?;
            let response = written(self.raft.client_write(command).await)?;
            Ok(Applied { index: LogIndex(response.log_id.index), outcome: response.data })
        })
        .await
    }

    /// Waits for a majority's answer; an elected leader gets it a round trip later.
    async fn ready(&self) -> Result<(), ConsensusError> {
        self.alive()?;
        // What is to be decided comes before giving leadership away: a muted leader commits nothing.
        self.unmute();
        let mut tries = 0u32;
        loop {
            let status = self.status();
            if status.leading {
                return Ok(());
            }
            if status.role != Role::Leader {
                return Err(ConsensusError::NotLeader { leader: status.leader });
            }
            if self.timings.heartbeat.saturating_mul(2) <= Duration::from_millis(10).saturating_mul(tries) {
                return Err(ConsensusError::NoQuorum);
            }
            tries = tries.saturating_add(1);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn alive(&self) -> Result<(), ConsensusError> {
        match self.fatal.borrow().clone() {
            Some(reason) => Err(ConsensusError::Fatal { reason }),
            None => Ok(()),
        }
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ConsensusError>>,
    ) -> Result<T, ConsensusError> {
        tokio::time::timeout(limit, work).await.unwrap_or(Err(ConsensusError::Unknown))
    }

    /// Makes sure, by asking a majority, that this member leads, and waits until it has applied
    /// all that was committed before.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`], [`ConsensusError::NoQuorum`], [`ConsensusError::Fatal`].
    pub async fn confirm_leadership(&self, limit: Duration) -> Result<(), ConsensusError> {
        self.alive()?;
        match tokio::time::timeout(limit, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(ConsensusError::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ConsensusError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(error))) => Err(ConsensusError::Fatal { reason: error.to_string() }),
        }
    }

    /// Adds a member without a vote; does not wait until it has caught up.
    ///
    /// # Errors
    /// As [`Consensus::propose`], and [`ConsensusError::MembersChanging`].
    pub async fn add_learner(
        &self,
        id: NodeId,
        node: PeerNode,
        limit: Duration,
    ) -> Result<(), ConsensusError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true, limit).await
    }

    /// Makes `voters` the voters, through a joint configuration; they must be members. Those
    /// that lose their vote stay as learners if `retain`.
    ///
    /// # Errors
    /// As [`Consensus::propose`], [`ConsensusError::MembersChanging`], [`ConsensusError::Refused`].
    pub async fn change_voters(
        &self,
        voters: BTreeSet<NodeId>,
        retain: bool,
        limit: Duration,
    ) -> Result<(), ConsensusError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), retain, limit).await
    }

    /// Removes a member, voter or learner.
    ///
    /// # Errors
    /// As [`Consensus::change_voters`].
    pub async fn remove(&self, id: NodeId, limit: Duration) -> Result<(), ConsensusError> {
        let ids = BTreeSet::from([id]);
        if self.status().voters.contains(&id) {
            self.change(ChangeMembers::RemoveVoters(ids), false, limit).await
        } else {
            self.change(ChangeMembers::RemoveNodes(ids), false, limit).await
        }
    }

    /// Records another name or address of a member. Its incarnation must not change: another
    /// store is another member.
    ///
    /// # Errors
    /// As [`Consensus::change_voters`].
    pub async fn update_node(
        &self,
        id: NodeId,
        node: PeerNode,
        limit: Duration,
    ) -> Result<(), ConsensusError> {
        let status = self.status();
        let held =
            status.nodes.get(&id).ok_or_else(|| ConsensusError::refused(format!("{id} is no member")))?;
        if held.incarnation != node.incarnation {
            return Err(ConsensusError::refused("another store must join under another id"));
        }
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, node)])), true, limit).await
    }

    async fn change(
        &self,
        change: ChangeMembers<NodeId, PeerNode>,
        retain: bool,
        limit: Duration,
    ) -> Result<(), ConsensusError> {
        self.within(limit, async {
            self.ready().await?;
            written(self.raft.change_membership(change, retain).await).map(drop)
        })
        .await
    }
}
