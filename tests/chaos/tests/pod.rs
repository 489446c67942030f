//! A pod's life: each member is PID 1 of a PID namespace of its own, as in a container, where the end of that process
//! is the end of all others.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::ports::until;
use rhone_chaos::process::{self, Signal};
use rhone_chaos::scenario::{Excuse, Verdict, report};
use rhone_chaos::workload::Plan;

/// Stands for the container's runtime: a PID namespace and a /proc of its own.
fn runtime(folder: &std::path::Path) -> Result<PathBuf> {
    let path = folder.join("runtime.sh");
    let rhone = binary::rhone()?;
    let text = format!(
        "#!/bin/sh\nexec unshare --pid --fork --mount-proc --kill-child '{}' \"$@\"\n",
        rhone.display()
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn children(parent: u32) -> Vec<process::Stat> {
    let stats = process::pids().into_iter().filter_map(|pid| process::stat(pid).map(|stat| (pid, stat)));
    stats.filter(|(_, stat)| stat.parent == parent).map(|(_, stat)| stat).collect()
}

fn pids_of_children(parent: u32) -> Vec<u32> {
    let child = |pid: &u32| process::stat(*pid).is_some_and(|stat| stat.parent == parent);
    process::pids().into_iter().filter(child).collect()
}

/// The container's first process.
fn first(cluster: &mut Cluster, index: usize) -> Result<u32> {
    let unshare = cluster.node_mut(index)?.supervisor().context("the pod runs")?;
    let first = *pids_of_children(unshare).first().context("a first process")?;
    let status = std::fs::read_to_string(format!("/proc/{first}/status"))?;
    let number = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("its numbers")?;
    ensure!(number.split_whitespace().last() == Some("1"), "not the first process: {number}");
    Ok(first)
}

/// The supervisor: the child that was started as `rhone run`.
fn supervisor(first: u32) -> Option<u32> {
    let run = |pid: &u32| {
        process::alive(*pid) && process::command_line(*pid).split_whitespace().any(|w| w == "run")
    };
    pids_of_children(first).into_iter().find(run)
}

#[test]
fn a_pod_reaps_hands_over_dies_as_one_and_comes_back() -> Result<()> {
    let _turn = take_turn()?;
    if !rustix::process::geteuid().is_root() || binary::program("unshare").is_none() {
        report("SKIPPED: a pod's life needs root and unshare (util-linux)");
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("rhone-pod-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let spec = Spec { program: Some(runtime(&folder)?), ..Spec::asynchronous(3) };
    let result =
        Cluster::start(&spec).and_then(|mut cluster| life(&mut cluster).with_context(|| cluster.dump()));
    drop(std::fs::remove_dir_all(folder));
    result
}

fn life(cluster: &mut Cluster) -> Result<()> {
    let primary = cluster.wait_whole()?;
    orphans_are_reaped(cluster, primary)?;
    a_crashed_supervisor_is_started_again(cluster, primary)?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(100, LIMIT)?;

    // SIGTERM, as at a rollout: hands over, ends in order, leaves nothing.
    let primary = cluster.wait_whole()?;
    let pod = first(cluster, primary)?;
    let at = Moment::now();
    ensure!(process::signal(pod, Signal::TERM), "the pod is gone");
    let status = cluster.node_mut(primary)?.wait_for_end(LIMIT).context("the pod ends")?;
    ensure!(status.code() == Some(0), "after SIGTERM it ended with {status:?}");
    ensure!(cluster.node(primary)?.processes().is_empty(), "something of the pod goes on");
    workload.wait_elsewhere(primary, at, LIMIT)?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;

    // SIGKILL, as when a node runs out of memory: nothing of it may go on serving.
    let primary = cluster.wait_whole()?;
    let pod = first(cluster, primary)?;
    let killed = Moment::now();
    ensure!(process::signal(pod, Signal::KILL), "the pod is gone");
    cluster.node_mut(primary)?.wait_for_end(LIMIT).context("the pod ends")?;
    until("the kernel has ended all of the pod", || Ok(cluster.node(primary)?.processes().is_empty()))?;
    workload.wait_elsewhere(primary, killed, LIMIT)?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;

    // Without its volume: it joins as somebody new, and clones.
    let lost = (0..3).find(|index| Some(*index) != cluster.primary()).context("a standby")?;
    let pod = first(cluster, lost)?;
    ensure!(process::signal(pod, Signal::TERM), "the pod is gone");
    cluster.node_mut(lost)?.wait_for_end(LIMIT).context("the pod ends")?;
    let node = cluster.node(lost)?;
    std::fs::remove_dir_all(node.data()).context("lose the data directory")?;
    std::fs::remove_dir_all(node.state()).context("lose the state directory")?;
    cluster.start_node(lost)?;
    cluster.wait_whole()?;
    workload.wait_for(100, LIMIT)?;
    Verdict::of(cluster, &workload.stop()?, &[Excuse::power_loss(killed)])?.check(cluster)
}

/// What loses its parent in the namespace becomes the first process's, and is reaped by it.
fn orphans_are_reaped(cluster: &mut Cluster, index: usize) -> Result<()> {
    let pod = first(cluster, index)?;
    let mut command = std::process::Command::new("nsenter");
    command.args(["--pid", "--target", &pod.to_string(), "/bin/sh", "-c"]);
    command.arg("for n in 1 2 3 4 5 6 7 8; do (sleep 36000.25 >/dev/null 2>&1 &); done");
    let ours = |pid: &u32| process::alive(*pid) && process::command_line(*pid).trim_end() == "sleep 36000.25";
    let sleepers = || pids_of_children(pod).into_iter().filter(ours).collect::<Vec<_>>();
    let output = process::run(&mut command, LIMIT)?;
    ensure!(output.code == Some(0), "make orphans: {output:?}");
    until("all orphans are children of the first process", || Ok(sleepers().len() == 8))?;
    for orphan in sleepers() {
        process::signal(orphan, Signal::KILL);
    }
    until("no child of the first process is a zombie, and no orphan is left", || {
        Ok(sleepers().is_empty() && children(pod).iter().all(|stat| stat.state != 'Z'))
    })?;
    ensure!(first(cluster, index)? == pod, "the pod was restarted");
    Ok(())
}

/// A crash of the supervisor is not the container's end.
fn a_crashed_supervisor_is_started_again(cluster: &mut Cluster, index: usize) -> Result<()> {
    let pod = first(cluster, index)?;
    let before = supervisor(pod).context("a supervisor")?;
    ensure!(process::signal(before, Signal::KILL), "the supervisor is gone");
    until("another supervisor runs", || Ok(supervisor(pod).is_some_and(|now| now != before)))?;
    cluster.wait_whole()?;
    ensure!(first(cluster, index)? == pod, "the pod was restarted");
    Ok(())
}
