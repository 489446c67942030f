//! Makes a new data directory: beside its place first, so that half of one is never in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::datadir::is_empty;
use crate::error::PgError;
use crate::file::{self, give, sibling, sync_parent};
use crate::install::Installation;
use crate::program::Program;
use crate::user::OsUser;

/// How a new data directory is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// The superuser's role.
    pub superuser: String,
    /// The locale; `C.UTF-8` is everywhere and fast.
    pub locale: String,
    /// The size of a WAL segment in MiB; small ones make promotions on slow disks faster.
    pub wal_segment_mib: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { superuser: "postgres".into(), locale: "C.UTF-8".into(), wal_segment_mib: 16 }
    }
}

/// Makes a data directory where there is none, or an empty one.
///
/// # Errors
/// [`PgError::DataDirUnusable`] when something is there, or it is a mount point; those of [`Program::run`].
pub async fn initdb(
    install: &Installation,
    data_dir: &Path,
    user: &OsUser,
    options: &InitOptions,
    limit: Duration,
) -> Result<(), PgError> {
    if data_dir.exists() && !is_empty(data_dir)? {
        return Err(PgError::unusable(data_dir, "it is not empty; initdb is never run over anything"));
    }
    let side = sibling(data_dir, ".rhone-init");
    remove_tree(&side).await?;
    make_private(&side, user)?;
    let program = Program::new(install.program("initdb"), user)
        .arg("-D")
        .arg(&side)
        .args(["-U", &options.superuser, "-E", "UTF8", "--data-checksums"])
        .args(["--auth-local=peer", "--auth-host=scram-sha-256"])
        .arg(format!("--locale={}", options.locale))
        .arg(format!("--wal-segsize={}", options.wal_segment_mib))
        .args(file::no_sync())
        .limit(limit);
    program.run().await?;
    file::sync_tree(&side).await?;
    put_in_place(&side, data_dir)
}

/// Renames a finished side directory to its place, where nothing or an empty directory is.
pub(crate) fn put_in_place(side: &Path, place: &Path) -> Result<(), PgError> {
    fs::rename(side, place).map_err(|error| rename_error(place, error))?;
    sync_parent(place)
}

/// Makes an error of a failed rename; a mount point is a person's to move.
pub(crate) fn rename_error(place: &Path, error: std::io::Error) -> PgError {
    use std::io::ErrorKind::{CrossesDevices, DirectoryNotEmpty, ResourceBusy};
    if matches!(error.kind(), ResourceBusy | CrossesDevices) {
        return PgError::unusable(place, "it is a mount point, so it cannot be replaced by a rename");
    }
    if error.kind() == DirectoryNotEmpty {
        return PgError::unusable(place, "it is not empty");
    }
    PgError::io("replace", place)(error)
}

/// Makes an empty directory that only `user` may enter.
pub(crate) fn make_private(directory: &Path, user: &OsUser) -> Result<(), PgError> {
    fs::create_dir(directory).map_err(PgError::io("create", directory))?;
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory, private).map_err(PgError::io("set the mode of", directory))?;
    give(directory, user)
}

/// Removes a directory with everything in it, off the async runtime; a missing one is no error.
pub(crate) async fn remove_tree(directory: &Path) -> Result<(), PgError> {
    let path: PathBuf = directory.to_path_buf();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
    match removed {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PgError::io("remove", directory)(error))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(PgError::unexpected("remove a directory", error.to_string())),
    }
}
