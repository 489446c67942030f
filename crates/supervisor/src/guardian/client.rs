//! The supervisor's side of the guardian.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, recvmsg, send, socket_with,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use super::page::SharedPage;
use super::sys;
use super::wire::{
    self, Answer, Command, Event, FrozenReport, Kind, LeaseReport, PostmasterSignal, Refusal, Reply, Request,
    StartSpec, Status, Unreadable,
};
use crate::runtime::clock::{BootTime, Clock};

/// How long a guardian may take to come up, and to take a supervisor on.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to answer a command that waits for nothing.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long the kernel may take to execute a program: a cold disk is slow.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long killing may take: processes in the kernel die when their disk answers.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How many events wait for a receiver that is slow; it then misses the oldest.
const EVENTS_KEPT: usize = 64;

/// Where the guardian is, and how to start it.
#[derive(Clone, Debug)]
pub struct GuardianOptions {
    /// The `rhone` binary. Only read to start a guardian.
    pub exe: PathBuf,
    /// The directory of its lock and socket; must exist, and belong to the supervisor's user.
    pub state_dir: PathBuf,
    /// What it is called in `ps` and in its status.
    pub name: String,
    /// Whether it may use a cgroup.
    pub fence: FenceChoice,
    /// The machine's watchdog, and after how many seconds without a word it resets the machine. Read when a guardian
    /// is started: one that is adopted keeps what it was started with.
    pub watchdog: Option<(PathBuf, u32)>,
    /// Postgres's port, whose packets the kernel drops from the end of the lease on; none: it does not. Read as the watchdog is.
    pub dead_man: Option<u16>,
}

/// How a guardian is told to freeze and kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FenceChoice {
    /// By a cgroup where it can, else by signals.
    #[default]
    Auto,
    /// By signals even where it could use a cgroup.
    Signals,
}

impl FenceChoice {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Signals => "signals",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Signals].into_iter().find(|choice| choice.as_str() == text)
    }
}

