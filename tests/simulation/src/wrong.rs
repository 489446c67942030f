//! The leader's decision, and what mutants make of it: the same function over a falsified view.

use std::sync::Arc;

use rhone::decide::{self, ClusterDecision};
use rhone::runtime::leader::Decide;
use rhone::view::{ClusterView, Moment, Received};
use rhone_consensus::ids::{NodeId, Replica};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::ClusterState;

use crate::mutant::Mutant;

/// Returns the decision with that rule left out.
pub fn decide(mutant: Mutant) -> Decide {
    match mutant {
        Mutant::LeaseIgnored => |view, now| {
            falsified(
                view,
                now,
                |_| {},
                |r| {
                    r.report.voter.aged_for = Some(r.report.voter.held);
                },
            )
        },
        Mutant::NoLagGate => |view, now| {
            let unlimited = |state: &mut ClusterState| {
                state.policies.iter_mut().for_each(|p| p.kind = PolicyKind::Async { max_lag: u64::MAX });
            };
            falsified(view, now, unlimited, |_| {})
        },
        Mutant::Nervous => |view, now| {
            falsified(
                view,
                now,
                |_| {},
                |r| {
                    r.report.voter.silent_ms = r.report.voter.silent_ms.map(|ms| ms.saturating_mul(30));
                },
            )
        },
        Mutant::NoCover => |view, now| {
            // Whoever answered stands for the owner of every policy.
            let mut state = view.state.clone();
            let answer = view.revoked.iter().find(|(_, (_, answer))| answer.position.is_some());
            if let Some((node, (_, answer))) = answer {
                let replica = Replica { node: *node, data: answer.data };
                state.policies.iter_mut().for_each(|policy| policy.owner = replica);
            }
            decide::cluster(&ClusterView { state: &state, ..view.clone() }, now)
        },
        Mutant::AnswersStay => |view, now| {
            let revoked =
                view.revoked.iter().map(|(node, (_, answer))| (*node, (now, answer.clone()))).collect();
            decide::cluster(&ClusterView { revoked: &revoked, ..view.clone() }, now)
        },
        _ => decide::cluster,
    }
}

fn falsified(
    view: &ClusterView<'_>,
    now: Moment,
    state: impl Fn(&mut ClusterState),
    report: impl Fn(&mut Received),
) -> ClusterDecision {
    let mut false_state = Arc::new(view.state.clone());
    state(Arc::make_mut(&mut false_state));
    let mut reports: std::collections::BTreeMap<NodeId, Received> = view.reports.clone();
    reports.values_mut().for_each(report);
    decide::cluster(&ClusterView { state: &false_state, reports: &reports, ..view.clone() }, now)
}
