//! The lease's timings at run time, under a client that writes all the time: no epoch ends by it, nothing is
//! lost, and the failover after it goes by the new ones.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::process::Output;
use rhone_chaos::scenario::Verdict;
use rhone_chaos::workload::Plan;
use serde_json::{Value, json};

const COMMAND: Duration = Duration::from_secs(120);

fn rhone(cluster: &Cluster, index: usize, line: &str) -> Result<Output> {
    cluster.rhone(index, &line.split(' ').collect::<Vec<_>>(), COMMAND)
}

fn done(cluster: &Cluster, index: usize, line: &str) -> Result<Value> {
    let output = rhone(cluster, index, &format!("{line} -o json"))?;
    ensure!(output.code == Some(0), "`{line}`: {:?} {}\n{}", output.code, output.stderr, cluster.dump());
    serde_json::from_str(&output.stdout).with_context(|| format!("read what `{line}` printed"))
}

fn refused(cluster: &Cluster, line: &str, why: &str) -> Result<()> {
    let output = rhone(cluster, 0, line)?;
    ensure!(output.code == Some(3), "`{line}`: {:?} {}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr.contains(why), "`{line}` says: {}", output.stderr);
    Ok(())
}

/// What each of these members says of the timings in force, and the leader in `explain`.
fn in_force(cluster: &Cluster, members: &[usize], preset: &str, lease_ms: u32) -> Result<()> {
    let expected = json!({ "preset": preset, "counted_ms": lease_ms, "aged_ms": lease_ms, "settled": true });
    cluster.wait_until(&format!("the timings are {preset} everywhere"), || {
        for index in members {
            let status = cluster.status(*index)?;
            ensure!(status.get("timing") == Some(&expected), "member {}: {status}", index + 1);
        }
        let explained = rhone(cluster, *members.first().context("a member")?, "explain")?.stdout;
        let line = format!("counts by a lease of {lease_ms} ms, voters age by one of {lease_ms} ms\n");
        ensure!(explained.contains(&line), "{explained}");
        Ok(())
    })
}

fn epoch(cluster: &Cluster) -> Result<u64> {
    cluster.status(0)?.get("epoch").and_then(Value::as_u64).context("an epoch")
}

#[test]
fn the_lease_becomes_shorter_and_longer_under_writers_and_a_failover_goes_by_it() -> Result<()> {
    let _turn = take_turn()?;
    // Without standbys to wait for, the lease alone keeps two primaries apart.
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    cluster.wait_whole()?;
    let began = epoch(&cluster)?;
    in_force(&cluster, &[0, 1, 2], "default", 1500)?;

    refused(
        &cluster,
        "settings set timing.lease=400ms",
        "suspicion <= lease fails: suspicion is 500ms, lease is 400ms",
    )?;
    refused(&cluster, "settings set timing.renewal=200ms", "5 * renewal <= suspicion fails")?;
    refused(&cluster, "settings set timing=hasty", "timing is one of default, fast, calm")?;

    let calm = done(&cluster, 0, "settings set timing=calm")?;
    ensure!(calm.get("finished") == Some(&Value::Bool(true)), "{calm}");
    in_force(&cluster, &[0, 1, 2], "calm", 12_000)?;
    workload.wait_for(50, LIMIT)?;
    done(&cluster, 0, "settings set timing=default")?;
    in_force(&cluster, &[0, 1, 2], "default", 1500)?;
    workload.wait_for(50, LIMIT)?;
    ensure!(epoch(&cluster)? == began, "a change of timings ended an epoch\n{}", cluster.dump());

    // From here on a machine that is stopped for half a second may be failed over: nothing is lost by it.
    done(&cluster, 0, "settings set sync=quorum")?;
    done(&cluster, 0, "settings set timing=fast")?;
    in_force(&cluster, &[0, 1, 2], "fast", 600)?;
    workload.wait_for(50, LIMIT)?;
    cluster.wait_secured()?;
    let primary = cluster.wait_whole()?;
    let at = Moment::now();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    let others: Vec<usize> = (0..3).filter(|index| *index != primary).collect();
    in_force(&cluster, &others, "fast", 600)?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;
    in_force(&cluster, &[0, 1, 2], "fast", 600)?;
    workload.wait_for(50, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
