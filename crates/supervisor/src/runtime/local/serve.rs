//! Promising, promoting, letting clients in, handing over (docs/safety.md 5, 8).

use std::time::Duration;

use rhone_consensus::command::Grant;
use rhone_consensus::ids::Epoch;
use rhone_pgctl::connection::Session;
use rhone_pgctl::hba::Gate;
use rhone_pgctl::probe::RoleFacts;
use rhone_pgctl::process::Postmaster;
use rhone_pgctl::replication::identify_system;
use rhone_pgctl::roles::Login;
use rhone_pgctl::slots::{plan_slots, slot_name};
use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};
use rhone_pgctl::{marker, roles, slots, standby, sync, timeline};

use super::{Local, LocalError, REPLICATOR, REWINDER, Seen};
use crate::guardian::{GuardState, Lease as PageLease};
use crate::mutant::{Rule, left_out};
use crate::runtime::lease::LeaseTarget;
use crate::view::{Instance, Revoked};

/// How long a standby may take to let go of its upstream before it is killed and read from disk: a
/// healthy one takes 10 to 40 ms, measured.
const CUT_LIMIT: Duration = Duration::from_secs(3);

/// How long a majority may take to grant the first renewal of an epoch.
const LEASE_LIMIT: Duration = Duration::from_secs(10);

/// How long the promotion itself may take: the last segment is copied and fsynced.
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);

/// How long a quick statement may take.
const SQL_LIMIT: Duration = Duration::from_secs(5);

/// How long the checkpoint before a handover may take.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);

impl Local {
    /// Promises an epoch, cuts what streams in or out, and reports the frozen end of the WAL.
    ///
    /// # Errors
    /// A higher promise, or something that keeps the answer from being sure: ask again.
    pub async fn revoke(&self, epoch: Epoch, able: bool) -> Result<Revoked, LocalError> {
        let promise = self.shared.hard.get().promise;
        if promise > epoch {
            return Err(LocalError::Stale(format!("epoch {promise} was promised")));
        }
        // From here on no renewal of an older epoch is asked for.
        self.lease.set_target(None);
        if promise < epoch {
            self.update_hard(move |hard| hard.promise = hard.promise.max(epoch)).await?;
        }
        // A primary is ended before anything waits for its disk.
        if self.facts().primary_epoch > Epoch(0) && self.has_instance() {
            self.fence().await?;
        }
        self.files_at_rest().await;
        self.claim_first().await?;
        let position = self.frozen_position().await?;
        let hard = self.shared.hard.get();
        let unfinished = hard.unfinished().is_some() && !left_out(Rule::Floor);
        let above_floor = self.above_floor(hard.floor, position);
        let data = match self.look_at_identity()? {
            Seen::Ours(data) => Some(data),
            Seen::Nothing | Seen::Unclaimed | Seen::Stranger => None,
        };
        let counts = !unfinished && above_floor && data.is_some();
        Ok(Revoked {
            epoch,
            position: position.filter(|_| counts),
            data: data.unwrap_or_default(),
            able: able && self.start_failed().is_none(),
            highest_timeline: self.identity_facts().1,
        })
    }

    fn above_floor(&self, floor: Option<WalPosition>, position: Option<WalPosition>) -> bool {
        let floor = floor.filter(|_| !left_out(Rule::Floor));
        let (Some(floor), Some(position)) = (floor, position) else { return true };
        self.state(|state| {
            let ledger = &state.ledger;
            match (ledger.rank(position), ledger.rank(floor)) {
                (Some(position), Some(floor)) => position >= floor,
                // A log that is behind does not know the timeline yet: nothing is proved.
                (None, _) | (_, None) => false,
            }
        })
    }

