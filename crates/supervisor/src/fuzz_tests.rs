//! What strangers send to a member, and what operators write into its files: changed by seed (`rhone_fuzz`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use rhone_consensus::command::{ClusterCommand, Grant, Member, MemberKind, PrepareReason, WallTime as At};
use rhone_consensus::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId, Replica};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::proto::Identity as Caller;
use rhone_consensus::settings::Settings;
use rhone_consensus::state::ClusterState;
use rhone_consensus::tags::Tags;
use rhone_fuzz::Fuzz;
use rhone_pgctl::parameters::Parameter;
use rhone_pgctl::settings::check_parameters;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};
use tonic::codegen::{Service, http};

use crate::api::admin_service;
use crate::api::proto::v1;
use crate::civil::WallTime;
use crate::config::{Address, Config, Environment, units};
use crate::decide;
use crate::doctor::Exam;
use crate::import::{Choices, translate};
use crate::runtime::shared::{TableRow, table_of_rows};
use crate::runtime::{codec, found};
use crate::settings::{as_toml, change, from_toml};
use crate::status::fake::FakeOperator;
use crate::tls::authority::Authority;
use crate::tls::{Certificate, Identity};
use crate::view::{ClusterView, Heard, Instance, Moment, Report, Revoked, ServerFacts, Stream, VoterReport};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn head(text: &str) -> String {
    text.chars().take(24).collect()
}

const NOW: Moment = Moment(1_000_000_000_000);

fn members() -> Vec<Member> {
    let member = |node: u64| Member {
        node: NodeId(node),
        name: format!("pg-{node}"),
        kind: if node == 4 { MemberKind::Witness } else { MemberKind::Data },
        incarnation: Incarnation(u128::from(node)),
        address: format!("10.0.0.{node}:7400"),
        postgres: format!("10.0.0.{node}:5432"),
        http: format!("10.0.0.{node}:8008"),
        priority: 50,
        tags: Tags { labels: [("zone".to_owned(), "a".to_owned())].into(), ..Tags::default() },
    };
    (1..=4).map(member).collect()
}

fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition::new(Timeline::new(timeline), Lsn::new(lsn))
}

/// A cluster as it is founded, prepared, granted, established, and prepared again.
fn states() -> Vec<ClusterState> {
    let standbys = [2, 3].map(|n| Replica { node: NodeId(n), data: DataId(n) }).into();
    let prepare = |reason| ClusterCommand::Prepare { reason, at: At(0) };
    let commands = [
        ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: members(),
            settings: Settings::default(),
        },
        ClusterCommand::SetSystemId(SystemId::new(7)),
        prepare(PrepareReason::Founding),
        ClusterCommand::Grant(Grant {
            epoch: Epoch(3),
            owner: NodeId(1),
            data: DataId(1),
            base: at(1, 0x300_0060),
            timeline: Timeline::new(2),
            policy: PolicyKind::Quorum { required: 1, standbys },
            evidence: Vec::new(),
            lost: None,
        }),
        ClusterCommand::Established {
            epoch: Epoch(3),
            timeline: Timeline::new(2),
            switch: Lsn::new(0x300_0060),
            gap_ms: 10,
            at: At(0),
        },
        ClusterCommand::AddPolicy { epoch: Epoch(3), kind: PolicyKind::Async { max_lag: 1 << 20 } },
        prepare(PrepareReason::OwnerSilent { silent_ms: 700 }),
    ];
    let mut state = ClusterState::default();
    let mut states = Vec::new();
    for (command, index) in commands.iter().zip(1..) {
        state.apply(LogIndex(index), command);
        states.push(state.clone());
    }
    states
}

