use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

/// Serves as many connections as `count` on at most `most` threads; returns how many each thread got.
async fn served(most: usize, count: usize) -> Vec<usize> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut lanes = Lanes { most, ..Lanes::new() };
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let tell = tell.clone();
        lanes
            .serve(server, move |mut server| async move {
                tell.send(thread::current().id()).ok();
                let byte = server.read_u8().await.unwrap();
                server.write_u8(byte).await.unwrap();
                // Until its client has gone.
                server.read_u8().await.unwrap_err();
            })
            .unwrap();
        client.write_u8(7).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 7);
        clients.push(client);
    }
    drop(tell);
    let loads: Vec<usize> = lanes.lanes.iter().map(|lane| lane.load.load(Ordering::Relaxed)).collect();
    drop(clients);
    let mut threads = std::collections::BTreeMap::<_, usize>::new();
    // Ends when all sessions have: each holds a sender.
    while let Some(thread) = told.recv().await {
        *threads.entry(format!("{thread:?}")).or_default() += 1;
    }
    assert_eq!(threads.len(), loads.len(), "{threads:?}");
    loads
}

#[tokio::test]
async fn connections_are_spread_evenly_over_threads_that_start_when_needed() {
    assert_eq!(served(3, 1).await, [1]);
    assert_eq!(served(3, 7).await, [3, 2, 2]);
    assert_eq!(served(1, 3).await, [3]);
}
