//! Several members in one process, over real gRPC, sled and fsync.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::{Group, LIMIT, Member, eventually};
use rhone_consensus::command::{ClusterCommand, Outcome, PrepareReason, WallTime};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::observer::LogCause;
use rhone_consensus::settings::Settings;
use rhone_consensus::{ConsensusError, Role};
use tokio::io::AsyncWriteExt;

fn note(text: &str) -> ClusterCommand {
    // Refused by the state, since nobody founds: an entry like any other, of any size.
    ClusterCommand::Found {
        cluster: text.to_owned(),
        founder: NodeId(0),
        members: Vec::new(),
        settings: Settings::default(),
    }
}

fn prepare() -> ClusterCommand {
    ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) }
}

#[tokio::test]
async fn a_proposal_reaches_every_member_and_its_observer_first() {
    let group = Group::founded(3, 3).await;
    let applied = group.propose(prepare()).await;
    let epoch = Epoch(applied.index.0);
    assert_eq!(applied.outcome, Outcome::Prepared(epoch));
    // Committed means held by a majority: their observers heard it before the leader did.
    let held = group.members.iter().filter(|m| m.heard.last().prepare == epoch).count();
    assert!(held >= 2, "held by {held}");
    group.applied_by_all(applied.index).await;
    for member in &group.members {
        assert_eq!(member.raft().state().borrow().state.epoch, epoch);
        let heard = member.heard.0.lock().expect("lock");
        assert_eq!(heard[0].1, LogCause::Start);
        assert!(
            heard.iter().any(|(held, cause)| *cause == LogCause::MembershipAppend && held.prepare.0 == 0)
        );
    }
    let leader = group.leader().await;
    group.members[leader].raft().confirm_leadership(LIMIT).await.expect("confirm");
    let follower = &group.members[(leader + 1) % 3];
    let error = follower.raft().propose(note("x"), LIMIT).await.expect_err("no leader");
    assert!(
        matches!(error, ConsensusError::NotLeader { leader: Some(id) } if id == group.members[leader].id)
    );
}

#[tokio::test]
async fn refuses_what_the_store_could_not_keep_safely() {
    let group = Group::founded(1, 1).await;
    let error = group.members[0].raft().propose(note(&"x".repeat(64 << 10)), LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::TooLarge { .. })));
    group.propose(note(&"x".repeat(50 << 10))).await;
    assert!(group.members[0].raft().initialize(BTreeMap::new()).await.is_err());
}

#[tokio::test]
async fn an_isolated_follower_comes_back_without_a_new_term() {
    let group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let follower = (leader + 1) % 3;
    let term = group.members[leader].raft().status().term;
    group.cut(follower, false);
    // Long enough for several campaigns.
    let silent = Duration::from_secs(3);
    eventually("the follower hears nobody", || {
        let age = group.members[follower].raft().last_leader_contact()?;
        (age > silent && group.members[follower].raft().status().leader.is_none()).then_some(())
    })
    .await;
    assert_eq!(group.members[follower].raft().status().term, term);
    let applied = group.propose_among(&[leader], note("meanwhile")).await;
    group.cut(follower, true);
    group.applied_by_all(applied).await;
    assert_eq!(group.leader().await, leader);
    assert_eq!(group.members[leader].raft().status().term, term);
}

#[tokio::test]
async fn an_isolated_leader_leads_no_more_and_another_is_elected() {
    let group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    group.cut(leader, false);
    group.leader_among(&others).await;
    let old = group.members[leader].raft().status();
    assert!(!old.leading, "{old:?}");
    let error = group.members[leader].raft().propose(note("lost"), LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::NoQuorum | ConsensusError::NotLeader { .. })), "{error:?}");
    let index = group.propose_among(&others, note("kept")).await;
    group.cut(leader, true);
    group.applied_by_all(index).await;
    group.leader().await;
}

#[tokio::test]
async fn a_leader_that_can_reach_nobody_gives_way_to_those_that_reach_it() {
    let group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    // Its calls fail; the others' calls, vote requests among them, still arrive.
    for other in others {
        group.cut_one_way(leader, other, false);
    }
    group.leader_among(&others).await;
}

