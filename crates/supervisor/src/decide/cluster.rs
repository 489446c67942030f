//! What the Raft leader does: opens an epoch, has it promised, names its owner, takes note of its
//! beginning. All branching is here, the arithmetic of an election in [`super::elect()`].

use std::collections::BTreeSet;

use rhone_consensus::command::{ClusterCommand, Grant, Handover, PrepareReason, WallTime};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::Phase;

use super::decision::{ClusterDecision, Wait};
use super::elect::{Election, elect};
use super::quorum;
use crate::mutant::{Rule, left_out};
use crate::view::{ClusterView, Instance, Moment, Report, Revoked};

/// A voter's report older than this is no longer its word on the lease. Reports come twice a
/// second and at each change.
const VOTER_FRESH_MS: u64 = 3000;

/// After how long a member whose answer was of no use is asked to promise again.
const REVOKE_AGAIN_MS: u64 = 2000;

/// For how long an owner may take to become primary while another member could: a crash recovery
/// is rarely longer, and one that is costs a second election, nothing more.
const PROMOTION_LIMIT_MS: u64 = 30_000;

/// The longest pause between attempts to find an owner that gets anywhere.
const BACKOFF_LIMIT_MS: u64 = 60_000;

/// Decides what the Raft leader does now.
///
/// The times in proposals are left at zero: the runtime fills them in, for people only.
pub fn cluster(view: &ClusterView<'_>, now: Moment) -> ClusterDecision {
    let state = view.state;
    if !state.is_founded() {
        return ClusterDecision::Wait(Wait::NotFounded);
    }
    if state.system_id.is_none() {
        return founding(view, now);
    }
    match &state.phase {
        Phase::None => founding(view, now),
        Phase::Preparing { reason, .. } => preparing(view, now, reason),
        Phase::Granted => granted(view, now),
        Phase::Established => established(view, now),
    }
}

/// The first epoch: the founding member's data directory gives the system identifier.
fn founding(view: &ClusterView<'_>, now: Moment) -> ClusterDecision {
    let report = view.state.founder.and_then(|founder| report_of(view, now, founder));
    let Some((system_id, report)) = report.and_then(|r| r.system_id.map(|id| (id, r))) else {
        return ClusterDecision::Wait(Wait::NoFirstData);
    };
    if view.state.system_id.is_none() {
        return ClusterDecision::Propose(ClusterCommand::SetSystemId(system_id));
    }
    if report.instance.position().is_none() {
        return ClusterDecision::Wait(Wait::NoFirstData);
    }
    prepare(PrepareReason::Founding)
}

fn preparing(view: &ClusterView<'_>, now: Moment, reason: &PrepareReason) -> ClusterDecision {
    let epoch = view.state.epoch;
    // One that could not help may be able to by now: it is asked again.
    let useless =
        |a: &Revoked, at| (a.position.is_none() || !a.able) && now.millis_since(at) >= REVOKE_AGAIN_MS;
    let unanswered =
        |node: &NodeId| view.revoked.get(node).is_none_or(|(at, a)| a.epoch != epoch || useless(a, *at));
    let fence = fence_of_last_owner(view);
    let wait = match (&fence, elect(view, now, fence.is_ok())) {
        (Ok(()), Election::Grant(grant)) => return ClusterDecision::Propose(ClusterCommand::Grant(*grant)),
        (Ok(()), Election::Wait(wait)) => wait,
        // Evidence alone is enough where no policy is asynchronous (docs/safety.md 6).
        (Err(_), Election::Grant(grant)) if !needs_fence(view) => {
            return ClusterDecision::Propose(ClusterCommand::Grant(*grant));
        }
        (Err(_), Election::Wait(wait)) if !needs_fence(view) => wait,
        (Err(wait), Election::Grant(_) | Election::Wait(_)) => wait.clone(),
    };
    // While the last owner may still be acknowledging, what streams from it is saved: cutting the
    // standbys early would lose it (docs/safety.md 7). Its own word that it is over frees them at once.
    let everybody = fence.is_ok()
        || !any_async(view)
        || match reason {
            PrepareReason::Switchover | PrepareReason::Founding => true,
            PrepareReason::OwnerDown { .. } => owner_is_stopped(view, now),
            PrepareReason::OwnerSilent { .. }
            | PrepareReason::Operator
            | PrepareReason::OperatorTo { .. }
            | PrepareReason::Recovery => false,
        };
    let members: BTreeSet<NodeId> = view
        .state
        .data_members()
        .map(|member| member.node)
        .filter(|node| everybody || view.state.last_owner() == Some(*node))
        .filter(unanswered)
        .collect();
    if members.is_empty() {
        ClusterDecision::Wait(wait)
    } else {
        ClusterDecision::Revoke { epoch, members, wait }
    }
}

