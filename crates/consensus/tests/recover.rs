//! A majority that is lost for good, and the member that goes on alone, over real gRPC, sled and fsync.

mod common;

use std::collections::BTreeSet;

use common::{Group, LIMIT, Member, eventually};
use rhone_consensus::HardStateFile;
use rhone_consensus::command::{
    ClusterCommand, Grant, Member as Recorded, MemberKind, Outcome, PrepareReason, WallTime,
};
use rhone_consensus::identity::Generation;
use rhone_consensus::ids::{DataId, Epoch};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::recover::{Recovered, Survivor};
use rhone_consensus::settings::Settings;
use rhone_consensus::state::Phase;
use rhone_consensus::tags::Tags;
use rhone_pgctl::wal::{SystemId, Timeline};

fn recorded(member: &Member) -> Recorded {
    Recorded {
        node: member.id,
        name: member.name.clone(),
        kind: MemberKind::Data,
        incarnation: member.incarnation,
        address: member.addr.clone(),
        postgres: String::new(),
        http: String::new(),
        priority: 50,
        tags: Tags::default(),
    }
}

/// A cluster of three with a primary, its first member.
async fn established() -> Group {
    let group = Group::founded(3, 3).await;
    let members: Vec<Recorded> = group.members.iter().map(recorded).collect();
    let owner = members.first().expect("three members").node;
    let settings = Settings { max_lag_on_failover: 4711, ..Settings::default() };
    let found = ClusterCommand::Found { cluster: "test".to_owned(), founder: owner, members, settings };
    group.propose(found).await;
    group.propose(ClusterCommand::SetSystemId(SystemId::new(7))).await;
    let prepare = ClusterCommand::Prepare { reason: PrepareReason::Founding, at: WallTime(0) };
    let epoch = Epoch(group.propose(prepare).await.index.0);
    let base = "1:0/10".parse().expect("a position");
    let grant = Grant {
        epoch,
        owner,
        data: DataId(1),
        base,
        timeline: Timeline::new(2),
        policy: PolicyKind::Async { max_lag: 0 },
        evidence: Vec::new(),
        lost: None,
    };
    group.propose(ClusterCommand::Grant(grant)).await;
    let last = group
        .propose(ClusterCommand::Established {
            epoch,
            timeline: Timeline::new(2),
            switch: base.lsn,
            gap_ms: 0,
            at: WallTime(0),
        })
        .await;
    assert_eq!(last.outcome, Outcome::Done);
    group.applied_by_all(last.index).await;
    group
}

fn recover(member: &Member) -> Recovered {
    let (hard, _) = HardStateFile::open_or_create(member.dir.path()).expect("open");
    let survivor = Survivor::open(member.dir.path(), &hard).expect("open the store");
    survivor.begin_anew(&hard, "somebody@somewhere".to_owned(), WallTime(9)).expect("begin anew")
}

#[tokio::test]
async fn one_member_goes_on_alone_and_no_vote_of_the_old_ones_reaches_it() {
    let mut group = established().await;
    for member in &mut group.members {
        member.stop().await;
    }
    let recovered = recover(&group.members[2]);
    let generation = Generation(0).next(group.members[2].id);
    assert_eq!(recovered, Recovered { generation, epoch: Epoch(1 << 32) });
    assert_ne!(generation, Generation(0).next(group.members[1].id), "two that begin anew are strangers");

    // It leads by itself, and what it knew is still known.
    group.members[2].start().await;
    let me = group.members[2].id;
    group.leader_among(&[2]).await;
    let applied = group.members[2].raft().state().borrow().clone();
    let state = &applied.state;
    assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [me]);
    assert_eq!((state.epoch, state.settings.max_lag_on_failover), (Epoch(1 << 32), 4711));
    assert!(matches!(&state.phase, Phase::Preparing { reason: PrepareReason::Recovery, .. }));
    assert_eq!(state.accepted_loss().and_then(|accepted| accepted.to), Some(me));
    assert_eq!((state.history.len(), state.ledger.entries.len()), (1, 1));
    assert_eq!(group.members[2].raft().status().voters, BTreeSet::from([me]));
    let term = group.members[2].raft().status().term;

    // The old majority comes back: it is a group of its own, and neither reaches the other.
    group.members[0].start().await;
    group.members[1].start().await;
    group.leader_among(&[0, 1]).await;
    let refused = group.members[0].raft().admit(Some(&group.members[2].raft().identity()), None);
    assert!(refused.expect_err("a stranger").message().contains("generation"));
    let refused = group.members[2].raft().admit(Some(&group.members[0].raft().identity()), None);
    assert!(refused.expect_err("a stranger").message().contains("generation"));
    // None of their stores is admitted.
    let old = ClusterCommand::Admit(recorded(&group.members[0]));
    let outcome = group.members[2].raft().propose(old, LIMIT).await.expect("propose").outcome;
    assert!(matches!(&outcome, Outcome::Refused(why) if why.contains("removed")), "{outcome:?}");
    assert_eq!(group.members[2].raft().status().term, term);
    group.members[0].stop().await;
    group.members[1].stop().await;

    // New stores under the old names join, once they have learned the generation.
    for name in ["n0", "n1"] {
        let mut member = Member::new(name);
        member.start().await;
        member.raft().set_generation(Generation(group.members[2].raft().identity().generation));
        let (id, node) = (member.id, member.node());
        let admit = ClusterCommand::Admit(recorded(&member));
        let outcome = group.members[2].raft().propose(admit, LIMIT).await.expect("propose").outcome;
        assert_eq!(outcome, Outcome::Done);
        group.members[2].raft().add_learner(id, node, LIMIT).await.expect("a learner");
        group.members.push(member);
    }
    let voters = [2, 3, 4].map(|at: usize| group.members[at].id);
    group.members[2].raft().change_voters(BTreeSet::from(voters), true, LIMIT).await.expect("voters");
    eventually("the new members have the state", || {
        let has = |at: usize| group.members[at].raft().state().borrow().state.members.len() == 3;
        (has(3) && has(4)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn begun_anew_again_it_is_yet_another_generation() {
    let mut group = established().await;
    for member in &mut group.members {
        member.stop().await;
    }
    recover(&group.members[1]);
    let again = recover(&group.members[1]);
    let me = group.members[1].id;
    let generation = Generation(0).next(me).next(me);
    assert_eq!(again, Recovered { generation, epoch: Epoch(2 << 32) });
    group.members[1].start().await;
    group.leader_among(&[1]).await;
}

#[tokio::test]
async fn a_store_without_a_cluster_is_refused() {
    let mut member = Member::new("n0");
    member.start().await;
    member.stop().await;
    let (hard, _) = HardStateFile::open_or_create(member.dir.path()).expect("open");
    let error = Survivor::open(member.dir.path(), &hard).expect_err("nothing in it");
    assert_eq!(error.to_string(), "refused: this member never belonged to a cluster");
}
