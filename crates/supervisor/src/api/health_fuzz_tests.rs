//! HTTP as strangers speak it: whole requests on a real connection, changed by seed (`rhone_fuzz`).

use rhone_fuzz::Fuzz;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::status::fake;

fn app() -> Router {
    let view = LocalView { name: "pg-1".to_owned(), history: fake::history(), ..LocalView::default() };
    // The sender may go: what it sent last stays.
    let view = watch::channel(Arc::new(view)).1;
    let events: EventsSource = Arc::new(Vec::new);
    let http = Http { view, events, now: || Duration::from_secs(100), disks: Arc::default() };
    Router::new().fallback(answer).with_state(http)
}

/// Says this on a connection of its own, and returns all that is answered.
async fn say(listener: &TcpListener, bytes: &[u8]) -> Vec<u8> {
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    let (mut from, mut to) = client.into_split();
    let talk = async {
        // The server may have closed the connection before it heard all.
        to.write_all(bytes).await.ok();
        to.shutdown().await.ok();
    };
    let listen = async {
        let mut answer = Vec::new();
        from.read_to_end(&mut answer).await.ok();
        answer
    };
    let ((), (), answer) = tokio::join!(serve_connection(server, app()), talk, listen);
    answer
}

#[test]
fn fuzz_http() {
    let corpus = [
        "GET /replica?lag=10MB&tag_zone=a&mode=write HTTP/1.1\r\nHost: pg-1:8008\r\nConnection: close\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\nHEAD /readiness HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /switchover HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n{\"\":",
        "GET /metrics HTTP/1.0\r\n\r\n",
        "GET http://pg-1/cluster?%zz=%00&replication_state=in+archive+recovery HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /patroni HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx\r\n0\r\n\r\n",
    ];
    let words = [
        "\r\n",
        "%",
        "&",
        "=",
        "?",
        "/",
        "HTTP/1.1",
        "Content-Length: 99999999999999999999",
        "\u{0}",
        "/history",
        "/ui",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("listen");
    Fuzz::new("HTTP", corpus).words(&words).cases(1200).run(|bytes| {
        let answer = runtime.block_on(say(&listener, bytes));
        let status = answer.get(..12).map(|head| String::from_utf8_lossy(head).into_owned());
        let known = ["200", "400", "404", "414", "417", "431", "501", "503", "505"];
        if let Some(status) = &status {
            let code = status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)).unwrap_or("none");
            assert!(code == "100" || known.contains(&code), "{status}");
        }
        status
    });
}

#[test]
fn fuzz_paths_and_queries() {
    let view = LocalView {
        role: Role::Standby,
        state: State::Streaming,
        lag_bytes: Some(9),
        ..LocalView::default()
    };
    let events: EventsSource = Arc::new(Vec::new);
    let corpus = [
        "/replica?lag=10MB&tag_zone=a",
        "/readiness?lag=1kB&mode=write",
        "/read-only-sync",
        "//?tag_=%41%zz+",
    ];
    Fuzz::new("path", corpus).words(&["/", "?", "%", "=", "tag_", "lag=", "TB"]).cases(4000).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let (path, query) = text.split_once('?').unwrap_or((&text, ""));
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(problem) => return (0, problem.chars().take(12).collect()),
        };
        let check = Check { view: &view, events: &events, now: Duration::from_secs(100), query };
        (route(&check, path, &HeaderMap::new()).status().as_u16(), String::new())
    });
}
