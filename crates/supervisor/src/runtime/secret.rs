//! The replication password: made once by the founder, handed to members over their peer
//! connections, kept readable by nobody else.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rhone_pgctl::user::OsUser;

/// The file's name within the state directory.
pub const FILE_NAME: &str = "replication.pw";

/// The password and where it is kept. Never printed.
pub struct Secret {
    path: PathBuf,
    given: bool,
    value: Mutex<Option<String>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Secret {
    /// Reads the password from the configured file, or from the state directory if it is there yet.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn open(configured: Option<PathBuf>, state_dir: &std::path::Path) -> std::io::Result<Self> {
        let given = configured.is_some();
        let path = configured.unwrap_or_else(|| state_dir.join(FILE_NAME));
        let value = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !given => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path, given, value: Mutex::new(value) })
    }

    /// Returns the password, if this member has it yet.
    pub fn get(&self) -> Option<String> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Draws a password and keeps it, unless there is one.
    ///
    /// # Errors
    /// No randomness, or the file could not be written.
    pub fn make(&self) -> std::io::Result<()> {
        if self.get().is_some() {
            return Ok(());
        }
        let mut bytes = [0; 24];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        let text = bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        self.keep(&text)
    }

    /// Reads the file again, and returns whether another password is in it. A file that is away or empty changes
    /// nothing.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn reread(&self) -> std::io::Result<bool> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let text = text.trim_end_matches(['\r', '\n']);
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if text.is_empty() || value.as_deref() == Some(text) {
            return Ok(false);
        }
        *value = Some(text.to_owned());
        Ok(true)
    }

    /// Forgets the password that was handed over, so that another one can be; a configured one stays.
    ///
    /// # Errors
    /// The file could not be removed.
    pub fn forget(&self) -> std::io::Result<()> {
        if self.given {
            return Ok(());
        }
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        *value = None;
        Ok(())
    }

    /// Keeps a password that another member handed over, unless there is one.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn keep(&self, text: &str) -> std::io::Result<()> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if value.is_some() || text.is_empty() {
            return Ok(());
        }
        if !self.given {
            rhone_pgctl::file::replace(&self.path, text.as_bytes(), &OsUser::current(), 0o600)
                .map_err(|error| std::io::Error::other(error.to_string()))?;
        }
        *value = Some(text.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_password_in_the_file_is_taken_and_an_empty_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = Secret::open(None, folder.path()).expect("none yet");
        assert!(!secret.reread().expect("no file"));
        secret.keep("first").expect("keep");
        assert!(!secret.reread().expect("the same"));
        for (text, news, now) in
            [("second\n", true, "second"), ("\n", false, "second"), ("second", false, "second")]
        {
            std::fs::write(folder.path().join(FILE_NAME), text).expect("write");
            assert_eq!(secret.reread().expect("read"), news, "{text:?}");
            assert_eq!(secret.get().as_deref(), Some(now), "{text:?}");
        }
    }
}
