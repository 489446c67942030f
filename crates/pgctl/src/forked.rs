//! Keeps WAL aside that left the accepted history, before a rewind or a clone removes it.
//!
//! A range is a folder of its own, named `<timeline>-<from>..<to>`, with the segments as
//! `pg_waldump` reads them and a text that says what they are. It is complete or not there: built
//! under another name, synced, renamed. Copied, not linked: Postgres and `pg_rewind` write into the
//! segments that they have.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::PgError;
use crate::file::{give, sync_directory, sync_parent};
use crate::user::OsUser;
use crate::wal::{Lsn, Timeline, WalPosition};

/// The text in a range's folder.
pub const SUMMARY: &str = "README.txt";

/// What is being copied, or was broken off.
const UNFINISHED: &str = ".new";

/// A page of WAL: the last segment is copied up to the end of the page that the range ends in.
const PAGE: u64 = 8192;

/// A range of WAL outside the accepted history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForkedRange {
    /// The timeline that it ends on.
    pub timeline: Timeline,
    /// Where it left the accepted history.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
}

impl ForkedRange {
    /// Returns how many bytes of WAL it is.
    pub fn bytes(&self) -> u64 {
        self.to.bytes_since(self.from)
    }

    /// Returns where it ends.
    pub fn end(&self) -> WalPosition {
        WalPosition::new(self.timeline, self.to)
    }

    fn folder(&self) -> String {
        format!("{}-{}..{}", self.timeline, self.from, self.to).replace('/', "_")
    }

    fn of_folder(name: &str) -> Option<Self> {
        let (timeline, range) = name.split_once('-')?;
        let (from, to) = range.split_once("..")?;
        let lsn = |text: &str| text.replace('_', "/").parse::<Lsn>().ok();
        Some(Self { timeline: Timeline::new(timeline.parse().ok()?), from: lsn(from)?, to: lsn(to)? })
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct KeepLimits {
    /// At most so many ranges.
    pub ranges: usize,
    /// At most so many bytes of segments in all, the newest range too.
    pub bytes: u64,
    /// So many bytes stay free on the disk.
    pub reserve: u64,
}

/// A range that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its folder.
    pub path: PathBuf,
    /// The range.
    pub range: ForkedRange,
    /// Where the copy ends instead, when the whole was more than the limit.
    pub cut: Option<Lsn>,
}

/// What is to be kept, and of what.
#[derive(Clone, Debug)]
pub struct Forked<'a> {
    /// The stopped data directory.
    pub data_dir: &'a Path,
    /// The size of its WAL segments.
    pub segment: u64,
    /// The range.
    pub range: ForkedRange,
    /// The timeline at the range's beginning: older where it crossed promotions.
    pub first: Timeline,
    /// What it is and how it came about, for people: the text begins with it.
    pub story: &'a str,
}

/// Copies a range of WAL into a folder of its own under `dir`, then removes the oldest ranges beyond
/// the limits, never this one. Does nothing when the range is there already.
///
/// Blocks on the disk for as long as copying takes.
///
/// # Errors
/// [`PgError::Refused`] when the disk has no room, after older ranges were removed for it, or when no
/// segment of the range is there; [`PgError::Io`]. What was there before is untouched then.
pub fn keep(dir: &Path, forked: &Forked<'_>, owner: &OsUser, limits: KeepLimits) -> Result<Kept, PgError> {
    let range = forked.range;
    let path = dir.join(range.folder());
    if path.exists() {
        return Ok(Kept { path, range, cut: None });
    }
    make_folder(dir, owner)?;
    let (copies, cut) = plan(forked, limits)?;
    let needed: u64 = copies.iter().map(|copy| copy.bytes).sum();
    make_room(dir, needed, limits)?;
    let unfinished = dir.join(UNFINISHED);
    remove_folder(&unfinished)?;
    make_folder(&unfinished, owner)?;
    for copy in &copies {
        copy.carry_out(&unfinished, forked.segment, owner)?;
    }
    write_summary(&unfinished, &summary(forked, &path, cut), owner)?;
    sync_directory(&unfinished)?;
    fs::rename(&unfinished, &path).map_err(PgError::io("rename", &unfinished))?;
    sync_parent(&path)?;
    prune(dir, range, limits)?;
    Ok(Kept { path, range, cut })
}

