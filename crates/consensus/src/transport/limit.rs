//! How long an append call may take before it is given up and sent again.

use std::time::Duration;

/// How often what an answer took the next limit is at least.
const MARGIN: u32 = 4;

/// The limit of append calls over one connection: one heartbeat, and longer only for a peer that needs it.
///
/// A peer whose disk or processor is slow would never answer within a heartbeat, and its leader would lead nobody, so
/// that each call that is given up doubles the limit of the next, and the answers take it back. After three calls in a
/// row that failed the connection is made anew, and the limit with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AppendLimit {
    least: Duration,
    now: Duration,
}

impl AppendLimit {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, now: least }
    }

    pub(super) fn get(self) -> Duration {
        self.now
    }

    /// The peer answered after `took`.
    pub(super) fn answered(&mut self, took: Duration) {
        self.now = took.saturating_mul(MARGIN).min(self.now).max(self.least);
    }

    /// The peer did not answer within `limit`.
    pub(super) fn missed(&mut self, limit: Duration) {
        self.now = limit.saturating_mul(2).max(self.least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(steps: &[Option<u64>], expected: u64) {
        let mut limit = AppendLimit::new(Duration::from_millis(100));
        for step in steps {
            match step {
                Some(took) => limit.answered(Duration::from_millis(*took)),
                None => limit.missed(limit.get().min(Duration::from_millis(400))),
            }
        }
        assert_eq!(limit.get(), Duration::from_millis(expected), "{steps:?}");
    }

    #[test]
    fn grows_for_a_slow_peer_and_shrinks_with_its_answers() {
        check(&[], 100);
        check(&[Some(3)], 100);
        check(&[Some(90)], 100); // no answer lengthens it
        check(&[None], 200);
        check(&[None, None], 400);
        check(&[None, None, None], 800); // what openraft allows is less: the caller takes the lesser
        check(&[None, Some(150)], 200); // stays where answers come
        check(&[None, None, Some(60)], 240);
        check(&[None, None, Some(60), Some(10)], 100);
    }
}
