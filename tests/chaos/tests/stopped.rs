//! What runs and does nothing: a stopped guardian, a Postgres that makes no progress. Nobody dies
//! here, so that somebody has to notice.

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::disk;
use rhone_chaos::lock::take_turn;
use rhone_chaos::node::Extras;
use rhone_chaos::process::Signal;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, HUNG, Verdict, check_gap, report};
use rhone_chaos::workload::{Plan, Workload};

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

/// The disk takes no write any more, and Postgres goes on answering whoever only reads. Then the same with the Raft
/// store on the disk that hangs, as on a board with one card, and an operator who asks for a switchover meanwhile.
#[test]
fn a_primary_whose_disk_hangs_is_replaced_and_comes_back() -> Result<()> {
    if let Some(why) = disk::impossible() {
        report(&format!("SKIPPED: {why}"));
        return Ok(());
    }
    let _turn = take_turn()?;
    let extras = Extras { disks: true, ..Extras::default() };
    let cluster = Cluster::start(&Spec { sync: Sync::Quorum, extras, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    hang(&cluster, &workload, Card::OfItsOwn)?;
    hang(&cluster, &workload, Card::Shared)?;
    cluster.wait_secured()?;
    workload.wait_for(100, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}

/// Where the data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    OfItsOwn,
    /// With the Raft store.
    Shared,
}

/// Lets the primary's disk hang until another member has acknowledged a write, and then waits until all stream again.
fn hang(cluster: &Cluster, workload: &Workload, card: Card) -> Result<()> {
    workload.wait_for(200, LIMIT)?;
    let primary = cluster.wait_whole()?;
    cluster.wait_secured()?;
    let at = Moment::now();
    let (data, state) = cluster.node(primary)?.disks()?;
    let disks = if card == Card::Shared { vec![data, state] } else { vec![data] };
    disks.iter().try_for_each(|disk| disk.hang(true))?;
    let elsewhere = || {
        if card == Card::Shared {
            // It may be refused, where nobody could take over at that moment; it must only hold up nothing.
            let asked = cluster.rhone((primary + 1) % 3, &["switchover", "--no-wait"], LIMIT)?;
            report(&format!("a switchover asked for meanwhile: {:?} {}", asked.code, asked.stderr.trim()));
        }
        workload.wait_elsewhere(primary, at, LIMIT)
    };
    let elsewhere = elsewhere();
    disks.iter().try_for_each(|disk| disk.hang(false))?;
    let first = elsewhere.with_context(|| cluster.dump())?;
    report(&format!("{card:?}: {:.1} s until another acknowledged", first.finished.since(at).as_secs_f64()));
    cluster.wait_whole().map(drop)
}
