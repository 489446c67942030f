//! The benchmark: how long writes are away after each fault, and what an idle member costs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::binary;
use crate::checker;
use crate::clock::{Moment, wall, wall_seconds};
use crate::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use crate::history::ClientKind;
use crate::idle::{self, Idle, number_after};
use crate::namespace::Means;
use crate::node::Node;
use crate::process;
use crate::scenario::{hold, report};
use crate::stats::{Sample, seconds, table};
use crate::steps::{self, Step};
use crate::workload::{Plan, Workload};

/// A fault that the benchmark measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Fault {
    /// The primary's node loses its power; connections are reset.
    PowerLossResets,
    /// The same, and nobody is told.
    PowerLossBlackHole,
    /// The primary's postmaster is killed.
    PostmasterKilled,
    /// `rhone switchover`.
    Switchover,
    /// The node of a standby that acknowledges loses its power, another one stays; connections are reset.
    SyncStandbyLost,
}

impl Fault {
    /// All that there are in a cluster with this `sync` setting.
    pub fn all(sync: Sync) -> Vec<Self> {
        let mut all =
            vec![Self::PowerLossResets, Self::PowerLossBlackHole, Self::PostmasterKilled, Self::Switchover];
        if sync != Sync::Off {
            all.push(Self::SyncStandbyLost);
        }
        all
    }

    /// Why it cannot be measured on such a cluster here, `None` when it can.
    fn impossible(self, spec: &Spec, means: Means) -> Option<&'static str> {
        let standbys = spec.members.saturating_sub(1 + usize::from(spec.witness));
        match self {
            Self::PowerLossBlackHole if means == Means::Loopback => Some("no network namespaces here"),
            Self::SyncStandbyLost if spec.sync == Sync::Off => Some("no standby is synchronous"),
            Self::SyncStandbyLost if standbys < 2 => Some("no other standby would stay"),
            Self::PowerLossResets
            | Self::PowerLossBlackHole
            | Self::PostmasterKilled
            | Self::Switchover
            | Self::SyncStandbyLost => None,
        }
    }

    /// What issue 2 asks of a member's client in asynchronous mode, as p50 or p50/p99, in seconds.
    fn goal(self) -> &'static str {
        match self {
            Self::PowerLossResets | Self::PowerLossBlackHole => "2.2/4.4",
            Self::PostmasterKilled => "0.6",
            Self::Switchover => "0.4",
            Self::SyncStandbyLost => "",
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLossResets => "power loss, resets",
            Self::PowerLossBlackHole => "power loss, black hole",
            Self::PostmasterKilled => "postmaster killed",
            Self::Switchover => "switchover",
            Self::SyncStandbyLost => "sync standby lost",
        }
    }
}

/// A preset of `[bootstrap] timing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// `"default"`
    Default,
    /// `"fast"`
    Fast,
    /// `"calm"`
    Calm,
}

impl Timing {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fast => "fast",
            Self::Calm => "calm",
        }
    }
}

const PER_MEMBER: &str = "per member";
const MULTI_HOST: &str = "multi-host";

/// What the benchmark is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Runs of each fault.
    pub runs: u32,
    /// Which faults.
    pub faults: Vec<Fault>,
    /// What kind of cluster.
    pub spec: Spec,
    /// The preset of timings that it is founded with; the product's default when absent.
    pub timing: Option<Timing>,
    /// How long an idle cluster is watched; zero for not at all.
    pub idle: Duration,
}

/// One figure: a fault as one kind of client saw it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The fault's name.
    pub fault: &'static str,
    /// `per member` or `multi-host`.
    pub client: &'static str,
    /// The most that p50, or p50/p99, may be for the client beside each member.
    pub goal: &'static str,
    /// How many runs.
    pub n: usize,
    /// Seconds without writes: median.
    pub p50: Option<f64>,
    /// Seconds without writes: 99th percentile, by nearest rank.
    pub p99: Option<f64>,
    /// Seconds without writes: the longest.
    pub worst: Option<f64>,
    /// Acknowledged rows that were lost, over all runs.
    pub rows_lost: usize,
    /// The machine's 1-minute load average before the first run and after the last one.
    pub load: [f64; 2],
}

