//! Opens the store, or says that it is damaged or out of reach, within a limit.
//!
//! Damage can make sled panic or hang (RUST.md 2): it is opened and read through on a thread
//! that nobody waits for longer than [`OPEN_LIMIT`]. A store that went back in time looks
//! healthy; the guards in the hard state tell.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use openraft::RaftLogId;

use super::disk::{Contents, Disk, SyncCount};
use super::hard::{HardState, LogGuard, VoteGuard};
use super::medium::{Medium, SledMedium};
use super::mirror::Mirror;
use super::{make_dirs, raft_dir, snapshot};
use crate::error::ConsensusError;
use crate::ids::LogIndex;
use crate::raft::{LogId, Vote};

/// How long opening may take: a healthy store of this size needs milliseconds.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// A store that was opened and found consistent.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) disk: Disk,
    pub(crate) mirror: Mirror,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) snapshot: Option<snapshot::Stored>,
}

enum Failure {
    Damaged(String),
    Unavailable(String),
    InUse,
}

impl Failure {
    /// Full, read-only or failing disks say nothing about what is on them; a file that ends too early does.
    fn of(error: &io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) {
            Self::Damaged(error.to_string())
        } else {
            Self::Unavailable(error.to_string())
        }
    }
}

/// Opens the store under `dir`, checked against the guards.
pub(crate) fn open(dir: &Path, hard: &HardState, syncs: &SyncCount) -> Result<Opened, ConsensusError> {
    let store = raft_dir(dir);
    let exists = store.try_exists().map_err(|e| ConsensusError::io("look for", &store, e))?;
    if !exists {
        if hard.had_store() {
            return Err(ConsensusError::StoreLost { store });
        }
        for folder in ["log", "snapshots"] {
            let path = store.join(folder);
            make_dirs(&path).map_err(|e| ConsensusError::io("create", &path, e))?;
        }
    }
    let unavailable = |reason: String| ConsensusError::StoreUnavailable { store: store.clone(), reason };
    let (send, receive) = mpsc::channel();
    let (path, hard, syncs) = (store.clone(), hard.clone(), syncs.clone());
    std::thread::Builder::new()
        .name("raft-open".to_owned())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| attempt(&path, &hard, &syncs)))
                .unwrap_or_else(|cause| Err(Failure::Damaged(panic_text(cause.as_ref()))));
            // Nobody listens any more when this took too long.
            drop(send.send(result));
        })
        .map_err(|e| ConsensusError::io("start a thread for", &store, e))?;
    match receive.recv_timeout(OPEN_LIMIT) {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(Failure::InUse)) => Err(ConsensusError::InUse { path: store.join("log/db") }),
        Ok(Err(Failure::Unavailable(reason))) => Err(unavailable(reason)),
        Ok(Err(Failure::Damaged(reason))) => Err(ConsensusError::StoreDamaged { store, reason }),
        Err(_) => Err(unavailable(format!(
            "opening it took more than {OPEN_LIMIT:?}: the disk hangs, or the store is damaged"
        ))),
    }
}

pub(crate) fn panic_text(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("the store's code panicked: {text}")
}

fn attempt(store: &Path, hard: &HardState, syncs: &SyncCount) -> Result<Opened, Failure> {
    let log = store.join("log");
    let snapshots = store.join("snapshots");
    if hard.had_store() && !log.join("db").exists() {
        return Err(Failure::Damaged("log/db is missing".to_owned()));
    }
    make_dirs(&log).map_err(|error| Failure::of(&error))?;
    make_dirs(&snapshots).map_err(|error| Failure::of(&error))?;
    let medium = open_sled(&log, &snapshots)?;
    examine(Box::new(medium), hard, syncs).map_err(Failure::Damaged)
}

/// Reads the store that `medium` holds, checked against the guards, or says how it is damaged.
pub(crate) fn examine(
    medium: Box<dyn Medium>,
    hard: &HardState,
    syncs: &SyncCount,
) -> Result<Opened, String> {
    let mut disk = Disk::new(medium, syncs.clone());
    let contents = disk.load()?;
    let snapshot = disk.snapshot()?;
    check(&contents, snapshot.as_ref(), hard)?;
    let base = snapshot.as_ref().and_then(|s| *s.meta.last_membership.log_id());
    let mut mirror = Mirror::new(contents.purged, LogIndex(base.map_or(0, |id| id.index)));
    for record in contents.records {
        let bytes = record.value.len();
        mirror.push(record.entry, bytes);
    }
    let (vote, committed) = (contents.vote, contents.committed);
    Ok(Opened { disk, mirror, vote, committed, snapshot })
}

/// Opens sled; leftovers of a crash during an earlier open are removed (RUST.md 2, rule 7).
fn open_sled(log: &Path, snapshots: &Path) -> Result<SledMedium, Failure> {
    let failed = |error: io::Error| Failure::of(&error);
    let sled_failed = |error: sled::Error| {
        if let sled::Error::Io(error) = error {
            Failure::of(&error)
        } else {
            Failure::Damaged(format!("sled: {error}"))
        }
    };
    remove_snaps(log, |name| name.ends_with(".generating")).map_err(failed)?;
    match SledMedium::open(log, snapshots) {
        Ok(medium) => Ok(medium),
        Err(sled::Error::Io(error)) if error.to_string().contains("lock") => Err(Failure::InUse),
        Err(sled::Error::Corruption { .. }) => {
            // The guards notice if the log file alone leads to an older state.
            remove_snaps(log, |_| true).map_err(failed)?;
            SledMedium::open(log, snapshots).map_err(sled_failed)
        }
        Err(error) => Err(sled_failed(error)),
    }
}

fn remove_snaps(log: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(log)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") && which(&name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn check(contents: &Contents, snapshot: Option<&snapshot::Stored>, hard: &HardState) -> Result<(), String> {
    let last = contents.records.last().map(|r| *r.entry.get_log_id()).or(contents.purged);
    let covered = snapshot.and_then(|s| s.meta.last_log_id);
    if covered < contents.purged {
        return Err("the snapshot below the log is missing or too old".to_owned());
    }
    if contents.committed > last.max(covered) {
        return Err("the log ends before what is known to be committed".to_owned());
    }
    let vote = contents.vote.as_ref().map(VoteGuard::from);
    if vote < hard.vote {
        return Err(format!("its vote {vote:?} is older than {:?}, which was given", hard.vote));
    }
    let log = last.max(covered).as_ref().map(LogGuard::from);
    if log < hard.last_log {
        return Err(format!("its log ends at {log:?}, but {:?} was acknowledged", hard.last_log));
    }
    Ok(())
}
