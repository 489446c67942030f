//! Commands and what they print, as a file that people read and a test holds against the real thing.
//!
//! ```text
//! == a section
//! pg-1$ rhone status
//! cluster *: primary {first}, epoch *
//! ...
//! [exit 3]
//! ```
//! In an expected line `*` is any text and `{name}` what the test put there; a line `...` is any number of lines.
//! Standard output comes first, then standard error. Without `[exit N]` the status is 0.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::clock::Moment;
use crate::cluster::{Cluster, LIMIT};

/// How long one command may take on a loaded machine.
const COMMAND: Duration = Duration::from_secs(150);

/// One command with what it is to print.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    member: String,
    command: String,
    lines: Vec<String>,
    exit: i32,
}

/// A transcript's sections.
#[derive(Clone, Debug)]
pub struct Transcript {
    sections: Vec<(String, Vec<Step>)>,
    names: BTreeMap<String, String>,
    next: usize,
}

impl Transcript {
    /// Reads a transcript.
    pub fn read(text: &str) -> Result<Self> {
        let mut sections: Vec<(String, Vec<Step>)> = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix("== ") {
                sections.push((name.to_owned(), Vec::new()));
                continue;
            }
            let command = line.split_once("$ rhone ").filter(|(member, _)| !member.contains(' '));
            let steps = sections.last_mut().map(|(_, steps)| steps);
            let Some(steps) = steps else {
                ensure!(line.is_empty(), "{line:?} stands before the first section");
                continue;
            };
            if let Some((member, command)) = command {
                let (member, command) = (member.to_owned(), command.to_owned());
                steps.push(Step { member, command, lines: Vec::new(), exit: 0 });
                continue;
            }
            let Some(step) = steps.last_mut() else {
                ensure!(line.is_empty(), "{line:?} stands before the first command");
                continue;
            };
            match line.strip_prefix("[exit ").and_then(|rest| rest.strip_suffix(']')) {
                Some(status) => step.exit = status.parse().with_context(|| format!("read {line:?}"))?,
                None => step.lines.push(line.to_owned()),
            }
        }
        // The empty line before the next command or section is for the reader.
        for step in sections.iter_mut().flat_map(|(_, steps)| steps) {
            if step.lines.last().is_some_and(String::is_empty) {
                step.lines.pop();
            }
        }
        Ok(Self { sections, names: BTreeMap::new(), next: 0 })
    }

    /// Says what `{name}` stands for.
    pub fn name(&mut self, name: &str, value: &str) {
        self.names.insert(format!("{{{name}}}"), value.to_owned());
    }

    /// Plays the next section, which has this name, and returns all that was said, for a person.
    pub fn play(&mut self, cluster: &Cluster, section: &str) -> Result<String> {
        let (name, steps) = self.sections.get(self.next).context("the transcript has no more sections")?;
        ensure!(name == section, "the next section is {name:?}, not {section:?}");
        self.next += 1;
        let mut said = String::new();
        for step in steps {
            let real = |text: &str| {
                self.names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
            };
            let (member, command) = (real(&step.member), real(&step.command));
            let index = (0..cluster.members())
                .find(|&index| cluster.node(index).is_ok_and(|node| node.name() == member))
                .with_context(|| format!("there is no member {member}"))?;
            let lines: Vec<String> = step.lines.iter().map(|line| real(line)).collect();
            let begun = Moment::now();
            let (exit, printed) = loop {
                let output = cluster.rhone(index, &command.split(' ').collect::<Vec<_>>(), COMMAND)?;
                let printed = format!("{}{}", output.stdout, output.stderr);
                let exit = output.code.unwrap_or(-1);
                let fine = exit == step.exit && all_match(&lines, &printed.lines().collect::<Vec<_>>());
                // A member that does not lead hears of a change a moment later.
                if fine || !only_looks(&command) || begun.elapsed() > LIMIT {
                    break (exit, printed);
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            said.push_str(&format!("{member}$ rhone {command}\n{printed}"));
            if exit != step.exit || !all_match(&lines, &printed.lines().collect::<Vec<_>>()) {
                bail!(
                    "section {section:?}: `{member}$ rhone {command}` ended with {exit}, expected {}\n--- expected\n{}\n--- said\n{printed}",
                    step.exit,
                    lines.join("\n"),
                );
            }
        }
        Ok(said)
    }

    /// Fails when sections are left.
    pub fn end(&self) -> Result<()> {
        ensure!(
            self.next == self.sections.len(),
            "{} sections were not played",
            self.sections.len() - self.next
        );
        Ok(())
    }
}

/// Whether a command changes nothing.
fn only_looks(command: &str) -> bool {
    const LOOKS: [&str; 6] = ["status", "explain", "history", "doctor", "member list", "settings get"];
    LOOKS.iter().any(|looks| command.starts_with(looks))
}

/// Whether lines are as expected, `...` being any number of them.
fn all_match(expected: &[String], lines: &[&str]) -> bool {
    match (expected.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((dots, rest)), _) if dots == "..." => {
            (0..=lines.len()).any(|skipped| lines.get(skipped..).is_some_and(|left| all_match(rest, left)))
        }
        (Some((one, rest)), Some((line, left))) => is_like(one, line.trim_end()) && all_match(rest, left),
        _ => false,
    }
}

/// Whether a line is as expected, `*` being any text, and runs of spaces one.
fn is_like(expected: &str, line: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, line) = (squeezed(expected), squeezed(line));
    let mut parts = expected.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let Some(last) = expected.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    line.ends_with(last) && line.len() + 1 >= first.len() + last.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_dots_stand_for_text_and_lines() {
        for (expected, line, like) in [
            ("primary pg-1, epoch *", "primary pg-1, epoch 12", true),
            ("primary pg-1, epoch *", "primary pg-2, epoch 12", false),
            ("pg-1 * streaming * 0 B", "pg-1  standby  streaming   3:0/50   0 B", true),
            ("pg-1 * streaming * 0 B", "pg-1  standby  streaming   3:0/50   8 B", false),
            ("done", "done", true),
            ("done", "done!", false),
            ("* lost", "0 lost", true),
        ] {
            assert_eq!(is_like(expected, line), like, "{expected:?} and {line:?}");
        }
        let expected = ["a".to_owned(), "...".to_owned(), "b*".to_owned()];
        assert!(all_match(&expected, &["a", "b"]) && all_match(&expected, &["a", "x", "y", "b2"]));
        assert!(!all_match(&expected, &["a", "b", "c"]) && !all_match(&expected, &["a"]));
    }

    #[test]
    fn a_transcript_is_read() {
        let text = "# for people\n== look\n{first}$ rhone status\nfine\n\npg-2$ rhone fence x\nno\n[exit 3]\n\n== end\n";
        let read = Transcript::read(text).expect("read");
        let (name, steps) = read.sections.first().expect("a section");
        assert_eq!((name.as_str(), steps.len(), read.sections.len()), ("look", 2, 2));
        let last = steps.last().expect("a step");
        assert_eq!(
            (last.command.as_str(), last.lines.as_slice(), last.exit),
            ("fence x", &["no".to_owned()][..], 3)
        );
    }
}
