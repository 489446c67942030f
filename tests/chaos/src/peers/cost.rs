//! What runs beside a node's Postgres costs: idle, and while a client inserts.
//!
//! Postgres itself is left out, but for a monitor's, which is its system's store. CPU and context switches are the kernel's
//! accounting of the processes themselves: what else the machine does changes them little.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::load;
use crate::binary;
use crate::clock::Moment;
use crate::idle::{Counted, count_syncs, memory, resident};
use crate::peers::record::Cost;
use crate::peers::system::{Bed, Part, System};
use crate::scenario::hold;
use crate::workload::{Plan, Workload};

/// Founding, cloning and what follows them have settled.
const SETTLED: Duration = Duration::from_secs(40);
/// Between two inserts of the busy client: some two hundred a second.
const PACE: Duration = Duration::from_millis(3);

/// One part on one node.
struct Watched {
    role: String,
    part: Part,
    pids: Vec<u32>,
}

/// Watches one system for `time` idle and half of it busy, and each for another half of it under strace, which costs CPU.
pub fn watch(system: System, time: Duration) -> Result<Vec<Cost>> {
    let mut bed = Bed::start(system)?;
    let primary = bed.wait_ready(Duration::from_secs(120))?;
    hold(SETTLED);
    let mut watched = Vec::new();
    for index in 0..bed.cluster.members() {
        let role = match (index == primary, bed.cluster.node(index)?.is_witness()) {
            (true, _) => "primary",
            (false, true) => "monitor",
            (false, false) => "standby",
        };
        for (part, pids) in bed.parts(index)? {
            watched.push(Watched { role: role.to_owned(), part, pids });
        }
    }
    let mut found = measure(&bed, &watched, None, (time, time / 2))?;
    let plan = Plan { patient: false, multi_host: 0, pace: PACE, ..Plan::default() };
    let workload = bed.cluster.workload(&plan);
    workload.wait_for(100, Duration::from_secs(60))?;
    found.extend(measure(&bed, &watched, Some(&workload), (time / 2, time / 2))?);
    workload.stop()?;
    Ok(found)
}

fn measure(
    bed: &Bed,
    watched: &[Watched],
    workload: Option<&Workload>,
    (time, traced): (Duration, Duration),
) -> Result<Vec<Cost>> {
    let rows_of = || workload.map_or(0, Workload::acknowledged);
    let before: Vec<Counted> = watched.iter().map(|part| Counted::of(&part.pids)).collect();
    let (load_before, rows_before, start) = (load(), rows_of(), Moment::now());
    hold(time);
    let after: Vec<Counted> = watched.iter().map(|part| Counted::of(&part.pids)).collect();
    let (seconds, rows) = (start.elapsed().as_secs_f64(), rows_of().saturating_sub(rows_before));
    let load = [load_before, load()];
    let mut found = Vec::new();
    for (part, (before, after)) in watched.iter().zip(before.into_iter().zip(after)) {
        let sum = |read: fn(u32) -> u64| part.pids.iter().map(|&pid| read(pid)).sum::<u64>();
        let ticks = number(after.ticks.saturating_sub(before.ticks));
        found.push(Cost {
            system: bed.system(),
            busy: workload.is_some(),
            role: part.role.clone(),
            part: part.part,
            processes: part.pids.len(),
            rss_kib: sum(resident),
            pss_kib: sum(|pid| memory(pid, "smaps_rollup", "Pss:")),
            cpu_percent: ticks / number(rustix::param::clock_ticks_per_second()) / seconds * 100.0,
            switches: number(after.switches.saturating_sub(before.switches)) / seconds,
            bytes: number(after.bytes.saturating_sub(before.bytes)) / seconds,
            syncs: None,
            seconds,
            rows: number(rows) / seconds,
            load,
        });
    }
    if binary::program("strace").is_some() {
        let pids: Vec<Vec<u32>> = watched.iter().map(|part| part.pids.clone()).collect();
        let (start, counts) = (Moment::now(), count_syncs(&pids, traced, bed.cluster.folder())?);
        let seconds = start.elapsed().as_secs_f64();
        for (cost, count) in found.iter_mut().zip(counts) {
            cost.syncs = Some(number(count) / seconds);
        }
    }
    Ok(found)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

/// Watches each system once.
pub fn watch_all(
    systems: &[System],
    time: Duration,
    mut keep: impl FnMut(Cost) -> Result<()>,
    mut skip: impl FnMut(String) -> Result<()>,
) -> Result<()> {
    for &system in systems {
        match watch(system, time).with_context(|| format!("cost of {}", system.name())) {
            Ok(costs) => costs.into_iter().try_for_each(&mut keep)?,
            Err(error) => skip(format!("{error:#}"))?,
        }
    }
    Ok(())
}
