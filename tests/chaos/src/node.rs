//! One member's node: its files, its processes, and what can be done to them.

use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::Group;
use crate::disk::Disk;
use crate::limits::Limits;
use crate::namespace::{Network, Place};
use crate::process::{self, Owned, Signal};
use crate::sql::Door;
use crate::walltime::WallTime;

/// Port of Postgres on every member.
pub const POSTGRES_PORT: u16 = 5432;
/// Port of gRPC on every member.
pub const GRPC_PORT: u16 = 7400;
/// Port of HTTP on every member.
pub const HTTP_PORT: u16 = 8008;
/// Marks all that descends from a node's supervisor, for those that keep their environment.
const MARK: &str = "CHAOS_NODE";

/// What a node is given beyond processes and a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
pub struct Extras {
    /// File systems of its own, so that power cuts and disk faults are real.
    pub disks: bool,
    /// Control groups that limit CPU and memory.
    pub limits: bool,
    /// A wall clock of its own.
    pub clock: bool,
    /// `postgres.dead-man = "nftables"`.
    pub dead_man: bool,
}

/// Size of the file system for the data directory, MiB (sparse).
const DATA_DISK: u64 = 2048;
/// Size of the file system for the Raft store, MiB (sparse).
const STATE_DISK: u64 = 128;

/// A member's node.
#[derive(Debug)]
pub struct Node {
    index: usize,
    disks: Option<(Disk, Disk)>,
    limits: Limits,
    clock: Option<WallTime>,
    folder: PathBuf,
    address: Ipv4Addr,
    group: Option<Group>,
    program: PathBuf,
    dead_man: bool,
    witness: bool,
    tags: String,
    supervisor: Option<Owned>,
}

