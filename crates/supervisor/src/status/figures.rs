//! ✦ What is counted and measured for `/metrics` beyond what a member shows of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rhone_consensus::ids::Epoch;

use super::HistoryEntry;
use crate::civil::WallTime;

/// The upper ends of the buckets that renewals' round trips are counted in; longer ones have one of their own.
pub const ROUND_TRIPS: [Duration; 10] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// Why a primary may have changed, as `rhone history` names it: each has a line, also before its first change.
pub const REASONS: [&str; 6] =
    ["founding", "owner_silent", "owner_down", "switchover", "operator", "recovery"];

/// What was counted and measured. Counters begin at 0 with this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The lease's renewals; none on a witness.
    pub renewals: Option<Renewals>,
    /// What was done to the local Postgres, by the effect's code.
    pub effects: BTreeMap<&'static str, EffectFigures>,
    /// The changes of primary.
    pub changes: Changes,
    /// The local server's replication slots.
    pub slots: Vec<SlotFigures>,
    /// How old the last commit is that a standby has replayed; zero once all that it received is replayed.
    pub replay_lag: Option<Duration>,
    /// How much later than it receives WAL this member is to replay it.
    pub apply_delay: Duration,
    /// The disks whose room is measured when somebody asks: what is on it, and a path.
    pub disks: Vec<(&'static str, PathBuf)>,
}

/// How long renewals took from their sending until a majority had granted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewals {
    /// How many took at most as long as the bucket's end in [`ROUND_TRIPS`] and longer than the one before; the
    /// last: longer than all.
    pub buckets: [u64; ROUND_TRIPS.len() + 1],
    /// All of their times.
    pub total: Duration,
    /// Renewals that no majority granted while they would have counted.
    pub failed: u64,
}

impl Renewals {
    /// Returns how many a majority granted.
    pub fn granted(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What became of one kind of effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectFigures {
    /// How many were done.
    pub done: u64,
    /// How many failed, and may have been tried again.
    pub failed: u64,
    /// How many made room for a newer decision.
    pub cut_short: u64,
    /// How long all of them took.
    pub took: Duration,
}

/// A replication slot of the local server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFigures {
    /// Its name.
    pub name: String,
    /// Whether somebody streams from it.
    pub active: bool,
    /// How many bytes of WAL it keeps.
    pub retained: u64,
}

/// A disk's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What is on it: `data`, `wal`, `state`.
    pub what: &'static str,
    /// Bytes that Postgres may still write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// The changes of primary since this process knows the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// How many, by reason.
    pub by_reason: BTreeMap<String, u64>,
    /// How many made this member primary.
    pub to_here: u64,
    /// For how long nobody could write, in all of them.
    pub without_primary: Duration,
    /// WAL of former primaries that turned out to be lost, in bytes.
    pub lost_bytes: u64,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            by_reason: REASONS.iter().map(|reason| ((*reason).to_owned(), 0)).collect(),
            to_here: 0,
            without_primary: Duration::ZERO,
            lost_bytes: 0,
        }
    }
}

/// A change that was made so long before this process began is not counted: it is read from an old log.
const LATE: Duration = Duration::from_secs(3600);

/// Counts changes of primary: each once, and none that was in the log before this process began. So a counter
/// never falls while the history drops its oldest entries, and never rises because a log is read again.
#[derive(Debug)]
pub struct Tally {
    began: WallTime,
    /// The changes in the history at the last look, and whether it was known by then what each had lost.
    /// None: the log on the disk is not read to its end yet.
    known: Option<BTreeMap<Epoch, bool>>,
    changes: Changes,
}

impl Tally {
    /// Begins to count, for a process that began at `began`.
    pub fn new(began: WallTime) -> Self {
        Self { began, known: None, changes: Changes::default() }
    }

