//! Failing over by hand: refused where acknowledged commits would be lost, unless a person accepts
//! that for the very epoch that is being prepared.

use std::time::Duration;

use rhone_consensus::command::{Acceptance, ClusterCommand, Member, Outcome, PrepareReason, WallTime};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::state::{ClusterState, Phase};

use super::handover::is_primary;
use super::operator::{RuntimeOperator, advised, refused};
use super::{outlook, publish};
use crate::runtime::clock::wall_time;
use crate::status::{FailoverRequest, OperatorError, SwitchoverReply};
use crate::view::Instance;

/// For how long an election is left to find its evidence before the accepted loss is recorded: what
/// is not needed is not accepted.
const EVIDENCE_LIMIT: Duration = Duration::from_secs(4);

impl RuntimeOperator {
    /// Fails over, as asked by a person.
    pub(super) async fn fail_over(&self, request: FailoverRequest) -> Result<SwitchoverReply, OperatorError> {
        let applied = self.applied();
        let state = &applied.state;
        let present = state.epoch;
        if request.expected_epoch.is_some_and(|expected| expected != present) {
            return Err(refused(format!("the epoch is {present} by now"), "rhone status"));
        }
        let to = candidate(state, request.to.as_deref())?;
        let from =
            state.last_owner().and_then(|owner| state.members.get(&owner).map(|member| member.name.clone()));
        let epoch = match &state.phase {
            Phase::None => return Err(refused("there is no primary yet", "rhone explain")),
            Phase::Preparing { .. } if !request.accept_data_loss => {
                let (_, waits) = self.shared().decided.borrow().clone();
                let why = self.why_not(state, state.last_owner()).unwrap_or(waits);
                return Err(needs_a_person(&format!("the election of epoch {present} waits: {why}")));
            }
            Phase::Preparing { .. } => present,
            Phase::Granted | Phase::Established => {
                if let Some(why) = self.why_not(state, None).filter(|_| !request.accept_data_loss) {
                    return Err(needs_a_person(&why));
                }
                self.open(to.or_else(|| self.best_other(state))).await?
            }
        };
        tracing::warn!(%epoch, to = ?request.to, accepted = request.accept_data_loss, by = %request.by,
            "a person fails over");
        if request.accept_data_loss && !self.granted(epoch, EVIDENCE_LIMIT).await {
            let at = WallTime(wall_time());
            self.propose(ClusterCommand::AcceptLoss(Acceptance { epoch, to, by: request.by, at })).await?;
        }
        if request.no_wait {
            return Ok(SwitchoverReply { from, ..SwitchoverReply::default() });
        }
        self.outcome(from, epoch.0.saturating_sub(1)).await
    }

    /// Returns the standby with the most, where somebody else leads: who asks for a failover does not ask for
    /// the same primary again. It is no more than a wish: the election decides by what it finds.
    fn best_other(&self, state: &ClusterState) -> Option<NodeId> {
        let owner = state.last_owner().filter(|_| state.phase == Phase::Established)?;
        let (table, now) = (self.shared().table.borrow().clone(), self.shared().now());
        let others =
            state.data_members().filter(|m| m.node != owner && m.may_lead() && !state.is_fenced(m.node));
        let streams = |member: &&Member| {
            table.get(&member.node).is_some_and(|received| {
                now.millis_since(received.at) < publish::UNREACHABLE_MS
                    && matches!(received.report.instance, Instance::Standby { streaming: true, .. })
            })
        };
        let held = |member: &&Member| {
            let position = table.get(&member.node).and_then(|received| received.report.instance.position());
            (position.map(|position| position.lsn), member.priority, std::cmp::Reverse(member.node))
        };
        others.filter(streams).max_by_key(held).map(|member| member.node)
    }

    /// Opens an epoch and returns it.
    async fn open(&self, to: Option<NodeId>) -> Result<Epoch, OperatorError> {
        let reason = to.map_or(PrepareReason::Operator, |to| PrepareReason::OperatorTo { to });
        match self.propose(ClusterCommand::Prepare { reason, at: WallTime(wall_time()) }).await? {
            Outcome::Prepared(epoch) => Ok(epoch),
            Outcome::Done | Outcome::Refused(_) => Err(OperatorError::Unknown),
        }
    }

    /// Says why acknowledged commits could be lost, if they could: those who are there, but for that
    /// member, do not cover every policy.
    fn why_not(&self, state: &ClusterState, without: Option<NodeId>) -> Option<String> {
        let (table, now) = (self.shared().table.borrow().clone(), self.shared().now());
        let open = outlook::uncovered(state, &table, now, without);
        (!open.is_empty()).then(|| outlook::why_uncovered(state, &table, now, without, &open))
    }

    /// Waits until the epoch has an owner, or is over.
    async fn granted(&self, epoch: Epoch, limit: Duration) -> bool {
        let mut states = self.shared().consensus.state();
        let granted = states.wait_for(|applied| {
            let state = &applied.state;
            state.epoch > epoch || state.current_grant().is_some()
        });
        tokio::time::timeout(limit, granted).await.is_ok()
    }
}

fn candidate(state: &ClusterState, name: Option<&str>) -> Result<Option<NodeId>, OperatorError> {
    let Some(name) = name else { return Ok(None) };
    let member = state.data_members().find(|member| member.name == name);
    let member = member.ok_or_else(|| refused(format!("no data member is named {name}"), "rhone status"))?;
    if !member.may_lead() {
        let reason =
            format!("{name} is never promoted: it has priority 0, or is tagged no-failover or delayed");
        let hint =
            "choose another member, or change its priority or tags in rhone.toml and restart rhone there";
        return Err(advised(reason, hint));
    }
    if state.phase == Phase::Established && state.last_owner() == Some(member.node) {
        return Err(is_primary(name));
    }
    Ok(Some(member.node))
}

/// Only a person may go on.
fn needs_a_person(why: &str) -> OperatorError {
    OperatorError::Refused {
        reason: format!("acknowledged commits may be lost: {why}"),
        hint: Some(
            "start the missing members; or give those commits up with `rhone failover --accept-data-loss`"
                .to_owned(),
        ),
    }
}
