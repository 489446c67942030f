//! Servers for the tests: each in its own directory, cleaned up also when a test panics.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rhone_pgctl::apply::{set_standby_signal, write_access, write_settings};
use rhone_pgctl::connection::{LocalConnection, Session, Target};
use rhone_pgctl::conninfo::ConnInfo;
use rhone_pgctl::control::{ControlData, read_control};
use rhone_pgctl::datadir::processes_in;
use rhone_pgctl::hba::{AccessRules, Gate};
use rhone_pgctl::initdb::{InitOptions, initdb};
use rhone_pgctl::install::Installation;
use rhone_pgctl::process::{
    Postmaster, StartOptions, kill_everything, remove_stale_pid_file, start_command, wait_accepting,
};
use rhone_pgctl::replication::{SystemIdentity, identify_system};
use rhone_pgctl::settings::ManagedSettings;
use rhone_pgctl::standby::{cut_upstream, revoke};
use rhone_pgctl::user::OsUser;
use rhone_pgctl::wal::WalPosition;

/// Far above what anything takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Finds Postgres, or says that the test is skipped.
pub(crate) async fn installation() -> Option<Installation> {
    let given = std::env::var_os("RHONE_PG_BIN").map(PathBuf::from);
    match Installation::find(given.as_deref(), None).await {
        Ok(found) => Some(found),
        Err(error) => {
            eprintln!("SKIPPED: no PostgreSQL here ({error}); set RHONE_PG_BIN");
            None
        }
    }
}

/// The address that this process's servers listen at. Each test process has another one, so that no other may take
/// a port between its choice and the server's start.
pub(crate) fn address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high.wrapping_add(64), middle, low)
}

