//! Founding: whatever the order of starting, exactly one cluster comes out. And what a member does that is started again
//! without the others.

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::node::POSTGRES_PORT;
use rhone_chaos::ports::{RW, ask_through, get, with_ports};
use rhone_chaos::process::Signal;
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

const COUNT: &str = "SELECT count(*), pg_is_in_recovery() FROM writes";
const ROW: &str = "INSERT INTO writes (client, seq) VALUES (999, 1) ON CONFLICT DO NOTHING";

/// Ends all members in order, the primary last, and names the one that ended first.
fn stop_all(cluster: &mut Cluster) -> Result<usize> {
    let primary = cluster.wait_whole()?;
    for index in [(primary + 1) % 3, (primary + 2) % 3, primary] {
        let node = cluster.node_mut(index)?;
        node.signal_supervisor(Signal::TERM)?;
        let ended = node.wait_for_end(LIMIT);
        ensure!(ended.is_some(), "pg-{} does not end\n{}", index + 1, cluster.dump());
        ensure!(cluster.node(index)?.postmaster().is_none(), "pg-{} left a Postgres", index + 1);
    }
    Ok((primary + 1) % 3)
}

/// A member that hears nobody serves what it has, takes no row, and leads nobody to a primary.
fn only_reads(cluster: &Cluster, alone: usize, rows: usize) -> Result<()> {
    let expected = [rows.to_string(), "t".to_owned()];
    cluster.wait_until("the member that is alone answers reads", || {
        let found = ask_through(cluster, alone, POSTGRES_PORT, COUNT)?;
        let found: Vec<String> = found.into_iter().flatten().flatten().collect();
        ensure!(found == expected, "{found:?}, not {expected:?}");
        Ok(())
    })?;
    for (port, why) in [(POSTGRES_PORT, "in a read-only transaction"), (RW, "no server took this connection")]
    {
        let refused = ask_through(cluster, alone, port, ROW).err().context("a row without a quorum")?;
        ensure!(format!("{refused:#}").contains(why), "port {port}: {refused:#}");
    }
    let (status, body) = get(cluster, alone, "/primary")?;
    ensure!(status == 503, "/primary: {status} {body}");
    let roles = cluster.roles();
    ensure!(roles.get(&alone).is_some_and(|role| role.standby), "{roles:?}");
    Ok(())
}

#[test]
fn one_cluster_is_founded_when_all_start_at_once_and_one_member_alone_only_reads() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&with_ports(3, "wait = \"2s\"\n"))?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    let history = workload.stop()?;
    Verdict::of(&cluster, &history, &[])?.check(&cluster)?;
    let rows = cluster.rows_of(0)?.len();
    ensure!(rows >= 50, "only {rows} rows were written");
    let alone = stop_all(&mut cluster)?;
    cluster.start_node(alone)?;
    only_reads(&cluster, alone, rows).with_context(|| cluster.dump())?;
    for index in (0..3).filter(|index| *index != alone) {
        cluster.start_node(index)?;
    }
    Verdict::of(&cluster, &history, &[])?.check(&cluster)?;
    cluster.wait_until("a row is taken again", || ask_through(&cluster, alone, RW, ROW).map(drop))
}
