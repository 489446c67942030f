//! Tables of `decide::cluster`: who is elected, what is waited for, when an epoch is opened.
#![allow(
    clippy::pedantic,
    clippy::panic,
    clippy::double_ended_iterator_last,
    clippy::manual_is_multiple_of,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test over fixed small sets: what is out of range should panic"
)]

use std::collections::{BTreeMap, BTreeSet};

use rhone::decide::{self, ClusterDecision};
use rhone::view::{ClusterView, Heard, Instance, Moment, Received, Report, Revoked, Stream, VoterReport};
use rhone_consensus::command::{
    ClusterCommand, Grant, Handover, Member, MemberKind, Outcome, PrepareReason, WallTime,
};
use rhone_consensus::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId, Replica};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

const NOW: u64 = 1_000_000;

fn ms(ago: u64) -> Moment {
    Moment((NOW - ago) * 1_000_000)
}

fn id(name: &str) -> NodeId {
    NodeId(name.trim_start_matches('n').parse().expect("a member such as n1"))
}

/// Each member's data directory: its number, or with `'` behind the name another one.
fn data_of(name: &str) -> DataId {
    let number = id(name.trim_end_matches('\'')).0;
    DataId(if name.ends_with('\'') { number + 100 } else { number })
}

fn replica(name: &str) -> Replica {
    Replica { node: id(name.trim_end_matches('\'')), data: data_of(name) }
}

fn policy(text: &str) -> PolicyKind {
    match text.split_once(' ') {
        Some(("async", lag)) => PolicyKind::Async { max_lag: lag.parse().expect("bytes") },
        Some((any, standbys)) if any.starts_with("any") => PolicyKind::Quorum {
            required: any.trim_start_matches("any").parse().expect("a number"),
            standbys: standbys.split(' ').map(replica).collect(),
        },
        _ => PolicyKind::Alone,
    }
}

fn kind_in_words(kind: &PolicyKind) -> String {
    match kind {
        PolicyKind::Quorum { required, standbys } => {
            let mark = |r: &Replica| if r.data.0 > 100 { "'" } else { "" };
            let names: Vec<String> = standbys.iter().map(|r| format!(" n{}{}", r.node.0, mark(r))).collect();
            format!("any{required}{}", names.concat())
        }
        PolicyKind::Alone => "alone".to_owned(),
        PolicyKind::Async { max_lag } => format!("async {max_lag}"),
    }
}

fn prepare(reason: PrepareReason) -> ClusterCommand {
    ClusterCommand::Prepare { reason, at: WallTime(0) }
}

/// n1 to n5 (n5 has priority 0); n1 owns epoch 4, established on timeline 2 from 1:0/10.
fn established(kind: &str) -> ClusterState {
    let members = (1..=5).map(|n| Member {
        node: NodeId(n),
        name: format!("n{n}"),
        kind: MemberKind::Data,
        incarnation: Incarnation(1),
        address: String::new(),
        postgres: String::new(),
        http: String::new(),
        priority: if n == 5 { 0 } else { 1 },
        tags: rhone_consensus::tags::Tags::default(),
    });
    let mut state = ClusterState::default();
    let commands = [
        (
            1,
            ClusterCommand::Found {
                cluster: "main".to_owned(),
                founder: NodeId(1),
                members: members.collect(),
                settings: match policy(kind) {
                    PolicyKind::Async { max_lag } => {
                        Settings { max_lag_on_failover: max_lag, ..Settings::default() }
                    }
                    _ => Settings::default(),
                },
            },
        ),
        (2, ClusterCommand::SetSystemId(SystemId::new(7))),
        (4, prepare(PrepareReason::Founding)),
        (5, grant(4, 1, "1:0/10", 2, kind)),
        (
            6,
            ClusterCommand::Established {
                epoch: Epoch(4),
                timeline: Timeline::new(2),
                switch: Lsn::new(0x10),
                gap_ms: 0,
                at: WallTime(0),
            },
        ),
    ];
    for (index, command) in commands {
        state.apply(LogIndex(index), &command);
        assert_eq!(state.broken_invariant(), None);
    }
    state
}

fn grant(epoch: u64, owner: u64, base: &str, timeline: u32, kind: &str) -> ClusterCommand {
    ClusterCommand::Grant(Grant {
        epoch: Epoch(epoch),
        owner: NodeId(owner),
        data: DataId(owner),
        base: base.parse().expect("a position"),
        timeline: Timeline::new(timeline),
        policy: policy(kind),
        evidence: Vec::new(),
        lost: None,
    })
}

fn report() -> Report {
    Report {
        instance: Instance::Unknown,
        activity: None,
        voter: VoterReport::default(),
        promise: Epoch(0),
        leaving: false,
        down: None,
        system_id: None,
        data: None,
        streams: BTreeMap::new(),
        secured: None,
        highest_timeline: Timeline::new(2),
        lease_left_ms: None,
        counts_by: None,
        version: None,
        left: None,
        note: None,
        server: rhone::view::ServerFacts::default(),
    }
}

fn standby(position: WalPosition) -> Instance {
    Instance::Standby { position, upstream: None, streaming: true, idle_ms: 0, wal_gone: false }
}

