//! `rhone settings`: the replicated settings, their versions and the way back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::args::{ChangeFlags, Global, SettingsVerb};
use super::exit::{CliError, Exit};
use super::hold::wait;
use super::operate::who;
use super::table::{self, Align, or_dash};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::config::timing;
use crate::settings::{SettingDiff, SettingsVersion, SettingsView, as_toml, from_toml};
use crate::status::{ClusterStatus, Kind, SettingsChanged, State};

/// How long the members may take to be told of a change: a policy waits for slow disks.
const APPLIED_LIMIT: Duration = Duration::from_secs(60);

/// What `-o json` prints of a change.
#[derive(serde::Serialize)]
struct Told<'a> {
    version: u64,
    changes: &'a [SettingDiff],
    restart: &'a [String],
    /// The members whose Postgres goes by this version.
    applied: Vec<String>,
    /// What a member's Postgres does not take of its files, by member.
    refused: BTreeMap<String, Vec<String>>,
    finished: bool,
}

/// Carries out one of the verbs.
pub(super) async fn run(
    global: &Global,
    verb: Option<SettingsVerb>,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    match verb {
        None => show(global, terminal).await,
        Some(SettingsVerb::Get { setting }) => get(global, &setting, terminal).await,
        Some(SettingsVerb::Set { assignments, flags }) => {
            let changes = assignments.iter().map(|text| assignment(text)).collect::<Result<Vec<_>, _>>()?;
            change(global, Change { changes, ..Change::default() }, flags, terminal).await
        }
        Some(SettingsVerb::Reset { keys, flags }) => {
            let changes = keys.into_iter().map(|key| (key, None)).collect();
            change(global, Change { changes, ..Change::default() }, flags, terminal).await
        }
        Some(SettingsVerb::Revert { version, flags }) => {
            change(global, Change { revert_to: Some(version), ..Change::default() }, flags, terminal).await
        }
        Some(SettingsVerb::Edit { no_wait }) => edit(global, no_wait, terminal).await,
        Some(SettingsVerb::History { limit }) => history(global, limit, terminal).await,
        Some(SettingsVerb::Diff { from, to }) => diff(global, from, to, terminal).await,
    }
}

/// `KEY=VALUE`; the value may be empty.
fn assignment(text: &str) -> Result<(String, Option<String>), CliError> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), Some(value.to_owned()))),
        Some(_) | None => Err(CliError::new(Exit::Usage, format!("\"{text}\" is not KEY=VALUE"))
            .hint("rhone settings set sync=quorum postgres.work_mem=16MB")),
    }
}

/// Asks for the settings.
pub(super) async fn fetch(global: &Global) -> Result<SettingsView, CliError> {
    client::ask(global, false, async |mut client| {
        Ok(api::settings_view(client.settings(v1::SettingsRequest {}).await?.into_inner()))
    })
    .await
}

/// Asks for the versions that are kept.
pub(super) async fn versions(global: &Global, limit: u32) -> Result<Vec<SettingsVersion>, CliError> {
    client::ask(global, false, async |mut client| {
        let reply = client.settings_history(v1::SettingsHistoryRequest { limit }).await?.into_inner();
        Ok(reply.versions.into_iter().map(api::settings_version).collect())
    })
    .await
}

async fn show(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let mut view = fetch(global).await?;
    let preset = preset_of(&view.values);
    view.values.insert("timing".to_owned(), preset);
    if global.json() {
        return print_json(terminal, &view);
    }
    let rows: Vec<[String; 2]> =
        view.values.iter().map(|(key, value)| [key.clone(), value.replace('\n', "; ")]).collect();
    terminal.data(&table::render([("SETTING", Align::Left), ("VALUE", Align::Left)], &rows));
    terminal.talk(&headline(&view));
    Ok(())
}

fn headline(view: &SettingsView) -> String {
    let when = view.time.map_or_else(String::new, |time| format!(", changed {} (UTC)", time.short()));
    let by = view.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    format!("version {}{when}{by}; `rhone settings history` lists the versions before", view.version)
}

