//! The demo's members: their folders, configurations and processes.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::folder::{self, Owner, POSTGRES_USER};
use super::ports;
use super::processes::{Finder, remove_segments};
use crate::cli::args::Global;
use crate::cli::terminal::Terminal;
use crate::cli::{CliError, fetch_status};
use crate::config;
use crate::status::{ClusterStatus, State};

/// How often the status is asked while waiting.
const POLL: Duration = Duration::from_millis(200);
/// Lines of a dead member's log that are shown.
const SHOWN_LOG_LINES: usize = 12;

/// One member of the demo.
#[derive(Debug)]
struct Member {
    name: String,
    folder: PathBuf,
    grpc: u16,
    http: u16,
    postgres: u16,
    witness: bool,
    child: Option<Child>,
}

impl Member {
    fn config(&self) -> PathBuf {
        self.folder.join("rhone.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("rhone.log")
    }
}

/// The whole demo. Dropping it kills what is left, so that not even a panic leaves a server behind.
#[derive(Debug)]
pub(super) struct DemoCluster {
    folder: PathBuf,
    members: Vec<Member>,
    finder: Finder,
    segments: BTreeSet<PathBuf>,
    cleaned: bool,
    keep: bool,
    sync: bool,
}

impl DemoCluster {
    /// Makes folders and configurations; starts nothing.
    pub(super) fn prepare(nodes: u8, witness: bool, sync: bool) -> Result<Self, CliError> {
        let bin_dir = config::find_bin_dir(None).ok_or_else(|| {
            CliError::failed("no Postgres server is installed where rhone looks")
                .hint("apt-get install postgresql-15, or set RHONE_PG_BIN to the folder of its programs")
        })?;
        let bin_dir = bin_dir.canonicalize().unwrap_or(bin_dir);
        let own = std::env::current_exe()
            .map_err(|e| CliError::failed(format!("find this program's file: {e}")))?;
        let owner = folder::postgres_owner()?;
        let ports = ports::free(usize::from(nodes) * 3)?;
        let folder = folder::create()?;
        let members = ports
            .chunks_exact(3)
            .enumerate()
            .filter_map(|(n, ports)| {
                let [grpc, http, postgres] = *ports else { return None };
                let witness = witness && n + 1 == usize::from(nodes);
                let name = if witness { "witness".to_owned() } else { format!("pg-{}", n + 1) };
                Some(Member { folder: folder.join(&name), name, grpc, http, postgres, witness, child: None })
            })
            .collect();
        let finder = Finder { own, bin_dir };
        let cluster =
            Self { folder, members, finder, segments: BTreeSet::new(), cleaned: false, keep: false, sync };
        for member in &cluster.members {
            cluster.furnish(member, owner)?;
        }
        Ok(cluster)
    }

    fn furnish(&self, member: &Member, owner: Option<Owner>) -> Result<(), CliError> {
        folder::make(&member.folder, 0o755, None)?;
        folder::make(&member.folder.join("state"), 0o700, None)?;
        if member.witness {
            return self.write_configuration(member, owner);
        }
        // Postgres' user clones into a folder beside the data, so it owns the one above.
        folder::make(&member.folder.join("pg"), 0o700, owner)?;
        folder::make(&member.folder.join("pg/data"), 0o700, owner)?;
        self.write_configuration(member, owner)
    }

    fn write_configuration(&self, member: &Member, owner: Option<Owner>) -> Result<(), CliError> {
        let path = member.config();
        fs::write(&path, self.configuration(member, owner.is_some()))
            .map_err(|error| CliError::failed(format!("write {}: {error}", path.display())))
    }

