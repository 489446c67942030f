//! A server that does not start: what its log says, and whether the settings are to blame.

use std::path::PathBuf;
use std::time::Duration;

use rhone_pgctl::PgError;
use rhone_pgctl::connection::Session;
use rhone_pgctl::refused::refused_lines;
use rhone_pgctl::rehearse::{Beside, fatal_line, rehearse};

use super::{LOG_FILE, Local, LocalError};

/// How long a rehearsed start may take on a slow card.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(20);

/// How much of a log is looked at.
const LOG_TAIL: u64 = 64 << 10;

/// How long the server may take to say what it does not take.
const SQL_LIMIT: Duration = Duration::from_secs(3);

impl Local {
    fn log_path(&self) -> PathBuf {
        self.work_dir().join(LOG_FILE)
    }

    /// Returns where the server's log ends now.
    pub(super) fn log_end(&self) -> u64 {
        std::fs::metadata(self.log_path()).map_or(0, |meta| meta.len())
    }

    /// Makes of a start that failed what the server said since `from`, and takes note of whether its settings
    /// are to blame: then neither a rewind nor a copy helps, and other settings do.
    pub(super) async fn blame(&self, from: u64, error: LocalError) -> LocalError {
        let said = self.said_since(from);
        let by_settings = self.blamed_settings().await;
        let why = by_settings.clone().or(said);
        let mut facts = self.facts();
        facts.unfit = by_settings.is_some();
        facts.start_failure = Some(why.clone().unwrap_or_else(|| error.to_string()));
        drop(facts);
        match why {
            Some(reason) => PgError::DataDirUnusable { data_dir: self.data_dir().to_owned(), reason }.into(),
            None => error,
        }
    }

    fn said_since(&self, from: u64) -> Option<String> {
        let news = self.log_end().saturating_sub(from).min(LOG_TAIL);
        let text = rhone_pgctl::file::tail(&self.log_path(), news).ok()?;
        let fatal = ["FATAL:  ", "PANIC:  "].iter().any(|level| text.contains(level));
        fatal.then(|| fatal_line(&text))
    }

    /// Returns why the server would not start with the user's parameters, where it would without them.
    async fn blamed_settings(&self) -> Option<String> {
        let mut settings = self.settings(None, self.minimums().await.ok()?).ok()?;
        if settings.parameters.is_empty() {
            return None;
        }
        let limit = (Beside::Nothing, REHEARSAL_LIMIT);
        let with = rehearse(&self.install, self.data_dir(), &settings, &self.user, limit).await.ok()??;
        settings.parameters.clear();
        let without = rehearse(&self.install, self.data_dir(), &settings, &self.user, limit).await.ok()?;
        without.is_none().then_some(with)
    }

    /// Asks the running server which lines of its files it does not take.
    pub(super) async fn note_refused_lines(&self) {
        let asked = async {
            let session = Session::open(&self.target(), SQL_LIMIT).await?;
            refused_lines(&session, self.install.major(), SQL_LIMIT).await
        };
        // One that does not answer is asked after the next change.
        let found = asked.await.unwrap_or_default();
        if !found.is_empty() {
            tracing::warn!(lines = ?found, "postgres does not take lines of its configuration");
        }
        self.facts().refused_lines = found;
    }
}
