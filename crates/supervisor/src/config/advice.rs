//! What is allowed in a configuration and is seldom meant: `rhone check` and `rhone run` warn of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rhone_consensus::command::MemberKind;
use rhone_pgctl::user::OsUser;

use super::problem::Problem;
use super::{Config, Tls, keys, units};

/// Parameters that count in another unit than bytes where their value has none, with that unit in bytes.
const MEMORY: [(&str, u64); 12] = [
    ("effective_cache_size", 8192),
    ("maintenance_work_mem", 1024),
    ("max_slot_wal_keep_size", 1 << 20),
    ("max_wal_size", 1 << 20),
    ("min_wal_size", 1 << 20),
    ("shared_buffers", 8192),
    ("temp_buffers", 8192),
    ("temp_file_limit", 1024),
    ("wal_buffers", 8192),
    ("wal_keep_size", 1 << 20),
    ("work_mem", 1024),
    ("autovacuum_work_mem", 1024),
];

fn warning(message: String, hint: String) -> Problem {
    Problem { line: None, variable: None, message, hint: Some(hint) }
}

/// Returns what is sound and probably not meant.
pub fn advice(config: &Config) -> Vec<Problem> {
    let node = &config.node;
    let mut found = Vec::new();
    if let Some(key) = config.spare {
        found.push(warning(
            format!("`{key}` counts for nothing here: RHONE_NODE_KIND makes this member a witness"),
            "that is as it should be where one file serves all members; else unset the variable".to_owned(),
        ));
    }
    if !node.peers.contains(&node.advertise) {
        found.push(warning(
            format!(
                "`node.peers` does not name this member, {}: it can join a cluster, and found none",
                node.advertise
            ),
            format!(
                "a founding member has \"{}\" in its peers, the same list on each; one that joins later needs nothing",
                node.advertise
            ),
        ));
    }
    // Another member of two may be a witness, and that is no better: one of two votes.
    if node.peers.len() == 2 {
        let third = match config.kind() {
            MemberKind::Data => "a witness on any small machine (`kind = \"witness\"`)",
            MemberKind::Witness => "another data member",
        };
        found.push(warning(
            "two founding members: only one of them votes, and where it is lost nobody takes over".to_owned(),
            format!("add a third to `node.peers`: {third}"),
        ));
    }
    for (name, unit) in MEMORY {
        let set = config.bootstrap.postgres.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        let Some((key, value)) = set else { continue };
        let Some(number) = value.trim().parse::<u64>().ok().filter(|number| *number > 0) else { continue };
        let variable = keys::variable(&format!("bootstrap.postgres.{key}"));
        found.push(warning(
            format!(
                "`{key} = {value}` has no unit: to Postgres that is {}",
                units::print_size(number.saturating_mul(unit))
            ),
            format!("write the unit, {key} = \"{value}MB\" ({variable} likewise)"),
        ));
    }
    found
}

/// Says, to root, which secrets the user that runs Postgres could not read: rhone runs as that user unless
/// it is started as root, and root can read anything.
pub fn unreadable_secrets(config: &Config) -> Vec<Problem> {
    let user = config.postgres.as_ref().and_then(|postgres| match &postgres.user {
        Some(name) => OsUser::by_name(name).ok(),
        None => OsUser::owner_of(&postgres.data_dir)
            .ok()
            .filter(|owner| owner.uid != 0)
            .or_else(|| OsUser::by_name("postgres").ok()),
    });
    let Some(user) = user.filter(|_| rustix::process::geteuid().is_root()) else { return Vec::new() };
    let key = match &config.tls {
        Tls::Mutual(files) => Some(("tls.key", files.key.as_path())),
        Tls::LoopbackOnly | Tls::Insecure => None,
    };
    let postgres = config.postgres.as_ref();
    let password = postgres.and_then(|postgres| postgres.replication_password_file.as_deref());
    let owner = config.bootstrap.database.as_ref().and_then(|database| database.password_file.as_deref());
    key.into_iter()
        .chain(password.map(|file| ("postgres.replication-password-file", file)))
        .chain(owner.map(|file| ("bootstrap.database-password-file", file)))
        .filter_map(|(key, file)| unreadable(key, file, &user))
        .collect()
}

fn unreadable(key: &str, file: &Path, user: &OsUser) -> Option<Problem> {
    let meta = std::fs::metadata(file).ok()?;
    if may_read(meta.mode(), (meta.uid(), meta.gid()), user) {
        return None;
    }
    let (name, shown) = (&user.name, file.display());
    let owner = OsUser::by_uid(meta.uid()).name;
    Some(warning(
        format!(
            "`{key}`: {shown} is {owner}'s, mode {:04o}: {name}, who runs Postgres, cannot read it",
            meta.mode() & 0o7777
        ),
        format!(
            "chown {name} {shown}, unless rhone itself runs as root (the systemd unit has it run as postgres)"
        ),
    ))
}

fn may_read(mode: u32, (uid, gid): (u32, u32), user: &OsUser) -> bool {
    if user.uid == 0 {
        return true;
    }
    let bit = if uid == user.uid {
        0o400
    } else if gid == user.gid || user.groups.contains(&gid) {
        0o040
    } else {
        0o004
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str =
        "cluster = \"main\"\n[node]\nname = \"pg-1\"\npeers = PEERS\n[postgres]\ndata-dir = \"/data\"\n";

    #[track_caller]
    fn check(peers: &str, more: &str, expected: &[&str]) {
        let text = format!("{}{more}", SOUND.replace("PEERS", peers));
        let config = Config::parse(Path::new("rhone.toml"), &text, &std::collections::BTreeMap::new());
        let found = advice(&config.expect("a sound configuration"));
        let said: Vec<String> = found.iter().map(|problem| problem.message.clone()).collect();
        assert_eq!(said, expected);
        assert!(found.iter().all(|problem| problem.hint.is_some()));
    }

    #[test]
    fn what_is_seldom_meant_is_warned_of() {
        let three = "[\"127.0.0.1:7400\", \"127.0.0.2:7400\", \"127.0.0.3:7400\"]";
        check(three, "", &[]);
        check("[\"127.0.0.1:7400\"]", "", &[]);
        check(
            "[\"127.0.0.1:7401\"]",
            "",
            &[
                "`node.peers` does not name this member, 127.0.0.1:7400: it can join a cluster, and found none",
            ],
        );
        check(
            "[\"127.0.0.1:7400\", \"127.0.0.2:7400\"]",
            "",
            &["two founding members: only one of them votes, and where it is lost nobody takes over"],
        );
        check(
            three,
            "[bootstrap.postgres]\nshared_buffers = 128\nwork_mem = \"16MB\"\nmax_connections = 100\nwal_buffers = -1\n",
            &["`shared_buffers = 128` has no unit: to Postgres that is 1.0 MiB"],
        );
    }

    #[test]
    fn a_file_is_read_by_its_owner_its_group_or_everybody() {
        let user = OsUser { name: "pg".to_owned(), uid: 7, gid: 70, groups: vec![70, 71], home: "/".into() };
        for (mode, owner, expected) in [
            (0o600, (7, 1), true),
            (0o600, (0, 0), false),
            (0o640, (0, 71), true),
            (0o640, (0, 72), false),
            (0o644, (0, 0), true),
            // The owner's bits count for the owner, whatever others may.
            (0o044, (7, 70), false),
        ] {
            assert_eq!(may_read(mode, owner, &user), expected, "{mode:o} {owner:?}");
        }
    }
}