    /// Ends whatever could still move the end of the WAL here, and returns it; nothing when there is
    /// no data directory.
    async fn frozen_position(&self) -> Result<Option<WalPosition>, LocalError> {
        // A start that was cut short may still be on its way to the guardian: its answer comes after it.
        let answers = self.guardian.kick().await;
        let state = self.guardian.page().state();
        if state.has_instance() || answers.is_err() {
            let standby =
                state == GuardState::Running && self.facts().primary_epoch == Epoch(0) && self.facts().ready;
            if standby && self.shared.config.node.tags.delay_ms > 0 {
                match self.cut_delayed().await {
                    Ok(()) => return Ok(None),
                    Err(error) => tracing::warn!(%error, "the standby does not let go: it is killed"),
                }
            } else if standby && left_out(Rule::CutsUpstream) {
                return Ok(self.observe().await.position());
            } else if standby {
                match self.cut().await {
                    Ok(position) => return Ok(Some(position)),
                    Err(error) => {
                        tracing::warn!(%error, "the standby does not let go: it is killed and read from disk");
                    }
                }
            }
            self.fence().await?;
        }
        match self.observe().await {
            Instance::Stopped { position: Some(position), .. } => Ok(Some(position)),
            Instance::Absent | Instance::Unusable(_) => Ok(None),
            // A copy that has not streamed to its end yet: it does not count, and says so at once.
            Instance::Stopped { position: None, .. } if self.shared.hard.get().sentinel.is_some() => Ok(None),
            other @ (Instance::Unknown
            | Instance::Stopped { position: None, .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Primary { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. }) => Err(LocalError::Stale(format!("the instance is {other:?}"))),
        }
    }

    /// Cuts a delayed standby off its upstream. What it holds back is not replayed for an election,
    /// which is what it is there for; so where its WAL ends is not said, and it does not count.
    async fn cut_delayed(&self) -> Result<(), LocalError> {
        let Some(postmaster) = Postmaster::find(self.data_dir())? else {
            return Err(LocalError::Stale("the postmaster is gone".to_owned()));
        };
        let mut settings = self.settings(None, self.minimums().await?)?;
        settings.apply_delay_ms = self.shared.config.node.tags.delay_ms;
        let (target, user) = (self.target(), &self.user);
        standby::cut_upstream(&postmaster, self.data_dir(), &target, &settings, user, CUT_LIMIT).await?;
        standby::calm_down(&postmaster, self.data_dir(), &settings, &self.user).await?;
        self.facts().upstream = None;
        Ok(())
    }

    async fn cut(&self) -> Result<WalPosition, LocalError> {
        let Some(postmaster) = Postmaster::find(self.data_dir())? else {
            return Err(LocalError::Stale("the postmaster is gone".to_owned()));
        };
        let settings = self.settings(None, self.minimums().await?)?;
        let identity =
            standby::revoke(&postmaster, self.data_dir(), &self.target(), &settings, &self.user, CUT_LIMIT)
                .await?;
        standby::calm_down(&postmaster, self.data_dir(), &settings, &self.user).await?;
        // It may have been started under a lease for an epoch that is over; it was never promoted
        // (that is noted before the promotion is asked for), so that it needs none.
        self.lease.quiet().await;
        self.guardian.page().clear_lease();
        self.guardian.release().await?;
        let seen = timeline::seen_timelines(self.data_dir())?.last().copied().unwrap_or_default();
        let mut facts = self.facts();
        facts.upstream = None;
        facts.highest_timeline = facts.highest_timeline.max(identity.position.timeline).max(seen);
        Ok(identity.position)
    }

    /// Returns what the lease thread is to renew for an epoch that this member owns; nothing when it is over.
    pub fn lease_target(&self, epoch: Epoch) -> Option<LeaseTarget> {
        let status = self.shared.consensus.status();
        let (timing, timing_version) = self.shared.counted(epoch)?;
        Some(LeaseTarget {
            epoch,
            timing,
            timing_version,
            voters: status.configs.clone(),
            membership: status.membership_index,
            addresses: status.nodes.iter().map(|(node, peer)| (*node, peer.addr.clone())).collect(),
            me: self.shared.me(),
            identity: self.shared.identity(),
        })
    }

    /// Makes the standby primary of the epoch that this member was granted.
    ///
    /// # Errors
    /// The epoch is over, the end of the WAL moved, no majority renews, or the promotion failed.
    pub async fn promote(&self, grant: &Grant) -> Result<(), LocalError> {
        let epoch = grant.epoch;
        self.entitled(grant)?;
        let Some(postmaster) = Postmaster::find(self.data_dir())? else {
            return Err(LocalError::Stale("the postmaster is gone".to_owned()));
        };
        // The gate is closed and the timeline planned while the first renewal is under way.
        self.lease.set_target(self.lease_target(epoch));
        // Before anything that takes part in the promotion: a fence or a Revoke cuts it short.
        self.agree(epoch).await?;
        self.entitled(grant)?;
        let reload = self.write_gate(Gate::Closed).await?;
        let version = self.settings_version();
        let (policy, settings) = self.primary_settings(epoch).await?;
        self.may_be_empty(&policy);
        let reload = self.write_settings(settings).await? || reload;
        if reload {
            postmaster.reload_and_settle(&self.target(), SQL_LIMIT).await?;
        }
        self.configured(version);
        let session = Session::open(&self.target(), SQL_LIMIT).await?;
        sync::checkpointer_is_up(&session, SQL_LIMIT).await?;
        self.commits_will_wait(&policy, &session).await?;
        drop(session);
        self.facts().gate_open = false;
        self.reserve(grant).await?;
        let here = identify_system(&(&self.target()).into(), SQL_LIMIT).await?.position;
        if here != grant.base {
            self.lease.set_target(None);
            return Err(LocalError::Stale(format!("the wal ends at {here}, not at {}", grant.base)));
        }
        self.lease_live(epoch).await?;
        self.entitled(grant)?;
        if self.shared.hard.get().unfinished().is_some() {
            self.lease.set_target(None);
            return Err(LocalError::Stale("a rewind or clone is not finished".to_owned()));
        }
        self.update_hard(move |hard| {
            hard.was_owner = Some(epoch);
            // The Grant rests on what is here, to the byte: a power cut must not make it half a copy again.
            hard.sentinel = None;
            hard.floor = None;
        })
        .await?;
        self.facts().primary_epoch = epoch;
        // The lease must still hold now: the guardian counts by the page from its answer on.
        let report = self.guardian.kick().await?;
        match report.lease() {
            PageLease::Until { epoch: leased, .. }
                if leased == epoch.0 && !report.lease().expired(self.shared.clock.now()) => {}
            PageLease::Until { .. } | PageLease::NotNeeded => {
                return Err(LocalError::Stale("the guardian does not hold the lease".to_owned()));
            }
        }
        self.promoted_under(&policy);
        postmaster.promote(self.data_dir(), &self.target(), &self.user, PROMOTE_LIMIT).await?;
        self.check_timeline(grant).await
    }

    /// Makes the promotion take the planned timeline.
    async fn reserve(&self, grant: &Grant) -> Result<(), LocalError> {
        let (data_dir, user) = (self.data_dir().to_owned(), self.user.clone());
        let (from, plan) = (grant.base.timeline, grant.timeline);
        self.on_files(move || timeline::reserve_timelines(&data_dir, from, plan, &user)).await
    }

    /// Whether this member may act as the owner of this very Grant.
    fn entitled(&self, grant: &Grant) -> Result<(), LocalError> {
        self.still(grant.epoch)?;
        if self.shared.hard.get().promise != grant.epoch {
            return Err(LocalError::Stale("this member did not promise the epoch".to_owned()));
        }
        let current = self.state(|state| state.current_grant().cloned());
        if current.as_ref() == Some(grant) {
            Ok(())
        } else {
            Err(LocalError::Stale("the grant is not the newest".to_owned()))
        }
    }

    pub(super) async fn lease_live(&self, epoch: Epoch) -> Result<(), LocalError> {
        let mut changes = self.lease.changes();
        let clock = self.shared.clock;
        let live = changes.wait_for(|status| status.live(epoch, clock.now()));
        match tokio::time::timeout(LEASE_LIMIT, live).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(LocalError::Stale("the lease thread has ended".to_owned())),
            Err(_) => Err(LocalError::TooLong { what: "a majority's renewal", limit: LEASE_LIMIT }),
        }
    }

