//! What files and programs beside us may say: changed by seed (`rhone_fuzz`).

use rhone_fuzz::Fuzz;

use crate::control::ControlData;
use crate::datadir::PostmasterPid;
use crate::hba::{AccessRules, Gate};
use crate::parameters::Parameter;
use crate::settings::{
    policy_of, quote_setting, strip_auto_conf, synchronous_standby_names, value_in, version_of, with_include,
};
use crate::wal::{Lsn, SystemId, Timeline, TimelineHistory, WalPosition, timeline_of_wal_file};
use crate::{control, hba_line};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn fuzz_the_control_files_words() {
    Fuzz::new("pg_controldata", [control::tests::FIFTEEN])
        .words(&["\n", ":", "4294967296", "18446744073709551615", "FFFFFFFF/FFFFFFFF", "in production"])
        .run(|bytes| match ControlData::parse(&text(bytes)) {
            Ok(control) => format!("{} {}", control.state, control.can_rewind()),
            Err(error) => {
                let error = error.to_string();
                assert!(error.starts_with("read the control file: "), "{error}");
                error.chars().take(60).collect()
            }
        });
}

#[test]
fn fuzz_timeline_histories_and_the_names_of_wal_files() {
    let corpus = [
        "5|1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-21 07:00:00\n",
        "2|# a comment\n1\t0/28\treserved\n",
        "4294967295|1 FFFFFFFF/FFFFFFFF\n4294967294 0/0 x",
    ];
    Fuzz::new("history file", corpus).words(&["\n", "\t", "#", "/", "\u{b}", "4294967295"]).run(|bytes| {
        let text = text(bytes);
        let (tip, lines) = text.split_once('|').unwrap_or(("3", &text));
        let tip = Timeline::new(tip.parse().unwrap_or(3));
        let Ok(history) = TimelineHistory::parse(tip, lines) else { return None };
        let again = TimelineHistory::parse(tip, &history.render()).expect("what was rendered is read");
        assert_eq!(again, history);
        let tip = WalPosition::new(history.timeline, Lsn::new(u64::MAX));
        assert!(history.contains(tip));
        assert_eq!(history.divergence(&history).map(|end| end.timeline), Some(history.timeline));
        Some((history.ancestors.len(), history.is_tombstone(), history.begin().is_some()))
    });
    let names = ["000000050000000000000003", "0000001A.history", "000000050000000000000003.00000028.backup"];
    Fuzz::new("WAL file name", names).run(|bytes| timeline_of_wal_file(&text(bytes)).map(|t| t.get() % 4));
}

#[test]
fn fuzz_positions() {
    Fuzz::new("position", ["5:16/B374D848", "1:0/0", "4294967295:FFFFFFFF/FFFFFFFF"]).run(|bytes| {
        let text = text(bytes);
        if let Ok(at) = text.parse::<WalPosition>() {
            assert_eq!(at.to_string().parse(), Ok(at));
            return 1;
        }
        if let Ok(at) = text.parse::<Lsn>() {
            assert_eq!(at.to_string().parse(), Ok(at));
            return 2;
        }
        let Ok(system) = text.parse::<SystemId>() else { return 3 };
        assert_eq!(system.to_string().parse(), Ok(system));
        4
    });
}

