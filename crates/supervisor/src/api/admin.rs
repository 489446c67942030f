//! The `Admin` gRPC service over whatever implements [`Operator`].

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use rhone_consensus::ids::{DataId, Epoch};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::convert::to_change_reply;
use super::convert_settings::{member_request, settings_request, to_settings_reply};
use super::once::{Call, Once};
use super::proto::v1;
use super::proto::v1::admin_server::{Admin, AdminServer};
use crate::civil::WallTime;
use crate::status::{
    FailoverRequest, FenceRequest, MemberRequest, MemberWork, Operator, OperatorError, Subscription,
    SwitchoverReply, SwitchoverRequest, When,
};

/// A request to `Admin` larger than this is refused: each holds a few names.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Makes the gRPC service, to be added to tonic routers: clones of it, so that all know of the same calls.
pub fn admin_service<O: Operator>(operator: Arc<O>) -> AdminServer<AdminService<O>> {
    let service = AdminService { operator, once: Arc::default() };
    AdminServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// The `Admin` service; made by [`admin_service`].
#[derive(Debug)]
pub struct AdminService<O> {
    operator: Arc<O>,
    once: Arc<Once>,
}

/// Refuses a change that was meant for another epoch.
async fn check_epoch(operator: &impl Operator, expected: Option<Epoch>) -> Result<(), Status> {
    let Some(expected) = expected else { return Ok(()) };
    let present = operator.status().await?.epoch;
    if present == Some(expected) {
        return Ok(());
    }
    let present = present.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
    let reason = format!("the epoch is {present}, not {expected}: the cluster has changed meanwhile");
    Err(OperatorError::Refused { reason, hint: Some("look again with `rhone status`".to_owned()) }.into())
}

/// Turns what says nothing but that it is done into the answer to a change.
fn done(outcome: Result<(), OperatorError>) -> Result<v1::ChangeReply, Status> {
    to_change_reply(outcome.map(|()| SwitchoverReply { finished: true, ..SwitchoverReply::default() }))
}

impl<O: Operator> AdminService<O> {
    async fn set_paused(
        &self,
        call: Call,
        expected: Option<u64>,
        paused: bool,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let operator = Arc::clone(&self.operator);
        let work = async move {
            check_epoch(&*operator, expected.map(Epoch)).await?;
            done(operator.pause(paused).await)
        };
        self.once.carry_out(call, work).await
    }

    async fn hold(&self, call: Call, request: FenceRequest) -> Result<Response<v1::ChangeReply>, Status> {
        let operator = Arc::clone(&self.operator);
        let work = async move {
            check_epoch(&*operator, request.expected_epoch).await?;
            to_change_reply(operator.fence(request).await)
        };
        self.once.carry_out(call, work).await
    }

    async fn work(&self, call: Call, request: MemberRequest) -> Result<Response<v1::ChangeReply>, Status> {
        let operator = Arc::clone(&self.operator);
        let work = async move {
            check_epoch(&*operator, request.expected_epoch).await?;
            to_change_reply(operator.perform(request).await)
        };
        self.once.carry_out(call, work).await
    }

    async fn work_on(
        &self,
        method: &str,
        request: Request<v1::MemberRequest>,
        work: MemberWork,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of(method, &request.idempotency_key, &request);
        self.work(call, member_request(request, work)).await
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

#[tonic::async_trait]
impl<O: Operator> Admin for AdminService<O> {
    type EventsStream = EventStream;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let status = self.operator.status().await?;
        Ok(Response::new(v1::StatusReply { status: Some(status.into()) }))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        Ok(Response::new(self.operator.explain().await?.into()))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryReply>, Status> {
        let history = self.operator.history().await?;
        let limit = match request.into_inner().limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let skip = history.len().saturating_sub(limit);
        let entries = history.into_iter().skip(skip).map(Into::into).collect();
        Ok(Response::new(v1::HistoryReply { entries }))
    }

    async fn switchover(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Switchover", &request.idempotency_key, &request);
        let when = when(request.at_ms, request.after_ms)?;
        let request = SwitchoverRequest {
            to: request.to,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
            no_wait: request.no_wait,
            by: request.by,
        };
        let operator = Arc::clone(&self.operator);
        let work = async move {
            to_change_reply(match when {
                Some(when) => operator.schedule(request, when).await,
                None => operator.switchover(request).await,
            })
        };
        self.once.carry_out(call, work).await
    }

    async fn cancel_switchover(
        &self,
        request: Request<v1::CancelSwitchoverRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("CancelSwitchover", &request.idempotency_key, &request);
        let operator = Arc::clone(&self.operator);
        let work = async move {
            check_epoch(&*operator, request.expected_epoch.map(Epoch)).await?;
            done(operator.cancel_scheduled().await)
        };
        self.once.carry_out(call, work).await
    }

    async fn failover(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Failover", &request.idempotency_key, &request);
        let request = FailoverRequest {
            to: request.to,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
            accept_data_loss: request.accept_data_loss,
            by: request.by,
            no_wait: request.no_wait,
        };
        let operator = Arc::clone(&self.operator);
        self.once.carry_out(call, async move { to_change_reply(operator.failover(request).await) }).await
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Pause", &request.idempotency_key, &request);
        self.set_paused(call, request.expected_epoch, true).await
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Resume", &request.idempotency_key, &request);
        self.set_paused(call, request.expected_epoch, false).await
    }

    async fn fence(&self, request: Request<v1::FenceRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Fence", &request.idempotency_key, &request);
        let request = FenceRequest {
            name: request.name,
            fenced: true,
            hand_over: request.hand_over,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
        };
        self.hold(call, request).await
    }

    async fn unfence(
        &self,
        request: Request<v1::UnfenceRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Unfence", &request.idempotency_key, &request);
        let request = FenceRequest {
            name: request.name,
            fenced: false,
            hand_over: false,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
        };
        self.hold(call, request).await
    }

    async fn settings(&self, _: Request<v1::SettingsRequest>) -> Result<Response<v1::SettingsReply>, Status> {
        Ok(Response::new(self.operator.settings().await?.into()))
    }

    async fn settings_history(
        &self,
        request: Request<v1::SettingsHistoryRequest>,
    ) -> Result<Response<v1::SettingsHistoryReply>, Status> {
        let versions = self.operator.settings_history().await?;
        let limit = match request.into_inner().limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let skip = versions.len().saturating_sub(limit);
        let versions = versions.into_iter().skip(skip).map(Into::into).collect();
        Ok(Response::new(v1::SettingsHistoryReply { versions }))
    }

    async fn change_settings(
        &self,
        request: Request<v1::ChangeSettingsRequest>,
    ) -> Result<Response<v1::ChangeSettingsReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("ChangeSettings", &request.idempotency_key, &request);
        let (operator, request) = (Arc::clone(&self.operator), settings_request(request));
        self.once
            .carry_out(call, async move { to_settings_reply(operator.change_settings(request).await) })
            .await
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorReply>, Status> {
        let findings = self.operator.doctor().await?.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::DoctorReply { findings }))
    }

    async fn reload(&self, request: Request<v1::MemberRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on("Reload", request, MemberWork::Reload).await
    }

    async fn restart(
        &self,
        request: Request<v1::RestartRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let call = Call::of("Restart", &request.idempotency_key, &request);
        let work = match (when(request.at_ms, request.after_ms)?, request.cancel) {
            (None, false) => MemberWork::Restart { started: request.started_ms.map(WallTime::from_ms) },
            (Some(when), false) => MemberWork::RestartAt(when),
            (None, true) => MemberWork::CancelRestart,
            (Some(_), true) => return Err(Status::invalid_argument("cancel goes without a time")),
        };
        let request = MemberRequest {
            name: request.name,
            work,
            by: request.by,
            expected_epoch: request.expected_epoch.map(Epoch),
        };
        self.work(call, request).await
    }

    async fn reinit(&self, request: Request<v1::MemberRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let asked = request.get_ref();
        let data = asked.data_id.as_deref().map(|id| {
            id.parse::<DataId>().map_err(|_| Status::invalid_argument("data_id is that of Status: 16 digits"))
        });
        let work =
            if asked.cancel { MemberWork::Keep } else { MemberWork::Reinit { data: data.transpose()? } };
        self.work_on("Reinit", request, work).await
    }

    async fn remove_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on("RemoveMember", request, MemberWork::Remove).await
    }

    async fn promote_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on("PromoteMember", request, MemberWork::Promote).await
    }

    async fn demote_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on("DemoteMember", request, MemberWork::Demote).await
    }

    async fn dsn(&self, request: Request<v1::DsnRequest>) -> Result<Response<v1::DsnReply>, Status> {
        let dsn = self.operator.dsn(request.into_inner().role().into()).await?;
        Ok(Response::new(v1::DsnReply { dsn }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<EventStream>, Status> {
        let Some(Subscription { recent, next }) = self.operator.events() else {
            return Err(OperatorError::NotImplemented { what: "the event stream".to_owned() }.into());
        };
        let recent = futures_util::stream::iter(recent.into_iter().map(|event| Ok(event.into())));
        if !request.into_inner().follow {
            return Ok(Response::new(Box::pin(recent)));
        }
        // A reader that lags loses the oldest events and goes on with the newer ones.
        let next = BroadcastStream::new(next)
            .filter_map(|event| std::future::ready(event.ok().map(|event| Ok(event.into()))));
        let stream = recent.chain(next);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Reads when something is to begin; neither: now.
fn when(at_ms: Option<u64>, after_ms: Option<u64>) -> Result<Option<When>, Status> {
    match (at_ms, after_ms) {
        (Some(at), None) => Ok(Some(When::At(WallTime::from_ms(at)))),
        (None, Some(after)) => Ok(Some(When::After(std::time::Duration::from_millis(after)))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Status::invalid_argument("at_ms and after_ms exclude each other")),
    }
}
