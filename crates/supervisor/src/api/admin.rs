//! The `Admin` gRPC service over whatever implements [`Operator`].

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use rhone_consensus::ids::Epoch;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::convert::to_change_reply;
use super::convert_settings::{member_request, settings_request, to_settings_reply};
use super::proto::v1;
use super::proto::v1::admin_server::{Admin, AdminServer};
use crate::civil::WallTime;
use crate::status::{
    FailoverRequest, FenceRequest, MemberRequest, MemberWork, Operator, OperatorError, Subscription,
    SwitchoverReply, SwitchoverRequest, When,
};

/// A request to `Admin` larger than this is refused: each holds a few names.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Makes the gRPC service, to be added to a tonic router.
pub fn admin_service<O: Operator>(operator: Arc<O>) -> AdminServer<AdminService<O>> {
    AdminServer::new(AdminService { operator }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// The `Admin` service; made by [`admin_service`].
#[derive(Debug)]
pub struct AdminService<O> {
    operator: Arc<O>,
}

impl<O: Operator> AdminService<O> {
    /// Refuses a change that was meant for another epoch.
    async fn check_epoch(&self, expected: Option<Epoch>) -> Result<(), Status> {
        let Some(expected) = expected else { return Ok(()) };
        let present = self.operator.status().await?.epoch;
        if present == Some(expected) {
            return Ok(());
        }
        let present = present.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
        let reason = format!("the epoch is {present}, not {expected}: the cluster has changed meanwhile");
        Err(OperatorError::Refused { reason, hint: Some("look again with `rhone status`".to_owned()) }.into())
    }

    async fn set_paused(
        &self,
        expected: Option<u64>,
        paused: bool,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.check_epoch(expected.map(Epoch)).await?;
        let outcome = self.operator.pause(paused).await;
        let reply =
            to_change_reply(outcome.map(|()| SwitchoverReply { finished: true, ..Default::default() }))?;
        Ok(Response::new(reply))
    }
}

impl<O: Operator> AdminService<O> {
    async fn hold(&self, request: FenceRequest) -> Result<Response<v1::ChangeReply>, Status> {
        self.check_epoch(request.expected_epoch).await?;
        Ok(Response::new(to_change_reply(self.operator.fence(request).await)?))
    }
}

impl<O: Operator> AdminService<O> {
    async fn work(&self, request: MemberRequest) -> Result<Response<v1::ChangeReply>, Status> {
        self.check_epoch(request.expected_epoch).await?;
        Ok(Response::new(to_change_reply(self.operator.perform(request).await)?))
    }

    async fn work_on(
        &self,
        request: Request<v1::MemberRequest>,
        work: MemberWork,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work(member_request(request.into_inner(), work)).await
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
        let when = when(request.at_ms, request.after_ms)?;
        let request = SwitchoverRequest {
            to: request.to,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
            no_wait: request.no_wait,
            by: request.by,
        };
        let outcome = match when {
            Some(when) => self.operator.schedule(request, when).await,
            None => self.operator.switchover(request).await,
        };
        Ok(Response::new(to_change_reply(outcome)?))
    }

    async fn cancel_switchover(
        &self,
        request: Request<v1::CancelSwitchoverRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.check_epoch(request.into_inner().expected_epoch.map(Epoch)).await?;
        let outcome = self.operator.cancel_scheduled().await;
        let reply = outcome.map(|()| SwitchoverReply { finished: true, ..SwitchoverReply::default() });
        Ok(Response::new(to_change_reply(reply)?))
    }

    async fn failover(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let outcome = self.operator.failover(FailoverRequest {
            to: request.to,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
            accept_data_loss: request.accept_data_loss,
            by: request.by,
            no_wait: request.no_wait,
        });
        Ok(Response::new(to_change_reply(outcome.await)?))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        self.set_paused(request.into_inner().expected_epoch, true).await
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        self.set_paused(request.into_inner().expected_epoch, false).await
    }

    async fn fence(&self, request: Request<v1::FenceRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        self.hold(FenceRequest {
            name: request.name,
            fenced: true,
            hand_over: request.hand_over,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
        })
        .await
    }

    async fn unfence(
        &self,
        request: Request<v1::UnfenceRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        self.hold(FenceRequest {
            name: request.name,
            fenced: false,
            hand_over: false,
            expected_epoch: request.expected_epoch.map(Epoch),
            idempotency_key: request.idempotency_key,
        })
        .await
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
        let outcome = self.operator.change_settings(settings_request(request.into_inner())).await;
        Ok(Response::new(to_settings_reply(outcome)?))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorReply>, Status> {
        let findings = self.operator.doctor().await?.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::DoctorReply { findings }))
    }

    async fn reload(&self, request: Request<v1::MemberRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on(request, MemberWork::Reload).await
    }

    async fn restart(
        &self,
        request: Request<v1::RestartRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let request = request.into_inner();
        let work = match (when(request.at_ms, request.after_ms)?, request.cancel) {
            (None, false) => MemberWork::Restart { started: request.started_ms.map(WallTime::from_ms) },
            (Some(when), false) => MemberWork::RestartAt(when),
            (None, true) => MemberWork::CancelRestart,
            (Some(_), true) => return Err(Status::invalid_argument("cancel goes without a time")),
        };
        self.work(MemberRequest {
            name: request.name,
            work,
            by: request.by,
            expected_epoch: request.expected_epoch.map(Epoch),
        })
        .await
    }

    async fn reinit(&self, request: Request<v1::MemberRequest>) -> Result<Response<v1::ChangeReply>, Status> {
        let work = if request.get_ref().cancel { MemberWork::Keep } else { MemberWork::Reinit };
        self.work_on(request, work).await
    }

    async fn remove_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on(request, MemberWork::Remove).await
    }

    async fn promote_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on(request, MemberWork::Promote).await
    }

    async fn demote_member(
        &self,
        request: Request<v1::MemberRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.work_on(request, MemberWork::Demote).await
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
