//! The primary's half of the lease: renews it with the voters and writes the guardian's page (docs/safety.md 3).
//!
//! A thread of its own with its own runtime and its own connections, so that nothing the rest of
//! the supervisor does can hold it up. It touches no disk. A renewal counts from its *sending*, and
//! only when a majority of every set of voters granted that very one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rhone_consensus::ids::{Epoch, LogIndex, NodeId};
use rhone_consensus::settings::Timing;
use rhone_consensus::transport::{Lane, Wire};
use rhone_pgctl::wal::Lsn;
use tokio::sync::watch;

use crate::api::proto::v1::agent_client::AgentClient;
use crate::api::proto::v1::{RenewReply, RenewRequest};
use crate::decide::lease::Rounds;
use crate::guardian::SharedPage;
use crate::mutant::{Rule, left_out};
use crate::runtime::clock::{BootTime, Timepiece};
use crate::runtime::counts::Renewals;
use crate::runtime::shared::moment;
use crate::runtime::ticker::Ticker;
use crate::runtime::voter::{RenewRefusal, VoterLease};
use crate::tls::Dialer;
use crate::view::Moment;
use rhone_consensus::proto::Identity;

/// A guardian that has not run for this long is taken for dead: nobody may be primary without one.
/// It stamps its page every 200 ms, and every 500 ms while no lease is needed.
pub const GUARDIAN_SILENT: Duration = Duration::from_secs(1);

/// A node's loop that has not gone round for this long hangs, on a disk most likely (docs/safety.md 9, `T_stall`).
const LOOP_SILENT: Duration = Duration::from_secs(5);

/// How many renewals to one voter may be unanswered; more would only queue behind a dead peer.
const IN_FLIGHT_MAX: usize = 4;

/// How many renewals are waited for to be counted; an answer to an older one counts for nothing either.
const OPEN_MAX: usize = 64;

/// What is to be renewed, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTarget {
    /// The epoch that this member owns.
    pub epoch: Epoch,
    /// What the lease is counted by.
    pub timing: Timing,
    /// The change of the timings that this takes into account; none: perhaps not the newest that it knew.
    pub timing_version: Option<LogIndex>,
    /// The voters: one set, two in a joint configuration.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// The log index of that membership.
    pub membership: LogIndex,
    /// Where the voters are.
    pub addresses: BTreeMap<NodeId, String>,
    /// This member.
    pub me: NodeId,
    /// Who is calling.
    pub identity: Identity,
}

/// What became of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The epoch that was renewed last.
    pub epoch: Epoch,
    /// Until when, by that renewal, the primary may serve.
    pub until: BootTime,
    /// When that renewal was sent.
    pub sent: BootTime,
    /// The change of the timings by which that lasts; none: perhaps not the newest that was known.
    pub timing_version: Option<LogIndex>,
    /// A higher epoch that a voter holds: this one is over.
    pub superseded: Option<Epoch>,
}

impl LeaseStatus {
    /// Returns whether the lease of `epoch` is live.
    pub fn live(&self, epoch: Epoch, now: BootTime) -> bool {
        self.epoch == epoch && self.until > now
    }
}

/// The supervisor's handle on the thread.
#[derive(Clone, Debug)]
pub struct Lease {
    target: watch::Sender<Option<LeaseTarget>>,
    status: watch::Receiver<LeaseStatus>,
    flushed: Arc<AtomicU64>,
    resting: watch::Receiver<bool>,
    loop_alive: Arc<AtomicU64>,
    renewals: Arc<Renewals>,
}

