//! ✦ Key by key: what Patroni's settings are here.

use std::collections::BTreeMap;

use rhone_pgctl::settings::{check_parameters, owned_reason};
use rhone_pgctl::{hba_line, ident_line};
use yaml_rust2::Yaml;

use super::{Choices, Note, Translation, Verdict, render};

/// Names that a newcomer must not find: founding waits until all peers answer, so that a file that nobody
/// completed founds nothing.
const UNKNOWN_PEERS: [&str; 2] = ["change-me-2:7400", "change-me-3:7400"];

/// Where gRPC listens.
const PORT: u16 = 7400;

/// The role that rhone streams as is its own: Patroni's lines for replication open nothing that it needs.
const REPLICATION: &str = "replication";

/// The lines of the new file, by table and key, each as TOML.
pub(super) type Lines = BTreeMap<&'static str, BTreeMap<String, String>>;

/// What was taken so far.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) lines: Lines,
    notes: Vec<Note>,
    parameters: BTreeMap<String, (u8, String)>,
    hba: Option<(usize, Vec<String>)>,
    ident: Option<(usize, Vec<String>)>,
    sync: Option<Sync>,
    strict: bool,
    host: Option<String>,
    no_failover: bool,
    required: Option<u32>,
    priority: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Off,
    On,
}

/// Returns a scalar as text.
pub(super) fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(value) => Some(value.to_string()),
        Yaml::Null => Some(String::new()),
        Yaml::Array(_) | Yaml::Hash(_) | Yaml::Alias(_) | Yaml::BadValue => None,
    }
}

fn flag(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1")
}

/// Why a key means nothing here.
const NO_MEANING: &[(&str, &str)] = &[
    ("namespace", "there is no store outside that several clusters would share"),
    ("etcd", "raft is built in"),
    ("etcd3", "raft is built in"),
    ("consul", "raft is built in"),
    ("zookeeper", "raft is built in"),
    ("exhibitor", "raft is built in"),
    ("kubernetes", "raft is built in; deploy/kubernetes has what a cluster in Kubernetes needs"),
    ("raft", "raft is built in, and its members are node.peers"),
    ("log", "rhone logs to stderr; RHONE_LOG filters"),
    ("ctl", "`rhone` uses certificates of its own: `rhone certs`"),
    ("watchdog", "the guardian, a process of its own, fences where the lease ends"),
    ("restapi", "nothing over HTTP changes anything, and it is plain; changes are gRPC with TLS"),
    ("bootstrap.dcs.loop_wait", "every change is acted on as it is heard; `bootstrap.timing` says how fast"),
    ("bootstrap.dcs.retry_timeout", "as `ttl`"),
    ("bootstrap.dcs.maximum_lag_on_syncnode", "a standby that lags is left out by itself"),
    ("bootstrap.dcs.max_timelines_history", "the last 200 changes of primary are kept"),
    (
        "bootstrap.dcs.primary_start_timeout",
        "a primary that died is replaced or restarted, whichever loses nothing",
    ),
    (
        "bootstrap.dcs.master_start_timeout",
        "a primary that died is replaced or restarted, whichever loses nothing",
    ),
    ("bootstrap.dcs.primary_stop_timeout", "a fence kills at once"),
    ("bootstrap.dcs.master_stop_timeout", "a fence kills at once"),
    ("bootstrap.dcs.failsafe_mode", "the lease comes from the voters themselves"),
    ("bootstrap.dcs.check_timeline", "timelines are always checked, against the ledger in raft"),
    ("bootstrap.dcs.postgresql.use_pg_rewind", "always: rewind first, then a new copy"),
    ("bootstrap.dcs.postgresql.use_slots", "always: a slot for each member, bounded by bytes"),
    ("bootstrap.initdb", "the data directory that is there is taken over; a new one has checksums"),
    ("postgresql.use_pg_rewind", "always: rewind first, then a new copy"),
    ("postgresql.use_slots", "always: a slot for each member, bounded by bytes"),
    ("postgresql.use_unix_socket", "always"),
    ("postgresql.use_unix_socket_repl", "always"),
    (
        "postgresql.remove_data_directory_on_rewind_failure",
        "a copy is made beside the data, which goes once it streams",
    ),
    (
        "postgresql.remove_data_directory_on_diverged_timelines",
        "a copy is made beside the data, which goes once it streams",
    ),
    ("postgresql.pgpass", "rhone keeps the replication password itself"),
    ("postgresql.pg_ctl_timeout", "each step has a limit of its own"),
    (
        "postgresql.authentication.replication",
        "rhone makes a role of its own for streaming, with a password that it draws",
    ),
    (
        "postgresql.authentication.rewind",
        "rhone makes a role of its own for rewinding, with a password that it draws",
    ),
    ("postgresql.authentication.superuser.password", "the superuser connects over the Unix socket only"),
    ("postgresql.authentication.superuser", "the superuser connects over the Unix socket only"),
    ("postgresql.basebackup", "copies are made by rhone; they share the line with the standbys"),
];

