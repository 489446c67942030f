//! What an idle member costs: memory, CPU, wake-ups, bytes written, syncs.
//!
//! CPU and wake-ups come from the kernel's accounting of the member's own processes, so that what else
//! runs on the machine hardly changes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::bench::load;
use crate::binary;
use crate::clock::Moment;
use crate::cluster::{Cluster, Spec};
use crate::namespace::Means;
use crate::process::{self, Owned, Signal};
use crate::scenario::hold;
use crate::stats::table;

/// Founding, cloning and what follows them have settled.
const SETTLED: Duration = Duration::from_secs(30);

/// What one idle member costs.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// The member.
    pub member: String,
    /// `primary` or `standby`, and whether it leads Raft.
    pub role: String,
    /// Resident memory of the supervisor, KiB.
    pub supervisor_rss_kib: u64,
    /// Resident memory of the guardian, KiB; 0 for a witness, which has none.
    pub guardian_rss_kib: u64,
    /// Memory of both that no file backs, KiB: what cannot be dropped and read again.
    pub anonymous_kib: u64,
    /// Proportional memory of both, KiB; shared pages are split.
    pub pss_kib: u64,
    /// CPU time of both, in percent of one core.
    pub cpu_percent: f64,
    /// How often a thread of either went to sleep, per second: each is one wake-up.
    pub wakeups: f64,
    /// Bytes both sent to the disk.
    pub write_bytes: u64,
    /// Bytes that the member's network namespace sent a second, Postgres's too; `None` without namespaces.
    pub sent_bytes: Option<f64>,
    /// fsync, fdatasync, `sync_file_range`, `msync` and `syncfs` calls of both; `None` without strace.
    pub syncs: Option<u64>,
    /// The machine's 1-minute load average before and after.
    pub load: [f64; 2],
}

/// What the kernel has counted for a member's processes.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) ticks: u64,
    pub(crate) switches: u64,
    pub(crate) bytes: u64,
    pub(crate) sent: u64,
}

impl Counted {
    pub(crate) fn of(pids: &[u32]) -> Self {
        let sum = |read: fn(u32) -> u64| pids.iter().map(|&pid| read(pid)).sum::<u64>();
        let sent = pids.first().map_or(0, |&pid| sent_bytes(pid));
        Self { ticks: sum(ticks), switches: sum(switches), bytes: sum(write_bytes), sent }
    }
}

/// Watches an idle cluster: memory, CPU and bytes first, then system calls, since strace costs CPU.
pub fn watch(spec: &Spec, time: Duration, skipped: &mut Vec<String>) -> Result<Vec<Idle>> {
    let mut cluster = Cluster::start(spec)?;
    cluster.wait_whole()?;
    hold(SETTLED);
    let mut found = measure(&mut cluster, time)?;
    if binary::program("strace").is_none() {
        skipped.push("fsync count: no strace here; the bytes written come from /proc/PID/io".to_owned());
        return Ok(found);
    }
    let counts = count_syncs(&processes(&mut cluster)?, time, cluster.folder())?;
    for (idle, count) in found.iter_mut().zip(counts) {
        idle.syncs = Some(count);
    }
    Ok(found)
}

/// The supervisor of each member, then its guardian.
fn processes(cluster: &mut Cluster) -> Result<Vec<Vec<u32>>> {
    let mut pids = Vec::new();
    for index in 0..cluster.members() {
        let node = cluster.node_mut(index)?;
        let supervisor = node.supervisor().with_context(|| format!("{} has no supervisor", node.name()))?;
        let guardians = node.guardians();
        if guardians.is_empty() && !node.is_witness() {
            bail!("{} has no guardian", node.name());
        }
        pids.push([vec![supervisor], guardians].concat());
    }
    Ok(pids)
}

/// Watches a cluster that is whole and idle, and counts no system calls.
pub fn measure(cluster: &mut Cluster, time: Duration) -> Result<Vec<Idle>> {
    let primary = cluster.wait_whole()?;
    let leader = cluster.raft_leader().ok();
    let pids = processes(cluster)?;
    let separate = cluster.network().means() != Means::Loopback;
    let before: Vec<Counted> = pids.iter().map(|pair| Counted::of(pair)).collect();
    let load_before = load();
    let start = Moment::now();
    hold(time);
    let after: Vec<Counted> = pids.iter().map(|pair| Counted::of(pair)).collect();
    let elapsed = start.elapsed().as_secs_f64();
    let mut found = Vec::new();
    for (index, (pair, (before, after))) in pids.iter().zip(before.into_iter().zip(after)).enumerate() {
        let sum = |read: fn(u32) -> u64| pair.iter().map(|&pid| read(pid)).sum::<u64>();
        let used = after.ticks.saturating_sub(before.ticks);
        let switches = after.switches.saturating_sub(before.switches);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let (seconds_used, switches, sent) = (
            used as f64 / rustix::param::clock_ticks_per_second() as f64,
            switches as f64,
            after.sent.saturating_sub(before.sent) as f64,
        );
        let role = match (index == primary, cluster.node(index)?.is_witness()) {
            (true, _) => "primary",
            (false, true) => "witness",
            (false, false) => "standby",
        };
        let supervisor_rss_kib = pair.first().map_or(0, |&pid| resident(pid));
        found.push(Idle {
            member: cluster.node(index)?.name(),
            role: if leader == Some(index) { format!("{role}, Raft leader") } else { role.to_owned() },
            supervisor_rss_kib,
            guardian_rss_kib: sum(resident).saturating_sub(supervisor_rss_kib),
            anonymous_kib: sum(|pid| memory(pid, "smaps_rollup", "Anonymous:")),
            pss_kib: sum(|pid| memory(pid, "smaps_rollup", "Pss:")),
            cpu_percent: seconds_used / elapsed * 100.0,
            wakeups: switches / elapsed,
            write_bytes: after.bytes.saturating_sub(before.bytes),
            sent_bytes: separate.then_some(sent / elapsed),
            syncs: None,
            load: [load_before, load()],
        });
    }
    Ok(found)
}

