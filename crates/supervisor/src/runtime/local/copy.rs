//! Making the data directory: initdb, clone, rewind (docs/safety.md 10). Nothing is removed before its
//! replacement is complete.

use std::time::Duration;

use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::ledger::Lineage;
use rhone_consensus::store::hard::{DataRecord, Sentinel, SentinelKind};
use rhone_pgctl::clone::{self, CloneSource};
use rhone_pgctl::control::{DbState, read_control};
use rhone_pgctl::initdb::{InitOptions, initdb};
use rhone_pgctl::replication::{ReplicationAddress, ReplicationTarget, identify_system};
use rhone_pgctl::rewind::{RewindOutcome, rewind};
use rhone_pgctl::slots::slot_name;
use rhone_pgctl::wal::WalPosition;

use super::{Local, LocalError, PROGRAM_LIMIT, REPLICATOR, REWINDER};

/// initdb on a slow card.
const INITDB_LIMIT: Duration = Duration::from_secs(300);

/// A clone that brings nothing more for this long is given up.
const CLONE_IDLE: Duration = Duration::from_secs(60);

/// After so many rewinds in a row that saw no fork where there is one the data directory is cloned. They
/// come a second and more apart: the checkpoint that the source begins with has its time.
const NO_FORK_SEEN: u32 = 5;

/// How long the source may take to say who it is.
const SOURCE_LIMIT: Duration = Duration::from_secs(5);

impl Local {
    /// Makes the cluster's first data directory.
    ///
    /// # Errors
    /// initdb failed.
    pub async fn init_db(&self) -> Result<(), LocalError> {
        let options = InitOptions {
            superuser: self.config.superuser.clone(),
            locale: "C.UTF-8".to_owned(),
            wal_segment_mib: 16,
        };
        initdb(&self.install, self.data_dir(), &self.user, &options, INITDB_LIMIT).await?;
        self.facts().stopped = None;
        Ok(())
    }

    /// Asks the source's Postgres how far it is; it must be primary on the epoch's timeline.
    async fn source(&self, node: NodeId) -> Result<WalPosition, LocalError> {
        let member = self.member(node)?;
        let (host, port) = member
            .postgres
            .parse::<crate::config::Address>()
            .map(|address| (address.host, address.port))
            .map_err(|_| LocalError::Stale(format!("{} has no postgres address", member.name)))?;
        let target = ReplicationTarget {
            address: ReplicationAddress::Tcp(host, port),
            user: REPLICATOR.to_owned(),
            password: self.shared.secret.get(),
        };
        let identity = identify_system(&target, SOURCE_LIMIT).await?;
        let (system_id, timeline) =
            self.state(|state| (state.system_id, state.current_grant().map(|grant| grant.timeline)));
        if Some(identity.system_id) != system_id {
            return Err(LocalError::Stale(format!("{} serves system {}", member.name, identity.system_id)));
        }
        if Some(identity.position.timeline) != timeline {
            return Err(LocalError::Stale(format!(
                "{} is on timeline {}",
                member.name, identity.position.timeline
            )));
        }
        Ok(identity.position)
    }

    /// Copies the data directory of `node` aside and swaps it in.
    ///
    /// # Errors
    /// The source is not there, the copy failed, or the swap is not possible; the old data directory
    /// is where it was.
    pub async fn copy_from(&self, epoch: Epoch, node: NodeId) -> Result<(), LocalError> {
        self.still(epoch)?;
        self.source(node).await?;
        let member = self.member(node)?;
        let source = CloneSource {
            conninfo: self.conninfo(&member, REPLICATOR)?,
            // A standby that goes on streaming meanwhile has its slot in use.
            slot: (!self.has_instance()).then(|| slot_name(&self.shared.config.node.name)),
        };
        {
            let mut facts = self.facts();
            facts.clone_bytes = 0;
            facts.swapping = false;
        }
        let progress = |bytes: u64| self.facts().clone_bytes = bytes;
        let data_dir = self.data_dir().to_owned();
        let side =
            clone::clone_aside(&self.install, &data_dir, &self.user, &source, CLONE_IDLE, progress).await?;
        // Below this position the copy may lack what its name once acknowledged. A standby that it was
        // copied from may lack that too: only the primary's own end is beyond it.
        let owner = self.state(|state| state.current_grant().map_or(node, |grant| grant.owner));
        let floor = self.source(owner).await?;
        self.still(epoch)?;
        let record = self.new_identity(side).await?;
        // From here on it is not given up any more. Until the promise what is here is whole.
        self.facts().swapping = true;
        self.stop().await?;
        self.no_strays()?;
        let unfinished = {
            let hard = self.shared.hard.get();
            hard.sentinel.is_some() || hard.floor.is_some()
        };
        self.promise(epoch, SentinelKind::Clone, &member.name, Some(floor), record).await?;
        self.keep_forked(epoch, node, "clone").await;
        let kept = self
            .on_files(move || {
                let kept = clone::swap_in(&data_dir)?;
                rhone_pgctl::apply::after_copy(&data_dir).map(|()| kept)
            })
            .await?;
        if let Some(kept) = kept {
            tracing::info!(path = %kept.display(), "the old data directory is kept until the clone streams");
        }
        self.finished_copying().await?;
        if unfinished {
            // What this copy replaces was one that never came to serve.
            match clone::remove_all_but_the_oldest(self.data_dir()).await {
                Ok(removed) => tracing::info!(removed, "removed copies that never served"),
                Err(error) => tracing::warn!(%error, "could not remove copies that never served"),
            }
        }
        let mut facts = self.facts();
        facts.old_removed = false;
        facts.stopped = None;
        facts.rewinds_failed = 0;
        facts.no_fork_seen = 0;
        facts.start_failed = None;
        facts.swapping = false;
        Ok(())
    }

