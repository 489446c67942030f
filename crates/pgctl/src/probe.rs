//! Asks the local server for everything that is reported about it, in one round trip.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::connection::LocalConnection;
use crate::error::PgError;
use crate::wal::{Lsn, SystemId, Timeline, WalPosition};

/// Everything that one probe of a running server found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The number that initdb gave the data.
    pub system_id: SystemId,
    /// The version, as `server_version_num` counts.
    pub version: u32,
    /// When the postmaster started, in seconds since 1970.
    pub started: f64,
    /// When the configuration was read last, in seconds since 1970.
    pub config_loaded: f64,
    /// Changed settings that wait for a restart, with the values that run.
    pub pending: Vec<(String, String)>,
    /// The value of `synchronous_standby_names` in the session.
    pub synchronous_standby_names: String,
    /// What only a primary or only a standby has.
    pub role: RoleFacts,
    /// Who streams from this server.
    pub walsenders: Vec<WalSender>,
    /// Its replication slots.
    pub slots: Vec<Slot>,
}

/// What only a primary or only a standby has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RoleFacts {
    /// It takes writes.
    Primary(PrimaryFacts),
    /// It replays WAL.
    Standby(StandbyFacts),
}

/// What a primary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryFacts {
    /// The timeline that it writes, and the end of the WAL that is on its disk.
    pub flushed: WalPosition,
    /// The end of the WAL that it has written into its buffers.
    pub inserted: Lsn,
    /// Whether a process of it waits just now for WAL to be written to its files or flushed.
    pub flushing: bool,
    /// The timeline of its latest checkpoint; below its own, it cannot be rewound from yet.
    pub checkpoint_timeline: Timeline,
}

/// What a standby has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyFacts {
    /// The best known timeline; `IDENTIFY_SYSTEM` is exact.
    pub timeline: Timeline,
    /// The end of the WAL that it received since it started; it says less than is on disk after
    /// a restart, so it is for lag displays only.
    pub received: Option<Lsn>,
    /// The end of the WAL that it replayed.
    pub replayed: Option<Lsn>,
    /// When the last replayed transaction was committed, in seconds since 1970.
    pub replayed_at: Option<f64>,
    /// Whether somebody has paused replay.
    pub replay_paused: bool,
    /// Whether `primary_conninfo` is set.
    pub has_upstream: bool,
    /// Where replay would begin after a crash: the redo position of its last restartpoint. No checkpoint
    /// that it has in common with its primary begins earlier.
    pub redo: Option<Lsn>,
    /// Its walreceiver.
    pub receiver: Option<WalReceiver>,
}

/// A standby's walreceiver (`pg_stat_wal_receiver`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WalReceiver {
    /// `streaming`, `starting`, `waiting` and the like.
    pub status: String,
    /// The server that it is connected to.
    pub sender_host: Option<String>,
    /// That server's port.
    pub sender_port: Option<u16>,
    /// The timeline that it receives.
    pub timeline: Timeline,
    /// The end of the WAL that it has flushed.
    pub flushed: Option<Lsn>,
    /// When the sender was heard last, in seconds since 1970.
    pub heard_at: Option<f64>,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WalSender {
    /// The role that it logged in as; none when that was dropped.
    pub user: Option<String>,
    /// What the standby calls itself.
    pub application_name: String,
    /// Where it connects from; none over a Unix socket.
    pub client_addr: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// The end of what was sent to it.
    pub sent: Option<Lsn>,
    /// The end of what it has written.
    pub written: Option<Lsn>,
    /// The end of what it has flushed.
    pub flushed: Option<Lsn>,
    /// The end of what it has replayed.
    pub replayed: Option<Lsn>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: String,
    /// Its place among those that commits wait for; 0 when they do not wait for it.
    pub sync_priority: u32,
    /// When it answered last, in seconds since 1970 by its own clock.
    pub replied_at: Option<f64>,
}

