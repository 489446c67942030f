//! Synchronous modes on real Postgres: what was acknowledged is never lost, whoever goes; and where
//! that cannot be kept, nobody is promoted by itself.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use rhone_chaos::lock::{take_machine, take_turn};
use rhone_chaos::namespace::Means;
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{GAP_LIMIT, Verdict, check_gap, hold, report};
use rhone_chaos::workload::{Plan, Workload};
use serde_json::Value;

/// Long enough for a wrong promotion to happen: the whole election takes a second.
const WRONG: Duration = Duration::from_secs(5);

fn begin(sync: Sync) -> Result<(Cluster, Workload)> {
    let cluster = Cluster::start(&Spec { sync, ..Spec::asynchronous(3) })?;
    wait_sync(&cluster, 2)?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, LIMIT)?;
    Ok((cluster, workload))
}

/// Waits until so many standbys acknowledge, by the word of a member that answers.
fn wait_sync(cluster: &Cluster, standbys: usize) -> Result<()> {
    cluster.wait_until(&format!("{standbys} standbys acknowledge"), || {
        let mut seen = Vec::new();
        for index in 0..cluster.members() {
            let Ok(status) = cluster.status(index) else { continue };
            let members = status.pointer("/sync/members").and_then(Value::as_array).map(Vec::len);
            if members == Some(standbys) && status.get("writable") == Some(&Value::Bool(true)) {
                return Ok(());
            }
            seen.push(members);
        }
        anyhow::bail!("they say {seen:?}")
    })
}

/// No acknowledged row is excused.
fn finish(cluster: &Cluster, workload: Workload) -> Result<()> {
    cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    let history = workload.stop()?;
    Verdict::of(cluster, &history, &[])?.check(cluster)
}

/// The processes of a member whose title has that word.
fn titled(cluster: &Cluster, index: usize, word: &str) -> Result<Vec<u32>> {
    let mut pids = cluster.node(index)?.processes();
    pids.retain(|pid| process::command_line(*pid).contains(word));
    Ok(pids)
}

fn send(pids: &[u32], signal: Signal) {
    for pid in pids {
        process::signal(*pid, signal);
    }
}

/// Stops the walreceivers of these members: their Postgres goes on and hears nothing more.
fn stop_receivers(cluster: &Cluster, members: &[usize]) -> Result<Vec<u32>> {
    let mut stopped = Vec::new();
    for member in members {
        stopped.extend(titled(cluster, *member, "walreceiver")?);
    }
    ensure!(stopped.len() == members.len(), "{} walreceivers of {} members", stopped.len(), members.len());
    send(&stopped, Signal::STOP);
    Ok(stopped)
}

fn others(primary: usize) -> Vec<usize> {
    (0..3).filter(|index| *index != primary).collect()
}

#[test]
fn power_loss_of_the_primary_loses_nothing() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(Sync::Quorum)?;
    for kind in [PowerLoss::Resets, PowerLoss::BlackHole] {
        if kind == PowerLoss::BlackHole && cluster.network().means() == Means::Loopback {
            report("SKIPPED: the part that needs a network cut");
            continue;
        }
        let primary = cluster.wait_whole()?;
        wait_sync(&cluster, 2)?;
        workload.wait_for(100, LIMIT)?;
        let at = Moment::now();
        cluster.power_loss(primary, kind)?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        check_gap(&workload, at, GAP_LIMIT, &format!("quorum mode, power loss, {kind:?}"))?;
        cluster.network().heal()?;
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
    }
    finish(&cluster, workload)
}

#[test]
fn a_standby_that_dies_stalls_nobody_while_another_lives() -> Result<()> {
    let _turn = take_machine()?;
    let (mut cluster, workload) = begin(Sync::Quorum)?;
    let primary = cluster.wait_whole()?;
    let [first, _] = others(primary)[..] else { anyhow::bail!("three members") };
    let at = Moment::now();
    cluster.power_loss(first, PowerLoss::Resets)?;
    wait_sync(&cluster, 1)?;
    report(&format!("S without the dead one after {:.3} s", at.elapsed().as_secs_f64()));
    workload.wait_for(50, LIMIT)?;
    check_gap(&workload, at, GAP_LIMIT, "one of two standbys lost its power")?;
    cluster.start_node(first)?;
    wait_sync(&cluster, 2)?;
    finish(&cluster, workload)
}