/// Whether nothing of the last owner's instance runs, by its own report: one that only hangs may
/// still be acknowledging.
fn owner_is_stopped(view: &ClusterView<'_>, now: Moment) -> bool {
    let report = view.state.last_owner().and_then(|owner| report_of(view, now, owner));
    report.is_some_and(|report| match report.instance {
        Instance::Absent | Instance::Unusable(_) | Instance::Stopped { .. } => true,
        Instance::Unknown
        | Instance::Starting
        | Instance::Standby { .. }
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => false,
    })
}

/// Returns nothing when the last owner can serve nobody any more: it was revoked, or a majority of
/// the voters (of both sets in a joint configuration) hold the Prepare and have aged.
fn fence_of_last_owner(view: &ClusterView<'_>) -> Result<(), Wait> {
    let epoch = view.state.epoch;
    let Some(owner) = view.state.last_owner() else { return Ok(()) };
    if view.voters.is_empty() {
        return Err(Wait::LeaseNotAged { aged: 0, needed: 1 });
    }
    if view.revoked.get(&owner).is_some_and(|(_, answer)| answer.epoch == epoch) {
        return Ok(());
    }
    for voters in view.voters {
        let needed = voters.len() / 2 + 1;
        let aged = voters
            .iter()
            .filter(|voter| view.reports.get(voter).is_some_and(|r| r.report.voter.aged_for == Some(epoch)))
            .count();
        if aged < needed && !left_out(Rule::LeaseAge) {
            return Err(Wait::LeaseNotAged { aged, needed });
        }
    }
    Ok(())
}

fn granted(view: &ClusterView<'_>, now: Moment) -> ClusterDecision {
    let Some(grant) = view.state.current_grant() else { return ClusterDecision::Wait(Wait::Calm) };
    let granted_ms = view.granted_since.map_or(0, |since| now.millis_since(since));
    if let Some(report) = report_of(view, now, grant.owner) {
        if let Some(detail) = down_in(report, grant.epoch) {
            // The first failure is answered at once; what fails again and again is not hurried.
            let failures = view.state.ledger.failures();
            return if granted_ms < backoff_ms(failures) {
                ClusterDecision::Wait(Wait::OwnersFail { failures })
            } else {
                prepare(PrepareReason::OwnerDown { detail })
            };
        }
        if let Instance::Primary { epoch, gate_open: true, position } = &report.instance
            && *epoch == grant.epoch
            && position.timeline == grant.timeline
        {
            return ClusterDecision::Propose(ClusterCommand::Established {
                epoch: grant.epoch,
                timeline: grant.timeline,
                switch: grant.base.lsn,
                gap_ms: 0,
                at: WallTime(0),
            });
        }
    }
    // A whole lease even where evidence would do: the Grant has to reach its owner's disk first.
    let lease_ms = view.state.ageing().aged_ns() / 1_000_000;
    match silence(view, now, lease_ms) {
        Silence::Majority { silent_ms } => prepare(PrepareReason::OwnerSilent { silent_ms }),
        Silence::Some(_) | Silence::None
            if granted_ms >= PROMOTION_LIMIT_MS && replaceable(view, now, grant) =>
        {
            let detail = format!("not primary {} s after the grant", granted_ms / 1000);
            prepare(PrepareReason::OwnerDown { detail })
        }
        Silence::Some(_) | Silence::None => policy_or(view, now, Wait::OwnerPromoting),
    }
}

