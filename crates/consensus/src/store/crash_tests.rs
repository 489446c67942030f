//! Crashes of a real process: what was acknowledged must be there afterwards.
//!
//! The child (this test binary again, running `driven_child`) writes and prints a line after
//! each acknowledgement. The parent kills it, or cuts the power of the file system below it,
//! at random moments, and opens what is left.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use openraft::RaftLogId;
use tempfile::TempDir;

use super::disk::SyncCount;
use super::hard::{HardStateFile, LogGuard};
use super::open;
use super::tests::{entry, log_id};
use super::thread::{Storage, Work, read};
use crate::error::ConsensusError;
use crate::ids::NodeId;
use crate::observer::NoObserver;
use crate::raft::Vote;

const DIR: &str = "RHONE_TEST_CRASH_DIR";
const FLUSH_ONLY: &str = "RHONE_TEST_FLUSH_ONLY";
const CHILD: &str = "store::crash_tests::driven_child";

fn text(term: u64, index: u64) -> String {
    format!("{term}.{index} ").repeat(usize::try_from(index % 97 + 1).expect("small"))
}

fn random() -> u64 {
    getrandom::u64().expect("random")
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("@{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
}

/// Writes until killed. Does nothing unless it is the child.
#[test]
fn driven_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(drive(&dir));
}

async fn drive(dir: &Path) {
    let hard = Arc::new(HardStateFile::open_or_create(dir).expect("hard state").0);
    let mut opened = open::open(dir, &hard.get(), &SyncCount::default()).expect("open");
    if std::env::var_os(FLUSH_ONLY).is_some() {
        opened.disk.flush_only();
    }
    let mut term =
        opened.vote.map_or(0, |v| v.leader_id.term).max(opened.mirror.last().map_or(0, |l| l.leader_id.term));
    let storage = Storage::start(opened, hard, Arc::new(NoObserver)).expect("start");
    say("ready");
    loop {
        let last = read(storage.mirror()).last();
        let next = last.map_or(0, |l| l.index + 1);
        match random() % 10 {
            0 => {
                term += 1;
                storage.ask(Work::Vote(Vote::new(term, NodeId(1)))).await.expect("vote");
                say(&format!("vote {term}"));
            }
            1 if next > 10 => {
                term += 1;
                let from = next - random() % 3 - 1;
                let kept = read(storage.mirror()).before(from).expect("kept");
                if read(storage.mirror()).purged().is_some_and(|p| p.index >= from) {
                    continue;
                }
                say(&format!("log {} {}", kept.leader_id.term, kept.index));
                let first = read(storage.mirror()).range(from..=from)[0].log_id;
                storage.ask(Work::Truncate(first)).await.expect("truncate");
            }
            2 if random().is_multiple_of(8) && next > 50 => {
                let upto = last.expect("entries");
                let meta = crate::raft::SnapshotMeta { last_log_id: Some(upto), ..Default::default() };
                let stored = super::snapshot::Stored { meta, state: vec![1, 0] };
                storage.ask(Work::SnapshotBuilt(stored)).await.expect("snapshot");
                storage.ask(Work::Purge(upto)).await.expect("purge");
            }
            _ => {
                let entries: Vec<_> = (next..=next + random() % 4)
                    .map(|index| entry(term, index, &text(term, index)))
                    .collect();
                let last = *entries.last().expect("some").get_log_id();
                storage.ask(Work::Append(entries)).await.expect("append");
                say(&format!("log {} {}", last.leader_id.term, last.index));
            }
        }
    }
}

/// What the child said.
#[derive(Debug, Default)]
struct Acked {
    lines: usize,
    vote: u64,
    /// The last line decides: it is lower after "will be truncated to".
    log: Option<LogGuard>,
}

impl Acked {
    fn hear(&mut self, line: &str) {
        let Some(said) = line.trim().split_once('@').map(|(_, said)| said) else { return };
        let words: Vec<&str> = said.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "vote" => self.vote = number(1),
            "log" => self.log = Some(LogGuard::from(&log_id(number(1), number(2)))),
            _ => return,
        }
        self.lines += 1;
    }
}

