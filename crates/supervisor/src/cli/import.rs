//! `rhone import patroni.yml`: the new file on stdout, what becomes of each key on stderr.

use std::io::Read;
use std::path::Path;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::print_json;
use super::terminal::Terminal;
use crate::import::{Choices, SIZE_LIMIT, Translation, Verdict, translate};

/// Translates a file.
pub(super) fn run(
    global: &Global,
    file: &Path,
    choices: &Choices,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let text = read(file).map_err(|error| {
        CliError::new(Exit::Usage, format!("read {}: {error}", file.display()))
            .hint("this takes the YAML file that patroni is started with; `-` reads stdin")
    })?;
    let translation = translate(&text, choices).map_err(|why| {
        CliError::new(Exit::Usage, format!("{}: {why}", file.display()))
            .hint("this takes the YAML file that patroni is started with")
    })?;
    if global.json() {
        return print_json(terminal, &translation);
    }
    terminal.data(&translation.config);
    tell(&translation, terminal);
    Ok(())
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // One byte more than is taken tells a file that is too large.
    let limit = SIZE_LIMIT as u64 + 1;
    if file == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(limit).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn tell(translation: &Translation, terminal: &mut Terminal) {
    for (verdict, title) in [
        (Verdict::Translated, "translated"),
        (Verdict::NoMeaning, "without a meaning here"),
        (Verdict::Decide, "to be decided by hand"),
    ] {
        let notes: Vec<_> = translation.notes.iter().filter(|note| note.verdict == verdict).collect();
        if notes.is_empty() {
            continue;
        }
        terminal.talk(&format!("{title}:"));
        for note in notes {
            let key = if note.key == "-" { String::new() } else { format!("{}: ", note.key) };
            terminal.talk(&format!("  {key}{}", note.what));
        }
    }
    terminal.talk("hint: `rhone check -c FILE` says whether the new file is sound on this machine");
}
