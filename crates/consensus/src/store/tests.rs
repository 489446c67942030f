//! openraft's own suite on our store, damage, and the hard state file.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload};
use tempfile::TempDir;

use super::disk::SyncCount;
use super::hard::{HardState, HardStateFile, LogGuard, Opened, Sentinel, SentinelKind};
use super::log::LogStore;
use super::machine::Machine;
use super::slot::{self, SLOT_SIZE};
use super::thread::{Storage, Work};
use super::{open, raft_dir};
use crate::command::{ClusterCommand, PrepareReason, WallTime};
use crate::error::ConsensusError;
use crate::ids::{Epoch, NodeId};
use crate::observer::{LogCause, LogHeld, LogObserver, NoObserver};
use crate::raft::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::settings::Settings;

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, NodeId(1)), index)
}

pub(super) fn entry(term: u64, index: u64, text: &str) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(ClusterCommand::Found {
            cluster: text.to_owned(),
            founder: NodeId(0),
            members: Vec::new(),
            settings: Settings::default(),
        }),
    }
}

/// Opens what is in `dir`; the storage thread runs until the last handle is dropped.
pub(super) fn start(
    dir: &Path,
    observer: Arc<dyn LogObserver>,
) -> Result<(Storage, Arc<HardStateFile>), ConsensusError> {
    let hard = Arc::new(HardStateFile::open_or_create(dir)?.0);
    let opened = open::open(dir, &hard.get(), &SyncCount::default())?;
    let storage = Storage::start(opened, Arc::clone(&hard), observer);
    Ok((storage.expect("start"), hard))
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = TempDir::new().expect("temporary directory");
        let (storage, hard) = start(dir.path(), Arc::new(NoObserver)).expect("open");
        let log = LogStore::new(storage.clone(), None, None, hard.get().node_id);
        let machine = Machine::new(storage, None).expect("machine");
        Ok((dir, log, machine))
    }
}

#[test]
fn passes_the_suite_of_openraft() {
    Suite::test_all(Builder).expect("suite");
}

#[derive(Debug, Default)]
struct Heard(std::sync::Mutex<Vec<(LogHeld, LogCause)>>);

impl LogObserver for Heard {
    fn log_changed(&self, held: LogHeld, cause: LogCause) {
        self.0.lock().expect("lock").push((held, cause));
    }
}

fn prepare(term: u64, index: u64) -> Entry {
    let command = ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(command) }
}

#[tokio::test]
async fn the_observer_knows_the_newest_prepare_after_restart_and_truncation() {
    let dir = TempDir::new().expect("temporary directory");
    let heard = Arc::new(Heard::default());
    let (storage, held) = start(dir.path(), heard.clone()).expect("open");
    let entries = vec![entry(1, 0, ""), prepare(1, 1), entry(1, 2, ""), prepare(1, 3)];
    storage.ask(Work::Append(entries)).await.expect("append");
    storage.ask(Work::Truncate(log_id(1, 2))).await.expect("truncate");
    storage.ask(Work::Append(vec![entry(2, 2, "")])).await.expect("append");
    storage.ask(Work::Finish).await.expect("finish");
    drop((storage, held));
    let (storage, _held) = start(dir.path(), heard.clone()).expect("open");
    storage.ask(Work::Append(vec![prepare(2, 3)])).await.expect("append");
    let found: Vec<_> = heard.0.lock().expect("lock").iter().map(|(h, c)| (h.prepare.0, *c)).collect();
    let expected = [
        (0, LogCause::Start),
        (3, LogCause::Append),
        (1, LogCause::Truncate),
        (1, LogCause::Append),
        (1, LogCause::Start),
        (3, LogCause::Append),
    ];
    assert_eq!(found, expected);
}

/// Makes a store with entries 0 to `count` - 1 and a vote in term 7.
async fn filled(dir: &Path, count: u64) {
    let (storage, _hard) = start(dir, Arc::new(NoObserver)).expect("open");
    for index in 0..count {
        storage.ask(Work::Append(vec![entry(3, index, &"x".repeat(300))])).await.expect("append");
    }
    storage.ask(Work::Vote(Vote::new(7, NodeId(1)))).await.expect("vote");
    storage.ask(Work::Finish).await.expect("finish");
}

/// Opens a store that must not be believed, or that has lost nothing.
#[track_caller]
fn refused(dir: &Path, what: &str) -> Option<String> {
    let hard = HardStateFile::peek(dir).expect("peek").expect("exists");
    match open::open(dir, &hard, &SyncCount::default()) {
        Ok(opened) => {
            assert_eq!(opened.vote.map(|v| v.leader_id.term), Some(7), "{what}: an older voter");
            assert_eq!(
                opened.mirror.last().map(|l| l.index),
                Some(hard.last_log.expect("guard").index),
                "{what}"
            );
            None
        }
        Err(ConsensusError::StoreDamaged { reason, .. }) => Some(reason),
        Err(error) => panic!("{what}: {error}"),
    }
}

