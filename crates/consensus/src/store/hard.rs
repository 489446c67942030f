//! The hard state: what this member must remember whatever becomes of its Raft store.
//!
//! One file of two slots, written in turn with a sequence number and a checksum: a write
//! torn by a power cut leaves the other slot (docs/safety.md 12). It is also the guard that tells a
//! store that silently went back in time: vote and last log id are noted here *after* the
//! store has them and *before* anybody is told.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use rhone_pgctl::wal::{SystemId, WalPosition};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::slot::{self, SLOT_SIZE};
use super::sync_dir;
use crate::error::ConsensusError;
use crate::identity::{Generation, Session};
use crate::ids::{DataId, Epoch, Incarnation, NodeId};
use crate::raft::{LogId, Vote};

/// The file's name within the state directory.
const FILE_NAME: &str = "hard-state";

/// The founder that this member has promised to accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// The founding member's name.
    pub name: String,
    /// Its store.
    pub incarnation: Incarnation,
}

/// What is being done to the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SentinelKind {
    /// `pg_rewind` is rewriting it.
    Rewind,
    /// It is being replaced by a copy.
    Clone,
    /// It is being made.
    Initdb,
    /// `pg_rewind` is done with it: it may be started, and its WAL reaches its end by streaming.
    Rewound,
    /// It was replaced by a copy, in full: it may be started, as above.
    Cloned,
}

impl SentinelKind {
    /// Returns what this becomes once it is done.
    #[must_use]
    pub const fn done(self) -> Self {
        match self {
            Self::Rewind | Self::Rewound => Self::Rewound,
            Self::Clone | Self::Cloned => Self::Cloned,
            Self::Initdb => Self::Initdb,
        }
    }

    const fn is_done(self) -> bool {
        match self {
            Self::Rewound | Self::Cloned => true,
            Self::Rewind | Self::Clone | Self::Initdb => false,
        }
    }
}

/// Says that the data directory does not count: something was changing it, or what did is done and the WAL
/// that belongs to it has yet to be streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentinel {
    /// The epoch it was begun in.
    pub epoch: Epoch,
    /// What was begun.
    pub kind: SentinelKind,
    /// From which member.
    pub source: String,
}

/// The data directory that this member has: what its file `rhone.id` must say, and which file it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRecord {
    /// The directory's id.
    pub id: DataId,
    /// Drawn anew at each start of Postgres: a copy made before knows an older one.
    pub nonce: u64,
    /// The nonce that is being written.
    pub next: Option<u64>,
    /// The file itself, once it is known: its inode, and its birth in nanoseconds since 1970 (0 where
    /// the file system keeps none). A copy has others.
    pub file: Option<(u64, u64)>,
}

/// The vote this member last acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VoteGuard {
    /// Raft's term.
    pub term: u64,
    /// For whom.
    pub node: NodeId,
    /// Whether a majority did.
    pub committed: bool,
}

impl From<&Vote> for VoteGuard {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

/// The last log entry this member acknowledged. Ordered as Raft orders logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogGuard {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// That leader.
    pub node: NodeId,
    /// Its index.
    pub index: u64,
}

impl From<&LogId> for LogGuard {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

/// All that the hard state file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// Drawn at random with the store; never used again after it is lost.
    pub node_id: NodeId,
    /// Drawn at random with the store.
    pub incarnation: Incarnation,
    /// Raised at each [`HardStateFile::open_or_create`].
    pub session: Session,
    /// The cluster this member belongs to; empty before it does.
    pub cluster: String,
    /// That cluster's generation.
    pub generation: Generation,
    /// The founder promised.
    pub accepted_founder: Option<Founder>,
    /// Takes part in nothing below this epoch.
    pub promise: Epoch,
    /// Must not start, or be counted, below this position.
    pub floor: Option<WalPosition>,
    /// What was being done to the data directory.
    pub sentinel: Option<Sentinel>,
    /// Guard: the store must hold this vote or a higher one.
    pub vote: Option<VoteGuard>,
    /// Guard: the store's log must reach at least here.
    pub last_log: Option<LogGuard>,
    /// The cluster's system identifier.
    pub system_id: Option<SystemId>,
    /// The newest epoch this member owned.
    pub was_owner: Option<Epoch>,
    /// The data directory.
    pub data: Option<DataRecord>,
}

