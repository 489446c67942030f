//! When Raft's membership is looked after beside what else is decided.

use std::collections::BTreeSet;

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

/// Too few of the voters that stay are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// How many of them are there.
    pub living: usize,
    /// How many stay.
    pub all: usize,
    /// Those that are not there.
    pub away: BTreeSet<NodeId>,
}

/// Returns whether a member may lose its vote: a majority of the voters that stay has to be there, or nobody could
/// agree on anything afterwards.
///
/// # Errors
/// Who of them is not there.
pub fn may_lose_vote(
    voters: &BTreeSet<NodeId>,
    leaving: NodeId,
    there: impl Fn(NodeId) -> bool,
) -> Result<(), TooFew> {
    if !voters.contains(&leaving) {
        return Ok(());
    }
    let staying: BTreeSet<NodeId> = voters.iter().copied().filter(|node| *node != leaving).collect();
    let away: BTreeSet<NodeId> = staying.iter().copied().filter(|node| !there(*node)).collect();
    let (all, living) = (staying.len(), staying.len() - away.len());
    if all == 0 || living > all / 2 { Ok(()) } else { Err(TooFew { living, all, away }) }
}

#[cfg(test)]
mod tests {

    use rhone_consensus::command::ClusterCommand;
    use rhone_consensus::ids::Epoch;

    use super::*;
    use crate::decide::Wait;

    #[test]
    fn a_vote_is_taken_only_where_a_majority_of_those_who_stay_is_there() {
        // How many vote, who leaves, who is there; how many of those who stay are.
        #[track_caller]
        fn check(voters: u64, leaving: u64, there: &[u64], expected: Option<(usize, usize)>) {
            let voters = (1..=voters).map(NodeId).collect();
            let answer = may_lose_vote(&voters, NodeId(leaving), |node| there.contains(&node.0));
            assert_eq!(answer.err().map(|few| (few.living, few.all)), expected);
        }
        check(3, 3, &[1, 2], None); // the usual case: it is gone, the others are there
        check(3, 3, &[1, 2, 3], None);
        check(3, 3, &[1, 3], Some((1, 2))); // one of two is no majority
        check(3, 1, &[1, 3], Some((1, 2)));
        check(5, 5, &[1, 2, 3], None);
        check(5, 5, &[1, 2, 5], Some((2, 4)));
        check(1, 1, &[1], None); // nobody stays: that is refused for other reasons
        check(3, 9, &[], None); // it has no vote to lose
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