/// Parameters that Postgres 15 and newer do not know: it does not start with them.
const GONE: &[(&str, &str)] = &[
    ("wal_keep_segments", "it is wal_keep_size since Postgres 13; rhone's slots keep what members need"),
    ("checkpoint_segments", "it is max_wal_size since Postgres 9.5"),
    ("vacuum_cleanup_index_scale_factor", "Postgres knows it no more since 14"),
    ("operator_precedence_warning", "Postgres knows it no more since 14"),
    ("stats_temp_directory", "Postgres knows it no more since 15"),
];

/// Programs of the operator's: Patroni's key and ours.
const HOOKS: &[(&str, &str)] = &[
    ("postgresql.callbacks.on_start", "on-start"),
    ("postgresql.callbacks.on_stop", "on-stop"),
    ("postgresql.callbacks.on_restart", "on-restart"),
    ("postgresql.callbacks.on_reload", "on-reload"),
    ("postgresql.callbacks.on_role_change", "on-role-change"),
    ("postgresql.pre_promote", "pre-promote"),
    ("postgresql.before_stop", "before-stop"),
];

/// What a person has to see to.
const DECIDE: &[(&str, &str)] = &[
    ("bootstrap.dcs.standby_cluster", "following a foreign primary is not there in this version"),
    (
        "bootstrap.dcs.slots",
        "slots of your own are not kept over a failover in this version: make them on the primary",
    ),
    (
        "bootstrap.dcs.ignore_slots",
        "rhone drops only slots that it made itself: check that no name begins with `rhone_`",
    ),
    ("slots", "slots of your own are not kept over a failover in this version: make them on the primary"),
    ("bootstrap.users", "make these roles by SQL; no password is taken over"),
    (
        "bootstrap.method",
        "a cluster is founded from the data that is there, or by initdb: restore a backup first",
    ),
    ("bootstrap.post_bootstrap", "run it by hand on the primary, once the cluster is founded"),
    ("bootstrap.post_init", "run it by hand on the primary, once the cluster is founded"),
    ("postgresql.custom_conf", "put its parameters into [bootstrap.postgres]"),
    (
        "postgresql.config_dir",
        "a server of rhone's reads the data directory: bring what is in this one there, postgresql.base.conf too",
    ),
    (
        "postgresql.create_replica_methods",
        "standbys are copied with pg_basebackup; a method of your own is not run",
    ),
    (
        "postgresql.create_replica_method",
        "standbys are copied with pg_basebackup; a method of your own is not run",
    ),
    ("postgresql.recovery_conf", "members recover from each other; a restore_command is not used"),
    (
        "bootstrap.dcs.postgresql.recovery_conf",
        "members recover from each other; a restore_command is not used",
    ),
    (
        "postgresql.proxy_address",
        "`rhone dsn` names the members; [proxy] opens ports that lead to the primary",
    ),
    ("citus", "Citus is not known here"),
];

/// Finds the rule for a key or for the table that it is in, the longest that fits.
fn rule(rules: &[(&'static str, &'static str)], key: &str) -> Option<(usize, &'static str)> {
    let fits = |name: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    rules.iter().filter(|(name, _)| fits(name)).map(|(name, why)| (name.len(), *why)).max()
}

