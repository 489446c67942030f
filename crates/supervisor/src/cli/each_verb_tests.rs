//! Every verb that asks a member: its text, its JSON, its refusal. The list of verbs is the command line's own.

use clap::CommandFactory;
use serde_json::Value;

use super::{Cli, Exit, FakeOperator, Member, OperatorError};

/// Verbs, subverbs too, that are shown elsewhere: they serve, run programs, or work on files.
const ELSEWHERE: [(&str, &str); 15] = [
    ("run", "tests/chaos"),
    ("demo", "tests/chaos/tests/demo.rs"),
    ("check", "verbs_tests.rs"),
    ("replay", "replay_tests.rs"),
    ("certs", "certs_tests.rs"),
    ("edit-config", "settings edit, tests.rs"),
    ("import", "verbs_tests.rs"),
    ("recover", "verbs_tests.rs, tests/chaos/tests/recover.rs"),
    ("report", "report_tests.rs"),
    ("completions", "tests/deploy"),
    ("man", "verbs_tests.rs"),
    ("inject", "tests/deploy, tests/chaos/tests/pod.rs"),
    ("backup", "not in this version"),
    ("psql", "tests/chaos/tests/operate.rs"),
    ("settings edit", "tests.rs"),
];

/// A line of each verb, what its text has, and a key of its JSON (`[]`: a list).
const SHOWN: [(&str, &str, &str); 31] = [
    ("status", "pg-1   primary", "members"),
    ("explain", "nothing to do", "decision"),
    ("history", "REASON", "[]"),
    ("switchover --to pg-2", "pg-1   primary", "to"),
    ("failover --to pg-2", "pg-1   primary", "to"),
    ("events", "automatic failover is off", "[]"),
    ("pause", "pg-1   primary", "paused"),
    ("resume", "pg-1   primary", "paused"),
    ("fence pg-2", "pg-2", "fenced"),
    ("unfence pg-2", "pg-2", "fenced"),
    ("settings", "SETTING", "values"),
    ("settings get sync", "off", "value"),
    ("settings set postgres.work_mem=8MB", "postgres.work_mem", "version"),
    ("settings reset postgres.work_mem", "postgres.work_mem", "version"),
    ("settings history", "VERSION", "[]"),
    ("settings diff", "", "[]"),
    ("settings revert 1", "", "version"),
    ("show-config", "sync", "values"),
    ("reload", "pg-1   primary", "reloaded"),
    ("restart pg-2", "pg-2", "finished"),
    ("restart pg-2 --at +10m", "a restart of pg-2 is scheduled", "scheduled"),
    ("switchover --at +10m", "a switchover to the best standby is scheduled", "scheduled"),
    ("reinit pg-3 --yes", "pg-3", "finished"),
    ("member", "KIND", "[]"),
    ("member list", "KIND", "[]"),
    ("member add pg-4 10.0.0.14", "pg-4", "name"),
    ("member demote pg-3", "pg-3", "votes"),
    ("member promote pg-3", "pg-3", "votes"),
    ("member remove wit-1", "pg-1", "removed"),
    ("doctor", "", "[]"),
    ("dsn", "target_session_attrs", "dsn"),
];

#[test]
fn no_verb_is_forgotten() {
    let shown = |verb: &str| {
        let has = |line: &str| line == verb || line.starts_with(&format!("{verb} "));
        SHOWN.iter().any(|(line, ..)| has(line)) || ELSEWHERE.iter().any(|(known, _)| *known == verb)
    };
    for verb in Cli::command().get_subcommands() {
        let name = verb.get_name();
        assert!(name == "help" || shown(name), "`rhone {name}` is shown nowhere");
        for subverb in verb.get_subcommands().filter(|_| name != "certs" && name != "help") {
            let both = format!("{name} {}", subverb.get_name());
            assert!(shown(&both), "`rhone {both}` is shown nowhere");
        }
    }
}

#[tokio::test]
async fn every_verb_prints_text_for_people_and_one_json_value_for_programs() {
    // A change of the one is not there for the other.
    let (one, other) = (Member::start(FakeOperator::default()), Member::start(FakeOperator::default()));
    let mut wrong = Vec::new();
    for (line, text, key) in SHOWN {
        let (exit, out, err) = one.run(line).await;
        // A doctor's findings make it fail.
        let ended = exit == Exit::Done || line == "doctor";
        if !ended || !out.contains(text) || serde_json::from_str::<Value>(&out).is_ok() {
            wrong.push(format!("{line}: {exit:?}\n{out}{err}"));
        }
        let (again, out, err) = other.run(&format!("{line} -o json")).await;
        // A list is one value, or a value a line where it may go on.
        let told = |line: &str| {
            serde_json::from_str::<Value>(line).is_ok_and(|value| {
                if key == "[]" { value.is_array() || value.is_object() } else { value.get(key).is_some() }
            })
        };
        if again != exit || out.is_empty() || !out.lines().all(told) {
            wrong.push(format!("{line} -o json: {again:?}\n{out}{err}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_refused_change_ends_with_status_3_and_a_hint() {
    let reason = "the epoch is 9 by now".to_owned();
    let hint = Some("`rhone status` shows why".to_owned());
    for line in [
        "switchover",
        "switchover --at +10m",
        "failover",
        "failover --to pg-2 --accept-data-loss",
        "settings set postgres.work_mem=8MB",
    ] {
        let refusal = Some(OperatorError::Refused { reason: reason.clone(), hint: hint.clone() });
        let member = Member::start(FakeOperator { refusal, ..FakeOperator::default() });
        for json in ["", " -o json"] {
            let (exit, out, err) = member.run(&format!("{line}{json}")).await;
            assert_eq!((exit, out.as_str()), (Exit::Refused, ""), "{line}: {err}");
            assert!(
                err.starts_with("error: refused, nothing was changed: the epoch is 9 by now\nhint: "),
                "{err}"
            );
        }
    }
}