    async fn check_timeline(&self, grant: &Grant) -> Result<(), LocalError> {
        let session = Session::open(&self.target(), SQL_LIMIT).await?;
        let sql = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
        let row = session.query_one("read the timeline", sql, &[], SQL_LIMIT).await?;
        let text: String = row.get(0);
        let found = u32::from_str_radix(&text, 16).map(Timeline::new).unwrap_or_default();
        if found == grant.timeline {
            Ok(())
        } else {
            self.fence().await?;
            Err(LocalError::Stale(format!("the promotion made timeline {found}, not {}", grant.timeline)))
        }
    }

    /// Writes the epoch's marker and lets clients in once it is durable and the lease is live; comes back
    /// after a while when it is not durable yet.
    ///
    /// # Errors
    /// The epoch is over, or Postgres does not answer: ask again.
    pub async fn open_gate(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        if self.state(|state| state.history.is_empty()) {
            self.ensure_roles().await?;
        }
        let session = Session::open(&self.target(), SQL_LIMIT).await?;
        if !self.marker_is_durable(epoch, &session).await? {
            return Ok(());
        }
        self.lease_live(epoch).await?;
        self.still(epoch)?;
        if self.write_gate(Gate::Open).await?
            && let Some(postmaster) = Postmaster::find(self.data_dir())?
        {
            postmaster.reload_and_settle(&self.target(), SQL_LIMIT).await?;
        }
        self.facts().gate_open = true;
        Ok(())
    }

