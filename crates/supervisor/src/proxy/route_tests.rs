//! The rule of each port as tables: a line a DBA can read, and where a connection goes.

use rhone_consensus::command::{Grant, Handover, Member, MemberKind};
use rhone_consensus::ids::{DataId, Incarnation};
use rhone_consensus::ledger::LedgerEntry;
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::tags::Tags;
use rhone_pgctl::wal::{Timeline, WalPosition};

use super::*;
use crate::view::VoterReport;

const LIMIT: u64 = 0x1000;

fn node(name: &str) -> NodeId {
    NodeId(name.trim_start_matches('n').parse().expect("a member such as n1"))
}

fn position(text: &str) -> WalPosition {
    text.parse().expect("a position")
}

/// `primary 8 5:0/30`, `closed 8 5:0/30` (its gate), `frozen 8`, `standby 5:0/30`, `standby 5:0/30 0/20` (it has
/// replayed less), `alone 5:0/30` (it does not stream), `stopped`, `starting`.
fn instance(text: &str) -> Instance {
    let words: Vec<&str> = text.split(' ').collect();
    let standby = |at: &str, streaming| Instance::Standby {
        position: position(at),
        upstream: None,
        streaming,
        idle_ms: 0,
        wal_gone: false,
    };
    let epoch = |text: &str| Epoch(text.parse().expect("an epoch"));
    match words.as_slice() {
        ["primary", own, at] => {
            Instance::Primary { epoch: epoch(own), position: position(at), gate_open: true }
        }
        ["closed", own, at] => {
            Instance::Primary { epoch: epoch(own), position: position(at), gate_open: false }
        }
        ["frozen", own] => Instance::Frozen { epoch: epoch(own) },
        ["standby", at] | ["standby", at, _] => standby(at, true),
        ["alone", at] => standby(at, false),
        ["stopped"] => Instance::Stopped { position: None, clean: true, primary: false },
        ["starting"] => Instance::Starting,
        other => panic!("no such instance: {other:?}"),
    }
}

fn report(instance: Instance) -> Report {
    Report {
        instance,
        activity: None,
        voter: VoterReport::default(),
        promise: Epoch(0),
        leaving: false,
        down: None,
        system_id: None,
        data: None,
        streams: BTreeMap::new(),
        secured: None,
        left: None,
        highest_timeline: Timeline::new(1),
        lease_left_ms: None,
        counts_by: None,
        version: None,
        note: None,
        server: crate::view::ServerFacts::default(),
    }
}

/// Epochs 3 of n3 and 8 of `owner`; the newest is 8, or 9 while it is being prepared.
fn state(phase: &str, owner: NodeId) -> ClusterState {
    let members = (1..=3).map(|n| Member {
        node: NodeId(n),
        name: format!("n{n}"),
        kind: MemberKind::Data,
        incarnation: Incarnation(1),
        address: String::new(),
        postgres: format!("10.0.0.{n}:5432"),
        http: String::new(),
        priority: 1,
        tags: Tags::default(),
    });
    let grant = Grant {
        epoch: Epoch(8),
        owner,
        data: DataId(owner.0),
        base: position("4:0/10"),
        timeline: Timeline::new(5),
        policy: PolicyKind::Alone,
        evidence: Vec::new(),
        lost: None,
    };
    let mut state = ClusterState {
        members: members.map(|member| (member.node, member)).collect(),
        epoch: Epoch(8),
        grant: Some(grant),
        ..ClusterState::default()
    };
    for (timeline, epoch, owner) in [(4, 3, NodeId(3)), (5, 8, owner)] {
        let entry = LedgerEntry {
            epoch: Epoch(epoch),
            parent: Timeline::new(timeline - 1),
            switch: Lsn::new(0x10),
            owner,
            promoted: true,
        };
        state.ledger.entries.insert(Timeline::new(timeline), entry);
    }
    match phase {
        "established" => state.phase = Phase::Established,
        "granted" => state.phase = Phase::Granted,
        "handover" => {
            state.phase = Phase::Established;
            state.handover = Some(Handover { epoch: Epoch(8), to: None, leaving: false });
        }
        "preparing" => {
            state.epoch = Epoch(9);
            let reason = rhone_consensus::command::PrepareReason::Operator;
            state.phase = Phase::Preparing { reason, at: rhone_consensus::command::WallTime(0) };
        }
        other => panic!("no such phase: {other}"),
    }
    state
}

/// A case: `phase owner words | n1 instance | n2 instance AGEs`; n1 is this member. Words: `led`, `leased`.
struct Case {
    state: ClusterState,
    reports: BTreeMap<NodeId, Received>,
    own: Option<Report>,
    led: bool,
    leased: bool,
}

const NOW: Moment = Moment(100_000_000_000);

