//! What strangers send to Raft's port, and what a damaged disk holds: changed by seed (`rhone_fuzz`).

use std::sync::Arc;

use prost::Message;
use rhone_fuzz::Fuzz;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::command::{
    ClusterCommand, Grant, Handover, Member, MemberKind, Outcome, PrepareReason, Scheduled, WallTime,
};
use crate::identity::{Generation, Identity, Run, Session};
use crate::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId, Replica};
use crate::policy::PolicyKind;
use crate::proto::{RaftRequest, RaftResponse};
use crate::raft::{
    AppendRequest, AppendResponse, Entry, LogId, SnapshotMeta, SnapshotRequest, SnapshotResponse, Stored,
    Vote, VoteRequest, VoteResponse,
};
use crate::settings::{Settings, SyncMode, Timing, differences};
use crate::state::ClusterState;
use crate::store::hard::{HardState, HardStateFile};
use crate::store::slot;
use crate::transport::guard::Guard;
use crate::transport::{Me, PreVoteRequest, PreVoteResponse};

type Answer<T> = Result<T, openraft::error::RaftError<NodeId>>;
type SnapshotAnswer =
    Result<SnapshotResponse, openraft::error::RaftError<NodeId, openraft::error::InstallSnapshotError>>;

fn member(node: u64) -> Member {
    Member {
        node: NodeId(node),
        name: format!("pg-{node}"),
        kind: if node == 3 { MemberKind::Witness } else { MemberKind::Data },
        incarnation: Incarnation(u128::from(node)),
        address: format!("10.0.0.{node}:7400"),
        postgres: format!("10.0.0.{node}:5432"),
        http: format!("10.0.0.{node}:8008"),
        priority: 50,
        tags: crate::tags::Tags::default(),
    }
}

fn grant(epoch: u64, timeline: u32) -> ClusterCommand {
    let standbys = [Replica { node: NodeId(2), data: DataId(2) }].into();
    ClusterCommand::Grant(Grant {
        epoch: Epoch(epoch),
        owner: NodeId(1),
        data: DataId(1),
        base: WalPosition::new(Timeline::new(timeline - 1), Lsn::new(0x300_0060)),
        timeline: Timeline::new(timeline),
        policy: PolicyKind::Quorum { required: 1, standbys },
        evidence: Vec::new(),
        lost: Some((Lsn::new(1), Lsn::new(2))),
    })
}

/// The life of a small cluster.
fn commands() -> Vec<ClusterCommand> {
    let settings = Settings { sync: SyncMode::Quorum, sync_required: Some(1), ..Settings::default() };
    let at = WallTime(1_795_245_180_123);
    let scheduled = Scheduled { from: NodeId(1), to: Some(NodeId(2)), at, by: "ann@pg-1".to_owned() };
    let handover = Handover { epoch: Epoch(3), to: Some(NodeId(2)), leaving: false };
    vec![
        ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: (1..=3).map(member).collect(),
            settings: settings.clone(),
        },
        ClusterCommand::SetSystemId(SystemId::new(7)),
        ClusterCommand::Prepare { reason: PrepareReason::Founding, at },
        grant(3, 2),
        ClusterCommand::Established {
            epoch: Epoch(3),
            timeline: Timeline::new(2),
            switch: Lsn::new(0x300_0060),
            gap_ms: 300,
            at,
        },
        ClusterCommand::AddPolicy { epoch: Epoch(3), kind: PolicyKind::Async { max_lag: 1 } },
        ClusterCommand::NarrowPolicies { epoch: Epoch(3), number: LogIndex(6) },
        ClusterCommand::Schedule(Some(scheduled)),
        ClusterCommand::SetHandover(Some(handover)),
        ClusterCommand::SetFenced { node: NodeId(2), fenced: true },
        ClusterCommand::ChangeSettings {
            expected: 1,
            settings: Box::new(Settings::default()),
            by: "ann@pg-1".to_owned(),
            at,
        },
        ClusterCommand::SettleTiming { epoch: Epoch(3), version: LogIndex(11) },
        ClusterCommand::Admit(member(4)),
        ClusterCommand::SetLearner { node: NodeId(4), learner: true },
        ClusterCommand::Remove(NodeId(4)),
        ClusterCommand::Prepare { reason: PrepareReason::OperatorTo { to: NodeId(2) }, at },
        grant(16, 3),
        ClusterCommand::RecordLeft { node: NodeId(1), end: WalPosition::default() },
    ]
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(4, NodeId(1)), index)
}

