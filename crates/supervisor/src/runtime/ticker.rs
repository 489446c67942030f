//! Time that passes with as few wake-ups as it can.
//!
//! tokio sorts timers that are more than 64 ms away into slots of 64 ms, and wakes at the beginning of the
//! slot before it wakes at the timer's own time. So a beat comes from a timer of the kernel's, and what is
//! looked at from time to time only is looked at at the beginning of a slot, together with other such
//! things (decision 0046). Both wake once; neither is for what a lease is judged by.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::clock::Timepiece;
use crate::guardian::sys;

/// The width of the slots.
const SLOT: Duration = Duration::from_millis(64);

/// When the runtime of the main thread was made: its slots are counted from there.
static FIRST_SLOT: OnceLock<Instant> = OnceLock::new();

/// Notes that the runtime of the main thread is about to be made.
pub fn begin() {
    FIRST_SLOT.get_or_init(Instant::now);
}

/// Waits about so long: for what nothing but people's patience depends on.
///
/// By little more than a quarter longer or shorter at most. In a process that never said [`begin`], as the simulation's, exactly.
pub async fn about(time: Duration) {
    match FIRST_SLOT.get().and_then(|first| slot_near(Instant::now().duration_since(*first), time)) {
        Some(wait) => tokio::time::sleep(wait).await,
        None => tokio::time::sleep(time).await,
    }
}

/// Returns how long until a slot begins at about `time` from now, where `past` has passed since the first.
/// Slots of the same kind of wait are far enough apart to be shared.
fn slot_near(past: Duration, time: Duration) -> Option<Duration> {
    // A sixteenth more, so that round numbers find the step that is next to them.
    let half = time.saturating_add(time / 16).as_millis() / 2;
    let slots = u32::try_from(half / SLOT.as_millis()).ok()?;
    let step = SLOT.checked_mul(slots.checked_ilog2().map(|power| 1_u32 << power)?)?;
    let (step, aim) = (step.as_nanos(), past.saturating_add(time).as_nanos());
    let slot = aim.checked_add(step / 2)? / step * step;
    // tokio rounds up to whole milliseconds: half a one earlier is the beginning of the slot itself.
    let wait = slot.checked_sub(past.as_nanos())?.checked_sub(500_000)?;
    Some(Duration::from_nanos(u64::try_from(wait).ok()?))
}

/// A steady beat. The first comes at once; one that nobody waited for is left out.
#[derive(Debug)]
pub struct Ticker(Kind);

#[derive(Debug)]
enum Kind {
    Kernel(AsyncFd<OwnedFd>),
    Runtime(Interval),
}

impl Ticker {
    /// Begins a beat. In simulated time, and where the kernel has no timer to give, tokio keeps it.
    pub fn every(time: Duration, clock: Timepiece) -> Self {
        let kernel = if clock.is_simulated() { None } else { kernel_timer(time).ok() };
        Self(kernel.map_or_else(
            || {
                let mut interval = tokio::time::interval(time);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                Kind::Runtime(interval)
            },
            Kind::Kernel,
        ))
    }

    /// Waits for the next beat. Nothing is lost when it is dropped.
    pub async fn tick(&mut self) {
        match &mut self.0 {
            Kind::Kernel(timer) => {
                while let Ok(mut ready) = timer.readable().await {
                    let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0_u8; 8])?));
                    if matches!(read, Ok(Ok(_))) {
                        return;
                    }
                }
            }
            Kind::Runtime(interval) => drop(interval.tick().await),
        }
    }
}

/// Makes a timer of the kernel's that fires now and then each `time`.
fn kernel_timer(time: Duration) -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let interval = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let at_once = Timespec { tv_sec: 0, tv_nsec: 1 };
    let spec = Itimerspec { it_interval: interval, it_value: at_once };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
    sys::watch(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(past_us: u64, time_ms: u64, expected_us: u64) {
        let wait = slot_near(Duration::from_micros(past_us), Duration::from_millis(time_ms));
        assert_eq!(wait, Some(Duration::from_micros(expected_us)), "{past_us} us, {time_ms} ms");
    }

    #[test]
    fn waits_end_where_a_slot_begins() {
        // A second: at multiples of 512 ms.
        check(0, 1000, 1_024_000 - 500);
        check(1_024_300, 1000, 1_024_000 - 800);
        check(1_300_000, 1000, 2_048_000 - 1_300_000 - 500);
        // Half a second: at multiples of 256 ms; a quarter: of 128.
        check(1_024_000, 500, 512_000 - 500);
        check(0, 250, 256_000 - 500);
        assert_eq!(slot_near(Duration::ZERO, Duration::from_millis(100)), None, "too short for a slot");
    }

    #[test]
    fn no_wait_is_much_longer_or_shorter() {
        for past_ms in 0..2000 {
            for time_ms in [128, 200, 250, 500, 900, 1000, 3000, 10_000] {
                let (past, time) = (Duration::from_millis(past_ms), Duration::from_millis(time_ms));
                let wait = slot_near(past, time).expect("long enough");
                assert!(wait > time * 7 / 10 && wait < time * 13 / 10, "{past:?} {time:?}: {wait:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_beat_goes_on_and_can_be_left_alone_in_between() {
        let mut ticker = Ticker::every(Duration::from_millis(2), Timepiece::default());
        assert!(matches!(ticker.0, Kind::Kernel(_)));
        for _ in 0..5 {
            ticker.tick().await;
        }
        drop(tokio::time::timeout(Duration::ZERO, ticker.tick()).await);
        ticker.tick().await;
    }
}
