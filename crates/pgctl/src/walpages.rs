//! Reads the pages of WAL segments from disk and checks their headers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::PgError;
use crate::wal::{SystemId, Timeline, TimelineHistory};

/// The size of a WAL page: every build of Debian, Alpine and the vendors has this.
pub(crate) const PAGE: u64 = 8192;
const PAGE_BYTES: usize = 8192;
/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD`.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
/// The page begins with the rest of a record; has the long header; a broken record ends before it.
const CONTINUES: u16 = 0x0001;
const LONG: u16 = 0x0002;
const OVERWRITES: u16 = 0x0008;
/// Every flag that a page may have.
const ALL_FLAGS: u16 = 0x000F;
/// Pages that one read fetches.
const READ_AHEAD: u64 = 32;

/// A page whose header is right.
pub(crate) struct Page<'a> {
    content: &'a [u8],
    /// The length of its header.
    pub(crate) header: u64,
    /// It begins with the rest of a record.
    pub(crate) continues: bool,
    /// The record before it was left unfinished by a crash.
    pub(crate) overwrites: bool,
    /// How much of that record is missing at the start of this page.
    pub(crate) remaining: u32,
}

impl Page<'_> {
    /// Returns some of its bytes.
    pub(crate) fn bytes(&self, from: u64, to: u64) -> &[u8] {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        self.content.get(index(from)..index(to)).unwrap_or_default()
    }
}

/// The pages of the segments along one history.
pub(crate) struct Pages {
    wal_dir: PathBuf,
    history: TimelineHistory,
    segment_size: u64,
    system_id: SystemId,
    open: Option<Open>,
    magic: Option<u16>,
    /// The timeline of the last page, which never falls.
    last: Timeline,
    buffer: Vec<u8>,
    buffer_at: u64,
}

struct Open {
    number: u64,
    timeline: Timeline,
    file: File,
}

impl Pages {
    pub(crate) fn new(
        wal_dir: PathBuf,
        history: TimelineHistory,
        segment_size: u64,
        system_id: SystemId,
    ) -> Self {
        Self {
            wal_dir,
            history,
            segment_size: segment_size.max(PAGE),
            system_id,
            open: None,
            magic: None,
            last: Timeline::new(0),
            buffer: Vec::new(),
            buffer_at: 0,
        }
    }

    /// Returns the size of a segment.
    pub(crate) const fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// Returns the page at a position, `None` when it is missing or its header is not right.
    pub(crate) fn get(&mut self, at: u64) -> Result<Option<Page<'_>>, PgError> {
        if !self.open_segment(at / self.segment_size)? || !self.fill(at)? {
            return Ok(None);
        }
        let offset = usize::try_from(at - self.buffer_at).unwrap_or(usize::MAX);
        let Some(content) = self.buffer.get(offset..).and_then(|rest| rest.get(..PAGE_BYTES)) else {
            return Ok(None);
        };
        let Some(header) = Header::parse(content) else { return Ok(None) };
        if !header.fits(at, self.segment_size, self.system_id) {
            return Ok(None);
        }
        if self.magic.is_some_and(|magic| magic != header.magic)
            || header.timeline < self.last
            || self.history.end_of(header.timeline).is_none()
        {
            return Ok(None);
        }
        self.magic = Some(header.magic);
        self.last = header.timeline;
        Ok(Some(Page {
            content,
            header: if header.flags & LONG == 0 { SHORT_HEADER } else { LONG_HEADER },
            continues: header.flags & CONTINUES != 0,
            overwrites: header.flags & OVERWRITES != 0,
            remaining: header.remaining,
        }))
    }

    /// Opens a segment of the newest timeline that has it and is old enough to, as recovery does.
    fn open_segment(&mut self, number: u64) -> Result<bool, PgError> {
        if self.open.as_ref().is_some_and(|open| open.number == number) {
            return Ok(true);
        }
        let oldest = self.open.as_ref().map_or(Timeline::new(0), |open| open.timeline);
        self.open = None;
        self.buffer.clear();
        let mut candidates = vec![(self.history.timeline, self.history.begin().map(|begin| begin.lsn))];
        for (index, entry) in self.history.ancestors.iter().enumerate().rev() {
            let begin = index.checked_sub(1).and_then(|index| self.history.ancestors.get(index));
            candidates.push((entry.timeline, begin.map(|begin| begin.end)));
        }
        for (timeline, begin) in candidates {
            if timeline < oldest || begin.is_some_and(|begin| number < begin.get() / self.segment_size) {
                continue;
            }
            let path = self.wal_dir.join(segment_name(timeline, number, self.segment_size));
            match File::open(&path) {
                Ok(file) => {
                    self.open = Some(Open { number, timeline, file });
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(PgError::io("open", &path)(error)),
            }
        }
        Ok(false)
    }

    /// Has the page at a position in the buffer.
    fn fill(&mut self, at: u64) -> Result<bool, PgError> {
        let have = self.buffer.len() as u64;
        if at >= self.buffer_at && at + PAGE <= self.buffer_at + have {
            return Ok(true);
        }
        let Some(open) = &self.open else { return Ok(false) };
        let offset = at % self.segment_size;
        let wanted = (READ_AHEAD * PAGE).min(self.segment_size - offset);
        self.buffer.resize(usize::try_from(wanted).unwrap_or(0), 0);
        self.buffer_at = at;
        let mut filled = 0;
        while let Some(rest) = self.buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match open.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PgError::io("read WAL in", &self.wal_dir)(error)),
            }
        }
        self.buffer.truncate(filled);
        Ok(filled as u64 >= PAGE)
    }
}

struct Header {
    magic: u16,
    flags: u16,
    timeline: Timeline,
    address: u64,
    remaining: u32,
    long: Option<(u64, u32, u32)>,
}

impl Header {
    fn parse(page: &[u8]) -> Option<Self> {
        let first = word32(page, 0)?;
        let [a, b, c, d] = first.to_ne_bytes();
        let flags = u16::from_ne_bytes([c, d]);
        let long = if flags & LONG == 0 {
            None
        } else {
            Some((word64(page, 24)?, word32(page, 32)?, word32(page, 36)?))
        };
        Some(Self {
            magic: u16::from_ne_bytes([a, b]),
            flags,
            timeline: Timeline::new(word32(page, 4)?),
            address: word64(page, 8)?,
            remaining: word32(page, 16)?,
            long,
        })
    }

    fn fits(&self, at: u64, segment_size: u64, system_id: SystemId) -> bool {
        let first = at.is_multiple_of(segment_size);
        let long_fits = match self.long {
            None => !first,
            Some((system, segment, block)) => {
                first
                    && system == system_id.get()
                    && u64::from(segment) == segment_size
                    && u64::from(block) == PAGE
            }
        };
        self.magic != 0 && self.flags & !ALL_FLAGS == 0 && self.address == at && long_fits
    }
}

fn segment_name(timeline: Timeline, number: u64, segment_size: u64) -> String {
    // A damaged control file may name any size.
    let per_id = (0x1_0000_0000 / segment_size).max(1);
    format!("{:08X}{:08X}{:08X}", timeline.get(), number / per_id, number % per_id)
}

/// Reads a native 32-bit number.
pub(crate) fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Reads a native 64-bit number.
pub(crate) fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_segments() {
        assert_eq!(segment_name(Timeline::new(5), 3, 16 << 20), "000000050000000000000003");
        assert_eq!(segment_name(Timeline::new(1), 256, 16 << 20), "000000010000000100000000");
        assert_eq!(segment_name(Timeline::new(1), 4097, 1 << 20), "000000010000000100000001");
    }
}
