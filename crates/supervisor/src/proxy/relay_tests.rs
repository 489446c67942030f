//! The relay between real sockets on loopback.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A pair of connected sockets.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("an address");
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    (one.expect("connect"), other.expect("accept").0)
}

struct Through {
    client: TcpStream,
    server: TcpStream,
    relay: tokio::task::JoinHandle<(End, u64, u64)>,
}

/// A client and a server with a relay between them.
async fn through(idle: Option<Duration>) -> Through {
    let ((client, mut near), (mut far, server)) = (pair().await, pair().await);
    socket::prepare_client(&near).expect("options");
    socket::prepare_server(&far).expect("options");
    let relay = tokio::spawn(async move {
        let (bytes_in, bytes_out) = (AtomicU64::new(0), AtomicU64::new(0));
        let terms = Terms { bytes_in: &bytes_in, bytes_out: &bytes_out, idle };
        let end = relay(&mut near, &mut far, terms).await;
        if matches!(end, End::Closed) {
            socket::in_order(&near);
            socket::in_order(&far);
        }
        (end, bytes_in.load(Ordering::Relaxed), bytes_out.load(Ordering::Relaxed))
    });
    Through { client, server, relay }
}

fn bytes(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 24) as u8
    };
    (0..count).map(|_| next(&mut state)).collect()
}

#[tokio::test]
async fn bytes_pass_unchanged_both_ways_though_nobody_reads_for_a_while() {
    let Through { client, server, relay } = through(None).await;
    let (up, down) = (bytes(1, 9_000_001), bytes(2, 7_000_003));
    let side = |mut stream: TcpStream, out: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.split();
        let write = async {
            // The whole of it is written before anything is read: the kernel's buffers fill, and the relay waits.
            writer.write_all(&out[..4_000_000.min(out.len())]).await.expect("write");
            tokio::task::yield_now().await;
            writer.write_all(&out[4_000_000.min(out.len())..]).await.expect("write");
            writer.shutdown().await.expect("end");
        };
        let mut got = Vec::new();
        let read = async {
            let mut chunk = vec![0; 1000];
            loop {
                match reader.read(&mut chunk).await.expect("read") {
                    0 => break,
                    count => got.extend_from_slice(&chunk[..count]),
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(write, read);
        got
    };
    let (at_client, at_server) = tokio::join!(side(client, up.clone()), side(server, down.clone()));
    assert!(at_server == up, "client to server");
    assert!(at_client == down, "server to client");
    let (end, bytes_in, bytes_out) = relay.await.expect("the relay");
    assert!(matches!(end, End::Closed), "{end:?}");
    assert_eq!((bytes_in, bytes_out), (9_000_001, 7_000_003));
}

#[tokio::test]
async fn one_side_may_end_and_still_be_answered() {
    let Through { mut client, mut server, relay } = through(None).await;
    client.write_all(b"question").await.expect("write");
    client.shutdown().await.expect("end");
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.expect("read");
    assert_eq!(heard, b"question");
    server.write_all(b"answer").await.expect("write");
    drop(server);
    heard.clear();
    client.read_to_end(&mut heard).await.expect("read");
    assert_eq!(heard, b"answer");
    assert!(matches!(relay.await.expect("the relay").0, End::Closed));
}

#[tokio::test]
async fn a_cut_resets_both_sides() {
    let Through { mut client, mut server, relay } = through(None).await;
    client.write_all(b"x").await.expect("write");
    server.read_exact(&mut [0]).await.expect("read");
    relay.abort();
    for side in [&mut client, &mut server] {
        let error = side.read(&mut [0]).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_server_that_resets_ends_the_relay() {
    let Through { mut client, server, relay } = through(None).await;
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).expect("linger");
    drop(server);
    let (end, ..) = relay.await.expect("the relay");
    assert!(matches!(end, End::Server(_)), "{end:?}");
    assert!(client.read(&mut [0]).await.map_or(true, |count| count == 0));
}

#[tokio::test]
async fn an_idle_connection_ends_where_that_is_asked_for() {
    let Through { client, server, relay } = through(Some(Duration::from_millis(50))).await;
    let (end, ..) = relay.await.expect("the relay");
    assert!(matches!(end, End::Idle), "{end:?}");
    drop((client, server));
}
