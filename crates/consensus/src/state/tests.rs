//! Tables of what each command does to the state.

use super::*;
use crate::command::RestartStep;
use crate::ids::{DataId, Incarnation};

fn member(node: u64, name: &str, kind: MemberKind) -> Member {
    Member {
        node: NodeId(node),
        name: name.to_owned(),
        kind,
        incarnation: Incarnation(u128::from(node)),
        address: String::new(),
        postgres: String::new(),
        http: String::new(),
        priority: 1,
        tags: crate::tags::Tags::default(),
    }
}

/// `alone`, `async`, or `any 1 of MEMBER ...`.
fn kind(words: &[&str]) -> PolicyKind {
    let replica = |text: &&str| {
        let number = text.parse().expect("a number");
        Replica { node: NodeId(number), data: DataId(number) }
    };
    match words {
        ["alone"] => PolicyKind::Alone,
        ["any", required, "of", standbys @ ..] => PolicyKind::Quorum {
            required: required.parse().expect("a number"),
            standbys: standbys.iter().map(replica).collect(),
        },
        _ => PolicyKind::Async { max_lag: 0 },
    }
}

/// A command as a line: `found`, `prepare`, `grant EPOCH OWNER BASE TIMELINE`, ...
#[expect(clippy::too_many_lines, reason = "a word for each command")]
fn command(line: &str) -> ClusterCommand {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let timeline = |at: usize| Timeline::new(u32::try_from(number(at)).expect("a timeline"));
    match words[0] {
        "found" => ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(number(1)),
            members: vec![
                member(1, "a", MemberKind::Data),
                member(2, "b", MemberKind::Data),
                member(3, "w", MemberKind::Witness),
            ],
            settings: Settings::default(),
        },
        "admit" => ClusterCommand::Admit(member(number(1), words[2], MemberKind::Data)),
        "remove" => ClusterCommand::Remove(NodeId(number(1))),
        "system" => ClusterCommand::SetSystemId(SystemId::new(number(1))),
        "prepare" => ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) },
        "grant" => ClusterCommand::Grant(Grant {
            epoch: Epoch(number(1)),
            owner: NodeId(number(2)),
            data: DataId(number(2)),
            base: words[3].parse().expect("a position"),
            timeline: timeline(4),
            policy: PolicyKind::Async { max_lag: 0 },
            evidence: Vec::new(),
            lost: None,
        }),
        "established" => ClusterCommand::Established {
            epoch: Epoch(number(1)),
            timeline: timeline(2),
            switch: words.get(3).map_or(Lsn::new(0x10), |lsn| lsn.parse().expect("an lsn")),
            gap_ms: 0,
            at: WallTime(0),
        },
        "handover" => ClusterCommand::SetHandover(Some(Handover {
            epoch: Epoch(number(1)),
            to: words.get(2).map(|_| NodeId(number(2))),
            leaving: words.len() < 3,
        })),
        "policy" => ClusterCommand::AddPolicy { epoch: Epoch(number(1)), kind: kind(&words[2..]) },
        "narrow" => ClusterCommand::NarrowPolicies { epoch: Epoch(number(1)), number: LogIndex(number(2)) },
        "accept" => ClusterCommand::AcceptLoss(Acceptance {
            epoch: Epoch(number(1)),
            to: None,
            by: "somebody".to_owned(),
            at: WallTime(0),
        }),
        "schedule" => ClusterCommand::Schedule(Some(Scheduled {
            from: NodeId(number(1)),
            to: words.get(3).map(|_| NodeId(number(3))),
            at: WallTime(number(2)),
            by: "somebody".to_owned(),
        })),
        "unschedule" => ClusterCommand::Schedule(None),
        "begin" => ClusterCommand::BeginScheduled { at: WallTime(number(1)) },
        "drop" => ClusterCommand::DropScheduled { at: WallTime(number(1)), why: words[2].to_owned() },
        "restart" => {
            let step = match words[2] {
                "at" => RestartStep::Schedule { at: WallTime(number(3)), by: "somebody".to_owned() },
                "begin" => RestartStep::Begin { at: WallTime(number(3)), server: WallTime(number(4)) },
                "end" => RestartStep::End {
                    at: WallTime(number(3)),
                    why: words.get(4).map(|why| (*why).to_owned()),
                },
                _ => RestartStep::Cancel,
            };
            ClusterCommand::StepRestart { node: NodeId(number(1)), step }
        }
        "paused" => ClusterCommand::SetPaused(true),
        "fence" => ClusterCommand::SetFenced { node: NodeId(number(1)), fenced: true },
        "unfence" => ClusterCommand::SetFenced { node: NodeId(number(1)), fenced: false },
        "left" => {
            ClusterCommand::RecordLeft { node: NodeId(number(1)), end: words[2].parse().expect("a position") }
        }
        other => panic!("no such command: {other}"),
    }
}

