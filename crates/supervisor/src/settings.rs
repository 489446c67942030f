//! ✦ The replicated settings as operators write them: keys, values, what may follow what.
//!
//! Nothing here changes anything: the Raft leader proposes what passes, and the state has the last word.

mod checks;

use std::fmt::Write as _;

use rhone_consensus::settings::{Settings, SettingsChange, SyncMode, Timing};
use serde::{Deserialize, Serialize};

pub use self::checks::check;
pub(crate) use self::checks::waits_for_flush;
use crate::civil::WallTime;
use crate::config::{nearest, timing, units};

/// The keys beside `postgres.NAME`.
pub const KEYS: [&str; 7] =
    ["sync", "sync-required", "max-lag-on-failover", "dead-member-timeout", "pg-hba", "pg-ident", "timing"];

/// The shortest `dead-member-timeout`: a Raft election and a supervisor's restart take less.
const DEAD_MIN_MS: u64 = 5_000;

/// The settings that begin with this are Postgres parameters.
pub const POSTGRES: &str = "postgres.";

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>, hint: Option<&str>) -> Self {
        Self { reason: reason.into(), hint: hint.map(str::to_owned) }
    }
}

/// The settings, as `rhone settings` prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsView {
    /// Which version these are.
    pub version: u64,
    /// When they were changed last; none: not since founding, or longer ago than is kept.
    pub time: Option<WallTime>,
    /// Who changed them last.
    pub by: Option<String>,
    /// By key.
    pub values: std::collections::BTreeMap<String, String>,
}

/// What became of one setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingDiff {
    /// Its key.
    pub key: String,
    /// Its value before; none: it was not set.
    pub before: Option<String>,
    /// Its value after; none: it is not set any more.
    pub after: Option<String>,
}

/// One version: a line of `rhone settings history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsVersion {
    /// Its number.
    pub version: u64,
    /// When it was made.
    pub time: Option<WallTime>,
    /// Who made it.
    pub by: Option<String>,
    /// What it changed.
    pub changes: Vec<SettingDiff>,
}

impl From<&rhone_consensus::settings::SettingDiff> for SettingDiff {
    fn from(diff: &rhone_consensus::settings::SettingDiff) -> Self {
        Self { key: diff.key.clone(), before: diff.before.clone(), after: diff.after.clone() }
    }
}

impl From<&SettingsChange> for SettingsVersion {
    fn from(change: &SettingsChange) -> Self {
        Self {
            version: change.version,
            time: Some(WallTime::from_ms(change.at.0)),
            by: Some(change.by.clone()),
            changes: change.changes.iter().map(Into::into).collect(),
        }
    }
}

/// Sets one setting, or takes it back to what it is when nobody sets it.
///
/// # Errors
/// The key is not known or not to be changed, or the value is not one of its kind.
pub fn change(settings: &mut Settings, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    let shaped = |what: &str| Refusal::new(format!("{key} is {what}"), None);
    if let Some(name) = key.strip_prefix(POSTGRES) {
        let name = name.to_ascii_lowercase();
        if let Some(reason) = rhone_pgctl::settings::owned_reason(&name) {
            return Err(Refusal::new(format!("{key} is rhone's own: {reason}"), None));
        }
        match value {
            Some(value) => drop(settings.postgres.insert(name, value.to_owned())),
            None => drop(settings.postgres.remove(&name)),
        }
        return Ok(());
    }
    match (key, value) {
        ("sync", Some("off")) => settings.sync = SyncMode::Off,
        ("sync", Some("quorum")) => settings.sync = SyncMode::Quorum,
        ("sync", Some("strict")) => settings.sync = SyncMode::Strict,
        ("sync", Some(_) | None) => return Err(shaped("off, quorum or strict")),
        ("sync-required", None) => settings.sync_required = None,
        ("sync-required", Some(text)) => {
            let count = text.parse().ok().filter(|count| *count > 0);
            settings.sync_required = Some(count.ok_or_else(|| shaped("a number of standbys, 1 or more"))?);
        }
        ("max-lag-on-failover", None) => {
            settings.max_lag_on_failover = Settings::default().max_lag_on_failover;
        }
        ("max-lag-on-failover", Some(text)) => {
            let hint = units::with_unit(text).map(|unit| format!("`rhone settings set {key}={unit}`"));
            settings.max_lag_on_failover = units::parse_size(text)
                .map_err(|why| Refusal::new(format!("{key}: {why}"), hint.as_deref()))?;
        }
        ("dead-member-timeout", None) => {
            settings.dead_member_timeout_ms = Settings::default().dead_member_timeout_ms;
        }
        ("dead-member-timeout", Some(text)) => {
            settings.dead_member_timeout_ms =
                dead_member_timeout(text).map_err(|why| Refusal::new(format!("{key}: {why}"), None))?;
        }
        ("pg-hba", value) => settings.pg_hba = lines(value),
        ("pg-ident", value) => settings.pg_ident = lines(value),
        (key, _) if key == "timing" || key.starts_with("timing.") => {
            change_timing(&mut settings.timing, key, value)?;
        }
        (key, _) => return Err(unknown(key)),
    }
    Ok(())
}

