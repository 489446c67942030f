//! Writes the managed configuration into a data directory: settings, access rules, `standby.signal`.
//!
//! Nothing is written where nothing changes; each write is atomic and durable.

use std::path::Path;

use crate::error::PgError;
use crate::file::{read_optional, remove, replace};
use crate::hba::{AccessRules, Gate};
use crate::settings::{MANAGED_FILE, ManagedSettings, strip_auto_conf, with_include};
use crate::user::OsUser;

/// The mode of configuration files in a data directory.
const MODE: u32 = 0o600;

/// Writes the managed settings, includes them last, and takes what would win over them out of
/// `postgresql.auto.conf`; says whether anything changed, so that a reload is due.
///
/// # Errors
/// [`PgError::Refused`] for a parameter that is not the user's; [`PgError::Io`].
pub fn write_settings(data_dir: &Path, settings: &ManagedSettings, user: &OsUser) -> Result<bool, PgError> {
    let text = settings.render()?;
    let mut changed = replace(&data_dir.join(MANAGED_FILE), text.as_bytes(), user, MODE)?;
    let main = data_dir.join("postgresql.conf");
    if let Some(text) = with_include(&read_optional(&main)?.unwrap_or_default()) {
        changed |= replace(&main, text.as_bytes(), user, MODE)?;
    }
    let auto = data_dir.join("postgresql.auto.conf");
    if let Some(text) = read_optional(&auto)?.as_deref().and_then(strip_auto_conf) {
        changed |= replace(&auto, text.as_bytes(), user, MODE)?;
    }
    Ok(changed)
}

/// Writes `pg_hba.conf` and `pg_ident.conf`, keeping what the user wrote after the managed part; says
/// whether anything changed.
///
/// # Errors
/// [`PgError::Io`]; [`PgError::Refused`] for a name that cannot be written.
pub fn write_access(
    data_dir: &Path,
    rules: &AccessRules,
    gate: Gate,
    user: &OsUser,
) -> Result<bool, PgError> {
    let path = data_dir.join("pg_hba.conf");
    let hba = rules.render_hba(gate, &read_optional(&path)?.unwrap_or_default())?;
    let changed = replace(&path, hba.as_bytes(), user, MODE)?;
    let path = data_dir.join("pg_ident.conf");
    let ident = rules.render_ident(&read_optional(&path)?.unwrap_or_default())?;
    Ok(replace(&path, ident.as_bytes(), user, MODE)? || changed)
}

/// Makes the next start one as a standby, or as a primary; says whether that changed.
///
/// # Errors
/// [`PgError::Io`].
pub fn set_standby_signal(data_dir: &Path, standby: bool, user: &OsUser) -> Result<bool, PgError> {
    remove(&data_dir.join("recovery.signal"))?;
    let path = data_dir.join("standby.signal");
    if standby {
        if path.exists() { Ok(false) } else { replace(&path, b"", user, MODE) }
    } else {
        remove(&path)
    }
}

/// Removes what a copy of another server's data directory brings along: its managed settings, its
/// promotion and standby requests, its process file.
///
/// To be called after a clone or a rewind, before the caller writes its own configuration.
///
/// # Errors
/// [`PgError::Io`].
pub fn after_copy(data_dir: &Path) -> Result<(), PgError> {
    for name in [
        MANAGED_FILE,
        "postmaster.pid",
        "postmaster.opts",
        "promote",
        "standby.signal",
        "recovery.signal",
        "backup_manifest",
    ] {
        remove(&data_dir.join(name))?;
    }
    Ok(())
}
