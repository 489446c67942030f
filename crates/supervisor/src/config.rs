//! `rhone.toml`: read, checked, and made into types that cannot be wrong.
//!
//! Reading collects every problem it finds, each with its line, and touches nothing.
//! [`inspect()`] looks at the machine as well, and starts and changes nothing either.

mod address;
mod advice;
mod build;
mod connecting;
mod file;
mod hooks;
mod inspect;
mod keys;
mod layout;
mod nearest;
mod problem;
mod tags;
pub mod timing;
pub mod units;
mod variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhone_consensus::command::MemberKind;
use rhone_consensus::settings::SyncMode;
use rhone_consensus::tags::Tags;

use crate::tls::TlsFiles;

pub use self::address::Address;
pub use self::advice::{advice, unreadable_secrets};
pub use self::connecting::{PoolMode, Pooler, Proxy};
pub use self::hooks::{Hook, Hooks};
pub use self::inspect::{find_bin_dir, inspect};
pub use self::layout::{ForeignConfiguration, foreign_configuration};
pub(crate) use self::nearest::nearest;
pub use self::problem::{ConfigErrors, Problem};
pub use self::timing::Timing;
pub use self::variables::misspelled;

/// Where the file is when no flag names it.
pub const DEFAULT_PATH: &str = "/etc/rhone/rhone.toml";

/// What only this member knows, and the first values of what all must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// `[node]`.
    pub node: Node,
    /// `[postgres]`; none: a witness, which votes and never runs Postgres.
    pub postgres: Option<Postgres>,
    /// `[proxy]`.
    pub proxy: Proxy,
    /// `[pgbouncer]`.
    pub pooler: Option<Pooler>,
    /// `[tls]`.
    pub tls: Tls,
    /// `[bootstrap]`.
    pub bootstrap: Bootstrap,
    /// `[hooks]`.
    pub hooks: Hooks,
    /// A key of `[postgres]` that counts for nothing: a variable makes this member a witness.
    pub spare: Option<&'static str>,
}

/// `[node]`: this member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where it keeps its Raft store, promises and socket.
    pub state_dir: PathBuf,
    /// Where gRPC listens.
    pub listen: Address,
    /// How peers reach that.
    pub advertise: Address,
    /// Where HTTP listens.
    pub http: Address,
    /// The founding members' `advertise` addresses, this one's too.
    pub peers: Vec<Address>,
    /// What it is left out of, and labels that checks and people may ask for.
    pub tags: Tags,
    /// Where changed decisions are written with what they were taken from; none: nowhere.
    pub recorder: Option<PathBuf>,
}

/// `[postgres]`: the local instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Where Postgres' programs are; none: to be found.
    pub bin_dir: Option<PathBuf>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where Postgres listens.
    pub listen: Address,
    /// How clients and standbys reach that.
    pub advertise: Address,
    /// Where its Unix socket is.
    pub socket_dir: PathBuf,
    /// Postgres role used over the Unix socket.
    pub superuser: String,
    /// Operating system user that runs Postgres when rhone runs as root.
    pub user: Option<String>,
    /// File with the replication role's password; none: made at founding.
    pub replication_password_file: Option<PathBuf>,
    /// Breaks ties between equal WAL; 0: never promote.
    pub priority: u32,
    /// The machine's watchdog, `/dev/watchdog`; none: not used.
    pub watchdog: Option<PathBuf>,
    /// After so many whole seconds without a word from the guardian it resets the machine.
    pub watchdog_timeout: Duration,
    /// Whether the kernel is to keep in what Postgres sends when the lease has ended (decision 0056).
    pub dead_man: DeadMan,
}

/// `postgres.dead-man`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeadMan {
    /// `off`: processes alone fence.
    #[default]
    Off,
    /// `nftables`: a table of the packet filter's, which needs `CAP_NET_ADMIN`.
    Nftables,
}

/// `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Absent: nothing may leave the loopback interface.
    LoopbackOnly,
    /// `insecure = true`: no TLS on a network that is trusted.
    Insecure,
    /// `ca`, `cert` and `key`: mutual TLS.
    Mutual(TlsFiles),
}

/// `[bootstrap]`: first values of the replicated settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The timings.
    pub timing: Timing,
    /// Bytes of WAL that a failover may lose at most, as far as voters heard of them.
    pub max_lag_on_failover: u64,
    /// After how long a silence a voter is replaced, in milliseconds; 0: never.
    pub dead_member_timeout_ms: u64,
    /// How commits wait for standbys; absent: as the founding members allow.
    pub sync: Option<SyncMode>,
    /// For how many standbys; absent: half the data members, rounded down.
    pub sync_required: Option<u32>,
    /// Lines of `pg_hba.conf` before those that Rhone manages.
    pub pg_hba: Vec<String>,
    /// Lines of `pg_ident.conf` after Rhone's own map.
    pub pg_ident: Vec<String>,
    /// A database to make, with an owner of the same name unless `owner` is set.
    pub database: Option<Database>,
    /// Postgres parameters.
    pub postgres: BTreeMap<String, String>,
}

/// The database made at founding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// File with that role's password; none: it has none.
    pub password_file: Option<PathBuf>,
}

/// Environment variables, as a map so that tests need not set any.
pub type Environment = BTreeMap<String, String>;

/// Takes the process' environment; variables that are not UTF-8 are left out.
pub fn environment() -> Environment {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

impl Config {
    /// Says what this member is for.
    pub fn kind(&self) -> MemberKind {
        if self.postgres.is_some() { MemberKind::Data } else { MemberKind::Witness }
    }

    /// Reads and checks a file, with `RHONE_…` overrides from `env`.
    ///
    /// # Errors
    ///
    /// All that is wrong, in the order of the file.
    pub fn load(path: &Path, env: &Environment) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors::unreadable(path, &error))?;
        Self::parse(path, &text, env)
    }

    /// Checks a text as if it had been read from `path`.
    ///
    /// # Errors
    ///
    /// All that is wrong, in the order of the file.
    pub fn parse(path: &Path, text: &str, env: &Environment) -> Result<Self, ConfigErrors> {
        let mut entries = file::Entries::read(text, env);
        let config = build::config(path, &mut entries);
        let problems = entries.into_problems();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigErrors::new(path, problems)),
        }
    }
}

/// Says where in the file, or by which variable, the keys were set that problems of the machine name.
pub fn located(path: &Path, env: &Environment, problems: Vec<Problem>) -> Vec<Problem> {
    let Ok(text) = std::fs::read_to_string(path) else { return problems };
    let entries = file::Entries::read(&text, env);
    let problems = problems.into_iter().map(|problem| entries.located(problem)).collect();
    ConfigErrors::new(path, problems).problems
}

#[cfg(test)]
#[allow(
    clippy::needless_raw_string_hashes,
    clippy::needless_pass_by_value,
    reason = "expect-test writes them so"
)]
#[path = "config/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "config/environment_tests.rs"]
mod environment_tests;
