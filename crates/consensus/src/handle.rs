//! [`Consensus`]: start, watch the state, shut down.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhone_pgctl::wal::SystemId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ahead::Ahead;
use crate::contact::Contacts;
use crate::election::Election;
use crate::error::ConsensusError;
use crate::host::Host;
use crate::identity::{Generation, Identity, Run};
use crate::ids::{LogIndex, NodeId};
use crate::observer::LogObserver;
use crate::proto;
use crate::raft::{RaftHandle, Timings};
use crate::status::{self, RaftStatus, Role};
use crate::store::disk::SyncCount;
use crate::store::hard::{HardState, HardStateFile};
use crate::store::log::LogStore;
use crate::store::machine::{AppliedState, Machine};
use crate::store::medium::Medium;
use crate::store::open;
use crate::store::thread::{Pace, Storage, Work, read};
use crate::transport::guard::Guard;
use crate::transport::pool::Pool;
use crate::transport::{AddressBook, Certified, Connector, Me, RaftService, server};

/// Where the store is.
#[derive(Debug)]
pub enum StoreAt {
    /// In `raft/` within this state directory, written by a thread of its own.
    Dir(PathBuf),
    /// On a medium of the simulation's, written by a task.
    Simulated(Box<dyn Medium>, Arc<dyn Pace>),
}

/// What a member is started with.
#[derive(Debug)]
pub struct Options {
    /// Where its store is.
    pub store: StoreAt,
    /// The machine's clock and chance: [`crate::host::ThisHost`].
    pub host: Arc<dyn Host>,
    /// Who this member is.
    pub identity: Identity,
    /// Its hard state, already open.
    pub hard: Arc<HardStateFile>,
    /// Hears of each change of the log.
    pub observer: Arc<dyn LogObserver>,
    /// How fast Raft is.
    pub timings: Timings,
    /// Where members are, when not where the membership says.
    pub address_book: AddressBook,
    /// Makes connections: [`crate::transport::Plaintext`] or TLS.
    pub connector: Arc<dyn Connector>,
}

/// Opens a store, and says where it is and at what pace it is written.
async fn open_store(
    store: StoreAt,
    known: &HardState,
    syncs: &SyncCount,
) -> Result<(open::Opened, PathBuf, Option<Arc<dyn Pace>>), ConsensusError> {
    match store {
        StoreAt::Dir(dir) => {
            let (path, known, syncs) = (dir.clone(), known.clone(), syncs.clone());
            let opening = tokio::task::spawn_blocking(move || open::open(&path, &known, &syncs));
            let opened = opening.await.map_err(|error| ConsensusError::Fatal { reason: error.to_string() });
            Ok((opened??, dir, None))
        }
        StoreAt::Simulated(medium, pace) => {
            let dir = PathBuf::from("simulated");
            let damaged = |reason| ConsensusError::StoreDamaged { store: dir.clone(), reason };
            Ok((open::examine(medium, known, syncs).map_err(damaged)?, dir, Some(pace)))
        }
    }
}

/// A member that lacks no more entries than this keeps up: what is decided comes in ones and twos.
const ON_ITS_WAY: u64 = 64;

