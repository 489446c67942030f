//! Positions in the write-ahead log, and where two histories of it part.
//!
//! Pure: parses and compares, and never touches a server or a file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes since the start of the WAL.
///
/// Ordered within one timeline only: on two timelines the same LSN names different
/// bytes, so compare a [`WalPosition`] through a history. Printed as Postgres prints
/// `pg_lsn`: `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn(u64);

impl Lsn {
    /// Makes an LSN of a byte count.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the byte count.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns how many bytes lie between `earlier` and this position, or 0 when it is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is no WAL position, timeline or system identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseWalError {
    text: String,
    expected: &'static str,
}

impl ParseWalError {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

impl FromStr for Lsn {
    type Err = ParseWalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseWalError::new(text, "an LSN such as 16/B374D848");
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Self((u64::from(high) << 32) | u64::from(low)))
    }
}

/// The number of one history of the WAL; a promotion makes a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(u32);

impl Timeline {
    /// Makes a timeline of its number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the timeline numbered one above this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A timeline and an LSN on it, printed as `5:0/3000060`.
///
/// Deliberately not ordered: whether one position contains another depends on where
/// the timelines part, which a [`TimelineHistory`] or the cluster's ledger knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalPosition {
    /// The timeline that the last record is on.
    pub timeline: Timeline,
    /// The end of the last record.
    pub lsn: Lsn,
}

impl WalPosition {
    /// Makes a position.
    pub const fn new(timeline: Timeline, lsn: Lsn) -> Self {
        Self { timeline, lsn }
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn)
    }
}

impl FromStr for WalPosition {
    type Err = ParseWalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseWalError::new(text, "a WAL position such as 5:0/3000060");
        let (timeline, lsn) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self {
            timeline: Timeline(timeline.parse().map_err(|_| bad())?),
            lsn: lsn.parse().map_err(|_| bad())?,
        })
    }
}

/// The number that initdb gives a data directory; every copy of it keeps it
/// (`pg_control_system()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemId(u64);

impl SystemId {
    /// Makes a system identifier of its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = ParseWalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse().map(Self).map_err(|_| ParseWalError::new(text, "a system identifier"))
    }
}

/// One line of a timeline history file: an ancestor, and where it was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: Timeline,
    /// Where the next timeline begins.
    pub end: Lsn,
    /// Why it was left, as the server or a person wrote it.
    pub reason: String,
}

/// The ancestry of a timeline, as a `.history` file tells it
/// (Postgres: `src/backend/access/transam/timeline.c`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline that this is the history of.
    pub timeline: Timeline,
    /// Its ancestors, the oldest first.
    pub ancestors: Vec<HistoryEntry>,
}

/// The reason in a tombstone: a history file that only keeps its number from being used.
pub const TOMBSTONE_REASON: &str = "reserved";
/// Where a tombstone says that it forked: before any WAL record, so no server can be on it.
pub const TOMBSTONE_FORK: Lsn = Lsn::new(0x28);

impl TimelineHistory {
    /// Makes the history of a timeline without ancestors.
    pub const fn root(timeline: Timeline) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Makes the history file that keeps `timeline` from being used by a promotion.
    pub fn tombstone(timeline: Timeline) -> Self {
        let reason = TOMBSTONE_REASON.to_owned();
        Self {
            timeline,
            ancestors: vec![HistoryEntry { timeline: Timeline(1), end: TOMBSTONE_FORK, reason }],
        }
    }

    /// Says whether this is a tombstone and no timeline that any server was ever on.
    pub fn is_tombstone(&self) -> bool {
        matches!(self.ancestors.as_slice(), [only] if only.end == TOMBSTONE_FORK && only.reason == TOMBSTONE_REASON)
    }

    /// Parses the content of the history file of `timeline`.
    ///
    /// # Errors
    /// When a line is no history line, or the timelines or positions do not rise.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, ParseWalError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let bad = || ParseWalError::new(line, "a line of a timeline history");
            let mut fields = line.splitn(2, char::is_whitespace);
            let number = fields.next().and_then(|field| field.parse().ok()).ok_or_else(bad)?;
            let rest = fields.next().unwrap_or_default().trim_start();
            let (end, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let entry = HistoryEntry {
                timeline: Timeline(number),
                end: end.parse().map_err(|_| bad())?,
                reason: reason.trim().to_owned(),
            };
            let rises = ancestors.last().is_none_or(|last| last.timeline < entry.timeline);
            if !rises || entry.timeline >= timeline {
                return Err(bad());
            }
            ancestors.push(entry);
        }
        Ok(Self { timeline, ancestors })
    }

    /// Renders the content of the history file.
    pub fn render(&self) -> String {
        let line = |entry: &HistoryEntry| format!("{}\t{}\t{}\n", entry.timeline, entry.end, entry.reason);
        self.ancestors.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Returns the name of the history file, such as `00000005.history`.
    pub fn file_name(&self) -> String {
        history_file_name(self.timeline)
    }

    /// Returns where the timeline left its parent: that parent, and the LSN.
    pub fn begin(&self) -> Option<WalPosition> {
        self.ancestors.last().map(|last| WalPosition::new(last.timeline, last.end))
    }

    /// Says whether a server whose WAL ends at `position` can follow this timeline without losing any.
    pub fn contains(&self, position: WalPosition) -> bool {
        self.end_of(position.timeline).is_some_and(|end| position.lsn <= end)
    }

    /// Returns where a timeline of this history was left; the highest LSN for its tip.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(Lsn(u64::MAX));
        }
        self.ancestors.iter().find(|entry| entry.timeline == timeline).map(|entry| entry.end)
    }

    /// Returns the last position that two histories share, `None` when they share none.
    pub fn divergence(&self, other: &Self) -> Option<WalPosition> {
        let mut last = None;
        for ((mine, my_end), (theirs, their_end)) in self.spans().zip(other.spans()) {
            if mine != theirs {
                break;
            }
            last = Some(WalPosition::new(mine, my_end.min(their_end)));
            if my_end != their_end {
                break;
            }
        }
        last
    }

    fn spans(&self) -> impl Iterator<Item = (Timeline, Lsn)> + '_ {
        let tip = std::iter::once((self.timeline, Lsn(u64::MAX)));
        self.ancestors.iter().map(|entry| (entry.timeline, entry.end)).chain(tip)
    }
}

