//! Workloads of transactions: append, bank and counter, against whoever is primary.
//!
//! Each transaction is one round trip, so that it is told from one that stopped half-way. A closed
//! connection or WARNING 01000 at COMMIT leaves it open: it may be there or not. None is repeated.

pub mod append;
pub mod bank;
pub mod counter;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream};
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

use crate::clock::Moment;
use crate::cluster::Cluster;
use crate::namespace::Place;
use crate::random::Random;
use crate::sql::{Door, Rows, ask, rows};
use crate::workload::DATABASE;

const PACE: Duration = Duration::from_millis(25);
const RETRY: Duration = Duration::from_millis(50);
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Committed, as the client was told.
    Committed,
    /// Certainly not.
    Aborted,
    /// The client cannot know.
    Open,
}

/// When and where a transaction ran.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Just before it was sent.
    pub invoked: Moment,
    /// Just after the answer, or when it was given up.
    pub finished: Moment,
    /// The member.
    pub server: usize,
}

/// One kind of transactions.
pub trait Kind: Send + Sync + 'static {
    /// What makes the tables, as superuser.
    fn schema(&self) -> String;
    /// Draws the next transaction of a client: its SQL, from BEGIN to COMMIT.
    fn next(&self, client: u32, random: &mut Random) -> String;
    /// Takes note of what became of the transaction that was drawn last by this client.
    fn note(&self, client: u32, end: End, span: Span, rows: &Rows);
}

/// Running clients of one kind.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Clients {
    /// Makes the tables and starts so many clients.
    pub fn start(cluster: &Cluster, kind: &Arc<impl Kind>, clients: u32, seed: u64) -> Result<Self> {
        let primary = cluster.wait_whole()?;
        ask(&cluster.node(primary)?.door(), DATABASE, &kind.schema(), Duration::from_secs(20))
            .context("make the tables of a workload")?;
        let stop = Arc::new(AtomicBool::new(false));
        let doors = cluster.doors();
        let (flag, kind) = (Arc::clone(&stop), Arc::clone(kind));
        let thread = cluster.network().thread(Place::Client, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("make a runtime")?;
            runtime.block_on(async {
                let all: Vec<_> = (0..clients)
                    .map(|client| {
                        let random = Random::new(seed ^ (u64::from(client) << 32));
                        tokio::spawn(serve(
                            Arc::clone(&flag),
                            Arc::clone(&kind),
                            doors.clone(),
                            client,
                            random,
                        ))
                    })
                    .collect();
                for client in all {
                    client.await.context("join a client")?;
                }
                Ok(())
            })
        });
        Ok(Self { stop, thread })
    }

    /// Ends the clients.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a client panicked"),
        }
    }
}

async fn serve(
    stop: Arc<AtomicBool>,
    kind: Arc<impl Kind>,
    doors: Vec<(usize, Door)>,
    client: u32,
    mut random: Random,
) {
    while !stop.load(Ordering::Relaxed) {
        for (server, door) in &doors {
            let Ok(Ok(session)) = timeout(CONNECT, Session::open(door)).await else { continue };
            let primary = timeout(CONNECT, session.run("SELECT pg_is_in_recovery()")).await;
            let writable = matches!(&primary, Ok(Ok(rows)) if rows.first().and_then(|row| row.first()?.as_deref()) == Some("f"));
            while writable && !stop.load(Ordering::Relaxed) {
                let statement = kind.next(client, &mut random);
                let invoked = Moment::now();
                let (end, rows) = session.transaction(&statement).await;
                kind.note(client, end, Span { invoked, finished: Moment::now(), server: *server }, &rows);
                if end != End::Committed && (end == End::Open || session.run("ROLLBACK").await.is_err()) {
                    break;
                }
                if end == End::Aborted && session.read_only().await {
                    break;
                }
                sleep(PACE).await;
            }
        }
        sleep(RETRY).await;
    }
}

struct Session {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
    doubted: Arc<AtomicBool>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
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
        Ok(Self { client, driver, doubted })
    }

    async fn run(&self, statement: &str) -> Result<Rows, tokio_postgres::Error> {
        let messages: Vec<SimpleQueryMessage> = self.client.simple_query(statement).await?;
        Ok(rows(&messages))
    }

    async fn read_only(&self) -> bool {
        let answer = timeout(CONNECT, self.run("SELECT pg_is_in_recovery()")).await;
        !matches!(&answer, Ok(Ok(rows)) if rows.first().and_then(|row| row.first()?.as_deref()) == Some("f"))
    }

    async fn transaction(&self, statement: &str) -> (End, Rows) {
        self.doubted.store(false, Ordering::SeqCst);
        match timeout(ANSWER, self.run(statement)).await {
            Ok(Ok(_)) if self.doubted.load(Ordering::SeqCst) => (End::Open, Rows::new()),
            Ok(Ok(rows)) => (End::Committed, rows),
            Ok(Err(error)) if error.code().is_some_and(certainly_aborted) => (End::Aborted, Rows::new()),
            Ok(Err(_)) | Err(_) => (End::Open, Rows::new()),
        }
    }
}

/// Codes with which a server says that a transaction is not committed.
fn certainly_aborted(code: &SqlState) -> bool {
    [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::IN_FAILED_SQL_TRANSACTION,
        SqlState::UNIQUE_VIOLATION,
        SqlState::UNDEFINED_TABLE,
    ]
    .contains(code)
}

/// A list that many clients write to.
#[derive(Debug)]
struct Shared<T>(Mutex<Vec<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T: Clone> Shared<T> {
    fn push(&self, item: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(item);
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
