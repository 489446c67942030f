//! What a member takes from the machine it runs on: the time, and chance. The one place of this
//! crate that reads a clock or draws a number; the simulation has a [`Host`] of its own.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

/// The machine, as Raft's own timings see it.
pub trait Host: Send + Sync + Debug {
    /// Returns the time since some fixed moment. Never goes back; goes on while the host is
    /// suspended.
    fn now(&self) -> Duration;

    /// Draws a number that nobody can foresee.
    ///
    /// # Errors
    /// The machine has no randomness.
    fn random(&self) -> io::Result<u64>;
}

/// This machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisHost;

impl Host for ThisHost {
    /// Reads `CLOCK_BOOTTIME`, so that time spent suspended counts: a leader that wakes up has
    /// lost its quorum's ear (docs/safety.md 3).
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(seconds, nanos)
    }

    fn random(&self) -> io::Result<u64> {
        getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
    }
}

/// A point in time of a [`Host`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// Reads a host's clock.
    pub(crate) fn of(host: &dyn Host) -> Self {
        Self(host.now())
    }

    /// Returns the moment so much later.
    pub(crate) fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// Returns how long ago `earlier` was, or zero when it is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
