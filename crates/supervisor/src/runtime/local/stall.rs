//! When a primary's disk counts as hanging (decision 0062): what waits for it stands still at every look. Waits for
//! no disk itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhone_consensus::settings::Timing;
use rhone_pgctl::wal::Lsn;

use crate::runtime::clock::BootTime;

/// So many looks at least must have seen it.
pub(super) const HUNG_LOOKS: u32 = 3;

/// After how long without any progress an instance, or its disk, counts as hung (docs/safety.md 9). More than an
/// fsync takes on a card that works.
const HUNG: Duration = Duration::from_secs(10);

/// Looks that are further apart say nothing of what was between: a frozen instance, a host that slept. A look takes
/// up to four seconds where Postgres does not answer, and the next one comes a second later.
const LOOK_GAP: Duration = Duration::from_secs(7);

/// Returns after how long without progress an instance counts as hung: twice the lease where that is longer, so that
/// `timing = "calm"` rides out more.
pub(super) fn hung_after(timing: Timing) -> Duration {
    HUNG.max(Duration::from_millis(u64::from(timing.lease_ms)) * 2)
}

/// Since when a value has been the same at every look, and at how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standstill {
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    value: u64,
    since: BootTime,
    last: BootTime,
    looks: u32,
}

impl Standstill {
    /// Takes note of a look: what stands there, if anything waits for it to go on.
    fn look(&mut self, waits_at: Option<u64>, now: BootTime) {
        self.seen = waits_at.map(|value| match self.seen {
            Some(seen) if seen.value == value && now.saturating_since(seen.last) <= LOOK_GAP => {
                Seen { last: now, looks: seen.looks.saturating_add(1), ..seen }
            }
            Some(_) | None => Seen { value, since: now, last: now, looks: 1 },
        });
    }

    fn is_longer_than(self, limit: Duration) -> bool {
        self.seen
            .is_some_and(|seen| seen.looks >= HUNG_LOOKS && seen.last.saturating_since(seen.since) > limit)
    }
}

/// What speaks for a disk that hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// The end of the flushed WAL, while a process of Postgres waits for more of it.
    flushed: Standstill,
    /// When the oldest work of this supervisor's on the disk was begun.
    work: Standstill,
}

impl Stall {
    /// Takes note of what Postgres says: the end of the flushed WAL, if a process waits for more of it.
    pub(super) fn flushes(&mut self, waits_at: Option<Lsn>, now: BootTime) {
        self.flushed.look(waits_at.map(Lsn::get), now);
    }

    /// Takes note of the oldest work on the disk that has not come back.
    pub(super) fn works(&mut self, begun: Option<BootTime>, now: BootTime) {
        self.work.look(begun.map(BootTime::as_nanos), now);
    }

    /// Returns whether either has stood still for longer than `limit`.
    pub(super) fn is_hung(self, limit: Duration) -> bool {
        self.flushed.is_longer_than(limit) || self.work.is_longer_than(limit)
    }
}

/// The work on the disk that has been begun and has not come back.
#[derive(Debug, Default)]
pub(super) struct DiskWork(Mutex<Vec<BootTime>>);

/// Work that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Working {
    work: Arc<DiskWork>,
    begun: BootTime,
}

impl DiskWork {
    /// Takes note of work that begins.
    pub(super) fn begin(self: &Arc<Self>, now: BootTime) -> Working {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(now);
        Working { work: Arc::clone(self), begun: now }
    }

    /// Returns when the oldest that is under way was begun.
    pub(super) fn oldest(&self) -> Option<BootTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().min().copied()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut begun = self.work.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = begun.iter().position(|at| *at == self.begun) {
            begun.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(s: u64) -> BootTime {
        BootTime::from_nanos(s * 1_000_000_000)
    }

    /// `looks`: at which second, and the flushed LSN if somebody waits; once a second in between it is as before.
    #[track_caller]
    fn check(looks: &[(u64, Option<u64>)], hung: bool) {
        let mut stall = Stall::default();
        for (index, (from, lsn)) in looks.iter().enumerate() {
            let to = looks.get(index + 1).map_or(from + 1, |(next, _)| *next);
            for at in *from..to {
                stall.flushes(lsn.map(Lsn::new), second(at));
            }
        }
        assert_eq!(stall.is_hung(HUNG), hung, "{looks:?}");
    }

    #[test]
    fn a_disk_hangs_when_somebody_waits_for_it_at_each_look_and_nothing_moves() {
        check(&[(0, Some(7)), (11, Some(7))], true);
        check(&[(0, Some(7)), (10, Some(7))], false); // not yet
        check(&[(0, Some(7)), (9, Some(8)), (18, Some(9))], false); // an fsync of nine seconds: slow, not hung
        check(&[(0, Some(7)), (5, None), (6, Some(7)), (15, Some(7))], false); // nobody waited
        check(&[(0, Some(7)), (30, Some(8))], false); // it hung, and goes on
    }

    #[test]
    fn looks_far_apart_say_nothing_of_what_was_between() {
        let looks = |at: &[u64]| {
            let mut stall = Stall::default();
            for at in at {
                stall.flushes(Some(Lsn::new(7)), second(*at));
            }
            stall.is_hung(HUNG)
        };
        assert!(looks(&[0, 6, 12]));
        assert!(!looks(&[0, 1, 11]), "frozen in between");
        assert!(!looks(&[0, 1, 3600]), "a host that slept");
        assert!(looks(&[0, 1, 11, 12, 17, 22]), "it counts from the end of that");
    }

    #[test]
    fn work_that_does_not_come_back_is_evidence_and_work_that_does_is_none() {
        let disk = Arc::new(DiskWork::default());
        let mut stall = Stall::default();
        let stuck = disk.begin(second(0));
        for at in 0..=10 {
            let quick = disk.begin(second(at));
            stall.works(disk.oldest(), second(at));
            drop(quick);
        }
        assert!(!stall.is_hung(HUNG));
        stall.works(disk.oldest(), second(11));
        assert!(stall.is_hung(HUNG));
        drop(stuck);
        stall.works(disk.oldest(), second(12));
        assert!(!stall.is_hung(HUNG));
        assert_eq!(disk.oldest(), None);
    }

    #[test]
    fn calm_timings_ride_out_more() {
        assert_eq!(hung_after(Timing::default()), Duration::from_secs(10));
        let calm = Timing { lease_ms: 12_000, ..Timing::default() };
        assert_eq!(hung_after(calm), Duration::from_secs(24));
    }
}