fn lines(value: Option<&str>) -> Vec<String> {
    let lines = value.unwrap_or_default().lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Sets all timings, by a preset's name, or a single one; taken back they are those of `default`. Whether they
/// fit together is seen once all of a change are set.
fn change_timing(timing: &mut Timing, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    let Some(name) = key.strip_prefix("timing.") else {
        let named = timing::preset(value.unwrap_or("default"));
        let presets = timing::PRESETS.join(", ");
        let hint = "single ones are `timing.lease`, `timing.suspicion`, ...: `rhone settings` lists them";
        *timing = named.ok_or_else(|| Refusal::new(format!("timing is one of {presets}"), Some(hint)))?;
        return Ok(());
    };
    if !timing::SINGLE.contains(&name) {
        let near = nearest(name, timing::SINGLE).map(|near| format!("did you mean `timing.{near}`?"));
        return Err(Refusal::new(format!("no setting is named {key}"), near.as_deref()));
    }
    let text = match value {
        Some(text) => text.to_owned(),
        None => Settings::default().flat().remove(key).unwrap_or_default(),
    };
    timing::set_single(timing, name, &text).map_err(|why| Refusal::new(format!("{key}: {why}"), None))
}

/// Reads after how long a silence a voter is dead, in milliseconds; 0: never.
///
/// # Errors
/// It is no duration, or shorter than members are silent when nothing is wrong.
pub(crate) fn dead_member_timeout(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    let time = units::parse_duration(text).map_err(|why| format!("{why}, or off"))?;
    match u64::try_from(time.as_millis()).unwrap_or(u64::MAX) {
        0 => Ok(0),
        ms if ms < DEAD_MIN_MS => Err(format!("a member is not dead after {text}: at least 5s, or off")),
        ms => Ok(ms),
    }
}

fn unknown(key: &str) -> Refusal {
    let plain = key.replace('_', "-");
    let hint = match nearest(&plain, KEYS) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("a Postgres parameter is `postgres.{key}`; the others are {}", KEYS.join(", ")),
    };
    Refusal::new(format!("no setting is named {key}"), Some(&hint))
}

/// Returns the settings as they were at a version.
///
/// # Errors
/// That version is not known any more, or never was.
pub fn at_version(
    present: &Settings,
    version: u64,
    log: &[SettingsChange],
    wanted: u64,
) -> Result<Settings, Refusal> {
    let hint = Some("`rhone settings history` lists the versions that are kept");
    if wanted > version || wanted == 0 {
        return Err(Refusal::new(format!("there is no version {wanted}: the newest is {version}"), hint));
    }
    let first = log.first().map_or(version, |change| change.version.saturating_sub(1));
    if wanted < first {
        return Err(Refusal::new(
            format!("version {wanted} is not kept any more: the oldest is {first}"),
            hint,
        ));
    }
    let mut settings = present.clone();
    for change in log.iter().rev().take_while(|change| change.version > wanted) {
        for diff in &change.changes {
            self::change(&mut settings, &diff.key, diff.before.as_deref())?;
        }
    }
    Ok(settings)
}

