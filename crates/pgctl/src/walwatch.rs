//! Knows the end of a primary's flushed WAL without asking each time: while nothing is written there is
//! nothing to ask.
//!
//! Postgres writes WAL through the file of the current segment, so that each write changes that file's
//! modification time. Of a segment that was at rest between two looks, and of which everything inserted
//! was flushed, the end is known until that time changes (decision 0035).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::connection::LocalConnection;
use crate::error::PgError;
use crate::probe::primary_flush_lsn;
use crate::wal::Lsn;

/// After so many answers of its own it asks all the same, whatever the file system says.
const ASK_ANYWAY: u32 = 9;

/// Watches the end of a primary's flushed WAL.
#[derive(Debug)]
pub struct WalWatch {
    wal_dir: PathBuf,
    /// The segment that the last answer named.
    segment: Option<PathBuf>,
    /// When that was changed, at the last look.
    changed: Option<SystemTime>,
    /// The end, where nothing more can have been flushed since without a change of the segment.
    at_rest: Option<Lsn>,
    answered: u32,
}

impl WalWatch {
    /// Makes a watch that has seen nothing.
    pub fn new(data_dir: &Path) -> Self {
        Self { wal_dir: data_dir.join("pg_wal"), segment: None, changed: None, at_rest: None, answered: 0 }
    }

    /// Forgets what it has seen: to be called when another server may run, or the same one in recovery.
    pub fn forget(&mut self) {
        self.segment = None;
        self.changed = None;
        self.at_rest = None;
    }

    /// Returns the end of the flushed WAL. Two calls have to be further apart than the kernel's clock for
    /// files is coarse: 10 ms.
    ///
    /// # Errors
    /// Those of [`primary_flush_lsn`].
    pub async fn flushed(
        &mut self,
        connection: &mut LocalConnection,
        limit: Duration,
    ) -> Result<Lsn, PgError> {
        let quiet = self.look();
        if let Some(lsn) = self.at_rest.filter(|_| quiet && self.answered < ASK_ANYWAY) {
            self.answered += 1;
            return Ok(lsn);
        }
        self.answered = 0;
        self.at_rest = None;
        let end = primary_flush_lsn(connection, limit).await?;
        let segment = end.segment.map(|name| self.wal_dir.join(name));
        if segment != self.segment {
            self.segment = segment;
            self.changed = None;
        } else if quiet && end.flushed == end.inserted {
            self.at_rest = Some(end.flushed);
        }
        Ok(end.flushed)
    }

    /// Looks whether the segment is as it was at the last look.
    fn look(&mut self) -> bool {
        let before = self.changed;
        self.changed = self.segment.as_ref().and_then(|path| fs::metadata(path).ok()?.modified().ok());
        self.changed.is_some() && self.changed == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_quiet_once_two_looks_saw_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let mut watch = WalWatch::new(dir.path());
        assert!(!watch.look()); // no segment is known
        let path = watch.wal_dir.join("000000010000000000000001");
        watch.segment = Some(path.clone());
        assert!(!watch.look()); // it is not there
        let file = fs::File::create(&path).unwrap();
        assert!(!watch.look()); // seen for the first time
        assert!(watch.look());
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!watch.look()); // written to
        assert!(watch.look());
        watch.forget();
        assert!(!watch.look());
    }
}
