//! Clients of the proxy ports and of PgBouncer: real ones (psql, pgbench, psycopg2), and sessions of our own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio_postgres::NoTls;

use crate::binary;
use crate::clock::Moment;
use crate::cluster::{Cluster, Spec};
use crate::namespace::Place;
use crate::node::HTTP_PORT;
use crate::process::{self, Output};
use crate::sql::{Door, Rows, ask, readable};
use crate::workload::DATABASE;

/// The port to the primary.
pub const RW: u16 = 5000;
/// The port to a standby.
pub const RO: u16 = 5001;
/// The port to any instance.
pub const ANY: u16 = 5002;
/// PgBouncer's port.
pub const POOL: u16 = 6432;

/// An asynchronous cluster with the three ports on each member; `more` goes into `[proxy]`.
pub fn with_ports(members: usize, more: &str) -> Spec {
    let tables = format!(
        "[proxy]\nrw = \"{{address}}:{RW}\"\nro = \"{{address}}:{RO}\"\nany = \"{{address}}:{ANY}\"\n{more}\n"
    );
    Spec { tables, ..Spec::asynchronous(members) }
}

/// Runs a statement through a port, from the clients' place.
pub fn ask_through(cluster: &Cluster, index: usize, port: u16, statement: &str) -> Result<Rows> {
    begin_to_ask(cluster, index, port, statement)?.join().map_err(|_| anyhow!("the client panicked"))?
}

/// Begins to run a statement through a port.
pub fn begin_to_ask(
    cluster: &Cluster,
    index: usize,
    port: u16,
    statement: &str,
) -> Result<JoinHandle<Result<Rows>>> {
    let door = Door::Tcp { address: cluster.node(index)?.address(), port };
    let statement = statement.to_owned();
    let work = move || ask(&door, DATABASE, &statement, Duration::from_secs(60));
    Ok(cluster.network().thread(Place::Client, work))
}

/// Runs one of Postgres's client programs from the clients' place.
pub fn run_client(cluster: &Cluster, program: &str, arguments: &[&str], limit: Duration) -> Result<Output> {
    let path = match binary::postgres_folder()?.join(program) {
        path if path.is_file() => path,
        _ => binary::program(program).with_context(|| format!("find {program}"))?,
    };
    let mut command = cluster.network().command(Place::Client, &path);
    process::run(command.args(arguments).env("PGPASSWORD", "secret").env("PGCONNECT_TIMEOUT", "30"), limit)
}

/// Runs a Python script with psycopg2 from the clients' place, `None` where there is no psycopg2.
pub fn run_psycopg2(cluster: &Cluster, script: &str, arguments: &[&str]) -> Result<Option<Output>> {
    let Some(python) = binary::program("python3").filter(|_| PathBuf::from("/usr/bin/python3").is_file())
    else {
        return Ok(None);
    };
    drop(python);
    // Debian's module belongs to Debian's interpreter.
    let python = PathBuf::from("/usr/bin/python3");
    let there = process::run(
        std::process::Command::new(&python).args(["-c", "import psycopg2"]),
        Duration::from_secs(20),
    )?;
    if there.code != Some(0) {
        return Ok(None);
    }
    let mut command = cluster.network().command(Place::Client, &python);
    process::run(command.args(["-c", script]).args(arguments), Duration::from_secs(90)).map(Some)
}

