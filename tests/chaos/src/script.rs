//! Scenario files: what is built, who writes, which faults come when, and what is judged.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cluster::{Spec, Sync};
use crate::fault::Fault;
use crate::node::Extras;
use crate::random::Random;
use crate::workload::Plan;

/// A scenario, as a file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// One sentence for a person.
    pub about: String,
    /// What is built.
    pub topology: Topology,
    /// Who writes and reads.
    #[serde(default)]
    pub clients: Clients,
    /// How long, and how rounds are made.
    pub schedule: Schedule,
    /// What the rounds are drawn from, by weight.
    #[serde(default)]
    pub mix: Vec<Blow>,
    /// Rounds in this order instead; what follows them is drawn from `mix`.
    #[serde(default)]
    pub step: Vec<Blow>,
    /// What is judged beside safety.
    #[serde(default)]
    pub limits: Limits,
}

/// What is built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Topology {
    /// Data members.
    pub data: usize,
    /// Whether there is a witness beside them.
    #[serde(default)]
    pub witness: bool,
    /// The replicated `sync` setting.
    pub sync: Sync,
    /// Whether the kernel keeps in what a primary sends whose lease has ended (`postgres.dead-man`). Then nothing is
    /// excused by nobody fencing it; and no client writes from inside the nodes, which it does not cover.
    #[serde(default)]
    pub dead_man: bool,
    /// Further lines for `[bootstrap]`.
    #[serde(default)]
    pub bootstrap: String,
}

/// Who writes and reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Clients {
    /// A client beside each member.
    pub member: bool,
    /// One that waits long for answers.
    pub patient: bool,
    /// A client inside each member's node.
    pub inside: bool,
    /// So many libpq-like clients.
    pub multi_host: u32,
    /// Clients of the append workload.
    pub append: u32,
    /// Clients of the bank workload.
    pub bank: u32,
    /// Clients of the counter workload.
    pub counter: u32,
}

impl Default for Clients {
    fn default() -> Self {
        Self { member: true, patient: true, inside: true, multi_host: 1, append: 2, bank: 2, counter: 1 }
    }
}

/// How long, and how rounds are made.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Schedule {
    /// So many rounds.
    pub rounds: Option<u32>,
    /// Or as many as fit into so many minutes.
    pub minutes: Option<u64>,
    /// Percent of rounds in which a second fault comes with the first.
    #[serde(default)]
    pub double: usize,
}

/// One round's faults.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Blow {
    /// How often, relative to the others.
    #[serde(default = "one")]
    pub weight: usize,
    /// The faults, in order.
    pub strikes: Vec<Strike>,
    /// For how long after the last one nothing is healed: from, to.
    #[serde(default = "hold")]
    pub hold: [Text; 2],
}

/// One fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Strike {
    /// Which.
    pub fault: Fault,
    /// On whom.
    #[serde(default)]
    pub on: Target,
    /// How long after the one before.
    #[serde(default)]
    pub after: Text,
}

/// On whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The primary.
    #[default]
    Primary,
    /// One standby, drawn.
    Standby,
    /// Another standby than the one drawn.
    OtherStandby,
    /// All standbys.
    Standbys,
    /// The witness.
    Witness,
    /// Raft's leader.
    Leader,
    /// Any one member, drawn.
    Any,
    /// All members.
    All,
}

/// A duration as text: `300ms`, `20s`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Text(pub Duration);

impl TryFrom<String> for Text {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no duration such as 300ms or 20s");
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        match unit {
            "ms" => Ok(Self(Duration::from_millis(number))),
            "s" => Ok(Self(Duration::from_secs(number))),
            _ => Err(wrong()),
        }
    }
}

fn one() -> usize {
    1
}

fn hold() -> [Text; 2] {
    [Text(Duration::from_millis(200)), Text(Duration::from_secs(8))]
}

/// What is judged beside safety. Durations are judged only where a file asks for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Within this after healing all is whole; reported always, judged by `chaos run --strict`.
    pub whole: Option<Text>,
    /// At least so many rows are acknowledged each second while nothing is wrong.
    pub rate: Option<u32>,
    /// No failover at all: the faults are noise.
    pub calm: bool,
    /// No failover leaves more behind than the last second, however long nothing was streamed before: the faults bring
    /// about more lag than `max-lag-on-failover` allows.
    pub gate: bool,
}

/// The scenarios that come with the harness.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("all", include_str!("../scenarios/all.toml")),
    ("quorum", include_str!("../scenarios/quorum.toml")),
    ("witness", include_str!("../scenarios/witness.toml")),
    ("network", include_str!("../scenarios/network.toml")),
    ("process", include_str!("../scenarios/process.toml")),
    ("disk", include_str!("../scenarios/disk.toml")),
    ("clock", include_str!("../scenarios/clock.toml")),
    ("wiped", include_str!("../scenarios/wiped.toml")),
    ("calm", include_str!("../scenarios/calm.toml")),
    ("ring", include_str!("../scenarios/ring.toml")),
    ("changes", include_str!("../scenarios/changes.toml")),
    ("deadman", include_str!("../scenarios/deadman.toml")),
];

