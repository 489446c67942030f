//! The clock that leases and fences count by; nothing else may read one.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since the boot.
///
/// It goes on while the host is suspended, so that a host that wakes up finds its lease expired, and no
/// one can set it. It means nothing on another host or after a reboot: never store it or send it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

impl BootTime {
    /// The boot itself: earlier than any moment a running program can see.
    pub const ZERO: Self = Self(0);
    /// Later than any moment.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a moment of nanoseconds since the boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the moment `by` later, at most [`BootTime::MAX`].
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }

    /// Returns the moment `by` earlier, at least [`BootTime::ZERO`].
    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }

    /// Returns how long after `earlier` this is; zero if it is not.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

/// Reads the clock of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Reads `CLOCK_BOOTTIME`. Takes no lock and allocates nothing.
    pub fn now(self) -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        // The kernel's seconds and nanoseconds since the boot are never negative.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        BootTime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }
}

/// The clock of the supervisor's loops: this host's, or a simulated one's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timepiece(Option<&'static dyn Simulated>);

/// A clock of the simulation's.
pub trait Simulated: Sync + fmt::Debug {
    /// Reads it.
    fn now(&self) -> BootTime;
}

impl Timepiece {
    /// Reads time from the simulation, which keeps it for the rest of the process.
    pub const fn simulated(clock: &'static dyn Simulated) -> Self {
        Self(Some(clock))
    }

    /// Whether time is the simulation's.
    pub const fn is_simulated(self) -> bool {
        self.0.is_some()
    }

    /// Reads the clock.
    pub fn now(self) -> BootTime {
        match self.0 {
            None => Clock.now(),
            Some(simulated) => simulated.now(),
        }
    }

    /// Reads the wall clock, in milliseconds since 1970: for people to read, never to decide by.
    pub fn wall_time(self) -> u64 {
        match self.0 {
            None => wall_time(),
            Some(simulated) => simulated.now().as_nanos() / 1_000_000,
        }
    }
}

impl From<Clock> for Timepiece {
    fn from(_host: Clock) -> Self {
        Self(None)
    }
}

/// Reads the wall clock, in milliseconds since 1970: for people to read, never to decide by.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall_time() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_subtracted_without_wrapping() {
        let early = BootTime::from_nanos(5);
        let late = early.saturating_add(Duration::from_nanos(7));
        assert_eq!(late.saturating_since(early), Duration::from_nanos(7));
        assert_eq!(early.saturating_since(late), Duration::ZERO);
        assert_eq!(early.saturating_sub(Duration::from_secs(1)), BootTime::ZERO);
        assert_eq!(BootTime::MAX.saturating_add(Duration::from_secs(1)), BootTime::MAX);
    }

    #[test]
    fn the_clock_goes_forward() {
        let clock = Clock;
        let first = clock.now();
        assert!(first > BootTime::ZERO);
        assert!(clock.now() >= first);
    }
}
