//! ✦ What an operator should fix: judged from what each member says of its own machine.
//!
//! Nothing here is acted on by Rhone: a finding is for a person, with what to type.

mod defects;

use std::collections::{BTreeMap, BTreeSet};

use rhone_pgctl::slots;
use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Data is at risk, or the cluster cannot do its work.
    Error,
    /// It works, and is worth a look.
    Warning,
}

/// One thing to fix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its `snake_case` code.
    pub code: String,
    /// The member that it is about; none: the cluster.
    pub member: Option<String>,
    /// In words.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Room on one file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// What is there: `the data directory`.
    pub what: String,
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a running Postgres says of what matters to a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerExam {
    /// `server_version_num`.
    pub version: u32,
    /// Settings by name: `fsync`, `full_page_writes`, `wal_log_hints`, `data_checksums`, `block_size`.
    pub settings: BTreeMap<String, String>,
    /// Databases whose collation was made by another version of the library: name, then and now.
    pub collations: Vec<(String, String, String)>,
    /// Slots that keep WAL: name, whether somebody streams from it, bytes kept, `wal_status`.
    pub slots: Vec<(String, bool, u64, String)>,
    /// The extensions that its databases use.
    pub used: BTreeSet<String>,
    /// The extensions whose files are here.
    pub available: BTreeSet<String>,
    /// Transactions that are prepared and older than an hour.
    pub prepared: u64,
    /// Lines of its configuration files that it does not take.
    pub refused: Vec<String>,
}

/// What a member says of its own machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exam {
    /// Its wall clock, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The C library's version; empty: not known.
    pub libc: String,
    /// The version of Rhone.
    pub rhone: String,
    /// Room where it writes.
    pub room: Vec<Room>,
    /// Days until its certificate expires; none: no TLS.
    pub certificate_days: Option<i64>,
    /// What its Postgres says; none: it runs none, or it does not answer.
    pub server: Option<ServerExam>,
    /// Why the dead-man that its configuration asks for cannot be set up; none: it can, or is not wanted.
    pub dead_man: Option<String>,
}

/// One member as it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whether it is to run Postgres now: no witness, not fenced.
    pub data: bool,
    /// What it said; else why there is no answer.
    pub exam: Result<Exam, String>,
    /// How long the answer took, in milliseconds.
    pub took_ms: u64,
    /// The asking member's wall clock halfway through, in milliseconds since 1970.
    pub clock_ms: u64,
}

/// Clocks further apart make logs and histories hard to read; nothing is decided by them.
const CLOCK_MS: u64 = 2000;

/// A round trip longer than a renewal's share of the suspicion time asks for calmer timings.
const FAR_MS: u64 = 50;

/// Less free than this is soon full: a failover keeps WAL aside, a clone needs the whole database again.
const ROOM_PERCENT: u64 = 10;

/// A slot that keeps more is worth a look: the default of `max_slot_wal_keep_size` is four times that.
const SLOT_BYTES: u64 = 1 << 30;

/// A slot of others that nobody uses is worth a look from one segment on: nobody may know of it any more.
const FOREIGN_SLOT_BYTES: u64 = 16 << 20;

/// A certificate that expires sooner is to be renewed.
const CERTIFICATE_DAYS: i64 = 21;

/// Judges what the members said.
pub fn judge(members: &BTreeMap<String, Asked>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, asked) in members {
        match &asked.exam {
            Err(why) => found.push(finding(
                Severity::Error,
                "unreachable",
                Some(name),
                format!("does not answer: {why}"),
                "start rhone there, or look at the network; `rhone member remove` takes it out for good",
            )),
            Ok(exam) => machine(name, asked, exam, &mut found),
        }
    }
    together(members, &mut found);
    found.sort();
    found
}

fn finding(severity: Severity, code: &str, member: Option<&String>, message: String, hint: &str) -> Finding {
    Finding { severity, code: code.to_owned(), member: member.cloned(), message, hint: hint.to_owned() }
}

