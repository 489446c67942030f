//! A majority that is lost for good: one member goes on alone, the others join anew, and nobody goes on
//! in the old cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::{Output, Signal};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::{DATABASE, Plan};
use serde_json::Value;

/// A command on a loaded machine.
const COMMAND: Duration = Duration::from_secs(60);

fn recover(cluster: &Cluster, at: usize, more: &[&str]) -> Result<Output> {
    let line: Vec<&str> = ["recover", "--force-new-cluster"].iter().chain(more).copied().collect();
    cluster.rhone(at, &line, COMMAND)
}

fn refused(cluster: &Cluster, at: usize, more: &[&str], why: &str) -> Result<()> {
    let output = recover(cluster, at, more)?;
    ensure!(output.code == Some(3), "{:?} {}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr.contains(why) && output.stderr.contains("\nhint: "), "it says: {}", output.stderr);
    Ok(())
}

/// Empties what a member keeps: its store and its data.
fn wipe(cluster: &Cluster, index: usize) -> Result<()> {
    for folder in ["state", "pg"] {
        let folder = cluster.node(index)?.folder().join(folder);
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn insert(cluster: &Cluster, at: usize, seq: usize) -> Result<()> {
    let line = format!("INSERT INTO writes (client, seq) VALUES (999, {seq})");
    cluster.wait_until("a row is written", || {
        ask(&cluster.node(at)?.door(), DATABASE, &line, Duration::from_secs(5)).map(drop)
    })
}

/// The former primary comes back as it was: it neither serves nor disturbs, and says what to do.
fn comes_back_as_it_was(cluster: &mut Cluster, first: usize, survivor: usize) -> Result<()> {
    for _ in 0..2 {
        cluster.start_node(first)?;
        let ended = cluster.node_mut(first)?.wait_for_end(LIMIT);
        ensure!(ended.is_some_and(|status| !status.success()), "{ended:?}; {}", cluster.dump());
        let log = cluster.node(first)?.log_tail(5);
        ensure!(log.contains("the cluster was begun anew without this member"), "{log}");
        ensure!(log.contains("hint: ") && log.contains("empty node.state-dir"), "{log}");
        let roles = cluster.roles();
        ensure!(roles.get(&first).is_none_or(|role| role.standby), "it serves: {roles:?}");
        ensure!(roles.get(&survivor).is_some_and(|role| role.streaming == 0), "it streams: {roles:?}");
    }
    Ok(())
}

#[test]
fn one_member_goes_on_alone_and_the_others_come_back_as_new_ones_only() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec { sync: Sync::Quorum, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, LIMIT)?;
    let acknowledged = workload.stop()?.acknowledged().len();
    ensure!(acknowledged >= 100, "only {acknowledged} rows were acknowledged");
    cluster.wait_secured()?;
    let first = cluster.wait_whole()?;
    let (survivor, second) = ((first + 1) % 3, (first + 2) % 3);
    let before = cluster.rows(&[])?.remove(&survivor).context("the survivor's rows")?;
    let epoch = cluster.epoch()?;

    refused(&cluster, survivor, &["--yes"], "rhone runs here")?;
    cluster.power_loss(second, rhone_chaos::cluster::PowerLoss::Resets)?;
    cluster.node_mut(survivor)?.signal_supervisor(Signal::TERM)?;
    ensure!(cluster.node_mut(survivor)?.wait_for_end(LIMIT).is_some(), "the supervisor did not end");
    // One of the others is there: with this one it is a majority.
    refused(&cluster, survivor, &["--yes"], "is a majority of the voters: nothing is lost for good")?;
    cluster.power_loss(first, rhone_chaos::cluster::PowerLoss::Resets)?;
    refused(&cluster, survivor, &[], "goes on alone as a new cluster")?;

    let output = recover(&cluster, survivor, &["--yes", "-o", "json"])?;
    ensure!(output.code == Some(0), "{:?} {}{}", output.code, output.stdout, output.stderr);
    let told: Value = serde_json::from_str(&output.stdout).context("read what recover printed")?;
    ensure!(told["recovered"] == true && told["new_generation"].as_u64() > Some(0), "{told}");
    ensure!(told["voters_there"] == 1 && told["voters"] == 3, "{told}");
    ensure!(told["may_be_lost"].as_array().is_some_and(|sentences| !sentences.is_empty()), "{told}");
    ensure!(told["position"].is_string(), "{told}");

    cluster.start_node(survivor)?;
    ensure!(cluster.wait_whole_without(&[first, second])? == survivor, "another one leads");
    insert(&cluster, survivor, 1)?;
    let rows = cluster.rows_of(survivor)?;
    ensure!(rows.is_superset(&before), "{} rows were there, {} are", before.len(), rows.len());
    let anew = cluster.epoch()?;
    ensure!(anew >= 1 << 32 && anew > epoch, "epoch {anew} after {epoch}");

    comes_back_as_it_was(&mut cluster, first, survivor)?;
    insert(&cluster, survivor, 2)?;
    ensure!(cluster.epoch()? == anew, "the new cluster was disturbed");
    cluster.power_loss(first, rhone_chaos::cluster::PowerLoss::Resets)?;

    for index in [first, second] {
        wipe(&cluster, index)?;
        cluster.start_node(index)?;
    }
    cluster.wait_whole()?;
    cluster.wait_secured()?;
    cluster.wait_until("all three vote again", || {
        let status = cluster.status(survivor)?;
        let members = status["members"].as_array().context("members")?;
        let voters = members.iter().filter(|member| member["voter"] == true).count();
        ensure!(members.len() == 3 && voters == 3, "{status}");
        Ok(())
    })?;
    cluster.switchover(first)?;
    insert(&cluster, first, 3)?;
    let rows = cluster.rows(&[])?;
    let sizes: Vec<usize> = rows.values().map(std::collections::BTreeSet::len).collect();
    ensure!(rows.len() == 3, "{sizes:?}");
    ensure!(
        rows.values().all(|rows| rows.is_superset(&before) && rows.len() == before.len() + 3),
        "{sizes:?}"
    );

    let output = cluster.rhone(first, &["history", "-o", "json"], COMMAND)?;
    let history: Value = serde_json::from_str(&output.stdout).context("read the history")?;
    let entries = history.as_array().context("entries")?;
    ensure!(entries.iter().any(|entry| entry["reason"] == "recovery"), "{history}");
    ensure!(entries.first().is_some_and(|entry| entry["reason"] == "founding"), "{history}");
    Ok(())
}
