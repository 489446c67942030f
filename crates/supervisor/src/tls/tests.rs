//! Real connections on loopback, with certificates that `authority` makes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Channel;

use super::authority::{Authority, Order};
use super::{DialError, Dialer, Identity, Role, Security, TlsFiles, incoming};
use crate::api::access::Access;
use crate::api::admin_service;
use crate::api::proto::v1::StatusRequest;
use crate::api::proto::v1::admin_client::AdminClient;
use crate::runtime::clock::wall_time;
use crate::status::OperatorError;
use crate::status::fake::FakeOperator;

struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Self {
        let pki = Self(tempfile::tempdir().expect("a folder"));
        pki.authority().init("main", 30).expect("a CA");
        pki
    }

    fn authority(&self) -> Authority {
        Authority::in_folder(self.0.path())
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Issues a certificate: `rhone://main/member/pg-1`, for so many days.
    fn issue(&self, name: &str, days: u32) -> TlsFiles {
        let identity = Identity::parse(name).expect("a name");
        let hosts = if identity.role == Role::Member { vec!["127.0.0.1".to_owned()] } else { Vec::new() };
        let issued = self.authority().issue(&Order { identity, hosts, days }).expect("a certificate");
        TlsFiles { ca: self.authority().certificate_file(), cert: issued.cert, key: issued.key }
    }
}

/// Serves as a member; gives the address.
async fn serve(security: Arc<Security>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let access = Access::new(security.cluster(), &[], Arc::default());
    let server = tonic::transport::Server::builder()
        .layer(access)
        .add_service(admin_service(Arc::new(FakeOperator::default())));
    tokio::spawn(server.serve_with_incoming(incoming(listener, Some(security))));
    address
}

fn member(pki: &Pki) -> Arc<Security> {
    let files = pki.issue("rhone://main/member/pg-1", 20);
    Arc::new(Security::load("main", &files).expect("good files"))
}

async fn ask(channel: Channel) -> String {
    match AdminClient::new(channel).status(StatusRequest {}).await {
        Ok(reply) => reply.into_inner().status.map_or_else(String::new, |status| status.cluster),
        Err(status) => match OperatorError::from(status) {
            OperatorError::Refused { reason, .. } => format!("refused: {reason}"),
            OperatorError::NotLeader { .. }
            | OperatorError::NoQuorum
            | OperatorError::Unknown
            | OperatorError::NotImplemented { .. }
            | OperatorError::Failed(_) => "something else".to_owned(),
        },
    }
}

async fn try_as(address: &str, files: &TlsFiles) -> String {
    let security = match Security::of_operator(files) {
        Ok(security) => Arc::new(security),
        Err(error) => return error.to_string(),
    };
    match Dialer::Tls(security).connect(address).await {
        Ok(channel) => ask(channel).await,
        Err(DialError::Distrusted(reason)) => format!("distrusted: {reason}"),
        Err(DialError::Failed(reason)) => format!("failed: {reason}"),
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect(what);
}

#[track_caller]
fn has(found: &str, expected: &str) {
    assert!(found.contains(expected), "{found} does not say {expected}");
}

#[tokio::test]
async fn only_certificates_of_the_ca_for_this_cluster_are_believed_on_both_sides() {
    let (pki, other) = (Pki::new(), Pki::new());
    let address = serve(member(&pki)).await;
    let anna = pki.issue("rhone://main/admin/anna", 20);
    assert_eq!(try_as(&address, &anna).await, "main");
    has(
        &try_as(&address, &other.issue("rhone://main/admin/anna", 20)).await,
        "distrusted: its certificate is not signed",
    );
    let foreign = TlsFiles { ca: anna.ca.clone(), ..other.issue("rhone://main/admin/anna", 20) };
    has(&try_as(&address, &foreign).await, "does not vouch for it");
    // Valid to the end of this very second.
    let late = pki.issue("rhone://main/admin/late", 0);
    let expired = async {
        while !try_as(&address, &late).await.contains("does not accept this certificate: CertificateExpired")
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), expired).await.expect("refused as expired");
    has(
        &try_as(&address, &pki.issue("rhone://other/admin/anna", 20)).await,
        "distrusted: its certificate is for rhone://main/member/pg-1, not for a member of cluster other",
    );
    // Nobody who is no member can play one.
    let mut files = pki.issue("rhone://main/admin/mallory", 20);
    let mallory = serve(Arc::new(Security::load("main", &files).expect("good files"))).await;
    has(&try_as(&mallory, &anna).await, "distrusted: ");
    // A certificate is good for the hosts that it names.
    files = pki.issue("rhone://main/member/pg-2", 20);
    let elsewhere = address.replace("127.0.0.1", "localhost");
    has(&try_as(&elsewhere, &files).await, "is not good for the host localhost");
}

#[tokio::test]
async fn without_tls_or_a_certificate_nothing_is_learnt_but_why() {
    let pki = Pki::new();
    let security = member(&pki);
    let address = serve(Arc::clone(&security)).await;
    let plain = Dialer::Plain.connect(&address).await.expect("a connection");
    has(&ask(plain).await, "TLS");
    // A member of the same cluster that was configured without TLS is not talked to either.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let open = listener.local_addr().expect("an address").to_string();
    let server =
        tonic::transport::Server::builder().add_service(admin_service(Arc::new(FakeOperator::default())));
    tokio::spawn(server.serve_with_incoming(incoming(listener, None)));
    has(&try_as(&open, &pki.issue("rhone://main/admin/anna", 20)).await, "distrusted: it does not speak TLS");
    // Nobody: TLS, and no certificate.
    let as_stranger = async |files: Option<&TlsFiles>| {
        ask(super::connect::connect_as_stranger(&security, &address, files).await.expect("a connection"))
            .await
    };
    has(&as_stranger(None).await, "refused: a client certificate is needed here");
    let other = Pki::new();
    let foreign = other.issue("rhone://main/admin/anna", 20);
    has(&as_stranger(Some(&foreign)).await, "refused: the member does not accept this certificate: ");
}

