//! The demo's temporary folder, and who owns what in it.

use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::cli::CliError;

/// The user that runs Postgres when the demo is started by root.
pub(super) const POSTGRES_USER: &str = "postgres";

/// A user and group by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    user: u32,
    group: u32,
}

#[cfg(test)]
impl Owner {
    /// Makes a program run as this user.
    pub(super) fn apply(self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        command.uid(self.user).gid(self.group);
    }
}

/// Finds who must run Postgres: none when that is the caller, who is not root.
pub(super) fn postgres_owner() -> Result<Option<Owner>, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.first() != Some(&POSTGRES_USER) {
            return None;
        }
        Some(Owner { user: fields.get(2)?.parse().ok()?, group: fields.get(3)?.parse().ok()? })
    });
    found.map(Some).ok_or_else(|| {
        CliError::failed(format!("Postgres refuses to run as root, and there is no user {POSTGRES_USER}"))
            .hint("run the demo as an ordinary user, or `adduser --system --group postgres`")
    })
}

/// Makes the demo's own folder, with a path short enough for Unix sockets.
pub(super) fn create() -> Result<PathBuf, CliError> {
    let drawn =
        getrandom::u32().map_err(|error| CliError::failed(format!("draw a random number: {error}")))?;
    let path = PathBuf::from(format!("/tmp/rhone-demo-{drawn:08x}"));
    // Postgres' user must be able to pass through.
    make(&path, 0o755, None)?;
    Ok(path)
}

/// Makes one folder with a mode and an owner.
pub(super) fn make(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), CliError> {
    let failed =
        |error: std::io::Error| CliError::failed(format!("make the folder {}: {error}", path.display()));
    std::fs::DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The process' umask may have taken rights away.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, permissions).map_err(failed)?;
    if let Some(Owner { user, group }) = owner {
        chown(path, Some(user), Some(group)).map_err(failed)?;
    }
    Ok(())
}
