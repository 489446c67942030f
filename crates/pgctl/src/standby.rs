//! Cuts a standby off its upstream and finds out how far its WAL goes: the local half of a revocation.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use crate::apply::write_settings;
use crate::connection::{Session, Target};
use crate::error::PgError;
use crate::probe::{field, rows};
use crate::process::{Postmaster, signal_process, within};
use crate::replication::{SystemIdentity, identify_system};
use crate::settings::{HURRIED_INTERVAL, ManagedSettings};
use crate::user::OsUser;

/// Between two looks.
const POLL: Duration = Duration::from_millis(2);
/// A little more than replay's sleep while in a hurry (`HURRIED_INTERVAL`).
const HURRIED_SLEEP: Duration = Duration::from_millis(4);
/// Times that the startup process must have gone to sleep between the two looks. One sleep may count
/// twice (flagged before it blocks, or woken by a signal for another matter), so three are two sleeps.
const SLEEPS: u64 = 3;

/// Cuts the upstream: empties `primary_conninfo` and `restore_command`, reloads, and waits until no
/// walreceiver is left.
///
/// Resumes a paused replay, ends the sessions that delay it, and past half of `limit` ends the walreceiver by a
/// signal. `settings` are the member's own; their upstream is ignored. Returns a session that has the cut
/// settings. The server looks for WAL each 3 ms from now on, and logs that: [`calm_down`] ends it.
///
/// # Errors
/// [`PgError::StuckReceiver`] when the walreceiver does not go: freeze, kill, restart without an upstream.
/// [`PgError::TimedOut`], [`PgError::Unreachable`], [`PgError::Io`].
pub async fn cut_upstream(
    postmaster: &Postmaster,
    data_dir: &Path,
    target: &Target,
    settings: &ManagedSettings,
    user: &OsUser,
    limit: Duration,
) -> Result<Session, PgError> {
    let cut = cut_off(settings);
    write_aside(data_dir, cut, user).await?;
    postmaster.reload()?;
    let session = within("cut the upstream", limit, cut_session(target, limit)).await?;
    let resume = "SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery() AND pg_is_wal_replay_paused()";
    ask(&session, "resume replay", resume, limit).await?;
    let half = limit / 2;
    let gone = within("wait for the walreceiver to go", half, no_receiver(&session, limit)).await;
    if !matches!(gone, Err(PgError::TimedOut { .. })) {
        return gone.map(|()| session);
    }
    if let Some(pid) = receiver(&session, limit).await? {
        signal_process(pid, Signal::TERM)?;
    }
    match within("wait for the walreceiver to go", half, no_receiver(&session, limit)).await {
        Err(PgError::TimedOut { .. }) => match receiver(&session, POLL.max(half)).await? {
            Some(pid) => Err(PgError::StuckReceiver { pid, limit }),
            None => Ok(session),
        },
        other => other.map(|()| session),
    }
}