fn case(text: &str) -> Case {
    let mut parts = text.split(" | ");
    let head: Vec<&str> = parts.next().expect("a head").split(' ').collect();
    let mut case = Case {
        state: state(head[0], node(head[1])),
        reports: BTreeMap::new(),
        own: None,
        led: head.contains(&"led"),
        leased: head.contains(&"leased"),
    };
    for part in parts {
        let (name, rest) = part.split_once(' ').expect("a member and its instance");
        let (what, age) = match rest.rsplit_once(' ') {
            Some((what, age)) if age.ends_with('s') => (what, age.trim_end_matches('s')),
            _ => (rest, "0"),
        };
        let age: u64 = age.parse().expect("seconds");
        let mut report = report(instance(what));
        if let ["standby", _, replayed] = what.split(' ').collect::<Vec<_>>().as_slice() {
            report.server.replayed = Some(replayed.parse().expect("an LSN"));
        }
        if node(name) == NodeId(1) {
            case.own = Some(report);
        } else {
            let at = Moment(NOW.0 - age * 1_000_000_000);
            case.reports.insert(node(name), Received { at, report });
        }
    }
    case
}

impl Case {
    fn facts(&self) -> Facts<'_> {
        Facts {
            state: &self.state,
            reports: &self.reports,
            me: NodeId(1),
            own: self.own.as_ref(),
            leased: self.leased,
            led: self.led,
            now: NOW,
        }
    }
}

/// Where a new connection goes; `busy` is `n2 n2 n3` for open connections, `failed` likewise.
fn go(port: Port, text: &str, busy: &str, failed: &str) -> String {
    let case = case(text);
    let mut load = BTreeMap::new();
    for name in busy.split_whitespace() {
        *load.entry(node(name)).or_default() += 1;
    }
    let failed = failed.split_whitespace().map(node).collect();
    let choice = Choice { max_lag: LIMIT, load: &load, failed: &failed };
    match route(port, &survey(&case.facts()), &choice) {
        Route::To(node) => format!("n{}", node.0),
        Route::Hold(node) => format!("hold n{}", node.0),
        Route::Wait(why) => format!("{why:?}"),
    }
}

#[track_caller]
fn check(port: Port, text: &str, expected: &str) {
    assert_eq!(go(port, text, "", ""), expected, "{port}: {text}");
}

#[test]
fn rw_goes_to_the_owner_of_the_newest_epoch_and_to_nobody_else() {
    let check = |text: &str, expected: &str| check(Port::Rw, text, expected);
    check("established n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30", "n2");
    // The log says so before the report does, and while no report comes.
    check("established n2 led | n1 standby 5:0/30 | n2 standby 4:0/10", "n2");
    check("established n2 led | n1 standby 5:0/30", "n2");
    check("established n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30 9s", "n2");
    // And the report of an open gate may come before the log.
    check("granted n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30", "n2");
    check("granted n2 led | n1 standby 5:0/30 | n2 closed 8 5:0/30", "NoPrimary");
    check("granted n2 led | n1 standby 5:0/30 | n2 standby 4:0/10", "NoPrimary");
    // A deposed primary that still says it serves, and one of an epoch that never was.
    check("preparing n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30", "NoPrimary");
    check("established n3 led | n1 standby 5:0/30 | n2 primary 3 4:0/99 | n3 standby 4:0/10", "n3");
    // Frozen: the lease is out, the epoch lasts.
    check("established n2 led | n1 standby 5:0/30 | n2 frozen 8", "NoPrimary");
    check("established n2 led | n1 standby 5:0/30 | n2 stopped", "NoPrimary");
    check("handover n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30", "hold n2");
}

#[test]
fn a_member_without_word_from_a_majority_routes_no_writes() {
    check(Port::Rw, "established n2 | n1 standby 5:0/30 | n2 primary 8 5:0/30", "Uninformed");
    // Its own primary: the lease is a majority's word, and without it nothing goes there.
    check(Port::Rw, "established n1 leased | n1 primary 8 5:0/30", "n1");
    check(Port::Rw, "established n1 led | n1 primary 8 5:0/30", "NoPrimary");
    check(Port::Rw, "established n1 | n1 primary 8 5:0/30", "Uninformed");
    check(Port::Rw, "established n1 leased led | n1 closed 8 5:0/30", "NoPrimary");
    // Reads go on, here where the own standby is known to run.
    check(Port::Ro, "established n2 | n1 alone 5:0/30 | n2 primary 8 5:0/30 9s", "n1");
    check(Port::Any, "established n2 | n1 alone 5:0/30 | n2 primary 8 5:0/30 9s", "n1");
    check(Port::Ro, "established n1 | n1 frozen 8 | n2 standby 5:0/30 9s", "NoStandby");
    check(Port::Any, "established n1 | n1 frozen 8 | n2 standby 5:0/30 9s", "NothingRuns");
}

