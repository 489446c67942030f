//! The harness tested by itself: a stand-in for `rhone` runs one primary and two standbys that
//! never change, so that faults, clients and checkers can be seen to do what they claim.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::checker::{TwoPrimaries, two_primaries};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, PowerLoss, Spec};
use rhone_chaos::history::ClientKind;
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::node::POSTGRES_PORT;
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{Verdict, hold, member_gap, report};
use rhone_chaos::sql::{Door, ask};
use rhone_chaos::workload::{DATABASE, Plan};

const SOON: Duration = Duration::from_secs(20);

fn plain() -> Spec {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/plain-rhone.sh");
    Spec { program: Some(program), ..Spec::asynchronous(3) }
}

#[test]
fn clients_write_and_a_calm_run_passes_every_checker() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    let start = Moment::now();
    let workload = cluster.workload(&Plan { inside: vec![1], ..Plan::default() });
    workload.wait_for(500, SOON)?;
    report(&format!("500 rows in {:?}", start.elapsed()));
    let history = workload.stop()?;
    let verdict = Verdict::of(&cluster, &history, &[])?;
    verdict.check(&cluster)?;
    ensure!(verdict.loss.acknowledged >= 500 && verdict.loss.lost.is_empty(), "{verdict}");
    ensure!(history.broken.is_empty(), "sessions broke in a calm run: {:?}", history.broken);
    ensure!(
        !history.acknowledged_to(&[ClientKind::MultiHost]).is_empty(),
        "the multi-host client never wrote"
    );
    ensure!(member_gap(&history, start)?.length < SOON);

    // Its evidence is real: rows that vanish, appear or differ are found.
    ask(&cluster.node(0)?.door(), DATABASE, "DELETE FROM writes WHERE seq = 3 AND client < 300", SOON)?;
    ask(&cluster.node(0)?.door(), DATABASE, "INSERT INTO writes VALUES (9, 9)", SOON)?;
    let verdict = Verdict::of(&cluster, &history, &[])?;
    ensure!(
        !verdict.passed() && !verdict.loss.lost.is_empty() && verdict.loss.phantom.len() == 1,
        "{verdict}"
    );
    Ok(())
}

#[test]
fn finds_each_process_and_power_loss_leaves_none() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&plain())?;
    for index in 0..3 {
        let node = cluster.node_mut(index)?;
        let supervisor = node.supervisor().context("a supervisor")?;
        let guardian = *node.guardians().first().context("a guardian")?;
        let postmaster = node.postmaster().context("a postmaster")?;
        let parent = |pid| process::stat(pid).map(|stat| stat.parent);
        ensure!(supervisor != guardian && parent(postmaster) == Some(guardian), "wrong guardian");
        ensure!(
            process::command_line(supervisor).contains("run -c"),
            "{}",
            process::command_line(supervisor)
        );
        ensure!(node.processes().len() >= 6, "{:?}", node.processes());
    }
    cluster.power_loss(0, PowerLoss::Resets)?;
    let node = cluster.node_mut(0)?;
    ensure!(node.processes().is_empty() && node.postmaster().is_none() && node.supervisor().is_none());
    ensure!(cluster.primary().is_none() && cluster.roles().len() == 2);
    cluster.start_node(0)?;
    cluster.wait_whole()?;
    cluster.power_loss_of_all()?;
    ensure!(cluster.roles().is_empty());
    for index in 0..3 {
        cluster.start_node(index)?;
    }
    cluster.wait_whole().map(drop)
}

#[test]
fn a_cut_is_silent_and_heals_and_a_client_inside_does_not_notice() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    if cluster.network().means() == Means::Loopback {
        report("SKIPPED: no network namespaces here");
        return Ok(());
    }
    let workload = cluster.workload(&Plan { inside: vec![0], ..Plan::default() });
    workload.wait_for(100, SOON)?;
    let at = Moment::now();
    cluster.network().cut(Place::Node(0))?;
    let cut = Moment::now();
    hold(Duration::from_secs(3));
    let during = workload.so_far();
    let outside = during.acknowledged_to(&[ClientKind::Member, ClientKind::Patient, ClientKind::MultiHost]);
    // What was on its way when the cut began may still arrive.
    let late = outside.iter().filter(|operation| operation.finished > cut.after(Duration::from_millis(500)));
    ensure!(late.count() == 0, "clients outside were answered through the cut");
    let inside = during.acknowledged_to(&[ClientKind::Inside]);
    ensure!(
        inside.iter().filter(|operation| operation.invoked > cut).count() > 5,
        "the client inside was cut too"
    );
    ensure!(
        cluster.roles().get(&0).is_some_and(|role| role.streaming == 0),
        "the walsenders noticed nothing"
    );
    cluster.network().heal()?;
    cluster.wait_whole()?;
    workload.wait_for(200, SOON)?;
    let gap = member_gap(&workload.so_far(), at)?;
    ensure!(gap.length > Duration::from_millis(2500), "{gap:?}");
    Verdict::of(&cluster, &workload.stop()?, &[])?.check(&cluster)
}