/// A running member of the Raft group. Dropping it does not stop Raft: [`Consensus::shutdown`] does.
pub struct Consensus {
    pub(crate) raft: RaftHandle,
    storage: Storage,
    states: watch::Receiver<Arc<AppliedState>>,
    ahead: Ahead,
    contacts: Arc<Contacts>,
    me: Arc<Me>,
    guard: Arc<Guard>,
    pub(crate) timings: Timings,
    service: RaftService,
    changes: Arc<watch::Sender<u64>>,
    pub(crate) fatal: Arc<watch::Sender<Option<String>>>,
    stopping: Arc<std::sync::atomic::AtomicBool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    syncs: SyncCount,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("identity", &self.me.identity).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Opens the store and starts Raft; on a runtime of tokio's. Opening takes some
    /// milliseconds (at most eight seconds, when the store is damaged).
    ///
    /// # Errors
    /// [`ConsensusError::StoreDamaged`], [`ConsensusError::StoreUnavailable`], [`ConsensusError::StoreLost`],
    /// [`ConsensusError::InUse`],
    /// [`ConsensusError::Refused`] (timings), [`ConsensusError::Io`], [`ConsensusError::Fatal`].
    pub async fn start(options: Options) -> Result<Self, ConsensusError> {
        let Options { store, host, identity, hard, observer, timings, address_book, connector } = options;
        let config = timings.openraft(&identity.cluster)?;
        let id = identity.node;
        let syncs = SyncCount::default();
        let known = hard.get();
        let (opened, dir, pace) = open_store(store, &known, &syncs).await?;
        let (vote, committed, snapshot) = (opened.vote, opened.committed, opened.snapshot.clone());
        let ahead = Ahead::of_store(&opened).map_err(|e| ConsensusError::torn(&dir, &e))?;
        let bound = vote.is_some_and(|vote| vote.committed && vote.leader_id.node_id != id);
        let contacts = Arc::new(Contacts::new(Arc::clone(&host), bound));
        let storage = match pace {
            Some(pace) => Storage::start_paced(opened, hard, observer, pace),
            None => Storage::start(opened, hard, observer)
                .map_err(|e| ConsensusError::io("start the storage thread of", &dir, e))?,
        };
        let log = LogStore::new(storage.clone(), vote, committed, id);
        let machine = Machine::new(storage.clone(), snapshot).map_err(|e| ConsensusError::torn(&dir, &e))?;
        let states = machine.states();
        let run = Run(host.random().map_err(|error| ConsensusError::Fatal { reason: error.to_string() })?);
        let me = Arc::new(Me::new(identity, run, known.system_id));
        let guard = Arc::new(Guard::new(Arc::clone(&me)));
        let contacts_of_pool = Arc::clone(&contacts);
        let pool =
            Pool::new(Arc::clone(&guard), contacts_of_pool, address_book, connector, timings.heartbeat);
        let raft = RaftHandle::new(id, Arc::new(config), pool.clone(), log, machine)
            .await
            .map_err(|error| ConsensusError::Fatal { reason: error.to_string() })?;
        let service = server::service(raft.clone(), Arc::clone(&contacts), Arc::clone(&guard), timings);
        let changes = Arc::new(watch::Sender::new(0));
        let election = Election {
            raft: raft.clone(),
            pool,
            contacts: Arc::clone(&contacts),
            timings,
            me: id,
            changes: Arc::clone(&changes),
        };
        let consensus = Self {
            raft,
            storage,
            states,
            ahead,
            contacts,
            me,
            guard,
            timings,
            service,
            changes,
            fatal: Arc::new(watch::Sender::new(None)),
            stopping: Arc::default(),
            tasks: Mutex::default(),
            syncs,
        };
        consensus.spawn(election);
        Ok(consensus)
    }

