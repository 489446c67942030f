//! Runs a scenario: rounds of faults under clients, from whole to whole, and the verdict.
//!
//! What cannot be done here is reported as skipped, never as passed. Times are printed for each
//! round and judged only where the caller asks for it: this machine may be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::checker;
use crate::clock::{Moment, wall};
use crate::cluster::{Cluster, LIMIT, Sync};
use crate::fault::{Fault, Harm};
use crate::leak::{self, Holdings};
use crate::namespace::Means;
use crate::noise;
use crate::outcome::{Outcome, Round};
use crate::random::Random;
use crate::resume::Resume;
use crate::roles;
use crate::scenario::{Excuse, LEASE, Verdict, hold, report};
use crate::script::{Blow, Script, Target};
use crate::sql::ask;
use crate::strike::{Undo, heal, strike};
use crate::transactions::append::{self, Append};
use crate::transactions::bank::{self, Bank};
use crate::transactions::counter::{self, Counter};
use crate::transactions::{Clients, Kind, Span};
use crate::workload::{DATABASE, Workload};

/// How long a cluster may take to be whole again before the run gives up: far beyond any figure that
/// is asked for, so that what comes late is told from what never comes.
const WHOLE_LIMIT: Duration = Duration::from_secs(180);

/// Of so many rounds the roles are told when something was violated.
const ROUNDS_TOLD: usize = 3;

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The scenario's name or file, for the command that repeats it.
    pub name: String,
    /// The scenario.
    pub script: Script,
    /// The seed of all choices.
    pub seed: u64,
    /// Rounds instead of the scenario's.
    pub rounds: Option<u32>,
    /// Time instead of the scenario's.
    pub time: Option<Duration>,
    /// Whether the scenario's durations are judged too.
    pub strict: bool,
    /// Only these rounds' faults, when a failure is reduced: indices of `mix`.
    pub only: Vec<Fault>,
    /// Where a long run keeps what it has behind it.
    pub resume: Option<Resume>,
    /// Further words of the command that repeats it, with a blank before each.
    pub more: String,
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// Runs a scenario to its end, or to the first violation.
pub fn run(order: &Order) -> Result<Outcome> {
    let script = &order.script;
    let mut cluster = Cluster::start(&script.spec())?;
    let mut campaign = Campaign::new(order, &cluster)?;
    let mut transactions = Transactions::start(&cluster, order)?;
    let workload = cluster.workload(&script.plan());
    workload.wait_for(200, LIMIT)?;
    let outcome = campaign.all(&mut cluster, &workload);
    let mut violations: Vec<String> = outcome.err().map(|error| format!("{error:#}")).into_iter().collect();
    if let Err(error) = heal(&mut cluster, &mut campaign.undo) {
        violations.push(format!("could not heal: {error:#}"));
    }
    let elapsed = campaign.start.elapsed().as_secs_f64();
    let history = workload.stop()?;
    transactions.stop()?;
    // The bound of asynchronous mode is no excuse where commits were synchronous.
    let excuses = if script.topology.sync == Sync::Off { campaign.excuses.clone() } else { Vec::new() };
    let loss = match Verdict::of(&cluster, &history, &excuses) {
        Ok(verdict) => {
            if !verdict.passed() {
                violations.push(verdict.to_string());
            }
            let (text, wrong) = transactions.judge(&cluster, &excuses)?;
            violations.extend(wrong);
            let held = leak::look(&mut cluster)?;
            violations.extend(leak::judge(&held, cluster.data_members()));
            violations.extend(leak::growth(&campaign.began, &held));
            format!("{verdict}\n{text}\n{}", leak::text(&campaign.began, &held))
        }
        Err(error) => {
            let proofs = checker::two_primaries(&history).len();
            violations.push(format!("never whole, so rows cannot be judged: {error:#}"));
            format!("{proofs} proofs of two primaries")
        }
    };
    if script.limits.calm {
        violations.extend(noise::judge(&campaign.rounds, &history));
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of rows")]
    let rows = history.acknowledged().len() as f64;
    let gaps: f64 = campaign.rounds.iter().map(|round| round.gap).sum();
    if order.strict {
        violations.extend(campaign.late());
    }
    match &order.resume {
        Some(resume) if violations.is_empty() => resume.finish(),
        Some(resume) => resume.keep(campaign.start.elapsed(), campaign.rounds.len(), &violations)?,
        None => {}
    }
    let roles = if violations.is_empty() { Vec::new() } else { campaign.roles(&cluster) };
    let logs = (!violations.is_empty()).then(|| cluster.kept_logs().display().to_string());
    Ok(Outcome {
        command: order.command(),
        seed: order.seed,
        faults: campaign.faults,
        skipped: campaign.skipped,
        rounds: campaign.rounds,
        rate: rows / elapsed,
        rate_of_writing: rows / (elapsed - gaps).max(1.0),
        loss,
        violations,
        roles,
        logs,
    })
}

/// The workloads of transactions.
struct Transactions {
    append: Arc<Append>,
    bank: Arc<Bank>,
    counter: Arc<Counter>,
    clients: Vec<Clients>,
}

impl Transactions {
    fn start(cluster: &Cluster, order: &Order) -> Result<Self> {
        let wanted = &order.script.clients;
        let mut all = Self {
            append: Arc::default(),
            bank: Arc::default(),
            counter: Arc::default(),
            clients: Vec::new(),
        };
        all.clients.extend(some(cluster, &all.append, wanted.append, order.seed)?);
        all.clients.extend(some(cluster, &all.bank, wanted.bank, order.seed + 1)?);
        all.clients.extend(some(cluster, &all.counter, wanted.counter.min(10), order.seed + 2)?);
        Ok(all)
    }

    fn stop(&mut self) -> Result<()> {
        self.clients.drain(..).try_for_each(Clients::stop)
    }

    /// Judges what they saw against what is there: a summary, and the violations.
    fn judge(&self, cluster: &Cluster, excuses: &[Excuse]) -> Result<(String, Vec<String>)> {
        let door = cluster.node(cluster.wait_whole()?)?.door();
        let read = |statement: &str| ask(&door, DATABASE, statement, Duration::from_secs(30));
        let excused = |span: &Span| excuses.iter().any(|excuse| excuse.covers(span.invoked, span.finished));
        let (mut text, mut wrong) = (Vec::new(), Vec::new());
        let history = self.append.history();
        if !history.is_empty() {
            let found = append::judge(&history, &append::lists(&read(append::FINAL)?), excused);
            let lost = found.lost.len();
            text.push(format!(
                "append: {} committed, {lost} values lost, {} stale reads",
                found.committed, found.stale
            ));
            wrong.extend(
                found.lost.first().map(|first| format!("append: {lost} values lost, the first {first:?}")),
            );
            wrong.extend(found.wrong.into_iter().take(5).map(|line| format!("append: {line}")));
        }
        let totals = self.bank.totals();
        if !totals.is_empty() {
            let last =
                read(bank::TOTAL)?.first().and_then(|row| row.first()?.as_deref()?.parse::<i64>().ok());
            text.push(format!("bank: {} reads, {last:?} at the end", totals.len()));
            wrong.extend(bank::judge(&totals).into_iter().take(5).map(|line| format!("bank: {line}")));
            if last != Some(bank::total()) {
                wrong.push(format!("bank: {last:?} at the end, not {}", bank::total()));
            }
        }
        let seen = self.counter.history();
        if !seen.is_empty() {
            let end = counter::counters(&read(counter::FINAL)?);
            text.push(format!("counter: {} steps", seen.len()));
            wrong.extend(counter::judge(&seen, &end, excused).into_iter().take(5));
        }
        Ok((text.join("; "), wrong))
    }
}

fn some(cluster: &Cluster, kind: &Arc<impl Kind>, clients: u32, seed: u64) -> Result<Option<Clients>> {
    if clients == 0 {
        return Ok(None);
    }
    Clients::start(cluster, kind, clients, seed).map(Some)
}

impl Order {
    fn command(&self) -> String {
        let mut text = format!("chaos run --scenario {} --seed {}", self.name, self.seed);
        if let Some(rounds) = self.rounds {
            text.push_str(&format!(" --rounds {rounds}"));
        }
        if let Some(time) = self.time {
            text.push_str(&format!(" --minutes {}", time.as_secs_f64() / 60.0));
        }
        for fault in &self.only {
            text.push_str(&format!(
                " --only {}",
                serde_json::to_string(fault).unwrap_or_default().trim_matches('"')
            ));
        }
        text.push_str(&self.more);
        text
    }
}

struct Campaign<'a> {
    order: &'a Order,
    random: Random,
    possible: Vec<usize>,
    faults: BTreeMap<Fault, u32>,
    skipped: BTreeMap<Fault, String>,
    rounds: Vec<Round>,
    excuses: Vec<Excuse>,
    undo: Undo,
    /// What the members held after the first round.
    began: Vec<Holdings>,
    start: Moment,
}