fn machine(name: &String, asked: &Asked, exam: &Exam, found: &mut Vec<Finding>) {
    let mut warn = |code: &str, message: String, hint: &str| {
        found.push(finding(Severity::Warning, code, Some(name), message, hint));
    };
    let apart = exam.clock_ms.abs_diff(asked.clock_ms);
    if apart > CLOCK_MS {
        warn(
            "clock",
            format!("its clock is {} s away", apart / 1000),
            "run chrony or systemd-timesyncd: times in logs and history are hard to read",
        );
    }
    if asked.took_ms > FAR_MS {
        warn(
            "far",
            format!("its answer takes {} ms", asked.took_ms),
            "a cluster over Wi-Fi or two sites wants `rhone settings set timing=calm`",
        );
    }
    for room in &exam.room {
        if room.total > 0 && room.free / (room.total / 100).max(1) < ROOM_PERCENT {
            let percent = room.free / (room.total / 100).max(1);
            warn(
                "disk",
                format!("{} has {percent} % left", room.what),
                "make room: a full disk stops Postgres, and a new copy needs the whole database again",
            );
        }
    }
    if let Some(days) = exam.certificate_days.filter(|days| *days < CERTIFICATE_DAYS) {
        warn(
            "certificate",
            format!("its certificate expires in {days} days"),
            "`rhone certs issue` makes another; it is taken over without a restart",
        );
    }
    if let Some(why) = &exam.dead_man {
        warn(
            "dead_man",
            format!("its dead-man cannot be set up: {why}"),
            "give rhone CAP_NET_ADMIN and the kernel nf_tables, or remove postgres.dead-man",
        );
    }
    match &exam.server {
        Some(server) => postgres(name, server, found),
        None if asked.data => found.push(finding(
            Severity::Error,
            "postgres",
            Some(name),
            "its postgres does not answer".to_owned(),
            "`rhone status` shows what it does, and its log is in <data-dir>.rhone/postgres.log",
        )),
        None => {}
    }
}

fn postgres(name: &String, server: &ServerExam, found: &mut Vec<Finding>) {
    let is = |setting: &str, value: &str| server.settings.get(setting).is_some_and(|known| known == value);
    let mut add = |severity, code: &str, message: String, hint: &str| {
        found.push(finding(severity, code, Some(name), message, hint));
    };
    for setting in ["fsync", "full_page_writes"] {
        if is(setting, "off") {
            add(
                Severity::Error,
                setting,
                format!("{setting} is off: a crash destroys data"),
                "somebody set it on the server's command line: restart the member",
            );
        }
    }
    if is("wal_log_hints", "off") && is("data_checksums", "off") {
        add(
            Severity::Warning,
            "rewind",
            "it cannot be rewound: wal_log_hints and data checksums are off".to_owned(),
            "`rhone restart --rolling`: rhone sets wal_log_hints, which counts from the next start on",
        );
    }
    for (database, then, now) in &server.collations {
        add(
            Severity::Error,
            "collation",
            format!(
                "the collations of {database} were made by version {then} of their library, and {now} is installed"
            ),
            "REINDEX what sorts by text in it, then ALTER DATABASE … REFRESH COLLATION VERSION",
        );
    }
    for line in &server.refused {
        add(
            Severity::Warning,
            "not_taken",
            format!("its postgres does not take {line}"),
            "it goes on with what it had, and may not start again: correct the line, then `rhone reload`",
        );
    }
    if let Some((severity, message, hint)) = defects::known(server.version) {
        add(severity, "defect", message, &hint);
    }
    for (message, hint) in server.slots.iter().filter_map(slot_to_see) {
        add(Severity::Warning, "slot", message, &hint);
    }
    if server.prepared > 0 {
        add(
            Severity::Warning,
            "prepared",
            format!("{} prepared transactions are older than an hour", server.prepared),
            "COMMIT PREPARED or ROLLBACK PREPARED them: they hold locks and keep vacuum off",
        );
    }
}

/// Says what is to be seen to about a slot, and what to do.
fn slot_to_see((slot, active, kept, status): &(String, bool, u64, String)) -> Option<(String, String)> {
    let mb = kept >> 20;
    if status == "lost" {
        return Some((
            format!("the slot {slot} has lost its wal"),
            "its member is cloned anew when it comes back; drop the slot if it is not one of rhone's"
                .to_owned(),
        ));
    }
    if !slot.starts_with(slots::PREFIX) && !active && *kept > FOREIGN_SLOT_BYTES {
        return Some((
            format!("the slot {slot} is not one of rhone's, keeps {mb} MB of wal and is used by nobody"),
            format!(
                "start what reads from it; where nothing will, in psql there: SELECT pg_drop_replication_slot('{slot}')"
            ),
        ));
    }
    let streams = if *active { "lags behind" } else { "is used by nobody" };
    (*kept > SLOT_BYTES).then(|| {
        (
            format!("the slot {slot} keeps {mb} MB of wal and {streams}"),
            "bring its member back, remove it with `rhone member remove`, or drop the slot if it is not one of rhone's"
                .to_owned(),
        )
    })
}