/// The primary goes on alone, is lost, and what it alone had is given up by nobody but a person.
#[test]
fn a_stale_standby_is_promoted_only_when_a_person_accepts_the_loss() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(Sync::Quorum)?;
    for accept in [false, true] {
        let primary = cluster.wait_whole()?;
        wait_sync(&cluster, 2)?;
        let standbys = others(primary);
        let at = Moment::now();
        let receivers = stop_receivers(&cluster, &standbys)?;
        wait_sync(&cluster, 0)?;
        report(&format!("alone in Raft after {:.3} s", at.elapsed().as_secs_f64()));
        workload.wait_for(50, LIMIT)?;
        check_gap(&workload, at, GAP_LIMIT, "no standby left, quorum mode goes on alone")?;
        cluster.power_loss(primary, PowerLoss::Resets)?;
        // Woken, they would read on: what the primary sent while they were stopped waits in their sockets.
        send(&receivers, Signal::KILL);
        let asked = standbys.first().copied().context("a standby")?;
        cluster.wait_until("the election waits for a person", || {
            let explained = cluster.rhone(asked, &["explain"], Duration::from_secs(10))?;
            ensure!(
                explained.stdout.contains("commits_may_be_unseen"),
                "{}{}",
                explained.stdout,
                explained.stderr
            );
            Ok(())
        })?;
        let refused = cluster.rhone(asked, &["failover"], Duration::from_secs(60))?;
        ensure!(refused.code == Some(3), "{:?}: {}{}", refused.code, refused.stdout, refused.stderr);
        ensure!(refused.stderr.contains("--accept-data-loss"), "{}", refused.stderr);
        report(refused.stderr.trim());
        hold(WRONG);
        let roles = cluster.roles();
        ensure!(roles.values().all(|role| role.standby), "somebody was promoted: {roles:?}");
        if !accept {
            cluster.start_node(primary)?;
            let now = cluster.wait_whole()?;
            ensure!(now == primary, "only {primary} has everything, not {now}: {}", cluster.dump());
            continue;
        }
        let history = workload.stop()?;
        let accepted = cluster.rhone(asked, &["failover", "--accept-data-loss"], Duration::from_secs(90))?;
        ensure!(accepted.code == Some(0), "{:?}: {}{}", accepted.code, accepted.stdout, accepted.stderr);
        cluster.wait_whole_without(&[primary])?;
        let told = cluster.rhone(asked, &["history"], Duration::from_secs(10))?.stdout;
        ensure!(told.contains("accepted by "), "{told}");
        report(told.lines().last().unwrap_or_default());
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
        // The rows that the lost primary had acknowledged while it was alone are what was given up.
        let verdict = Verdict::of(&cluster, &history, &[])?;
        report(&format!("{verdict}"));
        ensure!(!verdict.loss.lost.is_empty(), "nothing was lost: the scenario proves nothing");
        ensure!(
            verdict.loss.lost.iter().all(|lost| lost.finished > at),
            "rows from before are lost: {verdict}"
        );
        ensure!(verdict.two_primaries.is_empty() && verdict.differing.is_empty(), "{verdict}");
        return Ok(());
    }
    Ok(())
}

#[test]
fn strict_mode_acknowledges_nothing_without_a_standby() -> Result<()> {
    let _turn = take_turn()?;
    let (cluster, workload) = begin(Sync::Strict)?;
    let primary = cluster.wait_whole()?;
    let receivers = stop_receivers(&cluster, &others(primary))?;
    // What was flushed before is acknowledged yet.
    hold(Duration::from_secs(1));
    let before = workload.acknowledged();
    hold(WRONG);
    let during = workload.acknowledged();
    ensure!(before == during, "{} rows were acknowledged without a standby", during - before);
    let [first, second] = receivers[..] else { anyhow::bail!("two standbys") };
    process::signal(first, Signal::CONT);
    workload.wait_for(100, LIMIT).with_context(|| cluster.dump())?;
    process::signal(second, Signal::CONT);
    ensure!(cluster.wait_whole()? == primary, "the primary changed");
    finish(&cluster, workload)
}

