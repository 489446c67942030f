//! A guardian, a Postgres under it, and a writer that notices every pause.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rhone::guardian::{Event, FenceChoice, Guardian, GuardianOptions, RunAs, StartSpec, emergency};
use rhone::runtime::clock::{BootTime, Clock};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_postgres::NoTls;

/// How long a condition may take to come true before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Clock.now().saturating_add(PATIENCE);
    while !condition() {
        assert!(Clock.now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn send_signal(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).expect("send a signal");
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process number")).expect("not zero")
}

/// The letter that `ps` shows. `None`: there is no such process.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// Whether this user can make cgroups; says so where not.
pub(crate) fn has_cgroups() -> bool {
    let yes = rustix::process::geteuid().is_root() && cgroup_root().is_some();
    if !yes {
        eprintln!("skipped: no cgroup can be made here");
    }
    yes
}

/// The own cgroup of this process, in its cgroup2 file system.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(line.split(' ').nth(4)?).join(own))
}

fn wall_micros() -> i64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
}

fn postgres_bin() -> Option<PathBuf> {
    let place = std::env::var_os("RHONE_PG_BIN")
        .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
    let found = place.join("postgres").exists();
    if !found {
        eprintln!("skipped: there is no Postgres in {}", place.display());
    }
    found.then_some(place)
}

fn postgres_user() -> Option<RunAs> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user for Postgres");
    let number = |n: usize| line.split(':').nth(n).expect("a field").parse().expect("a number");
    Some(RunAs { uid: number(2), gid: number(3), groups: vec![number(3)] })
}

/// One test's world: directories, a guardian, an instance. The drop leaves nothing of it.
#[derive(Debug)]
pub(crate) struct Rig {
    base: PathBuf,
    bin: PathBuf,
    exe: PathBuf,
    state_dir: PathBuf,
    fence: FenceChoice,
    watchdog: Option<(PathBuf, u32)>,
    dead_man: Option<u16>,
    owned: bool,
}

impl Rig {
    /// Makes a world. `None`: there is no Postgres, and that was said.
    pub(crate) fn new(fence: FenceChoice) -> Option<Self> {
        let bin = postgres_bin()?;
        set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
        let base = tempfile::Builder::new().prefix("rhone-gt-").tempdir().expect("a directory").keep();
        let rig = Self::at(base, bin, fence, true);
        fs::create_dir(&rig.state_dir).expect("make the state directory");
        fs::create_dir(rig.base.join("run")).expect("make the socket directory");
        let copied = Command::new("cp")
            .arg("-a")
            .args([template(&rig.bin), rig.data_dir()])
            .status()
            .expect("copy the template");
        assert!(copied.success());
        for path in [rig.base.clone(), rig.base.join("run")] {
            let owner = postgres_user();
            std::os::unix::fs::chown(path, owner.as_ref().map(|o| o.uid), owner.as_ref().map(|o| o.gid))
                .expect("give it to Postgres");
        }
        Some(rig)
    }

    fn at(base: PathBuf, bin: PathBuf, fence: FenceChoice, owned: bool) -> Self {
        let state_dir = base.join("state");
        Self {
            base,
            bin,
            exe: env!("CARGO_BIN_EXE_rhone").into(),
            state_dir,
            fence,
            watchdog: None,
            dead_man: None,
            owned,
        }
    }

    pub(crate) fn fence(&self) -> FenceChoice {
        self.fence
    }

    pub(crate) fn exe(&self) -> &Path {
        &self.exe
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.base.join("data")
    }

    /// Moves the state directory to where a socket's path would be too long.
    pub(crate) fn use_long_paths(&mut self) {
        self.state_dir = self.base.join("x".repeat(120)).join("state");
        fs::create_dir_all(&self.state_dir).expect("make a long path");
    }

    /// Copies the binary, so that it can be removed under a guardian.
    pub(crate) fn use_own_binary(&mut self) {
        let copy = self.base.join("rhone");
        fs::copy(&self.exe, &copy).expect("copy the binary");
        self.exe = copy;
    }

