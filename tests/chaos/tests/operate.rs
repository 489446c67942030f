//! The operator's verbs on real members: what they change, what they refuse, and what clients notice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::{take_machine, take_turn};
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap, hold, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::Plan;

/// What a verb may take on a loaded machine: it waits for its outcome.
const VERB: Duration = Duration::from_secs(120);

/// Runs a verb on a member, and says what it said.
fn run(cluster: &Cluster, index: usize, line: &[&str], code: i32) -> Result<String> {
    let output = cluster.rhone(index, line, VERB)?;
    report(&format!("rhone {}: exit {:?}: {}", line.join(" "), output.code, output.stderr.trim()));
    ensure!(
        output.code == Some(code),
        "rhone {}: {:?}, not {code}: {}{}; {}",
        line.join(" "),
        output.code,
        output.stdout,
        output.stderr,
        cluster.dump()
    );
    Ok(format!("{}{}", output.stdout, output.stderr))
}

#[test]
fn paused_means_that_nobody_takes_over_until_resumed() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, LIMIT)?;
    let primary = cluster.wait_whole()?;
    let (epoch, other) = (cluster.epoch()?, (primary + 1) % 3);
    run(&cluster, other, &["settings", "set", "postgres.work_mem=8MB"], 0)?;
    ensure!(run(&cluster, other, &["pause"], 0)?.contains("paused"), "the status does not say paused");
    run(&cluster, primary, &["pause", "-o", "json"], 0)?; // a second time is the same
    let at = Moment::now();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    // Several leases and elections.
    hold(Duration::from_secs(8));
    ensure!(cluster.epoch()? == epoch, "somebody took over while paused; {}", cluster.dump());
    ensure!(cluster.status(other)?["writable"] == false, "the lost primary is still called writable");
    // A value that is set is checked by the primary's word; one that is taken back needs none.
    let said = run(&cluster, other, &["settings", "set", "postgres.work_mem=16MB"], 3)?;
    ensure!(said.contains("the primary does not answer"), "{said}");
    run(&cluster, other, &["settings", "reset", "postgres.work_mem"], 0)?;
    run(&cluster, other, &["resume"], 0)?;
    let events = run(&cluster, other, &["events", "-o", "json"], 0)?;
    for reason in ["paused", "resumed"] {
        ensure!(
            events.matches(&format!("\"reason\":\"{reason}\"")).count() == 1,
            "{reason} is not told once: {events}"
        );
    }
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;
    cluster.wait_until("what was taken back counts everywhere", || {
        for index in 0..cluster.members() {
            let rows = ask(&cluster.node(index)?.door(), "postgres", "SHOW work_mem", LIMIT)?;
            ensure!(rows == [[Some("4MB".to_owned())]], "member {}: {rows:?}", index + 1);
        }
        Ok(())
    })?;
    Verdict::of(&cluster, &workload.stop()?, &[Excuse::power_loss(at)])?.check(&cluster)
}

#[test]
fn a_fenced_member_stays_stopped_until_it_is_let_go() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, LIMIT)?;
    let primary = cluster.wait_whole()?;
    let (standby, third) = ((primary + 1) % 3, (primary + 2) % 3);
    let name = |index: usize| format!("pg-{}", index + 1);
    let at = Moment::now();
    ensure!(
        run(&cluster, third, &["fence", &name(standby)], 0)?.contains("fenced"),
        "the status does not say fenced"
    );
    ensure!(cluster.node(standby)?.postmaster().is_none(), "its Postgres runs");
    // Over a restart of its supervisor, and while it is asked to take over.
    let node = cluster.node_mut(standby)?;
    node.signal_supervisor(rhone_chaos::process::Signal::KILL)?;
    node.wait_for_end(LIMIT).context("the supervisor ended")?;
    cluster.start_node(standby)?;
    let started = cluster.wait_until("the restarted supervisor rests", || {
        let log = std::fs::read_to_string(cluster.node(standby)?.log())?;
        let since = log.rsplit_once("hard state").map_or("", |(_, since)| since);
        ensure!(since.contains("rests reason=fenced"), "it does not say that it is fenced");
        // Not even for a moment: its log says that it is fenced, also before it has applied so much of it.
        let starts = since.lines().find(|line| line.contains("effect=start"));
        Ok(starts.map(str::to_owned))
    })?;
    ensure!(started.is_none(), "its Postgres was started: {started:?}; {}", cluster.dump());
    ensure!(cluster.node(standby)?.postmaster().is_none(), "its Postgres runs");
    run(&cluster, third, &["switchover", "--to", &name(standby)], 3)?;
    ensure!(cluster.node(standby)?.postmaster().is_none(), "its Postgres was started");
    check_gap(&workload, at, GAP_LIMIT, "a standby fenced")?;

    // The primary hands over, and then it is the other one that serves.
    // A Raft leader that is new has to hear from the standby first, and refuses until then.
    cluster.wait_until("the primary is fenced", || {
        run(&cluster, third, &["fence", &name(primary)], 0).map(drop)
    })?;
    ensure!(cluster.node(primary)?.postmaster().is_none(), "the former primary's Postgres runs");
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    // Nobody is left to hand over to.
    run(&cluster, third, &["fence", &name(third), "--yes"], 3)?;
    run(&cluster, third, &["fence", "pg-9"], 3)?;
    for index in [primary, standby] {
        run(&cluster, index, &["unfence", &name(index)], 0)?;
    }
    cluster.wait_whole()?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}