/// Renders settings as TOML, to be edited: a line each.
pub fn as_toml(values: &std::collections::BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in values {
        let value = if key == "pg-hba" || key == "pg-ident" {
            toml::Value::Array(value.lines().map(|line| toml::Value::String(line.to_owned())).collect())
        } else {
            toml::Value::String(value.clone())
        };
        let name = match key.strip_prefix(POSTGRES) {
            // A dot would begin a table, and a `$` is no part of a bare key.
            Some(name) if !bare(name) => format!("postgres.\"{name}\""),
            Some(_) | None => key.clone(),
        };
        // Writing to a String cannot fail.
        writeln!(text, "{name} = {value}").ok();
    }
    text
}

/// Says whether TOML takes a key without quotes.
fn bare(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'))
}

/// Reads what [`as_toml`] wrote and a person edited; numbers and booleans may be bare.
///
/// # Errors
/// It is no TOML, or holds something that is no setting.
pub fn from_toml(text: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut values = std::collections::BTreeMap::new();
    flatten("", &table, &mut values)?;
    Ok(values)
}

fn flatten(
    prefix: &str,
    table: &toml::Table,
    values: &mut std::collections::BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        let text = match value {
            toml::Value::Table(table) => {
                flatten(&format!("{key}."), table, values)?;
                continue;
            }
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(on) => (if *on { "on" } else { "off" }).to_owned(),
            toml::Value::Array(lines) => {
                let line = |line: &toml::Value| line.as_str().map(str::to_owned);
                let lines: Option<Vec<String>> = lines.iter().map(line).collect();
                lines.ok_or_else(|| format!("`{key}` is a list of texts"))?.join("\n")
            }
            toml::Value::Datetime(_) => return Err(format!("`{key}` is no setting")),
        };
        values.insert(key, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhone_consensus::command::WallTime as When;
    use rhone_consensus::settings::differences;

    #[track_caller]
    fn check(key: &str, value: Option<&str>, expected: &str) {
        let before = Settings { sync: SyncMode::Quorum, ..Settings::default() };
        let mut after = before.clone();
        let text = match change(&mut after, key, value) {
            Ok(()) => differences(&before, &after)
                .into_iter()
                .map(|diff| {
                    format!("{} -> {}", diff.before.unwrap_or_default(), diff.after.unwrap_or_default())
                })
                .collect::<Vec<_>>()
                .join("; "),
            Err(Refusal { reason, hint }) => format!("{reason} ({})", hint.unwrap_or_default()),
        };
        assert_eq!(text, expected, "{key} = {value:?}");
    }

    #[test]
    fn keys_and_values_are_those_of_the_interface() {
        check("sync", Some("strict"), "quorum -> strict");
        check("sync", Some("Strict"), "sync is off, quorum or strict ()");
        check("sync", None, "sync is off, quorum or strict ()");
        check("sync-required", Some("2"), " -> 2");
        check("sync-required", Some("0"), "sync-required is a number of standbys, 1 or more ()");
        check("max-lag-on-failover", Some("16MB"), "1MB -> 16MB");
        check("dead-member-timeout", Some("2 min"), "5min -> 2min");
        check("dead-member-timeout", Some("90s"), "5min -> 90s");
        check("dead-member-timeout", Some("off"), "5min -> off");
        check("dead-member-timeout", Some("0"), "5min -> off");
        check("dead-member-timeout", None, "");
        check(
            "dead-member-timeout",
            Some("300"),
            "dead-member-timeout: a duration has a unit: 500ms, 1.5s, 2min, 1h, or off ()",
        );
        check(
            "dead-member-timeout",
            Some("1s"),
            "dead-member-timeout: a member is not dead after 1s: at least 5s, or off ()",
        );
        check(
            "max-lag-on-failover",
            Some("1048576"),
            "max-lag-on-failover: a size has a unit: 512kB, 10MB, 1GB (`rhone settings set max-lag-on-failover=1MB`)",
        );
        check(
            "max-lag-on-failover",
            Some("much"),
            "max-lag-on-failover: a size has a unit: 512kB, 10MB, 1GB ()",
        );
        check(
            "pg-hba",
            Some("host all all all md5\n\nlocal all all peer\n"),
            " -> host all all all md5\nlocal all all peer",
        );
        check("pg-ident", Some("office ann app\n"), " -> office ann app");
        check("postgres.Work_Mem", Some("8MB"), " -> 8MB");
        check("postgres.work_mem", None, "");
        check(
            "postgres.fsync",
            Some("off"),
            "postgres.fsync is rhone's own: without it acknowledged commits are lost ()",
        );
        check(
            "sync_required",
            Some("1"),
            "no setting is named sync_required (did you mean `sync-required`?)",
        );
        check(
            "work_mem",
            Some("8MB"),
            "no setting is named work_mem (a Postgres parameter is `postgres.work_mem`; the others are sync, \
             sync-required, max-lag-on-failover, dead-member-timeout, pg-hba, pg-ident, timing)",
        );
        check("timing.lease", Some("3s"), "1500ms -> 3000ms");
        check("timing.lease", Some("3"), "timing.lease: a duration has a unit: 500ms, 1.5s, 2min, 1h ()");
        check("timing.leese", Some("3s"), "no setting is named timing.leese (did you mean `timing.lease`?)");
        check("timing", Some("fast"), "150ms -> 100ms; 1500ms -> 600ms; 100ms -> 50ms; 500ms -> 250ms");
        check("timing", None, "");
        check(
            "timing",
            Some("hasty"),
            "timing is one of default, fast, calm (single ones are `timing.lease`, `timing.suspicion`, ...: `rhone \
             settings` lists them)",
        );
    }

    #[test]
    fn each_version_that_is_kept_can_be_gone_back_to() {
        let mut present = Settings::default();
        let mut log = Vec::new();
        for (version, key, value) in [
            (2, "sync", Some("quorum")),
            (3, "postgres.work_mem", Some("8MB")),
            (4, "postgres.work_mem", None),
        ] {
            let before = present.clone();
            change(&mut present, key, value).expect("a good change");
            let changes = differences(&before, &present);
            log.push(SettingsChange { version, at: When(0), by: String::new(), changes });
        }
        let back = |wanted| at_version(&present, 4, &log, wanted);
        assert_eq!(back(1), Ok(Settings::default()));
        assert_eq!(back(3).expect("kept").postgres.get("work_mem").map(String::as_str), Some("8MB"));
        assert_eq!(back(4).as_ref(), Ok(&present));
        assert_eq!(back(5).expect_err("none").reason, "there is no version 5: the newest is 4");
        let kept = at_version(&present, 4, &log[1..], 1).expect_err("gone");
        assert_eq!(kept.reason, "version 1 is not kept any more: the oldest is 2");
    }

    #[test]
    fn what_is_edited_is_what_was_shown() {
        let mut settings = Settings::default();
        for (key, value) in [
            ("postgres.log_line_prefix", "%m \"x\" "),
            ("postgres.pg_stat_statements.max", "100"),
            ("postgres.plv8$x.y", "1"),
            ("pg-hba", "a\nb"),
        ] {
            change(&mut settings, key, Some(value)).expect("a good change");
        }
        let flat = settings.flat();
        let text = as_toml(&flat);
        assert!(
            text.contains("pg-hba = [\"a\", \"b\"]\npostgres")
                && text.contains("\ntiming.lease = \"1500ms\"\n"),
            "{text}"
        );
        assert_eq!(from_toml(&text), Ok(flat));
        let typed = from_toml("sync-required = 1\n[postgres]\njit = false\n").expect("good");
        assert_eq!(typed["sync-required"], "1");
        assert_eq!(typed["postgres.jit"], "off");
        assert!(from_toml("pg-hba = [1]").is_err() && from_toml("=").is_err());
    }
}