/// Returns for how long an owner that failed is left alone after so many failures in a row.
fn backoff_ms(failures: usize) -> u64 {
    match failures {
        0 | 1 => 0,
        more => (500_u64 << more.min(16)).min(BACKOFF_LIMIT_MS),
    }
}

/// Returns whether another member has everything that the owner of this Grant begins with.
fn replaceable(view: &ClusterView<'_>, now: Moment, grant: &Grant) -> bool {
    let others = view.state.data_members().filter(|m| m.node != grant.owner && m.may_lead());
    others.filter_map(|member| report_of(view, now, member.node)).any(|report| {
        !report.leaving
            && matches!(&report.instance, Instance::Standby { position, .. } if *position == grant.base)
    })
}

fn established(view: &ClusterView<'_>, now: Moment) -> ClusterDecision {
    let Some(grant) = view.state.current_grant() else { return ClusterDecision::Wait(Wait::Calm) };
    let handover = view.state.handover.as_ref().filter(|h| h.epoch == grant.epoch);
    let mut calm = if handover.is_some() { Wait::HandingOver } else { Wait::Calm };
    if let Some(report) = report_of(view, now, grant.owner) {
        if handover.is_some() && matches!(report.instance, Instance::Stopped { clean: true, .. }) {
            return prepare(PrepareReason::Switchover);
        }
        if let Some(detail) = down_in(report, grant.epoch) {
            let decision = prepare(PrepareReason::OwnerDown { detail });
            // Who asked for a handover asked for this epoch to end.
            return if handover.is_some() { decision } else { unless_paused(view, decision, "fail over") };
        }
        if report.leaving && handover.is_none() {
            if heir(view, now, grant.owner) {
                let handover = Handover { epoch: grant.epoch, to: None, leaving: true };
                return ClusterDecision::Propose(ClusterCommand::SetHandover(Some(handover)));
            }
            calm = Wait::NobodyToTakeOver;
        }
    }
    let timing = view.state.ageing();
    let limit_ms =
        if any_async(view) { timing.aged_ns() / 1_000_000 } else { u64::from(timing.suspicion_ms) };
    match silence(view, now, limit_ms) {
        Silence::Majority { silent_ms } => {
            let decision = prepare(PrepareReason::OwnerSilent { silent_ms });
            if handover.is_some() { decision } else { unless_paused(view, decision, "fail over") }
        }
        Silence::Some(voters) => policy_or(view, now, Wait::SomeSilence { voters }),
        Silence::None => match policy_or(view, now, calm) {
            ClusterDecision::Wait(calm) => settled_timing(view, now)
                .or_else(|| unrecorded(view, now))
                .unwrap_or(ClusterDecision::Wait(calm)),
            more @ (ClusterDecision::Propose(_) | ClusterDecision::Revoke { .. }) => more,
        },
    }
}

/// A change of the timings is over once the owner's lease lasts by the shorter ones. No voter has to say that it
/// ages by the longer ones: it vouches only for an epoch that it has applied, and the change comes before that
/// (decision 0036).
fn settled_timing(view: &ClusterView<'_>, now: Moment) -> Option<ClusterDecision> {
    let grant = view.state.current_grant()?;
    let (epoch, version) = (grant.epoch, view.state.timing_change.version);
    view.state.timing_change.before?;
    let owner = report_of(view, now, grant.owner)?;
    let counts = owner.counts_by.is_some_and(|(of, by)| of == epoch && by >= version);
    counts.then_some(ClusterDecision::Propose(ClusterCommand::SettleTiming { epoch, version }))
}

/// What a former primary held when it came back completes the history of losses.
fn unrecorded(view: &ClusterView<'_>, now: Moment) -> Option<ClusterDecision> {
    let members = view.state.members.keys();
    members
        .filter_map(|node| Some((*node, report_of(view, now, *node)?.left?)))
        .find(|(node, end)| view.state.waits_for_left(*node, *end).is_some())
        .map(|(node, end)| ClusterDecision::Propose(ClusterCommand::RecordLeft { node, end }))
}

