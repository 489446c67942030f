//! Does faults, and ends them all.
//!
//! Nothing is undone one by one: [`heal`] looks at everything a fault can have left and puts it
//! right, so that two faults at once need no thought.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::clock::Moment;
use crate::cluster::{Cluster, PowerLoss};
use crate::disk;
use crate::fault::Fault;
use crate::namespace::Place;
use crate::node::{GRPC_PORT, POSTGRES_PORT};
use crate::process::{self, Owned, Signal};
use crate::random::Random;
use crate::scenario::hold;

/// How much longer each fsync takes.
const SLOW_SYNC_US: u64 = 500_000;
/// The same, where none comes back.
const STALLED_SYNC_US: u64 = 60_000_000;
/// What a narrow link carries, kB/s.
const NARROW: u32 = 60;
/// Percent of one core that a starved node has.
const STARVED: u64 = 10;
/// How long a supervisor may take to hand over and end.
const LEAVING: Duration = Duration::from_secs(120);
/// MiB that a node short of memory has beyond what it uses.
const SPARE: u64 = 4;

/// What faults have left that healing has to end.
#[derive(Debug, Default)]
pub struct Undo {
    /// Stopped processes, with the moment of their start: a pid may be used again.
    stopped: Vec<(u32, u64)>,
    tracers: Vec<Owned>,
    /// Nodes that have no power.
    dark: Vec<usize>,
    /// Nodes whose supervisor was asked to end.
    leaving: Vec<usize>,
    /// Nodes whose disks lost what was not fsynced.
    cut: Vec<usize>,
    /// Nodes that are kept from voting.
    mute: Vec<usize>,
}

impl Undo {
    fn stop(&mut self, pids: &[u32]) -> Result<()> {
        ensure!(!pids.is_empty(), "there is no such process");
        for &pid in pids {
            let Some(stat) = process::stat(pid) else { continue };
            if process::signal(pid, Signal::STOP) {
                self.stopped.push((pid, stat.started));
            }
        }
        Ok(())
    }
}

fn kill(pids: &[u32]) -> Result<()> {
    ensure!(!pids.is_empty(), "there is no such process");
    for &pid in pids {
        process::signal(pid, Signal::KILL);
    }
    Ok(())
}

/// Does a fault to members. `lasts` is for how long the round leaves things as they are: what
/// comes and goes does so meanwhile, the rest is done at once.
///
/// # Errors
/// When it could not be done: then nothing may be concluded from what follows.
pub fn strike(
    cluster: &mut Cluster,
    undo: &mut Undo,
    random: &mut Random,
    fault: Fault,
    members: &[usize],
    lasts: Duration,
) -> Result<()> {
    if matches!(
        fault,
        Fault::PowerLoss | Fault::BlackHole | Fault::PowerCut | Fault::WipedState | Fault::WipedData
    ) {
        return power(cluster, undo, fault, members);
    }
    members.iter().try_for_each(|&member| strike_one(cluster, undo, random, fault, member, lasts))
}

