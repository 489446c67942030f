//! What is wrong with a configuration, in words for the person who wrote it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; none when the fault is not at one place.
    pub line: Option<usize>,
    /// The variable that set the value, when the environment did.
    pub variable: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// All that is wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

impl ConfigErrors {
    /// Sorts problems by line; those without a line come last.
    pub(super) fn new(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.line.unwrap_or(usize::MAX));
        Self { path: path.to_owned(), problems }
    }

    /// The file itself cannot be read.
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "name the file with `-c FILE`; deploy/rhone.example.toml is one to start from"
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            "run as the user that runs rhone, or as root"
        } else {
            "it must be a readable text file"
        };
        let message = format!("cannot be read: {error}");
        let problem = Problem { line: None, variable: None, message, hint: Some(hint.to_owned()) };
        Self { path: path.to_owned(), problems: vec![problem] }
    }
}

/// Prints `error: FILE:LINE: …` and `hint: …` for each problem, a line each.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match (&problem.variable, problem.line) {
                (Some(variable), _) => write!(f, "error: ${variable}: {}", problem.message)?,
                (None, Some(line)) => {
                    write!(f, "error: {}:{line}: {}", self.path.display(), problem.message)?;
                }
                (None, None) => write!(f, "error: {}: {}", self.path.display(), problem.message)?,
            }
            if let Some(hint) = &problem.hint {
                write!(f, "\nhint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
