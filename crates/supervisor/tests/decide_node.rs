//! The whole table of `decide::node`: each combination of a closed set of cases.
//! `UPDATE_EXPECT=1` writes it anew.
#![allow(
    clippy::pedantic,
    clippy::panic,
    clippy::double_ended_iterator_last,
    clippy::manual_is_multiple_of,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test over fixed small sets: what is out of range should panic"
)]

use std::fmt::Write as _;

use expect_test::expect_file;
use rhone::decide::{self, Effect, NodeDecision};
use rhone::view::{Chores, Instance, Moment, NodeView};
use rhone_consensus::command::{
    ClusterCommand, Grant, Handover, Member, MemberKind, Outcome, PrepareReason, WallTime,
};
use rhone_consensus::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::Settings;
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition::new(Timeline::new(timeline), Lsn::new(lsn))
}

/// Epoch 4 is established on timeline 2 by the first owner; epoch 8 goes on from 2:0/20 on timeline 3.
fn state(case: &str) -> ClusterState {
    let mut state = ClusterState::default();
    let mut apply = |index, command| {
        state.apply(LogIndex(index), &command);
        assert_eq!(state.broken_invariant(), None);
    };
    if case == "not founded" {
        return state;
    }
    let member = |node: NodeId| Member {
        node,
        name: node.to_string(),
        kind: MemberKind::Data,
        incarnation: Incarnation(1),
        address: String::new(),
        postgres: String::new(),
        http: String::new(),
        priority: 1,
        tags: rhone_consensus::tags::Tags::default(),
    };
    apply(
        1,
        ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: ME,
            members: vec![member(ME), member(OTHER)],
            settings: Settings::default(),
        },
    );
    if case == "founded" {
        return state;
    }
    apply(2, ClusterCommand::SetSystemId(SystemId::new(7)));
    let prepare = || ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) };
    let grant = |epoch, owner, base, timeline| {
        ClusterCommand::Grant(Grant {
            epoch: Epoch(epoch),
            owner,
            data: DataId(owner.0),
            base,
            timeline: Timeline::new(timeline),
            policy: PolicyKind::Async { max_lag: 0 },
            evidence: Vec::new(),
            lost: None,
        })
    };
    let established = |epoch, timeline, switch| ClusterCommand::Established {
        epoch: Epoch(epoch),
        timeline: Timeline::new(timeline),
        switch: Lsn::new(switch),
        gap_ms: 0,
        at: WallTime(0),
    };
    let mine = case.starts_with("mine") || case.starts_with("preparing");
    let (first, second) = if mine { (OTHER, ME) } else { (ME, OTHER) };
    apply(4, prepare());
    apply(5, grant(4, first, at(1, 0x10), 2));
    apply(6, established(4, 2, 0x10));
    apply(8, prepare());
    if case == "preparing" {
        return state;
    }
    apply(9, grant(8, second, at(2, 0x20), 3));
    if case.ends_with("granted") {
        return state;
    }
    apply(10, established(8, 3, 0x20));
    if case.ends_with("widened") {
        apply(11, ClusterCommand::AddPolicy { epoch: Epoch(8), kind: PolicyKind::Alone });
    }
    if case.ends_with("handover") {
        apply(11, ClusterCommand::SetHandover(Some(Handover { epoch: Epoch(8), to: None, leaving: false })));
    }
    state
}

const STATES: [&str; 9] = [
    "not founded",
    "founded",
    "preparing",
    "mine, granted",
    "mine, established",
    "mine, widened",
    "mine, handover",
    "other's, granted",
    "other's, established",
];

