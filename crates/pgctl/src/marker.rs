//! Markers in the WAL, and checkpoints.

use std::time::Duration;

use tokio_postgres::types::Type;

use crate::connection::Session;
use crate::error::PgError;
use crate::wal::Lsn;

/// Commits a logical message without waiting for a standby, and returns an LSN at or after its end
/// that is on this server's disk: whoever has flushed it has flushed the message, and all before it.
///
/// Whether it is durable under `synchronous_standby_names` is for [`crate::sync::senders`] to say: a
/// commit that waits also returns, with a warning, when its wait is cancelled.
///
/// # Errors
/// Those of [`Session::query`].
pub async fn write_marker(session: &Session, content: &str, limit: Duration) -> Result<Lsn, PgError> {
    let operation = "write a marker";
    session.simple(operation, "SET synchronous_commit = local", limit).await?;
    let sql = "SELECT pg_logical_emit_message(true, 'rhone', $1)::text";
    session.query_one(operation, sql, &[(&content, Type::TEXT)], limit).await?;
    let row = session.query_one(operation, "SELECT pg_current_wal_flush_lsn()::text", &[], limit).await?;
    let text: String = row.try_get(0).map_err(|error| PgError::sql(operation, error))?;
    text.parse().map_err(|_| PgError::unexpected(operation, text))
}

/// Writes a checkpoint (on a standby: a restartpoint).
///
/// # Errors
/// Those of [`Session::query`].
pub async fn checkpoint(session: &Session, limit: Duration) -> Result<(), PgError> {
    let millis = limit.as_millis().max(1);
    let sql = format!("SET statement_timeout = {millis}");
    session.simple("write a checkpoint", &sql, limit).await?;
    session.simple("write a checkpoint", "CHECKPOINT", limit).await.map(drop)
}
