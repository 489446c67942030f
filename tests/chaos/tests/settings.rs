//! The replicated settings at run time: parameters, the rolling restart that some of them need, and the
//! change of the synchronous mode, under clients that write all the time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Output;
use rhone_chaos::scenario::{GAP_LIMIT, Verdict, check_gap, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::Plan;
use serde_json::Value;

/// A rolling restart of three members on a loaded machine.
const COMMAND: Duration = Duration::from_secs(150);

/// Runs `rhone` on member 1; it passes on to the leader what only that one can do.
fn rhone(cluster: &Cluster, line: &str) -> Result<Output> {
    cluster.rhone(0, &line.split(' ').collect::<Vec<_>>(), COMMAND)
}

fn done(cluster: &Cluster, line: &str) -> Result<Value> {
    let output = rhone(cluster, &format!("{line} -o json"))?;
    ensure!(output.code == Some(0), "`{line}`: {:?} {}\n{}", output.code, output.stderr, cluster.dump());
    serde_json::from_str(&output.stdout).with_context(|| format!("read what `{line}` printed"))
}

/// Refused, with nothing changed and the words that matter.
fn refused(cluster: &Cluster, line: &str, why: &str) -> Result<()> {
    let output = rhone(cluster, line)?;
    ensure!(output.code == Some(3), "`{line}`: {:?} {}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr.contains(why), "`{line}` says: {}", output.stderr);
    Ok(())
}

/// Each Postgres's own word.
fn everywhere(cluster: &Cluster, parameter: &str, expected: &str) -> Result<()> {
    cluster.wait_until(&format!("{parameter} is {expected} everywhere"), || {
        for index in 0..cluster.members() {
            let door = cluster.node(index)?.door();
            let rows = ask(&door, "postgres", &format!("SHOW {parameter}"), Duration::from_secs(2))?;
            let value = rows.first().and_then(|row| row.first().cloned().flatten());
            ensure!(value.as_deref() == Some(expected), "member {}: {value:?}", index + 1);
        }
        Ok(())
    })
}

/// What waits for a restart, as `MEMBER NAME RUNNING WANTED`.
fn pending(cluster: &Cluster) -> Result<Vec<String>> {
    let status = cluster.status(0)?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let mut found = Vec::new();
    for member in status.get("members").and_then(Value::as_array).context("members")? {
        for one in member.get("pending").and_then(Value::as_array).context("pending")? {
            found.push(format!(
                "{} {} {} {}",
                text(member, "name"),
                text(one, "name"),
                text(one, "running"),
                text(one, "wanted")
            ));
        }
    }
    Ok(found)
}

fn settled(cluster: &Cluster) -> Result<()> {
    cluster.wait_until("every member says that the mode is settled", || {
        for index in 0..cluster.members() {
            let status = cluster.status(index)?;
            ensure!(status.pointer("/sync/settled") == Some(&Value::Bool(true)), "{status}");
        }
        Ok(())
    })
}

#[test]
fn settings_a_rolling_restart_and_another_synchronous_mode_lose_no_acknowledged_row() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    cluster.wait_whole()?;
    let names = (0..3).map(|index| Ok(cluster.node(index)?.name())).collect::<Result<Vec<_>>>()?;

    // From here on nothing that was acknowledged may be lost: the command returns once that is so.
    let changed = done(&cluster, "settings set sync=quorum")?;
    ensure!(changed.get("version") == Some(&Value::from(2)), "{changed}");
    settled(&cluster)?;
    let began = Moment::now();
    workload.wait_for(50, LIMIT)?;

    refused(&cluster, "settings set postgres.work_mme=9MB", "did you mean `postgres.work_mem`?")?;
    refused(&cluster, "settings set postgres.work_mem=1kB", "is between 64 and")?;
    refused(&cluster, "settings set postgres.fsync=off", "acknowledged commits are lost")?;
    refused(&cluster, "settings set postgres.max_connections=50", "cannot go below 100")?;
    refused(&cluster, "settings set --expect 1 postgres.work_mem=9MB", "at version 2 by now")?;
    refused(&cluster, "settings set sync-required=3", "no commit would be acknowledged")?;
    done(&cluster, "settings set postgres.work_mem=9MB postgres.max_connections=150")?;
    everywhere(&cluster, "work_mem", "9MB")?;
    everywhere(&cluster, "max_connections", "100")?;
    let expected: Vec<String> = names.iter().map(|name| format!("{name} max_connections 100 150")).collect();
    cluster.wait_until("each member says what waits for its restart", || {
        let found = pending(&cluster)?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })?;

    let primary = cluster.wait_whole()?;
    let restarted = done(&cluster, "restart --rolling --if-pending")?;
    let order: Vec<&str> = restarted
        .get("restarted")
        .and_then(Value::as_array)
        .context("restarted")?
        .iter()
        .filter_map(|one| one.get("name").and_then(Value::as_str))
        .collect();
    let last = names.get(primary).map(String::as_str);
    ensure!(order.len() == 3 && order.last().copied() == last, "{order:?}, the primary was {last:?}");
    report(&format!("restarted {order:?}"));
    everywhere(&cluster, "max_connections", "150")?;
    cluster.wait_until("nothing waits for a restart", || {
        let found = pending(&cluster)?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })?;
    let again = done(&cluster, "restart --rolling --if-pending")?;
    ensure!(again.pointer("/restarted/0").is_none(), "nothing was left: {again}");
    check_gap(&workload, began, GAP_LIMIT, "a rolling restart, the primary last by a switchover")?;

    done(&cluster, "settings set sync=strict sync-required=1")?;
    refused(&cluster, "settings revert 2", "cannot go below 150")?;
    done(&cluster, "settings revert 3")?;
    everywhere(&cluster, "work_mem", "9MB")?;
    let view = done(&cluster, "settings")?;
    ensure!(view.pointer("/values/sync").and_then(Value::as_str) == Some("quorum"), "{view}");
    let versions = done(&cluster, "settings history")?;
    ensure!(versions.as_array().map(Vec::len) == Some(4), "{versions}");

    // The mode that was set at run time keeps its word.
    cluster.wait_secured()?;
    let primary = cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    let at = Moment::now();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
