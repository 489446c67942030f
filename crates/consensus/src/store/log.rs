//! openraft's view of the log: reads from memory, writes through the storage thread.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageIOError};

use super::thread::{Storage, Work, read};
use crate::ids::NodeId;
use crate::raft::{Entry, LogId, StorageError, TypeConfig, Vote};

/// The log and the vote.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    storage: Storage,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl LogStore {
    /// Makes the view of a store that held `vote` and `committed` when it was opened.
    ///
    /// A committed vote for `me` is given back as uncommitted: openraft 0.9 would resume as
    /// leader without asking anybody (RUST.md, trap 3). The vote itself still counts.
    pub(crate) fn new(storage: Storage, vote: Option<Vote>, committed: Option<LogId>, me: NodeId) -> Self {
        let mut vote = vote;
        if let Some(own) = vote.as_mut().filter(|vote| vote.leader_id.node_id == me) {
            own.committed = false;
        }
        Self { storage, vote, committed }
    }
}

/// Makes openraft's error of ours.
pub(crate) fn write_error(error: &io::Error) -> StorageError {
    StorageError::from(StorageIOError::write_logs(openraft::AnyError::new(error)))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(read(self.storage.mirror()).range(range))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        Ok(read(self.storage.mirror()).limited(start, end))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let mirror = read(self.storage.mirror());
        Ok(LogState { last_purged_log_id: mirror.purged(), last_log_id: mirror.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.storage.ask(Work::Vote(*vote)).await;
        saved.map_err(|error| StorageIOError::write_vote(openraft::AnyError::new(&error)))?;
        self.vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.committed = committed;
        self.storage.ask(Work::Committed(committed)).await.map_err(|error| write_error(&error))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        match self.storage.ask(Work::Append(entries)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                let text = write_error(&error);
                callback.log_io_completed(Err(error));
                Err(text)
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.storage.ask(Work::Truncate(log_id)).await.map_err(|error| write_error(&error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.storage.ask(Work::Purge(log_id)).await.map_err(|error| write_error(&error))
    }
}
