//! A member's disk for Raft and the hard state: what was written, and what of it is durable.
//!
//! The code above calls it as if each call were durable when it returns; nobody is *answered*
//! before the fsync has had its time. A power cut takes back a suffix of what was not.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone_consensus::store::Pace;
use rhone_consensus::store::hard::Slots;
use rhone_consensus::store::medium::{Change, Medium};

use crate::random::Random;

/// How fast a disk is.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// The shortest fsync, in microseconds.
    pub least_us: u64,
    /// The longest that is usual.
    pub most_us: u64,
}

#[derive(Debug)]
enum Undo {
    Records(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Snapshots(BTreeMap<String, Vec<u8>>),
    Slot(usize, Vec<u8>),
}

#[derive(Debug)]
struct Inner {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    snapshots: BTreeMap<String, Vec<u8>>,
    slots: Vec<u8>,
    pending: VecDeque<(u64, Undo)>,
    next: u64,
    speed: Speed,
    random: Random,
    /// The mutant whose store answers before the disk has it.
    hasty: bool,
}

/// The disk.
#[derive(Debug)]
pub struct Disk(Mutex<Inner>);

impl Disk {
    /// Makes an empty one whose hard state begins as `slots`.
    pub fn new(slots: Vec<u8>, random: Random, hasty: bool) -> Self {
        Self(Mutex::new(Inner {
            records: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            slots,
            pending: VecDeque::new(),
            next: 0,
            speed: Speed { least_us: 200, most_us: 2000 },
            random,
            hasty,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how fast it is from now on.
    pub fn set_speed(&self, speed: Speed) {
        self.lock().speed = speed;
    }

    /// Draws how long an fsync takes now.
    pub fn fsync_time(&self) -> Duration {
        let mut inner = self.lock();
        let Speed { least_us, most_us } = inner.speed;
        Duration::from_micros(inner.random.between(least_us, most_us.max(least_us + 1)))
    }

    /// Loses the Raft store; the hard state stays.
    pub fn wipe_store(&self) {
        let mut inner = self.lock();
        inner.records.clear();
        inner.snapshots.clear();
        inner.pending.retain(|(_, undo)| matches!(undo, Undo::Slot(..)));
    }

    /// Loses everything; the hard state begins anew as `slots`.
    pub fn wipe(&self, slots: Vec<u8>) {
        let mut inner = self.lock();
        inner.records.clear();
        inner.snapshots.clear();
        inner.pending.clear();
        inner.slots = slots;
    }

    /// Loses the power: some of what was not durable is gone, the newest first; a slot may be torn.
    pub fn cut_power(&self) {
        let mut inner = self.lock();
        let count = inner.pending.len() as u64;
        let lost = inner.random.below(count + 1);
        for _ in 0..lost {
            match inner.pending.pop_back() {
                Some((_, Undo::Records(before))) => {
                    for (key, value) in before.into_iter().rev() {
                        match value {
                            Some(value) => drop(inner.records.insert(key, value)),
                            None => drop(inner.records.remove(&key)),
                        }
                    }
                }
                Some((_, Undo::Snapshots(before))) => inner.snapshots = before,
                Some((_, Undo::Slot(at, before))) => {
                    let torn = inner.random.permille(500);
                    let keep = if torn { before.len() / 2 } else { before.len() };
                    let end = at + keep;
                    inner.slots[at..end].copy_from_slice(&before[..keep]);
                }
                None => {}
            }
        }
        inner.pending.clear();
    }

    fn settle(&self, upto: u64) {
        self.lock().pending.retain(|(number, _)| *number > upto);
    }

    /// Waits until all that was written so far is durable.
    pub async fn durable(self: &Arc<Self>) {
        let upto = self.lock().next;
        let wait = self.fsync_time();
        if self.lock().hasty {
            let disk = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(wait * 20 + Duration::from_millis(300)).await;
                disk.settle(upto);
            });
            return;
        }
        tokio::time::sleep(wait).await;
        self.settle(upto);
    }
}

impl Inner {
    fn push(&mut self, undo: Undo) {
        self.next += 1;
        let number = self.next;
        self.pending.push_back((number, undo));
    }
}

/// The Raft store's part of a disk.
#[derive(Debug)]
pub struct Store(pub Arc<Disk>);

impl Medium for Store {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().records.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let inner = self.0.lock();
        let from = inner.records.range(prefix.to_vec()..);
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let mut inner = self.0.lock();
        let mut before = Vec::new();
        for Change { key, value } in changes {
            let old = match value {
                Some(value) => inner.records.insert(key.clone(), value),
                None => inner.records.remove(&key),
            };
            before.push((key, old));
        }
        inner.push(Undo::Records(before));
        Ok(())
    }

    fn save_snapshot(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock();
        let new = BTreeMap::from([(name.to_owned(), content.to_vec())]);
        let before = std::mem::replace(&mut inner.snapshots, new);
        inner.push(Undo::Snapshots(before));
        Ok(())
    }

    fn snapshots(&mut self) -> io::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.0.lock().snapshots.iter().map(|(name, bytes)| (name.clone(), bytes.clone())).collect())
    }
}

/// The hard state's part of a disk.
#[derive(Debug)]
pub struct Hard(pub Arc<Disk>);

impl Slots for Hard {
    fn read_slot(&self, image: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = self.0.lock();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = inner.slots.get(at..at + image.len()).ok_or_else(|| io::Error::other("too short"))?;
        image.copy_from_slice(bytes);
        Ok(())
    }

    fn write_slot(&self, image: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.0.lock();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let before = inner.slots[at..at + image.len()].to_vec();
        inner.slots[at..at + image.len()].copy_from_slice(image);
        inner.push(Undo::Slot(at, before));
        Ok(())
    }
}

/// The time that the store's task waits before it answers.
#[derive(Debug)]
pub struct Fsync(pub Arc<Disk>);

impl Pace for Fsync {
    fn written(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.0.durable())
    }
}
