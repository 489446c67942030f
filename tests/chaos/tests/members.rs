//! Work on single members: a restart, a new copy, who votes, who is a member at all; and a voter that dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Output;
use rhone_chaos::scenario::Verdict;
use rhone_chaos::sql::ask;
use rhone_chaos::workload::{Plan, Workload};
use serde_json::Value;

/// A copy on a loaded machine.
const COMMAND: Duration = Duration::from_secs(150);

fn rhone(cluster: &Cluster, at: usize, line: &str) -> Result<Output> {
    cluster.rhone(at, &line.split(' ').collect::<Vec<_>>(), COMMAND)
}

fn done(cluster: &Cluster, at: usize, line: &str) -> Result<Value> {
    let output = rhone(cluster, at, &format!("{line} -o json"))?;
    ensure!(output.code == Some(0), "`{line}`: {:?} {}\n{}", output.code, output.stderr, cluster.dump());
    serde_json::from_str(&output.stdout).with_context(|| format!("read what `{line}` printed"))
}

fn refused(cluster: &Cluster, at: usize, line: &str, why: &str) -> Result<()> {
    let output = rhone(cluster, at, line)?;
    ensure!(output.code == Some(3), "`{line}`: {:?} {}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr.contains(why), "`{line}` says: {}", output.stderr);
    Ok(())
}

/// When a member's Postgres was started, by its own word.
fn started(cluster: &Cluster, index: usize) -> Result<String> {
    let door = cluster.node(index)?.door();
    let rows = ask(&door, "postgres", "SELECT pg_postmaster_start_time()::text", Duration::from_secs(2))?;
    rows.first().and_then(|row| row.first().cloned().flatten()).context("a start")
}

/// One value of the primary's.
fn value(cluster: &Cluster, primary: usize, statement: &str) -> Result<String> {
    let rows = ask(&cluster.node(primary)?.door(), "postgres", statement, Duration::from_secs(20))?;
    rows.first()
        .and_then(|row| row.first().cloned().flatten())
        .with_context(|| format!("{statement}: {rows:?}"))
}

/// The replication password is replaced: who streams goes on, and who comes back comes with the new one.
fn new_password(cluster: &Cluster, primary: usize) -> Result<()> {
    let hash = "SELECT rolpassword FROM pg_authid WHERE rolname = 'rhone_replicator'";
    let streams = "SELECT count(*) || ': ' || coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') \
                   FROM pg_stat_replication WHERE state = 'streaming'";
    let before = (value(cluster, primary, hash)?, value(cluster, primary, streams)?);
    ensure!(before.1.starts_with("3: "), "{}", before.1);
    for index in 0..4 {
        std::fs::write(cluster.node(index)?.state().join("replication.pw"), "a new one: \\ and all\n")?;
    }
    done(cluster, primary, "reload")?;
    cluster.wait_until("the role has its new password", || {
        ensure!(value(cluster, primary, hash)? != before.0, "it has the old one");
        Ok(())
    })?;
    let now = value(cluster, primary, streams)?;
    ensure!(now == before.1, "streams were interrupted: {} became {now}", before.1);
    value(cluster, primary, "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_replication")?;
    cluster.wait_until("everybody streams again", || {
        let now = value(cluster, primary, streams)?;
        ensure!(now.starts_with("3: ") && now != before.1, "{now}");
        Ok(())
    })
}

fn voters(cluster: &Cluster, at: usize) -> Result<Vec<String>> {
    let status = cluster.status(at)?;
    let members = status.get("members").and_then(Value::as_array).context("members")?;
    let votes = members.iter().filter(|member| member.get("voter") == Some(&Value::Bool(true)));
    Ok(votes.filter_map(|member| member.get("name").and_then(Value::as_str)).map(str::to_owned).collect())
}

#[test]
fn a_member_is_restarted_copied_kept_from_voting_and_removed_under_a_writer() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec { sync: Sync::Quorum, ..Spec::asynchronous(4) })?;
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    workload.wait_for(50, LIMIT)?;
    let primary = cluster.wait_whole()?;
    cluster.wait_secured()?;
    let names = (0..4).map(|index| Ok(cluster.node(index)?.name())).collect::<Result<Vec<_>>>()?;
    let name = |index: usize| names.get(index).cloned().unwrap_or_default();
    let epoch = cluster.epoch()?;
    let standbys: Vec<usize> = (0..4).filter(|index| *index != primary).collect();
    let [first, second, third] = standbys[..] else { anyhow::bail!("four members") };

    // A restart and a reload of a standby are no failure: the epoch stays.
    let before = (started(&cluster, first)?, started(&cluster, second)?);
    done(&cluster, second, &format!("restart {}", name(first)))?;
    done(&cluster, second, "reload")?;
    let after = (started(&cluster, first)?, started(&cluster, second)?);
    ensure!(before.0 != after.0 && before.1 == after.1, "{before:?}, then {after:?}");
    ensure!(cluster.epoch()? == epoch, "a planned restart is no failover");

    cluster.wait_whole()?;
    new_password(&cluster, primary)?;
    ensure!(cluster.epoch()? == epoch, "a new password is no failover");

    // A new copy, never of the primary. A script is not asked.
    refused(&cluster, first, &format!("reinit {}", name(primary)), "is the primary")?;
    let identity =
        || std::fs::read(cluster.node(second).map(|node| node.data().join("rhone.id")).unwrap_or_default());
    let old = identity().context("its identity")?;
    done(&cluster, first, &format!("reinit {}", name(second)))?;
    ensure!(identity().context("its identity")? != old, "{} has the same data directory", name(second));
    ensure!(cluster.epoch()? == epoch, "a new copy is no failover");

    // Four members have three voters. One that is kept from voting is replaced by the fourth.
    let votes = cluster.wait_until("three vote", || {
        let votes = voters(&cluster, first)?;
        ensure!(votes.len() == 3, "{votes:?}");
        Ok(votes)
    })?;
    let demoted = standbys.iter().copied().find(|index| votes.contains(&name(*index))).context("a voter")?;
    done(&cluster, primary, &format!("member demote {}", name(demoted)))?;
    cluster.wait_until("the fourth votes in its place", || {
        let now = voters(&cluster, primary)?;
        ensure!(now.len() == 3 && !now.contains(&name(demoted)), "{now:?}");
        Ok(())
    })?;
    let other = standbys.iter().copied().find(|index| *index != demoted).context("another")?;
    refused(&cluster, primary, &format!("member demote {}", name(other)), "nobody could vote in its place")?;
    done(&cluster, primary, &format!("member promote {}", name(demoted)))?;

    // Who is removed does not come back with its store; emptied, it does.
    refused(&cluster, third, &format!("member remove --yes {}", name(primary)), "hand over first")?;
    done(&cluster, primary, &format!("member remove --yes {}", name(third)))?;
    cluster.wait_until("three members are left", || {
        let status = cluster.status(primary)?;
        let members = status.get("members").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(members == 3 && voters(&cluster, primary)?.len() == 3, "{members}");
        Ok(())
    })?;
    cluster.node_mut(third)?.signal_both(rhone_chaos::process::Signal::KILL)?;
    workload.wait_for(50, LIMIT)?;
    cluster.wait_until("nothing of it runs", || {
        let left = cluster.node(third)?.processes();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    std::fs::remove_dir_all(cluster.node(third)?.state()).context("empty its state")?;
    std::fs::remove_dir_all(cluster.node(third)?.data()).context("empty its data")?;
    cluster.start_node(third)?;
    cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    a_dead_voter_is_replaced(&mut cluster, &workload)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}

/// Of four members three vote. One dies for good, the fourth votes in its place, and then the primary may die, too:
/// two of three voters are left, where they would be one of three. The first comes back under another address.
fn a_dead_voter_is_replaced(cluster: &mut Cluster, workload: &Workload) -> Result<()> {
    let primary = cluster.wait_whole()?;
    let names = (0..4).map(|index| Ok(cluster.node(index)?.name())).collect::<Result<Vec<_>>>()?;
    let index_of = |name: &String| names.iter().position(|known| known == name);
    let votes = cluster.wait_until("three vote, the primary among them", || {
        let votes = voters(cluster, primary)?;
        ensure!(votes.len() == 3 && votes.iter().any(|name| index_of(name) == Some(primary)), "{votes:?}");
        Ok(votes)
    })?;
    let dead = votes.iter().filter_map(index_of).find(|index| *index != primary).context("a voter")?;
    let learner = names.iter().find(|name| !votes.contains(name)).context("a learner")?.clone();
    done(cluster, primary, "settings set dead-member-timeout=5s")?;
    cluster.power_loss(dead, PowerLoss::Resets)?;
    cluster.wait_until("the fourth votes in the dead one's place", || {
        let now = voters(cluster, primary)?;
        ensure!(now.len() == 3 && now.contains(&learner) && misses(&now, &names, dead), "{now:?}");
        Ok(())
    })?;
    // Whoever comes back first is not to take the other one's vote.
    done(cluster, primary, "settings set dead-member-timeout=off")?;
    cluster.wait_secured()?;

    let at = Moment::now();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    workload.wait_for(50, LIMIT)?;

    cluster.move_node(dead)?;
    cluster.start_node(dead)?;
    cluster.start_node(primary)?;
    let primary = cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    let now = voters(cluster, primary)?;
    ensure!(now.len() == 3 && misses(&now, &names, dead), "who came back only learns, not {now:?}");
    // Raft and the others reach it there: it is handed what is decided, and can be asked for work.
    let name = cluster.node(dead)?.name();
    done(cluster, primary, &format!("restart {name}"))?;
    cluster.wait_whole().map(drop)
}

/// Whether that member is not among these.
fn misses(votes: &[String], names: &[String], member: usize) -> bool {
    names.get(member).is_some_and(|name| !votes.contains(name))
}
