//! What the supervisor and the guardian say to each other, and how it is packed.
//!
//! One message is one packet: four bytes of header, then postcard. The header's layout is fixed for
//! good, so that any two versions can tell each other that they do not understand one another.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::page::{GuardState, Lease};
use crate::runtime::clock::BootTime;

/// The version of the messages. Any change of a type in this file raises it.
pub(super) const VERSION: u8 = 1;
/// The largest message, in bytes: a `Start` with its arguments and environment.
pub(super) const MESSAGE_MAX: usize = 48 * 1024;

const HEADER: usize = 4;
const MAGIC: [u8; 2] = *b"RG";

/// What a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request = 0,
    Reply = 1,
    Event = 2,
    /// The header is all that there is: the sender speaks only its own version.
    WrongVersion = 3,
}

/// Why a packet could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is no message of ours, or damaged.
    Garbage,
    /// It is of this version.
    Version(u8),
}

/// Packs a message into `buffer` and returns the part that it fills. `None`: it is too large.
pub(super) fn pack<'a, T: Serialize>(kind: Kind, message: &T, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let (header, body) = buffer.split_at_mut_checked(HEADER)?;
    header.copy_from_slice(&[MAGIC[0], MAGIC[1], VERSION, kind as u8]);
    let used = postcard::to_slice(message, body).ok()?.len();
    buffer.get(..HEADER.checked_add(used)?)
}

/// Splits a packet into its kind and its body.
pub(super) fn open(packet: &[u8]) -> Result<(Kind, &[u8]), Unreadable> {
    let Some((&[m0, m1, version, kind], body)) = packet.split_first_chunk::<HEADER>() else {
        return Err(Unreadable::Garbage);
    };
    if [m0, m1] != MAGIC {
        return Err(Unreadable::Garbage);
    }
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    match kind {
        0 => Ok((Kind::Request, body)),
        1 => Ok((Kind::Reply, body)),
        2 => Ok((Kind::Event, body)),
        3 => Ok((Kind::WrongVersion, body)),
        _ => Err(Unreadable::Garbage),
    }
}

/// Unpacks the body of a packet.
pub(super) fn unpack<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unreadable> {
    postcard::from_bytes(body).map_err(|_| Unreadable::Garbage)
}

/// A command, with the number by which its reply is known.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) id: u32,
    pub(super) command: Command,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// First on each connection. `claim`: be the supervisor from now on, in place of any other.
    Hello {
        claim: bool,
    },
    Start(StartSpec),
    Status,
    Freeze,
    Thaw {
        sent_ns: u64,
        epoch: u64,
    },
    Kill,
    Signal(PostmasterSignal),
    Kick,
    Release,
    Quit,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u32,
    pub(super) result: Result<Answer, Refusal>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The memfd of the page comes with it when the connection claimed.
    Hello {
        writer: u64,
        cgroup: Option<PathBuf>,
    },
    Started {
        postmaster: u32,
        cgroup: Option<PathBuf>,
    },
    Status(Box<Status>),
    Frozen(FrozenReport),
    Thawed,
    Killed,
    Done,
    Lease(LeaseReport),
}

/// What to start, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// The program, by its full path; afterwards its file name is how left-over processes are known.
    pub program: PathBuf,
    /// Its arguments, without the program itself.
    pub args: Vec<OsString>,
    /// Its whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The data directory. Every process of the instance has it as its current directory.
    pub cwd: PathBuf,
    /// The user to run as; `None` for the guardian's own.
    pub user: Option<RunAs>,
    /// Where standard output and standard error are appended; opened with the rights of `user`.
    pub log_file: PathBuf,
}

/// A user to run as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The signals that a supervisor may send to the postmaster.
///
/// None of them is a fence: see [`super::Guardian::freeze`] and [`super::Guardian::kill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostmasterSignal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM: smart shutdown, waits for the sessions.
    SmartStop,
    /// SIGINT: fast shutdown.
    FastStop,
    /// SIGQUIT: immediate shutdown, recovery at the next start.
    ImmediateStop,
    /// SIGUSR1: look for the promote file.
    LookForPromote,
}

