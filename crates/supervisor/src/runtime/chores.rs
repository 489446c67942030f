//! What an operator wants done to one member: the leader passes it on, the member takes it on.

use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::ClusterCommand;
use rhone_consensus::command::{Handover, Member, MemberKind, RestartStep};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::connection::Session;
use rhone_pgctl::parameters::{self, Parameter};

use super::hints;
use super::operator::{RuntimeOperator, advised, refused};
use crate::api::proto::v1::{ParametersRequest, PerformRequest, Work};
use crate::decide::members::{self, Presence, THERE_MS, TooFew};
use crate::runtime::codec;
use crate::runtime::local::target;
use crate::runtime::shared::Shared;
use crate::status::{MemberRequest, MemberWork, OperatorError, SwitchoverReply};
use crate::view::Instance;

/// How long a member may take to take something on.
const TAKE_ON_LIMIT: Duration = Duration::from_secs(3);

/// How long a server may take to list its parameters.
const PARAMETERS_LIMIT: Duration = Duration::from_secs(5);

/// For how long the reports of voters are waited for, before a vote is refused to be taken.
const REPORTS_LIMIT_MS: u64 = 10_000;

/// Between two looks at the reports.
const REPORTS_LOOK: Duration = Duration::from_millis(100);

/// For how long a leader that is to be removed looks for somebody who leads in its place: several elections.
const YIELD_LIMIT_MS: u64 = 10_000;

/// How long a change of who votes may take.
const VOTERS_LIMIT_MS: u64 = 30_000;

/// Between two looks at who votes.
const VOTERS_LOOK: Duration = Duration::from_millis(50);

/// What is meant by work on a member; 0: what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meant {
    /// The server that started then, in milliseconds since 1970.
    pub started_ms: u64,
    /// That data directory.
    pub data: u64,
}

/// Takes on what the Raft leader passes on: the node's loop does it as soon as nothing else is due.
///
/// # Errors
/// Why this member does not.
pub fn take_on(shared: &Shared, epoch: Epoch, work: Work, meant: Meant) -> Result<(), String> {
    let applied = Arc::clone(&shared.consensus.state().borrow());
    let known = applied.state.epoch;
    if known != epoch {
        return Err(format!("the epoch here is {known}, not {epoch}"));
    }
    let own = shared.own.borrow().as_ref().map(|report| report.server.started_ms);
    let running = own.flatten();
    let leads = applied.state.last_owner() == Some(shared.me());
    let not_running = || "its postgres does not answer".to_owned();
    match work {
        Work::Unspecified => return Err("this version does not know what is asked for".to_owned()),
        Work::Restart | Work::Reinit if leads => return Err("it is the primary".to_owned()),
        Work::Reload => {
            running.ok_or_else(not_running)?;
            shared.asked.send_modify(|asked| asked.reloads = asked.reloads.saturating_add(1));
        }
        Work::Restart => {
            let running = running.ok_or_else(not_running)?;
            // Another one runs already: it was restarted meanwhile.
            if meant.started_ms == 0 || meant.started_ms == running {
                shared.asked.send_modify(|asked| asked.restart = Some(running));
            }
        }
        Work::Reinit => {
            let data = shared.hard.get().data.map(|record| record.id);
            let data = data.ok_or_else(|| "it has no data directory of this cluster".to_owned())?;
            // Another one is there: it was made anew meanwhile.
            if meant.data == 0 || meant.data == data.0 {
                shared.asked.send_modify(|asked| asked.reinit = Some(data));
            }
        }
        Work::Keep => {
            let given_up = shared.asked.send_if_modified(|asked| asked.reinit.take().is_some());
            if !given_up {
                return Err("no new copy of it was asked for".to_owned());
            }
        }
    }
    Ok(())
}

/// Returns the parameters of the server here.
///
/// # Errors
/// It does not answer, or there is none.
pub async fn own_parameters(shared: &Shared) -> Result<Vec<Parameter>, String> {
    let config = shared.config.postgres.as_ref().ok_or_else(|| "a witness runs no postgres".to_owned())?;
    let session =
        Session::open(&target(config), PARAMETERS_LIMIT).await.map_err(|error| error.to_string())?;
    parameters::catalogue(&session, PARAMETERS_LIMIT).await.map_err(|error| error.to_string())
}