/// Splits `HOST:PORT`; `*` is every interface.
fn address(text: &str) -> Option<(String, u16)> {
    let (hosts, port) = text.rsplit_once(':')?;
    let host = hosts.split(',').next().unwrap_or_default().trim();
    let host = if host == "*" || host.is_empty() { "0.0.0.0" } else { host };
    Some((host.to_owned(), port.trim().parse().ok()?))
}

impl Rules {
    fn note(&mut self, key: &str, verdict: Verdict, what: impl Into<String>) {
        self.notes.push(Note { key: key.to_owned(), verdict, what: what.into() });
    }

    /// Puts a line into the new file and says so.
    fn put(&mut self, from: &str, table: &'static str, key: &str, value: String) {
        let shown = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
        self.note(from, Verdict::Translated, format!("{shown} = {value}"));
        self.lines.entry(table).or_default().insert(key.to_owned(), value);
    }

    fn text(&mut self, from: &str, table: &'static str, key: &str, value: &str) {
        self.put(from, table, key, render::quoted(value));
    }

    /// Takes a name; what cannot be in one here is left out.
    fn name(&mut self, from: &str, table: &'static str, key: &str, text: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = text.chars().map(|c| if good(c) { c } else { '-' }).take(63).collect();
        let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        if name != text {
            self.note(
                from,
                Verdict::Decide,
                "a name has up to 63 letters, digits, `-`, `_` and `.`: it was changed",
            );
        }
        self.text(from, table, key, name);
    }

    /// Takes one key.
    pub(super) fn take(&mut self, key: &str, value: &Yaml) {
        if self.list(key, value) {
            return;
        }
        let Some(text) = scalar(value) else {
            return self.leave(key);
        };
        let text = text.trim();
        match key {
            "scope" => self.name(key, "", "cluster", text),
            "name" => self.name(key, "node", "name", text),
            "restapi.listen" => self.address(key, "node", "http", text),
            "restapi.connect_address" => {
                if self.host.is_none() {
                    self.host = address(text).map(|(host, _)| host);
                }
                self.note(key, Verdict::NoMeaning, "the host of node.advertise, with the port of node.http");
            }
            "postgresql.listen" => self.address(key, "postgres", "listen", text),
            "postgresql.connect_address" => {
                self.host = address(text).map(|(host, _)| host).or(self.host.take());
                self.address(key, "postgres", "advertise", text);
            }
            "postgresql.data_dir" => self.text(key, "postgres", "data-dir", text),
            "postgresql.bin_dir" => self.text(key, "postgres", "bin-dir", text),
            "postgresql.authentication.superuser.username" => self.text(key, "postgres", "superuser", text),
            "bootstrap.dcs.ttl" => {
                let what =
                    "a lease of 1.5 s (timing = \"default\"): \"calm\" rides out 10 s without a network";
                self.note(key, Verdict::NoMeaning, what);
            }
            "bootstrap.dcs.maximum_lag_on_failover" => match text.parse::<u64>() {
                Ok(bytes) => self.text(key, "bootstrap", "max-lag-on-failover", &render::size(bytes)),
                Err(_) => self.note(
                    key,
                    Verdict::Decide,
                    "not a number of bytes: see bootstrap.max-lag-on-failover",
                ),
            },
            "bootstrap.dcs.synchronous_mode" => {
                let on = flag(text) || text.eq_ignore_ascii_case("quorum");
                self.sync = Some(if on { Sync::On } else { Sync::Off });
                self.note(key, Verdict::Translated, "bootstrap.sync");
            }
            "bootstrap.dcs.synchronous_mode_strict" => {
                self.strict = flag(text);
                self.note(key, Verdict::Translated, "bootstrap.sync");
            }
            "bootstrap.dcs.synchronous_node_count" => match text.parse::<u32>() {
                Ok(count) => {
                    self.required = Some(count);
                    self.note(key, Verdict::Translated, "bootstrap.sync-required");
                }
                Err(_) => self.note(key, Verdict::Decide, "not a number: see bootstrap.sync-required"),
            },
            _ => self.grouped(key, text),
        }
    }

