//! Clients that insert numbered rows and write down what they were told, and when.
//!
//! A member's client stays with its member, gives up early and reconnects at once, so that no
//! client's own timeout hides how long the cluster was without writes. The multi-host client
//! behaves as libpq does with several hosts, and is reported apart. No insert is ever retried:
//! the next try is another row.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream};
use tokio::task::JoinHandle as Task;
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use crate::clock::Moment;
use crate::history::{Answer, ClientKind, History, Key, Operation};
use crate::namespace::{Network, Place};
use crate::sql::Door;

/// The database and the role of the clients.
pub const DATABASE: &str = "chaos";

/// What makes the table, run as superuser in [`DATABASE`].
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS writes (client int, seq bigint, PRIMARY KEY (client, seq)); \
     GRANT SELECT, INSERT ON writes TO chaos";

const INSERT: &str = "INSERT INTO writes (client, seq) VALUES ($1, $2) \
     RETURNING ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";
const RECOVERING: &str = "SELECT pg_is_in_recovery()";

const PACE: Duration = Duration::from_millis(3);
/// Between two tries that found no primary. Each costs the server a fork: seven clients that tried
/// every 5 ms took most of two cores just while one was to be promoted.
const RETRY: Duration = Duration::from_millis(20);
/// libpq's smallest effective `connect_timeout`.
const MULTI_HOST_CONNECT: Duration = Duration::from_secs(2);

/// Which clients run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One client per member that waits 1 s for an answer.
    pub member: bool,
    /// One client per member that waits 20 s for an answer: it sees what a stopped server says later.
    pub patient: bool,
    /// So many libpq-like clients.
    pub multi_host: u32,
    /// A client inside each of these nodes.
    pub inside: Vec<usize>,
    /// Between two inserts of one client: short enough to see a gap to a few ms, on two cores.
    pub pace: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { member: true, patient: true, multi_host: 1, inside: Vec::new(), pace: PACE }
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    history: Mutex<History>,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, operation: Operation) {
        if operation.acknowledged() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.history().operations.push(operation);
    }
}

/// Running clients.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// One client: who it is, and whom it asks.
#[derive(Clone, Debug)]
struct Profile {
    id: u32,
    kind: ClientKind,
    /// The members it asks, with their indices.
    servers: Vec<(usize, Door)>,
    connect: Duration,
    answer: Duration,
    pace: Duration,
}