/// Has a member take something on.
///
/// # Errors
/// It does not, or does not answer.
pub(super) async fn pass_on(
    shared: &Shared,
    state: &ClusterState,
    member: &Member,
    (work, meant): (Work, Meant),
) -> Result<(), OperatorError> {
    let no = |reason: String| refused(format!("{}: {reason}", member.name), "rhone status");
    if member.kind == MemberKind::Witness {
        return Err(no("a witness runs no postgres".to_owned()));
    }
    if state.is_fenced(member.node) {
        let hint = format!("`rhone unfence {}` lets it go", member.name);
        return Err(OperatorError::Refused {
            reason: format!("{} is fenced", member.name),
            hint: Some(hint),
        });
    }
    if member.node == shared.me() {
        return take_on(shared, state.epoch, work, meant).map_err(no);
    }
    let from = Some(shared.identity());
    let Meant { started_ms, data: data_id } = meant;
    let request = PerformRequest { from, epoch: state.epoch.0, work: work.into(), started_ms, data_id };
    let call = shared
        .peers
        .call(&member.address, TAKE_ON_LIMIT, |mut client| async move { client.perform(request).await });
    match call.await {
        Ok(reply) if reply.accepted => Ok(()),
        Ok(reply) => Err(no(reply.reason)),
        // It may have heard it; to ask again is harmless.
        Err(error) => Err(OperatorError::Failed(format!("{} does not answer: {error}", member.name))),
    }
}

/// Returns when the server of a member was started, by its last report.
pub(super) fn running(shared: &Shared, node: NodeId) -> Option<u64> {
    if node == shared.me() {
        return shared.own.borrow().as_ref().and_then(|report| report.server.started_ms);
    }
    shared.table.borrow().get(&node).and_then(|received| received.report.server.started_ms)
}

impl RuntimeOperator {
    /// Asks the primary for its parameters.
    pub(super) async fn parameters_of_primary(&self) -> Result<Vec<Parameter>, OperatorError> {
        let applied = self.applied();
        let hint =
            "parameters are checked against the primary's pg_settings: `rhone status` shows what it does";
        let none = |why: String| OperatorError::Refused { reason: why, hint: Some(hint.to_owned()) };
        let grant = applied.state.current_grant().filter(|_| applied.state.phase == Phase::Established);
        let owner =
            grant.map(|grant| grant.owner).ok_or_else(|| none("there is no primary now".to_owned()))?;
        if owner == self.shared().me() {
            return own_parameters(self.shared()).await.map_err(none);
        }
        let address =
            applied.state.members.get(&owner).map(|member| member.address.clone()).unwrap_or_default();
        let request = ParametersRequest { from: Some(self.shared().identity()) };
        let call = self.shared().peers.call(&address, PARAMETERS_LIMIT * 2, |mut client| async move {
            client.parameters(request).await
        });
        let reply = call.await.map_err(|error| none(format!("the primary does not answer: {error}")))?;
        codec::unpack(&reply.parameters)
            .ok_or_else(|| none(format!("the primary does not say: {}", reply.reason)))
    }