/// A directory that the servers of one test live in.
pub(crate) struct Rig {
    pub(crate) install: Installation,
    pub(crate) user: OsUser,
    root: tempfile::TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Option<Self> {
        let install = installation().await?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
        let root = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("make a directory");
        let user = if rustix::process::geteuid().is_root() {
            OsUser::by_name("postgres").expect("the user postgres")
        } else {
            OsUser::current()
        };
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        chown(root.path(), Some(user.uid), Some(user.gid)).expect("give the directory");
        Some(Self { install, user, root })
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// Makes the description of a server that is not there yet.
    pub(crate) fn server(&self, name: &str) -> Server {
        let free = TcpListener::bind((address(), 0)).expect("bind");
        let port = free.local_addr().expect("address").port();
        let socket_dir = self.path().to_path_buf();
        Server {
            install: self.install.clone(),
            user: self.user.clone(),
            data: self.path().join(name),
            log: self.path().join(format!("{name}.log")),
            target: Target::new(socket_dir, port, "postgres"),
            settings: ManagedSettings {
                parameters: BTreeMap::from([("shared_buffers".into(), "16MB".into())]),
                ..ManagedSettings::default()
            },
            children: Vec::new(),
            postmaster: 0,
        }
    }

    /// Makes and starts a primary.
    pub(crate) async fn primary(&self, name: &str) -> Server {
        let mut server = self.server(name);
        server.init(1).await;
        server.start().await;
        server
    }
}

pub(crate) struct Server {
    pub(crate) install: Installation,
    pub(crate) user: OsUser,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) target: Target,
    pub(crate) settings: ManagedSettings,
    children: Vec<Child>,
    postmaster: usize,
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in 0..200 {
            let left = processes_in(&self.data);
            for pid in &left {
                let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(25).collect();
            eprintln!("--- end of {}:", self.log.display());
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Server {
    pub(crate) async fn init(&self, wal_segment_mib: u32) {
        let options = InitOptions { wal_segment_mib, ..InitOptions::default() };
        initdb(&self.install, &self.data, &self.user, &options, LIMIT).await.expect("initdb");
        self.configure();
    }

    pub(crate) fn rules(&self) -> AccessRules {
        AccessRules {
            superuser: "postgres".into(),
            os_users: vec!["root".into(), self.user.name.clone(), OsUser::current().name],
            replicator: "rhone_replicator".into(),
            rewinder: "rhone_rewind".into(),
            lines: None,
            ident_lines: None,
        }
    }

    pub(crate) fn configure(&self) {
        write_settings(&self.data, &self.settings, &self.user).expect("write the settings");
        write_access(&self.data, &self.rules(), Gate::Open, &self.user).expect("write the rules");
    }

    /// Spawns a program as the server's user; it ends with the server.
    pub(crate) fn spawn(&mut self, program: &Path, args: &[std::ffi::OsString], directory: &Path) -> usize {
        let log = File::options().create(true).append(true).open(&self.log).expect("open the log");
        let mut command = Command::new(program);
        command.args(args).env("LC_ALL", "C").current_dir(directory).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log")).stderr(log).process_group(0);
        if !self.user.is_current() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        self.children.push(command.spawn().expect("spawn"));
        self.children.len() - 1
    }

    pub(crate) fn end_child(&mut self, index: usize) {
        self.children[index].kill().ok();
        self.children[index].wait().ok();
    }

    pub(crate) fn launch(&mut self) {
        remove_stale_pid_file(&self.data).expect("nothing runs");
        let options = StartOptions {
            listen_addresses: address().to_string(),
            port: self.target.port,
            socket_dirs: vec![self.target.socket_dir.clone()],
            overrides: BTreeMap::new(),
        };
        let command = start_command(&self.install, &self.data, &self.user, &options);
        self.postmaster = self.spawn(&command.program, &command.args, &command.directory);
    }

    pub(crate) async fn start(&mut self) {
        self.launch();
        wait_accepting(&self.data, &self.target, LIMIT).await.expect("accept connections");
    }

    pub(crate) fn postmaster(&self) -> Postmaster {
        Postmaster::find(&self.data).expect("read postmaster.pid").expect("a running postmaster")
    }

    pub(crate) async fn stop(&mut self) {
        self.postmaster().stop_fast(LIMIT).await.expect("stop");
        self.reap();
    }

    pub(crate) async fn crash(&mut self) {
        kill_everything(&self.data, LIMIT).await.expect("kill");
        self.reap();
    }

    /// A postmaster that ended and was not waited for still counts as running to the next one.
    fn reap(&mut self) {
        self.children[self.postmaster].wait().expect("wait for the postmaster");
    }

    pub(crate) async fn session(&self) -> Session {
        Session::open(&self.target, LIMIT).await.expect("connect")
    }

    pub(crate) async fn sql(&self, sql: &str) -> String {
        let messages = loop {
            let session = self.session().await;
            let path = session.simple("test", "SET search_path = public", LIMIT).await;
            let answer = match path {
                Ok(_) => session.simple("test", sql, LIMIT).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.ended_by_replay() => {}
                answer => break answer.expect(sql),
            }
        };
        for message in messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                return row.get(0).unwrap_or_default().to_owned();
            }
        }
        String::new()
    }

    pub(crate) fn connection(&self) -> LocalConnection {
        LocalConnection::new(self.target.clone())
    }

    pub(crate) async fn control(&self) -> ControlData {
        read_control(&self.install, &self.data, &self.user, LIMIT).await.expect("pg_controldata")
    }

    pub(crate) async fn identify(&self) -> SystemIdentity {
        identify_system(&(&self.target).into(), LIMIT).await.expect("IDENTIFY_SYSTEM")
    }

    /// Cuts it off and returns where its WAL ends.
    pub(crate) async fn revoke(&self) -> WalPosition {
        let postmaster = self.postmaster();
        let revoked = revoke(&postmaster, &self.data, &self.target, &self.settings, &self.user, LIMIT);
        revoked.await.expect("revoke").position
    }

    pub(crate) async fn cut(&self) -> Session {
        let postmaster = self.postmaster();
        let cut = cut_upstream(&postmaster, &self.data, &self.target, &self.settings, &self.user, LIMIT);
        cut.await.expect("cut the upstream")
    }

    /// How the tests' other servers connect to this one: as its own user over the Unix socket.
    pub(crate) fn conninfo(&self, name: &str) -> ConnInfo {
        let host = self.target.socket_dir.to_string_lossy().into_owned();
        let mut conninfo = ConnInfo::new(host, self.target.port, "postgres");
        conninfo.application_name = Some(name.into());
        conninfo
    }

    pub(crate) fn follow(&mut self, upstream: &Self) {
        self.settings.primary_conninfo = Some(upstream.conninfo("standby"));
        set_standby_signal(&self.data, true, &self.user).expect("standby.signal");
        self.configure();
    }

    /// Starts some writers that go on until the server or the child ends.
    pub(crate) fn pgbench(&mut self) -> usize {
        let port = self.target.port.to_string();
        let host = self.target.socket_dir.to_string_lossy().into_owned();
        let args = ["-h", &host, "-p", &port, "-U", "postgres", "-n", "-c", "4", "-T", "60", "postgres"];
        let args: Vec<_> = args.iter().map(std::ffi::OsString::from).collect();
        self.spawn(&self.install.program("pgbench"), &args, Path::new("/"))
    }

    pub(crate) async fn pgbench_init(&mut self) {
        let port = self.target.port.to_string();
        let host = self.target.socket_dir.to_string_lossy().into_owned();
        rhone_pgctl::program::Program::new(self.install.program("pgbench"), &self.user)
            .args(["-h", &host, "-p", &port, "-U", "postgres", "-i", "-q", "postgres"])
            .limit(LIMIT)
            .run()
            .await
            .expect("pgbench -i");
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, poll).await.expect(what);
}
