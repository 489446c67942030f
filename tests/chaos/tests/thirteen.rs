//! Thirteen members on one machine, five of which vote: all is as with three, and costs each little more.
//!
//! Thirteen Postgres servers are too much for what CI runs: `make thirteen`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rhone_chaos::bench::load;
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, PowerLoss, Spec, Sync};
use rhone_chaos::idle::{self, Idle};
use rhone_chaos::lock::take_machine;
use rhone_chaos::scenario::{Excuse, Verdict, check_gap, hold, report};
use rhone_chaos::workload::Plan;
use serde_json::Value;

const MEMBERS: usize = 13;
const VOTERS: usize = 5;

/// Twelve copies at once, and whatever follows a failover, on two cores.
const LIMIT: Duration = Duration::from_secs(600);

/// Founding, copying and what follows them have settled.
const SETTLED: Duration = Duration::from_secs(30);

/// For how long an idle cluster is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// A member of thirteen may need so much of the memory that one of three needs (issue 5).
const MEMORY: f64 = 1.5;

fn start(members: usize) -> Result<Cluster> {
    // Each member streams, and may be copied or rewound meanwhile: the default of 20 is for ten members.
    let postgres = "max_wal_senders = 40\nmax_replication_slots = 40\n".to_owned();
    let spec = Spec { sync: Sync::Quorum, postgres, ..Spec::asynchronous(members) };
    let mut cluster = Cluster::create(&spec)?;
    let at = Moment::now();
    for index in 0..members {
        cluster.start_node(index)?;
    }
    cluster.wait_whole_up_to(LIMIT)?;
    cluster.prepare_database()?;
    report(&format!(
        "{members} members are whole after {:.1} s, load {:.1}",
        at.elapsed().as_secs_f64(),
        load()
    ));
    Ok(cluster)
}

/// Waits until so many vote, all others learn, and every member is where it should be by its own cluster's word.
fn wait_correct(cluster: &Cluster, voters: usize) -> Result<()> {
    cluster.wait_up_to(LIMIT, "all members in their roles", || {
        let status = cluster.status(0)?;
        let members = status.get("members").and_then(Value::as_array).context("members")?;
        let count = |key: &str, value: &Value| members.iter().filter(|m| m.get(key) == Some(value)).count();
        let (voting, primaries) = (count("voter", &Value::Bool(true)), count("role", &"primary".into()));
        let streaming = count("state", &"streaming".into());
        if (members.len(), voting, primaries, streaming)
            != (cluster.members(), voters, 1, cluster.members() - 1)
        {
            bail!("{voting} of {} vote, {primaries} primaries, {streaming} stream", members.len());
        }
        Ok(())
    })
}

/// What the members of an idle cluster cost.
fn idle(cluster: &mut Cluster) -> Result<Vec<Idle>> {
    hold(SETTLED);
    let found = idle::measure(cluster, WATCHED)?;
    report(&idle::text(&found, WATCHED.as_secs()));
    Ok(found)
}

#[expect(clippy::cast_precision_loss, reason = "a handful of members")]
fn mean(rows: &[Idle], value: impl Fn(&Idle) -> f64) -> f64 {
    rows.iter().map(value).sum::<f64>() / rows.len() as f64
}

#[expect(clippy::cast_precision_loss, reason = "KiB of a small process")]
fn memory(idle: &Idle) -> f64 {
    (idle.supervisor_rss_kib + idle.guardian_rss_kib) as f64 / 1024.0
}

#[test]
fn thirteen_members_are_all_correct_and_cost_little_more_than_three() -> Result<()> {
    let _turn = take_machine()?;
    let few = idle(&mut start(3)?)?;

    let mut cluster = start(MEMBERS)?;
    wait_correct(&cluster, VOTERS)?;
    let many = idle(&mut cluster)?;

    cluster.wait_secured()?;
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    workload.wait_for(100, LIMIT)?;
    let primary = cluster.primary().context("a primary")?;
    let before = load();
    let at = Moment::now();
    cluster.power_loss(primary, PowerLoss::Resets)?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    workload.wait_for(100, LIMIT)?;
    check_gap(&workload, at, LIMIT, "thirteen members, power loss of the primary")?;
    report(&format!("at a load of {before:.1} before and {:.1} after, with the clients", load()));
    cluster.start_node(primary)?;
    cluster.wait_whole_up_to(LIMIT)?;
    wait_correct(&cluster, VOTERS)?;
    workload.wait_for(100, LIMIT)?;
    // Synchronous: nothing is excused.
    let none: [Excuse; 0] = [];
    Verdict::of(&cluster, &workload.stop()?, &none)?.check(&cluster)?;

    for (what, value) in [
        ("MiB resident, supervisor and guardian", &memory as &dyn Fn(&Idle) -> f64),
        ("% of a core", &|idle: &Idle| idle.cpu_percent),
        ("bytes sent a second", &|idle: &Idle| idle.sent_bytes.unwrap_or(f64::NAN)),
    ] {
        let most = |rows: &[Idle]| rows.iter().map(value).fold(0.0, f64::max);
        report(&format!(
            "{what}, a member: {:.2} of three, {:.2} of thirteen; the most {:.2} and {:.2}",
            mean(&few, value),
            mean(&many, value),
            most(&few),
            most(&many)
        ));
    }
    let ratio = mean(&many, memory) / mean(&few, memory);
    ensure!(ratio <= MEMORY, "a member of thirteen takes {ratio:.2} times the memory of one of three");
    Ok(())
}
