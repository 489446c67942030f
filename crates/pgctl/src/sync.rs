//! What a primary's walsenders use and have: the facts by which a change of
//! `synchronous_standby_names` is proved.
//!
//! Each walsender releases waiting commits by its own copy of the setting, and takes a new one over
//! at the top of its loop (`WalSndLoop`), before it reads what its standby has flushed. So a walsender
//! that reports a flush past a record that was written after the postmaster had passed the reload on
//! uses the new value (docs/safety.md 6).

use std::time::Duration;

use rustix::process::Signal;
use tokio_postgres::SimpleQueryMessage;

use crate::connection::{Session, Target};
use crate::error::PgError;
use crate::probe::{field, rows};
use crate::process::{signal_process, within};
use crate::settings::POLICY_SETTING;
use crate::wal::Lsn;

/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// One walsender that serves a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its process.
    pub pid: u32,
    /// When it began, as Postgres prints it: a process number comes back.
    pub began: String,
    /// What the standby calls itself.
    pub name: String,
    /// Whether it streams, so that it may release commits.
    pub streaming: bool,
    /// How far its standby has flushed.
    pub flushed: Option<Lsn>,
}

impl Sender {
    /// Returns whether this is the same process.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, &self.began) == (other.pid, &other.began)
    }
}

/// Returns the walsenders of this server.
///
/// # Errors
/// Those of [`Session::simple`].
pub async fn senders(session: &Session, limit: Duration) -> Result<Vec<Sender>, PgError> {
    let sql = "SELECT pid, backend_start, application_name, state, flush_lsn FROM pg_stat_replication";
    let messages = session.simple("look at the walsenders", sql, limit).await?;
    Ok(rows(&messages).next().unwrap_or_default().into_iter().filter_map(sender).collect())
}

fn sender(row: &tokio_postgres::SimpleQueryRow) -> Option<Sender> {
    let state: Option<String> = field(row, 3);
    Some(Sender {
        pid: field(row, 0)?,
        began: field(row, 1)?,
        name: field(row, 2)?,
        streaming: matches!(state.as_deref(), Some("streaming" | "stopping")),
        flushed: field(row, 4),
    })
}

/// Asks a walsender to end; whether it has is for [`senders`] to say.
///
/// # Errors
/// [`PgError::Io`].
pub fn end(sender: &Sender) -> Result<(), PgError> {
    signal_process(sender.pid, Signal::TERM)
}

/// Opens sessions until one runs under that policy number: the postmaster has read it then, and has
/// passed the reload on to all that it had started before.
///
/// # Errors
/// [`PgError::TimedOut`]; those of [`Session::open`].
pub async fn session_under(target: &Target, policy: u64, limit: Duration) -> Result<Session, PgError> {
    let operation = "wait for the new policy";
    let open = async {
        loop {
            let session = Session::open(target, limit).await?;
            let sql = format!("SELECT 1 WHERE current_setting('{POLICY_SETTING}', true) = '{policy}'");
            if any(&session.simple(operation, &sql, limit).await?) {
                return Ok(session);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    within(operation, limit, open).await
}

/// Waits until the checkpointer is past its start: it has then told all sessions whether commits wait
/// for standbys (`SyncRepUpdateSyncStandbysDefined`), as of the settings that it was started with.
///
/// # Errors
/// [`PgError::TimedOut`]; those of [`Session::simple`].
pub async fn checkpointer_is_up(session: &Session, limit: Duration) -> Result<(), PgError> {
    let operation = "wait for the checkpointer";
    let sql = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'checkpointer' \
               AND wait_event_type IN ('Activity', 'Timeout', 'IO')";
    let up = async {
        while !any(&session.simple(operation, sql, limit).await?) {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };
    within(operation, limit, up).await
}

fn any(messages: &[SimpleQueryMessage]) -> bool {
    rows(messages).next().is_some_and(|rows| !rows.is_empty())
}
