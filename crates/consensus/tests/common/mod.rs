//! Members over real gRPC on loopback, with a cut between any two.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::indexing_slicing,
    reason = "test helpers; each binary uses a part"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhone_consensus::command::ClusterCommand;
use rhone_consensus::host::ThisHost;
use rhone_consensus::identity::{Generation, Identity};
use rhone_consensus::ids::{Incarnation, NodeId};
use rhone_consensus::observer::{LogCause, LogHeld, LogObserver};
use rhone_consensus::transport::{AddressBook, Plaintext};
use rhone_consensus::{
    Applied, Consensus, ConsensusError, HardStateFile, Options, PeerNode, StoreAt, Timings,
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const LIMIT: Duration = Duration::from_secs(60);

/// Polls until `found` finds something.
#[track_caller]
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            if let Some(value) = found() {
                return value;
            }
            assert!(tokio::time::Instant::now() < deadline, "{caller}: never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[derive(Debug, Default)]
pub struct Heard(pub Mutex<Vec<(LogHeld, LogCause)>>);

impl LogObserver for Heard {
    fn log_changed(&self, held: LogHeld, cause: LogCause) {
        self.0.lock().expect("lock").push((held, cause));
    }
}

impl Heard {
    pub fn last(&self) -> LogHeld {
        self.0.lock().expect("lock").last().expect("started").0
    }
}

/// One way between two members.
#[derive(Debug)]
struct Link {
    open: watch::Sender<bool>,
}

impl Link {
    async fn new(to: String) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("addr").to_string();
        let open = watch::Sender::new(true);
        let state = open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (mut state, to) = (state.clone(), to.clone());
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut to) = TcpStream::connect(&to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        (Self { open }, addr)
    }
}

pub struct Member {
    pub name: String,
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub addr: String,
    pub dir: TempDir,
    pub book: AddressBook,
    pub heard: Arc<Heard>,
    pub running: Option<(Arc<Consensus>, JoinHandle<()>, tokio::sync::oneshot::Sender<()>)>,
    hard: Option<Arc<HardStateFile>>,
}

impl Member {
    pub fn raft(&self) -> &Consensus {
        &self.running.as_ref().expect("running").0
    }

    pub fn shared(&self) -> Arc<Consensus> {
        Arc::clone(&self.running.as_ref().expect("running").0)
    }

    pub fn hard(&self) -> &HardStateFile {
        self.hard.as_ref().expect("running")
    }

    pub fn node(&self) -> PeerNode {
        PeerNode { name: self.name.clone(), addr: self.addr.clone(), incarnation: self.incarnation }
    }

    /// Makes a member with an empty store; does not start it.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            id: NodeId(0),
            incarnation: Incarnation(0),
            addr: "127.0.0.1:0".to_owned(),
            dir: TempDir::new().expect("temporary directory"),
            book: AddressBook::default(),
            heard: Arc::default(),
            running: None,
            hard: None,
        }
    }

    pub async fn start(&mut self) {
        self.start_in("test").await.expect("start");
    }

    pub async fn start_in(&mut self, cluster: &str) -> Result<(), ConsensusError> {
        let (hard, _) = HardStateFile::open_or_create(self.dir.path())?;
        let hard = Arc::new(hard);
        let state = hard.get();
        (self.id, self.incarnation) = (state.node_id, state.incarnation);
        let options = Options {
            store: StoreAt::Dir(self.dir.path().to_owned()),
            host: Arc::new(ThisHost),
            identity: Identity {
                cluster: cluster.to_owned(),
                generation: Generation(state.generation.0 + 1),
                node: self.id,
                incarnation: self.incarnation,
                session: state.session,
            },
            hard: Arc::clone(&hard),
            observer: Arc::clone(&self.heard) as Arc<dyn LogObserver>,
            timings: Timings::default(),
            address_book: self.book.clone(),
            connector: Arc::new(Plaintext),
        };
        let consensus = Arc::new(Consensus::start(options).await?);
        let listener = TcpListener::bind(&self.addr).await.expect("bind");
        self.addr = listener.local_addr().expect("addr").to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serve = tonic::transport::Server::builder()
            .add_service(consensus.service())
            .serve_with_incoming_shutdown(incoming, async { drop(stopped.await) });
        let server = tokio::spawn(async move { serve.await.expect("serve") });
        self.hard = Some(hard);
        self.running = Some((consensus, server, stop));
        Ok(())
    }

    pub async fn stop(&mut self) {
        let (consensus, server, stop) = self.running.take().expect("running");
        consensus.shutdown().await;
        drop(stop);
        server.abort();
        drop(server.await);
        drop(consensus);
        self.hard = None;
        let path = self.dir.path().to_owned();
        // The last clones of the hard state go with the tasks that hold them.
        eventually("the hard state is unlocked", || {
            let file = std::fs::File::open(path.join("hard-state")).expect("open");
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()
        })
        .await;
    }
}

