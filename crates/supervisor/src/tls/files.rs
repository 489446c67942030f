//! Reads the three files of `[tls]` into what rustls needs, and finds out what is wrong with them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::certificate::Certificate;
use crate::runtime::clock::wall_time;

/// Both sides of our connections speak HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

/// The most bytes of one of these files.
const FILE_LIMIT: u64 = 1 << 20;

/// `[tls]`: where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CAs that are believed, one or several, PEM.
    pub ca: PathBuf,
    /// Our own certificate, with intermediate ones where there are any, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why the files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct TlsError {
    /// Which of them.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The files as they were read.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    /// For connections that we make.
    pub(super) client: Arc<ClientConfig>,
    /// For connections that are made to us.
    pub(super) server: Arc<ServerConfig>,
    /// Who is believed.
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Our own certificate.
    pub(super) own: Certificate,
    /// The CAs that are believed.
    pub(super) authorities: Vec<Certificate>,
}

/// What tells a changed file from the one that was read: inode, size and time of change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint([(u64, u64, i64, i64); 3]);

impl TlsFiles {
    /// Looks at the files without reading them; one that is away counts as changed.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint([&self.ca, &self.cert, &self.key].map(|file| {
            std::fs::metadata(file)
                .map_or((0, 0, 0, 0), |meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        }))
    }

    /// Reads the files and checks that they belong together. An expired certificate is taken: its
    /// successor may come while we run.
    pub(super) fn load(&self) -> Result<Loaded, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong = |file: &Path, reason: String| TlsError { file: file.to_owned(), reason };
        let authorities = certificates(&self.ca)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots
                .add(authority.clone())
                .map_err(|error| wrong(&self.ca, format!("not a CA that can be used: {error}")))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&self.cert)?;
        let own = chain.first().ok_or_else(|| wrong(&self.cert, "no certificate in it".to_owned()))?;
        let described = Certificate::read(own).map_err(|reason| wrong(&self.cert, reason))?;
        let certified = certified(&provider, &chain, private_key(&self.key)?)
            .map_err(|error| wrong(&self.key, format!("does not fit {}: {error}", self.cert.display())))?;
        // Those without a certificate get as far as an answer that says so.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| wrong(&self.ca, error.to_string()))?;
        let now = wall_time();
        signed_by_us(verifier.as_ref(), &chain, now).map_err(|reason| {
            wrong(&self.cert, format!("{} does not vouch for it: {reason}", self.ca.display()))
        })?;
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        let version = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(version)
            .map_err(|error| wrong(&self.cert, error.to_string()))?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::clone(&resolver) as _);
        // No session outlives the certificates that it was made with; connections live for weeks, so
        // that nothing is saved by resuming them.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(version)
            .map_err(|error| wrong(&self.cert, error.to_string()))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver);
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let authorities = authorities
            .iter()
            .map(|der| Certificate::read(der).map_err(|reason| wrong(&self.ca, reason)))
            .collect::<Result<_, _>>()?;
        let (client, server) = (Arc::new(client), Arc::new(server));
        Ok(Loaded { client, server, verifier, own: described, authorities })
    }

    /// Says what is wrong with the files, as far as can be seen without another machine.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Certificate, TlsError> {
        let mode = std::fs::metadata(&self.key).map_or(0, |meta| meta.permissions().mode());
        if mode & 0o007 != 0 {
            let reason = format!("everybody on this machine may use the key (mode {:03o})", mode & 0o777);
            return Err(TlsError { file: self.key.clone(), reason });
        }
        self.load().map(|loaded| loaded.own)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |reason: String| TlsError { file: file.to_owned(), reason };
    let meta = std::fs::metadata(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if meta.len() > FILE_LIMIT {
        return Err(wrong(format!("{} bytes are too many", meta.len())));
    }
    std::fs::read(file).map_err(|error| wrong(format!("cannot be read: {error}")))
}

/// Reads the certificates of a PEM file, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError { file: file.to_owned(), reason };
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| wrong(format!("not PEM: {error}")))?;
    if found.is_empty() { Err(wrong("no certificate in it".to_owned())) } else { Ok(found) }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|error| TlsError {
        file: file.to_owned(),
        reason: format!("no private key in PEM: {error}"),
    })
}

fn certified(
    provider: &CryptoProvider,
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain.to_vec(), key, provider)
}

/// Makes sure that a CA of ours vouches for a certificate, a member's as well as a person's; at `now`, in milliseconds
/// since 1970, it may have expired.
pub(super) fn signed_by_us(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'static>],
    now: u64,
) -> Result<(), String> {
    let Some((own, between)) = chain.split_first() else { return Err("there is none".to_owned()) };
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now));
    match verifier.verify_client_cert(own, between, now) {
        Ok(_)
        | Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads what the certificates of a PEM file say.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn certificates_of(file: &Path) -> Result<Vec<Certificate>, TlsError> {
    let read = |der| Certificate::read(der).map_err(|reason| TlsError { file: file.to_owned(), reason });
    certificates(file)?.iter().map(read).collect()
}
