//! A new copy for a standby: it goes on streaming until that is complete, a failing one is told and can be called
//! off, and nothing is left of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Output;
use rhone_chaos::scenario::Verdict;
use rhone_chaos::sql::ask;
use rhone_chaos::workload::Plan;
use serde_json::Value;

const COMMAND: Duration = Duration::from_secs(150);

fn rhone(cluster: &Cluster, arguments: &[&str]) -> Result<Output> {
    cluster.rhone(0, arguments, COMMAND)
}

fn done(cluster: &Cluster, arguments: &[&str]) -> Result<Output> {
    let output = rhone(cluster, arguments)?;
    ensure!(output.code == Some(0), "{arguments:?}: {:?} {}\n{}", output.code, output.stderr, cluster.dump());
    Ok(output)
}

fn member(cluster: &Cluster, name: &str) -> Result<Value> {
    let status = cluster.status(0)?;
    let members = status.get("members").and_then(Value::as_array).context("members")?;
    let found = members.iter().find(|member| member.get("name").and_then(Value::as_str) == Some(name));
    found.cloned().with_context(|| format!("no {name} in {status}"))
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What lies beside a member's data directory besides that.
fn beside(cluster: &Cluster, index: usize) -> Result<Vec<String>> {
    let data = cluster.node(index)?.data();
    let name = data.file_name().context("a name")?.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data.parent().context("a parent")?)? {
        let other = entry?.file_name().to_string_lossy().into_owned();
        if other.starts_with(&format!("{name}.rhone-")) {
            found.push(other);
        }
    }
    Ok(found)
}

#[test]
fn a_standby_streams_while_it_is_copied_anew_and_a_copy_that_fails_is_called_off() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec { sync: Sync::Quorum, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    let primary = cluster.wait_whole()?;
    cluster.wait_secured()?;
    let index = (0..3).rev().find(|index| *index != primary).context("a standby")?;
    let name = cluster.node(index)?.name();
    let before = cluster.wait_until("its data directory is known", || {
        let before = member(&cluster, &name)?;
        ensure!(!text(&before, "data_id").is_empty(), "{before}");
        Ok(before)
    })?;
    let postmaster = cluster.node(index)?.postmaster();

    // What streams goes on, and nobody else gets in to copy.
    let door = cluster.node(primary)?.door();
    let role = |login| {
        ask(&door, "postgres", &format!("ALTER ROLE rhone_replicator {login}"), Duration::from_secs(30))
            .map(drop)
    };
    role("NOLOGIN")?;
    // A Raft leader that is new has to hear from the primary first, and refuses until then.
    cluster
        .wait_until("the copy is asked for", || done(&cluster, &["reinit", &name, "--yes", "--no-wait"]))?;
    cluster.wait_until("failing attempts are told", || {
        let now = member(&cluster, &name)?;
        let failed = now.pointer("/copying/failed").and_then(Value::as_u64);
        ensure!(failed >= Some(2), "{now}");
        ensure!(now.pointer("/copying/error").and_then(Value::as_str).is_some(), "{now}");
        ensure!(text(&now, "state") == "streaming" && now.get("started") == before.get("started"), "{now}");
        Ok(())
    })?;
    workload.wait_for(50, LIMIT)?;
    let kept = done(&cluster, &["reinit", &name, "--cancel", "-o", "json"])?;
    ensure!(kept.stdout.contains("\"kept\":true"), "{}", kept.stdout);
    let now = member(&cluster, &name)?;
    ensure!(text(&now, "state") == "streaming" && text(&now, "data_id") == text(&before, "data_id"), "{now}");
    ensure!(cluster.node(index)?.postmaster() == postmaster, "its server was restarted");
    cluster.wait_until("nothing is left of it", || {
        let left = beside(&cluster, index)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let again = rhone(&cluster, &["reinit", &name, "--cancel"])?;
    ensure!(again.code == Some(3), "{:?} {}", again.code, again.stderr);

    role("LOGIN")?;
    done(&cluster, &["reinit", &name, "--yes"])?;
    let now = member(&cluster, &name)?;
    ensure!(text(&now, "data_id") != text(&before, "data_id"), "{now}");
    cluster.wait_until("the old data directory is gone", || {
        let left = beside(&cluster, index)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    cluster.wait_whole()?;
    cluster.wait_secured()?;
    workload.wait_for(50, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
