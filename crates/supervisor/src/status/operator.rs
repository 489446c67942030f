//! What the runtime answers to operators, and how it says no.

use rhone_consensus::ids::Epoch;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::{ClusterStatus, DsnRole, HistoryEntry, dsn};
use crate::civil::WallTime;

/// What would be decided now: what `rhone explain` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The member that decides for the cluster: the Raft leader.
    pub decided_by: Option<String>,
    /// The decision in words.
    pub decision: String,
    /// Its `snake_case` code, the same in log, metric and history.
    pub reason: String,
    /// What it rests on, a sentence each.
    pub details: Vec<String>,
    /// What each member would do.
    pub members: Vec<MemberDecision>,
}

/// What one member would do now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDecision {
    /// Its name.
    pub name: String,
    /// What it would do, in words.
    pub decision: String,
    /// The reason's `snake_case` code.
    pub reason: Option<String>,
}

/// A planned handover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwitchoverRequest {
    /// The next primary; none: the best standby.
    pub to: Option<String>,
    /// Refuse unless this is the present epoch.
    pub expected_epoch: Option<Epoch>,
    /// Drawn by the caller; the same key is never carried out twice.
    pub idempotency_key: String,
    /// Answer as soon as it has begun.
    pub no_wait: bool,
}

/// A failover by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailoverRequest {
    /// The next primary; none: the best standby.
    pub to: Option<String>,
    /// Refuse unless this is the present epoch.
    pub expected_epoch: Option<Epoch>,
    /// Drawn by the caller; the same key is never carried out twice.
    pub idempotency_key: String,
    /// Go on although acknowledged commits may be lost.
    pub accept_data_loss: bool,
    /// Who asks, for the history.
    pub by: String,
    /// Answer as soon as it has begun.
    pub no_wait: bool,
}

/// A member's Postgres that is to be stopped and kept stopped, or let go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FenceRequest {
    /// The member.
    pub name: String,
    /// Whether it is fenced from now on.
    pub fenced: bool,
    /// Whether the primary hands over first; else fencing it is refused.
    pub hand_over: bool,
    /// Refuse unless this is the present epoch.
    pub expected_epoch: Option<Epoch>,
    /// Drawn by the caller.
    pub idempotency_key: String,
}

/// How a handover ended well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwitchoverReply {
    /// The primary before.
    pub from: Option<String>,
    /// The primary after.
    pub to: Option<String>,
    /// The epoch that began.
    pub epoch: Option<Epoch>,
    /// Seconds without a writable primary.
    pub seconds_without_primary: Option<f64>,
    /// Complete, not just begun.
    pub finished: bool,
}

/// Something that happened in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the teller's clock.
    pub time: Option<WallTime>,
    /// The member that tells of it.
    pub node: Option<String>,
    /// The epoch it belongs to.
    pub epoch: Option<Epoch>,
    /// Its `snake_case` code.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// Why an operator's call did not succeed, one variant for each thing they can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// Refused for safety; nothing was changed.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Only the Raft leader can answer: ask there.
    #[error("this member does not lead")]
    NotLeader {
        /// The leader's `node.advertise`, when known.
        leader: Option<String>,
    },
    /// No majority of voters can be reached; nothing was changed.
    #[error("no quorum: a majority of voters cannot be reached")]
    NoQuorum,
    /// It may or may not come to pass: look at the status.
    #[error("the outcome is unknown")]
    Unknown,
    /// A later version does this.
    #[error("{what} is not there yet in this version")]
    NotImplemented {
        /// What was asked.
        what: String,
    },
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// What the runtime does for operators. Safe to call at any time, from any task.
///
/// A call ends by itself within its own deadline; the caller may also drop it, which cancels
/// waiting, never the change.
pub trait Operator: Send + Sync + 'static {
    /// Gives the cluster at a glance, as this member knows it.
    fn status(&self) -> impl Future<Output = Result<ClusterStatus, OperatorError>> + Send;

    /// Says what would be decided now.
    fn explain(&self) -> impl Future<Output = Result<Explanation, OperatorError>> + Send;

    /// Lists the changes of primary, oldest first.
    fn history(&self) -> impl Future<Output = Result<Vec<HistoryEntry>, OperatorError>> + Send;

    /// Hands the primary's role over, losing nothing.
    fn switchover(
        &self,
        request: SwitchoverRequest,
    ) -> impl Future<Output = Result<SwitchoverReply, OperatorError>> + Send;

    /// Fails over by hand.
    fn failover(
        &self,
        _request: FailoverRequest,
    ) -> impl Future<Output = Result<SwitchoverReply, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "failover by hand".to_owned() }))
    }

    /// Stops (`true`) or starts automatic failover.
    fn pause(&self, paused: bool) -> impl Future<Output = Result<(), OperatorError>> + Send;

    /// Fences a member or lets it go; done when it is decided, before Postgres has stopped.
    fn fence(
        &self,
        _request: FenceRequest,
    ) -> impl Future<Output = Result<SwitchoverReply, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "fencing".to_owned() }))
    }

    /// Gives libpq's connection string of the cluster.
    fn dsn(&self, role: DsnRole) -> impl Future<Output = Result<String, OperatorError>> + Send {
        async move {
            dsn::render(&self.status().await?, role)
                .ok_or_else(|| OperatorError::Failed("no member's address is known yet".to_owned()))
        }
    }

    /// Subscribes to events; `None` when this version has none.
    fn events(&self) -> Option<broadcast::Receiver<Event>> {
        None
    }
}