#[tokio::test]
async fn a_restarted_leader_leads_only_when_elected_anew() {
    let mut group = Group::founded(3, 3).await;
    let applied = group.propose(prepare()).await;
    group.applied_by_all(applied.index).await;
    let leader = group.leader().await;
    let term = group.members[leader].raft().status().term;
    for member in &mut group.members {
        member.stop().await;
    }
    group.members[leader].start().await;
    let alone = group.members[leader].shared();
    assert_eq!(group.members[leader].heard.last().prepare, Epoch(applied.index.0), "known again at start");
    let watched = tokio::time::Instant::now();
    eventually("two campaigns have passed", || {
        let status = alone.status();
        assert!(!status.leading && status.role != Role::Leader, "{status:?}");
        (watched.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    let error = alone.propose(note("x"), LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::NotLeader { leader: None })), "{error:?}");
    group.members[(leader + 1) % 3].start().await;
    let next = group.leader().await;
    assert!(group.members[next].raft().status().term > term);
    group.members[(leader + 2) % 3].start().await;
    let applied = group.propose(note("again")).await;
    group.applied_by_all(applied.index).await;
}

#[tokio::test]
async fn a_single_voter_leads_again_after_a_restart() {
    let mut group = Group::founded(1, 1).await;
    let applied = group.propose(prepare()).await;
    group.members[0].stop().await;
    group.members[0].start().await;
    group.leader().await;
    group.applied_by_all(applied.index).await;
    assert_eq!(group.members[0].raft().state().borrow().state.epoch, Epoch(applied.index.0));
}

#[tokio::test]
async fn the_end_of_the_log_is_known_right_after_a_start() {
    let mut group = Group::founded(1, 1).await;
    let applied = group.propose(prepare()).await;
    group.members[0].stop().await;
    group.members[0].start().await;
    // Whatever Raft has applied or said by now: a member that is behind knows that it is.
    assert!(group.members[0].raft().status().last_log >= applied.index);
}

/// Alone it applies only what it knows to be committed, and says what its log came to; with the others it applies the rest.
#[tokio::test]
async fn what_the_log_came_to_is_told_until_it_is_applied() {
    let mut group = Group::founded(3, 3).await;
    let applied = group.propose(prepare()).await;
    group.applied_by_all(applied.index).await;
    for member in &mut group.members {
        member.stop().await;
    }
    group.members[0].start().await;
    let alone = group.members[0].shared();
    // Whatever of it was known to be committed, and is applied by now.
    let told = alone.ahead().map(|ahead| (ahead.index, ahead.state.epoch));
    let known = alone.state().borrow().index >= applied.index;
    assert!(known || told == Some((applied.index, Epoch(applied.index.0))), "{told:?}");
    group.members[1].start().await;
    group.applied_by_all(applied.index).await;
    assert_eq!(alone.ahead(), None);
}

#[tokio::test]
async fn a_learner_never_campaigns_and_is_promoted_through_a_joint_configuration() {
    let group = Group::founded(4, 3).await;
    let leader = group.leader_among(&[0, 1, 2]).await;
    let learner = &group.members[3];
    let raft = group.members[leader].raft();
    raft.add_learner(learner.id, learner.node(), LIMIT).await.expect("add");
    let applied = group.propose_among(&[leader], note("seen by the learner")).await;
    group.applied_by_all(applied).await;
    assert_eq!(learner.raft().status().role, Role::Learner);
    let removed = (leader + 1) % 3;
    let mut voters: BTreeSet<_> = group.members.iter().map(|m| m.id).collect();
    voters.remove(&group.members[removed].id);
    raft.change_voters(voters.clone(), false, LIMIT).await.expect("change");
    let status = raft.status();
    assert_eq!((status.voters, status.configs.len()), (voters, 1));
    eventually("it knows that it votes", || (learner.raft().status().role == Role::Follower).then_some(()))
        .await;
    assert!(learner.heard.last().membership.0 > 1);
    let node = rhone_consensus::PeerNode { name: "renamed".to_owned(), ..learner.node() };
    raft.update_node(learner.id, node.clone(), LIMIT).await.expect("update");
    assert_eq!(raft.status().nodes[&learner.id], node);
    raft.remove(learner.id, LIMIT).await.expect("remove");
    assert!(!raft.status().nodes.contains_key(&learner.id));
    let error = raft.change_voters(BTreeSet::from([learner.id]), false, LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::Refused { .. })), "{error:?}");
}

