//! Listens on the ports, holds to the limits, and cuts what a change of epoch ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rhone_consensus::ids::Epoch;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::context::Context;
use super::counters::{Gauge, add};
use super::lanes::Lanes;
use super::opening::{Failure, first_packet, open};
use super::packet::{First, Refusal, classify, error_response};
use super::relay::{End, Terms, relay};
use super::route::{Open, Port};
use super::{cancel, lanes, socket};
use crate::runtime::local::Local;
use crate::runtime::shared::Shared;

/// How long a client may take for its first packet: one that connects and says nothing holds a place.
const FIRST_PACKET_LIMIT: Duration = Duration::from_secs(10);

/// How long one beyond the limit may take, and how many of these are told why at the same time.
const COURTESY_LIMIT: Duration = Duration::from_secs(1);
const COURTESIES: usize = 64;

/// After an `accept` that failed, for want of a file descriptor most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TOO_MANY: Refusal = Refusal {
    code: "53300",
    message: "the proxy has too many connections already",
    hint: "[proxy] max-connections is the limit of each member.",
};

/// Opens the configured ports; without any does nothing.
///
/// # Errors
/// A port cannot be listened on, or the thread cannot be started.
pub async fn start(shared: &Arc<Shared>, local: Option<&Arc<Local>>) -> anyhow::Result<()> {
    let settings = shared.config.proxy.clone();
    let mut listeners = Vec::new();
    for port in Port::ALL {
        let Some(address) = settings.address(port) else { continue };
        let listener = TcpListener::bind((address.host.as_str(), address.port));
        let listener = listener.await.with_context(|| format!("listen on {address} (proxy.{port})"))?;
        listeners.push((port, listener.into_std().context("take a listener to the proxy's thread")?));
    }
    if listeners.is_empty() {
        return Ok(());
    }
    socket::raise_file_limit(usize::try_from(settings.max_connections).unwrap_or(usize::MAX));
    let context = Arc::new(Context::new(Arc::clone(shared), local.cloned(), settings));
    let runtime = lanes::runtime().context("make the proxy's runtime")?;
    std::thread::Builder::new()
        .name(lanes::NAME.to_owned())
        .spawn(move || runtime.block_on(serve(context, listeners)))
        .context("start the proxy's thread")?;
    Ok(())
}

async fn serve(context: Arc<Context>, listeners: Vec<(Port, std::net::TcpListener)>) {
    let limit = usize::try_from(context.settings.max_connections).unwrap_or(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    let courtesies = Arc::new(Semaphore::new(COURTESIES));
    let lanes = Arc::new(Mutex::new(Lanes::new()));
    for (port, listener) in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                let (places, courtesies) = (Arc::clone(&places), Arc::clone(&courtesies));
                let (context, lanes) = (Arc::clone(&context), Arc::clone(&lanes));
                tokio::spawn(accept(context, port, listener, lanes, places, courtesies));
            }
            Err(error) => tracing::error!(%error, port = port.name(), "the proxy port is not served"),
        }
    }
    cut_at_changes(&context).await;
}

