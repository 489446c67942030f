//! From entries to a checked [`Config`]: every rule about values is here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhone_consensus::command::MemberKind;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_pgctl::settings::check_parameters;

use super::address::Address;
use super::file::Entries;
use super::nearest::nearest;
use super::tags::tags;
use super::timing::{self, PRESETS, Timing};
use super::{Bootstrap, Config, Database, DeadMan, Node, Postgres, Tls, keys, units};
use crate::tls::TlsFiles;

/// Builds the configuration; `None` when something indispensable is missing. Problems are in
/// `entries`, also when there is a result.
pub(super) fn config(path: &Path, entries: &mut Entries) -> Option<Config> {
    let cluster = name(entries, "cluster");
    if cluster.is_none() {
        entries.missing("cluster", "\"main\"");
    }
    let kind = kind(entries);
    let node = node(entries);
    let mut spare = None;
    let postgres = match kind {
        MemberKind::Data => postgres(entries).map(Some),
        MemberKind::Witness => {
            spare = spare_postgres(entries);
            Some(None)
        }
    };
    let proxy = super::connecting::proxy(entries);
    let pooler = super::connecting::pooler(entries, node.as_ref());
    let tls = tls(entries);
    let bootstrap = bootstrap(entries);
    let hooks = super::hooks::hooks(entries);
    let config = Config {
        path: path.to_owned(),
        spare,
        cluster: cluster?,
        node: node?,
        postgres: postgres?,
        proxy,
        pooler,
        tls,
        bootstrap,
        hooks,
    };
    refuse_nobody(entries, &config);
    refuse_cleartext(entries, &config);
    refuse_equal_ports(entries, &config);
    refuse_too_many_standbys(entries, &config);
    Some(config)
}

/// Each of the founding members has Postgres or votes only: there cannot be more standbys than others.
fn refuse_too_many_standbys(entries: &mut Entries, config: &Config) {
    let members = config.node.peers.len();
    let standbys = u32::try_from(members.saturating_sub(1)).unwrap_or(u32::MAX);
    if let Some(required) = config.bootstrap.sync_required.filter(|required| *required > standbys) {
        let hint = "leave it out: half the data members, rounded down, lets any one of them fail";
        let message =
            format!("sync-required = {required} asks for more standbys than {members} members can have");
        entries.complain("bootstrap.sync-required", message, Some(hint));
    }
}

/// Takes a name: what fits in a slot's name, an application name and a DNS label.
fn name(entries: &mut Entries, key: &str) -> Option<String> {
    entries.parsed(key, |text| {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= 63 && text.chars().all(good) {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "\"{text}\" is not a name; use up to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
            ))
        }
    })
}

pub(super) fn address(entries: &mut Entries, key: &str) -> Option<Address> {
    entries.parsed(key, str::parse)
}

pub(super) fn path(entries: &mut Entries, key: &str) -> Option<PathBuf> {
    entries.parsed(key, |text| {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err(format!("\"{text}\" is not an absolute path")) }
    })
}

