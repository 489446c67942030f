//! What a data directory is, and which processes live in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use crate::control::{ControlData, read_control};
use crate::error::PgError;
use crate::file::read_optional;
use crate::install::Installation;
use crate::user::OsUser;

/// What is at the place of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDir {
    /// Nothing.
    Missing,
    /// An empty directory.
    Empty,
    /// Files, but no data directory; the reason says what is missing.
    NotPostgres(String),
    /// A data directory.
    Present(Box<DataDirFacts>),
}

/// What a data directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirFacts {
    /// The major version that made it.
    pub major: u32,
    /// Its control file.
    pub control: ControlData,
    /// Whether it would start as a standby.
    pub standby_signal: bool,
}

/// What the lines of `postmaster.pid` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostmasterPid {
    /// The postmaster's process.
    pub pid: u32,
    /// The data directory, as the postmaster was given it.
    pub data_dir: PathBuf,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// The port, once it listens.
    pub port: Option<u16>,
    /// The directory of its first Unix socket, once it listens.
    pub socket_dir: Option<PathBuf>,
    /// `starting`, `ready`, `standby` or `stopping`.
    pub status: Option<String>,
}

impl PostmasterPid {
    /// Parses the file's content; `None` while it is being written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next()?.parse::<i64>().ok()?.unsigned_abs();
        Some(Self {
            pid: u32::try_from(pid).ok()?,
            data_dir: PathBuf::from(lines.next()?),
            started: lines.next()?.parse().ok()?,
            port: lines.next().and_then(|line| line.parse().ok()),
            socket_dir: lines.next().filter(|line| !line.is_empty()).map(PathBuf::from),
            status: lines.nth(2).filter(|line| !line.is_empty()).map(ToOwned::to_owned),
        })
    }

    /// Returns whether the postmaster says that it lets sessions in: a hot standby does once it is
    /// consistent.
    pub fn accepts(&self) -> bool {
        self.status.as_deref() == Some("ready")
    }
}

/// Looks at a data directory without starting anything.
///
/// # Errors
/// [`PgError::DataDirUnusable`] for a wrong owner, mode or major version; else those of [`read_control`].
pub async fn inspect(
    data_dir: &Path,
    install: &Installation,
    user: &OsUser,
    limit: Duration,
) -> Result<DataDir, PgError> {
    let meta = match fs::metadata(data_dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DataDir::Missing),
        Err(error) => return Err(PgError::io("look at", data_dir)(error)),
    };
    if !meta.is_dir() {
        return Ok(DataDir::NotPostgres("it is not a directory".into()));
    }
    let Some(version) = read_optional(&data_dir.join("PG_VERSION"))? else {
        return Ok(if is_empty(data_dir)? {
            DataDir::Empty
        } else {
            DataDir::NotPostgres("it has files, but no PG_VERSION".into())
        });
    };
    if !data_dir.join("global/pg_control").is_file() {
        return Ok(DataDir::NotPostgres("it has no global/pg_control".into()));
    }
    if meta.uid() != user.uid {
        let owner = OsUser::by_uid(meta.uid()).name;
        return Err(PgError::unusable(data_dir, format!("it is owned by `{owner}`, not `{}`", user.name)));
    }
    if meta.mode() & 0o027 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(PgError::unusable(data_dir, format!("its mode is {mode:04o}, not 0700 or 0750")));
    }
    let major = version.trim().parse().unwrap_or(0);
    if major != install.major() {
        let reason = format!("version {} made it, the programs are of {}", version.trim(), install.major());
        return Err(PgError::unusable(data_dir, reason));
    }
    let control = read_control(install, data_dir, user, limit).await?;
    let standby_signal = data_dir.join("standby.signal").exists();
    Ok(DataDir::Present(Box::new(DataDirFacts { major, control, standby_signal })))
}

/// Returns the major version that made a data directory, `None` when it has none.
///
/// # Errors
/// [`PgError::Io`] when `PG_VERSION` cannot be read.
pub fn major_of(data_dir: &Path) -> Result<Option<u32>, PgError> {
    Ok(read_optional(&data_dir.join("PG_VERSION"))?.and_then(|text| text.trim().parse().ok()))
}