    /// Parameters and tags, which have names of their own; all else is left.
    fn grouped(&mut self, key: &str, text: &str) {
        if let Some(name) = key.strip_prefix("bootstrap.dcs.postgresql.parameters.") {
            self.parameter(key, name, text, 0);
        } else if let Some(name) = key.strip_prefix("postgresql.parameters.") {
            self.parameter(key, name, text, 1);
        } else if let Some(name) = key.strip_prefix("tags.") {
            self.tag(key, name, text);
        } else if let Some((_, ours)) = HOOKS.iter().find(|(theirs, _)| *theirs == key) {
            self.hook(key, ours, text);
        } else {
            self.leave(key);
        }
    }

    /// Lists that mean something. Says whether it was one.
    fn list(&mut self, key: &str, value: &Yaml) -> bool {
        if let Some(rank) =
            ["bootstrap.dcs.postgresql.pg_ident", "postgresql.pg_ident"].iter().position(|name| *name == key)
        {
            return self.maps(key, value, rank);
        }
        let rank = match key {
            "bootstrap.pg_hba" => 0,
            "bootstrap.dcs.postgresql.pg_hba" => 1,
            "postgresql.pg_hba" => 2,
            _ => return false,
        };
        let Some(list) = value.as_vec() else { return false };
        let lines: Vec<String> = list.iter().filter_map(scalar).collect();
        if self.hba.as_ref().is_some_and(|(known, _)| *known > rank) {
            self.note(key, Verdict::NoMeaning, "postgresql.pg_hba comes before it");
            return true;
        }
        let mut kept = Vec::new();
        let mut dropped = 0_usize;
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.get(1) == Some(&REPLICATION) {
                dropped += 1;
            } else if let Some(why) = hba_line::trouble(&line) {
                self.note(key, Verdict::Decide, format!("the line `{line}` {why}"));
            } else if words.is_empty() || words.first().is_some_and(|word| word.starts_with('#')) {
            } else {
                kept.push(line);
            }
        }
        if dropped > 0 {
            let what =
                format!("{} for replication: rhone's own lines let its members stream", lines_of(dropped));
            self.note(key, Verdict::NoMeaning, what);
        }
        self.note(key, Verdict::Translated, format!("bootstrap.pg-hba, {}", lines_of(kept.len())));
        self.hba = Some((rank, kept));
        true
    }

    /// Lines of pg_ident.conf.
    fn maps(&mut self, key: &str, value: &Yaml, rank: usize) -> bool {
        let Some(list) = value.as_vec() else { return false };
        if self.ident.as_ref().is_some_and(|(known, _)| *known > rank) {
            self.note(key, Verdict::NoMeaning, "postgresql.pg_ident comes before it");
            return true;
        }
        let mut kept = Vec::new();
        for line in list.iter().filter_map(scalar) {
            match ident_line::trouble(&line) {
                Some(why) => {
                    let what =
                        format!("the line `{line}` {why}: keep it in pg_ident.conf of the data directory");
                    self.note(key, Verdict::Decide, what);
                }
                None if line.trim().is_empty() || line.trim_start().starts_with('#') => {}
                None => kept.push(line),
            }
        }
        self.note(key, Verdict::Translated, format!("bootstrap.pg-ident, {}", lines_of(kept.len())));
        self.ident = Some((rank, kept));
        true
    }

    fn address(&mut self, from: &str, table: &'static str, key: &str, text: &str) {
        match address(text) {
            Some((host, port)) => {
                if text.contains(',') {
                    self.note(
                        from,
                        Verdict::Decide,
                        "one address is listened on, or 0.0.0.0 for all: the first was taken",
                    );
                }
                self.text(from, table, key, &format!("{host}:{port}"));
            }
            None => self.note(from, Verdict::Decide, format!("not HOST:PORT: see {table}.{key}")),
        }
    }

    /// `rank`: what a member's own file says comes before what the cluster says.
    fn parameter(&mut self, from: &str, name: &str, text: &str, rank: u8) {
        if name.eq_ignore_ascii_case("unix_socket_directories") {
            let first = text.split(',').next().unwrap_or_default().trim();
            return self.text(from, "postgres", "socket-dir", first);
        }
        if let Some(why) = owned_reason(name) {
            return self.note(from, Verdict::NoMeaning, why);
        }
        if let Some((_, why)) = GONE.iter().find(|(gone, _)| name.eq_ignore_ascii_case(gone)) {
            return self.note(from, Verdict::Decide, *why);
        }
        if text.to_ascii_lowercase().contains("password") {
            return self.note(
                from,
                Verdict::Decide,
                "its value seems to hold a password, which belongs into a file",
            );
        }
        let text = match text {
            "true" => "on",
            "false" => "off",
            "hot_standby" | "archive" if name.eq_ignore_ascii_case("wal_level") => "replica",
            other => other,
        };
        if let Err(error) = check_parameters(&BTreeMap::from([(name.to_owned(), text.to_owned())])) {
            return self.note(from, Verdict::Decide, error.to_string());
        }
        if self.parameters.get(name).is_some_and(|(known, _)| *known > rank) {
            return self.note(from, Verdict::NoMeaning, "postgresql.parameters comes before it");
        }
        self.parameters.insert(name.to_owned(), (rank, text.to_owned()));
        let shown = if secret(name) { "(as it is)".to_owned() } else { render::quoted(text) };
        self.note(from, Verdict::Translated, format!("bootstrap.postgres.{name} = {shown}"));
    }

    /// Nothing here is a shell's: a command is a program and its arguments.
    fn hook(&mut self, from: &str, key: &str, text: &str) {
        let words: Vec<String> = text.split_whitespace().map(render::quoted).collect();
        if !text.starts_with('/') || text.contains(['\'', '"', '\\', '$', '`', '|', ';', '&']) {
            let what = format!("write it as a list, the program's absolute path first: hooks.{key}");
            return self.note(from, Verdict::Decide, what);
        }
        self.put(from, "hooks", key, format!("[{}]", words.join(", ")));
    }

    fn tag(&mut self, from: &str, name: &str, text: &str) {
        let known = match name {
            "nofailover" => Some("no-failover"),
            "nosync" => Some("no-sync"),
            "noloadbalance" => Some("no-load-balance"),
            "clonefrom" => Some("clone-from"),
            _ => None,
        };
        match (known, name) {
            (Some(known), _) => {
                let on = flag(text);
                if name == "nofailover" {
                    self.no_failover = on;
                }
                if on {
                    self.put(from, "node.tags", known, "true".to_owned());
                } else {
                    self.note(from, Verdict::NoMeaning, format!("{known} is false when it is absent"));
                }
            }
            (None, "replicatefrom") if text.is_empty() => {
                self.note(from, Verdict::NoMeaning, "follows the primary when it is absent");
            }
            (None, "replicatefrom") => self.text(from, "node.tags", "replicate-from", text),
            (None, "failover_priority") => match text.parse() {
                Ok(priority) => {
                    self.priority = Some(priority);
                    self.note(from, Verdict::Translated, "postgres.priority");
                }
                Err(_) => self.note(from, Verdict::Decide, "not a number: see postgres.priority"),
            },
            (None, "nostream") if !flag(text) => {
                self.note(from, Verdict::NoMeaning, "members stream");
            }
            (None, "nostream") => self.note(from, Verdict::Decide, "members always stream"),
            (None, label) => self.text(from, "node.tags", &render::key(label), text),
        }
    }

    fn leave(&mut self, key: &str) {
        match (rule(NO_MEANING, key), rule(DECIDE, key)) {
            (Some((length, why)), other) if other.is_none_or(|(other, _)| other < length) => {
                self.note(key, Verdict::NoMeaning, why);
            }
            (_, Some((_, why))) => self.note(key, Verdict::Decide, why),
            (_, None) => self.note(key, Verdict::Decide, "rhone does not know this key"),
        }
    }

    /// Completes the file, and says what the old one does not have.
    pub(super) fn finish(mut self, choices: &Choices) -> Result<Translation, String> {
        for (table, key, name) in [
            ("", "cluster", "scope"),
            ("node", "name", "name"),
            ("postgres", "data-dir", "postgresql.data_dir"),
        ] {
            if !self.lines.get(table).is_some_and(|lines| lines.contains_key(key)) {
                return Err(format!("it has no `{name}`: it is no configuration of Patroni's"));
            }
        }
        let host =
            self.host.clone().filter(|host| host != "0.0.0.0").unwrap_or_else(|| "127.0.0.1".to_owned());
        self.text("-", "node", "state-dir", "/var/lib/rhone");
        self.text("-", "node", "listen", &format!("0.0.0.0:{PORT}"));
        self.text("-", "node", "advertise", &format!("{host}:{PORT}"));
        self.peers(&host, choices);
        self.tls(choices);
        let sync = match (self.sync, self.strict) {
            (Some(Sync::On), true) => "strict",
            (Some(Sync::On), false) => "quorum",
            (Some(Sync::Off) | None, _) => "off",
        };
        if sync == "off" {
            let what = "commits wait for nobody, as before: sync = \"quorum\" loses nothing, for a round trip per commit";
            self.note("-", Verdict::Decide, what);
        }
        self.text("-", "bootstrap", "sync", sync);
        if let Some(required) = self.required {
            let members =
                if choices.peers.is_empty() { UNKNOWN_PEERS.len() + 1 } else { choices.peers.len() };
            if required == 0 || required as usize >= members {
                let what = format!(
                    "synchronous_node_count = {required} is more than {members} members can have standbys"
                );
                self.note("-", Verdict::Decide, what);
            } else {
                self.lines
                    .entry("bootstrap")
                    .or_default()
                    .insert("sync-required".to_owned(), required.to_string());
            }
        }
        if let Some(priority) = self.priority.filter(|_| !self.no_failover) {
            self.lines
                .entry("postgres")
                .or_default()
                .insert("priority".to_owned(), priority.min(1000).to_string());
        }
        for (ours, found) in [("pg-hba", self.hba.take()), ("pg-ident", self.ident.take())] {
            let Some((_, lines)) = found.filter(|(_, lines)| !lines.is_empty()) else { continue };
            let lines: Vec<String> = lines.iter().map(|line| render::quoted(line)).collect();
            let list = format!("[\n  {},\n]", lines.join(",\n  "));
            self.lines.entry("bootstrap").or_default().insert(ours.to_owned(), list);
        }
        let parameters = std::mem::take(&mut self.parameters);
        for (name, (_, value)) in parameters {
            let line = (render::key(&name), render::quoted(&value));
            self.lines.entry("bootstrap.postgres").or_default().insert(line.0, line.1);
        }
        Ok(Translation { config: render::file(&self.lines), notes: self.notes })
    }

    fn peers(&mut self, host: &str, choices: &Choices) {
        let own = format!("{host}:{PORT}");
        let with_port =
            |peer: &String| if address(peer).is_some() { peer.clone() } else { format!("{peer}:{PORT}") };
        let mut peers: Vec<String> = choices.peers.iter().map(with_port).collect();
        if peers.is_empty() {
            peers = std::iter::once(own.clone()).chain(UNKNOWN_PEERS.map(str::to_owned)).collect();
            let what = "write all founding members into node.peers, the same list on each (`--peers` does): until then nothing is founded";
            self.note("-", Verdict::Decide, what);
        } else if !peers.contains(&own) {
            self.note("-", Verdict::Decide, format!("--peers does not name this member, {own}"));
        }
        let list: Vec<String> = peers.iter().map(|peer| render::quoted(peer)).collect();
        self.put("-", "node", "peers", format!("[{}]", list.join(", ")));
    }

    fn tls(&mut self, choices: &Choices) {
        if choices.insecure {
            return self.put("-", "tls", "insecure", "true".to_owned());
        }
        let name = self.lines.get("node").and_then(|node| node.get("name")).cloned().unwrap_or_default();
        let name = name.trim_matches('"').to_owned();
        self.text("-", "tls", "ca", "/etc/rhone/ca.crt");
        self.text("-", "tls", "cert", &format!("/etc/rhone/{name}.crt"));
        self.text("-", "tls", "key", &format!("/etc/rhone/{name}.key"));
        let what = format!(
            "make certificates: `rhone certs init` once, `rhone certs issue {name} --host ADDRESS` for this member; or `--insecure`"
        );
        self.note("-", Verdict::Decide, what);
    }
}

fn lines_of(count: usize) -> String {
    if count == 1 { "1 line".to_owned() } else { format!("{count} lines") }
}

/// Whether a parameter's value may hold a secret: it is not repeated where it is only talked about.
fn secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["passphrase", "password", "command", "conninfo"].iter().any(|word| name.contains(word))
}