    /// Takes note of how a copy ended.
    pub fn note_copied(&self, error: Option<String>) {
        let mut facts = self.facts();
        facts.swapping = false;
        facts.copies_failed = match error {
            Some(error) => (facts.copies_failed.0.saturating_add(1), Some(error)),
            None => (0, None),
        };
    }

    /// Removes what is left of a copy that was given up.
    pub async fn discard_copy(&self) {
        let data_dir = self.data_dir().to_owned();
        match self.on_files(move || clone::discard_side(&data_dir)).await {
            Ok(true) => tracing::info!("removed what had arrived of a copy that was given up"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "could not remove what had arrived of a copy"),
        }
        self.facts().clone_bytes = 0;
    }

    /// Takes the data directory back to the history of `node`'s.
    ///
    /// # Errors
    /// The source is not there; or pg_rewind failed, which is counted.
    pub async fn rewind_to(&self, epoch: Epoch, node: NodeId) -> Result<(), LocalError> {
        self.still(epoch)?;
        self.source(node).await?;
        let member = self.member(node)?;
        self.stop().await?;
        self.no_strays()?;
        self.keep_forked(epoch, node, "rewind").await;
        if let Err(error) = self.prepare_rewind().await {
            self.note_rewind_failed();
            return Err(error);
        }
        let floor = self.state(|state| {
            let timeline = state.current_grant().map(|grant| grant.timeline);
            timeline.and_then(|timeline| state.ledger.floor_after_rewind(timeline))
        });
        self.still(epoch)?;
        // Before and after: pg_rewind may bring the source's file along.
        let record = self.new_identity(self.data_dir().to_owned()).await?;
        self.promise(epoch, SentinelKind::Rewind, &member.name, floor, record).await?;
        self.keep_all_wal().await?;
        let mut source = self.conninfo(&member, REWINDER)?;
        source.dbname = Some("postgres".to_owned());
        let control = read_control(&self.install, self.data_dir(), &self.user, PROGRAM_LIMIT).await?;
        let outcome = rewind(&self.install, self.data_dir(), &self.user, &source, &control).await;
        self.facts().stopped = None;
        match outcome {
            Ok(RewindOutcome::NotNeeded) if self.still_forked().await => {
                // It takes the source's timeline from a control file that says the old one until the
                // first checkpoint after a promotion: that is worth waiting for. Else it compared
                // numbers, which collide; the ledger knows better (docs/safety.md 10).
                let mut facts = self.facts();
                facts.no_fork_seen = facts.no_fork_seen.saturating_add(1);
                if facts.no_fork_seen >= NO_FORK_SEEN {
                    facts.rewinds_failed = u32::MAX;
                }
                Err(LocalError::Stale("pg_rewind sees no fork where the ledger has one".to_owned()))
            }
            Ok(RewindOutcome::Rewound | RewindOutcome::NotNeeded) => {
                rhone_pgctl::apply::after_copy(self.data_dir())?;
                self.write_identity_again().await?;
                self.finished_copying().await?;
                let mut facts = self.facts();
                facts.no_fork_seen = 0;
                // One that was made because the instance does not start, and changes nothing about
                // it, ends in a clone.
                if facts.start_failed.take().is_some() {
                    facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
                }
                Ok(())
            }
            Ok(RewindOutcome::NeedsClone(reason)) => {
                self.facts().rewinds_failed = u32::MAX;
                Err(LocalError::Stale(format!("cannot be rewound: {reason}")))
            }
            Err(error) => {
                self.note_rewind_failed();
                Err(error.into())
            }
        }
    }

    fn note_rewind_failed(&self) {
        let mut facts = self.facts();
        facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
    }

