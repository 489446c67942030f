//! ✦ What operators may know and ask: the types behind `rhone status`, HTTP and gRPC.
//!
//! The JSON of these types is the public interface: what is named keeps its name and its
//! meaning, and what is not known is `null`, never invented.

mod as_text;
pub mod dsn;
#[cfg(test)]
pub(crate) mod fake;
pub mod figures;
pub mod local;
mod operator;

use std::collections::BTreeMap;
use std::fmt;

use rhone_consensus::ids::Epoch;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};

pub use self::dsn::DsnRole;
pub use self::local::LocalView;
pub use self::operator::{
    Event, Explanation, FailoverRequest, FenceRequest, MemberDecision, MemberRequest, MemberWork, Operator,
    OperatorError, SettingsChanged, SettingsRequest, Subscription, SwitchoverReply, SwitchoverRequest, When,
};
use crate::civil::WallTime;

/// What Postgres is on a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It owns the newest epoch.
    Primary,
    /// It follows the primary.
    Standby,
    /// It votes without Postgres.
    Witness,
    /// It has no usable Postgres.
    #[default]
    None,
}

/// What a member is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its Postgres is starting.
    Starting,
    /// Its Postgres replays WAL after a crash.
    CrashRecovery,
    /// It serves.
    Running,
    /// It becomes the primary.
    Promoting,
    /// Its processes are stopped until the lease is renewed.
    Frozen,
    /// It receives WAL from the primary.
    Streaming,
    /// It replays WAL, but receives none by streaming.
    ArchiveRecovery,
    /// `pg_rewind` is at work.
    Rewinding,
    /// It is copied from another member.
    Cloning,
    /// Its Postgres is stopped.
    Stopped,
    /// It was made unable to acknowledge writes.
    Fenced,
    /// Its Postgres ended by itself.
    Crashed,
    /// A witness at work.
    Voting,
    /// Nobody has heard from it.
    #[default]
    Unreachable,
}

/// What a member is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It runs Postgres.
    #[default]
    Data,
    /// It only votes.
    Witness,
}

/// How commits wait for standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// They wait for nobody.
    #[default]
    Off,
    /// They wait for some standbys, and may go on alone once Raft holds that.
    Quorum,
    /// They wait for some standbys, whatever happens.
    Strict,
}

/// Prints a unit variant by its name in JSON, so that table and JSON agree.
fn print_as_json<T: Serialize>(value: &T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => f.pad(&name),
        Ok(_) | Err(_) => Err(fmt::Error),
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_as_json(self, f)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_as_json(self, f)
    }
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_as_json(self, f)
    }
}

/// The synchronous policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// How commits wait.
    pub mode: SyncMode,
    /// How many of `members` a commit waits for.
    pub required: u32,
    /// Names of the standbys that may acknowledge.
    pub members: Vec<String>,
    /// Whether Postgres goes by the settings: no change is under way.
    #[serde(default)]
    pub settled: bool,
}

/// A Postgres parameter whose new value counts from the next start on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSetting {
    /// Its name.
    pub name: String,
    /// The value that runs.
    pub running: String,
    /// The value that is set; none: Postgres' own default.
    pub wanted: Option<String>,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Whether it runs Postgres.
    pub kind: Kind,
    /// Whether it votes in Raft; a learner does not.
    pub voter: bool,
    /// What its Postgres is.
    pub role: Role,
    /// What it is doing.
    pub state: State,
    /// Where clients reach its Postgres.
    pub host: Option<String>,
    /// The port there.
    pub port: Option<u16>,
    /// The timeline of its WAL.
    pub timeline: Option<Timeline>,
    /// Its flushed WAL.
    #[serde(with = "as_text")]
    pub lsn: Option<Lsn>,
    /// Flushed WAL behind the primary's, in bytes.
    pub lag_bytes: Option<u64>,
    /// Milliseconds since it was last heard.
    pub seen_ms: Option<u64>,
    /// Its Postgres' version, `15.18`.
    pub version: Option<String>,
    /// Whether a changed setting waits for a restart.
    pub pending_restart: Option<bool>,
    /// Labels from its configuration.
    pub tags: BTreeMap<String, String>,
    /// A remark for people.
    pub note: Option<String>,
    /// When its Postgres was started.
    #[serde(default)]
    pub started: Option<WallTime>,
    /// What waits for a restart.
    #[serde(default)]
    pub pending: Vec<PendingSetting>,
    /// The version of the settings that its Postgres was told.
    #[serde(default)]
    pub settings_version: Option<u64>,
    /// Why its Postgres does not start.
    #[serde(default)]
    pub start_failure: Option<String>,
    /// Lines of its configuration files that its Postgres does not take.
    #[serde(default)]
    pub refused_lines: Vec<String>,
    /// Which data directory it has: another one after a new copy.
    #[serde(default)]
    pub data_id: Option<String>,
    /// A new copy that was asked for.
    #[serde(default)]
    pub copying: Option<CopyStatus>,
}

