//! `rhone replay`: decides again from what the recorder wrote, and tells where that differs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::print_json;
use super::table::{self, Align};
use super::terminal::Terminal;
use crate::civil::WallTime;
use crate::record::{Again, Begin, By, FORMAT, Line};

/// What a record holds, decided again.
#[derive(Debug, Default, Serialize)]
struct Replay {
    decisions: Vec<Decision>,
    /// How many are decided otherwise now.
    differ: usize,
    /// Lines that this version cannot read.
    unreadable: usize,
    /// Decisions that the recorder could not write.
    dropped: u64,
}

#[derive(Debug, Serialize)]
struct Decision {
    time: WallTime,
    member: Option<String>,
    by: By,
    decided: String,
    reason: &'static str,
    /// What is decided now, where that differs.
    again: Option<String>,
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    replay: Replay,
    writer: Option<Begin>,
    trouble: Option<String>,
}

/// Reads the files, decides again, prints; fails where a decision differs.
pub(super) fn run(global: &Global, files: &[PathBuf], terminal: &mut Terminal) -> Result<(), CliError> {
    let mut reader = Reader::default();
    for file in files {
        reader.file(file)?;
    }
    let Reader { replay, trouble, .. } = reader;
    if replay.decisions.is_empty() {
        let why = trouble.map_or_else(String::new, |why| format!(": {why}"));
        return Err(CliError::new(Exit::Usage, format!("no decision could be read{why}"))
            .hint("the recorder writes decisions.jsonl into node.state-dir; node.recorder says otherwise"));
    }
    if global.json() {
        print_json(terminal, &replay)?;
    } else {
        terminal.data(&render(&replay));
    }
    if replay.dropped > 0 {
        terminal.talk(&format!("warning: {} decisions could not be recorded", replay.dropped));
    }
    if let Some(why) = trouble {
        let lines = if replay.unreadable == 1 { "line is" } else { "lines are" };
        terminal.talk(&format!("warning: {} {lines} unreadable ({why})", replay.unreadable));
    }
    let count = replay.decisions.len();
    if replay.differ > 0 {
        return Err(CliError::failed(format!("{} of {count} decisions differ", replay.differ))
            .hint("replay with the version of rhone that wrote them: the rules may have changed since"));
    }
    let told = if count == 1 { "1 decision" } else { &format!("{count} decisions, each") };
    terminal.talk(&format!("{told} decided the same again"));
    Ok(())
}

impl Reader {
    fn file(&mut self, file: &Path) -> Result<(), CliError> {
        let shown = file.display();
        let bad = |error: std::io::Error| {
            CliError::new(Exit::Usage, format!("read {shown}: {error}"))
                .hint("the recorder writes decisions.jsonl into node.state-dir; node.recorder says otherwise")
        };
        let mut lines = BufReader::new(std::fs::File::open(file).map_err(bad)?);
        let (mut number, mut line) = (0_u64, Vec::new());
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line).map_err(bad)? == 0 {
                return Ok(());
            }
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(line) => self.line(&line),
                Err(error) => {
                    self.replay.unreadable += 1;
                    let writer = self.writer.as_ref().filter(|writer| writer.format != FORMAT);
                    let by = writer
                        .map_or_else(String::new, |writer| format!("; rhone {} wrote it", writer.rhone));
                    // A position in one line of JSON means nothing to a reader.
                    let error = error.to_string();
                    let error = error.split(" at line ").next().unwrap_or_default();
                    self.trouble.get_or_insert_with(|| format!("{shown}:{number}: {error}{by}"));
                }
            }
        }
    }

    fn line(&mut self, line: &Line) {
        match line {
            Line::Begin(begin) => self.writer = Some(begin.clone()),
            Line::Dropped(count) => self.replay.dropped = self.replay.dropped.saturating_add(*count),
            Line::Cluster(_) | Line::Member(_) => {
                let Some(Again { at, by, decided, reason, now }) = line.again() else { return };
                self.replay.differ += usize::from(now.is_some());
                let member = self.writer.as_ref().map(|writer| writer.member.clone());
                self.replay.decisions.push(Decision { time: at, member, by, decided, reason, again: now });
            }
        }
    }
}

fn render(replay: &Replay) -> String {
    let rows: Vec<[String; 6]> = replay
        .decisions
        .iter()
        .map(|decision| {
            [
                decision.time.to_string(),
                table::or_dash(decision.member.as_ref()),
                decision.by.to_string(),
                decision.decided.clone(),
                decision.reason.to_owned(),
                decision.again.as_ref().map_or_else(|| "same".to_owned(), |now| format!("differs: {now}")),
            ]
        })
        .collect();
    let columns = [
        ("WHEN (UTC)", Align::Left),
        ("NODE", Align::Left),
        ("AS", Align::Left),
        ("DECIDED", Align::Left),
        ("REASON", Align::Left),
        ("AGAIN", Align::Left),
    ];
    table::render(columns, &rows)
}

#[cfg(test)]
#[allow(
    clippy::needless_raw_string_hashes,
    clippy::needless_pass_by_value,
    reason = "expect-test writes them so"
)]
#[path = "replay_tests.rs"]
mod tests;
