//! The storage thread: the only writer of the store, one request after another.
//!
//! The order of each step: the store durably, then the guard, then the observer, then the
//! answer (removal: first the guard). After an error it answers nothing but that error.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

use openraft::{EntryPayload, RaftLogId};
use tokio::sync::{oneshot, watch};

use super::disk::{Record, SyncCount};
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
    requests: mpsc::Sender<Request>,
    mirror: SharedMirror,
    fatal: Arc<watch::Sender<Option<String>>>,
}

impl Storage {
    /// Starts the thread.
    pub(crate) fn start(
        opened: Opened,
        hard: Arc<HardStateFile>,
        observer: Arc<dyn LogObserver>,
        syncs: SyncCount,
    ) -> io::Result<Self> {
        let (requests, receive) = mpsc::channel::<Request>();
        let mirror = Arc::new(RwLock::new(opened.mirror));
        let fatal = Arc::new(watch::Sender::new(None));
        observer.log_changed(read(&mirror).held(), LogCause::Start);
        let snapshots = opened.snapshots;
        let writer =
            Writer { disk: opened.disk, mirror: Arc::clone(&mirror), hard, observer, snapshots, syncs };
        let report = Arc::clone(&fatal);
        std::thread::Builder::new()
            .name("raft-store".to_owned())
            .spawn(move || serve(writer, &receive, &report))?;
        Ok(Self { requests, mirror, fatal })
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

fn serve(mut writer: Writer, requests: &mpsc::Receiver<Request>, fatal: &watch::Sender<Option<String>>) {
    let mut broken: Option<String> = None;
    while let Ok(Request { work, done }) = requests.recv() {
        let last = matches!(work, Work::Finish);
        let result = match &broken {
            Some(reason) => Err(io::Error::other(reason.clone())),
            None => catch_unwind(AssertUnwindSafe(|| writer.work(work)))
                .unwrap_or_else(|cause| Err(io::Error::other(panic_text(cause.as_ref())))),
        };
        if let (Err(error), None) = (&result, &broken) {
            tracing::error!(%error, "raft store failed");
            broken = Some(error.to_string());
            fatal.send_replace(Some(format!("raft store: {error}")));
        }
        if last {
            // Closed before anybody may open it anew.
            drop(writer);
            drop(done.send(result));
            return;
        }
        // The asker may have gone.
        drop(done.send(result));
    }
}

struct Writer {
    disk: super::disk::Disk,
    mirror: SharedMirror,
    hard: Arc<HardStateFile>,
    observer: Arc<dyn LogObserver>,
    snapshots: std::path::PathBuf,
    syncs: SyncCount,
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
                snapshot::write(&self.snapshots, &stored, &self.syncs)?;
                self.rebase(&stored);
                Ok(())
            }
            Work::SnapshotInstalled(stored) => {
                snapshot::write(&self.snapshots, &stored, &self.syncs)?;
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
            self.syncs.add();
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
