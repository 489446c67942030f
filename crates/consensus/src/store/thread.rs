//! The storage thread: the only writer of the store, one request after another.
//!
//! The order of each step: the store durably, then the guard, then the observer, then the
//! answer (removal: first the guard). After an error it answers nothing but that error.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use openraft::{EntryPayload, RaftLogId};
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Record;
use super::hard::{HardStateFile, LogGuard, VoteGuard};
use super::mirror::Mirror;
use super::open::{Opened, panic_text};
use super::snapshot;
use crate::ids::LogIndex;
use crate::observer::{LogCause, LogObserver};
use crate::raft::{Entry, LogId, Vote};

/// The log in memory, shared by the storage thread (writes) and openraft (reads).
pub(crate) type SharedMirror = Arc<RwLock<Mirror>>;

pub(crate) fn read(mirror: &SharedMirror) -> RwLockReadGuard<'_, Mirror> {
    mirror.read().unwrap_or_else(PoisonError::into_inner)
}

/// What the storage thread can be asked.
#[derive(Debug)]
pub(crate) enum Work {
    /// Append these entries.
    Append(Vec<Entry>),
    /// Record this vote.
    Vote(Vote),
    /// Remove the entries from this one on.
    Truncate(LogId),
    /// Remove the entries up to this one.
    Purge(LogId),
    /// Note how far the log is committed, with the next write.
    Committed(Option<LogId>),
    /// Write a snapshot made here.
    SnapshotBuilt(snapshot::Stored),
    /// Write a leader's snapshot.
    SnapshotInstalled(snapshot::Stored),
    /// Write what waits, and end.
    Finish,
}

struct Request {
    work: Work,
    done: oneshot::Sender<io::Result<()>>,
}

/// The way to the storage thread.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    requests: mpsc::UnboundedSender<Request>,
    mirror: SharedMirror,
    fatal: Arc<watch::Sender<Option<String>>>,
}

impl Storage {
    /// Starts the thread.
    pub(crate) fn start(
        opened: Opened,
        hard: Arc<HardStateFile>,
        observer: Arc<dyn LogObserver>,
    ) -> io::Result<Self> {
        let (storage, mut store, mut receive) = Self::prepare(opened, hard, observer);
        std::thread::Builder::new().name("raft-store".to_owned()).spawn(move || {
            while let Some(Request { work, done }) = receive.blocking_recv() {
                let result = store.serve(work);
                // The asker may have gone.
                drop(done.send(result));
                if store.writer.is_none() {
                    return;
                }
            }
        })?;
        Ok(storage)
    }

    /// Starts the same as a task, for the simulation: `pace` says how long the disk takes, and
    /// nobody is answered before.
    pub(crate) fn start_paced(
        opened: Opened,
        hard: Arc<HardStateFile>,
        observer: Arc<dyn LogObserver>,
        pace: Arc<dyn Pace>,
    ) -> Self {
        let (storage, mut store, mut receive) = Self::prepare(opened, hard, observer);
        tokio::spawn(async move {
            while let Some(Request { work, done }) = receive.recv().await {
                let result = store.serve(work);
                pace.written().await;
                drop(done.send(result));
                if store.writer.is_none() {
                    return;
                }
            }
        });
        storage
    }

    fn prepare(
        opened: Opened,
        hard: Arc<HardStateFile>,
        observer: Arc<dyn LogObserver>,
    ) -> (Self, Store, mpsc::UnboundedReceiver<Request>) {
        let (requests, receive) = mpsc::unbounded_channel::<Request>();
        let mirror = Arc::new(RwLock::new(opened.mirror));
        let fatal = Arc::new(watch::Sender::new(None));
        observer.log_changed(read(&mirror).held(), LogCause::Start);
        let writer = Writer { disk: opened.disk, mirror: Arc::clone(&mirror), hard, observer };
        let store = Store { writer: Some(writer), broken: None, fatal: Arc::clone(&fatal) };
        (Self { requests, mirror, fatal }, store, receive)
    }

    pub(crate) fn mirror(&self) -> &SharedMirror {
        &self.mirror
    }