impl HardState {
    /// Returns whether a Raft store of this node id must exist: it has acknowledged something.
    pub fn had_store(&self) -> bool {
        self.vote.is_some() || self.last_log.is_some()
    }

    /// Returns the epoch of a rewind or clone that has not been finished: such a data directory is never
    /// started.
    pub fn unfinished(&self) -> Option<Epoch> {
        self.sentinel.as_ref().filter(|sentinel| !sentinel.kind.is_done()).map(|sentinel| sentinel.epoch)
    }

    /// Whether a rewind or clone is done and what it brought has yet to stream to its floor.
    pub fn copied(&self) -> bool {
        self.sentinel.as_ref().is_some_and(|sentinel| sentinel.kind.is_done())
    }

    fn draw_ids(&mut self) -> io::Result<()> {
        let id = getrandom::u64().map_err(|e| io::Error::other(e.to_string()))?;
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        self.node_id = NodeId(id.max(1));
        self.incarnation = Incarnation(u128::from_be_bytes(bytes));
        Ok(())
    }
}

/// Whether the file was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Made just now: new node id and incarnation.
    New,
    /// Read.
    Existing,
}

#[derive(Debug)]
struct Inner {
    state: HardState,
    sequence: u64,
    next_slot: u64,
    /// A write failed: what the disk holds is unknown, and asking again would lie (fsyncgate).
    broken: Option<String>,
}

/// What the two slots are written on: a file, or the simulation's.
pub trait Slots: Send + Sync + Debug {
    /// Fills `image` from `offset` on.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_slot(&self, image: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `image` at `offset`; durable when it returns.
    ///
    /// # Errors
    /// The disk refused: what it holds now is unknown.
    fn write_slot(&self, image: &[u8], offset: u64) -> io::Result<()>;
}

impl Slots for File {
    fn read_slot(&self, image: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(image, offset)
    }

    fn write_slot(&self, image: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(image, offset)?;
        self.sync_data()
    }
}

/// The open hard state file. Locked against other processes.
#[derive(Debug)]
pub struct HardStateFile {
    path: PathBuf,
    slots: Box<dyn Slots>,
    inner: Mutex<Inner>,
    /// What is durable, to be read without waiting for a write that is under way.
    durable: RwLock<HardState>,
}