/// All that the benchmark found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// The machine: kernel, processor, cores, memory.
    pub machine: String,
    /// `rhone --version`, and the Postgres.
    pub versions: Vec<String>,
    /// How faults are made here, and what is missing.
    pub means: String,
    /// The `sync` setting.
    pub sync: Sync,
    /// The preset of timings, where one was asked for.
    pub timing: Option<Timing>,
    /// Write gaps.
    pub figures: Vec<Figure>,
    /// Where the time of the failovers went.
    pub steps: Vec<Step>,
    /// Cost of idling, over `idle_seconds`.
    pub idle: Vec<Idle>,
    /// For how long idling was watched.
    pub idle_seconds: u64,
    /// What could not be measured here, and why.
    pub skipped: Vec<String>,
}

/// Runs the benchmark.
pub fn run(order: &Order) -> Result<Findings> {
    let means = Means::detect();
    let bootstrap = order.timing.map(|timing| format!("timing = \"{}\"\n", timing.name()));
    let bootstrap = format!("{}{}", order.spec.bootstrap, bootstrap.unwrap_or_default());
    let spec = Spec { bootstrap, ..order.spec.clone() };
    let mut findings = Findings {
        at: wall_seconds(),
        machine: machine(),
        versions: versions()?,
        means: format!("{means:?}{}", means.missing().map(|text| format!(": {text}")).unwrap_or_default()),
        sync: order.spec.sync,
        timing: order.timing,
        figures: Vec::new(),
        steps: Vec::new(),
        idle: Vec::new(),
        idle_seconds: order.idle.as_secs(),
        skipped: Vec::new(),
    };
    for &fault in order.faults.iter().filter(|_| order.runs > 0) {
        if let Some(why) = fault.impossible(&spec, means) {
            findings.skipped.push(format!("{}: {why}", fault.name()));
            continue;
        }
        let (figures, steps) = measure(order.runs, &spec, fault)?;
        findings.figures.extend(figures);
        findings.steps.extend(steps);
    }
    if !order.idle.is_zero() {
        findings.idle = idle::watch(&spec, order.idle, &mut findings.skipped)?;
        if !spec.witness {
            let bootstrap = spec.bootstrap.clone();
            let two_and_a_witness = Spec { bootstrap, ..Spec::asynchronous(3).with_witness() };
            let mut rows = idle::watch(&two_and_a_witness, order.idle, &mut Vec::new())?;
            findings.idle.extend(rows.pop());
        }
    }
    Ok(findings)
}

/// Runs one fault often enough, on one cluster.
fn measure(runs: u32, spec: &Spec, fault: Fault) -> Result<(Vec<Figure>, Vec<Step>)> {
    let mut cluster = Cluster::start(spec)?;
    let load_before = load();
    let mut samples: BTreeMap<&'static str, Sample> = BTreeMap::new();
    let (mut lost, mut found) = (0, Vec::new());
    for run in 1..=runs {
        let Run { gaps, rows_lost, steps } =
            once(&mut cluster, fault).with_context(|| format!("{}, run {run}", fault.name()))?;
        lost += rows_lost;
        found.extend(steps);
        let shown: Vec<String> =
            gaps.iter().map(|(client, gap)| format!("{client} {}", seconds(Some(*gap)))).collect();
        report(&format!("{} {run}/{runs}: {}", fault.name(), shown.join(", ")));
        for (client, gap) in gaps {
            samples.entry(client).or_default().push(gap);
        }
    }
    let load = [load_before, load()];
    let number = |value: Option<Duration>| value.map(|value| value.as_secs_f64());
    let figures = samples
        .into_iter()
        .map(|(client, sample)| Figure {
            fault: fault.name(),
            client,
            goal: if client == PER_MEMBER { fault.goal() } else { "" },
            n: sample.count(),
            p50: number(sample.percentile(50)),
            p99: number(sample.percentile(99)),
            worst: number(sample.worst()),
            rows_lost: lost,
            load,
        })
        .collect();
    Ok((figures, steps::sum_up(fault.name(), &found)))
}