impl Lease {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        page: SharedPage,
        voter: Arc<VoterLease>,
        clock: impl Into<Timepiece>,
        dialer: Dialer,
    ) -> std::io::Result<Self> {
        let (lease, renewer, targets) = Self::prepare(page, voter, clock.into(), dialer);
        // The runtime is built first, so that a failure is the caller's to handle.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("lease".to_owned()).stack_size(512 * 1024).spawn(move || {
            raise_priority();
            runtime.block_on(renewer.run(targets));
        })?;
        Ok(lease)
    }

    /// Starts the same as a task of the caller's runtime, for the simulation.
    pub fn start_task(page: SharedPage, voter: Arc<VoterLease>, clock: Timepiece, dialer: Dialer) -> Self {
        let (lease, renewer, targets) = Self::prepare(page, voter, clock, dialer);
        tokio::spawn(renewer.run(targets));
        lease
    }

    fn prepare(
        page: SharedPage,
        voter: Arc<VoterLease>,
        clock: Timepiece,
        dialer: Dialer,
    ) -> (Self, Renewer, watch::Receiver<Option<LeaseTarget>>) {
        let target = watch::Sender::new(None);
        let (tell, status) = watch::channel(LeaseStatus::default());
        let flushed = Arc::new(AtomicU64::new(0));
        let (rest, resting) = watch::channel(true);
        let loop_alive = Arc::new(AtomicU64::new(clock.now().as_nanos()));
        let renewals = Arc::<Renewals>::default();
        let context = Context {
            page,
            voter,
            clock,
            dialer,
            flushed: Arc::clone(&flushed),
            loop_alive: Arc::clone(&loop_alive),
            renewals: Arc::clone(&renewals),
            tell,
            rest,
        };
        let targets = target.subscribe();
        let lease = Self { target, status, flushed, resting, loop_alive, renewals };
        (lease, Renewer::new(context), targets)
    }

    /// Says what is to be renewed from now on; nothing ends the renewing, and the lease with it.
    pub fn set_target(&self, target: Option<LeaseTarget>) {
        self.target.send_if_modified(|current| {
            let changed = *current != target;
            if changed {
                *current = target;
            }
            changed
        });
    }

    /// Waits until the thread has taken note that nothing is to be renewed: from then on it writes
    /// nothing to the guardian's page.
    pub async fn quiet(&self) {
        let mut resting = self.resting.clone();
        // The thread ends only with the process.
        drop(resting.wait_for(|resting| *resting || self.target.borrow().is_some()).await);
    }

    /// Returns the epoch that is being renewed.
    pub fn target_epoch(&self) -> Option<Epoch> {
        self.target.borrow().as_ref().map(|target| target.epoch)
    }

    /// Waits until there is something to renew.
    pub async fn wanted(&self) {
        let mut target = self.target.subscribe();
        // This handle is the sender: it cannot be gone.
        drop(target.wait_for(Option::is_some).await);
    }

    /// Tells that the node's loop goes round: a member whose loop hangs lets its lease end.
    pub fn loop_lives(&self, now: BootTime) {
        self.loop_alive.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Tells the end of the flushed WAL, for the next renewal to carry.
    pub fn set_flushed(&self, lsn: Lsn) {
        self.flushed.store(lsn.get(), Ordering::Relaxed);
    }

    /// Returns what became of the renewals.
    pub fn renewals(&self) -> crate::status::figures::Renewals {
        self.renewals.figures()
    }

    /// Returns what became of the lease.
    pub fn status(&self) -> LeaseStatus {
        *self.status.borrow()
    }

    /// Returns a receiver that fires when a lease becomes live, when one ends, and several times while one
    /// of [`Timing::serve_ns`] passes; its value is always the newest.
    pub fn changes(&self) -> watch::Receiver<LeaseStatus> {
        self.status.clone()
    }
}

/// What the thread shares with the rest of the supervisor.
struct Context {
    page: SharedPage,
    voter: Arc<VoterLease>,
    clock: Timepiece,
    dialer: Dialer,
    flushed: Arc<AtomicU64>,
    loop_alive: Arc<AtomicU64>,
    renewals: Arc<Renewals>,
    tell: watch::Sender<LeaseStatus>,
    /// Whether nothing is being renewed.
    rest: watch::Sender<bool>,
}

/// A voter's answer, with who and which renewal it is about.
struct Answer {
    node: NodeId,
    epoch: Epoch,
    seq: u64,
    reply: Option<RenewReply>,
}

struct Peer {
    address: String,
    client: AgentClient<Wire>,
    renewals: Arc<Lane<RenewRequest, RenewReply>>,
    in_flight: usize,
}

type Answers = FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>;

