//! `rhone member add`: the configuration that a new member joins with.

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, print_json, status};
use crate::config::Tls;
use crate::status::ClusterStatus;

/// What stands for the host of a machine that was not named.
const PLACEHOLDER: &str = "ADDRESS";

/// Prints it. A member admits itself: what it takes is a configuration that names the cluster and somebody in it.
pub(super) async fn add(
    global: &Global,
    name: Option<String>,
    address: Option<String>,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let status = status::fetch(global).await?;
    let name = name.unwrap_or_else(|| next_name(&status));
    if let Some(known) = status.members.iter().find(|member| member.name == name) {
        return Err(CliError::new(
            Exit::Refused,
            format!("refused, nothing was changed: {name} is a member already, and {}", known.state),
        )
        .hint("a machine that lost its disk joins again under its old name by itself"));
    }
    let peers = client::addresses(global)?;
    let host = address.as_deref().unwrap_or(PLACEHOLDER);
    // As this cluster does it, where that can be seen from here.
    let insecure = client::load_config(global).is_ok_and(|config| matches!(config.tls, Tls::Insecure));
    let (tls, certificate) = if insecure {
        ("insecure = true\n".to_owned(), String::new())
    } else {
        (
            format!(
                "ca   = \"/etc/rhone/ca.crt\"\ncert = \"/etc/rhone/{name}.crt\"\nkey  = \"/etc/rhone/{name}.key\"\n"
            ),
            format!(", with a certificate (`rhone certs issue {name} --host {host}`)"),
        )
    };
    let config = format!(
        "cluster = {cluster:?}\n\n[node]\nname      = {name:?}\nstate-dir = \"/var/lib/rhone\"\n\
         listen    = \"0.0.0.0:7400\"\nadvertise = \"{host}:7400\"\nhttp      = \"0.0.0.0:8008\"\n\
         peers     = {peers:?}\n\n[postgres]\ndata-dir  = \"/var/lib/postgresql/15/main\"   # empty: it is copied from the primary\n\
         listen    = \"0.0.0.0:5432\"\nadvertise = \"{host}:5432\"\n\n[tls]\n{tls}",
        cluster = status.cluster,
    );
    if global.json() {
        return print_json(terminal, &serde_json::json!({ "name": name, "config": config }));
    }
    terminal.data(&config);
    let place = match &address {
        Some(address) => format!("put this on {address}"),
        None => format!("put this on the new machine, with the machine's host instead of {PLACEHOLDER},"),
    };
    terminal.talk(&format!(
        "{place} as /etc/rhone/rhone.toml{certificate}, and start rhone there: it joins by itself"
    ));
    Ok(())
}

/// Finds a name that nobody has, as the members' are: `pg-4` after `pg-3`.
fn next_name(status: &ClusterStatus) -> String {
    let numbered = |name: &str| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        Some((stem.to_owned(), name.get(stem.len()..)?.parse::<u64>().ok()?))
    };
    // A new member is a data member, and named like the primary rather than like a witness.
    let like = status.primary.iter().chain(status.members.iter().map(|member| &member.name));
    let stem = like.into_iter().find_map(|name| numbered(name)).map(|(stem, _)| stem);
    let stem = stem.unwrap_or_else(|| "pg-".to_owned());
    let numbers = status.members.iter().filter_map(|member| numbered(&member.name));
    let last = numbers.filter(|(known, _)| *known == stem).map(|(_, number)| number).max();
    format!("{stem}{}", last.unwrap_or(status.members.len() as u64).saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MemberStatus;

    #[test]
    fn a_new_member_is_named_like_the_others() {
        for (names, expected) in [
            ("pg-1 pg-2 pg-3", "pg-4"),
            ("wit-1 pg-1 pg-2", "wit-2"), // without a primary to go by
            ("db9 db10", "db11"),
            ("anna berta", "pg-3"),
            ("node", "pg-2"),
        ] {
            let member = |name: &str| MemberStatus { name: name.to_owned(), ..MemberStatus::default() };
            let members = names.split(' ').map(member).collect();
            let status = ClusterStatus { members, ..ClusterStatus::default() };
            assert_eq!(next_name(&status), expected, "{names}");
        }
        let mut status = crate::status::fake::status();
        status.members.reverse();
        assert_eq!(next_name(&status), "pg-4");
    }
}
