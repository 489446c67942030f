use expect_test::{Expect, expect};
use rhone_consensus::ids::{Epoch, NodeId};

use super::*;
use crate::cli::finish;
use crate::decide::{Effect, NodeDecision, Reason};

/// A record of a member that is not founded yet, with `decided` as its decision.
fn record(decided: NodeDecision) -> String {
    let line = r#"{"member":{"at":"2026-11-21T07:13:00.123Z","now":5,"seen":{"state":STATE,"me":1,"instance":"Absent","promise":0,
        "unfinished":null,"copied":false,"stranger":false,"policy":null,"secured":null,"revoke":null,"running":null,
        "leaving":false,"leave_now":false,"behind":false,"guardian":true,"rewinds_failed":0,"start_failed":null,
        "sources":{"upstream":null,"clone":null},
        "chores":{"configure":false,"restart":false,"reinit":false,"unfit":false},"newer":"field"},"decided":DECIDED}}"#;
    let state = serde_json::to_string(&rhone_consensus::state::ClusterState::default()).expect("JSON");
    let decided = serde_json::to_string(&decided).expect("JSON");
    line.replace('\n', "").replace("STATE", &state).replace("DECIDED", &decided)
}

#[track_caller]
fn check(lines: &[String], json: bool, expected: Expect) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("decisions.jsonl");
    std::fs::write(&file, lines.join("\n")).expect("the record");
    let (mut terminal, out, err) = Terminal::captured();
    let global = Global { as_json: json, ..Global::default() };
    let outcome = run(&global, &[file], &mut terminal);
    let exit = finish(&mut terminal, outcome);
    let err = err.text().replace(&folder.path().display().to_string(), "DIR");
    expected.assert_eq(&format!("{}---- stderr\n{err}---- {exit:?}\n", out.text()));
}

const BEGIN: &str = r#"{"begin":{"format":1,"rhone":"0.1.0","cluster":"main","member":"pg-1"}}"#;

#[test]
fn a_record_that_is_decided_the_same_is_told_and_done() {
    let same = record(NodeDecision::Rest(Reason::NotFounded));
    let lines = [BEGIN.to_owned(), same.clone(), r#"{"dropped":2}"#.to_owned(), "{\"member\":".to_owned()];
    check(
        &lines,
        false,
        expect![[r#"
            WHEN (UTC)                NODE  AS      DECIDED  REASON       AGAIN
            2026-11-21T07:13:00.123Z  pg-1  member  rests    not_founded  same
            ---- stderr
            warning: 2 decisions could not be recorded
            warning: 1 line is unreadable (DIR/decisions.jsonl:4: EOF while parsing a value)
            1 decision decided the same again
            ---- Done
        "#]],
    );
    check(
        &[BEGIN.to_owned(), same],
        true,
        expect![[r#"
            {"decisions":[{"time":"2026-11-21T07:13:00.123Z","member":"pg-1","by":"member","decided":"rests","reason":"not_founded","again":null}],"differ":0,"unreadable":0,"dropped":0}
            ---- stderr
            1 decision decided the same again
            ---- Done
        "#]],
    );
}

#[test]
fn a_doctored_decision_is_reported_as_different() {
    let doctored = record(NodeDecision::Act(Effect::Clone(NodeId(2)), Epoch(8), Reason::Forked));
    check(
        &[BEGIN.to_owned(), record(NodeDecision::Rest(Reason::NotFounded)), doctored],
        false,
        expect![[r#"
            WHEN (UTC)                NODE  AS      DECIDED                                 REASON       AGAIN
            2026-11-21T07:13:00.123Z  pg-1  member  rests                                   not_founded  same
            2026-11-21T07:13:00.123Z  pg-1  member  clone from 0000000000000002 in epoch 8  forked       differs: rests (not_founded)
            ---- stderr
            error: 1 of 2 decisions differ
            hint: replay with the version of rhone that wrote them: the rules may have changed since
            ---- Failed
        "#]],
    );
}

#[test]
fn a_file_without_a_decision_is_refused() {
    check(
        &["[postgres]".to_owned()],
        false,
        expect![[r#"
            ---- stderr
            error: no decision could be read: DIR/decisions.jsonl:1: expected value
            hint: the recorder writes decisions.jsonl into node.state-dir; node.recorder says otherwise
            ---- Usage
        "#]],
    );
}
