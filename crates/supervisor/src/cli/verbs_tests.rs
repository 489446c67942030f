//! Verbs that are left to themselves, scheduled, or carried out on files.

use clap::Parser;
use expect_test::expect;

use super::{Cli, Exit, FakeOperator, Member, change, check};

#[tokio::test]
async fn a_restart_is_scheduled_shown_and_cancelled() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("restart pg-2 --at 2026-11-21T20:00:00+01:00").await;
    assert!(exit == Exit::Done && out.starts_with("cluster main"), "{out}{err}");
    assert_eq!(
        err,
        "a restart of pg-2 is scheduled for 2026-11-21T19:00:00.000Z; `rhone restart pg-2 --cancel` takes it off\n"
    );
    let (_, out, _) = member.run("status").await;
    assert!(out.contains("\na restart of pg-2 is scheduled for 2026-11-21T19:00:00.000Z by "), "{out}");
    let (_, out, _) = member.run("status -o json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["scheduled_restarts"][0]["name"], "pg-2");
    assert_eq!(value["scheduled_restarts"][0]["at"], "2026-11-21T19:00:00.000Z");
    let (exit, _, err) = member.run("restart pg-2 --cancel").await;
    assert_eq!((exit, err.as_str()), (Exit::Done, "the scheduled restart of pg-2 is cancelled\n"));
    let (_, out, _) = member.run("status -o json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["scheduled_restarts"], serde_json::json!([]));
    check(
        change(member.run("restart pg-2 --at +10m -o json").await),
        expect![[r#"
        {"name":"pg-2","scheduled":"2026-11-21T07:23:00.000Z"}
        ---- Done
    "#]],
    );
    for wrong in ["restart --at +10m", "restart --cancel", "restart pg-2 --at +10m --if-pending"] {
        let words = std::iter::once("rhone").chain(wrong.split(' '));
        assert!(Cli::try_parse_from(words).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_switchover_is_scheduled_shown_and_cancelled() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("switchover --to pg-2 --at 2026-11-21T20:00:00+01:00").await;
    assert!(exit == Exit::Done && out.starts_with("cluster main"), "{out}{err}");
    assert_eq!(
        err,
        "a switchover from pg-1 to pg-2 is scheduled for 2026-11-21T19:00:00.000Z; `rhone switchover --cancel` takes it off\n"
    );
    let (_, out, _) = member.run("status").await;
    assert!(out.contains("\na switchover to pg-2 is scheduled for 2026-11-21T19:00:00.000Z by "), "{out}");
    let (_, out, _) = member.run("status -o json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["scheduled_switchover"]["at"], "2026-11-21T19:00:00.000Z");
    assert_eq!(value["scheduled_switchover"]["from"], "pg-1");
    check(
        change(member.run("switchover --cancel -o json").await),
        expect![[r#"
        {"cancelled":true}
        ---- Done
    "#]],
    );
    check(
        member.run("switchover --cancel").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: no switchover is scheduled
        hint: `rhone switchover --at TIME` schedules one
        ---- Refused
    "#]],
    );
    check(
        change(member.run("switchover --at +10m -o json").await),
        expect![[r#"
        {"from":"pg-1","to":null,"epoch":7,"seconds_without_primary":null,"finished":false,"scheduled":"2026-11-21T07:23:00.000Z"}
        ---- Done
    "#]],
    );
    check(
        member.run("switchover --at noon").await,
        expect![[r#"
        ---- stderr
        error: `noon` is no time
        hint: 2026-11-21T20:00:00Z is one, 2026-11-21T21:00:00+01:00 too, and +10m is in ten minutes
        ---- Usage
    "#]],
    );
}

#[tokio::test]
async fn every_change_can_be_left_to_itself() {
    let member = Member::start(FakeOperator::default());
    for (line, expected) in [
        ("pause --no-wait", "automatic failover is turned off; `rhone status --watch` shows it\n"),
        ("resume --no-wait", "automatic failover is turned on; `rhone status --watch` shows it\n"),
        ("fence pg-3 --no-wait", "pg-3 is being fenced; `rhone status --watch` shows it\n"),
        ("unfence pg-3 --no-wait", "pg-3 is being started; `rhone status --watch` shows it\n"),
        ("reload pg-2 --no-wait", "told to read the configuration again: pg-2\n"),
        ("restart pg-2 --no-wait", "pg-2 is being restarted; `rhone status --watch` shows it\n"),
        ("reinit pg-3 --yes --no-wait", "pg-3 is being copied; `rhone status --watch` shows it\n"),
        ("member demote pg-3 --no-wait", "pg-3 is kept from voting; `rhone status --watch` shows it\n"),
        ("member promote pg-3 --no-wait", "pg-3 may vote; `rhone status --watch` shows it\n"),
        ("member remove pg-3 --yes --no-wait", "pg-3 is being removed; `rhone status --watch` shows it\n"),
    ] {
        let (exit, out, err) = member.run(line).await;
        assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Done, "", expected), "{line}");
    }
    for (line, expected) in [
        ("pause --no-wait --json", "{\"paused\":true,\"finished\":false}"),
        ("member demote pg-2 --no-wait --json", "{\"name\":\"pg-2\",\"may_vote\":false,\"finished\":false}"),
        (
            "member remove pg-2 --yes --no-wait --json",
            "{\"name\":\"pg-2\",\"removed\":true,\"finished\":false}",
        ),
    ] {
        let (exit, out, err) = member.run(line).await;
        let (found, expected): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&out).expect("JSON"), serde_json::from_str(expected).expect("JSON"));
        assert_eq!((exit, found, err.as_str()), (Exit::Done, expected, ""), "{line}");
    }
}

#[tokio::test]
async fn recovering_by_force_is_refused_where_there_is_nothing_to_recover() {
    let member = Member::start(FakeOperator::default());
    check(
        member.run("recover --force-new-cluster --yes").await,
        expect![[r#"
        ---- stderr
        error: refused, nothing was changed: there is no member's state in DIR
        hint: `-c FILE` names the configuration of the member on this machine
        ---- Refused
    "#]],
    );
    check(
        member.run("recover --force-new-cluster --host pg-2").await,
        expect![[r#"
        ---- stderr
        error: this works on the files of a member on this machine only
        hint: run it on the machine of the data member that has the most, without `--host`
        ---- Usage
    "#]],
    );
    assert!(Cli::try_parse_from(["rhone", "recover", "--yes"]).is_err());
}

#[tokio::test]
async fn patronis_configuration_is_translated_to_stdout_and_explained_on_stderr() {
    let member = Member::start(FakeOperator::default());
    let file = member.folder.path().join("patroni.yml");
    let text =
        "scope: main\nname: db-1\nloop_wait: 1\netcd: {hosts: 'a:2379'}\npostgresql: {data_dir: /data}\n";
    std::fs::write(&file, text).expect("the file is written");
    let line = format!("import {} --peers 127.0.0.1 --insecure", file.display());
    check(
        member.run(&line).await,
        expect![[r##"
            # Translated from a configuration of Patroni's; `rhone check -c FILE` says whether it is sound.
            cluster = "main"

            [node]
            name = "db-1"
            state-dir = "/var/lib/rhone"
            listen = "0.0.0.0:7400"
            advertise = "127.0.0.1:7400"
            peers = ["127.0.0.1:7400"]

            [postgres]
            data-dir = "/data"

            [tls]
            insecure = true

            [bootstrap]
            sync = "off"
            ---- stderr
            translated:
              scope: cluster = "main"
              name: node.name = "db-1"
              postgresql.data_dir: postgres.data-dir = "/data"
              node.state-dir = "/var/lib/rhone"
              node.listen = "0.0.0.0:7400"
              node.advertise = "127.0.0.1:7400"
              node.peers = ["127.0.0.1:7400"]
              tls.insecure = true
              bootstrap.sync = "off"
            without a meaning here:
              etcd.hosts: raft is built in
            to be decided by hand:
              loop_wait: rhone does not know this key
              commits wait for nobody, as before: sync = "quorum" loses nothing, for a round trip per commit
            hint: `rhone check -c FILE` says whether the new file is sound on this machine
            ---- Done
        "##]],
    );
    let (exit, out, err) = member.run(&format!("{line} --json")).await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    assert!(value["config"].as_str().is_some_and(|config| config.contains("cluster = \"main\"")));
    assert_eq!(value["notes"][2]["verdict"], "decide");
    std::fs::write(&file, "a: [").expect("the file is written");
    let (exit, _, err) = member.run(&line).await;
    assert!(exit == Exit::Usage && err.contains("it is no YAML") && err.contains("\nhint: "), "{err}");
}

#[tokio::test]
async fn a_backup_is_for_a_later_version() {
    let member = Member::start(FakeOperator::default());
    for line in ["backup", "backup now --json", "backup list -o json"] {
        check(
            member.run(line).await,
            expect![[r#"
                ---- stderr
                error: `rhone backup` is not in this version: it comes later
                hint: pgBackRest, WAL-G or pg_basebackup work beside rhone: `rhone settings set postgres.archive_command=…`
                ---- Usage
            "#]],
        );
    }
}

#[tokio::test]
async fn where_nobody_answers_it_is_said_who_was_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("rhone.toml");
    let at = folder.path().display();
    // A port that was free a moment ago, and nobody listens on.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
    let text = format!(
        "cluster = \"main\"\n[node]\nname = \"pg-1\"\nstate-dir = \"{at}\"\npeers = [\"127.0.0.1:7400\", \"127.0.0.1:{port}\"]\n\
         [postgres]\ndata-dir = \"{at}/data\"\n"
    );
    std::fs::write(&config, text).expect("the file is written");
    for verb in
        ["status", "status -o json", "pause", "dsn", "explain", "doctor", "events", "settings", "psql"]
    {
        let typed = ["rhone", "-c", config.to_str().expect("UTF-8")].into_iter().chain(verb.split(' '));
        let (mut terminal, out, err) = super::Terminal::captured();
        let cli = super::words::read(typed.map(Into::into), None).expect("a good command line");
        let outcome = super::execute(cli, &mut terminal).await;
        let exit = super::finish(&mut terminal, outcome);
        let err = err.text();
        assert_eq!((exit, out.text().as_str()), (Exit::NoQuorum, ""), "{verb}: {err}");
        assert!(
            err.starts_with(&format!("error: no member answers ({at}/rhone.sock: "))
                && err.contains(&format!("; 127.0.0.1:{port}: "))
                && err.contains("\nhint: is `rhone run` at work there? "),
            "{verb}: {err}"
        );
    }
}

#[tokio::test]
async fn check_warns_of_what_is_seldom_meant() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("rhone.toml");
    let at = folder.path().display();
    let text = format!(
        "cluster = \"main\"\n[node]\nname = \"w\"\nkind = \"witness\"\nstate-dir = \"{at}\"\n\
         peers = [\"127.0.0.1:7401\", \"127.0.0.1:7402\"]\n"
    );
    std::fs::write(&config, &text).expect("the file is written");
    let run = async |line: &str| {
        let typed = ["rhone", "-c", config.to_str().expect("UTF-8")].into_iter().chain(line.split(' '));
        let (mut terminal, out, err) = super::Terminal::captured();
        let cli = super::words::read(typed.map(Into::into), None).expect("a good command line");
        let outcome = super::execute(cli, &mut terminal).await;
        let exit = super::finish(&mut terminal, outcome);
        let hide = |text: String| text.replace(&at.to_string(), "DIR");
        (exit, hide(out.text()), hide(err.text()))
    };
    check(
        run("check").await,
        expect![[r#"
            DIR/rhone.toml: sound; member w of cluster main
            ---- stderr
            warning: `node.peers` does not name this member, 127.0.0.1:7400: it can join a cluster, and found none
            hint: a founding member has "127.0.0.1:7400" in its peers, the same list on each; one that joins later needs nothing
            warning: two founding members: only one of them votes, and where it is lost nobody takes over
            hint: add a third to `node.peers`: another data member
            ---- Done
        "#]],
    );
    let (exit, out, err) = run("check --json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((exit, err.as_str(), value["sound"].as_bool()), (Exit::Done, "", Some(true)));
    assert_eq!(value["warnings"].as_array().map(Vec::len), Some(2));

    // What the machine lacks is told with the line that asks for it, all at once.
    let files = format!("[tls]\nca = \"{at}/ca.crt\"\ncert = \"{at}/w.crt\"\nkey = \"{at}/w.key\"\n");
    std::fs::write(&config, format!("{text}{files}")).expect("the file is written");
    let (exit, out, err) = run("check").await;
    assert_eq!((exit, out.as_str()), (Exit::Failed, ""), "{err}");
    for (line, key, file) in [(8, "tls.ca", "ca.crt"), (9, "tls.cert", "w.crt"), (10, "tls.key", "w.key")] {
        let told = format!("error: DIR/rhone.toml:{line}: `{key}`: DIR/{file} cannot be read: ");
        assert!(err.contains(&told), "{err}");
    }
}