/// The next step of a policy change, where nothing more urgent is to be done.
fn policy_or(view: &ClusterView<'_>, now: Moment, otherwise: Wait) -> ClusterDecision {
    quorum::step(view, now).map_or(ClusterDecision::Wait(otherwise), ClusterDecision::Propose)
}

/// Returns whether somebody streams and could take over from an owner whose host goes down.
fn heir(view: &ClusterView<'_>, now: Moment, owner: NodeId) -> bool {
    let others = view.state.data_members().filter(|m| m.node != owner && m.may_lead());
    others
        .filter_map(|member| report_of(view, now, member.node))
        .any(|report| !report.leaving && matches!(report.instance, Instance::Standby { streaming: true, .. }))
}

/// How many voters hear no renewal.
enum Silence {
    /// Too few to matter.
    None,
    /// Some, or not for long enough.
    Some(usize),
    /// A majority of each set of voters, the quietest for this long.
    Majority {
        /// The quietest of them.
        silent_ms: u64,
    },
}

/// Looks for a majority of voters that have heard nothing for too long.
///
/// In asynchronous mode `limit_ms` is the lease itself: another owner may be granted only when it
/// has aged, so an earlier suspicion would gain nothing and cost calm (decision 0002). Where
/// evidence replaces the lease it is the suspicion time.
///
/// Voters count from the last renewal of whoever owned before, so silence is held against an owner
/// only from its own Grant on.
fn silence(view: &ClusterView<'_>, now: Moment, limit_ms: u64) -> Silence {
    let limit_ms = if left_out(Rule::Patience) { limit_ms / 4 } else { limit_ms };
    let renewal_ms = u64::from(view.state.ageing().renewal_ms);
    let granted_ms = view.granted_since.map_or(0, |since| now.millis_since(since));
    let silent_for = |voter: &NodeId| {
        view.reports
            .get(voter)
            .filter(|r| now.millis_since(r.at) < VOTER_FRESH_MS)
            .and_then(|r| r.report.voter.silent_ms)
            .map(|silent| silent.min(granted_ms))
    };
    let mut quietest = 0;
    let mut noticed = 0;
    for voters in view.voters {
        let silent: Vec<u64> = voters.iter().filter_map(silent_for).filter(|ms| *ms >= limit_ms).collect();
        noticed = noticed.max(voters.iter().filter_map(silent_for).filter(|ms| *ms > 4 * renewal_ms).count());
        if silent.len() < voters.len() / 2 + 1 {
            return if noticed > 0 { Silence::Some(noticed) } else { Silence::None };
        }
        quietest = quietest.max(silent.into_iter().max().unwrap_or(0));
    }
    if view.voters.is_empty() { Silence::None } else { Silence::Majority { silent_ms: quietest } }
}

fn any_async(view: &ClusterView<'_>) -> bool {
    view.state.policies.iter().any(|policy| matches!(policy.kind, PolicyKind::Async { .. }))
}

/// Whether another owner may be granted only once the last one is known to have ended: evidence that
/// covers every policy says so by itself.
fn needs_fence(view: &ClusterView<'_>) -> bool {
    any_async(view) || view.state.accepted_loss().is_some()
}

/// Returns what a member says now; what it said long ago is nothing to act on.
fn report_of<'a>(view: &'a ClusterView<'_>, now: Moment, node: NodeId) -> Option<&'a Report> {
    let received = view.reports.get(&node).filter(|r| now.millis_since(r.at) < VOTER_FRESH_MS)?;
    Some(&received.report)
}

fn down_in(report: &Report, epoch: Epoch) -> Option<String> {
    report.down.as_ref().filter(|(down, _)| *down == epoch).map(|(_, detail)| detail.clone())
}

fn prepare(reason: PrepareReason) -> ClusterDecision {
    ClusterDecision::Propose(ClusterCommand::Prepare { reason, at: WallTime(0) })
}

fn unless_paused(
    view: &ClusterView<'_>,
    decision: ClusterDecision,
    instead: &'static str,
) -> ClusterDecision {
    if view.state.paused { ClusterDecision::Wait(Wait::Paused { instead: instead.into() }) } else { decision }
}