/// Prints the settings as they are edited: for hands that know `patronictl show-config`.
pub(super) async fn show_config(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let view = fetch(global).await?;
    if global.json() {
        return print_json(terminal, &view);
    }
    terminal.data(&as_toml(&view.values));
    Ok(())
}

async fn get(global: &Global, key: &str, terminal: &mut Terminal) -> Result<(), CliError> {
    let view = fetch(global).await?;
    let preset = (key == "timing").then(|| preset_of(&view.values));
    let value = preset.as_ref().or_else(|| view.values.get(key));
    if global.json() {
        print_json(terminal, &serde_json::json!({ "key": key, "value": value }))?;
    } else if let Some(value) = value {
        terminal.data(&format!("{value}\n"));
    }
    value.map(drop).ok_or_else(|| {
        CliError::failed(format!("{key} is not set"))
            .hint("`rhone settings` lists what is; a Postgres parameter is `postgres.NAME`")
    })
}

/// Names the preset that single timings make.
fn preset_of(values: &BTreeMap<String, String>) -> String {
    let mut timing = timing::Timing::default();
    let mut single =
        timing::SINGLE.into_iter().filter_map(|name| Some((name, values.get(&format!("timing.{name}"))?)));
    let known = single.all(|(name, value)| timing::set_single(&mut timing, name, value).is_ok());
    timing::preset_of(&timing).filter(|_| known).unwrap_or("custom").to_owned()
}

/// What is to be changed.
#[derive(Default)]
struct Change {
    changes: Vec<(String, Option<String>)>,
    revert_to: Option<u64>,
    /// The version that was looked at, if any was.
    seen: Option<u64>,
}

async fn change(
    global: &Global,
    change: Change,
    flags: ChangeFlags,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let diff = |(key, after): (String, Option<String>)| v1::SettingDiff { key, before: None, after };
    let request = v1::ChangeSettingsRequest {
        idempotency_key: client::idempotency_key()?,
        expected_version: flags.expect.or(change.seen),
        changes: change.changes.into_iter().map(diff).collect(),
        revert_to: change.revert_to,
        by: who(),
        dry_run: flags.dry_run,
    };
    let done = client::ask(global, true, async |mut client| {
        api::settings_changed(client.change_settings(request.clone()).await?.into_inner())
    })
    .await?;
    let waits = !flags.no_wait && !flags.dry_run && !done.changes.is_empty();
    let after = if waits { Some(applied(global, &done).await?) } else { None };
    tell(global, &done, after.as_ref(), flags.dry_run, terminal)
}

/// Waits until every instance that runs goes by the new version, and commits wait as it says.
async fn applied(global: &Global, done: &SettingsChanged) -> Result<ClusterStatus, CliError> {
    let policy = done.changes.iter().any(|diff| !diff.key.starts_with(crate::settings::POSTGRES));
    let timing = done.changes.iter().any(|diff| diff.key.starts_with("timing."));
    let told = |status: &ClusterStatus| {
        let behind = status
            .members
            .iter()
            .any(|m| runs(m.state) && m.kind == Kind::Data && m.settings_version < Some(done.version));
        status.settings_version >= Some(done.version)
            && !behind
            && (status.sync.settled || !policy)
            && (!timing || status.timing.as_ref().is_none_or(|timing| timing.settled))
    };
    wait(global, APPLIED_LIMIT, told).await
}

fn runs(state: State) -> bool {
    matches!(state, State::Running | State::Streaming | State::ArchiveRecovery | State::Promoting)
}

