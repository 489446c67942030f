//! The voter's half of the lease: whom it renewed last, and whether it still may (docs/safety.md 3).
//!
//! One lock covers the check and the note, so that no renewal slips in beside a Prepare: the log
//! tells of a Prepare under the same lock before the append is acknowledged. Nothing here touches
//! a disk.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone_consensus::ids::{Epoch, LogIndex};
use rhone_consensus::observer::{LogCause, LogHeld, LogObserver};
use rhone_consensus::settings::Timing;
use rhone_pgctl::wal::Lsn;
use tokio::sync::watch;

pub use crate::decide::lease::RenewRefusal;
use crate::decide::lease::Voter;
use crate::runtime::clock::Timepiece;
use crate::runtime::shared::moment;
use crate::view::{Moment, VoterReport};

/// A voter's memory of the lease, shared.
#[derive(Debug)]
pub struct VoterLease {
    inner: Mutex<Voter>,
    changed: watch::Sender<u64>,
    clock: Timepiece,
}

impl VoterLease {
    /// Begins the voter's life, in quarantine.
    pub fn new(clock: impl Into<Timepiece>) -> Self {
        let clock = clock.into();
        let voter = Voter::new(moment(clock.now()));
        Self { inner: Mutex::new(voter), changed: watch::Sender::new(0), clock }
    }

    fn lock(&self) -> MutexGuard<'_, Voter> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        moment(self.clock.now())
    }

    /// Takes note of the applied state: its epoch, and the timings that voters age by. Where that changes this voter's
    /// word on the lease's age it is told at once: an election waits for it.
    pub fn applied(&self, epoch: Epoch, timing: Timing) {
        let word = {
            let mut voter = self.lock();
            let now = self.now();
            let before = voter.report(now).aged_for;
            voter.applied(epoch, timing);
            (before, voter.report(now).aged_for)
        };
        if word.0 != word.1 {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Renews the primary's lease, or says why not.
    ///
    /// # Errors
    /// A higher Prepare or a newer membership in the log, or not yet the Prepare of that epoch.
    pub fn renew(&self, epoch: Epoch, lsn: Lsn, membership: LogIndex) -> Result<(), RenewRefusal> {
        // The clock is read under the lock: what is noted is never older than what was.
        let mut voter = self.lock();
        let now = self.now();
        voter.renew(now, epoch, lsn, membership)
    }

    /// Returns what this voter can say of the lease now.
    pub fn report(&self) -> VoterReport {
        let voter = self.lock();
        voter.report(self.now())
    }

    /// Returns how long until the report changes by the passing of time alone.
    pub fn next_change(&self) -> Option<Duration> {
        let voter = self.lock();
        voter.next_change(self.now()).map(Duration::from_nanos)
    }

    /// Returns a receiver that fires when the log, or what is applied of it, changed what this voter may say.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns the newest entry of the log that sets the timings, and what is safe under all such.
    pub fn log_timing(&self) -> Option<(LogIndex, Timing)> {
        self.lock().log_timing()
    }

    /// Returns the newest membership that the log holds, and the highest Prepare.
    pub fn log_held(&self) -> (LogIndex, Epoch) {
        let voter = self.lock();
        (voter.membership(), voter.held())
    }
}

impl LogObserver for VoterLease {
    fn log_changed(&self, held: LogHeld, cause: LogCause) {
        {
            let mut voter = self.lock();
            let now = self.now();
            voter.log_changed(now, held, cause);
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::Clock;

    #[test]
    fn an_applied_prepare_is_told_at_once_where_the_lease_has_aged() {
        let voter = VoterLease::new(Clock);
        let timing = Timing { renewal_ms: 1, suspicion_ms: 1, lease_ms: 1, drift_permille: 0, guard_ms: 0 };
        let mut changes = voter.changes();
        voter.applied(Epoch(4), timing);
        while voter.report().aged_for.is_none() {
            std::thread::yield_now();
        }
        changes.mark_unchanged();
        voter.applied(Epoch(4), timing);
        assert_eq!(changes.has_changed().ok(), Some(false), "nothing is new");
        voter.applied(Epoch(9), timing);
        assert_eq!(changes.has_changed().ok(), Some(true));
        assert_eq!(voter.report().aged_for, Some(Epoch(9)));
    }
}
