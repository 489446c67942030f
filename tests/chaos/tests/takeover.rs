//! A running Patroni cluster becomes one of Rhone's, by the words of docs/operating.md: pause, translate, swap.
//!
//! Patroni and etcd come from PyPI and Debian, so that this is no part of `make test`: `make takeover`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::peers::launch;
use rhone_chaos::peers::system::{Bed, System};
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{Verdict, member_gap, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::Plan;

/// Three members found a cluster and start one after the other, perhaps beside much else.
const FOUNDING: Duration = Duration::from_secs(240);

/// `patronictl` as a person types it on a node.
fn patronictl(cluster: &Cluster, index: usize, words: &[&str]) -> Result<String> {
    let program = launch::needed("patronictl")?.display().to_string();
    let file = patroni_yml(cluster, index)?.display().to_string();
    let all: Vec<&str> = [program.as_str(), "-c", &file].into_iter().chain(words.iter().copied()).collect();
    launch::command_ok(cluster, index, &all, LIMIT)
}

fn patroni_yml(cluster: &Cluster, index: usize) -> Result<PathBuf> {
    Ok(cluster.node(index)?.folder().join("patroni.yml"))
}

/// Ends a node's Patroni and its member of etcd; what Postgres runs there goes on.
fn stop_patroni(cluster: &mut Cluster, index: usize) -> Result<()> {
    let node = cluster.node_mut(index)?;
    node.signal_supervisor(Signal::TERM)?;
    node.wait_for_end(LIMIT).with_context(|| format!("patroni of {} does not end", node.name()))?;
    Ok(())
}

fn stop_etcd(cluster: &Cluster, index: usize) -> Result<()> {
    for pid in cluster.node(index)?.processes() {
        if process::stat(pid).is_some_and(|stat| stat.name == "etcd") {
            process::signal(pid, Signal::TERM);
        }
    }
    Ok(())
}

/// `rhone import patroni.yml`, with what the file cannot know: where this member keeps its state.
fn translate(cluster: &Cluster, index: usize, peers: &str) -> Result<()> {
    let node = cluster.node(index)?;
    let file = patroni_yml(cluster, index)?;
    let mut command = cluster.network().command(Place::Node(index), &binary::rhone()?);
    command.arg("import").arg(&file).args(["--peers", peers, "--insecure"]);
    let output = process::run(&mut command, LIMIT)?;
    ensure!(output.code == Some(0), "rhone import: {}", output.stderr);
    let text = output.stdout.replace("/var/lib/rhone", &node.state().display().to_string());
    fs::write(node.config(), text).context("write rhone.toml")
}

/// Data directory and postmaster of each node.
fn servers(cluster: &Cluster) -> Result<Vec<(u64, u32)>> {
    (0..cluster.members())
        .map(|index| {
            let node = cluster.node(index)?;
            let inode = fs::metadata(node.data()).context("look at the data directory")?.ino();
            Ok((inode, node.postmaster().with_context(|| format!("{} has no postmaster", node.name()))?))
        })
        .collect()
}

#[test]
fn a_live_patroni_cluster_is_taken_over() -> Result<()> {
    let missing = System::PatroniEtcd.missing().or_else(|| {
        (Means::detect() != Means::Filter).then(|| "root, iproute2 and nftables are needed".to_owned())
    });
    if let Some(missing) = missing {
        report(&format!("skipped: {missing}"));
        return Ok(());
    }
    let _turn = take_turn()?;
    let mut bed = Bed::start(System::PatroniEtcd)?;
    let first = bed.wait_ready(Duration::from_secs(120))?;
    let cluster = &mut bed.cluster;
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    workload.wait_for(100, LIMIT)?;
    let before = servers(cluster)?;

    let peers: Vec<String> = (0..cluster.members())
        .map(|index| Ok(cluster.node(index)?.address().to_string()))
        .collect::<Result<_>>()?;
    for index in 0..cluster.members() {
        translate(cluster, index, &peers.join(","))?;
    }
    patronictl(cluster, first, &["pause", "bench", "--wait"])?;
    for index in 0..cluster.members() {
        stop_patroni(cluster, index)?;
    }
    for index in 0..cluster.members() {
        stop_etcd(cluster, index)?;
    }
    workload.wait_for(100, LIMIT).context("postgres goes on without patroni")?;
    let paused: Vec<u32> = servers(cluster)?.iter().map(|(_, postmaster)| *postmaster).collect();
    let same = before.iter().map(|(_, postmaster)| *postmaster).eq(paused);
    ensure!(same, "patroni's end restarted a server");

    let program = binary::rhone()?;
    for index in 0..cluster.members() {
        let node = cluster.node_mut(index)?;
        node.use_program(program.clone());
        // Patroni's leave: without this rhone does not touch what is Patroni's.
        let refused = cluster.rhone(index, &["check"], LIMIT)?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("a cluster that Patroni runs"),
            "{}",
            refused.stderr
        );
        fs::remove_file(cluster.node(index)?.data().join("patroni.dynamic.json")).context("leave Patroni")?;
        let sound = cluster.rhone(index, &["check"], LIMIT)?;
        ensure!(sound.code == Some(0), "rhone check: {}{}", sound.stdout, sound.stderr);
    }
    let at = Moment::now();
    for index in 0..cluster.members() {
        cluster.start_node(index)?;
    }
    // Patroni's servers are whole too: each has to have been started anew.
    cluster.wait_up_to(FOUNDING, "rhone has taken all servers over", || {
        for (index, (now, then)) in servers(cluster)?.into_iter().zip(&before).enumerate() {
            ensure!(now.1 != then.1, "member {} runs as it did under Patroni", index + 1);
        }
        Ok(())
    })?;
    let primary = cluster.wait_whole_up_to(FOUNDING)?;
    ensure!(primary == first, "another primary: {primary}: {}", cluster.dump());
    workload.wait_for(100, LIMIT)?;
    let gap = member_gap(&workload.so_far(), at)?;
    report(&format!("taken over from Patroni: {:.3} s without writes", gap.length.as_secs_f64()));
    for (index, (now, then)) in servers(cluster)?.into_iter().zip(before).enumerate() {
        ensure!(now.0 == then.0, "the data of member {} was copied anew: {}", index + 1, cluster.dump());
    }

    // What Patroni left behind, by the statement of docs/operating.md.
    let door = cluster.node(first)?.door();
    let drop_slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_type = 'physical' AND NOT active AND slot_name NOT LIKE 'rhone\\_%'";
    let dropped = ask(&door, "postgres", drop_slots, LIMIT)?.len();
    report(&format!("{dropped} slots of Patroni's dropped"));
    let left = "SELECT slot_name FROM pg_replication_slots WHERE slot_name NOT LIKE 'rhone\\_%'";
    ensure!(ask(&door, "postgres", left, LIMIT)?.is_empty(), "slots of Patroni's are left");

    let next = (first + 1) % cluster.members();
    cluster.switchover(next)?;
    workload.wait_elsewhere(first, Moment::now(), LIMIT).with_context(|| cluster.dump())?;
    Verdict::of(cluster, &workload.stop()?, &[])?.check(cluster)
}
