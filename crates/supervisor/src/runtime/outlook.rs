//! What a failover now would lose, and who is missing: one sentence for people, from the same rule
//! that an election goes by. Pure.

use std::collections::BTreeSet;

use rhone_consensus::ids::{NodeId, Replica};
use rhone_consensus::policy::{Policy, PolicyKind};
use rhone_consensus::settings::SyncMode as Mode;
use rhone_consensus::state::ClusterState;

use crate::config::timing;
use crate::decide::quorum;
use crate::runtime::publish::UNREACHABLE_MS;
use crate::runtime::shared::Table;
use crate::status::{SyncMode, SyncStatus, TimingStatus};
use crate::view::Moment;

/// Returns the members whose data would count as evidence now, by their own last report.
fn there(table: &Table, now: Moment) -> BTreeSet<Replica> {
    let fresh = table.iter().filter(|(_, received)| now.millis_since(received.at) < UNREACHABLE_MS);
    fresh
        .filter_map(|(node, received)| received.report.data.map(|data| Replica { node: *node, data }))
        .collect()
}

/// Returns the policies that nobody could prove to be covered now, with the owner or without it.
pub(super) fn uncovered<'a>(
    state: &'a ClusterState,
    table: &Table,
    now: Moment,
    without: Option<NodeId>,
) -> Vec<&'a Policy> {
    let mut there = there(table, now);
    there.retain(|replica| Some(replica.node) != without);
    state.policies.iter().filter(|policy| !policy.covered(&there, true)).collect()
}

fn names(state: &ClusterState, nodes: impl Iterator<Item = NodeId>) -> String {
    let name = |node: NodeId| state.members.get(&node).map_or_else(|| node.to_string(), |m| m.name.clone());
    nodes.map(name).collect::<Vec<_>>().join(", ")
}

/// Says what keeps these policies from being covered, where `without` is not to be asked.
pub(super) fn why_uncovered(
    state: &ClusterState,
    table: &Table,
    now: Moment,
    without: Option<NodeId>,
    open: &[&Policy],
) -> String {
    let mut there = there(table, now);
    there.retain(|replica| Some(replica.node) != without);
    let sentence = |policy: &&Policy| match &policy.kind {
        PolicyKind::Quorum { required, standbys } => {
            let missing = standbys.difference(&there).map(|replica| replica.node);
            let needed = (standbys.len() + 1).saturating_sub(*required as usize).max(1);
            format!(
                "epoch {} acknowledged what any {required} of its {} standbys had, {needed} of them are needed, \
                 and {} cannot be asked",
                policy.epoch,
                standbys.len(),
                names(state, missing)
            )
        }
        PolicyKind::Alone | PolicyKind::Async { .. } => {
            let owner = names(state, std::iter::once(policy.owner.node));
            format!("in epoch {} {owner} acknowledged alone, and only it has everything", policy.epoch)
        }
    };
    open.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// Says in one sentence what a failover now would lose and who is missing; nothing while there is no
/// primary to lose.
pub(super) fn failover_would_lose(state: &ClusterState, table: &Table, now: Moment) -> Option<String> {
    let owner = state.last_owner()?;
    let is_async = |policy: &Policy| matches!(policy.kind, PolicyKind::Async { .. });
    let others = state.data_members().filter(|member| member.node != owner);
    let there: BTreeSet<NodeId> = there(table, now).into_iter().map(|replica| replica.node).collect();
    let (near, missing): (Vec<_>, Vec<_>) =
        others.map(|member| member.node).partition(|node| there.contains(node));
    let open = uncovered(state, table, now, Some(owner));
    let without = if missing.is_empty() {
        String::new()
    } else {
        format!(
            "; {} {} missing",
            names(state, missing.iter().copied()),
            if missing.len() == 1 { "is" } else { "are" }
        )
    };
    if near.is_empty() && state.policies.iter().all(is_async) {
        return Some("everything: no standby could take over".to_owned());
    }
    if !open.is_empty() {
        let why = why_uncovered(state, table, now, Some(owner), &open);
        return Some(format!("acknowledged commits, so that nobody is promoted by itself: {why}{without}"));
    }
    if state.policies.iter().any(is_async) {
        let limit = state.settings.max_lag_on_failover;
        return Some(format!(
            "what was acknowledged and not yet sent, at most {limit} bytes of wal as last heard{without}"
        ));
    }
    Some(format!("nothing{without}"))
}

/// Returns how commits wait now.
pub(super) fn sync_status(state: &ClusterState) -> SyncStatus {
    let mode = match state.settings.sync {
        Mode::Off => SyncMode::Off,
        Mode::Quorum => SyncMode::Quorum,
        Mode::Strict => SyncMode::Strict,
    };
    let (required, standbys) = match state.policy().map(|policy| &policy.kind) {
        Some(PolicyKind::Quorum { required, standbys }) => (*required, standbys.clone()),
        Some(PolicyKind::Alone | PolicyKind::Async { .. }) | None => (0, BTreeSet::new()),
    };
    let mut members: Vec<String> = standbys
        .iter()
        .filter_map(|replica| state.members.get(&replica.node).map(|member| member.name.clone()))
        .collect();
    members.sort();
    let required = match (mode, required) {
        (SyncMode::Off, _) => 0,
        // None acknowledges just now; as many as these are waited for as soon as they are there.
        (SyncMode::Strict, 0) => quorum::required(state),
        (SyncMode::Quorum | SyncMode::Strict, required) => required,
    };
    SyncStatus { mode, required, members, settled: settled(state) }
}

/// Returns the timings in force.
pub(super) fn timing_status(state: &ClusterState) -> TimingStatus {
    TimingStatus {
        preset: timing::preset_of(&state.settings.timing).map(str::to_owned),
        counted_ms: state.counting().lease_ms,
        aged_ms: state.ageing().lease_ms,
        settled: state.timing_change.before.is_none(),
    }
}

/// Whether the only policy of the epoch is one that the settings ask for.
fn settled(state: &ClusterState) -> bool {
    let Some(policy) = state.policy().filter(|_| !state.policy_changes()) else { return false };
    let wanted = quorum::required(state);
    match (&policy.kind, state.settings.sync) {
        (PolicyKind::Async { max_lag }, Mode::Off) => *max_lag == state.settings.max_lag_on_failover,
        (PolicyKind::Quorum { required, standbys }, Mode::Quorum) => {
            *required == wanted || (*required < wanted && *required as usize == standbys.len())
        }
        (PolicyKind::Quorum { required, .. }, Mode::Strict) => *required == wanted,
        (PolicyKind::Alone, Mode::Quorum) => true,
        (PolicyKind::Alone, Mode::Off | Mode::Strict)
        | (PolicyKind::Async { .. }, Mode::Quorum | Mode::Strict)
        | (PolicyKind::Quorum { .. }, Mode::Off) => false,
    }
}
