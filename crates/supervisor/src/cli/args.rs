//! What may be typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::certs::Certs;
use super::exit::{CliError, Exit};
use crate::config::Environment;
use crate::demo::DemoOptions;
use crate::status::DsnRole;
use crate::telemetry::LogFormat;
use crate::tls::TlsFiles;

/// High availability for `PostgreSQL`, with Raft built in.
#[derive(Debug, Parser)]
#[command(about = "High availability for PostgreSQL, with Raft built in")]
#[command(
    name = "rhone",
    bin_name = "rhone",
    version,
    propagate_version = false,
    disable_help_subcommand = true
)]
#[command(
    after_help = "`rhone help COMMAND` says more. For hands used to patronictl: list, topology, show-config and edit-config are \
    here; switchover, failover, pause, resume, restart, reload, reinit and history do what they do there.\n\n\
    Exit status: 0 done; 1 failed; 2 usage; 3 refused for safety, nothing changed; \
    4 no quorum or nobody reachable; 5 outcome unknown."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Where `--help` shows what every command takes.
const EVERY: &str = "Options of every command";

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Configuration of the member on this machine [default: /etc/rhone/rhone.toml]
    #[arg(short, long, global = true, value_name = "FILE", env = "RHONE_CONFIG", help_heading = EVERY)]
    pub config: Option<PathBuf>,
    /// Members to ask instead, HOST or HOST:PORT (7400), the first that answers [env: RHONE_HOST]; of `certs issue`: where the member is reached
    #[arg(long = "host", global = true, value_name = "HOST", value_delimiter = ',', help_heading = EVERY)]
    pub hosts: Vec<String>,
    /// How to print data
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t, help_heading = EVERY)]
    pub output: Output,
    /// The same as `-o json`
    #[arg(long = "json", global = true, help_heading = EVERY)]
    pub as_json: bool,
    /// The certificate for other machines.
    #[command(flatten)]
    pub tls: TlsFlags,
}

impl Global {
    /// Says whether data is printed as JSON.
    pub fn json(&self) -> bool {
        self.as_json || self.output == Output::Json
    }
}

/// The certificate to show to members on other machines.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsFlags {
    /// The CAs that members' certificates are signed by [env: RHONE_TLS_CA] [default: that of the configuration]
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERY)]
    pub ca: Option<PathBuf>,
    /// The certificate to show to members [env: RHONE_TLS_CERT] [default: that of the configuration]
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERY)]
    pub cert: Option<PathBuf>,
    /// Its private key [env: RHONE_TLS_KEY]
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERY)]
    pub key: Option<PathBuf>,
}

impl TlsFlags {
    /// Returns the files, when any was named by a flag; a variable names what no flag does.
    ///
    /// The variables alone name nothing here: beside a configuration they are a member's, which is another matter
    /// than an operator's ([`Self::variables`]).
    ///
    /// # Errors
    /// Not all three were named.
    pub(crate) fn typed(&self, variables: &Environment) -> Result<Option<TlsFiles>, CliError> {
        if self.ca.is_none() && self.cert.is_none() && self.key.is_none() {
            return Ok(None);
        }
        self.with(variables)
    }

    /// Returns the files that variables name: without a configuration they are what an operator shows.
    ///
    /// # Errors
    /// Some of the three are named, and not all.
    pub(crate) fn variables(variables: &Environment) -> Result<Option<TlsFiles>, CliError> {
        Self::default().with(variables)
    }