    fn configuration(&self, member: &Member, as_root: bool) -> String {
        let peers: Vec<String> = self.members.iter().map(|m| format!("\"127.0.0.1:{}\"", m.grpc)).collect();
        let at = member.folder.display();
        let mut text = format!(
            "cluster = \"demo\"\n\n[node]\nname = \"{}\"\nstate-dir = \"{at}/state\"\n\
             listen = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\npeers = [{}]\n",
            member.name,
            member.grpc,
            member.http,
            peers.join(", "),
        );
        if member.witness {
            text.push_str("kind = \"witness\"\n");
            return text;
        }
        // Writing to a String cannot fail.
        let _ok = write!(
            text,
            "\n[postgres]\nbin-dir = \"{}\"\ndata-dir = \"{at}/pg/data\"\nlisten = \"127.0.0.1:{}\"\n\
             socket-dir = \"{at}/pg\"\n",
            self.finder.bin_dir.display(),
            member.postgres,
        );
        if as_root {
            let _ok = writeln!(text, "user = \"{POSTGRES_USER}\"");
        }
        let _ok = write!(text, "\n[bootstrap]\nsync = \"{}\"\n", if self.sync { "quorum" } else { "off" });
        text.push_str(
            "database = \"demo\"\n\
             pg-hba = [\"host demo demo 127.0.0.1/32 trust\"]\n\n\
             [bootstrap.postgres]\nshared_buffers = \"16MB\"\nmin_wal_size = \"32MB\"\nmax_wal_size = \"128MB\"\n",
        );
        text
    }

    /// The folder of everything.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the members' Postgres servers listen.
    pub(super) fn postgres_ports(&self) -> Vec<u16> {
        self.members.iter().filter(|m| !m.witness).map(|m| m.postgres).collect()
    }

    /// How to reach the demo from another terminal.
    pub(super) fn instructions(&self) -> Vec<String> {
        let ports: Vec<String> = self.postgres_ports().iter().map(ToString::to_string).collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let mut lines = vec![format!(
            "connect: psql 'host={hosts} port={} user=demo dbname=demo target_session_attrs=read-write'",
            ports.join(",")
        )];
        if let Some(first) = self.members.first() {
            lines.push(format!(
                "look:    {} status -c {}",
                self.finder.own.display(),
                first.config().display()
            ));
            lines.push(format!(
                "move:    {} switchover -c {}",
                self.finder.own.display(),
                first.config().display()
            ));
            lines.push(format!("browse:  http://127.0.0.1:{}/ui", first.http));
        }
        lines
    }

    /// Starts all supervisors.
    pub(super) fn start_all(&mut self) -> Result<(), CliError> {
        let names: Vec<String> = self.members.iter().map(|m| m.name.clone()).collect();
        names.iter().try_for_each(|name| self.start(name))
    }

    /// Starts one supervisor, with its log in the member's folder.
    pub(super) fn start(&mut self, name: &str) -> Result<(), CliError> {
        let own = self.finder.own.clone();
        let member = self.member(name)?;
        let failed = |error: std::io::Error| CliError::failed(format!("start {name}: {error}"));
        let log = File::options().create(true).append(true).open(member.log()).map_err(failed)?;
        let mut command = Command::new(own);
        // What configures the caller must not configure every member alike.
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|v| v.starts_with("RHONE_") && v != "RHONE_LOG") {
                command.env_remove(variable);
            }
        }
        command.arg("run").arg("-c").arg(member.config()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        // Ctrl-C in the terminal is for the demo alone.
        member.child = Some(command.process_group(0).spawn().map_err(failed)?);
        Ok(())
    }

    fn member(&mut self, name: &str) -> Result<&mut Member, CliError> {
        let found = self.members.iter_mut().find(|member| member.name == name);
        found.ok_or_else(|| CliError::failed(format!("the demo has no member {name}")))
    }

    /// Kills all processes of a member, as a power cut would; says how many.
    pub(super) fn kill(&mut self, name: &str) -> Result<usize, CliError> {
        let folder = self.member(name)?.folder.clone();
        let killed = self.finder.kill(&folder, &mut self.segments);
        if let Some(mut child) = self.member(name)?.child.take() {
            // Only to collect it: it is dead.
            let _status = child.wait();
        }
        Ok(killed)
    }

