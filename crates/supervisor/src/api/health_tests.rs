use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use rhone_consensus::settings::Settings;

use super::{Query, serve};
use crate::civil::WallTime;
use crate::status::fake;
use crate::status::local::{PeerView, Recovery, ReplicationRow};
use crate::status::{Event, LocalView, PendingSetting, Role, State, SyncMode, SyncStatus};

/// The clock of these tests stands at 100 s.
fn now() -> Duration {
    Duration::from_secs(100)
}

fn primary() -> LocalView {
    LocalView {
        scope: "main".to_owned(),
        name: "pg-1".to_owned(),
        role: Role::Primary,
        state: State::Running,
        writable_primary: true,
        lease_until: Some(Duration::from_secs(101)),
        epoch: rhone_consensus::ids::Epoch(7),
        timeline: Some(rhone_pgctl::wal::Timeline::new(5)),
        lsn: "0/5A3F2C8".parse().ok(),
        replication: vec![ReplicationRow {
            application_name: "pg-2".to_owned(),
            usename: Some("barman".to_owned()),
            sync_priority: 1,
            ..ReplicationRow::default()
        }],
        members: fake::status()
            .members
            .into_iter()
            .map(|status| PeerView { status, ..PeerView::default() })
            .collect(),
        majority_last_seen: Some(WallTime::from_ms(1_795_245_180_123)),
        postmaster_started: Some(WallTime::from_ms(1_795_245_180_123)),
        server_version: Some(150_018),
        system_id: "7423474350493388827".parse().ok(),
        history: fake::history(),
        ..LocalView::default()
    }
}

fn standby() -> LocalView {
    LocalView {
        name: "pg-2".to_owned(),
        role: Role::Standby,
        state: State::Streaming,
        writable_primary: false,
        lsn: None,
        recovery: Some(Recovery { received: "0/5A3F2C8".parse().ok(), ..Recovery::default() }),
        // It holds all, and has replayed all but a megabyte.
        lag_bytes: Some(0),
        replay_lag_bytes: Some(1 << 20),
        replication: Vec::new(),
        tags: [("zone".to_owned(), "a".to_owned())].into(),
        ..primary()
    }
}

