//! The closed vocabulary of what may be decided.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use rhone_consensus::command::ClusterCommand;
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_pgctl::wal::WalPosition;
use serde::{Deserialize, Serialize};

/// What the Raft leader decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterDecision {
    /// To propose a command.
    Propose(ClusterCommand),
    /// To ask these members to revoke, and what is waited for meanwhile.
    Revoke {
        /// The epoch to promise.
        epoch: Epoch,
        /// Who has not answered yet.
        members: BTreeSet<NodeId>,
        /// What stands in the way of a Grant.
        wait: Wait,
    },
    /// To do nothing.
    Wait(Wait),
}

/// What a member does to its Postgres.
///
/// Each carries an epoch. `Start(Some)`, `Follow`, `Rewind` and `Clone` promise it (fsynced)
/// before they begin: a member whose log is behind after a restart must not go back to an older
/// owner and take with it what it acknowledged to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Makes the cluster's first data directory.
    InitDb,
    /// Starts the instance in recovery, receiving from that member or from nobody.
    Start(Option<NodeId>),
    /// Points a running standby at that member.
    Follow(NodeId),
    /// Promises the epoch, cuts the upstream, reports the position.
    Revoke,
    /// Makes the standby primary.
    Promote,
    /// Sets the primary's newest policy, and sees to it that no process uses an older one and that what
    /// was acknowledged before is flushed under it (docs/safety.md 6, steps 2 to 4).
    SetPolicy,
    /// Writes the epoch's marker and lets clients in once it is durable.
    OpenGate,
    /// Makes the instance unable to acknowledge anything: kills all of it.
    Fence,
    /// Shuts a primary down in order, with everything sent to the standbys.
    HandOver,
    /// Shuts a standby down in order.
    Stop,
    /// Takes the data directory back to the history of that member's.
    Rewind(NodeId),
    /// Makes the data directory anew from that member.
    Clone(NodeId),
}

impl Effect {
    /// Returns the effect's name in logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::InitDb => "init_db",
            Self::Start(_) => "start",
            Self::Follow(_) => "follow",
            Self::Revoke => "revoke",
            Self::Promote => "promote",
            Self::SetPolicy => "set_policy",
            Self::OpenGate => "open_gate",
            Self::Fence => "fence",
            Self::HandOver => "hand_over",
            Self::Stop => "stop",
            Self::Rewind(_) => "rewind",
            Self::Clone(_) => "clone",
        }
    }
}

/// What a member decides for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeDecision {
    /// To do this in that epoch, for a reason.
    Act(Effect, Epoch, Reason),
    /// To do nothing, for a reason.
    Rest(Reason),
}

/// Why a member does what it does: the same code in log, metric, history and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The cluster is not founded yet.
    NotFounded,
    /// This member founds the cluster and has no data directory yet.
    FirstDataDirectory,
    /// This member votes and runs no Postgres.
    Witness,
    /// The data directory cannot be used.
    Unusable,
    /// The instance has not been looked at yet.
    NotProbed,
    /// The state here is older than the instance's epoch.
    CatchingUp,
    /// The instance runs as primary and no Grant of the newest epoch names it.
    NotGranted,
    /// A higher epoch was promised.
    PromisedHigher,
    /// The guardian is gone.
    GuardianGone,
    /// An effect is in flight.
    EffectRunning,
    /// The Raft leader asked for a promise.
    RevokeAsked,
    /// An election is going on and nothing may move the WAL's end.
    ElectionRunning,
    /// This member owns the epoch and its instance is not running yet.
    OwnerStarts,
    /// This member owns the epoch and promotes.
    OwnerPromotes,
    /// This member owns the epoch and its gate is closed.
    GateClosed,
    /// Another policy is to be in force.
    PolicyChanges,
    /// This member is the primary and serves.
    Serving,
    /// This member owns the epoch and cannot serve it; the report says why.
    OwnerDown,
    /// The instance is starting.
    Starting,
    /// The instance is frozen until the lease is renewed.
    Frozen,
    /// The instance hangs.
    Hung,
    /// A planned handover ends this epoch.
    Handover,
    /// This supervisor is to end.
    Leaving,
    /// Standbys wait until the new primary serves.
    NoPrimaryYet,
    /// Receives from the primary.
    Streaming,
    /// Is set to receive from the primary and does not yet.
    Connecting,
    /// Its WAL is part of the primary's history.
    WithinHistory,
    /// Its WAL left the primary's history.
    Forked,
    /// Its timeline is not in the ledger.
    ForeignTimeline,
    /// The WAL that it needs is gone from the primary.
    WalGone,
    /// A rewind or clone was begun and not finished.
    Unfinished,
    /// It has no data directory.
    NoData,
    /// Its data directory is not the one that it is known to have.
    StrangeData,
    /// Rewinding failed or did not help.
    RewindFailed,
    /// The WAL's end on disk is being read.
    PositionUnknown,
    /// An operator fenced it: stopped until let go.
    Fenced,
    /// The settings have changed, or a reload was asked for.
    SettingsChanged,
    /// An operator asked for a restart.
    RestartAsked,
    /// An operator asked for a new copy.
    ReinitAsked,
}

