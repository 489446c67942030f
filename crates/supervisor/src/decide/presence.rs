//! ✦ For how long each member has been heard without a gap, or not at all: whether a voter counts as dead (decision 0069).

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::ids::NodeId;

use crate::view::Moment;

/// The most that one look adds, in ms. A leader that was stopped or asleep, with its whole cluster perhaps, has heard
/// nobody meanwhile and nobody is dead for it; looks come twice a second.
const LOOK_MS: u64 = 2_000;

/// Who may take a dead one's vote was heard for so long without a gap, in ms, or for `dead-member-timeout` where that
/// is shorter: one that comes and goes is no better than the dead one.
const STEADY_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    present_ns: u64,
    absent_ns: u64,
}

/// What one leader has seen of the members since it leads. Another leader counts from the beginning.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    looked: Option<Moment>,
    counted: BTreeMap<NodeId, Counted>,
}

impl Presence {
    /// Forgets all: another term, or a paused cluster, in which members are away on purpose.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Notes who of the members is alive now.
    pub fn look(&mut self, members: impl Iterator<Item = NodeId>, alive: &BTreeSet<NodeId>, now: Moment) {
        let since = self.looked.map_or(0, |looked| now.since(looked)).min(LOOK_MS * 1_000_000);
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.counted);
        for node in members {
            let Counted { present_ns, absent_ns } = before.remove(&node).unwrap_or_default();
            let counted = if alive.contains(&node) {
                Counted { present_ns: present_ns.saturating_add(since), absent_ns: 0 }
            } else {
                Counted { present_ns: 0, absent_ns: absent_ns.saturating_add(since) }
            };
            self.counted.insert(node, counted);
        }
    }

    /// Returns who has been silent for longer than `timeout_ms`; 0: nobody ever.
    pub fn dead(&self, timeout_ms: u64) -> BTreeSet<NodeId> {
        self.having(|counted| timeout_ms > 0 && counted.absent_ns / 1_000_000 >= timeout_ms)
    }

    /// Returns who has been heard without a gap for long enough to take a dead one's vote.
    pub fn steady(&self, timeout_ms: u64) -> BTreeSet<NodeId> {
        self.having(|counted| counted.present_ns / 1_000_000 >= timeout_ms.min(STEADY_MS))
    }

    fn having(&self, what: impl Fn(&Counted) -> bool) -> BTreeSet<NodeId> {
        self.counted.iter().filter(|(_, counted)| what(counted)).map(|(node, _)| *node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at n1 to n3 as `MS ALIVE`, in order; a limit of 60 s. Returns who is dead and who is steady then.
    #[track_caller]
    fn check(looks: &str, dead: &str, steady: &str) {
        let mut presence = Presence::default();
        for look in looks.split(", ") {
            let (at, alive) = look.split_once(' ').unwrap_or((look, ""));
            if at == "forget" {
                presence.forget();
                continue;
            }
            let at: u64 = at.parse().expect("a number");
            let alive = alive.split(' ').filter_map(|node| node.parse().ok()).map(NodeId).collect();
            presence.look((1..=3).map(NodeId), &alive, Moment(0).plus_millis(at));
        }
        let text = |nodes: BTreeSet<NodeId>| {
            nodes.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (text(presence.dead(60_000)), text(presence.steady(60_000))),
            (dead.to_owned(), steady.to_owned())
        );
        assert_eq!(text(presence.dead(0)), "", "off is off");
    }

    /// A look each second from `from` to `to`, in seconds, both included.
    fn each(from: u64, to: u64, alive: &str) -> String {
        let looks: Vec<String> = (from..=to).map(|second| format!("{second}000 {alive}")).collect();
        looks.join(", ")
    }

    #[test]
    fn silence_and_presence_count_while_somebody_looks() {
        check(&each(0, 59, "1 2"), "", "1 2");
        check(&each(0, 60, "1 2"), "3", "1 2");
        check(&each(0, 29, "1 2"), "", ""); // nobody is steady yet
        check(&[each(0, 59, "1 2"), each(60, 60, "1 2 3"), each(61, 119, "1 2")].join(", "), "", "1 2");
        check(&[each(0, 59, "1 2"), each(60, 60, "1"), each(61, 62, "1 2")].join(", "), "3", "1"); // n2 flaps
        check(&[each(0, 50, "1 2"), "forget".to_owned(), each(51, 100, "1 2")].join(", "), "", "1 2");
        check(&[each(0, 70, "1 2"), "forget".to_owned()].join(", "), "", "");
    }

    #[test]
    fn a_leader_that_slept_holds_nobody_for_dead() {
        check("0 1 2 3, 600000 1", "", "");
        check("0 1, 600000 1, 1200000 1", "", ""); // two seconds each
    }
}