impl<'a> Campaign<'a> {
    fn new(order: &'a Order, cluster: &Cluster) -> Result<Self> {
        let script = &order.script;
        let means = cluster.network().means();
        if script.topology.dead_man && means != Means::Filter {
            bail!("no dead-man can be tried here: {}", means.missing().unwrap_or_default());
        }
        let mut skipped = BTreeMap::new();
        let mut possible = Vec::new();
        for (index, blow) in script.mix.iter().enumerate() {
            let wanted = |fault: &Fault| order.only.is_empty() || order.only.contains(fault);
            if !blow.strikes.iter().all(|strike| wanted(&strike.fault)) {
                continue;
            }
            let missing = |fault: Fault| fault.impossible(means).or_else(|| fault.too_few(cluster.members()));
            let why = blow.strikes.iter().find_map(|s| Some((s.fault, missing(s.fault)?)));
            match why {
                Some((fault, why)) => drop(skipped.insert(fault, why.to_owned())),
                None => possible.push(index),
            }
        }
        for strike in script.step.iter().flat_map(|blow| &blow.strikes) {
            let why = strike.fault.impossible(means).or_else(|| strike.fault.too_few(cluster.members()));
            if let Some(why) = why {
                bail!("{:?} cannot be done here: {why}", strike.fault);
            }
        }
        if possible.is_empty() && script.step.is_empty() {
            bail!("no fault of this scenario can be done here: {skipped:?}");
        }
        Ok(Self {
            order,
            random: Random::new(order.seed),
            possible,
            faults: BTreeMap::new(),
            skipped,
            rounds: Vec::new(),
            excuses: Vec::new(),
            undo: Undo::default(),
            began: Vec::new(),
            start: Moment::now(),
        })
    }

