//! SQL connections to the local server: every call has a deadline, and what timed out is cancelled.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, SimpleQueryMessage};

use crate::error::PgError;

/// How long a cancel request may take; it is sent in the background.
const CANCEL_LIMIT: Duration = Duration::from_secs(2);
/// How long to wait before saying again what the replay of WAL cancelled.
const AFTER_CONFLICT: Duration = Duration::from_millis(1);

/// Where the local server listens, and as whom to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory of its Unix socket.
    pub socket_dir: PathBuf,
    /// Its port, which names the socket.
    pub port: u16,
    /// The superuser's role.
    pub user: String,
    /// The database, `postgres` for everything but an application's own objects.
    pub database: String,
}

impl Target {
    /// Makes a target in the database `postgres`.
    pub fn new(socket_dir: impl Into<PathBuf>, port: u16, user: impl Into<String>) -> Self {
        Self { socket_dir: socket_dir.into(), port, user: user.into(), database: "postgres".into() }
    }

    /// Returns the same server with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }
}

/// One session of the local server, with a fixed search path; dropped sessions end at once.
#[derive(Debug)]
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Parameters of a statement, each with its type, so that one round trip is enough.
pub type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

impl Session {
    /// Opens a session of its own.
    ///
    /// # Errors
    /// [`PgError::TimedOut`] also when the server accepts but says nothing; [`PgError::Unreachable`].
    pub async fn open(target: &Target, limit: Duration) -> Result<Self, PgError> {
        let operation = "connect to the local server";
        let millis = limit.as_millis().max(1);
        let mut config = Config::new();
        config
            .host_path(&target.socket_dir)
            .port(target.port)
            .user(&target.user)
            .dbname(&target.database)
            .application_name("rhone")
            .connect_timeout(limit)
            .options(format!(
                "-c search_path=pg_catalog -c statement_timeout={millis} -c lock_timeout={millis} \
                 -c idle_in_transaction_session_timeout=60000"
            ));
        let (client, connection) = past_conflicts(operation, limit, true, || config.connect(NoTls)).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the local server ended");
            }
        });
        Ok(Self { client, task })
    }

    /// Runs a statement and returns its rows; one round trip.
    ///
    /// # Errors
    /// [`PgError::Sql`], [`PgError::Unreachable`], or [`PgError::TimedOut`] after which the statement
    /// is cancelled and the session must not be used again.
    pub async fn query(
        &self,
        operation: &str,
        sql: &str,
        parameters: &Parameters<'_>,
        limit: Duration,
    ) -> Result<Vec<Row>, PgError> {
        self.guarded(operation, limit, || self.client.query_typed(sql, parameters)).await
    }

    /// Runs a statement that must return one row.
    ///
    /// # Errors
    /// As [`Session::query`], and [`PgError::Unexpected`] when there is no row.
    pub async fn query_one(
        &self,
        operation: &str,
        sql: &str,
        parameters: &Parameters<'_>,
        limit: Duration,
    ) -> Result<Row, PgError> {
        let rows = self.query(operation, sql, parameters, limit).await?;
        rows.into_iter().next().ok_or_else(|| PgError::unexpected(operation, "the server returned no row"))
    }

    /// Runs statements without parameters in one round trip and returns all that they print as text.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn simple(
        &self,
        operation: &str,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<SimpleQueryMessage>, PgError> {
        self.guarded(operation, limit, || self.client.simple_query(sql)).await
    }

    /// Says whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn guarded<T, F>(
        &self,
        operation: &str,
        limit: Duration,
        work: impl FnMut() -> F,
    ) -> Result<T, PgError>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let result = past_conflicts(operation, limit, false, work).await;
        if result.is_err() {
            let token = self.client.cancel_token();
            tokio::spawn(async move {
                // Best effort: the session is dropped whatever comes of it.
                tokio::time::timeout(CANCEL_LIMIT, token.cancel_query(NoTls)).await.ok();
            });
        }
        result
    }
}