struct Renewer {
    context: Context,
    peers: BTreeMap<NodeId, Peer>,
    answers: Answers,
    rounds: Rounds,
    /// Renewals that no majority has granted yet, with when they were sent.
    open: VecDeque<(u64, BootTime)>,
    seq: u64,
    /// The end of the lease when a change of it was last told.
    noticed: BootTime,
}

impl Renewer {
    fn new(context: Context) -> Self {
        Self {
            context,
            peers: BTreeMap::new(),
            answers: Answers::new(),
            rounds: Rounds::default(),
            open: VecDeque::new(),
            seq: 0,
            noticed: BootTime::ZERO,
        }
    }

    async fn run(mut self, mut targets: watch::Receiver<Option<LeaseTarget>>) {
        loop {
            let Some(target) = targets.borrow_and_update().clone() else {
                // Answers to renewals of an epoch that is over say nothing any more.
                self.rounds.clear();
                self.open.clear();
                self.answers = Answers::new();
                self.peers.clear();
                // A lease that is no longer renewed is nobody's leave to serve any more.
                self.context.tell.send_replace(LeaseStatus::default());
                self.context.rest.send_replace(true);
                if targets.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.context.rest.send_replace(false);
            // Grants given for another epoch or another set of voters do not add up with new ones.
            self.rounds.clear();
            self.open.clear();
            let every = Duration::from_millis(u64::from(target.timing.renewal_ms.max(1)));
            let mut tick = Ticker::every(every, self.context.clock);
            loop {
                // In this order: no answer is counted for a target that is over, and none delays a renewal.
                tokio::select! {
                    biased;
                    changed = targets.changed() => {
                        if changed.is_err() { return; }
                        break;
                    }
                    () = tick.tick() => self.renew(&target),
                    Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                        self.hear(&target, &answer);
                    }
                }
            }
        }
    }

    /// Sends one renewal to every voter.
    fn renew(&mut self, target: &LeaseTarget) {
        let now = self.context.clock.now();
        let looped = BootTime::from_nanos(self.context.loop_alive.load(Ordering::Relaxed));
        if self.context.page.alive_age(now) > GUARDIAN_SILENT || now.saturating_since(looped) > LOOP_SILENT {
            return;
        }
        self.seq += 1;
        let seq = self.seq;
        self.rounds.begin(seq, moment(now));
        self.count_failed(target, now);
        self.open.push_back((seq, now));
        let flushed = Lsn::new(self.context.flushed.load(Ordering::Relaxed));
        let everybody: BTreeSet<NodeId> = target.voters.iter().flatten().copied().collect();
        self.peers.retain(|node, _| everybody.contains(node));
        for node in everybody {
            if node == target.me {
                let answer = self.own_vote(target, seq, flushed);
                self.hear(target, &answer);
            } else {
                self.ask(target, node, seq, flushed);
            }
        }
    }

    /// Counts those that nobody can grant any more: what they would give is over.
    fn count_failed(&mut self, target: &LeaseTarget, now: BootTime) {
        let lasts = Duration::from_millis(u64::from(target.timing.lease_ms));
        while let Some((_, sent)) = self.open.front()
            && (now.saturating_since(*sent) >= lasts || self.open.len() >= OPEN_MAX)
        {
            self.open.pop_front();
            self.context.renewals.failed();
        }
    }

    fn own_vote(&self, target: &LeaseTarget, seq: u64, flushed: Lsn) -> Answer {
        let result = self.context.voter.renew(target.epoch, flushed, target.membership);
        Answer { node: target.me, epoch: target.epoch, seq, reply: Some(renew_reply(seq, result)) }
    }

