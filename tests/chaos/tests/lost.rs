//! What asynchronous mode loses: no more than the lease allows, reported to the byte, and kept.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::history::{ClientKind, History};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::process;
use rhone_chaos::scenario::{Excuse, Verdict, hold, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::{DATABASE, Plan};
use serde_json::Value;

/// The last change of primary, as a member tells it.
fn last_change(cluster: &Cluster, index: usize) -> Result<Value> {
    let output = cluster.rhone(index, &["history", "-o", "json"], Duration::from_secs(10))?;
    let entries: Value = serde_json::from_str(&output.stdout).context("read the history")?;
    entries.as_array().and_then(|entries| entries.last().cloned()).context("a change of primary")
}

/// The only range that is kept on a member, and its folder: `<timeline>-<from>..<to>`.
fn kept(cluster: &Cluster, index: usize) -> Result<(PathBuf, String, String, String)> {
    let folder = cluster.node(index)?.folder().join("pg/data.rhone/forked");
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        found.push(entry?.path());
    }
    ensure!(found.len() == 1, "kept: {found:?}");
    let path = found.remove(0);
    let name = path.file_name().context("a name")?.to_string_lossy().replace('_', "/");
    let (timeline, range) = name.split_once('-').context("a timeline")?;
    let (from, to) = range.split_once("..").context("a range")?;
    Ok((path.clone(), timeline.to_owned(), from.to_owned(), to.to_owned()))
}

/// Reads the kept WAL with Postgres's own program: the transactions that wrote into this table and
/// committed.
fn commits(path: &Path, timeline: &str, from: &str, to: &str, table: &str) -> Result<BTreeSet<u64>> {
    let text = process::run_ok(
        Command::new(binary::postgres_folder()?.join("pg_waldump")).arg("--path").arg(path).args([
            "--timeline",
            timeline,
            "--start",
            from,
            "--end",
            to,
        ]),
    )?;
    let transaction = |line: &str| line.split("tx:").nth(1)?.split(',').next()?.trim().parse::<u64>().ok();
    let of = |wanted: &dyn Fn(&str) -> bool| -> BTreeSet<u64> {
        text.lines().filter(|line| wanted(line)).filter_map(transaction).collect()
    };
    let wrote = of(&|line| line.contains("rmgr: Heap") && line.contains("INSERT") && line.contains(table));
    let committed = of(&|line| line.contains("rmgr: Transaction") && line.contains("COMMIT"));
    Ok(wrote.intersection(&committed).copied().collect())
}

/// The clients' table as pg_waldump names it: `base/16385/16386` is `rel 1663/16385/16386`.
fn table(cluster: &Cluster, primary: usize) -> Result<String> {
    let path = "SELECT pg_relation_filepath('writes')";
    let rows = ask(&cluster.node(primary)?.door(), DATABASE, path, Duration::from_secs(10))?;
    let path = rows.into_iter().flatten().flatten().next().context("the table's file")?;
    Ok(format!("{} ", path.replace("base/", "rel 1663/")))
}

/// The old primary stopped acknowledging before the new one began, by one machine's clock.
fn check_order(history: &History, primary: usize, at: Moment) -> Result<()> {
    let inside = history.acknowledged_to(&[ClientKind::Inside]);
    let old = inside.iter().rfind(|op| op.server == primary && op.invoked < at.after(Duration::from_secs(4)));
    let old = old.context("the client inside was never acknowledged")?;
    let acknowledged = history.acknowledged();
    let new =
        acknowledged.iter().find(|op| op.server != primary && op.invoked > at).context("a new primary")?;
    ensure!(old.invoked < new.finished, "the old primary acknowledged after the new one began");
    report(&format!(
        "the old primary's last acknowledgement {:.3} s after the cut, the new one's first {:.3} s",
        old.finished.since(at).as_secs_f64(),
        new.finished.since(at).as_secs_f64()
    ));
    Ok(())
}

#[test]
fn what_a_cut_off_primary_acknowledged_is_bounded_reported_exactly_and_kept() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    if cluster.network().means() == Means::Loopback {
        report("SKIPPED: needs a network cut");
        return Ok(());
    }
    let primary = cluster.wait_whole()?;
    let name = cluster.node(primary)?.name();
    let table = table(&cluster, primary)?;
    let workload = cluster.workload(&Plan { inside: vec![primary], ..Plan::default() });
    workload.wait_for(200, LIMIT)?;
    let at = Moment::now();
    cluster.network().cut(Place::Node(primary))?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    // Before the former primary is back, the report is an estimate, and says so.
    let other = (primary + 1) % 3;
    let estimate = cluster.wait_until("the change of primary is in the history", || {
        let change = last_change(&cluster, other)?;
        ensure!(change["from"] == name, "{change}");
        Ok(change)
    })?;
    ensure!(estimate["lost_exact"] != true, "exact before the former primary is back: {estimate}");
    hold(Duration::from_secs(4));
    cluster.network().heal()?;
    cluster.wait_whole()?;
    let change = cluster.wait_until("the history is exact", || {
        let change = last_change(&cluster, other)?;
        ensure!(change["lost_exact"] == true, "{change}");
        Ok(change)
    })?;
    let (path, timeline, from, to) = kept(&cluster, primary)?;
    report(&format!(
        "estimate {}, then exactly {} ({} bytes)",
        estimate["lost"], change["lost"], change["lost_bytes"]
    ));
    ensure!(change["lost"] == format!("{from} to {to}"), "history {}, kept {from} to {to}", change["lost"]);
    ensure!(change["from"] == name && change["switch_lsn"] == from, "{change}");
    cluster.wait_until("the former primary's note says what is kept", || {
        let status = cluster.status(other)?;
        let members = status["members"].as_array().context("members")?;
        let member = members.iter().find(|member| member["name"] == name).context("the former primary")?;
        let note = member["note"].as_str().unwrap_or_default();
        ensure!(note.contains("forked") && note.contains(&to), "{member}");
        Ok(())
    })?;
    let text = std::fs::read_to_string(path.join("README.txt")).context("read the summary")?;
    ensure!(text.contains("pg_waldump") && text.contains(&from), "{text}");

    let history = workload.stop()?;
    let verdict = Verdict::of(&cluster, &history, &[Excuse::lease(at)])?;
    verdict.check(&cluster)?;
    let lost = &verdict.loss.lost;
    ensure!(!lost.is_empty(), "nothing was lost: the scenario proves nothing");
    // What was in flight when the primary froze may be in its WAL or not; its client was told nothing.
    let open = history.operations.iter().filter(|op| !op.acknowledged() && op.server == primary).count();
    let commits = commits(&path, &timeline, &from, &to, &table)?.len();
    report(&format!("rows lost {}, open {open}, commits in the kept wal {commits}", lost.len()));
    ensure!(
        (lost.len()..=lost.len() + open).contains(&commits),
        "{} rows lost and {open} open, but {commits} commits in {}",
        lost.len(),
        path.display()
    );
    check_order(&history, primary, at)
}
