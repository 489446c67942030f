//! The world: drives every member's time, carries packets, strikes, and watches.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Member};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::raft::PeerNode;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_consensus::state::{ClusterState, Phase};
use rhone_consensus::store::hard::HardState;

use crate::disk::Speed;
use crate::faults::{Due, Mix};
use crate::machine::{Commit, Data, Run};
use crate::mutant::Mutant;
use crate::net::{Link, Parcel};
use crate::plant::Plant;
use crate::postgres;
use crate::process::{End, Process, address};
use crate::random::Random;

/// One step of true time.
pub const TICK_NS: u64 = 5_000_000;

/// How many rows an asynchronous failover may leave behind, in this small world.
pub const MAX_LAG: u64 = 12;

/// How long a disk takes that nothing ails.
const FAST: Speed = Speed { least_us: 200, most_us: 4000 };

/// A network that nothing ails.
const QUICK: Link = Link { least_us: 100, most_us: 800, loss: 0 };

/// The world.
pub struct World {
    /// The ground.
    pub plant: Arc<Plant>,
    /// The supervisors that run.
    pub processes: Vec<Option<Process>>,
    /// The world's own chance.
    pub random: Random,
    /// What it may meet.
    pub mix: Mix,
    /// Whether a data directory was lost.
    pub data_lost: bool,
    /// When a person or a signal last asked for another owner.
    pub commanded: u64,
    settings: Settings,
    due: Vec<(u64, Due)>,
    boots: Vec<u32>,
    seen: Vec<(NodeId, u64)>,
    promises: Vec<(NodeId, Epoch)>,
    clients: Vec<u64>,
    lost: u32,
    images: Vec<Option<Data>>,
    phases: BTreeMap<(Epoch, u8), ()>,
    decided: Vec<String>,
}

impl World {
    /// Makes the world of a seed.
    pub fn new(seed: u64, mutant: Mutant, aloud: bool) -> Result<Self, String> {
        let mut random = Random::new(seed, 0);
        let mix = Mix::draw(&mut random);
        let (data, witnesses) = match random.below(100) {
            0..50 => (3, 0),
            50..80 => (2, 1),
            _ => (5, 0),
        };
        let sync = match random.below(100) {
            0..35 => SyncMode::Off,
            35..75 => SyncMode::Quorum,
            _ => SyncMode::Strict,
        };
        let count = data + witnesses;
        let plant = Plant::new(seed, mutant, data, witnesses, aloud).map_err(|error| error.to_string())?;
        let settings = Settings { max_lag_on_failover: MAX_LAG, sync, ..Settings::default() };
        plant.check().sync = sync != SyncMode::Off;
        plant.say(format!(
            "seed {seed}: {data} data members, {witnesses} witnesses, sync {}, {mix:?}",
            sync.name()
        ));
        let mut world = Self {
            plant: Arc::new(plant),
            processes: (0..count).map(|_| None).collect(),
            random,
            mix,
            data_lost: false,
            commanded: 0,
            settings,
            due: Vec::new(),
            boots: vec![0; count],
            seen: vec![(NodeId(0), 0); count],
            promises: vec![(NodeId(0), Epoch(0)); count],
            clients: vec![0; count],
            lost: 0,
            images: vec![None; count],
            phases: BTreeMap::new(),
            decided: vec![String::new(); count],
        };
        for index in 0..count {
            world.plant.disks[index].set_speed(FAST);
            world.start(index, true);
        }
        Ok(world)
    }

    // ---- members

    fn start(&mut self, index: usize, first: bool) {
        if self.processes[index].is_some() || !self.plant.machine(index).power {
            return;
        }
        self.boots[index] += 1;
        match Process::start(&self.plant, index, &self.settings, first) {
            Ok(process) => self.processes[index] = Some(process),
            Err(error) => self.plant.check().violated(format!("the simulation itself: {error}")),
        }
    }