fn spawn(dir: &Path, flush_only: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args([CHILD, "--exact", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    if flush_only {
        command.env(FLUSH_ONLY, "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("spawn")
}

/// Lets a child write for a random while; `crash` ends it; returns what it said.
fn round(dir: &Path, flush_only: bool, acked: &mut Acked, crash: impl FnOnce(&mut Child)) {
    let mut child = spawn(dir, flush_only);
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("@ready") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("read") > 0, "the child did not start");
    }
    for _ in 0..random() % 40 {
        line.clear();
        if lines.read_line(&mut line).expect("read") == 0 {
            break;
        }
        acked.hear(&line);
    }
    std::thread::sleep(Duration::from_micros(random() % 3000)); // the moment is random on purpose
    crash(&mut child);
    drop(child.kill());
    child.wait().expect("wait");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("read");
    // The last line may be torn: then it was not heard.
    for line in rest.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        acked.hear(line);
    }
}

/// Opens what is left; returns why not.
fn check(dir: &Path, acked: &Acked) -> Result<(), String> {
    let hard = HardStateFile::peek(dir).map_err(|e| e.to_string())?.ok_or("no hard state")?;
    let opened = match open::open(dir, &hard, &SyncCount::default()) {
        Ok(opened) => opened,
        Err(error @ ConsensusError::StoreDamaged { .. }) => return Err(format!("damaged: {error}")),
        Err(error) => return Err(error.to_string()),
    };
    let vote = opened.vote.map_or(0, |v| v.leader_id.term);
    let log = opened.mirror.last().as_ref().map(LogGuard::from);
    if vote < acked.vote || log < acked.log {
        return Err(format!("vote {vote}, log {log:?}; acknowledged {acked:?}"));
    }
    for found in opened.mirror.range(..) {
        let id = found.log_id;
        let expected = entry(id.leader_id.term, id.index, &text(id.leader_id.term, id.index));
        if found.payload != expected.payload {
            return Err(format!("entry {id} holds {:?}", found.payload));
        }
    }
    Ok(())
}

#[test]
fn survives_being_killed_at_any_moment() {
    let dir = TempDir::new().expect("temporary directory");
    let mut acked = Acked::default();
    for number in 0..100 {
        round(dir.path(), false, &mut acked, |child| child.kill().expect("kill"));
        check(dir.path(), &acked).unwrap_or_else(|error| panic!("round {number}: {error}"));
    }
    assert!(acked.lines > 500, "only {} acknowledgements", acked.lines);
}

/// An ext4 of its own on a loop device.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn run(program: &str, args: &[&str]) -> bool {
        let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn new() -> Option<Self> {
        let disk = Self { dir: TempDir::new().expect("temporary directory") };
        let image = std::fs::File::create(disk.path("image")).expect("create");
        image.set_len(96 << 20).expect("set length");
        std::fs::create_dir(disk.path("m")).expect("create");
        (Self::run("mkfs.ext4", &["-q", "-F", &disk.path("image")]) && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        Self::run("mount", &["-o", "loop", &self.path("image"), &self.path("m")])
    }

    /// Whether a loop device holds the image.
    fn attached(&self) -> bool {
        let output = Command::new("losetup").args(["-j", &self.path("image")]).output();
        output.is_ok_and(|output| !output.stdout.is_empty())
    }

    /// Everything not synced is lost, and each later call fails.
    fn cut_power(&self) {
        const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let root = std::fs::File::open(self.path("m")).expect("open");
        #[allow(unsafe_code, reason = "no safe wrapper exists for this ioctl")]
        // SAFETY: EXT4_IOC_SHUTDOWN reads one u32.
        let result = unsafe {
            rustix::ioctl::ioctl(&root, rustix::ioctl::Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH))
        };
        result.expect("cut the power");
    }

    /// Where a mount namespace made meanwhile has a copy of the mount, the file system that lost its power lives on
    /// and would be mounted again: then a copy of its image is what the next start finds.
    fn reboot(&self) {
        for _ in 0..500 {
            if Self::run("umount", &[&self.path("m")]) {
                if self.attached() {
                    let (image, copy) = (self.path("image"), self.path("copy"));
                    assert!(Self::run("cp", &["--sparse=always", &image, &copy]), "copy the image");
                    std::fs::rename(copy, image).expect("rename");
                }
                assert!(self.mount(), "mount again");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("cannot unmount {}", self.path("m"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Self::run("umount", &["-l", &self.path("m")]);
    }
}

/// Returns how many of `rounds` power cuts lost something that was acknowledged.
fn power_cuts(rounds: u32, flush_only: bool) -> Option<(u32, Vec<String>)> {
    let Some(mut disk) = Disk::new() else {
        eprintln!("SKIPPED: no power cuts here: needs root, mkfs.ext4 and a loop device");
        return None;
    };
    let mut acked = Acked::default();
    let mut losses = Vec::new();
    for number in 0..rounds {
        let state = PathBuf::from(disk.path("m")).join("state");
        round(&state, flush_only, &mut acked, |_| disk.cut_power());
        disk.reboot();
        if let Err(error) = check(&state, &acked) {
            losses.push(format!("round {number}: {error}"));
            disk = Disk::new().expect("it worked before");
            acked = Acked::default();
        }
    }
    eprintln!(
        "{} of {rounds} power cuts lost something; {} acknowledgements in the last store: {losses:#?}",
        losses.len(),
        acked.lines
    );
    Some((rounds, losses))
}

#[test]
fn survives_power_cuts() {
    let Some((_, losses)) = power_cuts(24, false) else { return };
    assert!(losses.is_empty(), "{losses:#?}");
}

#[test]
fn the_power_cuts_bite_when_flush_alone_counts_as_durable() {
    let Some((rounds, losses)) = power_cuts(10, true) else { return };
    assert!(!losses.is_empty(), "{rounds} power cuts lost nothing: this test proves nothing");
    // The guard turned each loss into a refusal.
    assert!(losses.iter().all(|l| l.contains("damaged") || l.contains("missing")), "{losses:#?}");
}
