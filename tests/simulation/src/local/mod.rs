//! What an effect does to the model of Postgres: plays `runtime/local`, step by step in the same
//! order, with the waits in between in which anything may happen.

mod copy;
mod identity;
mod policy;
mod serve;
mod start;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone::decide::Effect;
use rhone::guardian::{Lease as PageLease, SharedPage};
use rhone::runtime::clock::BootTime;
use rhone::runtime::lease::Lease;
use rhone::runtime::shared::Shared;
use rhone::view::{Instance, Revoked, Stream};
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::state::ClusterState;
use rhone_consensus::store::hard::HardState;
use rhone_pgctl::wal::Timeline;

pub use self::identity::Ident;
use crate::machine::{Machine, Run};
use crate::mutant::Mutant;
use crate::plant::Plant;

const LEASE_LIMIT: Duration = Duration::from_secs(10);

/// What an effect leaves behind besides the changed instance.
#[derive(Clone, Debug)]
pub enum Done {
    /// Nothing.
    Look,
    /// The answer to a Revoke.
    Revoked(Revoked),
}

/// What is remembered between two looks; gone with the process.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whose WAL it is set to receive.
    pub upstream: Option<NodeId>,
    /// Whether clients are let in.
    pub gate_open: bool,
    /// The epoch that it was promoted for.
    pub primary_epoch: Epoch,
    /// The epoch under whose lease it was started.
    pub lease_epoch: Epoch,
    /// How often pg_rewind failed in a row.
    pub rewinds_failed: u32,
    /// Why the last start failed, and until when.
    pub start_failed: Option<(String, BootTime)>,
    /// How many starts failed in a row.
    pub starts_failed: u32,
    /// The policy that the settings name.
    pub policy: Option<LogIndex>,
    /// Since when they do.
    pub policy_since: BootTime,
    /// The policy that is known to be in force.
    pub secured: Option<LogIndex>,
    /// Whether commits may have waited for nobody since the last proof to the contrary.
    pub empty_names: bool,
    /// The epoch's marker, and the end of it.
    pub marker: Option<(Epoch, usize)>,
    /// Who streams from this primary, and when it was last heard.
    pub streams: BTreeMap<DataId, Stream>,
    /// When each was last heard.
    pub replies: BTreeMap<DataId, u64>,
}

/// The local Postgres.
pub struct Local {
    /// The ground.
    pub plant: Arc<Plant>,
    /// What the process's tasks share.
    pub shared: Arc<Shared>,
    /// The lease.
    pub lease: Lease,
    /// The guardian's page.
    pub page: SharedPage,
    index: usize,
    facts: Mutex<Facts>,
}

/// Carries out one effect, as `runtime/effects.rs`.
pub async fn carry_out(local: &Arc<Local>, effect: Effect, epoch: Epoch, able: bool) -> Result<Done, String> {
    match effect {
        Effect::InitDb => local.init_db().await?,
        Effect::Start(None) => local.start_as_owner(epoch).await?,
        Effect::Start(Some(node)) => {
            local.promise_epoch(epoch).await?;
            local.start(Some(node)).await?;
        }
        Effect::Follow(node) => {
            local.promise_epoch(epoch).await?;
            local.follow(node).await?;
        }
        Effect::Revoke => return local.revoke(epoch, able).await.map(Done::Revoked),
        Effect::Promote => {
            let grant = local.state(|state| state.current_grant().filter(|g| g.epoch == epoch).cloned());
            local.promote(&grant.ok_or("the grant is gone")?).await?;
        }
        Effect::SetPolicy => local.set_policy(epoch).await?,
        Effect::OpenGate => local.open_gate(epoch).await?,
        Effect::Fence => local.fence().await,
        Effect::HandOver => local.hand_over(epoch).await?,
        Effect::Stop => local.stop().await,
        Effect::Rewind(node) => local.rewind_to(epoch, node).await?,
        Effect::Clone(node) => local.copy_from(epoch, node).await?,
    }
    Ok(Done::Look)
}

impl Local {
    /// Makes the handle.
    pub fn new(plant: Arc<Plant>, index: usize, shared: Arc<Shared>, lease: Lease, page: SharedPage) -> Self {
        Self { plant, shared, lease, page, index, facts: Mutex::default() }
    }