    /// Takes an image of a machine's disk, as a backup tool does.
    pub fn take_image(&mut self, index: usize) {
        let mut image = self.plant.machine(index).data.clone();
        if let Some(data) = &mut image {
            data.wal.truncate(data.flushed);
            data.clean = false;
        }
        self.images[index] = image;
    }

    /// Puts that image in the place of the data directory; says whether there was one.
    pub fn restore_image(&mut self, index: usize) -> bool {
        let Some(mut image) = self.images[index].take() else { return false };
        if let Some(ident) = &mut image.ident {
            ident.file = self.random.next() | 1;
        }
        self.plant.machine(index).data = Some(image);
        true
    }

    /// Takes a machine's power, and with it all that was not durable.
    pub fn power_off(&mut self, index: usize) {
        self.processes[index] = None;
        self.plant.machine(index).lose_power();
        self.plant.disks[index].cut_power();
    }

    /// Puts something on the list, somewhere between the two from now, in milliseconds.
    pub fn later(&mut self, least_ms: u64, most_ms: u64, due: Due) {
        let at = self.plant.now() + self.random.between(least_ms, most_ms) * 1_000_000;
        self.due.push((at, due));
    }

    /// Returns whether another store or data directory may be lost: one at a time, and only while
    /// all others are there and well, so that no majority and no only copy is lost.
    pub fn may_lose(&mut self, index: usize) -> bool {
        let well = self.lost < 2 && self.converged();
        let others = (0..self.plant.count()).filter(|other| *other != index);
        let all = others.into_iter().all(|other| self.processes[other].is_some());
        if well && all {
            self.lost += 1;
        }
        well && all
    }

