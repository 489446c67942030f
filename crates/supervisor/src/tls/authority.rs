//! A private CA in a folder: `ca.crt`, `ca.key`, and what they issue.
//!
//! Only the command line calls it; the folder belongs on the operator's machine, not on the members.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rhone_pgctl::file;
use rhone_pgctl::user::OsUser;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::certificate::{Certificate, Identity, Role};
use super::files::{TlsError, certificates};
use crate::runtime::clock::wall_time;

/// How long a CA lasts, in days: nobody should meet its end unprepared, and rolling it is cheap.
pub const AUTHORITY_DAYS: u32 = 3650;

/// How long what it issues lasts, in days: long enough for a shelf of boards that nobody looks at,
/// and ended before the hardware is.
pub const ISSUED_DAYS: u32 = 1095;

/// The names of the CA's two files.
const CERT: &str = "ca.crt";
const KEY: &str = "ca.key";

/// A CA in a folder.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
}

/// What is to be issued.
#[derive(Clone, Debug)]
pub struct Order {
    /// For whom.
    pub identity: Identity,
    /// Under which names and addresses a member is reached.
    pub hosts: Vec<String>,
    /// For how many days.
    pub days: u32,
}

/// Where an issued certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

impl Authority {
    /// Takes the folder; reads nothing yet.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Returns the file with the CAs that members believe.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join(CERT)
    }

    /// Returns the file with the key, which should leave this machine only in a backup.
    pub fn key_file(&self) -> PathBuf {
        self.folder.join(KEY)
    }

    fn old_key_file(&self) -> PathBuf {
        self.folder.join("ca.key.old")
    }

    /// Makes a CA for a cluster.
    ///
    /// # Errors
    /// One is there already, or the folder cannot be written.
    pub fn init(&self, cluster: &str, days: u32) -> Result<(), TlsError> {
        for file in [self.certificate_file(), self.key_file()] {
            if file.exists() {
                return Err(TlsError { file, reason: "is there already".to_owned() });
            }
        }
        std::fs::create_dir_all(&self.folder).map_err(|error| wrong(&self.folder, &error))?;
        let (cert, key) = make(cluster, days).map_err(|error| wrong(&self.folder, &error))?;
        write(&self.key_file(), key.as_bytes(), 0o600)?;
        write(&self.certificate_file(), cert.as_bytes(), 0o644)
    }

    /// Makes a new CA that will issue from now on; the former ones go on being believed.
    ///
    /// # Errors
    /// There is none yet, or the folder cannot be written.
    pub fn roll(&self, cluster: &str, days: u32) -> Result<(), TlsError> {
        let former = self.text()?;
        let (cert, key) = make(cluster, days).map_err(|error| wrong(&self.folder, &error))?;
        let former_key = std::fs::read(self.key_file()).map_err(|error| wrong(&self.key_file(), &error))?;
        write(&self.old_key_file(), &former_key, 0o600)?;
        // Whatever ends this half-way: the first CA of the file is the one that the key belongs to, or
        // issuing says that it is not.
        write(&self.certificate_file(), format!("{cert}{former}").as_bytes(), 0o644)?;
        write(&self.key_file(), key.as_bytes(), 0o600)
    }

    /// Ends the trust in all but the newest CA.
    ///
    /// # Errors
    /// There is none, or the folder cannot be written.
    pub fn drop_former(&self) -> Result<usize, TlsError> {
        let all = certificates(&self.certificate_file())?;
        let newest = self.newest()?;
        write(&self.certificate_file(), pem(&newest).as_bytes(), 0o644)?;
        let old = self.old_key_file();
        file::remove(&old).map_err(|error| wrong(&old, &error))?;
        Ok(all.len().saturating_sub(1))
    }

    /// Issues a certificate with a key of its own; files of that name are replaced.
    ///
    /// # Errors
    /// There is no CA, its key is not that of the newest one, or the folder cannot be written.
    pub fn issue(&self, order: &Order) -> Result<Issued, TlsError> {
        let newest = self.newest()?;
        let ca = Certificate::read(&newest)
            .map_err(|reason| TlsError { file: self.certificate_file(), reason })?;
        let key_file = self.key_file();
        let text = std::fs::read_to_string(&key_file).map_err(|error| wrong(&key_file, &error))?;
        let ca_key = KeyPair::from_pem(&text).map_err(|error| wrong(&key_file, &error))?;
        if !belongs(&newest, &ca_key) {
            let reason =
                format!("is not the key of the first certificate in {}", self.certificate_file().display());
            return Err(TlsError { file: key_file, reason });
        }
        let issuer = Issuer::from_ca_cert_der(&newest, ca_key).map_err(|error| wrong(&key_file, &error))?;
        let name = &order.identity.name;
        let files = Issued {
            cert: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        };
        let made = KeyPair::generate().and_then(|key| {
            let cert = parameters(order, &ca)?.signed_by(&key, &issuer)?;
            Ok((cert.pem(), key.serialize_pem()))
        });
        let (cert, key) = made.map_err(|error| wrong(&files.cert, &error))?;
        write(&files.key, key.as_bytes(), 0o600)?;
        write(&files.cert, cert.as_bytes(), 0o644)?;
        Ok(files)
    }

    /// Returns the name of the cluster that the CA was made for.
    pub fn cluster(&self) -> Option<String> {
        let newest = Certificate::read(&self.newest().ok()?).ok()?;
        newest.subject.strip_prefix("CN=rhone ")?.split(' ').next().map(str::to_owned)
    }

    fn newest(&self) -> Result<CertificateDer<'static>, TlsError> {
        let file = self.certificate_file();
        let mut all = certificates(&file)?;
        if all.is_empty() {
            return Err(TlsError { file, reason: "no certificate in it".to_owned() });
        }
        Ok(all.swap_remove(0))
    }

    fn text(&self) -> Result<String, TlsError> {
        certificates(&self.certificate_file()).map(|all| all.iter().map(pem).collect())
    }
}