#[tokio::test]
async fn a_wiped_member_comes_back_as_another_and_catches_up_by_snapshot() {
    let mut group = Group::founded(3, 3).await;
    let wiped = (group.leader().await + 1) % 3;
    let old = group.members[wiped].id;
    group.members[wiped].stop().await;
    for number in 0..620 {
        group.propose(note(&format!("entry {number}"))).await;
    }
    let epoch = group.propose(prepare()).await;
    for number in 0..10 {
        group.propose(note(&format!("later {number}"))).await;
    }
    let new = group.add(Member::new("again")).await;
    assert_ne!(group.members[new].id, old);
    let leader = group.leader_among(&[0, 1, 2].map(|m| if m == wiped { (wiped + 1) % 3 } else { m })).await;
    let raft = group.members[leader].shared();
    raft.add_learner(group.members[new].id, group.members[new].node(), LIMIT).await.expect("add");
    let last = raft.status().last_log;
    group.applied_by_all(last).await;
    assert_eq!(group.members[new].raft().state().borrow().state.epoch, Epoch(epoch.index.0));
    let causes: Vec<_> = group.members[new].heard.0.lock().expect("lock").iter().map(|h| h.1).collect();
    assert!(causes.contains(&LogCause::SnapshotInstall), "{causes:?}");
    let mut voters: BTreeSet<_> = raft.status().voters;
    voters.remove(&old);
    voters.insert(group.members[new].id);
    raft.change_voters(voters, false, LIMIT).await.expect("replace");
    // What was installed survives a restart.
    group.members[new].stop().await;
    group.members[new].start().await;
    group.connect(leader, new).await;
    group.applied_by_all(last).await;
}

#[tokio::test]
async fn strangers_and_garbage_are_turned_away() {
    let group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let term = group.members[leader].raft().status().term;
    let mut stranger = Member::new("stranger");
    stranger.start_in("another").await.expect("start");
    // It believes that it is in a cluster with two of ours, and campaigns there.
    let mut nodes = BTreeMap::from([(stranger.id, stranger.node())]);
    nodes.extend(group.members[..2].iter().map(|m| (m.id, m.node())));
    stranger.raft().initialize(nodes).await.expect("initialize");
    for member in &group.members {
        let mut socket = tokio::net::TcpStream::connect(&member.addr).await.expect("connect");
        drop(socket.write_all(&[0x5A; 4096]).await);
    }
    let watched = tokio::time::Instant::now();
    eventually("several campaigns have passed", || {
        assert!(stranger.raft().status().leader.is_none());
        (watched.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    group.propose(note("undisturbed")).await;
    assert_eq!(group.members[leader].raft().status().term, term);
}

#[tokio::test]
async fn an_old_image_of_a_voter_counts_for_no_majority() {
    let mut group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let (old, other) = ((leader + 1) % 3, (leader + 2) % 3);
    group.members[old].stop().await;
    let image = tempfile::TempDir::new().expect("temporary directory");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let status = std::process::Command::new("cp").arg("-aT").args([from, to]).status().expect("cp");
        assert!(status.success());
    };
    copy(group.members[old].dir.path(), image.path());
    group.members[old].start().await;
    let applied = group.propose(prepare()).await;
    group.applied_by_all(applied.index).await;
    group.members[old].stop().await;
    // The image has forgotten the Prepare, and its own hard state with it.
    std::fs::remove_dir_all(group.members[old].dir.path()).expect("remove");
    copy(image.path(), group.members[old].dir.path());
    group.members[old].start().await;
    group.members[other].stop().await;
    eventually("the leader finds no majority", || {
        (!group.members[leader].raft().status().leading).then_some(())
    })
    .await;
    let error = group.members[leader].raft().propose(note("lost"), LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::NoQuorum | ConsensusError::NotLeader { .. })), "{error:?}");
    group.members[other].start().await;
    group.propose_among(&[leader, other], note("without the image")).await;
}

#[tokio::test]
async fn an_idle_cluster_writes_nothing() {
    let group = Group::founded(3, 3).await;
    let applied = group.propose(note("last")).await;
    group.applied_by_all(applied.index).await;
    let counts = || -> Vec<u64> { group.members.iter().map(|m| m.raft().syncs().get()).collect() };
    let bytes = || {
        if std::env::var_os("NEXTEST").is_none() {
            return "other tests share this process".to_owned();
        }
        let io = std::fs::read_to_string("/proc/self/io").expect("read");
        io.lines().find(|l| l.starts_with("write_bytes")).expect("line").to_owned()
    };
    let before = (counts(), bytes());
    let term = group.members[0].raft().status().term;
    let watched = tokio::time::Instant::now();
    eventually("three seconds have passed", || (watched.elapsed() > Duration::from_secs(3)).then_some(()))
        .await;
    assert_eq!((counts(), bytes()), before);
    assert_eq!(group.members[0].raft().status().term, term, "one leader all along");
}

#[tokio::test]
async fn leadership_can_be_given_away_but_not_to_nobody() {
    let mut group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    group.members[leader].raft().set_reluctance(1);
    assert!(group.members[leader].raft().yield_leadership().await);
    let next = group.leader().await;
    assert_ne!(next, leader);
    for other in (0..3).filter(|m| *m != next) {
        group.members[other].stop().await;
    }
    let alone = group.members[next].shared();
    assert!(!alone.yield_leadership().await);
    for other in (0..3).filter(|m| *m != next) {
        group.members[other].start().await;
    }
    group.propose(note("after")).await;
}

