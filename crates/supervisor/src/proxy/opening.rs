//! From a client's first packet to a server that has answered it.
//!
//! Until then nothing is lost by another try: what the client said is kept and said again to the next server. A
//! server that does not answer, is gone, or says that it starts or shuts down is left for the next one; while there
//! is none the client waits.

use std::collections::BTreeSet;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use super::context::{Context, Occupied, Target};
use super::counters::add;
use super::packet::{First, Refusal, STARTUP_MAX, classify, means_not_now};
use super::route::{Port, Route};
use super::socket;
use crate::config::Address;
use crate::runtime::clock::{BootTime, Clock};

/// How long a server may take to accept a connection: a LAN answers in milliseconds, a lost SYN is sent again after
/// a second.
const CONNECT_LIMIT: Duration = Duration::from_millis(1500);

/// How long a server that accepted may take for its first answer, unless the wait is longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A waiting connection looks again this often when nothing is heard.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After a server failed it is tried again this much later.
const AGAIN: Duration = Duration::from_millis(100);

/// A connection that a server ended without a word is tried so often.
const SILENT_ENDS: u32 = 3;

/// Why a connection gets no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The client is told this.
    Refused(Refusal),
    /// The client is gone.
    Gone,
}

const TOO_MANY_WAIT: Refusal = Refusal {
    code: "53300",
    message: "too many connections wait for a server",
    hint: "\"rhone status\" shows what they wait for; [proxy] max-waiting is the limit.",
};

const NO_SERVER: Refusal = Refusal {
    code: "57P03",
    message: "no server took this connection within the proxy's wait",
    hint: "\"rhone status\" shows what keeps the cluster from it; connect again.",
};

/// What one try came to.
enum Try {
    /// The server's answer.
    Answer(TcpStream, Vec<u8>),
    /// Another try may do better.
    Failed,
    /// The server ended the connection without a word.
    Silent,
}

/// A connection that is being opened.
struct Opening<'a> {
    context: &'a Arc<Context>,
    port: Port,
    client: &'a mut TcpStream,
    /// Requests for encryption that a server has declined.
    declined: Vec<Vec<u8>>,
    /// What waits for its answer.
    packet: Vec<u8>,
    failed: BTreeSet<NodeId>,
    silent: u32,
    /// When the waiting began, and its end.
    since: Option<BootTime>,
    limit: Option<Pin<Box<Sleep>>>,
}

