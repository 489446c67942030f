//! Looks at this member's machine and Postgres for `rhone doctor`, and asks the others to. Changes nothing, and
//! is done when somebody asks: never by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rhone_consensus::command::{Member, MemberKind};
use rhone_pgctl::connection::{Session, Target};
use rhone_pgctl::error::PgError;
use rhone_pgctl::refused::refused_lines;
use tokio_postgres::SimpleQueryMessage;

use super::operator::RuntimeOperator;
use crate::api::proto::v1::ExamineRequest;
use crate::civil::WallTime;
use crate::config::DeadMan;
use crate::doctor::{Asked, Exam, Finding, Room, ServerExam, Severity, judge};
use crate::guardian::rehearse_dead_man;
use crate::runtime::clock::wall_time;
use crate::runtime::local::target;
use crate::runtime::shared::Shared;
use crate::runtime::{codec, publish};

/// How long one question to Postgres may take.
const SQL_LIMIT: Duration = Duration::from_secs(2);

/// How long a member may take altogether.
const EXAM_LIMIT: Duration = Duration::from_secs(10);

/// Databases beyond these are not looked into.
const DATABASES: usize = 20;

/// Says what is so here.
pub async fn examine(shared: &Shared) -> Exam {
    let mut places = vec![("the state directory", shared.config.node.state_dir.clone())];
    let mut server = None;
    if let Some(postgres) = &shared.config.postgres {
        places.push(("the data directory", postgres.data_dir.clone()));
        places.push(("pg_wal", postgres.data_dir.join("pg_wal")));
        server = ask_server(&target(postgres)).await.ok();
    }
    let looked = tokio::task::spawn_blocking(move || {
        let room = places.iter().filter_map(|(what, path)| room(what, path)).collect::<Vec<Room>>();
        (room, libc())
    });
    let (room, libc) = looked.await.unwrap_or_default();
    let wanted = shared.config.postgres.as_ref().is_some_and(|p| p.dead_man == DeadMan::Nftables);
    let dead_man = if wanted { rehearse_dead_man().err().map(|error| error.to_string()) } else { None };
    let now = wall_time();
    Exam {
        clock_ms: now,
        libc,
        rhone: env!("CARGO_PKG_VERSION").to_owned(),
        room,
        certificate_days: shared.security.as_deref().map(|s| s.own().days_left(WallTime::from_ms(now))),
        server,
        dead_man,
    }
}

fn room(what: &str, path: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Room {
        what: what.to_owned(),
        free: found.f_bavail * found.f_frsize,
        total: found.f_blocks * found.f_frsize,
    })
}

