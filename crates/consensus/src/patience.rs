//! How long a voter waits for a leader, and for leave to campaign.

use std::time::Duration;

use crate::host::Moment;
use crate::ids::NodeId;

/// Campaigns, without a leader that stayed, before a voter waits longer: two candidates may meet by chance.
const BY_CHANCE: u32 = 1;
/// How often the wait is doubled at most: 3.2 to 6.4 s with the usual timings.
const DOUBLED: u32 = 3;
/// For how many longest waits a leader must have been heard for it to have been a success.
const STABLE: u32 = 4;

/// Grows where elections come to nothing although a majority answers: its members are too slow for the timings
/// just now, and each further campaign would only depose whoever was about to lead.
///
/// A campaign that got no leave takes one back: nobody was there, and whoever comes back is not to be waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    fruitless: u32,
    /// Who leads, in which term, and since when as far as was seen here.
    led: Option<(NodeId, u64, Moment)>,
}

impl Patience {
    /// How many times longer than usual to wait.
    pub(crate) fn factor(self) -> u32 {
        1 << self.fruitless.saturating_sub(BY_CHANCE).min(DOUBLED)
    }

    /// A majority gave leave, and votes were asked for.
    pub(crate) fn campaigned(&mut self) {
        self.fruitless = self.fruitless.saturating_add(1);
    }

    /// No majority gave leave.
    pub(crate) fn refused(&mut self) {
        self.fruitless = self.fruitless.saturating_sub(1);
    }

    /// Notes who leads now, and in which term; the longest usual wait is `longest`.
    pub(crate) fn sees(&mut self, leader: Option<NodeId>, term: u64, now: Moment, longest: Duration) {
        self.led = leader.map(|leader| match self.led {
            Some(led) if (led.0, led.1) == (leader, term) => led,
            _ => (leader, term, now),
        });
        if self.led.is_some_and(|(_, _, since)| now.since(since) >= longest.saturating_mul(STABLE)) {
            self.fruitless = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(800);

    /// Campaigns, then sees a leader of a term (0: none) at moments in ms.
    #[track_caller]
    fn check(campaigns: u32, seen: &[(u64, u64)], expected: u32) {
        let mut patience = Patience::default();
        for _ in 0..campaigns {
            patience.campaigned();
        }
        for (at, term) in seen {
            let leader = (*term > 0).then_some(NodeId(1));
            patience.sees(leader, *term, Moment::default().plus(Duration::from_millis(*at)), LONGEST);
        }
        assert_eq!(patience.factor(), expected, "{campaigns} campaigns, then {seen:?}");
    }

    #[test]
    fn grows_with_fruitless_campaigns_until_a_leader_stays() {
        check(0, &[], 1);
        check(1, &[], 1);
        check(2, &[], 2);
        check(3, &[], 4);
        check(4, &[], 8);
        check(400, &[], 8);
        check(4, &[(0, 0), (9_000, 0)], 8);
        check(4, &[(0, 1), (3_199, 1)], 8); // it may be deposed yet
        check(4, &[(0, 1), (3_200, 1)], 1);
        check(4, &[(0, 1), (3_000, 2), (6_000, 2)], 8); // another term each time
        check(4, &[(0, 1), (3_000, 0), (3_300, 1)], 8); // not heard between
    }

    #[test]
    fn shrinks_where_nobody_is_there_to_give_leave() {
        let mut patience = Patience::default();
        for _ in 0..3 {
            patience.campaigned();
        }
        let factors: Vec<u32> = (0..3)
            .map(|_| {
                patience.refused();
                patience.factor()
            })
            .collect();
        assert_eq!(factors, [2, 1, 1]);
    }
}