/// Runs a client call under a deadline, and again when the replay of WAL cancelled it.
///
/// A standby whose conflict delays are 0 cancels whatever holds a snapshot when it replays a cleanup
/// record, also the look-ups of a session that is being opened (SQLSTATE 40001). Only standbys do, and
/// nothing that this process says to one has an effect that must not be had twice. A session that was
/// reached by that just after its answer is ended instead; `opening` is begun anew then as well.
async fn past_conflicts<T, F>(
    operation: &str,
    limit: Duration,
    opening: bool,
    mut work: impl FnMut() -> F,
) -> Result<T, PgError>
where
    F: Future<Output = Result<T, tokio_postgres::Error>>,
{
    let repeated = async {
        loop {
            match work().await {
                Err(error)
                    if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
                        && (opening || !fatal(&error)) =>
                {
                    tracing::debug!(operation, "cancelled by the replay of WAL: again");
                    tokio::time::sleep(AFTER_CONFLICT).await;
                }
                result => return result.map_err(|error| PgError::sql(operation, error)),
            }
        }
    };
    match tokio::time::timeout(limit, repeated).await {
        Ok(result) => result,
        Err(_) => Err(PgError::TimedOut { operation: operation.to_owned(), limit }),
    }
}

/// Whether the server ended the session with this error.
pub(crate) fn fatal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().and_then(DbError::parsed_severity).is_some_and(|severity| severity != Severity::Error)
}

/// A connection that is kept, and made anew when it has ended or timed out.
#[derive(Debug)]
pub struct LocalConnection {
    target: Target,
    kept: Option<Session>,
}

impl LocalConnection {
    /// Makes a connection that is opened at its first use.
    pub const fn new(target: Target) -> Self {
        Self { target, kept: None }
    }

    /// Returns where it connects to.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the kept session, opened anew when it has ended.
    ///
    /// # Errors
    /// Those of [`Session::open`].
    pub async fn session(&mut self, limit: Duration) -> Result<&Session, PgError> {
        let kept = match self.kept.take() {
            Some(kept) if !kept.is_closed() => kept,
            Some(_) | None => Session::open(&self.target, limit).await?,
        };
        Ok(self.kept.insert(kept))
    }

    /// Runs `statement` on the kept session; forgets the session when that fails, so that the next
    /// call begins with a new one.
    ///
    /// # Errors
    /// Those of [`Session::open`] and [`Session::query`].
    pub async fn query(
        &mut self,
        operation: &str,
        sql: &str,
        parameters: &Parameters<'_>,
        limit: Duration,
    ) -> Result<Vec<Row>, PgError> {
        let begun = Instant::now();
        loop {
            let result = self.session(limit).await?.query(operation, sql, parameters, limit).await;
            match result {
                Err(error) if error.ended_by_replay() && begun.elapsed() < limit => self.kept = None,
                result => return self.keep_if_well(result),
            }
        }
    }

    /// Runs statements without parameters; else as [`LocalConnection::query`].
    ///
    /// # Errors
    /// Those of [`Session::open`] and [`Session::query`].
    pub async fn simple(
        &mut self,
        operation: &str,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<SimpleQueryMessage>, PgError> {
        let begun = Instant::now();
        loop {
            let result = self.session(limit).await?.simple(operation, sql, limit).await;
            match result {
                Err(error) if error.ended_by_replay() && begun.elapsed() < limit => self.kept = None,
                result => return self.keep_if_well(result),
            }
        }
    }

    /// Opens a session beside the kept one: existing sessions work on while the postmaster hangs.
    ///
    /// # Errors
    /// Those of [`Session::open`].
    pub async fn fresh(&self, limit: Duration) -> Result<Session, PgError> {
        Session::open(&self.target, limit).await
    }

    /// Ends the kept session.
    pub fn close(&mut self) {
        self.kept = None;
    }

    fn keep_if_well<T>(&mut self, result: Result<T, PgError>) -> Result<T, PgError> {
        if matches!(result, Err(PgError::TimedOut { .. } | PgError::Unreachable { .. })) {
            self.kept = None;
        }
        result
    }
}
