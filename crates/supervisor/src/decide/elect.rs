//! Who is promoted, and whether anybody may be yet (docs/safety.md 5.3, 6, 7).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use rhone_consensus::command::{Evidence, Grant, PrepareReason};
use rhone_consensus::ids::{Epoch, NodeId, Replica};
use rhone_consensus::ledger::Lineage;
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};

use super::decision::Wait;
use super::quorum;
use crate::mutant::{Rule, left_out};
use crate::view::{ClusterView, Heard, Moment, Revoked};

/// For how long members that have not answered are waited for in asynchronous mode, counted from
/// the first answer: every answer can only make the loss smaller (docs/safety.md 7). A healthy member
/// answers in 10 to 40 ms.
pub const ELECTION_WINDOW_MS: u64 = 250;

/// For how long a last owner that lives is waited for when its answer would save something: it may
/// be reading the end of its WAL from a slow disk.
const OWNER_WINDOW_MS: u64 = 5000;

/// For how long the one that a person asked for is waited for while it lives: on a loaded machine its
/// answer may take longer than the others', and a planned handover is not hurried.
const WANTED_WINDOW_MS: u64 = 2000;

/// A report older than this says nothing about whether its member is alive.
const REPORT_FRESH_MS: u64 = 1500;

/// What an election comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Election {
    /// This Grant may be proposed.
    Grant(Box<Grant>),
    /// Not yet, and why.
    Wait(Wait),
}

/// One revoked member whose WAL counts.
struct Candidate<'a> {
    node: NodeId,
    position: WalPosition,
    rank: (Epoch, Lsn),
    answer: &'a Revoked,
}

/// Elects the owner of the epoch that is being prepared, or says what the election waits for.
///
/// The revoked members, whose reports count, must cover every open policy; then the one with the
/// maximal position holds every acknowledged commit, and nobody outside can acknowledge another.
/// Where the policies are asynchronous, or a person accepted a loss, `fenced` (the last owner revoked, or its lease aged)
/// stands for the second half, and the bytes that the best lacks of what voters heard of must be
/// within the setting.
pub fn elect(view: &ClusterView<'_>, now: Moment, fenced: bool) -> Election {
    let epoch = view.state.epoch;
    let answers = || view.revoked.iter().filter(|(_, (_, answer))| answer.epoch == epoch);
    let founding = view.state.grant.is_none();
    // WAL that cannot be compared is no evidence: it would hide what its member acknowledged.
    let rank = |position: WalPosition| {
        if founding { Some((Epoch(0), position.lsn)) } else { view.state.ledger.rank(position) }
    };
    let counted: BTreeSet<Replica> = answers()
        .filter(|(_, (_, a))| a.position.is_some_and(|position| rank(position).is_some()))
        .map(|(node, (_, answer))| Replica { node: *node, data: answer.data })
        .collect();
    // Who accepts a loss accepts what nobody proves; that the last owner has ended is still required.
    let accepted = view.state.accepted_loss().is_some() && fenced || left_out(Rule::Cover);
    if let Some(policy) = view.state.policies.iter().find(|p| !p.covered(&counted, fenced) && !accepted) {
        return Election::Wait(Wait::CommitsMayBeUnseen { epoch: policy.epoch, revoked: counted.len() });
    }
    let mut candidates: Vec<Candidate<'_>> = answers()
        .filter(|(node, _)| !founding || view.state.founder == Some(**node))
        .filter_map(|(node, (_, answer))| {
            let position = answer.position?;
            rank(position).map(|rank| Candidate { node: *node, position, rank, answer })
        })
        .collect();
    if left_out(Rule::MostWal) {
        candidates.sort_by_key(|c| c.rank);
        candidates.truncate(1);
    }
    let Some(first) = candidates.iter().max_by_key(|c| c.rank) else {
        return Election::Wait(Wait::NoCandidate);
    };
    let fit = || candidates.iter().filter(|c| may_lead(view, c));
    // An instance that went down takes longer to start, if it can be started, than a standby to be promoted; and
    // who asks for a failover does not ask for the same primary again.
    let down = match view.state.reason {
        Some(
            PrepareReason::OwnerDown { .. } | PrepareReason::Operator | PrepareReason::OperatorTo { .. },
        ) => true,
        Some(
            PrepareReason::Founding
            | PrepareReason::OwnerSilent { .. }
            | PrepareReason::Switchover
            | PrepareReason::Recovery,
        )
        | None => false,
    };
    let accepted_one = view.state.accepted_loss().is_some_and(|accepted| accepted.to.is_some());
    let standby = fit().filter(|c| down && !accepted_one && view.state.last_owner() != Some(c.node));
    let complete =
        |c: &&Candidate<'_>| enough(view, c, &candidates) && loss(view, &counted, c, c) == Ok(None);
    let standby =
        standby.filter(complete).max_by_key(|c| (wanted(view) == Some(c.node), preference(view, c)));
    let best = standby.or_else(|| fit().max_by_key(|c| preference(view, c)));
    // What only the others have was never acknowledged.
    let first = best.filter(|best| enough(view, best, &candidates)).unwrap_or(first);
    if let Some(missing) = stragglers(view, now)
        && !founding
        && !best.is_some_and(|best| nobody_is_better(view, best, &candidates))
    {
        return Election::Wait(Wait::Window { missing });
    }
    if wanted_answers_soon(view, now) {
        return Election::Wait(Wait::Window { missing: 1 });
    }
    let Some(best) = best else { return Election::Wait(Wait::NoCandidate) };
    match loss(view, &counted, best, first) {
        Err(wait) => Election::Wait(wait),
        // The last owner may still read the end of its WAL from a slow disk: it has everything.
        Ok(Some(_)) if owner_answers_soon(view, now) => Election::Wait(Wait::Window { missing: 1 }),
        // The last owner is here with more than the best has, and is about to leave: nothing is given
        // up before it is gone, which it soon is.
        Ok(Some(_)) if best.rank < first.rank && owner_leaves(view, now, first.node) => {
            Election::Wait(Wait::BestCannotLead { position: first.position })
        }
        Ok(lost) => Election::Grant(Box::new(grant(view, &candidates, best, lost))),
    }
}

