//! Writes each changed decision with all that it was taken from, for `rhone replay`.
//!
//! Never in anybody's way: a thread of its own writes, and what it cannot keep up with, or the disk does not
//! take, is dropped and counted. Never fsynced, at most two files of [`FILE_LIMIT`], and not a byte while no
//! decision changes (decision 0048).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::civil::WallTime;
use crate::config::Config;
use crate::decide::{ClusterDecision, NodeDecision, Reason, Wait};
use crate::record::{Begin, ClusterSeen, FORMAT, Line, MemberSeen, Record, recorded, same};
use crate::runtime::clock::Timepiece;
use crate::view::{ClusterView, Moment, NodeView};

/// A file that has grown to this is kept under another name, and the one before removed.
pub const FILE_LIMIT: u64 = 2 << 20;

/// A longer line is dropped: a state of a thousand timelines has a tenth of it.
const LINE_LIMIT: usize = 1 << 20;

/// So many decisions may wait for the disk: a failover's, several times over.
const QUEUE: usize = 64;

/// Serializing recurses a few levels deep; measured far below this.
const STACK: usize = 256 << 10;

/// Writes changed decisions down; by default nowhere.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<Arc<Sink>>);

#[derive(Debug)]
struct Sink {
    clock: Timepiece,
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    cluster: Option<ClusterDecision>,
    member: Option<NodeDecision>,
}

impl Recorder {
    /// Starts the thread that writes where the configuration says, if it says so.
    pub fn start(config: &Config, clock: Timepiece) -> Self {
        let Some(path) = config.node.recorder.clone() else { return Self::default() };
        let begin = Begin {
            format: FORMAT,
            rhone: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: config.cluster.clone(),
            member: config.node.name.clone(),
        };
        let (lines, queue) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer { path, begin, file: None, dropped: Arc::clone(&dropped), failing: false };
        let started = std::thread::Builder::new()
            .name("recorder".to_owned())
            .stack_size(STACK)
            .spawn(move || writer.run(&queue));
        match started {
            // It ends with the last sender, or with the process: nobody waits for it.
            Ok(_running) => Self(Some(Arc::new(Sink { clock, lines, dropped, last: Mutex::default() }))),
            Err(error) => {
                tracing::warn!(%error, "decisions are not recorded");
                Self::default()
            }
        }
    }

    /// Notes what the leader decided, if that is something else than the last time. A voter that hears nothing for a
    /// moment and then does is no change: on a busy machine that comes and goes all day.
    pub fn cluster(&self, view: &ClusterView<'_>, now: Moment, decision: &ClusterDecision) {
        let Some(sink) = &self.0 else { return };
        let mut last = sink.last.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |wait: &Wait| matches!(wait, Wait::Calm | Wait::SomeSilence { .. });
        let is_quiet =
            |decision: &ClusterDecision| matches!(decision, ClusterDecision::Wait(wait) if quiet(wait));
        let no_change =
            |known: &ClusterDecision| same(known, decision) || is_quiet(known) && is_quiet(decision);
        if last.cluster.as_ref().is_some_and(no_change) {
            return;
        }
        last.cluster = Some(decision.clone());
        drop(last);
        let at = WallTime::from_ms(sink.clock.wall_time());
        let (seen, decided) = (ClusterSeen::of(view), recorded(decision));
        sink.send(Line::Cluster(Record { at, now, seen, decided }));
    }

    /// Notes what the member decided for its Postgres, if that is something else than the last time; that something
    /// is under way is not: what cannot be started is begun each few seconds.
    pub fn member(&self, view: &NodeView<'_>, now: Moment, decided: NodeDecision) {
        let Some(sink) = &self.0 else { return };
        if matches!(decided, NodeDecision::Rest(Reason::EffectRunning | Reason::NotProbed)) {
            return;
        }
        let mut last = sink.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.member == Some(decided) {
            return;
        }
        last.member = Some(decided);
        drop(last);
        let at = WallTime::from_ms(sink.clock.wall_time());
        sink.send(Line::Member(Record { at, now, seen: MemberSeen::of(view), decided }));
    }
}

impl Sink {
    fn send(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    path: PathBuf,
    begin: Begin,
    file: Option<(File, u64)>,
    dropped: Arc<AtomicU64>,
    /// Whether the last attempt failed: it is told once.
    failing: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Line>) {
        while let Ok(line) = queue.recv() {
            match self.write(&line) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    // The next attempt begins with an end of line, whatever is half there.
                    self.file = None;
                    if !self.failing {
                        tracing::warn!(path = %self.path.display(), %error, "decisions are not recorded");
                    }
                    self.failing = true;
                }
            }
        }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = Vec::new();
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            push(&mut bytes, &Line::Dropped(dropped))?;
        }
        push(&mut bytes, line)?;
        if bytes.len() > LINE_LIMIT {
            return Err(io::Error::other("one decision saw more than a megabyte"));
        }
        let (file, size) = self.file_for(bytes.len() as u64)?;
        file.write_all(&bytes)?;
        *size += bytes.len() as u64;
        self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        Ok(())
    }

    /// Opens the file, or begins another one when this one would grow too large.
    fn file_for(&mut self, more: u64) -> io::Result<&mut (File, u64)> {
        let full = |size: u64| size > 0 && size.saturating_add(more) > FILE_LIMIT;
        let open = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let open = if full(open.1) {
            std::fs::rename(&self.path, older(&self.path))?;
            self.open()?
        } else {
            open
        };
        Ok(self.file.insert(open))
    }

    /// Opens the file and says in it who goes on.
    fn open(&self) -> io::Result<(File, u64)> {
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)?;
        let mut bytes = Vec::new();
        let kind = file.metadata()?;
        if !kind.is_file() {
            return Err(io::Error::other("not a regular file; to record nothing say recorder = \"off\""));
        }
        if kind.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                bytes.push(b'\n');
            }
        }
        push(&mut bytes, &Line::Begin(self.begin.clone()))?;
        file.write_all(&bytes)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

fn push(bytes: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}

/// Returns where the file before this one is kept.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