    fn with(&self, variables: &Environment) -> Result<Option<TlsFiles>, CliError> {
        let file = |flag: &Option<PathBuf>, variable: &str| {
            let set = || variables.get(variable).filter(|text| !text.is_empty()).map(PathBuf::from);
            flag.clone().or_else(set)
        };
        let ca = file(&self.ca, "RHONE_TLS_CA");
        let cert = file(&self.cert, "RHONE_TLS_CERT");
        match (ca, cert, file(&self.key, "RHONE_TLS_KEY")) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(TlsFiles { ca, cert, key })),
            (_, _, _) => Err(CliError::new(Exit::Usage, "--ca, --cert and --key go together")
                .hint("name all three, or set RHONE_TLS_CA, RHONE_TLS_CERT and RHONE_TLS_KEY")),
        }
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the supervisor in the foreground; it owns the local Postgres
    Run {
        /// How log lines on stderr look; `RHONE_LOG` filters them
        #[arg(long, value_enum, default_value_t, env = "RHONE_LOG_FORMAT")]
        log_format: LogFormat,
    },
    /// Shows a throw-away cluster of real Postgres servers on this machine
    Demo(DemoOptions),
    /// Says all that is wrong with a configuration; starts nothing
    Check,
    /// Shows the cluster at a glance, and what a failover now would lose
    #[command(visible_aliases = ["list", "topology"])]
    Status {
        /// Show it again every second until Ctrl-C
        #[arg(short, long)]
        watch: bool,
    },
    /// Says what would be decided now, by whom, and why
    Explain,
    /// Decides again from what the recorder wrote, and says where that differs
    Replay {
        /// decisions.jsonl from a member's state directory; more than one, the older first
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Lists every change of primary
    History {
        /// Show only so many, the newest
        #[arg(short = 'n', long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        limit: u32,
    },
    /// Hands the primary's role to a standby; loses nothing
    Switchover {
        /// The next primary [default: the best standby]
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Begin at that time, 2026-11-21T20:00:00Z or +10m, by the Raft leader's clock; returns at once
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// Take the scheduled switchover off
        #[arg(long, conflicts_with_all = ["to", "at", "no_wait"])]
        cancel: bool,
        /// Return as soon as it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// Fails over by hand, without the old primary; refused where acknowledged commits would be lost
    Failover {
        /// The next primary [default: whoever has the most]
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Go on although acknowledged commits may be lost; the history records who said so
        #[arg(long)]
        accept_data_loss: bool,
        /// Return as soon as it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// A private CA for TLS between members and with operators
    Certs {
        /// What to do [default: show those of the configuration]
        #[command(subcommand)]
        verb: Option<Certs>,
    },
    /// Prints what has happened in the cluster
    Events {
        /// Go on with what happens, until Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
    /// Turns automatic failover off; fencing stays on
    Pause {
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Turns automatic failover on again
    Resume {
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Stops a member's Postgres and keeps it stopped, also over restarts and failovers
    Fence {
        /// The member
        name: String,
        /// Do not ask: the primary hands over to a standby first
        #[arg(long)]
        yes: bool,
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Lets a fenced member's Postgres go
    Unfence {
        /// The member
        name: String,
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Shows or changes the replicated settings; Postgres parameters are `postgres.NAME`
    Settings {
        /// What to do [default: show them]
        #[command(subcommand)]
        verb: Option<SettingsVerb>,
    },
    /// Prints the replicated settings as they are edited
    ShowConfig,
    /// Edits the replicated settings: as `rhone settings edit`
    EditConfig {
        /// Return as soon as it is decided, before every member goes by it
        #[arg(long)]
        no_wait: bool,
    },
    /// Makes Postgres read its configuration again
    Reload {
        /// The member [default: all]
        name: Option<String>,
        /// Changes nothing here: it returns as soon as each member has taken it on
        #[arg(long)]
        no_wait: bool,
    },
    /// Restarts Postgres: standbys first, one at a time, the primary last by a switchover
    Restart {
        /// The member [default: all, one after the other]
        name: Option<String>,
        /// All members, one after the other
        #[arg(long, conflicts_with = "name")]
        rolling: bool,
        /// Only where a changed setting waits for a restart
        #[arg(long)]
        if_pending: bool,
        /// Restart that member at that time, 2026-11-21T20:00:00Z or +10m, by the Raft leader's clock; returns at once
        #[arg(long, value_name = "TIME", requires = "name", conflicts_with_all = ["if_pending", "no_wait"])]
        at: Option<String>,
        /// Take the scheduled restart of that member off
        #[arg(long, requires = "name", conflicts_with_all = ["at", "if_pending", "no_wait"])]
        cancel: bool,
        /// Return as soon as it has begun; a sequence goes on in the background of this machine
        #[arg(long)]
        no_wait: bool,
    },
    /// Copies a standby anew from the primary, while it goes on streaming
    Reinit {
        /// The member
        name: String,
        /// Give a copy up that is not complete yet, and keep what there is
        #[arg(long, conflicts_with = "no_wait")]
        cancel: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Return as soon as it has begun
        #[arg(long)]
        no_wait: bool,
    },
    /// Shows or changes who is a member and who votes
    Member {
        /// What to do [default: list them]
        #[command(subcommand)]
        verb: Option<MemberVerb>,
    },
    /// Translates a Patroni configuration to rhone.toml, and says what becomes of each key
    Import {
        /// patroni.yml; `-` reads stdin
        file: PathBuf,
        /// The founding members' hosts, this one's too
        #[arg(long, value_name = "HOST", value_delimiter = ',')]
        peers: Vec<String>,
        /// The network is trusted: no TLS
        #[arg(long)]
        insecure: bool,
    },
    /// The last resort when a majority is lost for good: this member goes on alone, the others join anew
    ///
    /// Works on the machine of a member whose rhone is stopped. What only the lost members had is lost.
    Recover {
        /// Say that this is meant: what comes of it is another cluster under the same name
        #[arg(long, required = true)]
        force_new_cluster: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Packs what a maintainer would ask for into one file, without secrets
    ///
    /// Writes rhone-report-NAME-TIME.tar.gz: status, decisions, history, events, settings, findings, metrics, the
    /// configuration and the last lines of the logs. On a member it has more of it than with `--host`.
    Report {
        /// Where to write it [default: the current folder]
        #[arg(long, value_name = "FOLDER", default_value = ".", hide_default_value = true)]
        dir: PathBuf,
    },
    /// Says what an operator should fix: clocks, disks, versions, slots, what corrupts silently
    Doctor,
    /// Prints what a shell needs to complete commands
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, or writes those of all commands
    Man {
        /// A folder to write one page for each command into
        folder: Option<PathBuf>,
    },
    /// Copies this program to a file: for an init container, whose image holds nothing else
    #[command(hide = true)]
    Inject {
        /// The file, such as /opt/rhone/rhone on a volume of the pod
        file: PathBuf,
    },
    /// Not in this version
    #[command(hide = true)]
    Backup {
        /// Whatever follows
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Prints libpq's connection string of the cluster
    Dsn {
        /// Which servers: the primary, a standby by preference, or any
        #[arg(long, value_enum, default_value_t)]
        role: DsnRole,
    },
    /// Runs psql at the primary
    ///
    /// All that follows is psql's: `rhone psql -d app -c 'SELECT 1'`. Flags of rhone itself come before the command.
    Psql {
        /// psql's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
}

/// What `rhone settings` does.
#[derive(Debug, Subcommand)]
pub enum SettingsVerb {
    /// Prints one setting
    Get {
        /// Its key: sync, postgres.work_mem
        #[arg(value_name = "KEY")]
        setting: String,
    },
    /// Changes settings, all or none of them
    Set {
        /// KEY=VALUE, as in sync=quorum or postgres.work_mem=16MB
        #[arg(required = true, value_name = "KEY=VALUE")]
        assignments: Vec<String>,
        /// How.
        #[command(flatten)]
        flags: ChangeFlags,
    },
    /// Takes settings back to what they are when nobody sets them
    Reset {
        /// Their keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// How.
        #[command(flatten)]
        flags: ChangeFlags,
    },
    /// Opens all settings in $EDITOR, and changes what was edited
    Edit {
        /// Return as soon as it is decided, before every member goes by it
        #[arg(long)]
        no_wait: bool,
    },
    /// Lists the versions that are kept: who changed what, and when
    History {
        /// Show only so many, the newest
        #[arg(short = 'n', long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        limit: u32,
    },
    /// Prints what differs between two versions
    Diff {
        /// The one version [default: the one before the newest]
        from: Option<u64>,
        /// The other [default: the newest]
        to: Option<u64>,
    },
    /// Goes back to the settings of a version; that is a new version
    Revert {
        /// The version
        version: u64,
        /// How.
        #[command(flatten)]
        flags: ChangeFlags,
    },
}

/// How settings are changed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct ChangeFlags {
    /// Refuse unless the settings are at this version
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<u64>,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as it is decided, before every member goes by it
    #[arg(long)]
    pub no_wait: bool,
}

/// What `rhone member` does.
#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// Lists the members
    List,
    /// Prints the configuration that a new member joins with
    Add {
        /// Its name [default: the next free one]
        name: Option<String>,
        /// Its host, as the others reach it [default: a placeholder]
        address: Option<String>,
    },
    /// Removes a member for good
    Remove {
        /// The member
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Lets a member vote where there is room
    Promote {
        /// The member
        name: String,
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
    /// Keeps a member from voting
    Demote {
        /// The member
        name: String,
        /// Return as soon as it is decided
        #[arg(long)]
        no_wait: bool,
    },
}
