//! `[proxy]` and `[pgbouncer]`: how clients reach the cluster through this member.

use std::path::PathBuf;
use std::time::Duration;

use super::build::{address, default_address, path, word};
use super::file::Entries;
use super::{Address, Config, Node, units};
use crate::proxy::Port;

/// `[proxy]`: the ports of this member that lead to the right server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// To the primary; none: not opened.
    pub rw: Option<Address>,
    /// To a standby within the lag limit.
    pub ro: Option<Address>,
    /// To any running instance.
    pub any: Option<Address>,
    /// How long a new connection waits for a server instead of failing.
    pub wait: Duration,
    /// How many bytes of WAL a standby may be behind for `ro`.
    pub ro_max_lag: u64,
    /// Connections through this member, over all ports.
    pub max_connections: u32,
    /// Of these, the ones that have no server yet.
    pub max_waiting: u32,
    /// After how long without a byte a connection is ended; none: never.
    pub idle_timeout: Option<Duration>,
}

impl Proxy {
    /// Returns where a port listens.
    pub fn address(&self, port: Port) -> Option<&Address> {
        match port {
            Port::Rw => self.rw.as_ref(),
            Port::Ro => self.ro.as_ref(),
            Port::Any => self.any.as_ref(),
        }
    }
}

/// When PgBouncer gives a server connection to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// After each transaction.
    Transaction,
    /// After each statement.
    Statement,
}

impl PoolMode {
    /// Returns PgBouncer's word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// `[pgbouncer]`: a PgBouncer beside this member that Rhone configures and points at the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// Where PgBouncer listens for clients.
    pub listen: Address,
    /// Operating system user that runs PgBouncer; none: the one that runs Postgres.
    pub user: Option<String>,
    /// Where its configuration, its socket and the administrator's password are written.
    pub dir: PathBuf,
    /// PgBouncer's list of users and their secrets (`auth_file`), to which Rhone adds its own.
    pub users_file: PathBuf,
    /// Further settings of the operator's, read by PgBouncer last.
    pub include: Option<PathBuf>,
    /// When a server connection is given to somebody else.
    pub mode: PoolMode,
    /// Server connections for each user and database.
    pub pool_size: u32,
    /// Clients at the same time.
    pub max_clients: u32,
    /// How long a switchover waits for the transactions that are open.
    pub pause_timeout: Duration,
}

/// How long a new connection waits unless told otherwise: several times what a failover takes (the lease of 1.5 s
/// has to end first), and no longer than what clients' own limits allow for (libpq's examples and many pools use
/// 10 s).
const WAIT: Duration = Duration::from_secs(10);

/// As much WAL as one segment of the usual size.
const RO_MAX_LAG: u64 = 16 << 20;

/// Reads `[proxy]`.
pub(super) fn proxy(entries: &mut Entries) -> Proxy {
    let rw = address(entries, "proxy.rw");
    let ro = address(entries, "proxy.ro");
    let any = address(entries, "proxy.any");
    let idle = entries.parsed("proxy.idle-timeout", units::parse_duration);
    Proxy {
        rw,
        ro,
        any,
        wait: entries.parsed("proxy.wait", units::parse_duration).unwrap_or(WAIT),
        ro_max_lag: entries.size("proxy.ro-max-lag").unwrap_or(RO_MAX_LAG),
        max_connections: entries.integer("proxy.max-connections", 1..1_000_001).unwrap_or(2000),
        max_waiting: entries.integer("proxy.max-waiting", 1..1_000_001).unwrap_or(500),
        idle_timeout: idle.filter(|idle| !idle.is_zero()),
    }
}

/// Reads `[pgbouncer]`; none without the table.
pub(super) fn pooler(entries: &mut Entries, node: Option<&Node>) -> Option<Pooler> {
    let keys = ["listen", "users-file", "user", "dir", "include", "pool-mode", "pool-size", "max-clients"];
    let keys = keys.into_iter().chain(["pause-timeout"]).map(|key| format!("pgbouncer.{key}"));
    if !keys.into_iter().any(|key| entries.is_set(&key)) {
        return None;
    }
    let listen = address(entries, "pgbouncer.listen");
    let listen = listen.or_else(|| default_address(entries, "pgbouncer.listen", 6432));
    let users_file = path(entries, "pgbouncer.users-file");
    if users_file.is_none() {
        entries.missing("pgbouncer.users-file", "\"/etc/pgbouncer/userlist.txt\"");
    }
    let user = entries.text("pgbouncer.user");
    let dir = path(entries, "pgbouncer.dir");
    let dir = dir.or_else(|| node.map(|node| node.state_dir.join("pgbouncer")));
    let include = path(entries, "pgbouncer.include");
    let mode = match word(entries, "pgbouncer.pool-mode", &["session", "transaction", "statement"]) {
        Some("session") => PoolMode::Session,
        Some("statement") => PoolMode::Statement,
        Some(_) | None => PoolMode::Transaction,
    };
    let pool_size = entries.integer("pgbouncer.pool-size", 1..10_001).unwrap_or(20);
    let max_clients = entries.integer("pgbouncer.max-clients", 1..100_001).unwrap_or(1000);
    let pause = entries.parsed("pgbouncer.pause-timeout", units::parse_duration);
    Some(Pooler {
        listen: listen?,
        user,
        dir: dir?,
        users_file: users_file?,
        include,
        mode,
        pool_size,
        max_clients,
        pause_timeout: pause.unwrap_or(Duration::from_secs(5)),
    })
}

/// Returns what listens because of these tables, by key.
pub(super) fn listeners(config: &Config) -> impl Iterator<Item = (&'static str, &Address)> {
    let proxy = &config.proxy;
    let ports = [("proxy.rw", &proxy.rw), ("proxy.ro", &proxy.ro), ("proxy.any", &proxy.any)];
    let pooler = config.pooler.as_ref().map(|pooler| ("pgbouncer.listen", &pooler.listen));
    ports.into_iter().filter_map(|(key, address)| Some((key, address.as_ref()?))).chain(pooler)
}