    /// Waits until there is a writable primary, all others stream from it, and the witness votes.
    pub(super) async fn wait_until_whole(
        &mut self,
        limit: Duration,
        terminal: &mut Terminal,
    ) -> Result<ClusterStatus, CliError> {
        let hosts = self.members.iter().map(|m| format!("127.0.0.1:{}", m.grpc)).collect();
        let global = Global { hosts, ..Global::default() };
        let deadline = tokio::time::Instant::now() + limit;
        let mut told = String::new();
        loop {
            self.complain_of_the_dead()?;
            let progress = match fetch_status(&global).await {
                Ok(status) if self.is_whole(&status) => return Ok(status),
                Ok(status) => progress(&status),
                Err(_) => "waiting for the members to answer".to_owned(),
            };
            if progress != told {
                terminal.talk(&progress);
                told = progress;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(CliError::failed(format!(
                    "after {} s still: {told}{}",
                    limit.as_secs(),
                    self.logs()
                ))
                .hint("`rhone demo --keep` keeps the complete logs"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn is_whole(&self, status: &ClusterStatus) -> bool {
        let (mut serving, mut streaming, mut voting) = (0, 0, 0);
        for member in &status.members {
            let primary = status.primary.as_deref() == Some(member.name.as_str());
            serving += usize::from(primary && member.state == State::Running);
            streaming += usize::from(!primary && member.state == State::Streaming);
            voting += usize::from(member.state == State::Voting);
        }
        // In synchronous mode also every standby acknowledges: from then on nothing can be lost.
        let standbys = status.sync.members.len();
        status.writable
            && serving == 1
            && streaming + voting + 1 == self.members.len()
            && (!self.sync || standbys == streaming)
    }

    /// A supervisor of the demo never ends by itself: when one does, its log says why.
    fn complain_of_the_dead(&mut self) -> Result<(), CliError> {
        for member in &mut self.members {
            let ended = member.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                let log = last_lines(&member.log());
                return Err(CliError::failed(format!(
                    "the supervisor of {} ended ({status}){log}",
                    member.name
                )));
            }
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let each = self.members.iter().map(|m| format!("\n{}:{}", m.name, last_lines(&m.log())));
        each.collect::<Vec<_>>().concat()
    }

    /// Ends all processes and removes all files.
    pub(super) async fn clean_up(mut self, keep: bool) -> Result<(), CliError> {
        self.keep = keep;
        let folder = self.folder.clone();
        let ended = self.finder.end(&folder, &mut self.segments).await;
        self.collect();
        self.cleaned = ended;
        if !ended {
            return Err(CliError::failed(format!("some processes in {} do not end", folder.display())));
        }
        remove_segments(&self.segments);
        if keep {
            return Ok(());
        }
        fs::remove_dir_all(&folder).map_err(|e| CliError::failed(format!("remove {}: {e}", folder.display())))
    }

    fn collect(&mut self) {
        for mut child in self.members.iter_mut().filter_map(|member| member.child.take()) {
            let _killed = child.kill();
            let _status = child.wait();
        }
    }
}

impl Drop for DemoCluster {
    fn drop(&mut self) {
        if !self.cleaned {
            let folder = self.folder.clone();
            self.finder.kill(&folder, &mut self.segments);
            self.collect();
            remove_segments(&self.segments);
            if !self.keep {
                // The error that led here is already on its way to the caller.
                let _gone = fs::remove_dir_all(&folder);
            }
        }
    }
}

/// Says in a line what each member is doing.
fn progress(status: &ClusterStatus) -> String {
    if status.members.is_empty() {
        return "the members are founding the cluster".to_owned();
    }
    let each = status.members.iter().map(|member| format!("{} {}", member.name, member.state));
    each.collect::<Vec<_>>().join(", ")
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(SHOWN_LOG_LINES);
    let shown = lines.iter().skip(skip).map(|line| format!("\n    {line}"));
    shown.collect::<Vec<_>>().concat()
}
