//! Restarts that are put down for later (decision 0043): begun when their time has come, asked for until another server
//! runs. The primary of several hands over, which restarts it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Handover, Member, RestartStep, ScheduledRestart, WallTime};
use rhone_consensus::ids::NodeId;
use rhone_consensus::state::{ClusterState, Phase};

use super::chores::{Meant, pass_on, running};
use super::handover::{self, handover};
use super::hints;
use super::operator::{RuntimeOperator, advised};
use crate::api::proto::v1::Work;
use crate::decide::schedule::{Due, Look, due};
use crate::runtime::shared::Shared;
use crate::status::{OperatorError, When};
use crate::view::Moment;

/// How long an entry of the log may take.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// After how long without a sign of it the same member is asked again; that is harmless.
const ASK_AGAIN_MS: u64 = 5_000;

/// How long after its time a restart that has begun is waited for: a checkpoint and a recovery on a slow card.
const OVER_MS: u64 = 600_000;

/// What the Raft leader remembers of them between two looks.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    before: Option<Look>,
    /// When each member was asked last, and why it did not begin.
    asked: BTreeMap<NodeId, Moment>,
    why: BTreeMap<NodeId, String>,
}

impl Restarts {
    /// Forgets what an earlier leadership saw.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Looks at the clocks and at what is scheduled, and goes on with what is due.
    pub(super) async fn turn(&mut self, shared: &Arc<Shared>, state: &ClusterState) {
        if state.restarts.is_empty() {
            self.reset();
            return;
        }
        let now = Look { wall: WallTime(shared.clock.wall_time()), boot: shared.now() };
        let before = self.before.replace(now);
        for (node, scheduled) in &state.restarts {
            let Some(member) = state.members.get(node) else { continue };
            let Some(step) = self.step(shared, (state, member), scheduled, (before, now)).await else {
                continue;
            };
            tracing::info!(member = %member.name, ?step, "a scheduled restart goes on");
            let command = ClusterCommand::StepRestart { node: *node, step };
            if let Err(error) = shared.consensus.propose(command, PROPOSE_LIMIT).await {
                tracing::warn!(%error, "a step of a scheduled restart could not be put into the log");
                return;
            }
        }
    }

    /// Asks for what is due, and returns what the log is to hold of it.
    async fn step(
        &mut self,
        shared: &Arc<Shared>,
        (state, member): (&ClusterState, &Member),
        scheduled: &ScheduledRestart,
        (before, now): (Option<Look>, Look),
    ) -> Option<RestartStep> {
        let (node, at) = (member.node, scheduled.at);
        let server = running(shared, node).map(WallTime);
        let Some(meant) = scheduled.server else {
            return match (due(at, before, now), server) {
                (Due::NotYet, _) => None,
                (Due::Now, Some(server)) => Some(RestartStep::Begin { at, server }),
                (Due::Now, None) => {
                    self.why.insert(node, "its postgres does not answer".to_owned());
                    None
                }
                (Due::Never(why), _) => Some(RestartStep::End { at, why: Some(self.because(node, &why)) }),
            };
        };
        if server.is_some_and(|server| server != meant) {
            return Some(RestartStep::End { at, why: None });
        }
        if now.wall.0 > at.0.saturating_add(OVER_MS) {
            let why = format!("no other server runs there {} s later", OVER_MS / 1000);
            return Some(RestartStep::End { at, why: Some(self.because(node, &why)) });
        }
        let lately = self.asked.get(&node).is_some_and(|asked| now.boot.millis_since(*asked) < ASK_AGAIN_MS);
        if !lately && state.phase == Phase::Established && state.handover.is_none() {
            self.asked.insert(node, now.boot);
            match ask(shared, state, member, meant).await {
                Ok(()) => drop(self.why.remove(&node)),
                Err(error) => drop(self.why.insert(node, words(error))),
            }
        }
        None
    }

    fn because(&mut self, node: NodeId, why: &str) -> String {
        self.asked.remove(&node);
        self.why.remove(&node).map_or_else(|| why.to_owned(), |last| format!("{why}: {last}"))
    }
}

fn words(error: OperatorError) -> String {
    match error {
        OperatorError::Refused { reason, .. } => reason,
        error @ (OperatorError::NotLeader { .. }
        | OperatorError::NoQuorum
        | OperatorError::Unknown
        | OperatorError::NotImplemented { .. }
        | OperatorError::Failed(_)) => error.to_string(),
    }
}

/// Asks for a restart of the server that is meant; one that is another by now is left alone.
async fn ask(
    shared: &Arc<Shared>,
    state: &ClusterState,
    member: &Member,
    meant: WallTime,
) -> Result<(), OperatorError> {
    if state.last_owner() != Some(member.node) {
        let meant = Meant { started_ms: meant.0, ..Meant::default() };
        return pass_on(shared, state, member, (Work::Restart, meant)).await;
    }
    let over = if state.data_members().count() > 1 {
        handover(shared, state, None, None)?
    } else {
        // The only data member is restarted in place, through an epoch of its own.
        Handover { epoch: state.epoch, to: None, leaving: false }
    };
    let command = ClusterCommand::SetHandover(Some(over));
    if let Some(reason) = shared.would_refuse(&command) {
        return Err(advised(reason, hints::after(&command)));
    }
    let done = shared.consensus.propose(command, PROPOSE_LIMIT).await;
    done.map(drop).map_err(|error| OperatorError::Failed(error.to_string()))
}

impl RuntimeOperator {
    /// Puts a restart of a member down for later.
    pub(super) async fn schedule_restart(
        &self,
        member: &Member,
        when: When,
        by: String,
    ) -> Result<crate::civil::WallTime, OperatorError> {
        let (at, now) = handover::time(self.shared(), when);
        if at <= now {
            let (at, now) = (handover::shown(at), handover::shown(now));
            let reason = format!("{at} is in the past: by the raft leader's clock it is {now}");
            let hint = Some(format!("`rhone restart {}` begins one now", member.name));
            return Err(OperatorError::Refused { reason, hint });
        }
        if let Some(known) = self.applied().state.restarts.get(&member.node) {
            return Err(OperatorError::Refused {
                reason: format!(
                    "a restart of {} is scheduled for {}",
                    member.name,
                    handover::shown(known.at)
                ),
                hint: Some(format!("`rhone restart {} --cancel` takes it off", member.name)),
            });
        }
        let step = RestartStep::Schedule { at, by };
        self.propose(ClusterCommand::StepRestart { node: member.node, step }).await?;
        Ok(crate::civil::WallTime::from_ms(at.0))
    }
}
