//! What the store is kept on: records by key, and snapshots by name. sled and files here; the
//! simulation has a [`Medium`] of its own, whose power can be cut.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The suffix of a snapshot's name.
const SUFFIX: &str = "snap";

/// One record to be written, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Under which key.
    pub key: Vec<u8>,
    /// What; nothing removes it.
    pub value: Option<Vec<u8>>,
}

/// Keeps bytes. What a call wrote survives a power cut when the call returns.
pub trait Medium: Send + Debug {
    /// Returns the record under `key`.
    ///
    /// # Errors
    /// It cannot be read.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Returns the records whose keys begin with `prefix`, by key.
    ///
    /// # Errors
    /// They cannot be read.
    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Makes all changes, or none.
    ///
    /// # Errors
    /// The disk refused: what it holds now is unknown, and nothing more may be asked of it.
    fn commit(&mut self, changes: Vec<Change>) -> io::Result<()>;

    /// Writes a snapshot whole, and only then removes the others.
    ///
    /// # Errors
    /// As [`Medium::commit`].
    fn save_snapshot(&mut self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Returns the snapshots; half-written ones are none.
    ///
    /// # Errors
    /// They cannot be read.
    fn snapshots(&mut self) -> io::Result<Vec<(String, Vec<u8>)>>;

    /// Makes durability a lie, so that a test can show that it notices.
    #[cfg(test)]
    fn flush_only(&mut self) {}
}

/// sled, made durable, and a directory of snapshots beside it.
#[derive(Debug)]
pub(crate) struct SledMedium {
    db: sled::Db,
    /// Our own descriptor of sled's file: any one syncs the inode.
    file: File,
    /// Where the snapshots are.
    snapshots: PathBuf,
    /// Whether flush alone counts as durable: only to prove that the crash test notices.
    flush_only: bool,
}

fn other(error: &sled::Error) -> io::Error {
    io::Error::other(format!("sled: {error}"))
}

impl SledMedium {
    /// Opens or makes the database in `log`; both directories exist.
    pub(crate) fn open(log: &Path, snapshots: &Path) -> Result<Self, sled::Error> {
        let config = sled::Config::new().path(log).flush_every_ms(None).cache_capacity(4 << 20);
        let db = config.open()?;
        let file = File::open(log.join("db"))?;
        let medium = Self { db, file, snapshots: snapshots.to_owned(), flush_only: false };
        medium.db.flush()?;
        medium.file.sync_all()?;
        for entry in fs::read_dir(log)? {
            let path = entry?.path();
            if path.is_file() {
                File::open(path)?.sync_all()?;
            }
        }
        super::sync_dir(log)?;
        Ok(medium)
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.snapshots)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == SUFFIX) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Medium for SledMedium {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let found = self.db.get(key).map_err(|error| other(&error))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let pair = |item: sled::Result<(sled::IVec, sled::IVec)>| {
            item.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(|error| other(&error))
        };
        self.db.scan_prefix(prefix).map(pair).collect()
    }

    fn commit(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for Change { key, value } in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(|error| other(&error))?;
        self.db.flush().map_err(|error| other(&error))?;
        if self.flush_only {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn save_snapshot(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.snapshots.join(name).with_extension(SUFFIX);
        let temporary = path.with_extension("tmp");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        super::sync_dir(&self.snapshots)?;
        for old in self.files()? {
            if old != path {
                fs::remove_file(old)?;
            }
        }
        Ok(())
    }

    fn snapshots(&mut self) -> io::Result<Vec<(String, Vec<u8>)>> {
        for entry in fs::read_dir(&self.snapshots)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(path)?;
            }
        }
        let read = |path: PathBuf| Ok((path.display().to_string(), fs::read(&path)?));
        self.files()?.into_iter().map(read).collect()
    }

    #[cfg(test)]
    fn flush_only(&mut self) {
        self.flush_only = true;
    }
}