/// Applies one line after the other, from index 1 on; the last one's outcome is looked at.
#[track_caller]
fn check(lines: &str, expected: &str) -> ClusterState {
    let mut state = ClusterState::default();
    let mut again = ClusterState::default();
    let mut outcome = Outcome::Done;
    for (index, line) in lines.split(" | ").enumerate() {
        let before = state.clone();
        let index = LogIndex(index as u64 + 1);
        outcome = state.apply(index, &command(line));
        assert_eq!(state.broken_invariant(), None, "after {line}");
        assert_eq!(again.apply(index, &command(line)), outcome, "the same everywhere");
        if matches!(outcome, Outcome::Refused(_)) {
            assert_eq!(state, before, "a refused command changes nothing: {line}");
        }
    }
    assert_eq!(state, again);
    let found = match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Refused(reason) => reason,
        Outcome::Prepared(epoch) => format!("epoch {epoch}"),
    };
    assert_eq!(found, expected, "{lines}");
    state
}

const GRANTED: &str = "found 1 | system 7 | prepare | grant 3 1 1:0/10 2";
const ESTABLISHED: &str = "found 1 | system 7 | prepare | grant 3 1 1:0/10 2 | established 3 2";

#[test]
fn a_cluster_is_founded_once_and_by_a_data_member() {
    check("found 1", "done");
    check("found 1 | found 1", "the cluster is already founded");
    check("found 3", "the founder is no data member");
    check("found 9", "the founder is no data member");
    check("admit 4 d", "the cluster is not founded yet");
    check("found 1 | system 7 | system 7", "done");
    check("found 1 | system 7 | system 8", "the system identifier is already known");
}

#[test]
fn who_leads_is_neither_removed_nor_replaced() {
    let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
    after("remove 2", "done");
    after("remove 9", "no such member");
    after("remove 1", "the member leads: hand over first");
    after("admit 4 a", "the member of that name leads"); // a copied card
    after("admit 3 w", "a member stays what it is: data or witness");
    let state = after("prepare | admit 4 a", "done"); // seen to be gone
    assert_eq!(state.member_named("a").map(|m| m.node), Some(NodeId(4)));
}

#[test]
fn an_epoch_is_granted_once_and_only_the_newest() {
    check("found 1 | prepare", "epoch 2");
    check("found 1 | grant 0 1 1:0/10 2", "the epoch is no longer being prepared");
    check(GRANTED, "done");
    check(&format!("{GRANTED} | grant 3 2 1:0/10 3"), "the epoch is no longer being prepared");
    check("found 1 | prepare | prepare | grant 2 1 1:0/10 2", "the epoch is no longer being prepared");
    check("found 1 | prepare | grant 2 3 1:0/10 2", "the owner is no data member");
    check("found 1 | prepare | grant 2 1 5:0/10 5", "the timeline's number was planned before");
    let again = format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 2");
    check(&again, "the timeline's number was planned before");
}