/// Asks a real server over a real socket; gives the status and the body.
async fn ask(view: &LocalView, request: &str) -> (u16, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_keep, receiver) = watch::channel(Arc::new(view.clone()));
    let event = Event {
        time: Some(WallTime::from_ms(1_795_245_480_000)),
        node: None,
        epoch: None,
        reason: "paused".to_owned(),
        message: "<automatic> failover is off".to_owned(),
    };
    let events = Arc::new(move || vec![event.clone()]);
    let server = tokio::spawn(serve(listener, receiver, events, now));
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    stream.write_all(text.as_bytes()).await.expect("sent");
    stream.write_all(b"\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    server.abort();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

#[track_caller]
fn assert_codes(got: &[(String, u16)], expected: &str) {
    let got: Vec<String> = got.iter().map(|(path, code)| format!("{path} {code}")).collect();
    assert_eq!(got.join("\n"), expected.lines().map(str::trim).collect::<Vec<_>>().join("\n"));
}

async fn codes(view: &LocalView, paths: &str) -> Vec<(String, u16)> {
    let mut got = Vec::new();
    for path in paths.split_whitespace() {
        got.push((path.to_owned(), ask(view, &format!("GET {path}")).await.0));
    }
    got
}

#[tokio::test]
async fn checks_on_a_primary() {
    let paths = "/ /primary /primary?tag_zone=b&lag=1 /read-only?tag_zone=b /read-write /leader /read-only /read-only-sync /health /readiness /liveness /patroni \
                 /cluster /history /config /metrics /ui /replica /standby-leader /sync /async /nonsense";
    assert_codes(
        &codes(&primary(), paths).await,
        "/ 200\n/primary 200\n/primary?tag_zone=b&lag=1 200\n/read-only?tag_zone=b 503\n/read-write 200\n/leader 200\n/read-only 200\n/read-only-sync 200\n/health 200
        /readiness 200\n/liveness 200\n/patroni 200\n/cluster 200\n/history 200\n/config 200\n/metrics 200\n/ui 200
        /replica 503\n/standby-leader 503\n/sync 503\n/async 503\n/nonsense 503",
    );
}

#[tokio::test]
async fn checks_on_a_standby() {
    let paths = "/ /primary /replica /replica?lag=2MB /replica?lag=1048575 /replica?tag_zone=a /replica?tag_zone=b /replica?tag_none=false \
                 /replica?replication_state=streaming /replica?replication_state=in+archive+recovery \
                 /read-only?lag=1kB /async /asynchronous?lag=1MB /sync /quorum /readiness /readiness?lag=1kB \
                 /health /replica?lag=far";
    assert_codes(
        &codes(&standby(), paths).await,
        "/ 503\n/primary 503\n/replica 200\n/replica?lag=2MB 200\n/replica?lag=1048575 503\n/replica?tag_zone=a 200
        /replica?tag_zone=b 503\n/replica?tag_none=false 503\n/replica?replication_state=streaming 200
        /replica?replication_state=in+archive+recovery 503\n/read-only?lag=1kB 503\n/async 200
        /asynchronous?lag=1MB 200\n/sync 503\n/quorum 503\n/readiness 200\n/readiness?lag=1kB 503\n/health 200
        /replica?lag=far 400",
    );
}

/// `1 of pg-2 pg-3` waits for one of two; `changing` before it: the setting is on its way.
fn waits(text: &str) -> SyncStatus {
    let (settled, text) = text.strip_prefix("changing ").map_or((true, text), |text| (false, text));
    let (required, members) = text.split_once(" of").expect("1 of pg-2");
    SyncStatus {
        mode: SyncMode::Quorum,
        required: required.parse().expect("a number"),
        members: members.split_whitespace().map(str::to_owned).collect(),
        settled,
    }
}

#[tokio::test]
async fn checks_for_synchronous_standbys() {
    let paths =
        "/sync /synchronous /quorum /read-only-sync /read-only-synchronous /read-only-quorum /async /replica";
    for (policy, who, expected) in [
        // Two of two: each has every commit that was acknowledged.
        ("2 of pg-2 pg-3", "pg-2", "200 200 200 200 200 200 503 200"),
        ("1 of pg-2", "pg-2", "200 200 200 200 200 200 503 200"),
        // One of two: either may lack the last ones. The usual three members.
        ("1 of pg-2 pg-3", "pg-2", "503 503 200 503 503 200 503 200"),
        ("changing 1 of pg-2", "pg-2", "503 503 200 503 503 200 503 200"),
        ("1 of pg-3", "pg-2", "503 503 503 503 503 503 200 200"),
        ("0 of", "pg-2", "503 503 503 503 503 503 200 200"),
        ("1 of pg-2 pg-3", "pg-1", "503 503 503 200 200 200 503 503"),
    ] {
        let sync = waits(policy);
        let view = if who == "pg-1" { primary() } else { standby() };
        let got = codes(&LocalView { sync, ..view }, paths).await;
        let got: Vec<String> = got.into_iter().map(|(_, code)| code.to_string()).collect();
        assert_eq!(got.join(" "), expected, "{policy}, asked of {who}");
    }
    // Each asks for a lag, for tags and for how it replicates as well, and leaves out whom readers shun.
    let far = "/sync?lag=1kB /quorum?lag=1kB /read-only-sync?lag=1kB /sync?tag_zone=b \
               /sync?replication_state=in+archive+recovery /sync?lag=1MB&tag_zone=a&replication_state=streaming";
    let view = LocalView { sync: waits("1 of pg-2"), ..standby() };
    let got = codes(&view, far).await;
    assert_eq!(got.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [503, 503, 503, 503, 503, 200]);
    let shunned = codes(&LocalView { no_load_balance: true, ..view }, "/sync /quorum /replica /health").await;
    assert_eq!(shunned.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [503, 503, 503, 200]);
}

#[tokio::test]
async fn tags_are_told_and_asked_for_as_patronis() {
    let mut view = standby();
    view.tags.insert("no-sync".to_owned(), "true".to_owned());
    let body: Value = serde_json::from_str(&ask(&view, "GET /patroni").await.1).expect("JSON");
    assert_eq!(body["tags"], json!({"nosync": true, "zone": "a"}));
    let paths = "/replica?tag_nosync=true /replica?tag_no-sync=true&tag_zone=a /replica?tag_nosync=false /replica?tag_nofailover=true";
    let got: Vec<u16> = codes(&view, paths).await.into_iter().map(|(_, code)| code).collect();
    assert_eq!(got, [200, 200, 503, 503]);
    view.members[1].status.tags = [("clone-from".to_owned(), "true".to_owned())].into();
    let body: Value = serde_json::from_str(&ask(&view, "GET /cluster").await.1).expect("JSON");
    assert_eq!(body["members"][1]["tags"], json!({"clonefrom": true}));
    assert_eq!(body["members"][0]["tags"], Value::Null);
}

#[tokio::test]
async fn a_lag_is_that_of_replay() {
    let paths = "/replica?lag=1MB /replica?lag=1023kB /read-only?lag=1kB /asynchronous?lag=1kB /readiness \
                 /readiness?lag=1kB /readiness?lag=1kB&mode=apply /readiness?lag=1kB&mode=write /replica";
    let check = async |view: &LocalView, expected: [u16; 9]| {
        let got: Vec<u16> = codes(view, paths).await.into_iter().map(|(_, code)| code).collect();
        assert_eq!(got, expected, "{view:?}");
    };
    // All is received, and a megabyte is not replayed: what `delay` and a paused replay do.
    check(&standby(), [200, 503, 503, 503, 200, 503, 503, 200, 200]).await;
    // The setting is what readiness goes by where nothing is asked for.
    let settings = Settings { max_lag_on_failover: 1 << 10, ..Settings::default() };
    let strict = LocalView { settings: Some(settings), ..standby() };
    check(&strict, [200, 503, 503, 503, 503, 503, 503, 200, 200]).await;
    // Not known: it passes only where nothing is asked for.
    let unknown = LocalView { replay_lag_bytes: None, lag_bytes: None, ..standby() };
    check(&unknown, [503, 503, 503, 503, 503, 503, 503, 503, 200]).await;
}

#[tokio::test]
async fn only_a_live_lease_and_an_open_gate_make_a_primary() {
    let closed_gate = LocalView { writable_primary: false, ..primary() };
    // The view still says "writable", but by now the lease has ended.
    let expired = LocalView { lease_until: Some(Duration::from_secs(100)), ..primary() };
    let promoting = LocalView { state: State::Promoting, ..primary() };
    let frozen = LocalView { state: State::Frozen, ..primary() };
    for view in [closed_gate, expired, promoting, frozen] {
        for path in ["/", "/primary", "/leader", "/read-write", "/read-only", "/readiness"] {
            assert_eq!(ask(&view, &format!("OPTIONS {path}")).await, (503, String::new()), "{path} {view:?}");
        }
        assert!(
            ask(&view, "GET /metrics").await.1.contains("patroni_primary{scope=\"main\",name=\"pg-1\"} 0\n")
        );
    }
}

#[tokio::test]
async fn head_and_options_answer_without_a_body_and_nothing_changes_anything() {
    assert_eq!(ask(&primary(), "OPTIONS /").await, (200, String::new()));
    assert_eq!(ask(&primary(), "HEAD /replica").await, (503, String::new()));
    assert_eq!(ask(&primary(), "POST /switchover").await.0, 501);
    assert_eq!(ask(&primary(), "PATCH /config").await.0, 501);
}

#[tokio::test]
async fn bodies_are_patronis() {
    let (_, body) = ask(&standby(), "GET /primary").await;
    let value: Value = serde_json::from_str(&body).expect("JSON with a failed check too");
    assert_eq!(value["role"], "replica");
    assert_eq!(value["state"], "running");
    assert_eq!(value["replication_state"], "streaming");
    assert_eq!(value["xlog"]["received_location"], 94_630_600);
    assert_eq!(value["server_version"], 150_018);
    assert_eq!(value["dcs_last_seen"], 1_795_245_180);
    assert_eq!(value["postmaster_start_time"], "2026-11-21 07:13:00.123000+00:00");
    assert_eq!(value["patroni"]["scope"], "main");
    let own: Value = serde_json::from_str(&ask(&primary(), "GET /patroni").await.1).expect("JSON");
    let row = &own["replication"][0];
    assert_eq!((&row["usename"], &row["sync_priority"]), (&json!("barman"), &json!(1)));
    let cluster: Value = serde_json::from_str(&ask(&primary(), "GET /cluster").await.1).expect("JSON");
    let members = cluster["members"].as_array().expect("members");
    let roles: Vec<&str> = members.iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(roles, ["leader", "replica", "replica"]);
    assert_eq!(members[1]["lag"], 0);
    assert_eq!(members[2]["lag"], "unknown");
    assert_eq!((&members[1]["lsn"], &members[1]["receive_lag"]), (&json!("0/5A3F2C8"), &json!(0)));
    // An older member does not tell what it has replayed.
    assert_eq!(
        (&members[1]["replay_lsn"], &members[1]["replay_lag"]),
        (&json!("unknown"), &json!("unknown"))
    );
    assert!(members[0].get("lag").is_none());
    let history = ask(&primary(), "GET /history").await.1;
    assert_eq!(history, "[[4,94375792,\"primary_silent\",\"2026-11-21T07:18:00.000+00:00\",\"pg-1\"]]");
}

#[tokio::test]
async fn what_waits_for_a_restart_is_told_with_both_values() {
    let setting = |name: &str, wanted: Option<&str>| PendingSetting {
        name: name.to_owned(),
        running: "100".to_owned(),
        wanted: wanted.map(str::to_owned),
    };
    let pending_restart = vec![
        setting("max_connections", Some("200")),
        setting("max_wal_senders", None),
        setting("vault.token", Some("x")),
    ];
    let body = ask(&LocalView { pending_restart, ..primary() }, "GET /patroni").await.1;
    let value: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(value["pending_restart"], true);
    assert_eq!(
        value["pending_restart_reason"],
        json!({
            "max_connections": {"old_value": "100", "new_value": "200"},
            "max_wal_senders": {"old_value": "100", "new_value": null},
            "vault.token": {"old_value": null, "new_value": null},
        })
    );
    let body = ask(&primary(), "GET /patroni").await.1;
    assert!(!body.contains("pending_restart"), "{body}");
}

#[tokio::test]
async fn the_configuration_is_shaped_as_patronis_and_tells_no_secrets() {
    let postgres = [
        ("shared_buffers", "64MB"),
        ("archive_command", "curl -u me:secret"),
        ("primary_conninfo", "password=secret"),
        ("vault.token", "secret"),
    ];
    let settings = Settings {
        postgres: postgres.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Settings::default()
    };
    let sync = waits("1 of pg-2 pg-3");
    let body = ask(&LocalView { settings: Some(settings), sync, ..primary() }, "GET /config").await.1;
    assert_eq!(
        serde_json::from_str::<Value>(&body).expect("JSON"),
        json!({
            "pause": false, "synchronous_mode": "quorum", "synchronous_mode_strict": false,
            "synchronous_node_count": 1, "maximum_lag_on_failover": 1_048_576,
            "ttl": 2, "loop_wait": 1, "retry_timeout": 1,
            "postgresql": {
                "parameters": {"shared_buffers": "64MB"}, "use_pg_rewind": true, "use_slots": true,
            },
        })
    );
}

#[tokio::test]
async fn each_metric_is_described_once() {
    let (_, text) = ask(&primary(), "GET /metrics").await;
    let mut described = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().expect("a name").to_owned();
            assert!(described.insert(name), "twice: {line}");
        } else if !line.starts_with('#') {
            let name = line.split('{').next().expect("a name");
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let whole = described.contains(name) || histogram.is_some_and(|name| described.contains(name));
            assert!(whole, "undescribed: {line}");
            assert!(line.rsplit(' ').next().is_some_and(|v| v.parse::<f64>().is_ok()), "no number: {line}");
        }
    }
    assert!(text.contains("rhone_epoch{cluster=\"main\",member=\"pg-1\"} 7\n"), "{text}");
    assert!(text.contains("\npatroni_failsafe_mode_is_active{scope=\"main\",name=\"pg-1\"} 0\n"), "{text}");
}

