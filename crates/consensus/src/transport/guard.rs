//! Turns strangers away: other clusters, lost stores, copies and old images of a member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

use super::Me;
use crate::identity::Protocol;
use crate::ids::{Incarnation, NodeId};
use crate::proto;

/// The most callers remembered; a stranger can name any id.
const REMEMBERED: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Seen {
    incarnation: Incarnation,
    session: u64,
    run: u64,
}

/// Decides who may call.
#[derive(Debug)]
pub(crate) struct Guard {
    me: Arc<Me>,
    seen: Mutex<BTreeMap<NodeId, Seen>>,
    logged: Mutex<BTreeSet<(NodeId, &'static str)>>,
}

/// Why a call was turned away: a name for the log, and the answer.
struct Refusal {
    kind: &'static str,
    status: Status,
}

fn wrong(kind: &'static str, text: String) -> Refusal {
    Refusal { kind, status: Status::failed_precondition(text) }
}

fn denied(kind: &'static str, text: String) -> Refusal {
    Refusal { kind, status: Status::permission_denied(text) }
}

impl Guard {
    pub(crate) fn new(me: Arc<Me>) -> Self {
        Self { me, seen: Mutex::default(), logged: Mutex::default() }
    }

    pub(crate) fn me(&self) -> &Arc<Me> {
        &self.me
    }

    /// Checks a caller that must be a member of this cluster; `to` is whom it means to reach
    /// (None: whoever is here), `recorded` looks up the incarnation that the membership holds for an id.
    ///
    /// # Errors
    /// A status with a clear text.
    pub(crate) fn admit(
        &self,
        from: Option<&proto::Identity>,
        to: Option<NodeId>,
        recorded: impl Fn(NodeId) -> Option<Incarnation>,
    ) -> Result<NodeId, Status> {
        let from = from.ok_or_else(|| Status::invalid_argument("the call does not say who calls"))?;
        let node = NodeId(from.node_id);
        match self.check(from, to, recorded) {
            Ok(()) => Ok(node),
            Err(refusal) => {
                let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
                if logged.len() < REMEMBERED && logged.insert((node, refusal.kind)) {
                    tracing::warn!(%node, reason = refusal.status.message(), "refused a caller");
                }
                Err(refusal.status)
            }
        }
    }

    fn check(
        &self,
        from: &proto::Identity,
        to: Option<NodeId>,
        recorded: impl Fn(NodeId) -> Option<Incarnation>,
    ) -> Result<(), Refusal> {
        let me = &self.me.identity;
        let node = NodeId(from.node_id);
        let (mine, theirs) = (self.me.protocol, Protocol::of(from));
        if mine.common(theirs).is_none() {
            let text = format!(
                "protocol {theirs} is not spoken here ({mine} is): the versions are too far apart, upgrade one release \
                 at a time"
            );
            return Err(wrong("protocol", text));
        }
        if from.cluster != me.cluster {
            let found: String = from.cluster.chars().take(80).collect();
            return Err(wrong("cluster", format!("this is cluster `{}`, not `{found}`", me.cluster)));
        }
        let generation = self.me.generation();
        if from.generation != generation.0 {
            let found = from.generation;
            return Err(wrong("generation", format!("this is generation {generation}, not {found}")));
        }
        let (known, theirs) = (self.me.system_id(), from.system_identifier);
        if known != 0 && theirs != 0 && known != theirs {
            return Err(wrong("system", format!("this is system {known}, not {theirs}")));
        }
        if let Some(to) = to.filter(|to| *to != me.node) {
            return Err(wrong("target", format!("this is node {}, not {to}", me.node)));
        }
        let bytes: Option<[u8; 16]> = from.incarnation.as_slice().try_into().ok();
        let incarnation = bytes.map(|bytes| Incarnation(u128::from_be_bytes(bytes)));
        let incarnation =
            incarnation.ok_or_else(|| wrong("incarnation", "an incarnation has 16 bytes".to_owned()))?;
        if recorded(node).is_some_and(|held| held != incarnation) {
            let text =
                format!("node {node} has another store now ({incarnation}): it must rejoin as a new member");
            return Err(denied("incarnation", text));
        }
        if node == me.node {
            return Err(denied("self", format!("node {node} is this member: one of the two is a copy")));
        }
        self.remember(node, Seen { incarnation, session: from.session, run: from.run })
    }

