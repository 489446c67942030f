//! Renders the managed settings file `rhone.conf`: the defaults that Rhone needs, the user's
//! parameters, and who is followed.
//!
//! The file is in the data directory and included last. Pure; [`crate::apply`] writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::conninfo::ConnInfo;
use crate::control::StandbyMinimums;
use crate::error::PgError;

/// The managed file's name, in the data directory.
pub const MANAGED_FILE: &str = "rhone.conf";

/// The custom parameter that numbers the value of `synchronous_standby_names`.
pub(crate) const POLICY_SETTING: &str = "rhone.policy";

/// The custom parameter that names the version of the settings.
const VERSION_SETTING: &str = "rhone.settings";

/// Reads the number of the policy out of a managed settings file.
pub fn policy_of(text: &str) -> Option<u64> {
    number_of(text, POLICY_SETTING)
}

/// Reads the version of the settings out of a managed settings file.
pub fn version_of(text: &str) -> Option<u64> {
    number_of(text, VERSION_SETTING)
}

fn number_of(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('='))?;
    value.trim().trim_matches('\'').parse().ok()
}

/// Everything that goes into the managed settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagedSettings {
    /// The user's parameters; see [`check_parameters`].
    pub parameters: BTreeMap<String, String>,
    /// Whom this server follows when it is a standby; none cuts it off.
    pub primary_conninfo: Option<ConnInfo>,
    /// The slot that it uses there.
    pub primary_slot_name: Option<String>,
    /// As [`synchronous_standby_names`] renders it; empty is asynchronous.
    pub synchronous_standby_names: String,
    /// Whose value that is: a number that the server can be asked for (`rhone.policy`), written in the same
    /// step. 0 on a standby.
    pub policy: u64,
    /// The version of the replicated settings that the parameters are of.
    pub version: u64,
    /// How to get WAL from an archive; empty for members.
    pub restore_command: String,
    /// What a standby must not go below: from its control file.
    pub minimums: StandbyMinimums,
    /// By how many milliseconds a delayed standby holds replay back; 0: not at all.
    pub apply_delay_ms: u64,
    /// Whether no WAL is removed, as before a rewind: the crash recovery that it begins with ends in a
    /// checkpoint, which would remove the WAL that shows where the histories parted.
    pub keep_all_wal: bool,
    /// While the upstream is cut: conflicts end queries at once, and replay looks for WAL each 3 ms, so
    /// that the end of local WAL is known within milliseconds.
    pub hurry: bool,
}

/// How long replay sleeps between two looks for WAL while in a hurry.
pub(crate) const HURRIED_INTERVAL: &str = "3ms";

