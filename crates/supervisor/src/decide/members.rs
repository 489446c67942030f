//! ✦ Who votes, and when Raft's membership is looked after beside what else is decided (decision 0069).

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::command::{Member, MemberKind};
use rhone_consensus::ids::NodeId;
use rhone_consensus::state::ClusterState;

use super::decision::ClusterDecision;

/// How many voters a cluster has at the most; the rest learn.
const VOTERS_MAX: usize = 5;

/// Fewer are left as they are: of two voters none loses its vote by itself.
const VOTERS_MIN: usize = 3;

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

/// Returns how many of so many members vote: as many as possible up to five, an odd number.
pub fn voter_count(members: usize) -> usize {
    let count = members.min(VOTERS_MAX);
    if count.is_multiple_of(2) { count.saturating_sub(1).max(1) } else { count }
}

/// Returns who may vote: whom no operator keeps from it, and who is not tagged `no-vote`. The tag counts for nothing
/// where it would leave fewer than three.
pub fn eligible(state: &ClusterState) -> BTreeSet<NodeId> {
    let allowed: Vec<&Member> =
        state.members.values().filter(|member| !state.learners.contains(&member.node)).collect();
    heeded(&allowed).into_iter().map(|member| member.node).collect()
}

/// Returns those of these members that are not tagged `no-vote`, or all where too few would be left.
pub fn heeded<'a>(members: &[&'a Member]) -> Vec<&'a Member> {
    let willing: Vec<&Member> = members.iter().copied().filter(|member| !member.tags.no_vote()).collect();
    if willing.len() >= members.len().min(VOTERS_MIN) { willing } else { members.to_vec() }
}

/// What the Raft leader knows when it chooses the voters.
#[derive(Debug)]
pub struct Voting<'a> {
    /// The members, and whom an operator keeps from voting.
    pub state: &'a ClusterState,
    /// Who votes now.
    pub voters: &'a BTreeSet<NodeId>,
    /// Who chooses. It takes its own vote away only where an operator wants that.
    pub leader: NodeId,
    /// Who was heard lately.
    pub alive: &'a BTreeSet<NodeId>,
    /// Who was silent for longer than `dead-member-timeout`.
    pub dead: &'a BTreeSet<NodeId>,
    /// Who may take a dead one's vote: heard without a gap for a while, and with all of Raft's log.
    pub fit: &'a BTreeSet<NodeId>,
}

impl Voting<'_> {
    /// Chooses the voters: those that are there already, completed to three or five by members that are alive.
    /// What is too many loses its vote; a dead voter loses it to a member that is fit, one at a time. In a paused
    /// cluster only what an operator asked for changes.
    pub fn wanted(&self) -> BTreeSet<NodeId> {
        let eligible = eligible(self.state);
        let mut chosen: BTreeSet<NodeId> = self.voters.intersection(&eligible).copied().collect();
        if chosen.is_empty() {
            return chosen;
        }
        let count = voter_count(eligible.len());
        self.fill(&mut chosen, count);
        if self.state.paused {
            return chosen;
        }
        self.shrink(&mut chosen, count);
        if chosen == *self.voters {
            self.replace(&mut chosen);
        }
        chosen
    }

    /// Completes the voters by members that are alive. An even number bears no more losses than the odd one below
    /// it, so the last one waits for another.
    fn fill(&self, chosen: &mut BTreeSet<NodeId>, count: usize) {
        let mut last = None;
        while chosen.len() < count {
            let Some(newcomer) = self.newcomer(chosen, self.alive, count) else { break };
            chosen.insert(newcomer);
            last = Some(newcomer);
        }
        if let Some(last) = last.filter(|_| chosen.len().is_multiple_of(2)) {
            chosen.remove(&last);
        }
    }

    /// Takes the vote of those that are too many, of one that is not there first.
    fn shrink(&self, chosen: &mut BTreeSet<NodeId>, count: usize) {
        while chosen.len() > count.max(VOTERS_MIN) {
            let surplus =
                if self.witnesses(chosen) > count / 2 { MemberKind::Witness } else { MemberKind::Data };
            let least = chosen
                .iter()
                .filter(|node| **node != self.leader)
                .filter_map(|node| self.state.members.get(node))
                .max_by_key(|member| {
                    (!self.alive.contains(&member.node), member.kind == surplus, member.name.clone())
                })
                .map(|member| member.node);
            let Some(least) = least else { return };
            chosen.remove(&least);
        }
    }

    /// Gives the vote of one that is dead to one that is fit, if there is one.
    fn replace(&self, chosen: &mut BTreeSet<NodeId>) {
        let gone =
            |node: &&NodeId| self.dead.contains(node) && !self.alive.contains(node) && **node != self.leader;
        let Some(dead) = chosen.iter().find(gone).copied() else { return };
        let count = chosen.len();
        let mut next = chosen.clone();
        next.remove(&dead);
        if let Some(newcomer) = self.newcomer(&next, self.fit, count) {
            next.insert(newcomer);
            *chosen = next;
        }
    }

    /// Returns who of these votes next: a witness is there to vote, so it comes before data members, as long as it
    /// takes more than witnesses to decide anything (decision 0019).
    fn newcomer(&self, chosen: &BTreeSet<NodeId>, of: &BTreeSet<NodeId>, count: usize) -> Option<NodeId> {
        let room = self.witnesses(chosen) < count / 2;
        let eligible = eligible(self.state);
        self.state
            .members
            .values()
            .filter(|member| of.contains(&member.node) && self.alive.contains(&member.node))
            .filter(|member| !chosen.contains(&member.node) && eligible.contains(&member.node))
            .min_by_key(|member| ((member.kind == MemberKind::Witness) != room, member.name.clone()))
            .map(|member| member.node)
    }

    fn witnesses(&self, of: &BTreeSet<NodeId>) -> usize {
        of.iter()
            .filter_map(|node| self.state.members.get(node))
            .filter(|member| member.kind == MemberKind::Witness)
            .count()
    }
}