fn strike_one(
    cluster: &mut Cluster,
    undo: &mut Undo,
    random: &mut Random,
    fault: Fault,
    member: usize,
    lasts: Duration,
) -> Result<()> {
    let place = Place::Node(member);
    match fault {
        Fault::PowerLoss | Fault::BlackHole | Fault::PowerCut | Fault::WipedState | Fault::WipedData => {
            power(cluster, undo, fault, &[member])
        }
        Fault::Cut
        | Fault::Unheard
        | Fault::Deaf
        | Fault::Island
        | Fault::LinkDown
        | Fault::LeaderLink
        | Fault::Ring
        | Fault::Flap => links(cluster, random, fault, member, lasts),
        Fault::RaftPort => cluster.network().cut_port(place, GRPC_PORT),
        Fault::PostgresPort => cluster.network().cut_port(place, POSTGRES_PORT),
        Fault::Loss => cluster.network().lose(place, 33),
        Fault::LightLoss => cluster.network().lose(place, 1),
        Fault::Narrow => cluster.network().throttle(place, NARROW),
        Fault::Latency => {
            let delay = millis(random, 5, 300);
            cluster.network().delay(place, delay, delay / 3)
        }
        Fault::FullData
        | Fault::FullState
        | Fault::HungData
        | Fault::HungState
        | Fault::ReadOnlyData
        | Fault::ReadOnlyState
        | Fault::SlowSync
        | Fault::StalledSync => disks(cluster, undo, fault, member),
        Fault::ClockAhead => cluster.node(member)?.clock()?.set(600),
        Fault::ClockBack => cluster.node(member)?.clock()?.set(-600),
        Fault::ClockSteps => steps(cluster, random, member, lasts),
        Fault::Starved => cluster.node(member)?.limits().starve(STARVED),
        Fault::OutOfMemory => cluster.node(member)?.limits().squeeze(SPARE),
        Fault::Switchover
        | Fault::Failover
        | Fault::RollingRestart
        | Fault::Reinit
        | Fault::Upgrade
        | Fault::RollingUpgrade
        | Fault::Demote => operations(cluster, undo, random, fault, member),
        Fault::KillPostmaster
        | Fault::KillBackend
        | Fault::KillCheckpointer
        | Fault::KillReplication
        | Fault::KillSupervisor
        | Fault::CrashSupervisor
        | Fault::KillGuardian
        | Fault::KillBoth
        | Fault::StopSupervisor
        | Fault::StopGuardian
        | Fault::StopBoth
        | Fault::StopPostgres
        | Fault::StopPostmaster
        | Fault::StopBackend
        | Fault::StopCheckpointer
        | Fault::StopReplication
        | Fault::StopEverything
        | Fault::FreezeNode
        | Fault::Terminate => processes(cluster, undo, fault, member),
    }
}

/// What operators do.
fn operations(
    cluster: &mut Cluster,
    undo: &mut Undo,
    random: &mut Random,
    fault: Fault,
    member: usize,
) -> Result<()> {
    match fault {
        Fault::Switchover => cluster.switchover(member),
        Fault::Failover => {
            let name = cluster.node(member)?.name();
            cluster.operate(member, &["failover", "--to", &name])
        }
        Fault::RollingRestart => cluster.operate(member, &["restart", "--rolling"]),
        Fault::Reinit => {
            let name = cluster.node(member)?.name();
            cluster.operate(member, &["reinit", &name, "--yes"])
        }
        Fault::Upgrade => upgrade(cluster, member),
        Fault::RollingUpgrade => (0..cluster.members()).try_for_each(|member| {
            upgrade(cluster, member)?;
            hold(millis(random, 1000, 4000));
            Ok(())
        }),
        Fault::Demote => {
            let name = cluster.node(member)?.name();
            undo.mute.push(member);
            cluster.operate(member, &["member", "demote", &name])
        }
        other => bail!("{other:?} is no operator's work"),
    }
}

/// Starts another copy of the program in the supervisor's place.
fn upgrade(cluster: &mut Cluster, member: usize) -> Result<()> {
    let next = cluster.folder().join(format!("rhone-next-{}", member + 1));
    let node = cluster.node_mut(member)?;
    // The one that runs cannot be written over.
    let next = if node.program() == next { next.with_extension("b") } else { next };
    std::fs::copy(node.program(), &next).context("copy the binary")?;
    node.use_program(next);
    kill(&node.supervisor().into_iter().collect::<Vec<_>>())?;
    node.wait_for_end(Duration::from_secs(5)).context("the supervisor ended")?;
    cluster.start_node(member)
}

fn power(cluster: &mut Cluster, undo: &mut Undo, fault: Fault, members: &[usize]) -> Result<()> {
    let kind = if fault == Fault::BlackHole { PowerLoss::BlackHole } else { PowerLoss::Resets };
    undo.dark.extend(members);
    if fault == Fault::PowerCut {
        // The disks first, all at once: what the processes still write is lost with them.
        let mut disks = Vec::new();
        for &member in members {
            let (data, state) = cluster.node(member)?.disks()?.clone();
            disks.extend([data, state]);
        }
        undo.cut.extend(members);
        disk::cut_power(&disks)?;
    }
    for &member in members {
        cluster.power_loss(member, kind)?;
        let node = cluster.node(member)?;
        match fault {
            Fault::WipedState => empty(&node.state())?,
            Fault::WipedData => empty(&node.data())?,
            _ => {}
        }
    }
    Ok(())
}