fn describe(decision: &ClusterDecision) -> String {
    match decision {
        ClusterDecision::Propose(ClusterCommand::Grant(g)) => {
            let lost = g.lost.map(|(from, to)| format!(", lost {from} to {to}")).unwrap_or_default();
            let kind = kind_in_words(&g.policy);
            let kind = if kind.starts_with("async") { String::new() } else { format!(", {kind}") };
            format!("grant n{} at {}, timeline {}{lost}{kind}", g.owner.0, g.base, g.timeline)
        }
        ClusterDecision::Propose(ClusterCommand::AddPolicy { kind, .. }) => {
            format!("add {}", kind_in_words(kind))
        }
        ClusterDecision::Propose(ClusterCommand::NarrowPolicies { number, .. }) => {
            format!("narrow to {number}")
        }
        ClusterDecision::Propose(ClusterCommand::Prepare { reason, .. }) => format!("prepare: {reason}"),
        ClusterDecision::Propose(ClusterCommand::SetHandover(_)) => "hand over".to_owned(),
        ClusterDecision::Propose(ClusterCommand::Established { epoch, .. }) => format!("established {epoch}"),
        ClusterDecision::Propose(other) => format!("{other:?}"),
        ClusterDecision::Revoke { members, wait, .. } => {
            let names: Vec<String> = members.iter().map(|m| format!("n{}", m.0)).collect();
            format!("ask {}; {wait}", names.join(" "))
        }
        ClusterDecision::Wait(wait) => wait.to_string(),
    }
}

fn decide(
    state: &ClusterState,
    voters: &[BTreeSet<NodeId>],
    reports: BTreeMap<NodeId, Report>,
    revoked: &BTreeMap<NodeId, (Moment, Revoked)>,
    granted_ms: u64,
) -> String {
    let reports = reports.into_iter().map(|(id, report)| (id, Received { at: ms(100), report })).collect();
    let view = ClusterView { state, voters, reports: &reports, revoked, granted_since: Some(ms(granted_ms)) };
    describe(&decide::cluster(&view, ms(0)))
}

/// Epoch 8 is being prepared. Each part is `nX position`, with `unable`, `empty` or `late`; `aged` (the
/// voters n1 to n3 hold the Prepare and the lease has aged), `heard LSN [n..]`, `live nX`.
#[track_caller]
fn elects(kind: &str, input: &str, expected: &str) {
    let mut state = established(kind);
    state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 1600 }));
    assert_eq!(elect_in(&state, input), expected, "{kind}: {input}");
}

fn elect_in(state: &ClusterState, input: &str) -> String {
    let epoch = state.epoch;
    let mut reports = BTreeMap::new();
    let mut revoked = BTreeMap::new();
    for part in input.split(" | ") {
        let words: Vec<&str> = part.split(' ').collect();
        match words[0] {
            "aged" => (2..=3).for_each(|n| {
                reports.entry(NodeId(n)).or_insert_with(report).voter.aged_for = Some(epoch);
            }),
            "heard" => {
                for name in &words[2..] {
                    let lsn = words[1].parse().expect("an LSN");
                    reports.entry(id(name)).or_insert_with(report).voter.heard =
                        Some(Heard { epoch: Epoch(4), lsn });
                }
            }
            "live" => {
                reports.entry(id(words[1])).or_insert_with(report);
            }
            name => {
                let answer = Revoked {
                    epoch,
                    data: data_of(name),
                    position: words[1].parse().ok(),
                    able: !words.contains(&"unable"),
                    highest_timeline: Timeline::new(2),
                };
                let ago = if words.contains(&"late") { 10 } else { 1000 };
                revoked.insert(id(name.trim_end_matches('\'')), (ms(ago), answer));
            }
        }
    }
    let voters = [(1..=3).map(NodeId).collect()];
    decide(state, &voters, reports, &revoked, 0)
}

#[test]
fn elects_whoever_has_the_most_once_nobody_else_can_serve() {
    let check = |input, expected| elects("async 16", input, expected);
    check("n2 2:0/20", "ask n1; the last primary's lease has aged at 0 voters, 2 are needed");
    check("n2 empty | aged", "ask n1 n3 n4 n5; no member that answered may be promoted");
    check("n2 2:0/20 | aged | heard 0/20 n2 n3", "grant n2 at 2:0/20, timeline 3");
}

