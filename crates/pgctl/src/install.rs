//! Finds the programs of a Postgres installation, and their version.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::PgError;
use crate::program::Program;
use crate::user::OsUser;

/// Where Debian and its children install.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The oldest major version that works: `pg_stat_wal_receiver` and reloadable `primary_conninfo`.
pub const OLDEST_MAJOR: u32 = 13;

/// A directory with the programs of one Postgres version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The directory with `postgres`, `initdb` and so on.
    pub bin_dir: PathBuf,
    /// The version, as `server_version_num` counts: 150018 is 15.18.
    pub version: u32,
}

impl Installation {
    /// Finds an installation: the given directory, else the newest below `/usr/lib/postgresql`
    /// that has `major` when one is given, else what is on the `PATH`.
    ///
    /// # Errors
    /// [`PgError::ProgramMissing`], with a hint; [`PgError::Refused`] for a version that is too old.
    pub async fn find(bin_dir: Option<&Path>, major: Option<u32>) -> Result<Self, PgError> {
        let candidates = match bin_dir {
            Some(given) => vec![given.to_path_buf()],
            None => candidates(Path::new(DEBIAN), major),
        };
        for candidate in &candidates {
            if !candidate.join("postgres").is_file() {
                continue;
            }
            let version = version_of(candidate).await?;
            if major.is_some_and(|major| major != version / 10_000) && bin_dir.is_none() {
                continue;
            }
            return Self { bin_dir: candidate.clone(), version }.checked(major);
        }
        let searched = candidates.iter().map(|dir| format!("`{}`", dir.display())).collect::<Vec<_>>();
        Err(PgError::ProgramMissing { program: "postgres".into(), searched: searched.join(", "), major })
    }

    /// Returns the path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Returns the major version, such as 15.
    pub const fn major(&self) -> u32 {
        self.version / 10_000
    }

    fn checked(self, wanted: Option<u32>) -> Result<Self, PgError> {
        let refuse =
            |reason: String| PgError::Refused { what: format!("`{}`", self.bin_dir.display()), reason };
        if self.major() < OLDEST_MAJOR {
            return Err(refuse(format!(
                "it has version {}; the oldest that works is {OLDEST_MAJOR}",
                self.major()
            )));
        }
        match wanted {
            Some(major) if major != self.major() => {
                Err(refuse(format!("it has version {}, the data directory version {major}", self.major())))
            }
            Some(_) | None => Ok(self),
        }
    }
}

fn candidates(root: &Path, major: Option<u32>) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut majors: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable_by(|left, right| right.cmp(left));
    majors.retain(|found| major.is_none_or(|major| major == *found));
    let mut found: Vec<PathBuf> =
        majors.iter().map(|major| root.join(major.to_string()).join("bin")).collect();
    if found.is_empty() {
        found.extend(major.map(|major| root.join(major.to_string()).join("bin")));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| crate::program::PATH.into());
    found.extend(std::env::split_paths(&path));
    found
}

async fn version_of(bin_dir: &Path) -> Result<u32, PgError> {
    // `postgres --version` is answered even to root.
    let program = Program::new(bin_dir.join("postgres"), &OsUser::current()).arg("--version");
    let output = program.limit(Duration::from_secs(10)).run().await?;
    parse_version(&output.stdout)
        .ok_or_else(|| PgError::unexpected("read the version of `postgres`", output.stdout.trim()))
}

/// Parses `postgres (Postgres) 15.18 (Debian 15.18-0+deb12u1)` to 150018.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split(") ").nth(1)?.split_whitespace().next()?;
    let digits = |part: &str| {
        let end = part.find(|char: char| !char.is_ascii_digit()).unwrap_or(part.len());
        part.get(..end)?.parse::<u32>().ok()
    };
    let mut parts = number.split('.');
    let major = digits(parts.next()?)?;
    let minor = parts.next().and_then(digits).unwrap_or(0);
    Some(major * 10_000 + minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_versions() {
        let check = |text: &str, expected: Option<u32>| assert_eq!(parse_version(text), expected, "{text}");
        check("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(150_018));
        check("postgres (PostgreSQL) 18.0\n", Some(180_000));
        check("postgres (PostgreSQL) 19devel\n", Some(190_000));
        check("mysqld 8\n", None);
    }

    #[test]
    fn prefers_the_newest_and_obeys_the_data_directory() {
        let root = tempfile::tempdir().unwrap();
        for major in ["9.6", "14", "15"] {
            fs::create_dir_all(root.path().join(major).join("bin")).unwrap();
        }
        assert_eq!(candidates(root.path(), None)[0], root.path().join("15/bin"));
        assert_eq!(candidates(root.path(), Some(14))[0], root.path().join("14/bin"));
    }
}