    /// How long the rounds went, those of the runs before this one included.
    fn gone(&self) -> Duration {
        self.start.elapsed() + self.order.resume.as_ref().map_or(Duration::ZERO, Resume::before)
    }

    fn over(&self) -> bool {
        let schedule = &self.order.script.schedule;
        let done = self.rounds.len();
        match (self.order.rounds, self.order.time) {
            (Some(rounds), _) => done >= usize::try_from(rounds).unwrap_or(usize::MAX),
            (None, Some(time)) => self.gone() >= time,
            (None, None) => {
                let rounds = schedule.rounds.and_then(|rounds| usize::try_from(rounds).ok());
                let minutes = schedule.minutes.map(|minutes| Duration::from_secs(minutes * 60));
                rounds.is_some_and(|rounds| done >= rounds)
                    || minutes.is_some_and(|minutes| self.gone() >= minutes)
            }
        }
    }

    /// The rounds after which the cluster was whole later than the scenario allows.
    fn late(&self) -> Vec<String> {
        let Some(limit) = &self.order.script.limits.whole else { return Vec::new() };
        let late = |round: &&Round| round.whole.is_none_or(|whole| whole > limit.0.as_secs_f64());
        let tell = |round: &Round| {
            format!("round {} was whole after {:?} s, asked for {:?}", round.number, round.whole, limit.0)
        };
        self.rounds.iter().filter(late).map(tell).collect()
    }

