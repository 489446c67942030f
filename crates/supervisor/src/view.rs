//! All that a decision may see: the state, what members report, what is so here.
//!
//! Pure data. A rule that needs a clock, a row or a file has it put in here.

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};
use serde::{Deserialize, Serialize};

/// A moment of a clock that never jumps and counts suspend (`CLOCK_BOOTTIME`), in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// Returns the nanoseconds since an earlier moment, or 0 when it is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the milliseconds since an earlier moment, or 0 when it is not earlier.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.since(earlier) / 1_000_000
    }

    /// Returns the moment that many milliseconds later.
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

/// What the local Postgres instance is, as the last probe saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Instance {
    /// Not looked at yet.
    Unknown,
    /// The data directory is missing or empty.
    Absent,
    /// The data directory cannot be used, and why.
    Unusable(String),
    /// No process runs.
    Stopped {
        /// The end of the WAL on disk, once it has been read.
        position: Option<WalPosition>,
        /// Whether it was shut down in order.
        clean: bool,
        /// Whether it last ran as a primary.
        primary: bool,
    },
    /// It runs and does not accept connections yet.
    Starting,
    /// It runs in recovery.
    Standby {
        /// The end of its WAL.
        position: WalPosition,
        /// Whose WAL it is set to receive.
        upstream: Option<NodeId>,
        /// Whether WAL is streaming in.
        streaming: bool,
        /// For how long nothing has streamed in, in milliseconds.
        idle_ms: u64,
        /// Whether the upstream refused because the WAL it needs is gone.
        wal_gone: bool,
    },
    /// It runs writable.
    Primary {
        /// The epoch that it was promoted for; 0 when Rhone did not promote it.
        epoch: Epoch,
        /// The end of its flushed WAL.
        position: WalPosition,
        /// Whether clients are let in.
        gate_open: bool,
    },
    /// Its processes are frozen, the epoch's lease having lapsed.
    Frozen {
        /// The epoch that it was promoted for.
        epoch: Epoch,
    },
    /// It runs and makes no progress; the epoch is that of a primary, 0 for a standby.
    Hung {
        /// The epoch that it was promoted for.
        epoch: Epoch,
    },
}

impl Instance {
    /// Returns the end of its WAL where that is known.
    pub fn position(&self) -> Option<WalPosition> {
        match self {
            Self::Stopped { position, .. } => *position,
            Self::Standby { position, .. } | Self::Primary { position, .. } => Some(*position),
            Self::Unknown
            | Self::Absent
            | Self::Unusable(_)
            | Self::Starting
            | Self::Frozen { .. }
            | Self::Hung { .. } => None,
        }
    }
}

/// The last renewal that a voter took note of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heard {
    /// The epoch that was renewed.
    pub epoch: Epoch,
    /// The end of the primary's flushed WAL at its sending.
    pub lsn: Lsn,
}

/// What a voter knows of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterReport {
    /// The highest epoch whose Prepare its log holds, committed or not.
    pub held: Epoch,
    /// For how long it has heard no renewal, in milliseconds; nothing while it is in quarantine.
    pub silent_ms: Option<u64>,
    /// The epoch whose Prepare it knows to be committed and before which the lease has aged.
    pub aged_for: Option<Epoch>,
    /// The last renewal; nothing since its start.
    pub heard: Option<Heard>,
    /// The newest membership in its log: its word on the age counts for no newer one.
    pub membership: LogIndex,
}

/// What a primary knows of one standby that streams from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Whether it was heard lately.
    pub live: bool,
    /// Whether it has flushed nearly all that the primary has.
    pub caught_up: bool,
}

/// A parameter whose new value counts from the next start on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its name.
    pub name: String,
    /// The value that runs.
    pub running: String,
    /// The value that is set; none: Postgres' own default.
    pub wanted: Option<String>,
}

/// What a running server says of itself, for people and for those who wait for its restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// When its postmaster started, in milliseconds since 1970; none: it does not answer.
    pub started_ms: Option<u64>,
    /// The version of the settings that its files were written by; 0: not known.
    pub settings: u64,
    /// What waits for a restart.
    pub pending: Vec<Pending>,
    /// Why its last start failed.
    pub start_failure: Option<String>,
    /// Lines of its configuration files that it does not take, with its reasons.
    pub refused_lines: Vec<String>,
    /// A new copy that was asked for.
    pub copying: Option<Copying>,
    /// The end of the WAL that a standby has replayed. Like the next, for readers and people alone: it travels beside
    /// the report ([`crate::runtime::aside`]), and no decision looks at it.
    #[serde(skip)]
    pub replayed: Option<Lsn>,
    /// Whether it replays WAL after a crash and does not answer yet.
    #[serde(skip)]
    pub crash_recovery: bool,
}

/// A new copy that was asked for and is not there yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// Bytes that have arrived: whole megabytes, so that a report does not change at each look.
    pub bytes: u64,
    /// Attempts that failed.
    pub failed: u32,
    /// Why the last one failed.
    pub error: Option<String>,
}

