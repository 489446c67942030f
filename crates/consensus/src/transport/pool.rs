//! One connection to each peer, for life: lazy, kept alive, made anew when it keeps failing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::{ServiceExt, service_fn};

use super::batched::Batched;
use super::guard::Guard;
use super::limit::AppendLimit;
use super::line::Lane;
use super::wire::Wire;
use super::{AddressBook, MESSAGE_LIMIT};
use crate::contact::Contacts;
use crate::ids::NodeId;
use crate::proto::raft_client::RaftClient;
use crate::proto::{RaftRequest, RaftResponse};
use crate::raft::PeerNode;

/// Failures in a row after which a channel is made anew, so that the name is resolved again.
const REBUILD_AFTER: u32 = 3;
/// HTTP/2 and TCP keepalive: a peer whose address moved is found again in two seconds (RUST.md 4).
const KEEPALIVE: Duration = Duration::from_secs(1);
/// The limit for making a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Makes channels to members: the seam for TLS.
pub trait Connector: Send + Sync + Debug {
    /// Makes a channel to `host:port` that connects when first used.
    ///
    /// # Errors
    /// Returns a text when the address cannot be used.
    fn channel(&self, addr: &str) -> Result<Wire, String>;
}

/// Connects without TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plaintext;

impl Connector for Plaintext {
    fn channel(&self, addr: &str) -> Result<Wire, String> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|e| e.to_string())?;
        Ok(Wire::Channel(connect_lazily(endpoint)))
    }
}

/// Sets what every connection between members needs, for [`Connector`]s.
///
/// A connection that nobody uses is left to the kernel's keepalive, which wakes no process; HTTP/2's own
/// begins with a call (decision 0035).
pub fn prepare(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE.saturating_mul(2)))
        .tcp_keepalive_interval(Some(KEEPALIVE))
        .tcp_keepalive_retries(Some(2))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(false)
}

/// Makes a channel without TLS that connects when first used.
pub fn connect_lazily(endpoint: Endpoint) -> Channel {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE.saturating_mul(2)));
    http.set_keepalive_interval(Some(KEEPALIVE));
    http.set_keepalive_retries(Some(2));
    http.set_connect_timeout(Some(CONNECT_LIMIT));
    prepare(endpoint).connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let connected = http.clone().oneshot(uri);
        async move { connected.await.map(|tcp| TokioIo::new(Batched::new(tcp.into_inner()))) }
    }))
}

#[derive(Debug)]
struct Peer {
    addr: String,
    client: RaftClient<Wire>,
    appends: Arc<Lane<RaftRequest, RaftResponse>>,
    failures: u32,
    complaint: Option<String>,
    append: AppendLimit,
}

/// The connections of this member.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    guard: Arc<Guard>,
    contacts: Arc<Contacts>,
    book: AddressBook,
    connector: Arc<dyn Connector>,
    heartbeat: Duration,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

/// A peer's client, and its way for appends.
type Way = (RaftClient<Wire>, Arc<Lane<RaftRequest, RaftResponse>>);

/// Appends over the stream that is there for them: a leader sends one each heartbeat.
async fn append(
    client: &RaftClient<Wire>,
    appends: &Lane<RaftRequest, RaftResponse>,
    request: RaftRequest,
) -> Result<RaftResponse, tonic::Status> {
    let open = |requests| {
        let mut client = client.clone();
        async move { client.appends(requests).await }
    };
    let alone = |request| {
        let mut client = client.clone();
        async move { client.append(request).await }
    };
    appends.call(request, open, alone).await
}

/// The four calls of the service.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Append,
    Vote,
    Snapshot,
    PreVote,
}

impl Pool {
    pub(crate) fn new(
        guard: Arc<Guard>,
        contacts: Arc<Contacts>,
        book: AddressBook,
        connector: Arc<dyn Connector>,
        heartbeat: Duration,
    ) -> Self {
        let peers = Mutex::default();
        Self { inner: Arc::new(Inner { guard, contacts, book, connector, heartbeat, peers }) }
    }