fn instances() -> Vec<(&'static str, Instance)> {
    let stopped = |position, clean, primary| Instance::Stopped { position, clean, primary };
    let standby = |position, upstream, streaming, wal_gone| Instance::Standby {
        position,
        upstream,
        streaming,
        idle_ms: if wal_gone { 60_000 } else { 0 },
        wal_gone,
    };
    let primary = |epoch, position, gate_open| Instance::Primary { epoch: Epoch(epoch), position, gate_open };
    vec![
        ("unknown", Instance::Unknown),
        ("absent", Instance::Absent),
        ("unusable", Instance::Unusable("foreign".to_owned())),
        ("stopped at ?", stopped(None, false, false)),
        ("stopped at 2:0/20", stopped(Some(at(2, 0x20)), false, true)),
        ("stopped in order at 3:0/30", stopped(Some(at(3, 0x30)), true, true)),
        ("stopped at 2:0/28", stopped(Some(at(2, 0x28)), false, true)),
        ("stopped at 9:0/20", stopped(Some(at(9, 0x20)), false, true)),
        ("starting", Instance::Starting),
        ("standby at 2:0/20", standby(at(2, 0x20), None, false, false)),
        ("standby at 2:0/28", standby(at(2, 0x28), None, false, false)),
        ("standby at 9:0/20", standby(at(9, 0x20), None, false, false)),
        ("streams at 3:0/30", standby(at(3, 0x30), Some(OTHER), true, false)),
        ("starved at 2:0/20", standby(at(2, 0x20), Some(OTHER), false, true)),
        ("primary of 0", primary(0, at(2, 0x20), true)),
        ("primary of 4", primary(4, at(2, 0x28), true)),
        ("primary of 8, closed", primary(8, at(3, 0x28), false)),
        ("primary of 8, open", primary(8, at(3, 0x28), true)),
        ("primary of 8 on 5", primary(8, at(5, 0x28), false)),
        ("primary of 12", primary(12, at(3, 0x28), true)),
        ("frozen in 8", Instance::Frozen { epoch: Epoch(8) }),
        ("frozen in 4", Instance::Frozen { epoch: Epoch(4) }),
        ("hung standby", Instance::Hung { epoch: Epoch(0) }),
        ("hung in 8", Instance::Hung { epoch: Epoch(8) }),
        ("hung in 4", Instance::Hung { epoch: Epoch(4) }),
    ]
}

#[derive(Clone, Copy, PartialEq)]
struct Case {
    promise: u64,
    revoke: Option<u64>,
    leaving: bool,
    guardian: bool,
    unfinished: bool,
    copied: bool,
    stranger: bool,
    /// The policies that the instance is set to, and that are in force.
    policies: (u64, u64),
}

/// What must hold of every row.
fn properties(view: &NodeView<'_>, decision: &NodeDecision, row: &str) {
    let state = view.state;
    let mine = state.current_grant().is_some_and(|g| g.owner == view.me && g.epoch == view.promise);
    let written = match view.instance {
        Instance::Primary { epoch, .. } | Instance::Frozen { epoch } => Some(*epoch),
        Instance::Hung { epoch } if epoch.0 > 0 => Some(*epoch),
        _ => None,
    };
    if let Some(epoch) = written {
        let entitled = epoch >= view.promise
            && view.guardian
            && (epoch > state.epoch
                || state.current_grant().is_some_and(|g| g.owner == view.me && g.epoch == epoch));
        let fenced = matches!(decision, NodeDecision::Act(Effect::Fence, ..));
        assert!(entitled || fenced, "a primary that is not entitled goes on: {row}");
    }
    let NodeDecision::Act(effect, epoch, _) = decision else { return };
    match effect {
        Effect::Promote | Effect::OpenGate | Effect::SetPolicy | Effect::Start(None) => {
            assert!(mine && view.guardian, "{row}");
            assert_eq!((*epoch, state.epoch), (view.promise, view.promise), "{row}");
        }
        Effect::Rewind(_) | Effect::Clone(_) => {
            assert_eq!(state.phase, Phase::Established, "copies while an election runs: {row}");
            assert!(written.is_none() && view.promise <= *epoch, "{row}");
        }
        Effect::Start(Some(to)) | Effect::Follow(to) => {
            assert!(
                state.current_grant().is_some_and(|g| g.owner == *to && g.epoch >= view.promise),
                "{row}"
            );
            assert!(!view.leaving && view.unfinished.is_none(), "{row}");
        }
        Effect::Revoke => assert!(*epoch >= view.promise && view.revoke == Some(*epoch), "{row}"),
        Effect::InitDb => assert!(state.system_id.is_none() && state.founder == Some(view.me), "{row}"),
        Effect::Fence | Effect::HandOver | Effect::Stop => {}
    }
    if !matches!(effect, Effect::Fence | Effect::Revoke) {
        assert!(*epoch >= view.promise, "an effect below the promise: {row}");
    }
}