#[test]
fn a_cover_and_the_lag_gate_come_before_any_grant() {
    let check = |input, expected: &str| {
        let mut state = established("async 16");
        state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 1600 }));
        let found = elect_in(&state, input);
        assert!(found.ends_with(expected), "{input}: {found}");
    };
    check("n2 2:0/20 | aged | heard 0/20 n2 n3", "grant n2 at 2:0/20, timeline 3");
    check("n2 2:0/20 | n3 2:0/21 | aged | heard 0/20 n2 n3", "grant n3 at 2:0/21, timeline 3");
    check("n2 1:0/99 | n3 2:0/20 | aged | heard 0/20 n2 n3", "grant n3 at 2:0/20, timeline 3"); // epoch first
    check("n2 2:0/20 | n3 9:0/99 | aged | heard 0/20 n2 n3", "grant n2 at 2:0/20, timeline 3"); // foreign
    check("n2 2:0/18 | aged | heard 0/20 n2 n3", "grant n2 at 2:0/18, timeline 3, lost 0/18 to 0/20");
    check("n2 2:0/18 | aged | heard 0/29 n2 n3", "lacks 17 bytes, the setting allows 16");
    check("n2 2:0/20 | aged | heard 0/20 n2", "no voter remembers how far the last primary was"); // one of three
    check("n2 2:0/20 | aged", "no voter remembers how far the last primary was");
    check("n2 1:0/30 | aged | heard 0/20 n2 n3", "grant n2 at 1:0/30, timeline 3, lost 0/10 to 0/20"); // forked at 0/10
    check("n2 1:0/30 | aged | heard 0/21 n2 n3", "lacks 17 bytes, the setting allows 16"); // not 0 bytes
    check("n1 2:0/20", "grant n1 at 2:0/20, timeline 3"); // the owner itself: no lease, no memory needed
    check("n1 2:0/20 | n2 2:0/20", "grant n2 at 2:0/20, timeline 3"); // a standby runs already
    check("n1 2:0/21 | n2 2:0/20", "grant n1 at 2:0/21, timeline 3");
    check("n1 2:0/28 unable | n2 2:0/20", "grant n2 at 2:0/20, timeline 3, lost 0/20 to 0/28");
    check("n2 2:0/20 | n5 2:0/20 | aged | heard 0/20 n2 n3", "grant n2 at 2:0/20, timeline 3"); // priority 0
    check("n5 2:0/20 | aged | heard 0/20 n2 n3", "no member that answered may be promoted");
    check("n2 empty | aged | heard 0/20 n2 n3", "no member that answered may be promoted");
    check("n2 2:0/20 late | live n4 | aged | heard 0/20 n2 n3", "a short while for 2 more members to answer");
    check("n2 2:0/18 | live n1 | aged | heard 0/20 n2 n3", "a short while for 1 more members to answer"); // the owner lives
    check("n2 empty | n1 2:0/20 unable | aged", "no member that answered may be promoted");
}

#[test]
fn evidence_alone_decides_where_commits_wait_for_standbys() {
    let check = |kind, input, expected: &str| {
        let mut state = established(kind);
        state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 600 }));
        let found = elect_in(&state, input);
        assert!(found.ends_with(expected), "{kind}: {input}: {found}");
    };
    check("any1 n2 n3", "n2 2:0/20", "1 members answered; they may not hold every commit of epoch 4");
    check("any1 n2 n3", "n2 2:0/20 | aged", "1 members answered; they may not hold every commit of epoch 4");
    check("any1 n2 n3", "n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21, timeline 3"); // no clock asked
    check("any1 n2 n3", "n2 2:0/20 | n3 9:0/21 | aged", "they may not hold every commit of epoch 4"); // foreign
    check("any1 n2 n3", "n2 2:0/20 | n3 empty | aged", "they may not hold every commit of epoch 4");
    check("any1 n2 n3", "n2 2:0/20 | n3 2:0/21 unable | aged", "cannot be promoted holds more, up to 2:0/21");
    check("alone", "n2 2:0/20 | n3 2:0/20 | aged", "they may not hold every commit of epoch 4");
    check("alone", "n1 2:0/20", "grant n1 at 2:0/20, timeline 3");
    // A directory that was wiped or restored is not the one that acknowledged.
    check("any1 n2 n3", "n2' 2:0/20 | n3 2:0/21 | aged", "they may not hold every commit of epoch 4");
    check("alone", "n1' 2:0/20 | aged", "they may not hold every commit of epoch 4");
    check("any1 n2 n3", "n1' 2:0/20 | n2 2:0/20 | aged", "they may not hold every commit of epoch 4");
}

#[test]
fn who_has_enough_need_not_have_the_most() {
    let check = |reason: PrepareReason, kind, input, expected: &str| {
        let mut state = established(kind);
        state.apply(LogIndex(8), &prepare(reason));
        let found = elect_in(&state, input);
        assert!(found.contains(expected), "{kind}: {input}: {found}");
    };
    let silent =
        |kind, input, expected| check(PrepareReason::OwnerSilent { silent_ms: 600 }, kind, input, expected);
    let down = |kind, input, expected| {
        check(PrepareReason::OwnerDown { detail: "killed".to_owned() }, kind, input, expected);
    };
    // What the last owner has besides was never acknowledged, and it cannot be promoted.
    silent("any1 n2 n3", "n1 2:0/28 unable | n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21");
    silent("any2 n2 n3 n4", "n1 2:0/28 unable | n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21");
    silent("any1 n2", "n1 2:0/28 unable | n2 2:0/20", "grant n2 at 2:0/20");
    silent("any1 n2 n3", "n1 2:0/28 unable | n2 2:0/20", "cannot be promoted holds more, up to 2:0/28");
    silent("any1 n2 n3", "n1 2:0/28 unable | n2 2:0/20 | n3 2:0/21 unable", "holds more, up to 2:0/28");
    silent(
        "alone",
        "n1 2:0/28 unable | n2 2:0/20 | n3 2:0/21",
        "cannot be promoted holds more, up to 2:0/28",
    );
    silent("any1 n2 n3", "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n1 at 2:0/28");
    // One that went down is started again only where nobody else has enough.
    down("any1 n2 n3", "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21");
    down("any1 n2 n3", "n1 2:0/28 | n2 2:0/20", "grant n1 at 2:0/28");
    down("any1 n2 n3", "n1 2:0/28 | n2 2:0/28", "grant n2 at 2:0/28");
    down("any1 n2 n3", "n2 2:0/20 | n3 2:0/21 | live n1", "grant n3 at 2:0/21"); // nor waited for
    down("alone", "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n1 at 2:0/28");
    down("async 16", "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n1 at 2:0/28");
    down("any1 n2 n3", "n1 2:0/28 | n2 2:0/20 | n5 2:0/21", "grant n1 at 2:0/28"); // n5 is not of S
    // Who asks for a failover does not ask for the same primary again.
    let asked = |to: Option<u64>, input, expected| {
        let reason = to.map_or(PrepareReason::Operator, |to| PrepareReason::OperatorTo { to: NodeId(to) });
        check(reason, "any1 n2 n3", input, expected);
    };
    asked(None, "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21");
    asked(Some(3), "n1 2:0/28 | n2 2:0/21 | n3 2:0/21", "grant n3 at 2:0/21");
    asked(Some(2), "n1 2:0/28 | n2 2:0/21 | n3 2:0/21", "grant n2 at 2:0/21");
    asked(Some(2), "n1 2:0/28 | n2 2:0/20 | n3 2:0/21", "grant n3 at 2:0/21"); // n2 has not enough
    asked(Some(2), "n1 2:0/28 | n2 2:0/20", "grant n1 at 2:0/28");
}

