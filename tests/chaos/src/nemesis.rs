//! Faults from a seeded schedule, under clients, with a verdict at the end.
//!
//! A nemesis that cannot act here is reported as skipped, never as passed. The seams for more:
//! [`Attack`] is the list of faults, `act` does one and undoes it, [`run`] chooses.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use crate::checker;
use crate::clock::Moment;
use crate::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use crate::namespace::{Means, Place};
use crate::process::Signal;
use crate::random::Random;
use crate::scenario::{Excuse, Verdict, hold, report};
use crate::stats::Sample;
use crate::workload::{Plan, Workload};

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// The primary's node loses its power; connections are reset.
    PowerLossOfPrimary,
    /// The primary's node is gone without a word.
    BlackHoleOfPrimary,
    /// The primary is cut off, with a client inside.
    CutOfPrimary,
    /// The primary is cut off in one direction only: it hears, and is not heard.
    DeafPeers,
    /// The primary's supervisor stops for a while.
    StopOfSupervisor,
    /// The primary's postmaster is killed.
    KillOfPostmaster,
    /// A standby's node loses its power.
    PowerLossOfStandby,
    /// The primary's supervisor is killed and started again.
    CrashOfSupervisor,
    /// `rhone switchover`.
    Switchover,
}

/// A named selection of attacks.
pub const SCENARIOS: &[(&str, &[Attack])] = &[
    ("all", ALL),
    ("power", &[Attack::PowerLossOfPrimary, Attack::BlackHoleOfPrimary, Attack::PowerLossOfStandby]),
    ("network", &[Attack::CutOfPrimary, Attack::DeafPeers, Attack::BlackHoleOfPrimary]),
    ("process", &[Attack::StopOfSupervisor, Attack::KillOfPostmaster, Attack::CrashOfSupervisor]),
    ("switchover", &[Attack::Switchover]),
];

const ALL: &[Attack] = &[
    Attack::PowerLossOfPrimary,
    Attack::BlackHoleOfPrimary,
    Attack::CutOfPrimary,
    Attack::DeafPeers,
    Attack::StopOfSupervisor,
    Attack::KillOfPostmaster,
    Attack::PowerLossOfStandby,
    Attack::CrashOfSupervisor,
    Attack::Switchover,
];

impl Attack {
    /// Why it cannot be done here, `None` when it can.
    fn impossible(self, means: Means) -> Option<&'static str> {
        let able = match self {
            Self::BlackHoleOfPrimary | Self::CutOfPrimary => means != Means::Loopback,
            Self::DeafPeers => means == Means::Filter,
            Self::PowerLossOfPrimary
            | Self::StopOfSupervisor
            | Self::KillOfPostmaster
            | Self::PowerLossOfStandby
            | Self::CrashOfSupervisor
            | Self::Switchover => true,
        };
        if able { None } else { means.missing() }
    }

    /// What it may cost in asynchronous mode, `None` when nothing.
    fn excuse(self, at: Moment) -> Option<Excuse> {
        match self {
            Self::PowerLossOfPrimary | Self::BlackHoleOfPrimary => Some(Excuse::power_loss(at)),
            Self::CutOfPrimary | Self::DeafPeers | Self::StopOfSupervisor => Some(Excuse::lease(at)),
            Self::KillOfPostmaster
            | Self::PowerLossOfStandby
            | Self::CrashOfSupervisor
            | Self::Switchover => None,
        }
    }
}

/// What a run of random faults is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which attacks: a name in [`SCENARIOS`].
    pub scenario: String,
    /// The seed of all choices.
    pub seed: u64,
    /// For how long.
    pub time: Duration,
    /// What kind of cluster.
    pub spec: Spec,
}