fn row(state: &ClusterState, name: &str, instance: &Instance, case: &Case) -> String {
    row_with(state, (name, instance), case, Chores::default())
}

fn view<'a>(state: &'a ClusterState, instance: &'a Instance, case: &Case, chores: Chores) -> NodeView<'a> {
    NodeView {
        state,
        me: ME,
        instance,
        promise: Epoch(case.promise),
        unfinished: case.unfinished.then_some(Epoch(4)),
        copied: case.copied,
        stranger: case.stranger,
        policy: Some(LogIndex(case.policies.0)),
        secured: Some(LogIndex(case.policies.1)),
        revoke: case.revoke.map(Epoch),
        running: None,
        leaving: case.leaving,
        leave_now: false,
        behind: false,
        fenced_ahead: false,
        guardian: case.guardian,
        rewinds_failed: 0,
        start_failed: None,
        sources: rhone::view::Sources::default(),
        chores,
    }
}

fn row_with(
    state: &ClusterState,
    (name, instance): (&str, &Instance),
    case: &Case,
    chores: Chores,
) -> String {
    let view = view(state, instance, case, chores);
    let decision = decide::node(&view, Moment(0));
    let mut text = format!("{name:<27} promise {:<3}", case.promise);
    text += &case.revoke.map_or(String::new(), |asked| format!("revoke {asked} "));
    for (word, holds) in [
        ("leaving ", case.leaving),
        ("no-guardian ", !case.guardian),
        ("unfinished ", case.unfinished),
        ("copied ", case.copied),
        ("stranger ", case.stranger),
    ] {
        text += if holds { word } else { "" };
    }
    text += match case.policies {
        (9, 9) => "",
        (11, 9) => "set ",
        (11, 11) => "secured ",
        _ => "ahead ",
    };
    properties(&view, &decision, &text);
    let made = match decision {
        NodeDecision::Act(effect, epoch, reason) => {
            let to = match effect {
                Effect::Start(Some(to)) | Effect::Follow(to) | Effect::Rewind(to) | Effect::Clone(to) => {
                    format!(" n{}", to.0)
                }
                _ => String::new(),
            };
            format!("{}{to} in {epoch}: {reason}", effect.code())
        }
        NodeDecision::Rest(reason) => format!("- {reason}"),
    };
    let down = decide::down(&view).map(|(_, why)| format!(" [down: {why}]")).unwrap_or_default();
    format!("{text:<62} {made}{down}")
}

/// What serves may be waiting for the very disk that hangs; what ends, starts or copies speaks for itself.
#[test]
fn an_effect_that_serves_keeps_no_primary_that_hangs_from_saying_so() {
    let state = state("mine, established");
    let says = |effect, instance: &Instance| {
        let view = NodeView {
            state: &state,
            me: ME,
            instance,
            promise: Epoch(8),
            unfinished: None,
            copied: false,
            stranger: false,
            policy: Some(LogIndex(9)),
            secured: Some(LogIndex(9)),
            revoke: None,
            running: Some((effect, Epoch(8))),
            leaving: false,
            leave_now: false,
            behind: false,
            fenced_ahead: false,
            guardian: true,
            rewinds_failed: 0,
            start_failed: None,
            sources: rhone::view::Sources::default(),
            chores: Chores::default(),
        };
        decide::down(&view).is_some()
    };
    for (effect, serves) in [
        (Effect::SetPolicy, true),
        (Effect::OpenGate, true),
        (Effect::HandOver, true),
        (Effect::Promote, false),
        (Effect::Start(None), false),
        (Effect::Follow(OTHER), false),
        (Effect::Stop, false),
        (Effect::Revoke, false),
        (Effect::Fence, false),
        (Effect::Rewind(OTHER), false),
        (Effect::Clone(OTHER), false),
        (Effect::InitDb, false),
    ] {
        for (name, instance) in instances() {
            let hangs = matches!(instance, Instance::Hung { epoch } if epoch.0 != 4);
            assert_eq!(says(effect, &instance), serves && hangs, "{} with {name}", effect.code());
        }
    }
}

