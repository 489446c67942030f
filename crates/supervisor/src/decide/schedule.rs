//! ✦ When a switchover or a restart that is put down for later begins (decision 0043).
//!
//! The wall clock of the Raft leader says what time it is: there is no other one that a person could
//! mean. What it says counts only where it went steadily, which the boot clock beside it tells.

use rhone_consensus::command::WallTime;

use crate::view::Moment;

/// For how long after its time one may still begin: a failover of Raft's leader, or a standby that
/// is just catching up. Later nobody expects it any more.
pub const LATE_MS: u64 = 60_000;

/// A wall clock that went by so much more or less than the boot clock between two looks was set. Slewing is
/// far below: NTP's is at most 0.5 ms in a second, and looks come twice a second.
const JUMP_MS: u64 = 2_000;

/// One look at both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What the wall clock says.
    pub wall: WallTime,
    /// What the boot clock says.
    pub boot: Moment,
}

/// What one comes to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Its time has not come.
    NotYet,
    /// It begins, if the cluster is ready.
    Now,
    /// It does not begin any more, and why.
    Never(String),
}

/// Says whether the time `at` has come; `before` is the look before this one, of the same leader.
pub fn due(at: WallTime, before: Option<Look>, now: Look) -> Due {
    if let Some(before) = before {
        let steady = before.wall.0.saturating_add(now.boot.millis_since(before.boot));
        let jumped = now.wall.0 > steady.saturating_add(JUMP_MS);
        if jumped && before.wall < at && steady < at.0 && now.wall >= at {
            let seconds = now.wall.0.saturating_sub(steady) / 1000;
            return Due::Never(format!(
                "the wall clock of the raft leader was set {seconds} s ahead, past its time"
            ));
        }
    }
    if now.wall < at {
        return Due::NotYet;
    }
    if now.wall.0 > at.0.saturating_add(LATE_MS) {
        return Due::Never(format!("it could not begin within {} s of its time", LATE_MS / 1000));
    }
    Due::Now
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in seconds, `wall/boot` each; scheduled for 100.
    #[track_caller]
    fn check(before: Option<(u64, u64)>, now: (u64, u64), expected: &str) {
        let at = WallTime(100_000);
        let look = |(wall, boot): (u64, u64)| Look {
            wall: WallTime(wall * 1000),
            boot: Moment(boot * 1_000_000_000),
        };
        let found = match due(at, before.map(look), look(now)) {
            Due::NotYet => "not yet".to_owned(),
            Due::Now => "now".to_owned(),
            Due::Never(why) => why,
        };
        assert!(found.contains(expected), "{before:?} {now:?}: {found}");
    }

    #[test]
    fn it_begins_at_its_time_and_soon_after_only() {
        check(Some((98, 8)), (99, 9), "not yet");
        check(Some((99, 9)), (100, 10), "now");
        check(None, (99, 9), "not yet"); // a new leader
        check(None, (130, 9), "now"); // whose time came while nobody led
        check(None, (161, 9), "could not begin within 60 s");
        check(Some((160, 70)), (161, 71), "could not begin within 60 s");
        // The host slept: both clocks went on.
        check(Some((90, 5)), (110, 25), "now");
        check(Some((90, 5)), (200, 115), "could not begin within 60 s");
    }

    #[test]
    fn a_clock_that_is_set_does_not_begin_it() {
        check(Some((50, 5)), (100, 6), "set 49 s ahead");
        check(Some((50, 5)), (9_000, 6), "set 8949 s ahead");
        check(Some((20, 5)), (90, 6), "not yet"); // not past its time
        check(Some((90, 6)), (100, 16), "now"); // and from then on by the clock as it is
        check(Some((99, 9)), (40, 10), "not yet"); // set back
        check(Some((110, 20)), (130, 21), "now"); // its time was over: it waits for the cluster
        check(Some((99, 9)), (101, 10), "now"); // slewed
    }
}