/// Why the guardian did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Another supervisor claimed this guardian.
    #[error("another supervisor has taken over this guardian")]
    Superseded,
    /// Kill first: an instance, or a part of one, is there.
    #[error("an instance is {0} here already")]
    InstanceExists(GuardState),
    /// Kill first, with [`super::emergency::kill_instance`]: a process of a former instance is there.
    #[error("process {pid} of a former instance is still there")]
    LeftOver {
        /// One of them.
        pid: u32,
    },
    /// Nothing to do it to.
    #[error("no instance is running")]
    NoInstance,
    /// Set a lease, or clear it for a standby, before the start.
    #[error("the lease has expired")]
    LeaseExpired,
    /// Thawed only by a renewal of the same epoch, sent after the freeze, that is still valid.
    #[error("no renewal of the same epoch was sent after the freeze")]
    NotRenewed,
    /// The postmaster could not be executed.
    #[error("the postmaster did not start: {stage}: {}", std::io::Error::from_raw_os_error(*.errno))]
    StartFailed {
        /// What failed.
        stage: StartStage,
        /// Why, as an error number of the system.
        errno: i32,
    },
    /// The command makes no sense now, or could not be read.
    #[error("the guardian did not understand the command")]
    BadRequest,
}

/// The step of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum StartStage {
    /// Forking, or preparing to.
    Fork = 0,
    /// Entering the cgroup.
    Cgroup = 1,
    /// Changing to the user.
    User = 2,
    /// Asking to be killed when the guardian dies.
    DeathSignal = 3,
    /// Entering the data directory.
    DataDirectory = 4,
    /// Opening the log file.
    LogFile = 5,
    /// Executing the program.
    Exec = 6,
    /// It ended before it had executed anything.
    Ended = 7,
}

impl StartStage {
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Fork,
            1 => Self::Cgroup,
            2 => Self::User,
            3 => Self::DeathSignal,
            4 => Self::DataDirectory,
            5 => Self::LogFile,
            6 => Self::Exec,
            _ => Self::Ended,
        }
    }
}

impl std::fmt::Display for StartStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fork => "fork",
            Self::Cgroup => "enter the cgroup",
            Self::User => "change the user",
            Self::DeathSignal => "set the parent death signal",
            Self::DataDirectory => "enter the data directory",
            Self::LogFile => "open the log file",
            Self::Exec => "execute the program",
            Self::Ended => "ended before it was executed",
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReport {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Signaled(i32),
    /// It is gone, and nobody knows how.
    Unknown,
}

impl std::fmt::Display for ExitReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signaled(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("is gone"),
        }
    }
}

/// Why an instance was frozen or killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The lease ended.
    LeaseEnded,
    /// The supervisor said so.
    Command,
    /// It was frozen for [`super::FROZEN_LIMIT`].
    FrozenTooLong,
    /// The postmaster ended by itself, and what it left was killed.
    PostmasterExited,
    /// The postmaster never executed its program.
    StartFailed,
}

/// What became of a freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenReport {
    at_ns: u64,
    took_ns: u64,
    /// Why.
    pub cause: Cause,
    /// Whether every process was seen to be stopped. If not, each was told to, and some wait in the
    /// kernel for a disk: they cannot go back to their program without stopping.
    pub verified: bool,
    /// Whether processes were stopped by signals: there is no cgroup, or its freezer took too long.
    pub by_signals: bool,
}

impl FrozenReport {
    pub(super) fn new(at: BootTime, took_ns: u64, cause: Cause) -> Self {
        Self { at_ns: at.as_nanos(), took_ns, cause, verified: false, by_signals: false }
    }

    /// Returns when the freeze was complete: only a renewal sent later can thaw.
    pub fn at(&self) -> BootTime {
        BootTime::from_nanos(self.at_ns)
    }

    /// Returns how long the freezing took.
    pub fn took(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.took_ns)
    }
}

/// The lease that the guardian counts by, and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    deadline_ns: u64,
    sent_ns: u64,
    epoch: u64,
    /// What the guardian is doing.
    pub state: GuardState,
}

impl LeaseReport {
    pub(super) fn new(lease: Lease, state: GuardState) -> Self {
        match lease {
            Lease::NotNeeded => Self { deadline_ns: u64::MAX, sent_ns: 0, epoch: 0, state },
            Lease::Until { deadline, sent, epoch } => {
                Self { deadline_ns: deadline.as_nanos(), sent_ns: sent.as_nanos(), epoch, state }
            }
        }
    }

