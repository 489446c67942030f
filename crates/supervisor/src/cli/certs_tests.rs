use clap::Parser;

use super::super::args::Cli;
use super::super::terminal::Terminal;
use super::super::{Exit, execute, finish};

/// Runs a command line in a folder; gives the exit status, what was printed and what was said.
async fn run(folder: &std::path::Path, line: &str) -> (Exit, String, String) {
    let at = folder.to_str().expect("UTF-8");
    let line = line.replace("DIR", at);
    let (mut terminal, out, err) = Terminal::captured();
    let config = if line.starts_with("-c ") { [].as_slice() } else { &["-c", "/nonexistent/rhone.toml"] };
    let words = std::iter::once("rhone").chain(config.iter().copied()).chain(line.split(' '));
    let cli = Cli::try_parse_from(words).expect("a good command line");
    let outcome = execute(cli, &mut terminal).await;
    (finish(&mut terminal, outcome), out.text().replace(at, "DIR"), err.text().replace(at, "DIR"))
}

#[track_caller]
fn has(found: &str, expected: &str) {
    assert!(found.contains(expected), "{found} does not say {expected}");
}

#[tokio::test]
async fn a_ca_issues_for_members_and_people_and_is_rolled() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let (exit, out, err) = run(at, "certs init --dir DIR/other --cluster other").await;
    assert_eq!((exit, err.lines().count()), (Exit::Done, 1), "{err}");
    has(&out, "CN=rhone other ");
    // Without a name and a configuration it is the one that nobody named.
    let (exit, out, err) = run(at, "certs init --dir DIR").await;
    assert_eq!(exit, Exit::Done, "{err}");
    has(&err, "hint: this is for the cluster main; `--cluster NAME` names another");
    has(&out, "DIR/ca.crt  CN=rhone main ");
    has(&err, "hint: keep ca.key off the members");
    let (exit, _, err) = run(at, "certs init --dir DIR --cluster main").await;
    assert_eq!(exit, Exit::Failed);
    has(&err, "hint: `rhone certs init --roll` makes a successor");

    let (exit, out, err) = run(at, "certs issue pg-1 --dir DIR").await;
    assert_eq!(exit, Exit::Done, "{err}");
    has(&out, "rhone://main/member/pg-1  pg-1, localhost, 127.0.0.1, ::1  20");
    has(&err, "hint: it is good for pg-1, localhost, 127.0.0.1, ::1; `--host` names where else");
    let wrong = at.join("wrong.toml");
    std::fs::write(&wrong, "clutser = \"main\"\n").expect("written");
    let (exit, _, err) = run(at, "-c DIR/wrong.toml certs init --dir DIR/wrong").await;
    assert_eq!(exit, Exit::Usage);
    has(&err, "did you mean `cluster`?");
    let (exit, out, _) = run(at, "certs issue pg-1 --host 10.0.0.11 --host pg-1.lan --dir DIR").await;
    assert_eq!(exit, Exit::Done);
    has(&out, "OU=member, CN=pg-1  rhone://main/member/pg-1  10.0.0.11, pg-1.lan  20");
    let (exit, out, _) = run(at, "certs issue anna --role admin --days 30 --dir DIR --json").await;
    assert_eq!(exit, Exit::Done);
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value[0]["identity"], "rhone://main/admin/anna");
    assert_eq!(value[0]["days_left"], 30, "{out}");
    let (exit, _, err) = run(at, "certs issue ../x --role admin --dir DIR").await;
    assert_eq!(exit, Exit::Usage);
    has(&err, "is not a name");

    let (exit, out, _) = run(at, "certs init --roll --dir DIR").await;
    assert_eq!((exit, out.lines().count()), (Exit::Done, 3), "{out}");
    let (exit, out, err) = run(at, "certs init --drop-former --dir DIR").await;
    assert_eq!((exit, out.lines().count()), (Exit::Done, 2), "{out}");
    has(&err, "1 former CA(s) are no longer believed");
    let (exit, out, _) = run(at, "certs show DIR/ca.crt DIR/pg-1.crt").await;
    assert_eq!((exit, out.lines().count()), (Exit::Done, 3), "{out}");
    let (exit, _, err) = run(at, "certs show DIR/pg-1.key").await;
    assert_eq!(exit, Exit::Usage);
    has(&err, "DIR/pg-1.key: no certificate in it");
    let (exit, _, err) = run(at, "certs show DIR/nobody.crt").await;
    assert_eq!(exit, Exit::Usage);
    has(&err, "DIR/nobody.crt: cannot be read: ");
    has(&err, "\nhint: name certificates in PEM");
}

#[tokio::test]
async fn half_a_certificate_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let (exit, _, err) = run(folder.path(), "--host 127.0.0.1:1 --cert DIR/x.crt status").await;
    assert_eq!(exit, Exit::Usage);
    has(&err, "hint: name all three");
}