/// Returns how many live data members have not answered while the window is open: every answer may
/// make an asynchronous loss smaller, and adds a standby that can acknowledge at once.
///
/// A last owner that fell silent is not waited for where evidence is enough: its last report is as
/// fresh as its death. Nor is one whose instance went down: it reads its WAL's end meanwhile.
fn stragglers(view: &ClusterView<'_>, now: Moment) -> Option<usize> {
    let only_async = view.state.policies.iter().all(|p| matches!(p.kind, PolicyKind::Async { .. }));
    let first =
        view.revoked.values().filter(|(_, a)| a.epoch == view.state.epoch).map(|(at, _)| *at).min()?;
    if now.millis_since(first) >= ELECTION_WINDOW_MS {
        return None;
    }
    let gone = match view.state.reason {
        Some(PrepareReason::OwnerSilent { .. } | PrepareReason::OwnerDown { .. }) => !only_async,
        Some(
            PrepareReason::Founding
            | PrepareReason::Switchover
            | PrepareReason::Operator
            | PrepareReason::OperatorTo { .. }
            | PrepareReason::Recovery,
        )
        | None => false,
    };
    let missing = view
        .state
        .data_members()
        .filter(|m| !gone || view.state.last_owner() != Some(m.node))
        .filter(|m| view.revoked.get(&m.node).is_none_or(|(_, a)| a.epoch != view.state.epoch))
        .filter(|m| view.reports.get(&m.node).is_some_and(|r| now.millis_since(r.at) < REPORT_FRESH_MS))
        .count();
    (missing > 0).then_some(missing)
}

