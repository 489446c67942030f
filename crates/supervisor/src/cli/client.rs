//! Finds a member that answers: the local socket first, then its peers, then whoever leads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::args::{Global, TlsFlags};
use super::exit::{CliError, Exit};
use crate::api::access::PASSED_ON_KEY;
use crate::api::proto::v1::admin_client::AdminClient;
use crate::api::socket;
use crate::config::{self, Config, Environment, Tls};
use crate::status::OperatorError;
use crate::tls::{DialError, Dialer, Security, TlsError, TlsFiles};

/// A member that does not accept a connection in so long is passed over.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A question that changes nothing is put to the next member after so long.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// A change is unknown after so long; a switchover has a shorter deadline of its own.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// Following "somebody else leads" more often than this is going in circles.
const MAX_REDIRECTS: usize = 3;
/// How often is asked who leads, while nobody does: for the time of several elections.
const LEADER_ROUNDS: u32 = 25;
/// Between two rounds of asking who leads.
const LEADER_AGAIN: Duration = Duration::from_millis(200);
/// Where gRPC listens unless a port is named.
const DEFAULT_PORT: u16 = 7400;

/// A way to a member.
#[derive(Clone, Debug)]
enum Target {
    /// The local socket in this state directory.
    Local(PathBuf),
    /// `host:port`.
    Remote(String),
}

impl Target {
    fn of(host: &str) -> Self {
        let has_port = host.rsplit_once(':').is_some_and(|(before, port)| {
            port.parse::<u16>().is_ok() && (!before.contains(':') || before.ends_with(']'))
        });
        let bare_v6 = !has_port && host.contains(':') && !host.starts_with('[');
        match (has_port, bare_v6) {
            (true, _) => Self::Remote(host.to_owned()),
            (false, true) => Self::Remote(format!("[{host}]:{DEFAULT_PORT}")),
            (false, false) => Self::Remote(format!("{host}:{DEFAULT_PORT}")),
        }
    }

    /// Takes what a person typed.
    fn typed(host: &str) -> Result<Self, CliError> {
        let host = host.trim();
        let bad = |why: &str| {
            Err(CliError::new(Exit::Usage, format!("`--host`: \"{host}\" {why}"))
                .hint("`--host 10.0.0.11`, `--host pg-1.lan:7400` or `--host [fd00::11]:7400`"))
        };
        let bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !bare_v6 && !host.ends_with(']') => (name, Some(port)),
            Some(_) | None => (host, None),
        };
        let bracketed = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let named =
            |name: &str| name.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char));
        if port.is_some_and(|port| port.parse::<u16>().ok().is_none_or(|port| port == 0)) {
            return bad("has no port between 1 and 65535 after its colon");
        }
        match bracketed {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => Ok(Self::of(host)),
            None if bare_v6 || (!name.is_empty() && named(name)) => Ok(Self::of(host)),
            Some(_) | None => bad("is no host"),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Local(dir) => dir.join(socket::SOCKET_NAME).display().to_string(),
            Self::Remote(address) => address.clone(),
        }
    }

    async fn connect(&self, dialer: &Dialer) -> Result<Channel, DialError> {
        match self {
            Self::Remote(address) => dialer.connect(address).await,
            Self::Local(dir) => {
                let dir = dir.clone();
                let connector = service_fn(move |_| {
                    let dir = dir.clone();
                    async move { socket::connect(&dir).await.map(TokioIo::new) }
                });
                let endpoint = Endpoint::from_static("http://local");
                let connected = endpoint.connect_with_connector(connector).await;
                connected.map_err(|error| DialError::Failed(chain(&error)))
            }
        }
    }
}

/// How members are reached, and whether it is with a member's own certificate: that one is good for
/// passing on what the member's socket could not answer.
struct Way {
    dialer: Dialer,
    mark: Mark,
}

/// Marks what is passed on from a member's own machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(bool);

impl Interceptor for Mark {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if self.0 {
            request.metadata_mut().insert(PASSED_ON_KEY, MetadataValue::from_static("1"));
        }
        Ok(request)
    }
}

/// A client of the service that operators use.
pub(super) type Client = AdminClient<InterceptedService<Channel, Mark>>;

