//! Passes cancel requests on.
//!
//! A cancel request is a connection of its own and names a session by a number and a key that only its server knows.
//! Through `rw` it goes to the primary, where all sessions of that port are. Through `ro` and `any` it goes to every
//! server that a session may be on: the others find no such session and do nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::context::{Context, Target};
use super::counters::add;
use super::opening::connect;
use super::route::{Port, Use};

/// How long a server may take to hear a cancel request.
const LIMIT: Duration = Duration::from_secs(5);

/// Passes a cancel request on, and returns when the servers have heard it.
pub(super) async fn pass_on(context: &Arc<Context>, port: Port, packet: &[u8]) {
    let survey = context.survey();
    let wanted = |usable| match usable {
        Use::Primary => survey.informed,
        Use::Standby { .. } => port != Port::Rw,
        Use::None => false,
    };
    let servers = survey.servers.iter().filter(|server| wanted(server.usable));
    let targets: Vec<Target> =
        servers.filter_map(|server| context.target(server.node, survey.epoch)).collect();
    add(&context.counters(port).cancels, 1);
    join_all(targets.iter().map(|target| timeout(LIMIT, tell(target, packet)))).await;
}

/// The server closes the connection when it has done what it can.
async fn tell(target: &Target, packet: &[u8]) {
    let Some(mut server) = connect(&target.address).await else { return };
    if server.write_all(packet).await.is_ok() {
        let mut nothing = Vec::new();
        server.read_to_end(&mut nothing).await.ok();
    }
}
