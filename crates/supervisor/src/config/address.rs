//! ✦ `host:port`, where the host may be a DNS name that is resolved anew at each connection.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host (IP address or DNS name) and a port. Printed as written, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// IP address without brackets, or DNS name.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl Address {
    /// Gives the IP address when the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Says whether nothing beyond this machine can be meant.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Says whether it means every interface (`0.0.0.0`, `[::]`): fit to listen on, not to reach.
    pub fn is_wildcard(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| format!("\"{text}\" has no port; write host:port"))?;
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            Ok(_) | Err(_) => return Err(format!("\"{port}\" is not a port; ports are 1 to 65535")),
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inside) => {
                let address = inside.parse::<std::net::Ipv6Addr>();
                address.map_err(|_| format!("\"{inside}\" is not an IPv6 address"))?.to_string()
            }
            None if host.contains(':') => {
                return Err(format!("write the IPv6 address in brackets: [{host}]:{port}"));
            }
            None => checked_host(host)?,
        };
        Ok(Self { host, port })
    }
}

/// Accepts an IPv4 address or a DNS name (RFC 1123; `_` too, as Compose's service names have it).
fn checked_host(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("the host is missing; write host:port".to_owned());
    }
    let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric && host.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(format!("\"{host}\" is not an IPv4 address"));
    }
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(good_label) {
        return Err(format!("\"{host}\" is neither an IP address nor a DNS name"));
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<Address>() {
            Ok(address) => format!("{address} loopback={}", address.is_loopback()),
            Err(error) => error,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn reads_addresses_and_says_what_is_wrong_with_others() {
        check("10.0.0.11:7400", "10.0.0.11:7400 loopback=false");
        check("127.0.0.3:1", "127.0.0.3:1 loopback=true");
        check("[::1]:7400", "[::1]:7400 loopback=true");
        check(
            "pg-0.pg.default.svc.cluster.local:7400",
            "pg-0.pg.default.svc.cluster.local:7400 loopback=false",
        );
        check("10.0.0.11", "\"10.0.0.11\" has no port; write host:port");
        check("10.0.0.11:0", "\"0\" is not a port; ports are 1 to 65535");
        check("10.0.0.11:99999", "\"99999\" is not a port; ports are 1 to 65535");
        check("10.0.0.256:1", "\"10.0.0.256\" is not an IPv4 address");
        check(":7400", "the host is missing; write host:port");
        check("::1:7400", "write the IPv6 address in brackets: [::1]:7400");
        check("a b:7400", "\"a b\" is neither an IP address nor a DNS name");
    }
}