/// The settings say `mode`, with five data members of which n5 is never promoted; n1 owns epoch 4 under `kind`.
fn in_mode(mode: SyncMode, required: Option<u32>, kind: &str) -> ClusterState {
    let mut state = established(kind);
    (state.settings.sync, state.settings.sync_required) = (mode, required);
    state
}

#[test]
fn a_grant_begins_with_a_policy_of_those_who_are_there() {
    let check = |mode, kind, input, expected: &str| {
        let mut state = in_mode(mode, Some(1), kind);
        state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 600 }));
        let found = elect_in(&state, input);
        assert_eq!(found.rsplit_once("timeline 3").map(|(_, policy)| policy), Some(expected), "{found}");
    };
    let quorum = |kind, input, expected| check(SyncMode::Quorum, kind, input, expected);
    quorum("any1 n2 n3", "n2 2:0/20 | n3 2:0/21", ", any1 n2");
    quorum("any1 n2 n3", "n2 2:0/20 | n3 2:0/21 | n4 2:0/21", ", any1 n2 n4");
    quorum("any1 n2", "n2 2:0/20", ", alone"); // one survivor of two and a witness
    quorum("any1 n2", "n2 2:0/20 | n5 2:0/20", ", alone"); // n5 could not lead with what it holds
    quorum("any1 n2 n3", "n1 2:0/30 | n2 1:0/18", ", alone"); // n2 is past the fork at 1:0/10
    quorum("any1 n2 n3", "n1 2:0/30 | n2 1:0/10", ", any1 n2");
    quorum("any2 n2 n3 n4", "n2 2:0/20 | n3 2:0/21", ", any1 n2");
    check(SyncMode::Strict, "any1 n2", "n2 2:0/20", ", any1"); // waits
    check(SyncMode::Strict, "any1 n2 n3", "n1 2:0/20", ", any1 n2 n3"); // for those who are missing
    check(SyncMode::Strict, "any1 n2 n3", "n2 2:0/20 | n3 2:0/21", ", any1 n2");
    check(SyncMode::Off, "any1 n2", "n2 2:0/20", "");
}

#[test]
fn who_answers_soon_is_waited_for_but_not_an_owner_that_fell_silent() {
    let mut state = in_mode(SyncMode::Quorum, None, "any1 n2 n3");
    let silent = state.clone();
    state.apply(LogIndex(8), &prepare(PrepareReason::OwnerDown { detail: "no".to_owned() }));
    let window = |count| format!("ask n2 n3 n4 n5; a short while for {count} more members to answer");
    assert_eq!(elect_in(&state, "n1 2:0/20 late | live n2 | live n3"), window(2));
    assert!(elect_in(&state, "n1 2:0/20 | live n2 | live n3").starts_with("grant n1"));
    let mut state = silent;
    state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 600 }));
    let found = elect_in(&state, "n2 2:0/20 late | n3 2:0/21 late | live n1");
    assert_eq!(found, "grant n3 at 2:0/21, timeline 3, any1 n2");
}

#[test]
fn an_accepted_loss_replaces_evidence_and_never_the_end_of_the_last_owner() {
    let mut state = in_mode(SyncMode::Quorum, Some(1), "alone");
    state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 600 }));
    let refused = elect_in(&state, "n2 2:0/20 | n3 2:0/20 | aged");
    assert!(refused.ends_with("they may not hold every commit of epoch 4"), "{refused}");
    let accept = |to: Option<&str>| {
        ClusterCommand::AcceptLoss(rhone_consensus::command::Acceptance {
            epoch: Epoch(8),
            to: to.map(id),
            by: "somebody".to_owned(),
            at: WallTime(0),
        })
    };
    state.apply(LogIndex(9), &accept(None));
    let waits = elect_in(&state, "n2 2:0/20 | n3 2:0/20");
    assert!(waits.ends_with("lease has aged at 0 voters, 2 are needed"), "{waits}");
    let check = |state: &ClusterState, input, expected: &str| assert_eq!(elect_in(state, input), expected);
    check(&state, "n2 2:0/20 | n3 2:0/21 | aged", "grant n3 at 2:0/21, timeline 3, any1 n2");
    let told = "grant n2 at 2:0/20, timeline 3, lost 0/20 to 0/38, alone";
    check(&state, "n2 2:0/20 | aged | heard 0/38 n2 n3", told);
    state.apply(LogIndex(10), &accept(Some("n2")));
    let told = "grant n2 at 2:0/20, timeline 3, lost 0/20 to 0/21, alone"; // n3 is ahead of it
    check(&state, "n2 2:0/20 | n3 2:0/21 | aged", told);
    state.apply(LogIndex(12), &prepare(PrepareReason::Operator));
    let dead = elect_in(&state, "n2 2:0/20 | n3 2:0/21 | aged");
    assert!(dead.ends_with("they may not hold every commit of epoch 4"), "{dead}");
}

