//! The only place that writes to stdout and stderr.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::exit::{CliError, Exit};

/// Where a command's data and talk go.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    colour: bool,
    interactive: bool,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("colour", &self.colour).finish_non_exhaustive()
    }
}

impl Terminal {
    /// Writes to the process' own stdout and stderr, coloured only on a terminal without `NO_COLOR`.
    pub fn of_process() -> Self {
        let interactive = std::io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            out: Box::new(std::io::stdout()),
            err: Box::new(std::io::stderr()),
            colour: interactive && wanted,
            interactive,
        }
    }

    /// Keeps what is written, for tests: `(stdout, stderr)`.
    pub fn captured() -> (Self, Captured, Captured) {
        let (out, err) = (Captured::default(), Captured::default());
        let terminal = Self {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            colour: false,
            interactive: false,
        };
        (terminal, out, err)
    }

    /// Says whether colours may be used.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Says whether a person looks at stdout.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// Asks a person whether to go on with what loses no data. `yes` answers beforehand, and where nobody is at a
    /// terminal nobody is asked: a script means what it says.
    ///
    /// # Errors
    /// The answer is no.
    pub fn ask(&mut self, what: &str, yes: bool) -> Result<(), CliError> {
        if yes || !self.interactive || !std::io::stdin().is_terminal() {
            return Ok(());
        }
        self.talk(&format!("{what}. Go on? [y/N]"));
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .map_err(|error| CliError::failed(format!("read the answer: {error}")))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(CliError::new(Exit::Refused, "nothing was changed"))
    }

    /// Asks a person to type `name`, which is harder to do by mistake than a yes; `yes` answers beforehand.
    ///
    /// # Errors
    /// The answer is another one, or there is nobody to ask.
    pub fn confirm_by_name(&mut self, what: &str, name: &str, yes: bool) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        if !self.interactive || !std::io::stdin().is_terminal() {
            return Err(CliError::new(Exit::Refused, format!("refused, nothing was changed: {what}"))
                .hint("add `--yes` to do it"));
        }
        self.talk(&format!("{what}. To go on, type the name of the cluster ({name}):"));
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .map_err(|error| CliError::failed(format!("read the answer: {error}")))?;
        if answer.trim() == name { Ok(()) } else { Err(CliError::new(Exit::Refused, "nothing was changed")) }
    }

    /// Writes data. A reader that went away (`| head`) is not an error.
    pub fn data(&mut self, text: &str) {
        let _gone = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    /// Writes a line of talk.
    pub fn talk(&mut self, line: &str) {
        let _gone = writeln!(self.err, "{line}").and_then(|()| self.err.flush());
    }

    /// Writes an error and its hint.
    pub fn error(&mut self, error: &CliError) {
        if error.complete {
            self.talk(&error.message);
        } else {
            self.talk(&format!("error: {}", error.message));
        }
        if let Some(hint) = &error.hint {
            self.talk(&format!("hint: {hint}"));
        }
    }
}

/// What was written to one side of a captured terminal.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// Gives all that was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
