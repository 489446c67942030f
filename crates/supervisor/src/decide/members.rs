//! When Raft's membership is looked after beside what else is decided.

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::ids::NodeId;

use super::decision::ClusterDecision;

/// After so long an election that lacks answers no longer holds up the care for the members.
///
/// A change of voters counts as a renewal at each of them, and a quick election would wait for it. But a member that
/// came back under a new id hears of the epoch only as a learner, and it may be the one whose answer is missing.
const ELECTION_IS_OLD_MS: u64 = 10_000;

/// Returns whether the members are looked after now, the newest epoch having been asked for that long.
pub fn are_cared_for(decision: &ClusterDecision, asked_ms: u64) -> bool {
    match decision {
        ClusterDecision::Propose(_) => false,
        ClusterDecision::Revoke { .. } => asked_ms > ELECTION_IS_OLD_MS,
        ClusterDecision::Wait(_) => true,
    }
}

/// What the reports say of a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was heard lately.
    There,
    /// It was not, but it may only be late: on a busy machine, or this leader has just begun to lead.
    Late,
    /// It has not been heard for long.
    Away,
}

impl Presence {
    /// Judges by the age of the last report; nothing: none has come in yet.
    pub const fn of(age_ms: Option<u64>) -> Self {
        match age_ms {
            Some(age) if age < THERE_MS => Self::There,
            Some(age) if age >= AWAY_MS => Self::Away,
            Some(_) | None => Self::Late,
        }
    }
}

/// A member whose last report is older was not heard lately: six reports are missing.
pub const THERE_MS: u64 = 3000;

/// A member whose last report is older is away: not even a machine at its limits is so late.
const AWAY_MS: u64 = 10_000;

/// Too few of the voters that stay are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// How many of them are there.
    pub living: usize,
    /// How many stay.
    pub all: usize,
    /// Those that are not there.
    pub away: BTreeSet<NodeId>,
    /// Whether it may pass by itself: with those that are only late there would be enough.
    pub passing: bool,
}

/// Returns whether a member may lose its vote: a majority of the voters that stay has to be there, or nobody could
/// agree on anything afterwards.
///
/// # Errors
/// Who of them is not there.
pub fn may_lose_vote(
    voters: &BTreeSet<NodeId>,
    leaving: NodeId,
    presence: impl Fn(NodeId) -> Presence,
) -> Result<(), TooFew> {
    if !voters.contains(&leaving) {
        return Ok(());
    }
    let staying: BTreeMap<NodeId, Presence> =
        voters.iter().filter(|node| **node != leaving).map(|node| (*node, presence(*node))).collect();
    let count = |wanted: &[Presence]| staying.values().filter(|presence| wanted.contains(presence)).count();
    let (all, living) = (staying.len(), count(&[Presence::There]));
    if all == 0 || living > all / 2 {
        return Ok(());
    }
    let away = staying.iter().filter(|(_, presence)| **presence != Presence::There).map(|(node, _)| *node);
    let passing = count(&[Presence::There, Presence::Late]) > all / 2;
    Err(TooFew { living, all, away: away.collect(), passing })
}

#[cfg(test)]
mod tests {

    use rhone_consensus::command::ClusterCommand;
    use rhone_consensus::ids::Epoch;

    use super::*;
    use crate::decide::Wait;

    #[test]
    fn a_vote_is_taken_only_where_a_majority_of_those_who_stay_is_there() {
        // How many vote, who leaves, who is there, who is late; how many of those who stay are there, and whether
        // to wait helps.
        #[track_caller]
        fn check(
            voters: u64,
            leaving: u64,
            there: &[u64],
            late: &[u64],
            expected: Option<(usize, usize, bool)>,
        ) {
            let voters = (1..=voters).map(NodeId).collect();
            let answer = may_lose_vote(&voters, NodeId(leaving), |node| {
                if there.contains(&node.0) {
                    Presence::There
                } else if late.contains(&node.0) {
                    Presence::Late
                } else {
                    Presence::Away
                }
            });
            assert_eq!(answer.err().map(|few| (few.living, few.all, few.passing)), expected);
        }
        check(3, 3, &[1, 2], &[], None); // the usual case: it is gone, the others are there
        check(3, 3, &[1, 2, 3], &[], None);
        check(3, 3, &[1, 3], &[], Some((1, 2, false))); // one of two is no majority
        check(3, 3, &[1], &[2], Some((1, 2, true))); // the other is heard in a moment
        check(3, 1, &[1, 3], &[], Some((1, 2, false)));
        check(3, 1, &[], &[2, 3], Some((0, 2, true)));
        check(5, 5, &[1, 2, 3], &[], None);
        check(5, 5, &[1, 2, 5], &[], Some((2, 4, false)));
        check(5, 5, &[1], &[2], Some((1, 4, false))); // also with the late one too few
        check(1, 1, &[1], &[], None); // nobody stays: that is refused for other reasons
        check(3, 9, &[], &[], None); // it has no vote to lose
    }

    #[test]
    fn a_voter_that_was_not_heard_yet_is_late_and_one_that_fell_silent_is_away() {
        for (age_ms, expected) in [
            (Some(0), Presence::There),
            (Some(2999), Presence::There),
            (Some(3000), Presence::Late),
            (Some(9999), Presence::Late),
            (Some(10_000), Presence::Away),
            (None, Presence::Late), // this leader is new
        ] {
            assert_eq!(Presence::of(age_ms), expected, "{age_ms:?}");
        }
    }

    #[test]
    fn an_election_that_lacks_an_answer_holds_up_the_members_only_for_a_while() {
        let wait = || Wait::CommitsMayBeUnseen { epoch: Epoch(5), revoked: 1 };
        let revoke = ClusterDecision::Revoke { epoch: Epoch(8), members: BTreeSet::new(), wait: wait() };
        let propose = ClusterDecision::Propose(ClusterCommand::SetPaused(true));
        for (decision, asked_ms, expected) in [
            (&revoke, 0, false), // a quick election would wait for what a change of voters renews
            (&revoke, 10_000, false),
            (&revoke, 10_001, true), // who was admitted meanwhile has to become a learner to be heard
            (&ClusterDecision::Wait(wait()), 0, true),
            (&propose, 60_000, false), // first what is decided
        ] {
            assert_eq!(are_cared_for(decision, asked_ms), expected, "{decision:?} after {asked_ms} ms");
        }
    }
}