    /// Has something done to a member.
    pub(super) async fn perform_on(&self, request: MemberRequest) -> Result<SwitchoverReply, OperatorError> {
        let applied = self.applied();
        let state = &applied.state;
        if request.expected_epoch.is_some_and(|expected| expected != state.epoch) {
            return Err(refused(format!("the epoch is {} by now", state.epoch), "rhone status"));
        }
        let member = state
            .member_named(&request.name)
            .ok_or_else(|| refused(format!("no member is named {}", request.name), "rhone status"))?;
        let reply =
            SwitchoverReply { epoch: Some(state.epoch), finished: true, ..SwitchoverReply::default() };
        tracing::info!(member = %request.name, work = ?request.work, "an operator asks for work on a member");
        match request.work {
            MemberWork::Reload => self.pass_on(state, member, Work::Reload, Meant::default()).await?,
            MemberWork::Restart { started } => {
                let started_ms = started.map_or(0, crate::civil::WallTime::as_ms);
                if state.last_owner() == Some(member.node) {
                    return self.restart_alone(state, member, started_ms).await;
                }
                let meant = Meant { started_ms, ..Meant::default() };
                self.pass_on(state, member, Work::Restart, meant).await?;
            }
            MemberWork::RestartAt(when) => {
                let scheduled = self.schedule_restart(member, when, request.by).await?;
                return Ok(SwitchoverReply { scheduled: Some(scheduled), finished: false, ..reply });
            }
            MemberWork::CancelRestart => {
                let step = RestartStep::Cancel;
                self.propose(ClusterCommand::StepRestart { node: member.node, step }).await?;
            }
            MemberWork::Reinit { data } => {
                self.may_reinit(state, member)?;
                let meant = Meant { data: data.map_or(0, |data| data.0), ..Meant::default() };
                self.pass_on(state, member, Work::Reinit, meant).await?;
            }
            MemberWork::Keep => self.pass_on(state, member, Work::Keep, Meant::default()).await?,
            MemberWork::Remove => {
                let command = ClusterCommand::Remove(member.node);
                if let Some(reason) = self.shared().would_refuse(&command) {
                    return Err(advised(reason, hints::after(&command)));
                }
                self.may_lose_vote(state, member).await?;
                if member.node == self.shared().me() {
                    return Err(self.let_another_lead(member).await);
                }
                self.propose(ClusterCommand::Remove(member.node)).await?;
                self.until_no_voter(member).await?;
            }
            MemberWork::Demote | MemberWork::Promote => {
                if request.work == MemberWork::Demote {
                    self.may_lose_vote(state, member).await?;
                }
                return self.let_vote(state, member, request.work == MemberWork::Promote).await;
            }
        }
        Ok(reply)
    }

    /// A vote is taken only where a majority of those who stay is there: else nobody could agree on anything. Who
    /// is only late is waited for.
    async fn may_lose_vote(&self, state: &ClusterState, member: &Member) -> Result<(), OperatorError> {
        let begun = self.shared().now();
        let TooFew { living, all, away, .. } = loop {
            let status = self.shared().consensus.status();
            let Err(few) = members::may_lose_vote(&status.voters, member.node, |node| self.presence(node))
            else {
                return Ok(());
            };
            if !few.passing || self.shared().now().millis_since(begun) > REPORTS_LIMIT_MS {
                break few;
            }
            tokio::time::sleep(REPORTS_LOOK).await;
            // Another leader hears the reports now.
            self.leading()?;
        };
        let away: Vec<&str> = away
            .iter()
            .filter_map(|node| state.members.get(node).map(|member| member.name.as_str()))
            .collect();
        Err(OperatorError::Refused {
            reason: format!(
                "without {} only {living} of {all} voters are there, and a majority has to be",
                member.name
            ),
            hint: Some(format!("bring {} back first, or remove it before {}", away.join(", "), member.name)),
        })
    }

    /// Who leads does not remove itself: once it is gone nobody tells it that its vote is, and who asked for it
    /// would wait for that in vain. Another member leads first, and is asked.
    async fn let_another_lead(&self, member: &Member) -> OperatorError {
        tracing::info!("this member is to be removed and leads raft: another one leads first");
        let begun = self.shared().now();
        while self.shared().now().millis_since(begun) < YIELD_LIMIT_MS {
            if self.shared().consensus.yield_leadership().await
                && let Err(led) = self.leading()
            {
                return led;
            }
            tokio::time::sleep(VOTERS_LOOK).await;
        }
        OperatorError::Refused {
            reason: format!("{} leads Raft, and no other member took over from it", member.name),
            hint: Some("`rhone status` shows who is reachable; then try again".to_owned()),
        }
    }

    /// What the reports say of a member.
    fn presence(&self, node: NodeId) -> Presence {
        let (me, now) = (self.shared().me(), self.shared().now());
        if node == me {
            return Presence::There;
        }
        let table = self.shared().table.borrow();
        Presence::of(table.get(&node).map(|received| now.millis_since(received.at)))
    }

    /// Whether a member was heard lately.
    pub(super) fn is_there(&self, node: NodeId) -> bool {
        self.presence(node) == Presence::There
    }

    async fn pass_on(
        &self,
        state: &ClusterState,
        member: &Member,
        work: Work,
        meant: Meant,
    ) -> Result<(), OperatorError> {
        pass_on(self.shared(), state, member, (work, meant)).await
    }