fn empty(folder: &PathBuf) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?.flatten() {
        let path = entry.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn links(cluster: &Cluster, random: &mut Random, fault: Fault, member: usize, lasts: Duration) -> Result<()> {
    let (network, place) = (cluster.network(), Place::Node(member));
    let others = || (0..cluster.members()).filter(move |&other| other != member);
    match fault {
        Fault::Unheard => others().try_for_each(|other| network.cut_one_way(place, Place::Node(other))),
        Fault::Deaf => others().try_for_each(|other| network.cut_one_way(Place::Node(other), place)),
        Fault::Island => others().try_for_each(|other| network.cut_between(place, Place::Node(other))),
        Fault::LinkDown => {
            let all: Vec<usize> = others().collect();
            let other = random.pick(&all).copied().context("another member")?;
            network.cut_between(place, Place::Node(other))
        }
        Fault::LeaderLink => {
            let leader = cluster.raft_leader()?;
            ensure!(leader != member, "it leads Raft itself");
            network.cut_between(place, Place::Node(leader))
        }
        Fault::Ring => {
            let count = cluster.members();
            let pairs = (0..count).flat_map(|one| (one + 2..count).map(move |other| (one, other)));
            let mut far = pairs.filter(|&(one, other)| !(one == 0 && other == count - 1));
            far.try_for_each(|(one, other)| network.cut_between(Place::Node(one), Place::Node(other)))
        }
        Fault::Flap => {
            let start = Moment::now();
            while start.elapsed() < lasts {
                network.cut(place)?;
                hold(millis(random, 50, 2500));
                network.heal()?;
                hold(millis(random, 20, 1500));
            }
            Ok(())
        }
        _ => network.cut(place),
    }
}

fn millis(random: &mut Random, from: usize, to: usize) -> Duration {
    Duration::from_millis(u64::try_from(from + random.below(to - from)).unwrap_or(0))
}

fn steps(cluster: &Cluster, random: &mut Random, member: usize, lasts: Duration) -> Result<()> {
    let clock = cluster.node(member)?.clock()?;
    let (start, mut offset) = (Moment::now(), 0_i64);
    while start.elapsed() < lasts {
        offset += if random.below(2) == 0 { 1 } else { -1 };
        clock.set(offset)?;
        hold(millis(random, 20, 800));
    }
    Ok(())
}

fn disks(cluster: &Cluster, undo: &mut Undo, fault: Fault, member: usize) -> Result<()> {
    let node = cluster.node(member)?;
    if matches!(fault, Fault::SlowSync | Fault::StalledSync) {
        let longer = if fault == Fault::SlowSync { SLOW_SYNC_US } else { STALLED_SYNC_US };
        let postmaster = node.postmaster().context("a postmaster")?;
        let mut pids = node.servers("");
        pids.retain(|&pid| pid != postmaster);
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e"])
            .arg(format!("inject=fdatasync,fsync:delay_enter={longer}"))
            .args([postmaster].iter().chain(&pids).flat_map(|pid| ["-p".to_owned(), pid.to_string()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        undo.tracers.push(Owned::spawn(&mut command)?);
        return Ok(());
    }
    let (data, state) = node.disks()?;
    match fault {
        Fault::FullData => data.fill(),
        Fault::FullState => state.fill(),
        Fault::HungData => data.hang(true),
        Fault::HungState => state.hang(true),
        Fault::ReadOnlyData => data.fail(),
        Fault::ReadOnlyState => state.fail(),
        _ => bail!("{fault:?} is no fault of a disk"),
    }
}

fn processes(cluster: &mut Cluster, undo: &mut Undo, fault: Fault, member: usize) -> Result<()> {
    let node = cluster.node_mut(member)?;
    let supervisor: Vec<u32> = node.supervisor().into_iter().collect();
    let guardians = node.guardians();
    let both = || [supervisor.clone(), guardians.clone()].concat();
    let replication = || {
        let receivers = node.servers("walreceiver");
        if receivers.is_empty() { node.servers("walsender") } else { receivers }
    };
    let backend = || node.servers(" chaos chaos ").into_iter().take(1).collect::<Vec<_>>();
    let postmaster = || node.postmaster().into_iter().collect::<Vec<_>>();
    match fault {
        Fault::KillPostmaster => kill(&postmaster()),
        Fault::KillBackend => kill(&backend()),
        Fault::KillCheckpointer => kill(&node.servers("checkpointer")),
        Fault::KillReplication => kill(&replication()),
        Fault::KillSupervisor | Fault::CrashSupervisor => {
            kill(&supervisor)?;
            node.wait_for_end(Duration::from_secs(5)).context("the supervisor ended")?;
            if fault == Fault::CrashSupervisor { cluster.start_node(member) } else { Ok(()) }
        }
        Fault::KillGuardian => kill(&guardians),
        Fault::KillBoth => kill(&both()),
        Fault::StopSupervisor => undo.stop(&supervisor),
        Fault::StopGuardian => undo.stop(&guardians),
        Fault::StopBoth => undo.stop(&both()),
        Fault::StopPostgres => undo.stop(&node.servers("")),
        Fault::StopPostmaster => undo.stop(&postmaster()),
        Fault::StopBackend => undo.stop(&backend()),
        Fault::StopCheckpointer => undo.stop(&node.servers("checkpointer")),
        Fault::StopReplication => undo.stop(&replication()),
        Fault::StopEverything => undo.stop(&node.processes()),
        Fault::FreezeNode => node.freeze(true),
        Fault::Terminate => {
            // Only one that was told ends.
            node.signal_supervisor(Signal::TERM)?;
            undo.leaving.push(member);
            Ok(())
        }
        _ => bail!("{fault:?} is no fault of a process"),
    }
}

/// Ends every fault: what was stopped goes on, links and disks work, nodes without power or without
/// a supervisor are started.
pub fn heal(cluster: &mut Cluster, undo: &mut Undo) -> Result<()> {
    for index in 0..cluster.members() {
        let node = cluster.node(index)?;
        drop(node.freeze(false));
        node.limits().lift()?;
        if let Ok(clock) = node.clock() {
            clock.set(0)?;
        }
        if let Ok((data, state)) = node.disks() {
            for disk in [data, state] {
                // Fails where it does not hang.
                drop(disk.hang(false));
                if !undo.cut.contains(&index) && !disk.read_only() {
                    disk.relieve()?;
                }
            }
        }
    }
    for mut tracer in undo.tracers.drain(..) {
        process::signal(tracer.pid(), Signal::INT);
        if tracer.wait(Duration::from_secs(10)).is_none() {
            process::signal(tracer.pid(), Signal::KILL);
        }
    }
    for (pid, started) in undo.stopped.drain(..) {
        if process::stat(pid).is_some_and(|stat| stat.started == started) {
            process::signal(pid, Signal::CONT);
        }
    }
    cluster.network().heal()?;
    for index in 0..cluster.members() {
        restore(cluster, undo, index)?;
    }
    for member in std::mem::take(&mut undo.mute) {
        vote_again(cluster, member)?;
    }
    undo.dark.clear();
    undo.leaving.clear();
    undo.cut.clear();
    Ok(())
}

/// Remounts a node's disks if they need it, and starts its supervisor if there is none.
fn restore(cluster: &mut Cluster, undo: &Undo, index: usize) -> Result<()> {
    let node = cluster.node_mut(index)?;
    if let Ok(disks) = node.disks().cloned() {
        let broken = disks.0.read_only() || disks.1.read_only();
        if undo.cut.contains(&index) {
            node.power_off()?;
            disks.0.reboot()?;
            disks.1.reboot()?;
        } else if broken {
            // As a person does: the machine is switched off, its disks are checked.
            node.power_off()?;
            disks.0.repair()?;
            disks.1.repair()?;
            disks.0.relieve()?;
            disks.1.relieve()?;
        }
    }
    if undo.leaving.contains(&index) {
        node.wait_for_end(LEAVING).with_context(|| format!("{} ends after SIGTERM", node.name()))?;
    }
    if node.supervisor().is_none() {
        cluster.start_node(index)?;
    }
    Ok(())
}

/// Lets a member vote again; asked until the cluster can decide it.
fn vote_again(cluster: &Cluster, member: usize) -> Result<()> {
    let (name, start) = (cluster.node(member)?.name(), Moment::now());
    loop {
        match cluster.operate(member, &["member", "promote", &name]) {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > LEAVING => return Err(error.context(format!("let {name} vote"))),
            Err(_) => hold(Duration::from_millis(500)),
        }
    }
}
