//! ✦ What one member knows of itself and the cluster, for HTTP checks and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use rhone_consensus::ids::Epoch;
use rhone_consensus::settings::Settings;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline};

use super::{HistoryEntry, MemberStatus, PendingSetting, Role, State, SyncStatus};
use crate::civil::WallTime;
use crate::guardian::LastResort;

/// A walsender of the local Postgres, from `pg_stat_replication`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationRow {
    /// Role it logged in as; none when that was dropped.
    pub usename: Option<String>,
    /// The standby's name.
    pub application_name: String,
    /// Its address; none over a Unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`.
    pub state: String,
    /// `async`, `quorum`, `sync`, `potential`.
    pub sync_state: String,
    /// Its place in `synchronous_standby_names` (1 for each of a quorum); 0 when not named.
    pub sync_priority: u32,
}

/// One member as seen from here, with what `/cluster` adds to its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Its status.
    pub status: MemberStatus,
    /// Where its HTTP server listens: `http://10.0.0.11:8008/patroni`.
    pub api_url: Option<String>,
    /// The end of the WAL that it has replayed; none: it is no standby, or its version does not tell.
    pub replayed: Option<Lsn>,
    /// Replayed WAL behind the primary's, in bytes. Received WAL behind it is `status.lag_bytes`.
    pub replay_lag: Option<u64>,
}

/// The state that only a standby's walreceiver and replay have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Received (flushed) WAL.
    pub received: Option<Lsn>,
    /// Replayed WAL.
    pub replayed: Option<Lsn>,
    /// When the last replayed commit was made.
    pub replayed_at: Option<WallTime>,
    /// Whether replay is paused.
    pub paused: bool,
}

/// Counters since this supervisor's start, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Lease renewals that got a majority.
    pub renewals: u64,
    /// Lease renewals that did not.
    pub renewals_failed: u64,
    /// Freezes of the local instance.
    pub freezes: u64,
    /// Fences of the local instance.
    pub fences: u64,
    /// Fences that came later than the guard allows.
    pub late_fences: u64,
    /// Promotions of the local instance.
    pub promotions: u64,
    /// Rewinds of the local data directory.
    pub rewinds: u64,
    /// Clones into the local data directory.
    pub clones: u64,
    /// Connections refused because they came from another cluster or spoke garbage.
    pub strangers_refused: u64,
}

/// What this member knows, published by the runtime whenever it changes.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own over HTTP")]
pub struct LocalView {
    /// The cluster's name; Patroni's scope.
    pub scope: String,
    /// This member's name.
    pub name: String,
    /// What the local Postgres is.
    pub role: Role,
    /// What it is doing.
    pub state: State,
    /// Whether this is the primary with a live lease and an open gate.
    pub writable_primary: bool,
    /// When the lease ends on `CLOCK_BOOTTIME`; checked again at each request. None: unlimited
    /// by time, only by `writable_primary`.
    pub lease_until: Option<Duration>,
    /// When the runtime's loop last went round, on `CLOCK_BOOTTIME`; none: not measured.
    pub loop_at: Option<Duration>,
    /// The present epoch.
    pub epoch: Epoch,
    /// Raft's term.
    pub term: u64,
    /// The Raft leader's name.
    pub raft_leader: Option<String>,
    /// Whether this member leads Raft.
    pub leads_raft: bool,
    /// The timeline of the local WAL.
    pub timeline: Option<Timeline>,
    /// The primary's written WAL (`pg_current_wal_lsn`); none on a standby.
    pub lsn: Option<Lsn>,
    /// What a standby received and replayed; none on a primary.
    pub recovery: Option<Recovery>,
    /// Bytes that the WAL here ends behind the primary's, as far as known; none: not known.
    pub lag_bytes: Option<u64>,
    /// Bytes that replay is behind the primary, which is what a reader sees; none: not known.
    pub replay_lag_bytes: Option<u64>,
    /// Walsenders of the local Postgres.
    pub replication: Vec<ReplicationRow>,
    /// All members, this one too.
    pub members: Vec<PeerView>,
    /// The synchronous policy in force.
    pub sync: SyncStatus,
    /// Whether automatic failover is off.
    pub paused: bool,
    /// The switchover that is to begin later.
    pub scheduled: Option<super::ScheduledSwitchover>,
    /// Whether nobody owns the newest epoch.
    pub cluster_unlocked: bool,
    /// When a majority was last heard; Patroni's `dcs_last_seen`.
    pub majority_last_seen: Option<WallTime>,
    /// Whether checks for readers leave this member out.
    pub no_load_balance: bool,
    /// Labels from the configuration.
    pub tags: BTreeMap<String, String>,
    /// Postgres' system identifier.
    pub system_id: Option<SystemId>,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<PendingSetting>,
    /// The replicated settings; none before the founding.
    pub settings: Option<Settings>,
    /// Postgres' `server_version_num`: 150018.
    pub server_version: Option<u32>,
    /// When the postmaster was started.
    pub postmaster_started: Option<WallTime>,
    /// The changes of primary, oldest first.
    pub history: Vec<HistoryEntry>,
    /// Counters for `/metrics`.
    pub counters: Counters,
    /// What else is counted and measured for it.
    pub figures: super::figures::Figures,
    /// What became of the machine's watchdog.
    pub watchdog: LastResort,
    /// What became of the dead-man.
    pub dead_man: LastResort,
    /// What the proxy ports that are open count.
    pub proxy: Vec<crate::proxy::counters::PortFigures>,
    /// The certificates of `[tls]`; none without TLS.
    pub certificates: Option<Certificates>,
}

/// The certificates of `[tls]`, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Seconds until this member's own expires; negative afterwards.
    pub own_left: i64,
    /// Seconds until the first of the CAs expires.
    pub authority_left: i64,
    /// Whether newer files are there that cannot be used.
    pub stale: bool,
    /// How many handshakes there were.
    pub handshakes: u64,
}

/// What a standby is to commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// Each waits for it: it has every commit that was acknowledged.
    Each,
    /// Each waits for some of several, of which it is one: it may lack the last ones.
    Some,
    /// None waits for it.
    None,
}

impl SyncStatus {
    /// Says what the member of this name is to commits. While the setting changes nobody is sure to have each of them.
    pub fn synchronous(&self, name: &str) -> Synchronous {
        if !self.members.iter().any(|member| member == name) {
            Synchronous::None
        } else if self.settled && self.required as usize >= self.members.len() {
            Synchronous::Each
        } else {
            Synchronous::Some
        }
    }
}

impl LocalView {
    /// Says what the local standby is to commits.
    pub fn synchronous(&self) -> Synchronous {
        if self.role == Role::Standby { self.sync.synchronous(&self.name) } else { Synchronous::None }
    }

    /// Says whether writes may be sent here at `now` (`CLOCK_BOOTTIME`): the gate is open and
    /// the lease has not ended since this view was made.
    pub fn is_writable_primary(&self, now: Duration) -> bool {
        self.writable_primary
            && self.role == Role::Primary
            && self.state == State::Running
            && self.lease_until.is_none_or(|end| now < end)
    }

    /// Says whether this is a standby that answers queries.
    pub fn is_running_standby(&self) -> bool {
        self.role == Role::Standby
            && matches!(self.state, State::Streaming | State::ArchiveRecovery | State::Running)
    }
}