#[tokio::test]
async fn a_truncated_or_scribbled_store_is_refused_and_never_an_older_voter() {
    let dir = TempDir::new().expect("temporary directory");
    filled(dir.path(), 120).await;
    let db = raft_dir(dir.path()).join("log/db");
    let good = fs::read(&db).expect("read");
    // The file is longer than what was written: damage what is in use.
    let used = good.iter().rposition(|b| *b != 0).expect("content") + 1;
    let mut refusals = 0;
    for round in 0..24 {
        let at = used * (2 * round + 1) / 48;
        let mut bad = good.clone();
        let what = match round % 3 {
            0 => {
                bad.truncate(at);
                format!("truncated at {at} of {used}")
            }
            1 => {
                bad[at..].fill(0);
                format!("zeroed from {at} of {used}")
            }
            _ => {
                let end = (at + 512).min(used);
                bad[at..end].iter_mut().for_each(|b| *b ^= 0xA5);
                format!("scribbled at {at} of {used}")
            }
        };
        let copy = TempDir::new().expect("temporary directory");
        copy_tree(dir.path(), copy.path());
        fs::write(raft_dir(copy.path()).join("log/db"), &bad).expect("damage");
        if round % 2 == 0 {
            // Without sled's own snapshots the log alone decides: this is what reverts silently.
            for entry in fs::read_dir(raft_dir(copy.path()).join("log")).expect("list") {
                let path = entry.expect("entry").path();
                if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("snap.")) {
                    fs::remove_file(path).expect("remove");
                }
            }
        }
        refusals += usize::from(refused(copy.path(), &what).is_some());
    }
    assert!(refusals >= 12, "only {refusals} of 24 damaged stores were refused");
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("create");
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[tokio::test]
async fn leftovers_of_a_crash_during_opening_heal() {
    let dir = TempDir::new().expect("temporary directory");
    filled(dir.path(), 20).await;
    let log = raft_dir(dir.path()).join("log");
    fs::write(log.join("snap.00000000000000FF.generating"), b"partial").expect("write");
    assert_eq!(refused(dir.path(), "a partial snapshot"), None);
    fs::write(log.join("snap.0000000000FFFFFF"), b"").expect("write");
    assert_eq!(refused(dir.path(), "an empty snapshot"), None);
}

#[tokio::test]
async fn a_store_that_is_gone_is_lost_and_the_member_can_be_renewed() {
    let dir = TempDir::new().expect("temporary directory");
    filled(dir.path(), 3).await;
    fs::remove_dir_all(raft_dir(dir.path())).expect("remove");
    let (hard, opened) = HardStateFile::open_or_create(dir.path()).expect("hard state");
    assert_eq!(opened, Opened::Existing);
    hard.update(|s| s.promise = Epoch(9)).expect("update");
    let error = open::open(dir.path(), &hard.get(), &SyncCount::default()).expect_err("lost");
    assert!(matches!(error, ConsensusError::StoreLost { .. }), "{error}");
    let before = hard.get();
    let after = hard.renew().expect("renew");
    assert!(before.node_id != after.node_id && before.incarnation != after.incarnation);
    assert_eq!(after.promise, Epoch(9), "what protects the data directory stays");
    open::open(dir.path(), &after, &SyncCount::default()).expect("a new store");
    let second = HardStateFile::open_or_create(dir.path()).expect_err("locked");
    assert!(matches!(second, ConsensusError::InUse { .. }), "{second}");
}