    fn ask(&mut self, target: &LeaseTarget, node: NodeId, seq: u64, flushed: Lsn) {
        let Some(address) = target.addresses.get(&node) else { return };
        if self.peers.get(&node).is_none_or(|peer| peer.address != *address) {
            let Ok(channel) = self.context.dialer.channel(address) else { return };
            let renewals = Arc::new(channel.lane());
            let client = AgentClient::new(channel);
            let peer = Peer { address: address.clone(), client, renewals, in_flight: 0 };
            self.peers.insert(node, peer);
        }
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.in_flight < IN_FLIGHT_MAX) else {
            return;
        };
        peer.in_flight += 1;
        let (client, renewals) = (peer.client.clone(), Arc::clone(&peer.renewals));
        let request = RenewRequest {
            from: Some(target.identity.clone()),
            epoch: target.epoch.0,
            seq,
            flushed_lsn: flushed.get(),
            membership: target.membership.0,
            to: node.0,
        };
        let epoch = target.epoch;
        let limit = Duration::from_millis(u64::from(target.timing.lease_ms));
        self.answers.push(Box::pin(async move {
            let called = renewals.call(
                request,
                |requests| {
                    let mut client = client.clone();
                    async move { client.renewals(requests).await }
                },
                |request| {
                    let mut client = client.clone();
                    async move { client.renew(request).await }
                },
            );
            let reply = tokio::time::timeout(limit, called).await.ok().and_then(Result::ok);
            // Counted for the renewal that it is about, or not at all.
            let reply = reply.filter(|reply| reply.seq == seq);
            Answer { node, epoch, seq, reply }
        }));
    }

    /// Takes note of an answer; with a majority for its renewal the lease is prolonged.
    fn hear(&mut self, target: &LeaseTarget, answer: &Answer) {
        if let Some(peer) = self.peers.get_mut(&answer.node) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
        }
        let Some(reply) = answer.reply.filter(|_| answer.epoch == target.epoch) else { return };
        if reply.held_epoch > target.epoch.0 {
            let higher = Epoch(reply.held_epoch);
            self.context.tell.send_if_modified(|status| {
                let news = status.superseded < Some(higher);
                if news {
                    status.superseded = Some(higher);
                }
                news
            });
        }
        if !reply.renewed {
            return;
        }
        let counted = self.rounds.granted(answer.seq, answer.node, &target.voters, target.timing);
        let Some((sent, until)) = counted.map(|(sent, until)| (boot_time(sent), boot_time(until))) else {
            return;
        };
        if let Some(at) = self.open.iter().position(|(seq, _)| *seq == answer.seq) {
            self.open.remove(at);
            self.context.renewals.granted(self.context.clock.now().saturating_since(sent));
        }
        let until = if left_out(Rule::FromSending) {
            self.context.clock.now().saturating_add(until.saturating_since(sent))
        } else {
            until
        };
        let known = *self.context.tell.borrow();
        if known.epoch == target.epoch && known.sent >= sent {
            return;
        }
        self.context.page.set_guard(Duration::from_millis(u64::from(target.timing.guard_ms)));
        self.context.page.set_lease(target.epoch.0, sent, until);
        let now = self.context.clock.now();
        // Each notice wakes the supervisor's other thread: those that wait for a lease to become live get
        // theirs, those that show how long it lasts a few a second.
        let step = Duration::from_nanos(target.timing.serve_ns() / 4);
        let counts = known.timing_version != target.timing_version;
        let news = counts || !known.live(target.epoch, now) || until >= self.noticed.saturating_add(step);
        if news {
            self.noticed = until;
        }
        self.context.tell.send_if_modified(|status| {
            let superseded = status.superseded.filter(|higher| *higher > target.epoch);
            *status = LeaseStatus {
                epoch: target.epoch,
                until,
                sent,
                timing_version: target.timing_version,
                superseded,
            };
            news
        });
    }
}

fn boot_time(moment: Moment) -> BootTime {
    BootTime::from_nanos(moment.0)
}

/// Puts a voter's decision into its answer.
pub fn renew_reply(seq: u64, result: Result<(), RenewRefusal>) -> RenewReply {
    let mut reply = RenewReply { seq, renewed: result.is_ok(), ..RenewReply::default() };
    match result {
        Err(RenewRefusal::HigherEpoch(epoch)) => reply.held_epoch = epoch.0,
        // One that does not have the Prepare yet will have it a moment later.
        Ok(()) | Err(RenewRefusal::UnknownEpoch) => {}
        Err(RenewRefusal::NewerMembership(membership)) => reply.membership = membership.0,
    }
    reply
}

/// Asks for a higher priority for the calling thread; without the right to it, it stays as it is
/// (`rhone doctor` says so).
fn raise_priority() {
    // Linux counts a thread's nice value by itself when the process is named by 0.
    let _unchanged = rustix::process::setpriority_process(None, -10);
}