/// Opens a connection: returns the server, and what it is.
pub(super) async fn open(
    context: &Arc<Context>,
    port: Port,
    client: &mut TcpStream,
    packet: Vec<u8>,
) -> Result<(TcpStream, Target, Occupied), Failure> {
    let mut opening = Opening {
        context,
        port,
        client,
        declined: Vec::new(),
        packet,
        failed: BTreeSet::new(),
        silent: 0,
        since: None,
        limit: None,
    };
    let opened = opening.run().await?;
    if let Some(since) = opening.since {
        let waited = Clock.now().saturating_since(since);
        add(&context.counters(port).waited, 1);
        add(&context.counters(port).waited_us, u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }
    Ok(opened)
}

impl Opening<'_> {
    async fn run(&mut self) -> Result<(TcpStream, Target, Occupied), Failure> {
        loop {
            let target = self.choose().await?;
            let occupied = self.context.occupy(target.node);
            let mut known = None;
            let answered = loop {
                let Some((server, answer)) = self.attempt(&target, known.take()).await? else { break None };
                // Declined: the client goes on in the clear, and what it says next is kept as well.
                let declined = classify(&self.packet) == First::Negotiation && answer == b"N";
                self.client.write_all(&answer).await.map_err(|_| Failure::Gone)?;
                if !declined {
                    break Some(server);
                }
                let next = first_packet(self.client).await.ok_or(Failure::Gone)?;
                self.declined.push(std::mem::replace(&mut self.packet, next));
                known = Some(server);
            };
            if let Some(server) = answered {
                return Ok((server, target, occupied));
            }
            add(&self.context.counters(self.port).failed, 1);
            self.failed.insert(target.node);
        }
    }

    /// Chooses a server; waits where there is none.
    async fn choose(&mut self) -> Result<Target, Failure> {
        let shared = &self.context.shared;
        let mut state = shared.consensus.state();
        let mut table = shared.table.subscribe();
        let mut own = shared.own.subscribe();
        loop {
            let (chosen, target) = self.context.route(self.port, &self.failed);
            let wait = self.context.settings.wait;
            // A primary that hands over is taken all the same when its successor takes too long.
            let held = self.since.is_some_and(|since| Clock.now().saturating_since(since) > wait / 2);
            if let Some(target) = target.filter(|_| held || !matches!(chosen, Route::Hold(_))) {
                return Ok(target);
            }
            self.begin_to_wait(wait)?;
            let pause = if self.failed.is_empty() { LOOK_EVERY } else { AGAIN };
            let Some(limit) = self.limit.as_mut() else { return Err(Failure::Refused(NO_SERVER)) };
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| Failure::Gone)?,
                changed = table.changed() => changed.map_err(|_| Failure::Gone)?,
                changed = own.changed() => changed.map_err(|_| Failure::Gone)?,
                () = sleep(pause) => self.failed.clear(),
                () = gone(self.client) => return Err(Failure::Gone),
                () = limit => return Err(Failure::Refused(NO_SERVER)),
            }
        }
    }

    fn begin_to_wait(&mut self, wait: Duration) -> Result<(), Failure> {
        if self.limit.is_some() {
            return Ok(());
        }
        let waiting = self.context.waiting();
        if waiting > u64::from(self.context.settings.max_waiting) {
            return Err(Failure::Refused(TOO_MANY_WAIT));
        }
        self.since = Some(Clock.now());
        self.limit = Some(Box::pin(sleep(wait)));
        Ok(())
    }

    /// Tries one server; nothing when another try is to be made.
    async fn attempt(
        &mut self,
        target: &Target,
        known: Option<TcpStream>,
    ) -> Result<Option<(TcpStream, Vec<u8>)>, Failure> {
        let limit = ANSWER_LIMIT.max(self.context.settings.wait);
        let mut state = self.context.shared.consensus.state();
        let context = self.context;
        let over = state.wait_for(|applied| applied.state.epoch != target.epoch);
        let tried = tokio::select! {
            tried = ask(&target.address, known, &self.declined, &self.packet) => tried,
            // Whoever it was is not the primary any more, or does not answer because it is frozen.
            _ = over => Try::Failed,
            () = gone(self.client) => return Err(Failure::Gone),
            () = sleep(limit) => return Err(Failure::Refused(NO_SERVER)),
        };
        match tried {
            Try::Answer(_, answer) if means_not_now(&answer) => Ok(None),
            Try::Answer(server, answer) if context.current(target) => Ok(Some((server, answer))),
            Try::Answer(..) | Try::Failed => Ok(None),
            Try::Silent => {
                self.silent += 1;
                // What no server understands is not said again and again.
                let again = self.silent < SILENT_ENDS && classify(&self.packet) != First::Other;
                if again { Ok(None) } else { Err(Failure::Gone) }
            }
        }
    }
}

/// Says to a server what the client said, and returns its answer.
async fn ask(address: &Address, known: Option<TcpStream>, declined: &[Vec<u8>], packet: &[u8]) -> Try {
    let mut server = match known {
        Some(server) => server,
        None => match reach(address, declined).await {
            Some(server) => server,
            None => return Try::Failed,
        },
    };
    if server.write_all(packet).await.is_err() {
        return Try::Failed;
    }
    let mut answer = Vec::with_capacity(1024);
    match server.read_buf(&mut answer).await {
        Ok(0) => Try::Silent,
        Ok(_) => Try::Answer(server, answer),
        Err(_) => Try::Failed,
    }
}

/// Connects, and repeats the requests that another server has declined: this one has to decline them too.
async fn reach(address: &Address, declined: &[Vec<u8>]) -> Option<TcpStream> {
    let mut server = connect(address).await?;
    for request in declined {
        server.write_all(request).await.ok()?;
        let mut answer = [0];
        let count = server.read(&mut answer).await.ok()?;
        if count != 1 || answer != *b"N" {
            return None;
        }
    }
    Some(server)
}

/// Connects to a server within the limit.
pub(super) async fn connect(address: &Address) -> Option<TcpStream> {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let server = timeout(CONNECT_LIMIT, connecting).await.ok()?.ok()?;
    socket::prepare_server(&server).ok()?;
    Some(server)
}

/// Reads the client's next packet; nothing when it ends before that.
pub(super) async fn first_packet(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(512);
    loop {
        match classify(&packet) {
            First::Incomplete => {}
            First::Negotiation | First::Cancel | First::Startup | First::Other => return Some(packet),
        }
        if packet.len() > STARTUP_MAX {
            return Some(packet);
        }
        match client.read_buf(&mut packet).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Waits until the client is gone. One that talks out of turn is not.
async fn gone(client: &TcpStream) {
    match client.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        Ok(_) => pending().await,
    }
}