/// What one run showed.
pub(crate) struct Run {
    /// Each kind of client's time without writes.
    pub(crate) gaps: Vec<(&'static str, Duration)>,
    /// Acknowledged rows that were lost.
    pub(crate) rows_lost: usize,
    /// Where the time went, as the client beside each member saw it.
    steps: Option<[Duration; 6]>,
}

/// One run: fault, wait for writes, read the gaps, make the cluster whole again.
pub(crate) fn once(cluster: &mut Cluster, fault: Fault) -> Result<Run> {
    cluster.forget_rows()?;
    let primary = cluster.wait_whole()?;
    let standby = fault == Fault::SyncStandbyLost;
    let struck = if standby { acknowledging_standby(cluster, primary)? } else { primary };
    let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
    workload.wait_for(100, LIMIT)?;
    // The disturbance is over: checkpoints and slots of the last run have settled.
    hold(Duration::from_millis(500));
    let (at, wall_at) = (Moment::now(), wall());
    match fault {
        Fault::PowerLossResets | Fault::SyncStandbyLost => cluster.power_loss(struck, PowerLoss::Resets)?,
        Fault::PowerLossBlackHole => cluster.power_loss(struck, PowerLoss::BlackHole)?,
        Fault::PostmasterKilled => cluster.node(primary)?.kill_postmaster()?,
        Fault::Switchover => cluster.switchover((primary + 1) % cluster.data_members())?,
    }
    if standby {
        wait_dismissed(cluster, primary, struck)?;
    }
    // Counted from when it is done: on a busy machine many rows are written until then.
    wait_for_both(&workload, Moment::now(), LIMIT).with_context(|| cluster.dump())?;
    let logs = (0..cluster.members()).map(|index| Ok(fs::read_to_string(cluster.node(index)?.log())?));
    let logs = logs.collect::<Result<Vec<_>>>().context("read the members' logs")?;
    let down = !matches!(fault, Fault::PostmasterKilled | Fault::Switchover);
    // The clients end before the lost node returns: what it costs to rejoin is not this gap.
    let history = workload.stop()?;
    let until = Moment::now();
    if down {
        cluster.network().heal()?;
        cluster.start_node(struck)?;
    }
    let now = cluster.wait_whole()?;
    let rows = cluster.rows(&[])?;
    let lost = checker::loss(&history, rows.get(&now).context("the primary's rows")?).lost.len();
    let (mut gaps, mut steps) = (Vec::new(), None);
    for (client, kind) in [(PER_MEMBER, ClientKind::Member), (MULTI_HOST, ClientKind::MultiHost)] {
        let acknowledged = history.acknowledged_to(&[kind]);
        let until = match acknowledged.last() {
            // Writes never went away: how long the clients took to end is no gap.
            Some(last) if standby => last.finished,
            Some(_) | None => until,
        };
        let gap = checker::write_gap(&acknowledged, at, until).context("no writes")?;
        if gap.after.is_none() && client == PER_MEMBER {
            bail!("writes never came back: {gap:?}");
        }
        if let Some(after) = gap.after.filter(|_| client == PER_MEMBER) {
            steps =
                steps::steps(logs.iter().map(String::as_str), wall_at, wall_at + after.finished.since(at));
        }
        gaps.push((client, gap.length));
    }
    Ok(Run { gaps, rows_lost: lost, steps })
}

/// Waits until the primary's commits wait for any of two standbys or more, and names one of them.
fn acknowledging_standby(cluster: &Cluster, primary: usize) -> Result<usize> {
    cluster.wait_until("two standbys acknowledge", || {
        let acknowledging = acknowledging(cluster, primary)?;
        ensure!(acknowledging.len() >= 2, "only {acknowledging:?}");
        acknowledging.first().copied().context("a standby")
    })
}

/// Waits until the primary's commits wait for the lost standby no more.
fn wait_dismissed(cluster: &Cluster, primary: usize, lost: usize) -> Result<()> {
    cluster.wait_until("nobody waits for the lost standby", || {
        let acknowledging = acknowledging(cluster, primary)?;
        ensure!(!acknowledging.contains(&lost), "{acknowledging:?} with {lost}");
        Ok(())
    })
}

/// The standbys that the primary's commits wait for, as its own status says them, when no change is under way.
fn acknowledging(cluster: &Cluster, primary: usize) -> Result<Vec<usize>> {
    let status = cluster.status(primary)?;
    ensure!(status.pointer("/sync/settled") == Some(&Value::Bool(true)), "{:?}", status.get("sync"));
    let names = status.pointer("/sync/members").and_then(Value::as_array).context("sync.members")?;
    let named = |index: &usize| {
        let name = cluster.node(*index).map(Node::name).ok();
        names.iter().any(|one| one.as_str() == name.as_deref())
    };
    Ok((0..cluster.data_members()).filter(named).collect())
}

/// Waits until both kinds of clients have written 50 rows in a row after the fault.
pub(crate) fn wait_for_both(workload: &Workload, at: Moment, limit: Duration) -> Result<()> {
    loop {
        let history = workload.so_far();
        let back = |kind| {
            let after =
                history.acknowledged_to(&[kind]).into_iter().filter(|operation| operation.invoked > at);
            after.count() >= 50
        };
        if back(ClientKind::Member) && back(ClientKind::MultiHost) {
            return Ok(());
        }
        if at.elapsed() > limit {
            bail!("writes did not come back within {limit:?}");
        }
        hold(Duration::from_millis(50));
    }
}

/// Returns the 1-minute load average of the machine.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = number_after(&read("/proc/meminfo"), "MemTotal:") / 1024;
    format!(
        "Linux {}, {}, {cores} cores, {memory} MiB",
        read("/proc/sys/kernel/osrelease").trim(),
        model.trim_start_matches([' ', '\t', ':'])
    )
}