impl Reason {
    /// Returns the reason's name in logs, metrics and status.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotFounded => "not_founded",
            Self::FirstDataDirectory => "first_data_directory",
            Self::Witness => "witness",
            Self::Unusable => "unusable",
            Self::NotProbed => "not_probed",
            Self::CatchingUp => "catching_up",
            Self::NotGranted => "not_granted",
            Self::PromisedHigher => "promised_higher",
            Self::GuardianGone => "guardian_gone",
            Self::EffectRunning => "effect_running",
            Self::RevokeAsked => "revoke_asked",
            Self::ElectionRunning => "election_running",
            Self::OwnerStarts => "owner_starts",
            Self::OwnerPromotes => "owner_promotes",
            Self::GateClosed => "gate_closed",
            Self::PolicyChanges => "policy_changes",
            Self::Serving => "serving",
            Self::OwnerDown => "owner_down",
            Self::Starting => "starting",
            Self::Frozen => "frozen",
            Self::Hung => "hung",
            Self::Handover => "handover",
            Self::Leaving => "leaving",
            Self::NoPrimaryYet => "no_primary_yet",
            Self::Streaming => "streaming",
            Self::Connecting => "connecting",
            Self::WithinHistory => "within_history",
            Self::Forked => "forked",
            Self::ForeignTimeline => "foreign_timeline",
            Self::WalGone => "wal_gone",
            Self::Unfinished => "unfinished",
            Self::NoData => "no_data",
            Self::StrangeData => "strange_data",
            Self::RewindFailed => "rewind_failed",
            Self::PositionUnknown => "position_unknown",
            Self::Fenced => "fenced",
            Self::SettingsChanged => "settings_changed",
            Self::RestartAsked => "restart_asked",
            Self::ReinitAsked => "reinit_asked",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What the Raft leader waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// Nobody founded the cluster yet.
    NotFounded,
    /// The founding member has no data directory yet.
    NoFirstData,
    /// All is well.
    Calm,
    /// The owner promotes.
    OwnerPromoting,
    /// Automatic failover is off.
    Paused {
        /// What would be done otherwise.
        instead: Cow<'static, str>,
    },
    /// Some voters hear no renewal; not a majority of them for long enough.
    SomeSilence {
        /// How many voters.
        voters: usize,
    },
    /// The owner shuts down in order.
    HandingOver,
    /// The owner is about to stop and no standby could take over.
    NobodyToTakeOver,
    /// The last owner may still be serving: its lease has not aged at a majority of the voters.
    LeaseNotAged {
        /// At how many voters it has.
        aged: usize,
        /// How many are needed.
        needed: usize,
    },
    /// The members that answered may not hold every acknowledged commit.
    CommitsMayBeUnseen {
        /// The epoch of the first policy that is not covered.
        epoch: Epoch,
        /// How many members answered.
        revoked: usize,
    },
    /// A short while for the members that have not answered.
    Window {
        /// How many have not.
        missing: usize,
    },
    /// Nobody who answered may be promoted.
    NoCandidate,
    /// The best candidate lacks more than the setting allows.
    LagTooLarge {
        /// How many bytes it lacks.
        bytes: u64,
        /// How many it may lack.
        limit: u64,
    },
    /// No voter remembers how far the last primary was.
    LagUnknown,
    /// One owner after the other failed to become primary: the next attempt is not hurried.
    OwnersFail {
        /// How many in a row.
        failures: usize,
    },
    /// A member that cannot be promoted holds more than any that can.
    BestCannotLead {
        /// Its position.
        position: WalPosition,
    },
}

impl Wait {
    /// Returns the wait's name in logs, metrics and status.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFounded => "not_founded",
            Self::NoFirstData => "no_first_data",
            Self::Calm => "calm",
            Self::OwnerPromoting => "owner_promoting",
            Self::Paused { .. } => "paused",
            Self::SomeSilence { .. } => "some_silence",
            Self::HandingOver => "handing_over",
            Self::NobodyToTakeOver => "nobody_to_take_over",
            Self::LeaseNotAged { .. } => "lease_not_aged",
            Self::CommitsMayBeUnseen { .. } => "commits_may_be_unseen",
            Self::Window { .. } => "window",
            Self::NoCandidate => "no_candidate",
            Self::LagTooLarge { .. } => "lag_too_large",
            Self::LagUnknown => "lag_unknown",
            Self::OwnersFail { .. } => "owners_fail",
            Self::BestCannotLead { .. } => "best_cannot_lead",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFounded => f.write_str("the cluster is not founded yet"),
            Self::NoFirstData => f.write_str("the founding member has no data directory yet"),
            Self::Calm => f.write_str("all is well"),
            Self::OwnerPromoting => f.write_str("the new primary is being promoted"),
            Self::Paused { instead } => write!(f, "paused: would {instead} otherwise"),
            Self::SomeSilence { voters } => write!(f, "{voters} of the voters hear no renewal"),
            Self::HandingOver => f.write_str("the primary shuts down in order"),
            Self::NobodyToTakeOver => {
                f.write_str("the primary is about to stop and no standby could take over")
            }
            Self::LeaseNotAged { aged, needed } => {
                write!(f, "the last primary's lease has aged at {aged} voters, {needed} are needed")
            }
            Self::CommitsMayBeUnseen { epoch, revoked } => {
                write!(f, "{revoked} members answered; they may not hold every commit of epoch {epoch}")
            }
            Self::Window { missing } => write!(f, "a short while for {missing} more members to answer"),
            Self::NoCandidate => f.write_str("no member that answered may be promoted"),
            Self::LagTooLarge { bytes, limit } => {
                write!(f, "the best standby lacks {bytes} bytes, the setting allows {limit}")
            }
            Self::LagUnknown => f.write_str("no voter remembers how far the last primary was"),
            Self::OwnersFail { failures } => {
                write!(f, "{failures} promotions in a row failed; the next attempt waits a while")
            }
            Self::BestCannotLead { position } => {
                write!(f, "a member that cannot be promoted holds more, up to {position}")
            }
        }
    }
}
