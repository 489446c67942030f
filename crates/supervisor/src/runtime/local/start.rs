//! Starting, following, stopping, fencing.

use std::time::Duration;

use rhone_consensus::ids::{Epoch, NodeId};
use rhone_pgctl::error::PgError;
use rhone_pgctl::hba::Gate;
use rhone_pgctl::process::{self, Postmaster, StartOptions};

use super::{LOG_FILE, Local, LocalError, Stall};
use crate::guardian::{GuardState, PostmasterSignal, RunAs, StartSpec, emergency};
use crate::runtime::lease::GUARDIAN_SILENT;

/// How long a start is watched closely; a longer recovery goes on and is seen by the next look.
const START_WATCHED: Duration = Duration::from_secs(60);

/// How long a fast shutdown may take: its checkpoint on a slow card, and the last WAL to standbys.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How long the guardian may take to kill before the supervisor does it itself; it takes 5 to 30 ms.
const GUARDIAN_KILLS: Duration = Duration::from_secs(2);

/// Between two looks at whether the guardian has an instance: one read of shared memory.
const GONE_POLL: Duration = Duration::from_millis(2);

/// How long the guardian may take to notice that its postmaster has ended; it takes about a millisecond.
const END_NOTICED: Duration = Duration::from_secs(5);

/// How long killing everything may take.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Postgres's log is set aside when it is larger, looked at every few seconds.
const LOG_MAX: u64 = 16 << 20;

impl Local {
    /// Starts the instance of the epoch's owner in recovery, under the epoch's lease from the first
    /// moment on: it is about to be promoted.
    ///
    /// # Errors
    /// As [`Local::start`], or no majority renews the lease.
    pub async fn start_as_owner(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        self.clear_the_way().await?;
        self.lease.set_target(self.lease_target(epoch));
        self.first_lease(epoch).await?;
        self.guardian.kick().await?;
        self.still(epoch)?;
        self.facts().lease_epoch = epoch;
        self.start_server(None).await
    }

    /// Waits for the first renewal while nothing runs yet.
    ///
    /// A guardian with nothing to guard sleeps until it is told, and the lease thread renews only
    /// beside one that lives; voters that have just started take a whole lease to answer.
    async fn first_lease(&self, epoch: Epoch) -> Result<(), LocalError> {
        let live = self.lease_live(epoch);
        tokio::pin!(live);
        loop {
            self.guardian.kick().await?;
            if let Ok(result) = tokio::time::timeout(GUARDIAN_SILENT / 4, &mut live).await {
                return result;
            }
        }
    }

    /// Starts the instance in recovery, receiving from `upstream` or from nobody, and waits until it
    /// accepts connections. It is a standby, and needs no lease.
    ///
    /// # Errors
    /// The files could not be written, the guardian refused, or the postmaster ended.
    pub async fn start(&self, upstream: Option<NodeId>) -> Result<(), LocalError> {
        self.lease.set_target(None);
        self.note_left();
        self.clear_the_way().await?;
        self.lease.quiet().await;
        self.guardian.page().clear_lease();
        self.facts().lease_epoch = Epoch(0);
        self.start_server(upstream).await
    }

    async fn start_server(&self, upstream: Option<NodeId>) -> Result<(), LocalError> {
        self.claim_again().await?;
        let member = upstream.map(|node| self.member(node)).transpose()?;
        let version = self.settings_version();
        let settings = self.settings(member.as_ref(), self.minimums().await?)?;
        self.write_settings(settings).await?;
        // A prospective owner starts with its gate closed; a standby may be read from.
        let gate = if upstream.is_some() { Gate::Open } else { Gate::Closed };
        self.write_gate(gate).await?;
        self.write_standby_signal().await?;
        self.bound_log().await;
        {
            let mut facts = self.facts();
            facts.ready = false;
            facts.probe = None;
            facts.primary_epoch = Epoch(0);
            // The checkpointer begins with the placeholder.
            facts.empty_names = false;
            facts.gate_open = gate == Gate::Open;
            facts.upstream = upstream;
            facts.streamed = self.shared.clock.now();
            facts.configured = Some(version);
        }
        let spec = self.start_spec();
        let log = self.log_end();
        // The stopped facts hold until there is something newer to know.
        self.guardian.start(spec).await?;
        self.facts().stopped = None;
        let Err(error) = self.started().await else { return Ok(()) };
        if process::stray_processes(self.data_dir()).is_empty() {
            // The guardian notices an end a moment after whoever looks at the processes; until then nobody would be blamed.
            drop(tokio::time::timeout(END_NOTICED, self.gone()).await);
        }
        Err(if self.has_instance() { error } else { self.blame(log, error).await })
    }

