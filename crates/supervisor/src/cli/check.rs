//! `rhone check`: all that is wrong with a configuration.

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::config::{self, Config, ConfigErrors, Problem};

/// Reads the configuration as `rhone run` would, and looks at the machine; starts nothing.
pub(super) fn check(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let path = global.config.clone().unwrap_or_else(|| config::DEFAULT_PATH.into());
    let environment = config::environment();
    warn(&environment, |warning| terminal.talk(&format!("warning: {warning}")));
    let (exit, errors) = match Config::load(&path, &environment) {
        Err(errors) => (Exit::Usage, errors),
        Ok(config) => {
            let problems = config::located(&path, &environment, config::inspect(&config));
            let warnings = [config::advice(&config), config::unreadable_secrets(&config)].concat();
            if !global.json() {
                tell(&warnings, terminal);
            }
            if problems.is_empty() {
                return sound(global, &config, &warnings, terminal);
            }
            (Exit::Failed, ConfigErrors { path, problems })
        }
    };
    if global.json() {
        let list = listed(&errors.problems);
        print_json(terminal, &serde_json::json!({"file": errors.path, "sound": false, "problems": list}))?;
    }
    Err(CliError { exit, ..errors.into() })
}

/// Tells which variables may be meant for Rhone and are not read.
pub(super) fn warn(environment: &config::Environment, mut tell: impl FnMut(&str)) {
    for (name, near) in config::misspelled(environment) {
        tell(&format!("nobody reads ${name}: did you mean {near}?"));
    }
}

fn tell(warnings: &[Problem], terminal: &mut Terminal) {
    for warning in warnings {
        terminal.talk(&format!("warning: {}", warning.message));
        if let Some(hint) = &warning.hint {
            terminal.talk(&format!("hint: {hint}"));
        }
    }
}

fn listed(problems: &[Problem]) -> Vec<serde_json::Value> {
    let one = |p: &Problem| serde_json::json!({"line": p.line, "variable": p.variable, "message": p.message, "hint": p.hint});
    problems.iter().map(one).collect()
}

fn sound(
    global: &Global,
    config: &Config,
    warnings: &[Problem],
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    if global.json() {
        return print_json(
            terminal,
            &serde_json::json!({"file": config.path, "sound": true, "problems": [], "warnings": listed(warnings)}),
        );
    }
    let text = format!(
        "{}: sound; member {} of cluster {}\n",
        config.path.display(),
        config.node.name,
        config.cluster
    );
    terminal.data(&text);
    Ok(())
}

/// Loads what `rhone run` needs, or says all that is wrong with it.
pub(super) fn checked(global: &Global) -> Result<Config, CliError> {
    let config = client::load_config(global)?;
    let problems = config::located(&config.path, &config::environment(), config::inspect(&config));
    if problems.is_empty() {
        return Ok(config);
    }
    let errors = ConfigErrors { path: config.path, problems };
    Err(CliError { exit: Exit::Failed, ..errors.into() })
}
