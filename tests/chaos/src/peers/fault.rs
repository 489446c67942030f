//! One run of one fault on one system, from all streaming to all streaming.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bench::{load, wait_for_both};
use crate::checker;
use crate::clock::Moment;
use crate::cluster::{LIMIT, PowerLoss};
use crate::history::{ClientKind, History};
use crate::namespace::Place;
use crate::peers::record::Run;
use crate::peers::system::{Bed, Part, System};
use crate::process::{self, Signal};
use crate::scenario::hold;
use crate::workload::{Plan, Workload};

/// How long writes, and then all standbys, may take to come back.
const PATIENCE: Duration = Duration::from_secs(180);
/// After the writes are back the cut stays for so long: what the old primary still acknowledges inside it shows.
const CUT: Duration = Duration::from_secs(10);
/// How long an agent is stopped.
pub const STOPPED: Duration = Duration::from_secs(60);

/// What is done to the primary's node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its postmaster gets SIGKILL.
    PostmasterKilled,
    /// The system's own command moves the primary.
    Switchover,
    /// Its link is cut and all its processes are killed; it starts again once writes are back.
    PowerLoss,
    /// Its link is cut, with a client inside.
    Partition,
    /// Its agent gets SIGSTOP for 60 s.
    AgentStopped,
    /// Rhone alone: supervisor and guardian get SIGSTOP for 60 s.
    AllAgentsStopped,
}

impl Fault {
    /// All of them, in an order that leaves the most for the last.
    pub const ALL: [Self; 6] = [
        Self::PostmasterKilled,
        Self::Switchover,
        Self::PowerLoss,
        Self::Partition,
        Self::AgentStopped,
        Self::AllAgentsStopped,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PostmasterKilled => "postmaster killed",
            Self::Switchover => "switchover",
            Self::PowerLoss => "power loss",
            Self::Partition => "partition",
            Self::AgentStopped => "agent stopped",
            Self::AllAgentsStopped => "supervisor and guardian stopped",
        }
    }

    /// Whether there is such a thing in a system.
    pub fn applies(self, system: System) -> bool {
        self != Self::AllAgentsStopped || system.is_rhone()
    }
}

/// Runs the fault once. `Err` means that the harness could not; a system that does not come back is a finding.
pub fn once(bed: &mut Bed, fault: Fault) -> Result<Run> {
    bed.wait_ready(PATIENCE)?;
    bed.cluster.forget_rows()?;
    let primary = bed.wait_ready(PATIENCE)?;
    let inside = if fault == Fault::Partition { vec![primary] } else { Vec::new() };
    let workload = bed.cluster.workload(&Plan { patient: false, inside, ..Plan::default() });
    wait_for_both(&workload, Moment::now(), LIMIT)?;
    hold(Duration::from_secs(1));
    let mut run = Run {
        system: bed.system(),
        fault,
        gap: None,
        multi_host: None,
        rejoin: None,
        lost: 0,
        lost_inside: 0,
        two_primaries: 0.0,
        moved: false,
        load: [load(), 0.0],
        note: None,
    };
    let at = Moment::now();
    let (history, from) = strike(bed, fault, primary, workload, at, &mut run)?;
    let until = Moment::now();
    match bed.cluster.wait_whole_up_to(PATIENCE) {
        Ok(_) => run.rejoin = Some(from.elapsed().as_secs_f64()),
        Err(_) => {
            bed.cluster.network().intact().context("the harness's network broke")?;
            run.note = Some(format!("not all stream after {} s", PATIENCE.as_secs()));
        }
    }
    let history = match history {
        Seen::All(history) => history,
        Seen::Open(workload) => workload.stop()?,
    };
    judge(bed, &history, (primary, at, until), &mut run)?;
    run.load[1] = load();
    Ok(run)
}

/// The clients' history, whole or still being made.
enum Seen {
    All(History),
    Open(Workload),
}

/// Does it, waits for the writes, and takes the cause away; says when it was gone.
fn strike(
    bed: &mut Bed,
    fault: Fault,
    primary: usize,
    workload: Workload,
    at: Moment,
    run: &mut Run,
) -> Result<(Seen, Moment)> {
    // Counted from when it is done: on a busy machine many rows are written until then.
    let wait = |run: &mut Run| {
        if wait_for_both(&workload, Moment::now(), PATIENCE).is_err() {
            run.note = Some(format!("no writes after {} s", PATIENCE.as_secs()));
        }
    };
    match fault {
        Fault::PostmasterKilled => {
            bed.cluster.node(primary)?.kill_postmaster()?;
            wait(run);
            Ok((Seen::Open(workload), at))
        }
        Fault::Switchover => {
            bed.switchover(primary, (primary + 1) % bed.cluster.data_members())?;
            wait(run);
            Ok((Seen::Open(workload), at))
        }
        Fault::PowerLoss => {
            bed.cluster.power_loss(primary, PowerLoss::BlackHole)?;
            wait(run);
            let history = workload.stop()?;
            bed.cluster.network().heal()?;
            let from = Moment::now();
            bed.cluster.start_node(primary)?;
            Ok((Seen::All(history), from))
        }
        Fault::Partition => {
            bed.cluster.network().cut(Place::Node(primary))?;
            wait(run);
            hold(CUT);
            let history = workload.stop()?;
            let from = Moment::now();
            bed.cluster.network().heal()?;
            Ok((Seen::All(history), from))
        }
        Fault::AgentStopped | Fault::AllAgentsStopped => {
            let parts = bed.parts(primary)?;
            let stopped = |part: &Part| *part == Part::Agent || fault == Fault::AllAgentsStopped;
            let pids: Vec<u32> =
                parts.into_iter().filter(|(part, _)| stopped(part)).flat_map(|(_, pids)| pids).collect();
            if pids.is_empty() {
                bail!("no agent to stop");
            }
            for &pid in &pids {
                process::signal(pid, Signal::STOP);
            }
            hold(STOPPED);
            for &pid in &pids {
                process::signal(pid, Signal::CONT);
            }
            // The clients go on: also the moments after the agent's return may have two primaries.
            Ok((Seen::Open(workload), Moment::now()))
        }
    }
}

/// Reads gaps, losses and two primaries from what the clients saw and what the primary has now.
fn judge(
    bed: &Bed,
    history: &History,
    (old, at, until): (usize, Moment, Moment),
    run: &mut Run,
) -> Result<()> {
    let gap = |kind| {
        let gap = checker::write_gap(&history.acknowledged_to(&[kind]), at, until)?;
        gap.after.map(|_| gap.length.as_secs_f64())
    };
    (run.gap, run.multi_host) = (gap(ClientKind::Member), gap(ClientKind::MultiHost));
    let now = bed.cluster.primary().context("one primary")?;
    run.moved = now != old;
    let rows = bed.cluster.rows_of(now)?;
    let lost = checker::loss(history, &rows).lost;
    let inside = lost
        .iter()
        .filter(|operation| history.kinds.get(&operation.key.client) == Some(&ClientKind::Inside))
        .count();
    (run.lost, run.lost_inside) =
        (u64::try_from(lost.len()).unwrap_or(u64::MAX), u64::try_from(inside).unwrap_or(u64::MAX));
    let acknowledged = history.acknowledged();
    let new = acknowledged.iter().find(|operation| operation.server != old && operation.finished > at);
    let last = new.and_then(|new| {
        acknowledged
            .iter()
            .rev()
            .find(|operation| operation.server == old && operation.invoked > new.finished)
            .map(|last| last.finished.since(new.finished))
    });
    run.two_primaries = last.unwrap_or_default().as_secs_f64();
    Ok(())
}