impl HardStateFile {
    /// Opens the file in `dir`, or makes it with a new node id and incarnation, and raises the
    /// session; durable before it returns. Makes `dir` when missing.
    ///
    /// # Errors
    /// [`ConsensusError::InUse`], [`ConsensusError::HardStateDamaged`], [`ConsensusError::Io`].
    pub fn open_or_create(dir: &Path) -> Result<(Self, Opened), ConsensusError> {
        let path = dir.join(FILE_NAME);
        let opened = if path.try_exists().map_err(|e| ConsensusError::io("look for", &path, e))? {
            Opened::Existing
        } else {
            create(dir, &path)?;
            Opened::New
        };
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|e| ConsensusError::io("open", &path, e))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| ConsensusError::InUse { path: path.clone() })?;
        Ok((Self::start(Box::new(file), path)?, opened))
    }

    /// Opens what `slots` hold and raises the session: the simulation's way. [`first_image`] makes
    /// them.
    ///
    /// # Errors
    /// As [`HardStateFile::open_or_create`].
    pub fn open_on(slots: Box<dyn Slots>) -> Result<Self, ConsensusError> {
        Self::start(slots, PathBuf::from(FILE_NAME))
    }

    fn start(slots: Box<dyn Slots>, path: PathBuf) -> Result<Self, ConsensusError> {
        let found = read(slots.as_ref(), &path)?;
        let durable = RwLock::new(found.state.clone());
        let hard = Self { path, slots, inner: Mutex::new(found), durable };
        hard.update(|state| state.session = Session(state.session.0.saturating_add(1)))?;
        Ok(hard)
    }

    /// Reads the file in `dir` without locking or changing it; nothing when there is none.
    ///
    /// # Errors
    /// [`ConsensusError::HardStateDamaged`], [`ConsensusError::Io`].
    pub fn peek(dir: &Path) -> Result<Option<HardState>, ConsensusError> {
        let path = dir.join(FILE_NAME);
        match File::open(&path) {
            Ok(file) => Ok(Some(read(&file, &path)?.state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ConsensusError::io("open", path, error)),
        }
    }

    /// Returns what the file holds. Never waits for the disk: a change that is being written is not
    /// seen before it is durable.
    pub fn get(&self) -> HardState {
        self.durable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state and returns it; durable before it returns. Writes nothing when
    /// `change` changes nothing. Blocks for a write and an fdatasync: on the runtime's
    /// thread use `spawn_blocking`.
    ///
    /// # Errors
    /// [`ConsensusError::Io`]: the disk refused. Every later change is then refused as
    /// [`ConsensusError::Fatal`]: end the process.
    pub fn update(&self, change: impl FnOnce(&mut HardState)) -> Result<HardState, ConsensusError> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.broken {
            return Err(ConsensusError::Fatal { reason: format!("{}: {reason}", self.path.display()) });
        }
        let mut next = inner.state.clone();
        change(&mut next);
        if next == inner.state {
            return Ok(next);
        }
        let sequence = inner.sequence.saturating_add(1);
        let image = slot::encode(sequence, &next).map_err(|error| self.error("encode", error))?;
        let offset = inner.next_slot.saturating_mul(SLOT_SIZE as u64);
        if let Err(error) = self.slots.write_slot(&image, offset) {
            inner.broken = Some(error.to_string());
            return Err(self.error("write", error));
        }
        inner.sequence = sequence;
        inner.next_slot = 1 - inner.next_slot;
        inner.state = next.clone();
        self.durable.write().unwrap_or_else(PoisonError::into_inner).clone_from(&next);
        Ok(next)
    }

    /// Becomes a new member: draws a new node id and incarnation and forgets the old store's
    /// guards. The promise, floor, sentinel and system identifier stay: what they protect is
    /// the data directory's.
    ///
    /// # Errors
    /// As [`HardStateFile::update`].
    pub fn renew(&self) -> Result<HardState, ConsensusError> {
        let mut drawn = HardState::default();
        drawn.draw_ids().map_err(|error| self.error("draw an id for", error))?;
        self.update(|state| {
            state.node_id = drawn.node_id;
            state.incarnation = drawn.incarnation;
            state.vote = None;
            state.last_log = None;
        })
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, operation: &'static str, source: io::Error) -> ConsensusError {
        ConsensusError::io(operation, &self.path, source)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the file as it begins: one slot with `state`, one empty.
///
/// # Errors
/// The state cannot be encoded.
pub fn first_image(state: &HardState) -> io::Result<Vec<u8>> {
    let mut image = slot::encode(1, state)?;
    image.resize(SLOT_SIZE.saturating_mul(2), 0);
    Ok(image)
}

/// Makes the file under another name first, so that it never exists without a valid slot.
fn create(dir: &Path, path: &Path) -> Result<(), ConsensusError> {
    let mut state = HardState::default();
    let temporary = dir.join(format!("{FILE_NAME}.tmp"));
    let mut write = || -> io::Result<()> {
        state.draw_ids()?;
        super::make_dirs(dir)?;
        let image = first_image(&state)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&image)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(dir)
    };
    write().map_err(|error| ConsensusError::io("create", path, error))
}

fn read(slots: &dyn Slots, path: &Path) -> Result<Inner, ConsensusError> {
    let damaged = |reason: String| ConsensusError::HardStateDamaged { path: path.to_owned(), reason };
    let mut best: Option<(u64, u64, HardState)> = None;
    let mut reasons = Vec::new();
    for number in 0..2u64 {
        let mut image = vec![0; SLOT_SIZE];
        let result = slots
            .read_slot(&mut image, number.saturating_mul(SLOT_SIZE as u64))
            .map_err(|error| error.to_string())
            .and_then(|()| slot::decode::<HardState>(&image).map_err(|error| error.to_string()));
        match result {
            Ok((sequence, state)) => {
                if best.as_ref().is_none_or(|(_, newest, _)| sequence > *newest) {
                    best = Some((number, sequence, state));
                }
            }
            Err(reason) => reasons.push(format!("slot {number}: {reason}")),
        }
    }
    let (number, sequence, state) = best.ok_or_else(|| damaged(reasons.join("; ")))?;
    Ok(Inner { state, sequence, next_slot: 1 - number, broken: None })
}