    /// Gives the guardian a pipe for a watchdog; returns what reads it.
    pub(crate) fn use_watchdog(&mut self) -> File {
        let path = self.base.join("watchdog");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .expect("make a pipe");
        let reader = fs::OpenOptions::new().read(true).write(true).open(&path).expect("open the pipe");
        self.watchdog = Some((path, 10));
        reader
    }

    /// Gives the guardian a network of its own and a dead-man for `port` in it.
    pub(crate) fn use_dead_man(&mut self, port: u16) {
        let script = self.base.join("rhone-apart");
        let text = format!("#!/bin/sh\nexec unshare --net -- '{}' \"$@\"\n", self.exe.display());
        fs::write(&script, text).expect("write a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make it executable");
        self.exe = script;
        self.dead_man = Some(port);
    }

    pub(crate) async fn guardian(&self) -> Guardian {
        let options = GuardianOptions {
            exe: self.exe.clone(),
            state_dir: self.state_dir.clone(),
            name: "test".to_owned(),
            fence: self.fence,
            watchdog: self.watchdog.clone(),
            dead_man: self.dead_man,
        };
        Guardian::connect_or_spawn(options).await.expect("a guardian")
    }

    pub(crate) fn spec(&self) -> StartSpec {
        let data = self.data_dir();
        let run = self.base.join("run");
        let settings = [
            format!("unix_socket_directories={}", run.display()),
            "listen_addresses=".to_owned(),
            "fsync=off".to_owned(),
            "synchronous_commit=off".to_owned(),
            "shared_buffers=8MB".to_owned(),
            "max_connections=20".to_owned(),
            "restart_after_crash=off".to_owned(),
            "autovacuum=off".to_owned(),
        ];
        let mut args = vec!["-D".into(), data.clone().into()];
        args.extend(settings.into_iter().flat_map(|setting| ["-c".into(), setting.into()]));
        StartSpec {
            program: self.bin.join("postgres"),
            args,
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LC_ALL".into(), "C".into())],
            cwd: data,
            user: postgres_user(),
            log_file: self.base.join("log"),
        }
    }

    /// Starts the instance and returns the postmaster's number, when it takes connections.
    pub(crate) async fn start(&self, guardian: &Guardian) -> u32 {
        let postmaster = guardian.start(self.spec()).await.expect("start");
        self.connect().await;
        postmaster
    }

    /// Sets a lease as a renewal sent now would. Returns its deadline.
    pub(crate) fn renew(&self, guardian: &Guardian, epoch: u64, length: Duration) -> BootTime {
        let sent = Clock.now();
        let deadline = sent.saturating_add(length);
        guardian.page().set_lease(epoch, sent, deadline);
        deadline
    }

