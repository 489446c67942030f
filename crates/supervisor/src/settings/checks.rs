//! ✦ Whether new settings can be: each parameter by the primary's own word, then all of them together.

use std::collections::BTreeMap;

use rhone_consensus::settings::{Settings, SyncMode};
use rhone_pgctl::parameters::Parameter;
use rhone_pgctl::settings::{NEVER_LOWER, check_parameters, default_of};
use rhone_pgctl::{hba_line, ident_line};

use super::{POSTGRES, Refusal};
use crate::config::{nearest, timing};

/// Connections that Rhone and a person's rescue need beside the reserved ones.
const OWN_CONNECTIONS: f64 = 7.0;

/// Checks what differs between two settings against the primary's `pg_settings`, brings the values into
/// the shape that they are written in, and returns the parameters that count from the next start on.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(
    before: &Settings,
    after: &mut Settings,
    catalogue: &[Parameter],
    data_members: usize,
) -> Result<Vec<String>, Refusal> {
    check_parameters(&after.postgres).map_err(|error| Refusal::new(error.to_string(), None))?;
    if before.pg_hba != after.pg_hba
        && let Some((line, why)) = after.pg_hba.iter().find_map(|line| Some((line, hba_line::trouble(line)?)))
    {
        return Err(Refusal::new(format!("the pg-hba line `{line}` {why}"), None));
    }
    if before.pg_ident != after.pg_ident
        && let Some((line, why)) =
            after.pg_ident.iter().find_map(|line| Some((line, ident_line::trouble(line)?)))
    {
        let hint = "what rhone cannot check stays in pg_ident.conf of each data directory";
        return Err(Refusal::new(format!("the pg-ident line `{line}` {why}"), Some(hint)));
    }
    if before.timing != after.timing
        && let Some(contradiction) = timing::contradictions(&after.timing).first()
    {
        let reason = format!("the timings contradict each other: {contradiction}");
        return Err(Refusal::new(reason, Some(timing::HINT)));
    }
    let mut restart = Vec::new();
    let names: std::collections::BTreeSet<String> =
        before.postgres.keys().chain(after.postgres.keys()).cloned().collect();
    for name in names {
        if before.postgres.get(&name) == after.postgres.get(&name) {
            continue;
        }
        let known = catalogue.iter().find(|parameter| parameter.name.eq_ignore_ascii_case(&name));
        let Some(parameter) = known else {
            if let Some(refusal) = unknown(&name, catalogue).filter(|_| after.postgres.contains_key(&name)) {
                return Err(refusal);
            }
            continue;
        };
        if let Some(value) = after.postgres.get_mut(&name) {
            let checked = parameter
                .check(value)
                .map_err(|why| Refusal::new(format!("{POSTGRES}{name} {why}"), None))?;
            *value = checked.value;
        }
        if parameter.context == "postmaster" {
            restart.push(name);
        }
    }
    together(before, after, catalogue, data_members)?;
    Ok(restart)
}

/// A name with a dot belongs to an extension, which need not be loaded.
fn unknown(name: &str, catalogue: &[Parameter]) -> Option<Refusal> {
    if let Some((extension, _)) = name.split_once('.') {
        let prefix = format!("{extension}.");
        if !catalogue.iter().any(|parameter| parameter.name.starts_with(&prefix)) {
            return None;
        }
    }
    let near = nearest(name, catalogue.iter().map(|parameter| parameter.name.as_str()));
    let hint = near.map_or_else(
        || "`rhone psql -c 'SELECT name FROM pg_settings'` lists what the primary knows".to_owned(),
        |near| format!("did you mean `{POSTGRES}{near}`?"),
    );
    Some(Refusal::new(format!("the primary knows no parameter {name}"), Some(&hint)))
}

