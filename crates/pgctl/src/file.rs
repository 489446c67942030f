//! Replaces small files atomically and durably, and removes them durably.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::error::PgError;
use crate::user::OsUser;

/// Replaces a file by `content` as one step: after a crash either the old or the new one is there.
///
/// Does nothing, and returns `false`, when the file already has this content. An existing file
/// keeps its mode; a new one gets `mode`. The file belongs to `owner` afterwards.
///
/// # Errors
/// [`PgError::Io`] naming the step that failed.
pub fn replace(path: &Path, content: &[u8], owner: &OsUser, mode: u32) -> Result<bool, PgError> {
    let old = fs::symlink_metadata(path).ok();
    if old.is_some() && fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    let mode = old.filter(fs::Metadata::is_file).map_or(mode, |meta| meta.permissions().mode() & 0o777);
    let temporary = sibling(path, ".rhone-new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PgError::io("remove", &temporary)(error));
        }
        Ok(()) | Err(_) => {}
    }
    // `create_new` follows no link that somebody may have put there.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(PgError::io("create", &temporary))?;
    file.write_all(content).map_err(PgError::io("write", &temporary))?;
    give(&temporary, owner)?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(PgError::io("set the mode of", &temporary))?;
    file.sync_all().map_err(PgError::io("sync", &temporary))?;
    drop(file);
    fs::rename(&temporary, path).map_err(PgError::io("replace", path))?;
    sync_parent(path)?;
    Ok(true)
}

/// Removes a file so that it stays removed after a crash; says whether it was there.
///
/// # Errors
/// [`PgError::Io`] when it cannot be removed.
pub fn remove(path: &Path) -> Result<bool, PgError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PgError::io("remove", path)(error)),
    }
}

/// Writes a directory's entries to disk.
///
/// # Errors
/// [`PgError::Io`] when it cannot be opened or synced.
pub fn sync_directory(path: &Path) -> Result<(), PgError> {
    let directory = File::open(path).map_err(PgError::io("open", path))?;
    directory.sync_all().map_err(PgError::io("sync", path))
}

/// Returns whether the kernel reports a failed write to `syncfs`: since Linux 5.8 (see
/// `recovery_init_sync_method` in Postgres's manual).
pub(crate) fn syncfs_tells_errors() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

/// The argument with which Postgres's programs leave syncing to [`sync_tree`], where that can be
/// trusted: they sync each of a thousand files.
pub(crate) fn no_sync() -> Option<&'static str> {
    syncfs_tells_errors().then_some("--no-sync")
}

/// Writes a data directory to disk, whole: one call for each filesystem that it may be on. Does
/// nothing where [`no_sync`] is `None`.
///
/// # Errors
/// [`PgError::Io`] when a write failed.
pub(crate) async fn sync_tree(data_dir: &Path) -> Result<(), PgError> {
    if !syncfs_tells_errors() {
        return Ok(());
    }
    let data_dir = data_dir.to_path_buf();
    let work = move || {
        let spaces = fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten();
        let spaces: Vec<PathBuf> = spaces.map(|entry| entry.path()).collect();
        let wal = data_dir.join("pg_wal");
        for path in [data_dir, wal].into_iter().chain(spaces) {
            let file = File::open(&path).map_err(PgError::io("open", &path))?;
            rustix::fs::syncfs(&file).map_err(|error| PgError::io("sync", &path)(error.into()))?;
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| PgError::unexpected("sync the data directory", error.to_string()))?
}

/// The file of [`try_writing`].
const TRIAL: &str = "rhone.trial";

/// Writes a few bytes into a file in a directory, durably, and removes it: returns when the disk has taken them.
///
/// # Errors
/// [`PgError::Io`]: it refuses.
pub fn try_writing(directory: &Path) -> Result<(), PgError> {
    let path = directory.join(TRIAL);
    let mut file = File::create(&path).map_err(PgError::io("create", &path))?;
    file.write_all(b"?").map_err(PgError::io("write", &path))?;
    file.sync_data().map_err(PgError::io("sync", &path))?;
    fs::remove_file(&path).map_err(PgError::io("remove", &path))
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), PgError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_directory(parent)
}

/// Gives a file to a user, where this process is another one.
pub(crate) fn give(path: &Path, owner: &OsUser) -> Result<(), PgError> {
    if owner.is_current() {
        return Ok(());
    }
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(PgError::io("change the owner of", path))
}

/// Makes the path of a sibling: the same name with `suffix`.
pub(crate) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// Reads a text file, `None` when there is none.
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>, PgError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PgError::io("read", path)(error)),
    }
}

/// Returns the last `bytes` of a text file, from wherever that begins.
///
/// # Errors
/// [`PgError::Io`].
pub fn tail(path: &Path, bytes: u64) -> Result<String, PgError> {
    use std::io::{Read, Seek, SeekFrom};
    let failed = || PgError::io("read the end of", path);
    let mut file = File::open(path).map_err(failed())?;
    let length = file.metadata().map_err(failed())?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes))).map_err(failed())?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content).map_err(failed())?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_only_what_differs_and_keeps_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        let me = OsUser::current();
        assert!(replace(&path, b"one", &me, 0o600).unwrap());
        assert!(!replace(&path, b"one", &me, 0o600).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(replace(&path, b"two", &me, 0o600).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        try_writing(dir.path()).unwrap();
        try_writing(&dir.path().join("missing")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
