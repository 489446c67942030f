//! `rhone certs`: a private CA, what it issues, and what a certificate says.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};

use super::args::Global;
use super::exit::{CliError, Exit};
use super::table::{self, Align};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::civil::WallTime;
use crate::config::{self, Config, Tls};
use crate::runtime::clock::wall_time;
use crate::tls::authority::{AUTHORITY_DAYS, Authority, ISSUED_DAYS, Order};
use crate::tls::{Certificate, Identity, Role, TlsError, certificates_of};

/// The cluster's name where nothing says another.
const DEFAULT_CLUSTER: &str = "main";

/// A member is reached there from its own machine.
const LOCALHOST: &str = "localhost";

/// What may be done with certificates.
#[derive(Debug, Subcommand)]
pub enum Certs {
    /// Makes a CA: ca.crt, which every member and operator gets, and ca.key, which nobody gets
    Init {
        /// Where [default: the current folder]
        #[arg(long, value_name = "FOLDER", default_value = ".", hide_default_value = true)]
        dir: PathBuf,
        /// The cluster that it is for [default: that of the configuration, else main]
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// How long it lasts
        #[arg(long, value_name = "N", default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Make a successor that issues from now on; ca.crt then holds both
        #[arg(long, conflicts_with = "drop_former")]
        roll: bool,
        /// End the trust in all but the newest CA of ca.crt
        #[arg(long)]
        drop_former: bool,
    },
    /// Issues a certificate: NAME.crt and NAME.key. `--host` names where a member is reached, each name
    /// and address of it [default: NAME and localhost; for the member of the configuration: `node.advertise`]
    Issue {
        /// The member's `node.name`, or a person's name
        name: String,
        /// What its holder may be
        #[arg(long, value_enum, default_value_t)]
        role: RoleFlag,
        /// Where the CA is [default: the current folder]
        #[arg(long, value_name = "FOLDER", default_value = ".", hide_default_value = true)]
        dir: PathBuf,
        /// How long it lasts, at most until the CA ends
        #[arg(long, value_name = "N", default_value_t = ISSUED_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Prints for whom, in which role and until when certificates are
    Show {
        /// Certificates in PEM [default: those of `[tls]` in the configuration]
        files: Vec<PathBuf>,
    },
}

impl Default for Certs {
    fn default() -> Self {
        Self::Show { files: Vec::new() }
    }
}

/// The roles, as they are typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RoleFlag {
    /// A supervisor
    #[default]
    Member,
    /// An operator who may change things
    Admin,
    /// Somebody who may only look
    Observer,
}

impl From<RoleFlag> for Role {
    fn from(flag: RoleFlag) -> Self {
        match flag {
            RoleFlag::Member => Self::Member,
            RoleFlag::Admin => Self::Admin,
            RoleFlag::Observer => Self::Observer,
        }
    }
}

/// One certificate of a file.
#[derive(Debug, serde::Serialize)]
struct Shown {
    file: PathBuf,
    #[serde(flatten)]
    certificate: Certificate,
    days_left: i64,
}

/// Carries out one of them.
pub(super) fn run(global: &Global, verb: Certs, terminal: &mut Terminal) -> Result<(), CliError> {
    match verb {
        Certs::Init { dir, cluster, days, roll, drop_former } => {
            let authority = Authority::in_folder(&dir);
            if drop_former {
                let dropped = authority.drop_former().map_err(|error| failed(&error))?;
                terminal.talk(&format!(
                    "{dropped} former CA(s) are no longer believed, where this ca.crt is put"
                ));
            } else if roll {
                let known = cluster.or_else(|| authority.cluster());
                let cluster =
                    or_default(known.map_or_else(|| of_config(global), |it| Ok(Some(it)))?, terminal);
                authority.roll(&cluster, days).map_err(|error| failed(&error))?;
                terminal.talk("hint: put ca.crt on every member first, then issue new certificates, then `rhone certs init --drop-former`");
            } else {
                let known = cluster.map_or_else(|| of_config(global), |it| Ok(Some(it)))?;
                let cluster = or_default(known, terminal);
                authority.init(&cluster, days).map_err(|error| failed(&error))?;
                terminal.talk("hint: keep ca.key off the members; `rhone certs issue pg-1 --host ADDRESS` makes a member's certificate");
            }
            show(global, &[authority.certificate_file()], terminal)
        }
        Certs::Issue { name, role, dir, days } => {
            let authority = Authority::in_folder(&dir);
            // Without a CA nothing is issued, whatever the cluster's name.
            let cluster = authority.cluster().map_or_else(|| of_config(global), |it| Ok(Some(it)))?;
            let cluster = cluster.unwrap_or_else(|| DEFAULT_CLUSTER.to_owned());
            let order = order(global, &cluster, &name, role.into(), days)?;
            if order.hosts.iter().any(|host| host == LOCALHOST) && global.hosts.is_empty() {
                terminal.talk(&format!(
                    "hint: it is good for {}; `--host` names where else the member is reached",
                    order.hosts.join(", ")
                ));
            }
            let issued = authority.issue(&order).map_err(|error| failed(&error))?;
            terminal.talk(&format!("{} has its key, mode 0600", issued.key.display()));
            show(global, &[issued.cert], terminal)
        }
        Certs::Show { files } if files.is_empty() => match client::load_config(global)?.tls {
            Tls::Mutual(files) => show(global, &[files.cert, files.ca], terminal),
            Tls::LoopbackOnly | Tls::Insecure => {
                Err(CliError::new(Exit::Usage, "the configuration has no certificates")
                    .hint("name files: `rhone certs show ca.crt pg-1.crt`"))
            }
        },
        Certs::Show { files } => show(global, &files, terminal),
    }
}