/// What Rhone sets unless the user sets it.
const DEFAULTS: &[(&str, &str)] = &[
    ("max_connections", "100"),
    ("max_locks_per_transaction", "64"),
    ("max_prepared_transactions", "0"),
    ("max_replication_slots", "20"),
    ("max_slot_wal_keep_size", "4GB"),
    ("max_wal_senders", "20"),
    ("max_worker_processes", "8"),
    ("password_encryption", "scram-sha-256"),
    ("tcp_keepalives_count", "3"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("wal_keep_size", "64MB"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
];

/// What Rhone sets whatever the user wants.
const FIXED: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("hot_standby", "on"),
    ("recovery_min_apply_delay", "0"),
    ("recovery_target_timeline", "latest"),
    ("restart_after_crash", "off"),
    ("wal_log_hints", "on"),
    ("wal_receiver_status_interval", "1s"),
];

/// Parameters that a user may not set, with the reason.
const OWNED: &[(&str, &str)] = &[
    ("archive_cleanup_command", "members keep WAL by slots"),
    ("config_file", "rhone starts the server with its own"),
    ("data_directory", "rhone knows it from its own configuration"),
    ("external_pid_file", "rhone finds the server by its data directory"),
    ("fsync", "without it acknowledged commits are lost"),
    ("full_page_writes", "without it a crash destroys pages"),
    ("hba_file", "rhone manages pg_hba.conf"),
    ("hot_standby", "rhone must be able to ask a standby"),
    ("ident_file", "rhone manages pg_ident.conf"),
    ("listen_addresses", "set it in rhone's configuration"),
    ("port", "set it in rhone's configuration"),
    ("primary_conninfo", "the cluster decides whom a member follows"),
    ("primary_slot_name", "the cluster decides whom a member follows"),
    ("promote_trigger_file", "only the cluster promotes"),
    ("recovery_end_command", "members recover from each other"),
    ("recovery_init_sync_method", "rhone sets it by the kernel"),
    ("recovery_min_apply_delay", "a delayed standby cannot take over: tag that member with `delay`"),
    ("recovery_target", "restore with `rhone` instead"),
    ("recovery_target_action", "restore with `rhone` instead"),
    ("recovery_target_lsn", "restore with `rhone` instead"),
    ("recovery_target_name", "restore with `rhone` instead"),
    ("recovery_target_time", "restore with `rhone` instead"),
    ("recovery_target_timeline", "members follow the cluster's timeline"),
    ("recovery_target_xid", "restore with `rhone` instead"),
    ("restart_after_crash", "the cluster decides what follows a crash"),
    ("restore_command", "members recover from each other"),
    ("synchronous_standby_names", "the cluster decides who acknowledges"),
    ("unix_socket_directories", "set it in rhone's configuration"),
    ("wal_log_hints", "pg_rewind needs it"),
    ("wal_receiver_status_interval", "the primary has to hear its standbys each second"),
    ("wal_retrieve_retry_interval", "failover needs it short"),
];

/// Parameters that a standby must not have lower than the server whose WAL it replays had them.
pub const NEVER_LOWER: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Returns what Rhone sets a parameter to unless the user does.
pub fn default_of(parameter: &str) -> Option<&'static str> {
    DEFAULTS.iter().find(|(name, _)| *name == parameter).map(|(_, value)| *value)
}

/// Reads a parameter's value out of a managed settings file.
pub fn value_in(text: &str, parameter: &str) -> Option<String> {
    let line = |line: &str| -> Option<String> {
        let value = line.strip_prefix(parameter)?.strip_prefix(" = '")?.strip_suffix('\'')?;
        Some(value.replace("''", "'").replace("\\\\", "\\"))
    };
    text.lines().find_map(line)
}

/// Returns why a user may not set a parameter, `None` when it is free.
pub fn owned_reason(parameter: &str) -> Option<&'static str> {
    let name = parameter.to_ascii_lowercase();
    OWNED.iter().find(|(owned, _)| *owned == name).map(|(_, reason)| *reason)
}

/// Returns the parameters that are removed from `postgresql.auto.conf`, which would win over ours.
pub(crate) fn overruled(parameter: &str) -> bool {
    owned_reason(parameter).is_some()
}

/// Checks the user's parameters: known shape of the name, not owned, sane values.
///
/// # Errors
/// [`PgError::Refused`] naming the parameter and the reason.
pub fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<(), PgError> {
    for (name, value) in parameters {
        let refuse =
            |reason: &str| PgError::Refused { what: format!("parameter `{name}`"), reason: reason.into() };
        let shaped = name.split('.').all(|part| {
            part.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
                && part.chars().all(|char| char.is_ascii_alphanumeric() || char == '_' || char == '$')
        });
        if !shaped {
            return Err(refuse("it is not the name of a parameter"));
        }
        if let Some(reason) = owned_reason(name) {
            return Err(refuse(reason));
        }
        if value.contains('\0') {
            return Err(refuse("its value has a zero byte"));
        }
        if name.eq_ignore_ascii_case("wal_level") && !matches!(value.as_str(), "replica" | "logical") {
            return Err(refuse("standbys need `replica` or `logical`"));
        }
    }
    Ok(())
}

