//! The HTTP server: health checks with Patroni's meanings, metrics and the status page.
//!
//! It reads one published [`LocalView`] and a clock, and changes nothing. HTTP/1.1 only, a
//! deadline on each request, a limit on connections and on the size of a request.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::disks::Disks;
use super::{metrics, page, patroni, tags};
use crate::civil::WallTime;
use crate::config::units;
use crate::runtime::clock::wall_time;
use crate::status::local::Synchronous;
use crate::status::{Event, LocalView, Role, State};

/// Connections served at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// A connection that sends no complete request head for so long is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is closed after so long, whatever it does: checks reconnect.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// Larger request heads are refused (hyper's least is 8192).
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// `/liveness` fails when the runtime's loop stood still for so long.
const STALLED_LOOP: Duration = Duration::from_secs(30);

/// Reads `CLOCK_BOOTTIME`.
pub type BootClock = fn() -> Duration;

/// Gives what this member tells of, oldest first.
pub type EventsSource = Arc<dyn Fn() -> Vec<Event> + Send + Sync>;

/// What every request sees.
#[derive(Clone)]
struct Http {
    view: watch::Receiver<Arc<LocalView>>,
    events: EventsSource,
    now: BootClock,
    disks: Arc<Disks>,
}

/// One request: the facts, the time, and what was asked.
struct Check<'a> {
    view: &'a LocalView,
    events: &'a EventsSource,
    now: Duration,
    query: Query,
}

/// Serves HTTP on `listener` until the returned future is dropped.
pub async fn serve(
    listener: TcpListener,
    view: watch::Receiver<Arc<LocalView>>,
    events: EventsSource,
    now: BootClock,
) {
    let app = Router::new().fallback(answer).with_state(Http { view, events, now, disks: Arc::default() });
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    let _ended = tokio::time::timeout(CONNECTION_LIMIT, serve_connection(stream, app)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors: others may free some.
                tracing::warn!(%error, "cannot accept an http connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, app: Router) {
    let served = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
        .http1_only()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "http connection ended");
    }
}

/// Answers any request. Patroni's server knows no 404: an unknown path is a failed check.
async fn answer(
    Shared(http): Shared<Http>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    if method != Method::GET && method != Method::HEAD && method != Method::OPTIONS {
        let refused = "nothing over HTTP changes anything: use the `rhone` command\n";
        return (StatusCode::NOT_IMPLEMENTED, refused).into_response();
    }
    let view = Arc::clone(&http.view.borrow());
    let query = match Query::parse(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response(),
    };
    if uri.path().trim_end_matches('/') == "/metrics" && method == Method::GET {
        let rooms = http.disks.measure(&view.figures.disks).await;
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        return (kind, metrics::render(&view, (http.now)(), &rooms)).into_response();
    }
    let check = Check { view: &view, events: &http.events, now: (http.now)(), query };
    let response = route(&check, uri.path(), &headers);
    if method == Method::GET { response } else { response.status().into_response() }
}

fn route(check: &Check<'_>, path: &str, headers: &HeaderMap) -> Response {
    let (view, now) = (check.view, check.now);
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let json = |value: serde_json::Value| axum::Json(value).into_response();
    match path {
        "/patroni" => json(patroni::state(view, now)),
        "/cluster" => json(patroni::cluster(view, now)),
        "/history" => json(patroni::history(view)),
        "/config" => json(patroni::config(view)),
        // Of HEAD and OPTIONS: a GET was answered before.
        "/metrics" => StatusCode::OK.into_response(),
        "/ui" => html(StatusCode::OK, check),
        "/ui.js" => {
            let kind = [
                (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
                (header::CACHE_CONTROL, "no-cache"),
            ];
            (kind, page::SCRIPT).into_response()
        }
        path => {
            let code = if passes(check, path) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let wants_html = headers
                .get(header::ACCEPT)
                .and_then(|accept| accept.to_str().ok())
                .is_some_and(|accept| accept.contains("text/html"));
            if path == "/" && wants_html {
                return html(code, check);
            }
            (code, axum::Json(patroni::state(view, now))).into_response()
        }
    }
}

fn html(code: StatusCode, check: &Check<'_>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'",
        ),
    ];
    let wall = WallTime::from_ms(wall_time());
    (code, headers, page::render(check.view, &(check.events)(), check.now, wall)).into_response()
}