/// Returns whether who votes may change: a majority of those who vote now and of those who will has to be there,
/// because the change needs both (Raft 4.3), and it cannot be taken back half-way.
pub fn may_change(voters: &BTreeSet<NodeId>, wanted: &BTreeSet<NodeId>, alive: &BTreeSet<NodeId>) -> bool {
    let majority = |of: &BTreeSet<NodeId>| of.intersection(alive).count() > of.len() / 2;
    majority(voters) && majority(wanted)
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
    use rhone_consensus::ids::{Epoch, Incarnation};
    use rhone_consensus::tags::Tags;

    use super::*;
    use crate::decide::Wait;

    /// The members in order, `NAME[MARKS]` each, n1 leads. A name that begins with `w` is a witness's. Marks: `v` it
    /// votes, `-` it is not heard, `x` nor was it for longer than the limit, `+` it is fit to replace a dead one,
    /// `k` it is kept from voting, `t` it is tagged `no-vote`, `r` it was removed. Returns who votes then.
    #[track_caller]
    fn check(members: &str, expected: &str) {
        check_paused(false, members, expected);
    }

    #[track_caller]
    fn check_paused(paused: bool, members: &str, expected: &str) {
        let mut state = ClusterState { paused, ..ClusterState::default() };
        let mut sets: [BTreeSet<NodeId>; 4] = Default::default();
        let [voters, alive, dead, fit] = &mut sets;
        for (node, word) in (1..).map(NodeId).zip(members.split(' ')) {
            let (name, marks) = word.split_at(2);
            if marks.contains('v') {
                voters.insert(node);
            }
            if !marks.contains(['-', 'x', 'r']) {
                alive.insert(node);
            }
            if marks.contains('x') {
                dead.insert(node);
            }
            if marks.contains('+') {
                fit.insert(node);
            }
            if marks.contains('k') {
                state.learners.insert(node);
            }
            if !marks.contains('r') {
                let kind = if name.starts_with('w') { MemberKind::Witness } else { MemberKind::Data };
                let (address, mut tags) = (String::new(), Tags::default());
                if marks.contains('t') {
                    tags.labels.insert("no-vote".to_owned(), "true".to_owned());
                }
                let member = Member {
                    node,
                    name: name.to_owned(),
                    kind,
                    incarnation: Incarnation(1),
                    address: address.clone(),
                    postgres: address.clone(),
                    http: address,
                    priority: 1,
                    tags,
                };
                state.members.insert(node, member);
            }
        }
        let leader = NodeId(1);
        let wanted = Voting { state: &state, voters, leader, alive, dead, fit }.wanted();
        let names: Vec<&str> = wanted.iter().map(|node| state.members[node].name.as_str()).collect();
        assert_eq!(names.join(" "), expected, "of {members}");
    }

    #[test]
    fn three_or_five_vote() {
        check("n1v n2v n3v", "n1 n2 n3");
        check("n1v n2 n3", "n1 n2 n3"); // the second and third were founded later
        check("n1v n2 n3-", "n1"); // two bear the loss of none: it waits for the third
        check("n1v n2v n3v n4", "n1 n2 n3"); // four learn to be three and one
        check("n1v n2v n3v n4 n5", "n1 n2 n3 n4 n5");
        check("n1v n2v n3v n4 n5-", "n1 n2 n3");
        check("n1v n2v n3v n4v n5v n6", "n1 n2 n3 n4 n5"); // never six
        check("n1v n2v n3-v n4", "n1 n2 n3"); // one that is away for a moment keeps its vote
        check("n1v n2v n3rv n4", "n1 n2 n4"); // one that was removed or wiped does not
        check("n1v n2v n3rv n4-", "n1 n2");
        check("n1v n2v n3kv n4", "n1 n2 n4"); // nor one that an operator keeps from it
        check("n1v n2 n3 w4", "n1 n2 w4"); // a witness first
        check("n1v n2 n3 w4 w5 w6", "n1 n2 n3 w4 w5"); // but they never are the majority
        check("n1kv n2v n3v n4", "n2 n3 n4"); // the leader as any other: it yields first
        check("n1r n2 n3", ""); // nobody is left who could choose
    }

    #[test]
    fn who_is_tagged_learns_as_long_as_three_others_may_vote() {
        check("n1v n2v n3v n4t n5t", "n1 n2 n3");
        check("n1v n2v n3v n4 n5t", "n1 n2 n3"); // four may vote: three do
        check("n1v n2v n3vt n4", "n1 n2 n4");
        check("n1vt n2v n3v n4", "n2 n3 n4"); // the leader as any other
        check("n1v n2v n3vt", "n1 n2 n3"); // two would be too few
        check("n1v n2vt n3vt n4t", "n1 n2 n3");
        check("n1v n2v n3xv n4t+", "n1 n2 n3"); // it takes no dead one's place
    }

    #[test]
    fn an_even_number_of_voters_becomes_odd() {
        check("n1v n2v n3v n4v n5rv", "n1 n2 n3");
        check("n1v n2-v n3v n4v n5rv", "n1 n3 n4"); // whoever is not there loses its vote first
        check("n4v n1v n2v n3v n5rv", "n4 n1 n2"); // and never who chooses
        check("n1v n2v n3v w4v n5rv", "n1 n2 w4"); // data members before witnesses
        check("n1v n2v w3v w4v n5rv", "n1 n2 w3"); // unless those would be the majority
        check("n1v n2v n3v n4v n5rv n6", "n1 n2 n3 n4 n6"); // a fifth is there
        check("n1v n2v n3v n4v n5rv n6-", "n1 n2 n3 n4"); // it comes in a moment
        check("n1v n2v n3rv", "n1 n2"); // of two nobody loses its vote by itself
    }

    #[test]
    fn a_dead_voter_loses_its_vote_to_a_member_that_is_fit() {
        check("n1v n2v n3xv n4+", "n1 n2 n4");
        check("n1v n2v n3xv n4", "n1 n2 n3"); // it flaps, or lacks a part of the log
        check("n1v n2v n3xv n4-+", "n1 n2 n3"); // it is away itself
        check("n1v n2v n3xv n4k+", "n1 n2 n3"); // it is kept from voting
        check("n1v n2v n3xv", "n1 n2 n3"); // there is nobody: three with one away are better than two
        check("n1v n2v n3v n4v n5xv", "n1 n2 n3 n4 n5");
        check("n1v n2v n3xv n4xv n5v n6+ n7+", "n1 n2 n4 n5 n6"); // one at a time
        check("n1v n2v n4xv n5v n6v n7+", "n1 n2 n5 n6 n7"); // and then the other
        check("n1v n2v n3x n4v n5+", "n1 n2 n4"); // who is back as a learner waits until it is wanted
        check("n1v n2v n3v n4v n5xv n6+ w7+", "n1 n2 n3 n4 w7"); // a witness first
        check("n1v w2v w3v n4v n5xv n6+ w7+", "n1 w2 w3 n4 n6"); // but not three of five
        check("n1v w2v n3xv w4+", "n1 w2 w4"); // unless there is nobody else
        check("n1v n2v n3rv n4xv n5v n6+ n7+", "n1 n2 n4 n5 n6"); // first what was asked for
        check("n1xv n2v n3v n4+", "n1 n2 n3"); // who leads is not dead
    }

    #[test]
    fn a_paused_cluster_changes_only_what_was_asked_for() {
        check_paused(true, "n1v n2v n3xv n4+", "n1 n2 n3");
        check_paused(true, "n1v n2v n3v n4v n5rv", "n1 n2 n3 n4");
        check_paused(true, "n1v n2v n3kv n4", "n1 n2 n4");
    }

    #[test]
    fn who_votes_changes_only_with_a_majority_of_the_old_and_of_the_new_voters() {
        #[track_caller]
        fn check(voters: &[u64], wanted: &[u64], alive: &[u64], expected: bool) {
            let set = |nodes: &[u64]| -> BTreeSet<NodeId> { nodes.iter().copied().map(NodeId).collect() };
            assert_eq!(may_change(&set(voters), &set(wanted), &set(alive)), expected);
        }
        check(&[1, 2, 3], &[1, 2, 4], &[1, 2, 4], true);
        check(&[1, 2, 3], &[1, 4, 5], &[1, 4, 5], false); // one of the three old ones
        check(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 6], &[1, 2, 6], false);
        check(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 6], &[1, 2, 3], true);
        check(&[1], &[1, 2, 3], &[1, 2], true);
        check(&[1], &[1, 2, 3], &[1], false); // nobody could agree on anything afterwards
    }

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