/// A member of S loses its data directory, or gets an older copy of it back. Together with the other
/// standby it would cover the policy, if it counted.
#[test]
fn an_emptied_or_restored_data_directory_never_counts() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(Sync::Quorum)?;
    for restored in [true, false] {
        let primary = cluster.wait_whole()?;
        wait_sync(&cluster, 2)?;
        let victim = *others(primary).first().context("a standby")?;
        let data = cluster.node(victim)?.data();
        let copy = data.with_extension("copy");
        if restored {
            // While it runs: not even the same run of Postgres makes a copy the original.
            // What comes and goes meanwhile is not in it.
            process::run(Command::new("cp").arg("-a").arg(&data).arg(&copy), LIMIT)?;
            workload.wait_for(100, LIMIT)?;
        }
        let at = Moment::now();
        // At once: neither S shrinks nor an election begins before it is over.
        cluster.power_loss_of_all()?;
        std::fs::remove_dir_all(&data).context("empty the data directory")?;
        if restored {
            std::fs::rename(&copy, &data).context("restore the copy")?;
            drop(std::fs::remove_file(data.join("postmaster.pid")));
        }
        for standby in others(primary) {
            cluster.start_node(standby)?;
        }
        let asked = victim;
        cluster.wait_until("the election waits", || {
            let explained = cluster.rhone(asked, &["explain"], Duration::from_secs(10))?;
            ensure!(
                explained.stdout.contains("commits_may_be_unseen"),
                "{}{}",
                explained.stdout,
                explained.stderr
            );
            Ok(())
        })?;
        hold(WRONG);
        let roles = cluster.roles();
        ensure!(
            roles.values().all(|role| role.standby),
            "somebody was promoted: {roles:?}\n{}",
            cluster.dump()
        );
        let refused = cluster.rhone(asked, &["failover"], Duration::from_secs(60))?;
        ensure!(refused.code == Some(3), "{:?}: {}{}", refused.code, refused.stdout, refused.stderr);
        report(refused.stderr.trim());
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
        wait_sync(&cluster, 2)?;
        check_gap(&workload, at, LIMIT, "the primary had to come back")?;
    }
    finish(&cluster, workload)
}

/// A walsender that is stopped between two loops may still release commits by the old list: both
/// policies stay in P until it has gone on, or is gone.
#[test]
fn a_stopped_walsender_keeps_the_policy_joint() -> Result<()> {
    let _turn = take_turn()?;
    let (cluster, workload) = begin(Sync::Quorum)?;
    let primary = cluster.wait_whole()?;
    let victim = *others(primary).first().context("a standby")?;
    let address = cluster.node(victim)?.address().to_string();
    let policies = || -> Result<BTreeSet<String>> {
        let explained = cluster.rhone(primary, &["explain"], Duration::from_secs(30))?;
        ensure!(explained.code == Some(0), "{:?}: {}{}", explained.code, explained.stdout, explained.stderr);
        let lines = explained.stdout.lines().filter(|line| line.contains("acknowledges a commit"));
        Ok(lines.map(|line| line.trim().to_owned()).collect())
    };
    let sender = cluster.wait_until("its walsender stops", || {
        let sender = titled(&cluster, primary, "walsender")?
            .into_iter()
            .find(|pid| process::command_line(*pid).contains(&format!("{address}(")))
            .context("its walsender")?;
        ensure!(process::signal(sender, Signal::STOP), "the walsender is gone");
        Ok(sender)
    })?;
    let both = "once 1 of 2 standbys flushed it";
    // More than two: the other standby may look late for a moment as well.
    let joint = |open: &BTreeSet<String>| open.len() > 1 && open.iter().any(|policy| policy.ends_with(both));
    cluster.wait_until("the policy is joint", || {
        let open = policies()?;
        ensure!(joint(&open), "{open:?}");
        Ok(())
    })?;
    let at = Moment::now();
    while at.elapsed() < WRONG {
        // A member that gives no answer on a busy machine says nothing about its policies.
        let Ok(open) = policies() else { continue };
        ensure!(joint(&open), "narrowed beside a stopped walsender: {open:?}\n{}", cluster.dump());
    }
    report(&format!("{:?}", policies()?));
    // Commits go on by the other standby meanwhile.
    workload.wait_for(50, LIMIT)?;
    process::signal(sender, Signal::CONT);
    cluster.wait_until("one policy again, with both standbys", || {
        ensure!(policies()?.len() == 1, "{:?}", policies()?);
        Ok(())
    })?;
    wait_sync(&cluster, 2)?;
    finish(&cluster, workload)
}