/// Lists the ranges that are kept, the oldest first.
pub fn kept(dir: &Path) -> Vec<(ForkedRange, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((ForkedRange::of_folder(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    // Timelines rise with each promotion, so this is the order of the forks.
    found.sort();
    found
}

/// One segment to copy.
#[derive(Debug)]
struct Copy {
    from: PathBuf,
    name: String,
    bytes: u64,
}

impl Copy {
    fn carry_out(&self, into: &Path, segment: u64, owner: &OsUser) -> Result<(), PgError> {
        let to = into.join(&self.name);
        let source = File::open(&self.from).map_err(PgError::io("open", &self.from))?;
        let mut target = create(&to)?;
        io::copy(&mut source.take(self.bytes), &mut target).map_err(PgError::io("copy", &self.from))?;
        // Readers want whole segments; the rest is a hole.
        target.set_len(segment).map_err(PgError::io("extend", &to))?;
        target.sync_all().map_err(PgError::io("sync", &to))?;
        give(&to, owner)
    }
}

/// Lists the segments of the range that are there, up to the limit.
fn plan(forked: &Forked<'_>, limits: KeepLimits) -> Result<(Vec<Copy>, Option<Lsn>), PgError> {
    let ForkedRange { timeline, from, to } = forked.range;
    let segment = forked.segment.max(1);
    let (mut copies, mut used, mut cut) = (Vec::new(), 0_u64, None);
    let (first, last) = (from.get() / segment, to.get().saturating_sub(1) / segment);
    for number in first..=last {
        let begin = number.saturating_mul(segment);
        let end = to.get().min(begin.saturating_add(segment));
        let bytes = (end.saturating_sub(begin).div_ceil(PAGE).saturating_mul(PAGE)).min(segment);
        if used.saturating_add(bytes) > limits.bytes {
            cut = Some(Lsn::new(begin.max(from.get())));
            break;
        }
        for owner in forked.first.get()..=timeline.get() {
            let name = segment_name(owner, number, segment);
            let path = forked.data_dir.join("pg_wal").join(&name);
            if path.exists() {
                used = used.saturating_add(bytes);
                copies.push(Copy { from: path, name, bytes });
            }
        }
    }
    if copies.is_empty() {
        return Err(refused(forked.range, "none of its segments is there, or one is larger than the limit"));
    }
    Ok((copies, cut))
}

/// Names a segment as Postgres does (`XLogFileName`).
fn segment_name(timeline: u32, number: u64, segment: u64) -> String {
    let per_file = (1_u64 << 32) / segment;
    format!("{timeline:08X}{:08X}{:08X}", number / per_file, number % per_file)
}

fn summary(forked: &Forked<'_>, path: &Path, cut: Option<Lsn>) -> String {
    let ForkedRange { timeline, from, to } = forked.range;
    let bytes = forked.range.bytes();
    let crossed = match forked.first {
        first if first == timeline => String::new(),
        first => format!("it begins on timeline {first}\n"),
    };
    let missing = cut.map_or_else(String::new, |cut| {
        format!("not whole: what lies beyond {cut} was more than the limit and is not here\n")
    });
    let command = format!(
        "pg_waldump --path='{}' --timeline={timeline} --start={from} --end={}",
        path.display(),
        cut.unwrap_or(to)
    );
    format!(
        "{}\n\nrange: {from} to {to} of timeline {timeline}, {bytes} bytes\n{crossed}{missing}\n\
         To read it, with pg_waldump of the same major version of PostgreSQL:\n\n    {command}\n\n\
         Only what committed in it:\n\n    {command} --rmgr=Transaction\n\n\
         Nothing needs this folder: remove it when you no longer do.\n",
        forked.story
    )
}

fn write_summary(folder: &Path, text: &str, owner: &OsUser) -> Result<(), PgError> {
    let path = folder.join(SUMMARY);
    let mut file = create(&path)?;
    file.write_all(text.as_bytes()).map_err(PgError::io("write", &path))?;
    file.sync_all().map_err(PgError::io("sync", &path))?;
    give(&path, owner)
}

fn create(path: &Path) -> Result<File, PgError> {
    // `create_new` follows no link that somebody may have put there.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(PgError::io("create", path))
}

fn make_folder(path: &Path, owner: &OsUser) -> Result<(), PgError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(PgError::io("create", path)(error)),
    }
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(PgError::io("set the mode of", path))?;
    give(path, owner)?;
    sync_parent(path)
}

fn remove_folder(path: &Path) -> Result<(), PgError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PgError::io("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the oldest ranges until the disk has room for so many bytes more and its reserve.
fn make_room(dir: &Path, needed: u64, limits: KeepLimits) -> Result<(), PgError> {
    let wanted = needed.saturating_add(limits.reserve);
    let mut older = kept(dir).into_iter();
    loop {
        let stat = rustix::fs::statvfs(dir).map_err(|error| PgError::io("measure", dir)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= wanted {
            return Ok(());
        }
        let Some((range, path)) = older.next() else {
            let reason = format!("the disk has {free} bytes left, {wanted} are wanted");
            return Err(PgError::Refused { what: format!("keep {needed} bytes of forked WAL"), reason });
        };
        tracing::warn!(from = %range.from, to = %range.to, "removes older forked wal: the disk is full");
        remove_folder(&path)?;
    }
}

/// Removes the oldest ranges beyond the limits, never `newest`.
fn prune(dir: &Path, newest: ForkedRange, limits: KeepLimits) -> Result<(), PgError> {
    let all = kept(dir);
    let size = |path: &Path| -> u64 {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks().saturating_mul(512))).sum()
    };
    let mut count = all.len();
    let mut bytes: u64 = all.iter().map(|(_, path)| size(path)).sum();
    for (range, path) in all {
        if count <= limits.ranges && bytes <= limits.bytes {
            break;
        }
        if range == newest {
            continue;
        }
        let own = size(&path);
        remove_folder(&path)?;
        count = count.saturating_sub(1);
        bytes = bytes.saturating_sub(own);
    }
    Ok(())
}

fn refused(range: ForkedRange, reason: &str) -> PgError {
    PgError::Refused { what: format!("keep the forked WAL up to {}", range.end()), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;
    const LIMITS: KeepLimits = KeepLimits { ranges: 2, bytes: 8 << 20, reserve: 0 };

    fn range(timeline: u32, from: u64, to: u64) -> ForkedRange {
        ForkedRange { timeline: Timeline::new(timeline), from: Lsn::new(from), to: Lsn::new(to) }
    }

    /// A data directory with these segments of a timeline, each full of its number.
    fn data_dir(root: &Path, timeline: u32, numbers: &[u64]) -> PathBuf {
        let data = root.join("data");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        for number in numbers {
            let byte = u8::try_from(*number).unwrap();
            let path = data.join("pg_wal").join(segment_name(timeline, *number, SEGMENT));
            fs::write(path, vec![byte; usize::try_from(SEGMENT).unwrap()]).unwrap();
        }
        data
    }

    fn try_keep(root: &Path, range: ForkedRange, limits: KeepLimits) -> Result<Kept, PgError> {
        let data = root.join("data");
        let forked = Forked { data_dir: &data, segment: SEGMENT, range, first: range.timeline, story: "why" };
        keep(&root.join("forked"), &forked, &OsUser::current(), limits)
    }

    fn names(root: &Path) -> Vec<String> {
        kept(&root.join("forked")).iter().map(|(range, _)| range.folder()).collect()
    }

    #[test]
    fn a_range_is_kept_whole_and_tells_how_to_read_it() {
        let dir = tempfile::tempdir().unwrap();
        data_dir(dir.path(), 2, &[3, 4, 5]);
        // From the middle of segment 3 to just into segment 4.
        let forked = range(2, 0x38_0000, 0x40_0010);
        let found = try_keep(dir.path(), forked, LIMITS).unwrap();
        assert_eq!(found.cut, None);
        assert_eq!(names(dir.path()), ["2-0_380000..0_400010"]);
        assert_eq!(kept(&dir.path().join("forked"))[0].0, forked);
        let first = fs::read(found.path.join(segment_name(2, 3, SEGMENT))).unwrap();
        assert!(first.len() as u64 == SEGMENT && first.iter().all(|byte| *byte == 3));
        let last = fs::read(found.path.join(segment_name(2, 4, SEGMENT))).unwrap();
        assert_eq!(last.len() as u64, SEGMENT);
        let written = last.iter().position(|byte| *byte == 0);
        assert_eq!(written, usize::try_from(PAGE).ok(), "one page, then a hole");
        assert!(!found.path.join(segment_name(2, 5, SEGMENT)).exists(), "beyond the range");
        let text = fs::read_to_string(found.path.join(SUMMARY)).unwrap();
        assert!(text.starts_with("why\n") && text.contains("--start=0/380000 --end=0/400010"), "{text}");
        // Again: what is there is left alone.
        assert_eq!(try_keep(dir.path(), forked, LIMITS).unwrap(), found);
    }

    #[test]
    fn only_the_newest_ranges_are_kept_and_never_too_much() {
        let dir = tempfile::tempdir().unwrap();
        data_dir(dir.path(), 2, &[3, 4, 5]);
        for to in [0x30_0010, 0x40_0010, 0x50_0010] {
            try_keep(dir.path(), range(2, to - 0x10, to), LIMITS).unwrap();
        }
        assert_eq!(names(dir.path()), ["2-0_400000..0_400010", "2-0_500000..0_500010"]);
        let small = KeepLimits { bytes: SEGMENT, ..LIMITS };
        data_dir(dir.path(), 3, &[6, 7]);
        // More than may be kept in all: its beginning, and nothing else.
        let found = try_keep(dir.path(), range(3, 0x60_0000, 0x78_0000), small).unwrap();
        assert_eq!(found.cut, Some(Lsn::new(0x70_0000)));
        assert_eq!(names(dir.path()), ["3-0_600000..0_780000"]);
        assert!(
            fs::read_to_string(found.path.join(SUMMARY))
                .unwrap()
                .contains("not whole: what lies beyond 0/700000")
        );
    }

    #[test]
    fn a_full_disk_is_refused_and_what_was_broken_off_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        data_dir(dir.path(), 2, &[3]);
        let forked = range(2, 0x30_0000, 0x30_0010);
        let full = KeepLimits { reserve: u64::MAX, ..LIMITS };
        let error = try_keep(dir.path(), forked, full).unwrap_err().to_string();
        assert!(error.contains("the disk has"), "{error}");
        assert_eq!(names(dir.path()), [""; 0]);
        let broken = dir.path().join("forked").join(UNFINISHED);
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join(segment_name(2, 3, SEGMENT)), "half").unwrap();
        assert_eq!(names(dir.path()), [""; 0], "what is not finished is not listed");
        try_keep(dir.path(), forked, LIMITS).unwrap();
        assert_eq!(names(dir.path()), ["2-0_300000..0_300010"]);
        assert!(try_keep(dir.path(), range(2, 0x90_0000, 0x90_0010), LIMITS).is_err(), "no such segment");
    }
}
