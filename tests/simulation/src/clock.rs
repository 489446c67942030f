//! A member's clock: virtual, with a rate and an offset of its own.
//!
//! A member's tokio runtime is paused and driven in slices. Within a slice the runtime's own
//! instant says how far it has come; between two slices the clock stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rhone::runtime::clock::{BootTime, Simulated};
use rhone_consensus::host::Host;
use tokio::time::Instant;

use crate::random::Random;

/// The clock.
#[derive(Debug)]
pub struct NodeClock {
    base: AtomicU64,
    slice: Mutex<Option<Instant>>,
    /// Parts per million of true time.
    rate: u64,
}

impl NodeClock {
    /// Begins at `offset` nanoseconds, with `rate` millionths of true time.
    pub fn new(offset: u64, rate: u64) -> Self {
        Self { base: AtomicU64::new(offset), slice: Mutex::new(None), rate }
    }

    /// Returns what passes here while `true_ns` pass in truth.
    pub fn scaled(&self, true_ns: u64) -> u64 {
        true_ns / 1000 * self.rate / 1000
    }

    /// Begins a slice; called inside the runtime.
    pub fn begin(&self) {
        *self.slice.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Ends the slice `by` nanoseconds after where the last one ended.
    pub fn end(&self, by: u64) {
        *self.slice.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.base.fetch_add(by, Ordering::Relaxed);
    }

    /// Reads it, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        let base = self.base.load(Ordering::Relaxed);
        match *self.slice.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(start) => {
                let passed = Instant::now().saturating_duration_since(start);
                base + u64::try_from(passed.as_nanos()).unwrap_or(0)
            }
            None => base,
        }
    }

    /// Reads it as the supervisor's loops do.
    pub fn moment(&self) -> BootTime {
        BootTime::from_nanos(self.nanos())
    }
}

impl Simulated for NodeClock {
    fn now(&self) -> BootTime {
        self.moment()
    }
}

/// A voter's view of the clock, which the mutant without quarantine sets back while it starts.
#[derive(Debug)]
pub struct VoterClock {
    /// The member's.
    pub clock: &'static NodeClock,
    /// By how many nanoseconds it lies.
    pub back: AtomicU64,
}

impl Simulated for VoterClock {
    fn now(&self) -> BootTime {
        BootTime::from_nanos(self.clock.nanos().saturating_sub(self.back.load(Ordering::Relaxed)))
    }
}

/// The machine as Raft sees it.
#[derive(Debug)]
pub struct SimHost {
    /// Its clock.
    pub clock: &'static NodeClock,
    /// Its chance.
    pub random: Mutex<Random>,
}

impl Host for SimHost {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.nanos())
    }

    fn random(&self) -> std::io::Result<u64> {
        Ok(self.random.lock().unwrap_or_else(PoisonError::into_inner).next())
    }
}
