//! `rhone man`: the manual pages, made of what the command line says of itself.

use std::path::Path;

use clap::{Command, CommandFactory};
use rhone_pgctl::user::OsUser;

use super::args::Cli;
use super::exit::CliError;
use super::terminal::Terminal;

/// Prints the page of `rhone`, or writes the pages of all commands into a folder.
pub(super) fn run(folder: Option<&Path>, terminal: &mut Terminal) -> Result<(), CliError> {
    let mut command = Cli::command();
    command.build();
    let Some(folder) = folder else {
        terminal.data(&page(&command, "rhone")?);
        return Ok(());
    };
    std::fs::create_dir_all(folder)
        .map_err(|error| CliError::failed(format!("create {}: {error}", folder.display())))?;
    let mut written = 0_usize;
    write(folder, &command, "rhone", &mut written)?;
    terminal.talk(&format!("{written} manual pages are in {}", folder.display()));
    Ok(())
}

fn page(command: &Command, name: &str) -> Result<String, CliError> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut text)
        .map_err(|error| CliError::failed(format!("make the manual page: {error}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn write(folder: &Path, command: &Command, name: &str, written: &mut usize) -> Result<(), CliError> {
    let path = folder.join(format!("{name}.1"));
    let text = page(command, name)?;
    rhone_pgctl::file::replace(&path, text.as_bytes(), &OsUser::current(), 0o644)
        .map_err(|error| CliError::failed(error.to_string()))?;
    *written = written.saturating_add(1);
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(folder, verb, &format!("{name}-{}", verb.get_name()), written)?;
    }
    Ok(())
}