    /// Returns the machine.
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.plant.machine(self.index)
    }

    /// Returns the remembered facts.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line of this member's.
    pub fn say(&self, text: &str) {
        self.plant.say(format!("n{} {text}", self.index + 1));
    }

    fn mutant(&self) -> Mutant {
        self.plant.mutant
    }

    /// Reads the applied state.
    pub fn state<T>(&self, read: impl FnOnce(&ClusterState) -> T) -> T {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        read(&applied.state)
    }

    /// Returns the promise.
    pub fn promise(&self) -> Epoch {
        if self.mutant() == Mutant::NoPromise {
            // As if the log alone said what was promised.
            return self.state(|state| state.epoch);
        }
        self.shared.hard.get().promise
    }

    fn boot(&self) -> BootTime {
        self.shared.clock.now()
    }

    /// Takes over what a former process left: a primary goes on under its own epoch.
    pub fn adopt(&self) {
        let (runs, lease) = {
            let mut machine = self.machine();
            let boot = self.boot();
            if !machine.guard.alive {
                // A guardian is started; what the dead one left behind is killed.
                machine.kill();
                machine.guard = crate::machine::Guard::default();
            }
            machine.kick(boot);
            (machine.runs(), machine.guard.lease)
        };
        if !runs {
            self.page.set_lease(0, BootTime::ZERO, BootTime::ZERO);
            return;
        }
        if let PageLease::Until { epoch, .. } = lease
            && epoch > 0
        {
            let epoch = Epoch(epoch);
            {
                let (policy, gate) = {
                    let machine = self.machine();
                    (machine.policy, machine.gate)
                };
                let now = self.boot();
                let mut facts = self.facts();
                facts.primary_epoch = epoch;
                facts.gate_open = gate;
                facts.policy = policy;
                facts.policy_since = now;
                facts.empty_names = true;
            }
            self.say(&format!("adopts a primary of {epoch}"));
            if self.promise() <= epoch {
                self.lease.set_target(self.lease_target(epoch));
            }
        }
    }

    /// Forgets what was so of an instance that has ended.
    pub fn forget(&self) {
        let mut facts = self.facts();
        facts.primary_epoch = Epoch(0);
        facts.lease_epoch = Epoch(0);
        facts.gate_open = false;
        facts.upstream = None;
        facts.policy = None;
        facts.secured = None;
        facts.marker = None;
        facts.streams.clear();
        facts.replies.clear();
    }

    /// Looks at the instance.
    pub fn observe(&self) -> Instance {
        let (primary, leased, upstream, gate_open) = {
            let facts = self.facts();
            (facts.primary_epoch, facts.lease_epoch, facts.upstream, facts.gate_open)
        };
        let mut machine = self.machine();
        if machine.guard.frozen.is_some() && machine.runs() {
            return Instance::Frozen { epoch: primary.max(leased) };
        }
        if machine.run == Run::Stopped {
            machine.sync_stopped();
        }
        let Some(data) = &machine.data else { return Instance::Absent };
        match machine.run {
            Run::Stopped => {
                let whole = data.wal.len() >= data.needs;
                let position = whole.then(|| data.position(data.wal.len()));
                Instance::Stopped { position, clean: data.clean, primary: data.primary }
            }
            Run::Starting(_) => Instance::Starting,
            Run::Standby => Instance::Standby {
                position: data.position(data.flushed),
                upstream,
                streaming: machine.streaming,
                idle_ms: if machine.streaming { 0 } else { (self.plant.now() - machine.heard) / 1_000_000 },
                wal_gone: false,
            },
            Run::Primary => {
                let mut position = data.position(data.flushed);
                position.timeline = Timeline::new(data.timeline);
                Instance::Primary { epoch: primary, position, gate_open }
            }
        }
    }

    /// Returns what a standby calls itself now.
    fn own_standby_name(&self) -> DataId {
        self.shared.hard.get().data.map_or(DataId(0), |record| record.id)
    }

    /// Returns the highest timeline in the data directory.
    pub fn highest_timeline(&self) -> Timeline {
        Timeline::new(self.machine().data.as_ref().map_or(0, |data| data.timeline))
    }

    /// Returns why the instance does not start, while that is not to be tried again.
    pub fn start_failed(&self) -> Option<String> {
        let now = self.boot();
        self.facts().start_failed.as_ref().filter(|(_, until)| now < *until).map(|(why, _)| why.clone())
    }

    /// Takes note of a start that failed.
    pub fn note_start_failed(&self, why: &str) {
        let now = self.boot();
        let mut facts = self.facts();
        facts.starts_failed += 1;
        if facts.starts_failed >= 2 {
            let wait = Duration::from_secs(10 << facts.starts_failed.saturating_sub(2).min(6));
            facts.start_failed = Some((why.to_owned(), now.saturating_add(wait)));
        }
    }

    /// Refuses when the epoch is not the newest that is known here.
    pub fn still(&self, epoch: Epoch) -> Result<(), String> {
        if self.mutant() == Mutant::NoRecheck {
            return Ok(());
        }
        let held = self.shared.voter.log_held().1;
        let newest = held.max(self.promise()).max(self.state(|state| state.epoch));
        if newest > epoch { Err(format!("epoch {newest} is known")) } else { Ok(()) }
    }

    /// Changes the hard state; durable when it returns.
    pub async fn update_hard(&self, change: impl FnOnce(&mut HardState)) -> Result<(), String> {
        self.shared.hard.update(change).map_err(|error| error.to_string())?;
        self.plant.disks[self.index].durable().await;
        Ok(())
    }

    /// Promises an epoch, whatever else is going on.
    pub async fn promise_only(&self, epoch: Epoch) -> Result<(), String> {
        if self.mutant() == Mutant::NoPromise {
            return Ok(());
        }
        self.update_hard(|hard| hard.promise = hard.promise.max(epoch)).await
    }

    async fn promise_epoch(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        if self.promise() < epoch {
            self.promise_only(epoch).await?;
        }
        self.still(epoch)
    }
}
