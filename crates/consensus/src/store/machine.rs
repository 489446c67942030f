//! The state machine: applies entries to [`ClusterState`] and makes snapshots of it.
//!
//! Held in memory only: rebuilt from the snapshot and the log, so applying writes nothing.

use std::io::{self, Cursor};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use tokio::sync::watch;

use super::snapshot;
use super::thread::{Storage, Work};
use crate::codec;
use crate::command::Outcome;
use crate::ids::LogIndex;
use crate::raft::{Entry, LogId, Snapshot, SnapshotMeta, StorageError, Stored, TypeConfig};
use crate::state::ClusterState;

/// The replicated state, and how far the log was applied to make it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last entry applied, or 0.
    pub index: LogIndex,
    /// The state.
    pub state: ClusterState,
}

#[derive(Debug, Default)]
struct Applied {
    last: Option<LogId>,
    membership: Stored,
    state: ClusterState,
}

/// openraft's view of the state.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    storage: Storage,
    applied: Arc<Mutex<Applied>>,
    current: Arc<Mutex<Option<snapshot::Stored>>>,
    published: watch::Sender<Arc<AppliedState>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn any(error: &(impl std::error::Error + 'static)) -> openraft::AnyError {
    openraft::AnyError::new(error)
}

/// Applies what a store holds, all of it: what a member acknowledged may have been committed.
pub(crate) fn replay(
    snapshot: Option<&snapshot::Stored>,
    entries: Vec<Entry>,
) -> io::Result<(Option<LogId>, Stored, ClusterState)> {
    let mut applied = Applied::of(snapshot)?;
    for entry in entries {
        if Some(entry.log_id.index) > applied.last.map(|last| last.index) {
            applied.apply(entry);
        }
    }
    Ok((applied.last, applied.membership, applied.state))
}

impl Machine {
    /// Makes the state of the newest snapshot.
    pub(crate) fn new(storage: Storage, snapshot: Option<snapshot::Stored>) -> io::Result<Self> {
        let applied = Applied::of(snapshot.as_ref())?;
        let machine = Self {
            storage,
            applied: Arc::new(Mutex::new(applied)),
            current: Arc::new(Mutex::new(snapshot)),
            published: watch::Sender::new(Arc::default()),
        };
        machine.publish();
        Ok(machine)
    }

    /// Returns what is applied, now and at each change.
    pub(crate) fn states(&self) -> watch::Receiver<Arc<AppliedState>> {
        self.published.subscribe()
    }

    fn publish(&self) {
        let applied = locked(&self.applied);
        let index = LogIndex(applied.last.map_or(0, |id| id.index));
        let state = AppliedState { index, state: applied.state.clone() };
        drop(applied);
        self.published.send_replace(Arc::new(state));
    }
}

impl Applied {
    fn of(snapshot: Option<&snapshot::Stored>) -> io::Result<Self> {
        Ok(match snapshot {
            Some(stored) => Self {
                last: stored.meta.last_log_id,
                membership: stored.meta.last_membership.clone(),
                state: codec::decode(&stored.state).map_err(io::Error::other)?,
            },
            None => Self::default(),
        })
    }

    fn apply(&mut self, entry: Entry) -> Outcome {
        let index = LogIndex(entry.log_id.index);
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::Done,
            EntryPayload::Normal(command) => self.state.apply(index, &command),
            EntryPayload::Membership(membership) => {
                self.membership = Stored::new(Some(entry.log_id), membership);
                Outcome::Done
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Stored), StorageError> {
        let applied = locked(&self.applied);
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = {
            let mut applied = locked(&self.applied);
            entries.into_iter().map(|entry| applied.apply(entry)).collect()
        };
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let stored = snapshot::Stored { meta: meta.clone(), state: snapshot.into_inner() };
        let decoded = codec::decode(&stored.state)
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), any(&error)))?;
        self.storage
            .ask(Work::SnapshotInstalled(stored.clone()))
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), any(&error)))?;
        *locked(&self.applied) =
            Applied { last: meta.last_log_id, membership: meta.last_membership.clone(), state: decoded };
        *locked(&self.current) = Some(stored);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let current = locked(&self.current);
        Ok(current.as_ref().map(|stored| Snapshot {
            meta: stored.meta.clone(),
            snapshot: Box::new(Cursor::new(stored.state.clone())),
        }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let stored = {
            let applied = locked(&self.applied);
            let state = codec::encode(&applied.state)
                .map_err(|error| StorageIOError::read_state_machine(any(&error)))?;
            let snapshot_id = applied.last.map_or_else(|| "empty".to_owned(), |id| id.to_string());
            let meta = SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
                snapshot_id,
            };
            snapshot::Stored { meta, state }
        };
        self.storage
            .ask(Work::SnapshotBuilt(stored.clone()))
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(stored.meta.signature()), any(&error)))?;
        *locked(&self.current) = Some(stored.clone());
        Ok(Snapshot { meta: stored.meta, snapshot: Box::new(Cursor::new(stored.state)) })
    }
}
