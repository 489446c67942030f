//! What the runtime answers to operators, and how it says no.

use rhone_consensus::ids::{DataId, Epoch};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::{ClusterStatus, DsnRole, HistoryEntry, dsn};
use crate::civil::WallTime;
use crate::settings::{SettingDiff, SettingsVersion, SettingsView};

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
    /// Drawn by the caller: a member carries out the calls with one key once.
    pub idempotency_key: String,
    /// Answer as soon as it has begun.
    pub no_wait: bool,
    /// Who asks; told where it is scheduled.
    pub by: String,
}

/// When a switchover or a restart is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At that time, by the Raft leader's wall clock.
    At(WallTime),
    /// So much later than now.
    After(std::time::Duration),
}

/// A failover by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailoverRequest {
    /// The next primary; none: the best standby.
    pub to: Option<String>,
    /// Refuse unless this is the present epoch.
    pub expected_epoch: Option<Epoch>,
    /// Drawn by the caller: a member carries out the calls with one key once.
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

/// A change of the replicated settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsRequest {
    /// Keys and their values from now on; none: not set any more.
    pub changes: Vec<(String, Option<String>)>,
    /// Go back to this version first.
    pub revert_to: Option<u64>,
    /// Refuse unless this is the present version.
    pub expected_version: Option<u64>,
    /// Who asks, for the history.
    pub by: String,
    /// Only say what would change.
    pub dry_run: bool,
}

/// What a change of the settings came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChanged {
    /// The version that is in force.
    pub version: u64,
    /// What was changed, or would be.
    pub changes: Vec<SettingDiff>,
    /// Postgres parameters among them that count from the next start on.
    pub restart: Vec<String>,
}

/// What may be done to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberWork {
    /// Its Postgres reads its configuration again.
    Reload,
    /// Its Postgres is restarted.
    Restart {
        /// The start of the server that is meant.
        started: Option<WallTime>,
    },
    /// Its Postgres is restarted later.
    RestartAt(When),
    /// A restart that is scheduled is taken off.
    CancelRestart,
    /// Its data directory is made anew.
    Reinit {
        /// The data directory that is meant.
        data: Option<DataId>,
    },
    /// A new data directory that is not complete yet is given up.
    Keep,
    /// It is removed from the cluster.
    Remove,
    /// It may vote.
    Promote,
    /// It may not vote.
    Demote,
}

/// Work on one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRequest {
    /// Its name.
    pub name: String,
    /// What.
    pub work: MemberWork,
    /// Who asks; told where it is scheduled.
    pub by: String,
    /// Refuse unless this is the present epoch.
    pub expected_epoch: Option<Epoch>,
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
    /// When it is to begin, where it is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<WallTime>,
}

/// Something that happened in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the teller's clock.
    pub time: Option<WallTime>,
    /// The member that it is about; none: the cluster.
    pub node: Option<String>,
    /// The epoch it belongs to.
    pub epoch: Option<Epoch>,
    /// Its `snake_case` code.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// The events of a member: none is missed or told twice between the two.
#[derive(Debug)]
pub struct Subscription {
    /// What is remembered, oldest first.
    pub recent: Vec<Event>,
    /// What comes after it; a reader that lags misses the oldest.
    pub next: broadcast::Receiver<Event>,
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

    /// Puts a switchover down for later; done when that is decided.
    fn schedule(
        &self,
        _request: SwitchoverRequest,
        _when: When,
    ) -> impl Future<Output = Result<SwitchoverReply, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "a scheduled switchover".to_owned() }))
    }

    /// Takes the scheduled switchover off.
    fn cancel_scheduled(&self) -> impl Future<Output = Result<(), OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "a scheduled switchover".to_owned() }))
    }

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

    /// Gives the replicated settings.
    fn settings(&self) -> impl Future<Output = Result<SettingsView, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "settings".to_owned() }))
    }

    /// Lists the versions of the settings that are kept, oldest first.
    fn settings_history(&self) -> impl Future<Output = Result<Vec<SettingsVersion>, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "settings".to_owned() }))
    }

    /// Changes the replicated settings; done when it is decided.
    fn change_settings(
        &self,
        _request: SettingsRequest,
    ) -> impl Future<Output = Result<SettingsChanged, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "settings".to_owned() }))
    }

    /// Says what an operator should fix.
    fn doctor(&self) -> impl Future<Output = Result<Vec<crate::doctor::Finding>, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "doctor".to_owned() }))
    }

    /// Has something done to one member; done when it has taken it on.
    fn perform(
        &self,
        _request: MemberRequest,
    ) -> impl Future<Output = Result<SwitchoverReply, OperatorError>> + Send {
        std::future::ready(Err(OperatorError::NotImplemented { what: "work on members".to_owned() }))
    }

    /// Gives libpq's connection string of the cluster.
    fn dsn(&self, role: DsnRole) -> impl Future<Output = Result<String, OperatorError>> + Send {
        async move {
            dsn::render(&self.status().await?, role)
                .ok_or_else(|| OperatorError::Failed("no member's address is known yet".to_owned()))
        }
    }

    /// Subscribes to events; `None` when this version has none.
    fn events(&self) -> Option<Subscription> {
        None
    }
}
