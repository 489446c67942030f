//! What a run of a scenario came to, round by round and at its end, and how a person reads it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::fault::Fault;

/// One round, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// From 1.
    pub number: usize,
    /// Seconds since the run began.
    pub at: f64,
    /// The faults, on whom, how long after the round began.
    pub faults: Vec<String>,
    /// Seconds from the first fault until everything was healed.
    pub held: f64,
    /// Longest time without an acknowledged write anywhere, seconds.
    pub gap: f64,
    /// Seconds from healing until there was one primary and all others streamed from it; `None` if never.
    pub whole: Option<f64>,
    /// The primary before and after.
    pub primary: [String; 2],
    /// Load average of the machine.
    pub load: f64,
}

/// The end of a run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// How to run it again.
    pub command: String,
    /// The seed.
    pub seed: u64,
    /// How often each fault was done.
    pub faults: BTreeMap<Fault, u32>,
    /// Faults that could not be done here, and why.
    pub skipped: BTreeMap<Fault, String>,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// Acknowledged rows a second over the whole run.
    pub rate: f64,
    /// Acknowledged rows a second, without each round's longest time without writes.
    pub rate_of_writing: f64,
    /// Loss, phantoms, two primaries, differences.
    pub loss: String,
    /// What was violated, one sentence each; empty when nothing was.
    pub violations: Vec<String>,
    /// Who was promoted, revoked, frozen in the last rounds, a line each, when something was violated.
    pub roles: Vec<String>,
    /// Where the logs are, when something was violated.
    pub logs: Option<String>,
}

impl Outcome {
    /// Whether nothing was violated.
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.passed() {
            for round in &self.rounds {
                writeln!(f, "{round}")?;
            }
            writeln!(f, "the members' roles in the last rounds:")?;
            for line in &self.roles {
                writeln!(f, "  {line}")?;
            }
        }
        let kinds = self.faults.len();
        let done: u32 = self.faults.values().sum();
        writeln!(f, "{} rounds, {done} faults of {kinds} kinds:", self.rounds.len())?;
        let list: Vec<String> = self.faults.iter().map(|(fault, n)| format!("{fault:?} {n}")).collect();
        writeln!(f, "  {}", list.join(", "))?;
        for (fault, why) in &self.skipped {
            writeln!(f, "  {fault:?}: SKIPPED, {why}")?;
        }
        let worst = |pick: fn(&Round) -> Option<f64>| {
            let mut all: Vec<f64> = self.rounds.iter().filter_map(pick).collect();
            all.sort_by(f64::total_cmp);
            let middle = all.get(all.len() / 2).copied().unwrap_or_default();
            format!("median {middle:.1} s, worst {:.1} s", all.last().copied().unwrap_or_default())
        };
        writeln!(f, "whole after healing: {}", worst(|round| round.whole))?;
        writeln!(f, "longest time without writes per round: {}", worst(|round| Some(round.gap)))?;
        writeln!(
            f,
            "{:.0} rows/s acknowledged over the run, faults included; {:.0} without those times",
            self.rate, self.rate_of_writing
        )?;
        writeln!(f, "{}", self.loss)?;
        for violation in &self.violations {
            writeln!(f, "VIOLATED: {violation}")?;
        }
        if let Some(logs) = &self.logs {
            writeln!(f, "logs: {logs}")?;
        }
        let word = if self.passed() { "PASSED" } else { "FAILED" };
        write!(f, "{word}; again: {}", self.command)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:3} {:7.1} s  {}, healed after {:.1} s: ",
            self.number,
            self.at,
            self.faults.join(" + "),
            self.held
        )?;
        match self.whole {
            Some(whole) => write!(f, "whole {whole:.1} s later")?,
            None => write!(f, "NEVER WHOLE")?,
        }
        let [before, after] = &self.primary;
        write!(f, ", {:.1} s without writes, {before} -> {after}, load {:.0}", self.gap, self.load)
    }
}