impl ManagedSettings {
    /// Renders the managed file.
    ///
    /// # Errors
    /// [`PgError::Refused`] when [`check_parameters`] refuses a parameter.
    pub fn render(&self) -> Result<String, PgError> {
        check_parameters(&self.parameters)?;
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut set = |name: &str, value: &str| lines.insert(name.to_ascii_lowercase(), value.to_owned());
        set("wal_level", "replica");
        for (name, value) in DEFAULTS {
            set(name, value);
        }
        for (name, value) in &self.parameters {
            set(name, value);
        }
        for (name, value) in FIXED {
            set(name, value);
        }
        if self.apply_delay_ms > 0 {
            set("recovery_min_apply_delay", &format!("{}ms", self.apply_delay_ms));
        }
        set("wal_retrieve_retry_interval", self.retry_interval());
        if self.keep_all_wal {
            set("wal_keep_size", "1TB");
        }
        if self.hurry {
            set("max_standby_streaming_delay", "0");
            set("max_standby_archive_delay", "0");
        }
        let conninfo = self.primary_conninfo.as_ref().map(ToString::to_string).unwrap_or_default();
        set("primary_conninfo", &conninfo);
        set("primary_slot_name", self.primary_slot_name.as_deref().unwrap_or_default());
        set("synchronous_standby_names", &self.synchronous_standby_names);
        set(POLICY_SETTING, &self.policy.to_string());
        set(VERSION_SETTING, &self.version.to_string());
        set("restore_command", &self.restore_command);
        self.raise_to_minimums(&mut lines);
        let mut text = String::from("# Written by rhone at each change; edit rhone's settings instead.\n");
        for (name, value) in &lines {
            // Writing to a String cannot fail.
            writeln!(text, "{name} = {}", quote_setting(value)).ok();
        }
        Ok(text)
    }

    /// Returns how long replay sleeps between two looks for WAL. Each look is a line in the server's log,
    /// so a standby that has nobody to ask looks seldom; a signal wakes it in any case.
    pub(crate) const fn retry_interval(&self) -> &'static str {
        match (self.hurry, &self.primary_conninfo) {
            (true, _) => HURRIED_INTERVAL,
            (false, Some(_)) => "100ms",
            (false, None) => "1s",
        }
    }

    /// Raises what a standby may not have lower than its primary had.
    fn raise_to_minimums(&self, lines: &mut BTreeMap<String, String>) {
        let floor = &self.minimums;
        for (name, least) in [
            ("max_connections", floor.max_connections),
            ("max_worker_processes", floor.max_worker_processes),
            ("max_wal_senders", floor.max_wal_senders),
            ("max_prepared_transactions", floor.max_prepared_transactions),
            ("max_locks_per_transaction", floor.max_locks_per_transaction),
        ] {
            let ours: u32 = lines.get(name).and_then(|value| value.trim().parse().ok()).unwrap_or(0);
            if ours < least {
                lines.insert(name.to_owned(), least.to_string());
            }
        }
    }
}

