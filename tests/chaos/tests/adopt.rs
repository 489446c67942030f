//! Servers that ran before Rhone came: taken over in place, with their data and without a copy (decision 0059).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::Place;
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{Verdict, member_gap, report};
use rhone_chaos::sql::ask;
use rhone_chaos::workload::{DATABASE, Plan, TABLE};

/// Runs a program of Postgres's on a node, as the user that owns the data.
fn postgres(cluster: &Cluster, index: usize, program: &str, arguments: &[&str]) -> Result<()> {
    let path = binary::postgres_folder()?.join(program);
    let place = Place::Node(index);
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = cluster.network().command(place, Path::new("setpriv"));
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(path);
        command
    } else {
        cluster.network().command(place, &path)
    };
    let output = process::run(command.args(arguments).current_dir("/"), LIMIT)?;
    ensure!(output.code == Some(0), "{program} on node {}: {}{}", index + 1, output.stdout, output.stderr);
    Ok(())
}

/// Starts the server of a node's data directory as a person would, without Rhone.
fn start_by_hand(cluster: &Cluster, index: usize) -> Result<()> {
    let node = cluster.node(index)?;
    let options = format!(
        "-c listen_addresses={} -c port=5432 -c unix_socket_directories={}",
        node.address(),
        node.folder().join("s").display()
    );
    let data = node.data().display().to_string();
    let log = node.folder().join("pg/by-hand.log").display().to_string();
    postgres(cluster, index, "pg_ctl", &["start", "-w", "-D", &data, "-l", &log, "-o", &options])
}

/// Makes a primary on the first node and a standby that streams from it on the second.
fn two_servers(cluster: &Cluster) -> Result<()> {
    let data = |index: usize| -> Result<String> { Ok(cluster.node(index)?.data().display().to_string()) };
    let arguments = ["-D", &data(0)?, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-k"];
    postgres(cluster, 0, "initdb", &arguments)?;
    let range = cluster.network().client_range();
    let hba = cluster.node(0)?.data().join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).context("read pg_hba.conf")?;
    let lines = format!("{text}host all all {range} trust\nhost replication all {range} trust\n");
    std::fs::write(&hba, lines).context("write pg_hba.conf")?;
    start_by_hand(cluster, 0)?;
    let door = cluster.node(0)?.door();
    for (database, statement) in [
        ("postgres", "CREATE ROLE chaos LOGIN"),
        ("postgres", "CREATE DATABASE chaos OWNER chaos"),
        (DATABASE, TABLE),
    ] {
        ask(&door, database, statement, LIMIT)?;
    }
    let source = format!("host={} port=5432 user=postgres", cluster.node(0)?.address());
    let arguments = ["-D", &data(1)?, "-d", &source, "-R", "-C", "-S", "by_hand", "-c", "fast"];
    postgres(cluster, 1, "pg_basebackup", &arguments)?;
    start_by_hand(cluster, 1)
}

#[test]
fn a_running_server_and_its_standby_are_taken_over_in_place() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::create(&Spec::asynchronous(3))?;
    two_servers(&cluster)?;
    let plan = Plan { patient: false, multi_host: 0, ..Plan::default() };
    let workload = cluster.workload(&plan);
    workload.wait_for(50, LIMIT)?;
    let inode = |cluster: &Cluster, index: usize| -> Result<u64> {
        Ok(std::fs::metadata(cluster.node(index)?.data()).context("look at the data directory")?.ino())
    };
    let before: BTreeMap<usize, u64> =
        [(0, inode(&cluster, 0)?), (1, inode(&cluster, 1)?)].into_iter().collect();
    let by_hand = cluster.node(0)?.postmaster().context("a postmaster")?;

    // Until all founding members are there nobody touches what runs.
    for index in [0, 1] {
        cluster.start_node(index)?;
    }
    for index in [0, 1] {
        cluster.wait_until("the members that are there wait for the third", || {
            let log = cluster.node(index)?.log_tail(200);
            ensure!(log.contains("waits for the other founding members"), "{log}");
            ensure!(log.contains("a server runs here that this rhone did not start"), "{log}");
            Ok(())
        })?;
    }
    workload.wait_for(50, LIMIT)?;
    ensure!(cluster.node(0)?.postmaster() == Some(by_hand), "the server was restarted: {}", cluster.dump());

    let at = Moment::now();
    cluster.start_node(2)?;
    let primary = cluster.wait_whole()?;
    ensure!(
        primary == 0,
        "member {} is primary, whose data was not the first: {}",
        primary + 1,
        cluster.dump()
    );
    workload.wait_for(100, LIMIT)?;
    let gap = member_gap(&workload.so_far(), at)?;
    report(&format!("taken over: {:.3} s without writes", gap.length.as_secs_f64()));
    for (index, inode_before) in before {
        let copied = inode(&cluster, index)? != inode_before;
        ensure!(!copied, "the data of member {} was copied anew: {}", index + 1, cluster.dump());
        ensure!(!cluster.node(index)?.guardians().is_empty(), "nobody guards member {}", index + 1);
    }
    cluster.switchover(1)?;
    workload.wait_elsewhere(0, Moment::now(), LIMIT).with_context(|| cluster.dump())?;
    let history = workload.stop()?;
    Verdict::of(&cluster, &history, &[])?.check(&cluster)?;
    leave(&mut cluster, 1)
}

/// Leaves Rhone again, by the words of docs/operating.md: one server goes on as it was before.
fn leave(cluster: &mut Cluster, last: usize) -> Result<()> {
    let rows = cluster.rows_of(last)?;
    for index in (0..cluster.members()).filter(|index| *index != last) {
        let name = cluster.node(index)?.name();
        cluster.operate(last, &["member", "remove", &name, "--yes"]).with_context(|| cluster.dump())?;
    }
    for index in (0..cluster.members()).filter(|index| *index != last).chain([last]) {
        let node = cluster.node_mut(index)?;
        // One that was removed may have ended by itself.
        if node.supervisor().is_some() {
            node.signal_supervisor(Signal::TERM)?;
        }
        node.wait_for_end(LIMIT).with_context(|| format!("rhone of {} does not end", node.name()))?;
    }
    let node = cluster.node(last)?;
    ensure!(node.postmaster().is_none(), "postgres runs on without rhone");
    let conf = node.data().join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).context("read postgresql.conf")?;
    let lines: Vec<&str> = text.lines().filter(|line| *line != "include 'rhone.conf'").collect();
    ensure!(lines.len() + 1 == text.lines().count(), "the line is not there: {text}");
    std::fs::write(&conf, lines.join("\n") + "\n").context("write postgresql.conf")?;
    start_by_hand(cluster, last)?;
    let door = cluster.node(last)?.door();
    ask(&door, DATABASE, "INSERT INTO writes VALUES (0, 1)", LIMIT).context("write without rhone")?;
    ensure!(cluster.rows_of(last)?.len() == rows.len() + 1, "rows are missing");
    Ok(())
}
