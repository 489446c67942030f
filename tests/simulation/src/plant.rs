//! What all members' processes stand on: machines, disks, clocks, the network; and the trace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone_consensus::ids::{Incarnation, NodeId};
use rhone_consensus::store::hard::{HardState, first_image};

use crate::check::Checker;
use crate::clock::NodeClock;
use crate::disk::Disk;
use crate::machine::{Data, Machine};
use crate::mutant::Mutant;
use crate::net::Net;
use crate::random::Random;

/// The cluster's name.
pub const CLUSTER: &str = "sim";

/// The lines of a run, and their hash.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Vec<String>,
    hash: u64,
    /// Whether lines are printed as they come.
    pub aloud: bool,
}

impl Trace {
    fn push(&mut self, line: String) {
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.aloud {
            println!("{line}");
        }
        self.lines.push(line);
    }
}

/// The ground.
#[derive(Debug)]
pub struct Plant {
    /// What is left out.
    pub mutant: Mutant,
    /// The network.
    pub net: Arc<Net>,
    /// The members' clocks.
    pub clocks: Vec<&'static NodeClock>,
    /// The members' disks for Raft and the hard state.
    pub disks: Vec<Arc<Disk>>,
    machines: Vec<Mutex<Machine>>,
    /// How many of the members have data, the first ones; the rest are witnesses.
    pub data: usize,
    ids: Mutex<BTreeMap<NodeId, usize>>,
    check: Mutex<Checker>,
    trace: Mutex<Trace>,
    random: Mutex<Random>,
    now: AtomicU64,
    rows: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plant {
    /// Makes the ground for so many members.
    pub fn new(
        seed: u64,
        mutant: Mutant,
        data: usize,
        witnesses: usize,
        aloud: bool,
    ) -> std::io::Result<Self> {
        let count = data + witnesses;
        let mut random = Random::new(seed, 1);
        let mut clocks: Vec<&'static NodeClock> = Vec::new();
        let mut disks = Vec::new();
        let mut machines = Vec::new();
        let mut ids = BTreeMap::new();
        for index in 0..count {
            let offset = random.between(1_000_000_000, 900_000_000_000);
            let rate = match (mutant, index) {
                (Mutant::Drift, 0) => 850_000,
                (Mutant::Drift, _) => 1_150_000,
                _ => 1_000_000 - 500 + random.below(1001),
            };
            // For the rest of the process: the product's clock is a plain copy.
            clocks.push(Box::leak(Box::new(NodeClock::new(offset, rate))));
            let (slots, id) = fresh_slots(&mut random, index)?;
            ids.insert(id, index);
            let stream = Random::new(seed, 100 + index as u64);
            disks.push(Arc::new(Disk::new(slots, stream, mutant == Mutant::HastyStore)));
            machines.push(Mutex::new(Machine::new()?));
        }
        Ok(Self {
            mutant,
            net: Arc::new(Net::new(Random::new(seed, 2))),
            clocks,
            disks,
            machines,
            data,
            ids: Mutex::new(ids),
            check: Mutex::default(),
            trace: Mutex::new(Trace { aloud, ..Trace::default() }),
            random: Mutex::new(random),
            now: AtomicU64::new(0),
            rows: AtomicU64::new(0),
        })
    }

    /// Returns a member's machine; nobody waits while holding it.
    pub fn machine(&self, index: usize) -> MutexGuard<'_, Machine> {
        locked(&self.machines[index])
    }

    /// Returns how many machines there are.
    pub fn count(&self) -> usize {
        self.machines.len()
    }

    /// Returns whether a member has data.
    pub fn has_data(&self, index: usize) -> bool {
        index < self.data
    }

    /// Returns the judge.
    pub fn check(&self) -> MutexGuard<'_, Checker> {
        locked(&self.check)
    }

    /// Returns on which machine a Raft node lives, or lived.
    pub fn index_of(&self, node: NodeId) -> Option<usize> {
        locked(&self.ids).get(&node).copied()
    }

    /// Notes that a Raft node lives on that machine.
    pub fn learn(&self, node: NodeId, index: usize) {
        locked(&self.ids).insert(node, index);
    }

    /// Draws a new id and incarnation for that machine.
    pub fn draw_identity(&self, index: usize) -> (NodeId, Incarnation) {
        let mut random = locked(&self.random);
        let node = NodeId(random.next() | 1);
        let incarnation = Incarnation(u128::from(random.next()) << 64 | u128::from(random.next()));
        drop(random);
        self.learn(node, index);
        (node, incarnation)
    }

    /// Loses a member's whole state directory.
    pub fn wipe_state(&self, index: usize) -> std::io::Result<()> {
        let (slots, id) = fresh_slots(&mut locked(&self.random), index)?;
        self.learn(id, index);
        self.disks[index].wipe(slots);
        Ok(())
    }

    /// Draws a number below `bound`.
    pub fn draw(&self, bound: u64) -> u64 {
        locked(&self.random).below(bound)
    }

    /// Draws a time.
    pub fn some(&self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(locked(&self.random).between(least_ms, most_ms))
    }

    /// Draws the number of a new row or record.
    pub fn row(&self) -> u64 {
        self.rows.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the true time, in nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Moves the true time.
    pub fn set_now(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
        self.net.set_now(now);
    }

    /// Writes a line.
    pub fn say(&self, text: impl AsRef<str>) {
        let ms = self.now() / 1_000_000;
        let line = format!("{:>6}.{:03} {}", ms / 1000, ms % 1000, text.as_ref());
        locked(&self.trace).push(line);
    }

    /// Returns the lines so far, and their hash.
    pub fn trace(&self) -> (Vec<String>, u64) {
        let trace = locked(&self.trace);
        (trace.lines.clone(), trace.hash)
    }

    /// Judges that a data directory is given up: what it has is elsewhere too.
    pub fn gives_up(&self, index: usize) {
        let Some(mine) = self.machine(index).data.clone() else { return };
        let others: Vec<Data> = (0..self.count())
            .filter(|other| *other != index)
            .filter_map(|o| self.machine(o).data.clone())
            .collect();
        let others: Vec<&Data> = others.iter().collect();
        self.check().gives_up(index, &mine, &others);
    }
}

fn fresh_slots(random: &mut Random, _index: usize) -> std::io::Result<(Vec<u8>, NodeId)> {
    let node_id = NodeId(random.next() | 1);
    let incarnation = Incarnation(u128::from(random.next()) << 64 | u128::from(random.next()));
    let state = HardState { node_id, incarnation, cluster: CLUSTER.to_owned(), ..HardState::default() };
    Ok((first_image(&state)?, node_id))
}