fn report(node: u64) -> Report {
    let primary = Instance::Primary { epoch: Epoch(3), position: at(2, 0x301_0000), gate_open: true };
    let standby = Instance::Standby {
        position: at(2, 0x301_0000),
        upstream: Some(NodeId(1)),
        streaming: true,
        idle_ms: 3,
        wal_gone: false,
    };
    Report {
        instance: if node == 1 { primary } else { standby },
        activity: None,
        voter: VoterReport {
            held: Epoch(7),
            silent_ms: Some(900),
            aged_for: Some(Epoch(7)),
            heard: Some(Heard { epoch: Epoch(3), lsn: Lsn::new(0x301_0000) }),
            membership: LogIndex(1),
        },
        promise: Epoch(3),
        leaving: false,
        down: (node == 1).then(|| (Epoch(3), "it ended".to_owned())),
        system_id: Some(SystemId::new(7)),
        data: Some(DataId(node)),
        streams: [(DataId(2), Stream { live: true, caught_up: true })].into(),
        secured: Some(LogIndex(4)),
        highest_timeline: Timeline::new(2),
        lease_left_ms: Some(1200),
        counts_by: Some((Epoch(3), LogIndex(0))),
        version: Some("15.18".to_owned()),
        left: Some(at(2, 0x302_0000)),
        note: Some("next in line".to_owned()),
        server: ServerFacts { refused_lines: vec!["a line".to_owned()], ..ServerFacts::default() },
    }
}

/// Whatever members tell the leader, it decides; and what it decides is taken or refused with words, and breaks
/// nothing of the state.
#[test]
fn fuzz_reports_and_what_is_decided_by_them() {
    let rows = |age_ms: u64| -> Vec<Vec<u8>> {
        let row = |node| TableRow { node: NodeId(node), age_ms, report: report(node) };
        (1..=4).map(|node| codec::pack(&row(node))).collect()
    };
    let answers: Vec<(NodeId, Revoked)> = [2, 3]
        .map(|node| {
            let revoked = Revoked {
                epoch: Epoch(7),
                position: Some(at(2, 0x301_0000 + node)),
                data: DataId(node),
                able: true,
                highest_timeline: Timeline::new(2),
            };
            (NodeId(node), revoked)
        })
        .into();
    let answers: Vec<Vec<u8>> = answers.iter().map(codec::pack).collect();
    let corpus = [10, 5000].map(|age| rhone_fuzz::join(rows(age).into_iter().chain(answers.clone())));
    let (states, voters) = (states(), [(1..=3).map(NodeId).collect::<BTreeSet<_>>()]);
    Fuzz::new("reports", corpus).cases(400).run(|bytes| {
        let parts = rhone_fuzz::parts(bytes);
        let rows = parts.iter().filter_map(|part| codec::unpack::<TableRow>(part)).collect();
        let answers = parts.iter().filter_map(|part| codec::unpack::<(NodeId, Revoked)>(part));
        let reports = table_of_rows(rows, NOW);
        let revoked: BTreeMap<_, _> = answers.map(|(node, answer)| (node, (NOW, answer))).collect();
        let decide = |state: &ClusterState| {
            let view = ClusterView {
                state,
                voters: &voters,
                reports: &reports,
                revoked: &revoked,
                granted_since: Some(Moment(NOW.0 - 9_000_000_000)),
            };
            let decision = decide::cluster(&view, NOW);
            if let decide::ClusterDecision::Propose(command) = &decision {
                let mut next = state.clone();
                next.apply(LogIndex(99), command);
                assert_eq!(next.broken_invariant(), None, "{command:?}");
            }
            head(&format!("{decision:?}"))
        };
        states.iter().map(decide).collect::<Vec<_>>()
    });
}

/// What supervisors say, and what travels packed inside of it.
fn said() -> Vec<Vec<u8>> {
    let member = members().remove(0);
    let from = Some(Caller {
        cluster: "main".to_owned(),
        node_id: 2,
        incarnation: vec![7; 16],
        protocol_version: 1,
        protocol_oldest: 1,
        ..Caller::default()
    });
    let hello = v1::HelloReply {
        from: from.clone(),
        name: "pg-2".to_owned(),
        store: v1::StoreState::Empty.into(),
        kind: "data".to_owned(),
        priority: 50,
        peers: vec!["10.0.0.1:7400".to_owned()],
        tags: codec::pack(&member.tags),
        ..v1::HelloReply::default()
    };
    let report = v1::ReportRequest {
        from: from.clone(),
        report: codec::pack(&report(1)),
        replication_secret: b"secret".to_vec(),
        aside: Some(v1::Aside { node: 0, replayed_lsn: Some(0x301_0000), crash_recovery: true }),
    };
    vec![
        hello.encode_to_vec(),
        report.encode_to_vec(),
        v1::JoinRequest { from: from.clone(), member: codec::pack(&member) }.encode_to_vec(),
        v1::RehearseRequest { from: from.clone(), settings: codec::pack(&Settings::default()) }
            .encode_to_vec(),
        v1::RenewRequest { from: from.clone(), epoch: 3, seq: 9, flushed_lsn: 1 << 40, membership: 1, to: 2 }
            .encode_to_vec(),
        v1::PerformRequest { from, epoch: 3, work: 2, started_ms: 5, data_id: 0 }.encode_to_vec(),
        codec::pack(&Exam::default()),
        codec::pack(&vec![Parameter::default()]),
    ]
}

