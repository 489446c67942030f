//! ✦ The keys of `rhone.toml`, and the environment variables that override them.

/// Every key, with the table it is in.
pub(super) const KEYS: [&str; 74] = [
    "cluster",
    "node.name",
    "node.kind",
    "node.state-dir",
    "node.listen",
    "node.advertise",
    "node.http",
    "node.peers",
    "node.recorder",
    "postgres.bin-dir",
    "postgres.data-dir",
    "postgres.listen",
    "postgres.advertise",
    "postgres.socket-dir",
    "postgres.superuser",
    "postgres.user",
    "postgres.replication-password-file",
    "postgres.priority",
    "postgres.watchdog",
    "postgres.watchdog-timeout",
    "postgres.dead-man",
    "proxy.rw",
    "proxy.ro",
    "proxy.any",
    "proxy.wait",
    "proxy.ro-max-lag",
    "proxy.max-connections",
    "proxy.max-waiting",
    "proxy.idle-timeout",
    "pgbouncer.listen",
    "pgbouncer.users-file",
    "pgbouncer.user",
    "pgbouncer.dir",
    "pgbouncer.include",
    "pgbouncer.pool-mode",
    "pgbouncer.pool-size",
    "pgbouncer.max-clients",
    "pgbouncer.pause-timeout",
    "tls.insecure",
    "tls.ca",
    "tls.cert",
    "tls.key",
    "bootstrap.sync",
    "bootstrap.sync-required",
    "bootstrap.timing",
    "bootstrap.timing.preset",
    "bootstrap.timing.renewal",
    "bootstrap.timing.suspicion",
    "bootstrap.timing.lease",
    "bootstrap.timing.drift",
    "bootstrap.timing.guard",
    "bootstrap.max-lag-on-failover",
    "bootstrap.dead-member-timeout",
    "bootstrap.pg-hba",
    "bootstrap.pg-ident",
    "bootstrap.database",
    "bootstrap.database-owner",
    "bootstrap.database-password-file",
    "hooks.on-start",
    "hooks.on-stop",
    "hooks.on-restart",
    "hooks.on-reload",
    "hooks.on-role-change",
    "hooks.pre-promote",
    "hooks.before-stop",
    "hooks.timeout",
    // Tables, so that a misspelled one finds its name.
    "node",
    "postgres",
    "proxy",
    "pgbouncer",
    "tls",
    "hooks",
    "bootstrap",
    "bootstrap.postgres",
];

/// Tables whose keys are the operator's own.
pub(super) const FREE: [&str; 2] = [super::tags::TABLE, PARAMETERS];

/// The table of Postgres's parameters.
pub(super) const PARAMETERS: &str = "bootstrap.postgres.";

/// Parameters that Rhone sets itself on every member.
pub(super) const MANAGED: [&str; 13] = [
    "data_directory",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "restore_command",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_log_hints",
];

/// Says whether a key holds a value (and is not only a table).
pub(super) fn is_value(key: &str) -> bool {
    is_free(key) || KEYS.contains(&key) && (!is_table(key) || key == "bootstrap.timing")
}

/// Says whether a list of that key is parted at commas in a variable: an address holds none, while a line of
/// `pg_hba.conf` and a program's argument may.
pub(super) fn parts_at_commas(key: &str) -> bool {
    key == "node.peers"
}

/// Says whether a key names a table.
pub(super) fn is_table(key: &str) -> bool {
    let inside = format!("{key}.");
    FREE.contains(&inside.as_str()) || KEYS.iter().any(|known| known.starts_with(&inside))
}

/// Says whether a key lies directly in one of the operator's own tables.
pub(super) fn is_free(key: &str) -> bool {
    FREE.iter().any(|prefix| key.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()))
}

/// Gives the variable that overrides a key: `RHONE_NODE_STATE_DIR`.
pub(super) fn variable(key: &str) -> String {
    format!("RHONE_{}", key.to_uppercase().replace(['.', '-'], "_"))
}