pub struct Group {
    pub members: Vec<Member>,
    links: BTreeMap<(usize, usize), Link>,
}

impl Group {
    /// Starts `count` members, of which the first `voters` vote once founded.
    pub async fn founded(count: usize, voters: usize) -> Self {
        let mut group = Self { members: Vec::new(), links: BTreeMap::new() };
        for number in 0..count {
            let mut member = Member::new(&format!("n{number}"));
            member.start().await;
            group.members.push(member);
        }
        for from in 0..count {
            for to in 0..count {
                group.connect(from, to).await;
            }
        }
        if voters == 0 {
            return group;
        }
        let nodes = group.members[..voters].iter().map(|m| (m.id, m.node())).collect();
        group.members[0].raft().initialize(nodes).await.expect("initialize");
        let voters: Vec<usize> = (0..voters).collect();
        group.leader_among(&voters).await;
        group
    }

    pub async fn connect(&mut self, from: usize, to: usize) {
        if from != to {
            let (link, addr) = Link::new(self.members[to].addr.clone()).await;
            self.members[from].book.set(self.members[to].id, addr);
            self.links.insert((from, to), link);
        }
    }

    pub async fn add(&mut self, mut member: Member) -> usize {
        member.start().await;
        self.members.push(member);
        let new = self.members.len() - 1;
        for other in 0..new {
            self.connect(other, new).await;
            self.connect(new, other).await;
        }
        new
    }

    pub fn cut(&self, member: usize, open: bool) {
        for ((from, to), link) in &self.links {
            if *from == member || *to == member {
                link.open.send_replace(open);
            }
        }
    }

    pub fn cut_one_way(&self, from: usize, to: usize, open: bool) {
        self.links[&(from, to)].open.send_replace(open);
    }

    /// Waits until one running member leads and all other running ones say so; returns it.
    #[track_caller]
    pub fn leader(&self) -> impl Future<Output = usize> {
        eventually("all agree who leads", || {
            let running = || self.members.iter().enumerate().filter(|(_, m)| m.running.is_some());
            let (found, leader) = running().find(|(_, m)| m.raft().status().leading)?;
            running().all(|(_, m)| m.raft().status().leader == Some(leader.id)).then_some(found)
        })
    }

    /// Waits until one of `among` leads.
    #[track_caller]
    pub fn leader_among(&self, among: &[usize]) -> impl Future<Output = usize> {
        eventually("one of some leads", || {
            among.iter().copied().find(|&m| self.members[m].raft().status().leading)
        })
    }

    pub async fn propose(&self, command: ClusterCommand) -> Applied {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let leader = self.leader().await;
            match self.members[leader].raft().propose(command.clone(), LIMIT).await {
                Ok(applied) => return applied,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "propose: {error}"),
            }
        }
    }

    #[track_caller]
    pub fn applied_by_all(&self, index: rhone_consensus::ids::LogIndex) -> impl Future<Output = ()> {
        eventually("all have applied it", move || {
            let mut running = self.members.iter().filter(|m| m.running.is_some());
            running.all(|m| m.raft().state().borrow().index >= index).then_some(())
        })
    }
}

impl Group {
    /// Proposes to whoever of these leads, until one that does has it committed: on a busy machine the first to lead
    /// may be deposed at once.
    pub async fn propose_among(
        &self,
        among: &[usize],
        command: ClusterCommand,
    ) -> rhone_consensus::ids::LogIndex {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let leader = self.leader_among(among).await;
            match self.members[leader].raft().propose(command.clone(), LIMIT).await {
                Ok(applied) => return applied.index,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "propose: {error}"),
            }
        }
    }
}