/// A new copy that was asked for and is not there yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Bytes that have arrived.
    pub bytes: u64,
    /// Attempts that failed; each begins from nothing.
    pub failed: u32,
    /// Why the last one failed.
    pub error: Option<String>,
}

/// The timings in force: both the old and the new ones while they are changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimingStatus {
    /// The preset that the settings' timings are; none: of one's own.
    pub preset: Option<String>,
    /// The lease that the primary counts by, in ms.
    pub counted_ms: u32,
    /// The lease that voters age by, in ms.
    pub aged_ms: u32,
    /// Whether no change is under way: both are the same.
    pub settled: bool,
}

/// The cluster at a glance: what `rhone status -o json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
    /// Postgres' system identifier.
    #[serde(with = "as_text")]
    pub system_identifier: Option<SystemId>,
    /// The member that owns the newest epoch.
    pub primary: Option<String>,
    /// The member that leads Raft.
    pub raft_leader: Option<String>,
    /// Raft's term.
    pub term: Option<u64>,
    /// The present primaryship.
    pub epoch: Option<Epoch>,
    /// The accepted timeline.
    pub timeline: Option<Timeline>,
    /// Whether automatic failover is off.
    pub paused: bool,
    /// Whether a primary with a live lease and an open gate accepts writes now.
    pub writable: bool,
    /// How commits wait.
    pub sync: SyncStatus,
    /// In words, what a failover now would lose: `nothing`.
    pub failover_would_lose: Option<String>,
    /// All members, by name.
    pub members: Vec<MemberStatus>,
    /// What an operator should know, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The version of the replicated settings.
    #[serde(default)]
    pub settings_version: Option<u64>,
    /// The switchover that is to begin later.
    #[serde(default)]
    pub scheduled_switchover: Option<ScheduledSwitchover>,
    /// The timings in force.
    #[serde(default)]
    pub timing: Option<TimingStatus>,
    /// The restarts that are to begin later.
    #[serde(default)]
    pub scheduled_restarts: Vec<ScheduledRestart>,
}

/// A restart that is to begin later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledRestart {
    /// When, by the Raft leader's wall clock.
    pub at: WallTime,
    /// The member.
    pub name: String,
    /// Who asked for it.
    pub by: String,
}

impl fmt::Display for ScheduledRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a restart of {} is scheduled for {} by {}", self.name, self.at, self.by)
    }
}

/// A switchover that is to begin later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledSwitchover {
    /// When, by the Raft leader's wall clock.
    pub at: WallTime,
    /// The primary, which has to be still.
    pub from: Option<String>,
    /// Who takes over; none: the best standby.
    pub to: Option<String>,
    /// Who asked for it.
    pub by: String,
}

impl fmt::Display for ScheduledSwitchover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.as_deref().unwrap_or("the best standby");
        write!(f, "a switchover to {to} is scheduled for {} by {}", self.at, self.by)
    }
}

/// One change of primary: a line of `rhone history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, by the deciding member's clock.
    pub time: Option<WallTime>,
    /// The primary before; none at founding.
    pub from: Option<String>,
    /// The primary after; none when no member was granted.
    pub to: Option<String>,
    /// The epoch that began.
    pub epoch: Epoch,
    /// The timeline that began.
    pub timeline: Option<Timeline>,
    /// Where that timeline begins.
    #[serde(with = "as_text")]
    pub switch_lsn: Option<Lsn>,
    /// The reason's `snake_case` code.
    pub reason: String,
    /// Seconds without a writable primary.
    pub seconds_without_primary: Option<f64>,
    /// In words, what was lost: `nothing`, or the range of LSNs.
    pub lost: Option<String>,
    /// How many bytes of WAL were lost; none: not known.
    pub lost_bytes: Option<u64>,
    /// Whether that is exact; else it is what voters had heard of, and the former primary is not back yet.
    pub lost_exact: Option<bool>,
}