/// The version of the C library that programs of this machine use; that of rhone itself may be built in.
fn libc() -> String {
    let output = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(String::new, |text| String::from_utf8_lossy(&text).trim().to_owned())
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
fn texts(messages: &[SimpleQueryMessage]) -> Vec<Vec<String>> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|n| row.get(n).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn ask_server(target: &Target) -> Result<ServerExam, PgError> {
    let session = Session::open(target, SQL_LIMIT).await?;
    let ask = async |sql: &str| -> Result<Vec<Vec<String>>, PgError> {
        Ok(texts(&session.simple("examine the local server", sql, SQL_LIMIT).await?))
    };
    let pairs = |rows: Vec<Vec<String>>| {
        rows.into_iter().filter_map(|row| Some((row.first()?.clone(), row.get(1)?.clone())))
    };
    let settings: BTreeMap<String, String> = pairs(
        ask("SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'wal_log_hints', \
             'data_checksums', 'block_size', 'server_version_num')")
        .await?,
    )
    .collect();
    // By to_jsonb, because older versions have no such column.
    let collations = ask("SELECT datname, to_jsonb(d)->>'datcollversion', \
                          pg_database_collation_actual_version(oid) FROM pg_database d \
                          WHERE to_jsonb(d)->>'datcollversion' <> pg_database_collation_actual_version(oid)")
    .await
    .unwrap_or_default();
    // Of slots that a standby only has synchronised the primary's own tells, and they cannot be dropped here.
    let slots = ask("SELECT slot_name, active, coalesce(CASE WHEN pg_is_in_recovery() THEN \
                     pg_wal_lsn_diff(pg_last_wal_replay_lsn(), restart_lsn) \
                     ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END, 0)::bigint, \
                     coalesce(wal_status, '') FROM pg_replication_slots s \
                     WHERE to_jsonb(s)->>'synced' IS DISTINCT FROM 'true'")
    .await?;
    let available = ask("SELECT name FROM pg_available_extensions").await?;
    let prepared =
        ask("SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '1 hour'").await?;
    let databases = ask("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname").await?;
    let mut used = BTreeSet::new();
    for database in databases.into_iter().flatten().take(DATABASES) {
        let session = Session::open(&target.with_database(&database), SQL_LIMIT).await?;
        let found =
            session.simple("list the extensions", "SELECT extname FROM pg_extension", SQL_LIMIT).await?;
        used.extend(texts(&found).into_iter().flatten());
    }
    let version: u32 = settings.get("server_version_num").and_then(|text| text.parse().ok()).unwrap_or(0);
    let refused = refused_lines(&session, version / 10_000, SQL_LIMIT).await.unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(ServerExam {
        version,
        refused,
        settings,
        collations: collations
            .into_iter()
            .filter_map(|row| Some((row.first()?.clone(), row.get(1)?.clone(), row.get(2)?.clone())))
            .collect(),
        slots: slots
            .into_iter()
            .filter_map(|row| {
                Some((row.first()?.clone(), row.get(1)? == "t", number(row.get(2)), row.get(3)?.clone()))
            })
            .collect(),
        used,
        available: available.into_iter().flatten().collect(),
        prepared: prepared.first().map_or(0, |row| number(row.first())),
    })
}

impl RuntimeOperator {
    /// Asks every member, and judges.
    pub(super) async fn diagnose(&self) -> Vec<Finding> {
        let applied = self.applied();
        let me = self.shared().me();
        let mut asked = BTreeMap::new();
        for member in applied.state.members.values() {
            let data = member.kind == MemberKind::Data && !applied.state.is_fenced(member.node);
            let exam =
                if member.node == me { Ok(examine(self.shared()).await) } else { self.exam_of(member).await };
            // Its clock is read at the end of its work.
            let clock_ms = wall_time();
            let took_ms = if member.node == me { 0 } else { self.round_trip_ms(member).await.unwrap_or(0) };
            asked.insert(member.name.clone(), Asked { data, exam, took_ms, clock_ms });
        }
        let mut findings = judge(&asked);
        for warning in publish::cluster_status(self.shared()).warnings {
            findings.push(Finding {
                severity: Severity::Warning,
                code: "status".to_owned(),
                member: None,
                message: warning,
                hint: "`rhone status` and `rhone explain` show more".to_owned(),
            });
        }
        findings
    }

    async fn exam_of(&self, member: &Member) -> Result<Exam, String> {
        let request = ExamineRequest { from: Some(self.shared().identity()) };
        let peers = &self.shared().peers;
        let call = peers
            .call(&member.address, EXAM_LIMIT, |mut client| async move { client.examine(request).await });
        let reply = call.await.map_err(|error| error.to_string())?;
        codec::unpack(&reply.exam).ok_or_else(|| "its answer cannot be read".to_owned())
    }

    /// How long the shortest question takes there and back.
    async fn round_trip_ms(&self, member: &Member) -> Option<u64> {
        let shared = self.shared();
        let request = crate::api::proto::v1::HelloRequest {
            from: Some(shared.identity()),
            name: shared.config.node.name.clone(),
        };
        let begun = shared.clock.now();
        let call = shared
            .peers
            .call(&member.address, SQL_LIMIT, |mut client| async move { client.hello(request).await });
        call.await.ok()?;
        u64::try_from(shared.clock.now().saturating_since(begun).as_millis()).ok()
    }
}
