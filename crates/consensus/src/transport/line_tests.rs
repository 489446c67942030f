use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::transport::{Endpoint, Server};

use super::super::connect_lazily;
use super::super::wire::Wire;
use super::*;
use crate::proto::raft_client::RaftClient;
use crate::proto::raft_server::{Raft, RaftServer};
use crate::proto::{RaftRequest, RaftResponse};

/// Answers a call with what it carried; `no` is refused, and `slow` is answered when `go` allows.
#[derive(Clone, Default)]
struct Echo {
    old: Arc<AtomicBool>,
    streams: Arc<AtomicU32>,
    alone: Arc<AtomicU32>,
    go: Arc<tokio::sync::Notify>,
}

impl Echo {
    async fn answer(&self, request: RaftRequest) -> Result<RaftResponse, Status> {
        match request.payload.as_ref() {
            b"no" => return Err(Status::permission_denied("no")),
            b"slow" => self.go.notified().await,
            _ => {}
        }
        Ok(RaftResponse { payload: request.payload, from: None })
    }
}

#[tonic::async_trait]
impl Raft for Echo {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        self.answer(request.into_inner()).await.map(Response::new)
    }

    type AppendsStream = Pin<Box<dyn futures_util::Stream<Item = Result<RaftResponse, Status>> + Send>>;

    async fn appends(
        &self,
        request: Request<Streaming<RaftRequest>>,
    ) -> Result<Response<Self::AppendsStream>, Status> {
        if self.old.load(Ordering::Relaxed) {
            return Err(Status::unimplemented(""));
        }
        self.streams.fetch_add(1, Ordering::Relaxed);
        let echo = self.clone();
        let answers = request.into_inner().then(move |request| {
            let echo = echo.clone();
            async move { echo.answer(request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, _: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn snapshot(&self, _: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn pre_vote(&self, _: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        Err(Status::internal("not asked for"))
    }
}

struct Rig {
    echo: Echo,
    client: RaftClient<Wire>,
    lane: Lane<RaftRequest, RaftResponse>,
}

impl Rig {
    async fn new() -> Self {
        let echo = Echo::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its number");
        let server = Server::builder().add_service(RaftServer::new(echo.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let wire = Wire::Channel(connect_lazily(endpoint));
        let lane = wire.lane();
        Self { echo, client: RaftClient::new(wire), lane }
    }

    async fn call(&self, payload: &'static str) -> Result<String, Code> {
        let (mut open, mut alone) = (self.client.clone(), self.client.clone());
        let request = RaftRequest { from: None, to: 0, payload: payload.as_bytes().into() };
        let answer = self.lane.call(
            request,
            |requests| async move { open.appends(requests).await },
            |request| async move { alone.append(request).await },
        );
        let answer = answer.await.map_err(|status| status.code())?;
        Ok(String::from_utf8(answer.payload.to_vec()).expect("text"))
    }

    /// How many streams there were, and single calls.
    fn counts(&self) -> (u32, u32) {
        (self.echo.streams.load(Ordering::Relaxed), self.echo.alone.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn each_has_the_answer_to_its_own_request_when_others_give_up() {
    let rig = Rig::new().await;
    assert_eq!(rig.call("first").await.as_deref(), Ok("first"));
    {
        let slow = rig.call("slow");
        let next = rig.call("next");
        tokio::pin!(slow, next);
        // Both are sent, in this order; then the first is given up.
        assert!(futures_util::poll!(slow.as_mut()).is_pending());
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        let last = rig.call("last");
        tokio::pin!(last);
        assert!(futures_util::poll!(last.as_mut()).is_pending());
        drop(slow);
        rig.echo.go.notify_one();
        assert_eq!(next.await.as_deref(), Ok("next"));
        assert_eq!(last.await.as_deref(), Ok("last"));
    }
    assert_eq!(rig.counts(), (1, 0));
}

#[tokio::test]
async fn a_refusal_is_told_and_the_next_call_begins_another_stream() {
    let rig = Rig::new().await;
    assert_eq!(rig.call("first").await.as_deref(), Ok("first"));
    assert_eq!(rig.call("no").await, Err(Code::PermissionDenied));
    assert_eq!(rig.call("second").await.as_deref(), Ok("second"));
    assert_eq!(rig.counts(), (2, 0));
}

#[tokio::test]
async fn a_peer_without_the_stream_is_called_one_by_one_until_a_call_fails() {
    let rig = Rig::new().await;
    rig.echo.old.store(true, Ordering::Relaxed);
    assert_eq!(rig.call("first").await.as_deref(), Ok("first"), "not even the first is lost");
    assert_eq!(rig.call("second").await.as_deref(), Ok("second"));
    assert_eq!(rig.counts(), (0, 2));
    // As after an upgrade of the peer.
    rig.echo.old.store(false, Ordering::Relaxed);
    assert_eq!(rig.call("third").await.as_deref(), Ok("third"));
    assert_eq!(rig.call("no").await, Err(Code::PermissionDenied));
    assert_eq!(rig.call("fourth").await.as_deref(), Ok("fourth"));
    assert_eq!(rig.counts(), (1, 4));
}

#[tokio::test]
async fn no_more_waits_than_has_room() {
    let rig = Rig::new().await;
    // Nothing leaves before the task of the connection runs.
    let mut calls: Vec<_> = (0..=WAITING_MAX).map(|_| Box::pin(rig.call("x"))).collect();
    for call in calls.iter_mut().take(WAITING_MAX) {
        assert!(futures_util::poll!(call.as_mut()).is_pending());
    }
    let too_many = calls.pop().expect("one more").await;
    assert_eq!(too_many, Err(Code::Unavailable));
    for call in calls {
        assert_eq!(call.await.as_deref(), Ok("x"));
    }
}