    fn remember(&self, node: NodeId, now: Seen) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = seen.get(&node).filter(|before| before.incarnation == now.incarnation) {
            if now.session < before.session {
                let text = format!(
                    "node {node} is in session {}, but was seen in {}: an old image, or a second one is running",
                    now.session, before.session
                );
                return Err(denied("session", text));
            }
            if now.session == before.session && now.run != before.run {
                return Err(denied("copy", format!("two copies of node {node} are running")));
            }
        } else if seen.len() >= REMEMBERED && !seen.contains_key(&node) {
            seen.pop_first();
        }
        seen.insert(node, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rhone_pgctl::wal::SystemId;

    use super::*;
    use crate::identity::{Generation, Identity, Run, Session};

    fn me(node: u64) -> Me {
        let identity = Identity {
            cluster: "main".to_owned(),
            generation: Generation(2),
            node: NodeId(node),
            incarnation: Incarnation(u128::from(node)),
            session: Session(5),
        };
        Me::new(identity, Run(node), Some(SystemId::new(77)))
    }

    #[track_caller]
    fn check(guard: &Guard, change: impl FnOnce(&mut proto::Identity), expected: &str) {
        let mut from = me(2).message();
        change(&mut from);
        let known = |id: NodeId| (id.0 < 9).then_some(Incarnation(u128::from(id.0)));
        let answer = guard.admit(Some(&from), Some(NodeId(1)), known);
        let text =
            answer.map_or_else(|status| status.message().to_owned(), |node| format!("node {}", node.0));
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn turns_strangers_away_and_says_why() {
        let guard = Guard::new(Arc::new(me(1)));
        check(&guard, |_| {}, "node 2");
        check(&guard, |from| from.cluster = "other".to_owned(), "this is cluster `main`, not `other`");
        check(&guard, |from| from.generation = 1, "this is generation 2, not 1");
        check(&guard, |from| from.protocol_version = 0, "protocol 0 is not spoken here");
        check(&guard, |from| from.system_identifier = 78, "this is system 77, not 78");
        check(&guard, |from| from.system_identifier = 0, "node 2"); // not known yet
        check(&guard, |from| from.incarnation = vec![1; 16], "another store");
        check(&guard, |from| from.incarnation = vec![1; 3], "16 bytes");
        check(&guard, |from| (from.node_id, from.incarnation) = (10, vec![1; 16]), "node 10"); // no member yet
        check(&guard, |from| (from.node_id, from.incarnation[15]) = (1, 1), "one of the two is a copy");
        let other = guard.admit(Some(&me(2).message()), Some(NodeId(3)), |_| None).expect_err("target");
        assert!(other.message().starts_with("this is node 0000000000000001"), "{other}");
        guard.admit(None, None, |_| None).expect_err("anonymous");
    }

    /// A caller that speaks `theirs` reaches a member that speaks `mine`, each `OLDEST NEWEST`, and the other way round.
    #[track_caller]
    fn check_protocols(mine: (u32, u32), theirs: (u32, u32), expected: [&str; 2]) {
        let speaks = |node, (oldest, newest)| Me { protocol: Protocol { oldest, newest }, ..me(node) };
        for ((one, other), expected) in [((mine, theirs), expected[0]), ((theirs, mine), expected[1])] {
            let guard = Guard::new(Arc::new(speaks(1, one)));
            let answer = guard.admit(Some(&speaks(2, other).message()), Some(NodeId(1)), |_| None);
            let text = answer.map_or_else(|status| status.message().to_owned(), |_| "welcome".to_owned());
            assert!(text.starts_with(expected), "{one:?} asked by {other:?}: {text}");
        }
    }

    #[test]
    fn two_adjacent_versions_speak_with_each_other_and_others_do_not() {
        check_protocols((1, 1), (1, 1), ["welcome", "welcome"]);
        check_protocols((1, 1), (1, 2), ["welcome", "welcome"]); // the next release
        check_protocols((1, 2), (2, 3), ["welcome", "welcome"]); // and the one after that
        check_protocols(
            (1, 2),
            (3, 4),
            [
                "protocol 3 to 4 is not spoken here (1 to 2 is)",
                "protocol 1 to 2 is not spoken here (3 to 4 is)",
            ],
        );
        check_protocols(
            (1, 1),
            (2, 3),
            ["protocol 2 to 3 is not", "protocol 1 is not spoken here (2 to 3 is)"],
        );
        // One that names a single number speaks only that.
        let guard = Guard::new(Arc::new(Me { protocol: Protocol { oldest: 1, newest: 2 }, ..me(1) }));
        let single = |number| {
            move |from: &mut proto::Identity| (from.protocol_oldest, from.protocol_version) = (0, number)
        };
        check(&guard, single(1), "node 2");
        check(&guard, single(3), "protocol 3 is not spoken here (1 to 2 is)");
        // Both go by the newest that both know.
        let speaks = |oldest, newest| Protocol { oldest, newest };
        assert_eq!(speaks(1, 2).common(speaks(2, 3)), Some(2));
        assert_eq!(speaks(1, 1).common(speaks(1, 2)), Some(1));
        assert_eq!(speaks(1, 1).common(speaks(2, 3)), None);
    }

    #[test]
    fn tells_an_old_image_and_a_second_copy_from_a_restart() {
        let guard = Guard::new(Arc::new(me(1)));
        check(&guard, |_| {}, "node 2");
        check(&guard, |from| from.run = 99, "two copies of node");
        check(&guard, |from| (from.session, from.run) = (6, 99), "node 2"); // a restart
        check(&guard, |_| {}, "an old image");
        check(&guard, |from| (from.session, from.run) = (6, 99), "node 2");
    }
}