#[test]
fn one_way_and_partial_cuts_stop_just_what_they_name() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    let network = cluster.network();
    if network.means() != Means::Filter {
        report(&format!("SKIPPED: {}", network.means().missing().unwrap_or_default()));
        return Ok(());
    }
    network.cut_between(Place::Node(0), Place::Node(2))?;
    cluster.wait_until("only pg-2 streams", || {
        let roles = cluster.roles();
        ensure!(roles.get(&0).is_some_and(|role| role.streaming == 1));
        ensure!(roles.get(&1).is_some_and(|role| role.upstream.is_some()));
        ensure!(roles.get(&2).is_some_and(|role| role.upstream.is_none()));
        Ok(())
    })?;
    network.heal()?;
    cluster.wait_whole()?;
    network.cut_one_way(Place::Client, Place::Node(1))?;
    ensure!(!cluster.reaches(Place::Client, 1) && cluster.reaches(Place::Client, 0));
    network.heal()?;
    ensure!(cluster.reaches(Place::Client, 1));
    Ok(())
}

#[test]
fn a_stopped_server_answers_the_patient_client_late_and_it_is_no_second_primary() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, SOON)?;
    let at = Moment::now();
    let servers: Vec<u32> = process::of_folder(&cluster.node(0)?.data());
    ensure!(servers.iter().all(|&pid| process::signal(pid, Signal::STOP)));
    hold(Duration::from_secs(2));
    ensure!(servers.iter().all(|&pid| process::signal(pid, Signal::CONT)));
    workload.wait_for(100, SOON)?;
    let gap = member_gap(&workload.so_far(), at)?;
    ensure!(gap.length > Duration::from_millis(1500), "{gap:?}");
    let history = workload.stop()?;
    let late = history.acknowledged_to(&[ClientKind::Patient]);
    ensure!(
        late.iter().any(|operation| operation.finished.since(operation.invoked) > Duration::from_secs(1))
    );
    Verdict::of(&cluster, &history, &[])?.check(&cluster)
}

#[test]
fn a_slow_link_delays_and_carries_all_and_heals() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    if cluster.network().means() != Means::Filter || rhone_chaos::latency::impossible().is_some() {
        report("SKIPPED: frames cannot be delayed here");
        return Ok(());
    }
    let door = Door::Tcp { address: cluster.node(0)?.address(), port: POSTGRES_PORT };
    let look = |statement: &'static str| {
        let door = door.clone();
        let asked = cluster.network().thread(Place::Client, move || {
            let start = Moment::now();
            ask(&door, DATABASE, statement, SOON).map(|rows| (rows, start.elapsed()))
        });
        asked.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    };
    cluster.network().delay(Place::Node(0), Duration::from_millis(150), Duration::from_millis(20))?;
    // Connecting takes some round trips; large answers come in segments that only the far end cuts.
    let (rows, took) = look("SELECT repeat('x', 1000) FROM generate_series(1, 2000)")?;
    ensure!(rows.len() == 2000, "{} rows came through", rows.len());
    ensure!(took > Duration::from_millis(2 * 2 * 130), "nothing was delayed: {took:?}");
    // A cut holds on a slow link, too.
    cluster.network().cut(Place::Node(0))?;
    let door = Door::Tcp { address: cluster.node(0)?.address(), port: POSTGRES_PORT };
    let cut = cluster
        .network()
        .thread(Place::Client, move || Ok(ask(&door, DATABASE, "SELECT 1", Duration::from_secs(2)).is_err()));
    ensure!(cut.join().map_err(|_| anyhow::anyhow!("the client panicked"))??, "the cut link still carries");
    cluster.network().heal()?;
    ensure!(look("SELECT 1")?.0.len() == 1, "the healed link carries nothing");
    Ok(())
}

#[test]
fn nothing_is_left_after_a_cluster() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    let folder: PathBuf = cluster.folder().to_owned();
    let id = folder.file_name().context("a name")?.to_string_lossy().into_owned();
    let names = || -> Vec<String> {
        std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()
    };
    drop(cluster);
    ensure!(!folder.exists() && process::of_folder(&folder).is_empty());
    ensure!(!names().iter().any(|name| name.starts_with(&format!("{id}-"))), "{:?}", names());
    if let Some(root) = rhone_chaos::cgroup::root() {
        ensure!(!root.join(&id).exists(), "the cgroup is left");
    }
    Ok(())
}

#[test]
fn a_real_split_brain_is_caught() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&plain())?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, SOON)?;
    let at = Moment::now();
    ask(&cluster.node(1)?.door(), "postgres", "SELECT pg_promote()", SOON)?;
    workload.wait_elsewhere(0, at, SOON)?;
    workload.wait_for(100, SOON)?;
    let history = workload.stop()?;
    let found = two_primaries(&history);
    ensure!(!found.is_empty(), "two servers acknowledged side by side, and nobody noticed");
    ensure!(
        found
            .iter()
            .all(|proof| matches!(proof, TwoPrimaries::OldStillServed { new, .. } if new.server == 1))
    );
    report(&format!("{} proofs, the first: {}", found.len(), found.first().context("a proof")?));
    ensure!(cluster.primary().is_none(), "one of two primaries passed for the only one");
    Ok(())
}