fn wrong(file: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError { file: file.to_owned(), reason: error.to_string() }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    file::replace(path, content, &OsUser::current(), mode).map(drop).map_err(|error| wrong(path, &error))
}

fn pem(der: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut lines = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        lines.push_str(line);
        lines.push('\n');
        rest = tail;
    }
    lines.push_str("-----END CERTIFICATE-----\n");
    lines
}

/// Says whether a certificate is about this key.
fn belongs(der: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData;
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(der)
        .is_ok_and(|(_, cert)| cert.public_key().raw == key.subject_public_key_info())
}

/// From when on a certificate is valid: a board without a battery for its clock starts in 1970, and
/// must find its peers before it can ask what time it is. In a private CA that date protects nothing.
fn beginning() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
}

fn in_days(days: u32) -> OffsetDateTime {
    let now = OffsetDateTime::UNIX_EPOCH.saturating_add(whole_seconds(wall_time() / 1000));
    now.saturating_add(whole_seconds(u64::from(days) * 86_400))
}

fn whole_seconds(seconds: u64) -> time::Duration {
    time::Duration::try_from(Duration::from_secs(seconds)).unwrap_or(time::Duration::MAX)
}

fn make(cluster: &str, days: u32) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    // Two CAs of one cluster are told apart by their names.
    let mark = getrandom::u32().map_err(|_| rcgen::Error::RingUnspecified)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("rhone {cluster} {mark:08x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = beginning();
    params.not_after = in_days(days);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn parameters(order: &Order, ca: &Certificate) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationalUnitName, order.identity.role.name());
    params.distinguished_name.push(DnType::CommonName, order.identity.name.as_str());
    params.subject_alt_names.push(SanType::URI(order.identity.to_string().try_into()?));
    for host in &order.hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    // Nobody but a member is ever taken for one.
    if order.identity.role == Role::Member {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    params.not_before = beginning();
    let end = OffsetDateTime::UNIX_EPOCH.saturating_add(whole_seconds(ca.not_after.as_ms() / 1000));
    params.not_after = in_days(order.days).min(end);
    Ok(params)
}
