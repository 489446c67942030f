//! Connections that we make: over TLS to a member of our cluster, or plainly where that is allowed.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rhone_consensus::transport::{Batched, Connector, Wire, connect_lazily, prepare};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::certificate::{Certificate, Role};
use super::doubt::{Believed, Doubt};
use super::security::Security;

/// Name, TCP and TLS together: a peer that accepts and then says nothing is given up (RUST.md 4).
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How members, and operators, reach members.
#[derive(Clone, Debug)]
pub enum Dialer {
    /// Without TLS.
    Plain,
    /// With the certificates in force at the time of each connection.
    Tls(Arc<Security>),
    /// Not at all: the certificates cannot be used, for this reason.
    Unusable(String),
    /// Over another network: the simulation's.
    Other(Arc<dyn Connector>),
}

impl Dialer {
    /// Makes a channel to `host:port` that connects at its first use, and again when it is lost.
    ///
    /// # Errors
    /// The address is none.
    pub fn channel(&self, address: &str) -> Result<Wire, String> {
        let endpoint = endpoint(address)?;
        match self {
            Self::Plain => Ok(Wire::Channel(connect_lazily(endpoint))),
            Self::Tls(security) => {
                let security = Arc::clone(security);
                let dial = service_fn(move |uri| dial(Arc::clone(&security), uri));
                Ok(Wire::Channel(prepare(endpoint).connect_with_connector_lazy(dial)))
            }
            Self::Other(connector) => connector.channel(address),
            Self::Unusable(reason) => Err(reason.clone()),
        }
    }

    /// Connects to `host:port` at once.
    ///
    /// # Errors
    /// In words, why there is no connection.
    pub async fn connect(&self, address: &str) -> Result<Channel, DialError> {
        let endpoint = endpoint(address).map_err(DialError::Failed)?.connect_timeout(CONNECT_LIMIT);
        let connected = match self {
            Self::Plain => endpoint.connect().await,
            Self::Tls(security) => {
                let security = Arc::clone(security);
                let dial = service_fn(move |uri| dial(Arc::clone(&security), uri));
                endpoint.connect_with_connector(dial).await
            }
            Self::Unusable(reason) => return Err(DialError::Failed(reason.clone())),
            Self::Other(_) => return Err(DialError::Failed("not by gRPC's transport".to_owned())),
        };
        connected.map_err(|error| DialError::of(&error))
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Somebody is there, and is not believed.
    #[error("{0}")]
    Distrusted(String),
    /// Nobody answers.
    #[error("{0}")]
    Failed(String),
}

impl DialError {
    fn of(error: &tonic::transport::Error) -> Self {
        let mut cause: Option<&dyn Error> = Some(error);
        while let Some(found) = cause {
            let kind = found.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)) {
                return Self::Distrusted(found.to_string());
            }
            cause = found.source();
        }
        Self::Failed(last_cause(error))
    }
}

impl Connector for Dialer {
    fn channel(&self, address: &str) -> Result<Wire, String> {
        Self::channel(self, address)
    }
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    Endpoint::from_shared(format!("http://{address}")).map_err(|error| last_cause(&error))
}

/// The last cause is what somebody can do something about.
fn last_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Finds, among the causes of a failed call, what TLS had to say: the other side believed us nothing.
pub fn trouble(error: &dyn Error) -> Option<String> {
    let mut cause = Some(error);
    while let Some(found) = cause {
        let text = found.to_string();
        if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            return Some(alert.trim_end_matches(')').to_owned());
        }
        cause = found.source();
    }
    None
}

async fn dial(security: Arc<Security>, uri: Uri) -> io::Result<TokioIo<Batched<Believed>>> {
    let work = connect(&security, &uri);
    let io = tokio::time::timeout(CONNECT_LIMIT, work).await;
    io.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS connection in time")))
        .map(|tls| TokioIo::new(Batched::new(tls)))
}

async fn connect(security: &Arc<Security>, uri: &Uri) -> io::Result<Believed> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let host = uri.host().ok_or_else(|| invalid(format!("{uri} names no host")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| invalid(format!("`{host}` is no host")))?;
    let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(7400))).await?;
    tune(&tcp)?;
    let changes = security.changes();
    let connector = TlsConnector::from(security.client());
    let tls = connector.connect(name, tcp).await.map_err(|error| explain(&error, &host))?;
    security.shook_hands();
    let certificates = tls.get_ref().1.peer_certificates();
    let doubt = Doubt::about(security, changes, certificates);
    let presented =
        certificates.and_then(<[_]>::first).map(Certificate::read).transpose().map_err(invalid)?;
    let who = presented.and_then(|certificate| certificate.identity);
    let member =
        who.as_ref().is_some_and(|who| who.role == Role::Member && who.cluster == security.cluster());
    if !member {
        let who = who.map_or_else(|| "nobody in particular".to_owned(), |who| who.to_string());
        let text =
            format!("its certificate is for {who}, not for a member of cluster {}", security.cluster());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(Believed { tls, doubt })
}

/// TCP as `prepare` has it for connections without TLS.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(2))
        .with_interval(Duration::from_secs(1))
        .with_retries(2);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Says in words that help what rustls says in its own.
#[allow(clippy::wildcard_enum_match_arm, reason = "rustls's errors, of which more may come")]
fn explain(error: &io::Error, host: &str) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match tls {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature => {
                "its certificate is not signed by a CA that is believed here".to_owned()
            }
            rustls::CertificateError::NotValidForName
            | rustls::CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is not good for the host {host}")
            }
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            other => format!("its certificate is refused: {other}"),
        },
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => format!("received fatal alert: {alert:?}"),
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection during TLS".to_owned()
        }
        None => error.to_string(),
    };
    io::Error::new(error.kind(), text)
}

/// Connects as somebody who has the CA, and no certificate or one that the CA did not sign.
#[cfg(test)]
pub(super) async fn connect_as_stranger(
    security: &Security,
    address: &str,
    files: Option<&super::TlsFiles>,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for der in super::files::certificates(security.authority_file()).expect("the CAs") {
        roots.add(der).expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match files {
        None => config.with_no_client_auth(),
        Some(files) => {
            use rustls_pki_types::pem::PemObject;
            let key = rustls_pki_types::PrivateKeyDer::from_pem_file(&files.key).expect("a key");
            let chain = super::files::certificates(&files.cert).expect("a certificate");
            config.with_client_auth_cert(chain, key).expect("they fit")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let target = address.to_owned();
    let dial = service_fn(move |_: Uri| {
        let (connector, target) = (connector.clone(), target.clone());
        async move {
            let tcp = TcpStream::connect(target).await?;
            let name = ServerName::try_from("127.0.0.1").expect("a name");
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    endpoint(address).expect("an address").connect_with_connector(dial).await
}