    /// The only data member is restarted in place, through an epoch of its own: nobody else could serve.
    async fn restart_alone(
        &self,
        state: &ClusterState,
        member: &Member,
        started_ms: u64,
    ) -> Result<SwitchoverReply, OperatorError> {
        let running = self.running(member.node);
        if started_ms > 0 && running.is_some_and(|running| running != started_ms) {
            return Ok(SwitchoverReply {
                epoch: Some(state.epoch),
                finished: true,
                ..SwitchoverReply::default()
            });
        }
        if state.data_members().count() > 1 {
            return Err(OperatorError::Refused {
                reason: format!("{} is the primary", member.name),
                hint: Some("`rhone restart` hands over to a standby, which restarts it".to_owned()),
            });
        }
        if state.phase != Phase::Established {
            return Err(refused("the primary is not established", "rhone status"));
        }
        let handover = Handover { epoch: state.epoch, to: None, leaving: false };
        self.propose(ClusterCommand::SetHandover(Some(handover))).await?;
        self.outcome(Some(member.name.clone()), state.epoch.0).await
    }

    fn running(&self, node: NodeId) -> Option<u64> {
        running(self.shared(), node)
    }

    /// A copy is thrown away only where the primary serves from another one, and never a primary's.
    fn may_reinit(&self, state: &ClusterState, member: &Member) -> Result<(), OperatorError> {
        if state.last_owner() == Some(member.node) {
            return Err(OperatorError::Refused {
                reason: format!(
                    "{} is the primary: its data is what the others are copied from",
                    member.name
                ),
                hint: Some("`rhone switchover` makes another member primary first".to_owned()),
            });
        }
        let now = self.shared().now();
        let serves =
            state.current_grant().filter(|_| state.phase == Phase::Established).is_some_and(|grant| {
                let open =
                    |instance: &Instance| matches!(instance, Instance::Primary { gate_open: true, .. });
                if grant.owner == self.shared().me() {
                    return self.shared().own.borrow().as_ref().is_some_and(|report| open(&report.instance));
                }
                let table = self.shared().table.borrow();
                table
                    .get(&grant.owner)
                    .is_some_and(|r| now.millis_since(r.at) < THERE_MS && open(&r.report.instance))
            });
        if serves {
            Ok(())
        } else {
            Err(refused("no primary serves that it could be copied from", "rhone status"))
        }
    }

    /// Keeps a member from voting, or lets it vote; the leader's loop changes the voters accordingly.
    async fn let_vote(
        &self,
        state: &ClusterState,
        member: &Member,
        allowed: bool,
    ) -> Result<SwitchoverReply, OperatorError> {
        let reply =
            SwitchoverReply { epoch: Some(state.epoch), finished: true, ..SwitchoverReply::default() };
        let learner = state.learners.contains(&member.node);
        if learner != allowed {
            return Ok(reply);
        }
        if !allowed {
            let voters = self.shared().consensus.status().voters;
            let mut without = state.clone();
            without.learners.insert(member.node);
            let left = members::voter_count(members::eligible(&without).len());
            if voters.contains(&member.node) && left < voters.len() {
                return Err(OperatorError::Refused {
                    reason: format!(
                        "{} votes, and nobody could vote in its place: {} voters would become {left}",
                        member.name,
                        voters.len()
                    ),
                    hint: Some("add a member first; a cluster has 3 or 5 voters".to_owned()),
                });
            }
        }
        self.propose(ClusterCommand::SetLearner { node: member.node, learner: !allowed }).await?;
        if !allowed {
            self.until_no_voter(member).await?;
        }
        Ok(reply)
    }

    /// Waits until Raft has followed: before, the loss of another voter might leave no majority.
    async fn until_no_voter(&self, member: &Member) -> Result<(), OperatorError> {
        let begun = self.shared().now();
        loop {
            let status = self.shared().consensus.status();
            if status.configs.len() <= 1 && !status.voters.contains(&member.node) {
                return Ok(());
            }
            if self.shared().now().millis_since(begun) > VOTERS_LIMIT_MS {
                return Err(OperatorError::Failed(format!(
                    "{} still votes: who votes has not changed yet, and will once a majority agrees; until then \
                     keep every member running",
                    member.name
                )));
            }
            tokio::time::sleep(VOTERS_LOOK).await;
        }
    }
}
