//! Begins a cluster anew from one member's store, when the majority is lost for good (decision 0042).
//!
//! Works on a store that nobody else has open, so Raft cannot run beside it. The order of the
//! writes is what makes it safe to be cut anywhere: first the generation, which makes a stranger of
//! this member to every other one; then a vote above all that it gave; then a snapshot in which it
//! is the only voter; then the log goes. Done again it begins yet another generation.

use std::collections::BTreeMap;
use std::path::Path;

use openraft::{CommittedLeaderId, Membership};

use crate::codec;
use crate::command::{Acceptance, WallTime};
use crate::error::ConsensusError;
use crate::identity::Generation;
use crate::ids::{Epoch, LogIndex, NodeId};
use crate::raft::{LogId, PeerNode, SnapshotMeta, Stored, Vote};
use crate::state::ClusterState;
use crate::store::disk::SyncCount;
use crate::store::hard::{HardStateFile, LogGuard, VoteGuard};
use crate::store::open::{self, Opened};
use crate::store::snapshot;
use crate::store::{machine, raft_dir};

/// Epochs are indexes of the log, and promises of epochs that this member never heard of may lie in the
/// data directories of others: the new log begins beyond whatever the old one may have come to. The
/// upper half of an index is the number of times that a log began anew.
const LOG_BITS: u32 = 32;

/// An opened store of a member that is not running, and what it holds.
#[derive(Debug)]
pub struct Survivor {
    opened: Opened,
    node: NodeId,
    last: Option<LogId>,
    membership: Stored,
    state: ClusterState,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The cluster's generation from now on.
    pub generation: Generation,
    /// The epoch that waits for its owner.
    pub epoch: Epoch,
}

impl Survivor {
    /// Opens the store under `dir`, whose hard state is `hard`. Changes nothing.
    ///
    /// # Errors
    /// As for [`crate::Consensus::start`]; [`ConsensusError::Refused`] where there is no cluster in it.
    pub fn open(dir: &Path, hard: &HardStateFile) -> Result<Self, ConsensusError> {
        let known = hard.get();
        if !known.had_store() {
            return Err(ConsensusError::refused("this member never belonged to a cluster"));
        }
        let opened = open::open(dir, &known, &SyncCount::default())?;
        let entries = opened.mirror.range(..);
        let (last, membership, state) =
            machine::replay(opened.snapshot.as_ref(), entries).map_err(|error| {
                ConsensusError::StoreDamaged { store: raft_dir(dir), reason: error.to_string() }
            })?;
        if !state.is_founded() {
            return Err(ConsensusError::refused("this member's store does not know a cluster yet"));
        }
        Ok(Self { opened, node: known.node_id, last, membership, state })
    }

    /// Returns the replicated state, all entries of the log applied, committed or not.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Returns the last entry of the log.
    pub fn last_log(&self) -> LogIndex {
        LogIndex(self.last.map_or(0, |last| last.index))
    }

    /// Returns the sets of voters: each of them has to agree, one after another or both in a change.
    pub fn voters(&self) -> Vec<std::collections::BTreeSet<NodeId>> {
        self.membership.membership().get_joint_config().clone()
    }

    /// Returns the epoch that [`Survivor::begin_anew`] opens.
    fn first_index(&self) -> LogIndex {
        let last = self.last_log().0.max(self.state.epoch.0);
        LogIndex(((last >> LOG_BITS).saturating_add(1)) << LOG_BITS)
    }

    /// Makes this member the only one of a new generation; durable when it returns. `by` is who asks.
    ///
    /// # Errors
    /// [`ConsensusError::Refused`]: nothing was changed. [`ConsensusError::Io`]: it may be done in
    /// part, and is to be done again.
    pub fn begin_anew(
        mut self,
        hard: &HardStateFile,
        by: String,
        at: WallTime,
    ) -> Result<Recovered, ConsensusError> {
        let index = self.first_index();
        let mut state = self.state.clone();
        let accepted = Acceptance { epoch: Epoch(index.0), to: Some(self.node), by, at };
        state.recover(index, self.node, accepted).map_err(ConsensusError::refused)?;
        if let Some(broken) = state.broken_invariant() {
            return Err(ConsensusError::refused(broken));
        }
        let failed = |error| ConsensusError::io("write the new beginning into", hard.path(), error);
        let node = self.node;
        let generation = hard.update(|state| state.generation = state.generation.next(node))?.generation;

        let given = self.opened.vote.map_or(0, |vote| vote.leader_id.term);
        let term = given.max(self.last.map_or(0, |last| last.leader_id.term)).saturating_add(1);
        let vote = Vote::new(term, self.node);
        self.opened.disk.save_vote(&vote).map_err(failed)?;
        hard.update(|state| state.vote = Some(VoteGuard::from(&vote)))?;

        let first = LogId::new(CommittedLeaderId::new(term, self.node), index.0);
        let stored = self.snapshot(&state, first).map_err(failed)?;
        self.opened.disk.save_snapshot(&stored).map_err(failed)?;

        let old: Vec<u64> = self.opened.mirror.range(..).iter().map(|entry| entry.log_id.index).collect();
        self.opened.disk.save_committed(Some(first));
        self.opened.disk.purge(&old, &first).map_err(failed)?;
        hard.update(|state| state.last_log = Some(LogGuard::from(&first)))?;
        Ok(Recovered { generation, epoch: Epoch(index.0) })
    }

    fn snapshot(&self, state: &ClusterState, first: LogId) -> std::io::Result<snapshot::Stored> {
        let member = state.members.get(&self.node);
        let node = member.map_or_else(PeerNode::default, |member| PeerNode {
            name: member.name.clone(),
            addr: member.address.clone(),
            incarnation: member.incarnation,
        });
        let voters = std::collections::BTreeSet::from([self.node]);
        let membership = Membership::new(vec![voters], BTreeMap::from([(self.node, node)]));
        let meta = SnapshotMeta {
            last_log_id: Some(first),
            last_membership: Stored::new(Some(first), membership),
            snapshot_id: first.to_string(),
        };
        let state = codec::encode(state).map_err(std::io::Error::other)?;
        Ok(snapshot::Stored { meta, state })
    }
}