#[tokio::test]
async fn a_ca_is_rolled_and_open_connections_stay_as_long_as_theirs_is_believed() {
    let pki = Pki::new();
    let files = pki.issue("rhone://main/member/pg-1", 20);
    let server = Arc::new(Security::load("main", &files).expect("good files").without_patience());
    let address = serve(Arc::clone(&server)).await;
    let old = pki.issue("rhone://main/admin/old", 20);
    let old_ca = pki.folder().join("old-ca.crt");
    std::fs::copy(&old.ca, &old_ca).expect("copied");
    let old = TlsFiles { ca: old_ca, ..old };
    let open_as = async |files: &TlsFiles| {
        let security = Arc::new(Security::of_operator(files).expect("good files").without_patience());
        let open = Dialer::Tls(Arc::clone(&security)).connect(&address).await.expect("a connection");
        (security, open)
    };
    let (_, open) = open_as(&old).await;

    pki.authority().roll("main", 30).expect("rolled");
    server.reload().expect("both CAs");
    assert_eq!(server.authorities().len(), 2);
    assert_eq!(try_as(&address, &old).await, "main"); // neither side has a new certificate yet
    let new = pki.issue("rhone://main/admin/new", 20);
    assert_eq!(try_as(&address, &new).await, "main"); // one side has
    let (client, newer) = open_as(&new).await;
    pki.issue("rhone://main/member/pg-1", 20);
    server.reload().expect("a new certificate");
    assert_eq!(try_as(&address, &new).await, "main");
    assert_eq!(ask(open.clone()).await, "main");
    assert_eq!(ask(newer.clone()).await, "main");
    assert_eq!((client.handshakes(), pki.authority().drop_former().expect("dropped")), (1, 1));
    server.reload().expect("one CA");
    assert_eq!(try_as(&address, &new).await, "main");
    has(&try_as(&address, &old).await, "distrusted");
    // By the server, whom the one that it does not believe any more still believes.
    until("the former CA's connection has ended", async || ask(open.clone()).await != "main").await;
    assert_eq!((ask(newer.clone()).await.as_str(), client.handshakes()), ("main", 1), "the new CA's stays");
    // By the client: the server showed the former CA's certificate when that connection was made.
    client.reload().expect("one CA");
    until("it is made anew", async || ask(newer.clone()).await == "main" && client.handshakes() == 2).await;
}

#[tokio::test]
async fn what_has_expired_is_believed_on_open_connections_and_only_by_its_own_ca() {
    let (pki, other) = (Pki::new(), Pki::new());
    let security = member(&pki);
    let chain = |pki: &Pki, days| {
        let files = pki.issue("rhone://main/admin/anna", days);
        super::files::certificates(&files.cert).expect("a certificate")
    };
    assert!(security.believes(&chain(&pki, 20)));
    let (late, foreign) = (chain(&pki, 0), chain(&other, 0));
    let ended = async || super::Certificate::read(&late[0]).expect("read").not_after.as_ms() < wall_time();
    until("it has expired", ended).await;
    assert!(security.believes(&late));
    assert!(!security.believes(&foreign));
    assert!(!security.believes(&[]));
}

#[test]
fn broken_files_never_replace_good_ones() {
    let pki = Pki::new();
    let security = member(&pki);
    let serial = security.own().serial;
    let cert = pki.folder().join("pg-1.crt");
    let good = std::fs::read(&cert).expect("read");
    let other = pki.issue("rhone://main/member/pg-2", 20);
    for (bad, why) in [
        (b"no certificate".to_vec(), "no certificate in it"),
        (std::fs::read(other.cert).expect("read"), "does not fit"),
        (Vec::new(), "no certificate in it"),
    ] {
        std::fs::write(&cert, bad).expect("written");
        has(&security.reload().expect_err("broken").to_string(), why);
        assert!(security.stale());
    }
    std::fs::copy(pki.folder().join("pg-2.key"), pki.folder().join("pg-1.key")).expect("copied");
    std::fs::copy(pki.folder().join("pg-2.crt"), &cert).expect("copied");
    has(&security.reload().expect_err("another's").to_string(), "it is for rhone://main/member/pg-2, not");
    assert_eq!(security.own().serial, serial);
    std::fs::write(&cert, good).expect("written");
    pki.issue("rhone://main/member/pg-1", 20);
    security.reload().expect("good again");
    assert!(!security.stale() && security.own().serial != serial);
}

#[test]
fn what_a_ca_issues_says_whose_it_is_and_until_when() {
    use std::os::unix::fs::PermissionsExt;
    let pki = Pki::new();
    let files = pki.issue("rhone://main/member/pg-1", 9000);
    let own = files.check().expect("good files");
    assert_eq!(own.subject, "OU=member, CN=pg-1");
    assert_eq!(own.hosts, ["127.0.0.1"]);
    assert_eq!(own.not_before.as_ms(), 0);
    let ca = super::certificates_of(&files.ca).expect("the CA");
    assert!(ca[0].ca && own.not_after == ca[0].not_after, "at most as long as the CA");
    let mode = |file: &Path| std::fs::metadata(file).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&files.key), mode(&pki.authority().key_file())), (0o600, 0o600));
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).expect("changed");
    has(&files.check().expect_err("readable").to_string(), "everybody on this machine may use the key");
    has(&pki.authority().init("main", 30).expect_err("there").to_string(), "is there already");
}