/// Says whether the check of this path holds.
fn passes(check: &Check<'_>, path: &str) -> bool {
    let (view, query) = (check.view, &check.query);
    let primary = view.is_writable_primary(check.now);
    let standby = view.is_running_standby()
        && !view.no_load_balance
        && query.lag_allows(view)
        && query.replication_matches(view);
    // Who has each acknowledged commit, and who is one of those that commits wait for (decision 0067).
    let (each, some) = match view.synchronous() {
        Synchronous::Each => (standby, standby),
        Synchronous::Some => (false, standby),
        Synchronous::None => (false, false),
    };
    let tagged = query.tags_match(view);
    match path {
        // Patroni asks a primary for no tags by these paths.
        "/" | "/primary" | "/read-write" | "/leader" | "/master" => primary,
        "/replica" => standby && tagged,
        "/read-only" => (primary || standby) && tagged,
        "/synchronous" | "/sync" => each && tagged,
        "/quorum" => some && tagged,
        "/read-only-sync" | "/read-only-synchronous" => (primary || each) && tagged,
        "/read-only-quorum" => (primary || some) && tagged,
        "/asynchronous" | "/async" => standby && !some && tagged,
        "/health" => serves(view),
        "/readiness" => primary || ready_standby(check),
        "/liveness" => view.loop_at.is_none_or(|at| check.now.saturating_sub(at) < STALLED_LOOP),
        // A standby cluster is not something Rhone has: its check is always false, as is an
        // unknown path's.
        _ => false,
    }
}

/// Postgres answers queries here, whatever its role.
fn serves(view: &LocalView) -> bool {
    matches!(view.state, State::Running | State::Streaming | State::ArchiveRecovery)
        && matches!(view.role, Role::Primary | Role::Standby)
        || view.state == State::Voting
}

/// A standby is ready when it streams and is near enough; a witness when it votes.
fn ready_standby(check: &Check<'_>) -> bool {
    match check.view.role {
        Role::Standby => check.view.state == State::Streaming && check.query.readiness_allows(check.view),
        Role::Witness => check.view.state == State::Voting,
        Role::Primary | Role::None => false,
    }
}

/// `/readiness` without `lag` allows so much where the setting, as in Patroni `maximum_lag_on_failover`, is not known.
const READY_LAG_BYTES: u64 = 1024 * 1024;

/// What a check's URL asks beyond its path. Names that are not known are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    lag: Option<u64>,
    received: bool,
    replication_state: Option<String>,
    tags: Vec<(String, String)>,
}

impl Query {
    fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key), decode(value));
            match (key.as_str(), key.strip_prefix("tag_")) {
                ("lag", _) => {
                    let lag = units::parse_bytes(&value);
                    parsed.lag = Some(lag.map_err(|why| format!("lag={value}: {why}"))?);
                }
                ("mode", _) => parsed.received = value == "write",
                ("replication_state", _) => parsed.replication_state = Some(value),
                (_, Some(tag)) => parsed.tags.push((tag.to_owned(), value)),
                (_, None) => {}
            }
        }
        Ok(parsed)
    }

    /// The lag of replay: what a reader would see. An unknown one passes only when none is asked for.
    fn lag_allows(&self, view: &LocalView) -> bool {
        self.lag.is_none_or(|limit| view.replay_lag_bytes.is_some_and(|lag| lag <= limit))
    }

    fn readiness_allows(&self, view: &LocalView) -> bool {
        let lag = if self.received { view.lag_bytes } else { view.replay_lag_bytes };
        let usual = view.settings.as_ref().map_or(READY_LAG_BYTES, |settings| settings.max_lag_on_failover);
        lag.is_some_and(|lag| lag <= self.lag.unwrap_or(usual))
    }

    fn tags_match(&self, view: &LocalView) -> bool {
        self.tags.iter().all(|(key, value)| tags::matches(&view.tags, key, value))
    }

    fn replication_matches(&self, view: &LocalView) -> bool {
        let state = patroni::replication_state(view);
        self.replication_state.as_deref().is_none_or(|wanted| state == Some(wanted))
    }
}

/// Decodes `%41` and `+`; what is not a code stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, code.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(other),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "health_fuzz_tests.rs"]
mod fuzz_tests;
