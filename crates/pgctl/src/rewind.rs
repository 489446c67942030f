//! Takes a former primary back to where its WAL left the accepted history, with `pg_rewind`.

use std::path::Path;

use crate::apply::set_standby_signal;
use crate::conninfo::ConnInfo;
use crate::control::{ControlData, DbState};
use crate::datadir::processes_in;
use crate::error::PgError;
use crate::file;
use crate::install::Installation;
use crate::program::Program;
use crate::user::OsUser;

/// What came of a rewind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewindOutcome {
    /// The directory is part of the source's history already: it can follow.
    NotNeeded,
    /// It was taken back; the caller writes its configuration anew.
    Rewound,
    /// It cannot be taken back, for this reason, and must be cloned.
    NeedsClone(String),
}

/// Rewinds a stopped data directory to the history of the source.
///
/// A former primary that crashed is recovered first, by `pg_rewind` itself in a single-user run. The
/// source must have had a checkpoint on its timeline. There is no deadline, and dropping the future
/// does not end the program: a rewind that was cut leaves a directory that can only be cloned. The
/// caller keeps a sentinel on disk meanwhile, and calls [`crate::apply::after_copy`] afterwards.
///
/// # Errors
/// [`PgError::RewindImpossible`] when the target must be prepared first; [`PgError::Unreachable`] when
/// the source does not answer and nothing was changed; those of [`Program::run`].
pub async fn rewind(
    install: &Installation,
    data_dir: &Path,
    user: &OsUser,
    source: &ConnInfo,
    control: &ControlData,
) -> Result<RewindOutcome, PgError> {
    if let Some(pid) = processes_in(data_dir).first() {
        return Err(impossible(format!("process {pid} of the instance still runs")));
    }
    if !control.can_rewind() {
        return Ok(RewindOutcome::NeedsClone("it has neither checksums nor wal_log_hints".into()));
    }
    if control.state == DbState::InArchiveRecovery {
        return Err(impossible(
            "it is a standby that crashed: start it without an upstream, and stop it".into(),
        ));
    }
    // Single-user recovery refuses standby mode; where the control file is clean, the file does no harm.
    set_standby_signal(data_dir, false, user)?;
    crate::process::remove_stale_pid_file(data_dir)?;
    let program = Program::new(install.program("pg_rewind"), user)
        .arg("-D")
        .arg(data_dir)
        .arg(format!("--source-server={source}"))
        .arg("--progress")
        .args(file::no_sync())
        .directory(data_dir)
        .survives_drop();
    let outcome = outcome(program.run().await)?;
    file::sync_tree(data_dir).await?;
    Ok(outcome)
}

fn impossible(reason: String) -> PgError {
    PgError::RewindImpossible { reason }
}

/// Tells what came of it by what `pg_rewind` said (`src/bin/pg_rewind/pg_rewind.c`).
fn outcome(result: Result<crate::program::ProgramOutput, PgError>) -> Result<RewindOutcome, PgError> {
    let error = match result {
        Ok(output)
            if output.stderr.contains("no rewind required")
                || output.stdout.contains("no rewind required") =>
        {
            return Ok(RewindOutcome::NotNeeded);
        }
        Ok(_) => return Ok(RewindOutcome::Rewound),
        Err(error) => error,
    };
    let PgError::ProgramFailed { stderr: said, .. } = &error else { return Err(error) };
    let last = said.lines().rev().find(|line| line.contains("error:") || line.contains("fatal:"));
    let last = last.or_else(|| said.lines().last()).unwrap_or("pg_rewind failed").to_owned();
    if said.contains("rewinding from last common checkpoint") {
        // It had begun to write: the directory is neither the old one nor the new one.
        return Ok(RewindOutcome::NeedsClone(format!("the rewind failed half-way: {last}")));
    }
    let hopeless = [
        "could not find common ancestor",
        "could not find previous WAL record",
        "could not open file",
        "could not read WAL record",
        "needs to use either data checksums",
        "postgres single-user mode in target cluster failed",
        "are from different systems",
        "requested timeline",
    ];
    if hopeless.iter().any(|words| said.contains(words)) {
        return Ok(RewindOutcome::NeedsClone(last));
    }
    let away =
        ["connection to server", "could not connect", "terminating connection", "could not translate host"];
    if away.iter().any(|words| said.contains(words)) {
        return Err(PgError::Unreachable {
            operation: "rewind from the new primary".into(),
            source: Box::new(error),
        });
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::ProgramOutput;

    #[test]
    fn knows_what_pg_rewind_said() {
        let failed = |said: &str| {
            let stderr = said.to_owned();
            let error = PgError::ProgramFailed { program: "pg_rewind".into(), status: "1".into(), stderr };
            match outcome(Err(error)) {
                Ok(outcome) => format!("{outcome:?}"),
                Err(error) => error.to_string(),
            }
        };
        let said = "pg_rewind: no rewind required\n".to_owned();
        let output = ProgramOutput { stdout: String::new(), stderr: said };
        assert_eq!(outcome(Ok(output)).unwrap(), RewindOutcome::NotNeeded);
        assert_eq!(outcome(Ok(ProgramOutput::default())).unwrap(), RewindOutcome::Rewound);
        assert_eq!(
            failed("pg_rewind: error: could not find common ancestor of the source and target timelines"),
            "NeedsClone(\"pg_rewind: error: could not find common ancestor of the source and target timelines\")"
        );
        let half = "pg_rewind: rewinding from last common checkpoint at 0/2 on timeline 1\n\
                    pg_rewind: error: connection to server was lost";
        assert!(failed(half).starts_with("NeedsClone(\"the rewind failed half-way"));
        let away = "pg_rewind: error: connection to server at \"a\" failed: Connection refused";
        assert_eq!(failed(away), "rewind from the new primary: the server does not answer");
    }
}