/// What differs between members that should be alike.
fn together(members: &BTreeMap<String, Asked>, found: &mut Vec<Finding>) {
    let exams = || members.iter().filter_map(|(name, asked)| Some((name, asked.exam.as_ref().ok()?)));
    let servers = || exams().filter_map(|(name, exam)| Some((name, exam.server.as_ref()?)));
    let mut differ = |severity, code: &str, what: &str, values: BTreeMap<String, String>, hint: &str| {
        let distinct: BTreeSet<&String> = values.values().collect();
        if distinct.len() > 1 {
            let each: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value}")).collect();
            found.push(finding(severity, code, None, format!("{what} differ: {}", each.join(", ")), hint));
        }
    };
    let libc = exams()
        .filter(|(_, exam)| exam.server.is_some() && !exam.libc.is_empty())
        .map(|(name, exam)| (name.clone(), exam.libc.clone()));
    differ(
        Severity::Error,
        "libc",
        "the C libraries",
        libc.collect(),
        "text may sort differently, so that an index of one member is broken on another: bring all machines to one release",
    );
    let rhone = exams().map(|(name, exam)| (name.clone(), exam.rhone.clone()));
    differ(Severity::Warning, "rhone", "the versions of rhone", rhone.collect(), "finish the upgrade");
    let version = servers().map(|(name, server)| {
        (name.clone(), format!("{}.{}", server.version / 10_000, server.version % 10_000))
    });
    differ(
        Severity::Warning,
        "version",
        "the versions of postgres",
        version.collect(),
        "upgrade the standbys first, then `rhone switchover` and the rest",
    );
    let setting = |key: &'static str| {
        servers()
            .filter_map(move |(name, server)| Some((name.clone(), server.settings.get(key)?.clone())))
            .collect()
    };
    differ(
        Severity::Error,
        "block_size",
        "the page sizes",
        setting("block_size"),
        "a standby with another page size cannot replay: use packages of one build",
    );
    let all: BTreeSet<String> = servers().flat_map(|(_, server)| server.used.iter().cloned()).collect();
    for extension in all {
        let lacks: Vec<&str> = servers()
            .filter(|(_, server)| !server.available.contains(&extension))
            .map(|(name, _)| name.as_str())
            .collect();
        if !lacks.is_empty() {
            found.push(finding(
                Severity::Warning,
                "extension",
                None,
                format!(
                    "the extension {extension} is in use, and its files are missing on {}",
                    lacks.join(", ")
                ),
                "install its package there: after a failover queries that use it would fail",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exam() -> Exam {
        let settings = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("wal_log_hints", "on"),
            ("data_checksums", "off"),
            ("block_size", "8192"),
        ];
        Exam {
            clock_ms: 1_000_000,
            libc: "2.36".to_owned(),
            rhone: "0.1.0".to_owned(),
            room: vec![Room { what: "the data directory".to_owned(), free: 50 << 30, total: 100 << 30 }],
            server: Some(ServerExam {
                version: 150_018,
                settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                ..ServerExam::default()
            }),
            ..Exam::default()
        }
    }

    /// Three members that are well, after a change to what the second one says.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Asked), expected: &[&str]) {
        let asked = || Asked { data: true, exam: Ok(exam()), took_ms: 1, clock_ms: 1_000_000 };
        let mut members: BTreeMap<String, Asked> =
            ["n1", "n2", "n3"].map(|name| (name.to_owned(), asked())).into();
        change(members.get_mut("n2").expect("there"));
        let told: Vec<String> = judge(&members)
            .into_iter()
            .map(|f| format!("{:?} {} {}: {}", f.severity, f.code, f.member.unwrap_or_default(), f.message))
            .collect();
        assert_eq!(told, expected);
    }

    fn server(change: impl FnOnce(&mut ServerExam)) -> impl FnOnce(&mut Asked) {
        |asked| change(asked.exam.as_mut().expect("an exam").server.as_mut().expect("a server"))
    }

    fn its_machine(change: impl FnOnce(&mut Exam)) -> impl FnOnce(&mut Asked) {
        |asked| change(asked.exam.as_mut().expect("an exam"))
    }

    #[test]
    fn each_finding_is_found_and_nothing_else() {
        check(|_| {}, &[]);
        check(
            |asked| asked.exam = Err("connection refused".to_owned()),
            &["Error unreachable n2: does not answer: connection refused"],
        );
        check(|asked| asked.took_ms = 80, &["Warning far n2: its answer takes 80 ms"]);
        check(its_machine(|exam| exam.clock_ms += 5000), &["Warning clock n2: its clock is 5 s away"]);
        check(
            its_machine(|exam| exam.room[0].free = 5 << 30),
            &["Warning disk n2: the data directory has 5 % left"],
        );
        check(
            its_machine(|exam| exam.certificate_days = Some(3)),
            &["Warning certificate n2: its certificate expires in 3 days"],
        );
        check(its_machine(|exam| exam.server = None), &["Error postgres n2: its postgres does not answer"]);
        check(|asked| (asked.data, asked.exam.as_mut().expect("an exam").server) = (false, None), &[]);
        check(
            its_machine(|exam| "2.31".clone_into(&mut exam.libc)),
            &["Error libc : the C libraries differ: n1 2.36, n2 2.31, n3 2.36"],
        );
        check(
            its_machine(|exam| "0.2.0".clone_into(&mut exam.rhone)),
            &["Warning rhone : the versions of rhone differ: n1 0.1.0, n2 0.2.0, n3 0.1.0"],
        );
    }

    #[test]
    fn each_finding_of_postgres_is_found() {
        let set = |name: &'static str, value: &'static str| {
            server(move |s| drop(s.settings.insert(name.to_owned(), value.to_owned())))
        };
        check(set("fsync", "off"), &["Error fsync n2: fsync is off: a crash destroys data"]);
        check(
            set("wal_log_hints", "off"),
            &["Warning rewind n2: it cannot be rewound: wal_log_hints and data checksums are off"],
        );
        check(
            set("block_size", "16384"),
            &["Error block_size : the page sizes differ: n1 8192, n2 16384, n3 8192"],
        );
        check(
            server(|s| s.version = 150_014),
            &["Warning version : the versions of postgres differ: n1 15.18, n2 15.14, n3 15.18"],
        );
        check(
            server(|s| s.collations.push(("app".to_owned(), "2.31".to_owned(), "2.36".to_owned()))),
            &[
                "Error collation n2: the collations of app were made by version 2.31 of their library, and 2.36 is installed",
            ],
        );
        check(
            server(|s| s.refused.push("pg_hba.conf line 9: invalid IP mask".to_owned())),
            &["Warning not_taken n2: its postgres does not take pg_hba.conf line 9: invalid IP mask"],
        );
        check(
            server(|s| s.slots.push(("rhone_old".to_owned(), false, 3 << 30, "extended".to_owned()))),
            &["Warning slot n2: the slot rhone_old keeps 3072 MB of wal and is used by nobody"],
        );
        check(
            server(|s| s.version = 150_016),
            &[
                "Warning defect n2: it runs postgres 15.16: a standby of a primary of an older minor version may crash again and again in replay",
                "Warning version : the versions of postgres differ: n1 15.18, n2 15.16, n3 15.18",
            ],
        );
        check(
            server(|s| {
                s.used.insert("postgis".to_owned());
                s.available.insert("postgis".to_owned());
            }),
            &["Warning extension : the extension postgis is in use, and its files are missing on n1, n3"],
        );
        check(
            server(|s| s.prepared = 2),
            &["Warning prepared n2: 2 prepared transactions are older than an hour"],
        );
    }

    #[test]
    fn a_forgotten_slot_of_others_is_named_early() {
        let slot = |name: &'static str, active, kept: u64| {
            server(move |s| s.slots.push((name.to_owned(), active, kept, "reserved".to_owned())))
        };
        check(
            slot("pg_2", false, 20 << 20),
            &[
                "Warning slot n2: the slot pg_2 is not one of rhone's, keeps 20 MB of wal and is used by nobody",
            ],
        );
        check(slot("pg_2", false, 16 << 20), &[]); // a segment is nothing
        check(slot("debezium", true, 20 << 20), &[]); // it is used
        check(slot("rhone_pg2", false, 20 << 20), &[]); // a member that is away for a moment
        check(
            slot("debezium", true, 3 << 30),
            &["Warning slot n2: the slot debezium keeps 3072 MB of wal and lags behind"],
        );
    }
}