/// The end of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How often each attack was made.
    pub attacks: BTreeMap<Attack, u32>,
    /// Attacks that could not be made here, and why.
    pub skipped: BTreeMap<Attack, &'static str>,
    /// Loss, phantoms, two primaries, differences.
    pub verdict: Verdict,
    /// Seconds without writes, per attack.
    pub gaps: BTreeMap<Attack, Sample>,
    /// The faults, in order, for a person.
    pub timeline: Vec<String>,
    /// Whether every fault's writes came back and every member streamed again in time.
    pub liveness: Result<()>,
}

impl Outcome {
    /// Whether nothing was violated.
    pub fn passed(&self) -> bool {
        self.verdict.passed() && self.liveness.is_ok()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.passed() {
            for line in &self.timeline {
                writeln!(f, "{line}")?;
            }
        }
        for (attack, count) in &self.attacks {
            let worst = self.gaps.get(attack).and_then(Sample::worst).unwrap_or_default();
            writeln!(f, "{attack:?}: {count} times, {:.3} s without writes at worst", worst.as_secs_f64())?;
        }
        for (attack, why) in &self.skipped {
            writeln!(f, "{attack:?}: SKIPPED, {why}")?;
        }
        writeln!(f, "loss and two primaries: {}", self.verdict)?;
        match &self.liveness {
            Ok(()) => writeln!(f, "liveness: held")?,
            Err(error) => writeln!(f, "liveness: VIOLATED: {error:#}")?,
        }
        let word = if self.passed() { "PASSED" } else { "FAILED" };
        write!(f, "{word} (seed {})", self.seed)
    }
}

/// Runs random faults for the asked time, then lets everything heal and judges.
pub fn run(order: &Order) -> Result<Outcome> {
    let chosen = SCENARIOS.iter().find(|(name, _)| *name == order.scenario).map(|(_, attacks)| *attacks);
    let chosen = chosen.with_context(|| format!("there is no scenario `{}`", order.scenario))?;
    let means = Means::detect();
    let skipped: BTreeMap<Attack, &'static str> =
        chosen.iter().filter_map(|attack| Some((*attack, attack.impossible(means)?))).collect();
    let possible: Vec<Attack> =
        chosen.iter().copied().filter(|attack| !skipped.contains_key(attack)).collect();
    if possible.is_empty() {
        bail!("no attack of `{}` is possible here: {}", order.scenario, means.missing().unwrap_or_default());
    }
    let mut cluster = Cluster::start(&order.spec)?;
    // Any member may be the one that is cut off: a client inside each of them.
    let inside = (0..cluster.data_members()).collect();
    let workload = cluster.workload(&Plan { inside, ..Plan::default() });
    workload.wait_for(200, LIMIT)?;
    let mut campaign = Campaign {
        random: Random::new(order.seed),
        attacks: BTreeMap::new(),
        gaps: BTreeMap::new(),
        timeline: Vec::new(),
        excuses: Vec::new(),
        start: Moment::now(),
    };
    let mut liveness = Ok(());
    while campaign.start.elapsed() < order.time && liveness.is_ok() {
        liveness = campaign.step(&mut cluster, &workload, &possible);
    }
    cluster.network().heal()?;
    cluster.resume_all();
    let history = workload.stop()?;
    // The bound of asynchronous mode is no excuse where commits were synchronous.
    let excuses = if order.spec.sync == Sync::Off { campaign.excuses } else { Vec::new() };
    let verdict = Verdict::of(&cluster, &history, &excuses).with_context(|| {
        let proofs = checker::two_primaries(&history);
        let liveness = liveness.as_ref().err().map(|error| format!("{error:#}"));
        format!(
            "FAILED: never whole again, so rows cannot be judged; {} proofs of two primaries; {}\n{}",
            proofs.len(),
            liveness.unwrap_or_default(),
            campaign.timeline.join("\n")
        )
    })?;
    Ok(Outcome {
        seed: order.seed,
        attacks: campaign.attacks,
        skipped,
        verdict,
        gaps: campaign.gaps,
        timeline: campaign.timeline,
        liveness,
    })
}

