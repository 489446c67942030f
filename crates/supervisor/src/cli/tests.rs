use std::sync::Arc;

use expect_test::{Expect, expect};

use super::args::Cli;
use super::terminal::Terminal;
use super::{Exit, execute, finish, words};
use crate::api::{admin_service, socket};
use crate::status::OperatorError;
use crate::status::fake::FakeOperator;

#[path = "each_verb_tests.rs"]
mod each_verb;
#[path = "outcome_tests.rs"]
mod outcome;
#[path = "report_tests.rs"]
mod report;
#[path = "verbs_tests.rs"]
mod verbs;

/// A member with a local socket in a folder whose path is too long for one.
struct Member {
    folder: tempfile::TempDir,
    operator: Arc<FakeOperator>,
}

impl Member {
    fn start(operator: FakeOperator) -> Self {
        let folder = tempfile::Builder::new().prefix(&"long-".repeat(24)).tempdir().expect("a folder");
        let at = folder.path().display();
        let text = format!(
            "cluster = \"main\"\n[node]\nname = \"pg-1\"\nstate-dir = \"{at}\"\npeers = [\"127.0.0.1:7400\"]\n\
             [postgres]\ndata-dir = \"{at}/data\"\n"
        );
        std::fs::write(folder.path().join("rhone.toml"), text).expect("the file is written");
        let operator = Arc::new(operator);
        let incoming = socket::bind(folder.path(), &rhone_pgctl::user::OsUser::current()).expect("a socket");
        let service = admin_service(Arc::clone(&operator));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { folder, operator }
    }

    /// Runs a command line; gives what a terminal would show.
    async fn run(&self, line: &str) -> (Exit, String, String) {
        let config = self.folder.path().join("rhone.toml");
        let typed = ["rhone", "-c", config.to_str().expect("UTF-8")].into_iter().chain(line.split(' '));
        let (mut terminal, out, err) = Terminal::captured();
        let cli = words::read(typed.map(Into::into), None).expect("a good command line");
        let outcome = execute(cli, &mut terminal).await;
        let exit = finish(&mut terminal, outcome);
        (exit, out.text(), err.text().replace(&self.folder.path().display().to_string(), "DIR"))
    }
}

/// What a change prints as JSON, but for the cluster after it: `outcome` looks at that.
#[track_caller]
fn change((exit, out, err): (Exit, String, String)) -> (Exit, String, String) {
    let (told, _) = out.split_once(",\"cluster\":{").expect("the cluster after the change");
    (exit, format!("{told}}}\n"), err)
}

#[track_caller]
fn check(shown: (Exit, String, String), expected: Expect) {
    let (exit, out, err) = shown;
    let talk = if err.is_empty() { String::new() } else { format!("---- stderr\n{err}") };
    expected.assert_eq(&format!("{out}{talk}---- {exit:?}\n"));
}

#[tokio::test]
async fn status_shows_the_cluster_at_a_glance() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("status").await,
        expect![[r#"
        cluster main, system 7423474350493388827: primary pg-1, epoch 7, timeline 5
        each commit waits for one of pg-2, pg-3; a failover now would lose nothing

        NODE   ROLE     STATE      FLUSHED      LAG  SEEN  NOTE
        pg-1   primary  running    5:0/5A3F2C8    -  0.0s  lease 1.4s left
        pg-2   standby  streaming  5:0/5A3F2C8  0 B  0.1s  next in line; raft leader, term 12
        pg-3   standby  rewinding  4:0/5A01100    -  0.4s  forked at 4:0/5A00F70
        wit-1  witness  voting     -              -  0.2s
        ---- stderr
        warning: only pg-2 can take over until pg-3 has rejoined
        hint: `rhone explain` shows what would be decided now, and why
        ---- Done
    "#]],
    );
}

