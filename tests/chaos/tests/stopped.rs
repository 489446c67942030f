//! What runs and does nothing: a stopped guardian, a Postgres that makes no progress. Nobody dies
//! here, so that somebody has to notice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::disk;
use rhone_chaos::lock::take_turn;
use rhone_chaos::node::Extras;
use rhone_chaos::process::Signal;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap, report};
use rhone_chaos::workload::Plan;

/// A Postgres without progress is given ten seconds before it counts as hung (docs/safety.md 9).
const HUNG: Duration = Duration::from_secs(10);

#[test]
fn a_primary_whose_guardian_is_stopped_stops_serving_before_another_does() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(200, LIMIT)?;
    let primary = cluster.wait_whole()?;
    let before = cluster.node(primary)?.guardians();
    let epoch = cluster.epoch()?;
    let at = Moment::now();
    cluster.node(primary)?.signal_guardian(Signal::STOP)?;
    cluster.wait_until("another epoch", || {
        ensure!(cluster.epoch()? > epoch, "epoch {epoch} goes on beside a guardian that fences nobody");
        Ok(())
    })?;
    cluster.wait_whole()?;
    check_gap(&workload, at, GAP_LIMIT, "primary's guardian stopped")?;
    let after = cluster.node(primary)?.guardians();
    ensure!(!after.iter().any(|pid| before.contains(pid)), "the stopped guardian is still there");
    workload.wait_for(100, LIMIT)?;
    let history = workload.stop()?;
    Verdict::of(&cluster, &history, &[Excuse::lease(at)])?.check(&cluster)
}

#[test]
fn a_postgres_that_makes_no_progress_is_replaced() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(200, LIMIT)?;
    let primary = cluster.wait_whole()?;
    let epoch = cluster.epoch()?;
    let at = Moment::now();
    ensure!(cluster.node(primary)?.signal_postgres(Signal::STOP) > 0, "nothing was stopped");
    cluster.wait_until("another epoch", || {
        ensure!(cluster.epoch()? > epoch, "epoch {epoch} goes on with a postgres that does nothing");
        Ok(())
    })?;
    cluster.wait_whole()?;
    check_gap(&workload, at, HUNG + GAP_LIMIT, "primary's postgres stopped")?;
    workload.wait_for(100, LIMIT)?;
    let history = workload.stop()?;
    Verdict::of(&cluster, &history, &[Excuse::lease(at)])?.check(&cluster)
}

/// The disk takes no write any more, and Postgres goes on answering whoever only reads.
#[test]
fn a_primary_whose_disk_hangs_is_replaced() -> Result<()> {
    if let Some(why) = disk::impossible() {
        report(&format!("SKIPPED: {why}"));
        return Ok(());
    }
    let _turn = take_turn()?;
    let extras = Extras { disks: true, ..Extras::default() };
    let cluster = Cluster::start(&Spec { sync: Sync::Quorum, extras, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(200, LIMIT)?;
    let primary = cluster.wait_whole()?;
    cluster.wait_secured()?;
    let at = Moment::now();
    let (data, _) = cluster.node(primary)?.disks()?;
    data.hang(true)?;
    let elsewhere = workload.wait_elsewhere(primary, at, LIMIT);
    data.hang(false)?;
    let first = elsewhere.with_context(|| cluster.dump())?;
    report(&format!("{:.1} s until another acknowledged", first.finished.since(at).as_secs_f64()));
    cluster.wait_whole()?;
    workload.wait_for(100, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