    /// Makes the roles that standbys and pg_rewind connect as, and the application's database.
    async fn ensure_roles(&self) -> Result<(), LocalError> {
        let secret = self.replication_password()?;
        let login = |name: &str| Login { name: name.to_owned(), password: secret.clone() };
        let session = roles::open_session(&self.target(), SQL_LIMIT).await?;
        roles::ensure_roles(&session, &login(REPLICATOR), &login(REWINDER), SQL_LIMIT).await?;
        if let Some(database) = &self.shared.config.bootstrap.database {
            let password = match &database.password_file {
                Some(path) => std::fs::read_to_string(path)
                    .map_err(|error| LocalError::Stale(format!("read {}: {error}", path.display())))?,
                None => String::new(),
            };
            let owner = Login { name: database.owner.clone(), password: password.trim_end().to_owned() };
            roles::ensure_database(&session, &database.name, &owner, SQL_LIMIT).await?;
        }
        Ok(())
    }

    /// After the gate is open: the checkpoint that a rewind from here needs, roles, slots.
    ///
    /// # Errors
    /// It did not come to pass; the next round tries again.
    pub async fn settle_in(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        // First what waits for no standby: a member that has to be rewound may be the one waited for.
        let session = Session::open(&self.target(), SQL_LIMIT).await?;
        marker::checkpoint(&session, CHECKPOINT_LIMIT).await?;
        self.keep_slots().await?;
        self.ensure_roles().await
    }

    /// Gives the roles the passwords that are in the files now, after a reload. Who streams already goes on.
    ///
    /// # Errors
    /// It did not come to pass; it stays due.
    pub async fn renew_roles(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        self.facts().roles_due = false;
        let done = self.ensure_roles().await;
        if done.is_err() {
            self.facts().roles_due = true;
        }
        done
    }

    /// Keeps one physical slot for each other data member; on a standby moves them along.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn keep_slots(&self) -> Result<(), LocalError> {
        let Some(probe) = self.facts().probe.clone() else { return Ok(()) };
        let me = self.shared.me();
        let wanted = self.state(|state| {
            state.data_members().filter(|m| m.node != me).map(|m| slot_name(&m.name)).collect()
        });
        let plan = plan_slots(&probe.slots, &wanted);
        let advance = match &probe.role {
            RoleFacts::Primary(_) => None,
            RoleFacts::Standby(standby) => standby
                .replayed
                .zip(standby.redo)
                // Not past where a rewind to this member would begin: a former primary needs that WAL.
                .map(|(replayed, redo)| replayed.min(redo).min(self.slowest())),
        };
        let idle = plan.create.is_empty() && plan.drop.is_empty();
        let behind = advance.is_some_and(|to| {
            probe.slots.iter().any(|s| s.restart.is_some_and(|restart| to.bytes_since(restart) >= SEGMENT))
        });
        if idle && !behind {
            return Ok(());
        }
        let session = Session::open(&self.target(), SQL_LIMIT).await?;
        slots::apply_slots(&session, &plan, SQL_LIMIT).await?;
        if let Some(to) = advance {
            slots::advance_slots(&session, &probe.slots, to, SEGMENT, SQL_LIMIT).await?;
        }
        Ok(())
    }

    /// Returns how far every data member is known to be: WAL before it is needed by nobody.
    fn slowest(&self) -> Lsn {
        let nodes: Vec<_> = self.state(|state| state.data_members().map(|m| m.node).collect());
        let table = self.shared.table.borrow();
        nodes
            .iter()
            .map(|node| {
                let report = table.get(node).map(|received| &received.report.instance);
                report.and_then(Instance::position).map_or(Lsn::new(0), |p| p.lsn)
            })
            .min()
            .unwrap_or_default()
    }

    /// Hands over: a checkpoint first, so that the shutdown's own is short, then a shutdown in order,
    /// which sends everything to the standbys. The lease goes on until nothing runs any more.
    ///
    /// # Errors
    /// The epoch is over, or it could not be stopped.
    pub async fn hand_over(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        // Only to make the shutdown short: without it the handover still loses nothing.
        if let Ok(session) = Session::open(&self.target(), SQL_LIMIT).await
            && let Err(error) = marker::checkpoint(&session, CHECKPOINT_LIMIT).await
        {
            tracing::warn!(%error, "no checkpoint before the handover");
        }
        self.before_stop().await;
        crate::pooler::pause_everywhere(&self.shared, epoch).await;
        self.still(epoch)?;
        self.stop_primary().await?;
        self.lease.set_target(None);
        Ok(())
    }
}

/// How far a slot may be behind on a standby before it is moved: the default size of a segment.
const SEGMENT: u64 = 16 << 20;
