//! Whether the data directory is the one that this member is known to have (decision 0011).
//!
//! `rhone.id` in the data directory and the hard state have to agree on the directory's id and on a
//! nonce that each start of Postgres draws anew; and the file has to be the very one that was
//! written. A directory that was emptied, restored, cloned by hand or came from elsewhere does not:
//! what its member acknowledged may be missing in it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use rhone_consensus::ids::DataId;
use rhone_consensus::store::hard::{DataRecord, HardState};
use rhone_pgctl::error::PgError;
use rhone_pgctl::user::OsUser;

use super::{Local, LocalError};
use crate::runtime::node::chain;

/// The file in the data directory.
const FILE: &str = "rhone.id";

/// What the data directory is to this member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// There is no data directory, or an empty one.
    #[default]
    Nothing,
    /// Data that this member has never had anything to do with, nor any other data.
    Unclaimed,
    /// The one that it has.
    Ours(DataId),
    /// Another one.
    Stranger,
}

/// Looks at a data directory.
///
/// # Errors
/// It cannot be read, which says nothing about whose it is: a disk that fails for a moment, a volume that
/// is being mounted, a missing right.
pub(super) fn look(data_dir: &Path, record: Option<&DataRecord>) -> Result<Seen, PgError> {
    let version = data_dir.join("PG_VERSION");
    if !version.try_exists().map_err(PgError::io("look for", &version))? {
        return Ok(Seen::Nothing);
    }
    let Some(record) = record else { return Ok(Seen::Unclaimed) };
    let path = data_dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::Stranger),
        Err(error) => return Err(PgError::io("read", &path)(error)),
    };
    let Some((id, nonce)) = std::str::from_utf8(&bytes).ok().and_then(parse) else {
        return Ok(Seen::Stranger);
    };
    let known = record.next == Some(nonce)
        || (record.nonce == nonce && (record.file.is_none() || record.file == Some(which(&path)?)));
    Ok(if id == record.id && known { Seen::Ours(id) } else { Seen::Stranger })
}

fn parse(text: &str) -> Option<(DataId, u64)> {
    let (id, nonce) = text.trim().split_once(' ')?;
    Some((id.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?))
}

/// Returns which file this is: its inode, and its birth where the file system keeps it. Not its
/// change time: a `chown` of the whole directory, as at the mount of a volume, changes that.
fn which(path: &Path) -> Result<(u64, u64), PgError> {
    let meta = std::fs::metadata(path).map_err(PgError::io("look at", path))?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok((meta.ino(), born.map_or(0, |at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX))))
}

fn draw() -> Result<u64, LocalError> {
    let drawn = getrandom::u64().map_err(|error| LocalError::Stale(format!("draw a number: {error}")))?;
    Ok(drawn.max(1))
}

/// Writes the file and returns the record that it belongs to.
fn write(data_dir: &Path, user: &OsUser, id: DataId, nonce: u64) -> Result<DataRecord, PgError> {
    let path = data_dir.join(FILE);
    rhone_pgctl::file::replace(&path, format!("{id} {nonce:016x}\n").as_bytes(), user, 0o600)?;
    Ok(DataRecord { id, nonce, next: None, file: Some(which(&path)?) })
}

/// Returns the id under which the data directory counts now: known, whole, and past its floor.
pub(super) fn counts(seen: Seen, hard: &HardState) -> Option<DataId> {
    match seen {
        Seen::Ours(id) if hard.sentinel.is_none() && hard.floor.is_none() => Some(id),
        Seen::Ours(_) | Seen::Nothing | Seen::Unclaimed | Seen::Stranger => None,
    }
}

/// Returns the id of a stopped member's data directory, if what is in it counts.
///
/// # Errors
/// It cannot be read.
pub fn data_here(data_dir: &Path, hard: &HardState) -> Result<Option<DataId>, PgError> {
    Ok(counts(look(data_dir, hard.data.as_ref())?, hard))
}

impl Local {
    /// Looks at the data directory and remembers what it is.
    ///
    /// # Errors
    /// It cannot be read: what is remembered stays.
    pub(super) fn look_at_identity(&self) -> Result<Seen, PgError> {
        let seen = look(self.data_dir(), self.shared.hard.get().data.as_ref());
        let mut facts = self.facts();
        let trouble = seen.as_ref().err().map(|error| chain(error));
        if facts.unread_identity != trouble {
            if let Some(error) = &trouble {
                tracing::warn!(error, "whose data directory this is cannot be read: tries again");
            }
            facts.unread_identity = trouble;
        }
        let seen = seen?;
        if facts.identity != seen {
            // A rewind writes the source's file over it, and then this member's own again.
            if seen == Seen::Stranger && self.shared.hard.get().sentinel.is_none() {
                tracing::warn!(data_dir = %self.data_dir().display(),
                    "this is not the data directory that this member has had: it counts for nothing and is cloned anew");
            }
            facts.identity = seen;
            facts.stopped = None;
        }
        Ok(seen)
    }

    /// Whether this member may take a data directory without a record for its own: its first one, of
    /// a cluster that has none yet.
    pub(super) fn may_claim(&self) -> bool {
        let me = self.shared.me();
        self.state(|state| state.grant.is_none() && state.founder == Some(me))
    }

    /// Whether the data directory must be neither started nor counted.
    pub(super) fn is_strange(&self, seen: Seen) -> bool {
        match seen {
            Seen::Nothing | Seen::Ours(_) => false,
            Seen::Unclaimed => !self.may_claim(),
            Seen::Stranger => true,
        }
    }