/// Takes one of a few words.
pub(super) fn word(entries: &mut Entries, key: &str, words: &[&'static str]) -> Option<&'static str> {
    entries.parsed(key, |text| {
        words.iter().find(|word| **word == text).copied().ok_or_else(|| {
            let near = nearest(text, words.iter().copied());
            let near = near.map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"));
            format!("\"{text}\" is none of {}{near}", words.join(", "))
        })
    })
}

/// Says what the member is for; data when it is not said.
fn kind(entries: &mut Entries) -> MemberKind {
    match word(entries, "node.kind", &["data", "witness"]) {
        Some("witness") => MemberKind::Witness,
        Some(_) | None => MemberKind::Data,
    }
}

/// A witness never runs Postgres: what is said of one was meant for another member. Where a variable makes this
/// member a witness the file is every member's, and what it says of Postgres is the others': returned, and
/// counts for nothing here.
fn spare_postgres(entries: &mut Entries) -> Option<&'static str> {
    let key =
        keys::KEYS.into_iter().filter(|key| key.starts_with("postgres.")).find(|key| entries.is_set(key))?;
    if entries.is_from_environment("node.kind") {
        return Some(key);
    }
    let hint = "remove [postgres], or write kind = \"data\" in [node]; where one file serves all members, leave \
                `kind` to RHONE_NODE_KIND";
    let message = format!("`{key}` means nothing here: a witness never runs Postgres");
    entries.complain(key, message, Some(hint));
    None
}

fn node(entries: &mut Entries) -> Option<Node> {
    let name = name(entries, "node.name");
    if name.is_none() {
        entries.missing("node.name", "\"pg-1\"");
    }
    let state_dir = path(entries, "node.state-dir");
    let listen = address(entries, "node.listen");
    let advertise = address(entries, "node.advertise");
    let http = address(entries, "node.http");
    let peers = peers(entries);
    let tags = tags(entries, name.as_deref());
    let listen = listen.or_else(|| default_address(entries, "node.listen", 7400));
    let advertise = reachable(entries, "node.advertise", advertise, listen.as_ref(), 7400);
    let http = http.or_else(|| default_address(entries, "node.http", 8008));
    let state_dir = state_dir.or_else(|| default_path(entries, "node.state-dir", "/var/lib/rhone"));
    let recorder = recorder(entries, state_dir.as_deref());
    Some(Node {
        name: name?,
        state_dir: state_dir?,
        listen: listen?,
        advertise: advertise?,
        http: http?,
        peers: peers?,
        tags,
        recorder,
    })
}

/// Above the default lease, and long enough for a guardian without real-time priority on a busy machine.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(5);

/// Whole seconds, as the kernel counts them; most devices take no more than 15 or 60.
fn watchdog_timeout(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    if time.subsec_nanos() == 0 && (2..=60).contains(&time.as_secs()) {
        Ok(time)
    } else {
        Err(format!("\"{text}\" is not in whole seconds from 2s to 60s"))
    }
}

/// A file, or `off`; by default beside the Raft store.
fn recorder(entries: &mut Entries, state_dir: Option<&Path>) -> Option<PathBuf> {
    let given = entries.parsed("node.recorder", |text| match text {
        "off" => Ok(None),
        text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
        _ => Err(format!("\"{text}\" is neither \"off\" nor an absolute path")),
    });
    given.unwrap_or_else(|| state_dir.map(|dir| dir.join("decisions.jsonl")))
}

fn peers(entries: &mut Entries) -> Option<Vec<Address>> {
    let texts = entries.list("node.peers");
    if texts.as_ref().is_none_or(Vec::is_empty) {
        let example = "[\"10.0.0.11:7400\", \"10.0.0.12:7400\", \"10.0.0.13:7400\"]";
        if texts.is_some() {
            entries.complain(
                "node.peers",
                "`node.peers` is empty",
                Some("name every founding member, this one too"),
            );
        }
        entries.missing("node.peers", example);
        return None;
    }
    let mut peers: Vec<Address> = Vec::new();
    for text in texts.unwrap_or_default() {
        match text.parse::<Address>() {
            Ok(peer) if peers.contains(&peer) => {
                let hint = "name each founding member once";
                entries.complain("node.peers", format!("`node.peers` names {peer} twice"), Some(hint));
            }
            Ok(peer) if peer.is_wildcard() => {
                let hint = "write the address that the other machines use for that one";
                let message = format!("`node.peers`: {peer} cannot be reached");
                entries.complain("node.peers", message, Some(hint));
            }
            Ok(peer) => peers.push(peer),
            Err(why) => entries.complain("node.peers", format!("`node.peers`: {why}"), None),
        }
    }
    Some(peers)
}

/// A default for a key that was not set; none when it was set badly.
pub(super) fn default_address(entries: &Entries, key: &str, port: u16) -> Option<Address> {
    (!entries.is_set(key)).then(|| Address { host: "127.0.0.1".to_owned(), port })
}

fn default_path(entries: &Entries, key: &str, path: &str) -> Option<PathBuf> {
    (!entries.is_set(key)).then(|| PathBuf::from(path))
}

/// Checks an address that others use: by default where we listen, unless that is everywhere.
fn reachable(
    entries: &mut Entries,
    key: &str,
    given: Option<Address>,
    listen: Option<&Address>,
    port: u16,
) -> Option<Address> {
    match (given, listen) {
        (Some(address), _) if address.is_wildcard() => {
            let hint = "write the address that the other machines use for this one";
            entries.complain(key, format!("`{key}`: {address} cannot be reached by others"), Some(hint));
            None
        }
        (Some(address), _) => Some(address),
        (None, Some(listen)) if !listen.is_wildcard() => (!entries.is_set(key)).then(|| listen.clone()),
        // `listen` itself was set badly, which is said already.
        (None, None) => None,
        (None, Some(_)) => {
            entries.missing(key, &format!("\"10.0.0.11:{port}\""));
            None
        }
    }
}

fn postgres(entries: &mut Entries) -> Option<Postgres> {
    let bin_dir = path(entries, "postgres.bin-dir");
    let data_dir = path(entries, "postgres.data-dir");
    if data_dir.is_none() {
        entries.missing("postgres.data-dir", "\"/var/lib/postgresql/15/main\"");
    }
    let listen = address(entries, "postgres.listen");
    let advertise = address(entries, "postgres.advertise");
    let listen = listen.or_else(|| default_address(entries, "postgres.listen", 5432));
    let advertise = reachable(entries, "postgres.advertise", advertise, listen.as_ref(), 5432);
    let socket_dir = path(entries, "postgres.socket-dir");
    let socket_dir =
        socket_dir.or_else(|| default_path(entries, "postgres.socket-dir", "/var/run/postgresql"));
    let superuser = entries.text("postgres.superuser").unwrap_or_else(|| "postgres".to_owned());
    let user = entries.text("postgres.user");
    let replication_password_file = path(entries, "postgres.replication-password-file");
    let priority = entries.integer("postgres.priority", 0..1001).unwrap_or(50);
    let watchdog = path(entries, "postgres.watchdog");
    let watchdog_timeout = entries.parsed("postgres.watchdog-timeout", watchdog_timeout);
    let watchdog_timeout = watchdog_timeout.unwrap_or(WATCHDOG_TIMEOUT);
    let dead_man = entries.parsed("postgres.dead-man", |text| match text {
        "off" => Ok(DeadMan::Off),
        "nftables" => Ok(DeadMan::Nftables),
        _ => Err(format!("\"{text}\" is neither \"off\" nor \"nftables\"")),
    });
    Some(Postgres {
        bin_dir,
        data_dir: data_dir?,
        listen: listen?,
        advertise: advertise?,
        socket_dir: socket_dir?,
        superuser,
        user,
        replication_password_file,
        priority,
        watchdog,
        watchdog_timeout,
        dead_man: dead_man.unwrap_or_default(),
    })
}

fn tls(entries: &mut Entries) -> Tls {
    let insecure = entries.boolean("tls.insecure").unwrap_or(false);
    let [ca, cert, key] = TLS_KEYS.map(|name| path(entries, name));
    let set = TLS_KEYS.into_iter().find(|name| entries.is_set(name));
    if let Some(name) = set.filter(|_| insecure) {
        let hint = "remove `insecure`, or the files of [tls]";
        entries.complain(
            name,
            format!("`{name}` and `tls.insecure = true` contradict each other"),
            Some(hint),
        );
    }
    match (ca, cert, key) {
        (Some(ca), Some(cert), Some(key)) => Tls::Mutual(TlsFiles { ca, cert, key }),
        (None, None, None) if insecure => Tls::Insecure,
        (None, None, None) => Tls::LoopbackOnly,
        (_, _, _) => {
            for name in TLS_KEYS {
                if entries.is_set(name) {
                    continue;
                }
                let file = name
                    .replace("tls.", "/etc/rhone/")
                    .replace("cert", "pg-1.crt")
                    .replace("key", "pg-1.key");
                entries.missing(name, &format!("\"{}\"", file.replace("/ca", "/ca.crt")));
            }
            Tls::LoopbackOnly
        }
    }
}

/// The files of `[tls]`: all of them, or none.
const TLS_KEYS: [&str; 3] = ["tls.ca", "tls.cert", "tls.key"];

/// Without TLS or `insecure = true`, nothing that members say to each other may leave the machine.
fn refuse_cleartext(entries: &mut Entries, config: &Config) {
    if config.tls != Tls::LoopbackOnly || TLS_KEYS.into_iter().any(|key| entries.is_set(key)) {
        return;
    }
    let far = |address: &Address| !address.is_loopback();
    let reaches =
        [("node.listen", far(&config.node.listen)), ("node.advertise", far(&config.node.advertise))];
    let by_peers = ("node.peers", config.node.peers.iter().any(far));
    if let Some((key, _)) =
        reaches.into_iter().chain([by_peers]).find(|(key, far)| *far && entries.is_set(key))
    {
        let hint = "`rhone certs init` and `rhone certs issue` make what [tls] needs (ca, cert, key); \
                    only on a network that you trust, write `insecure = true` there instead";
        entries.complain(key, format!("`{key}` goes beyond loopback without TLS"), Some(hint));
    }
}

/// A cluster of this member alone needs it as primary.
fn refuse_nobody(entries: &mut Entries, config: &Config) {
    let priority = config.postgres.as_ref().map(|postgres| postgres.priority);
    let tags = &config.node.tags;
    if config.node.peers.len() == 1 && (priority == Some(0) || tags.no_failover || tags.delay_ms > 0) {
        let hint =
            "name the other founding members too, or remove priority = 0 and the tags no-failover and delay";
        entries.complain("node.peers", "this member would be alone, and could not be primary", Some(hint));
    }
}

/// Two listeners of one member cannot share an address.
fn refuse_equal_ports(entries: &mut Entries, config: &Config) {
    let listeners = [("node.listen", &config.node.listen), ("node.http", &config.node.http)];
    let listeners: Vec<(&str, &Address)> = listeners
        .into_iter()
        .chain(config.postgres.as_ref().map(|postgres| ("postgres.listen", &postgres.listen)))
        .chain(super::connecting::listeners(config))
        .collect();
    for (n, (key, address)) in listeners.iter().enumerate() {
        for (other, earlier) in listeners.iter().take(n) {
            let same_host = address.host == earlier.host || address.is_wildcard() || earlier.is_wildcard();
            if address.port == earlier.port && same_host {
                entries.complain(
                    key,
                    format!("`{key}` and `{other}` both listen on port {}", address.port),
                    Some("give one of them another port"),
                );
            }
        }
    }
}

fn bootstrap(entries: &mut Entries) -> Bootstrap {
    let sync = match word(entries, "bootstrap.sync", &["off", "quorum", "strict"]) {
        Some("off") => Some(SyncMode::Off),
        Some("quorum") => Some(SyncMode::Quorum),
        Some("strict") => Some(SyncMode::Strict),
        Some(_) | None => None,
    };
    let required = entries.integer("bootstrap.sync-required", 1..13);
    if required.is_some() && sync == Some(SyncMode::Off) {
        let hint = "remove it, or write sync = \"quorum\"";
        let message = "`bootstrap.sync-required` means nothing with sync = \"off\"";
        entries.complain("bootstrap.sync-required", message, Some(hint));
    }
    let max_lag = entries.size("bootstrap.max-lag-on-failover");
    let dead = entries.parsed("bootstrap.dead-member-timeout", crate::settings::dead_member_timeout);
    let postgres = parameters(entries);
    let weak = postgres.iter().find(|(name, value)| {
        name.eq_ignore_ascii_case("synchronous_commit") && !crate::settings::waits_for_flush(value)
    });
    if let Some((name, value)) = weak.filter(|_| sync != Some(SyncMode::Off)) {
        let hint =
            "remove it, or write sync = \"off\"; a session that may lose its commits can set it for itself";
        let message = format!("`{name} = {value}` would acknowledge commits that no standby has flushed");
        entries.complain(&format!("bootstrap.postgres.{name}"), message, Some(hint));
    }
    Bootstrap {
        timing: timing(entries),
        max_lag_on_failover: max_lag.unwrap_or(1 << 20),
        dead_member_timeout_ms: dead.unwrap_or(Settings::default().dead_member_timeout_ms),
        sync,
        sync_required: required,
        pg_hba: pg_hba(entries),
        pg_ident: pg_ident(entries),
        database: database(entries),
        postgres,
    }
}

/// A line that Postgres does not take would keep the first primary from starting.
fn pg_hba(entries: &mut Entries) -> Vec<String> {
    let lines = entries.list("bootstrap.pg-hba").unwrap_or_default();
    for line in &lines {
        if let Some(why) = rhone_pgctl::hba_line::trouble(line) {
            let hint = "as in pg_hba.conf: \"host all all 10.0.0.0/24 scram-sha-256\"";
            entries.complain("bootstrap.pg-hba", format!("the line `{line}` {why}"), Some(hint));
        }
    }
    lines
}

/// With a line that Postgres does not take there are no maps at all, and nobody is let in by one.
fn pg_ident(entries: &mut Entries) -> Vec<String> {
    let lines = entries.list("bootstrap.pg-ident").unwrap_or_default();
    for line in &lines {
        if let Some(why) = rhone_pgctl::ident_line::trouble(line) {
            let hint = "as in pg_ident.conf: \"office ann app\"; what rhone cannot check stays in that file";
            entries.complain("bootstrap.pg-ident", format!("the line `{line}` {why}"), Some(hint));
        }
    }
    lines
}

fn timing(entries: &mut Entries) -> Timing {
    let named = word(entries, "bootstrap.timing", &PRESETS);
    let preset = word(entries, "bootstrap.timing.preset", &PRESETS).or(named);
    let mut timing = preset.and_then(timing::preset).unwrap_or_default();
    let mut at = "bootstrap.timing".to_owned();
    for name in timing::SINGLE {
        let key = format!("bootstrap.timing.{name}");
        let set = |text: &str| {
            let mut changed = timing;
            timing::set_single(&mut changed, name, text).map(|()| changed)
        };
        if let Some(changed) = entries.parsed(&key, set) {
            timing = changed;
            at = key;
        }
    }
    for contradiction in timing::contradictions(&timing) {
        entries.complain(
            &at,
            format!("the timings contradict each other: {contradiction}"),
            Some(timing::HINT),
        );
    }
    timing
}

fn database(entries: &mut Entries) -> Option<Database> {
    let database = name(entries, "bootstrap.database");
    let owner = name(entries, "bootstrap.database-owner");
    let password_file = path(entries, "bootstrap.database-password-file");
    let Some(name) = database else {
        for key in ["bootstrap.database-owner", "bootstrap.database-password-file"] {
            if entries.is_set(key) && !entries.is_set("bootstrap.database") {
                let message = format!("`{key}` needs `bootstrap.database`");
                entries.complain(key, message, Some("write database = \"app\" in [bootstrap]"));
            }
        }
        return None;
    };
    let owner = owner.unwrap_or_else(|| name.clone());
    Some(Database { name, owner, password_file })
}

fn parameters(entries: &mut Entries) -> BTreeMap<String, String> {
    let parameters = entries.free("bootstrap.postgres.");
    for (name, value) in &parameters {
        let key = format!("bootstrap.postgres.{name}");
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !name.chars().all(good) {
            let hint = "a name as in postgresql.conf: work_mem = \"16MB\"";
            let message = format!("\"{name}\" is not the name of a Postgres parameter");
            entries.complain(&key, message, Some(hint));
        } else if keys::MANAGED.contains(&name.to_lowercase().as_str()) {
            let hint = "remove it; [postgres] says where this member listens";
            entries.complain(&key, format!("Rhone sets `{name}` itself"), Some(hint));
        } else if name.eq_ignore_ascii_case("fsync") && value.eq_ignore_ascii_case("off") {
            let hint = "remove it; Rhone counts on what Postgres says it has flushed";
            entries.complain(&key, "`fsync = off` would lose acknowledged commits", Some(hint));
        } else if let Err(error) = check_parameters(&BTreeMap::from([(name.clone(), value.clone())])) {
            entries.complain(&key, error.to_string(), Some("remove it"));
        }
    }
    parameters
}