/// Takes the certificate that the flags name, else that of the member on this machine.
fn way(global: &Global) -> Result<Way, CliError> {
    let bad = |error: TlsError| {
        CliError::new(Exit::Usage, error.to_string()).hint("`rhone certs show` reads a certificate")
    };
    let variables = config::environment();
    let configured = global.config.is_some() || PathBuf::from(config::DEFAULT_PATH).exists();
    if let Some(files) = operators_files(global, configured, &variables)? {
        let security = Security::of_operator(&files).map_err(bad)?;
        return Ok(Way { dialer: Dialer::Tls(Arc::new(security)), mark: Mark(false) });
    }
    if !configured {
        return Ok(Way { dialer: Dialer::Plain, mark: Mark(false) });
    }
    let config = load_config(global)?;
    match &config.tls {
        Tls::LoopbackOnly | Tls::Insecure => Ok(Way { dialer: Dialer::Plain, mark: Mark(false) }),
        // Somebody who may use the local socket and not read the key still gets what the socket says.
        Tls::Mutual(files) => Ok(match Security::load(&config.cluster, files) {
            Ok(security) => {
                Way { dialer: Dialer::Tls(Arc::new(security)), mark: Mark(global.hosts.is_empty()) }
            }
            Err(error) if global.hosts.is_empty() => {
                Way { dialer: Dialer::Unusable(error.to_string()), mark: Mark(false) }
            }
            Err(error) => return Err(bad(error)),
        }),
    }
}

/// Returns the files of an operator. Variables beside a configuration are the member's own, over its file, as in a pod,
/// unless other members are named.
fn operators_files(
    global: &Global,
    configured: bool,
    variables: &Environment,
) -> Result<Option<TlsFiles>, CliError> {
    match global.tls.typed(variables)? {
        None if !configured => TlsFlags::variables(variables),
        None if !global.hosts.is_empty() => Ok(TlsFlags::variables(variables).ok().flatten()),
        typed => Ok(typed),
    }
}

/// The last cause is what an operator can do something about.
fn chain(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Loads the configuration that the flags name, or the default one.
pub(super) fn load_config(global: &Global) -> Result<Config, CliError> {
    let path = global.config.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_PATH));
    Ok(Config::load(&path, &config::environment())?)
}

/// Returns the addresses that a new member can join at: those that this command would ask.
pub(super) fn addresses(global: &Global) -> Result<Vec<String>, CliError> {
    if global.hosts.is_empty() {
        return Ok(load_config(global)?.node.peers.iter().map(ToString::to_string).collect());
    }
    Ok(targets(global)?.iter().map(Target::shown).collect())
}

fn targets(global: &Global) -> Result<Vec<Target>, CliError> {
    if !global.hosts.is_empty() {
        return global.hosts.iter().map(|host| Target::typed(host)).collect();
    }
    if global.config.is_none() && !PathBuf::from(config::DEFAULT_PATH).exists() {
        let message = format!("no member to ask: there is no {}", config::DEFAULT_PATH);
        return Err(CliError::new(Exit::Usage, message)
            .hint("name a member with `--host HOST`, or its configuration with `-c FILE`, before the verb"));
    }
    let config = load_config(global)?;
    let own = Target::Local(config.node.state_dir.clone());
    let peers = config.node.peers.iter().filter(|peer| **peer != config.node.advertise);
    Ok(std::iter::once(own).chain(peers.map(|peer| Target::Remote(peer.to_string()))).collect())
}

/// Asks the first member that answers; follows to the leader when that member says so, and waits a
/// while for one when nobody leads: that changes nothing, and an election is soon over.
///
/// With `changes`, a call that was cut short may have been heard and is not repeated elsewhere.
pub(super) async fn ask<T>(
    global: &Global,
    changes: bool,
    call: impl AsyncFn(Client) -> Result<T, OperatorError>,
) -> Result<T, CliError> {
    let mut rounds = 0;
    loop {
        rounds += 1;
        match ask_once(global, changes, &call).await {
            Err(Asked::NobodyLeads(_)) if rounds < LEADER_ROUNDS => tokio::time::sleep(LEADER_AGAIN).await,
            Err(Asked::NobodyLeads(error)) => return Err(error.into()),
            Err(Asked::Failed(error)) => return Err(error),
            Ok(answer) => return Ok(answer),
        }
    }
}

/// Why a round of asking brought no answer.
enum Asked {
    /// Members answered, and nobody led just then.
    NobodyLeads(OperatorError),
    /// All else.
    Failed(CliError),
}