    /// Refuses while a program of an earlier life of the supervisor still works in the data
    /// directory: pg_rewind survives it.
    fn no_strays(&self) -> Result<(), LocalError> {
        match rhone_pgctl::process::stray_processes(self.data_dir()).first() {
            Some(pid) => Err(LocalError::Stale(format!("process {pid} still works in the data directory"))),
            None => Ok(()),
        }
    }

    /// Whether the end of the WAL on disk is known and lies outside the owner's history.
    async fn still_forked(&self) -> bool {
        let Some(position) = self.observe().await.position() else { return false };
        self.state(|state| {
            state.current_grant().is_some_and(|grant| {
                !matches!(state.ledger.lineage(position, grant.timeline), Lineage::Within)
            })
        })
    }

    /// pg_rewind wants a target that was shut down in order: a standby that crashed is started
    /// without an upstream and stopped; a former primary is recovered by pg_rewind itself.
    async fn prepare_rewind(&self) -> Result<(), LocalError> {
        let control = read_control(&self.install, self.data_dir(), &self.user, PROGRAM_LIMIT).await?;
        if control.state == DbState::InArchiveRecovery {
            let kind = self.shared.hard.get().sentinel.map(|sentinel| sentinel.kind);
            if matches!(kind, Some(SentinelKind::Rewind | SentinelKind::Rewound)) {
                // A rewind was cut short: such a directory is never started (docs/safety.md 10). And one that was
                // not is not whole without its source's WAL.
                self.facts().rewinds_failed = u32::MAX;
                return Err(LocalError::Stale(
                    "an earlier rewind was cut short: it must be cloned".to_owned(),
                ));
            }
            self.start(None).await?;
            self.stop().await?;
        }
        Ok(())
    }

    /// Makes the crash recovery of a former primary keep all WAL: its checkpoint would remove what lies
    /// before the position of the slowest standby, and pg_rewind needs it back to the last checkpoint
    /// before the histories part (decision 0034).
    async fn keep_all_wal(&self) -> Result<(), LocalError> {
        let mut settings = self.settings(None, self.minimums().await?)?;
        settings.keep_all_wal = true;
        self.write_settings(settings).await.map(drop)
    }

    /// Promises the epoch and notes what is about to be done to the data directory, durably.
    async fn promise(
        &self,
        epoch: Epoch,
        kind: SentinelKind,
        source: &str,
        floor: Option<WalPosition>,
        data: DataRecord,
    ) -> Result<(), LocalError> {
        let sentinel = Sentinel { epoch, kind, source: source.to_owned() };
        self.update_hard(move |hard| {
            hard.promise = hard.promise.max(epoch);
            hard.sentinel = Some(sentinel);
            hard.floor = floor;
            hard.data = Some(data);
        })
        .await
    }

    /// Notes durably that what was begun is done: a supervisor that is restarted before the first start
    /// starts what is here, and does not copy it again.
    async fn finished_copying(&self) -> Result<(), LocalError> {
        self.update_hard(|hard| {
            if let Some(sentinel) = &mut hard.sentinel {
                sentinel.kind = sentinel.kind.done();
            }
        })
        .await
    }

    /// Once the standby streams past its floor: what was begun is finished, and what was kept goes.
    ///
    /// # Errors
    /// The hard state could not be written.
    pub async fn finish_copy(&self, position: WalPosition) -> Result<(), LocalError> {
        let hard = self.shared.hard.get();
        if hard.sentinel.is_none() && hard.floor.is_none() {
            return self.remove_old().await;
        }
        let reached = hard
            .floor
            .is_none_or(|floor| self.state(|state| state.ledger.rank(position) >= state.ledger.rank(floor)));
        if !reached {
            return Ok(());
        }
        self.update_hard(move |now| {
            // Only what was seen finished: another copy may have been begun since.
            if now.sentinel == hard.sentinel && now.floor == hard.floor {
                now.sentinel = None;
                now.floor = None;
            }
        })
        .await?;
        if self.shared.hard.get().sentinel.is_some() {
            return Ok(());
        }
        self.facts().rewinds_failed = 0;
        self.remove_old().await
    }

    /// Removes what a clone has replaced, once in the life of a supervisor and after each clone: not
    /// before that one counts.
    ///
    /// # Errors
    /// It could not be removed.
    pub async fn remove_old(&self) -> Result<(), LocalError> {
        let hard = self.shared.hard.get();
        if self.facts().old_removed || hard.sentinel.is_some() || hard.floor.is_some() {
            return Ok(());
        }
        let removed = clone::remove_old(self.data_dir(), 0).await?;
        if removed > 0 {
            tracing::info!(removed, "removed the old data directory: its replacement serves");
        }
        self.facts().old_removed = true;
        Ok(())
    }
}