/// Attaches strace to each pair of processes for `time` and counts their sync calls.
pub(crate) fn count_syncs(pids: &[Vec<u32>], time: Duration, folder: &Path) -> Result<Vec<u64>> {
    let mut tracers = Vec::new();
    for (index, pair) in pids.iter().enumerate() {
        let file = folder.join(format!("strace-{index}"));
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,msync,syncfs,sync", "-o"])
            .arg(&file)
            .args(pair.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        tracers.push((Owned::spawn(&mut command)?, file));
    }
    hold(time);
    let mut counts = Vec::new();
    for (mut tracer, file) in tracers {
        if tracer.ended().is_some() {
            bail!("strace could not attach");
        }
        process::signal(tracer.pid(), Signal::INT);
        tracer.wait(Duration::from_secs(10)).context("strace detaches")?;
        let text = fs::read_to_string(&file).context("read what strace wrote")?;
        // A call that another thread interrupted takes two lines; the second one says "resumed".
        let calls = text.lines().filter(|line| line.contains("sync") && !line.contains(" resumed>"));
        counts.push(u64::try_from(calls.count()).unwrap_or(u64::MAX));
    }
    Ok(counts)
}

fn ticks(pid: u32) -> u64 {
    process::stat(pid).map_or(0, |stat| stat.ticks)
}

/// How often each thread that is there now went to sleep by itself.
fn switches(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |status: &Path| {
        number_after(&fs::read_to_string(status).unwrap_or_default(), "voluntary_ctxt_switches:")
    };
    threads.map(|thread| of(&thread.path().join("status"))).sum()
}

pub(crate) fn resident(pid: u32) -> u64 {
    memory(pid, "status", "VmRSS:")
}

pub(crate) fn memory(pid: u32, file: &str, field: &str) -> u64 {
    number_after(&fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default(), field)
}

fn write_bytes(pid: u32) -> u64 {
    number_after(&fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default(), "write_bytes:")
}

/// What all interfaces of the process's network namespace have sent, but the loopback.
fn sent_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let interfaces = text.lines().filter_map(|line| line.split_once(':'));
    let others = interfaces.filter(|(name, _)| name.trim() != "lo");
    // Eight columns of what was received come first.
    others.filter_map(|(_, counts)| counts.split_whitespace().nth(8)?.parse::<u64>().ok()).sum()
}

pub(crate) fn number_after(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The cost of idling as a person reads it.
pub fn text(rows: &[Idle], seconds: u64) -> String {
    let loads = rows.iter().flat_map(|idle| idle.load);
    let (least, most) =
        loads.fold((f64::INFINITY, 0_f64), |(least, most), load| (least.min(load), most.max(load)));
    let head = [
        "MEMBER",
        "ROLE",
        "SUPERVISOR MiB",
        "GUARDIAN MiB",
        "NO FILE MiB",
        "PSS MiB",
        "CPU %",
        "WAKE-UPS/s",
        "WRITTEN B",
        "SENT B/s",
        "SYNCS",
    ];
    let mebibytes = |kib: u64| format!("{}.{}", kib / 1024, kib % 1024 * 10 / 1024);
    let body = rows.iter().map(|idle| {
        vec![
            idle.member.clone(),
            idle.role.clone(),
            mebibytes(idle.supervisor_rss_kib),
            mebibytes(idle.guardian_rss_kib),
            mebibytes(idle.anonymous_kib),
            mebibytes(idle.pss_kib),
            format!("{:.2}", idle.cpu_percent),
            format!("{:.0}", idle.wakeups),
            idle.write_bytes.to_string(),
            idle.sent_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{bytes:.0}")),
            idle.syncs.map_or_else(|| "-".to_owned(), |count| count.to_string()),
        ]
    });
    let rows: Vec<Vec<String>> = [head.map(str::to_owned).to_vec()].into_iter().chain(body).collect();
    format!(
        "\nan idle member over {seconds} s, at a load of {least:.1} to {most:.1}\n{}\
         SUPERVISOR, GUARDIAN: resident; NO FILE: of both, anonymous; SENT: Postgres's too; all else is of both together\n",
        table(&rows)
    )
}