/// An operator's fence holds whatever Postgres is, and never the newest owner's.
#[test]
fn a_fenced_member_is_stopped_and_rests() {
    let case = |revoke| Case {
        promise: 8,
        revoke,
        leaving: false,
        guardian: true,
        unfinished: false,
        copied: false,
        stranger: false,
        policies: (9, 9),
    };
    for (state_name, owned) in
        [("other's, established", false), ("other's, granted", false), ("mine, established", true)]
    {
        let mut state = state(state_name);
        let mut fence = |node| state.apply(LogIndex(11), &ClusterCommand::SetFenced { node, fenced: true });
        let refused = matches!(fence(ME), Outcome::Refused(_));
        assert_eq!(refused, owned, "{state_name}");
        for (name, instance) in instances() {
            let text = row(&state, name, &instance, &case(None));
            let fenced = text.contains("stop in 8: fenced") || text.contains("- fenced");
            let primary = text.contains("fence in");
            let looks =
                matches!(instance, Instance::Unknown | Instance::Unusable(_)) || name == "primary of 12";
            assert_eq!(fenced, !owned && !primary && !looks, "{state_name}: {text}");
            if matches!(instance, Instance::Standby { .. } | Instance::Starting) && !owned {
                assert!(text.contains("stop in 8: fenced"), "{text}");
                // Its word about its WAL counts as before, and comes first.
                let text = row(&state, name, &instance, &case(Some(12)));
                assert!(text.contains("revoke in 12: revoke_asked"), "{text}");
            }
        }
    }
}

/// A member that has just started holds the fence in its log and has not applied it yet: it does what it does where it
/// has, and starts nothing first.
#[test]
fn a_fence_that_is_not_applied_yet_holds_as_one_that_is() {
    let case = Case {
        promise: 8,
        revoke: None,
        leaving: false,
        guardian: true,
        unfinished: false,
        copied: false,
        stranger: false,
        policies: (9, 9),
    };
    for state_name in ["other's, established", "other's, granted", "mine, established"] {
        let behind = state(state_name);
        let mut fenced = behind.clone();
        let outcome = fenced.apply(LogIndex(11), &ClusterCommand::SetFenced { node: ME, fenced: true });
        for (name, instance) in instances() {
            let ahead = NodeView { fenced_ahead: true, ..view(&behind, &instance, &case, Chores::default()) };
            let applied = view(&fenced, &instance, &case, Chores::default());
            let decided = decide::node(&ahead, Moment(0));
            assert_eq!(decided, decide::node(&applied, Moment(0)), "{state_name}, {name}");
            if outcome == Outcome::Done {
                let stays = matches!(
                    decided,
                    NodeDecision::Rest(_) | NodeDecision::Act(Effect::Stop | Effect::Fence, ..)
                );
                assert!(stays, "{state_name}, {name}: {decided:?}");
            }
        }
    }
}

