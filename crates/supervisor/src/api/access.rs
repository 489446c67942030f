//! Who may call what: decided in front of every service, from the certificate of the connection.
//!
//! A method that is not listed here as one that only looks is one that changes something, so that a
//! new one is closed to observers until somebody has thought about it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use rhone_consensus::transport::Certified;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::convert::refusal;
use crate::tls::{Peer, Presented, Role};

/// Metadata with which the command line on a member passes on what that member's socket could not
/// answer because another one leads.
pub const PASSED_ON_KEY: &str = "rhone-passed-on";

/// The calls of `Admin` that change nothing.
const LOOKS: [&str; 9] =
    ["Status", "Explain", "History", "Dsn", "Events", "Settings", "SettingsHistory", "Watch", "Doctor"];

/// What somebody without a certificate can do.
const NEEDED: &str = "`rhone certs issue NAME --role admin` makes one; name its files with --ca, --cert and --key, \
                      or in [tls] of the configuration";

/// Who a request comes from, as far as its connection shows.
#[derive(Clone, Copy, Debug)]
enum Caller<'a> {
    /// Somebody on this machine, by the local socket.
    Local { uid: Option<u32> },
    /// Somebody on the network.
    Remote(&'a Peer),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// What supervisors say to each other.
    Members,
    /// To change something.
    Change { passed_on: bool },
    /// To look.
    Look,
    /// Whether anybody is there: gRPC's own health check.
    Health,
}

/// The rules, for one listener.
#[derive(Clone, Debug)]
pub struct Access {
    cluster: Arc<str>,
    uids: Arc<[u32]>,
    refused: Arc<AtomicU64>,
}

impl Access {
    /// Takes the cluster's name, the users who may use the local socket, and a counter of refusals.
    pub fn new(cluster: &str, uids: &[u32], refused: Arc<AtomicU64>) -> Self {
        Self { cluster: cluster.into(), uids: uids.into(), refused }
    }

    fn judge(&self, caller: Caller<'_>, asked: Asked) -> Result<Option<Certified>, Status> {
        let peer = match caller {
            Caller::Local { uid } => return self.local(uid).map(|()| None),
            Caller::Remote(peer) => peer,
        };
        let identity = match (&peer.presented, asked) {
            (Presented::Plaintext, _)
            | (Presented::Unencrypted | Presented::Nothing | Presented::Nobody, Asked::Health) => {
                return Ok(None);
            }
            (Presented::Unencrypted, _) => {
                return Err(refusal(
                    Code::Unauthenticated,
                    "TLS and a client certificate are needed here",
                    Some(NEEDED),
                ));
            }
            (Presented::Nothing, _) => {
                return Err(refusal(
                    Code::Unauthenticated,
                    "a client certificate is needed here",
                    Some(NEEDED),
                ));
            }
            (Presented::Nobody, _) => {
                let text =
                    "the certificate names no role: it needs one URI of the form rhone://CLUSTER/ROLE/NAME";
                return Err(refusal(
                    Code::Unauthenticated,
                    text,
                    Some("`rhone certs show FILE` shows what it names"),
                ));
            }
            (Presented::Identity(identity), _) => identity,
        };
        if *identity.cluster != *self.cluster {
            let text = format!("the certificate is for {identity}, and this is cluster {}", self.cluster);
            let hint =
                "`rhone certs show FILE` shows for which cluster it is; `--cert` and `--key` name another";
            return Err(refusal(Code::PermissionDenied, &text, Some(hint)));
        }
        let allowed = match (asked, identity.role) {
            (Asked::Health | Asked::Look, Role::Member | Role::Admin | Role::Observer)
            | (Asked::Members | Asked::Change { passed_on: true }, Role::Member)
            | (Asked::Change { .. }, Role::Admin) => true,
            (Asked::Members, Role::Admin | Role::Observer)
            | (Asked::Change { .. }, Role::Observer)
            | (Asked::Change { passed_on: false }, Role::Member) => false,
        };
        if allowed {
            return Ok((identity.role == Role::Member).then(|| Certified { name: identity.name.clone() }));
        }
        let (what, hint) = match asked {
            Asked::Members => ("only members may call this", None),
            Asked::Change { .. } | Asked::Look | Asked::Health => (
                "changes need a certificate with the role admin",
                Some(
                    "`rhone certs issue NAME --role admin` makes one; on a member, the local socket needs none",
                ),
            ),
        };
        Err(refusal(Code::PermissionDenied, &format!("{identity} may not do that: {what}"), hint))
    }

    fn local(&self, uid: Option<u32>) -> Result<(), Status> {
        if uid.is_some_and(|uid| self.uids.contains(&uid)) {
            return Ok(());
        }
        let who = uid.map_or_else(|| "somebody unknown".to_owned(), |uid| format!("user {uid}"));
        let text = format!("{who} may not use the local socket");
        Err(refusal(
            Code::PermissionDenied,
            &text,
            Some("run it as root, or as the owner of the data directory"),
        ))
    }