#[test]
fn an_older_copy_of_the_store_is_refused() {
    let dir = TempDir::new().expect("temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(filled(dir.path(), 10));
    let mut hard = HardStateFile::peek(dir.path()).expect("peek").expect("exists");
    assert_eq!(hard.last_log, Some(LogGuard::from(&log_id(3, 9))));
    hard.last_log = Some(LogGuard::from(&log_id(4, 5)));
    let error = open::open(dir.path(), &hard, &SyncCount::default()).expect_err("older log");
    let text = error.to_string();
    assert!(text.contains("was acknowledged") && text.contains("hint: `mv "), "{text}");
}

#[test]
fn a_torn_write_of_the_hard_state_leaves_the_old_or_the_new_one() {
    let dir = TempDir::new().expect("temporary directory");
    let (hard, _) = HardStateFile::open_or_create(dir.path()).expect("create");
    let sentinel = Sentinel { epoch: Epoch(3), kind: SentinelKind::Rewind, source: "n2".to_owned() };
    let old = hard.update(|s| s.sentinel = Some(sentinel)).expect("update");
    let path = hard.path().to_owned();
    let new = HardState { promise: Epoch(u64::MAX), ..old.clone() };
    drop(hard);
    // Creation wrote slot 0, the session slot 1, the sentinel slot 0: the next is slot 1.
    let image = slot::encode(4, &new).expect("encode");
    let before = fs::read(&path).expect("read");
    let mut seen_new = 0;
    let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
    assert_ne!(before[SLOT_SIZE..], image, "slot 1 is the next");
    for end in 0..=SLOT_SIZE {
        // One byte more than last time.
        let start = end.saturating_sub(1);
        file.write_all_at(&image[start..end], (SLOT_SIZE + start) as u64).expect("write");
        let found = HardStateFile::peek(dir.path()).expect("readable").expect("exists");
        seen_new += usize::from(found == new);
        assert!(found == new || found == old, "torn after {end} bytes");
    }
    assert!(seen_new > 0 && seen_new < SLOT_SIZE);
    // Both slots gone is damage, not an empty member.
    file.write_all_at(&[0; 16], 0).expect("write");
    file.write_all_at(&[0; 16], SLOT_SIZE as u64).expect("write");
    let error = HardStateFile::open_or_create(dir.path()).expect_err("damaged");
    assert!(matches!(error, ConsensusError::HardStateDamaged { .. }), "{error}");
}

#[test]
fn the_hard_state_counts_sessions_and_writes_only_changes() {
    let dir = TempDir::new().expect("temporary directory");
    let deep = dir.path().join("a/b");
    let (hard, opened) = HardStateFile::open_or_create(&deep).expect("create");
    assert_eq!((opened, hard.get().session.0), (Opened::New, 1));
    let (id, bytes) = (hard.get().node_id, fs::read(hard.path()).expect("read"));
    hard.update(|s| s.promise = Epoch(0)).expect("nothing");
    assert_eq!(fs::read(hard.path()).expect("read"), bytes);
    drop(hard);
    let (hard, opened) = HardStateFile::open_or_create(&deep).expect("open");
    assert_eq!((opened, hard.get().session.0, hard.get().node_id), (Opened::Existing, 2, id));
    let huge = Sentinel { epoch: Epoch(1), kind: SentinelKind::Clone, source: "x".repeat(SLOT_SIZE) };
    assert!(hard.update(|s| s.sentinel = Some(huge)).is_err());
    hard.update(|s| s.promise = Epoch(1)).expect("what is too large does not break the file");
}

#[tokio::test]
async fn after_an_error_storage_answers_nothing_but_errors() {
    let dir = TempDir::new().expect("temporary directory");
    let (storage, _hard) = start(dir.path(), Arc::new(NoObserver)).expect("open");
    storage.ask(Work::Append(vec![entry(1, 0, "x")])).await.expect("append");
    let huge = entry(1, 1, &"x".repeat(100_000));
    storage.ask(Work::Append(vec![huge])).await.expect_err("too large for sled");
    storage.ask(Work::Vote(Vote::new(2, NodeId(1)))).await.expect_err("broken for good");
    let mut fatal = storage.fatal();
    let found = tokio::time::timeout(Duration::from_secs(5), fatal.wait_for(Option::is_some));
    assert!(found.await.expect("in time").expect("open").is_some());
}

#[test]
fn a_copy_that_was_done_before_a_restart_is_still_done() {
    let dir = TempDir::new().expect("temporary directory");
    for (begun, done) in
        [(SentinelKind::Rewind, SentinelKind::Rewound), (SentinelKind::Clone, SentinelKind::Cloned)]
    {
        let (hard, _) = HardStateFile::open_or_create(dir.path()).expect("open");
        let sentinel = Sentinel { epoch: Epoch(3), kind: begun, source: "n2".to_owned() };
        hard.update(|s| s.sentinel = Some(sentinel)).expect("update");
        drop(hard);
        let (hard, _) = HardStateFile::open_or_create(dir.path()).expect("open");
        assert_eq!((hard.get().unfinished(), hard.get().copied()), (Some(Epoch(3)), false), "{begun:?}");
        hard.update(|s| s.sentinel.iter_mut().for_each(|it| it.kind = it.kind.done())).expect("update");
        drop(hard);
        let (hard, _) = HardStateFile::open_or_create(dir.path()).expect("open");
        assert_eq!((hard.get().unfinished(), hard.get().copied()), (None, true), "{begun:?}");
        assert_eq!(hard.get().sentinel.map(|it| it.kind), Some(done));
    }
}

#[test]
fn the_kinds_of_a_sentinel_keep_their_numbers_on_disk() {
    let kinds = [
        SentinelKind::Rewind,
        SentinelKind::Clone,
        SentinelKind::Initdb,
        SentinelKind::Rewound,
        SentinelKind::Cloned,
    ];
    for (number, kind) in (0..).zip(kinds) {
        assert_eq!(postcard::to_stdvec(&kind).expect("encode"), [number], "{kind:?}");
    }
}
