//! ✦ What a certificate says: for whom it is, in which role, and until when.

use std::fmt;
use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::civil::WallTime;

/// The scheme of the name that carries the role: `rhone://CLUSTER/ROLE/NAME`.
const SCHEME: &str = "rhone://";

/// What the holder of a certificate may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A supervisor: Raft, the lease, reports.
    Member,
    /// An operator who may change things.
    Admin,
    /// Somebody who may only look.
    Observer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Observer];

    /// Returns its name in certificates and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Observer => "observer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who a certificate is for. Printed as the name that certificates carry, `rhone://main/member/pg-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The role.
    pub role: Role,
    /// The member's or the person's name.
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Identity {
    /// Reads a name of the form `rhone://CLUSTER/ROLE/NAME`; anything else is nobody.
    pub fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix(SCHEME)?;
        let mut parts = rest.split('/');
        let (cluster, role, name) = (parts.next()?, parts.next()?, parts.next()?);
        let role = Role::ALL.into_iter().find(|known| known.name() == role)?;
        let good = |text: &str| {
            (1..=63).contains(&text.len())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        (parts.next().is_none() && good(cluster) && good(name)).then(|| Self {
            cluster: cluster.to_owned(),
            role,
            name: name.to_owned(),
        })
    }
}

/// What `rhone certs show` prints of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// For whom it was made.
    pub subject: String,
    /// By whom.
    pub issuer: String,
    /// Whether it may sign others.
    pub ca: bool,
    /// Who its holder is; none for a CA, and for one that names nobody or several.
    pub identity: Option<Identity>,
    /// The hosts that it is good for: DNS names and addresses.
    pub hosts: Vec<String>,
    /// From when on it is valid.
    pub not_before: WallTime,
    /// Until when.
    pub not_after: WallTime,
    /// Its serial number in hexadecimal, with colons.
    pub serial: String,
}

impl Certificate {
    /// Reads a certificate; what it does not say in the expected way is left out.
    ///
    /// # Errors
    /// Says that it is no certificate.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("no X.509 certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("something follows the certificate".to_owned());
        }
        let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let mut hosts = Vec::new();
        let mut identities = Vec::new();
        for name in names {
            if let GeneralName::DNSName(host) = name {
                hosts.push((*host).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name {
                hosts.extend(address(bytes).map(|ip| ip.to_string()));
            } else if let GeneralName::URI(uri) = name {
                identities.extend(Identity::parse(uri));
            }
        }
        let ca = parsed.is_ca();
        let identity = if identities.len() == 1 && !ca { identities.pop() } else { None };
        let validity = parsed.validity();
        let time = |seconds: i64| WallTime::from_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            ca,
            identity,
            hosts,
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
            serial: parsed.raw_serial_as_string(),
        })
    }

    /// Returns how many seconds are left at `now`; negative once it has expired.
    pub fn seconds_left(&self, now: WallTime) -> i64 {
        let seconds = |time: WallTime| i64::try_from(time.as_ms() / 1000).unwrap_or(i64::MAX);
        seconds(self.not_after).saturating_sub(seconds(now))
    }

    /// Returns how many days are left at `now`, as people count them ([`days`]).
    pub fn days_left(&self, now: WallTime) -> i64 {
        days(self.seconds_left(now))
    }
}

/// Counts days as people do: what was issued for 30 has 30 left, and 1 on its last; below 0 it has expired.
fn days(seconds: i64) -> i64 {
    const DAY: i64 = 86_400;
    if seconds > 0 {
        seconds.saturating_add(DAY - 1).div_euclid(DAY)
    } else {
        seconds.div_euclid(DAY).min(-1)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uri: &str, expected: Option<(Role, &str)>) {
        let found = Identity::parse(uri);
        assert_eq!(found.as_ref().map(|who| (who.role, who.name.as_str())), expected, "{uri}");
        if let Some(found) = found {
            assert_eq!(found.to_string(), uri);
        }
    }

    #[test]
    fn only_a_whole_name_is_somebody() {
        check("rhone://main/member/pg-1", Some((Role::Member, "pg-1")));
        check("rhone://main/admin/anna", Some((Role::Admin, "anna")));
        check("rhone://main/observer/grafana", Some((Role::Observer, "grafana")));
        for nobody in [
            "rhone://main/root/pg-1",
            "rhone://main/Admin/anna",
            "rhone://main/member/",
            "rhone:///member/pg-1",
            "rhone://main/member/pg-1/x",
            "rhone://main/member/pg 1",
            "rhone://main/member",
            "https://main/member/pg-1",
            "",
        ] {
            check(nobody, None);
        }
    }

    #[test]
    fn days_are_counted_as_people_count_them() {
        let day = 86_400;
        for (seconds, expected) in
            [(30 * day, 30), (30 * day - 1, 30), (29 * day, 29), (1, 1), (0, -1), (-1, -1), (-day - 1, -2)]
        {
            assert_eq!(days(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn garbage_is_no_certificate() {
        for bytes in [&b""[..], &b"\x30"[..], &b"\x30\x82\xff\xff"[..], &[0xff; 64][..]] {
            Certificate::read(&CertificateDer::from(bytes)).expect_err("garbage");
        }
    }
}