/// Returns whether waiting for more answers could not change the choice for the better: a standby
/// has all that the last owner itself has, and none of the others is preferred to it.
fn nobody_is_better(view: &ClusterView<'_>, best: &Candidate<'_>, candidates: &[Candidate<'_>]) -> bool {
    let Some(owner) = view.state.last_owner() else { return false };
    let complete = candidates.iter().any(|c| c.node == owner && best.rank >= c.rank);
    let wanted = wanted(view);
    let priority = |node: NodeId| view.state.members.get(&node).map_or(0, |member| member.priority);
    let others = view
        .state
        .data_members()
        .filter(|m| view.revoked.get(&m.node).is_none_or(|(_, a)| a.epoch != view.state.epoch));
    complete
        && best.node != owner
        && view.state.ledger.last_tried(best.node).is_none()
        && wanted.is_none_or(|wanted| wanted == best.node)
        && others.map(|member| member.priority).max() <= Some(priority(best.node))
}

/// Returns whom a person asked for.
fn wanted(view: &ClusterView<'_>) -> Option<NodeId> {
    let state = view.state;
    let asked = match &state.reason {
        Some(PrepareReason::OperatorTo { to }) => Some(*to),
        Some(
            PrepareReason::Founding
            | PrepareReason::OwnerSilent { .. }
            | PrepareReason::OwnerDown { .. }
            | PrepareReason::Switchover
            | PrepareReason::Operator
            | PrepareReason::Recovery,
        )
        | None => None,
    };
    state.handover.as_ref().and_then(|handover| handover.to).or(asked)
}

/// Returns whether the candidates that end no later than this one cover every policy without the others: then it
/// holds every acknowledged commit (docs/safety.md 6), whatever others have besides.
///
/// False where commits may have been acknowledged asynchronously: there more is always better.
fn enough(view: &ClusterView<'_>, best: &Candidate<'_>, candidates: &[Candidate<'_>]) -> bool {
    let others = candidates.iter().filter(|c| c.rank <= best.rank);
    let held: BTreeSet<Replica> = others.map(|c| Replica { node: c.node, data: c.answer.data }).collect();
    view.state.policies.iter().all(|policy| match policy.kind {
        PolicyKind::Quorum { .. } | PolicyKind::Alone => policy.covered(&held, false),
        PolicyKind::Async { .. } => false,
    })
}

fn may_lead(view: &ClusterView<'_>, candidate: &Candidate<'_>) -> bool {
    let member = view.state.members.get(&candidate.node);
    // A founder with data of its own is the first primary, whatever comes after.
    let founding = view.state.grant.is_none();
    candidate.answer.able && member.is_some_and(|member| founding || member.may_lead())
}

/// What candidates are ordered by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// The one for whom a person accepted a loss.
    accepted: bool,
    /// The end of its WAL, before anything else that nobody decided by hand.
    rank: (Epoch, Lsn),
    /// Those whose promotion did not fail since the last that succeeded, then the one that failed longest ago.
    untried: usize,
    /// The one that a person asked for.
    wanted: bool,
    /// A standby before the former owner, whose instance has to be started.
    standby: bool,
    /// As set.
    priority: u32,
    /// The lower id.
    node: Reverse<NodeId>,
}

fn preference(view: &ClusterView<'_>, candidate: &Candidate<'_>) -> Preference {
    let node = candidate.node;
    Preference {
        accepted: view.state.accepted_loss().is_some_and(|accepted| accepted.to == Some(node)),
        rank: candidate.rank,
        untried: view.state.ledger.last_tried(node).unwrap_or(usize::MAX),
        wanted: wanted(view) == Some(node),
        standby: view.state.last_owner() != Some(node),
        priority: view.state.members.get(&node).map_or(0, |member| member.priority),
        node: Reverse(node),
    }
}

/// Returns whether the last owner lives and has not answered, and the time for that is not over.
fn owner_answers_soon(view: &ClusterView<'_>, now: Moment) -> bool {
    view.state.last_owner().is_some_and(|owner| answers_soon(view, now, owner, OWNER_WINDOW_MS))
}

/// The same of the one that a person asked for.
fn wanted_answers_soon(view: &ClusterView<'_>, now: Moment) -> bool {
    let wanted = view.state.handover.as_ref().and_then(|handover| handover.to);
    wanted.is_some_and(|wanted| answers_soon(view, now, wanted, WANTED_WINDOW_MS))
}

/// Returns whether a member lives and has not answered, and not more than `window_ms` have passed
/// since the first answer.
fn answers_soon(view: &ClusterView<'_>, now: Moment, node: NodeId, window_ms: u64) -> bool {
    let epoch = view.state.epoch;
    let answered = view.revoked.get(&node).is_some_and(|(_, answer)| answer.epoch == epoch);
    let lives = view.reports.get(&node).is_some_and(|r| now.millis_since(r.at) < REPORT_FRESH_MS);
    let first = view.revoked.values().filter(|(_, a)| a.epoch == epoch).map(|(at, _)| *at).min();
    !answered && lives && first.is_some_and(|first| now.millis_since(first) < window_ms)
}

fn owner_leaves(view: &ClusterView<'_>, now: Moment, node: NodeId) -> bool {
    let fresh = view.reports.get(&node).filter(|r| now.millis_since(r.at) < REPORT_FRESH_MS);
    view.state.last_owner() == Some(node) && fresh.is_some_and(|r| r.report.leaving)
}

/// Returns the range that the chosen one lacks, or why that is too much.
fn loss(
    view: &ClusterView<'_>,
    counted: &BTreeSet<Replica>,
    best: &Candidate<'_>,
    first: &Candidate<'_>,
) -> Result<Option<(Lsn, Lsn)>, Wait> {
    let state = view.state;
    let Some(last) = state.grant.as_ref() else { return Ok(None) };
    let accepted = state.accepted_loss().is_some();
    let open = state.policies.iter().filter(|_| !accepted);
    let limit = open.fold(u64::MAX, |limit, policy| match policy.kind {
        PolicyKind::Async { max_lag } => limit.min(max_lag),
        PolicyKind::Quorum { .. } | PolicyKind::Alone => 0,
    });
    if best.rank < first.rank && limit == 0 {
        return Err(Wait::BestCannotLead { position: first.position });
    }
    let mut range = lacks(state, best.position, first.position);
    if !counted.contains(&Replica { node: last.owner, data: last.data })
        && (accepted || state.policies.iter().any(|p| matches!(p.kind, PolicyKind::Async { .. })))
    {
        // The last owner's own end is unknown: the voters' memory of it stands in.
        match last_heard(view) {
            Some(heard) => {
                let timeline = state.ledger.timeline_of(heard.epoch).unwrap_or(last.base.timeline);
                range = wider(range, lacks(state, best.position, WalPosition::new(timeline, heard.lsn)));
            }
            None if accepted => {}
            None => return Err(Wait::LagUnknown),
        }
    }
    if state.ledger.failures() > 0 {
        // The epoch before was not established: what it gave up is given up only together with this.
        let gave_up = last.lost.map(|(_, to)| WalPosition::new(last.base.timeline, to));
        for end in [Some(last.base), gave_up].into_iter().flatten() {
            range = wider(range, lacks(state, best.position, end));
        }
    }
    let bytes = range.map_or(0, |(from, to)| to.bytes_since(from));
    if bytes > limit && !left_out(Rule::LagGate) {
        Err(Wait::LagTooLarge { bytes, limit })
    } else {
        Ok(range)
    }
}

/// Returns what of the history that ends in `end` a member at `position` lacks.
fn lacks(state: &ClusterState, position: WalPosition, end: WalPosition) -> Option<(Lsn, Lsn)> {
    let common = match state.ledger.lineage(end, position.timeline) {
        Lineage::Within if position.timeline == end.timeline => position.lsn,
        Lineage::Within => return None,
        // An older timeline, left before this end of it.
        Lineage::Forked(at) if at.timeline == end.timeline => at.lsn,
        Lineage::Forked(_) | Lineage::Foreign => match state.ledger.lineage(position, end.timeline) {
            Lineage::Within => position.lsn,
            Lineage::Forked(at) => at.lsn.min(position.lsn),
            Lineage::Foreign => return None,
        },
    };
    (common < end.lsn).then_some((common, end.lsn))
}

fn wider(one: Option<(Lsn, Lsn)>, other: Option<(Lsn, Lsn)>) -> Option<(Lsn, Lsn)> {
    match (one, other) {
        (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
        (one, other) => one.or(other),
    }
}

/// Returns the furthest renewal of an epoch before this one that voters remember, if enough of them
/// do: each renewal that counted reached a majority, so those who remember must meet every majority.
fn last_heard(view: &ClusterView<'_>) -> Option<Heard> {
    let heard = |voter: &NodeId| view.reports.get(voter).and_then(|r| r.report.voter.heard);
    let enough = |voters: &BTreeSet<NodeId>| {
        voters.iter().filter_map(heard).count() >= (voters.len() - voters.len() / 2).max(1)
    };
    if view.voters.is_empty() || !view.voters.iter().all(enough) {
        return None;
    }
    view.reports
        .values()
        .filter_map(|received| received.report.voter.heard)
        .filter(|heard| heard.epoch < view.state.epoch)
        .max_by_key(|heard| (heard.epoch, heard.lsn))
}

fn grant(
    view: &ClusterView<'_>,
    candidates: &[Candidate<'_>],
    best: &Candidate<'_>,
    lost: Option<(Lsn, Lsn)>,
) -> Grant {
    let seen = view
        .reports
        .values()
        .map(|received| received.report.highest_timeline)
        .chain(view.revoked.values().map(|(_, answer)| answer.highest_timeline))
        .chain([view.state.ledger.highest(), best.position.timeline])
        .max()
        .unwrap_or(Timeline::new(1));
    let word = |c: &Candidate<'_>| Evidence { node: c.node, data: c.answer.data, position: c.position };
    Grant {
        epoch: view.state.epoch,
        owner: best.node,
        data: best.answer.data,
        base: best.position,
        timeline: seen.next(),
        policy: quorum::of_grant(view.state, best.node, best.position, candidates.iter().map(word)),
        evidence: candidates.iter().map(word).collect(),
        lost,
    }
}