impl Node {
    /// Makes the node's folder and cgroup.
    pub fn create(
        index: usize,
        extras: Extras,
        cluster: &Path,
        parent: Option<&Group>,
        (network, program): (&Network, &Path),
    ) -> Result<Self> {
        let folder = cluster.join(format!("n{}", index + 1));
        let group = match parent {
            Some(parent) => Some(Group::create(parent.path().join(format!("n{}", index + 1)))?),
            None => None,
        };
        for name in ["", "pg", "s", "state"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let disks = if extras.disks {
            let make =
                |name: &str, size| Disk::create(folder.join(format!("{name}.ext4")), folder.join(name), size);
            Some((make("pg", DATA_DISK)?, make("state", STATE_DISK)?))
        } else {
            None
        };
        let id = cluster.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let limits = if extras.limits {
            Limits::create(&format!("{id}-n{}", index + 1), group.as_ref())?
        } else {
            Limits::default()
        };
        let clock = if extras.clock { Some(WallTime::create(&folder)?) } else { None };
        if let Some((user, owner_group)) = postgres_user() {
            for name in ["pg", "s"] {
                rustix::fs::chown(folder.join(name), Some(user), Some(owner_group))
                    .context("give a folder to postgres")?;
            }
        }
        Ok(Self {
            index,
            disks,
            limits,
            clock,
            folder,
            address: network.address(Place::Node(index)),
            group,
            program: program.to_owned(),
            dead_man: extras.dead_man,
            witness: false,
            tags: String::new(),
            supervisor: None,
        })
    }

    /// The member's name, `pg-1` and so on.
    pub fn name(&self) -> String {
        format!("pg-{}", self.index + 1)
    }

    /// The file systems of data directory and Raft store.
    pub fn disks(&self) -> Result<&(Disk, Disk)> {
        self.disks.as_ref().with_context(|| format!("{} has no disks of its own", self.name()))
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its wall clock.
    pub fn clock(&self) -> Result<&WallTime> {
        self.clock.as_ref().with_context(|| format!("{} has no clock of its own", self.name()))
    }

    /// The folder of the Raft store.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Makes the member a witness, before it is configured.
    pub fn be_witness(&mut self) {
        self.witness = true;
    }

    /// Adds lines under `[node.tags]`, before the member is configured.
    pub fn tag(&mut self, lines: &str) {
        self.tags.push_str(lines);
    }

    /// Whether the member is tagged to follow another standby.
    pub fn is_tagged_to_cascade(&self) -> bool {
        self.tags.contains("replicate-from")
    }

    /// Whether the member runs no Postgres.
    pub fn is_witness(&self) -> bool {
        self.witness
    }

    /// The member's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("rhone.toml")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("pg/data")
    }

    /// The member's own file with what the supervisor said.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The node's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The Unix socket, as superuser.
    pub fn door(&self) -> Door {
        Door::Socket { folder: self.folder.join("s"), port: POSTGRES_PORT }
    }

    /// Writes the configuration.
    pub fn configure(&self, peers: &[Ipv4Addr], cluster: &str, bootstrap: &str) -> Result<()> {
        let peers: Vec<String> = peers.iter().map(|peer| format!("\"{peer}:{GRPC_PORT}\"")).collect();
        let (address, folder) = (self.address, self.folder.display());
        let real = crate::binary::postgres_folder()?;
        let bin = match &self.clock {
            Some(clock) => clock.programs(&real, &self.folder)?,
            None => real,
        };
        let kind = if self.witness { "witness" } else { "data" };
        let mut text = format!(
            "cluster = \"{cluster}\"\n\n\
             [node]\nname = \"{name}\"\nkind = \"{kind}\"\nstate-dir = \"{folder}/state\"\nlisten = \"{address}:{GRPC_PORT}\"\n\
             advertise = \"{address}:{GRPC_PORT}\"\nhttp = \"{address}:{HTTP_PORT}\"\npeers = [{peers}]\n\n\
             [node.tags]\n{tags}\n\n[tls]\ninsecure = true\n\n",
            tags = self.tags,
            name = self.name(),
            peers = peers.join(", "),
        );
        if self.witness {
            return fs::write(self.config(), text).context("write rhone.toml");
        }
        text.push_str(&format!(
            "[postgres]\nbin-dir = \"{bin}\"\ndata-dir = \"{folder}/pg/data\"\n\
             listen = \"{address}:{POSTGRES_PORT}\"\nadvertise = \"{address}:{POSTGRES_PORT}\"\n\
             socket-dir = \"{folder}/s\"\n{dead_man}\n{bootstrap}",
            bin = bin.display(),
            dead_man = if self.dead_man { "dead-man = \"nftables\"\n" } else { "" },
        ));
        fs::write(self.config(), text).context("write rhone.toml")
    }

    /// Listens at another address from the next start on; `peers` stay what they were.
    pub fn move_to(&mut self, address: Ipv4Addr) -> Result<()> {
        let (old, new) = (format!("\"{}:", self.address), format!("\"{address}:"));
        let text = fs::read_to_string(self.config()).context("read rhone.toml")?;
        let line =
            |line: &str| if line.starts_with("peers") { line.to_owned() } else { line.replace(&old, &new) };
        let text: Vec<String> = text.lines().map(line).collect();
        fs::write(self.config(), text.join("\n")).context("write rhone.toml")?;
        self.address = address;
        Ok(())
    }

    /// Starts the supervisor.
    pub fn start(&mut self, network: &Network) -> Result<()> {
        if self.supervisor.as_mut().is_some_and(|supervisor| supervisor.ended().is_none()) {
            bail!("{} runs already", self.name());
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("open the log")?;
        let mut command = network.command(Place::Node(self.index), Path::new("/bin/sh"));
        // The shell joins the cgroup and becomes the supervisor: the pid stays the child's.
        let doors = self.group.iter().map(Group::door).chain(self.limits.doors());
        let join: String = doors.map(|door| format!("echo $$ > '{}' && ", door.display())).collect();
        command
            .arg("-c")
            .arg(format!("{join}exec \"$0\" \"$@\""))
            .arg(&self.program)
            .args(["run", "-c"])
            .arg(self.config())
            .env(MARK, &self.folder)
            .env("NO_COLOR", "1")
            .envs(self.clock.iter().flat_map(WallTime::environment))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0);
        self.supervisor = Some(Owned::spawn(&mut command)?);
        Ok(())
    }

    /// Runs `rhone` from another path from the next start on.
    pub fn use_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// The program in use.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The supervisor's pid while it runs.
    pub fn supervisor(&mut self) -> Option<u32> {
        let supervisor = self.supervisor.as_mut()?;
        supervisor.ended().is_none().then(|| supervisor.pid())
    }

    /// Waits for the supervisor's own end.
    pub fn wait_for_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.supervisor.as_mut()?.wait(limit)
    }

