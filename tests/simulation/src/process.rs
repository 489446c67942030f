//! One supervisor process: the product's Raft, voter, lease, leader, reports and services, each as
//! in `runtime/supervisor.rs`, in a tokio runtime of its own whose time the world drives. Only
//! what touches Postgres is played ([`crate::node`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhone::api::agent::AgentService;
use rhone::api::proto::v1::agent_server::AgentServer;
use rhone::config::Config;
use rhone::runtime::clock::Timepiece;
use rhone::runtime::lease::Lease;
use rhone::runtime::peers::Peers;
use rhone::runtime::secret::Secret;
use rhone::runtime::shared::{RevokeAsk, Shared};
use rhone::runtime::voter::VoterLease;
use rhone::runtime::{found, leader, report};
use rhone::tls::Dialer;
use rhone_consensus::identity::Identity;
use rhone_consensus::observer::{LogCause, LogHeld, LogObserver};
use rhone_consensus::settings::Settings;
use rhone_consensus::store::hard::HardStateFile;
use rhone_consensus::transport::{AddressBook, RaftService};
use rhone_consensus::{Consensus, ConsensusError, Options, StoreAt, Timings};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

use crate::clock::{SimHost, VoterClock};
use crate::disk::{Fsync, Hard, Store};
use crate::mutant::Mutant;
use crate::net::{Cable, FIRST_PORT};
use crate::node::{self, Ended};
use crate::plant::{CLUSTER, Plant};
use crate::random::Random;
use crate::{witness, wrong};

/// What is there once a process is up.
#[derive(Clone)]
pub struct Up {
    /// What its tasks share.
    pub shared: Arc<Shared>,
    raft: RaftService,
    agent: AgentServer<AgentService>,
}

impl std::fmt::Debug for Up {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Up").finish_non_exhaustive()
    }
}

impl Up {
    /// Serves one call.
    pub async fn serve(mut self, request: Request<Body>) -> Option<Response<Body>> {
        if request.uri().path().contains(".Agent/") {
            self.agent.call(request).await.ok()
        } else {
            self.raft.call(request).await.ok()
        }
    }
}

/// How a process came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The node's loop ended.
    Node(Ended),
    /// It could not be started, or a part of it failed.
    Failed(String),
}

/// The process.
#[derive(Debug)]
pub struct Process {
    runtime: Option<Runtime>,
    up: Arc<Mutex<Option<Up>>>,
    end: Arc<Mutex<Option<End>>>,
    leave: watch::Sender<bool>,
    /// Whether it was stopped by a signal.
    pub stopped: bool,
    /// By how much its own time is behind, having been stopped; in its own nanoseconds.
    pub missed: u64,
}

/// How the log's changes reach the voter.
#[derive(Debug)]
struct Ear {
    voter: Arc<VoterLease>,
    deaf: bool,
}

impl LogObserver for Ear {
    fn log_changed(&self, held: LogHeld, cause: LogCause) {
        let appended = matches!(cause, LogCause::Append | LogCause::Truncate);
        if !(self.deaf && appended) {
            self.voter.log_changed(held, cause);
        }
    }
}

/// Returns where that member listens.
pub fn address(index: usize) -> String {
    format!("127.0.0.1:{}", FIRST_PORT + index)
}

fn config(plant: &Plant, index: usize) -> Result<Config, String> {
    let peers: Vec<String> = (0..plant.count()).map(|peer| format!("\"{}\"", address(peer))).collect();
    let kind = if plant.has_data(index) { "data" } else { "witness" };
    let mut text = format!(
        "cluster = \"{CLUSTER}\"\n[node]\nname = \"n{}\"\nstate-dir = \"/nonexistent/rhone-simulation\"\n\
         listen = \"{}\"\nhttp = \"127.0.0.1:{}\"\npeers = [{}]\nkind = \"{kind}\"\n",
        index + 1,
        address(index),
        8400 + index,
        peers.join(", "),
    );
    if plant.has_data(index) {
        text += &format!(
            "[postgres]\ndata-dir = \"/nonexistent/data\"\nlisten = \"127.0.0.1:{}\"\n",
            5400 + index
        );
    }
    Config::parse(std::path::Path::new("rhone.toml"), &text, &BTreeMap::new()).map_err(|e| e.to_string())
}