    /// Founds the cluster: the first member initialises Raft and proposes the first entry.
    fn found(&self) {
        let ups: Vec<_> = self.processes.iter().filter_map(|p| p.as_ref().and_then(Process::up)).collect();
        let (Some(process), Some(first)) = (&self.processes[0], ups.first().cloned()) else { return };
        let members: Vec<Member> = ups.iter().map(|up| up.shared.member()).collect();
        let nodes: BTreeMap<NodeId, PeerNode> = members
            .iter()
            .map(|m| {
                let node =
                    PeerNode { name: m.name.clone(), addr: m.address.clone(), incarnation: m.incarnation };
                (m.node, node)
            })
            .collect();
        let command = ClusterCommand::Found {
            cluster: crate::plant::CLUSTER.to_owned(),
            founder: first.shared.me(),
            members,
            settings: self.settings.clone(),
        };
        process.spawn(async move {
            drop(first.shared.consensus.initialize(nodes).await);
            while !first.shared.consensus.state().borrow().state.is_founded() {
                drop(first.shared.consensus.propose(command.clone(), Duration::from_secs(5)).await);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    // ---- time

    fn tick(&mut self) {
        let now = self.plant.now() + TICK_NS;
        self.plant.set_now(now);
        self.happen(now);
        self.carry();
        let count = self.plant.count();
        let begin = self.random.index(count);
        for step in 0..count {
            let index = (begin + step) % count;
            let nanos = self.plant.clocks[index].scaled(TICK_NS);
            match &mut self.processes[index] {
                Some(process) => process.run(&self.plant, index, nanos),
                None => self.plant.clocks[index].end(nanos),
            }
            self.buried(index);
        }
        self.unfenced();
        for step in 0..count {
            postgres::step(&self.plant, (begin + step) % count, self.settings.timing);
        }
        self.write(now);
        self.watch();
    }

    /// Where both who could fence are stopped or gone nobody does: a stated limit of asynchronous mode.
    fn unfenced(&self) {
        for index in 0..self.plant.data {
            let machine = self.plant.machine(index);
            let process = self.processes[index].as_ref();
            if machine.run == Run::Primary
                && machine.guard.stopped
                && process.is_none_or(|process| process.stopped)
            {
                let epoch = machine.epoch;
                self.plant.check().unfenced(index, epoch);
            }
        }
    }

    fn happen(&mut self, now: u64) {
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
        self.due = later;
        for (_, due) in due {
            self.end_of(due);
        }
    }

    fn end_of(&mut self, due: Due) {
        let count = self.plant.count();
        match due {
            Due::Power(index) => {
                if !self.plant.machine(index).power {
                    self.plant.say(format!("n{} has power again", index + 1));
                    let mut machine = self.plant.machine(index);
                    machine.power = true;
                    machine.guard = crate::machine::Guard::default();
                    drop(machine);
                    self.start(index, false);
                }
            }
            Due::Start(index) => self.start(index, false),
            Due::Continue(index) => {
                if let Some(process) = &mut self.processes[index] {
                    process.stopped = false;
                }
                let mut machine = self.plant.machine(index);
                machine.guard.stopped = false;
                machine.postgres_stopped = false;
            }
            Due::Join => {
                for from in 0..count {
                    for to in 0..count {
                        self.plant.net.join(from, to);
                    }
                }
            }
            Due::Quick => self.plant.net.set_link(QUICK),
            Due::Fast(index) => self.plant.disks[index].set_speed(FAST),
        }
    }

    /// Carries what has arrived.
    fn carry(&mut self) {
        while let Some(packet) = self.plant.net.arrived() {
            let to = packet.to;
            let Some(process) = &self.processes[to] else { continue };
            if process.stopped {
                self.plant.net.later(packet);
                continue;
            }
            match packet.parcel {
                Parcel::Answer(response, reply) => drop(reply.send(response)),
                Parcel::Call(request, reply) => {
                    let Some(up) = process.up() else { continue };
                    let (net, from) = (Arc::clone(&self.plant.net), packet.from);
                    process.spawn(async move {
                        if let Some(response) = up.serve(request).await {
                            net.send(to, from, Parcel::Answer(response, reply));
                        }
                    });
                }
                Parcel::Lost(_) => {}
            }
        }
    }

    /// Looks whether a process has ended; the service manager starts it again.
    fn buried(&mut self, index: usize) {
        let Some(end) = self.processes[index].as_ref().and_then(Process::ended) else { return };
        self.plant.say(format!("n{} ends: {end:?}", index + 1));
        self.processes[index] = None;
        if matches!(end, End::Node(crate::node::Ended::Left)) {
            self.later(500, 4000, Due::Start(index));
        } else {
            self.later(100, 600, Due::Start(index));
        }
    }

    /// Clients write to whoever takes it. One lives beside each member, and is cut off with it.
    fn write(&mut self, now: u64) {
        for client in 0..self.clients.len() {
            if now < self.clients[client] {
                continue;
            }
            self.clients[client] = now + self.random.between(40, 160) * 1_000_000;
            let count = self.plant.count();
            let begin = self.random.index(count);
            let found = (0..count)
                .map(|step| (begin + step) % count)
                .find(|server| self.plant.net.linked(client, *server) && self.plant.machine(*server).open());
            let Some(server) = found else { continue };
            let id = self.plant.row();
            let node = self.node_of(server);
            let mut machine = self.plant.machine(server);
            self.plant.check().let_in(server, node, &machine);
            let end = machine.write(id);
            if self.random.permille(20) {
                // It gives the wait up: its row is neither promised nor undone.
                continue;
            }
            machine.commits.push_back(Commit { end, id });
        }
    }

    fn node_of(&self, index: usize) -> NodeId {
        self.seen[index].0
    }

    // ---- what is seen

    fn watch(&mut self) {
        for index in 0..self.plant.count() {
            let Some(up) = self.processes[index].as_ref().and_then(Process::up) else { continue };
            let hard = up.shared.hard.get();
            self.promises_rise(index, &hard);
            let applied = up.shared.consensus.state().borrow().clone();
            let seen = (hard.node_id, applied.index.0);
            if self.seen[index] == seen {
                continue;
            }
            self.seen[index] = seen;
            let fingerprint = fingerprint(&applied.state);
            self.plant.check().applied(applied.index.0, &applied.state, fingerprint);
            self.tell(&applied.state);
        }
        self.opened();
        if (self.plant.now() / TICK_NS).is_multiple_of(12) {
            self.leaders();
        }
    }

    /// Says what the cluster comes to, once.
    fn tell(&mut self, state: &ClusterState) {
        let phase = match state.phase {
            Phase::None => return,
            Phase::Preparing { .. } => 0,
            Phase::Granted => 1,
            Phase::Established => 2,
        };
        if self.phases.insert((state.epoch, phase), ()).is_some() {
            return;
        }
        let name = |node: NodeId| {
            self.plant.index_of(node).map_or_else(|| "nobody".to_owned(), |index| format!("n{}", index + 1))
        };
        let text = match (&state.phase, state.current_grant()) {
            (Phase::Preparing { reason, .. }, _) => {
                format!("LOG epoch {} is prepared: {reason}", state.epoch)
            }
            (Phase::Granted, Some(grant)) => format!(
                "LOG epoch {} is granted to {} at {}, timeline {}, lost {:?}",
                grant.epoch,
                name(grant.owner),
                grant.base,
                grant.timeline,
                grant.lost
            ),
            (Phase::Established, Some(grant)) => {
                format!("LOG epoch {} of {} is established", grant.epoch, name(grant.owner))
            }
            (Phase::None | Phase::Granted | Phase::Established, _) => return,
        };
        self.plant.say(text);
    }

    /// I7: a promise is never taken back by the same store.
    fn promises_rise(&mut self, index: usize, hard: &HardState) {
        let (node, before) = self.promises[index];
        if node == hard.node_id && hard.promise < before {
            let text = format!("I7: n{} promised {before} and now {}", index + 1, hard.promise);
            self.plant.check().violated(text);
        }
        self.promises[index] = (hard.node_id, hard.promise);
    }

    /// A gate that opens: what was acknowledged before is there, or was bounded.
    fn opened(&mut self) {
        for index in 0..self.plant.count() {
            let machine = self.plant.machine(index);
            if machine.run != Run::Primary || !machine.gate {
                continue;
            }
            let epoch = machine.epoch;
            let Some(data) = &machine.data else { continue };
            let timing = self.settings.timing;
            let window = (u64::from(timing.renewal_ms) + u64::from(timing.lease_ms) + 1000) * 1_000_000;
            self.plant.check().opened(epoch, index, data, MAX_LAG, window);
        }
    }

    fn leaders(&mut self) {
        for index in 0..self.plant.count() {
            let Some(up) = self.processes[index].as_ref().and_then(Process::up) else { continue };
            if !up.shared.consensus.status().leading {
                continue;
            }
            let (code, words) = up.shared.decided.borrow().clone();
            if self.decided[index] != code && !code.is_empty() {
                self.plant.say(format!("n{} leads: {words}", index + 1));
                self.decided[index] = code;
            }
        }
    }

    /// Returns who is open.
    pub fn primary(&self) -> Option<usize> {
        (0..self.plant.count()).find(|index| self.plant.machine(*index).open())
    }

    /// Returns the Raft leader.
    pub fn leader(&self) -> Option<usize> {
        (0..self.plant.count()).find(|index| {
            let up = self.processes[*index].as_ref().and_then(Process::up);
            up.is_some_and(|up| up.shared.consensus.status().leading)
        })
    }

    /// Returns whether one owner is open and every other data member streams from it (I14), with
    /// all of them voting.
    pub fn converged(&self) -> bool {
        let Some(primary) = self.primary() else { return false };
        let count = self.plant.count();
        let Some(mine) = self.plant.machine(primary).data.clone() else { return false };
        let follows = |index: usize| {
            let machine = self.plant.machine(index);
            let upstream = machine.upstream.and_then(|node| self.plant.index_of(node));
            let close = |data: &Data| data.wal.len() + 20 >= mine.wal.len();
            machine.run == Run::Standby
                && machine.streaming
                && upstream == Some(primary)
                && machine.data.as_ref().is_some_and(close)
        };
        let agrees = |index: usize| {
            let up = self.processes[index].as_ref().and_then(Process::up);
            up.is_some_and(|up| {
                let status = up.shared.consensus.status();
                let state = up.shared.consensus.state().borrow().clone();
                status.configs.len() == 1
                    && status.voters.len() == count
                    && state.state.members.len() == count
                    && state.state.phase == Phase::Established
                    && state.state.members.contains_key(&up.shared.me())
                    && up.shared.hard.get().sentinel.is_none()
            })
        };
        let data = |index: usize| index == primary || !self.plant.has_data(index) || follows(index);
        (0..count).all(|index| data(index) && agrees(index)) && self.policy_is_full(primary)
    }

    /// Whether commits wait as the settings ask, for every standby that can acknowledge.
    fn policy_is_full(&self, primary: usize) -> bool {
        let Some(up) = self.processes[primary].as_ref().and_then(Process::up) else { return false };
        let applied = up.shared.consensus.state().borrow().clone();
        let standbys = self.plant.data - 1;
        match (self.settings.sync, applied.state.policies.as_slice()) {
            (SyncMode::Off, [one]) => matches!(one.kind, PolicyKind::Async { .. }),
            (SyncMode::Quorum | SyncMode::Strict, [one]) => match &one.kind {
                PolicyKind::Quorum { standbys: named, .. } => named.len() == standbys,
                PolicyKind::Alone | PolicyKind::Async { .. } => false,
            },
            (_, _) => false,
        }
    }

    fn broken(&self) -> bool {
        self.plant.check().violation.is_some()
    }

    fn until(&mut self, limit_ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.plant.now() + limit_ms * 1_000_000;
        let mut next = 0;
        while self.plant.now() < end && !self.broken() {
            self.tick();
            if self.plant.now() >= next {
                next = self.plant.now() + 100_000_000;
                if done(self) {
                    return true;
                }
            }
        }
        false
    }

    // ---- a run

    /// Runs the whole story: founding, faults, healing, calm.
    pub fn run(&mut self) {
        let all_up = |world: &Self| world.processes.iter().flatten().all(|process| process.up().is_some());
        self.until(2000, all_up);
        self.found();
        if !self.until(40_000, Self::converged) {
            self.stuck("does not come up");
            return;
        }
        self.plant.say("the cluster is up");
        let faults = self.random.between(4, 22);
        for _ in 0..faults {
            let pause = if self.random.permille(500) { 600 } else { 4000 };
            let pause = self.random.between(20, pause);
            self.until(pause, |_| false);
            if self.broken() {
                return;
            }
            crate::faults::strike(self);
        }
        self.until(1500, |_| false);
        self.heal();
        if !self.until(20_000, Self::converged)
            && (self.for_a_person() || !self.until(100_000, Self::converged))
        {
            self.stuck("I14: does not come to rest");
            return;
        }
        self.plant.say("all is well again");
        self.calm();
    }

    fn heal(&mut self) {
        self.plant.say("all faults end");
        self.due.retain(|(_, due)| matches!(due, Due::Start(_) | Due::Power(_)));
        self.end_of(Due::Join);
        self.end_of(Due::Quick);
        for index in 0..self.plant.count() {
            self.end_of(Due::Fast(index));
            self.end_of(Due::Continue(index));
            self.end_of(Due::Power(index));
            self.end_of(Due::Start(index));
        }
    }

    /// Nothing ails anybody any more: the owner stays, clients are served (I13).
    fn calm(&mut self) {
        let Some(primary) = self.primary() else { return };
        let epoch = self.plant.machine(primary).epoch;
        // Leadership may still find its place, and a copy its end.
        self.until(6000, |_| false);
        let before = (self.plant.check().acknowledged, self.plant.net.sent(), self.log_end(), self.term());
        self.until(8000, |_| false);
        if self.broken() {
            return;
        }
        let messages = (self.plant.net.sent() - before.1) / 8;
        // A new leader writes one entry of its own.
        let entries = self.log_end().saturating_sub(before.2 + self.term() - before.3);
        let before = before.0;
        self.plant.say(format!("calm: {messages} messages a second, {entries} log entries"));
        self.calm_numbers(messages, entries);
        let now = self.plant.machine(primary).epoch;
        let mut check = self.plant.check();
        if now != epoch {
            check.violated(format!("I13: the owner of {epoch} lost it without a cause"));
        }
        if check.acknowledged <= before {
            check.violated("I14: clients are not served");
        }
        drop(check);
        if let Some(data) = self.plant.machine(primary).data.clone() {
            self.plant.check().all_there(primary, &data);
        }
    }

    /// An idle cluster writes nothing, and talks no more than it has to.
    fn calm_numbers(&self, messages: u64, entries: u64) {
        let limit = 40 * self.plant.count() as u64 * self.plant.count() as u64;
        if messages > limit {
            self.plant.check().violated(format!("calm: {messages} messages a second, {limit} are enough"));
        }
        if entries > 0 {
            self.plant.check().violated(format!("calm: {entries} log entries without a cause"));
        }
    }

    fn term(&self) -> u64 {
        let ups = self.processes.iter().flatten().filter_map(Process::up);
        ups.map(|up| up.shared.consensus.status().term).max().unwrap_or(0)
    }

    /// Returns the highest index of any log.
    fn log_end(&self) -> u64 {
        let ups = self.processes.iter().flatten().filter_map(Process::up);
        ups.map(|up| up.shared.consensus.status().last_log.0).max().unwrap_or(0)
    }

    /// Returns what the leader waits for, by code and in words.
    fn waits_for(&self) -> (String, String) {
        let words = self.leader().and_then(|leader| {
            let up = self.processes[leader].as_ref()?.up()?;
            Some(up.shared.decided.borrow().clone())
        });
        words.unwrap_or_else(|| (String::new(), "there is no leader".to_owned()))
    }

    /// Whether what was acknowledged may be lost with a disk: that is a person's to give up.
    fn for_a_person(&self) -> bool {
        !self.plant.check().sync
            && self.data_lost
            && matches!(self.waits_for().0.as_str(), "lag_too_large" | "lag_unknown")
    }

    fn stuck(&mut self, what: &str) {
        if self.broken() {
            return;
        }
        let (_, words) = self.waits_for();
        self.describe();
        if self.for_a_person() {
            self.plant.say(format!("a person has to decide: {words}"));
            return;
        }
        self.plant.check().violated(format!("{what}: {words}"));
    }

    fn describe(&self) {
        for index in 0..self.plant.count() {
            let machine = self.plant.machine(index);
            let end = machine.data.as_ref().map(|data| data.position(data.wal.len()).to_string());
            let up = self.processes[index].as_ref().and_then(Process::up);
            let raft = up.as_ref().map(|up| {
                let status = up.shared.consensus.status();
                let configs: Vec<usize> =
                    status.configs.iter().map(std::collections::BTreeSet::len).collect();
                let members = up.shared.consensus.state().borrow().state.members.len();
                format!(
                    "{:?} term {} applied {} of {} voters {configs:?} learners {} members {members}",
                    status.role,
                    status.term,
                    status.applied,
                    status.last_log,
                    status.learners.len()
                )
            });
            let hard = up.map(|up| {
                let hard = up.shared.hard.get();
                format!(
                    "promise {} floor {:?} sentinel {}",
                    hard.promise,
                    hard.floor.map(|p| p.to_string()),
                    hard.sentinel.is_some()
                )
            });
            let upstream = machine.upstream.and_then(|node| self.plant.index_of(node)).map(|index| index + 1);
            let frozen = machine.guard.frozen.is_some();
            let text = format!(
                "n{} {} {:?} at {end:?} gate {} streaming {} from {upstream:?} frozen {frozen}; {hard:?}; {raft:?}",
                index + 1,
                address(index),
                machine.run,
                machine.gate,
                machine.streaming,
            );
            drop(machine);
            self.plant.say(text);
        }
    }
}

fn fingerprint(state: &ClusterState) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{state:?}").hash(&mut hasher);
    hasher.finish()
}
