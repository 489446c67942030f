//! Answers the peers' calls.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::ServerState;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::guard::Guard;
use super::{Certified, MESSAGE_LIMIT, Me, PreVoteRequest, PreVoteResponse};
use crate::codec;
use crate::contact::Contacts;
use crate::ids::{Incarnation, NodeId};
use crate::proto::raft_server::{Raft, RaftServer};
use crate::proto::{RaftRequest, RaftResponse};
use crate::raft::{
    AppendRequest, AppendResponse, RaftHandle, SnapshotRequest, Timings, Vote, VoteRequest, VoteResponse,
};

/// The most bytes of a snapshot that is accepted.
const SNAPSHOT_LIMIT: u64 = 64 << 20;

/// The service to add to a tonic server.
pub type RaftService = RaftServer<Service>;

/// Answers for one member.
#[derive(Clone)]
pub struct Service {
    raft: RaftHandle,
    contacts: Arc<Contacts>,
    guard: Arc<Guard>,
    me: Arc<Me>,
    timings: Timings,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("identity", &self.me.identity).finish_non_exhaustive()
    }
}

pub(crate) fn service(
    raft: RaftHandle,
    contacts: Arc<Contacts>,
    guard: Arc<Guard>,
    timings: Timings,
) -> RaftService {
    let me = Arc::clone(guard.me());
    RaftServer::new(Service { raft, contacts, guard, me, timings })
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

/// Refuses a message in another member's name.
fn own(from: NodeId, vote: &Vote) -> Result<(), Status> {
    let named = vote.leader_id.node_id;
    if named == from { Ok(()) } else { Err(Status::permission_denied(format!("{from} speaks for {named}"))) }
}

/// Returns the store that the membership knows for a node id.
pub(crate) fn recorded(raft: &RaftHandle, id: NodeId) -> Option<Incarnation> {
    let server = raft.server_metrics();
    let server = server.borrow();
    server.membership_config.membership().get_node(&id).map(|node| node.incarnation)
}

/// Returns the name that the membership knows for a node id.
pub(crate) fn recorded_name(raft: &RaftHandle, id: NodeId) -> Option<String> {
    let server = raft.server_metrics();
    let server = server.borrow();
    server.membership_config.membership().get_node(&id).map(|node| node.name.clone())
}

impl Service {
    fn answer<T: Serialize>(&self, value: &T) -> Result<Response<RaftResponse>, Status> {
        self.response(value).map(Response::new)
    }

    fn response<T: Serialize>(&self, value: &T) -> Result<RaftResponse, Status> {
        let payload = codec::encode(value).map_err(|error| Status::internal(error.to_string()))?;
        Ok(RaftResponse { payload: payload.into(), from: Some(self.me.message()) })
    }

    fn open<T: DeserializeOwned>(&self, call: &Request<RaftRequest>) -> Result<(NodeId, T), Status> {
        self.read(call.extensions().get(), call.get_ref())
    }

    fn read<T: DeserializeOwned>(
        &self,
        caller: Option<&Certified>,
        request: &RaftRequest,
    ) -> Result<(NodeId, T), Status> {
        let recorded = |id| recorded(&self.raft, id);
        let from = self.guard.admit(request.from.as_ref(), Some(NodeId(request.to)), recorded)?;
        let name = recorded_name(&self.raft, from);
        Certified::speaks_for(caller, name.as_deref())?;
        let value = codec::decode(&request.payload)
            .map_err(|error| Status::invalid_argument(format!("cannot read the message: {error}")))?;
        Ok((from, value))
    }

    async fn append_from(
        &self,
        caller: Option<&Certified>,
        request: &RaftRequest,
    ) -> Result<RaftResponse, Status> {
        let (from, message): (_, AppendRequest) = self.read(caller, request)?;
        own(from, &message.vote)?;
        let result = self.raft.append_entries(message).await;
        if matches!(
            result,
            Ok(AppendResponse::Success | AppendResponse::PartialSuccess(_) | AppendResponse::Conflict)
        ) {
            self.contacts.leader_heard();
        }
        self.response(&result)
    }

    /// Returns whether a leader is alive, as far as is known here: then nobody else is voted for.
    fn bound(&self) -> bool {
        let lease = self.timings.election_min;
        let own = {
            let server = self.raft.server_metrics();
            let server = server.borrow();
            let configs = server.membership_config.membership().get_joint_config();
            (server.state == ServerState::Leader)
                .then(|| self.contacts.quorum_age(self.me.identity.node, &server.vote, configs))
                .flatten()
        };
        own.is_some_and(|age| age < lease) || self.contacts.binding_age().is_some_and(|age| age < lease)
    }
}

#[tonic::async_trait]
impl Raft for Service {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.append_from(request.extensions().get(), request.get_ref()).await.map(Response::new)
    }

    type AppendsStream = Pin<Box<dyn Stream<Item = Result<RaftResponse, Status>> + Send>>;

    async fn appends(
        &self,
        request: Request<Streaming<RaftRequest>>,
    ) -> Result<Response<Self::AppendsStream>, Status> {
        let (service, caller) = (self.clone(), request.extensions().get::<Certified>().cloned());
        let answers = request.into_inner().then(move |request| {
            let (service, caller) = (service.clone(), caller.clone());
            async move { service.append_from(caller.as_ref(), &request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (from, message): (_, VoteRequest) = self.open(&request)?;
        own(from, &message.vote)?;
        if self.bound() {
            tracing::debug!(node = %from, "no vote while a leader is alive");
            let vote = self.raft.server_metrics().borrow().vote;
            let last = self.raft.data_metrics().borrow().last_log;
            let refusal: Result<VoteResponse, openraft::error::RaftError<NodeId>> =
                Ok(VoteResponse::new(vote, last, false));
            return self.answer(&refusal);
        }
        self.answer(&self.raft.vote(message).await)
    }

    async fn snapshot(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (from, message): (_, SnapshotRequest) = self.open(&request)?;
        own(from, &message.vote)?;
        let size = u64::try_from(message.data.len()).unwrap_or(u64::MAX);
        if message.offset.saturating_add(size) > SNAPSHOT_LIMIT {
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        let vote = message.vote;
        let result = self.raft.install_snapshot(message).await;
        if result.as_ref().is_ok_and(|response| response.vote == vote) {
            self.contacts.leader_heard();
        }
        self.answer(&result)
    }

    async fn pre_vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        let (_, message): (_, PreVoteRequest) = self.open(&request)?;
        let mine = self.raft.data_metrics().borrow().last_log;
        self.answer(&PreVoteResponse { granted: !self.bound() && message.last_log >= mine })
    }
}