/// One replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether it is a physical one.
    pub physical: bool,
    /// Whether somebody streams from it.
    pub active: bool,
    /// From where it keeps WAL.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
}

/// Everything in one simple query: three results, text.
const SQL: &str = "\
SELECT r.rec, s.system_identifier, current_setting('server_version_num'),
  extract(epoch FROM pg_postmaster_start_time()), extract(epoch FROM pg_conf_load_time()),
  (SELECT string_agg(name || E'\\x1f' || current_setting(name), E'\\x1e') FROM pg_settings WHERE pending_restart),
  current_setting('synchronous_standby_names'),
  CASE WHEN r.rec THEN NULL ELSE pg_current_wal_flush_lsn() END,
  CASE WHEN r.rec THEN NULL ELSE pg_current_wal_insert_lsn() END,
  CASE WHEN r.rec THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
  c.timeline_id, v.min_recovery_end_timeline,
  pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
  extract(epoch FROM pg_last_xact_replay_timestamp()),
  CASE WHEN r.rec THEN pg_is_wal_replay_paused() ELSE false END,
  current_setting('primary_conninfo') <> '',
  w.status, w.sender_host, w.sender_port, w.received_tli,
  coalesce(to_jsonb(w)->>'flushed_lsn', to_jsonb(w)->>'received_lsn'), extract(epoch FROM w.last_msg_receipt_time),
  c.redo_lsn,
  CASE WHEN NOT r.rec AND pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() THEN EXISTS (
    SELECT FROM pg_stat_activity WHERE lower(wait_event) IN ('walwrite', 'walsync', 'walinitwrite', 'walinitsync'))
  ELSE false END
FROM (SELECT pg_is_in_recovery() AS rec OFFSET 0) r
  CROSS JOIN pg_control_system() s CROSS JOIN pg_control_checkpoint() c CROSS JOIN pg_control_recovery() v
  LEFT JOIN pg_stat_wal_receiver w ON true;
SELECT application_name, client_addr, state, sent_lsn, write_lsn, flush_lsn, replay_lsn, sync_state,
  extract(epoch FROM reply_time), usename, sync_priority FROM pg_stat_replication ORDER BY application_name, pid;
SELECT slot_name, slot_type = 'physical', active, restart_lsn, wal_status
  FROM pg_replication_slots ORDER BY slot_name";

/// Probes the local server over the kept connection.
///
/// # Errors
/// Those of [`LocalConnection::simple`]; [`PgError::Unexpected`] for an answer that is not understood.
pub async fn probe(connection: &mut LocalConnection, limit: Duration) -> Result<Probe, PgError> {
    let messages = connection.simple("probe the local server", SQL, limit).await?;
    parse(&messages)
        .ok_or_else(|| PgError::unexpected("probe the local server", "the answer has other columns"))
}

/// Where a primary's WAL ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalEnd {
    /// What is on its disk.
    pub flushed: Lsn,
    /// What it has written into its buffers.
    pub inserted: Lsn,
    /// The file that the next record is written to; none at a segment's very end.
    pub segment: Option<String>,
}

/// Asks a primary for its flushed LSN; cheap enough for each renewal, and see [`crate::walwatch`].
///
/// # Errors
/// Those of [`LocalConnection::simple`]; [`PgError::Refused`] when the server is a standby.
pub async fn primary_flush_lsn(connection: &mut LocalConnection, limit: Duration) -> Result<WalEnd, PgError> {
    const SQL: &str = "SELECT pg_current_wal_flush_lsn(), i, pg_walfile_name(i) \
        FROM (SELECT pg_current_wal_insert_lsn() AS i WHERE NOT pg_is_in_recovery() OFFSET 0) AS primary_only";
    let operation = "ask for the flushed LSN";
    let messages = connection.simple(operation, SQL, limit).await?;
    let row = rows(&messages).next().and_then(|rows| rows.first().copied());
    let end = row.and_then(|row| {
        let inserted: Lsn = field(row, 1)?;
        // The function names the file before at a boundary; no segment is smaller than 1 MiB.
        let inside = !inserted.get().is_multiple_of(1 << 20);
        Some(WalEnd { flushed: field(row, 0)?, inserted, segment: field(row, 2).filter(|_| inside) })
    });
    end.ok_or_else(|| PgError::Refused { what: operation.into(), reason: "the server is a standby".into() })
}