/// Opens sessions until one has the cut settings: the postmaster has read them then, and has signalled
/// its children before it started this one.
async fn cut_session(target: &Target, limit: Duration) -> Result<Session, PgError> {
    loop {
        let session = Session::open(target, limit).await?;
        let sql = format!(
            "SELECT 1 WHERE current_setting('primary_conninfo') = '' AND \
             current_setting('wal_retrieve_retry_interval') = '{HURRIED_INTERVAL}'"
        );
        let messages = ask(&session, "ask for the upstream", &sql, limit).await?;
        if rows(&messages).next().is_some_and(|rows| !rows.is_empty()) {
            return Ok(session);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks again when replay cancels the question: while the upstream is cut, no query may delay it, ours neither.
async fn ask(
    session: &Session,
    operation: &str,
    sql: &str,
    limit: Duration,
) -> Result<Vec<SimpleQueryMessage>, PgError> {
    loop {
        match session.simple(operation, sql, limit).await {
            Err(PgError::Sql { source, .. })
                if source.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) =>
            {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

/// Ends the sessions that replay waits for, and wakes it.
///
/// Setting the conflict delays to 0 is not enough: a startup process that waits for a query does not
/// read its configuration, and sleeps for up to a second between two looks (`WaitExceedsMaxStandbyDelay`).
async fn unblock_replay(session: &Session, limit: Duration) -> Result<(), PgError> {
    let sql = "SELECT pg_terminate_backend(b.pid) FROM pg_stat_activity s JOIN pg_stat_activity b \
               ON b.backend_type = 'client backend' AND b.pid <> pg_backend_pid() \
               AND (b.state <> 'idle' OR b.backend_xmin IS NOT NULL OR b.pid = ANY (pg_blocking_pids(s.pid))) \
               WHERE s.backend_type = 'startup' \
               AND (s.wait_event LIKE 'RecoveryConflict%' OR s.wait_event_type IN ('Lock', 'BufferPin')); \
               SELECT pg_reload_conf() FROM pg_stat_activity s WHERE s.backend_type = 'startup' \
               AND (s.wait_event LIKE 'RecoveryConflict%' OR s.wait_event_type IN ('Lock', 'BufferPin'))";
    ask(session, "end what holds up replay", sql, limit).await.map(drop)
}

async fn no_receiver(session: &Session, limit: Duration) -> Result<(), PgError> {
    while receiver(session, limit).await?.is_some() {
        unblock_replay(session, limit).await?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Returns the process number of the walreceiver; both views, since each knows it for longer than the
/// other at one end of its life.
async fn receiver(session: &Session, limit: Duration) -> Result<Option<u32>, PgError> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver' \
               UNION SELECT pid FROM pg_stat_wal_receiver WHERE pid IS NOT NULL LIMIT 1";
    let messages = ask(session, "look for the walreceiver", sql, limit).await?;
    Ok(rows(&messages).next().and_then(|rows| rows.first().and_then(|row| field(row, 0))))
}

/// What the startup process does at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    pid: u32,
    replayed: String,
    sleeps: u64,
}

/// Waits until a standby without an upstream has replayed all WAL that is on its disk.
///
/// The proof: with nothing to stream from, the startup process sleeps (`RecoveryRetrieveRetryInterval`)
/// only after it has looked for the next record in `pg_wal`, but that sleep may have begun before the
/// walreceiver wrote its last. So two *different* sleeps must be seen, with nothing replayed in between:
/// the second look at the disk came after the upstream was cut. A replay that is paused or waits for a
/// lock is in another wait, and never counts.
///
/// To be called after [`cut_upstream`], whose settings make the sleep 3 ms.
///
/// # Errors
/// [`PgError::TimedOut`], [`PgError::Unreachable`]; [`PgError::Refused`] when the server is no standby.
pub async fn wait_end_of_local_wal(session: &Session, limit: Duration) -> Result<(), PgError> {
    let operation = "wait for the end of local WAL";
    let end = async {
        let mut first: Option<Look> = None;
        loop {
            let now = look(session, limit).await?;
            if now.is_none() {
                unblock_replay(session, limit).await?;
            }
            first = match (first, now) {
                (Some(first), Some(now)) if now.pid == first.pid && now.replayed == first.replayed => {
                    if now.sleeps >= first.sleeps.saturating_add(SLEEPS) {
                        return Ok(());
                    }
                    Some(first)
                }
                (_, now) => now,
            };
            // The first look must be old enough for its sleep to be over at the second.
            tokio::time::sleep(if first.is_some() { HURRIED_SLEEP } else { POLL }).await;
        }
    };
    within(operation, limit, end).await
}

/// Looks at the startup process; `None` when it is not asleep for want of WAL.
async fn look(session: &Session, limit: Duration) -> Result<Option<Look>, PgError> {
    let operation = "look at the startup process";
    let sql = "SELECT pid, pg_last_wal_replay_lsn(), pg_is_in_recovery() FROM pg_stat_activity \
               WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval' \
               AND NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE backend_type = 'walreceiver'); \
               SELECT pg_is_in_recovery()";
    let messages = ask(session, operation, sql, limit).await?;
    let mut results = rows(&messages);
    let startup = results.next().and_then(|rows| rows.first().copied());
    let standby = results.next().and_then(|rows| rows.first().and_then(|row| field::<String>(row, 0)));
    if standby.as_deref() != Some("t") {
        return Err(PgError::Refused { what: operation.into(), reason: "the server is no standby".into() });
    }
    let Some(row) = startup else { return Ok(None) };
    let (Some(pid), Some(replayed)) = (field(row, 0), field(row, 1)) else { return Ok(None) };
    Ok(sleeps_of(pid).map(|sleeps| Look { pid, replayed, sleeps }))
}

/// Reads how often a process has gone to sleep by itself.
fn sleeps_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// Lets a standby that was cut off wait for its next upstream without a hurry; to be called once its
/// position is reported.
///
/// # Errors
/// [`PgError::Io`], [`PgError::Refused`].
pub async fn calm_down(
    postmaster: &Postmaster,
    data_dir: &Path,
    settings: &ManagedSettings,
    user: &OsUser,
) -> Result<(), PgError> {
    let calm = ManagedSettings { hurry: false, ..cut_off(settings) };
    write_aside(data_dir, calm, user).await?;
    postmaster.reload()
}

/// Writes the settings off the runtime's thread: the fsyncs of a slow card take their time.
async fn write_aside(data_dir: &Path, settings: ManagedSettings, user: &OsUser) -> Result<(), PgError> {
    let (data_dir, user) = (data_dir.to_owned(), user.clone());
    let written = tokio::task::spawn_blocking(move || write_settings(&data_dir, &settings, &user)).await;
    written.map_err(|error| PgError::unexpected("write the settings", error.to_string()))?.map(drop)
}

/// Returns settings without an upstream.
fn cut_off(settings: &ManagedSettings) -> ManagedSettings {
    ManagedSettings {
        primary_conninfo: None,
        primary_slot_name: None,
        restore_command: String::new(),
        hurry: true,
        ..settings.clone()
    }
}

/// Cuts a standby off and returns the position at which its WAL ends, with its system identifier.
///
/// # Errors
/// Those of [`cut_upstream`], [`wait_end_of_local_wal`] and [`identify_system`].
pub async fn revoke(
    postmaster: &Postmaster,
    data_dir: &Path,
    target: &Target,
    settings: &ManagedSettings,
    user: &OsUser,
    limit: Duration,
) -> Result<SystemIdentity, PgError> {
    let session = cut_upstream(postmaster, data_dir, target, settings, user, limit).await?;
    let mut replayed = String::new();
    // A long backlog of WAL is replayed, not given up: the limit begins anew while it gets on.
    while let Err(error) = wait_end_of_local_wal(&session, limit).await {
        let sql = "SELECT coalesce(pg_last_wal_replay_lsn()::text, '')";
        let row = session.query_one("read how far replay is", sql, &[], limit).await?;
        let now: String = row.try_get(0).map_err(|error| PgError::sql("read how far replay is", error))?;
        if !matches!(error, PgError::TimedOut { .. }) || now == replayed {
            return Err(error);
        }
        replayed = now;
    }
    identify_system(&target.into(), limit).await
}
