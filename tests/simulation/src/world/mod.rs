//! The world: drives every member's time, carries packets, strikes, and watches.

mod story;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Member};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::raft::PeerNode;
use rhone_consensus::settings::{Settings, SyncMode};

use crate::apart::Asked;
use crate::disk::Speed;
use crate::faults::{self, Due};
use crate::machine::{Commit, Data, Run};
use crate::net::{Link, Parcel};
use crate::plant::Plant;
use crate::postgres;
use crate::process::{End, Process};
use crate::random::Random;
use crate::stage::Stage;

/// One step of true time.
pub const TICK_NS: u64 = 5_000_000;

/// How many rows an asynchronous failover may leave behind, in this small world.
pub const MAX_LAG: u64 = 12;

/// How long a disk takes that nothing ails.
const FAST: Speed = Speed { least_us: 200, most_us: 4000 };

/// How often the primary is struck right when something was decided.
const HUNTS: u32 = 6;

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
    /// What it is, and may meet.
    pub stage: Stage,
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
    phases: BTreeSet<(Epoch, u8, usize)>,
    told: BTreeSet<(Epoch, u8)>,
    decided: Vec<String>,
    /// Whether something was decided in this step.
    news: bool,
    /// How often the primary was struck because of that.
    struck: u32,
    /// Until when the loss of a store is under way.
    losing: u64,
}

/// After how long a silence a voter is replaced in a world with a learner: faults last about as long.
const DEAD_MS: u64 = 5_000;

impl World {
    /// Makes the world of a seed.
    pub fn new(asked: Asked, aloud: bool) -> Result<Self, String> {
        let Asked { seed, mutant, .. } = asked;
        let mut random = Random::new(seed, 0);
        let stage = Stage::draw(&mut random, asked.shows);
        let Stage { data, witnesses, sync, .. } = stage;
        let count = data + witnesses;
        let plant = Plant::new(seed, mutant, data, witnesses, aloud).map_err(|error| error.to_string())?;
        let mut settings = Settings { max_lag_on_failover: MAX_LAG, sync, ..Settings::default() };
        if count == 4 {
            settings.dead_member_timeout_ms = DEAD_MS;
        }
        plant.check().sync = sync != SyncMode::Off;
        plant.say(format!("seed {seed}: {stage}"));
        let mut world = Self {
            plant: Arc::new(plant),
            processes: (0..count).map(|_| None).collect(),
            random,
            stage,
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
            phases: BTreeSet::new(),
            told: BTreeSet::new(),
            decided: vec![String::new(); count],
            news: false,
            struck: HUNTS,
            losing: 0,
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

    /// Returns whether there is an image of a machine's disk.
    pub fn has_image(&self, index: usize) -> bool {
        self.images[index].is_some()
    }

    /// Puts that image in the place of the data directory.
    pub fn restore_image(&mut self, index: usize) {
        let Some(mut image) = self.images[index].take() else { return };
        if let Some(ident) = &mut image.ident {
            ident.file = self.random.next() | 1;
        }
        self.plant.machine(index).data = Some(image);
    }

    /// Says that the loss of a store is under way: nothing else is lost for so long, in milliseconds.
    pub fn is_losing(&mut self, for_ms: u64) {
        self.losing = self.plant.now() + for_ms * 1_000_000;
    }

    /// Cuts a machine off from all others.
    pub fn cut_off(&self, index: usize) {
        for other in (0..self.plant.count()).filter(|other| *other != index) {
            self.plant.net.cut(index, other);
            self.plant.net.cut(other, index);
        }
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
        let well = self.lost < 2 && self.plant.now() > self.losing && self.converged();
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
        if std::mem::take(&mut self.news) && self.stage.hunts && self.struck < HUNTS {
            self.struck += 1;
            self.later(0, 400, Due::Pounce);
        }
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
            Due::Wipe { wiped, leader } => faults::wipe(self, wiped, leader),
            Due::Pounce => faults::pounce(self),
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
}