    async fn started(&self) -> Result<(), LocalError> {
        let target = self.target();
        tokio::select! {
            accepting = process::wait_accepting(self.data_dir(), &target, START_WATCHED) => accepting.map(drop)?,
            // A server may end before its first look at its pid file: on a full disk it cannot even write one.
            () = self.gone() => return Err(PgError::DataDirUnusable {
                data_dir: self.data_dir().to_owned(),
                reason: "the server ended while it started; see its log".to_owned(),
            }.into()),
        }
        Ok(())
    }

    /// Returns once the guardian has no instance.
    async fn gone(&self) {
        while self.guardian.page().state().has_instance() {
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    fn start_spec(&self) -> StartSpec {
        let config = &self.config;
        let options = StartOptions {
            listen_addresses: config.listen.host.clone(),
            port: config.listen.port,
            socket_dirs: vec![config.socket_dir.clone()],
            ..StartOptions::default()
        };
        let command = process::start_command(&self.install, self.data_dir(), &self.user, &options);
        let user = (!self.user.is_current()).then(|| RunAs {
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.clone(),
        });
        StartSpec {
            program: command.program,
            args: command.args,
            env: command.env,
            cwd: command.directory,
            user,
            log_file: self.work_dir().join(LOG_FILE),
        }
    }

    /// Makes sure that nothing of a former instance is left.
    async fn clear_the_way(&self) -> Result<(), LocalError> {
        if self.guardian.page().state().has_instance() {
            self.guardian.kill().await?;
        }
        if !process::stray_processes(self.data_dir()).is_empty() {
            process::kill_everything(self.data_dir(), KILL_LIMIT).await?;
        }
        process::remove_stale_pid_file(self.data_dir())?;
        let (sockets, port) = (&self.config.socket_dir, self.config.listen.port);
        match process::remove_stale_socket_lock(sockets, port, self.data_dir()).await {
            Ok(true) => {
                tracing::info!(directory = %sockets.display(), "removed the lock of a socket that was left behind");
            }
            Ok(false) => {}
            // Postgres says itself what it cannot do there.
            Err(error) => {
                tracing::warn!(%error, "could not look for the lock of a socket that was left behind");
            }
        }
        Ok(())
    }

    /// Keeps Postgres's log bounded: what is there goes to `postgres.log.1`, and the file, which
    /// Postgres appends to, begins anew.
    pub async fn bound_log(&self) {
        let path = self.work_dir().join(LOG_FILE);
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() <= LOG_MAX) || !path.exists() {
            return;
        }
        let result = tokio::task::spawn_blocking(move || {
            std::fs::copy(&path, path.with_extension("log.1"))?;
            std::fs::OpenOptions::new().write(true).open(&path)?.set_len(0)
        })
        .await;
        if let Ok(Err(error)) = result {
            tracing::warn!(%error, "could not bound postgres's log");
        }
    }

    /// Points a running standby at a member.
    ///
    /// # Errors
    /// The files could not be written.
    pub async fn follow(&self, node: NodeId) -> Result<(), LocalError> {
        let member = self.member(node)?;
        self.reread_secret().await;
        let version = self.settings_version();
        let settings = self.settings(Some(&member), self.minimums().await?)?;
        let changed = self.write_settings(settings).await?;
        let gate = self.write_gate(Gate::Open).await?;
        if changed || gate || self.shared.asked.borrow().reload() {
            self.guardian.signal(PostmasterSignal::Reload).await?;
        }
        let known = self.facts().configured;
        if known.is_some_and(|known| known != version) || self.shared.asked.borrow().reload() {
            self.note_refused_lines().await;
        }
        let mut facts = self.facts();
        facts.upstream = Some(node);
        facts.configured = Some(version);
        facts.gate_open = true;
        facts.streamed = self.shared.clock.now();
        Ok(())
    }

    /// Makes the instance unable to acknowledge anything, by killing all of it.
    ///
    /// # Errors
    /// Something of it is left.
    pub async fn fence(&self) -> Result<(), LocalError> {
        self.lease.set_target(None);
        let now = self.shared.clock.now();
        let killed = if self.guardian.page().alive_age(now) > GUARDIAN_SILENT && self.has_instance() {
            Err("it does not run".to_owned())
        } else {
            match tokio::time::timeout(GUARDIAN_KILLS, self.guardian.kill()).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err(format!("not within {GUARDIAN_KILLS:?}")),
            }
        };
        if let Err(error) = killed {
            tracing::warn!(%error, "the guardian does not kill: the supervisor does it");
            let (data_dir, cgroup) = (self.data_dir().to_owned(), self.guardian.cgroup());
            let result = tokio::task::spawn_blocking(move || {
                emergency::kill_instance(&data_dir, cgroup.as_deref(), KILL_LIMIT)
            })
            .await;
            match result {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(LocalError::Stale(error.to_string())),
                Err(error) => return Err(LocalError::Stale(error.to_string())),
            }
        }
        self.ended();
        Ok(())
    }

