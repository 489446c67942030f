//! The voter's half of the lease: whom it renewed last, and whether it still may (DESIGN 3).
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

use crate::runtime::clock::{BootTime, Timepiece};
use crate::view::{Heard, VoterReport};

/// Why a voter does not renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewRefusal {
    /// Its log holds the Prepare of a higher epoch.
    HigherEpoch(Epoch),
    /// Its log does not hold the Prepare of that epoch yet.
    UnknownEpoch,
    /// Its log holds a newer membership than the one the primary counts by.
    NewerMembership(LogIndex),
    /// It has just started and has forgotten whom it renewed.
    Quarantine {
        /// For how much longer, as far as it knows.
        left: Duration,
    },
}

/// A voter's memory of the lease.
#[derive(Debug)]
pub struct VoterLease {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    clock: Timepiece,
}

#[derive(Debug)]
struct Inner {
    /// Known once the state is: until then the voter stays in quarantine.
    timing: Option<Timing>,
    log_prepare: Epoch,
    applied_epoch: Epoch,
    membership: LogIndex,
    started: BootTime,
    /// The last renewal, or what counts as one.
    last: BootTime,
    heard: Option<Heard>,
}

impl Inner {
    fn held(&self) -> Epoch {
        self.log_prepare.max(self.applied_epoch)
    }

    /// Returns for how much longer the voter neither renews nor counts as aged.
    fn quarantine(&self, now: BootTime) -> Duration {
        let Some(timing) = self.timing else { return Duration::from_nanos(Timing::default().aged_ns()) };
        let end = self.started.saturating_add(Duration::from_nanos(timing.aged_ns()));
        end.saturating_since(now)
    }
}

impl VoterLease {
    /// Begins the voter's life, in quarantine.
    pub fn new(clock: impl Into<Timepiece>) -> Self {
        let clock = clock.into();
        let now = clock.now();
        let inner = Inner {
            timing: None,
            log_prepare: Epoch(0),
            applied_epoch: Epoch(0),
            membership: LogIndex(0),
            started: now,
            last: now,
            heard: None,
        };
        Self { inner: Mutex::new(inner), changed: watch::Sender::new(0), clock }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of the applied state.
    pub fn applied(&self, epoch: Epoch, timing: Timing) {
        let mut inner = self.lock();
        inner.applied_epoch = inner.applied_epoch.max(epoch);
        inner.timing = Some(timing);
    }

    /// Renews the primary's lease, or says why not.
    ///
    /// # Errors
    /// A higher Prepare in the log, a newer membership in the log, or quarantine.
    pub fn renew(&self, epoch: Epoch, lsn: Lsn, membership: LogIndex) -> Result<(), RenewRefusal> {
        let mut inner = self.lock();
        let now = self.clock.now();
        if inner.held() > epoch {
            return Err(RenewRefusal::HigherEpoch(inner.held()));
        }
        if inner.held() < epoch {
            return Err(RenewRefusal::UnknownEpoch);
        }
        if inner.membership > membership {
            return Err(RenewRefusal::NewerMembership(inner.membership));
        }
        let left = inner.quarantine(now);
        if !left.is_zero() {
            // How far the primary is may be remembered all the same: it prolongs nothing.
            inner.heard = inner.heard.max_by_position(Heard { epoch, lsn });
            return Err(RenewRefusal::Quarantine { left });
        }
        inner.last = now;
        inner.heard = inner.heard.max_by_position(Heard { epoch, lsn });
        Ok(())
    }

    /// Returns what this voter can say of the lease now.
    pub fn report(&self) -> VoterReport {
        let inner = self.lock();
        let now = self.clock.now();
        let quarantined = !inner.quarantine(now).is_zero();
        let silence = now.saturating_since(inner.last);
        let aged = inner.timing.is_some_and(|t| silence >= Duration::from_nanos(t.aged_ns()));
        VoterReport {
            held: inner.held(),
            silent_ms: (!quarantined).then(|| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
            aged_for: (aged && !quarantined).then(|| inner.held()),
            heard: inner.heard,
        }
    }

    /// Returns how long until the report changes by the passing of time alone.
    pub fn next_change(&self) -> Option<Duration> {
        let inner = self.lock();
        let now = self.clock.now();
        let timing = inner.timing?;
        let quarantine = inner.quarantine(now);
        let silence = now.saturating_since(inner.last);
        [Duration::from_millis(u64::from(timing.suspicion_ms)), Duration::from_nanos(timing.aged_ns())]
            .into_iter()
            .filter(|limit| *limit > silence)
            .map(|limit| limit.saturating_sub(silence))
            .chain((!quarantine.is_zero()).then_some(quarantine))
            .min()
    }

    /// Returns a receiver that fires when the log changed what this voter may say.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns the newest membership that the log holds, and the highest Prepare.
    pub fn log_held(&self) -> (LogIndex, Epoch) {
        let inner = self.lock();
        (inner.membership, inner.held())
    }
}

impl LogObserver for VoterLease {
    fn log_changed(&self, held: LogHeld, cause: LogCause) {
        {
            let mut inner = self.lock();
            let now = self.clock.now();
            inner.log_prepare = held.prepare;
            inner.membership = held.membership;
            match cause {
                // Counts as a renewal of whoever owns: this voter may not have been asked before,
                // or has lost its memory of it (decision 0003).
                LogCause::Start | LogCause::MembershipAppend | LogCause::SnapshotInstall => inner.last = now,
                LogCause::Append | LogCause::Truncate => {}
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Keeps the furthest of two renewals.
trait MaxByPosition {
    fn max_by_position(self, other: Heard) -> Option<Heard>;
}

impl MaxByPosition for Option<Heard> {
    fn max_by_position(self, other: Heard) -> Option<Heard> {
        match self {
            Some(known) if (known.epoch, known.lsn) > (other.epoch, other.lsn) => Some(known),
            Some(_) | None => Some(other),
        }
    }
}
