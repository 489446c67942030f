//! When Raft's membership is looked after beside what else is decided.

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rhone_consensus::command::ClusterCommand;
    use rhone_consensus::ids::Epoch;

    use super::*;
    use crate::decide::Wait;

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