    /// Who was promoted, revoked, frozen in the last rounds, by the members' logs.
    fn roles(&self, cluster: &Cluster) -> Vec<String> {
        let began = wall().saturating_sub(self.start.elapsed());
        let told = self.rounds.iter().skip(self.rounds.len().saturating_sub(ROUNDS_TOLD));
        let rounds: Vec<(Duration, String)> = told
            .map(|round| {
                let at = began + Duration::try_from_secs_f64(round.at).unwrap_or_default();
                (at, format!("round {}: {}", round.number, round.faults.join(" + ")))
            })
            .collect();
        let from = rounds.first().map_or(began, |(at, _)| *at);
        let log = |index| {
            let node = cluster.node(index).ok()?;
            Some((node.name(), String::from_utf8_lossy(&fs::read(node.log()).ok()?).into_owned()))
        };
        let logs: Vec<(String, String)> = (0..cluster.members()).filter_map(log).collect();
        roles::timeline(&logs, &rounds, from)
    }

    fn all(&mut self, cluster: &mut Cluster, workload: &Workload) -> Result<()> {
        while !self.over() {
            let Some(blow) = self.order.script.draw(self.rounds.len(), &mut self.random, &self.possible)
            else {
                return Ok(());
            };
            self.round(cluster, workload, &blow)?;
            if self.began.is_empty() {
                // Where a member does not answer just then, after the next round.
                self.began = leak::look(cluster).unwrap_or_default();
            }
            if let Some(resume) = &self.order.resume {
                resume.keep(self.start.elapsed(), self.rounds.len(), &[])?;
            }
        }
        Ok(())
    }

    /// One round, from a whole cluster to a whole cluster.
    fn round(&mut self, cluster: &mut Cluster, workload: &Workload, blow: &Blow) -> Result<()> {
        if self.order.script.topology.sync != Sync::Off {
            cluster.wait_secured()?;
        }
        let primary = cluster.wait_whole()?;
        workload.wait_for(30, LIMIT)?;
        let drawn = Drawn::draw(cluster, primary, &mut self.random);
        let [from, to] =
            [&blow.hold[0].0, &blow.hold[1].0].map(|time| usize::try_from(time.as_millis()).unwrap_or(0));
        let lasts =
            Duration::from_millis(u64::try_from(from + self.random.below(to - from + 1)).unwrap_or(0));
        let at = Moment::now();
        let mut round = Round {
            number: self.rounds.len() + 1,
            at: at.since(self.start).as_secs_f64(),
            faults: Vec::new(),
            held: 0.0,
            gap: 0.0,
            whole: None,
            primary: [cluster.node(primary)?.name(), "?".to_owned()],
            load: load(),
        };
        let result = self.strike_and_heal(cluster, blow, &drawn, lasts, &mut round);
        let healed = Moment::now();
        round.held = healed.since(at).as_secs_f64();
        let whole = result.and_then(|()| cluster.wait_whole_up_to(WHOLE_LIMIT));
        if let Ok(now) = &whole {
            round.whole = Some(healed.elapsed().as_secs_f64());
            round.primary[1] = cluster.node(*now)?.name();
        }
        let back = whole.and_then(|_| workload.wait_for(30, LIMIT));
        let history = workload.so_far();
        if let Some(gap) = checker::write_gap(&history.acknowledged(), at, Moment::now()) {
            round.gap = gap.length.as_secs_f64();
        }
        report(&round.to_string());
        let (number, gap) = (round.number, round.gap);
        self.rounds.push(round);
        back.with_context(|| format!("round {number}"))?;
        let faults: Vec<(Fault, bool)> =
            blow.strikes.iter().map(|planned| (planned.fault, planned.on == Target::Primary)).collect();
        if let Some(limit) = Fault::replaced_within(&faults)
            && gap > limit.as_secs_f64()
        {
            bail!(
                "round {number}: {gap:.1} s without writes, although others could take over within {limit:?}"
            );
        }
        let asynchronous = self.order.script.topology.sync == Sync::Off;
        let limited = |proof: &_| asynchronous && self.excuses.iter().any(|excuse| excuse.limits(proof));
        match checker::two_primaries(&history).iter().find(|proof| !limited(proof)) {
            Some(proof) => Err(anyhow!("round {number}: {proof}")),
            None => self.nothing_lost(cluster, workload),
        }
    }

