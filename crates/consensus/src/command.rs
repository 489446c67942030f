//! What may be proposed to the log: decisions with their evidence, never measurements.
//!
//! Preconditions live in [`crate::state::ClusterState::apply`] and only there. Applying a
//! `Prepare` never refuses it, because voters stop renewing when they append it (docs/safety.md 3).

use std::fmt;

use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};
use serde::{Deserialize, Serialize};

use crate::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId};
use crate::policy::PolicyKind;
use crate::settings::{Settings, Timing};
use crate::tags::Tags;

/// A moment of the wall clock in milliseconds since 1970, for people to read: nothing is decided by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallTime(pub u64);

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// It runs a Postgres instance.
    Data,
    /// It votes and never runs Postgres.
    Witness,
}

/// A member as the state records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its Raft node.
    pub node: NodeId,
    /// The name that people use; at most one member has it.
    pub name: String,
    /// Data or witness.
    pub kind: MemberKind,
    /// The incarnation of its store.
    pub incarnation: Incarnation,
    /// Where its peers reach its gRPC port, `host:port`.
    pub address: String,
    /// Where its Postgres is reached, `host:port`; empty for a witness.
    pub postgres: String,
    /// Where its HTTP port is reached, `host:port`.
    pub http: String,
    /// Breaks ties between equal positions; 0 is never promoted.
    pub priority: u32,
    /// What it is left out of, and where it follows and clones from.
    pub tags: Tags,
}

/// Why an epoch is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrepareReason {
    /// The cluster's first primary.
    Founding,
    /// A majority of the voters heard no renewal for too long.
    OwnerSilent {
        /// For how long the quietest of that majority had heard nothing, in milliseconds.
        silent_ms: u64,
    },
    /// The owner's own supervisor says that its Postgres is dead, hung or cannot be promoted.
    OwnerDown {
        /// In its words.
        detail: String,
    },
    /// A planned handover.
    Switchover,
    /// A person asked for it.
    Operator,
    /// A person asked for it, with that member as primary where it has as much as any other.
    OperatorTo {
        /// Who.
        to: NodeId,
    },
    /// A person began the cluster anew from one member, the majority being lost for good.
    Recovery,
}

impl PrepareReason {
    /// Returns the reason's name in logs, metrics and the history.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Founding => "founding",
            Self::OwnerSilent { .. } => "owner_silent",
            Self::OwnerDown { .. } => "owner_down",
            Self::Switchover => "switchover",
            Self::Operator | Self::OperatorTo { .. } => "operator",
            Self::Recovery => "recovery",
        }
    }
}

impl fmt::Display for PrepareReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnerSilent { silent_ms } => write!(f, "owner_silent for {silent_ms} ms"),
            Self::OwnerDown { detail } => write!(f, "owner_down: {detail}"),
            Self::Founding | Self::Switchover | Self::Operator | Self::OperatorTo { .. } | Self::Recovery => {
                f.write_str(self.code())
            }
        }
    }
}

/// One revoked member's word, kept as the evidence of a Grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Who was revoked.
    pub node: NodeId,
    /// Its data directory.
    pub data: DataId,
    /// The end of its WAL, frozen by the promise.
    pub position: WalPosition,
}

/// Names the owner of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The epoch that a Prepare opened.
    pub epoch: Epoch,
    /// Who may be primary in it.
    pub owner: NodeId,
    /// The owner's data directory.
    pub data: DataId,
    /// The end of the owner's WAL; it promotes from exactly there.
    pub base: WalPosition,
    /// The number that its new timeline gets.
    pub timeline: Timeline,
    /// When its commits count as acknowledged.
    pub policy: PolicyKind,
    /// The revoked members and their positions.
    pub evidence: Vec<Evidence>,
    /// WAL that voters had heard of and nobody revoked holds: `(from, to)`.
    pub lost: Option<(Lsn, Lsn)>,
}

/// A person's word that acknowledged commits may be lost, for one epoch that is being prepared; it
/// dies with that epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The epoch.
    pub epoch: Epoch,
    /// Whom the person wants as primary.
    pub to: Option<NodeId>,
    /// Who said so, and from where, for people.
    pub by: String,
    /// When, for people.
    pub at: WallTime,
}

/// A planned handover, as long as it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// Who takes over; nobody in particular when empty.
    pub to: Option<NodeId>,
    /// Whether the owner's host is going down, so that the owner itself cannot be chosen.
    pub leaving: bool,
}

/// A planned handover that is to begin later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// Who is primary, and has to be still.
    pub from: NodeId,
    /// Who takes over; nobody in particular when empty.
    pub to: Option<NodeId>,
    /// When, by the wall clock of whoever leads Raft then.
    pub at: WallTime,
    /// Who asked for it, and from where, for people.
    pub by: String,
}

/// One that did not come to pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Which.
    pub scheduled: Scheduled,
    /// Why, for people.
    pub why: String,
}

/// A restart of one member's Postgres that is to begin later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledRestart {
    /// When, by the wall clock of whoever leads Raft then.
    pub at: WallTime,
    /// Who asked for it, and from where, for people.
    pub by: String,
    /// The start of the server that ran when its time came; it is over once another one runs. None: not begun.
    pub server: Option<WallTime>,
}