/// What the primary n1 and the others say: `n1 n2 n3- n4~` is whom n1 hears (`-`: no longer, `~`: far
/// behind), then `secured N`, and `nX WORD`: `streams` (as `nX'` with another data directory), `gone`,
/// `promised`.
fn policy_step(state: &ClusterState, input: &str) -> String {
    let mut reports: BTreeMap<NodeId, Report> = BTreeMap::new();
    let mut primary = report();
    let position = WalPosition::new(Timeline::new(2), Lsn::new(0x30));
    primary.instance = Instance::Primary { epoch: Epoch(4), position, gate_open: true };
    for part in input.split(" | ") {
        let words: Vec<&str> = part.split(' ').collect();
        match words[0] {
            "n1" => {
                for name in &words[1..] {
                    let live = !name.ends_with('-');
                    let caught_up = !name.ends_with('~');
                    let name = name.trim_end_matches(['-', '~']);
                    primary.streams.insert(data_of(name), Stream { live, caught_up });
                }
            }
            "secured" => primary.secured = Some(LogIndex(words[1].parse().expect("a number"))),
            "leaving" => primary.leaving = true,
            name => {
                let streaming = matches!(words[1], "streams" | "promised");
                let instance = Instance::Standby {
                    position,
                    upstream: Some(NodeId(1)),
                    streaming,
                    idle_ms: 0,
                    wal_gone: false,
                };
                let promise = Epoch(if words[1] == "promised" { 9 } else { 4 });
                let data = Some(data_of(name));
                let member = Report { instance, promise, data, ..report() };
                reports.insert(id(name.trim_end_matches('\'')), member);
            }
        }
    }
    reports.insert(NodeId(1), primary);
    decide(state, &[(1..=3).map(NodeId).collect()], reports, &BTreeMap::new(), 60_000)
}

#[test]
fn the_policy_follows_the_standbys_one_step_at_a_time() {
    let calm = "all is well";
    let both = "n1 n2 n3 | n2 streams | n3 streams";
    let check = |kind: &str, input: &str, expected: &str| {
        let state = in_mode(SyncMode::Quorum, Some(1), kind);
        assert_eq!(policy_step(&state, input), expected, "{kind}: {input}");
    };
    check("alone", both, "add any1 n2 n3");
    check("any1 n2 n3", both, calm);
    check("async 1", both, "add any1 n2 n3"); // the setting was changed
    check("any1 n2 n3", "n1 n2 | n2 streams | n3 gone", "add any1 n2");
    check("any1 n2 n3", "n1 n2 n3- | n2 streams", "add any1 n2"); // a host that died
    check("any1 n2 n3", "n1 n2 n3 | n2 streams", calm); // only its supervisor did
    check("any1 n2 n3", "n1 n2 | n2 streams | n3 streams", "add any1 n2"); // whatever it says itself
    check("any1 n2", "n1 | n2 gone", "add alone");
    check("any1 n2", "n1 | n2' streams", "add alone"); // a new directory, which n1 does not hear yet
    check("any1 n2", "n1 n2' | n2' streams", "add any1 n2'");
    check("alone", "n1 n2~ | n2 streams", calm); // it has not caught up
    check("alone", "n1 n2 | n2 promised", calm); // it takes part in an election
    check("alone", "n1 n5 | n5 streams", calm); // never promoted
    check("any1 n2 n3", "n1 | leaving", "the primary is about to stop and no standby could take over");
    // Not more than twice as many as are waited for, and who is in stays in.
    let three = "n1 n2 n3 n4 | n2 streams | n3 streams | n4 streams";
    check("any1 n3 n4", three, calm);
    check("alone", three, "add any1 n2 n3");
}