    /// All live processes of this node.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = process::of_folder(&self.folder);
        if let Some(group) = &self.group {
            found.extend(group.pids().into_iter().filter(|&pid| process::alive(pid)));
        }
        let mark = format!("{MARK}={}", self.folder.display());
        let marked = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        if self.group.is_none() {
            found.extend(process::pids().into_iter().filter(|pid| marked(pid) && process::alive(*pid)));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The guardian's pids: the processes of this node that were started as `rhone guardian`
    /// (two when it is the init of a PID namespace), the first one the eldest.
    pub fn guardians(&self) -> Vec<u32> {
        let server = |pid: u32| process::stat(pid).is_none_or(|stat| stat.name == "postgres");
        let mut found = self.processes();
        found.retain(|&pid| command_has_word(pid, "guardian") && !server(pid));
        found.sort_by_key(|&pid| process::stat(pid).map_or(u64::MAX, |stat| stat.started));
        found
    }

    /// The postmaster's pid: in the data directory, and child of none that is.
    pub fn postmaster(&self) -> Option<u32> {
        let data = self.data();
        let servers: Vec<u32> = process::pids()
            .into_iter()
            .filter(|&pid| process::alive(pid) && process::working_directory(pid).as_deref() == Some(&data))
            .filter(|&pid| process::stat(pid).is_some_and(|stat| stat.name == "postgres"))
            .collect();
        servers
            .iter()
            .copied()
            .find(|&pid| process::stat(pid).is_some_and(|stat| !servers.contains(&stat.parent)))
    }

    /// The pids of Postgres's own processes whose title holds `word`: `walreceiver`, `checkpointer`,
    /// ` chaos chaos ` for clients' backends.
    pub fn servers(&self, word: &str) -> Vec<u32> {
        let data = self.data();
        let here = |&pid: &u32| process::working_directory(pid).as_deref() == Some(&data);
        let mut found = process::pids();
        found.retain(|pid| here(pid) && process::alive(*pid) && process::command_line(*pid).contains(word));
        found
    }

    /// Sends a signal to the supervisor.
    pub fn signal_supervisor(&mut self, signal: Signal) -> Result<()> {
        let Some(pid) = self.supervisor() else { bail!("{} has no supervisor", self.name()) };
        process::signal(pid, signal);
        Ok(())
    }

    /// Sends a signal to supervisor and guardian.
    pub fn signal_both(&mut self, signal: Signal) -> Result<()> {
        let guardians = self.guardians();
        if guardians.is_empty() {
            bail!("{} has no guardian", self.name());
        }
        self.signal_supervisor(signal)?;
        for guardian in guardians {
            process::signal(guardian, signal);
        }
        Ok(())
    }

    /// Sends a signal to the guardian alone.
    pub fn signal_guardian(&self, signal: Signal) -> Result<()> {
        let guardians = self.guardians();
        if guardians.is_empty() {
            bail!("{} has no guardian", self.name());
        }
        for guardian in guardians {
            process::signal(guardian, signal);
        }
        Ok(())
    }

    /// Sends a signal to every process of Postgres; says to how many.
    pub fn signal_postgres(&self, signal: Signal) -> usize {
        let data = self.data();
        let here = |&pid: &u32| process::working_directory(pid).as_deref() == Some(&data);
        let servers: Vec<u32> =
            process::pids().into_iter().filter(|&pid| process::alive(pid)).filter(here).collect();
        for &pid in &servers {
            process::signal(pid, signal);
        }
        servers.len()
    }

    /// Kills the postmaster alone.
    pub fn kill_postmaster(&self) -> Result<()> {
        let Some(pid) = self.postmaster() else { bail!("{} has no postmaster", self.name()) };
        process::signal(pid, Signal::KILL);
        Ok(())
    }

    /// Kills everything on this node at once. What was written stays: the machine's page cache
    /// survives, only the processes do not.
    pub fn power_off(&mut self) -> Result<()> {
        if let Some(group) = &self.group {
            group.kill()?;
        }
        for pid in self.processes() {
            process::signal(pid, Signal::KILL);
        }
        if !process::kill_of_folder(&self.folder) {
            bail!("processes of {} survived SIGKILL", self.name());
        }
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.wait(Duration::from_secs(5));
        }
        self.supervisor = None;
        Ok(())
    }

    /// Freezes or thaws the whole node, as a hypervisor would that stalls.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        match &self.group {
            Some(group) => group.freeze(frozen),
            None => bail!("cannot freeze a node: no cgroup v2 here"),
        }
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

fn command_has_word(pid: u32, word: &str) -> bool {
    process::command_line(pid).split_whitespace().any(|part| part.trim_end_matches(':') == word)
}

/// The user that Postgres runs as when the harness is root.
fn postgres_user() -> Option<(rustix::fs::Uid, rustix::fs::Gid)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = users.lines().find(|line| line.starts_with("postgres:"))?.split(':').collect();
    let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some((rustix::fs::Uid::from_raw(number(2)?), rustix::fs::Gid::from_raw(number(3)?)))
}
