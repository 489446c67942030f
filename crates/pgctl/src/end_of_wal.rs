//! Reads the end of a stopped instance's WAL from disk: the position that `IDENTIFY_SYSTEM` would
//! name after a start as a standby without an upstream.
//!
//! It follows the records from the control file's redo position, as recovery does, and checks each:
//! page headers, back link, CRC. The record format is that of Postgres 9.5 to 18
//! (`xlogrecord.h`, `xlog_internal.h`). `pg_waldump` could tell the last record but not its end,
//! and is slower. It changes nothing; but what it tells is on the disk, not in a page cache (decision 0041).

use std::path::{Path, PathBuf};

use crate::control::ControlData;
use crate::crc::Crc32c;
use crate::error::PgError;
use crate::timeline::newest_history;
use crate::wal::{Lsn, Timeline, TimelineHistory, WalPosition};
use crate::walpages::{PAGE, Pages, word32, word64};

/// `sizeof(XLogRecord)`.
const RECORD_HEADER: u64 = 24;
/// Up to where the header goes into the CRC.
const CRC_AT: usize = 20;
/// The largest record that Postgres writes (`XLogRecordMaxSize`), rounded up.
const RECORD_LIMIT: u64 = 1 << 30;
/// `XLOG_SWITCH`: the rest of the segment is empty.
const SWITCH: u8 = 0x40;
/// `XLOG_CHECKPOINT_SHUTDOWN`, which names the timeline that it is on.
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
/// `XLOG_END_OF_RECOVERY`, which names the timeline that it begins.
const END_OF_RECOVERY: u8 = 0x90;

/// Reads where the WAL of a stopped instance ends.
///
/// The caller must know that nothing runs in the data directory. Reads from the last checkpoint's
/// redo position on, off the async runtime; a cleanly stopped instance takes one record. What was written and
/// not synced when the instance was killed is synced first: a position that is told survives the power's loss.
///
/// # Errors
/// [`PgError::Io`]; [`PgError::DataDirUnusable`] when the WAL ends before what the control file says
/// must be there, so that the instance could not start.
pub async fn end_of_wal(data_dir: &Path, control: &ControlData) -> Result<WalPosition, PgError> {
    let (data_dir, control) = (data_dir.to_path_buf(), control.clone());
    let read = move || end_of_wal_blocking(&data_dir, &control);
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| PgError::unexpected("read the end of WAL", error.to_string()))?
}

/// Reads where the WAL of a stopped instance ends, on the caller's thread.
///
/// # Errors
/// As [`end_of_wal`].
pub fn end_of_wal_blocking(data_dir: &Path, control: &ControlData) -> Result<WalPosition, PgError> {
    let wal_dir = data_dir.join("pg_wal");
    sync_segments(&wal_dir)?;
    let start = control.timeline.max(control.min_recovery_timeline);
    let base = WalPosition::new(control.timeline, control.checkpoint);
    let history = newest_history(&wal_dir, start, base)?;
    let end = Reader::new(wal_dir, history, control).run()?;
    let unusable = |what: &str, lsn: Lsn| {
        PgError::unusable(data_dir, format!("its WAL ends at {end}, before its {what} at {lsn}"))
    };
    if end.lsn <= control.checkpoint {
        return Err(unusable("latest checkpoint", control.checkpoint));
    }
    if end.lsn < control.min_recovery {
        return Err(unusable("minimum recovery position", control.min_recovery));
    }
    Ok(end)
}

/// Syncs the segments, and their names.
fn sync_segments(wal_dir: &Path) -> Result<(), PgError> {
    let failed = |error| PgError::io("sync the WAL in", wal_dir)(error);
    for entry in std::fs::read_dir(wal_dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let segment = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if segment {
            std::fs::File::open(&path).and_then(|file| file.sync_data()).map_err(failed)?;
        }
    }
    std::fs::File::open(wal_dir).and_then(|folder| folder.sync_all()).map_err(failed)
}

struct Reader {
    pages: Pages,
    timeline: Timeline,
    redo: u64,
    /// The record that is being read.
    record: Vec<u8>,
}

/// Where a record ends, and what it does to the reader.
struct Read {
    end: u64,
    timeline: Option<Timeline>,
}

impl Reader {
    fn new(wal_dir: PathBuf, history: TimelineHistory, control: &ControlData) -> Self {
        let pages = Pages::new(wal_dir, history, control.wal_segment_size, control.system_id);
        Self { pages, timeline: control.timeline, redo: control.redo.get(), record: Vec::new() }
    }

