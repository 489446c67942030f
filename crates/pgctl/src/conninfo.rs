//! Renders libpq connection strings.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How libpq is to connect to another server; passwords come from the passfile, never from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnInfo {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database; none for replication.
    pub dbname: Option<String>,
    /// What the server shows, and what `synchronous_standby_names` names.
    pub application_name: Option<String>,
    /// The file with the password.
    pub passfile: Option<PathBuf>,
    /// How long a connection attempt may take, in whole seconds; libpq takes 1 as 2.
    pub connect_timeout: Option<Duration>,
    /// Idle time, interval and count of TCP keepalives.
    pub keepalives: Option<(Duration, Duration, u32)>,
    /// How long sent data may stay unacknowledged.
    pub tcp_user_timeout: Option<Duration>,
    /// `disable`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub sslmode: Option<String>,
    /// Certificates of the authorities that are trusted.
    pub sslrootcert: Option<PathBuf>,
}

impl ConnInfo {
    /// Makes a connection string with the timeouts that a standby needs to notice a dead primary.
    pub fn new(host: impl Into<String>, port: u16, user: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port,
            user: user.into(),
            connect_timeout: Some(Duration::from_secs(2)),
            keepalives: Some((Duration::from_secs(2), Duration::from_secs(1), 3)),
            tcp_user_timeout: Some(Duration::from_secs(5)),
            ..Self::default()
        }
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host={} port={} user={}", quote(&self.host), self.port, quote(&self.user))?;
        let mut text = |name: &str, value: Option<String>| match value {
            Some(value) => write!(f, " {name}={}", quote(&value)),
            None => Ok(()),
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let seconds = |limit: Duration| limit.as_secs().max(1).to_string();
        text("dbname", self.dbname.clone())?;
        text("application_name", self.application_name.clone())?;
        text("passfile", path(&self.passfile))?;
        text("connect_timeout", self.connect_timeout.map(seconds))?;
        if let Some((idle, interval, count)) = self.keepalives {
            text("keepalives_idle", Some(seconds(idle)))?;
            text("keepalives_interval", Some(seconds(interval)))?;
            text("keepalives_count", Some(count.to_string()))?;
        }
        text("tcp_user_timeout", self.tcp_user_timeout.map(|limit| limit.as_millis().to_string()))?;
        text("sslmode", self.sslmode.clone())?;
        text("sslrootcert", path(&self.sslrootcert))
    }
}

/// Quotes a value of a connection string, where it needs it.
fn quote(value: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "._-/:".contains(char);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_needs_it() {
        let conninfo = ConnInfo {
            host: "fe80::1".into(),
            port: 5432,
            user: "it's \\ me".into(),
            application_name: Some(String::new()),
            passfile: Some("/run/my pass".into()),
            ..ConnInfo::default()
        };
        assert_eq!(
            conninfo.to_string(),
            r"host=fe80::1 port=5432 user='it\'s \\ me' application_name='' passfile='/run/my pass'"
        );
    }

    #[test]
    fn renders_timeouts_in_libpqs_units() {
        let text = ConnInfo::new("pg-1", 5432, "rhone_replicator").to_string();
        assert_eq!(
            text,
            "host=pg-1 port=5432 user=rhone_replicator connect_timeout=2 keepalives_idle=2 \
             keepalives_interval=1 keepalives_count=3 tcp_user_timeout=5000"
        );
    }
}
