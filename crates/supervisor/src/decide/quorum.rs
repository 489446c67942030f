//! Which policy the primary is to have, and the safe order in which one follows another (docs/safety.md 6,
//! decision 0011).
//!
//! Every step is decided anew from the state and the reports, so that a change may be cut after
//! each: first the policy is added to P in Raft; then the owner sets its Postgres, settles and
//! passes the barrier (one effect, always for the newest policy); on its word the older ones go.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use rhone_consensus::command::{ClusterCommand, Evidence, Member};
use rhone_consensus::ids::{NodeId, Replica};
use rhone_consensus::ledger::Lineage;
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::SyncMode;
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::WalPosition;

use super::mixture::on_the_way;
use crate::view::{ClusterView, Instance, Moment, Received, Report};

/// A report older than this says nothing about what is so now: reports come twice a second.
const FRESH_MS: u64 = 1500;

/// Returns whether a member may be among those that acknowledge commits.
///
/// One that is never promoted could not lead with what it holds, and would hold up a failover.
pub fn may_be_sync(member: &Member) -> bool {
    member.may_be_sync() && member.may_lead()
}

/// Returns for how many standbys a commit waits: as set, else half the data members rounded down, so
/// that any majority of them without the primary covers it.
pub fn required(state: &ClusterState) -> u32 {
    let half = u32::try_from(state.data_members().count() / 2).unwrap_or(u32::MAX);
    state.settings.sync_required.unwrap_or(half).max(1)
}

/// Returns the next step of a policy change, or nothing when all is as it should be.
pub fn step(view: &ClusterView<'_>, now: Moment) -> Option<ClusterCommand> {
    let state = view.state;
    let (grant, policy) = (state.current_grant()?, state.policy()?);
    let owner = view.reports.get(&grant.owner).filter(|r| fresh(r, now)).map(|r| &r.report)?;
    let serves = matches!(&owner.instance, Instance::Primary { epoch, .. } if *epoch == grant.epoch);
    // Who shuts down sends its last WAL and lets its standbys go: that is no reason to go on alone.
    let hands_over = state.handover.as_ref().is_some_and(|handover| handover.epoch == grant.epoch);
    if !serves || owner.leaving || hands_over {
        return None;
    }
    if state.policy_changes() && owner.secured == Some(policy.number) {
        return Some(ClusterCommand::NarrowPolicies { epoch: grant.epoch, number: policy.number });
    }
    let wanted = wanted(view, now, owner, &policy.kind);
    if wanted == policy.kind {
        return None;
    }
    // Walsenders take a change over one by one, and mix meanwhile (decision 0016).
    let open = state.policies.iter().filter(|policy| policy.epoch == grant.epoch);
    let open: Vec<&PolicyKind> = open.map(|policy| &policy.kind).collect();
    let kind = on_the_way(&open, wanted);
    Some(ClusterCommand::AddPolicy { epoch: grant.epoch, kind })
}

fn fresh(received: &Received, now: Moment) -> bool {
    now.millis_since(received.at) < FRESH_MS
}

/// Returns the policy that the settings and the standbys ask for, next to the present one.
fn wanted(view: &ClusterView<'_>, now: Moment, owner: &Report, present: &PolicyKind) -> PolicyKind {
    let state = view.state;
    let old = standbys_of(present);
    let leads = state.last_owner();
    let good = state
        .data_members()
        .filter(|member| Some(member.node) != leads && may_be_sync(member))
        .filter_map(|member| acknowledges(view, now, owner, member.node, &old))
        .collect();
    policy(state, good, &old)
}

fn standbys_of(kind: &PolicyKind) -> BTreeSet<Replica> {
    match kind {
        PolicyKind::Quorum { standbys, .. } => standbys.clone(),
        PolicyKind::Alone | PolicyKind::Async { .. } => BTreeSet::new(),
    }
}

