//! Tags: who is never chosen, who follows whom, who holds back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::scenario::report;
use rhone_chaos::sql::ask;

const QUESTION: Duration = Duration::from_secs(10);

fn value(cluster: &Cluster, index: usize, statement: &str) -> Result<String> {
    let rows = ask(&cluster.node(index)?.door(), "postgres", statement, QUESTION)?;
    rows.into_iter().flatten().flatten().next().with_context(|| format!("an answer to {statement}"))
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