/// When a member's Postgres was started, by its own word.
fn started(cluster: &Cluster, index: usize) -> Result<String> {
    let door = cluster.node(index)?.door();
    let rows = ask(&door, "postgres", "SELECT pg_postmaster_start_time()::text", Duration::from_secs(2))?;
    rows.first().and_then(|row| row.first().cloned().flatten()).context("a start")
}

/// Once, at its time, whoever leads Raft then.
#[test]
fn a_scheduled_switchover_begins_once_also_under_another_leader() -> Result<()> {
    let _turn = take_machine()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let primary = cluster.wait_whole()?;
    let (to, other) = ((primary + 1) % 3, (primary + 2) % 3);
    let name = cluster.node(to)?.name();
    let past = ["switchover", "--at", "2020-01-01T00:00:00Z"];
    ensure!(run(&cluster, other, &past, 3)?.contains("is in the past"), "the past is no time to begin");
    run(&cluster, other, &["switchover", "--at", "+1h"], 0)?;
    ensure!(
        run(&cluster, to, &["switchover", "--at", "+2h"], 3)?.contains("another switchover is scheduled")
    );
    ensure!(
        run(&cluster, primary, &["status"], 0)?.contains("a switchover to the best standby is scheduled for")
    );
    run(&cluster, primary, &["switchover", "--cancel"], 0)?;
    run(&cluster, primary, &["switchover", "--cancel"], 3)?;

    // A restart for later, beside it: it is due under another leader, too.
    let third = cluster.node(other)?.name();
    run(&cluster, to, &["restart", &third, "--at", "+1h"], 0)?;
    ensure!(run(&cluster, to, &["restart", &third, "--at", "+2h"], 3)?.contains("is scheduled for"));
    run(&cluster, to, &["restart", &third, "--cancel"], 0)?;
    run(&cluster, to, &["restart", &third, "--cancel"], 3)?;
    let before = started(&cluster, other)?;
    run(&cluster, primary, &["restart", &third, "--at", "+15s", "-o", "json"], 0)?;

    let epoch = cluster.epoch()?;
    run(&cluster, primary, &["switchover", "--to", &name, "--at", "+20s", "-o", "json"], 0)?;
    // Who leads Raft is not the primary, as a rule; a primary whose supervisor is killed may fail over.
    let leader = cluster.wait_until("a standby leads raft", || {
        let leader = cluster.raft_leader()?;
        ensure!(leader != primary, "the primary leads raft");
        Ok(leader)
    })?;
    cluster.node_mut(leader)?.signal_supervisor(rhone_chaos::process::Signal::KILL)?;
    cluster.node_mut(leader)?.wait_for_end(LIMIT);
    cluster.start_node(leader)?;
    cluster.wait_until("the primary moves at its time", || {
        ensure!(cluster.primary() == Some(to), "{:?}", cluster.roles());
        ensure!(cluster.status(to)?["scheduled_switchover"].is_null(), "it is still scheduled");
        Ok(())
    })?;
    cluster.wait_whole()?;
    let after = cluster.epoch()?;
    ensure!(after > epoch, "epoch {after} after {epoch}");

    cluster.wait_until("the third was restarted at its time", || {
        ensure!(started(&cluster, other)? != before, "the same server runs");
        let left = cluster.status(to)?["scheduled_restarts"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} restarts are still scheduled");
        Ok(())
    })?;
    // Once: nothing is left that could begin another one.
    run(&cluster, to, &["switchover", "--cancel"], 3)?;
    ensure!(cluster.epoch()? == after && cluster.primary() == Some(to), "it moved again");
    Ok(())
}
