//! The local Postgres: what it is, and what may be done to it.
//!
//! - [`Local`]: who runs where, and what was seen last.
//! - `observe`: looks, changes nothing.
//! - `stall`: when its disk counts as hanging.
//! - `forked`: keeps WAL aside before it is rewound over.
//! - `start`, `serve`, `copy`: the effects, each idempotent; only `effects.rs` calls them.

mod configure;
mod copy;
mod forked;
mod identity;
mod observe;
mod policy;
mod serve;
mod stall;
mod start;
mod streams;
pub mod takeover;
mod unfit;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone_consensus::command::Member;
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::state::ClusterState;
use rhone_pgctl::connection::{LocalConnection, Target};
use rhone_pgctl::conninfo::ConnInfo;
use rhone_pgctl::control::StandbyMinimums;
use rhone_pgctl::error::PgError;
use rhone_pgctl::hba::{AccessRules, Gate};
use rhone_pgctl::install::Installation;
use rhone_pgctl::probe::Probe;
use rhone_pgctl::settings::{ManagedSettings, synchronous_standby_names};
use rhone_pgctl::slots::slot_name;
use rhone_pgctl::user::OsUser;
use rhone_pgctl::wal::{SystemId, Timeline, WalPosition};

use crate::config::Postgres;
use crate::guardian::{Guardian, GuardianError};
use crate::mutant::{Rule, left_out};
use crate::runtime::clock::BootTime;
use crate::runtime::counts::Effects;
use crate::runtime::lease::Lease;
use crate::runtime::shared::Shared;
use crate::view::Pending;

use stall::{DiskWork, Stall};
use streams::Streams;

pub use configure::started_ms;
pub use identity::{Seen, data_here};

/// The role that standbys stream as.
pub const REPLICATOR: &str = "rhone_replicator";

/// The role that pg_rewind connects as.
pub const REWINDER: &str = "rhone_rewind";

/// The password file of our own programs, in Postgres's working directory.
const PASSFILE: &str = "pgpass";

/// Postgres's log, in its working directory.
pub const LOG_FILE: &str = "postgres.log";