#[tokio::test]
async fn a_reluctant_member_leads_when_no_other_can() {
    let mut group = Group::founded(3, 3).await;
    let leader = group.leader().await;
    let (reluctant, other) = ((leader + 1) % 3, (leader + 2) % 3);
    group.members[reluctant].raft().set_reluctance(1);
    group.members[leader].stop().await;
    assert_eq!(group.leader().await, other, "the one that is not reluctant");
    group.members[leader].start().await;
    group.leader().await;
    for member in &group.members {
        member.raft().set_reluctance(1);
    }
    group.members[other].stop().await;
    group.leader().await;
}

#[tokio::test]
async fn a_leader_can_be_removed() {
    let group = Group::founded(4, 4).await;
    let leader = group.leader().await;
    let raft = group.members[leader].raft();
    let mut voters = raft.status().voters;
    voters.remove(&group.members[leader].id);
    raft.change_voters(voters.clone(), false, LIMIT).await.expect("change");
    let others: Vec<usize> = (0..4).filter(|m| *m != leader).collect();
    let next = group.leader_among(&others).await;
    let status = group.members[next].raft().status();
    assert_eq!((status.voters, status.configs.len()), (voters, 1));
    group.propose_among(&others, note("without it")).await;
}

/// Its leader is gone between the two entries of a change; whoever leads then asks for the same voters once more, as the
/// supervisor does.
#[tokio::test]
async fn a_change_of_voters_that_lost_its_leader_is_completed_by_the_next() {
    let mut group = Group::founded(5, 3).await;
    let first = group.leader_among(&[0, 1, 2]).await;
    let raft = group.members[first].shared();
    for new in [3, 4] {
        raft.add_learner(group.members[new].id, group.members[new].node(), LIMIT).await.expect("add");
    }
    let known = raft.status().last_log;
    group.applied_by_all(known).await;
    // The new voters' majority is out of reach, so that the joint entry is in the log and not committed.
    group.cut(3, false);
    group.cut(4, false);
    let voters: BTreeSet<NodeId> = [first, 3, 4].iter().map(|m| group.members[*m].id).collect();
    let asked = tokio::spawn({
        let (raft, voters) = (Arc::clone(&raft), voters.clone());
        async move { raft.change_voters(voters, true, LIMIT).await }
    });
    let joint = |member: &Member| (member.raft().status().configs.len() == 2).then_some(());
    for old in 0..3 {
        eventually("the change has begun", || joint(&group.members[old])).await;
    }
    asked.abort();
    drop(asked.await);
    drop(raft);
    group.members[first].stop().await;
    group.cut(3, true);
    group.cut(4, true);
    let others: Vec<usize> = (0..5).filter(|m| *m != first).collect();
    let next = group.leader_among(&others).await;
    let raft = group.members[next].raft();
    let status = raft.status();
    assert_eq!(status.configs.last(), Some(&voters));
    // Refused for as long as the first entry is not committed.
    let deadline = tokio::time::Instant::now() + LIMIT;
    while let Err(error) = raft.change_voters(voters.clone(), true, LIMIT).await {
        assert!(tokio::time::Instant::now() < deadline, "not completed: {error}");
        tokio::task::yield_now().await;
    }
    let status = group.members[next].raft().status();
    assert_eq!((status.voters, status.configs.len()), (voters, 1));
}

#[tokio::test]
async fn a_full_disk_ends_raft_and_says_so() {
    let disk = tempfile::TempDir::new().expect("temporary directory");
    let path = disk.path().to_string_lossy().into_owned();
    let mount =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs", &path]).status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: cannot mount a small file system here");
        return;
    }
    let mut group = Group::founded(0, 0).await;
    let mut member = Member::new("full");
    member.dir = tempfile::TempDir::new_in(disk.path()).expect("temporary directory");
    group.add(member).await;
    let member = &group.members[0];
    member.raft().initialize(BTreeMap::from([(member.id, member.node())])).await.expect("initialize");
    group.leader().await;
    let mut failed = None;
    for number in 0..400 {
        if let Err(error) = member.raft().propose(note(&"x".repeat(50_000)), LIMIT).await {
            failed = Some((number, error));
            break;
        }
    }
    let (number, error) = failed.expect("the disk fills up");
    assert!(number > 3 && matches!(error, ConsensusError::Fatal { .. } | ConsensusError::Unknown), "{error}");
    eventually("it is known why", || member.raft().fatal().borrow().clone()).await;
    let error = member.raft().propose(note("x"), LIMIT).await;
    assert!(matches!(error, Err(ConsensusError::Fatal { .. })), "{error:?}");
    std::process::Command::new("umount").args(["-l", &path]).status().expect("umount");
}