/// Asks a member over HTTP from the clients' place, as a check or a script would; returns the status and the body.
pub fn get(cluster: &Cluster, index: usize, path: &str) -> Result<(u16, String)> {
    let address = (cluster.node(index)?.address(), HTTP_PORT);
    let request = format!("GET {path} HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n");
    let read = cluster.network().thread(Place::Client, move || {
        let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = read.join().map_err(|_| anyhow!("the reader panicked"))??;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse().context("read the status")?;
    Ok((status, body.to_owned()))
}

/// Waits until checks of a member give these: `/replica 200`, a path and a status each.
pub fn wait_for_checks(cluster: &Cluster, index: usize, expected: &[&str]) -> Result<()> {
    cluster.wait_until(&format!("pg-{} answers {expected:?}", index + 1), || {
        for check in expected {
            let (path, wanted) = check.split_once(' ').context("a path and a status")?;
            let (status, body) = get(cluster, index, path)?;
            ensure!(status.to_string() == wanted, "{path}: {status} {body}");
        }
        Ok(())
    })
}

/// Reads `/metrics` of a member and returns the value of the line that begins with `name` and holds `label`.
pub fn metric(cluster: &Cluster, index: usize, name: &str, label: &str) -> Result<f64> {
    let text = get(cluster, index, "/metrics")?.1;
    let wanted = format!("{name}{{");
    let line = text.lines().find(|line| line.starts_with(&wanted) && line.contains(label));
    let line = line.with_context(|| format!("{name} with {label} in /metrics"))?;
    line.rsplit_once(' ').context("a value")?.1.parse().context("read the value")
}

/// One attempt to connect and write a row.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When it began.
    pub at: Moment,
    /// How long connecting took.
    pub connecting: Duration,
    /// Why no connection came to be.
    pub refused: Option<String>,
    /// Whether the row was acknowledged.
    pub written: bool,
}

/// A client that connects anew for each row, until it is stopped.
#[derive(Debug)]
pub struct Reconnecting {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Attempt>>>,
}

impl Reconnecting {
    /// Starts a client of one member's port; rows carry `client`.
    pub fn start(cluster: &Cluster, index: usize, port: u16, client: u32) -> Result<Self> {
        let address = cluster.node(index)?.address();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(reconnect(address, port, client, &flag))
        };
        Ok(Self { stop, thread: cluster.network().thread(Place::Client, work) })
    }

    /// Stops it and returns what it saw.
    pub fn stop(self) -> Result<Vec<Attempt>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

async fn reconnect(address: Ipv4Addr, port: u16, client: u32, stop: &AtomicBool) -> Result<Vec<Attempt>> {
    let config = Door::Tcp { address, port }.config(DATABASE);
    let mut attempts = Vec::new();
    let mut seq: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let at = Moment::now();
        let mut attempt = Attempt { at, connecting: Duration::ZERO, refused: None, written: false };
        let connected = tokio::time::timeout(Duration::from_secs(60), config.connect(NoTls)).await;
        attempt.connecting = at.elapsed();
        match connected {
            Ok(Ok((session, connection))) => {
                let driver = tokio::spawn(connection);
                let row = format!("INSERT INTO writes (client, seq) VALUES ({client}, {seq})");
                let done = tokio::time::timeout(Duration::from_secs(60), session.simple_query(&row)).await;
                attempt.written = matches!(done, Ok(Ok(_)));
                drop(session);
                driver.abort();
            }
            Ok(Err(error)) => attempt.refused = Some(format!("{:#}", readable(error))),
            Err(_) => attempt.refused = Some("no answer within a minute".to_owned()),
        }
        attempts.push(attempt);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(attempts)
}

/// A session that says nothing more once it is connected.
#[derive(Debug)]
pub struct IdleSession {
    connected: std::sync::mpsc::Receiver<()>,
    thread: JoinHandle<Result<String>>,
}

impl IdleSession {
    /// Connects through a member's port and waits until that is done.
    pub fn open(cluster: &Cluster, index: usize, port: u16) -> Result<Self> {
        let config = Door::Tcp { address: cluster.node(index)?.address(), port }.config(DATABASE);
        let (tell, connected) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (session, connection) = config.connect(NoTls).await.map_err(readable)?;
                tell.send(()).ok();
                let end = tokio::time::timeout(Duration::from_secs(90), connection).await;
                drop(session);
                match end {
                    Ok(Err(error)) => Ok(format!("{:#}", readable(error))),
                    Ok(Ok(())) => Ok("closed".to_owned()),
                    Err(_) => bail!("the session still hangs"),
                }
            })
        };
        let session = Self { connected, thread: cluster.network().thread(Place::Client, work) };
        if session.connected.recv_timeout(Duration::from_secs(30)).is_err() {
            let why = session.thread.join().map_err(|_| anyhow!("the client panicked"))?;
            bail!("no session: {why:?}");
        }
        Ok(session)
    }

    /// Whether it is still open.
    pub fn is_open(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Waits for its end, and returns how it came.
    pub fn end(self) -> Result<String> {
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

/// Waits for a condition of the test's own.
pub fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Moment::now();
    loop {
        if condition()? {
            return Ok(());
        }
        if start.elapsed() > crate::cluster::LIMIT {
            bail!("wait for: {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}
