//! A real PgBouncer beside each member: under pgbench a switchover shows no client an error.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::Place;
use rhone_chaos::ports::{POOL, ask_through, run_client, until};
use rhone_chaos::process::Owned;
use rhone_chaos::scenario::{hold, report};

const TABLES: &str = "[pgbouncer]\nlisten = \"{address}:6432\"\nusers-file = \"{folder}/userlist.txt\"\n";

/// Starts PgBouncer at a member, as the user that runs Postgres.
fn start_pooler(cluster: &Cluster, index: usize) -> Result<Owned> {
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
    let log = std::fs::File::create(cluster.node(index)?.folder().join("pgbouncer.log"))?;
    command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Owned::spawn(&mut command)
}

fn pool_args(address: &str) -> Vec<&str> {
    vec!["-h", address, "-p", "6432", "-U", "chaos"]
}

#[test]
fn a_switchover_under_pgbench_through_pgbouncer_shows_no_error() -> Result<()> {
    let _turn = take_turn()?;
    if binary::program("pgbouncer").is_none() {
        report("SKIPPED: no pgbouncer here (deploy/install-deps.sh test installs it)");
        return Ok(());
    }
    let spec = Spec { tables: TABLES.to_owned(), ..Spec::asynchronous(3) };
    let mut cluster = Cluster::create(&spec)?;
    let mut poolers = Vec::new();
    for index in 0..3 {
        std::fs::write(cluster.node(index)?.folder().join("userlist.txt"), "\"chaos\" \"secret\"\n")?;
        cluster.start_node(index)?;
    }
    for index in 0..3 {
        poolers.push(start_pooler(&cluster, index)?);
    }
    cluster.prepare_database()?;
    let result = switchovers(&mut cluster).with_context(|| {
        let log = |index: usize| {
            let node = cluster.node(index).map(|node| node.folder().join("pgbouncer.log"));
            let text = node.map(|path| std::fs::read_to_string(path).unwrap_or_default());
            let text = text.unwrap_or_default();
            let from = text.len().saturating_sub(3000);
            text.get(from..).unwrap_or_default().to_owned()
        };
        format!("{}\n{}\n{}\n{}", cluster.dump(), log(0), log(1), log(2))
    });
    drop(poolers);
    result
}

fn switchovers(cluster: &mut Cluster) -> Result<()> {
    secrets_are_kept(cluster)?;
    let one = cluster.node(0)?.address().to_string();
    let args = |more: &[&'static str]| -> Vec<String> {
        let all = pool_args(&one).into_iter().chain(more.iter().copied());
        all.map(str::to_owned).collect()
    };
    let run = |more: &[&'static str], limit: Duration| {
        let args = args(more);
        run_client(cluster, "pgbench", &args.iter().map(String::as_str).collect::<Vec<_>>(), limit)
    };
    let output = run(&["-i", "-q", "-s", "1", "chaos"], LIMIT)?;
    ensure!(output.code == Some(0), "pgbench -i through PgBouncer: {output:?}");
    let address = one.clone();
    let mut pgbench = cluster.network().command(Place::Client, &binary::postgres_folder()?.join("pgbench"));
    pgbench.args([
        "-h",
        &address,
        "-p",
        &POOL.to_string(),
        "-U",
        "chaos",
        "-c",
        "8",
        "-T",
        "30",
        "-n",
        "chaos",
    ]);
    pgbench.env("PGPASSWORD", "secret");
    let bench = std::thread::spawn(move || rhone_chaos::process::run(&mut pgbench, Duration::from_secs(180)));
    hold(Duration::from_secs(2));
    let mut rounds = 0;
    while !bench.is_finished() {
        let primary = cluster.wait_whole()?;
        if bench.is_finished() {
            break;
        }
        cluster.switchover((primary + 1) % 3)?;
        rounds += 1;
    }
    let output = bench.join().map_err(|_| anyhow::anyhow!("pgbench panicked"))??;
    let clean = !["ERROR", "FATAL", "aborted", "WARNING"].iter().any(|word| output.stderr.contains(word));
    ensure!(output.code == Some(0) && clean, "pgbench over {rounds} switchovers: {output:?}");
    ensure!(rounds >= 1, "no switchover fell into pgbench's time");
    let tps = output.stdout.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
    report(&format!("pgbench through PgBouncer over {rounds} switchovers: no error; {tps}"));
    after_a_power_loss(cluster)
}

/// What is secret is its reader's alone, and no more than that is written.
fn secrets_are_kept(cluster: &Cluster) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    for name in ["pgbouncer.ini", "users.txt", "admin.pw"] {
        let path = cluster.node(0)?.folder().join("state/pgbouncer").join(name);
        let mode = std::fs::metadata(&path).with_context(|| format!("look at {name}"))?.mode();
        ensure!(mode & 0o7777 == 0o600, "{name} has mode {mode:o}");
    }
    Ok(())
}

/// Idle clients of a pool outlive the primary.
fn after_a_power_loss(cluster: &mut Cluster) -> Result<()> {
    let primary = cluster.wait_whole()?;
    let other = (0..3).find(|index| *index != primary).context("a standby")?;
    ensure!(
        ask_through(cluster, other, POOL, "SELECT 1").is_err(),
        "PgBouncer let in a client without its password"
    );
    let address = cluster.node(other)?.address().to_string();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    until("PgBouncer leads to the new primary", || {
        let conninfo = format!("host={address} port={POOL} user=chaos dbname=chaos");
        let output = run_client(cluster, "psql", &["-XAtc", "SELECT pg_is_in_recovery()", &conninfo], LIMIT)?;
        Ok(output.code == Some(0) && output.stdout.trim() == "f")
    })?;
    cluster.start_node(primary)?;
    cluster.wait_whole().map(drop)
}
