//! Exit statuses, and errors that know theirs.

use std::process::ExitCode;

use crate::config::ConfigErrors;
use crate::status::OperatorError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It was tried and failed.
    Failed = 1,
    /// It was called wrongly, or the configuration is wrong.
    Usage = 2,
    /// It was refused for safety; nothing was changed.
    Refused = 3,
    /// There is no quorum, or nobody could be reached.
    NoQuorum = 4,
    /// It may or may not come to pass.
    Unknown = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a command tells when it does not succeed: `error: …`, then `hint: …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// The exit status.
    pub exit: Exit,
    /// What is wrong.
    pub message: String,
    /// What to do, with a command to type.
    pub hint: Option<String>,
    /// The message has its `error:` and `hint:` lines already.
    pub complete: bool,
}

impl CliError {
    /// Makes an error with an exit status and without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, complete: false }
    }

    /// Makes an error of something that was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ConfigErrors> for CliError {
    fn from(errors: ConfigErrors) -> Self {
        Self { complete: true, ..Self::new(Exit::Usage, errors.to_string()) }
    }
}

impl From<anyhow::Error> for CliError {
    /// Prints the chain of causes once.
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<OperatorError> for CliError {
    fn from(error: OperatorError) -> Self {
        let message = error.to_string();
        match error {
            OperatorError::Refused { reason, hint } => {
                Self { hint, ..Self::new(Exit::Refused, format!("refused, nothing was changed: {reason}")) }
            }
            OperatorError::NotLeader { .. } => Self::new(Exit::NoQuorum, "no member leads Raft just now")
                .hint("try again in a second; `rhone status` shows who is reachable"),
            OperatorError::NoQuorum => Self::new(Exit::NoQuorum, message)
                .hint("`rhone status` shows who is reachable; start the missing members"),
            OperatorError::Unknown => Self::new(Exit::Unknown, message)
                .hint("`rhone status` and `rhone history` show what became of it"),
            OperatorError::NotImplemented { .. } => Self::new(Exit::Refused, message),
            OperatorError::Failed(_) => Self::failed(message),
        }
    }
}
