//! What a report holds, and what it must never hold.

use std::process::Command;

use super::{Exit, FakeOperator, Member};

const SECRETS: [&str; 6] =
    ["replpass-1", "ownerpass-2", "pool\"pass-3", "hookpass-4", "archive-pass-5", "ldap-pass-6"];

/// A member with a secret in every place that a configuration has for one.
fn with_secrets() -> Member {
    let member = Member::start(FakeOperator::default());
    let at = member.folder.path();
    let [replication, owner, pool, hook, archive, ldap] = SECRETS;
    let write = |name: &str, text: String| std::fs::write(at.join(name), text).expect("written");
    write("repl.pw", format!("{replication}\n"));
    write("owner.pw", format!("{owner}\n"));
    write("users.txt", format!("\"app\" \"{}\"\n", pool.replace('"', "\"\"")));
    let known = std::fs::read_to_string(at.join("rhone.toml")).expect("the file");
    let known = known.replace("[node]\n", "[node]\nhttp = \"127.0.0.1:1\"\n");
    let shown = at.display();
    write(
        "rhone.toml",
        format!(
            "{known}replication-password-file = \"{shown}/repl.pw\"\n\
             [pgbouncer]\nusers-file = \"{shown}/users.txt\"\n\
             [hooks]\non-start = [\"/bin/true\", \"--token\", \"{hook}\"]\n\
             [bootstrap]\npg-hba = [\"host all all all ldap ldapserver=a ldapbindpasswd={ldap}\"]\n\
             database = \"app\"\ndatabase-password-file = \"{shown}/owner.pw\"\n\
             [bootstrap.postgres]\narchive_command = \"AWS_SECRET_ACCESS_KEY={archive} push %p\"\n"
        ),
    );
    let log = at.join("data.rhone");
    std::fs::create_dir(&log).expect("a folder");
    std::fs::write(
        log.join("postgres.log"),
        format!("LOG:  ready\nSTATEMENT:  ALTER ROLE app PASSWORD 'typed-7'\nDETAIL:  {replication} {owner} {pool}\n"),
    )
    .expect("written");
    std::fs::write(at.join("decisions.jsonl"), "{\"a\":\"decision\"}\n").expect("written");
    member
}

/// Unpacks a report: the names of its files, and all that is in it.
fn unpacked(file: &str) -> (String, String) {
    let run = |flags: &str| {
        let done = Command::new("tar").args([flags, file]).output().expect("tar runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("UTF-8")
    };
    (run("-tzf"), run("-xzOf"))
}

#[tokio::test]
async fn a_report_holds_what_a_maintainer_asks_for_and_no_secret() {
    let member = with_secrets();
    let dir = member.folder.path().join("out");
    std::fs::create_dir(&dir).expect("a folder");
    let (exit, out, err) = member.run(&format!("report --dir {}", dir.display())).await;
    assert_eq!((exit, err.lines().count()), (Exit::Done, 1), "{out}{err}");
    assert!(out.contains("  metrics.txt: missing: "), "nobody listens there: {out}");
    let file = out.lines().next().expect("a file");
    let (names, text) = unpacked(file);
    for name in [
        "report.txt",
        "status.txt",
        "status.json",
        "explain.txt",
        "history.txt",
        "events.json",
        "settings.txt",
        "settings-history.json",
        "doctor.txt",
        "rhone.toml",
        "machine.txt",
        "check.txt",
        "decisions.jsonl",
        "postgres.log",
    ] {
        assert_eq!(
            names.lines().filter(|line| line.ends_with(&format!("/{name}"))).count(),
            1,
            "{name}: {names}"
        );
    }
    for part in [
        "cluster main, system 7423474350493388827",
        "pg-2 decides: nothing to do",
        "automatic failover is off",
        "its postgres does not answer",
        "{\"a\":\"decision\"}",
        "LOG:  ready",
        "on-start = [\"/bin/true\", \"--token\", [blanked]]",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    for secret in SECRETS.into_iter().chain(["typed-7", "pass-3"]) {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    let last = file.rsplit('/').next().expect("a name");
    assert!(last.starts_with("rhone-report-pg-1-20") && last.ends_with("Z.tar.gz"), "{last}");
}

#[tokio::test]
async fn a_report_is_made_where_nobody_answers_too() {
    let member = with_secrets();
    std::fs::write(member.folder.path().join("rhone.toml"), "clutser = \"main\"\n").expect("written");
    let dir = member.folder.path().display().to_string();
    let (exit, out, _) = member.run(&format!("report --json --dir {dir}")).await;
    assert_eq!(exit, Exit::Done);
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let (_, text) = unpacked(value["file"].as_str().expect("a file"));
    assert!(text.contains("did you mean `cluster`?"), "{text}");
    assert!(value["missing"][0]["name"].as_str().is_some_and(|name| name.starts_with("status")), "{out}");
}