    fn run(mut self) -> Result<WalPosition, PgError> {
        let mut end = self.redo;
        let mut previous = None;
        while let Some((start, read)) = self.record_at(end, previous)? {
            previous = Some(start);
            end = read.end;
            self.timeline = read.timeline.unwrap_or(self.timeline);
        }
        Ok(WalPosition::new(self.timeline, Lsn::new(end)))
    }

    /// Reads the record at or after `end`, where the one before it ended; `None` is the end of WAL.
    fn record_at(&mut self, end: u64, previous: Option<u64>) -> Result<Option<(u64, Read)>, PgError> {
        let mut start = end;
        if start.is_multiple_of(PAGE) {
            let Some(page) = self.pages.get(start)? else { return Ok(None) };
            if page.continues {
                return Ok(None);
            }
            start += page.header;
        }
        self.read_record(start, previous)
    }

    fn read_record(&mut self, start: u64, previous: Option<u64>) -> Result<Option<(u64, Read)>, PgError> {
        let Some(page) = self.pages.get(start - start % PAGE)? else { return Ok(None) };
        let offset = start % PAGE;
        if offset < page.header {
            return Ok(None);
        }
        let Some(length) = word32(page.bytes(offset, PAGE), 0).map(u64::from) else { return Ok(None) };
        if !(RECORD_HEADER..RECORD_LIMIT).contains(&length) {
            return Ok(None);
        }
        self.record.clear();
        let record = &mut self.record;
        let first = (PAGE - offset).min(length);
        record.extend_from_slice(page.bytes(offset, offset + first));
        let mut end = start + align(first);
        let mut at = start - offset;
        while (record.len() as u64) < length {
            at += PAGE;
            let missing = length - record.len() as u64;
            let Some(page) = self.pages.get(at)? else { return Ok(None) };
            if page.overwrites {
                // A crash left the record unfinished, and the server went on at this page.
                let next = at + page.header;
                return self.read_record(next, previous);
            }
            if !page.continues || u64::from(page.remaining) != missing {
                return Ok(None);
            }
            let part = (PAGE - page.header).min(missing);
            record.extend_from_slice(page.bytes(page.header, page.header + part));
            end = at + page.header + align(part);
            // What does not begin like a record here is not read to a length of a gigabyte.
            if !plausible(record, start, previous) {
                return Ok(None);
            }
        }
        if !plausible(record, start, previous) || !sums_up(record) {
            return Ok(None);
        }
        Ok(Some((start, effects(&self.record, end, self.pages.segment_size()))))
    }
}

fn effects(record: &[u8], end: u64, segment_size: u64) -> Read {
    let (kind, manager) = (record.get(16).copied().unwrap_or(0) & 0xF0, record.get(17).copied());
    if manager != Some(0) {
        return Read { end, timeline: None };
    }
    match kind {
        SWITCH => Read { end: end.next_multiple_of(segment_size), timeline: None },
        CHECKPOINT_SHUTDOWN | END_OF_RECOVERY => Read { end, timeline: main_data_timeline(record) },
        _ => Read { end, timeline: None },
    }
}

/// Reads the timeline that both record kinds have after eight bytes of their data.
fn main_data_timeline(record: &[u8]) -> Option<Timeline> {
    let data = match record.get(24)? {
        255 => record.get(26..)?,
        254 => record.get(29..)?,
        _ => return None,
    };
    word32(data, 8).filter(|number| *number > 0).map(Timeline::new)
}

const fn align(length: u64) -> u64 {
    length.next_multiple_of(8)
}

/// Checks what a record's header says about itself, as far as it has been read.
fn plausible(record: &[u8], start: u64, previous: Option<u64>) -> bool {
    match (word64(record, 8), previous) {
        (None, _) => true,
        (Some(link), Some(previous)) => link == previous,
        (Some(link), None) => link < start,
    }
}

fn sums_up(record: &[u8]) -> bool {
    let (Some(wanted), Some(head), Some(body)) =
        (word32(record, CRC_AT), record.get(..CRC_AT), record.get(CRC_AT + 4..))
    else {
        return false;
    };
    let mut crc = Crc32c::new();
    crc.update(body);
    crc.update(head);
    crc.finish() == wanted
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "a test over small segments")]
#[path = "end_of_wal_fuzz_tests.rs"]
mod fuzz_tests;