/// Returns the name of a timeline's history file, such as `00000005.history`.
pub fn history_file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// Returns the timeline that a file in `pg_wal` belongs to: a segment, a partial one or a history file.
pub fn timeline_of_wal_file(name: &str) -> Option<Timeline> {
    let (stem, suffix) = name.split_once('.').unwrap_or((name, ""));
    let known = match suffix {
        "history" => stem.len() == 8,
        "" | "partial" => stem.len() == 24,
        _ => stem.len() == 24 && suffix.ends_with(".backup"),
    };
    if !known || !stem.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(stem.get(..8)?, 16).ok().filter(|number| *number > 0).map(Timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(text: &str) -> TimelineHistory {
        let (tip, lines) = text.split_once('|').unwrap();
        TimelineHistory::parse(Timeline(tip.parse().unwrap()), &lines.replace(';', "\n")).unwrap()
    }

    fn at(text: &str) -> WalPosition {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_renders_a_history_file() {
        let text =
            "1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n";
        let parsed = TimelineHistory::parse(Timeline(3), text).unwrap();
        assert_eq!(parsed.render(), text);
        assert_eq!(parsed.file_name(), "00000003.history");
        assert_eq!(parsed.begin(), Some(at("2:0/5000000")));
        assert!(TimelineHistory::parse(Timeline(3), "x\t0/1\n").is_err());
        assert!(TimelineHistory::parse(Timeline(3), "3\t0/1\tself\n").is_err());
        assert!(TimelineHistory::parse(Timeline(3), "2\t0/1\n1\t0/2\n").is_err());
        assert!(TimelineHistory::parse(Timeline(1), "").unwrap().ancestors.is_empty());
    }

    #[test]
    fn knows_what_is_on_the_way_to_its_tip() {
        let three = history("3|1 0/30 a;2 0/50 b");
        for inside in ["1:0/30", "1:0/10", "2:0/50", "3:0/60", "3:9/0"] {
            assert!(three.contains(at(inside)), "{inside}");
        }
        // The second is a fork: WAL of timeline 2 after the third left it.
        for outside in ["1:0/31", "2:0/51", "4:0/10"] {
            assert!(!three.contains(at(outside)), "{outside}");
        }
    }

    #[test]
    fn finds_where_two_histories_part() {
        let check = |left: &str, right: &str, expected: Option<&str>| {
            assert_eq!(history(left).divergence(&history(right)), expected.map(at), "{left} {right}");
            assert_eq!(history(right).divergence(&history(left)), expected.map(at), "{right} {left}");
        };
        check("2|1 0/30 a", "3|1 0/40 b", Some("1:0/30"));
        check("3|1 0/30 a;2 0/50 b", "2|1 0/30 a", Some("2:0/50"));
        check("3|1 0/30 a;2 0/50 b", "4|1 0/30 a;2 0/45 b", Some("2:0/45"));
        check("1|", "5|1 0/30 a", Some("1:0/30"));
        check("6|5 0/30 a", "3|1 0/30 a", None);
    }

    #[test]
    fn a_tombstone_is_no_timeline_to_be_on() {
        let tombstone = TimelineHistory::tombstone(Timeline(4));
        assert_eq!(tombstone.render(), "1\t0/28\treserved\n");
        assert!(TimelineHistory::parse(Timeline(4), &tombstone.render()).unwrap().is_tombstone());
        assert!(!history("4|1 0/28 no recovery target specified").is_tombstone());
    }

    #[test]
    fn reads_the_timeline_of_wal_file_names() {
        let check = |name: &str, expected: Option<u32>| {
            assert_eq!(timeline_of_wal_file(name), expected.map(Timeline), "{name}");
        };
        check("000000050000000000000003", Some(5));
        check("0000001A.history", Some(26));
        check("000000050000000000000003.partial", Some(5));
        check("000000050000000000000003.00000028.backup", Some(5));
        check("archive_status", None);
        check("xlogtemp.123", None);
    }
}