/// Quotes a value for a configuration file (`GUC_scanstr` in `guc-file.l`).
pub fn quote_setting(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for char in value.chars() {
        match char {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// Renders `synchronous_standby_names` as a quorum of `count` of the named standbys.
///
/// Without names it waits for one that does not exist: an empty value would let a commit be
/// acknowledged alone.
pub fn synchronous_standby_names(count: usize, names: impl IntoIterator<Item: AsRef<str>>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| quote_identifier(name.as_ref())).collect();
    if quoted.is_empty() {
        return format!("ANY 1 ({})", quote_identifier("__none__"));
    }
    format!("ANY {} ({})", count.max(1), quoted.join(", "))
}

/// Quotes an identifier for SQL and for `synchronous_standby_names`.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns `postgresql.auto.conf` without the parameters that Rhone owns; `None` when none is there.
pub fn strip_auto_conf(text: &str) -> Option<String> {
    let owned = |line: &&str| {
        let name = line.split(['=', ' ', '\t']).find(|part| !part.is_empty()).unwrap_or_default();
        !overruled(name)
    };
    let kept: Vec<&str> = text.lines().filter(owned).collect();
    (kept.len() != text.lines().count()).then(|| kept.join("\n") + "\n")
}

/// Returns `postgresql.conf` with the include of the managed file as its last line; `None` when it is so.
pub fn with_include(text: &str) -> Option<String> {
    let include = format!("include '{MANAGED_FILE}'");
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with('#'));
    if last == Some(include.as_str()) {
        return None;
    }
    let others: Vec<&str> = text.lines().filter(|line| line.trim() != include).collect();
    let body = others.join("\n");
    Some(format!("{}\n{include}\n", body.trim_end()).trim_start_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn renders_defaults_the_users_parameters_and_the_upstream() {
        let settings = ManagedSettings {
            parameters: [("work_mem", "8MB"), ("Max_Connections", "50"), ("log_line_prefix", "%m 'x' \\ ")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            synchronous_standby_names: synchronous_standby_names(1, ["pg-2", "a\"b"]),
            policy: 17,
            minimums: StandbyMinimums { max_connections: 120, ..StandbyMinimums::default() },
            ..ManagedSettings::default()
        };
        let text = settings.render().unwrap();
        let line = |name: &str| {
            text.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap().to_owned()
        };
        assert_eq!(line("max_connections"), "max_connections = '120'"); // the primary had more
        assert_eq!(line("log_line_prefix"), "log_line_prefix = '%m ''x'' \\\\ '");
        assert_eq!(line("primary_conninfo"), "primary_conninfo = ''");
        assert_eq!(line("wal_retrieve_retry_interval"), "wal_retrieve_retry_interval = '1s'");
        assert_eq!(
            line("synchronous_standby_names"),
            "synchronous_standby_names = 'ANY 1 (\"pg-2\", \"a\"\"b\")'"
        );
        assert_eq!(line("restart_after_crash"), "restart_after_crash = 'off'");
        assert_eq!(line("wal_keep_size"), "wal_keep_size = '64MB'");
        assert_eq!(policy_of(&text), Some(17));
        assert_eq!(policy_of("port = 1\n"), None);
        assert_eq!(
            (version_of(&text), value_in(&text, "log_line_prefix")),
            (Some(0), Some("%m 'x' \\ ".to_owned()))
        );
    }

    #[test]
    fn keeps_all_wal_whatever_the_user_set() {
        let parameters = BTreeMap::from([("wal_keep_size".to_owned(), "0".to_owned())]);
        let settings = ManagedSettings { parameters, keep_all_wal: true, ..ManagedSettings::default() };
        assert!(settings.render().unwrap().contains("wal_keep_size = '1TB'\n"));
    }

    #[test]
    fn refuses_parameters_that_are_not_the_users() {
        let check = |name: &str, value: &str, expected: &str| {
            let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let text = check_parameters(&parameters).map_or_else(|error| error.to_string(), |()| "ok".into());
            assert_eq!(text, expected);
        };
        check("work_mem", "4MB", "ok");
        check("pg_stat_statements.max", "4", "ok");
        check("fsync", "off", "parameter `fsync`: without it acknowledged commits are lost");
        check("FSYNC", "off", "parameter `FSYNC`: without it acknowledged commits are lost");
        check("wal_level", "minimal", "parameter `wal_level`: standbys need `replica` or `logical`");
        check("a = 1\nb", "x", "parameter `a = 1\nb`: it is not the name of a parameter");
        check("work_mem", "\0", "parameter `work_mem`: its value has a zero byte");
    }

    #[test]
    fn never_waits_for_nobody() {
        assert_eq!(synchronous_standby_names(2, [""; 0]), "ANY 1 (\"__none__\")");
        assert_eq!(synchronous_standby_names(0, ["a"]), "ANY 1 (\"a\")");
    }

    #[test]
    fn keeps_the_include_last() {
        assert_eq!(with_include("port = 1\n").as_deref(), Some("port = 1\ninclude 'rhone.conf'\n"));
        assert_eq!(with_include("port = 1\ninclude 'rhone.conf'\n# end\n"), None);
        let moved = with_include("include 'rhone.conf'\nport = 1\n");
        assert_eq!(moved.as_deref(), Some("port = 1\ninclude 'rhone.conf'\n"));
        assert_eq!(with_include("").as_deref(), Some("include 'rhone.conf'\n"));
    }

    #[test]
    fn strips_what_would_win_over_ours() {
        let text = "# Do not edit\nwork_mem = '4MB'\nprimary_conninfo = 'x'\nRestart_After_Crash='on'\n";
        expect![[r"
            # Do not edit
            work_mem = '4MB'
        "]]
        .assert_eq(&strip_auto_conf(text).unwrap());
        assert_eq!(strip_auto_conf("work_mem = '4MB'\n"), None);
    }
}
