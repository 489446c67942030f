//! Starts, signals, promotes and kills one instance. Idempotent, each with a deadline.
//!
//! The postmaster's parent is another process, so nothing here waits for a child: a pidfd tells
//! the end of a postmaster, and `/proc` who lives in its data directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::connection::{Session, Target};
use crate::datadir::{
    PostmasterPid, lives_in, processes_in, read_postmaster_pid, running_postmaster, system_pid,
};
use crate::error::PgError;
use crate::file;
use crate::install::Installation;
use crate::probe::{field, rows};
use crate::user::OsUser;

/// Between two looks at a condition that cannot be waited for: 2 ms costs nothing beside a fork.
const POLL: Duration = Duration::from_millis(2);

/// How to start a postmaster, for whoever is its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCommand {
    /// The `postgres` binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// The user that it must run as, with all groups.
    pub user: OsUser,
}

/// Where a postmaster is to listen, and what only the command line may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Addresses, separated by commas; empty listens on the Unix socket only.
    pub listen_addresses: String,
    /// The port.
    pub port: u16,
    /// Directories for Unix sockets; the first one is ours.
    pub socket_dirs: Vec<PathBuf>,
    /// Further parameters, which overrule every file.
    pub overrides: BTreeMap<String, String>,
}

/// Makes the command that starts the server of a data directory.
pub fn start_command(
    install: &Installation,
    data_dir: &Path,
    user: &OsUser,
    options: &StartOptions,
) -> StartCommand {
    let mut args: Vec<OsString> = vec!["-D".into(), data_dir.into()];
    let mut set = |name: &str, value: &str| {
        args.push("-c".into());
        args.push(format!("{name}={value}").into());
    };
    let dirs: Vec<_> = options.socket_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    set("listen_addresses", &options.listen_addresses);
    set("port", &options.port.to_string());
    set("unix_socket_directories", &dirs.join(","));
    set("restart_after_crash", "off");
    if install.major() >= 14 && file::syncfs_tells_errors() {
        // One call instead of an fsync of each of a thousand files, before anything is recovered.
        set("recovery_init_sync_method", "syncfs");
    }
    set("hba_file", &data_dir.join("pg_hba.conf").to_string_lossy());
    set("ident_file", &data_dir.join("pg_ident.conf").to_string_lossy());
    for (name, value) in &options.overrides {
        set(name, value);
    }
    let env = [
        ("LC_ALL", OsString::from("C")),
        ("PATH", crate::program::PATH.into()),
        ("HOME", user.home.clone().into()),
        ("USER", user.name.clone().into()),
        ("PGDATA", data_dir.into()),
    ];
    StartCommand {
        program: install.program("postgres"),
        args,
        env: env.map(|(name, value)| (name.into(), value)).into(),
        directory: data_dir.to_path_buf(),
        user: user.clone(),
    }
}

/// A running postmaster, held by a pidfd, so that never another process is signalled.
#[derive(Debug)]
pub struct Postmaster {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Postmaster {
    /// Finds the running postmaster of a data directory.
    ///
    /// # Errors
    /// [`PgError::Io`] when `postmaster.pid` cannot be read or the process not be held.
    pub fn find(data_dir: &Path) -> Result<Option<Self>, PgError> {
        let Some(PostmasterPid { pid, .. }) = read_postmaster_pid(data_dir)? else { return Ok(None) };
        Self::open(pid, data_dir)
    }

    /// Holds a process, when it is a postmaster or backend of the data directory.
    ///
    /// # Errors
    /// [`PgError::Io`] when the process is there and cannot be held.
    pub fn open(pid: u32, data_dir: &Path) -> Result<Option<Self>, PgError> {
        let Some(number) = system_pid(pid) else { return Ok(None) };
        let failed = |error: std::io::Error| PgError::io("hold the postmaster of", data_dir)(error);
        let fd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        // Held first, looked at then: the number cannot be given to another process in between.
        if !lives_in(pid, data_dir) {
            return Ok(None);
        }
        let fd = watched(fd).map_err(failed)?;
        Ok(Some(Self { pid, fd }))
    }

    /// Returns its process number.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`PgError::TimedOut`].
    pub async fn ended(&self, limit: Duration) -> Result<(), PgError> {
        let timed_out = |_| PgError::TimedOut { operation: "stop the server".into(), limit };
        let ready = tokio::time::timeout(limit, self.fd.readable()).await.map_err(timed_out)?;
        ready.map(drop).map_err(PgError::io("wait for", Path::new("postmaster")))
    }

    /// Sends a signal; one that has ended is no error.
    ///
    /// # Errors
    /// [`PgError::Io`] when this process may not.
    pub fn signal(&self, signal: Signal) -> Result<(), PgError> {
        match pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(PgError::io("signal", Path::new("postmaster"))(error.into())),
        }
    }