/// What becomes of a restart that is scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartStep {
    /// It is put down for later.
    Schedule {
        /// When.
        at: WallTime,
        /// Who asked for it.
        by: String,
    },
    /// It is taken off.
    Cancel,
    /// Its time has come.
    Begin {
        /// Its time, which is its name.
        at: WallTime,
        /// The start of the server that is to end.
        server: WallTime,
    },
    /// It is over.
    End {
        /// Its time, which is its name.
        at: WallTime,
        /// Why nothing came of it, for people; none: another server runs.
        why: Option<String>,
    },
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterCommand {
    /// Founds the cluster; the first command, once.
    Found {
        /// The cluster's name.
        cluster: String,
        /// Who founds it, and has the first data directory.
        founder: NodeId,
        /// The founding members.
        members: Vec<Member>,
        /// The first settings.
        settings: Settings,
    },
    /// Admits a member, or takes note of its new addresses. A member of the same name under
    /// another node id is replaced: its store was lost.
    Admit(Member),
    /// Removes a member.
    Remove(NodeId),
    /// Records the system identifier, once.
    SetSystemId(SystemId),
    /// Opens an epoch: its number is this entry's own log index.
    Prepare {
        /// Why.
        reason: PrepareReason,
        /// When, for people.
        at: WallTime,
    },
    /// Names the epoch's owner.
    Grant(Grant),
    /// The epoch's marker is durable and its gate is open: older policies end.
    Established {
        /// The epoch.
        epoch: Epoch,
        /// The timeline that the promotion made.
        timeline: Timeline,
        /// Where it left its parent.
        switch: Lsn,
        /// For how long nobody could write, in milliseconds.
        gap_ms: u64,
        /// When, for people.
        at: WallTime,
    },
    /// Adds a policy of the granted epoch: its owner's Postgres may use it from here on (docs/safety.md 6, step 1).
    AddPolicy {
        /// The epoch.
        epoch: Epoch,
        /// The condition.
        kind: PolicyKind,
    },
    /// Drops the granted epoch's policies that are older than this one: no process of the owner's
    /// uses them any more, and what they acknowledged is flushed under it (step 5).
    NarrowPolicies {
        /// The epoch.
        epoch: Epoch,
        /// The policy that stays.
        number: LogIndex,
    },
    /// Accepts that the epoch that is being prepared loses acknowledged commits.
    AcceptLoss(Acceptance),
    /// Begins or ends a planned handover.
    SetHandover(Option<Handover>),
    /// Pauses or resumes automatic failover.
    SetPaused(bool),
    /// Stops a member's Postgres and keeps it stopped, or lets it go.
    SetFenced {
        /// Whose.
        node: NodeId,
        /// Whether it is held from now on.
        fenced: bool,
    },
    /// Replaces the settings, all of them at once.
    ChangeSettings {
        /// The version that this is a change of; refused when there is a newer one.
        expected: u64,
        /// The settings from now on.
        settings: Box<Settings>,
        /// Who asked for it, and from where, for people.
        by: String,
        /// When, for people.
        at: WallTime,
    },
    /// Keeps a member from voting, or lets it vote where there is room.
    SetLearner {
        /// Who.
        node: NodeId,
        /// Whether it only learns from now on.
        learner: bool,
    },
    /// Completes the history by what a former primary turned out to hold when it came back.
    RecordLeft {
        /// The former primary.
        node: NodeId,
        /// Where its WAL ended.
        end: WalPosition,
    },
    /// Puts a planned handover down for later, or takes it off.
    Schedule(Option<Scheduled>),
    /// Begins the one that is scheduled for that time, which is its name.
    BeginScheduled {
        /// Its time.
        at: WallTime,
    },
    /// Drops the one that is scheduled for that time.
    DropScheduled {
        /// Its time.
        at: WallTime,
        /// Why, for people.
        why: String,
    },
    /// Goes on with the restart of a member that is to begin later.
    StepRestart {
        /// Whose Postgres.
        node: NodeId,
        /// What.
        step: RestartStep,
    },
    /// Ends a change of the timings: the owner's lease counts by the shorter of the old and the new ones, so
    /// that nothing lasts by the old ones any more (decision 0036).
    SettleTiming {
        /// The epoch of that owner.
        epoch: Epoch,
        /// The change that is over.
        version: LogIndex,
    },
}

impl ClusterCommand {
    /// Returns whether appending this command opens an epoch, so that voters stop renewing.
    pub fn opens_epoch(&self) -> bool {
        matches!(self, Self::Prepare { .. })
    }

    /// Returns the timings that hold, perhaps beside older ones, once this command is applied.
    pub fn sets_timing(&self) -> Option<Timing> {
        match self {
            Self::Found { settings, .. } => Some(settings.timing),
            Self::ChangeSettings { settings, .. } => Some(settings.timing),
            Self::Admit(_)
            | Self::Remove(_)
            | Self::SetSystemId(_)
            | Self::Prepare { .. }
            | Self::Grant(_)
            | Self::Established { .. }
            | Self::AddPolicy { .. }
            | Self::NarrowPolicies { .. }
            | Self::AcceptLoss(_)
            | Self::SetHandover(_)
            | Self::SetPaused(_)
            | Self::SetFenced { .. }
            | Self::SetLearner { .. }
            | Self::RecordLeft { .. }
            | Self::Schedule(_)
            | Self::BeginScheduled { .. }
            | Self::DropScheduled { .. }
            | Self::StepRestart { .. }
            | Self::SettleTiming { .. } => None,
        }
    }
}

/// What became of a command when it was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It changed the state.
    Done,
    /// It was refused and changed nothing.
    Refused(String),
    /// It opened this epoch.
    Prepared(Epoch),
}