    /// Waits for an event.
    pub(crate) async fn next(&self, events: &mut Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
        let found = async {
            loop {
                match events.recv().await {
                    Ok(event) if wanted(&event) => return event,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => panic!("no more events"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the event comes")
    }

    /// Opens a session, when the server takes one.
    pub(crate) async fn connect(&self) -> Session {
        let end = Clock.now().saturating_add(PATIENCE);
        loop {
            match self.try_connect().await {
                Ok(session) => return session,
                Err(error) if Clock.now() >= end => panic!("{error:?}\n{}", self.log()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn try_connect(&self) -> Result<Session, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.base.join("run")).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Session { client, backend: backend.unsigned_abs() })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.base.join("log")).unwrap_or_default()
    }

    /// Starts a session that commits as fast as it can, and waits for its first commits.
    pub(crate) async fn busy_writer(&self) -> Writer {
        let busy = self.connect().await;
        let control = self.connect().await;
        control.client.batch_execute("TRUNCATE log; UPDATE ctl SET stop = false").await.expect("prepare");
        let backend = busy.backend;
        let call = tokio::spawn(async move { busy.client.batch_execute("CALL busy()").await });
        let end = Clock.now().saturating_add(PATIENCE);
        loop {
            let rows = control.client.query_one("SELECT count(*) FROM log", &[]).await.expect("count");
            if rows.get::<_, i64>(0) > 100 {
                return Writer { call, control, backend };
            }
            assert!(Clock.now() < end, "the writer does not write");
        }
    }

    /// Starts a supervisor in a process of its own, which starts the instance; its drop is a SIGKILL.
    pub(crate) async fn supervisor(&self, role: &str) -> Supervisor {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["helper_supervisor", "--exact", "--nocapture"])
            .env("RHONE_GUARDIAN_ROLE", role)
            .env("RHONE_GUARDIAN_BASE", &self.base)
            .env("RHONE_GUARDIAN_SIGNALS", if self.fence == FenceChoice::Signals { "1" } else { "" })
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a supervisor");
        let stdout = child.stdout.take().expect("its output");
        let ready = tokio::task::spawn_blocking(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains("ready"))
        });
        let supervisor = Supervisor { child };
        assert!(ready.await.expect("read its output"), "it is ready");
        supervisor
    }

    /// Opens the guardian's page beside its supervisor.
    pub(crate) fn observed_page(&self) -> ObservedPage {
        let fds = format!("/proc/{}/fd", self.guardian_pid().expect("a guardian"));
        let page = fs::read_dir(fds).expect("its descriptors").map(|entry| entry.expect("one").path()).find(
            |path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:rhone-guardian")),
        );
        ObservedPage { file: File::open(page.expect("its page")).expect("open its page") }
    }

    fn guardian_pid(&self) -> Option<u32> {
        fs::read_to_string(self.state_dir.join("guardian.lock")).ok()?.trim().parse().ok()
    }

    /// Connects to the guardian, and says nothing.
    pub(crate) fn raw_connection(&self) -> OwnedFd {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket");
        let address = SocketAddrUnix::new(self.state_dir.join("guardian.sock")).expect("an address");
        connect(&socket, &address).expect("connect");
        socket
    }

    /// Collects what the death of others has left to this process.
    pub(crate) fn reap(&self) {
        let own = rustix::process::getpid().as_raw_pid();
        let threads = fs::read_dir(format!("/proc/{own}/task")).expect("the threads of this process");
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace() {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                if matches!(name.trim(), "postgres" | "rhone-guardian") {
                    let child = to_pid(child.parse().expect("a number"));
                    // It is not to be waited for while it lives.
                    waitpid(Some(child), WaitOptions::NOHANG).ok();
                }
            }
        }
    }

    /// The memory of a process, as the kernel counts it.
    pub(crate) fn memory(&self, pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon"));
        lines.map(|line| line.replace('\t', " ")).collect::<Vec<_>>().join(", ")
    }