    /// Takes note of the history as it is now, oldest change first. `caught_up`: whether all of the log on the
    /// disk is in it.
    pub fn see(&mut self, me: &str, history: &[HistoryEntry], caught_up: bool) -> &Changes {
        if self.known.is_none() && !caught_up {
            return &self.changes;
        }
        let first = self.known.is_none();
        let known = self.known.take().unwrap_or_default();
        for entry in history {
            let lost = entry.lost_bytes.filter(|_| entry.lost_exact == Some(true));
            let news = match known.get(&entry.epoch) {
                None => !first && self.recent(entry),
                Some(settled) => !settled,
            };
            if news && !known.contains_key(&entry.epoch) {
                self.count(me, entry);
            }
            if news {
                let lost = lost.unwrap_or(0);
                self.changes.lost_bytes = self.changes.lost_bytes.saturating_add(lost);
            }
        }
        let settled = |entry: &HistoryEntry| (entry.epoch, entry.lost_exact == Some(true));
        self.known = Some(history.iter().map(settled).collect());
        &self.changes
    }

    fn recent(&self, entry: &HistoryEntry) -> bool {
        let late = u64::try_from(LATE.as_millis()).unwrap_or(u64::MAX);
        entry.time.is_none_or(|at| at.as_ms().saturating_add(late) >= self.began.as_ms())
    }

    fn count(&mut self, me: &str, entry: &HistoryEntry) {
        let changes = &mut self.changes;
        let count = changes.by_reason.entry(entry.reason.clone()).or_default();
        *count = count.saturating_add(1);
        if entry.to.as_deref() == Some(me) {
            changes.to_here = changes.to_here.saturating_add(1);
        }
        let gap = entry.seconds_without_primary.and_then(|gap| Duration::try_from_secs_f64(gap).ok());
        changes.without_primary = changes.without_primary.saturating_add(gap.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: WallTime = WallTime::from_ms(1_795_245_000_000);

    fn change(epoch: u64, lost: Option<(u64, bool)>) -> HistoryEntry {
        HistoryEntry {
            time: Some(WallTime::from_ms(BEGAN.as_ms() + epoch)),
            epoch: Epoch(epoch),
            to: Some("pg-1".to_owned()),
            reason: "owner_silent".to_owned(),
            seconds_without_primary: Some(1.5),
            lost_bytes: lost.map(|(bytes, _)| bytes),
            lost_exact: lost.map(|(_, exact)| exact),
            ..HistoryEntry::default()
        }
    }

    #[test]
    fn a_change_counts_once_and_what_it_lost_once_it_is_known() {
        let mut tally = Tally::new(BEGAN);
        let old = change(1, Some((100, true)));
        tally.see("pg-1", std::slice::from_ref(&old), true);
        assert_eq!(tally.changes, Changes::default(), "that was so before");
        let unsure = [old.clone(), change(2, Some((70, false)))];
        for _ in 0..2 {
            let changes = tally.see("pg-1", &unsure, true);
            assert_eq!((changes.by_reason["owner_silent"], changes.to_here), (1, 1));
            assert_eq!((changes.without_primary, changes.lost_bytes), (Duration::from_millis(1500), 0));
        }
        // Its former primary is back: exact, and counted once.
        let exact = [old, change(2, Some((60, true)))];
        for _ in 0..2 {
            assert_eq!(tally.see("pg-1", &exact, true).lost_bytes, 60);
        }
        // The history drops its oldest changes; nothing falls.
        let changes = tally.see("pg-2", &[change(3, Some((5, true)))], true);
        assert_eq!((changes.by_reason["owner_silent"], changes.to_here, changes.lost_bytes), (2, 1, 65));
    }

    #[test]
    fn a_log_that_is_read_again_counts_for_nothing() {
        let mut tally = Tally::new(BEGAN);
        tally.see("pg-1", &[], false);
        tally.see("pg-1", &[change(1, Some((9, false)))], false);
        tally.see("pg-1", &[change(1, Some((9, true)))], true);
        assert_eq!(tally.changes, Changes::default());
        // A new member is handed the whole history at once.
        let mut tally = Tally::new(WallTime::from_ms(BEGAN.as_ms() + 2 * 3_600_000));
        tally.see("pg-1", &[], true);
        tally.see("pg-1", &[change(1, Some((9, true)))], true);
        assert_eq!(tally.changes, Changes::default());
    }
}