#[test]
fn fuzz_postmaster_pid_and_managed_files() {
    let pid =
        "4711\n/var/lib/postgresql/15/main\n1795245180\n5432\n/var/run/postgresql\n*\n  5432001  0\nready\n";
    Fuzz::new("postmaster.pid", [pid, "-4711\n/data\n1795245180\n"])
        .run(|bytes| PostmasterPid::parse(&text(bytes)).map(|pid| (pid.port.is_some(), pid.accepts())));
    let managed =
        "rhone.policy = '12'\nrhone.settings = '3'\nwork_mem = '4MB'\nsearch_path = '''a'', b\\\\'\n";
    Fuzz::new("managed settings", [managed]).words(&["'", "''", "\\", "= '", "include 'rhone.conf'"]).run(
        |bytes| {
            let text = text(bytes);
            let value = value_in(&text, "work_mem");
            if let Some(value) = value.as_ref().filter(|value| !value.contains(['\n', '\r', '\t'])) {
                let line = format!("work_mem = {}", quote_setting(value));
                assert_eq!(value_in(&line, "work_mem").as_ref(), Some(value), "{line}");
            }
            let without = strip_auto_conf(&text);
            if let Some(without) = &without {
                assert_eq!(strip_auto_conf(without), None, "owned parameters are left");
            }
            if let Some(with) = with_include(&text) {
                assert_eq!(with_include(&with), None, "the include is put there twice");
            }
            (policy_of(&text).is_some(), version_of(&text).is_some(), value.is_some(), without.is_some())
        },
    );
    Fuzz::new("synchronous_standby_names", ["pg-1,pg-2", "a\"b,c"]).run(|bytes| {
        let text = text(bytes);
        let names = synchronous_standby_names(2, text.split(','));
        // Each quote of a name is doubled: what is left of them pairs off.
        assert!(names.matches('"').count().is_multiple_of(2), "{names}");
        names.len() % 8
    });
}

#[test]
fn fuzz_pg_hba() {
    let lines = [
        "hostssl \"my db\", other +admins .example.org cert clientcert=verify-full # ours",
        "host all all 10.0.0.1 255.255.255.0 md5",
        "local all postgres peer map=rhone",
        "host all all ::1/128 trust",
    ];
    Fuzz::new("pg_hba line", lines).words(&["\"", ",", "#", " ", "\t", "\u{a0}", "/129", "all"]).run(
        |bytes| {
            let trouble = hba_line::trouble(&text(bytes));
            assert!(trouble.as_ref().is_none_or(|why| !why.is_empty()), "a refusal without words");
            trouble.map(|why| why.chars().take(24).collect::<String>())
        },
    );
    let rules = AccessRules {
        superuser: "postgres".to_owned(),
        os_users: vec!["postgres".to_owned()],
        replicator: "rhone_replicator".to_owned(),
        rewinder: "rhone_rewinder".to_owned(),
        lines: None,
        ident_lines: None,
    };
    let present = rules.render_hba(Gate::Closed, "host all all all md5\n").expect("plain names");
    Fuzz::new("pg_hba.conf", [present]).words(&["\n", "reject", "begin", "end"]).run(|bytes| {
        let text = text(bytes);
        let open = rules.render_hba(Gate::Open, &text).expect("no line is the user's");
        assert_eq!(
            rules.render_hba(Gate::Open, &open).expect("as before"),
            open,
            "each rendering adds to it"
        );
        let closed = rules.render_hba(Gate::Closed, &text).expect("no line is the user's");
        assert_eq!((Gate::of(&open), Gate::of(&closed)), (Gate::Open, Gate::Closed));
        Gate::of(&text) == Gate::Open
    });
}

#[test]
fn fuzz_values_of_parameters() {
    let size = Parameter {
        name: "shared_buffers".to_owned(),
        unit: Some("8kB".to_owned()),
        context: "postmaster".to_owned(),
        kind: "integer".to_owned(),
        least: Some("16".to_owned()),
        greatest: Some("1073741823".to_owned()),
        words: Vec::new(),
        setting: "16384".to_owned(),
    };
    let time = Parameter { unit: Some("ms".to_owned()), kind: "real".to_owned(), ..size.clone() };
    let word =
        Parameter { kind: "enum".to_owned(), words: vec!["on".into(), "replica".into()], ..size.clone() };
    let truth = Parameter { kind: "bool".to_owned(), ..size.clone() };
    let values = ["128MB", "1.5 GB", "0x1F", "1e3", "-1", "on", "replica", "10min", "NaN", "inf"];
    Fuzz::new("parameter", values).words(&["kB", "min", "e", "0x", ".", "us", "tru"]).run(|bytes| {
        let text = text(bytes);
        [&size, &time, &word, &truth].map(|parameter| match parameter.check(&text) {
            Ok(checked) => {
                assert!(checked.number.is_none_or(f64::is_finite), "{text} is {checked:?}");
                String::new()
            }
            Err(why) => why.chars().take(12).collect(),
        })
    });
}
