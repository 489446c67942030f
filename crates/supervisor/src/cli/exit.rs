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

/// For a refusal that says nothing else.
const LOOK: &str = "`rhone status` and `rhone explain` show what the cluster does";

impl From<OperatorError> for CliError {
    fn from(error: OperatorError) -> Self {
        let message = error.to_string();
        match error {
            // An older member may give none.
            OperatorError::Refused { reason, hint } => {
                Self::new(Exit::Refused, format!("refused, nothing was changed: {reason}"))
                    .hint(hint.unwrap_or_else(|| LOOK.to_owned()))
            }
            OperatorError::NotLeader { .. } => Self::new(Exit::NoQuorum, "no member leads Raft just now")
                .hint("try again in a second; `rhone status` shows who is reachable"),
            OperatorError::NoQuorum => Self::new(Exit::NoQuorum, message)
                .hint("`rhone status` shows who is reachable; start the missing members"),
            OperatorError::Unknown => Self::new(Exit::Unknown, message)
                .hint("`rhone status` and `rhone history` show what became of it"),
            OperatorError::NotImplemented { .. } => Self::new(Exit::Refused, message)
                .hint("a newer rhone may do it: `rhone doctor` shows the members' versions"),
            OperatorError::Failed(_) => Self::failed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_is_without_a_hint() {
        let hint_of = |error: OperatorError| {
            let error = CliError::from(error);
            assert_eq!(error.exit, Exit::Refused);
            error.hint
        };
        let refused = |hint: Option<&str>| OperatorError::Refused {
            reason: "no".to_owned(),
            hint: hint.map(str::to_owned),
        };
        assert_eq!(hint_of(refused(Some("do that"))).as_deref(), Some("do that"));
        assert_eq!(hint_of(refused(None)).as_deref(), Some(LOOK));
        assert!(hint_of(OperatorError::NotImplemented { what: "that".to_owned() }).is_some());
    }
}