    /// Forgets what was so of the instance that has ended.
    pub fn ended(&self) {
        let mut facts = self.facts();
        facts.primary_epoch = Epoch(0);
        facts.lease_epoch = Epoch(0);
        facts.gate_open = false;
        facts.ready = false;
        facts.stopping = false;
        facts.stall = Stall::default();
        facts.probe = None;
        facts.stopped = None;
        facts.upstream = None;
        facts.policy = None;
        facts.secured = None;
        facts.configured = None;
        facts.pending.clear();
        facts.marker = None;
        // Not what it knew of its standbys: a report that still tells of a primary must never look as if they had
        // gone before it.
    }

    /// Shuts a primary down in order, with everything sent to the standbys; it is never killed for
    /// being slow, since that could leave behind what was acknowledged.
    ///
    /// # Errors
    /// It has not stopped yet: ask again.
    pub async fn stop_primary(&self) -> Result<(), LocalError> {
        if let Some(postmaster) = Postmaster::find(self.data_dir())? {
            self.facts().stopping = true;
            let stopped = postmaster.stop_fast(STOP_LIMIT).await;
            // One that does not end in time may hang.
            self.facts().stopping = false;
            stopped?;
        }
        self.until_gone().await?;
        self.ended();
        Ok(())
    }

    /// Shuts a standby down in order; past its limit it is killed.
    ///
    /// # Errors
    /// It could not even be killed.
    pub async fn stop(&self) -> Result<(), LocalError> {
        if !self.guardian.page().state().has_instance() {
            return Ok(());
        }
        self.before_stop().await;
        match Postmaster::find(self.data_dir())? {
            Some(postmaster) => {
                if let Err(error) = postmaster.stop_fast(STOP_LIMIT).await {
                    tracing::warn!(%error, "the fast shutdown did not end: kills the instance");
                    self.guardian.kill().await?;
                }
            }
            None => self.guardian.kill().await?,
        }
        self.until_gone().await?;
        self.ended();
        Ok(())
    }

    /// Waits until the guardian says that nothing of the instance is left.
    async fn until_gone(&self) -> Result<(), LocalError> {
        let waited = tokio::time::timeout(KILL_LIMIT, self.gone()).await;
        waited.map_err(|_| LocalError::TooLong { what: "the end of the instance", limit: KILL_LIMIT })
    }

    /// Returns whether the guardian has an instance.
    pub fn has_instance(&self) -> bool {
        self.guardian.page().state().has_instance()
    }

    /// Returns whether the instance is frozen.
    pub fn frozen(&self) -> bool {
        matches!(self.guardian.page().state(), GuardState::Frozen | GuardState::Freezing)
    }
}