/// Why the guardian could not be used, one variant for each thing a caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardianError {
    /// It could not be started: a person must look.
    #[error("start the guardian of {state_dir}: {reason}")]
    Spawn {
        /// Its state directory.
        state_dir: PathBuf,
        /// What it said, or what the system said.
        reason: String,
    },
    /// It did not answer in time: hung or stopped. Fence without it, then kill it by `pid`.
    #[error("the guardian (process {pid:?}) did not answer `{operation}` within {limit:?}")]
    Hung {
        /// What it was asked.
        operation: &'static str,
        /// Its process, where known.
        pid: Option<u32>,
        /// How long was waited.
        limit: Duration,
    },
    /// It, or the connection to it, is gone: connect again, and fence without it if it is dead.
    #[error("the guardian is gone (asked to `{operation}`)")]
    Gone {
        /// What it was asked.
        operation: &'static str,
    },
    /// It is of another version of Rhone, and keeps its instance: stop that, and the guardian, first.
    #[error("the guardian speaks version {theirs} of the protocol and this supervisor version {ours}")]
    Version {
        /// This program's.
        ours: u8,
        /// The guardian's.
        theirs: u8,
    },
    /// It refused: nothing has changed.
    #[error("the guardian refused to {operation}")]
    Refused {
        /// What it was asked.
        operation: &'static str,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// The system failed.
    #[error("{operation} (guardian)")]
    System {
        /// What was attempted.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A guardian that this supervisor has claimed. Dropping it, or dying, changes nothing for the instance.
#[derive(Debug)]
pub struct Guardian {
    page: SharedPage,
    link: Arc<Link>,
    reader: JoinHandle<()>,
    pidfd: AsyncFd<OwnedFd>,
    adopted: bool,
    cgroup: Mutex<Option<PathBuf>>,
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Guardian {
    /// Claims the guardian of a state directory, and starts it first if there is none.
    ///
    /// An instance that it has goes on; see [`SharedPage::state`] and [`Guardian::status`]. The claim
    /// supersedes any other supervisor's; the lease that this one set stays in force until another is set.
    ///
    /// # Errors
    /// See [`GuardianError`]. After `Hung` there is one, which holds the lock and does not answer.
    pub async fn connect_or_spawn(options: GuardianOptions) -> Result<Self, GuardianError> {
        let end = Clock.now().saturating_add(CONNECT_LIMIT);
        let mut spawned = false;
        loop {
            match Self::connect(&options.state_dir, !spawned).await {
                Err(GuardianError::Gone { .. }) if Clock.now() < end => {}
                Err(GuardianError::Gone { .. }) => {
                    let reason = "it says that it started, and nothing listens".to_owned();
                    return Err(GuardianError::Spawn { state_dir: options.state_dir, reason });
                }
                result => return result,
            }
            // It exits at once if another one got the lock first, which is then the one to connect to.
            spawned = spawn(&options).await?;
            if !spawned {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Claims a guardian that is there.
    ///
    /// # Errors
    /// [`GuardianError::Gone`] if there is none.
    pub async fn adopt(state_dir: &Path) -> Result<Self, GuardianError> {
        Self::connect(state_dir, true).await
    }

    async fn connect(state_dir: &Path, adopted: bool) -> Result<Self, GuardianError> {
        let socket = open_socket(state_dir)?;
        let pid = peer(&socket)?;
        let system = |operation| move |source| GuardianError::System { operation, source };
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|_| GONE)?;
        let pidfd = sys::watch(pidfd).map_err(system("watch the guardian"))?;
        let link = Arc::new(Link {
            socket: sys::watch(socket).map_err(system("watch the socket"))?,
            waiting: Mutex::new(Waiting { closed: false, replies: BTreeMap::new() }),
            events: broadcast::channel(EVENTS_KEPT).0,
            next_id: AtomicU32::new(1),
            pid,
        });
        let (page, cgroup) = within("connect", Some(pid), CONNECT_LIMIT, link.hello()).await?;
        let reader = tokio::spawn(read_replies(Arc::clone(&link)));
        Ok(Self { page, link, reader, pidfd, adopted, cgroup: Mutex::new(cgroup) })
    }

    /// Returns the shared page: the lease, and the state without asking.
    pub fn page(&self) -> &SharedPage {
        &self.page
    }

    /// Returns the guardian's process number.
    pub fn pid(&self) -> u32 {
        self.link.pid.as_raw_pid().unsigned_abs()
    }

    /// Returns whether this guardian was there before, perhaps with an instance.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Returns the cgroup of the instance that was last seen or started here, for [`super::emergency`].
    pub fn cgroup(&self) -> Option<PathBuf> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a receiver of every event from now on. The last is [`Event::Lost`].
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.link.events.subscribe()
    }

    /// Waits until the guardian's process has ended. Then nobody may be primary here: call
    /// [`super::emergency::kill_instance`].
    pub async fn died(&self) {
        loop {
            match self.pidfd.readable().await {
                Ok(_ready) => return,
                Err(_) if rustix::process::test_kill_process(self.link.pid).is_err() => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Starts an instance and waits until its program is executed; returns the postmaster's number.
    ///
    /// The lease comes first: [`SharedPage::clear_lease`] for a standby, [`SharedPage::set_lease`] for a
    /// primary. Without either the guardian refuses.
    ///
    /// # Errors
    /// Refused with an instance there, with left-over processes of one, or if the start failed.
    pub async fn start(&self, spec: StartSpec) -> Result<u32, GuardianError> {
        let Answer::Started { postmaster, cgroup } =
            self.ask("start", Command::Start(spec), START_LIMIT).await?
        else {
            return Err(unexpected("start"));
        };
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = cgroup;
        Ok(postmaster)
    }

    /// Returns what the guardian knows.
    ///
    /// # Errors
    /// Hung or gone.
    pub async fn status(&self) -> Result<Status, GuardianError> {
        let Answer::Status(status) = self.ask("status", Command::Status, ANSWER_LIMIT).await? else {
            return Err(unexpected("status"));
        };
        Ok(*status)
    }

    /// Freezes the instance. It is not thawed by renewals, but by [`Guardian::thaw`].
    ///
    /// # Errors
    /// Refused without an instance. A freeze that is not yet verified is no error: see the report.
    pub async fn freeze(&self) -> Result<FrozenReport, GuardianError> {
        let Answer::Frozen(report) = self.ask("freeze", Command::Freeze, ANSWER_LIMIT).await? else {
            return Err(unexpected("freeze"));
        };
        Ok(report)
    }

    /// Thaws the instance by a renewal of `epoch` sent at `sent`, which must be after the freeze; the
    /// page must hold a lease of that epoch, renewed after the freeze, or need none.
    ///
    /// # Errors
    /// Refused with [`Refusal::NotRenewed`] if not so.
    pub async fn thaw(&self, epoch: u64, sent: BootTime) -> Result<(), GuardianError> {
        let command = Command::Thaw { sent_ns: sent.as_nanos(), epoch };
        let Answer::Thawed = self.ask("thaw", command, ANSWER_LIMIT).await? else {
            return Err(unexpected("thaw"));
        };
        Ok(())
    }

    /// Kills the instance and returns when no process of it is left. Done already is done.
    ///
    /// # Errors
    /// [`GuardianError::Hung`] after 30 s: the guardian goes on killing, and says so by an event.
    pub async fn kill(&self) -> Result<(), GuardianError> {
        let Answer::Killed = self.ask("kill", Command::Kill, KILL_LIMIT).await? else {
            return Err(unexpected("kill"));
        };
        Ok(())
    }

    /// Sends a signal to the postmaster.
    ///
    /// # Errors
    /// Refused without an instance.
    pub async fn signal(&self, signal: PostmasterSignal) -> Result<(), GuardianError> {
        let Answer::Done = self.ask("signal", Command::Signal(signal), ANSWER_LIMIT).await? else {
            return Err(unexpected("signal"));
        };
        Ok(())
    }

    /// Makes the guardian read the page now, and returns the lease that is in force.
    ///
    /// # Errors
    /// Hung or gone: then nobody may be primary here.
    pub async fn kick(&self) -> Result<LeaseReport, GuardianError> {
        let Answer::Lease(report) = self.ask("kick", Command::Kick, ANSWER_LIMIT).await? else {
            return Err(unexpected("kick"));
        };
        Ok(report)
    }

    /// Lets an instance that had a lease go on without one; the page must say that none is needed.
    ///
    /// Only for an instance that is known to be a standby and was never promoted, such as when a grant
    /// was withdrawn before the promotion.
    ///
    /// # Errors
    /// Hung or gone.
    pub async fn release(&self) -> Result<LeaseReport, GuardianError> {
        let Answer::Lease(report) = self.ask("release", Command::Release, ANSWER_LIMIT).await? else {
            return Err(unexpected("release"));
        };
        Ok(report)
    }

    /// Ends the guardian.
    ///
    /// # Errors
    /// Refused while there is an instance.
    pub async fn quit(&self) -> Result<(), GuardianError> {
        match self.ask("quit", Command::Quit, ANSWER_LIMIT).await {
            Ok(Answer::Done) | Err(GuardianError::Gone { .. }) => {}
            Ok(_) => return Err(unexpected("quit")),
            Err(error) => return Err(error),
        }
        within("quit", Some(self.link.pid), ANSWER_LIMIT, async {
            self.died().await;
            Ok(())
        })
        .await
    }

    async fn ask(
        &self,
        operation: &'static str,
        command: Command,
        limit: Duration,
    ) -> Result<Answer, GuardianError> {
        let asked = async {
            let result = self.link.request(operation, command).await?;
            result.map_err(|refusal| GuardianError::Refused { operation, refusal })
        };
        within(operation, Some(self.link.pid), limit, asked).await
    }
}

const GONE: GuardianError = GuardianError::Gone { operation: "connect" };

fn unexpected(operation: &'static str) -> GuardianError {
    GuardianError::System { operation, source: io::Error::from(io::ErrorKind::InvalidData) }
}

async fn within<T>(
    operation: &'static str,
    pid: Option<Pid>,
    limit: Duration,
    work: impl Future<Output = Result<T, GuardianError>>,
) -> Result<T, GuardianError> {
    let pid = pid.map(|pid| pid.as_raw_pid().unsigned_abs());
    tokio::time::timeout(limit, work).await.unwrap_or(Err(GuardianError::Hung { operation, pid, limit }))
}

/// Starts a guardian and waits until it listens. `false`: there is another one already.
async fn spawn(options: &GuardianOptions) -> Result<bool, GuardianError> {
    let failed = |reason: String| GuardianError::Spawn { state_dir: options.state_dir.clone(), reason };
    let mut command = tokio::process::Command::new(&options.exe);
    command.arg("guardian").arg("--state-dir").arg(&options.state_dir).arg("--name").arg(&options.name);
    command.arg("--fence").arg(options.fence.as_str());
    if let Some((device, seconds)) = &options.watchdog {
        command.arg("--watchdog").arg(device).arg(seconds.to_string());
    }
    if let Some(port) = options.dead_man {
        command.arg("--dead-man").arg(port.to_string());
    }
    command.arg("--detach");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for variable in crate::notify::VARIABLES {
        command.env_remove(variable);
    }
    let output = within("start", None, CONNECT_LIMIT, async {
        command.output().await.map_err(|error| failed(error.to_string()))
    })
    .await?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(code) if code == i32::from(super::daemon::ANOTHER_ONE) => Ok(false),
        _ => Err(failed(format!("{}; {}", String::from_utf8_lossy(&output.stderr).trim(), output.status))),
    }
}

fn open_socket(state_dir: &Path) -> Result<OwnedFd, GuardianError> {
    use rustix::fs::{Mode, OFlags};
    let system = |source: Errno| GuardianError::System { operation: "connect", source: source.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(state_dir, flags, Mode::empty()).map_err(system)?;
    let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, kind, None).map_err(system)?;
    let address = SocketAddrUnix::new(super::control::address(dir.as_fd())).map_err(system)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::CONNRESET) => Err(GONE),
        // Its queue of connections is full, which only a guardian that does not run lets happen.
        Err(Errno::AGAIN) => {
            Err(GuardianError::Hung { operation: "connect", pid: None, limit: Duration::ZERO })
        }
        Err(error) => Err(system(error)),
    }
}

/// Returns the process that listens at the other end, if it is this user's or root's.
fn peer(socket: &OwnedFd) -> Result<Pid, GuardianError> {
    let system = |source| GuardianError::System { operation: "connect", source };
    let peer = rustix::net::sockopt::socket_peercred(socket).map_err(|error| system(error.into()))?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(system(io::Error::from(io::ErrorKind::PermissionDenied)));
    }
    Ok(peer.pid)
}

/// Those who wait for a reply.
#[derive(Debug)]
struct Waiting {
    closed: bool,
    replies: BTreeMap<u32, oneshot::Sender<Result<Answer, Refusal>>>,
}

#[derive(Debug)]
struct Link {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    events: broadcast::Sender<Event>,
    next_id: AtomicU32,
    pid: Pid,
}

impl Link {
    /// Claims the guardian. Returns its page, and the cgroup of its instance.
    async fn hello(&self) -> Result<(SharedPage, Option<PathBuf>), GuardianError> {
        let wrong = |source| GuardianError::System { operation: "connect", source };
        self.send("connect", &Request { id: 0, command: Command::Hello { claim: true } }).await?;
        let garbage = || wrong(io::Error::from(io::ErrorKind::InvalidData));
        let version = |theirs| GuardianError::Version { ours: wire::VERSION, theirs };
        let mut buffer = vec![0; wire::MESSAGE_MAX];
        let (used, memfd) = loop {
            let mut ready = self.socket.readable().await.map_err(wrong)?;
            let (used, memfd) = match ready.try_io(|socket| receive_with_fd(socket.get_ref(), &mut buffer)) {
                Ok(received) => received.map_err(wrong)?,
                Err(_would_block) => continue,
            };
            if used == 0 {
                return Err(GONE);
            }
            // What happens to the instance meanwhile may be told before the answer, as a lease that ends while one
            // supervisor follows another; what came of it is seen at the first look.
            if !matches!(wire::open(buffer.get(..used).unwrap_or_default()), Ok((Kind::Event, _))) {
                break (used, memfd);
            }
        };
        let body = match wire::open(buffer.get(..used).unwrap_or_default()) {
            Ok((Kind::Reply, body)) => body,
            Err(Unreadable::Version(theirs)) => return Err(version(theirs)),
            Ok(_) | Err(Unreadable::Garbage) => return Err(garbage()),
        };
        let reply: Reply = wire::unpack(body).map_err(|_| garbage())?;
        let answer =
            reply.result.map_err(|refusal| GuardianError::Refused { operation: "connect", refusal })?;
        let (Answer::Hello { writer, cgroup }, Some(memfd)) = (answer, memfd) else { return Err(garbage()) };
        let page = SharedPage::adopt(&memfd, writer).map_err(wrong)?;
        Ok((page.ok_or_else(|| version(wire::VERSION))?, cgroup))
    }

    async fn send(&self, operation: &'static str, request: &Request) -> Result<(), GuardianError> {
        let mut buffer = vec![0; wire::MESSAGE_MAX];
        let too_large = GuardianError::Refused { operation, refusal: Refusal::BadRequest };
        let packet = wire::pack(Kind::Request, request, &mut buffer).ok_or(too_large)?;
        let gone = |_| GuardianError::Gone { operation };
        loop {
            let mut ready = self.socket.writable().await.map_err(gone)?;
            match ready.try_io(|socket| Ok(send(socket.get_ref(), packet, SendFlags::NOSIGNAL)?)) {
                Ok(sent) => return sent.map(drop).map_err(gone),
                Err(_would_block) => {}
            }
        }
    }

    async fn request(
        &self,
        operation: &'static str,
        command: Command,
    ) -> Result<Result<Answer, Refusal>, GuardianError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return Err(GuardianError::Gone { operation });
            }
            // Whoever gave up waiting needs no reply any more.
            waiting.replies.retain(|_, tell| !tell.is_closed());
            waiting.replies.insert(id, tell);
        }
        self.send(operation, &Request { id, command }).await?;
        told.await.map_err(|_| GuardianError::Gone { operation })
    }

    /// Hands one packet to whom it concerns.
    fn deliver(&self, packet: &[u8]) {
        match wire::open(packet) {
            Ok((Kind::Reply, body)) => {
                let Ok(reply) = wire::unpack::<Reply>(body) else { return };
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(tell) = waiting.replies.remove(&reply.id) {
                    // It gave up waiting.
                    drop(tell.send(reply.result));
                }
            }
            Ok((Kind::Event, body)) => {
                if let Ok(event) = wire::unpack(body) {
                    // Nobody listens.
                    drop(self.events.send(event));
                }
            }
            Ok((Kind::Request | Kind::WrongVersion, _)) | Err(_) => {}
        }
    }
}

/// Reads until the guardian or the connection is gone, then wakes everybody who waits.
async fn read_replies(link: Arc<Link>) {
    let mut buffer = vec![0_u8; wire::MESSAGE_MAX];
    while let Ok(mut ready) = link.socket.readable().await {
        let received =
            ready.try_io(|socket| Ok(recv(socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty())?));
        match received {
            Ok(Ok((used, _))) if used > 0 => link.deliver(buffer.get(..used).unwrap_or_default()),
            Ok(_) => break,
            Err(_would_block) => {}
        }
    }
    let mut waiting = link.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.closed = true;
    waiting.replies.clear();
    drop(waiting);
    drop(link.events.send(Event::Lost));
}

fn receive_with_fd(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut memfd = None;
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = received {
            memfd = fds.last();
        }
    }
    Ok((message.bytes, memfd))
}