    fn spawn(&self, election: Election) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(tokio::spawn(election.run()));
        let (fatal, stopping) = (Arc::clone(&self.fatal), Arc::clone(&self.stopping));
        let (mut server, metrics) = (self.raft.server_metrics(), self.raft.metrics());
        let mut storage = self.storage.fatal();
        tasks.push(tokio::spawn(async move {
            let reason = loop {
                tokio::select! {
                    biased;
                    changed = server.changed() => if changed.is_err() {
                        break match &metrics.borrow().running_state {
                            Err(error) => format!("raft: {error}"),
                            Ok(()) => "raft: the core has ended".to_owned(),
                        };
                    },
                    Ok(()) = storage.changed() => if let Some(reason) = storage.borrow().clone() {
                        break reason;
                    },
                }
            };
            if !stopping.load(std::sync::atomic::Ordering::Relaxed) {
                fatal.send_replace(Some(reason));
            }
        }));
    }

    /// Returns the gRPC service that the other members call.
    pub fn service(&self) -> RaftService {
        self.service.clone()
    }

    /// Returns who this member is, for calls of other services to other members.
    pub fn identity(&self) -> proto::Identity {
        self.me.message()
    }

    /// Checks the caller of another service between members as Raft's own are checked; `to` is
    /// whom it means to reach, where the message says so.
    ///
    /// # Errors
    /// A status with a clear text: not of this cluster, an old image, a copy, a lost store.
    pub fn admit(&self, from: Option<&proto::Identity>, to: Option<NodeId>) -> Result<NodeId, tonic::Status> {
        self.guard.admit(from, to, |id| server::recorded(&self.raft, id))
    }

    /// Refuses a call of another service whose certificate is not that of the member it says it comes from.
    ///
    /// # Errors
    /// A status with a clear text.
    pub fn vouched(&self, caller: Option<&Certified>, node: NodeId) -> Result<(), tonic::Status> {
        let name = caller.and_then(|_| server::recorded_name(&self.raft, node));
        Certified::speaks_for(caller, name.as_deref())
    }

    /// Says why Raft stopped, once it has: then end the process.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// Returns the replicated state as applied here: now and at each apply.
    pub fn state(&self) -> watch::Receiver<Arc<AppliedState>> {
        self.states.clone()
    }

    /// Returns what this member's log came to at its start, all of it applied, committed or not, while it is not
    /// applied here that far.
    pub fn ahead(&self) -> Option<Arc<AppliedState>> {
        let last = read(self.storage.mirror()).last().map_or(0, |id| id.index);
        let applied = self.states.borrow().index;
        self.ahead.of(applied, LogIndex(last))
    }

    /// Returns Raft's state now.
    pub fn status(&self) -> RaftStatus {
        let mut status = status::read(&self.raft, &self.contacts, &self.timings, self.me.identity.node);
        // Right after a start Raft has applied a part of the log and said nothing of its end yet.
        let last = read(self.storage.mirror()).last().map_or(0, |id| id.index);
        status.last_log = status.last_log.max(LogIndex(last));
        status
    }

    /// Says whether that member has the log as far as this leader has it, but for what is on its way. False
    /// where this member does not lead.
    pub fn keeps_up(&self, node: NodeId) -> bool {
        let last = self.status().last_log.0;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.as_ref().and_then(|of| of.get(&node).copied().flatten());
        matched.is_some_and(|matched| matched.index.saturating_add(ON_ITS_WAY) >= last)
    }

    /// Changes when leader, term, role, membership or `leading` changes.
    pub fn status_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns how long ago another leader's message was accepted here; none since the start.
    pub fn last_leader_contact(&self) -> Option<Duration> {
        self.contacts.leader_age()
    }

    /// Returns how many times the store asked the disk to make something durable.
    pub fn syncs(&self) -> SyncCount {
        self.syncs.clone()
    }

    /// Lets this member campaign later than those of less reluctance, so that leadership goes
    /// elsewhere: by that many longest election timeouts.
    pub fn set_reluctance(&self, reluctance: u32) {
        self.contacts.set_reluctance(reluctance);
    }

    /// Ends [`Consensus::yield_leadership`] before its time.
    pub(crate) fn unmute(&self) {
        if self.contacts.muted() {
            self.contacts.mute(false);
        }
    }

    /// Sends nothing as a leader until another one is heard or something is proposed here, at most twice the longest election
    /// timeout; returns whether another leads now. Safe when nobody else is there.
    pub async fn yield_leadership(&self) -> bool {
        if self.status().role != Role::Leader {
            return self.status().leader.is_some();
        }
        let _mute = Mute::new(&self.contacts);
        let mut server = self.raft.server_metrics();
        let me = self.me.identity.node;
        let elsewhere = server.wait_for(|s| s.current_leader.is_some_and(|leader| leader != me));
        matches!(
            tokio::time::timeout(self.timings.election_max.saturating_mul(2), elsewhere).await,
            Ok(Ok(_))
        )
    }

    /// Learns the cluster's Postgres system identifier: strangers with another are refused.
    pub fn set_system_id(&self, id: SystemId) {
        self.me.set_system_id(id);
    }

    /// Learns the generation of the cluster that this member, whose store is new, is about to join.
    pub fn set_generation(&self, generation: Generation) {
        self.me.set_generation(generation);
    }

    /// Stops Raft and closes the store.
    pub async fn shutdown(&self) {
        self.stopping.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end in order");
        }
        if let Err(error) = self.storage.ask(Work::Finish).await {
            tracing::warn!(%error, "the raft store did not end in order");
        }
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// Keeps a leader silent while it lives.
struct Mute<'a> {
    contacts: &'a Contacts,
}

impl<'a> Mute<'a> {
    fn new(contacts: &'a Contacts) -> Self {
        contacts.mute(true);
        Self { contacts }
    }
}

impl Drop for Mute<'_> {
    fn drop(&mut self) {
        self.contacts.mute(false);
    }
}
