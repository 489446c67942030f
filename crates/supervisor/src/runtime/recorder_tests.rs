use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, PrepareReason, WallTime as At};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::settings::Settings;
use rhone_consensus::state::ClusterState;

use super::*;
use crate::decide;
use crate::runtime::clock::Clock;
use crate::view::{Chores, Instance, Sources};

fn recorder(file: &Path) -> Recorder {
    let text = format!(
        "cluster = \"main\"\n[node]\nname = \"pg-1\"\npeers = [\"127.0.0.1:7400\"]\nrecorder = \"{}\"\n\
         [postgres]\ndata-dir = \"/data\"\n",
        file.display()
    );
    let config = Config::parse(Path::new("rhone.toml"), &text, &std::collections::BTreeMap::new());
    Recorder::start(&config.expect("sound"), Clock.into())
}

fn state() -> ClusterState {
    let mut settings = Settings::default();
    settings.postgres.insert("archive_command".to_owned(), "push --password=hush".to_owned());
    settings.pg_hba.push("host all all all ldap ldapbindpasswd=hush".to_owned());
    settings.pg_ident.push("office hush app".to_owned());
    let reason = Some(PrepareReason::OwnerDown { detail: "FATAL: invalid value: \"hush\"".to_owned() });
    ClusterState { settings, reason, ..ClusterState::default() }
}

fn member<'a>(state: &'a ClusterState, instance: &'a Instance) -> NodeView<'a> {
    NodeView {
        state,
        me: NodeId(1),
        instance,
        promise: Epoch(0),
        unfinished: None,
        copied: false,
        stranger: false,
        policy: None,
        secured: None,
        revoke: None,
        running: None,
        leaving: false,
        leave_now: false,
        behind: false,
        fenced_ahead: false,
        guardian: true,
        rewinds_failed: 0,
        start_failed: Some("hush"),
        sources: Sources::default(),
        chores: Chores::default(),
    }
}

/// Waits until the file holds so many lines.
fn lines(file: &Path, count: usize) -> Vec<Line> {
    for _ in 0..6000 {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') && text.lines().count() >= count {
            assert!(!text.contains("hush"), "a secret is recorded: {text}");
            return text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} never holds {count} lines", file.display());
}

#[test]
fn what_changes_is_written_once_without_secrets_and_decided_the_same_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("decisions.jsonl");
    let recorder = recorder(&file);
    let (state, instance, now) = (state(), Instance::Unusable("hush".to_owned()), Moment(1_000_000));
    let view = member(&state, &instance);
    for _ in 0..3 {
        recorder.member(&view, now, decide::node(&view, now));
    }
    let (reports, revoked) = Default::default();
    let seen =
        ClusterView { state: &state, voters: &[], reports: &reports, revoked: &revoked, granted_since: None };
    for _ in 0..3 {
        recorder.cluster(&seen, now, &decide::cluster(&seen, now));
    }
    // A decision that the rules would not take.
    recorder.member(&view, now, NodeDecision::Rest(Reason::Serving));
    let lines = lines(&file, 4);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(matches!(&lines[0], Line::Begin(begin) if begin.member == "pg-1" && begin.format == FORMAT));
    let again: Vec<_> = lines.iter().filter_map(Line::again).collect();
    let told: Vec<_> = again.iter().map(|a| (a.by.to_string(), a.reason, a.now.clone())).collect();
    assert_eq!(
        told,
        [
            ("member".to_owned(), "unusable", None),
            ("leader".to_owned(), "not_founded", None),
            ("member".to_owned(), "serving", Some("rests (unusable)".to_owned())),
        ]
    );
}

#[test]
fn what_cannot_be_written_is_dropped_and_counted_and_holds_nothing_up() {
    let recorder = recorder(Path::new("/dev/full"));
    let (state, instance) = (state(), Instance::Absent);
    let view = member(&state, &instance);
    // More than wait in line: each that finds no room is dropped at once.
    for n in 0..10 * QUEUE as u64 {
        let reason = if n % 2 == 0 { Reason::Serving } else { Reason::Streaming };
        recorder.member(&view, Moment(n), NodeDecision::Rest(reason));
    }
    let sink = recorder.0.expect("it records");
    for _ in 0..6000 {
        if sink.dropped.load(Ordering::Relaxed) == 10 * QUEUE as u64 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} of {} were dropped", sink.dropped.load(Ordering::Relaxed), 10 * QUEUE);
}

#[test]
fn a_file_goes_on_after_a_torn_line_and_is_never_larger_than_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("decisions.jsonl");
    std::fs::write(&path, "{\"member\":{\"at\"").expect("a torn line");
    let begin = Begin {
        format: FORMAT,
        rhone: "0.1.0".to_owned(),
        cluster: "main".to_owned(),
        member: "pg-1".to_owned(),
    };
    let dropped = Arc::new(AtomicU64::new(3));
    let mut writer =
        Writer { path: path.clone(), begin, file: None, dropped: Arc::clone(&dropped), failing: false };
    let (mut state, instance) = (state(), Instance::Absent);
    state.cluster = "x".repeat(100_000);
    let seen = MemberSeen::of(&member(&state, &instance));
    let decided = NodeDecision::Rest(Reason::Unusable);
    let line = Line::Member(Record { at: WallTime::from_ms(1), now: Moment(1), seen, decided });
    writer.write(&line).expect("written");
    let read = lines(&path, 3);
    assert!(matches!(read[..], [Line::Begin(_), Line::Dropped(3), Line::Member(_)]), "{} lines", read.len());
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    for _ in 0..60 {
        writer.write(&line).expect("written");
    }
    let size = |path: &Path| std::fs::metadata(path).expect("it is there").len();
    assert!(size(&path) <= FILE_LIMIT && size(&older(&path)) <= FILE_LIMIT);
    assert!(size(&path) + size(&older(&path)) > FILE_LIMIT);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2);
    assert!(matches!(lines(&path, 1).first(), Some(Line::Begin(_))));
}

#[test]
fn a_number_that_grows_makes_no_other_decision() {
    let prepare = |silent_ms| {
        let reason = PrepareReason::OwnerSilent { silent_ms };
        ClusterDecision::Propose(ClusterCommand::Prepare { reason, at: At(0) })
    };
    assert!(same(&prepare(700), &prepare(900)));
    let behind = |bytes| ClusterDecision::Wait(Wait::LagTooLarge { bytes, limit: 1 });
    assert!(same(&behind(2), &behind(3)));
    assert!(!same(&behind(2), &prepare(700)));
    assert!(!same(&behind(2), &ClusterDecision::Wait(Wait::Calm)));
}