pub(crate) fn versions() -> Result<Vec<String>> {
    let rhone = binary::rhone()?;
    let postgres = binary::postgres_folder()?.join("postgres");
    let version =
        |path: &Path| process::run_ok(Command::new(path).arg("--version")).map(|t| t.trim().to_owned());
    Ok(vec![format!("{} ({})", version(&rhone)?, rhone.display()), version(&postgres)?])
}

impl Findings {
    /// The findings as a person reads them.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\nfaults by {}\n", self.machine, self.versions.join("\n"), self.means);
        if !self.figures.is_empty() {
            text.push_str(&self.heading());
            text.push_str(&table(&self.gap_rows()));
            text.push_str(
                "per member: a client beside each member; multi-host: as libpq does, hosts in order,\n\
                 connect_timeout 2 s, an answer awaited for 3 s; P99 by nearest rank\n",
            );
        }
        if !self.steps.is_empty() {
            text.push_str(&steps::text(&self.steps));
        }
        if !self.idle.is_empty() {
            text.push_str(&idle::text(&self.idle, self.idle_seconds));
        }
        for skipped in &self.skipped {
            text.push_str(&format!("not measured: {skipped}\n"));
        }
        text
    }

    fn heading(&self) -> String {
        let mut text = "\nseconds without an acknowledged write".to_owned();
        if self.sync != Sync::Off {
            text.push_str(&format!(", sync = {}", self.sync.name()));
        }
        if let Some(timing) = self.timing {
            text.push_str(&format!(", timing = {}", timing.name()));
        }
        text.push('\n');
        text
    }

    fn gap_rows(&self) -> Vec<Vec<String>> {
        let head = ["FAULT", "CLIENT", "N", "P50", "P99", "WORST", "GOAL", "LOST", "LOAD"]
            .map(str::to_owned)
            .to_vec();
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let rows = self.figures.iter().map(|figure| {
            let [before, after] = figure.load;
            vec![
                figure.fault.to_owned(),
                figure.client.to_owned(),
                figure.n.to_string(),
                number(figure.p50),
                number(figure.p99),
                number(figure.worst),
                figure.goal.to_owned(),
                figure.rows_lost.to_string(),
                format!("{before:.1}-{after:.1}"),
            ]
        });
        [head].into_iter().chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_standby_is_measured_where_it_is_waited_for_and_another_stays() {
        assert!(!Fault::all(Sync::Off).contains(&Fault::SyncStandbyLost));
        assert_eq!(Fault::all(Sync::Strict).last(), Some(&Fault::SyncStandbyLost));
        let why = |spec: &Spec| Fault::SyncStandbyLost.impossible(spec, Means::Loopback);
        let quorum = Spec { sync: Sync::Quorum, ..Spec::asynchronous(3) };
        assert_eq!(why(&quorum), None);
        assert_eq!(why(&quorum.with_witness()), Some("no other standby would stay"));
        assert_eq!(why(&Spec::asynchronous(3)), Some("no standby is synchronous"));
    }

    #[test]
    fn the_heading_says_what_was_asked_for() {
        let mut findings = Findings {
            at: 0,
            machine: String::new(),
            versions: Vec::new(),
            means: String::new(),
            sync: Sync::Off,
            timing: None,
            figures: Vec::new(),
            steps: Vec::new(),
            idle: Vec::new(),
            idle_seconds: 0,
            skipped: Vec::new(),
        };
        assert_eq!(findings.heading(), "\nseconds without an acknowledged write\n");
        (findings.sync, findings.timing) = (Sync::Quorum, Some(Timing::Fast));
        assert_eq!(
            findings.heading(),
            "\nseconds without an acknowledged write, sync = quorum, timing = fast\n"
        );
    }
}
