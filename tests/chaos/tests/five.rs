//! Five members: two nodes may be lost, one after the other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap, report};
use rhone_chaos::workload::Plan;

#[test]
fn five_members_survive_the_primary_and_then_the_next() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(5))?;
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    let mut away = Vec::new();
    let mut excuses = Vec::new();
    for which in ["the primary", "the next primary"] {
        let primary = cluster.wait_whole_without(&away)?;
        workload.wait_for(100, LIMIT)?;
        let at = Moment::now();
        excuses.push(Excuse::power_loss(at));
        cluster.power_loss(primary, PowerLoss::Resets)?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        check_gap(&workload, at, GAP_LIMIT, &format!("five members, power loss of {which}"))?;
        away.push(primary);
    }
    cluster.wait_whole_without(&away)?;
    for index in away {
        cluster.start_node(index)?;
    }
    cluster.wait_whole()?;
    workload.wait_for(100, LIMIT)?;
    replays(&cluster)?;
    Verdict::of(&cluster, &workload.stop()?, &excuses)?.check(&cluster)
}

/// What every member recorded of the failovers is decided the same again, and the promotions are among it.
fn replays(cluster: &Cluster) -> Result<()> {
    let (mut decisions, mut promotions) = (0, 0);
    for index in 0..cluster.members() {
        let file = cluster.node(index)?.state().join("decisions.jsonl");
        let file = file.to_str().context("a path in UTF-8")?;
        let said = cluster.rhone(index, &["replay", file, "-o", "json"], Duration::from_secs(60))?;
        // One that differs, or a file without any, is another status than 0.
        ensure!(said.code == Some(0), "{file}: {}", said.stderr);
        let replay: serde_json::Value = serde_json::from_str(&said.stdout)?;
        let told = replay["decisions"].as_array().context("a list of decisions")?;
        decisions += told.len();
        promotions += told.iter().filter(|decision| decision["reason"] == "owner_promotes").count();
    }
    report(&format!("{decisions} decisions are taken the same again, {promotions} of them to promote"));
    ensure!(promotions >= 3, "only {promotions} of the three promotions are recorded");
    Ok(())
}