    /// Mounts a file system of its own.
    pub(crate) fn disk(&self) -> Disk {
        let (image, mount) = (self.base.join("disk"), self.base.join("mount"));
        File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("make an image");
        fs::create_dir(&mount).expect("make the mount point");
        command("mkfs.ext4", &["-q".as_ref(), image.as_os_str()]);
        command("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()]);
        Disk { mount }
    }

    fn remove_cgroups(&self) {
        let Some(root) = cgroup_root() else { return };
        let Ok(state) = fs::metadata(&self.state_dir) else { return };
        let prefix = format!("rhone-{:x}-{:x}-", state.dev(), state.ino());
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::write(entry.path().join("cgroup.kill"), "1").ok();
                for _ in 0..1000 {
                    self.reap();
                    if fs::remove_dir(entry.path()).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let cgroups = cgroup_root().filter(|_| rustix::process::geteuid().is_root());
        if let Some(guardian) = self.guardian_pid() {
            let name = fs::read_to_string(format!("/proc/{guardian}/comm")).unwrap_or_default();
            if name.trim() == "rhone-guardian" {
                kill_process(to_pid(guardian), Signal::KILL).ok();
            }
        }
        let killed = emergency::kill_instance(&self.data_dir(), None, Duration::from_secs(10));
        if cgroups.is_some() {
            self.remove_cgroups();
        }
        self.reap();
        let removed = fs::remove_dir_all(&self.base);
        if !std::thread::panicking() {
            killed.expect("nothing of the instance is left");
            removed.expect("nothing of the directories is left");
        }
    }
}

/// A data directory to copy; made once, by whichever test comes first.
fn template(bin: &Path) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let tag = bin.to_string_lossy().replace('/', "_");
    let place = std::env::temp_dir().join(format!("rhone-guardian-template-{uid}{tag}"));
    fs::create_dir_all(&place).expect("a place for the template");
    let lock = File::create(place.join("lock")).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock it");
    let ready = place.join("ready");
    if !ready.exists() {
        let making = place.join("making");
        fs::remove_dir_all(&making).ok();
        fs::create_dir(&making).expect("a directory");
        let user = postgres_user();
        std::os::unix::fs::chown(&making, user.as_ref().map(|u| u.uid), user.as_ref().map(|u| u.gid))
            .expect("give it to Postgres");
        make_template(bin, &making, user.as_ref());
        fs::rename(&making, &ready).expect("it is complete");
    }
    ready
}

fn make_template(bin: &Path, dir: &Path, user: Option<&RunAs>) {
    use std::os::unix::process::CommandExt;
    let run = |program: &str, args: &[&str], input: &str| {
        let mut command = Command::new(bin.join(program));
        command.args(args).arg("-D").arg(dir).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null());
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut child = command.spawn().expect("run it");
        child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("write to it");
        assert!(child.wait().expect("wait for it").success(), "{program}");
    };
    let initdb = ["-N", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "--wal-segsize=1"];
    run("initdb", &initdb, "");
    let schema = "CREATE TABLE log (t timestamptz);\n\
        CREATE TABLE ctl (stop bool);\n\
        INSERT INTO ctl VALUES (false);\n\
        CREATE PROCEDURE busy() LANGUAGE plpgsql AS 'BEGIN LOOP INSERT INTO log VALUES (clock_timestamp()); \
        COMMIT; EXIT WHEN (SELECT stop FROM ctl); END LOOP; END';\n";
    run("postgres", &["--single", "-F", "postgres"], schema);
}

/// A session, and the process that serves it.
pub(crate) struct Session {
    client: tokio_postgres::Client,
    backend: u32,
}

impl Session {
    pub(crate) fn backend(&self) -> u32 {
        self.backend
    }

    /// Asks for something, to see that it is served.
    pub(crate) async fn check(&self) {
        let answer = tokio::time::timeout(PATIENCE, self.client.query_one("SELECT 1", &[])).await;
        answer.expect("in time").expect("an answer");
    }
}

/// A session that commits as fast as it can.
pub(crate) struct Writer {
    call: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
    control: Session,
    backend: u32,
}

impl Writer {
    pub(crate) fn backend(&self) -> u32 {
        self.backend
    }