fn tell(
    global: &Global,
    done: &SettingsChanged,
    after: Option<&ClusterStatus>,
    dry_run: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    if global.json() {
        let members = after.map(|status| status.members.iter()).into_iter().flatten();
        let applied =
            members.filter(|m| m.settings_version >= Some(done.version)).map(|m| m.name.clone()).collect();
        let members = after.map(|status| status.members.iter()).into_iter().flatten();
        let refused = members
            .filter(|member| !member.refused_lines.is_empty())
            .map(|member| (member.name.clone(), member.refused_lines.clone()))
            .collect();
        let SettingsChanged { version, changes, restart } = done;
        return print_json(
            terminal,
            &Told { version: *version, changes, restart, applied, refused, finished: after.is_some() },
        );
    }
    terminal.data(&lines(&done.changes));
    terminal.talk(&match (done.changes.is_empty(), dry_run) {
        (true, _) => format!("nothing to change; the settings are at version {}", done.version),
        (false, true) => format!("would change version {}; nothing was changed", done.version),
        (false, false) => format!("the settings are at version {}", done.version),
    });
    for member in after.map(|status| status.members.iter()).into_iter().flatten() {
        if member.kind == Kind::Data && !runs(member.state) {
            terminal.talk(&format!("{} is {}: it takes them over when it starts", member.name, member.state));
        }
    }
    for member in after.map(|status| status.members.iter()).into_iter().flatten() {
        for line in &member.refused_lines {
            terminal.talk(&format!("warning: {} does not take {line}", member.name));
        }
    }
    if !done.restart.is_empty() {
        terminal.talk(&format!("from the next restart on: {}", done.restart.join(", ")));
        terminal.talk("hint: `rhone restart --rolling --if-pending` restarts one member after the other");
    }
    Ok(())
}

/// Prints differences, a line each.
fn lines(changes: &[SettingDiff]) -> String {
    let mut text = String::new();
    let value = |value: &Option<String>| {
        value.as_ref().map_or_else(|| "(not set)".to_owned(), |v| v.replace('\n', "; "))
    };
    for diff in changes {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "{}: {} -> {}", diff.key, value(&diff.before), value(&diff.after));
    }
    text
}

async fn history(global: &Global, limit: u32, terminal: &mut Terminal) -> Result<(), CliError> {
    let versions = versions(global, limit).await?;
    if global.json() {
        return print_json(terminal, &versions);
    }
    if versions.is_empty() {
        terminal.talk("the settings are those of the founding: version 1");
        return Ok(());
    }
    terminal.data(&table(&versions));
    Ok(())
}

/// Renders the versions, a line for each setting that one changed.
pub(super) fn table(versions: &[SettingsVersion]) -> String {
    let rows: Vec<[String; 4]> = versions
        .iter()
        .flat_map(|version| {
            version.changes.iter().enumerate().map(move |(n, diff)| {
                let once = |text: String| if n == 0 { text } else { String::new() };
                [
                    once(version.version.to_string()),
                    once(or_dash(version.time.map(crate::civil::WallTime::short))),
                    once(or_dash(version.by.as_ref())),
                    lines(std::slice::from_ref(diff)).trim_end().to_owned(),
                ]
            })
        })
        .collect();
    let columns = [
        ("VERSION", Align::Right),
        ("WHEN (UTC)", Align::Left),
        ("BY", Align::Left),
        ("CHANGE", Align::Left),
    ];
    table::render(columns, &rows)
}

/// What differs between two versions: the newest and the one before it, unless others are named.
async fn diff(
    global: &Global,
    from: Option<u64>,
    to: Option<u64>,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let versions = versions(global, 0).await?;
    let newest = versions.last().map_or(1, |version| version.version);
    let oldest = versions.first().map_or(1, |version| version.version.saturating_sub(1));
    let to = to.unwrap_or(newest);
    let from = from.unwrap_or_else(|| to.saturating_sub(1).max(oldest));
    if let Some(wrong) = [from, to].into_iter().find(|version| !(oldest..=newest).contains(version)) {
        return Err(CliError::failed(format!("version {wrong} is not kept"))
            .hint(format!("versions {oldest} to {newest} are: `rhone settings history`")));
    }
    let changes = between(&versions, from, to);
    if global.json() {
        return print_json(terminal, &serde_json::json!({ "from": from, "to": to, "changes": changes }));
    }
    terminal.data(&lines(&changes));
    if changes.is_empty() {
        terminal.talk(&format!("versions {from} and {to} are the same"));
    }
    Ok(())
}

