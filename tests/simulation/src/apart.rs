//! A run in a process of its own: the only place where it replays to the last message.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Mutant, Outcome};

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The seed.
    pub seed: u64,
    /// The rule that is left out.
    pub mutant: Mutant,
    /// In which mutant's world: the one where it would show.
    pub shows: Mutant,
    /// Where the operating system's chance begins, where not with the seed: another order of what
    /// nobody orders.
    pub chance: Option<u64>,
}

impl Asked {
    /// The product's own story of that seed.
    pub const fn of(seed: u64) -> Self {
        Self { seed, mutant: Mutant::None, shows: Mutant::None, chance: None }
    }

    /// The story of that seed without a rule, where that shows.
    pub const fn without(mutant: Mutant, seed: u64) -> Self {
        Self { seed, mutant, shows: mutant, chance: None }
    }

    /// The arguments after `make sim` that tell it again.
    pub fn again(self) -> String {
        let Self { seed, mutant, shows, .. } = self;
        let mutant = if mutant == Mutant::None { String::new() } else { format!(" MUTANT={mutant:?}") };
        let shows = if shows == self.mutant { String::new() } else { format!(" SHOWS={shows:?}") };
        format!("make sim SEED={seed}{mutant}{shows}")
    }
}

/// What the last line of a run begins with.
const LAST: &str = "outcome";

impl Outcome {
    /// Says it in one line, for the process that asked.
    pub fn last_line(&self) -> String {
        let Self { violation, hash, acknowledged, given_up, virtual_ms, .. } = self;
        let violation = violation.as_deref().unwrap_or_default();
        format!("{LAST} {hash:016x} {acknowledged} {given_up} {virtual_ms} {violation}")
    }

    fn read(text: &str) -> Option<Self> {
        let (lines, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        let mut words = last.strip_prefix(LAST)?.trim_start().splitn(5, ' ');
        let hash = u64::from_str_radix(words.next()?, 16).ok()?;
        let mut number = || words.next()?.parse().ok();
        let (acknowledged, given_up, virtual_ms) = (number()?, number()?, number()?);
        let violation = words.next().filter(|text| !text.is_empty()).map(str::to_owned);
        let lines = lines.lines().map(str::to_owned).collect();
        Some(Self { violation, lines, hash, acknowledged, given_up, virtual_ms })
    }
}

/// Runs it in a process of its own; `simulate` is the program of that name.
pub fn run_apart(simulate: &Path, asked: Asked) -> Outcome {
    let mut command = Command::new(simulate);
    command.args(["--quiet", "--seed", &asked.seed.to_string()]);
    command.args(["--mutant", &format!("{:?}", asked.mutant), "--shows", &format!("{:?}", asked.shows)]);
    if let Some(chance) = asked.chance {
        command.args(["--chance", &chance.to_string()]);
    }
    match command.stdin(Stdio::null()).stderr(Stdio::inherit()).output() {
        Ok(output) => Outcome::read(&String::from_utf8_lossy(&output.stdout))
            .unwrap_or_else(|| Outcome::failed(format!("the simulation itself: {}", output.status))),
        Err(error) => Outcome::failed(format!("the simulation itself: {}: {error}", simulate.display())),
    }
}
