//! A real PgBouncer beside each member: under pgbench a switchover shows no client an error.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss};
use rhone_chaos::lock::take_turn;
use rhone_chaos::pooler;
use rhone_chaos::ports::{POOL, ask_through, run_client, until};

#[test]
fn a_switchover_under_pgbench_through_pgbouncer_shows_no_error() -> Result<()> {
    let _turn = take_turn()?;
    let Some((mut cluster, poolers)) = pooler::start()? else { return Ok(()) };
    let result = secrets_are_kept(&cluster)
        .and_then(|()| pooler::switchovers(&cluster, Duration::from_secs(30)))
        .and_then(|_| after_a_power_loss(&mut cluster))
        .with_context(|| format!("{}\n{}", cluster.dump(), pooler::logs(&cluster)));
    drop(poolers);
    result
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
