//! When the Raft leader itself was heard by no majority: silence of that time proves nothing about the primary.
//!
//! A leader that is cut off from everybody and heard again in the same term goes on where it was. What the voters
//! did not hear meanwhile they may have missed for the same cause, a switch that was restarted, say; so that time
//! is not held against the primary, which gets its whole limit to be heard again. This can only delay a Prepare.

use std::collections::VecDeque;

use crate::view::Moment;

/// Times further back than this are forgotten; no limit is as long.
const KEPT_MS: u64 = 60_000;

/// The times when no majority heard this leader.
#[derive(Clone, Debug, Default)]
pub struct Deafness {
    past: VecDeque<(Moment, Moment)>,
    since: Option<Moment>,
}

impl Deafness {
    /// A majority was last heard then, and is not heard now.
    pub fn begin(&mut self, heard: Moment) {
        // Never within what has been counted already.
        let from = self.past.back().map_or(heard, |(_, to)| heard.max(*to));
        self.since.get_or_insert(from);
    }

    /// A majority is heard again.
    pub fn end(&mut self, now: Moment) {
        if let Some(since) = self.since.take() {
            self.past.push_back((since, now));
        }
        while self.past.front().is_some_and(|(_, to)| now.millis_since(*to) > KEPT_MS) {
            self.past.pop_front();
        }
    }

    /// Returns how much of a silence, told at that moment, fell into times when this leader could hear.
    pub fn counted_ms(&self, at: Moment, silent_ms: u64) -> u64 {
        let from = Moment(at.0.saturating_sub(silent_ms.saturating_mul(1_000_000)));
        let open = self.since.map(|since| (since, at));
        let deaf = self.past.iter().copied().chain(open);
        let missed: u64 = deaf.map(|(begin, end)| end.min(at).since(begin.max(from))).sum();
        silent_ms.saturating_sub(missed / 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    /// `periods`: when the leader was not heard; `told`: a voter's silence, told at that moment.
    #[track_caller]
    fn check(periods: &[(u64, u64)], told: (u64, u64), counted: u64) {
        let mut deafness = Deafness::default();
        for (from, to) in periods {
            deafness.begin(ms(*from));
            deafness.end(ms(*to));
        }
        assert_eq!(deafness.counted_ms(ms(told.0), told.1), counted, "{periods:?}: {told:?}");
    }

    #[test]
    fn silence_counts_while_the_leader_hears() {
        check(&[], (10_000, 5000), 5000);
        check(&[(4000, 9000)], (10_000, 6000), 1000); // a blip: nobody heard anybody
        check(&[(4000, 9000)], (9000, 5000), 0);
        check(&[(4000, 9000)], (9400, 5500), 500); // the limit is reached that much later
        check(&[(1000, 2000)], (10_000, 5000), 5000); // before the silence began
        check(&[(1000, 6000)], (10_000, 5000), 4000); // partly before
        check(&[(4000, 5000), (6000, 7000)], (10_000, 8000), 6000); // flaps: it adds up all the same
        check(&[(9500, 9900)], (9000, 3000), 3000); // told before
        check(&[(4000, 6000), (5000, 7000)], (10_000, 8000), 5000); // counted once
        check(&[(4000, 3000)], (10_000, 8000), 8000); // no clock goes back, and nothing breaks if it did
    }

    #[test]
    fn a_time_that_has_not_ended_counts_too() {
        let mut deafness = Deafness::default();
        deafness.begin(ms(4000));
        deafness.begin(ms(5000)); // said again
        assert_eq!(deafness.counted_ms(ms(6000), 3000), 1000);
        deafness.end(ms(6000));
        deafness.end(ms(7000));
        assert_eq!(deafness.counted_ms(ms(7000), 4000), 2000);
    }

    #[test]
    fn old_times_are_forgotten() {
        let mut deafness = Deafness::default();
        for second in 0..1000 {
            deafness.begin(ms(second * 1000));
            deafness.end(ms(second * 1000 + 500));
        }
        assert!(deafness.past.len() < 70, "{}", deafness.past.len());
    }
}