    /// Says why storage stopped, once it has.
    pub(crate) fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// Does `work` and waits until it is durable.
    pub(crate) async fn ask(&self, work: Work) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        let gone = || io::Error::other("the storage thread has ended");
        self.requests.send(Request { work, done }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// How long a simulated disk takes.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// Ends when what was written last is durable.
    fn written(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The writer, and whether it may still be asked.
struct Store {
    /// Nothing once it has finished.
    writer: Option<Writer>,
    broken: Option<String>,
    fatal: Arc<watch::Sender<Option<String>>>,
}

impl Store {
    fn serve(&mut self, work: Work) -> io::Result<()> {
        let last = matches!(work, Work::Finish);
        let result = match (&self.broken, &mut self.writer) {
            (Some(reason), _) => Err(io::Error::other(reason.clone())),
            (None, None) => Err(io::Error::other("the store is closed")),
            (None, Some(writer)) => catch_unwind(AssertUnwindSafe(|| writer.work(work)))
                .unwrap_or_else(|cause| Err(io::Error::other(panic_text(cause.as_ref())))),
        };
        if let (Err(error), None) = (&result, &self.broken) {
            tracing::error!(%error, "raft store failed");
            self.broken = Some(error.to_string());
            self.fatal.send_replace(Some(format!("raft store: {error}")));
        }
        if last {
            // Closed before anybody may open it anew.
            self.writer = None;
        }
        result
    }
}

struct Writer {
    disk: super::disk::Disk,
    mirror: SharedMirror,
    hard: Arc<HardStateFile>,
    observer: Arc<dyn LogObserver>,
}

impl Writer {
    fn work(&mut self, work: Work) -> io::Result<()> {
        match work {
            Work::Append(entries) => self.append(entries),
            Work::Vote(vote) => {
                self.disk.save_vote(&vote)?;
                self.guard(|hard| hard.vote = Some(VoteGuard::from(&vote)))
            }
            Work::Truncate(from) => self.truncate(&from),
            Work::Purge(upto) => self.purge(upto),
            Work::Committed(committed) => {
                self.disk.save_committed(committed);
                Ok(())
            }
            Work::SnapshotBuilt(stored) => {
                self.disk.save_snapshot(&stored)?;
                self.rebase(&stored);
                Ok(())
            }
            Work::SnapshotInstalled(stored) => {
                self.disk.save_snapshot(&stored)?;
                self.rebase(&stored);
                self.observer.log_changed(read(&self.mirror).held(), LogCause::SnapshotInstall);
                Ok(())
            }
            Work::Finish => self.disk.finish(),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Mirror> {
        self.mirror.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn rebase(&self, stored: &snapshot::Stored) {
        let membership = stored.meta.last_membership.log_id().map_or(0, |id| id.index);
        self.write().rebase(LogIndex(membership));
    }

    fn guard(&self, change: impl FnOnce(&mut super::hard::HardState)) -> io::Result<()> {
        let before = self.hard.get();
        let after = self.hard.update(change).map_err(io::Error::other)?;
        if before != after {
            self.disk.count_sync();
        }
        Ok(())
    }

    fn append(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let records = entries.into_iter().map(Record::new).collect::<io::Result<Vec<_>>>()?;
        let Some(last) = records.last().map(|r| *r.entry.get_log_id()) else { return Ok(()) };
        let membership = records.iter().any(|r| matches!(r.entry.payload, EntryPayload::Membership(_)));
        self.disk.append(&records)?;
        self.guard(|hard| hard.last_log = Some(LogGuard::from(&last)))?;
        let held = {
            let mut mirror = self.write();
            for record in records {
                let bytes = record.value.len();
                mirror.push(record.entry, bytes);
            }
            mirror.held()
        };
        let cause = if membership { LogCause::MembershipAppend } else { LogCause::Append };
        self.observer.log_changed(held, cause);
        Ok(())
    }

    fn truncate(&mut self, from: &LogId) -> io::Result<()> {
        let (last, kept) = {
            let mirror = read(&self.mirror);
            (mirror.last(), mirror.before(from.index))
        };
        let Some(last) = last.filter(|last| last.index >= from.index) else { return Ok(()) };
        self.guard(|hard| hard.last_log = kept.as_ref().map(LogGuard::from))?;
        self.disk.truncate(from.index, last.index)?;
        let held = {
            let mut mirror = self.write();
            mirror.truncate(from.index);
            mirror.held()
        };
        self.observer.log_changed(held, LogCause::Truncate);
        Ok(())
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let indexes: Vec<u64> = {
            let mirror = read(&self.mirror);
            mirror.range(..=upto.index).iter().map(|entry| entry.get_log_id().index).collect()
        };
        self.disk.purge(&indexes, &upto)?;
        let last = {
            let mut mirror = self.write();
            mirror.purge(upto);
            mirror.last()
        };
        self.guard(|hard| {
            let last = last.as_ref().map(LogGuard::from);
            hard.last_log = hard.last_log.max(last);
        })
    }
}