/// What one parameter alone does not show.
fn together(
    before: &Settings,
    after: &Settings,
    catalogue: &[Parameter],
    data_members: usize,
) -> Result<(), Refusal> {
    let by_name: BTreeMap<&str, &Parameter> = catalogue.iter().map(|p| (p.name.as_str(), p)).collect();
    let running = |name: &str| by_name.get(name).and_then(|parameter| parameter.running());
    let wanted = |name: &str| {
        let text = after.postgres.get(name).map(String::as_str).or_else(|| default_of(name));
        let number = |text: &str| by_name.get(name).and_then(|p| p.check(text).ok()).and_then(|c| c.number);
        text.and_then(number).or_else(|| running(name))
    };
    let changed = |name: &str| before.postgres.get(name) != after.postgres.get(name);
    for name in NEVER_LOWER.into_iter().filter(|name| changed(name)) {
        if let (Some(wanted), Some(running)) = (wanted(name), running(name))
            && wanted < running
        {
            let hint = "every member starts in recovery, and Postgres does not recover with less than the wal was \
                        written with: see docs/decisions/0028";
            let reason = format!("{POSTGRES}{name} cannot go below {running}, with which the primary runs");
            return Err(Refusal::new(reason, Some(hint)));
        }
    }
    let least = |name: &str, least: f64, why: &str| match wanted(name) {
        Some(number) if changed(name) && number < least => {
            Err(Refusal::new(format!("{POSTGRES}{name} has to be at least {least}: {why}"), None))
        }
        Some(_) | None => Ok(()),
    };
    #[allow(clippy::cast_precision_loss, reason = "a handful of members")]
    let members = data_members as f64;
    least("max_wal_senders", members * 2.0, "each member streams, and may be copied or rewound meanwhile")?;
    least("max_replication_slots", members, "each member has a slot for each other")?;
    if let (Some(most), Some(kept)) = (wanted("max_connections"), wanted("superuser_reserved_connections"))
        && (changed("max_connections") || changed("superuser_reserved_connections"))
        && most < kept + OWN_CONNECTIONS
    {
        let reason = format!(
            "max_connections = {most} leaves too little beside {kept} reserved ones: Postgres would not start, or nobody get in"
        );
        return Err(Refusal::new(reason, None));
    }
    if let Some(segment) = running("wal_segment_size").map(|bytes| bytes / 1_048_576.0) {
        for name in ["min_wal_size", "max_wal_size"] {
            least(name, segment * 2.0, "Postgres does not start with less than two segments (in MB)")?;
        }
    }
    weak_commits(after)
}

/// Whether a commit with this `synchronous_commit` is acknowledged only once standbys have flushed it.
pub(crate) fn waits_for_flush(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    matches!(value.as_str(), "remote_apply" | "on" | "true" | "yes" | "1" | "t" | "y")
}