struct Campaign {
    random: Random,
    attacks: BTreeMap<Attack, u32>,
    gaps: BTreeMap<Attack, Sample>,
    timeline: Vec<String>,
    excuses: Vec<Excuse>,
    start: Moment,
}

impl Campaign {
    /// One fault, from a whole cluster to a whole cluster.
    fn step(&mut self, cluster: &mut Cluster, workload: &Workload, possible: &[Attack]) -> Result<()> {
        let primary = cluster.wait_whole()?;
        workload.wait_for(30, LIMIT)?;
        let attack = self.random.pick(possible).copied().context("an attack")?;
        let pause = Duration::from_millis(u64::try_from(self.random.below(8000)).unwrap_or(0));
        let other = (primary + 1 + self.random.below(cluster.members() - 1)) % cluster.members();
        let at = Moment::now();
        let line = format!(
            "{:8.3} s  {attack:?} for {pause:?}; primary pg-{}, standby chosen pg-{}",
            at.since(self.start).as_secs_f64(),
            primary + 1,
            other + 1
        );
        report(&line);
        self.timeline.push(line);
        self.excuses.extend(attack.excuse(at));
        *self.attacks.entry(attack).or_default() += 1;
        act(cluster, attack, primary, other, pause)?;
        let now = cluster.wait_whole()?;
        workload.wait_for(30, LIMIT)?;
        self.timeline.push(format!(
            "{:8.3} s  whole, primary pg-{}",
            self.start.elapsed().as_secs_f64(),
            now + 1
        ));
        let history = workload.so_far();
        let gap = checker::write_gap(&history.acknowledged(), at, Moment::now()).context("no writes")?;
        self.gaps.entry(attack).or_default().push(gap.length);
        match checker::two_primaries(&history).first() {
            Some(proof) => Err(anyhow!("{proof}")),
            None => Ok(()),
        }
    }
}

/// Does one fault and undoes it after `pause`.
fn act(cluster: &mut Cluster, attack: Attack, primary: usize, other: usize, pause: Duration) -> Result<()> {
    match attack {
        Attack::PowerLossOfPrimary => {
            cluster.power_loss(primary, PowerLoss::Resets)?;
            hold(pause);
            cluster.start_node(primary)
        }
        Attack::BlackHoleOfPrimary => {
            cluster.power_loss(primary, PowerLoss::BlackHole)?;
            hold(pause);
            cluster.network().heal()?;
            cluster.start_node(primary)
        }
        Attack::CutOfPrimary => {
            cluster.network().cut(Place::Node(primary))?;
            hold(pause);
            cluster.network().heal()
        }
        Attack::DeafPeers => {
            for index in (0..cluster.members()).filter(|&index| index != primary) {
                cluster.network().cut_one_way(Place::Node(primary), Place::Node(index))?;
            }
            hold(pause);
            cluster.network().heal()
        }
        Attack::StopOfSupervisor => {
            cluster.node_mut(primary)?.signal_supervisor(Signal::STOP)?;
            hold(pause);
            cluster.node_mut(primary)?.signal_supervisor(Signal::CONT)
        }
        Attack::KillOfPostmaster => cluster.node(primary)?.kill_postmaster(),
        Attack::PowerLossOfStandby => {
            cluster.power_loss(other, PowerLoss::Resets)?;
            hold(pause);
            cluster.start_node(other)
        }
        Attack::CrashOfSupervisor => {
            let node = cluster.node_mut(primary)?;
            node.signal_supervisor(Signal::KILL)?;
            node.wait_for_end(Duration::from_secs(5)).context("the supervisor ended")?;
            cluster.start_node(primary)
        }
        Attack::Switchover if cluster.node(other)?.is_witness() => {
            cluster.switchover((primary + 1) % cluster.data_members())
        }
        Attack::Switchover => cluster.switchover(other),
    }
}
