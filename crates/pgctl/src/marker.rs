//! The epoch's marker in the WAL, and checkpoints.

use std::time::Duration;

use tokio_postgres::types::Type;

use crate::connection::Session;
use crate::error::PgError;
use crate::wal::Lsn;

/// Writes the marker of an epoch and waits until it is durable under the synchronous policy.
///
/// A transactional logical message: it commits, so that `synchronous_standby_names` counts.
///
/// # Errors
/// Those of [`Session::query`]; after [`PgError::TimedOut`] whether it is durable is unknown.
pub async fn write_marker(session: &Session, epoch: u64, limit: Duration) -> Result<Lsn, PgError> {
    let operation = "write the epoch's marker";
    session.simple(operation, "SET synchronous_commit = on", limit).await?;
    let sql = "SELECT pg_logical_emit_message(true, 'rhone', $1)::text";
    let row = session.query_one(operation, sql, &[(&epoch.to_string(), Type::TEXT)], limit).await?;
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