#[test]
fn fuzz_what_supervisors_say_to_each_other() {
    let founded = states().remove(0);
    Fuzz::new("agent", said()).words(&["data", "witness", "pg-1"]).cases(4000).run(|bytes| {
        let mut told = Vec::new();
        if let Ok(hello) = v1::HelloReply::decode(bytes) {
            let answers = BTreeMap::from([("10.0.0.1:7400".to_owned(), Some(hello.clone()))]);
            told.push(head(&format!("{:?}", found::verdict("pg-1", &answers))));
            told.push(format!("{}", found::member_of_hello(&hello).is_some()));
        }
        if let Ok(request) = v1::JoinRequest::decode(bytes)
            && let Some(member) = codec::unpack::<Member>(&request.member)
        {
            let mut state = founded.clone();
            told.push(head(&format!("{:?}", state.apply(LogIndex(2), &ClusterCommand::Admit(member)))));
            assert_eq!(state.broken_invariant(), None);
        }
        if let Ok(request) = v1::RehearseRequest::decode(bytes)
            && let Some(settings) = codec::unpack::<Settings>(&request.settings)
        {
            let timing = settings.timing;
            assert!(timing.serve_ns() <= timing.aged_ns());
            told.push(settings.flat().len().to_string());
        }
        let report = v1::ReportRequest::decode(bytes).ok();
        told.push(
            report
                .map_or("", |it| if codec::unpack::<Report>(&it.report).is_some() { "a" } else { "b" })
                .into(),
        );
        let decoded = [
            v1::RenewRequest::decode(bytes).is_ok(),
            v1::PerformRequest::decode(bytes).is_ok(),
            v1::RevokeReply::decode(bytes).is_ok_and(|it| codec::unpack::<Revoked>(&it.revoked).is_some()),
            codec::unpack::<Exam>(bytes).is_some(),
            codec::unpack::<Vec<Parameter>>(bytes).is_some(),
        ];
        (told, decoded)
    });
}

/// Each method of the service that operators call, with the message as it comes from the network.
const METHODS: [&str; 22] = [
    "Status",
    "Explain",
    "History",
    "Switchover",
    "CancelSwitchover",
    "Failover",
    "Pause",
    "Resume",
    "Fence",
    "Unfence",
    "Settings",
    "SettingsHistory",
    "ChangeSettings",
    "Reload",
    "Restart",
    "Reinit",
    "RemoveMember",
    "PromoteMember",
    "DemoteMember",
    "Doctor",
    "Dsn",
    "Events",
];

