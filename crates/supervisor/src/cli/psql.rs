//! `rhone dsn` and `rhone psql`: how clients find the primary without any proxy.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::args::Global;
use super::exit::CliError;
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::config;
use crate::status::DsnRole;

async fn fetch(global: &Global, role: DsnRole) -> Result<String, CliError> {
    let request = v1::DsnRequest { role: api::to_dsn_role(role) };
    client::ask(global, false, async |mut client| Ok(client.dsn(request).await?.into_inner().dsn)).await
}

/// Prints the connection string.
pub(super) async fn dsn(global: &Global, role: DsnRole, terminal: &mut Terminal) -> Result<(), CliError> {
    let dsn = fetch(global, role).await?;
    if global.json() {
        return print_json(terminal, &serde_json::json!({ "dsn": dsn }));
    }
    terminal.data(&format!("{dsn}\n"));
    Ok(())
}

/// Becomes psql at the primary.
///
/// The connection goes into libpq's environment, so that psql's own arguments (`-U`, `-d`, a
/// database's name) keep their meaning.
pub(super) async fn psql(global: &Global, arguments: &[OsString]) -> Result<(), CliError> {
    let dsn = fetch(global, DsnRole::Rw).await?;
    let program = config::find_bin_dir(None).map(|dir| dir.join("psql")).filter(|psql| psql.is_file());
    let mut command = Command::new(program.unwrap_or_else(|| "psql".into()));
    for (name, value) in environment(&dsn) {
        command.env(name, value);
    }
    let error = command.args(arguments).exec();
    Err(CliError::failed(format!("run psql: {error}")).hint("apt-get install postgresql-client"))
}

/// Translates a connection string into libpq's variables.
fn environment(dsn: &str) -> Vec<(&'static str, &str)> {
    let variable = |keyword: &str| match keyword {
        "host" => Some("PGHOST"),
        "port" => Some("PGPORT"),
        "target_session_attrs" => Some("PGTARGETSESSIONATTRS"),
        "connect_timeout" => Some("PGCONNECT_TIMEOUT"),
        _ => None,
    };
    dsn.split(' ')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(k, v)| Some((variable(k)?, v)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::environment;

    #[test]
    fn psql_gets_the_connection_by_libpqs_variables() {
        assert_eq!(
            environment("host=a,b port=1,2 target_session_attrs=read-write"),
            [("PGHOST", "a,b"), ("PGPORT", "1,2"), ("PGTARGETSESSIONATTRS", "read-write")]
        );
    }
}