/// Decodes, and holds that what was decoded is encoded to the same value again.
fn round<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> String {
    match codec::decode::<T>(bytes) {
        Ok(value) => {
            let once = codec::encode(&value).expect("what was read is written");
            let again = codec::decode::<T>(&once).expect("what was written is read");
            assert_eq!(codec::encode(&again).expect("again"), once, "it changes on the way");
            "read".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

fn packed<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value).expect("encode")
}

#[test]
fn fuzz_rafts_messages() {
    let vote = Vote::new_committed(4, NodeId(1));
    let entries = commands().into_iter().zip(1..).map(|(command, index)| Entry {
        log_id: log_id(index),
        payload: openraft::EntryPayload::Normal(command),
    });
    let append =
        AppendRequest { vote, prev_log_id: Some(log_id(1)), entries: entries.collect(), leader_commit: None };
    let nodes = (1..=3).map(|node| (NodeId(node), crate::raft::PeerNode::default()));
    let voters = vec![(1..=3).map(NodeId).collect()];
    let membership = openraft::Membership::new(voters, nodes.collect::<std::collections::BTreeMap<_, _>>());
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(9)),
        last_membership: Stored::new(Some(log_id(1)), membership),
        snapshot_id: "9".to_owned(),
    };
    let snapshot = SnapshotRequest { vote, meta, offset: 0, data: vec![7; 300], done: true };
    let ask = VoteRequest { vote, last_log_id: Some(log_id(9)) };
    let answered: Answer<VoteResponse> = Ok(VoteResponse::new(vote, Some(log_id(9)), true));
    let appended: Answer<AppendResponse> = Ok(AppendResponse::Success);
    let installed: SnapshotAnswer = Ok(SnapshotResponse { vote });
    let corpus = [
        packed(&append),
        packed(&snapshot),
        packed(&ask),
        packed(&answered),
        packed(&appended),
        packed(&installed),
        packed(&PreVoteRequest { last_log: Some(log_id(9)) }),
        packed(&PreVoteResponse { granted: true }),
    ];
    Fuzz::new("Raft message", corpus).cases(4000).run(|bytes| {
        [
            round::<AppendRequest>(bytes),
            round::<SnapshotRequest>(bytes),
            round::<VoteRequest>(bytes),
            round::<Answer<VoteResponse>>(bytes),
            round::<Answer<AppendResponse>>(bytes),
            round::<SnapshotAnswer>(bytes),
            round::<PreVoteRequest>(bytes),
            round::<PreVoteResponse>(bytes),
        ]
    });
}

#[test]
fn fuzz_who_calls() {
    let me = |node: u64| {
        let identity = Identity {
            cluster: "main".to_owned(),
            generation: Generation(2),
            node: NodeId(node),
            incarnation: Incarnation(u128::from(node)),
            session: Session(5),
        };
        Me::new(identity, Run(node), Some(SystemId::new(77)))
    };
    let guard = Guard::new(Arc::new(me(1)));
    let call = RaftRequest { from: Some(me(2).message()), to: 1, payload: vec![3, 1].into() };
    let answer = RaftResponse { payload: vec![3, 1].into(), from: Some(me(2).message()) };
    let corpus = [call.encode_to_vec(), answer.encode_to_vec()];
    Fuzz::new("call", corpus).words(&["main", "\u{0}"]).cases(4000).run(|bytes| {
        let answered = RaftResponse::decode(bytes).is_ok();
        let Ok(call) = RaftRequest::decode(bytes) else { return (answered, "unreadable".to_owned()) };
        let known = |id: NodeId| (id.0 < 9).then_some(Incarnation(u128::from(id.0)));
        match guard.admit(call.from.as_ref(), Some(NodeId(call.to)), known) {
            Ok(node) => (answered, format!("in: {}", node.0 == 2)),
            Err(status) => {
                let why = status.message();
                assert!(why.len() > 10 && why.len() < 600, "{why}");
                (answered, why.chars().take(16).collect())
            }
        }
    });
}

#[test]
fn timings_beyond_all_bounds_saturate() {
    let most = u32::MAX;
    let far = Timing { lease_ms: most, drift_permille: most, guard_ms: most, ..Timing::default() };
    assert_eq!((far.serve_ns(), far.aged_ns()), (0, u64::MAX));
    let endless = Timing { lease_ms: most, ..Timing::default() };
    assert!(endless.serve_ns() < endless.aged_ns());
}

/// A leader's log is believed; that it cannot bring a member down, or break what must hold of the state, is checked
/// all the same.
#[test]
fn fuzz_commands_on_the_state() {
    let life = rhone_fuzz::join(commands().iter().map(packed));
    Fuzz::new("commands", [life]).cases(4000).run(|bytes| {
        let read = |part| codec::decode::<ClusterCommand>(part).ok();
        let commands: Vec<ClusterCommand> = rhone_fuzz::parts(bytes).into_iter().filter_map(read).collect();
        let mut state = ClusterState::default();
        let mut told = Vec::new();
        for (command, index) in commands.iter().zip(1..) {
            let before = state.clone();
            let outcome = state.apply(LogIndex(index), command);
            if let Outcome::Refused(reason) = &outcome {
                assert!(!reason.is_empty());
                assert_eq!(
                    packed(&before),
                    packed(&state),
                    "refused ({reason}), and yet it changed something"
                );
            }
            told.push(outcome != Outcome::Done);
            if let Some(broken) = state.broken_invariant() {
                panic!("{command:?}: {broken}");
            }
            let timing = [state.counting(), state.ageing()];
            assert!(timing[0].serve_ns() <= timing[1].aged_ns(), "served for longer than aged: {timing:?}");
            drop(differences(&before.settings, &state.settings));
        }
        let image = packed(&state);
        assert_eq!(packed(&codec::decode::<ClusterState>(&image).expect("its snapshot is read")), image);
        told
    });
}

#[test]
fn fuzz_what_the_disk_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, _) = HardStateFile::open_or_create(folder.path()).expect("a hard state");
    let image = slot::encode(9, &file.get()).expect("a slot");
    Fuzz::new("hard state", [image]).cases(1500).run(|bytes| {
        slot::decode::<HardState>(bytes).map(|(sequence, _)| sequence).map_err(|error| error.to_string())
    });
    let mut applied = ClusterState::default();
    for (command, index) in commands().iter().zip(1..) {
        applied.apply(LogIndex(index), command);
    }
    Fuzz::new("applied state", [packed(&applied)]).cases(3000).run(round::<ClusterState>);
}
