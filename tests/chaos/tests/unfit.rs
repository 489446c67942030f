//! Settings that only a start would refuse: refused before where a rehearsed start shows it, survived where it
//! does not; and lines that a running server does not take.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Output;
use rhone_chaos::scenario::Verdict;
use rhone_chaos::workload::Plan;
use serde_json::Value;

const COMMAND: Duration = Duration::from_secs(150);

fn rhone(cluster: &Cluster, line: &str) -> Result<Output> {
    cluster.rhone(0, &line.split(' ').collect::<Vec<_>>(), COMMAND)
}

fn done(cluster: &Cluster, line: &str) -> Result<Value> {
    let output = rhone(cluster, &format!("{line} -o json"))?;
    ensure!(output.code == Some(0), "`{line}`: {:?} {}\n{}", output.code, output.stderr, cluster.dump());
    serde_json::from_str(&output.stdout).with_context(|| format!("read what `{line}` printed"))
}

fn refused(cluster: &Cluster, line: &str, why: &str) -> Result<()> {
    let output = rhone(cluster, line)?;
    ensure!(output.code == Some(3), "`{line}`: {:?} {}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr.contains(why), "`{line}` says: {}", output.stderr);
    Ok(())
}

fn member(cluster: &Cluster, name: &str) -> Result<Value> {
    let status = cluster.status(0)?;
    let members = status.get("members").and_then(Value::as_array).context("members")?;
    let found = members.iter().find(|member| member.get("name").and_then(Value::as_str) == Some(name));
    found.cloned().with_context(|| format!("no {name} in {status}"))
}

/// The starts of all servers, by their member's own word.
fn starts(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for index in 0..cluster.members() {
        let name = cluster.node(index)?.name();
        let started = member(cluster, &name)?.get("started").cloned().context("a start")?;
        ensure!(!started.is_null(), "{name} runs no server");
        found.push((name, started));
    }
    Ok(found)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[test]
fn values_that_only_a_start_refuses_stop_one_standby_at_most_and_it_comes_back_by_the_way_back() -> Result<()>
{
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec { sync: Sync::Quorum, ..Spec::asynchronous(3) })?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    cluster.wait_whole()?;

    // What a rehearsed start shows is refused.
    refused(&cluster, "settings set postgres.shared_preload_libraries=no_such_library", "no_such_library")?;
    refused(
        &cluster,
        "settings set postgres.shared_buffers=4TB",
        "MB of shared memory, and the machine has",
    )?;
    done(&cluster, "settings set --dry-run postgres.shared_preload_libraries=pg_stat_statements")?;

    // Huge pages are there or not only when a start asks for them: this machine has none.
    let before = starts(&cluster)?;
    done(&cluster, "settings set postgres.huge_pages=on")?;
    let cut = rhone(&cluster, "restart --rolling --if-pending")?;
    ensure!(cut.code == Some(1), "{:?} {}", cut.code, cut.stderr);
    ensure!(cut.stderr.contains("could not map anonymous shared memory"), "{}", cut.stderr);
    ensure!(cut.stderr.contains("rhone settings revert 1"), "{}", cut.stderr);
    let mut down = Vec::new();
    for (name, started) in &before {
        let now = member(&cluster, name)?;
        if text(&now, "start_failure").is_empty() {
            ensure!(now.get("started") == Some(started), "{name} was touched: {now}");
        } else {
            ensure!(text(&now, "note").contains("does not start"), "{now}");
            down.push(name.clone());
        }
    }
    let primary = text(&cluster.status(0)?, "primary");
    ensure!(down.len() == 1 && !down.contains(&primary), "down: {down:?}, the primary is {primary}");
    workload.wait_for(50, LIMIT)?;

    // The way back starts it again, from the data that it had.
    done(&cluster, "settings revert 1")?;
    cluster.wait_whole()?;
    cluster.wait_until("it says that it streams again", || {
        let back = member(&cluster, down.first().context("one")?)?;
        ensure!(text(&back, "state") == "streaming" && text(&back, "start_failure").is_empty(), "{back}");
        Ok(())
    })?;
    let index =
        (0..3).find(|index| cluster.node(*index).is_ok_and(|node| Some(&node.name()) == down.first()));
    let log = cluster.node(index.context("its index")?)?.log_tail(100_000);
    ensure!(!log.contains("rewind_failed"), "its data was blamed: {log}");

    // A line of a person's own that the server does not take is told by everybody who could tell.
    let node = cluster.node(0)?;
    let path = node.data().join("pg_ident.conf");
    let own = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("{own}\nmymap onlyonefield\n"))?;
    let name = node.name();
    let reload = rhone(&cluster, &format!("reload {name}"))?;
    ensure!(reload.code == Some(0), "{}", reload.stderr);
    cluster.wait_until("the line is told", || {
        let now = member(&cluster, &name)?;
        let told = now.pointer("/refused_lines/0").and_then(Value::as_str).unwrap_or_default();
        ensure!(told.contains("pg_ident.conf line") && text(&now, "note").contains("not taken"), "{now}");
        Ok(())
    })?;
    let doctor = rhone(&cluster, "doctor")?;
    ensure!(doctor.stdout.contains("does not take pg_ident.conf line"), "{}{}", doctor.stdout, doctor.stderr);
    let set = rhone(&cluster, "settings set postgres.work_mem=9MB")?;
    ensure!(set.code == Some(0) && set.stderr.contains("does not take pg_ident.conf line"), "{}", set.stderr);
    std::fs::write(&path, own)?;
    rhone(&cluster, &format!("reload {name}"))?;
    cluster.wait_until("nothing is told any more", || {
        let now = member(&cluster, &name)?;
        ensure!(now.pointer("/refused_lines/0").is_none(), "{now}");
        Ok(())
    })?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