    /// Takes the founding data directory for this member's own.
    ///
    /// # Errors
    /// The file or the hard state could not be written.
    pub(super) async fn claim_first(&self) -> Result<(), LocalError> {
        let seen = self.look_at_identity()?;
        // Claimed, it would look like one that is adopted.
        if seen != Seen::Unclaimed || !self.may_claim() || self.not_adopted(seen).is_some() {
            return Ok(());
        }
        let record = self.new_identity(self.data_dir().to_owned()).await?;
        self.update_hard(move |hard| hard.data = Some(record)).await?;
        self.look_at_identity()?;
        Ok(())
    }

    /// Draws a new identity for a data directory and writes it there; the record is for the caller to
    /// keep.
    ///
    /// # Errors
    /// The file could not be written.
    pub(super) async fn new_identity(&self, dir: std::path::PathBuf) -> Result<DataRecord, LocalError> {
        let (id, nonce, user) = (DataId(draw()?), draw()?, self.user.clone());
        self.on_files(move || write(&dir, &user, id, nonce)).await
    }

    /// Writes the file of a record again, where something else has written it over.
    ///
    /// # Errors
    /// The file or the hard state could not be written.
    pub(super) async fn write_identity_again(&self) -> Result<(), LocalError> {
        let Some(record) = self.shared.hard.get().data else { return Ok(()) };
        let (dir, user) = (self.data_dir().to_owned(), self.user.clone());
        let record = self.on_files(move || write(&dir, &user, record.id, record.nonce)).await?;
        self.update_hard(move |hard| hard.data = Some(record)).await?;
        self.look_at_identity()?;
        Ok(())
    }

    /// Makes sure that the data directory is this member's, and draws another nonce before it is
    /// changed: a copy made before is known as one afterwards. Cut anywhere, the old or the new nonce
    /// is accepted.
    ///
    /// # Errors
    /// It is another's; the file or the hard state could not be written.
    pub(super) async fn claim_again(&self) -> Result<(), LocalError> {
        let (Seen::Ours(id), Some(record)) = (self.look_at_identity()?, self.shared.hard.get().data) else {
            return Err(LocalError::Stale(
                "this is not the data directory that this member is known to have".to_owned(),
            ));
        };
        let nonce = draw()?;
        self.update_hard(move |hard| hard.data = Some(DataRecord { next: Some(nonce), ..record })).await?;
        let (dir, user) = (self.data_dir().to_owned(), self.user.clone());
        let record = self.on_files(move || write(&dir, &user, id, nonce)).await?;
        self.update_hard(move |hard| hard.data = Some(record)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a data directory with an identity.
    fn made(dir: &Path) -> DataRecord {
        std::fs::create_dir_all(dir).expect("make the directory");
        std::fs::write(dir.join("PG_VERSION"), "15\n").expect("write");
        write(dir, &OsUser::current(), DataId(7), 1).expect("write the file")
    }

    fn seen(dir: &Path, record: Option<&DataRecord>) -> Seen {
        look(dir, record).expect("read the directory")
    }

    #[test]
    fn a_directory_is_known_by_its_id_its_nonce_and_its_file() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("data");
        assert_eq!(seen(&dir, None), Seen::Nothing);
        let record = made(&dir);
        assert_eq!(seen(&dir, None), Seen::Unclaimed);
        assert_eq!(seen(&dir, Some(&record)), Seen::Ours(DataId(7)));
        // A copy of it, byte for byte, even from the same run.
        let copy = root.path().join("copy");
        std::fs::create_dir(&copy).expect("make the copy");
        for name in ["PG_VERSION", FILE] {
            std::fs::copy(dir.join(name), copy.join(name)).expect("copy");
        }
        assert_eq!(seen(&copy, Some(&record)), Seen::Stranger);
        // Moved and brought back it is the same one.
        std::fs::rename(&dir, root.path().join("aside")).expect("move");
        assert_eq!(seen(&dir, Some(&record)), Seen::Nothing);
        std::fs::rename(root.path().join("aside"), &dir).expect("move back");
        assert_eq!(seen(&dir, Some(&record)), Seen::Ours(DataId(7)));
        // Cut between the steps of a start: the old nonce and the new one count, no older one.
        let cut = DataRecord { next: Some(2), ..record };
        assert_eq!(seen(&dir, Some(&cut)), Seen::Ours(DataId(7)));
        let newer = write(&dir, &OsUser::current(), DataId(7), 2).expect("write");
        assert_eq!(seen(&dir, Some(&cut)), Seen::Ours(DataId(7)));
        assert_eq!(seen(&dir, Some(&newer)), Seen::Ours(DataId(7)));
        assert_eq!(seen(&dir, Some(&record)), Seen::Stranger);
        let other = write(&dir, &OsUser::current(), DataId(8), 2).expect("write");
        assert_eq!(seen(&dir, Some(&newer)), Seen::Stranger);
        assert_eq!(seen(&dir, Some(&other)), Seen::Ours(DataId(8)));
        std::fs::remove_file(dir.join(FILE)).expect("remove");
        assert_eq!(seen(&dir, Some(&other)), Seen::Stranger);
    }

    #[test]
    fn what_cannot_be_read_is_nobodys_data_and_no_strangers() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("data");
        let record = made(&dir);
        // A directory in the file's place: the read fails, also for root.
        std::fs::remove_file(dir.join(FILE)).expect("remove");
        std::fs::create_dir(dir.join(FILE)).expect("make a directory");
        let error = look(&dir, Some(&record)).expect_err("no answer");
        assert!(error.to_string().contains(FILE), "{error}");
        std::fs::remove_dir(dir.join(FILE)).expect("remove");
        assert_eq!(seen(&dir, Some(&record)), Seen::Stranger);
        // A file where the data directory should be.
        let file = root.path().join("file");
        std::fs::write(&file, "").expect("write");
        look(&file, Some(&record)).expect_err("no answer");
    }
}