#[test]
fn as_many_as_half_the_data_members_acknowledge_and_in_strict_mode_never_fewer() {
    let three = "n1 n2 n3 n4 | n2 streams | n3 streams | n4 streams";
    let one = "n1 n2 | n2 streams | n3 gone | n4 gone";
    let check = |mode, kind: &str, input: &str, expected: &str| {
        let state = in_mode(mode, None, kind); // 5 data members: 2
        assert_eq!(policy_step(&state, input), expected, "{kind}: {input}");
    };
    check(SyncMode::Quorum, "alone", three, "add any2 n2 n3 n4");
    // Walsenders mix both settings meanwhile: what stands for the mixture is added first (decision 0016).
    check(SyncMode::Quorum, "any2 n2 n3 n4", one, "add any1 n2 n3 n4");
    check(SyncMode::Quorum, "any1 n2 n3 n4", one, "add any1 n2");
    check(SyncMode::Strict, "any2 n2 n3 n4", one, "all is well"); // commits wait
    check(SyncMode::Strict, "any2 n2 n3 n4", "n1 | n2 gone", "all is well");
    check(SyncMode::Strict, "alone", "n1 | n2 gone", "add any2");
    check(SyncMode::Strict, "any2 n2 n3", "n1 n4 | n4 streams", "add any2 n2 n3 n4");
    check(SyncMode::Off, "any2 n2 n3 n4", three, "add async 1048576");
    // Nobody waits for who was removed, not even in strict mode.
    let without_n3 = |mode, kind: &str, input: &str| {
        let mut state = in_mode(mode, None, kind);
        assert_eq!(state.apply(LogIndex(20), &ClusterCommand::Remove(NodeId(3))), Outcome::Done);
        policy_step(&state, input)
    };
    assert_eq!(without_n3(SyncMode::Strict, "any2 n2 n3 n4", "n1 n2 | n2 streams"), "add any2 n2 n4");
    assert_eq!(without_n3(SyncMode::Strict, "any2 n2 n3 n4", three), "add any2 n2 n4");
    assert_eq!(without_n3(SyncMode::Quorum, "any2 n2 n3 n4", three), "add any2 n2 n4");
}

#[test]
fn older_policies_go_on_the_owners_word_and_on_nothing_else() {
    let mut state = in_mode(SyncMode::Quorum, Some(1), "alone");
    let both = "n1 n2 n3 | n2 streams | n3 streams";
    let kind = policy("any1 n2 n3");
    assert_eq!(state.apply(LogIndex(9), &ClusterCommand::AddPolicy { epoch: Epoch(4), kind }), Outcome::Done);
    let check = |state: &ClusterState, more: &str, expected: &str| {
        assert_eq!(policy_step(state, &format!("{both}{more}")), expected, "{more}");
    };
    check(&state, "", "all is well");
    check(&state, " | secured 5", "all is well"); // the older one's
    check(&state, " | secured 9", "narrow to 9");
    // The standbys go before the barrier is passed: back, with the older number no longer there.
    assert_eq!(policy_step(&state, "n1 | n2 gone | n3 gone"), "add alone");
    state.apply(LogIndex(10), &ClusterCommand::AddPolicy { epoch: Epoch(4), kind: PolicyKind::Alone });
    assert_eq!(state.policies.iter().map(|p| p.number.0).collect::<Vec<_>>(), [9, 10]);
    assert_eq!(policy_step(&state, "n1 | n2 gone | n3 gone | secured 10"), "narrow to 10");
    state.apply(LogIndex(11), &ClusterCommand::NarrowPolicies { epoch: Epoch(4), number: LogIndex(10) });
    check(&state, " | secured 10", "add any1 n2 n3");
}

#[test]
fn a_handover_waits_for_the_one_that_was_asked_for_while_it_lives() {
    let check = |input, expected: &str| {
        let mut state = established("async 16");
        let handover = Handover { epoch: Epoch(4), to: Some(NodeId(2)), leaving: false };
        state.apply(LogIndex(7), &ClusterCommand::SetHandover(Some(handover)));
        state.apply(LogIndex(8), &prepare(PrepareReason::Switchover));
        let found = elect_in(&state, input);
        assert!(found.ends_with(expected), "{input}: {found}");
    };
    // The others answered a second ago: longer than unplanned elections wait.
    check("n1 2:0/20 | n3 2:0/20 | live n2", "a short while for 1 more members to answer");
    check("n1 2:0/20 | n3 2:0/20", "grant n3 at 2:0/20, timeline 3"); // nothing is heard of it
    check("n1 2:0/20 | n3 2:0/20 | n2 2:0/20 late", "grant n2 at 2:0/20, timeline 3");
}

#[test]
fn an_answer_that_was_of_no_use_is_asked_for_again() {
    let mut state = established("async 16");
    state.apply(LogIndex(8), &prepare(PrepareReason::Switchover));
    let answer = Revoked {
        epoch: Epoch(8),
        position: None,
        data: DataId(0),
        able: true,
        highest_timeline: Timeline::new(2),
    };
    let ask = |ago| {
        let revoked = (1..=5).map(|n| (NodeId(n), (ms(ago), answer.clone()))).collect();
        decide(&state, &[(1..=3).map(NodeId).collect()], BTreeMap::new(), &revoked, 0)
    };
    assert_eq!(ask(100), "no member that answered may be promoted");
    assert_eq!(ask(2500), "ask n1 n2 n3 n4 n5; no member that answered may be promoted");
}

#[test]
fn a_promotion_that_failed_is_not_tried_again_before_the_others() {
    let mut state = established("async 16");
    let reason = || PrepareReason::OwnerDown { detail: "no".to_owned() };
    for (index, owner, timeline) in [(8, 2, 3), (10, 3, 4)] {
        state.apply(LogIndex(index), &prepare(reason()));
        state.apply(LogIndex(index + 1), &grant(index, owner, "2:0/20", timeline, "async 16"));
    }
    state.apply(LogIndex(12), &prepare(reason()));
    let all = "n1 2:0/20 | n2 2:0/20 | n3 2:0/20 | n4 2:0/20";
    assert!(elect_in(&state, all).ends_with("grant n1 at 2:0/20, timeline 5"), "{}", elect_in(&state, all));
    let two = "n2 2:0/20 | n3 2:0/20";
    assert!(elect_in(&state, two).ends_with("grant n2 at 2:0/20, timeline 5"), "{}", elect_in(&state, two));
}

