//! openraft's way to its peers.

use std::io;
use std::time::Duration;

use openraft::error::{NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pool::{Call, Pool};
use super::{PreVoteRequest, PreVoteResponse};
use crate::codec;
use crate::ids::NodeId;
use crate::raft::{
    AppendRequest, AppendResponse, PeerNode, SnapshotRequest, SnapshotResponse, TypeConfig, VoteRequest,
    VoteResponse,
};

type Failure<E> = RPCError<NodeId, PeerNode, E>;
type AppendFailure = Failure<RaftError<NodeId>>;
type SnapshotFailure = Failure<RaftError<NodeId, openraft::error::InstallSnapshotError>>;

/// By how much less an append call may take than openraft waits for it: what openraft gives up is dropped here, and
/// nobody learns that it failed.
const BELOW_OPENRAFT: Duration = Duration::from_millis(20);

/// Pauses between tries to reach a peer that does not answer.
const BACKOFF: [u64; 4] = [20, 50, 100, 200];

impl RaftNetworkFactory<TypeConfig> for Pool {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, node: &PeerNode) -> PeerClient {
        PeerClient { pool: self.clone(), target, node: node.clone() }
    }
}

/// The way to one peer.
#[derive(Clone, Debug)]
pub(crate) struct PeerClient {
    pool: Pool,
    target: NodeId,
    node: PeerNode,
}

fn network<E: std::error::Error>(error: &(impl std::error::Error + 'static)) -> Failure<E> {
    RPCError::Network(NetworkError::new(error))
}

impl PeerClient {
    pub(crate) fn new(pool: Pool, target: NodeId, node: PeerNode) -> Self {
        Self { pool, target, node }
    }

    async fn call<Q, A, E>(&self, call: Call, request: &Q, limit: Duration) -> Result<A, Failure<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error,
    {
        let payload = codec::encode(request).map_err(|error| network(&error))?;
        let answer = self.pool.call(call, self.target, &self.node, payload, limit).await;
        let answer = answer.map_err(|status| RPCError::Unreachable(Unreachable::new(&status)))?;
        codec::decode(&answer).map_err(|error| network(&error))
    }

    /// Asks whether the peer would vote for this member.
    pub(crate) async fn pre_vote(&self, request: PreVoteRequest, limit: Duration) -> bool {
        let answer: Result<PreVoteResponse, AppendFailure> = self.call(Call::PreVote, &request, limit).await;
        answer.is_ok_and(|answer| answer.granted)
    }

    /// Returns why nothing is sent, when this member gives leadership away.
    fn muted(&self) -> Option<Unreachable> {
        let error = io::Error::other("this member gives leadership away");
        self.pool.contacts().muted().then(|| Unreachable::new(&error))
    }
}

impl RaftNetwork<TypeConfig> for PeerClient {
    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, AppendFailure> {
        if let Some(muted) = self.muted() {
            return Err(RPCError::Unreachable(muted));
        }
        let limit = self.pool.append_limit(self.target, option.hard_ttl().saturating_sub(BELOW_OPENRAFT));
        let sent = self.pool.contacts().now();
        let called = self.call(Call::Append, &request, limit).await;
        self.pool.appended(self.target, limit, self.pool.contacts().now().since(sent), called.is_ok());
        let answer: Result<AppendResponse, RaftError<NodeId>> = called?;
        let answer = answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))?;
        match &answer {
            AppendResponse::Success | AppendResponse::PartialSuccess(_) | AppendResponse::Conflict => {
                self.pool.contacts().acknowledged(self.target, request.vote, sent);
            }
            AppendResponse::HigherVote(_) => {}
        }
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        request: SnapshotRequest,
        option: RPCOption,
    ) -> Result<SnapshotResponse, SnapshotFailure> {
        if let Some(muted) = self.muted() {
            return Err(RPCError::Unreachable(muted));
        }
        let sent = self.pool.contacts().now();
        let answer: Result<SnapshotResponse, RaftError<NodeId, openraft::error::InstallSnapshotError>> =
            self.call(Call::Snapshot, &request, option.hard_ttl()).await?;
        let answer = answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))?;
        if answer.vote == request.vote {
            self.pool.contacts().acknowledged(self.target, request.vote, sent);
        }
        Ok(answer)
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, AppendFailure> {
        let answer: Result<VoteResponse, RaftError<NodeId>> =
            self.call(Call::Vote, &request, option.hard_ttl()).await?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }

    fn backoff(&self) -> Backoff {
        let first = BACKOFF.into_iter();
        Backoff::new(first.chain(std::iter::repeat(200)).map(Duration::from_millis))
    }
}
