//! Connections that are made to us: over TLS, with or without a certificate, or plainly.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::certificate::{Certificate, Identity};
use super::connect::tune;
use super::doubt::Doubt;
use super::security::Security;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// How many handshakes may be under way; whoever comes then waits in the kernel's queue.
const HANDSHAKES: usize = 64;

/// How long somebody whom we refused may take to read why.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// After an error of accept(2), such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What somebody at the other end showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// There is no TLS here: `insecure = true`, or loopback.
    Plaintext,
    /// Plain HTTP/2, although TLS is wanted here: it gets as far as an answer that says so.
    Unencrypted,
    /// No certificate.
    Nothing,
    /// A certificate of our CA that names nobody, or nobody of this form.
    Nobody,
    /// A certificate of our CA for this one.
    Identity(Identity),
}

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// From where.
    pub address: Option<SocketAddr>,
    /// With which certificate.
    pub presented: Presented,
}

/// A connection that was made to us.
#[derive(Debug)]
pub struct ServerIo {
    stream: Stream,
    peer: Peer,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Doubt),
}

impl Connected for ServerIo {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Accepts connections until the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    security: Option<Arc<Security>>,
) -> ReceiverStream<io::Result<ServerIo>> {
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(accept(listener, security, tell));
    ReceiverStream::new(told)
}

async fn accept(
    listener: TcpListener,
    security: Option<Arc<Security>>,
    tell: mpsc::Sender<io::Result<ServerIo>>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (tcp, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            () = tell.closed() => return,
        };
        let (security, tell) = (security.clone(), tell.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(io) = greet(tcp, address, security).await {
                // The server is gone: so is the connection.
                drop(tell.send(Ok(io)).await);
            }
        });
    }
}

async fn greet(tcp: TcpStream, address: SocketAddr, security: Option<Arc<Security>>) -> Option<ServerIo> {
    // One that is closed already cannot be tuned.
    tune(&tcp).ok()?;
    let address = Some(address);
    let Some(security) = security else {
        let peer = Peer { address, presented: Presented::Plaintext };
        return Some(ServerIo { stream: Stream::Plain(tcp), peer });
    };
    if plain_http(&tcp).await? {
        let peer = Peer { address, presented: Presented::Unencrypted };
        return Some(ServerIo { stream: Stream::Plain(tcp), peer });
    }
    let changes = security.changes();
    let handshake = TlsAcceptor::from(security.server()).accept(tcp).into_fallible();
    match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok(tls)) => {
            security.shook_hands();
            let peer = Peer { address, presented: presented(&tls) };
            let doubt = Doubt::about(&security, changes, tls.get_ref().1.peer_certificates());
            Some(ServerIo { stream: Stream::Tls(Box::new(tls), doubt), peer })
        }
        Ok(Err((error, tcp))) => {
            tracing::info!(?address, %error, "refused a connection");
            drain(tcp).await;
            None
        }
        Err(_late) => None,
    }
}

/// Looks at the first bytes: those of HTTP/2 (RFC 9113, 3.4) are no TLS record. None: it says nothing.
async fn plain_http(tcp: &TcpStream) -> Option<bool> {
    let mut first = [0_u8; 3];
    let read = tokio::time::timeout(HANDSHAKE_LIMIT, tcp.peek(&mut first)).await.ok()?.ok()?;
    (read > 0).then(|| first == *b"PRI")
}

/// A socket that is closed with something unread resets the connection, and the alert that says why
/// may be lost with it.
async fn drain(mut tcp: TcpStream) {
    let rest = async {
        let mut bytes = [0_u8; 512];
        tcp.shutdown().await?;
        while tcp.read(&mut bytes).await? > 0 {}
        io::Result::Ok(())
    };
    // However that ends, the socket is closed then.
    drop(tokio::time::timeout(DRAIN_LIMIT, rest).await);
}

fn presented(tls: &TlsStream<TcpStream>) -> Presented {
    let Some(der) = tls.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Presented::Nothing;
    };
    match Certificate::read(der).ok().and_then(|certificate| certificate.identity) {
        Some(identity) => Presented::Identity(identity),
        None => Presented::Nobody,
    }
}

impl AsyncRead for ServerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls, doubt) => {
                doubt.poll(cx)?;
                Pin::new(tls.as_mut()).poll_read(cx, buf)
            }
        }
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stream::Tls(tls, _) => Pin::new(tls.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls, _) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls, _) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