async fn ask_once<T>(
    global: &Global,
    changes: bool,
    call: &impl AsyncFn(Client) -> Result<T, OperatorError>,
) -> Result<T, Asked> {
    let limit = if changes { CHANGE_LIMIT } else { READ_LIMIT };
    let way = way(global).map_err(Asked::Failed)?;
    let mut queue: Vec<Target> = targets(global).map_err(Asked::Failed)?;
    queue.reverse();
    let (mut redirects, mut tried) = (0, Vec::new());
    let (mut last, mut distrusted) = (None, false);
    while let Some(target) = queue.pop() {
        let client = match tokio::time::timeout(CONNECT_LIMIT, target.connect(&way.dialer)).await {
            Ok(Ok(channel)) => AdminClient::with_interceptor(channel, way.mark),
            Ok(Err(error)) => {
                distrusted |= matches!(error, DialError::Distrusted(_));
                tried.push(format!("{}: {error}", target.shown()));
                continue;
            }
            Err(_late) => {
                tried.push(format!("{}: no answer", target.shown()));
                continue;
            }
        };
        let answer = tokio::time::timeout(limit, call(client)).await.unwrap_or(Err(OperatorError::Unknown));
        match answer {
            Ok(answer) => return Ok(answer),
            Err(OperatorError::NotLeader { leader: Some(leader) }) if redirects < MAX_REDIRECTS => {
                redirects += 1;
                queue.push(Target::of(&leader));
                // Should that one be gone, another is being elected.
                last = Some(OperatorError::NotLeader { leader: None });
            }
            Err(OperatorError::Unknown) if !changes => {
                tried.push(format!("{}: connected, but it did not answer", target.shown()));
            }
            Err(error @ (OperatorError::NoQuorum | OperatorError::NotLeader { .. })) => last = Some(error),
            Err(error) => return Err(Asked::Failed(error.into())),
        }
    }
    match last {
        Some(error) => Err(Asked::NobodyLeads(error)),
        None if distrusted => Err(Asked::Failed(
            CliError::new(Exit::Refused, format!("no member is believed ({})", tried.join("; "))).hint(
                "`rhone certs show` shows who signed the certificates here; `--ca FILE` believes others",
            ),
        )),
        None => Err(Asked::Failed(
            CliError::new(Exit::NoQuorum, format!("no member answers ({})", tried.join("; ")))
                .hint("is `rhone run` at work there? `--host HOST` asks another member"),
        )),
    }
}

/// Draws a key that makes a repeated call the same call.
pub(super) fn idempotency_key() -> Result<String, CliError> {
    let drawn =
        getrandom::u64().map_err(|error| CliError::failed(format!("draw a random number: {error}")))?;
    Ok(format!("{drawn:016x}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn variables_are_an_operators_where_no_member_is_configured() {
        const ALL: &str = "CA=a CERT=b KEY=c";
        let cases = [
            // flags, a configuration is there, variables, the files that are shown
            ("", false, "", Ok(None)),
            ("", false, ALL, Ok(Some("a b c"))),
            ("", false, "CERT=b KEY=c", Err(())),
            ("", true, ALL, Ok(None)),
            ("", true, "CERT=b KEY=c", Ok(None)),
            ("--host pg-2", true, ALL, Ok(Some("a b c"))),
            ("--host pg-2", true, "CERT=b KEY=c", Ok(None)),
            ("--ca x --cert y --key z", true, ALL, Ok(Some("x y z"))),
            ("--cert y --key z", true, ALL, Ok(Some("a y z"))),
            ("--ca x", true, "", Err(())),
        ];
        for (flags, configured, variables, expected) in cases {
            let words = ["rhone"].into_iter().chain(flags.split_whitespace()).chain(["status"]);
            let cli = Cli::try_parse_from(words).expect("flags");
            let variables = variables.split_whitespace().filter_map(|word| word.split_once('='));
            let variables =
                variables.map(|(name, value)| (format!("RHONE_TLS_{name}"), value.to_owned())).collect();
            let found = operators_files(&cli.global, configured, &variables);
            let shown = |files: TlsFiles| {
                [files.ca, files.cert, files.key].map(|file| file.display().to_string()).join(" ")
            };
            let found = found.map(|files| files.map(shown)).map_err(drop);
            assert_eq!(
                found.as_ref().map(Option::as_deref),
                expected.as_ref().copied(),
                "{flags} {configured}"
            );
        }
    }
}