#[tokio::test]
async fn status_as_json_is_the_public_interface() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("status -o json").await;
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let first = serde_json::to_string(&value["members"][0]).expect("JSON");
    expect![[r#"{"copying":null,"data_id":null,"host":"pg-1.lan","kind":"data","lag_bytes":0,"lsn":"0/5A3F2C8","name":"pg-1","note":"lease 1.4s left","pending":[],"pending_restart":false,"port":5432,"refused_lines":[],"role":"primary","seen_ms":0,"settings_version":1,"start_failure":null,"started":"2026-11-21T07:10:00.000Z","state":"running","tags":{},"timeline":5,"version":"15.18","voter":true}"#]]
        .assert_eq(&first);
    assert_eq!(value["system_identifier"], "7423474350493388827");
    assert_eq!(value["members"][3]["lsn"], serde_json::Value::Null);
    assert!(out.starts_with(r#"{"cluster":"main","system_identifier":"7423474350493388827","primary":"pg-1","raft_leader":"pg-2","term":12,"epoch":7,"timeline":5,"paused":false,"writable":true,"sync":{"mode":"quorum","required":1,"members":["pg-2","pg-3"],"settled":true},"failover_would_lose":"nothing","members":["#), "{out}");
}

#[tokio::test]
async fn history_explain_and_dsn_answer() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("history").await,
        expect![[r#"
        WHEN (UTC)           FROM  TO    EPOCH  TIMELINE  SWITCH LSN  WITHOUT  LOST     REASON
        2026-11-21 07:13:00  -     pg-3      2         1  -                 -  -        founded
        2026-11-21 07:18:00  pg-3  pg-1      7         5  0/5A00F70     1.87s  nothing  primary_silent
        ---- Done
    "#]],
    );
    check(
        member.run("history -n 1 --json").await,
        expect![[r#"
        [{"time":"2026-11-21T07:18:00.000Z","from":"pg-3","to":"pg-1","epoch":7,"timeline":5,"switch_lsn":"0/5A00F70","reason":"primary_silent","seconds_without_primary":1.87,"lost":"nothing","lost_bytes":0,"lost_exact":true}]
        ---- Done
    "#]],
    );
    check(
        member.run("explain").await,
        expect![[r#"
        pg-2 decides: nothing to do (primary_healthy)
        - pg-1 was renewed 0.1 s ago

        NODE  IS                REASON
        pg-3  rewind from pg-1  forked
        ---- Done
    "#]],
    );
    check(
        member.run("dsn").await,
        expect![[r#"
        host=pg-1.lan,pg-2.lan,pg-3.lan port=5432,5432,5432 target_session_attrs=read-write connect_timeout=2 keepalives_idle=2 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000
        ---- Done
    "#]],
    );
    check(
        member.run("dsn --role ro --json").await,
        expect![[r#"
        {"dsn":"host=pg-1.lan,pg-2.lan,pg-3.lan port=5432,5432,5432 target_session_attrs=prefer-standby connect_timeout=2 keepalives_idle=2 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000"}
        ---- Done
    "#]],
    );
}

#[tokio::test]
async fn a_switchover_is_told_and_carries_the_epoch_that_was_seen() {
    let member = Member::start(FakeOperator::default());
    check(
        change(member.run("switchover --to pg-2 --json").await),
        expect![[r#"
        {"from":"pg-1","to":"pg-2","epoch":8,"seconds_without_primary":0.34,"finished":true}
        ---- Done
    "#]],
    );
    let seen = member.operator.seen.lock().expect("unpoisoned").clone();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].expected_epoch.map(|e| e.0), Some(7));
    assert_eq!(seen[0].idempotency_key.len(), 16);
    let (exit, _, err) = member.run("switchover").await;
    assert_eq!(exit, Exit::Done);
    assert_eq!(err, "switched over from pg-1 to pg-2, 0.34 s without a primary; nothing was lost\n");
}

#[tokio::test]
async fn a_host_that_is_none_is_a_usage_error_and_one_that_is_away_is_not() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("--host pg-1:74000 status").await,
        expect![[r#"
            ---- stderr
            error: `--host`: "pg-1:74000" has no port between 1 and 65535 after its colon
            hint: `--host 10.0.0.11`, `--host pg-1.lan:7400` or `--host [fd00::11]:7400`
            ---- Usage
        "#]],
    );
    for none in ["http://pg-1:7400", "pg-1/x", "[pg-1]:7400", "pg-1:", ":7400"] {
        let (exit, _, err) = member.run(&format!("--host {none} status")).await;
        assert_eq!(exit, Exit::Usage, "{none}: {err}");
    }
    for away in ["127.0.0.1:1", "[::1]:1"] {
        let (exit, _, err) = member.run(&format!("--host {away} status")).await;
        assert_eq!(exit, Exit::NoQuorum, "{away}: {err}");
    }
}

#[tokio::test]
async fn each_way_to_fail_has_its_exit_status() {
    let refused = OperatorError::Refused {
        reason: "pg-3 does not stream".to_owned(),
        hint: Some("choose another with `--to`".to_owned()),
    };
    let fails = |error| Member::start(FakeOperator { refusal: Some(error), ..FakeOperator::default() });
    check(
        fails(refused).run("switchover --to pg-3").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: pg-3 does not stream
        hint: choose another with `--to`
        ---- Refused
    "#]],
    );
    check(
        fails(OperatorError::NoQuorum).run("switchover").await,
        expect![[r#"
        ---- stderr
        error: no quorum: a majority of voters cannot be reached
        hint: `rhone status` shows who is reachable; start the missing members
        ---- NoQuorum
    "#]],
    );
    check(
        fails(OperatorError::Unknown).run("switchover").await,
        expect![[r#"
        ---- stderr
        error: the outcome is unknown
        hint: `rhone status` and `rhone history` show what became of it
        ---- Unknown
    "#]],
    );
    let failed = OperatorError::Failed("the disk is full".to_owned());
    check(
        fails(failed).run("switchover").await,
        expect![[r#"
        ---- stderr
        error: the disk is full
        ---- Failed
    "#]],
    );
}

#[tokio::test]
async fn nobody_there_is_said_with_where_was_looked() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("--host 127.0.0.1:1 status").await;
    assert_eq!((exit, out.as_str()), (Exit::NoQuorum, ""));
    assert!(err.starts_with("error: no member answers (127.0.0.1:1: "), "{err}");
    std::fs::remove_file(member.folder.path().join(socket::SOCKET_NAME)).expect("removed");
    let (exit, _, err) = member.run("status").await;
    assert_eq!(exit, Exit::NoQuorum);
    assert!(err.contains("DIR/rhone.sock: No such file or directory"), "{err}");
}

#[tokio::test]
async fn who_names_nobody_to_ask_is_told_how_to() {
    if std::path::Path::new(crate::config::DEFAULT_PATH).exists() {
        eprintln!("skipped: this machine is a member");
        return;
    }
    // Nobody was asked: that is a matter of the command line, also of one that would ask again and again.
    for line in ["rhone status", "rhone status --watch", "rhone switchover", "rhone member list"] {
        let (mut terminal, out, err) = Terminal::captured();
        let cli = words::read(line.split(' ').map(Into::into), None).expect("a good command line");
        let outcome = execute(cli, &mut terminal).await;
        check(
            (finish(&mut terminal, outcome), out.text(), err.text()),
            expect![[r#"
                ---- stderr
                error: no member to ask: there is no /etc/rhone/rhone.toml
                hint: name a member with `--host HOST`, or its configuration with `-c FILE`, before the verb
                ---- Usage
            "#]],
        );
    }
}

#[tokio::test]
async fn a_member_that_does_not_lead_names_who_does() {
    let leader = Member::start(FakeOperator::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = admin_service(Arc::clone(&leader.operator));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let elsewhere = OperatorError::NotLeader { leader: Some(address) };
    let follower = Member::start(FakeOperator { refusal: Some(elsewhere), ..FakeOperator::default() });
    let (exit, ..) = follower.run("switchover --to pg-2").await;
    assert_eq!(exit, Exit::Done);
    assert_eq!(leader.operator.seen.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test]
async fn a_demo_that_cannot_be_is_a_usage_error() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("demo --sync --witness --nodes 2").await,
        expect![[r#"
        ---- stderr
        error: --witness needs at least 3 members: two with data, and the witness
        ---- Usage
    "#]],
    );
}

#[tokio::test]
async fn check_tells_what_the_machine_lacks() {
    let member = Member::start(FakeOperator::default());
    let data = member.folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    std::fs::write(data.join("notes.txt"), "mine").expect("written");
    let (exit, _, err) = member.run("check").await;
    assert_eq!(exit, Exit::Failed);
    assert!(
        err.contains("`postgres.data-dir`: DIR/data is neither empty nor a Postgres data directory"),
        "{err}"
    );
    let config = member.folder.path().join("rhone.toml");
    let text =
        std::fs::read_to_string(&config).expect("read").replace("[postgres]", "[postgres]\npriority = -1");
    std::fs::write(&config, text).expect("written");
    let (exit, _, err) = member.run("check").await;
    assert_eq!((exit, err.lines().count()), (Exit::Usage, 1), "{err}");
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[tokio::test]
async fn pausing_and_fencing_wait_for_the_new_state_and_print_it() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("pause").await;
    assert_eq!((exit, err.lines().count()), (Exit::Done, 1), "{err}");
    assert!(out.contains("automatic failover is off (paused)"), "{out}");
    check(
        change(member.run("resume --json").await),
        expect![[r#"
        {"paused":false}
        ---- Done
    "#]],
    );
    let (exit, out, err) = member.run("fence pg-2").await;
    assert_eq!((exit, err.as_str()), (Exit::Done, "pg-2 is fenced; `rhone unfence pg-2` lets it go\n"));
    assert!(out.contains("pg-2   standby  fenced"), "{out}");
    check(
        change(member.run("unfence pg-2 --json").await),
        expect![[r#"
            {"name":"pg-2","fenced":false,"finished":true,"handed_over_to":null,"epoch":7}
            ---- Done
        "#]],
    );
    check(
        member.run("fence pg-3 --no-wait").await,
        expect![[r#"
        ---- stderr
        pg-3 is being fenced; `rhone status --watch` shows it
        ---- Done
    "#]],
    );
    let refused = OperatorError::Refused {
        reason: "pg-1 is the primary".to_owned(),
        hint: Some("`rhone fence pg-1 --yes` hands over to a standby first".to_owned()),
    };
    let member = Member::start(FakeOperator { refusal: Some(refused), ..FakeOperator::default() });
    check(
        member.run("fence pg-1").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: pg-1 is the primary
        hint: `rhone fence pg-1 --yes` hands over to a standby first
        ---- Refused
    "#]],
    );
}

#[tokio::test]
async fn shells_and_hands_that_know_patronictl_find_their_way() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, _) = member.run("list").await;
    assert_eq!((exit, out.lines().next()), (Exit::Done, member.run("status").await.1.lines().next()));
    for shell in ["bash", "zsh", "fish"] {
        let (exit, out, _) = member.run(&format!("completions {shell}")).await;
        assert!(exit == Exit::Done && out.contains("switchover"), "{shell}");
    }
}

#[tokio::test]
async fn events_are_lines_for_people_and_for_programs() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("events").await,
        expect![[r#"
        2026-11-21 07:13:00  pg-1  paused: automatic failover is off
        ---- Done
    "#]],
    );
    check(
        member.run("events --json").await,
        expect![[r#"
        {"time":"2026-11-21T07:13:00.000Z","node":"pg-1","epoch":7,"reason":"paused","message":"automatic failover is off"}
        ---- Done
    "#]],
    );
    // The other end of the fake's stream is gone at once.
    let (exit, out, err) = member.run("events --follow").await;
    assert_eq!((exit, out.lines().count()), (Exit::NoQuorum, 1), "{err}");
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one table")]
async fn settings_are_shown_changed_compared_and_gone_back_to() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("settings").await;
    assert_eq!(exit, Exit::Done);
    assert!(
        out.starts_with(
            "SETTING              VALUE\ndead-member-timeout  5min\nmax-lag-on-failover  1MB\nsync"
        ),
        "{out}"
    );
    assert_eq!(err, "version 1; `rhone settings history` lists the versions before\n");
    check(
        member.run("settings set postgres.work_mem=8MB postgres.max_connections=200").await,
        expect![[r#"
            postgres.max_connections: (not set) -> 200
            postgres.work_mem: (not set) -> 8MB
            ---- stderr
            the settings are at version 2
            pg-3 is rewinding: it takes them over when it starts
            from the next restart on: max_connections
            hint: `rhone restart --rolling --if-pending` restarts one member after the other
            ---- Done
        "#]],
    );
    check(
        member.run("settings get postgres.work_mem").await,
        expect![[r#"
        8MB
        ---- Done
    "#]],
    );
    check(
        member.run("settings get postgres.jit").await,
        expect![[r#"
        ---- stderr
        error: postgres.jit is not set
        hint: `rhone settings` lists what is; a Postgres parameter is `postgres.NAME`
        ---- Failed
    "#]],
    );
    check(
        member.run("settings set --expect 1 postgres.work_mem=9MB").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: the settings are at version 2 by now
        hint: `rhone settings history` shows why
        ---- Refused
    "#]],
    );
    check(
        member.run("settings set --dry-run postgres.work_mem=9MB --json").await,
        expect![[r#"
        {"version":2,"changes":[{"key":"postgres.work_mem","before":"8MB","after":"9MB"}],"restart":["max_connections"],"applied":[],"refused":{},"finished":false}
        ---- Done
    "#]],
    );
    check(
        member.run("settings set postgres.work_mem=8MB").await,
        expect![[r#"
        ---- stderr
        nothing to change; the settings are at version 2
        from the next restart on: max_connections
        hint: `rhone restart --rolling --if-pending` restarts one member after the other
        ---- Done
    "#]],
    );
    check(
        member.run("settings set work_mem=8MB").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: no setting is named work_mem
        hint: a Postgres parameter is `postgres.work_mem`; the others are sync, sync-required, max-lag-on-failover, dead-member-timeout, pg-hba, pg-ident, timing
        ---- Refused
    "#]],
    );
    check(
        member.run("settings set sync").await,
        expect![[r#"
        ---- stderr
        error: "sync" is not KEY=VALUE
        hint: rhone settings set sync=quorum postgres.work_mem=16MB
        ---- Usage
    "#]],
    );
    check(
        member.run("settings reset postgres.work_mem --json").await,
        expect![[r#"
        {"version":3,"changes":[{"key":"postgres.work_mem","before":"8MB","after":null}],"restart":["max_connections"],"applied":["pg-1","pg-2","pg-3"],"refused":{},"finished":true}
        ---- Done
    "#]],
    );
    check(
        member.run("settings history").await,
        expect![[r#"
        VERSION  WHEN (UTC)           BY      CHANGE
              2  2026-11-21 07:13:00  ann@pc  postgres.max_connections: (not set) -> 200
                                              postgres.work_mem: (not set) -> 8MB
              3  2026-11-21 07:13:00  ann@pc  postgres.work_mem: 8MB -> (not set)
        ---- Done
    "#]],
    );
    check(
        member.run("settings history -n 1 --json").await,
        expect![[r#"
        [{"version":3,"time":"2026-11-21T07:13:00.000Z","by":"ann@pc","changes":[{"key":"postgres.work_mem","before":"8MB","after":null}]}]
        ---- Done
    "#]],
    );
    check(
        member.run("settings diff").await,
        expect![[r#"
        postgres.work_mem: 8MB -> (not set)
        ---- Done
    "#]],
    );
    check(
        member.run("settings diff 1 9").await,
        expect![[r#"
        ---- stderr
        error: version 9 is not kept
        hint: versions 1 to 3 are: `rhone settings history`
        ---- Failed
    "#]],
    );
    let (exit, out, _) = member.run("show-config").await;
    assert!(
        exit == Exit::Done && out.contains("postgres.max_connections = \"200\"\nsync = \"off\"\ntiming"),
        "{out}"
    );
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one table")]
async fn members_are_restarted_copied_and_removed() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("restart pg-2 --json --no-wait").await,
        expect![[r#"
        {"finished":false,"restarted":[]}
        ---- Done
    "#]],
    );
    check(
        member.run("restart pg-9").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: no member is named pg-9
        hint: `rhone status` lists them
        ---- Refused
    "#]],
    );
    check(
        change(member.run("restart --if-pending --json").await),
        expect![[r#"
        {"finished":true,"restarted":[]}
        ---- Done
    "#]],
    );
    let (exit, out, err) = member.run("reload").await;
    assert!(exit == Exit::Done && out.starts_with("cluster main"), "{out}{err}");
    assert_eq!(err, "told to read the configuration again: pg-1, pg-2, pg-3\n");
    let (exit, out, err) = member.run("reinit pg-3 --yes").await;
    assert!(exit == Exit::Done && out.contains("pg-3   standby  streaming"), "{out}{err}");
    check(
        member.run("member").await,
        expect![[r#"
        NODE   KIND     RAFT   ROLE     STATE      POSTGRES
        pg-1   data     votes  primary  running    pg-1.lan:5432
        pg-2   data     votes  standby  streaming  pg-2.lan:5432
        pg-3   data     votes  standby  streaming  pg-3.lan:5432
        wit-1  witness  votes  witness  voting     -
        ---- Done
    "#]],
    );
    let (exit, out, err) = member.run("member add pg-4 10.0.0.14").await;
    assert!(exit == Exit::Done && out.contains("advertise = \"10.0.0.14:7400\""), "{out}{err}");
    check(
        member.run("member add pg-2 10.0.0.14").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: pg-2 is a member already, and streaming
        hint: a machine that lost its disk joins again under its old name by itself
        ---- Refused
    "#]],
    );
    check(
        change(member.run("member demote pg-3 --json").await),
        expect![[r#"
        {"epoch":7,"may_vote":false,"name":"pg-3","votes":false}
        ---- Done
    "#]],
    );
    check(
        change(member.run("member remove pg-3 --yes --json").await),
        expect![[r#"
        {"name":"pg-3","removed":true}
        ---- Done
    "#]],
    );
}

#[tokio::test]
async fn every_command_has_a_manual_page() {
    use clap::CommandFactory;
    let member = Member::start(FakeOperator::default());
    let (exit, out, _) = member.run("man").await;
    assert!(exit == Exit::Done && out.contains(".TH rhone 1") && out.contains("switchover"), "{out}");
    let folder = member.folder.path().join("man");
    let (exit, _, err) = member.run(&format!("man {}", folder.display())).await;
    assert_eq!(exit, Exit::Done, "{err}");
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        assert!(folder.join(format!("rhone-{}.1", verb.get_name())).is_file(), "{}", verb.get_name());
    }
    let set = std::fs::read_to_string(folder.join("rhone-settings-set.1")).expect("a page");
    assert!(set.contains("postgres.work_mem=16MB"), "{set}");
}

#[tokio::test]
async fn doctor_says_what_to_fix() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("doctor").await,
        expect![[r#"
        error: pg-3: its postgres does not answer (postgres)
          hint: look at its log
        warning: cluster: the versions of rhone differ (rhone)
          hint: finish the upgrade
        ---- stderr
        error: one of these is an error
        ---- Failed
    "#]],
    );
    check(
        member.run("doctor --json").await,
        expect![[r#"
        [{"severity":"error","code":"postgres","member":"pg-3","message":"its postgres does not answer","hint":"look at its log"},{"severity":"warning","code":"rhone","member":null,"message":"the versions of rhone differ","hint":"finish the upgrade"}]
        ---- stderr
        error: one of these is an error
        ---- Failed
    "#]],
    );
}