/// Cuts connections at each change of the epoch; the only thing that wakes an idle proxy.
async fn cut_at_changes(context: &Arc<Context>) {
    let mut state = context.shared.consensus.state();
    let mut epoch = Epoch(0);
    loop {
        let now = state.borrow_and_update().state.epoch;
        if now != epoch {
            warn_of_trust(context, epoch == Epoch(0));
            epoch = now;
            let connections = context.cut();
            if connections > 0 {
                tracing::info!(%epoch, connections, "cut connections of an epoch that is over");
            }
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Says once that a line of pg_hba lets members in without a password, and so whoever reaches a proxy port.
fn warn_of_trust(context: &Context, first: bool) {
    let applied = Arc::clone(&context.shared.consensus.state().borrow());
    let trusts = |line: &&String| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|kind| kind.starts_with("host")) && words.any(|word| word == "trust")
    };
    if let Some(line) = applied.state.settings.pg_hba.iter().find(trusts).filter(|_| first) {
        tracing::warn!(
            line,
            "pg_hba trusts addresses: through a proxy port every client has a member's address"
        );
    }
}

async fn accept(
    context: Arc<Context>,
    port: Port,
    listener: TcpListener,
    lanes: Arc<Mutex<Lanes>>,
    places: Arc<Semaphore>,
    courtesies: Arc<Semaphore>,
) {
    let mut complained = false;
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                if !complained {
                    complained = true;
                    tracing::warn!(%error, port = port.name(), "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        add(&context.counters(port).accepted, 1);
        if socket::prepare_client(&client).is_err() {
            continue;
        }
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (tell, told) = oneshot::channel();
            let context = Arc::clone(&context);
            let session = move |client| session(context, port, client, place, told);
            let served = lanes.lock().unwrap_or_else(PoisonError::into_inner).serve(client, session);
            // The task waits for this when it needs it.
            match served {
                Ok(abort) => drop(tell.send(abort)),
                Err(error) => tracing::warn!(%error, port = port.name(), "cannot serve a connection"),
            }
        } else {
            add(&context.counters(port).refused_limit, 1);
            if let Ok(courtesy) = Arc::clone(&courtesies).try_acquire_owned() {
                tokio::spawn(turn_away(client, courtesy));
            }
        }
    }
}

/// Tells a client beyond the limit why it is turned away.
async fn turn_away(mut client: TcpStream, _courtesy: OwnedSemaphorePermit) {
    if let Ok(Some(packet)) = timeout(COURTESY_LIMIT, first_packet(&mut client)).await {
        refuse(&mut client, &packet, TOO_MANY).await;
    }
}

/// Sends an error where the client can take one: its packet is one that a server answers in the clear.
async fn refuse(client: &mut TcpStream, packet: &[u8], refusal: Refusal) {
    match classify(packet) {
        First::Negotiation | First::Startup => {
            let told = timeout(COURTESY_LIMIT, client.write_all(&error_response(refusal))).await;
            if told.is_ok_and(|told| told.is_ok()) {
                socket::in_order(client);
            }
        }
        First::Incomplete | First::Cancel | First::Other => {}
    }
}

/// One connection from its first packet to its end.
async fn session(
    context: Arc<Context>,
    port: Port,
    mut client: TcpStream,
    _place: OwnedSemaphorePermit,
    abort: oneshot::Receiver<AbortHandle>,
) {
    let counters = context.counters(port);
    let Ok(Some(packet)) = timeout(FIRST_PACKET_LIMIT, first_packet(&mut client)).await else {
        add(&counters.mute, 1);
        return;
    };
    if classify(&packet) == First::Cancel {
        cancel::pass_on(&context, port, &packet).await;
        socket::in_order(&client);
        return;
    }
    let waiting = Gauge::up(&counters.waiting);
    // Boxed: what it takes to open a connection is not kept while it is open.
    let opened = Box::pin(open(&context, port, &mut client, packet.clone())).await;
    drop(waiting);
    let (mut server, target, occupied) = match opened {
        Ok(opened) => opened,
        Err(Failure::Refused(refusal)) => {
            let waited_in_vain = refusal.code == "57P03";
            let counter = if waited_in_vain { &counters.refused_wait } else { &counters.refused_limit };
            add(counter, 1);
            refuse(&mut client, &packet, refusal).await;
            return;
        }
        Err(Failure::Gone) => return,
    };
    drop(packet);
    add(&counters.established, 1);
    let open = Open { port, node: target.node, epoch: target.epoch };
    let Ok(abort) = abort.await else { return };
    let Some(registered) = context.register(open, abort) else {
        add(&counters.cut, 1);
        return;
    };
    let gauge = Gauge::up(&counters.open);
    let terms = Terms {
        bytes_in: &counters.bytes_in,
        bytes_out: &counters.bytes_out,
        idle: context.settings.idle_timeout,
    };
    let ended = relay(&mut client, &mut server, terms).await;
    if matches!(ended, End::Idle) {
        add(&counters.idled, 1);
    }
    end(ended, &client, &server);
    drop((registered, gauge, occupied));
}

/// A side that failed is reset on the other, except that a client gets what the server said last.
fn end(end: End, client: &TcpStream, server: &TcpStream) {
    match end {
        End::Closed => {
            socket::in_order(client);
            socket::in_order(server);
        }
        End::Server(error) => {
            tracing::debug!(%error, "the server's side failed");
            socket::in_order(client);
        }
        End::Client(error) => tracing::debug!(%error, "the client's side failed"),
        End::Idle => tracing::debug!("nothing passed for too long"),
    }
}