/// Makes a policy of the standbys that can acknowledge; `old` are those of the one before.
fn policy(state: &ClusterState, good: BTreeSet<Replica>, old: &BTreeSet<Replica>) -> PolicyKind {
    let required = required(state);
    let pick = |all: BTreeSet<Replica>, first: &BTreeSet<Replica>| -> BTreeSet<Replica> {
        let priority = |node: NodeId| state.members.get(&node).map_or(0, |member| member.priority);
        let mut all: Vec<Replica> = all.into_iter().collect();
        // Who is in stays in: a change costs log entries and a barrier.
        all.sort_by_key(|r| (!first.contains(r), !old.contains(r), Reverse(priority(r.node)), r.node));
        all.into_iter().take(required as usize * 2).collect()
    };
    match state.settings.sync {
        SyncMode::Off => PolicyKind::Async { max_lag: state.settings.max_lag_on_failover },
        SyncMode::Quorum if good.is_empty() => PolicyKind::Alone,
        SyncMode::Quorum => {
            let standbys = pick(good, &BTreeSet::new());
            let there = u32::try_from(standbys.len()).unwrap_or(u32::MAX);
            PolicyKind::Quorum { required: required.min(there), standbys }
        }
        SyncMode::Strict if good.len() >= required as usize => {
            PolicyKind::Quorum { required, standbys: pick(good, &BTreeSet::new()) }
        }
        // Too few: the missing stay named, and commits wait for them or whoever comes in their place. Who was
        // removed does not come.
        SyncMode::Strict => {
            let member = |replica: &&Replica| state.members.contains_key(&replica.node);
            let all = good.iter().chain(old.iter().filter(member)).copied().collect();
            PolicyKind::Quorum { required, standbys: pick(all, &good) }
        }
    }
}

/// Returns under which data directory a member can acknowledge now, if it can.
///
/// One that is in stays until the owner itself no longer hears it, whatever it says of itself: only
/// what the owner hears releases commits, and an owner that is gone must never look like one whose
/// standbys are. A newcomer has to stream, to
/// have promised this epoch, to lie within its history and to have caught up.
fn acknowledges(
    view: &ClusterView<'_>,
    now: Moment,
    owner: &Report,
    node: NodeId,
    old: &BTreeSet<Replica>,
) -> Option<Replica> {
    let grant = view.state.current_grant()?;
    let report = view.reports.get(&node).filter(|r| fresh(r, now)).map(|r| &r.report);
    let inside = old.iter().find(|replica| replica.node == node);
    if let Some(inside) = inside
        && owner.streams.get(&inside.data).is_some_and(|stream| stream.live)
    {
        return Some(*inside);
    }
    let report = report.filter(|report| report.promise == grant.epoch && !report.leaving)?;
    let data = report.data?;
    let stream = owner.streams.get(&data)?;
    let within = |position| view.state.ledger.lineage(position, grant.timeline) == Lineage::Within;
    let streams = matches!(&report.instance, Instance::Standby { position, upstream, streaming: true, .. }
        if *upstream == Some(grant.owner) && within(*position));
    (streams && stream.live && stream.caught_up).then_some(Replica { node, data })
}

/// Returns the policy that a Grant begins with: its standbys come from the evidence, and only those
/// whose WAL is part of the history that the new primary goes on from. One on a fork could come
/// back only once the epoch is established, which would wait for it (decision 0009).
pub fn of_grant(
    state: &ClusterState,
    owner: NodeId,
    base: WalPosition,
    evidence: impl Iterator<Item = Evidence>,
) -> PolicyKind {
    let within = |position: WalPosition| {
        state.ledger.lineage(position, base.timeline) == Lineage::Within
            && (position.timeline != base.timeline || position.lsn <= base.lsn)
    };
    let good = evidence
        .filter(|e| e.node != owner && within(e.position))
        .filter(|e| state.members.get(&e.node).is_some_and(may_be_sync))
        .map(|e| Replica { node: e.node, data: e.data })
        .collect();
    let mut old = state.policies.last().map(|policy| standbys_of(&policy.kind)).unwrap_or_default();
    old.retain(|replica| replica.node != owner);
    policy(state, good, &old)
}