    /// Ends the writing, which must have had no error, and returns how long after `deadline` the last
    /// row before the longest pause was made, in nanoseconds.
    pub(crate) async fn finish_after_gap(self, deadline: BootTime) -> i64 {
        // It must go on after the pause, or that would not be seen as one.
        let resumed = "SELECT max(t) > $1::timestamptz FROM log";
        let row =
            self.control.client.query_one("SELECT clock_timestamp()::text", &[]).await.expect("the time");
        let now: String = row.get(0);
        let query = resumed.replace("$1", &format!("'{now}'"));
        let end = Clock.now().saturating_add(PATIENCE);
        while !self.control.client.query_one(&query, &[]).await.expect("look").get::<_, bool>(0) {
            assert!(Clock.now() < end, "the writer does not go on");
        }
        self.control.client.batch_execute("UPDATE ctl SET stop = true").await.expect("say that it is enough");
        let call = tokio::time::timeout(PATIENCE, self.call).await.expect("it ends").expect("it ran");
        call.expect("the busy session had no error");
        let query = "SELECT (extract(epoch FROM t) * 1000000)::int8, \
            coalesce((extract(epoch FROM next - t) * 1000000)::int8, 0) \
            FROM (SELECT t, lead(t) OVER (ORDER BY t) AS next FROM log) AS l \
            ORDER BY next - t DESC NULLS LAST LIMIT 1";
        let row = self.control.client.query_one(query, &[]).await.expect("the longest pause");
        let (last, pause): (i64, i64) = (row.get(0), row.get(1));
        println!("the writer paused for {} ms", pause / 1000);
        let since = i64::try_from(Clock.now().saturating_since(deadline).as_micros()).expect("not long ago");
        (last - (wall_micros() - since)) * 1000
    }
}

fn command(program: &str, args: &[&OsStr]) {
    assert!(Command::new(program).args(args).status().expect("run it").success(), "{program} {args:?}");
}

/// A mounted file system that can be made to hang.
#[derive(Debug)]
pub(crate) struct Disk {
    mount: PathBuf,
}

impl Disk {
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    pub(crate) fn freeze(&self) {
        command("fsfreeze", &["-f".as_ref(), self.mount.as_os_str()]);
    }

    pub(crate) fn thaw(&self) {
        command("fsfreeze", &["-u".as_ref(), self.mount.as_os_str()]);
    }

    pub(crate) fn size(&self) -> u64 {
        fs::metadata(self.mount.join("file")).expect("the file").len()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The first fails where it was thawed.
        Command::new("fsfreeze").arg("-u").arg(&self.mount).stderr(Stdio::null()).status().ok();
        Command::new("umount").arg("-l").arg(&self.mount).status().ok();
    }
}

/// A supervisor in a process of its own.
#[derive(Debug)]
pub(crate) struct Supervisor {
    child: Child,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.child.kill().expect("kill the supervisor");
        self.child.wait().expect("it is dead");
    }
}

/// The page as the guardian has it, without being its supervisor.
#[derive(Debug)]
pub(crate) struct ObservedPage {
    file: File,
}

impl ObservedPage {
    fn word(&self, index: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, index * 8).expect("read the page");
        u64::from_ne_bytes(word)
    }

    pub(crate) fn deadline(&self) -> BootTime {
        BootTime::from_nanos(self.word(9))
    }

    pub(crate) fn state(&self) -> u64 {
        self.word(16)
    }

    pub(crate) fn frozen_at(&self) -> BootTime {
        BootTime::from_nanos(self.word(17))
    }

    pub(crate) fn alive(&self) -> BootTime {
        BootTime::from_nanos(self.word(18))
    }

    pub(crate) fn postmaster(&self) -> u32 {
        u32::try_from(self.word(19)).expect("a process number")
    }
}

/// In a process that was started by [`Rig::supervisor`]: does `work`, says so, and stays until killed.
pub(crate) async fn be_a_supervisor_if_asked(work: impl AsyncFn(Guardian, &Rig, &str) -> Guardian) {
    let Ok(role) = std::env::var("RHONE_GUARDIAN_ROLE") else { return };
    let base = std::env::var_os("RHONE_GUARDIAN_BASE").expect("a directory").into();
    let signals = std::env::var("RHONE_GUARDIAN_SIGNALS").is_ok_and(|value| value == "1");
    let fence = if signals { FenceChoice::Signals } else { FenceChoice::Auto };
    let rig = Rig::at(base, postgres_bin().expect("it was there"), fence, false);
    let _guardian = work(rig.guardian().await, &rig, &role).await;
    let mut out = io::stdout();
    writeln!(out, "ready").and_then(|()| out.flush()).expect("say that it is ready");
    std::future::pending::<()>().await;
}
