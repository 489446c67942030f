//! `postgres.dead-man`: nobody is left who could fence, and the kernel keeps in what the old primary sends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::node::{Extras, POSTGRES_PORT};
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{Excuse, Verdict, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::Plan;

/// Whether the member's own table is in its kernel.
fn has_table(cluster: &Cluster, index: usize) -> Result<bool> {
    let mut command = cluster.network().command(Place::Node(index), Path::new("nft"));
    let shown = process::run(command.args(["list", "tables"]), Duration::from_secs(20))?;
    ensure!(shown.code == Some(0), "nft list tables: {}", shown.stderr);
    Ok(shown.stdout.contains(&format!("table inet rhone_{POSTGRES_PORT}")))
}

/// Waits until the primary has its table, and no standby has one.
fn only_the_primary(cluster: &Cluster) -> Result<usize> {
    let primary = cluster.wait_whole()?;
    cluster.wait_until("only the primary has a dead-man", || {
        for index in 0..cluster.members() {
            let name = cluster.node(index)?.name();
            let has = has_table(cluster, index)?;
            ensure!(has == (index == primary), "{name} has a table: {has}; {} is primary", primary + 1);
        }
        Ok(())
    })?;
    Ok(primary)
}

#[test]
fn nothing_that_was_sent_to_a_stopped_primary_after_its_successor_served_is_acknowledged() -> Result<()> {
    let means = Means::detect();
    if means != Means::Filter {
        report(&format!("SKIPPED: {}", means.missing().unwrap_or_default()));
        return Ok(());
    }
    let _turn = take_turn()?;
    let extras = Extras { dead_man: true, ..Extras::default() };
    let mut cluster = Cluster::start(&Spec { extras, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(200, LIMIT)?;
    let old = only_the_primary(&cluster)?;

    let at = Moment::now();
    cluster.node_mut(old)?.signal_both(Signal::STOP)?;
    let first = workload.wait_elsewhere(old, at, LIMIT)?;
    workload.wait_for(400, LIMIT)?;
    // Otherwise nothing was tried: it is still a primary that writes, for whoever has its socket.
    let door = cluster.node(old)?.door();
    let write = "CREATE TABLE nobody_fences AS SELECT pg_is_in_recovery() AS standby; TABLE nobody_fences";
    let said = ask(&door, "postgres", write, Duration::from_secs(20)).context("write on the old primary")?;
    ensure!(said.iter().flatten().flatten().any(|word| word == "f"), "it is no primary any more: {said:?}");
    ensure!(!cluster.reaches(Place::Client, old), "it takes connections");
    report(&format!(
        "{:.3} s after the stop another member acknowledged; the old primary writes, and nobody hears it",
        first.finished.since(at).as_secs_f64()
    ));

    cluster.resume_all();
    // It is a standby now, and readers reach it again.
    let new = only_the_primary(&cluster)?;
    ensure!(new != old, "the old primary is primary");
    cluster.wait_until("the old primary is reached again", || {
        ensure!(cluster.reaches(Place::Client, old), "it is not reached");
        Ok(())
    })?;
    cluster.switchover(old)?;
    ensure!(only_the_primary(&cluster)? == old, "the switchover went elsewhere");
    workload.wait_for(100, LIMIT)?;
    let history = workload.stop()?;
    // Not unfenced: no proof of two primaries is excused.
    Verdict::of(&cluster, &history, &[Excuse::lease(at)])?.check(&cluster)
}
