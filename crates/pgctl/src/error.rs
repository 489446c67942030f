//! Why an operation on the local server failed: one variant for each thing a caller can do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wal::{SystemId, Timeline, WalPosition};

/// Why a Postgres operation failed, one variant for each thing a caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PgError {
    /// Try again: the operation is idempotent and nothing is known to be wrong.
    #[error("{operation} did not finish within {limit:?}")]
    TimedOut {
        /// What was being done.
        operation: String,
        /// The limit that was passed.
        limit: Duration,
    },
    /// Try again later, or look at the server: it does not answer.
    #[error("{operation}: the server does not answer")]
    Unreachable {
        /// What was being done.
        operation: String,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Read what the program said: it ran and failed.
    #[error("`{program}` failed ({status}){}", tail(stderr))]
    ProgramFailed {
        /// The program's name.
        program: String,
        /// Its exit status, as the system words it.
        status: String,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// Install it: a program is not where it was looked for.
    #[error("`{program}` was not found in {searched}")]
    ProgramMissing {
        /// The program's name.
        program: String,
        /// Where it was looked for.
        searched: String,
        /// The major version that is needed, when it is known.
        major: Option<u32>,
    },
    /// Rewind, or clone anew: the WAL here left the accepted history.
    #[error("local WAL at {local} is not part of timeline {upstream}")]
    Diverged {
        /// Where the local WAL ends.
        local: WalPosition,
        /// The timeline that it should be part of.
        upstream: Timeline,
    },
    /// Page a human: the data directory is not what this cluster expects.
    #[error("`{}` belongs to system {found}, not {expected}", data_dir.display())]
    ForeignDataDir {
        /// The data directory.
        data_dir: PathBuf,
        /// The system identifier found there.
        found: SystemId,
        /// The one that was expected.
        expected: SystemId,
    },
    /// Page a human: the data directory cannot be used as it is.
    #[error("data directory `{}`: {reason}", data_dir.display())]
    DataDirUnusable {
        /// The data directory.
        data_dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("{operation} `{}`", path.display())]
    Io {
        /// A verb phrase.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server refused a statement.
    #[error("{operation}")]
    Sql {
        /// What was being done.
        operation: String,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server, a program or a file said something that was not understood.
    #[error("{operation}: {reason}")]
    Unexpected {
        /// What was being done.
        operation: String,
        /// What was not understood.
        reason: String,
    },
    /// Clone anew, or prepare the target first: this directory cannot be rewound as it is.
    #[error("cannot rewind: {reason}")]
    RewindImpossible {
        /// Why not.
        reason: String,
    },
    /// Freeze, kill and restart the instance without an upstream: its walreceiver does not go.
    #[error("the walreceiver (process {pid}) is still there after {limit:?}")]
    StuckReceiver {
        /// The walreceiver's process.
        pid: u32,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Change the request: a setting or a name in it is not allowed.
    #[error("{what}: {reason}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Why it is refused.
        reason: String,
    },
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl PgError {
    /// Makes an error of a failed file operation; for use with `map_err`.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    /// Makes an error of an answer that was not understood.
    pub(crate) fn unexpected(operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unexpected { operation: operation.into(), reason: reason.into() }
    }

    /// Makes an error about a data directory.
    pub(crate) fn unusable(data_dir: &Path, reason: impl Into<String>) -> Self {
        Self::DataDirUnusable { data_dir: data_dir.to_path_buf(), reason: reason.into() }
    }

    /// Makes an error of a failed statement, telling a lost connection from a refusal.
    pub(crate) fn sql(operation: &str, source: tokio_postgres::Error) -> Self {
        use tokio_postgres::error::SqlState;
        let away = match source.code() {
            None => true,
            Some(code) => {
                *code == SqlState::CANNOT_CONNECT_NOW
                    || *code == SqlState::ADMIN_SHUTDOWN
                    || *code == SqlState::CRASH_SHUTDOWN
                    || *code == SqlState::TOO_MANY_CONNECTIONS
            }
        };
        if away {
            Self::Unreachable { operation: operation.to_owned(), source: Box::new(source) }
        } else {
            Self::Sql { operation: operation.to_owned(), source }
        }
    }

    /// Whether the replay of WAL ended the session that this was said on: said again on another one it may do
    /// (SQLSTATE 40001 as FATAL: `ProcessInterrupts` in `src/backend/tcop/postgres.c`).
    pub fn ended_by_replay(&self) -> bool {
        use tokio_postgres::error::SqlState;
        let Self::Sql { source, .. } = self else { return false };
        source.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) && crate::connection::fatal(source)
    }

    /// Says what a person could do about it, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::ProgramMissing { program, major, .. } => {
                let version = major.map_or_else(String::new, |major| format!("-{major}"));
                Some(match program.as_str() {
                    "pg_rewind" | "pg_basebackup" | "postgres" | "initdb" | "pg_controldata" => {
                        format!("apt-get install postgresql{version}")
                    }
                    _ => format!("install `{program}` or give the directory that has it"),
                })
            }
            Self::ForeignDataDir { .. } => Some(
                "give this member an empty data directory, or the one that belongs to this cluster".into(),
            ),
            Self::DataDirUnusable { reason, .. } if reason.contains("mount point") => {
                Some("use a subdirectory of the mount as data directory".into())
            }
            Self::DataDirUnusable { reason, .. } if reason.contains("mode") => {
                Some("chmod 0700 the data directory".into())
            }
            Self::DataDirUnusable { reason, .. } if reason.contains("owned by") => {
                Some("chown -R it to the user that Postgres runs as".into())
            }
            Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::ProgramFailed { .. }
            | Self::Diverged { .. }
            | Self::DataDirUnusable { .. }
            | Self::Io { .. }
            | Self::Sql { .. }
            | Self::Unexpected { .. }
            | Self::RewindImpossible { .. }
            | Self::StuckReceiver { .. }
            | Self::Refused { .. } => None,
        }
    }
}
