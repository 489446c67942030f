//! Two members with data and a witness: the smallest cluster that fails over by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::{take_machine, take_turn};
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::process::Signal;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap, hold, report};
use rhone_chaos::workload::{Plan, Workload};

/// The witness's place: the last.
const WITNESS: usize = 2;

fn spec() -> Spec {
    Spec::asynchronous(3).with_witness()
}

fn begin(plan: &Plan) -> Result<(Cluster, Workload)> {
    let cluster = Cluster::start(&spec())?;
    let workload = cluster.workload(plan);
    workload.wait_for(200, LIMIT)?;
    Ok((cluster, workload))
}

fn finish(cluster: &Cluster, workload: Workload, excuses: &[Excuse]) -> Result<()> {
    cluster.wait_whole()?;
    workload.wait_for(100, LIMIT)?;
    Verdict::of(cluster, &workload.stop()?, excuses)?.check(cluster)
}

/// Waits until a member says of the witness that it votes, or that it cannot be reached.
fn wait_witness(cluster: &Cluster, asked: usize, state: &str) -> Result<()> {
    cluster.wait_until(&format!("the witness is {state}"), || {
        let status = cluster.status(asked)?;
        let members = status["members"].as_array().context("members")?;
        let witness = members.iter().find(|member| member["kind"] == "witness").context("a witness")?;
        ensure!(
            witness["role"] == "witness" && witness["state"] == state && witness["voter"] == true,
            "{witness}"
        );
        Ok(())
    })
}

/// Asks the witness over HTTP, as a check would; returns the status line.
fn check(cluster: &Cluster, path: &str) -> Result<String> {
    let address = cluster.node(WITNESS)?.address();
    let path = path.to_owned();
    let asked = cluster.network().thread(Place::Client, move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect((address, rhone_chaos::node::HTTP_PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: witness\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = asked.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

#[test]
fn two_members_and_a_witness_are_founded_in_any_order_and_it_leads() -> Result<()> {
    let _turn = take_turn()?;
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut cluster = Cluster::create(&spec())?;
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
        wait_witness(&cluster, 0, "voting")?;
        cluster.wait_until("the witness leads raft", || {
            let leader = cluster.raft_leader()?;
            ensure!(leader == WITNESS, "pg-{} does", leader + 1);
            Ok(())
        })?;
        for (path, expected) in [
            ("/health", "200"),
            ("/liveness", "200"),
            ("/readiness", "200"),
            ("/primary", "503"),
            ("/replica", "503"),
            ("/metrics", "200"),
        ] {
            let found = check(&cluster, path)?;
            ensure!(found == expected, "{path}: {found}, not {expected}");
        }
        let node = cluster.node(WITNESS)?;
        ensure!(node.guardians().is_empty() && node.postmaster().is_none(), "a witness runs no Postgres");
        report(&format!("started in order {order:?}: founded, and the witness leads"));
    }
    Ok(())
}

#[test]
fn the_witness_vote_fails_over_after_power_loss() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let mut excuses = Vec::new();
    for kind in [PowerLoss::Resets, PowerLoss::BlackHole] {
        if kind == PowerLoss::BlackHole && cluster.network().means() == Means::Loopback {
            report("SKIPPED: the part that needs a network cut");
            continue;
        }
        let primary = cluster.wait_whole()?;
        workload.wait_for(100, LIMIT)?;
        let at = Moment::now();
        excuses.push(Excuse::power_loss(at));
        cluster.power_loss(primary, kind)?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        check_gap(&workload, at, GAP_LIMIT, &format!("two and a witness, power loss, {kind:?}"))?;
        cluster.network().heal()?;
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
        report(&format!("whole again {:.1} s after the power loss", at.elapsed().as_secs_f64()));
    }
    finish(&cluster, workload, &excuses)
}

/// The witness holds nothing that a client needs: its loss, and its return, move nothing.
#[test]
fn a_killed_witness_disturbs_nobody_and_comes_back() -> Result<()> {
    let _turn = take_machine()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let primary = cluster.wait_whole()?;
    wait_witness(&cluster, primary, "voting")?;
    let (epoch, at) = (cluster.epoch()?, Moment::now());
    cluster.power_loss(WITNESS, PowerLoss::Resets)?;
    wait_witness(&cluster, primary, "unreachable")?;
    cluster.wait_until("a data member leads raft", || {
        let leader = cluster.raft_leader()?;
        ensure!(leader != WITNESS, "the witness does");
        Ok(())
    })?;
    workload.wait_for(100, LIMIT)?;
    cluster.start_node(WITNESS)?;
    wait_witness(&cluster, primary, "voting")?;
    cluster.wait_until("the witness leads raft again", || {
        let leader = cluster.raft_leader()?;
        ensure!(leader == WITNESS, "pg-{} does", leader + 1);
        Ok(())
    })?;
    cluster.node_mut(WITNESS)?.signal_supervisor(Signal::TERM)?;
    let ended = cluster.node_mut(WITNESS)?.wait_for_end(Duration::from_secs(30));
    ensure!(ended.is_some_and(|status| status.success()), "the witness ended with {ended:?} after SIGTERM");
    cluster.start_node(WITNESS)?;
    wait_witness(&cluster, primary, "voting")?;
    ensure!(cluster.wait_whole()? == primary && cluster.epoch()? == epoch, "the primary moved");
    check_gap(&workload, at, GAP_LIMIT, "the witness killed and started, stopped and started")?;
    finish(&cluster, workload, &[])
}

/// With the primary cut from both others, the standby and the witness go on without it, and not
/// before it has stopped.
#[test]
fn standby_and_witness_go_on_without_a_primary_that_is_cut_off() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&spec())?;
    if cluster.network().means() == Means::Loopback {
        report("SKIPPED: needs a network cut");
        return Ok(());
    }
    let primary = cluster.wait_whole()?;
    let workload = cluster.workload(&Plan { inside: vec![primary], ..Plan::default() });
    workload.wait_for(200, LIMIT)?;
    let at = Moment::now();
    cluster.network().cut(Place::Node(primary))?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    hold(Duration::from_secs(3));
    cluster.network().heal()?;
    cluster.wait_whole()?;
    check_gap(&workload, at, GAP_LIMIT, "primary cut from standby and witness")?;
    finish(&cluster, workload, &[Excuse::lease(at)])
}
