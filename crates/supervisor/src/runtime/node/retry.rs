//! ✦ When an effect that failed is tried again, and which Revoke is refused: no I/O, no clock; the
//! simulation's loop goes by the same.

use rhone_consensus::ids::Epoch;

use crate::decide::Effect;
use crate::view::Moment;

/// After a failure the same effect is tried again this much later, doubling up to the limit.
const RETRY_FIRST_MS: u64 = 100;
const RETRY_LIMIT_MS: u64 = 5_000;

/// After so many failures to promote in a row another member is to be tried.
const PROMOTIONS_TRIED: u32 = 3;

/// The effect that failed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    effect: Option<Effect>,
    count: u32,
    until: Moment,
}

impl Failures {
    /// Whether that effect has to wait. What ends a primary never does.
    pub fn hold_up(&self, effect: Effect, now: Moment) -> bool {
        let urgent = matches!(effect, Effect::Fence | Effect::Revoke);
        self.effect == Some(effect) && now < self.until && !urgent
    }

    /// Whether that effect is what failed last.
    pub fn was(&self, effect: Effect) -> bool {
        self.effect == Some(effect)
    }

    /// Takes note that an effect is done.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    /// Takes note that that effect failed. Returns whether this counts as a start that failed: another
    /// member may have to do it.
    pub fn note(&mut self, effect: Effect, now: Moment) -> bool {
        let count = if self.effect == Some(effect) { self.count.saturating_add(1) } else { 1 };
        let wait = (RETRY_FIRST_MS << count.min(10)).min(RETRY_LIMIT_MS);
        *self = Self { effect: Some(effect), count, until: now.plus_millis(wait) };
        let serving = matches!(effect, Effect::Promote | Effect::OpenGate) && count >= PROMOTIONS_TRIED;
        matches!(effect, Effect::Start(_)) || serving
    }
}

/// Returns why a Revoke for `asked` is refused, where `promise` was given and `granted` applied.
pub fn refusal(asked: Epoch, promise: Epoch, granted: Epoch) -> Option<String> {
    if asked < promise {
        Some(format!("epoch {promise} was promised"))
    } else if asked <= granted {
        Some(format!("epoch {granted} is granted already"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rhone_consensus::settings::Timing;

    use super::super::{Pause, overdue_at, watch_in};
    use super::*;
    use crate::runtime::clock::BootTime;

    #[test]
    fn a_failed_effect_waits_twice_as_long_each_time_and_another_one_does_not() {
        let mut failures = Failures::default();
        let start = Moment::default();
        assert!(!failures.note(Effect::Promote, start));
        assert!(failures.hold_up(Effect::Promote, start.plus_millis(199)));
        assert!(!failures.hold_up(Effect::Promote, start.plus_millis(200)));
        assert!(!failures.hold_up(Effect::OpenGate, start));
        assert!(!failures.note(Effect::Promote, start));
        assert!(failures.hold_up(Effect::Promote, start.plus_millis(399)));
        assert!(failures.note(Effect::Promote, start), "the third time another member may try");
        failures.end();
        assert!(!failures.hold_up(Effect::Promote, start));
    }

    #[test]
    fn what_ends_a_primary_never_waits() {
        let mut failures = Failures::default();
        failures.note(Effect::Fence, Moment::default());
        assert!(!failures.hold_up(Effect::Fence, Moment::default()));
    }

    /// With default timings a renewal that was sent at 0 ends at 1335, the guard at 1485; others may be
    /// granted at 1515.
    #[test]
    fn the_end_of_a_lease_is_looked_at_when_it_comes_and_before_anybody_else_is_granted() {
        let timing = Timing::default();
        let at = |ms: u64| BootTime::from_nanos(ms * 1_000_000);
        let until = at(0).saturating_add(Duration::from_nanos(timing.serve_ns()));
        assert_eq!(until, at(1335));
        assert_eq!(overdue_at(until, timing), Some(at(1455)));
        assert_eq!(overdue_at(BootTime::ZERO, timing), None);
        let pause = |now| watch_in(until, timing, at(now));
        let exact = |ms| Pause::Exact(Duration::from_millis(ms));
        let usual = Pause::About(Duration::from_millis(250));
        assert_eq!(pause(100), usual, "a lease that is renewed wakes nothing");
        assert_eq!(pause(956), exact(500), "what is rounded may come 64 ms late");
        assert_eq!(pause(1300), exact(156));
        assert_eq!(pause(1455), exact(1), "never at once");
        assert_eq!(pause(1456), usual, "over: it was looked at");
        assert!(at(1300).saturating_add(pause(1300).time()).as_nanos() < timing.aged_ns());
    }

    #[test]
    fn a_revoke_is_refused_below_the_promise_and_once_it_is_granted() {
        let refused =
            |asked, promise, granted| refusal(Epoch(asked), Epoch(promise), Epoch(granted)).is_some();
        assert!(refused(4, 5, 3));
        assert!(refused(5, 5, 5));
        assert!(!refused(5, 5, 3), "asked once more");
        assert!(!refused(6, 5, 5));
    }
}