/// What the owner n1 says (`down`, `leaving`, `clean`, `open`), for how long the voters heard nothing
/// and for how long the Grant is known.
fn watch(state: &ClusterState, says: &str, silent: [u64; 3], granted_ms: u64) -> String {
    let mut reports: BTreeMap<NodeId, Report> = (1..=3).map(|n| (NodeId(n), report())).collect();
    for (voter, silent) in (1..=3).map(NodeId).zip(silent) {
        let report = reports.get_mut(&voter).expect("a voter");
        report.voter.silent_ms = Some(silent);
        report.instance = standby(WalPosition::new(Timeline::new(2), Lsn::new(0x20)));
    }
    let epoch = state.epoch;
    let owner = reports.get_mut(&NodeId(1)).expect("the owner");
    let position = WalPosition::new(Timeline::new(2), Lsn::new(0x30));
    owner.instance = Instance::Primary { epoch, position, gate_open: true };
    for word in says.split_whitespace() {
        match word {
            "down" => owner.down = Some((epoch, "postgres is not running".to_owned())),
            "stale" => owner.down = Some((Epoch(3), "postgres is not running".to_owned())),
            "leaving" => owner.leaving = true,
            "clean" => {
                owner.instance = Instance::Stopped { position: Some(position), clean: true, primary: true };
            }
            "standby" => owner.instance = standby(position),
            other => panic!("{other}"),
        }
    }
    decide(state, &[(1..=3).map(NodeId).collect()], reports, &BTreeMap::new(), granted_ms)
}

#[test]
fn an_epoch_is_opened_for_a_cause_and_for_nothing_else() {
    let calm = [0, 0, 0];
    let state = established("async 16");
    let check = |says, silent, expected: &str| {
        assert_eq!(watch(&state, says, silent, 60_000), expected, "{says} {silent:?}");
    };
    check("", calm, "all is well");
    check("stale", calm, "all is well"); // down in an older epoch
    check("down", calm, "prepare: owner_down: postgres is not running");
    check("leaving", calm, "hand over");
    check("clean", calm, "all is well"); // no handover: the owner says itself that it is down
    check("", [0, 1600, 0], "1 of the voters hear no renewal");
    check("", [0, 1600, 1500], "2 of the voters hear no renewal"); // not aged yet
    check("", [0, 1600, 1700], "prepare: owner_silent for 1700 ms");

    let mut paused = established("async 16");
    paused.apply(LogIndex(7), &ClusterCommand::SetPaused(true));
    assert_eq!(watch(&paused, "down", calm, 60_000), "paused: would fail over otherwise");
    let handover = Handover { epoch: Epoch(4), to: Some(NodeId(2)), leaving: false };
    paused.apply(LogIndex(8), &ClusterCommand::SetHandover(Some(handover)));
    assert_eq!(watch(&paused, "", calm, 60_000), "the primary shuts down in order");
    assert_eq!(watch(&paused, "clean", calm, 60_000), "prepare: switchover");
    // A person asked for this epoch to end.
    assert_eq!(watch(&paused, "down", calm, 60_000), "prepare: owner_down: postgres is not running");
}

#[test]
fn silence_is_held_against_an_owner_only_from_its_own_grant_on() {
    let mut state = established("async 16");
    state.apply(LogIndex(8), &prepare(PrepareReason::Operator));
    state.apply(LogIndex(9), &grant(8, 1, "2:0/20", 3, "async 16"));
    let silent = [9000, 9000, 9000]; // since the last renewal of the owner before
    assert_eq!(watch(&state, "standby", silent, 100), "the new primary is being promoted");
    assert_eq!(watch(&state, "standby", silent, 1600), "prepare: owner_silent for 1600 ms");
    // One that renews and gets nowhere is replaced when somebody else has as much.
    assert_eq!(watch(&state, "standby", [0; 3], 29_000), "the new primary is being promoted");
    let slow = "prepare: owner_down: not primary 31 s after the grant";
    assert_eq!(watch(&state, "standby", [0; 3], 31_000), slow);
    // The first failure is answered at once, the third is not.
    assert_eq!(watch(&state, "down", [0; 3], 0), "prepare: owner_down: postgres is not running");
    for index in [10, 12] {
        state.apply(LogIndex(index), &prepare(PrepareReason::Operator));
        state.apply(LogIndex(index + 1), &grant(index, 1, "2:0/20", index as u32, "async 16"));
    }
    let waits = "3 promotions in a row failed; the next attempt waits a while";
    assert_eq!(watch(&state, "down", [0; 3], 0), waits);
    assert_eq!(watch(&state, "down", [0; 3], 5000), "prepare: owner_down: postgres is not running");
}

