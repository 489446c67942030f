//! Tags: who is never chosen, who follows whom, who holds back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::ports::{get, wait_for_checks};
use rhone_chaos::scenario::report;
use rhone_chaos::sql::ask;

const QUESTION: Duration = Duration::from_secs(10);

fn value(cluster: &Cluster, index: usize, statement: &str) -> Result<String> {
    let rows = ask(&cluster.node(index)?.door(), "postgres", statement, QUESTION)?;
    rows.into_iter().flatten().flatten().next().with_context(|| format!("an answer to {statement}"))
}

/// pg-4 holds WAL back by its tag, and pg-3 for a while because somebody pauses its replay.
fn checks_go_by_what_is_replayed(cluster: &Cluster) -> Result<()> {
    // Two transactions: replay stops at the first one's end, before the two megabytes of the second.
    ask(&cluster.node(0)?.door(), "postgres", "CREATE TABLE held (t text)", LIMIT)?;
    let rows = "INSERT INTO held SELECT repeat('x', 1000) FROM generate_series(1, 2000)";
    ask(&cluster.node(0)?.door(), "postgres", rows, LIMIT)?;
    let all = ["/replica 200", "/replica?lag=1MB 200", "/readiness?lag=1MB 200"];
    wait_for_checks(cluster, 2, &all)?;
    // All WAL is there, and readers see none of it.
    let held = ["/replica 200", "/replica?lag=1MB 503", "/readiness?lag=1MB 503", "/read-only?lag=1MB 503"];
    wait_for_checks(cluster, 3, &held)?;
    wait_for_checks(cluster, 3, &["/readiness?lag=1MB&mode=write 200", "/asynchronous?lag=1MB 503"])?;
    // Somebody pauses replay on another one, and lets it go on.
    value(cluster, 2, "SELECT pg_wal_replay_pause()")?;
    cluster.wait_until("pg-3 has paused", || {
        let state = value(cluster, 2, "SELECT pg_get_wal_replay_pause_state()")?;
        ensure!(state == "paused", "{state}");
        Ok(())
    })?;
    ask(&cluster.node(0)?.door(), "postgres", rows, LIMIT)?;
    wait_for_checks(cluster, 2, &["/replica 200", "/replica?lag=1MB 503", "/readiness?lag=1MB 503"])?;
    // Every member tells so of it, and that it has received all the same.
    for index in 0..4 {
        cluster.wait_until("pg-3's replay lag is told", || {
            let told: serde_json::Value = serde_json::from_str(&get(cluster, index, "/cluster")?.1)?;
            let member = told["members"].as_array().and_then(|all| all.iter().find(|m| m["name"] == "pg-3"));
            let lag = |kind: &str| member.and_then(|m| m[kind].as_u64()).with_context(|| format!("{told}"));
            ensure!(lag("replay_lag")? > 1 << 20 && lag("receive_lag")? < 1 << 20, "{told}");
            ensure!(lag("lag")? < 1 << 20, "{told}");
            Ok(())
        })?;
    }
    value(cluster, 2, "SELECT pg_wal_replay_resume()")?;
    wait_for_checks(cluster, 2, &all)
}

/// pg-2 may not lead, pg-3 follows pg-2, pg-4 replays an hour later: when pg-1 is lost, pg-3 it is.
#[test]
fn tags_take_members_out_of_the_election_and_never_out_of_the_cluster() -> Result<()> {
    let _turn = take_turn()?;
    let spec = Spec {
        tags: vec![
            (1, "no-failover = true\nclone-from = true"),
            (2, "replicate-from = \"pg-2\""),
            (3, "delay = \"1h\"\nzone = \"cellar\""),
        ],
        ..Spec::asynchronous(4)
    };
    let mut cluster = Cluster::start(&spec)?;
    ensure!(cluster.wait_whole()? == 0, "pg-1, the first by name that may lead, is the first primary");
    let second = cluster.node(1)?.address().to_string();
    cluster.wait_until("pg-3 streams from pg-2", || {
        let upstream = cluster.roles().get(&2).and_then(|role| role.upstream.clone());
        ensure!(upstream.as_deref() == Some(&second), "from {upstream:?}");
        Ok(())
    })?;
    ensure!(value(&cluster, 3, "SHOW recovery_min_apply_delay")? == "1h", "pg-4 does not hold back");
    ensure!(value(&cluster, 2, "SHOW recovery_min_apply_delay")? == "0", "pg-3 holds back");
    let present = "SELECT count(*) FROM pg_database WHERE datname = 'chaos'";
    cluster.wait_until("pg-3 has replayed", || {
        let databases = value(&cluster, 2, present)?;
        ensure!(databases == "1", "{databases} databases of that name");
        Ok(())
    })?;
    ensure!(value(&cluster, 3, present)? == "0", "pg-4 has replayed what it is to hold back");
    checks_go_by_what_is_replayed(&cluster)?;
    let status = cluster.status(0)?;
    let members = status["members"].as_array().context("members")?;
    let tags = |name: &str| members.iter().find(|m| m["name"] == name).map(|m| m["tags"].clone());
    ensure!(tags("pg-4").is_some_and(|t| t["delay"] == "1h" && t["zone"] == "cellar"), "{status}");

    let at = Moment::now();
    cluster.power_loss(0, PowerLoss::Resets)?;
    cluster.wait_until("pg-3 is primary", || {
        let primary = cluster.primary().context("no primary")?;
        ensure!(primary == 2, "pg-{} is primary", primary + 1);
        Ok(())
    })?;
    report(&format!("pg-3 is primary {:.1} s after the power loss", at.elapsed().as_secs_f64()));
    ensure!(value(&cluster, 3, present)? == "0", "the election made pg-4 replay what it is to hold back");
    cluster.wait_until("a switchover to pg-2 is refused for its tag", || {
        let refused = cluster.rhone(2, &["switchover", "--to", "pg-2"], Duration::from_secs(60))?;
        ensure!(refused.code == Some(3) && refused.stderr.contains("no-failover"), "{refused:?}");
        Ok(())
    })?;
    cluster.start_node(0)?;
    // pg-4 asks for WAL again only when it has replayed what it holds.
    let primary = cluster.wait_whole_without(&[3])?;
    ensure!(primary == 2, "pg-{} is primary", primary + 1);
    ensure!(value(&cluster, 3, "SELECT pg_is_in_recovery()")? == "t", "pg-4 is no standby");
    Ok(())
}
