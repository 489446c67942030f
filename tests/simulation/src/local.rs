//! What an effect does to the model of Postgres: plays `runtime/local`, step by step in the same
//! order, with the waits in between in which anything may happen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone::decide::Effect;
use rhone::guardian::{Lease as PageLease, SharedPage};
use rhone::runtime::clock::BootTime;
use rhone::runtime::lease::{Lease, LeaseTarget};
use rhone::runtime::shared::Shared;
use rhone::view::{Instance, Revoked, Stream};
use rhone_consensus::command::Grant;
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::state::ClusterState;
use rhone_consensus::store::hard::{DataRecord, HardState, Sentinel, SentinelKind};
use rhone_pgctl::wal::{Timeline, WalPosition};

use crate::identity::Seen;
use crate::machine::{Data, Machine, Record, Run};
use crate::mutant::Mutant;
use crate::node::page_live;
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
    /// A rewind or clone was finished in this life.
    pub copied: bool,
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
        let machine = self.machine();
        if machine.guard.frozen.is_some() && machine.runs() {
            return Instance::Frozen { epoch: primary.max(leased) };
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

    async fn init_db(&self) -> Result<(), String> {
        tokio::time::sleep(self.plant.some(200, 800)).await;
        let record = Record { timeline: 1, id: self.plant.row() };
        let data = Data {
            wal: vec![record],
            flushed: 1,
            needs: 0,
            clean: true,
            primary: true,
            timeline: 1,
            ident: None,
        };
        self.machine().data = Some(data);
        Ok(())
    }

    async fn clear_the_way(&self) {
        if self.machine().runs() {
            self.machine().kill();
            tokio::time::sleep(self.plant.some(5, 30)).await;
        }
    }

    /// Waits until a majority renews.
    async fn lease_live(&self, epoch: Epoch) -> Result<(), String> {
        let mut changes = self.lease.changes();
        let clock = self.shared.clock;
        let live = changes.wait_for(|status| status.live(epoch, clock.now()));
        match tokio::time::timeout(LEASE_LIMIT, live).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the lease has ended".to_owned()),
            Err(_) => Err("no majority renews".to_owned()),
        }
    }

    /// Returns what is to be renewed.
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

    async fn start_as_owner(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        self.clear_the_way().await;
        self.lease.set_target(self.lease_target(epoch));
        {
            let live = self.lease_live(epoch);
            tokio::pin!(live);
            loop {
                // The lease is renewed only beside a guardian that lives.
                self.machine().kick(self.boot());
                if let Ok(result) = tokio::time::timeout(Duration::from_millis(250), &mut live).await {
                    result?;
                    break;
                }
            }
        }
        self.machine().kick(self.boot());
        self.still(epoch)?;
        self.facts().lease_epoch = epoch;
        self.start_server(None).await
    }

    async fn start(&self, upstream: Option<NodeId>) -> Result<(), String> {
        self.lease.set_target(None);
        self.clear_the_way().await;
        self.lease.quiet().await;
        self.page.clear_lease();
        self.facts().lease_epoch = Epoch(0);
        self.start_server(upstream).await
    }

    async fn start_server(&self, upstream: Option<NodeId>) -> Result<(), String> {
        self.claim_again().await?;
        {
            let mut facts = self.facts();
            facts.primary_epoch = Epoch(0);
            facts.gate_open = upstream.is_some();
            facts.empty_names = false;
            facts.upstream = upstream;
        }
        let name = self.own_standby_name();
        let recovery = self.plant.some(30, 600);
        let now = self.plant.now();
        let ready = now + u64::try_from(recovery.as_nanos()).unwrap_or(0);
        {
            let mut machine = self.machine();
            if machine.data.is_none() || !machine.guard.alive {
                return Err("there is nothing to start".to_owned());
            }
            let boot = self.boot();
            machine.start(upstream, now, ready, boot);
            machine.gate = false;
            machine.standby_name = name;
        }
        for _ in 0..3000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match self.machine().run {
                Run::Starting(_) => {}
                Run::Stopped => return Err("the postmaster ended".to_owned()),
                Run::Standby | Run::Primary => {
                    let mut facts = self.facts();
                    (facts.starts_failed, facts.start_failed) = (0, None);
                    return Ok(());
                }
            }
        }
        Err("it does not accept connections".to_owned())
    }

    async fn follow(&self, node: NodeId) -> Result<(), String> {
        tokio::time::sleep(self.plant.some(1, 20)).await;
        let now = self.plant.now();
        let wait = self.plant.draw(100_000_000);
        let name = self.own_standby_name();
        {
            let mut machine = self.machine();
            machine.upstream = Some(node);
            machine.streaming = false;
            machine.heard = now;
            machine.connect_at = now + wait;
            machine.standby_name = name;
        }
        let mut facts = self.facts();
        facts.upstream = Some(node);
        facts.gate_open = true;
        Ok(())
    }

    /// Kills the instance.
    async fn fence(&self) {
        self.lease.set_target(None);
        tokio::time::sleep(self.plant.some(2, 30)).await;
        self.machine().kill();
        self.forget();
    }

    async fn stop(&self) {
        if self.machine().runs() {
            tokio::time::sleep(self.plant.some(20, 200)).await;
            let mut machine = self.machine();
            if machine.moves() {
                machine.shut_down()
            } else {
                machine.kill()
            }
            drop(machine);
            self.forget();
        }
    }

    async fn revoke(&self, epoch: Epoch, able: bool) -> Result<Revoked, String> {
        let promise = self.promise();
        if promise > epoch {
            return Err(format!("epoch {promise} was promised"));
        }
        self.lease.set_target(None);
        if promise < epoch {
            self.promise_only(epoch).await?;
        }
        self.claim_first().await?;
        let position = self.frozen_position().await?;
        let hard = self.shared.hard.get();
        let unfinished = hard.sentinel.is_some() && !self.facts().copied;
        let no_floor = self.mutant() == Mutant::NoFloor;
        let data = match self.look_at_identity() {
            Seen::Ours(data) => Some(data),
            Seen::Nothing | Seen::Unclaimed | Seen::Stranger => None,
        };
        let whole = (!unfinished && self.above_floor(hard.floor, position)) || no_floor;
        let counts = whole && data.is_some();
        let shown = position.filter(|_| counts);
        let words = shown.map_or_else(|| "nothing".to_owned(), |position| position.to_string());
        self.say(&format!("is revoked for {epoch} at {words}"));
        Ok(Revoked {
            epoch,
            position: shown,
            data: data.unwrap_or_default(),
            able: able && self.start_failed().is_none(),
            highest_timeline: self.highest_timeline(),
        })
    }

    fn above_floor(&self, floor: Option<WalPosition>, position: Option<WalPosition>) -> bool {
        let (Some(floor), Some(position)) = (floor, position) else { return true };
        self.state(|state| match (state.ledger.rank(position), state.ledger.rank(floor)) {
            (Some(position), Some(floor)) => position >= floor,
            (None, _) | (_, None) => false,
        })
    }

    async fn frozen_position(&self) -> Result<Option<WalPosition>, String> {
        let (run, moves) = {
            let machine = self.machine();
            (machine.run, machine.moves())
        };
        if run == Run::Standby && moves && self.facts().primary_epoch == Epoch(0) {
            return self.cut().await.map(Some);
        }
        if run != Run::Stopped {
            self.fence().await;
        }
        tokio::time::sleep(self.plant.some(1, 40)).await;
        let machine = self.machine();
        if machine.runs() {
            return Err("the instance runs".to_owned());
        }
        let Some(data) = &machine.data else { return Ok(None) };
        Ok((data.wal.len() >= data.needs).then(|| data.position(data.wal.len())))
    }

    async fn cut(&self) -> Result<WalPosition, String> {
        let streams_on = self.mutant() == Mutant::StreamsOn;
        tokio::time::sleep(self.plant.some(5, 40)).await;
        if !streams_on {
            let mut machine = self.machine();
            machine.upstream = None;
            machine.streaming = false;
            // The walreceiver flushes what it has before it is gone.
            if let Some(data) = &mut machine.data {
                data.flushed = data.wal.len();
            }
        }
        tokio::time::sleep(self.plant.some(1, 10)).await;
        self.lease.quiet().await;
        self.page.clear_lease();
        let boot = self.boot();
        let mut machine = self.machine();
        machine.release(boot);
        if machine.run != Run::Standby {
            return Err("it is no standby any more".to_owned());
        }
        let position = machine.data.as_ref().map(|data| data.position(data.flushed));
        drop(machine);
        if !streams_on {
            self.facts().upstream = None;
        }
        position.ok_or_else(|| "no data".to_owned())
    }

    fn entitled(&self, grant: &Grant) -> Result<(), String> {
        self.still(grant.epoch)?;
        if self.promise() != grant.epoch {
            return Err("this member did not promise the epoch".to_owned());
        }
        if self.mutant() != Mutant::NoRecheck && self.state(|state| state.current_grant() != Some(grant)) {
            return Err("the grant is not the newest".to_owned());
        }
        Ok(())
    }

    async fn promote(&self, grant: &Grant) -> Result<(), String> {
        let epoch = grant.epoch;
        self.entitled(grant)?;
        if self.machine().run != Run::Standby {
            return Err("the postmaster is gone".to_owned());
        }
        self.lease.set_target(self.lease_target(epoch));
        self.machine().gate = false;
        self.facts().gate_open = false;
        tokio::time::sleep(self.plant.some(2, 30)).await;
        let policy = self.policy(epoch)?;
        self.may_be_empty(&policy);
        self.write_names(&mut self.machine(), &policy);
        self.answers().await?;
        self.checkpointer_is_up().await?;
        self.commits_will_wait(&policy).await?;
        let here = self.machine().data.as_ref().map(|data| data.position(data.wal.len()));
        if here != Some(grant.base) {
            self.lease.set_target(None);
            return Err(format!("the wal ends at {here:?}, not at {}", grant.base));
        }
        self.lease_live(epoch).await?;
        self.entitled(grant)?;
        if self.shared.hard.get().sentinel.is_some() && !self.facts().copied {
            self.lease.set_target(None);
            return Err("a rewind or clone is not finished".to_owned());
        }
        self.update_hard(|hard| {
            hard.was_owner = Some(epoch);
            hard.sentinel = None;
            hard.floor = None;
        })
        .await?;
        {
            let mut facts = self.facts();
            facts.copied = false;
            facts.primary_epoch = epoch;
        }
        {
            let boot = self.boot();
            let mut machine = self.machine();
            machine.kick(boot);
            if !page_live(machine.guard.lease, epoch, boot) {
                return Err("the guardian does not hold the lease".to_owned());
            }
        }
        {
            let now = self.boot();
            let mut facts = self.facts();
            facts.policy = Some(policy.number);
            facts.policy_since = now;
            facts.secured = Some(policy.number);
        }
        tokio::time::sleep(self.plant.some(15, 150)).await;
        let planned = if self.mutant() == Mutant::OwnTimeline {
            self.highest_timeline().get() + 1
        } else {
            grant.timeline.get()
        };
        let row = self.plant.row();
        let mut machine = self.machine();
        if machine.run != Run::Standby || !machine.moves() {
            return Err("the promotion did not end".to_owned());
        }
        machine.run = Run::Primary;
        machine.upstream = None;
        machine.streaming = false;
        machine.epoch = epoch;
        machine.marker = None;
        if let Some(data) = &mut machine.data {
            data.timeline = planned;
        }
        machine.write(row);
        Ok(())
    }

    async fn open_gate(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        let hasty = self.mutant() == Mutant::GateWithoutMarker;
        if !hasty {
            let known = self.facts().marker.filter(|(of, _)| *of == epoch).map(|(_, end)| end);
            let end = if let Some(end) = known {
                end
            } else {
                self.answers().await?;
                let row = self.plant.row();
                let mut machine = self.machine();
                if machine.run != Run::Primary {
                    return Err("it is no primary".to_owned());
                }
                let end = machine.write(row);
                drop(machine);
                self.facts().marker = Some((epoch, end));
                end
            };
            if !self.marker_is_durable(epoch, end).await? {
                return Ok(());
            }
            self.machine().marker = Some(end);
            self.lease_live(epoch).await?;
        }
        self.still(epoch)?;
        let mut machine = self.machine();
        if machine.run != Run::Primary {
            return Err("it is no primary any more".to_owned());
        }
        machine.gate = true;
        drop(machine);
        self.facts().gate_open = true;
        Ok(())
    }

    async fn hand_over(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        tokio::time::sleep(self.plant.some(10, 100)).await;
        self.still(epoch)?;
        self.machine().gate = false;
        let me = self.shared.me();
        // A shutdown in order waits until every walsender has sent all, and ends those that hang.
        for _ in 0..150 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (end, flushed) = {
                let machine = self.machine();
                if machine.run != Run::Primary {
                    return Err("it ended otherwise".to_owned());
                }
                machine.data.as_ref().map_or((0, 0), |data| (data.wal.len(), data.flushed))
            };
            let behind = (0..self.plant.count()).filter(|other| *other != self.index).any(|other| {
                let machine = self.plant.machine(other);
                machine.streaming
                    && machine.upstream == Some(me)
                    && machine.data.as_ref().is_some_and(|data| data.wal.len() < end)
            });
            if flushed == end && !behind {
                break;
            }
        }
        {
            let mut machine = self.machine();
            if machine.run != Run::Primary || !machine.moves() {
                return Err("it could not be shut down".to_owned());
            }
            machine.shut_down();
        }
        self.forget();
        self.lease.set_target(None);
        Ok(())
    }

    /// Returns the machine of a source that serves this epoch's timeline, and how far it is.
    fn source(&self, node: NodeId) -> Result<(usize, WalPosition), String> {
        let other = self.plant.index_of(node).ok_or("no such member")?;
        if !self.plant.net.linked(self.index, other) {
            return Err("the source cannot be reached".to_owned());
        }
        let machine = self.plant.machine(other);
        if machine.run != Run::Primary || !machine.moves() {
            return Err("the source serves nobody".to_owned());
        }
        let Some(data) = &machine.data else { return Err("the source has no data".to_owned()) };
        let granted = self.state(|state| state.current_grant().map(|grant| grant.timeline));
        if granted != Some(Timeline::new(data.timeline)) {
            return Err(format!("the source is on timeline {}", data.timeline));
        }
        Ok((other, data.position(data.flushed)))
    }

    async fn begin_copy(
        &self,
        epoch: Epoch,
        kind: SentinelKind,
        floor: Option<WalPosition>,
        data: DataRecord,
    ) -> Result<(), String> {
        self.facts().copied = false;
        let promise = self.mutant() != Mutant::NoPromise;
        self.update_hard(|hard| {
            if promise {
                hard.promise = hard.promise.max(epoch);
            }
            hard.sentinel = Some(Sentinel { epoch, kind, source: String::new() });
            hard.floor = floor;
            hard.data = Some(data);
        })
        .await
    }

    async fn copy_from(&self, epoch: Epoch, node: NodeId) -> Result<(), String> {
        self.still(epoch)?;
        self.source(node)?;
        tokio::time::sleep(self.plant.some(300, 3000)).await;
        let (other, _) = self.source(node)?;
        let mut copy = self.plant.machine(other).data.clone().ok_or("the source has no data")?;
        copy.wal.truncate(copy.flushed);
        copy.needs = copy.wal.len();
        (copy.clean, copy.primary) = (false, false);
        tokio::time::sleep(self.plant.some(1, 50)).await;
        let (_, floor) = self.source(node)?;
        self.still(epoch)?;
        let (ident, record) = self.draw_ident();
        copy.ident = Some(ident);
        self.begin_copy(epoch, SentinelKind::Clone, Some(floor), record).await?;
        self.stop().await;
        self.plant.gives_up(self.index);
        tokio::time::sleep(self.plant.some(1, 30)).await;
        self.machine().data = Some(copy);
        let mut facts = self.facts();
        facts.copied = true;
        facts.rewinds_failed = 0;
        facts.start_failed = None;
        Ok(())
    }

    async fn rewind_to(&self, epoch: Epoch, node: NodeId) -> Result<(), String> {
        self.still(epoch)?;
        self.source(node)?;
        self.stop().await;
        let cut_short = self.shared.hard.get().sentinel.is_some_and(|s| s.kind == SentinelKind::Rewind);
        if cut_short && !self.facts().copied {
            self.facts().rewinds_failed = u32::MAX;
            return Err("an earlier rewind was cut short: it must be cloned".to_owned());
        }
        let floor = self.state(|state| {
            let timeline = state.current_grant().map(|grant| grant.timeline);
            timeline.and_then(|timeline| state.ledger.floor_after_rewind(timeline))
        });
        self.still(epoch)?;
        let (ident, record) = self.draw_ident();
        if let Some(data) = &mut self.machine().data {
            data.ident = Some(ident);
        }
        self.begin_copy(epoch, SentinelKind::Rewind, floor, record).await?;
        self.plant.gives_up(self.index);
        tokio::time::sleep(self.plant.some(200, 3000)).await;
        let (other, _) = self.source(node).inspect_err(|_| {
            let mut facts = self.facts();
            facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
        })?;
        let theirs = self.plant.machine(other).data.clone().ok_or("the source has no data")?;
        let back = usize::try_from(self.plant.draw(4)).unwrap_or(0);
        let mut machine = self.machine();
        let Some(data) = &mut machine.data else { return Err("the data directory is gone".to_owned()) };
        // By numbers, as pg_rewind: where the last common timeline ends on either side.
        let common = data.wal.iter().zip(&theirs.wal).take_while(|(a, b)| a.timeline == b.timeline).count();
        data.wal.truncate(common.saturating_sub(back).max(1));
        data.flushed = data.wal.len();
        data.timeline = data.wal.last().map_or(1, |record| record.timeline);
        data.needs = theirs.flushed;
        (data.clean, data.primary) = (true, false);
        drop(machine);
        let mut facts = self.facts();
        facts.copied = true;
        if facts.start_failed.take().is_some() {
            facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
        }
        Ok(())
    }

    /// Once the standby streams past its floor, what was begun is finished.
    pub async fn finish_copy(&self, position: WalPosition) {
        let hard = self.shared.hard.get();
        if hard.sentinel.is_none() && hard.floor.is_none() {
            return;
        }
        let reached = hard
            .floor
            .is_none_or(|floor| self.state(|state| state.ledger.rank(position) >= state.ledger.rank(floor)));
        if !reached {
            return;
        }
        let seen = hard.clone();
        let done = self.update_hard(|now| {
            if now.sentinel == seen.sentinel && now.floor == seen.floor {
                now.sentinel = None;
                now.floor = None;
            }
        });
        if done.await.is_ok() && self.shared.hard.get().sentinel.is_none() {
            let mut facts = self.facts();
            facts.rewinds_failed = 0;
            facts.copied = false;
        }
    }
}
