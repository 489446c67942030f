//! Five members: two nodes may be lost, one after the other.

use anyhow::{Context, Result};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap};
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
    Verdict::of(&cluster, &workload.stop()?, &excuses)?.check(&cluster)
}