/// Adds up what lies between two versions, in either direction.
fn between(versions: &[SettingsVersion], from: u64, to: u64) -> Vec<SettingDiff> {
    let mut sum: BTreeMap<String, SettingDiff> = BTreeMap::new();
    let (low, high) = (from.min(to), from.max(to));
    for diff in versions.iter().filter(|v| v.version > low && v.version <= high).flat_map(|v| &v.changes) {
        let entry = sum.entry(diff.key.clone()).or_insert_with(|| SettingDiff {
            key: diff.key.clone(),
            before: diff.before.clone(),
            after: None,
        });
        entry.after.clone_from(&diff.after);
    }
    let turned = |diff: SettingDiff| {
        if from <= to { diff } else { SettingDiff { before: diff.after, after: diff.before, ..diff } }
    };
    sum.into_values().filter(|diff| diff.before != diff.after).map(turned).collect()
}

/// Lets a person edit all settings, and changes what differs, if nobody else changed them meanwhile.
pub(super) async fn edit(global: &Global, no_wait: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    let view = fetch(global).await?;
    let before = as_toml(&view.values);
    let head = format!("# Version {} of the settings. Save and leave to change them.\n", view.version);
    let after = in_editor(&format!("{head}{before}"))?;
    let wanted = from_toml(&after).map_err(|why| {
        CliError::new(Exit::Usage, format!("that is not TOML: {why}")).hint("nothing was changed; edit again")
    })?;
    let mut changes: Vec<(String, Option<String>)> = wanted
        .iter()
        .filter(|(key, value)| view.values.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect();
    let gone = view.values.keys().filter(|key| !wanted.contains_key(*key));
    changes.extend(gone.map(|key| (key.clone(), None)));
    if changes.is_empty() {
        terminal.talk("nothing to change");
        return Ok(());
    }
    change(
        global,
        Change { changes, revert_to: None, seen: Some(view.version) },
        ChangeFlags { no_wait, ..ChangeFlags::default() },
        terminal,
    )
    .await
}

/// Runs `$VISUAL` or `$EDITOR` on a file with that text; returns what is in it afterwards.
fn in_editor(text: &str) -> Result<String, CliError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |what: &str, error: std::io::Error| CliError::failed(format!("{what}: {error}"));
    let name = format!("rhone-settings-{}.toml", client::idempotency_key()?);
    let path = std::env::temp_dir().join(name);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let written = file
        .as_mut()
        .map_err(|e| std::io::Error::new(e.kind(), e.to_string()))
        .and_then(|file| file.write_all(text.as_bytes()));
    written.map_err(|error| failed("write a file to edit", error))?;
    let editor = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    let mut words = editor.split_whitespace();
    let status = std::process::Command::new(words.next().unwrap_or("vi")).args(words).arg(&path).status();
    let after = std::fs::read_to_string(&path);
    // The file may be the editor's to remove.
    std::fs::remove_file(&path).ok();
    match status {
        Ok(status) if status.success() => after.map_err(|error| failed("read the edited file", error)),
        Ok(status) => Err(CliError::failed(format!("`{editor}` failed ({status}); nothing was changed"))),
        Err(error) => {
            Err(failed(&format!("run `{editor}`"), error).hint("set EDITOR to an editor that is installed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_add_up_in_both_directions() {
        let diff = |key: &str, before: &str, after: &str| {
            let some = |text: &str| (text != "-").then(|| text.to_owned());
            SettingDiff { key: key.to_owned(), before: some(before), after: some(after) }
        };
        let version = |version, changes| SettingsVersion { version, changes, ..SettingsVersion::default() };
        let log = [
            version(2, vec![diff("sync", "off", "quorum")]),
            version(3, vec![diff("postgres.work_mem", "-", "8MB"), diff("sync", "quorum", "strict")]),
            version(4, vec![diff("postgres.work_mem", "8MB", "-")]),
        ];
        let text = |from, to| lines(&between(&log, from, to));
        assert_eq!(text(1, 4), "sync: off -> strict\n"); // what came and went is no difference
        assert_eq!(text(3, 4), "postgres.work_mem: 8MB -> (not set)\n");
        assert_eq!(text(4, 2), "sync: strict -> quorum\n");
        assert_eq!(text(2, 2), "");
    }
}
