//! What operators ask of this member, carried out.

use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Outcome};
use rhone_consensus::state::{ClusterState, Phase};
use rhone_consensus::{AppliedState, ConsensusError};

use crate::runtime::events::Events;
use crate::runtime::handover::{self, handover};
use crate::runtime::shared::Shared;
use crate::runtime::{hints, publish};
use crate::settings::{SettingsVersion, SettingsView};
use crate::status::{
    ClusterStatus, Event, Explanation, FailoverRequest, FenceRequest, HistoryEntry, MemberDecision,
    MemberRequest, Operator, OperatorError, SettingsChanged, SettingsRequest, Subscription, SwitchoverReply,
    SwitchoverRequest, TimingStatus, When,
};

/// How long a proposal may take.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// How long a switchover may take before its outcome is called unknown: a checkpoint on a slow card.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(120);

/// The operator's calls on the running member.
#[derive(Debug)]
pub(super) struct RuntimeOperator {
    shared: Arc<Shared>,
    events: Arc<Events>,
}

impl RuntimeOperator {
    /// Makes it.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let events = Events::start(&shared);
        Self { shared, events }
    }

    /// Returns the events that are remembered, oldest first.
    pub(super) fn recent_events(&self) -> Vec<Event> {
        self.events.subscribe().recent
    }

    /// Returns what the tasks of this member share.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn applied(&self) -> Arc<AppliedState> {
        Arc::clone(&self.shared.consensus.state().borrow())
    }

    /// Only the Raft leader changes anything: others say where it is.
    pub(super) fn leading(&self) -> Result<(), OperatorError> {
        let status = self.shared.consensus.status();
        if status.leading {
            return Ok(());
        }
        let leader = status.leader.and_then(|leader| status.nodes.get(&leader).map(|node| node.addr.clone()));
        if leader.is_none() {
            return Err(OperatorError::NoQuorum);
        }
        Err(OperatorError::NotLeader { leader })
    }

    pub(super) async fn propose(&self, command: ClusterCommand) -> Result<Outcome, OperatorError> {
        let hint = hints::after(&command);
        if let Some(reason) = self.shared.would_refuse(&command) {
            return Err(advised(reason, hint));
        }
        match self.shared.consensus.propose(command, PROPOSE_LIMIT).await {
            Ok(applied) => match applied.outcome {
                outcome @ (Outcome::Done | Outcome::Prepared(_)) => Ok(outcome),
                Outcome::Refused(reason) => Err(advised(reason, hint)),
            },
            Err(ConsensusError::NoQuorum) => Err(OperatorError::NoQuorum),
            Err(ConsensusError::Unknown) => Err(OperatorError::Unknown),
            // It led when it was asked; nothing was proposed, so that the caller may ask who leads now.
            Err(ConsensusError::NotLeader { .. }) => {
                Err(self.leading().err().unwrap_or(OperatorError::NotLeader { leader: None }))
            }
            Err(error) => Err(OperatorError::Failed(error.to_string())),
        }
    }

    pub(super) async fn outcome(
        &self,
        from: Option<String>,
        after: u64,
    ) -> Result<SwitchoverReply, OperatorError> {
        let mut states = self.shared.consensus.state();
        let established = states
            .wait_for(|applied| applied.state.phase == Phase::Established && applied.state.epoch.0 > after);
        match tokio::time::timeout(SWITCHOVER_LIMIT, established).await {
            Ok(Ok(applied)) => Ok(reply(&applied.state, from)),
            Ok(Err(_)) | Err(_) => Err(OperatorError::Unknown),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of an outage")]
fn reply(state: &ClusterState, from: Option<String>) -> SwitchoverReply {
    let last = state.history.back();
    SwitchoverReply {
        from,
        to: last.map(|entry| entry.to.clone()),
        epoch: last.map(|entry| entry.epoch),
        seconds_without_primary: last.map(|entry| entry.gap_ms as f64 / 1000.0),
        finished: true,
        scheduled: None,
    }
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::None => "not begun",
        Phase::Preparing { .. } => "electing its owner",
        Phase::Granted => "its owner is promoted",
        Phase::Established => "established",
    }
}

/// Refuses, with a command that shows why.
pub(super) fn refused(reason: impl Into<String>, command: &str) -> OperatorError {
    advised(reason, format!("`{command}` shows why"))
}

/// Refuses, with what to do about it.
pub(super) fn advised(reason: impl Into<String>, hint: impl Into<String>) -> OperatorError {
    OperatorError::Refused { reason: reason.into(), hint: Some(hint.into()) }
}

impl Operator for RuntimeOperator {
    async fn status(&self) -> Result<ClusterStatus, OperatorError> {
        Ok(publish::cluster_status(&self.shared))
    }

    async fn explain(&self) -> Result<Explanation, OperatorError> {
        self.leading()?;
        let (code, words) = self.shared.decided.borrow().clone();
        let applied = self.applied();
        let state = &applied.state;
        let table = self.shared.table.borrow().clone();
        let (now, raft) = (self.shared.now(), self.shared.consensus.status());
        let mut details = vec![format!("epoch {}, phase {}", state.epoch, phase_name(&state.phase))];
        let timing = super::outlook::timing_status(state);
        let change = if timing.settled { "" } else { ", until the primary has taken the new timings over" };
        let TimingStatus { counted_ms, aged_ms, .. } = timing;
        details.push(format!(
            "the primary counts by a lease of {counted_ms} ms, voters age by one of {aged_ms} ms{change}"
        ));
        if let Some(sentence) = super::outlook::failover_would_lose(state, &table, now) {
            details.push(format!("a failover now would lose {sentence}"));
        }
        if let Some(scheduled) = publish::scheduled(state) {
            details.push(scheduled.to_string());
        }
        for policy in &state.policies {
            let owner = state
                .members
                .get(&policy.owner.node)
                .map_or_else(|| policy.owner.node.to_string(), |m| m.name.clone());
            details.push(format!("epoch {} of {owner} acknowledges a commit {}", policy.epoch, policy.kind));
        }
        for member in state.members.values() {
            let Some(received) = table.get(&member.node) else {
                details.push(format!("{}: nothing heard", member.name));
                continue;
            };
            let voter = received.report.voter;
            let age_ms = now.millis_since(received.at);
            if age_ms >= publish::UNREACHABLE_MS {
                details.push(format!("{}: its last report came {} s ago", member.name, age_ms / 1000));
                continue;
            }
            details.push(match voter.silent_ms {
                Some(ms) => format!("{}: heard a renewal {ms} ms before its report", member.name),
                None => format!("{}: started a moment ago and neither renews nor counts", member.name),
            });
        }
        let mut members: Vec<MemberDecision> = state
            .members
            .values()
            .map(|member| {
                let received = table.get(&member.node);
                let voter = raft.voters.contains(&member.node);
                let (role, what) = publish::what_it_does(member, voter, received, state.epoch, now);
                MemberDecision {
                    name: member.name.clone(),
                    decision: format!("{role}, {what}"),
                    reason: received.and_then(|r| r.report.down.as_ref().map(|(_, why)| why.clone())),
                }
            })
            .collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Explanation {
            decided_by: Some(self.shared.config.node.name.clone()),
            decision: words,
            reason: code,
            details,
            members,
        })
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, OperatorError> {
        Ok(publish::history(&self.applied().state))
    }

    async fn switchover(&self, request: SwitchoverRequest) -> Result<SwitchoverReply, OperatorError> {
        self.leading()?;
        let applied = self.applied();
        let handover = handover(&self.shared, &applied.state, request.to.as_deref(), request.expected_epoch)?;
        let epoch = handover.epoch;
        let from = applied
            .state
            .last_owner()
            .and_then(|owner| applied.state.members.get(&owner).map(|member| member.name.clone()));
        tracing::info!(%epoch, to = ?request.to, "an operator asks for a switchover");
        self.propose(ClusterCommand::SetHandover(Some(handover))).await?;
        if request.no_wait {
            return Ok(SwitchoverReply { from, ..SwitchoverReply::default() });
        }
        let reply = self.outcome(from, epoch.0).await?;
        if let (Some(wanted), Some(got)) = (&request.to, &reply.to)
            && wanted != got
        {
            return Err(OperatorError::Failed(format!("{wanted} could not take over; {got} is primary now")));
        }
        Ok(reply)
    }

    async fn schedule(
        &self,
        request: SwitchoverRequest,
        when: When,
    ) -> Result<SwitchoverReply, OperatorError> {
        self.leading()?;
        let applied = self.applied();
        let state = &applied.state;
        if request.expected_epoch.is_some_and(|expected| expected != state.epoch) {
            return Err(refused(format!("the epoch is {} by now", state.epoch), "rhone status"));
        }
        let (at, now) = handover::time(&self.shared, when);
        let scheduled = handover::scheduled(state, request.to.as_deref(), at, now, request.by)?;
        let from = state.members.get(&scheduled.from).map(|member| member.name.clone());
        tracing::info!(at = %handover::shown(at), to = ?request.to, "an operator schedules a switchover");
        self.propose(ClusterCommand::Schedule(Some(scheduled))).await?;
        Ok(SwitchoverReply {
            from,
            to: request.to,
            epoch: Some(state.epoch),
            scheduled: Some(crate::civil::WallTime::from_ms(at.0)),
            ..SwitchoverReply::default()
        })
    }

    async fn cancel_scheduled(&self) -> Result<(), OperatorError> {
        self.leading()?;
        tracing::info!("an operator cancels the scheduled switchover");
        self.propose(ClusterCommand::Schedule(None)).await.map(drop)
    }

    fn events(&self) -> Option<Subscription> {
        Some(self.events.subscribe())
    }

    async fn failover(&self, request: FailoverRequest) -> Result<SwitchoverReply, OperatorError> {
        self.leading()?;
        let wanted = request.to.clone();
        let reply = self.fail_over(request).await?;
        if let (Some(wanted), Some(got)) = (&wanted, &reply.to)
            && wanted != got
        {
            return Err(OperatorError::Failed(format!(
                "{wanted} could not take over without losing commits; {got} is primary now"
            )));
        }
        Ok(reply)
    }

    async fn fence(&self, request: FenceRequest) -> Result<SwitchoverReply, OperatorError> {
        self.leading()?;
        let applied = self.applied();
        let state = &applied.state;
        let member = state
            .member_named(&request.name)
            .ok_or_else(|| refused(format!("no member is named {}", request.name), "rhone status"))?;
        let (node, epoch) = (member.node, Some(state.epoch));
        let mut reply = SwitchoverReply { epoch, finished: true, ..SwitchoverReply::default() };
        if state.is_fenced(node) == request.fenced {
            return Ok(reply);
        }
        if request.fenced && state.current_grant().is_some_and(|grant| grant.owner == node) {
            if !request.hand_over {
                return Err(OperatorError::Refused {
                    reason: format!("{} is the primary", request.name),
                    hint: Some(format!("`rhone fence {} --yes` hands over to a standby first", request.name)),
                });
            }
            let (expected_epoch, idempotency_key) = (request.expected_epoch, request.idempotency_key);
            let handover =
                SwitchoverRequest { expected_epoch, idempotency_key, ..SwitchoverRequest::default() };
            reply = self.switchover(handover).await?;
            if reply.to.as_ref() == Some(&request.name) {
                let text = format!("no standby could take over; {} is primary again", request.name);
                return Err(OperatorError::Failed(text));
            }
        }
        tracing::info!(member = %request.name, fenced = request.fenced, "an operator fences or lets go");
        self.propose(ClusterCommand::SetFenced { node, fenced: request.fenced }).await?;
        Ok(reply)
    }

    async fn settings(&self) -> Result<SettingsView, OperatorError> {
        Ok(self.settings_view())
    }

    async fn settings_history(&self) -> Result<Vec<SettingsVersion>, OperatorError> {
        Ok(self.settings_versions())
    }

    async fn change_settings(&self, request: SettingsRequest) -> Result<SettingsChanged, OperatorError> {
        self.leading()?;
        self.tune(request).await
    }

    async fn doctor(&self) -> Result<Vec<crate::doctor::Finding>, OperatorError> {
        Ok(self.diagnose().await)
    }

    async fn perform(&self, request: MemberRequest) -> Result<SwitchoverReply, OperatorError> {
        self.leading()?;
        self.perform_on(request).await
    }

    async fn pause(&self, paused: bool) -> Result<(), OperatorError> {
        self.leading()?;
        if self.applied().state.paused == paused {
            return Ok(());
        }
        tracing::info!(paused, "an operator pauses or resumes automatic failover");
        self.propose(ClusterCommand::SetPaused(paused)).await.map(drop)
    }
}