/// Splits the messages of a simple query into the rows of each statement.
pub(crate) fn rows(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = Vec<&SimpleQueryRow>> {
    messages.split(|message| matches!(message, SimpleQueryMessage::CommandComplete(_))).map(|part| {
        part.iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
            .collect()
    })
}

/// Parses a column; `None` when it is null or not understood.
pub(crate) fn field<T: FromStr>(row: &SimpleQueryRow, index: usize) -> Option<T> {
    row.try_get(index).ok().flatten()?.parse().ok()
}

/// Splits names and values as the probe joins them.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair =
        |pair: &str| pair.split_once('\u{1f}').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.split('\u{1e}').filter_map(pair).collect()
}

fn flag(row: &SimpleQueryRow, index: usize) -> bool {
    row.try_get(index).ok().flatten() == Some("t")
}

fn parse(messages: &[SimpleQueryMessage]) -> Option<Probe> {
    let mut results = rows(messages);
    let facts = results.next()?;
    let row = *facts.first()?;
    let role = if flag(row, 0) {
        RoleFacts::Standby(standby(row)?)
    } else {
        let number: String = field(row, 9)?;
        let timeline = Timeline::new(u32::from_str_radix(&number, 16).ok()?);
        RoleFacts::Primary(PrimaryFacts {
            flushed: WalPosition::new(timeline, field(row, 7)?),
            inserted: field(row, 8)?,
            flushing: flag(row, 24),
            checkpoint_timeline: Timeline::new(field(row, 10)?),
        })
    };
    Some(Probe {
        system_id: field(row, 1)?,
        version: field(row, 2)?,
        started: field(row, 3)?,
        config_loaded: field(row, 4)?,
        pending: field::<String>(row, 5).map(|text| pairs(&text)).unwrap_or_default(),
        synchronous_standby_names: field(row, 6)?,
        role,
        walsenders: results.next()?.iter().filter_map(|row| walsender(row)).collect(),
        slots: results.next()?.iter().filter_map(|row| slot(row)).collect(),
    })
}

fn standby(row: &SimpleQueryRow) -> Option<StandbyFacts> {
    let received: Option<u32> = field(row, 20);
    let timeline = [field(row, 10), field(row, 11), received].into_iter().flatten().max()?;
    let walreceiver = field::<String>(row, 17).map(|status| WalReceiver {
        status,
        sender_host: field(row, 18),
        sender_port: field(row, 19),
        timeline: Timeline::new(received.unwrap_or(0)),
        flushed: field(row, 21),
        heard_at: field(row, 22),
    });
    Some(StandbyFacts {
        timeline: Timeline::new(timeline),
        received: field(row, 12),
        replayed: field(row, 13),
        replayed_at: field(row, 14),
        replay_paused: flag(row, 15),
        has_upstream: flag(row, 16),
        redo: field(row, 23),
        receiver: walreceiver,
    })
}

fn walsender(row: &SimpleQueryRow) -> Option<WalSender> {
    Some(WalSender {
        user: field(row, 9),
        application_name: field(row, 0)?,
        client_addr: field(row, 1),
        state: field(row, 2)?,
        sent: field(row, 3),
        written: field(row, 4),
        flushed: field(row, 5),
        replayed: field(row, 6),
        sync_state: field(row, 7)?,
        sync_priority: field(row, 10)?,
        replied_at: field(row, 8),
    })
}

fn slot(row: &SimpleQueryRow) -> Option<Slot> {
    Some(Slot {
        name: field(row, 0)?,
        physical: flag(row, 1),
        active: flag(row, 2),
        restart: field(row, 3),
        wal_status: field(row, 4),
    })
}