/// What a member tells the Raft leader; never enters the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its instance.
    pub instance: Instance,
    /// What it is doing to the instance, for `status`.
    pub activity: Option<Activity>,
    /// What it knows of the lease as a voter.
    pub voter: VoterReport,
    /// Its promise.
    pub promise: Epoch,
    /// Whether it is about to stop (SIGTERM).
    pub leaving: bool,
    /// The owner of this epoch says that it cannot serve it, and why.
    pub down: Option<(Epoch, String)>,
    /// The system identifier of its data directory.
    pub system_id: Option<SystemId>,
    /// The data directory under which it may acknowledge commits; nothing while what is there is not
    /// known to be complete (another's, a copy below its floor).
    pub data: Option<DataId>,
    /// Who streams from it, by data directory; of a primary only.
    pub streams: BTreeMap<DataId, Stream>,
    /// The policy that every process of its Postgres uses, with everything acknowledged before
    /// flushed under it; of a primary only.
    pub secured: Option<LogIndex>,
    /// The highest timeline number that it has seen anywhere in its files.
    pub highest_timeline: Timeline,
    /// Milliseconds of lease left, on the primary.
    pub lease_left_ms: Option<u64>,
    /// The epoch of its live lease, and the change of the timings by which that lasts; on the primary.
    pub counts_by: Option<(Epoch, LogIndex)>,
    /// The server's version, `15.18`.
    pub version: Option<String>,
    /// Where the WAL ended that this member held when it was last found to have been replaced as
    /// primary.
    pub left: Option<WalPosition>,
    /// One line for a person.
    pub note: Option<String>,
    /// What its running server says of itself.
    pub server: ServerFacts,
}

/// Long work on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// initdb or pg_basebackup.
    Cloning,
    /// pg_rewind.
    Rewinding,
    /// On its way to primary.
    Promoting,
}

/// A report and when it came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// When, by this node's clock.
    pub at: Moment,
    /// What.
    pub report: Report,
}

/// A member's answer to Revoke (docs/safety.md 5.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The epoch that it promised.
    pub epoch: Epoch,
    /// The frozen end of its WAL; nothing when it has none that counts (empty, below its floor, being rewound).
    pub position: Option<WalPosition>,
    /// Its data directory.
    pub data: DataId,
    /// Whether it could be primary: not about to stop, and its instance starts.
    pub able: bool,
    /// The highest timeline number that it has seen.
    pub highest_timeline: Timeline,
}

/// All that `decide::cluster` may see.
#[derive(Clone, Debug)]
pub struct ClusterView<'a> {
    /// The applied state.
    pub state: &'a ClusterState,
    /// The voters: one set, two in a joint configuration.
    pub voters: &'a [BTreeSet<NodeId>],
    /// The members' reports.
    pub reports: &'a BTreeMap<NodeId, Received>,
    /// The answers to Revoke for the newest epoch, and when they came in.
    pub revoked: &'a BTreeMap<NodeId, (Moment, Revoked)>,
    /// Since when this leader knows the newest Grant: when it applied it, or began to lead if that
    /// was later; nothing while there is none. No owner is held to be silent for longer.
    pub granted_since: Option<Moment>,
}

/// Members other than the primary that this one is tagged to receive from, while they can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The standby to follow: it streams from the owner of the newest epoch itself.
    pub upstream: Option<NodeId>,
    /// The standby to clone from.
    pub clone: Option<NodeId>,
}

/// What is due besides: it is done when nothing else is, and never to the owner of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Chores {
    /// The settings are newer than the files here, or a reload was asked for; also for the owner.
    pub configure: bool,
    /// The instance is to be restarted.
    pub restart: bool,
    /// The data directory is to be made anew.
    pub reinit: bool,
    /// The settings are known to keep the instance from starting: another copy of the data would not start
    /// either.
    pub unfit: bool,
}

/// All that `decide::node` may see.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct NodeView<'a> {
    /// The applied state.
    pub state: &'a ClusterState,
    /// This member.
    pub me: NodeId,
    /// Its instance.
    pub instance: &'a Instance,
    /// Its promise.
    pub promise: Epoch,
    /// The epoch of a rewind or clone that was begun and never finished.
    pub unfinished: Option<Epoch>,
    /// Whether a rewind or clone was finished here and has not streamed past its end yet: the WAL on
    /// disk may end before what the copied files need, and only the source has the rest.
    pub copied: bool,
    /// Whether the data directory is not the one that this member is known to have: emptied and filled
    /// again, restored, or another's. It proves nothing and is never started.
    pub stranger: bool,
    /// The policy that the instance's settings name.
    pub policy: Option<LogIndex>,
    /// The policy that is known to be in force (docs/safety.md 6, steps 2 to 4 done).
    pub secured: Option<LogIndex>,
    /// A Revoke that was asked for and is not answered yet.
    pub revoke: Option<Epoch>,
    /// The effect that is in flight.
    pub running: Option<(crate::decide::Effect, Epoch)>,
    /// Whether this supervisor is to end, Postgres with it.
    pub leaving: bool,
    /// Whether it is to end without a handover: nobody can take over, or it took too long.
    pub leave_now: bool,
    /// Whether the log here holds entries that are not applied yet.
    pub behind: bool,
    /// Whether the log here, as it was at the start, fences this member in what is not applied yet.
    pub fenced_ahead: bool,
    /// Whether the guardian lives: without one nobody may be primary.
    pub guardian: bool,
    /// How often pg_rewind failed or did not help in a row.
    pub rewinds_failed: u32,
    /// Why the last start of the instance failed.
    pub start_failed: Option<&'a str>,
    /// Who else than the primary may be received from.
    pub sources: Sources,
    /// What is due besides.
    pub chores: Chores,
}