#[test]
fn a_tagged_member_is_evidence_and_never_primary() {
    let check = |kind, delayed: bool, input, expected: &str| {
        let mut state = established(kind);
        let tags = &mut state.members.get_mut(&NodeId(3)).expect("n3").tags;
        if delayed {
            tags.delay_ms = 1000;
        } else {
            tags.no_failover = true;
        }
        state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 1600 }));
        let found = elect_in(&state, input);
        assert!(found.ends_with(expected), "{kind}: {input}: {found}");
    };
    for delayed in [false, true] {
        let check = |kind, input, expected: &str| check(kind, delayed, input, expected);
        check(
            "async 16",
            "n2 2:0/20 | n3 2:0/20 | aged | heard 0/20 n2 n3",
            "grant n2 at 2:0/20, timeline 3",
        );
        check("async 16", "n3 2:0/20 | aged | heard 0/20 n2 n3", "no member that answered may be promoted");
        // What it holds is not given up where nothing may be lost.
        let ahead = "n2 2:0/20 | n3 2:0/21 | aged";
        check("any1 n2 n3", ahead, "cannot be promoted holds more, up to 2:0/21");
        check("any1 n2 n3", "n2 2:0/21 | n3 2:0/20", "grant n2 at 2:0/21, timeline 3");
    }
}

#[test]
fn what_a_former_primary_held_is_recorded_once_it_says_so() {
    let mut state = established("async 16");
    state.apply(LogIndex(8), &prepare(PrepareReason::OwnerSilent { silent_ms: 1600 }));
    state.apply(LogIndex(9), &grant(8, 2, "2:0/20", 3, "async 16"));
    let done = ClusterCommand::Established {
        epoch: Epoch(8),
        timeline: Timeline::new(3),
        switch: Lsn::new(0x20),
        gap_ms: 1700,
        at: WallTime(0),
    };
    state.apply(LogIndex(10), &done);
    let says = |state: &ClusterState, left: &str| {
        let report = Report { left: left.parse().ok(), ..report() };
        let voters = [(1..=3).map(NodeId).collect()];
        decide(state, &voters, BTreeMap::from([(NodeId(1), report)]), &BTreeMap::new(), 60_000)
    };
    assert_eq!(says(&state, "-"), "all is well");
    assert_eq!(says(&state, "1:0/28"), "all is well"); // of another timeline: an old story
    let end = "2:0/28".parse().expect("a position");
    let record = ClusterCommand::RecordLeft { node: NodeId(1), end };
    assert_eq!(says(&state, "2:0/28"), format!("{record:?}"));
    state.apply(LogIndex(11), &record);
    assert_eq!(says(&state, "2:0/28"), "all is well");
    let entry = state.history.back().expect("an entry");
    assert_eq!(entry.loss(), Some(((Lsn::new(0x20), Lsn::new(0x28)), true)));
}

#[test]
fn a_change_of_timings_is_over_by_the_word_of_the_present_owner_alone() {
    let mut state = established("async 16");
    let settings = Settings {
        timing: rhone_consensus::settings::Timing { lease_ms: 3000, ..Default::default() },
        ..state.settings.clone()
    };
    let change = |expected, settings: &Settings| ClusterCommand::ChangeSettings {
        expected,
        settings: Box::new(settings.clone()),
        by: String::new(),
        at: WallTime(0),
    };
    assert_eq!(state.apply(LogIndex(8), &change(1, &settings)), Outcome::Done);
    let settle = ClusterCommand::SettleTiming { epoch: Epoch(4), version: LogIndex(8) };
    let over = format!("{settle:?}");
    // What n1, the owner, or n2 says that its live lease counts by, and how long ago.
    let check = |state: &ClusterState, who: u64, counts_by: Option<(u64, u64)>, ago, expected: &str| {
        let counts_by = counts_by.map(|(epoch, version)| (Epoch(epoch), LogIndex(version)));
        let report = Report { counts_by, ..report() };
        let reports = BTreeMap::from([(NodeId(who), Received { at: ms(ago), report })]);
        let voters = [(1..=3).map(NodeId).collect()];
        let view = ClusterView {
            state,
            voters: &voters,
            reports: &reports,
            revoked: &BTreeMap::new(),
            granted_since: Some(ms(60_000)),
        };
        assert_eq!(describe(&decide::cluster(&view, ms(0))), expected, "{counts_by:?}");
    };
    check(&state, 1, None, 0, "all is well"); // no lease lives
    check(&state, 1, Some((4, 0)), 0, "all is well"); // by the old timings
    check(&state, 1, Some((4, 8)), 10_000, "all is well"); // long ago
    check(&state, 1, Some((2, 8)), 0, "all is well"); // in an epoch that is over
    check(&state, 2, Some((4, 8)), 0, "all is well"); // not the owner
    check(&state, 1, Some((4, 8)), 0, &over);
    // Until then the longer lease is waited for.
    let silent = |state: &ClusterState, ms: u64| {
        let voter = VoterReport { silent_ms: Some(ms), ..VoterReport::default() };
        let reports = (1..=3).map(|n| (NodeId(n), Report { voter, ..report() })).collect();
        decide(state, &[(1..=3).map(NodeId).collect()], reports, &BTreeMap::new(), 60_000)
    };
    assert_eq!(silent(&state, 2000), "3 of the voters hear no renewal");
    assert_eq!(state.apply(LogIndex(9), &settle), Outcome::Done);
    check(&state, 1, Some((4, 8)), 0, "all is well");
    let short = Settings::default();
    assert_eq!(state.apply(LogIndex(10), &change(2, &short)), Outcome::Done);
    assert_eq!(silent(&state, 2000), "3 of the voters hear no renewal");
    assert_eq!(
        state.apply(LogIndex(11), &ClusterCommand::SettleTiming { epoch: Epoch(4), version: LogIndex(10) }),
        Outcome::Done
    );
    assert_eq!(silent(&state, 2000), "prepare: owner_silent for 2000 ms");
}
