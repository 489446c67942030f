//! Runs one Postgres program as the right user, with a deadline, and keeps the last lines it said.
//!
//! The program gets a cleared environment and a process group of its own, which is killed as a
//! whole at the deadline or when the future is dropped, unless it was asked to survive that.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::error::PgError;
use crate::user::OsUser;

/// The search path that programs get.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long what a program has printed is still read after its end.
const THE_REST: Duration = Duration::from_millis(200);
/// Enough for the longest program output that is parsed; more is cut off.
const STDOUT_LIMIT: usize = 16 << 20;
/// Lines of standard error that are kept for the error message.
const KEPT_LINES: usize = 20;
/// Bytes of one line of standard error that are kept.
const LINE_LIMIT: usize = 2000;

/// A program to be run.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    user: OsUser,
    directory: PathBuf,
    limit: Option<Duration>,
    survives: bool,
}

/// What a program that succeeded printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramOutput {
    /// Its standard output.
    pub stdout: String,
    /// The last lines of its standard error.
    pub stderr: String,
}

impl Program {
    /// Makes a program that runs as `user`, in `/`, without a deadline.
    pub fn new(path: impl Into<PathBuf>, user: &OsUser) -> Self {
        Self {
            path: path.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            user: user.clone(),
            directory: PathBuf::from("/"),
            limit: None,
            survives: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable; nothing is inherited.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    /// Sets the deadline, at which the program and its children are killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Lets the program go on when the future is dropped, as `pg_rewind` must.
    #[must_use]
    pub fn survives_drop(mut self) -> Self {
        self.survives = true;
        self
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// [`PgError::ProgramMissing`], [`PgError::ProgramFailed`] with the last lines of standard
    /// error, or [`PgError::TimedOut`] when the deadline was passed and the program killed.
    pub async fn run(&self) -> Result<ProgramOutput, PgError> {
        let mut child = self.spawn()?;
        let mut guard = GroupGuard { group: child_pid(&child), armed: !self.survives };
        let work = collect(&mut child);
        let finished = match self.limit {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work)
                .await
                .map_err(|_| PgError::TimedOut { operation: format!("`{}`", self.name()), limit })?,
        };
        let (status, output) = finished.map_err(PgError::io("wait for", &self.path))?;
        guard.armed = false;
        if status.success() {
            Ok(output)
        } else {
            let said = if output.stderr.is_empty() { tail_of(&output.stdout) } else { output.stderr };
            Err(PgError::ProgramFailed { program: self.name(), status: status.to_string(), stderr: said })
        }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    fn spawn(&self) -> Result<Child, PgError> {
        let mut command = Command::new(&self.path);
        command
            .args(&self.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PATH)
            .env("HOME", &self.user.home)
            .env("USER", &self.user.name)
            .env("LOGNAME", &self.user.name)
            .envs(&self.env)
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        become_user(&mut command, &self.user);
        command.spawn().map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound && !self.path.exists() {
                let searched = self.path.parent().unwrap_or(Path::new("PATH")).display().to_string();
                PgError::ProgramMissing { program: self.name(), searched, major: None }
            } else {
                PgError::Io { operation: "run", path: self.path.clone(), source }
            }
        })
    }
}

/// Makes the command run as `user`, with its supplementary groups.
#[allow(unsafe_code, reason = "pre_exec is the only way to set supplementary groups before exec")]
fn become_user(command: &mut Command, user: &OsUser) {
    use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
    if user.is_current() {
        return;
    }
    let uid = rustix::process::Uid::from_raw(user.uid);
    let gid = rustix::process::Gid::from_raw(user.gid);
    let groups: Vec<_> = user.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
    // SAFETY: the closure makes three raw system calls and neither allocates nor locks. The child
    // of a fork has a single thread, so what is set for the thread is set for the process.
    unsafe {
        command.pre_exec(move || {
            set_thread_groups(&groups)?;
            set_thread_gid(gid)?;
            set_thread_uid(uid)?;
            Ok(())
        });
    }
}

fn child_pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
}

/// Kills a process group when dropped, unless disarmed.
struct GroupGuard {
    group: Option<Pid>,
    armed: bool,
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let (true, Some(group)) = (self.armed, self.group) {
            // The group may be gone already, which is what is wanted.
            rustix::process::kill_process_group(group, Signal::KILL).ok();
        }
    }
}

async fn collect(child: &mut Child) -> std::io::Result<(ExitStatus, ProgramOutput)> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut bytes, mut tail) = (Vec::new(), Tail::default());
    let status = {
        let mut reading =
            std::pin::pin!(async { tokio::try_join!(read_all(out, &mut bytes), read_tail(err, &mut tail)) });
        tokio::select! {
            read = &mut reading => {
                read?;
                child.wait().await?
            }
            // The end of the program counts: what it left running may keep the pipes open.
            status = child.wait() => {
                if let Ok(read) = tokio::time::timeout(THE_REST, &mut reading).await {
                    read?;
                }
                status?
            }
        }
    };
    Ok((
        status,
        ProgramOutput { stdout: String::from_utf8_lossy(&bytes).into_owned(), stderr: tail.finish() },
    ))
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut chunk = vec![0_u8; 8192];
    loop {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        let room = STDOUT_LIMIT.saturating_sub(bytes.len()).min(count);
        bytes.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

async fn read_tail(pipe: Option<impl AsyncRead + Unpin>, tail: &mut Tail) -> std::io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut chunk = vec![0_u8; 4096];
    loop {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        tail.push(chunk.get(..count).unwrap_or_default());
    }
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.end_line();
            } else if self.partial.len() < LINE_LIMIT {
                self.partial.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn finish(mut self) -> String {
        self.end_line();
        Vec::from(self.lines).join("\n")
    }
}

fn tail_of(text: &str) -> String {
    let mut tail = Tail::default();
    tail.push(text.as_bytes());
    tail.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh", &OsUser::current()).args(["-c", script])
    }

    #[test]
    fn keeps_the_last_lines() {
        let text = (1..=30).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\r\n");
        let kept = tail_of(&text);
        assert_eq!(kept.lines().count(), KEPT_LINES);
        assert!(kept.starts_with("line 11\n") && kept.ends_with("line 30"));
    }

    #[tokio::test]
    async fn reports_what_a_failing_program_said() {
        let error = shell("echo no such role >&2; exit 3").run().await.unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed (exit status: 3): no such role");
        let out = shell("echo $LC_ALL; pwd").run().await.unwrap();
        assert_eq!(out.stdout, "C\n/\n");
        let missing = Program::new("/nowhere/pg_rewind", &OsUser::current()).run().await.unwrap_err();
        assert_eq!(missing.hint().unwrap(), "apt-get install postgresql");
    }

    #[tokio::test]
    async fn kills_the_whole_group_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", mark.display());
        let error = shell(&script).limit(Duration::from_millis(300)).run().await.unwrap_err();
        assert!(matches!(error, PgError::TimedOut { .. }), "{error}");
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
        for _ in 0..500 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("grandchild {pid} still runs");
    }

    #[tokio::test]
    async fn becomes_another_user() {
        if rustix::process::geteuid().as_raw() != 0 {
            return;
        }
        let nobody = OsUser::by_name("nobody").unwrap();
        let out = Program::new("/usr/bin/id", &nobody).arg("-un").run().await.unwrap();
        assert_eq!(out.stdout.trim(), "nobody");
    }
}