    fn check<B>(&self, request: &Request<B>) -> Result<Option<Certified>, Status> {
        let local = request.extensions().get::<UdsConnectInfo>();
        let caller = match (local, request.extensions().get::<Peer>()) {
            (Some(info), _) => Caller::Local { uid: info.peer_cred.map(|cred| cred.uid()) },
            (None, Some(peer)) => Caller::Remote(peer),
            (None, None) => return Err(Status::internal("a connection of an unknown kind")),
        };
        let passed_on = request.headers().contains_key(PASSED_ON_KEY);
        let verdict = self.judge(caller, asked(request.uri().path(), passed_on));
        if let Err(status) = &verdict {
            // Counted always, told only at DEBUG: a stranger must not be able to fill the log.
            self.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(path = request.uri().path(), reason = status.message(), "refused a call");
        }
        verdict
    }
}

/// Reads from a path, `/package.Service/Method`, what is asked for.
fn asked(path: &str, passed_on: bool) -> Asked {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    match service {
        "grpc.health.v1.Health" => Asked::Health,
        "rhone.v1.Admin" if !LOOKS.contains(&method) => Asked::Change { passed_on },
        "rhone.v1.Raft" | "rhone.v1.Agent" => Asked::Members,
        "rhone.v1.Admin" => Asked::Look,
        service if service.starts_with("grpc.reflection.") => Asked::Look,
        // Nothing answers there; should it ever, it is closed.
        _ => Asked::Change { passed_on: false },
    }
}

impl<S> Layer<S> for Access {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: self.clone() }
    }
}

/// A service behind the rules.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    access: Access,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.access.check(&request) {
            Ok(certified) => {
                if let Some(certified) = certified {
                    request.extensions_mut().insert(certified);
                }
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Identity;

    fn access() -> Access {
        Access::new("main", &[0, 70], Arc::default())
    }

    /// `WHO PATH`, where WHO is a name in a certificate, `plain`, `none`, `nobody`, or `uid N`.
    #[track_caller]
    fn check(who: &str, path: &str, expected: &str) {
        let presented = match who {
            "plain" => Presented::Plaintext,
            "unencrypted" => Presented::Unencrypted,
            "none" => Presented::Nothing,
            "nobody" => Presented::Nobody,
            name => Identity::parse(name).map_or(Presented::Nobody, Presented::Identity),
        };
        let peer = Peer { address: None, presented };
        let caller = match who.strip_prefix("uid ") {
            Some(uid) => Caller::Local { uid: uid.parse().ok() },
            None => Caller::Remote(&peer),
        };
        let (path, passed_on) = path.strip_prefix("passed on ").map_or((path, false), |path| (path, true));
        let found = match access().judge(caller, asked(path, passed_on)) {
            Ok(Some(certified)) => format!("as {}", certified.name),
            Ok(None) => "yes".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        assert!(found.contains(expected), "{who} {path}: {found}");
    }

    const MEMBER: &str = "rhone://main/member/pg-1";
    const ADMIN: &str = "rhone://main/admin/anna";
    const OBSERVER: &str = "rhone://main/observer/grafana";

    #[test]
    fn each_role_may_do_its_own() {
        check(MEMBER, "/rhone.v1.Raft/Append", "as pg-1");
        check(MEMBER, "/rhone.v1.Agent/Renew", "as pg-1");
        check(MEMBER, "/rhone.v1.Agent/Renewals", "as pg-1");
        check(ADMIN, "/rhone.v1.Raft/Appends", "only members");
        check(MEMBER, "/rhone.v1.Admin/Status", "as pg-1");
        check(MEMBER, "/rhone.v1.Admin/Switchover", "need a certificate with the role admin");
        check(MEMBER, "passed on /rhone.v1.Admin/Switchover", "as pg-1");
        check(ADMIN, "/rhone.v1.Admin/Switchover", "yes");
        check(ADMIN, "/rhone.v1.Admin/Status", "yes");
        check(ADMIN, "/rhone.v1.Agent/Revoke", "only members");
        check(ADMIN, "/rhone.v1.Raft/Vote", "only members");
        check(OBSERVER, "/rhone.v1.Admin/Events", "yes");
        check(OBSERVER, "/rhone.v1.Admin/Switchover", "need a certificate with the role admin");
        check(OBSERVER, "passed on /rhone.v1.Admin/Pause", "need a certificate with the role admin");
        check(OBSERVER, "/rhone.v1.Raft/Append", "only members");
        check(OBSERVER, "/rhone.v1.Admin/ATomorrowsMethod", "need a certificate with the role admin");
        check(OBSERVER, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "yes");
    }

    #[test]
    fn strangers_may_only_ask_whether_anybody_is_there() {
        for path in ["/rhone.v1.Raft/Append", "/rhone.v1.Agent/Hello", "/rhone.v1.Admin/Status", "/x/y", ""] {
            check("none", path, "a client certificate is needed");
            check("unencrypted", path, "TLS and a client certificate are needed");
            check("nobody", path, "names no role");
            check("rhone://other/admin/anna", path, "and this is cluster main");
        }
        check("none", "/grpc.health.v1.Health/Check", "yes");
        check("plain", "/rhone.v1.Raft/Append", "yes"); // `insecure = true`, or loopback
    }

    #[test]
    fn the_local_socket_is_for_root_and_the_owner() {
        check("uid 0", "/rhone.v1.Admin/Switchover", "yes");
        check("uid 70", "/rhone.v1.Admin/Switchover", "yes");
        check("uid 1000", "/rhone.v1.Admin/Status", "user 1000 may not use the local socket");
        check("uid ?", "/rhone.v1.Admin/Status", "somebody unknown");
    }
}