fn admin_requests() -> Vec<(u8, Vec<u8>)> {
    let (key, by) = ("4711".to_owned(), "ann@pg-1".to_owned());
    let switchover = v1::SwitchoverRequest {
        idempotency_key: key.clone(),
        expected_epoch: Some(7),
        to: Some("pg-2".to_owned()),
        no_wait: true,
        at_ms: Some(1_795_245_180_123),
        after_ms: None,
        by: by.clone(),
    };
    let failover = v1::FailoverRequest {
        idempotency_key: key.clone(),
        to: Some("pg-2".to_owned()),
        accept_data_loss: true,
        ..v1::FailoverRequest::default()
    };
    let diff = v1::SettingDiff { key: "sync".to_owned(), before: None, after: Some("quorum".to_owned()) };
    let change = v1::ChangeSettingsRequest {
        changes: vec![diff],
        expected_version: Some(1),
        revert_to: Some(2),
        by,
        ..v1::ChangeSettingsRequest::default()
    };
    let member = v1::MemberRequest {
        name: "pg-2".to_owned(),
        expected_epoch: Some(7),
        ..v1::MemberRequest::default()
    };
    let restart = v1::RestartRequest { name: "pg-2".to_owned(), started_ms: Some(5), ..Default::default() };
    let fence = v1::FenceRequest { name: "pg-3".to_owned(), hand_over: true, ..Default::default() };
    vec![
        (0, Vec::new()),
        (2, v1::HistoryRequest { limit: 3 }.encode_to_vec()),
        (3, switchover.encode_to_vec()),
        (5, failover.encode_to_vec()),
        (8, fence.encode_to_vec()),
        (12, change.encode_to_vec()),
        (13, member.encode_to_vec()),
        (14, restart.encode_to_vec()),
        (20, v1::DsnRequest { role: 2 }.encode_to_vec()),
        (21, v1::EventsRequest { follow: true }.encode_to_vec()),
    ]
}

#[test]
fn fuzz_the_operators_service() {
    let framed = |payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&[0], length.as_slice(), payload].concat()
    };
    // Which method, whether the frame is made anew around what follows, and that.
    let corpus = admin_requests().into_iter().flat_map(|(method, body)| {
        [[&[method, 1], body.as_slice()].concat(), [&[method, 0], framed(&body).as_slice()].concat()]
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    Fuzz::new("Admin", corpus).words(&["pg-1", "postgres.work_mem", "timing"]).cases(600).run(|bytes| {
        let (head_bytes, rest) = bytes.split_at(bytes.len().min(2));
        let method = METHODS[usize::from(head_bytes.first().copied().unwrap_or(0)) % METHODS.len()];
        let body =
            if head_bytes.get(1).is_some_and(|byte| byte % 2 == 1) { framed(rest) } else { rest.to_vec() };
        let request = http::Request::post(format!("http://pg-1/rhone.v1.Admin/{method}"))
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(axum::body::Body::from(body)))
            .expect("a request");
        let mut service = admin_service(Arc::new(FakeOperator::default()));
        let response = runtime.block_on(service.call(request)).expect("an answer");
        let status = tonic::Status::from_header_map(response.headers());
        if let Some(status) = &status {
            assert!(!status.message().is_empty(), "{method}: {:?} without words", status.code());
        }
        (method, status.map(|status| head(status.message())))
    });
}

#[test]
fn fuzz_the_configuration() {
    let corpus = [
        include_str!("../../../deploy/rhone.example.toml").to_owned(),
        "cluster = \"main\"\n[node]\nname = \"w\"\nkind = \"witness\"\nstate-dir = \"/s\"\npeers = [\"127.0.0.1:7400\"]\n\
         %%\nRHONE_NODE_NAME=other\nRHONE_NODE_PEERS=127.0.0.1:1,127.0.0.2:1\nRHONE_BOOTSTRAP_POSTGRES_WORK_MEM=4MB\n"
            .to_owned(),
        "cluster = \"main\"\n[node]\nname = \"a\"\nstate-dir = \"/s\"\npeers = [\"127.0.0.1:7400\"]\n[postgres]\n\
         data-dir = \"/d\"\n[bootstrap.timing]\npreset = \"fast\"\nlease = \"900ms\"\ndrift = \"2.5%\"\n[node.tags]\n\
         delay = \"1h\"\n%%\nRHONE_NODE_TAGS_DELAY=2h\nRHONE_PROXY_WAIT=5s\n"
            .to_owned(),
    ];
    let words = [
        "[",
        "]",
        "\"",
        "[[",
        "= ",
        "0",
        "RHONE_",
        "=",
        ",",
        "18446744073709551615d",
        "\n%%\n",
        "inf",
        "[::1]:0",
    ];
    Fuzz::new("rhone.toml", corpus).words(&words).cases(250).run(|bytes| {
        let text = text(bytes);
        let (file, variables) = text.split_once("\n%%\n").unwrap_or((&text, ""));
        let pairs = variables.lines().filter_map(|line| line.split_once('='));
        let env: Environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        match Config::parse(Path::new("rhone.toml"), file, &env) {
            Ok(config) => head(&config.node.name),
            Err(errors) => {
                let errors = errors.to_string();
                assert!(errors.len() > 20, "no words: {errors}");
                errors.lines().last().unwrap_or_default().chars().take(60).collect()
            }
        }
    });
}