impl Script {
    /// Reads one of the built-in scenarios, or a file.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::read(text).with_context(|| format!("read scenario {name}"));
        }
        if !Path::new(name).is_file() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            bail!("there is no scenario or file `{name}`; there are {}", names.join(", "));
        }
        let text = std::fs::read_to_string(name).with_context(|| format!("read {name}"))?;
        Self::read(&text).with_context(|| format!("read {name}"))
    }

    /// Reads a scenario from its text.
    pub fn read(text: &str) -> Result<Self> {
        let script: Self = toml::from_str(text)?;
        ensure!(script.topology.data >= 2, "a cluster has two data members or more");
        ensure!(!script.mix.is_empty() || !script.step.is_empty(), "there is neither a mix nor a step");
        for blow in script.mix.iter().chain(&script.step) {
            ensure!(!blow.strikes.is_empty(), "a round without a fault");
            ensure!(blow.hold[0].0 <= blow.hold[1].0, "hold runs from the shorter to the longer");
        }
        Ok(script)
    }

    /// The cluster that it wants.
    pub fn spec(&self) -> Spec {
        let used = self.mix.iter().chain(&self.step).flat_map(|blow| &blow.strikes);
        let extras = used.map(|strike| strike.fault.extras()).fold(Extras::default(), |all, one| Extras {
            disks: all.disks || one.disks && crate::disk::impossible().is_none(),
            limits: all.limits || one.limits && crate::limits::impossible().is_none(),
            clock: all.clock || one.clock && crate::walltime::impossible().is_none(),
            dead_man: all.dead_man,
        });
        let extras = Extras { dead_man: self.topology.dead_man, ..extras };
        Spec {
            witness: self.topology.witness,
            sync: self.topology.sync,
            bootstrap: self.topology.bootstrap.clone(),
            extras,
            ..Spec::asynchronous(self.topology.data + usize::from(self.topology.witness))
        }
    }

    /// The clients of single inserts that it wants.
    pub fn plan(&self) -> Plan {
        Plan {
            member: self.clients.member,
            patient: self.clients.patient,
            multi_host: self.clients.multi_host,
            // The rows of several rounds are read after each one.
            pace: Duration::from_millis(10),
            inside: if self.clients.inside && !self.topology.dead_man {
                (0..self.topology.data).collect()
            } else {
                Vec::new()
            },
        }
    }

    /// The faults of one round, `None` when there are no more.
    pub fn draw(&self, round: usize, random: &mut Random, possible: &[usize]) -> Option<Blow> {
        if let Some(step) = self.step.get(round) {
            return Some(step.clone());
        }
        let mut blow = self.pick(random, possible)?;
        if random.below(100) < self.schedule.double {
            let second = self.pick(random, possible)?;
            let after = Text(Duration::from_millis(u64::try_from(random.below(2500)).unwrap_or(0)));
            let mut strikes = second.strikes;
            if let Some(first) = strikes.first_mut() {
                first.after = after;
            }
            blow.strikes.extend(strikes);
        }
        Some(blow)
    }

    fn pick(&self, random: &mut Random, possible: &[usize]) -> Option<Blow> {
        let weights: Vec<(usize, &Blow)> =
            possible.iter().filter_map(|&index| Some((index, self.mix.get(index)?))).collect();
        let mut at = random.below(weights.iter().map(|(_, blow)| blow.weight).sum());
        for (_, blow) in weights {
            if at < blow.weight {
                return Some(blow.clone());
            }
            at -= blow.weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_is_read() {
        for (name, _) in BUILT_IN {
            let script = Script::load(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(script.schedule.rounds.is_some() || script.schedule.minutes.is_some(), "{name}");
        }
    }

    #[test]
    fn a_word_that_means_nothing_is_refused() {
        let good = "about = \"x\"\n[topology]\ndata = 3\nsync = \"off\"\n[schedule]\nrounds = 1\n\
                    [[mix]]\nstrikes = [{ fault = \"cut\" }]\n";
        assert!(Script::read(good).is_ok());
        for (from, to) in [("cut", "cute"), ("rounds", "round"), ("data = 3", "data = 1"), ("mix", "mixed")] {
            assert!(Script::read(&good.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_seed_draws_the_same_rounds() {
        let script = Script::load("all").expect("reads");
        let possible: Vec<usize> = (0..script.mix.len()).collect();
        let draw = |seed| {
            let mut random = Random::new(seed);
            let rounds = (0..40).map(|round| script.draw(round, &mut random, &possible));
            rounds.map(|blow| format!("{blow:?}")).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}