/// What an operator asked for is done where nothing else is due, and the owner's instance is never stopped
/// for it; what must hold of every row holds of these too.
#[test]
fn chores_come_last_and_stop_nobody_who_owns_the_epoch() {
    let plain = Case {
        promise: 8,
        revoke: None,
        leaving: false,
        guardian: true,
        unfinished: false,
        copied: false,
        stranger: false,
        policies: (9, 9),
    };
    let chores = |word: &str| Chores {
        configure: word.contains("configure"),
        restart: word.contains("restart"),
        reinit: word.contains("reinit"),
        unfit: word.contains("unfit"),
    };
    let check = |case: &str, name: &str, word: &str, expected: &str| {
        let (state, instances) = (state(case), instances());
        let (_, instance) = instances.iter().find(|(known, _)| *known == name).expect("an instance");
        let text = row_with(&state, (name, instance), &plain, chores(word));
        let text = text.split("promise 8").nth(1).expect("a row").trim();
        assert_eq!(text, expected, "{case}: {name}, {word}");
    };
    let (streams, other) = ("streams at 3:0/30", "other's, established");
    check(other, streams, "configure", "follow n2 in 8: settings_changed");
    check(other, streams, "configure restart", "stop in 8: restart_asked");
    check(other, streams, "restart reinit", "clone n2 in 8: reinit_asked");
    check(other, "stopped at 2:0/20", "restart reinit", "clone n2 in 8: reinit_asked");
    check(other, "standby at 2:0/20", "configure", "follow n2 in 8: within_history");
    check(other, "standby at 2:0/28", "restart", "rewind n2 in 8: forked");
    check(other, "stopped at 2:0/20", "restart", "start n2 in 8: within_history");
    check(other, "starting", "restart reinit", "- starting");
    check(other, "absent", "reinit", "clone n2 in 8: no_data");
    // Without a primary to copy from it goes on as it is.
    check("other's, granted", streams, "reinit", "- streaming");
    let (open, mine) = ("primary of 8, open", "mine, established");
    check(mine, open, "configure", "set_policy in 8: settings_changed");
    check(mine, open, "restart reinit", "- serving");
    check(mine, "primary of 8, closed", "configure", "open_gate in 8: gate_closed");
    check("mine, handover", open, "configure", "hand_over in 8: handover");
    for case in STATES {
        let state = state(case);
        for (name, instance) in instances() {
            for word in ["configure", "restart", "reinit"] {
                for promise in [0, 4, 8, 12] {
                    for revoke in [None, Some(12)] {
                        let case = Case { promise, revoke, ..plain };
                        let text = row_with(&state, (name, &instance), &case, chores(word));
                        let without = row(&state, name, &instance, &case);
                        let due = text.contains("settings_changed")
                            || text.contains("restart_asked")
                            || text.contains("reinit_asked");
                        let idle = without.contains("- streaming")
                            || without.contains("- connecting")
                            || without.contains("- serving");
                        // A new copy, or a word from the owner's primary, is all that may come before something else.
                        assert!(
                            due || text == without || text.contains("- no_primary_yet"),
                            "{text}, without {without}"
                        );
                        assert!(
                            !due || idle || text.contains("reinit_asked") || text.contains("restart_asked"),
                            "{text}, without {without}"
                        );
                        assert!(!due || revoke.is_none(), "{text}");
                    }
                }
            }
        }
    }
}

#[test]
fn each_combination_is_decided_as_the_golden_table_says() {
    let mut table = String::new();
    for case in STATES {
        let state = state(case);
        writeln!(table, "== {case}").expect("write");
        for (name, instance) in instances() {
            for promise in [0, 4, 8, 12] {
                for revoke in [None, Some(8), Some(12)] {
                    let plain = Case {
                        promise,
                        revoke,
                        leaving: false,
                        guardian: true,
                        unfinished: false,
                        copied: false,
                        stranger: false,
                        policies: (9, 9),
                    };
                    for case in [
                        plain,
                        Case { leaving: true, ..plain },
                        Case { guardian: false, ..plain },
                        Case { unfinished: true, ..plain },
                        Case { copied: true, ..plain },
                        Case { stranger: true, ..plain },
                        Case { policies: (11, 9), ..plain },
                        Case { policies: (11, 11), ..plain },
                        Case { policies: (13, 13), ..plain },
                    ] {
                        let row = row(&state, name, &instance, &case);
                        // All are checked; those that differ from the plain case in one thing are kept.
                        let kept = case == plain
                            || case.revoke.is_none()
                                && (!case.copied || name == "stopped at ?")
                                && (case.policies == plain.policies
                                    || promise == 8
                                        && state.policy_changes()
                                        && name.starts_with("primary of 8,"));
                        if kept {
                            writeln!(table, "{}", row.trim_end()).expect("write");
                        }
                    }
                }
            }
        }
    }
    expect_file!["golden/decide_node.txt"].assert_eq(&table);
}