    fn strike_and_heal(
        &mut self,
        cluster: &mut Cluster,
        blow: &Blow,
        drawn: &Drawn,
        lasts: Duration,
        round: &mut Round,
    ) -> Result<()> {
        let start = Moment::now();
        let mut done = Vec::new();
        for planned in &blow.strikes {
            hold(planned.after.0);
            let members = drawn.members(cluster, planned.on);
            let at = Moment::now();
            let names: Vec<String> =
                members.iter().filter_map(|member| Some(cluster.node(*member).ok()?.name())).collect();
            let offset = at.since(start).as_secs_f64();
            let result = strike(cluster, &mut self.undo, &mut self.random, planned.fault, &members, lasts);
            done.push((planned.fault, at, at.elapsed()));
            let mut text = format!("{:?} {} +{offset:.1}", planned.fault, names.join(","));
            match result {
                Ok(()) => *self.faults.entry(planned.fault).or_default() += 1,
                // What an operator asked of a whole cluster has to be done.
                Err(error) if planned.fault == Fault::Switchover && round.faults.is_empty() => {
                    round.faults.push(text);
                    return Err(error);
                }
                // There may be nothing left to act on, where another fault came before.
                Err(error) => text.push_str(&format!(" (not done: {error:#})")),
            }
            round.faults.push(text);
        }
        hold(lasts);
        heal(cluster, &mut self.undo)?;
        let alone = done.len() == 1;
        let gate = self.order.script.limits.gate;
        for (fault, at, doing) in done.into_iter().filter(|(fault, ..)| !gate || fault.harm() == Harm::Tail) {
            let alone = alone || gate;
            let dead_man = self.order.script.topology.dead_man;
            let excused = if dead_man && alone && fault.unfenced() {
                Some(doing + LEASE)
            } else {
                fault.excused_for(alone, doing, at.elapsed())
            };
            let unfenced = fault.unfenced() && !dead_man;
            self.excuses.extend(excused.map(|lease| Excuse { at, lease, unfenced }));
        }
        Ok(())
    }

    /// In synchronous mode whatever was acknowledged before now is on the primary now.
    fn nothing_lost(&self, cluster: &Cluster, workload: &Workload) -> Result<()> {
        if self.order.script.topology.sync == Sync::Off {
            return Ok(());
        }
        let before = workload.so_far();
        let Some(primary) = cluster.primary() else { return Ok(()) };
        let present: BTreeSet<_> = cluster.rows_of(primary)?;
        let lost = checker::loss(&before, &present).lost;
        match lost.first() {
            None => Ok(()),
            Some(first) => {
                let number = self.rounds.len();
                bail!("{} acknowledged rows lost after round {number}, the first {first:?}", lost.len())
            }
        }
    }
}

/// Whom the round's words mean.
struct Drawn {
    primary: usize,
    standby: usize,
    any: usize,
    leader: Option<usize>,
}

impl Drawn {
    fn draw(cluster: &Cluster, primary: usize, random: &mut Random) -> Self {
        let data = cluster.data_members();
        let standby = (primary + 1 + random.below(data - 1)) % data;
        let any = random.below(cluster.members());
        Self { primary, standby, any, leader: cluster.raft_leader().ok() }
    }

    fn members(&self, cluster: &Cluster, target: Target) -> Vec<usize> {
        let data = cluster.data_members();
        let standbys = (0..data).filter(|&index| index != self.primary);
        match target {
            Target::Primary => vec![self.primary],
            Target::Standby => vec![self.standby],
            Target::OtherStandby => standbys.filter(|&index| index != self.standby).take(1).collect(),
            Target::Standbys => standbys.collect(),
            Target::Witness => (data..cluster.members()).take(1).collect(),
            Target::Leader => self.leader.into_iter().collect(),
            Target::Any => vec![self.any],
            Target::All => (0..cluster.members()).collect(),
        }
    }
}