#[test]
fn ro_goes_to_the_standby_with_the_fewest_connections() {
    let all = "established n1 leased | n1 primary 8 5:0/9000 | n2 standby 5:0/9000 | n3 standby 5:0/8800";
    let go = |busy: &str, failed: &str| go(Port::Ro, all, busy, failed);
    assert_eq!(go("", ""), "n2");
    assert_eq!(go("n2", ""), "n3");
    assert_eq!(go("n2 n3 n3", ""), "n2");
    assert_eq!(go("", "n2"), "n3");
    assert_eq!(go("", "n2 n3"), "n1"); // the primary, before failing
    assert_eq!(go("", "n1 n2 n3"), "NoStandby");
    // Equal load: the own one, without a hop over the network.
    check(Port::Ro, "established n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30 | n3 standby 5:0/30", "n1");
}

#[test]
fn ro_leaves_out_who_is_behind_and_falls_back() {
    let check = |text: &str, expected: &str| check(Port::Ro, text, expected);
    check("established n1 leased | n1 primary 8 5:0/9000 | n2 standby 5:0/30 | n3 standby 5:0/8000", "n3");
    check("established n1 leased | n1 primary 8 5:0/9000 | n2 standby 5:0/30", "n1");
    check("established n1 leased | n1 primary 8 5:0/9000 | n2 alone 5:0/9000", "n1");
    check("handover n1 leased | n1 primary 8 5:0/9000 | n2 standby 5:0/30", "hold n1");
    check("handover n1 leased | n1 primary 8 5:0/9000 | n2 standby 5:0/9000", "n2");
    // No primary: a standby that is not known to be too far behind, streaming or not.
    check("preparing n1 led | n1 stopped | n2 alone 5:0/9000 | n3 alone 5:0/30", "n2");
    // One that was not heard from is not tried.
    check("preparing n1 led | n1 stopped | n2 standby 5:0/30 9s", "NoStandby");
}

#[test]
fn ro_looks_at_what_a_reader_would_see() {
    let check = |text: &str, expected: &str| check(Port::Ro, text, expected);
    let case = |n2: &str, n3: &str| {
        format!("established n1 leased | n1 primary 8 5:0/9000 | n2 standby {n2} | n3 standby {n3}")
    };
    // Replay is paused, or held back: all WAL is there, and readers see none of it.
    check(&case("5:0/9000 0/30", "5:0/9000 0/8000"), "n3");
    check(&case("5:0/9000 0/30", "5:0/30"), "n1");
    // A member of an older version does not tell what it has replayed.
    check(&case("5:0/9000", "5:0/9000 0/30"), "n2");
    // Without a primary the furthest standby is what others are measured by, also for itself.
    check("preparing n1 led | n1 stopped | n2 standby 5:0/9000 0/30 | n3 standby 5:0/8800 0/8800", "n3");
}

#[test]
fn any_goes_to_whatever_runs_with_the_fewest_connections() {
    let all = "established n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/9000 | n3 starting";
    assert_eq!(go(Port::Any, all, "", ""), "n1"); // however far behind
    assert_eq!(go(Port::Any, all, "n1", ""), "n2");
    assert_eq!(go(Port::Any, all, "n1", "n2"), "n1");
    let leaving = "handover n2 led | n1 starting | n2 primary 8 5:0/9000 | n3 starting";
    assert_eq!(go(Port::Any, leaving, "", ""), "hold n2");
}

#[track_caller]
fn cuts(port: Port, to: &str, since: u64, text: &str) -> bool {
    let case = case(text);
    must_cut(&Open { port, node: node(to), epoch: Epoch(since) }, &case.facts())
}

#[test]
fn connections_are_cut_when_their_epoch_is_over_and_not_before() {
    let frozen = "established n2 | n1 standby 5:0/30 | n2 frozen 8";
    assert!(!cuts(Port::Rw, "n2", 8, frozen)); // frozen, same epoch: kept
    let next = "preparing n2 led | n1 standby 5:0/30 | n2 primary 8 5:0/30 | n3 standby 5:0/30";
    assert!(cuts(Port::Rw, "n2", 8, next));
    assert!(cuts(Port::Any, "n2", 8, next)); // to the deposed primary
    assert!(cuts(Port::Ro, "n2", 8, next));
    assert!(!cuts(Port::Ro, "n3", 8, next)); // a standby goes on
    assert!(cuts(Port::Any, "n3", 3, next)); // which had been the primary of epoch 3
    assert!(!cuts(Port::Any, "n3", 9, next));
    // A standby out of reach; not when it is this member that hears nothing.
    let lost = "preparing n2 led | n1 standby 5:0/30 | n2 stopped | n3 standby 5:0/30 9s";
    assert!(cuts(Port::Ro, "n3", 8, lost));
    let deaf = "preparing n2 led | n1 standby 5:0/30 | n2 stopped 9s | n3 standby 5:0/30 9s";
    assert!(!cuts(Port::Ro, "n3", 8, deaf));
    assert!(cuts(Port::Ro, "n7", 8, next)); // no member any more
}
