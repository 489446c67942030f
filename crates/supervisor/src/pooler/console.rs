//! PgBouncer's admin console: commands over its Unix socket, each with a limit.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::{Config, NoTls};

use super::render::ADMIN;

/// How to reach the console.
#[derive(Clone)]
pub(super) struct Console {
    pub(super) dir: PathBuf,
    pub(super) port: u16,
    pub(super) password: String,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsoleError {
    /// It does not run, or refuses this administrator.
    #[error("reach the console of PgBouncer")]
    Unreachable(#[source] tokio_postgres::Error),
    /// It said no.
    #[error("`{command}`")]
    Refused {
        /// The command.
        command: &'static str,
        /// PgBouncer's words.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It did not answer in time.
    #[error("`{command}` took longer than {limit:?}")]
    TimedOut {
        /// The command.
        command: &'static str,
        /// The limit.
        limit: Duration,
    },
}

impl Console {
    /// Carries out one command on a connection of its own.
    ///
    /// # Errors
    /// PgBouncer does not run, says no, or takes longer than the limit.
    pub(super) async fn run(&self, command: &'static str, limit: Duration) -> Result<(), ConsoleError> {
        let done = tokio::time::timeout(limit, self.ask(command)).await;
        done.unwrap_or(Err(ConsoleError::TimedOut { command, limit }))
    }

    async fn ask(&self, command: &'static str) -> Result<(), ConsoleError> {
        let mut config = Config::new();
        config.host_path(&self.dir).port(self.port).user(ADMIN).dbname("pgbouncer").password(&self.password);
        let (client, connection) = config.connect(NoTls).await.map_err(ConsoleError::Unreachable)?;
        let driver = tokio::spawn(connection);
        let answer = client.simple_query(command).await;
        driver.abort();
        answer.map(drop).map_err(|source| ConsoleError::Refused { command, source })
    }
}
