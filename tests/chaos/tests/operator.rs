//! An operator's day as a transcript: every command, what it prints, and a writer that loses no row.

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Signal;
use rhone_chaos::scenario::{GAP_LIMIT, Verdict, check_gap, report};
use rhone_chaos::transcript::Transcript;
use rhone_chaos::workload::{Plan, Workload};
use serde_json::Value;

const TRANSCRIPT: &str = include_str!("../transcripts/operator.txt");

/// Plays a section under the writer, and says for how long writes were away.
fn play(transcript: &mut Transcript, cluster: &Cluster, workload: &Workload, section: &str) -> Result<()> {
    let at = Moment::now();
    let said = transcript.play(cluster, section).with_context(|| cluster.dump())?;
    report(&said);
    workload.wait_for(50, LIMIT)?;
    check_gap(workload, at, GAP_LIMIT, section).map(drop)
}

/// Takes the power from a member and all that it had on disk, then lets it come back.
fn wipe(cluster: &mut Cluster, index: usize) -> Result<()> {
    cluster.power_loss(index, rhone_chaos::cluster::PowerLoss::Resets)?;
    std::fs::remove_dir_all(cluster.node(index)?.state()).context("empty its state")?;
    std::fs::remove_dir_all(cluster.node(index)?.data()).context("empty its data")?;
    cluster.start_node(index)
}

#[test]
fn an_operators_day_loses_no_acknowledged_row() -> Result<()> {
    let _turn = take_turn()?;
    let spec = Spec { sync: Sync::Quorum, founders: Some(3), ..Spec::asynchronous(4) };
    let mut cluster = Cluster::start(&spec)?;
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    workload.wait_for(50, LIMIT)?;
    let first = cluster.wait_whole_without(&[3])?;
    cluster.wait_secured()?;
    let (second, third) = ((first + 1) % 3, (first + 2) % 3);
    let mut transcript = Transcript::read(TRANSCRIPT)?;
    for (name, index) in [("first", first), ("second", second), ("third", third)] {
        transcript.name(name, &cluster.node(index)?.name());
        transcript.name(&format!("{name} address"), &cluster.node(index)?.address().to_string());
    }
    transcript.name("version", env!("CARGO_PKG_VERSION"));

    play(&mut transcript, &cluster, &workload, "look")?;
    play(&mut transcript, &cluster, &workload, "switch over")?;
    ensure!(cluster.wait_whole_without(&[3])? == second, "the switchover went elsewhere");
    cluster.wait_secured()?;
    play(&mut transcript, &cluster, &workload, "raise max_connections")?;
    // A rolling restart ends with the primary's, by a switchover: it may be anybody now.
    cluster.wait_whole_without(&[3])?;
    cluster.wait_secured()?;

    play(&mut transcript, &cluster, &workload, "add a member")?;
    cluster.start_node(3)?;
    let primary = cluster.wait_whole()?;
    cluster.wait_secured()?;
    play(&mut transcript, &cluster, &workload, "it has come")?;
    if primary == first {
        cluster.switchover(second)?;
        cluster.wait_secured()?;
    }
    play(&mut transcript, &cluster, &workload, "remove the first")?;
    cluster.node_mut(first)?.signal_both(Signal::KILL)?;
    cluster.wait_whole_without(&[first])?;

    let standby = if cluster.wait_whole_without(&[first])? == third { second } else { third };
    wipe(&mut cluster, standby)?;
    let primary = cluster.wait_whole_without(&[first])?;
    cluster.wait_secured()?;
    play(&mut transcript, &cluster, &workload, "replace a wiped one")?;

    let epoch = cluster.epoch()?;
    play(&mut transcript, &cluster, &workload, "pause")?;
    let next = cluster.folder().join("rhone-next");
    std::fs::copy(cluster.node(0)?.program(), &next).context("copy the binary")?;
    // Standbys first. The old one ends without its farewell.
    let mut members: Vec<usize> = (0..4).filter(|index| *index != first && *index != primary).collect();
    members.push(primary);
    for index in members {
        let node = cluster.node_mut(index)?;
        node.use_program(next.clone());
        node.signal_supervisor(Signal::KILL)?;
        node.wait_for_end(LIMIT).context("the supervisor ended")?;
        cluster.start_node(index)?;
        cluster.wait_until("its supervisor answers", || {
            let status = cluster.status(index)?;
            ensure!(status.get("writable") == Some(&Value::Bool(true)), "{status}");
            Ok(())
        })?;
    }
    cluster.wait_whole_without(&[first])?;
    ensure!(cluster.epoch()? == epoch, "the upgrade under pause changed the epoch");
    play(&mut transcript, &cluster, &workload, "resume")?;
    transcript.end()?;
    Verdict::without(&cluster, &workload.stop()?, &[], &[first])?.check(&cluster)
}