/// Says whether a directory has nothing in it; a `lost+found` of a fresh file system does not count.
pub(crate) fn is_empty(directory: &Path) -> Result<bool, PgError> {
    let entries = fs::read_dir(directory).map_err(PgError::io("list", directory))?;
    Ok(entries.flatten().all(|entry| entry.file_name() == "lost+found"))
}

/// Reads `postmaster.pid`, whether or not that process lives.
///
/// # Errors
/// [`PgError::Io`] when it is there and cannot be read.
pub fn read_postmaster_pid(data_dir: &Path) -> Result<Option<PostmasterPid>, PgError> {
    Ok(read_optional(&data_dir.join("postmaster.pid"))?.as_deref().and_then(PostmasterPid::parse))
}

/// Returns the running postmaster of a data directory, never a process that got its old number.
///
/// # Errors
/// [`PgError::Io`] when `postmaster.pid` cannot be read.
pub fn running_postmaster(data_dir: &Path) -> Result<Option<PostmasterPid>, PgError> {
    Ok(read_postmaster_pid(data_dir)?.filter(|file| lives_in(file.pid, data_dir)))
}

/// Says whether a process is a Postgres process whose working directory is this data directory.
pub fn lives_in(pid: u32, data_dir: &Path) -> bool {
    is_postgres(pid) && works_in(pid, data_dir)
}

fn works_in(pid: u32, data_dir: &Path) -> bool {
    let Ok(wanted) = fs::metadata(data_dir) else { return false };
    // By device and inode: it sees through bind mounts, links and other spellings.
    fs::metadata(format!("/proc/{pid}/cwd"))
        .is_ok_and(|cwd| cwd.dev() == wanted.dev() && cwd.ino() == wanted.ino())
}

fn is_postgres(pid: u32) -> bool {
    let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    // After an upgrade the kernel adds " (deleted)".
    matches!(name.split(' ').next(), Some("postgres" | "postmaster" | "pg_rewind"))
}

/// Lists every Postgres process whose working directory is the data directory, and their children
/// there (an archive command); an administrator's shell in it is left alone.
pub fn processes_in(data_dir: &Path) -> Vec<u32> {
    let here: Vec<u32> = all_processes().filter(|pid| works_in(*pid, data_dir)).collect();
    let mut found: Vec<u32> = here.iter().copied().filter(|pid| is_postgres(*pid)).collect();
    loop {
        let more: Vec<u32> = here
            .iter()
            .copied()
            .filter(|pid| {
                !found.contains(pid) && parent_of(*pid).is_some_and(|parent| found.contains(&parent))
            })
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn all_processes() -> impl Iterator<Item = u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}

/// Reads the parent of a process from `/proc/PID/stat`.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have blanks and brackets: the fields begin after the last one.
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Makes the system's process number of ours.
pub(crate) fn system_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_postmaster_pid() {
        let text = "4711\n/var/lib/pg\n1763709000\n5432\n/run/pg\n127.0.0.1\n   123   456\nready   \n";
        let file = PostmasterPid::parse(text).unwrap();
        assert_eq!((file.pid, file.port, file.status.as_deref()), (4711, Some(5432), Some("ready")));
        assert_eq!(file.socket_dir.as_deref(), Some(Path::new("/run/pg")));
        assert!(file.accepts());
        // Written line by line at the start; a single-user server writes its number negative.
        assert_eq!(PostmasterPid::parse("4711\n/d\n1\n").unwrap().port, None);
        assert_eq!(PostmasterPid::parse("-4711\n/d\n1\n").unwrap().pid, 4711);
        assert_eq!(PostmasterPid::parse(""), None);
    }

    #[test]
    fn no_other_process_is_taken_for_a_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("postmaster.pid"), format!("{}\n/d\n1\n", std::process::id())).unwrap();
        assert_eq!(running_postmaster(dir.path()).unwrap(), None);
        assert!(processes_in(dir.path()).is_empty());
    }
}