fn failed(error: &TlsError) -> CliError {
    let hint = if error.reason == "is there already" {
        "`rhone certs init --roll` makes a successor that is believed beside it"
    } else {
        "`rhone certs init` makes a CA; `--dir` says where it is"
    };
    CliError::failed(error.to_string()).hint(hint)
}

/// The configuration of this machine, if there is one.
fn config_here(global: &Global) -> Option<Config> {
    let path = global.config.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_PATH));
    Config::load(&path, &config::environment()).ok()
}

/// The cluster of the configuration, if there is one.
///
/// # Errors
/// There is one, and it is not sound.
fn of_config(global: &Global) -> Result<Option<String>, CliError> {
    let path = global.config.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_PATH));
    if path.exists() { Ok(Some(client::load_config(global)?.cluster)) } else { Ok(None) }
}

/// The cluster that a new CA is for: where nothing says another, the one of every example.
fn or_default(found: Option<String>, terminal: &mut Terminal) -> String {
    found.unwrap_or_else(|| {
        terminal.talk(&format!(
            "hint: this is for the cluster {DEFAULT_CLUSTER}; `--cluster NAME` names another, a configuration too"
        ));
        DEFAULT_CLUSTER.to_owned()
    })
}

fn order(global: &Global, cluster: &str, name: &str, role: Role, days: u32) -> Result<Order, CliError> {
    let identity = Identity { cluster: cluster.to_owned(), role, name: name.to_owned() };
    if Identity::parse(&identity.to_string()).as_ref() != Some(&identity) {
        let text = format!("\"{name}\" is not a name: use up to 63 letters, digits, `-`, `_` and `.`");
        return Err(CliError::new(Exit::Usage, text).hint("it is the member's `node.name`, or a person's"));
    }
    // Nobody connects to a person.
    let mut hosts = if role == Role::Member { global.hosts.clone() } else { Vec::new() };
    let own = config_here(global).filter(|config| config.node.name == name && config.cluster == cluster);
    if let Some(config) = own.filter(|_| hosts.is_empty() && role == Role::Member) {
        hosts.push(config.node.advertise.host);
    }
    if hosts.is_empty() && role == Role::Member {
        hosts.extend([name, LOCALHOST, "127.0.0.1", "::1"].map(str::to_owned));
    }
    Ok(Order { identity, hosts, days })
}

fn shown(file: &Path, now: WallTime) -> Result<Vec<Shown>, CliError> {
    let certificates = certificates_of(file).map_err(|error| {
        CliError::new(Exit::Usage, error.to_string())
            .hint("name certificates in PEM: `rhone certs show ca.crt pg-1.crt`")
    })?;
    Ok(certificates
        .into_iter()
        .map(|certificate| {
            let days_left = certificate.days_left(now);
            Shown { file: file.to_owned(), certificate, days_left }
        })
        .collect())
}

fn show(global: &Global, files: &[PathBuf], terminal: &mut Terminal) -> Result<(), CliError> {
    let now = WallTime::from_ms(wall_time());
    let mut all = Vec::new();
    for file in files {
        all.extend(shown(file, now)?);
    }
    if global.json() {
        return print_json(terminal, &all);
    }
    let rows: Vec<[String; 6]> = all.iter().map(row).collect();
    let columns = [
        ("FILE", Align::Left),
        ("SUBJECT", Align::Left),
        ("ROLE", Align::Left),
        ("HOSTS", Align::Left),
        ("EXPIRES (UTC)", Align::Left),
        ("DAYS", Align::Right),
    ];
    terminal.data(&table::render(columns, &rows));
    for expired in all.iter().filter(|shown| shown.days_left < 0) {
        terminal.talk(&format!("warning: {} has expired", expired.certificate.subject));
    }
    Ok(())
}

fn row(shown: &Shown) -> [String; 6] {
    let certificate = &shown.certificate;
    let role = match &certificate.identity {
        Some(identity) => identity.to_string(),
        None if certificate.ca => "ca".to_owned(),
        None => "none".to_owned(),
    };
    [
        shown.file.display().to_string(),
        certificate.subject.clone(),
        role,
        table::or_dash(Some(certificate.hosts.join(", ")).filter(|hosts| !hosts.is_empty())),
        certificate.not_after.short(),
        shown.days_left.to_string(),
    ]
}

#[cfg(test)]
#[path = "certs_tests.rs"]
mod tests;
