//! A client that writes one row per commit and remembers which were acknowledged.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls};

use crate::cli::CliError;

/// Between two rows: some 300 a second where the disk keeps up.
const PACE: Duration = Duration::from_millis(3);
/// A connection or a row that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to connect: an outage is measured to this.
const RETRY: Duration = Duration::from_millis(20);

/// What the writer knows so far.
#[derive(Debug, Default)]
struct Ledger {
    acknowledged: BTreeSet<i64>,
    last: Option<Instant>,
    /// Connections made so far.
    connections: u64,
    /// The number of the connection at work when the primary was killed.
    killed: Option<u64>,
    gap: Option<Duration>,
    error: String,
}

/// A writer at work; dropping it stops it.
#[derive(Debug)]
pub(super) struct Writer {
    config: Config,
    ledger: Arc<Mutex<Ledger>>,
    task: JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Makes the table and begins to write.
    pub(super) async fn start(ports: Vec<u16>) -> Result<Self, CliError> {
        let mut config = Config::new();
        config.user("demo").dbname("demo").application_name("rhone demo");
        config.target_session_attrs(TargetSessionAttrs::ReadWrite).connect_timeout(PATIENCE);
        for port in ports {
            config.host("127.0.0.1").port(port);
        }
        let table =
            "create table if not exists demo_rows (id bigint primary key, at timestamptz default now())";
        let client =
            connect(&config).await.map_err(|why| CliError::failed(format!("connect the writer: {why}")))?;
        client
            .batch_execute(table)
            .await
            .map_err(|e| CliError::failed(format!("make the writer's table: {e}")))?;
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let task = tokio::spawn(write(config.clone(), client, Arc::clone(&ledger)));
        Ok(Self { config, ledger, task })
    }

    /// How many rows were acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        lock(&self.ledger).acknowledged.len()
    }

    /// Why the last try failed.
    pub(super) fn last_error(&self) -> String {
        lock(&self.ledger).error.clone()
    }

    /// Notes that the primary was killed just now.
    pub(super) fn mark_kill(&self) {
        let mut ledger = lock(&self.ledger);
        ledger.killed = Some(ledger.connections);
    }

    /// Waits for the first row acknowledged by the next primary; gives the time without writes.
    pub(super) async fn wait_for_gap(&self, limit: Duration) -> Result<Duration, String> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(gap) = lock(&self.ledger).gap {
                return Ok(gap);
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(format!("no write was acknowledged for {} s: {}", limit.as_secs(), self.last_error()))
    }

    /// Stops, and reads back all rows: gives how many were acknowledged, and how many of those are lost.
    pub(super) async fn finish(self) -> Result<(usize, usize), CliError> {
        self.task.abort();
        let client = connect(&self.config)
            .await
            .map_err(|why| CliError::failed(format!("connect to read back: {why}")))?;
        let rows = client.query("select id from demo_rows", &[]).await;
        let rows = rows.map_err(|error| CliError::failed(format!("read the rows back: {error}")))?;
        let present: BTreeSet<i64> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
        let ledger = lock(&self.ledger);
        Ok((ledger.acknowledged.len(), ledger.acknowledged.difference(&present).count()))
    }
}

/// Connects to the member that accepts writes.
async fn connect(config: &Config) -> Result<Client, String> {
    let connecting = tokio::time::timeout(PATIENCE, config.connect(NoTls));
    let (client, connection) =
        connecting.await.map_err(|_| "no answer".to_owned())?.map_err(|e| chain(&e))?;
    tokio::spawn(async move {
        // Its end shows in the client's next call.
        let _ended = connection.await;
    });
    Ok(client)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}

/// Writes rows until it is aborted; connects anew whenever something fails.
async fn write(config: Config, first: Client, ledger: Arc<Mutex<Ledger>>) {
    let (mut client, mut id) = (Some(first), 0_i64);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let Some(connected) = &client else {
            match connect(&config).await {
                Ok(connected) => {
                    client = Some(connected);
                    lock(&ledger).connections += 1;
                }
                Err(why) => {
                    lock(&ledger).error = why;
                    tokio::time::sleep(RETRY).await;
                }
            }
            continue;
        };
        pace.tick().await;
        id += 1;
        // A row whose answer was lost is neither acknowledged nor tried again: its number is spent.
        let parameters: [&(dyn ToSql + Sync); 1] = [&id];
        let insert = connected.execute("insert into demo_rows (id) values ($1)", &parameters);
        let failure = match tokio::time::timeout(PATIENCE, insert).await {
            Ok(Ok(_)) => {
                acknowledge(&ledger, id);
                continue;
            }
            Ok(Err(error)) => chain(&error),
            Err(_late) => "no answer to an insert".to_owned(),
        };
        lock(&ledger).error = failure;
        client = None;
    }
}

/// Notes an acknowledged row; the first on a new connection after the kill ends the gap.
fn acknowledge(ledger: &Mutex<Ledger>, id: i64) {
    let now = Instant::now();
    let mut ledger = lock(ledger);
    let reconnected = ledger.killed.is_some_and(|connection| ledger.connections > connection);
    if reconnected && ledger.gap.is_none() {
        let since = ledger.last.unwrap_or(now);
        ledger.gap = Some(now.saturating_duration_since(since));
    }
    ledger.acknowledged.insert(id);
    ledger.last = Some(now);
}
