//! Rehearses a start with other settings, in a scratch directory beside the data directory.
//!
//! Postgres itself reads the configuration as a start would, loads the libraries, checks what goes together,
//! and maps its shared memory. It opens no port, reads no data, and the data directory is not written to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::error::PgError;
use crate::file::{give, replace, sibling};
use crate::initdb::{make_private, remove_tree};
use crate::install::Installation;
use crate::program::Program;
use crate::settings::{MANAGED_FILE, ManagedSettings};
use crate::user::OsUser;

/// Where a start is rehearsed.
const SCRATCH: &str = ".rhone-rehearsal";

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The first major version that says how much shared memory it would take.
const TELLS_MEMORY: u32 = 15;

/// What a server wants to find, though a rehearsal leaves it empty.
const EMPTY: [&str; 8] =
    ["base", "pg_wal", "pg_notify", "pg_dynshmem", "pg_stat", "pg_stat_tmp", "pg_subtrans", "pg_tblspc"];

/// What belongs to the running server alone, or is made anew.
const LEFT_OUT: [&str; 6] =
    ["postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "PG_VERSION", MANAGED_FILE];

/// Whether a server of this data directory runs meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// One runs, and has memory that only one of the two can have.
    Running,
    /// None does: all that a start needs is tried.
    Nothing,
}

/// Returns why a server with these settings would not start here, in its own words; none: nothing speaks
/// against it.
///
/// # Errors
/// It could not be rehearsed: [`PgError::Io`], [`PgError::TimedOut`], [`PgError::ProgramMissing`].
pub async fn rehearse(
    install: &Installation,
    data_dir: &Path,
    settings: &ManagedSettings,
    user: &OsUser,
    (beside, limit): (Beside, Duration),
) -> Result<Option<String>, PgError> {
    if install.major() < TELLS_MEMORY {
        return Ok(None);
    }
    // There is one stage.
    let _turn = TURN.lock().await;
    let scratch = sibling(data_dir, SCRATCH);
    remove_tree(&scratch).await?;
    set_the_stage(data_dir, &scratch, settings, user)?;
    let outcome = perform(install, &scratch, user, (beside, limit)).await;
    remove_tree(&scratch).await?;
    outcome
}

fn set_the_stage(
    data_dir: &Path,
    scratch: &Path,
    settings: &ManagedSettings,
    user: &OsUser,
) -> Result<(), PgError> {
    make_private(scratch, user)?;
    for name in EMPTY.iter().chain(&["global"]) {
        make_private(&scratch.join(name), user)?;
    }
    for name in ["PG_VERSION", "global/pg_control"] {
        let (from, to) = (data_dir.join(name), scratch.join(name));
        fs::copy(&from, &to).map_err(PgError::io("copy", &from))?;
        give(&to, user)?;
    }
    // A person's own files may include others beside them.
    for entry in fs::read_dir(data_dir).map_err(PgError::io("list", data_dir))?.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let servers =
            text.starts_with("pg_") && !text.ends_with(".conf") || text == "global" || text == "base";
        if !servers && !LEFT_OUT.contains(&text.as_ref()) {
            let to = scratch.join(&name);
            symlink(entry.path(), &to).map_err(PgError::io("link", &to))?;
        }
    }
    replace(&scratch.join(MANAGED_FILE), settings.render()?.as_bytes(), user, 0o600)?;
    Ok(())
}

async fn perform(
    install: &Installation,
    scratch: &Path,
    user: &OsUser,
    (beside, limit): (Beside, Duration),
) -> Result<Option<String>, PgError> {
    let here = format!("data_directory={}", scratch.display());
    let program = || {
        Program::new(install.program("postgres"), user).env("PGDATA", scratch).directory(scratch).limit(limit)
    };
    let asked = program().arg("-D").arg(scratch).args(["-c", &here, "-C", "shared_memory_size"]);
    let said = match asked.run().await {
        Ok(output) => output.stdout,
        Err(PgError::ProgramFailed { stderr, .. }) => return Ok(Some(fatal_line(&stderr))),
        Err(error) => return Err(error),
    };
    let megabytes: u64 = said.trim().parse().map_err(|_| PgError::unexpected("ask for the memory", said))?;
    if let Some(most) = memory_megabytes().filter(|most| megabytes > *most) {
        return Ok(Some(format!(
            "it would take {megabytes} MB of shared memory, and the machine has {most} MB"
        )));
    }
    let mut check = program().args(["--check", "-D"]).arg(scratch).args(["-c", &here]);
    if beside == Beside::Running {
        if !maps_without_counting() {
            return Ok(None);
        }
        // Huge pages may all be in use by the server that runs.
        check = check.args(["-c", "huge_pages=off"]);
    }
    match check.run().await {
        Ok(_) => Ok(None),
        Err(PgError::ProgramFailed { stderr, .. }) => Ok(Some(fatal_line(&stderr))),
        Err(error) => Err(error),
    }
}

/// Returns the line that says why a server did not start: the last that is fatal, else the last.
pub fn fatal_line(log: &str) -> String {
    let worst = |line: &&str| ["FATAL:  ", "PANIC:  "].iter().any(|level| line.contains(level));
    let line = log.lines().rfind(worst).or_else(|| log.lines().rfind(|line| !line.trim().is_empty()));
    let line = line.unwrap_or("it says nothing");
    ["FATAL:  ", "PANIC:  "]
        .iter()
        .find_map(|level| line.split_once(level))
        .map_or(line, |(_, why)| why)
        .to_owned()
}

/// Returns the memory that a server may have at most, in MB: the machine's, or less by a control group.
fn memory_megabytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let machine = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    Some(group_limit().map_or(machine, |limit| limit.min(machine)) >> 20)
}

fn group_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(own);
    let limits = folder.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup"));
    limits.filter_map(|path| fs::read_to_string(path.join("memory.max")).ok()?.trim().parse().ok()).min()
}

/// Whether a second mapping beside the running server's says something: where the kernel counts all that is
/// mapped, there may be room for one of them only.
fn maps_without_counting() -> bool {
    fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() != "2")
}

#[cfg(test)]
mod tests {
    use super::fatal_line;

    #[test]
    fn the_line_that_says_why_is_the_fatal_one() {
        #[track_caller]
        fn check(log: &str, expected: &str) {
            assert_eq!(fatal_line(log), expected);
        }
        check(
            "2026 [7] LOG:  starting\n2026 [7] FATAL:  could not access file \"nope\": No such file\n2026 [7] LOG:  shut down\n",
            "could not access file \"nope\": No such file",
        );
        check(
            "postgres: superuser_reserved_connections (5) must be less\n\n",
            "postgres: superuser_reserved_connections (5) must be less",
        );
        check("", "it says nothing");
    }
}
