//! A real PgBouncer beside each member, in transaction mode, as Rhone configures it.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::cluster::{Cluster, LIMIT, Spec};
use crate::namespace::Place;
use crate::ports::{POOL, run_client, until};
use crate::process::{self, Output, Owned};
use crate::scenario::report;

/// What each member's file says of its PgBouncer.
const TABLES: &str = "[pgbouncer]\nlisten = \"{address}:6432\"\nusers-file = \"{folder}/userlist.txt\"\n\
     pause-timeout = \"30s\"\n";

/// How much of a PgBouncer's log a failure shows, in bytes.
const TAIL: usize = 3000;

/// An asynchronous cluster of three with a PgBouncer beside each member, and pgbench's tables in it; `None` where no
/// PgBouncer is installed.
pub fn start() -> Result<Option<(Cluster, Vec<Owned>)>> {
    if binary::program("pgbouncer").is_none() {
        report("SKIPPED: no pgbouncer here (deploy/install-deps.sh test installs it)");
        return Ok(None);
    }
    let spec = Spec { tables: TABLES.to_owned(), ..Spec::asynchronous(3) };
    let mut cluster = Cluster::create(&spec)?;
    let mut poolers = Vec::new();
    for index in 0..3 {
        std::fs::write(cluster.node(index)?.folder().join("userlist.txt"), "\"chaos\" \"secret\"\n")?;
        cluster.start_node(index)?;
    }
    for index in 0..3 {
        poolers.push(start_at(&cluster, index)?);
    }
    cluster.prepare_database()?;
    let output = pgbench(&cluster, &["-i", "-q", "-s", "1"], LIMIT)?;
    ensure!(output.code == Some(0), "pgbench -i through PgBouncer: {output:?}");
    Ok(Some((cluster, poolers)))
}

/// Starts PgBouncer at a member, as the user that runs Postgres.
fn start_at(cluster: &Cluster, index: usize) -> Result<Owned> {
    let program = binary::program("pgbouncer").context("find pgbouncer")?;
    let dir = cluster.node(index)?.folder().join("state/pgbouncer");
    let config = dir.join("pgbouncer.ini");
    until("rhone has written PgBouncer's configuration", || Ok(config.is_file()))?;
    let root = rustix::process::geteuid().is_root();
    let mut command = if root {
        let setpriv = binary::program("setpriv").context("find setpriv")?;
        let mut command = cluster.network().command(Place::Node(index), &setpriv);
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        cluster.network().command(Place::Node(index), &program)
    };
    let log = File::create(cluster.node(index)?.folder().join("pgbouncer.log"))?;
    command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Owned::spawn(&mut command)
}

/// Runs pgbench through the first member's PgBouncer.
pub fn pgbench(cluster: &Cluster, arguments: &[&str], limit: Duration) -> Result<Output> {
    let (address, port) = (cluster.node(0)?.address().to_string(), POOL.to_string());
    let all = [&["-h", &address, "-p", &port, "-U", "chaos"], arguments, &["chaos"]].concat();
    run_client(cluster, "pgbench", &all, limit)
}

/// Moves the primary round the members while pgbench runs for `time` through the first member's PgBouncer, and returns how
/// many switchovers began in it.
///
/// # Errors
/// When pgbench saw any error, or there was no switchover.
pub fn switchovers(cluster: &Cluster, time: Duration) -> Result<u32> {
    let address = cluster.node(0)?.address().to_string();
    let mut pgbench = cluster.network().command(Place::Client, &binary::postgres_folder()?.join("pgbench"));
    pgbench.args(["-h", &address, "-p", &POOL.to_string(), "-U", "chaos", "-c", "8", "-n"]);
    pgbench.args(["-T", &time.as_secs().to_string(), "chaos"]).env("PGPASSWORD", "secret");
    let bench = std::thread::spawn(move || process::run(&mut pgbench, time + LIMIT * 2));
    crate::scenario::hold(Duration::from_secs(2));
    let mut done = 0;
    while !bench.is_finished() {
        let primary = cluster.wait_whole()?;
        if bench.is_finished() {
            break;
        }
        let to = cluster.node((primary + 1) % 3)?.name();
        let output = cluster.rhone(primary, &["switchover", "--to", &to], Duration::from_secs(120))?;
        // On a busy machine another member may be quicker than the one that was named: no error either.
        let changed = output.code == Some(0) || output.stderr.contains("could not take over");
        report(&format!(
            "switchover to {to}: {}{}",
            output.stdout.lines().next().unwrap_or(""),
            output.stderr.trim()
        ));
        done += u32::from(changed);
    }
    let output = bench.join().map_err(|_| anyhow::anyhow!("pgbench panicked"))??;
    let clean = !["ERROR", "FATAL", "aborted", "WARNING"].iter().any(|word| output.stderr.contains(word));
    ensure!(output.code == Some(0) && clean, "pgbench over {done} switchovers: {output:?}");
    ensure!(done >= 1, "no switchover fell into pgbench's time");
    let tps = output.stdout.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
    report(&format!("pgbench through PgBouncer over {done} switchovers: no error; {tps}"));
    Ok(done)
}

/// What the PgBouncers said last, for the message of a failure.
pub fn logs(cluster: &Cluster) -> String {
    let log = |index: usize| {
        let node = cluster.node(index).map(|node| node.folder().join("pgbouncer.log"));
        let text = node.map(|path| std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default();
        text.get(text.len().saturating_sub(TAIL)..).unwrap_or_default().to_owned()
    };
    (0..3).map(log).collect::<Vec<_>>().join("\n")
}