impl Workload {
    /// Starts the clients of `plan` against the members at `servers`.
    pub fn start(network: &Network, servers: &[(Ipv4Addr, u16)], plan: &Plan) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            history: Mutex::new(History::default()),
        });
        let mut by_place: BTreeMap<Place, Vec<Profile>> = BTreeMap::new();
        for (place, profile) in profiles(servers, plan) {
            shared.history().kinds.insert(profile.id, profile.kind);
            by_place.entry(place).or_default().push(profile);
        }
        let threads = by_place
            .into_iter()
            .map(|(place, profiles)| {
                let shared = Arc::clone(&shared);
                network.thread(place, move || run_clients(&shared, profiles))
            })
            .collect();
        Self { shared, threads }
    }

    /// How many inserts have been acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` further inserts have been acknowledged.
    pub fn wait_for(&self, more: u64, limit: Duration) -> Result<()> {
        let (start, wanted) = (Moment::now(), self.acknowledged().saturating_add(more));
        while self.acknowledged() < wanted {
            if start.elapsed() > limit {
                bail!(
                    "only {} of {more} writes were acknowledged within {limit:?}",
                    self.acknowledged() + more - wanted
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The first acknowledgement after `after` by another member than `old`.
    pub fn elsewhere(&self, old: usize, after: Moment) -> Option<Operation> {
        let history = self.shared.history();
        let found = history.operations.iter().filter(|operation| {
            operation.acknowledged() && operation.server != old && operation.finished > after
        });
        found.min_by_key(|operation| operation.finished).copied()
    }

    /// Waits for an acknowledgement by another member than `old`.
    pub fn wait_elsewhere(&self, old: usize, after: Moment, limit: Duration) -> Result<Operation> {
        loop {
            if let Some(operation) = self.elsewhere(old, after) {
                return Ok(operation);
            }
            if after.elapsed() > limit {
                bail!("no member but {} acknowledged a write within {limit:?}", old + 1);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns what the clients have seen so far.
    pub fn so_far(&self) -> History {
        self.shared.history().clone()
    }

    /// Ends the clients and returns what they saw.
    ///
    /// # Errors
    /// When a client could not run at all.
    pub fn stop(mut self) -> Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result.context("run clients")?,
                Err(_) => bail!("a client panicked"),
            }
        }
        let history = self.shared.history().clone();
        Ok(history)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn profiles(servers: &[(Ipv4Addr, u16)], plan: &Plan) -> Vec<(Place, Profile)> {
    let doors: Vec<(usize, Door)> = servers
        .iter()
        .enumerate()
        .map(|(index, &(address, port))| (index, Door::Tcp { address, port }))
        .collect();
    let mut found = Vec::new();
    let mut add = |place, base: u32, kind, servers: Vec<(usize, Door)>, connect, answer| {
        let number = u32::try_from(found.len()).unwrap_or(u32::MAX);
        found.push((place, Profile { id: base + number, kind, servers, connect, answer, pace: plan.pace }));
    };
    for door in &doors {
        let short = Duration::from_millis(500);
        if plan.member {
            add(Place::Client, 100, ClientKind::Member, vec![door.clone()], short, Duration::from_secs(1));
        }
        if plan.patient {
            add(Place::Client, 200, ClientKind::Patient, vec![door.clone()], short, Duration::from_secs(20));
        }
        if plan.inside.contains(&door.0) {
            let answer = Duration::from_secs(5);
            add(Place::Node(door.0), 300, ClientKind::Inside, vec![door.clone()], short, answer);
        }
    }
    for _ in 0..plan.multi_host {
        let answer = Duration::from_secs(3);
        add(Place::Client, 400, ClientKind::MultiHost, doors.clone(), MULTI_HOST_CONNECT, answer);
    }
    found
}

fn run_clients(shared: &Arc<Shared>, profiles: Vec<Profile>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let clients: Vec<Task<()>> = profiles
            .into_iter()
            .map(|profile| tokio::spawn(run_client(Arc::clone(shared), profile)))
            .collect();
        for client in clients {
            client.await.context("join a client")?;
        }
        Ok(())
    })
}

async fn run_client(shared: Arc<Shared>, profile: Profile) {
    let mut seq = 0;
    while !shared.stopped() {
        for (server, door) in &profile.servers {
            if shared.stopped() {
                return;
            }
            match timeout(profile.connect, Session::open(door)).await {
                Ok(Ok(session)) => serve(&shared, &profile, *server, &session, &mut seq).await,
                Ok(Err(_)) | Err(_) => sleep(RETRY).await,
            }
        }
    }
}

/// Uses a session until it breaks; a multi-host client also leaves a standby.
async fn serve(shared: &Shared, profile: &Profile, server: usize, session: &Session, seq: &mut u64) {
    let mut writable = false;
    while !shared.stopped() {
        if !writable {
            match timeout(profile.answer, session.recovering()).await {
                Ok(Ok(true)) if profile.kind == ClientKind::MultiHost => return,
                Ok(Ok(true)) => {
                    sleep(RETRY).await;
                    continue;
                }
                Ok(Ok(false)) => writable = true,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        *seq += 1;
        let key = Key { client: profile.id, seq: *seq };
        let invoked = Moment::now();
        let outcome = insert(shared, profile, session, key).await;
        let operation = |answer| Operation { key, server, invoked, finished: Moment::now(), answer };
        match outcome {
            Outcome::Answered(answer) => {
                shared.note(operation(answer));
                sleep(profile.pace).await;
            }
            Outcome::Refused => {
                shared.history().refused += 1;
                writable = false;
            }
            Outcome::Broken => {
                shared.note(operation(Answer::Unknown));
                break;
            }
        }
    }
    if !shared.stopped() {
        *shared.history().broken.entry(profile.id).or_default() += 1;
    }
}

enum Outcome {
    Answered(Answer),
    Refused,
    Broken,
}

/// Sends one insert. When told to stop, waits for the answer a second at most.
async fn insert(shared: &Shared, profile: &Profile, session: &Session, key: Key) -> Outcome {
    let stopped = async {
        while !shared.stopped() {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        outcome = timeout(profile.answer, session.insert(key)) => outcome.unwrap_or(Outcome::Broken),
        () = stopped => Outcome::Broken,
    }
}

/// One connection with its prepared statements.
struct Session {
    client: Client,
    insert: Statement,
    recovering: Statement,
    driver: Task<()>,
    /// The server warned that a commit may not have been replicated.
    doubted: Arc<AtomicBool>,
}

impl Session {
    async fn open(door: &Door) -> Result<Self> {
        let (client, mut connection) = door.config(DATABASE).connect(NoTls).await?;
        let doubted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&doubted);
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message
                    && *notice.code() == SqlState::WARNING
                {
                    flag.store(true, Ordering::SeqCst);
                }
            }
        });
        let opened = async {
            let recovering = client.prepare(RECOVERING).await?;
            let insert = client.prepare(INSERT).await?;
            Ok::<_, tokio_postgres::Error>((recovering, insert))
        };
        match opened.await {
            Ok((recovering, insert)) => Ok(Self { client, insert, recovering, driver, doubted }),
            Err(error) => {
                driver.abort();
                Err(error.into())
            }
        }
    }

    async fn recovering(&self) -> Result<bool> {
        Ok(self.client.query_one(&self.recovering, &[]).await?.try_get(0)?)
    }

    async fn insert(&self, key: Key) -> Outcome {
        let (client, seq) =
            (i32::try_from(key.client).unwrap_or(i32::MAX), i64::try_from(key.seq).unwrap_or(i64::MAX));
        self.doubted.store(false, Ordering::SeqCst);
        let timeline = match self.client.query_one(&self.insert, &[&client, &seq]).await {
            Ok(row) => row.try_get::<_, i32>(0).ok().and_then(|timeline| u32::try_from(timeline).ok()),
            Err(error) if error.code().is_some_and(certainly_refused) => return Outcome::Refused,
            Err(_) => return Outcome::Broken,
        };
        match timeline {
            Some(timeline) if !self.doubted.load(Ordering::SeqCst) => {
                Outcome::Answered(Answer::Acknowledged { timeline })
            }
            _ => Outcome::Answered(Answer::Unknown),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket at once, without waiting for a server that may be stopped.
        self.driver.abort();
    }
}

/// Codes with which a server says that nothing was written.
fn certainly_refused(code: &SqlState) -> bool {
    [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::UNDEFINED_TABLE,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::CANNOT_CONNECT_NOW,
    ]
    .contains(code)
}
