//! ✦ libpq connection strings that name every data member, so that a client finds the right one.

use serde::{Deserialize, Serialize};

use super::{ClusterStatus, Kind};

/// Which servers a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DsnRole {
    /// The primary.
    #[default]
    Rw,
    /// A standby by preference.
    Ro,
    /// Any running instance.
    Any,
}

impl DsnRole {
    /// Gives libpq's word for it (`target_session_attrs`, Postgres 14 and later).
    pub const fn target_session_attrs(self) -> &'static str {
        match self {
            Self::Rw => "read-write",
            Self::Ro => "prefer-standby",
            Self::Any => "any",
        }
    }
}

/// A machine without power answers nothing: how soon libpq notices, in its own terms. An idle session asks after two
/// seconds and is given up after three more; what was sent and not acknowledged within three ends one too.
const LIMITS: &str =
    "connect_timeout=2 keepalives_idle=2 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000";

/// Renders libpq's keyword/value string over all data members whose address is known,
/// the primary first for [`DsnRole::Rw`]. `None` when no address is known.
///
/// User, database and password are the client's own (`PGUSER`, `~/.pgpass`): none is named.
pub fn render(status: &ClusterStatus, role: DsnRole) -> Option<String> {
    let mut members: Vec<_> = status
        .members
        .iter()
        .filter(|m| m.kind == Kind::Data)
        .filter_map(|m| Some((m.name.as_str(), m.host.as_deref()?, m.port?)))
        .collect();
    if members.is_empty() {
        return None;
    }
    if role == DsnRole::Rw {
        // A stable sort: the first try usually succeeds, and the others keep their order.
        members.sort_by_key(|(name, _, _)| Some(*name) != status.primary.as_deref());
    }
    let hosts: Vec<&str> = members.iter().map(|(_, host, _)| *host).collect();
    let ports: Vec<String> = members.iter().map(|(_, _, port)| port.to_string()).collect();
    Some(format!(
        "host={} port={} target_session_attrs={} {LIMITS}",
        hosts.join(","),
        ports.join(","),
        role.target_session_attrs()
    ))
}