    /// Makes it read its configuration.
    ///
    /// # Errors
    /// Those of [`Postmaster::signal`].
    pub fn reload(&self) -> Result<(), PgError> {
        self.signal(Signal::HUP)
    }

    /// Stops it with a checkpoint, ending sessions, and waits for its end.
    ///
    /// # Errors
    /// [`PgError::TimedOut`]; those of [`Postmaster::signal`].
    pub async fn stop_fast(&self, limit: Duration) -> Result<(), PgError> {
        self.signal(Signal::INT)?;
        self.ended(limit).await
    }

    /// Stops it without a checkpoint, as a crash, and waits for its end.
    ///
    /// # Errors
    /// [`PgError::TimedOut`]; those of [`Postmaster::signal`].
    pub async fn stop_immediate(&self, limit: Duration) -> Result<(), PgError> {
        self.signal(Signal::QUIT)?;
        self.ended(limit).await
    }

    /// Makes it read its configuration and waits until a new connection shows that it did.
    ///
    /// # Errors
    /// [`PgError::TimedOut`]; those of [`Session::open`] other than an unreachable server.
    pub async fn reload_and_settle(&self, target: &Target, limit: Duration) -> Result<(), PgError> {
        let operation = "reload the configuration";
        let settle = async {
            let before = config_loaded(&Session::open(target, limit).await?, limit).await?;
            self.reload()?;
            loop {
                let session = Session::open(target, limit).await?;
                if config_loaded(&session, limit).await? != before {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        within(operation, limit, settle).await
    }

    /// Promotes it, and waits until it takes writes.
    ///
    /// # Errors
    /// [`PgError::TimedOut`] after which the promotion may still come; [`PgError::Io`].
    pub async fn promote(
        &self,
        data_dir: &Path,
        target: &Target,
        user: &OsUser,
        limit: Duration,
    ) -> Result<(), PgError> {
        let promoted = async {
            let session = Session::open(target, limit).await?;
            if !in_recovery(&session, limit).await? {
                return Ok(());
            }
            // Not durable: what was asked before a crash must not happen after it.
            let path = data_dir.join("promote");
            std::fs::write(&path, b"").map_err(PgError::io("create", &path))?;
            file::give(&path, user)?;
            self.signal(Signal::USR1)?;
            while in_recovery(&session, limit).await? {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        within("promote", limit, promoted).await
    }
}

/// Watches a pidfd, which becomes readable at the end of its process.
#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which `AsyncFd` does
    // after it has taken it out of the reactor.
    unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }.map_err(Into::into)
}

async fn config_loaded(session: &Session, limit: Duration) -> Result<String, PgError> {
    let sql = "SELECT pg_conf_load_time()";
    let messages = session.simple("ask when the configuration was read", sql, limit).await?;
    let first = rows(&messages).next().and_then(|rows| rows.first().and_then(|row| field(row, 0)));
    first.ok_or_else(|| PgError::unexpected("ask when the configuration was read", "no row"))
}

async fn in_recovery(session: &Session, limit: Duration) -> Result<bool, PgError> {
    let messages = session.simple("ask for the role", "SELECT pg_is_in_recovery()", limit).await?;
    let first = rows(&messages).next().and_then(|rows| rows.first().and_then(|row| field::<String>(row, 0)));
    first.map(|word| word == "t").ok_or_else(|| PgError::unexpected("ask for the role", "no row"))
}

/// Runs `work` under a deadline.
pub(crate) async fn within<T>(
    operation: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let timed_out = |_| PgError::TimedOut { operation: operation.to_owned(), limit };
    tokio::time::timeout(limit, work).await.map_err(timed_out)?
}

/// Waits until the server of a data directory accepts connections.
///
/// # Errors
/// [`PgError::TimedOut`]; [`PgError::DataDirUnusable`] when its postmaster has gone, which the log explains.
pub async fn wait_accepting(
    data_dir: &Path,
    target: &Target,
    limit: Duration,
) -> Result<PostmasterPid, PgError> {
    let accepting = async {
        let mut seen = false;
        loop {
            let running = running_postmaster(data_dir)?;
            if running.is_none() && seen {
                return Err(PgError::unusable(data_dir, "the server ended while it started; see its log"));
            }
            if let Some(file) = running {
                seen = true;
                // Asked only once the file says so: each refused connection would cost the recovery a
                // fork and the log a line.
                if file.accepts() {
                    match Session::open(target, limit).await {
                        Ok(_session) => return Ok(file),
                        Err(PgError::Unreachable { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            tokio::time::sleep(POLL * 2).await;
        }
    };
    within("wait for the server to accept connections", limit, accepting).await
}

/// Kills every process of an instance and looks again until none is left; says how many there were.
///
/// The postmaster is stopped first, so that it starts no new ones. Killing only the postmaster is no
/// fence: a busy backend goes on committing for seconds. The postmaster's parent must wait for it before
/// the next start, which else takes the dead process for a running server (socket lock file).
///
/// # Errors
/// [`PgError::TimedOut`] when some are still there; [`PgError::Io`] when this process may not signal them.
pub async fn kill_everything(data_dir: &Path, limit: Duration) -> Result<usize, PgError> {
    let killed = async {
        let mut killed = 0;
        let postmaster = Postmaster::find(data_dir)?;
        if let Some(postmaster) = &postmaster {
            postmaster.signal(Signal::STOP)?;
        }
        loop {
            let processes = stray_processes(data_dir);
            if processes.is_empty() {
                if let Some(postmaster) = &postmaster {
                    postmaster.ended(limit).await?;
                }
                return Ok(killed);
            }
            killed = killed.max(processes.len());
            for pid in processes {
                signal_process(pid, Signal::KILL)?;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    within("kill the instance", limit, killed).await
}

/// Lists the processes that live in a data directory; before a start there must be none.
pub fn stray_processes(data_dir: &Path) -> Vec<u32> {
    processes_in(data_dir)
}

/// Removes a `postmaster.pid` whose process is gone; says whether there was one.
///
/// # Errors
/// [`PgError::Refused`] while any process of the instance lives; [`PgError::Io`].
pub fn remove_stale_pid_file(data_dir: &Path) -> Result<bool, PgError> {
    if let Some(pid) = stray_processes(data_dir).first() {
        return Err(PgError::Refused {
            what: format!("`{}`", data_dir.join("postmaster.pid").display()),
            reason: format!("process {pid} of the instance still runs"),
        });
    }
    file::remove(&data_dir.join("postmaster.pid"))
}

/// How long a lock file may be without a process number before it is nobody's: a postmaster writes it
/// right after it made the file.
const UNWRITTEN: Duration = Duration::from_millis(500);

/// Removes the lock of a socket that an earlier instance left behind, where Postgres would refuse to start for it: one that
/// its postmaster had made and not yet written when it was killed (`lock file is empty`), and one of this data directory whose
/// process number is another process's by now. Says whether there was one.
///
/// Call it when no process of the data directory is left ([`stray_processes`]). A lock of a server elsewhere stays.
///
/// # Errors
/// [`PgError::Io`].
pub async fn remove_stale_socket_lock(directory: &Path, port: u16, data_dir: &Path) -> Result<bool, PgError> {
    let path = directory.join(format!(".s.PGSQL.{port}.lock"));
    let look = || -> Result<Option<(u64, bool)>, PgError> {
        let inode = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(PgError::io("look at", &path))?.ino(),
        };
        let text = file::read_optional(&path)?.unwrap_or_default();
        // The number of the process, then the data directory (miscinit.c, CreateLockFile).
        Ok(Some((inode, text.lines().next().is_none_or(|line| line.trim().is_empty()))))
    };
    let Some((inode, empty)) = look()? else { return Ok(false) };
    let stale = if empty {
        tokio::time::sleep(UNWRITTEN).await;
        look()? == Some((inode, true))
    } else {
        let text = file::read_optional(&path)?.unwrap_or_default();
        let same = |place: &str| {
            let (one, other) = (std::fs::metadata(place), std::fs::metadata(data_dir));
            one.ok()
                .zip(other.ok())
                .is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        text.lines().nth(1).is_some_and(same)
    };
    if !stale {
        return Ok(false);
    }
    file::remove(&path)
}

/// Sends a signal to a process; one that has ended is no error.
pub(crate) fn signal_process(pid: u32, signal: Signal) -> Result<(), PgError> {
    let Some(number) = system_pid(pid) else { return Ok(()) };
    match kill_process(number, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(PgError::io("signal", Path::new(&format!("/proc/{pid}")))(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_lock_that_is_nobodys_is_removed() {
        let place = tempfile::tempdir().expect("a directory");
        let (data, other) = (place.path().join("data"), place.path().join("other"));
        std::fs::create_dir(&data).expect("make it");
        std::fs::create_dir(&other).expect("make it");
        let lock = place.path().join(".s.PGSQL.5432.lock");
        let check = async |text: Option<String>, removed: bool| {
            if let Some(text) = &text {
                std::fs::write(&lock, text).expect("write");
            }
            let done = remove_stale_socket_lock(place.path(), 5432, &data).await.expect("look");
            assert_eq!(done, removed, "{text:?}");
            assert_eq!(lock.exists(), text.is_some() && !removed, "{text:?}");
        };
        check(None, false).await;
        check(Some(String::new()), true).await; // killed before it was written
        check(Some(format!("{}\n{}\n5\n5432\n", std::process::id(), data.display())), true).await;
        check(Some(format!("{}\n{}\n5\n5432\n", std::process::id(), other.display())), false).await;
    }
}
