//! `[hooks]`: programs of the operator's that are run when something happens to the local Postgres.

use std::path::PathBuf;
use std::time::Duration;

use super::file::Entries;
use super::units;

/// How long a program may take when nothing is set.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

/// The longest: an owner that is not primary half a minute after its Grant is replaced where it can be.
const LONGEST: Duration = Duration::from_secs(20);

/// A program and its first arguments: run as they are, by no shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Where it is.
    pub program: PathBuf,
    /// What it is given before anything else.
    pub arguments: Vec<String>,
}

/// `[hooks]`: each may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// After Postgres was started.
    pub on_start: Option<Hook>,
    /// After it was stopped.
    pub on_stop: Option<Hook>,
    /// After it was restarted.
    pub on_restart: Option<Hook>,
    /// After it read its configuration again.
    pub on_reload: Option<Hook>,
    /// After it became a primary, or a standby.
    pub on_role_change: Option<Hook>,
    /// Before it is promoted: another member is, where this one says no.
    pub pre_promote: Option<Hook>,
    /// Before it is stopped in order.
    pub before_stop: Option<Hook>,
    /// How long each may take.
    pub limit: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            on_start: None,
            on_stop: None,
            on_restart: None,
            on_reload: None,
            on_role_change: None,
            pre_promote: None,
            before_stop: None,
            limit: DEFAULT_LIMIT,
        }
    }
}

/// Takes `[hooks]`.
pub(super) fn hooks(entries: &mut Entries) -> Hooks {
    let limit = entries.parsed("hooks.timeout", |text| {
        let limit = units::parse_duration(text)?;
        if limit.is_zero() || limit > LONGEST {
            return Err(format!("\"{text}\" is not between 1ms and {} s", LONGEST.as_secs()));
        }
        Ok(limit)
    });
    Hooks {
        on_start: hook(entries, "hooks.on-start"),
        on_stop: hook(entries, "hooks.on-stop"),
        on_restart: hook(entries, "hooks.on-restart"),
        on_reload: hook(entries, "hooks.on-reload"),
        on_role_change: hook(entries, "hooks.on-role-change"),
        pre_promote: hook(entries, "hooks.pre-promote"),
        before_stop: hook(entries, "hooks.before-stop"),
        limit: limit.unwrap_or(DEFAULT_LIMIT),
    }
}

fn hook(entries: &mut Entries, key: &str) -> Option<Hook> {
    let mut words = entries.list(key)?.into_iter();
    let program = words.next().map(PathBuf::from);
    if let Some(program) = program.filter(|program| program.is_absolute()) {
        return Some(Hook { program, arguments: words.collect() });
    }
    let name = key.trim_start_matches("hooks.");
    let hint = format!("{name} = [\"/usr/local/bin/hook\", \"argument\"]");
    entries.complain(key, format!("`{key}` begins with a program's absolute path"), Some(&hint));
    None
}