impl Process {
    /// Starts a process on that machine. `first` says that the cluster is about to be founded.
    pub fn start(plant: &Arc<Plant>, index: usize, settings: &Settings, first: bool) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        let (leave, leaving) = watch::channel(false);
        let up = Arc::new(Mutex::new(None));
        let end = Arc::new(Mutex::new(None));
        let (plant, settings, shown, ended) =
            (Arc::clone(plant), settings.clone(), Arc::clone(&up), Arc::clone(&end));
        runtime.spawn(async move {
            let how = match run(&plant, index, settings, first, &shown, leaving).await {
                Ok(ended) => End::Node(ended),
                Err(reason) => End::Failed(reason),
            };
            *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        });
        Ok(Self { runtime: Some(runtime), up, end, leave, stopped: false, missed: 0 })
    }

    /// Lets it run for that much of its own time.
    pub fn run(&mut self, plant: &Plant, index: usize, nanos: u64) {
        let clock = plant.clocks[index];
        if self.stopped {
            // The clock goes on; the process finds out when it runs again.
            clock.end(nanos);
            self.missed += nanos;
            return;
        }
        let Some(runtime) = &self.runtime else { return };
        let missed = std::mem::take(&mut self.missed);
        runtime.block_on(async {
            if missed > 0 {
                tokio::time::advance(Duration::from_nanos(missed)).await;
            }
            clock.begin();
            tokio::time::sleep(Duration::from_nanos(nanos)).await;
        });
        clock.end(nanos);
    }

    /// Returns the process once it is up.
    pub fn up(&self) -> Option<Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how it ended, if it has.
    pub fn ended(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a task in it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        self.leave.send_replace(true);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run(
    plant: &Arc<Plant>,
    index: usize,
    settings: Settings,
    first: bool,
    up: &Mutex<Option<Up>>,
    leaving: watch::Receiver<bool>,
) -> Result<Ended, String> {
    let text = |error: ConsensusError| error.to_string();
    let disk = &plant.disks[index];
    let clock = plant.clocks[index];
    let hard = Arc::new(HardStateFile::open_on(Box::new(Hard(Arc::clone(disk)))).map_err(text)?);
    disk.durable().await;
    let back = if plant.mutant == Mutant::NoQuarantine && !first { 60_000_000_000 } else { 0 };
    let lying: &'static VoterClock = Box::leak(Box::new(VoterClock { clock, back: AtomicU64::new(back) }));
    let voter = Arc::new(VoterLease::new(Timepiece::simulated(lying)));
    let deaf = plant.mutant == Mutant::RenewsAfterPrepare;
    let observer = Arc::new(Ear { voter: Arc::clone(&voter), deaf });
    let cable = Cable { net: Arc::clone(&plant.net), from: index };
    let options = |hard: &Arc<HardStateFile>| {
        let known = hard.get();
        Options {
            store: StoreAt::Simulated(Box::new(Store(Arc::clone(disk))), Arc::new(Fsync(Arc::clone(disk)))),
            host: Arc::new(SimHost { clock, random: Mutex::new(Random::new(plant.draw(u64::MAX), 3)) }),
            identity: Identity {
                cluster: CLUSTER.to_owned(),
                generation: known.generation,
                node: known.node_id,
                incarnation: known.incarnation,
                session: known.session,
            },
            hard: Arc::clone(hard),
            observer: Arc::clone(&observer) as Arc<dyn LogObserver>,
            timings: Timings::default(),
            address_book: AddressBook::default(),
            connector: Arc::new(cable.clone()),
        }
    };
    let consensus = match Consensus::start(options(&hard)).await {
        Err(ConsensusError::StoreDamaged { reason, .. }) => {
            // The store was lost: as `start_consensus` does, under another id.
            let (node, incarnation) = plant.draw_identity(index);
            let old = plant.mutant == Mutant::OldId;
            hard.update(|state| {
                if !old {
                    (state.node_id, state.incarnation) = (node, incarnation);
                }
                (state.vote, state.last_log) = (None, None);
            })
            .map_err(text)?;
            disk.durable().await;
            plant.say(format!(
                "n{} has lost its store ({reason}): rejoins as {}",
                index + 1,
                hard.get().node_id
            ));
            Consensus::start(options(&hard)).await.map_err(text)?
        }
        started => started.map_err(text)?,
    };
    let page = plant.machine(index).page().map_err(|error| error.to_string())?;
    let dialer = Dialer::Other(Arc::new(cable.clone()));
    let clock = Timepiece::simulated(clock);
    let (revokes, asked) = mpsc::channel::<RevokeAsk>(16);
    let secret = Secret::open(None, std::path::Path::new("/nonexistent/rhone-simulation"));
    let lease = Lease::start_task(page.clone(), Arc::clone(&voter), clock, dialer.clone());
    let shared = Arc::new(Shared {
        config: config(plant, index)?,
        clock,
        hard,
        voter,
        consensus,
        peers: Peers::new(dialer),
        security: None,
        own: watch::Sender::new(None),
        table: watch::Sender::new(BTreeMap::new()),
        revokes,
        secret: secret.map_err(|error| error.to_string())?,
        strangers: Arc::default(),
        takeover: watch::Sender::new(None),
        proxy: rhone::proxy::Counters::default(),
        pooler: rhone::pooler::Handle::default(),
        asked: watch::Sender::default(),
        decided: watch::Sender::new((String::new(), String::new())),
        recorder: rhone::runtime::recorder::Recorder::default(),
    });
    lying.back.store(0, Ordering::Relaxed);
    let agent = AgentServer::new(AgentService::new(Arc::clone(&shared)));
    let raft = shared.consensus.service();
    *up.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Up { shared: Arc::clone(&shared), raft, agent });
    tokio::spawn(report::run(Arc::clone(&shared)));
    tokio::spawn(leader::run(Arc::clone(&shared), settings.clone(), wrong::decide(plant.mutant)));
    tokio::spawn(membership(Arc::clone(&shared), settings, first));
    let failed = Arc::new(AtomicBool::new(false));
    let mut fatal = shared.consensus.fatal();
    if !plant.has_data(index) {
        return witness::run(&shared, &mut fatal, leaving).await;
    }
    let node = node::run(Arc::clone(plant), index, shared, lease, page, asked, leaving);
    tokio::select! {
        biased;
        ended = node => Ok(ended),
        reason = fatal.wait_for(Option::is_some) => {
            failed.store(true, Ordering::Relaxed);
            Err(reason.map_or_else(|_| "raft is gone".to_owned(), |r| r.clone().unwrap_or_default()))
        }
    }
}

/// Becomes a member and stays one: as `membership` of the supervisor, but for the disk's thread.
async fn membership(shared: Arc<Shared>, settings: Settings, first: bool) {
    if !first {
        found::until_member(&shared, settings).await;
    }
    let mut state = shared.consensus.state();
    loop {
        let applied = Arc::clone(&state.borrow_and_update());
        let me = shared.member();
        if let Some(system_id) = applied.state.system_id {
            shared.consensus.set_system_id(system_id);
        }
        if applied.state.is_founded() && applied.state.members.get(&me.node) != Some(&me) {
            let status = shared.consensus.status();
            let leader =
                status.leader.and_then(|leader| status.nodes.get(&leader).map(|node| node.addr.clone()));
            if let Some(leader) = leader {
                drop(found::join(&shared, &leader).await);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}
