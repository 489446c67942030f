//! SQL for the harness's own questions: one connection per question, always under a deadline.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// Rows of text, columns in order; NULL is `None`.
pub type Rows = Vec<Vec<Option<String>>>;

/// How a member's Postgres is asked.
#[derive(Clone, Debug)]
pub enum Door {
    /// The Unix socket, as superuser. It works from any network namespace.
    Socket {
        /// The folder of the socket.
        folder: PathBuf,
        /// Its port.
        port: u16,
    },
    /// TCP, as the application role; only from a thread that is in the right namespace.
    Tcp {
        /// Server address.
        address: Ipv4Addr,
        /// Its port.
        port: u16,
    },
}

impl Door {
    /// The connection's parameters, for `database`.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.dbname(database).application_name("chaos");
        match self {
            Self::Socket { folder, port } => config.host_path(folder).port(*port).user("postgres"),
            Self::Tcp { address, port } => config.host(address.to_string()).port(*port).user("chaos"),
        };
        config
    }
}

/// Runs one statement, or several without results in between, within `limit`.
pub fn ask(door: &Door, database: &str, statement: &str, limit: Duration) -> Result<Rows> {
    let config = door.config(database);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let work = async {
            let (client, connection) = config.connect(NoTls).await.context("connect")?;
            let driver = tokio::spawn(connection);
            let messages = match client.simple_query(statement).await {
                Ok(messages) => messages,
                // What the server said before it closed the connection is the driver's to know.
                Err(error) if error.is_closed() => {
                    let why = match driver.await {
                        Ok(Err(why)) => readable(why),
                        Ok(Ok(())) => anyhow!("the server closed the connection"),
                        Err(error) => anyhow!(error),
                    };
                    return Err(why.context(statement.to_owned()));
                }
                Err(error) => return Err(readable(error).context(statement.to_owned())),
            };
            driver.abort();
            Ok::<_, anyhow::Error>(messages)
        };
        let messages =
            tokio::time::timeout(limit, work).await.map_err(|_| anyhow!("no answer within {limit:?}"))??;
        Ok(rows(&messages))
    })
}

/// Puts the server's own message in place of tokio-postgres's "db error".
pub fn readable(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(answer) => anyhow!("{}: {} ({})", answer.severity(), answer.message(), answer.code().code()),
        None => anyhow::Error::new(error),
    }
}

/// The rows of an answer.
pub fn rows(messages: &[SimpleQueryMessage]) -> Rows {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect()
}
