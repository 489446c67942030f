//! Founding: whatever the order of starting, exactly one cluster comes out.

use anyhow::{Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::scenario::{Verdict, report};
use rhone_chaos::workload::Plan;

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn one_cluster_is_founded_in_every_start_order() -> Result<()> {
    let _turn = take_turn()?;
    for order in ORDERS {
        let start = Moment::now();
        let mut cluster = Cluster::create(&Spec::asynchronous(3))?;
        for (position, &index) in order.iter().enumerate() {
            cluster.start_node(index)?;
            if position < 2 {
                cluster.wait_until("the supervisor listens", || {
                    ensure!(cluster.listens(index), "pg-{} does not listen", index + 1);
                    Ok(())
                })?;
                ensure!(cluster.primary().is_none(), "{} of 3 members founded a cluster", position + 1);
            }
        }
        cluster.prepare_database()?;
        let workload = cluster.workload(&Plan::default());
        workload.wait_for(50, LIMIT)?;
        Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)?;
        report(&format!("order {order:?}: whole and written to after {:.1?}", start.elapsed()));
    }
    Ok(())
}

#[test]
fn one_cluster_is_founded_when_all_start_at_once() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}