    /// The limit of the next append call to `to`, at most `most`.
    pub(crate) fn append_limit(&self, to: NodeId, most: Duration) -> Duration {
        let peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose connection is about to be made anew begins again.
        let peer = peers.get(&to).filter(|peer| peer.failures < REBUILD_AFTER);
        peer.map_or(self.inner.heartbeat, |peer| peer.append.get()).min(most)
    }

    /// Notes that an append call that had `limit` took so long, and whether it was answered.
    pub(crate) fn appended(&self, to: NodeId, limit: Duration, took: Duration, answered: bool) {
        let mut peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get_mut(&to) else { return };
        if answered {
            peer.append.answered(took);
        } else if took >= limit {
            peer.append.missed(limit);
        }
    }

    pub(crate) fn contacts(&self) -> &Contacts {
        &self.inner.contacts
    }

    fn way(&self, to: NodeId, recorded: &str) -> Result<Way, String> {
        let addr = self.inner.book.get(to).unwrap_or_else(|| recorded.to_owned());
        let mut peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&to).filter(|p| p.addr == addr && p.failures < REBUILD_AFTER) {
            return Ok((peer.client.clone(), Arc::clone(&peer.appends)));
        }
        let complaint = peers.remove(&to).and_then(|peer| peer.complaint);
        let wire = self.inner.connector.channel(&addr)?;
        let appends = Arc::new(wire.lane());
        let client = RaftClient::new(wire)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let append = AppendLimit::new(self.inner.heartbeat);
        let way = (client.clone(), Arc::clone(&appends));
        peers.insert(to, Peer { addr, client, appends, failures: 0, complaint, append });
        Ok(way)
    }

    fn note(&self, to: NodeId, result: &Result<Vec<u8>, tonic::Status>) {
        let mut peers = self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get_mut(&to) else { return };
        match result {
            Ok(_) => {
                peer.failures = 0;
                peer.complaint = None;
            }
            Err(status) => {
                peer.failures = peer.failures.saturating_add(1);
                let refused =
                    matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied);
                if refused && peer.complaint.as_deref() != Some(status.message()) {
                    tracing::warn!(node = %to, reason = status.message(), "no understanding with a peer");
                    peer.complaint = Some(status.message().to_owned());
                }
            }
        }
    }

    /// Takes an answer only from the very store that was asked: an old image would count as a
    /// voter that remembers.
    fn believe(&self, to: NodeId, node: &PeerNode, answer: &RaftResponse) -> Result<Vec<u8>, tonic::Status> {
        let known = |id: NodeId| (id == to).then_some(node.incarnation);
        let from = self.inner.guard.admit(answer.from.as_ref(), None, known)?;
        if from == to {
            Ok(answer.payload.to_vec())
        } else {
            Err(tonic::Status::failed_precondition(format!("{from} answers for {to}")))
        }
    }

    /// Calls `to`, within `limit`.
    pub(crate) async fn call(
        &self,
        call: Call,
        to: NodeId,
        node: &PeerNode,
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, tonic::Status> {
        let (mut client, appends) = self.way(to, &node.addr).map_err(tonic::Status::unavailable)?;
        let request =
            RaftRequest { from: Some(self.inner.guard.me().message()), to: to.0, payload: payload.into() };
        let answer = tokio::time::timeout(limit, async {
            match call {
                Call::Append => return append(&client, &appends, request).await,
                Call::Vote => client.vote(request).await,
                Call::Snapshot => client.snapshot(request).await,
                Call::PreVote => client.pre_vote(request).await,
            }
            .map(tonic::Response::into_inner)
        });
        let result = match answer.await {
            Ok(Ok(response)) => self.believe(to, node, &response),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
        };
        self.note(to, &result);
        result
    }
}