#[tokio::test]
async fn the_state_has_patronis_number() {
    for (state, number) in [
        (State::Streaming, 5),
        (State::CrashRecovery, 6),
        (State::Cloning, 4),
        (State::Fenced, 12),
        (State::Crashed, 14),
        (State::Voting, -1),
    ] {
        let (_, text) = ask(&LocalView { state, ..standby() }, "GET /metrics").await;
        let line = format!("\npatroni_postgres_state{{scope=\"main\",name=\"pg-2\"}} {number}\n");
        assert!(text.contains(&line), "{state}: {text}");
    }
}

#[tokio::test]
async fn the_page_escapes_what_members_say() {
    let mut view = primary();
    view.members[0].status.note = Some("<script>".to_owned());
    let (code, page) = ask(&view, "GET /ui").await;
    assert_eq!(code, 200);
    assert!(
        page.contains("&lt;script&gt;") && !page.contains("<script>") && page.contains("primary pg-1"),
        "{page}"
    );
    // Nothing from elsewhere, and something for a browser without scripts.
    assert!(!page.contains("//") && page.contains("<noscript><meta http-equiv=refresh"), "{page}");
    for part in [
        "<main>",
        "<div id=now aria-live=polite>",
        "<section id=members>",
        "<section id=changes>",
        "<section id=events>",
    ] {
        assert_eq!(page.matches(part).count(), 1, "{part}: {page}");
    }
    assert!(page.contains("</span> &lt;automatic&gt; failover is off"), "{page}");
    assert!(page.contains("<i class=gap") && page.contains("streaming</span> from pg-1"), "{page}");
    let (code, script) = ask(&view, "GET /ui.js").await;
    assert_eq!(code, 200);
    assert!(script.contains("fetch(\"ui\"") && !script.contains("http"), "{script}");
    let view = LocalView { writable_primary: false, ..view };
    let (code, page) = ask(&view, "GET / HTTP/1.1\r\nAccept: text/html\r\nX-Rest:").await;
    assert_eq!(code, 503);
    assert!(page.contains("no primary accepts writes"), "{page}");
}

#[test]
fn queries_are_decoded() {
    let query = Query::parse("lag=10%4DB&tag_a+b=c%20d&unknown&mode=write").expect("good");
    assert_eq!(query.lag, Some(10 << 20));
    assert_eq!(query.tags, [("a b".to_owned(), "c d".to_owned())]);
    assert!(query.received && Query::parse("lag=x").is_err());
}