/// Why something could not be done to the local Postgres.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Postgres, one of its programs, or its files.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The guardian.
    #[error(transparent)]
    Guardian(#[from] GuardianError),
    /// The hard state could not be made durable.
    #[error("hard state: {0}")]
    Hard(String),
    /// The epoch is over, or the facts changed, since it was decided.
    #[error("no longer to be done: {0}")]
    Stale(String),
    /// It did not come to pass in time.
    #[error("{what} took longer than {limit:?}")]
    TooLong {
        /// What.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// What is remembered of the instance between two looks.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Facts {
    /// The stopped data directory, once it has been read: the end of its WAL, whether it was shut
    /// down in order, whether it last was a primary.
    pub stopped: Option<(WalPosition, bool, bool)>,
    /// Why the end of the WAL of a stopped data directory cannot be read.
    pub unreadable: Option<String>,
    /// Whose WAL it is set to receive.
    pub upstream: Option<NodeId>,
    /// Whether clients are let in.
    pub gate_open: bool,
    /// The epoch that it was promoted for.
    pub primary_epoch: Epoch,
    /// The epoch under whose lease it was started, before it is promoted.
    pub lease_epoch: Epoch,
    /// How many probes in a row were not answered, and since when.
    pub unanswered: (u32, BootTime),
    /// What speaks for a disk that hangs.
    pub stall: Stall,
    /// Whether a primary is being shut down in order.
    pub stopping: bool,
    /// The system identifier of its data directory.
    pub system_id: Option<SystemId>,
    /// The highest timeline number in its files.
    pub highest_timeline: Timeline,
    /// The last answer to a probe.
    pub probe: Option<Probe>,
    /// When WAL last streamed in.
    pub streamed: BootTime,
    /// Whether it has answered since its start.
    pub ready: bool,
    /// Whether it replays WAL after a crash and does not answer yet.
    pub crash_recovery: bool,
    /// Whether no data directory is left that a clone has replaced, as far as is known.
    pub old_removed: bool,
    /// Why `rhone.id` cannot be read.
    pub unread_identity: Option<String>,
    /// Which configuration a data directory that is not Rhone's yet misses, as it was told last.
    pub foreign: Option<String>,
    /// How often pg_rewind failed in a row.
    pub rewinds_failed: u32,
    /// How often in a row pg_rewind saw no fork where the ledger has one.
    pub no_fork_seen: u32,
    /// Why the last start failed, and until when it is not tried again as a primary.
    pub start_failed: Option<(String, BootTime)>,
    /// Which epoch's promotion the operator's program agreed to.
    pub agreed: Option<Epoch>,
    /// Why it did not agree to one, and until when this member is passed over.
    pub disagreed: Option<(String, BootTime)>,
    /// How many starts failed in a row.
    pub starts_failed: u32,
    /// Why the last start failed; none: the instance has answered since.
    pub start_failure: Option<String>,
    /// Whether it failed for the settings, and not for the data.
    pub unfit: bool,
    /// Lines of its files that the instance does not take.
    pub refused_lines: Vec<String>,
    /// Where the WAL ended that was here when this member was found to have been replaced.
    pub left: Option<WalPosition>,
    /// Which WAL outside the accepted history is kept here, in words.
    pub kept: Option<String>,
    /// Bytes of a clone that have arrived.
    pub clone_bytes: u64,
    /// How many copies in a row failed, and why the last one did.
    pub copies_failed: (u32, Option<String>),
    /// Whether a copy is complete and takes the data directory's place: there is no way back from that.
    pub swapping: bool,
    /// What the data directory is to this member.
    pub identity: Seen,
    /// The policy that the instance's settings name.
    pub policy: Option<LogIndex>,
    /// Since when they do.
    pub policy_since: BootTime,
    /// The policy that is known to be in force.
    pub secured: Option<LogIndex>,
    /// Whether commits may have waited for nobody since the last proof to the contrary.
    pub empty_names: bool,
    /// The epoch's marker, and the end of it.
    pub marker: Option<(Epoch, rhone_pgctl::wal::Lsn)>,
    /// Who streams from this primary.
    pub streams: Streams,
    /// The version of the settings that the running instance was told last.
    pub configured: Option<u64>,
    /// What waits for a restart.
    pub pending: Vec<Pending>,
    /// Whether a reload was asked for, and the roles' passwords are not looked at since.
    pub roles_due: bool,
}

/// The local Postgres and all that it takes to look after it.
#[derive(Debug)]
pub struct Local {
    /// What the tasks share.
    pub shared: Arc<Shared>,
    /// The guardian, parent of the postmaster.
    pub guardian: Guardian,
    /// The lease.
    pub lease: Lease,
    /// `[postgres]` of the configuration.
    pub config: Postgres,
    /// Postgres's programs.
    pub install: Installation,
    /// Who runs Postgres.
    pub user: OsUser,
    /// What became of the effects.
    pub effects: Effects,
    connection: tokio::sync::Mutex<LocalConnection>,
    facts: Mutex<Facts>,
    /// Held by work on files that goes on when the effect that began it is cut short.
    files: Arc<tokio::sync::Mutex<()>>,
    disk_work: Arc<DiskWork>,
}

impl Local {
    /// Makes the handle; touches nothing.
    pub fn new(
        shared: Arc<Shared>,
        guardian: Guardian,
        lease: Lease,
        config: Postgres,
        install: Installation,
        user: OsUser,
    ) -> Self {
        let target = target(&config);
        Self {
            shared,
            guardian,
            lease,
            config,
            install,
            user,
            effects: Effects::default(),
            connection: tokio::sync::Mutex::new(LocalConnection::new(target)),
            facts: Mutex::new(Facts::default()),
            files: Arc::default(),
            disk_work: Arc::default(),
        }
    }

    /// Returns the remembered facts; hold them only for a moment.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why the instance does not start, while that is not to be tried again.
    pub fn start_failed(&self) -> Option<String> {
        let now = self.shared.clock.now();
        let facts = self.facts();
        let why =
            [&facts.start_failed, &facts.disagreed].into_iter().flatten().find(|(_, until)| now < *until);
        why.map(|(why, _)| why.clone())
    }

    /// Whether the operator's program said no a moment ago: nothing is wrong with the data then.
    pub fn disagrees(&self) -> bool {
        let now = self.shared.clock.now();
        self.facts().disagreed.as_ref().is_some_and(|(_, until)| now < *until)
    }

    /// Has the operator's program asked, once an epoch, whether this member may be promoted. One that says no
    /// is passed over for a while, so that another member is; where there is no other, it is asked again.
    async fn agree(&self, epoch: Epoch) -> Result<(), LocalError> {
        if self.facts().agreed == Some(epoch) {
            return Ok(());
        }
        let answer = self.may_promote(epoch).await;
        let until = self.shared.clock.now().saturating_add(PASSED_OVER);
        let mut facts = self.facts();
        match answer {
            Ok(()) => {
                facts.agreed = Some(epoch);
                facts.disagreed = None;
                Ok(())
            }
            Err(why) => {
                facts.disagreed = Some((why.clone(), until));
                Err(LocalError::Stale(why))
            }
        }
    }

    /// Takes note of a start that failed; the second in a row rules this member out for a while,
    /// longer each time.
    pub fn note_start_failed(&self, why: String) {
        let now = self.shared.clock.now();
        let mut facts = self.facts();
        facts.starts_failed = facts.starts_failed.saturating_add(1);
        if facts.starts_failed >= FAILED_STARTS {
            let wait = START_AGAIN_FIRST
                .saturating_mul(1 << facts.starts_failed.saturating_sub(FAILED_STARTS).min(6))
                .min(START_AGAIN_LIMIT);
            facts.start_failed = Some((why, now.saturating_add(wait)));
        }
    }

    /// Returns how our own sessions connect.
    pub fn target(&self) -> Target {
        target(&self.config)
    }

    pub(super) fn data_dir(&self) -> &std::path::Path {
        &self.config.data_dir
    }

    /// Returns the directory beside the data directory for what Postgres's user has to read and
    /// write: the state directory may be root's alone.
    pub(super) fn work_dir(&self) -> PathBuf {
        work_dir(self.data_dir())
    }

    /// Refuses when the epoch is not the newest that is known here: to be asked just before acting.
    ///
    /// # Errors
    /// [`LocalError::Stale`].
    pub fn still(&self, epoch: Epoch) -> Result<(), LocalError> {
        let held = self.shared.voter.log_held().1;
        let promise = self.shared.hard.get().promise;
        let applied = self.shared.consensus.state().borrow().state.epoch;
        let newest = held.max(promise).max(applied);
        if newest > epoch && !left_out(Rule::Recheck) {
            return Err(LocalError::Stale(format!("epoch {newest} is known, this was for {epoch}")));
        }
        Ok(())
    }

    /// Writes the password file of our own programs.
    ///
    /// # Errors
    /// There is no password yet: a member whose state is new gets it from its peers, and what is started
    /// without it never streams.
    fn write_passfile(&self) -> Result<PathBuf, LocalError> {
        let path = self.work_dir().join(PASSFILE);
        let secret = self.replication_password()?.replace('\\', "\\\\").replace(':', "\\:");
        let text = format!("*:*:*:{REPLICATOR}:{secret}\n*:*:*:{REWINDER}:{secret}\n");
        rhone_pgctl::file::replace(&path, text.as_bytes(), &self.user, 0o600)?;
        Ok(path)
    }

    /// Reads the replication password again where an operator asked for a reload; returns whether one did. What
    /// cannot be read holds nothing up: the password stays.
    async fn reread_secret(&self) -> bool {
        if !self.shared.asked.borrow().reload() {
            return false;
        }
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || shared.secret.reread()).await;
        match read.map_err(std::io::Error::from).and_then(|read| read) {
            Ok(true) => tracing::info!("takes a new replication password from its file"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the replication password cannot be read: it stays"),
        }
        true
    }

    /// Returns the replication password.
    ///
    /// # Errors
    /// There is none yet.
    fn replication_password(&self) -> Result<String, LocalError> {
        let none = || LocalError::Stale("no peer has handed over the replication password yet".to_owned());
        self.shared.secret.get().ok_or_else(none)
    }

    /// Returns how to reach a member's Postgres as one of our roles.
    fn conninfo(&self, member: &Member, role: &str) -> Result<ConnInfo, LocalError> {
        let (host, port) = member
            .postgres
            .parse::<crate::config::Address>()
            .map(|address| (address.host, address.port))
            .map_err(|_| LocalError::Stale(format!("{} has no postgres address", member.name)))?;
        let mut conninfo = ConnInfo::new(host, port, role);
        // A copy in the making acknowledges nothing, although its walsender hears how far it is.
        conninfo.application_name = Some("rhone_copy".to_owned());
        conninfo.passfile = Some(self.write_passfile()?);
        Ok(conninfo)
    }

    /// Returns the managed settings, receiving from that member or from nobody.
    fn settings(
        &self,
        upstream: Option<&Member>,
        minimums: StandbyMinimums,
    ) -> Result<ManagedSettings, LocalError> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let mut primary_conninfo = upstream.map(|member| self.conninfo(member, REPLICATOR)).transpose()?;
        if let Some(conninfo) = &mut primary_conninfo {
            conninfo.application_name = Some(self.own_standby_name());
        }
        Ok(ManagedSettings {
            parameters: applied.state.settings.postgres.clone(),
            version: applied.state.settings_version,
            apply_delay_ms: upstream.map_or(0, |_| self.shared.config.node.tags.delay_ms),
            primary_slot_name: upstream.map(|_| slot_name(&self.shared.config.node.name)),
            primary_conninfo,
            minimums,
            // A standby waits for one that does not exist: should it become primary, no commit is
            // acknowledged before its policy is set (docs/safety.md 6).
            synchronous_standby_names: synchronous_standby_names(1, [""; 0]),
            ..ManagedSettings::default()
        })
    }

    /// Returns what a server must not go below, by its own files.
    async fn minimums(&self) -> Result<StandbyMinimums, LocalError> {
        let control =
            rhone_pgctl::control::read_control(&self.install, self.data_dir(), &self.user, PROGRAM_LIMIT)
                .await?;
        Ok(control.minimums)
    }

    fn access(&self) -> AccessRules {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let given = |lines: &Vec<String>| (!lines.is_empty()).then(|| lines.clone());
        let settings = &applied.state.settings;
        let config = &self.config;
        let me = OsUser::current();
        let mut os_users = vec![self.user.name.clone(), "root".to_owned()];
        if !os_users.contains(&me.name) {
            os_users.push(me.name);
        }
        AccessRules {
            superuser: config.superuser.clone(),
            os_users,
            replicator: REPLICATOR.to_owned(),
            rewinder: REWINDER.to_owned(),
            lines: given(&settings.pg_hba),
            ident_lines: given(&settings.pg_ident),
        }
    }

    /// Does work on files off the runtime's thread, which must hear renewals meanwhile: one fsync may
    /// take half a second. Once begun it is finished, also when the effect is cut short.
    async fn on_files<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PgError> + Send + 'static,
    ) -> Result<T, LocalError> {
        let turn = Arc::clone(&self.files).lock_owned().await;
        let working = self.disk_work.begin(self.shared.clock.now());
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((working, turn));
            done
        });
        Ok(done.await.map_err(|error| LocalError::Stale(error.to_string()))??)
    }

    /// Waits until no work on files is left of an effect that was cut short.
    pub async fn files_at_rest(&self) {
        drop(self.files.lock().await);
    }

    async fn write_settings(&self, settings: ManagedSettings) -> Result<bool, LocalError> {
        let (data_dir, user) = (self.data_dir().to_owned(), self.user.clone());
        self.on_files(move || rhone_pgctl::apply::write_settings(&data_dir, &settings, &user)).await
    }

    async fn write_gate(&self, gate: Gate) -> Result<bool, LocalError> {
        let (data_dir, user, access) = (self.data_dir().to_owned(), self.user.clone(), self.access());
        self.on_files(move || rhone_pgctl::apply::write_access(&data_dir, &access, gate, &user)).await
    }

    /// Makes the next start one in recovery, on the highest real timeline.
    async fn write_standby_signal(&self) -> Result<(), LocalError> {
        let (data_dir, user) = (self.data_dir().to_owned(), self.user.clone());
        self.on_files(move || {
            rhone_pgctl::apply::set_standby_signal(&data_dir, true, &user)?;
            rhone_pgctl::timeline::remove_leading_tombstones(&data_dir).map(drop)
        })
        .await
    }

    fn member(&self, node: NodeId) -> Result<Member, LocalError> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        applied
            .state
            .members
            .get(&node)
            .cloned()
            .ok_or_else(|| LocalError::Stale(format!("{node} is no member any more")))
    }

    fn state<T>(&self, read: impl FnOnce(&ClusterState) -> T) -> T {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        read(&applied.state)
    }

    /// Changes the hard state off the main loop; durable when it returns.
    ///
    /// # Errors
    /// [`LocalError::Hard`].
    pub async fn update_hard(
        &self,
        change: impl FnOnce(&mut rhone_consensus::store::hard::HardState) + Send + 'static,
    ) -> Result<(), LocalError> {
        let hard = Arc::clone(&self.shared.hard);
        match tokio::task::spawn_blocking(move || hard.update(change).map(|_| ())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LocalError::Hard(error.to_string())),
            Err(error) => Err(LocalError::Hard(error.to_string())),
        }
    }

    /// Promises the epoch before anything is done for it, durably: after a restart with a log that
    /// is behind nothing is done for an older one any more.
    ///
    /// # Errors
    /// The epoch is over, or [`LocalError::Hard`].
    pub async fn promise_epoch(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        if self.shared.hard.get().promise < epoch {
            self.update_hard(move |hard| hard.promise = hard.promise.max(epoch)).await?;
        }
        self.still(epoch)
    }

    /// Returns the id under which the data directory counts now, if it does, and whether it must not be
    /// used at all.
    pub fn data_facts(&self) -> (Option<DataId>, bool) {
        let seen = self.facts().identity;
        (identity::counts(seen, &self.shared.hard.get()), self.is_strange(seen))
    }

    /// Returns a report's worth of the slowest facts: system identifier and highest timeline.
    pub fn identity_facts(&self) -> (Option<SystemId>, Timeline) {
        let facts = self.facts();
        (facts.system_id, facts.highest_timeline)
    }
}

/// So many failures in a row rule a member out for a while.
const FAILED_STARTS: u32 = 2;

/// For how long a member whose Postgres does not start is not chosen as primary; doubled each time.
const START_AGAIN_FIRST: Duration = Duration::from_secs(10);

/// The longest such wait.
const START_AGAIN_LIMIT: Duration = Duration::from_secs(600);

/// For how long a member whose promotion the operator's program refused is passed over: several elections.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// How long a quick program of Postgres's may take, on a slow card.
const PROGRAM_LIMIT: Duration = Duration::from_secs(20);

/// Returns the working directory that belongs to a data directory: `<data-dir>.rhone`.
pub fn work_dir(data_dir: &std::path::Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".rhone");
    PathBuf::from(name)
}

/// Returns how our own sessions connect to the server of this configuration.
pub fn target(config: &Postgres) -> Target {
    Target::new(config.socket_dir.clone(), config.listen.port, config.superuser.clone())
}
