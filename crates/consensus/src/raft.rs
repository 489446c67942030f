//! The only place that names openraft's generic types for the rest of the crate.

use std::io::Cursor;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{ClusterCommand, Outcome};
use crate::error::ConsensusError;
use crate::ids::{Incarnation, NodeId};

/// A member as Raft's membership records it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode {
    /// The member's name.
    pub name: String,
    /// Where its Raft service listens: `host:port`.
    pub addr: String,
    /// Which store of that name this node id stands for.
    pub incarnation: Incarnation,
}

openraft::declare_raft_types!(
    /// The types openraft is instantiated with.
    pub TypeConfig:
        D = ClusterCommand,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        Responder = openraft::impls::OneshotResponder<TypeConfig>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type RaftHandle = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<NodeId>;
pub(crate) type Vote = openraft::Vote<NodeId>;
pub(crate) type Stored = openraft::StoredMembership<NodeId, PeerNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, PeerNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type StorageError = openraft::StorageError<NodeId>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<NodeId>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<NodeId>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<NodeId>;
pub(crate) type SnapshotRequest = openraft::raft::InstallSnapshotRequest<TypeConfig>;
pub(crate) type SnapshotResponse = openraft::raft::InstallSnapshotResponse<NodeId>;

/// How fast Raft notices and decides. All members should use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How often a leader is heard; also the limit of an append call to a peer that answers in time.
    /// Above round trip plus the fsync that is usual.
    pub heartbeat: Duration,
    /// The leader's lease: a voter that heard one this recently votes for nobody else, and a
    /// leader that a majority answered this recently leads.
    pub election_min: Duration,
    /// A silent leader is replaced after a time drawn between the two.
    pub election_max: Duration,
}

impl Timings {
    /// How long a leader waits between two heartbeats: what three of them may be lost of before a
    /// voter's patience with it ends.
    pub(crate) fn between_heartbeats(self) -> Duration {
        self.heartbeat.saturating_mul(3) / 2
    }
}

impl Default for Timings {
    /// For a wired LAN; 100 ms above an SD card's usual fsync, 95 ms.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
        }
    }
}

/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 500;
/// Entries below a snapshot that are kept for followers that lag a little.
const KEEP_ENTRIES: u64 = 200;
/// Bytes of a snapshot in one call; well below [`crate::transport::MESSAGE_LIMIT`].
const SNAPSHOT_CHUNK: u64 = 1 << 20;
/// The limit for sending and installing one chunk, in ms: a slow card included.
const SNAPSHOT_TIMEOUT: u64 = 10_000;

impl Timings {
    /// Returns openraft's configuration. Its own elections and heartbeats are off
    /// ([`crate::election`]); its leader lease is its `election_timeout_max`, so that is our minimum.
    ///
    /// What is left for its timer is a removed leader's stepping down, so that it wakes as seldom as
    /// openraft lets it (decision 0046).
    pub(crate) fn openraft(self, cluster: &str) -> Result<openraft::Config, ConsensusError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let lease = millis(self.election_min);
        if self.election_max <= self.election_min || self.election_min < self.heartbeat.saturating_mul(2) {
            return Err(ConsensusError::refused(
                "timings: need 2 * heartbeat <= election_min < election_max",
            ));
        }
        let config = openraft::Config {
            cluster_name: cluster.to_owned(),
            heartbeat_interval: lease.saturating_sub(2),
            election_timeout_min: lease.saturating_sub(1),
            election_timeout_max: lease,
            enable_elect: false,
            enable_heartbeat: false,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT,
            snapshot_max_chunk_size: SNAPSHOT_CHUNK,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: KEEP_ENTRIES,
            replication_lag_threshold: SNAPSHOT_EVERY.saturating_mul(2),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| ConsensusError::refused(format!("timings: {error}")))
    }
}