/// In a synchronous cluster a commit counts once standbys have flushed it: no default may say less.
fn weak_commits(after: &Settings) -> Result<(), Refusal> {
    let Some(value) = after.postgres.get("synchronous_commit").filter(|_| after.sync != SyncMode::Off) else {
        return Ok(());
    };
    if waits_for_flush(value) {
        return Ok(());
    }
    let value = value.to_ascii_lowercase();
    let reason = format!(
        "postgres.synchronous_commit = {value} would acknowledge commits that no standby has flushed, and sync = {}",
        after.sync.name()
    );
    Err(Refusal::new(reason, Some("set it in the sessions that may lose their commits, or set sync = off")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::change;

    fn catalogue() -> Vec<Parameter> {
        let row = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            let some = |text: &str| (text != "-").then(|| text.to_owned());
            Parameter {
                name: words[0].to_owned(),
                kind: words[1].to_owned(),
                context: words[2].to_owned(),
                unit: some(words[3]),
                least: some(words[4]),
                greatest: some(words[5]),
                setting: words[6].to_owned(),
                words: words[7..].iter().map(|word| (*word).to_owned()).collect(),
            }
        };
        [
            "max_connections integer postmaster - 1 262143 100",
            "max_wal_senders integer postmaster - 0 262143 20",
            "max_replication_slots integer postmaster - 0 262143 20",
            "superuser_reserved_connections integer postmaster - 0 262143 3",
            "work_mem integer user kB 64 2147483647 4096",
            "min_wal_size integer sighup MB 2 2147483647 80",
            "wal_segment_size integer internal B 1048576 1073741824 16777216",
            "synchronous_commit enum user - - - on local remote_write remote_apply on off",
            "auto_explain.log_min_duration integer superuser ms -1 2147483647 -1",
        ]
        .map(row)
        .into()
    }

    /// Settings as `KEY=VALUE`, parted by `; `: those before are taken as they are.
    #[track_caller]
    fn check(before: &str, changes: &str, expected: &str) {
        let apply = |settings: &mut Settings, text: &str| {
            for part in text.split("; ").filter(|part| !part.is_empty()) {
                let (key, value) = part.split_once('=').expect("KEY=VALUE");
                change(settings, key, Some(value).filter(|value| !value.is_empty())).expect("a good key");
            }
        };
        let mut old = Settings::default();
        apply(&mut old, before);
        let mut new = old.clone();
        apply(&mut new, changes);
        let text = match super::check(&old, &mut new, &catalogue(), 3) {
            Ok(restart) => format!("ok, restart: {}", restart.join(" ")),
            Err(Refusal { reason, hint }) => match hint {
                Some(hint) => format!("{reason} ({hint})"),
                None => reason,
            },
        };
        assert_eq!(text, expected, "{changes}");
    }

    #[test]
    fn parameters_are_checked_by_the_primarys_word() {
        check("", "postgres.work_mem=64MB; postgres.max_connections=200", "ok, restart: max_connections");
        check(
            "",
            "postgres.work_mme=1",
            "the primary knows no parameter work_mme (did you mean `postgres.work_mem`?)",
        );
        check("", "postgres.work_mem=1", "postgres.work_mem is between 64 and 2147483647 (in kB); 1 is 1");
        check(
            "",
            "postgres.wal_segment_size=32MB",
            "postgres.wal_segment_size cannot be set: it is a property of the build or of the data",
        );
        check("", "postgres.pg_cron.host=x", "ok, restart: ");
        check(
            "",
            "postgres.auto_explain.log_min=1",
            "the primary knows no parameter auto_explain.log_min (did you mean `postgres.auto_explain.log_min_duration`?)",
        );
        // What was set before and is not known any more can be taken away.
        check("postgres.gone=1", "postgres.gone=", "ok, restart: ");
        check("", "pg-hba=host all all", "the pg-hba line `host all all` names an address after the user");
    }

    #[test]
    fn what_would_keep_postgres_from_starting_is_refused() {
        let lower = "every member starts in recovery, and Postgres does not recover with less than the wal was written \
                     with: see docs/decisions/0028";
        check(
            "",
            "postgres.max_connections=99",
            &format!("postgres.max_connections cannot go below 100, with which the primary runs ({lower})"),
        );
        // Raised, and not restarted yet: the way back is open.
        check("postgres.max_connections=200", "postgres.max_connections=", "ok, restart: max_connections");
        check(
            "",
            "postgres.max_replication_slots=2",
            "postgres.max_replication_slots has to be at least 3: each member has a slot for each other",
        );
        check(
            "",
            "postgres.superuser_reserved_connections=99",
            "max_connections = 100 leaves too little beside 99 reserved ones: Postgres would not start, or nobody get in",
        );
        check(
            "",
            "postgres.min_wal_size=20MB",
            "postgres.min_wal_size has to be at least 32: Postgres does not start with less than two segments (in MB)",
        );
    }

    #[test]
    fn a_synchronous_cluster_keeps_its_word() {
        let weak = |sync: &str| {
            format!(
                "postgres.synchronous_commit = local would acknowledge commits that no standby has flushed, and sync = {sync} (set it in the sessions that may lose their commits, or set sync = off)"
            )
        };
        check("sync=quorum", "postgres.synchronous_commit=local", &weak("quorum"));
        check("postgres.synchronous_commit=local", "sync=strict", &weak("strict"));
        check("sync=quorum", "postgres.synchronous_commit=remote_apply", "ok, restart: ");
        check("", "postgres.synchronous_commit=off", "ok, restart: ");
    }
}
