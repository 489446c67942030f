//! The network between supervisors: calls with a delay each way, cut and lossy links.
//!
//! What travels is gRPC's own requests and answers, without HTTP/2 beneath: a call is answered at
//! most once, and is never carried twice, as over TCP. A lost packet shows as a delay; what a cut
//! swallows is noticed when the connection is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhone_consensus::transport::{Answer, Calls, Connector, Wire};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};

use crate::random::Random;

/// After how long a connection into nowhere is given up (RUST.md 4: keepalive 1 s + 1 s).
const GIVEN_UP_NS: u64 = 2_000_000_000;

/// The first member's port; member `n` listens on this plus `n`.
pub const FIRST_PORT: usize = 7400;

/// What travels.
#[derive(Debug)]
pub enum Parcel {
    /// A call to be served.
    Call(Request<Body>, oneshot::Sender<Response<Body>>),
    /// An answer to be handed over.
    Answer(Response<Body>, oneshot::Sender<Response<Body>>),
    /// Held until the caller gives up.
    Lost(#[allow(dead_code, reason = "dropped when its time comes")] Option<oneshot::Sender<Response<Body>>>),
}

/// A parcel, from whom and for whom.
#[derive(Debug)]
pub struct Packet {
    /// Who sent it.
    pub from: usize,
    /// Who gets it.
    pub to: usize,
    /// What.
    pub parcel: Parcel,
}

/// How a link behaves.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The shortest delay, in microseconds.
    pub least_us: u64,
    /// The longest that is usual.
    pub most_us: u64,
    /// How many of a thousand packets have to be sent again.
    pub loss: u64,
}

#[derive(Debug)]
struct Inner {
    now: u64,
    next: u64,
    sent: u64,
    hash: u64,
    queue: BTreeMap<(u64, u64), Packet>,
    cut: BTreeSet<(usize, usize)>,
    link: Link,
    random: Random,
}

/// The network.
#[derive(Debug)]
pub struct Net(Mutex<Inner>);

impl Net {
    /// Makes one where everybody reaches everybody.
    pub fn new(random: Random) -> Self {
        let link = Link { least_us: 100, most_us: 800, loss: 0 };
        Self(Mutex::new(Inner {
            now: 0,
            next: 0,
            sent: 0,
            hash: 0,
            queue: BTreeMap::new(),
            cut: BTreeSet::new(),
            link,
            random,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what time it is in truth.
    pub fn set_now(&self, now: u64) {
        self.lock().now = now;
    }

    /// Sets how all links behave.
    pub fn set_link(&self, link: Link) {
        self.lock().link = link;
    }

    /// Cuts the way from one to another.
    pub fn cut(&self, from: usize, to: usize) {
        self.lock().cut.insert((from, to));
    }

    /// Joins the way again.
    pub fn join(&self, from: usize, to: usize) {
        self.lock().cut.remove(&(from, to));
    }

    /// Returns whether something sent there arrives.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !self.lock().cut.contains(&(from, to))
    }

    /// Returns whether a connection between the two works.
    pub fn linked(&self, a: usize, b: usize) -> bool {
        self.reaches(a, b) && self.reaches(b, a)
    }

    /// Sends a parcel.
    pub fn send(&self, from: usize, to: usize, parcel: Parcel) {
        let mut inner = self.lock();
        let Link { least_us, most_us, loss } = inner.link;
        let mut delay = inner.random.between(least_us, most_us.max(least_us + 1)) * 1000;
        while loss > 0 && inner.random.permille(loss) && delay < GIVEN_UP_NS {
            delay += inner.random.between(200, 400) * 1_000_000;
        }
        let due = inner.now + delay;
        inner.sent += 1;
        inner.put(due, Packet { from, to, parcel });
    }

    /// Returns the hash of all that was ever under way: who to whom, in which order, due when.
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// Returns how many parcels were ever sent.
    pub fn sent(&self) -> u64 {
        self.lock().sent
    }

    /// Puts a packet back, for a member that does not run now.
    pub fn later(&self, packet: Packet) {
        let mut inner = self.lock();
        let due = inner.now + 10_000_000;
        inner.put(due, packet);
    }

    /// Returns the next packet that has arrived.
    pub fn arrived(&self) -> Option<Packet> {
        let mut inner = self.lock();
        loop {
            let now = inner.now;
            let entry = inner.queue.first_entry().filter(|entry| entry.key().0 <= now)?;
            let packet = entry.remove();
            if matches!(packet.parcel, Parcel::Lost(_)) {
                continue;
            }
            if packet.from != packet.to && inner.cut.contains(&(packet.from, packet.to)) {
                let waiting = match packet.parcel {
                    Parcel::Call(_, reply) | Parcel::Answer(_, reply) => Some(reply),
                    Parcel::Lost(reply) => reply,
                };
                let parcel = Parcel::Lost(waiting);
                inner.put(now + GIVEN_UP_NS, Packet { parcel, ..packet });
                continue;
            }
            return Some(packet);
        }
    }
}

impl Inner {
    fn put(&mut self, due: u64, packet: Packet) {
        self.next += 1;
        for word in [due, packet.from as u64, packet.to as u64] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(7);
        }
        let key = (due, self.next);
        self.queue.insert(key, packet);
    }
}

/// Makes a member's connections over the network.
#[derive(Clone, Debug)]
pub struct Cable {
    /// The network.
    pub net: Arc<Net>,
    /// Whose connections.
    pub from: usize,
}

impl Connector for Cable {
    fn channel(&self, addr: &str) -> Result<Wire, String> {
        let port: Option<usize> = addr.rsplit(':').next().and_then(|port| port.parse().ok());
        let to = port.and_then(|port| port.checked_sub(FIRST_PORT));
        let to = to.ok_or_else(|| format!("`{addr}` is nobody's address"))?;
        Ok(Wire::Calls(Arc::new(Way { net: Arc::clone(&self.net), from: self.from, to })))
    }
}

#[derive(Debug)]
struct Way {
    net: Arc<Net>,
    from: usize,
    to: usize,
}

impl Calls for Way {
    fn call(&self, request: Request<Body>) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.net.send(self.from, self.to, Parcel::Call(request, reply));
        Box::pin(async move { answer.await.map_err(|_| "the connection is lost".into()) })
    }
}