    /// Returns the lease in force.
    pub fn lease(&self) -> Lease {
        if self.deadline_ns == u64::MAX {
            return Lease::NotNeeded;
        }
        let (deadline, sent) = (BootTime::from_nanos(self.deadline_ns), BootTime::from_nanos(self.sent_ns));
        Lease::Until { deadline, sent, epoch: self.epoch }
    }
}

/// What a guardian tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name, as given at its start.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// The lease in force, and what it is doing.
    pub lease: LeaseReport,
    /// The postmaster, if there is an instance.
    pub postmaster: Option<u32>,
    /// How the last postmaster ended.
    pub last_exit: Option<ExitReport>,
    /// The freeze that holds now.
    pub frozen: Option<FrozenReport>,
    /// How this guardian freezes and kills.
    pub backend: Backend,
    /// The cgroup of the running instance, for [`super::emergency`].
    pub cgroup: Option<PathBuf>,
    /// Why there is none, where there is none.
    pub cgroup_problem: Option<String>,
    /// How often a lease ended and the instance was frozen.
    pub fences: u64,
    /// The longest time from the end of a lease to the confirmed freeze, in nanoseconds.
    pub late_fence_max_ns: u64,
    /// What of the guardian stays in memory.
    pub memory: MemoryLock,
    /// Whether it has a real-time priority, or at least a raised one.
    pub priority: Priority,
    /// Its `oom_score_adj`: -1000 if the kernel never kills it for memory.
    pub oom_score_adj: i32,
}

/// How a guardian freezes and kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// By a cgroup of its own (version 2).
    Cgroup,
    /// By signals to each process.
    Signals,
}

/// What of the guardian stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryLock {
    /// Every page that it ever touched.
    All,
    /// Its stack and the shared page: its code may have to be read from a disk again.
    Partial,
    /// Nothing.
    Nothing,
}

/// The priority that the guardian got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Priority {
    /// `SCHED_FIFO`.
    RealTime,
    /// A negative nice value.
    Raised,
    /// As any other process.
    Normal,
}

/// What the guardian tells every supervisor that is connected, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The postmaster executes its program.
    Started {
        /// Its process number.
        postmaster: u32,
    },
    /// It never did, and nothing of it is left.
    StartFailed {
        /// What failed.
        stage: StartStage,
        /// Why, as an error number of the system.
        errno: i32,
    },
    /// The instance was frozen. Comes again, verified, if it was not at first.
    Frozen(FrozenReport),
    /// The instance runs again.
    Thawed,
    /// The postmaster ended by itself, and nothing of the instance is left.
    Exited(ExitReport),
    /// The instance was killed, and nothing of it is left.
    Killed {
        /// Why.
        cause: Cause,
        /// How the postmaster ended.
        postmaster: ExitReport,
    },
    /// Another supervisor claimed the guardian: this one is not heard any more.
    Superseded,
    /// The guardian is gone, or the connection to it. Made by the client.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_sent() {
        let spec = StartSpec {
            program: "/bin/postgres".into(),
            args: vec!["-D".into(), "/data".into()],
            env: vec![("A".into(), "b c".into())],
            cwd: "/data".into(),
            user: Some(RunAs { uid: 1, gid: 2, groups: vec![3] }),
            log_file: "/log".into(),
        };
        let mut buffer = vec![0; MESSAGE_MAX];
        let request = Request { id: 9, command: Command::Start(spec.clone()) };
        let packet = pack(Kind::Request, &request, &mut buffer).expect("it fits");
        let (kind, body) = open(packet).expect("ours");
        assert_eq!(kind, Kind::Request);
        let Request { id: 9, command: Command::Start(back) } = unpack(body).expect("whole") else {
            panic!("another message");
        };
        assert_eq!(back, spec);
    }

    #[test]
    fn another_version_is_told_apart_from_garbage() {
        assert_eq!(open(b"RG\x07\x00rest"), Err(Unreadable::Version(7)));
        assert_eq!(open(b"XX\x01\x00"), Err(Unreadable::Garbage));
        assert_eq!(open(b"RG"), Err(Unreadable::Garbage));
        assert_eq!(unpack::<Request>(&[0xff; 3]).err(), Some(Unreadable::Garbage));
    }
}
