use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
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
    /// A slow one has begun, may be answered, was dropped.
    begun: Arc<Notify>,
    go: Arc<Notify>,
    dropped: Arc<Notify>,
}

/// Tells when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Echo {
    async fn answer(&self, request: RaftRequest) -> Result<RaftResponse, Status> {
        match request.payload.as_ref() {
            b"no" => return Err(Status::permission_denied("no")),
            b"slow" => {
                let told = Told(Arc::clone(&self.dropped));
                self.begun.notify_one();
                self.go.notified().await;
                drop(told);
            }
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

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Open {
    #[default]
    Both,
    ToThePeer,
    Neither,
}

/// Stands between the two, and carries what `open` lets through; a connection is never closed by it.
async fn relay(listener: TcpListener, to: std::net::SocketAddr, open: watch::Receiver<Open>) {
    while let Ok((near, _)) = listener.accept().await {
        let far = TcpStream::connect(to).await.expect("the peer");
        let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
        tokio::spawn(carry(from_near, to_far, open.clone(), |open| open != Open::Neither));
        tokio::spawn(carry(from_far, to_near, open.clone(), |open| open == Open::Both));
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut open: watch::Receiver<Open>,
    passes: fn(Open) -> bool,
) {
    let mut bytes = [0_u8; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if open.wait_for(|now| passes(*now)).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

struct Rig {
    echo: Echo,
    client: RaftClient<Wire>,
    lane: Lane<RaftRequest, RaftResponse>,
    open: watch::Sender<Open>,
}

impl Rig {
    async fn new() -> Self {
        let echo = Echo::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its number");
        let server = Server::builder().add_service(RaftServer::new(echo.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let between = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (to, address) = (address, between.local_addr().expect("its number"));
        let open = watch::Sender::default();
        tokio::spawn(relay(between, to, open.subscribe()));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let wire = Wire::Channel(connect_lazily(endpoint));
        let lane = wire.lane();
        Self { echo, client: RaftClient::new(wire), lane, open }
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
async fn each_has_the_answer_to_its_own_request() {
    let rig = Rig::new().await;
    let (slow, next, last) = (rig.call("slow"), rig.call("next"), rig.call("last"));
    tokio::pin!(slow, next, last);
    // Sent in this order, and asked after in another.
    assert!(futures_util::poll!(slow.as_mut()).is_pending());
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    assert!(futures_util::poll!(last.as_mut()).is_pending());
    rig.echo.go.notify_one();
    assert_eq!(last.await.as_deref(), Ok("last"));
    assert_eq!(next.await.as_deref(), Ok("next"));
    assert_eq!(slow.await.as_deref(), Ok("slow"));
    assert_eq!(rig.counts(), (1, 0));
}

#[tokio::test]
async fn a_call_given_up_ends_the_stream_and_holds_up_nobody() {
    let rig = Rig::new().await;
    assert_eq!(rig.call("first").await.as_deref(), Ok("first"));
    let (slow, behind) = (rig.call("slow"), rig.call("behind"));
    let mut slow = Box::pin(slow);
    tokio::pin!(behind);
    assert!(futures_util::poll!(slow.as_mut()).is_pending());
    assert!(futures_util::poll!(behind.as_mut()).is_pending());
    rig.echo.begun.notified().await;
    drop(slow);
    assert_eq!(behind.await, Err(Code::Unavailable));
    // The peer is not done with the slow one, and never will be: it has been told that nobody waits.
    assert_eq!(rig.call("next").await.as_deref(), Ok("next"));
    rig.echo.dropped.notified().await;
    assert_eq!(rig.counts(), (2, 0));
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

/// A connection that carries nothing any more, in one direction or in both, and is not closed.
async fn goes_silent(open: Open) {
    let rig = Rig::new().await;
    assert_eq!(rig.call("first").await.as_deref(), Ok("first"));
    rig.open.send_replace(open);
    // Nobody gives these up: the connection's own signs of life end them.
    let (one, other) = (rig.call("one"), rig.call("other"));
    let (one, other) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(one, other) })
        .await
        .expect("a silent connection ends its streams");
    assert!(one.is_err() && other.is_err(), "{one:?} {other:?}");
    rig.open.send_replace(Open::Both);
    assert_eq!(rig.call("again").await.as_deref(), Ok("again"));
    assert_eq!(rig.counts().1, 0, "a silent peer is not taken for one without streams");
}

#[tokio::test]
async fn a_connection_that_goes_silent_fails_what_waits_and_another_is_made() {
    tokio::join!(goes_silent(Open::Neither), goes_silent(Open::ToThePeer));
}