#[test]
fn fuzz_settings_as_operators_write_them() {
    let corpus = [
        "sync=strict\nsync-required=2\nmax-lag-on-failover=16MB",
        "timing=fast\ntiming.lease=900ms\ntiming.drift=2.5%\ntiming.guard=1s",
        "postgres.Work_Mem=8MB\npostgres.pg_stat_statements.max=10\npostgres.log_line_prefix=%m \"x\" \n",
        "pg-hba=host all all all md5",
    ];
    Fuzz::new("settings", corpus).words(&["timing.", "postgres.", "%", "us", ".5", "d", "\""]).run(|bytes| {
        let text = text(bytes);
        let mut settings = Settings::default();
        let mut told = Vec::new();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let refused = change(&mut settings, key, Some(value)).err();
            assert!(refused.as_ref().is_none_or(|refusal| !refusal.reason.is_empty()));
            told.push(refused.map(|refusal| head(&refusal.reason)));
        }
        assert!(settings.timing.serve_ns() <= settings.timing.aged_ns());
        if check_parameters(&settings.postgres).is_err() {
            return told;
        }
        // What is shown is what is edited, and what is edited is set.
        let flat = settings.flat();
        assert_eq!(from_toml(&as_toml(&flat)).as_ref(), Ok(&flat));
        let mut again = Settings::default();
        for (key, value) in &flat {
            change(&mut again, key, Some(value)).expect("what is shown can be set");
        }
        assert_eq!(again, settings);
        told
    });
}

#[test]
fn fuzz_words_in_files_and_commands() {
    let corpus = [
        "500ms",
        "1.5s",
        "16MiB",
        "10.0.0.11:7400",
        "[::1]:1",
        "2026-11-21T20:00:00+01:00",
        "rhone://main/member/pg-1",
        "+10m",
    ];
    Fuzz::new("words", corpus).words(&["kB", "d", "T", "Z", ":", "rhone://"]).cases(4000).run(|bytes| {
        let text = text(bytes);
        let duration = units::parse_duration(&text).map_err(|why| head(&why));
        let size = units::parse_size(&text).map_err(|why| head(&why));
        let address = text.parse::<Address>().map_err(|why| head(&why));
        if let Ok(address) = &address {
            assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(address));
        }
        if let Ok(time) = WallTime::from_rfc3339(&text) {
            assert_eq!(WallTime::from_rfc3339(&time.to_string()), Ok(time), "{text}");
        }
        if let Some(identity) = Identity::parse(&text) {
            assert_eq!(Identity::parse(&identity.to_string()), Some(identity));
        }
        (duration.is_ok(), size.is_ok(), address.map(|it| it.ip().is_some()))
    });
}

#[test]
fn fuzz_patronis_configuration() {
    let corpus = [include_str!("import/debian.yml"), include_str!("import/spilo.yml")];
    Fuzz::new("patroni.yml", corpus).words(&["- ", ": ", "&a ", "*a", "\n  ", "|", "{", "}"]).cases(300).run(
        |bytes| match translate(&text(bytes), &Choices::default()) {
            Ok(translation) => translation.notes.len().to_string(),
            Err(why) => {
                assert!(!why.is_empty());
                head(&why)
            }
        },
    );
}

#[test]
fn fuzz_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::in_folder(folder.path());
    authority.init("main", 30).expect("a CA");
    let pem = std::fs::read(authority.certificate_file()).expect("its certificate");
    let der =
        <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(&pem);
    Fuzz::new("certificate", [der.expect("PEM").to_vec()]).words(&["rhone://main/member/pg-1"]).run(
        |bytes| match Certificate::read(&bytes.into()) {
            Ok(certificate) => head(&certificate.subject),
            Err(why) => {
                assert!(!why.is_empty());
                head(&why)
            }
        },
    );
}