#[test]
fn establishing_drops_the_older_policies_and_only_then() {
    let state = check(&format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3"), "done");
    assert_eq!(state.policies.iter().map(|p| p.epoch.0).collect::<Vec<_>>(), [3, 6]);
    let state = check(&format!("{ESTABLISHED} | prepare | grant 6 2 2:0/10 3 | established 6 3"), "done");
    check(
        &format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3 | established 6 3"),
        "the timeline does not begin where the grant says",
    );
    assert_eq!(state.policies.iter().map(|p| p.epoch.0).collect::<Vec<_>>(), [6]);
    check(&format!("{ESTABLISHED} | established 3 2"), "the epoch is already established");
    check(&format!("{GRANTED} | established 3 9"), "the timeline is not the planned one");
    check(&format!("{GRANTED} | prepare | established 3 2"), "the epoch is over"); // a Prepare came first
}

#[test]
fn policies_widen_and_narrow_within_the_granted_epoch_only() {
    let after = |more: &str, expected: &str| {
        let state = check(&format!("{ESTABLISHED} | {more}"), expected);
        state.policies.iter().map(|policy| policy.number.0).collect::<Vec<_>>()
    };
    assert_eq!(after("policy 3 any 1 of 2", "done"), [4, 6]);
    assert_eq!(after("policy 3 any 1 of 2 | policy 3 alone", "done"), [4, 6, 7]);
    assert_eq!(after("policy 3 any 1 of 2 | narrow 3 6", "done"), [6]);
    // Back to the first one while the change goes on: it stands for both, under the newer number.
    assert_eq!(after("policy 3 any 1 of 2 | policy 3 async", "done"), [6, 7]);
    after("policy 3 async", "this is the newest policy already");
    after("policy 3 any 1 of 1", "a commit has to wait for somebody else than the primary");
    after("policy 3 any 0 of 2", "a commit has to wait for somebody else than the primary");
    after("policy 2 alone", "the epoch has no owner now");
    after("prepare | policy 3 alone", "the epoch has no owner now"); // a Prepare came first
    after("policy 3 alone | prepare | narrow 3 6", "the epoch has no owner now");
    after("narrow 3 9", "that policy is not open");
    after("narrow 3 4", "no older policy is open");
    // What an older epoch left open goes only when the newer one is established.
    let next = "policy 3 alone | prepare | grant 7 2 2:0/10 3 | policy 7 any 1 of 1";
    assert_eq!(after(&format!("{next} | narrow 7 9"), "done"), [4, 6, 9]);
    assert_eq!(after(&format!("{next} | established 7 3"), "done"), [8, 9]);
}

#[test]
fn an_accepted_loss_is_for_one_epoch_that_is_being_prepared() {
    let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
    after("accept 3", "that epoch is no longer being prepared");
    after("prepare | accept 3", "that epoch is no longer being prepared");
    assert!(after("prepare | accept 6", "done").accepted_loss().is_some());
    assert!(after("prepare | accept 6 | prepare", "epoch 8").accepted_loss().is_none());
    let state = after("prepare | accept 6 | grant 6 2 2:0/10 3 | established 6 3", "done");
    assert!(state.history.back().is_some_and(|entry| entry.accepted.is_some()));
    assert_eq!(state.accepted, None);
}

#[test]
fn a_handover_ends_the_established_epoch_and_no_other() {
    let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
    after("handover 3 2", "done");
    after("handover 3 1", "that member cannot take over"); // leads already
    after("handover 3 3", "that member cannot take over"); // a witness
    after("handover 2 2", "the epoch that it would end is not established");
    after("handover 3 | handover 3 2", "another handover is going on");
    after("handover 3 2 | handover 3", "done"); // the host goes down meanwhile
    check(&format!("{GRANTED} | handover 3 2"), "the epoch that it would end is not established");
}

#[test]
fn a_scheduled_restart_begins_once_for_one_server() {
    let after = |lines: &str, expected: &str| check(&format!("found 1 | {lines}"), expected);
    let state = after("restart 2 at 99", "done");
    assert_eq!(state.restarts[&NodeId(2)].at, WallTime(99));
    after("restart 2 at 99 | restart 1 at 99", "done"); // one for each member
    after("restart 2 at 99 | restart 2 at 98", "a restart of this member is scheduled already");
    after("restart 3 at 99", "a witness runs no postgres");
    after("restart 9 at 99", "no such member");
    after("restart 2 cancel", "no restart of this member is scheduled");
    after(
        "restart 2 at 99 | restart 2 cancel | restart 2 begin 99 7",
        "no restart of this member is scheduled for that time",
    );
    let state = after("restart 2 at 99 | restart 2 begin 99 7", "done");
    assert_eq!(state.restarts[&NodeId(2)].server, Some(WallTime(7)));
    after(
        "restart 2 at 99 | restart 2 begin 99 7 | restart 2 begin 99 8",
        "no restart of this member is scheduled for that time",
    );
    after("restart 2 at 99 | restart 2 begin 99 7 | restart 2 cancel", "it is being restarted by now");
    let state = after("restart 2 at 99 | restart 2 begin 99 7 | restart 2 end 99", "done");
    assert_eq!((state.restarts.len(), state.restart_dropped), (0, None));
    let state = after("restart 2 at 99 | restart 2 end 99 late", "done");
    assert_eq!(state.restart_dropped, Some((NodeId(2), WallTime(99), "late".to_owned())));
    assert_eq!(
        after("restart 2 at 99 | restart 2 end 99 late | restart 1 at 98", "done").restart_dropped,
        None
    );
    // Who is removed or comes back with another store is not restarted for it.
    assert!(after("restart 2 at 99 | remove 2", "done").restarts.is_empty());
    assert!(after("restart 2 at 99 | admit 4 b", "done").restarts.is_empty());
}

#[test]
fn a_scheduled_switchover_begins_once_or_is_dropped() {
    let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
    let state = after("schedule 1 99 2 | begin 99", "done");
    assert_eq!((state.scheduled, state.handover.and_then(|h| h.to)), (None, Some(NodeId(2))));
    after("schedule 1 99 2 | begin 99 | begin 99", "no switchover is scheduled for that time");
    after("schedule 1 99 2 | schedule 1 98", "another switchover is scheduled");
    after("schedule 1 99 2 | unschedule | begin 99", "no switchover is scheduled for that time");
    after("unschedule", "no switchover is scheduled");
    after(
        "schedule 1 99 2 | unschedule | schedule 1 98 | begin 99",
        "no switchover is scheduled for that time",
    );
    after("schedule 2 99", "the primary is another one by now");
    after("schedule 1 99 1", "that member cannot take over");
    after("schedule 1 99 3", "that member cannot take over"); // a witness
    after("prepare | schedule 1 99", "the primary is another one by now");
    // After a failover the same member may lead again, another one may not.
    let moved = "schedule 1 99 | prepare | grant 7 2 2:0/20 3 | established 7 3 0/20";
    after(&format!("{moved} | begin 99"), "the primary is another one by now");
    let state = after(&format!("{moved} | drop 99 moved"), "done");
    assert_eq!(state.scheduled, None);
    assert_eq!(state.schedule_dropped.map(|dropped| dropped.why).as_deref(), Some("moved"));
    after("schedule 1 99 | drop 98 why", "no switchover is scheduled for that time");
}

#[test]
fn only_a_standby_is_fenced_and_it_does_not_take_over() {
    let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
    after("fence 2", "done");
    after("fence 1", "the member leads, or led last: hand over first");
    after("fence 3", "a witness runs no postgres");
    after("fence 9", "no such member");
    after("fence 2 | fence 2", "the member is fenced already");
    after("unfence 2", "the member is not fenced");
    after("fence 2 | unfence 2 | handover 3 2", "done");
    after("fence 2 | handover 3 2", "that member cannot take over");
    after("handover 3 2 | fence 2", "the primary is being handed over to this member");
    after("fence 2 | prepare | grant 7 2 2:0/20 3", "the owner is fenced");
    // The last owner is not fenced while the next one is sought: it may be the only one left.
    after("prepare | fence 1", "the member leads, or led last: hand over first");
    assert!(after("fence 2 | admit 4 b", "done").is_fenced(NodeId(4))); // its store was lost
    assert!(after("fence 2 | remove 2", "done").fenced.is_empty());
}

#[test]
fn what_a_former_primary_left_behind_is_recorded_once() {
    // Member 1 served timeline 2 from 0/10 on; member 2 took over at 0/20.
    let moved = format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3 | established 6 3 0/20");
    let left = |lines: &str| {
        let entry = check(lines, "done").history.back().cloned().expect("an entry");
        entry.left.map(|(from, to)| format!("{from} to {to}"))
    };
    assert_eq!(left(&format!("{moved} | left 1 2:0/28")).as_deref(), Some("0/20 to 0/28"));
    assert_eq!(left(&format!("{moved} | left 1 2:0/20")).as_deref(), Some("0/20 to 0/20")); // nothing
    let refused = "no change of primary waits for that";
    check(&format!("{moved} | left 1 2:0/28 | left 1 2:0/30"), refused); // known already
    check(&format!("{moved} | left 2 2:0/28"), refused); // was not the primary before
    check(&format!("{moved} | left 1 1:0/28"), refused); // another timeline
    check(&format!("{ESTABLISHED} | left 1 2:0/28"), refused); // leads still
}

#[test]
fn promotions_that_fail_for_a_night_leave_short_lists() {
    let mut state = check(ESTABLISHED, "done");
    for round in 0..2000_u64 {
        let (index, timeline) = (10 + 2 * round, 3 + round);
        state.apply(LogIndex(index), &command("prepare"));
        let grant = command(&format!("grant {index} {} 2:0/20 {timeline}", 1 + round % 2));
        assert_eq!(state.apply(LogIndex(index + 1), &grant), Outcome::Done, "round {round}");
        assert_eq!(state.broken_invariant(), None);
    }
    assert_eq!(state.policies.len(), 2);
    assert_eq!(state.ledger.entries.len(), LEDGER_LIMIT);
    // Where the cluster last stood is not forgotten.
    assert!(state.ledger.rank("2:0/20".parse().expect("a position")).is_some());
}
