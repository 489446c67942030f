//! A cluster of real supervisors and real Postgres servers, and waiting for its states.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::cgroup::{self, Group};
use crate::cleanup::{self, Leftovers};
use crate::clock::Moment;
use crate::history::Key;
use crate::namespace::{Means, Network, Place};
use crate::node::{GRPC_PORT, Node, POSTGRES_PORT};
use crate::process::{self, Output, Signal};
pub use crate::spec::{Spec, Sync};
use crate::sql::{Door, Rows, ask};
use crate::workload::{DATABASE, Plan, TABLE, Workload};

/// What is generous for any change of state on a loaded two-core machine.
pub const LIMIT: Duration = Duration::from_secs(90);
const QUESTION: Duration = Duration::from_secs(2);

/// How a node loses its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// Peers and clients see their connections reset.
    Resets,
    /// Peers and clients see nothing: the link is cut first.
    BlackHole,
}

/// What one Postgres says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Whether it is a standby.
    pub standby: bool,
    /// The address that a streaming standby streams from.
    pub upstream: Option<String>,
    /// How many standbys stream from it.
    pub streaming: usize,
    /// The system identifier.
    pub system: String,
}

/// A running cluster. Dropping it removes all that it made.
#[derive(Debug)]
pub struct Cluster {
    id: String,
    folder: PathBuf,
    network: Network,
    group: Option<Group>,
    /// The data members, then the witness.
    nodes: Vec<Node>,
    keep: bool,
    /// Something went wrong: the logs are worth keeping.
    failed: AtomicBool,
}

impl Cluster {
    /// Builds network, folders and configurations; starts nothing.
    pub fn create(spec: &Spec) -> Result<Self> {
        cleanup::prepare();
        let id = cleanup::new_id();
        let folder = std::env::temp_dir().join(&id);
        let group_path =
            cgroup::root().filter(|_| rustix::process::geteuid().is_root()).map(|root| root.join(&id));
        let means = Means::detect();
        cleanup::register(Leftovers {
            id: id.clone(),
            namespaces: Network::namespaces(&id, spec.members),
            group: group_path.clone(),
            folder: folder.clone(),
            ..Leftovers::default()
        });
        let keep = std::env::var_os("CHAOS_KEEP").is_some();
        match Self::build(&id, &folder, group_path, means, spec) {
            Ok((network, group, nodes)) => {
                Ok(Self { id, folder, network, group, nodes, keep, failed: AtomicBool::new(false) })
            }
            Err(error) => {
                cleanup::remove(&id, false);
                Err(error)
            }
        }
    }

    fn build(
        id: &str,
        folder: &Path,
        group: Option<PathBuf>,
        means: Means,
        spec: &Spec,
    ) -> Result<(Network, Option<Group>, Vec<Node>)> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let group = group.map(Group::create).transpose()?;
        let network = Network::up(id, spec.members, means)?;
        let program = match &spec.program {
            Some(program) => program.clone(),
            None => crate::binary::rhone()?,
        };
        let mut nodes = (0..spec.members)
            .map(|index| Node::create(index, spec.extras, folder, group.as_ref(), (&network, &program)))
            .collect::<Result<Vec<_>>>()?;
        if let Some(last) = nodes.last_mut().filter(|_| spec.witness) {
            last.be_witness();
        }
        for (index, tags) in &spec.tags {
            nodes.get_mut(*index).context("a member with tags")?.tag(tags);
        }
        let founders = spec.founders.unwrap_or(spec.members);
        let peers: Vec<Ipv4Addr> = nodes.iter().take(founders).map(Node::address).collect();
        for node in &nodes {
            let tables = spec.tables.replace("{address}", &node.address().to_string());
            let tables = tables.replace("{folder}", &node.folder().display().to_string());
            node.configure(&peers, id, &format!("{tables}\n{}", spec.bootstrap(network.client_range())))?;
        }
        Ok((network, group, nodes))
    }

    /// Builds and starts a cluster, waits until it is whole, and makes the clients' database.
    pub fn start(spec: &Spec) -> Result<Self> {
        let mut cluster = Self::create(spec)?;
        let founders = spec.founders.unwrap_or(spec.members);
        for index in 0..founders {
            cluster.start_node(index)?;
        }
        let later: Vec<usize> = (founders..spec.members).collect();
        cluster.prepare_database_without(&later)?;
        Ok(cluster)
    }

    /// Waits until the cluster is whole, then makes the clients' role, database and table.
    pub fn prepare_database(&mut self) -> Result<usize> {
        self.prepare_database_without(&[])
    }

    fn prepare_database_without(&mut self, absent: &[usize]) -> Result<usize> {
        let primary = self.wait_whole_without(absent)?;
        let door = self.node(primary)?.door();
        let limit = Duration::from_secs(20);
        ask(&door, "postgres", "CREATE ROLE chaos LOGIN", limit).context("make the clients' role")?;
        ask(&door, "postgres", "CREATE DATABASE chaos OWNER chaos", limit)
            .context("make the clients' database")?;
        ask(&door, DATABASE, TABLE, limit).context("make the clients' table")?;
        Ok(primary)
    }

    /// Removes the rows of an earlier workload: the clients of the next count from one again.
    pub fn forget_rows(&self) -> Result<()> {
        let door = self.node(self.wait_whole()?)?.door();
        ask(&door, DATABASE, "TRUNCATE writes", Duration::from_secs(20)).context("forget the rows").map(drop)
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.nodes.len()
    }

    /// How many of them run Postgres: the first ones.
    pub fn data_members(&self) -> usize {
        self.nodes.iter().filter(|node| !node.is_witness()).count()
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The folder with all files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A member's node.
    pub fn node(&self, index: usize) -> Result<&Node> {
        self.nodes.get(index).ok_or_else(|| anyhow!("there is no member {}", index + 1))
    }

    /// A member's node, to change.
    pub fn node_mut(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).ok_or_else(|| anyhow!("there is no member {}", index + 1))
    }

    /// Has a member that is stopped come back under another address.
    pub fn move_node(&mut self, index: usize) -> Result<()> {
        let address = self.network.another_address(index)?;
        self.node_mut(index)?.move_to(address)
    }

    /// Starts a member's supervisor.
    pub fn start_node(&mut self, index: usize) -> Result<()> {
        let Some(node) = self.nodes.get_mut(index) else { bail!("there is no member {}", index + 1) };
        node.start(&self.network)
    }

    /// Starts clients.
    pub fn workload(&self, plan: &Plan) -> Workload {
        let servers: Vec<(Ipv4Addr, u16)> =
            self.data_nodes().map(|(_, node)| (node.address(), POSTGRES_PORT)).collect();
        Workload::start(&self.network, &servers, plan)
    }

    /// How clients reach each data member, with its index.
    pub fn doors(&self) -> Vec<(usize, Door)> {
        let door = |node: &Node| Door::Tcp { address: node.address(), port: POSTGRES_PORT };
        self.data_nodes().map(|(index, node)| (index, door(node))).collect()
    }

    /// Takes the power from a node. In a black hole the node stays cut until [`Network::heal`].
    pub fn power_loss(&mut self, index: usize, kind: PowerLoss) -> Result<()> {
        cleanup::note_shared_memory(&self.id, &self.folder);
        if kind == PowerLoss::BlackHole {
            self.network.cut(Place::Node(index))?;
        }
        self.node_mut(index)?.power_off()
    }

    /// Takes the power from all nodes at once.
    pub fn power_loss_of_all(&mut self) -> Result<()> {
        cleanup::note_shared_memory(&self.id, &self.folder);
        if let Some(group) = &self.group {
            group.kill()?;
        }
        self.nodes.iter_mut().try_for_each(Node::power_off)
    }

    /// Whether a member's supervisor accepts gRPC connections.
    pub fn listens(&self, index: usize) -> bool {
        self.accepts(Place::Client, index, GRPC_PORT)
    }

    /// Whether a member's Postgres accepts connections from a place.
    pub fn reaches(&self, from: Place, index: usize) -> bool {
        self.accepts(from, index, POSTGRES_PORT)
    }

    fn accepts(&self, from: Place, index: usize, port: u16) -> bool {
        let Ok(node) = self.node(index) else { return false };
        let address = (node.address(), port);
        let probe = self.network.thread(from, move || {
            TcpStream::connect_timeout(&address.into(), Duration::from_millis(500)).context("connect")
        });
        probe.join().is_ok_and(|result| result.is_ok())
    }

    /// Runs the CLI on a member.
    pub fn rhone(&self, index: usize, arguments: &[&str], limit: Duration) -> Result<Output> {
        let node = self.node(index)?;
        let mut command = self.network.command(Place::Node(index), node.program());
        process::run(command.args(arguments).arg("-c").arg(node.config()).env("NO_COLOR", "1"), limit)
    }

    /// `rhone status -o json` of a member.
    pub fn status(&self, index: usize) -> Result<Value> {
        let output = self.rhone(index, &["status", "-o", "json"], Duration::from_secs(10))?;
        if output.code != Some(0) {
            bail!("rhone status failed with {:?}: {}", output.code, output.stderr.trim());
        }
        serde_json::from_str(&output.stdout).context("read the status")
    }

    /// The epoch, as a member that answers says it.
    pub fn epoch(&self) -> Result<u64> {
        let answers = (0..self.members()).filter_map(|index| self.status(index).ok()?.get("epoch")?.as_u64());
        answers.max().context("no member told its epoch")
    }

    /// The index of Raft's leader, as a member that answers says it.
    pub fn raft_leader(&self) -> Result<usize> {
        for index in 0..self.members() {
            let Ok(status) = self.status(index) else { continue };
            let Some(name) = status.get("raft_leader").and_then(Value::as_str) else { continue };
            if let Some(leader) = self.nodes.iter().position(|node| node.name() == name) {
                return Ok(leader);
            }
        }
        bail!("no member knows a Raft leader")
    }

    /// Moves the primary by `rhone switchover --to`, once `rhone status` says that the target streams.
    pub fn switchover(&self, to: usize) -> Result<()> {
        let name = self.node(to)?.name();
        self.wait_until(&format!("{name} streams, as rhone says"), || {
            let status = self.status(to)?;
            let members = status.get("members").and_then(Value::as_array).context("members")?;
            let member =
                members.iter().find(|member| member.get("name").and_then(Value::as_str) == Some(&name));
            let state = member.and_then(|member| member.get("state")).and_then(Value::as_str);
            ensure!(state == Some("streaming"), "{name} is {state:?}");
            Ok(())
        })?;
        let mut tries = 0;
        loop {
            let output =
                self.rhone(to, &["switchover", "--to", &name, "-o", "json"], Duration::from_secs(60))?;
            tries += 1;
            match output.code {
                Some(0) => {
                    serde_json::from_str::<Value>(&output.stdout).context("read what switchover printed")?;
                    return Ok(());
                }
                // On a machine that is too slow for it the former primary goes on, and says so.
                Some(1) if tries < 3 => {
                    crate::scenario::report(&format!(
                        "switchover to {name}, try {tries}: {}",
                        output.stderr.trim()
                    ));
                    self.wait_whole()?;
                }
                code => bail!("switchover to {name} ended with {code:?}: {}", output.stderr.trim()),
            }
        }
    }

    /// Runs a command of `rhone` on a member, which has to succeed.
    pub fn operate(&self, index: usize, arguments: &[&str]) -> Result<()> {
        let output = self.rhone(index, arguments, Duration::from_secs(180))?;
        if output.code != Some(0) {
            bail!("rhone {} ended with {:?}: {}", arguments.join(" "), output.code, output.stderr.trim());
        }
        Ok(())
    }

    /// Asks every Postgres for its role; those that do not answer are missing.
    pub fn roles(&self) -> BTreeMap<usize, Role> {
        let asked: Vec<_> = self
            .data_nodes()
            .map(|(index, node)| {
                let door = node.door();
                thread::spawn(move || Some((index, role(&ask(&door, "postgres", ROLE, QUESTION).ok()?)?)))
            })
            .collect();
        asked.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    }

    /// The primary, if among those that answer there is exactly one.
    pub fn primary(&self) -> Option<usize> {
        let mut primaries =
            self.roles().into_iter().filter(|(_, role)| !role.standby).map(|(index, _)| index);
        let first = primaries.next();
        first.filter(|_| primaries.next().is_none())
    }

    fn data_nodes(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| !node.is_witness())
    }

    /// Says why the cluster is not whole: all data members answer, one is primary, all others stream
    /// from it. Members in `absent` need not be there.
    fn whole(&self, absent: &[usize]) -> Result<usize> {
        let roles = self.roles();
        let expected: Vec<usize> = (0..self.data_members()).filter(|index| !absent.contains(index)).collect();
        for index in &expected {
            if !roles.contains_key(index) {
                bail!("{} does not answer", self.node(*index)?.name());
            }
        }
        let primaries: Vec<usize> =
            roles.iter().filter(|(_, role)| !role.standby).map(|(index, _)| *index).collect();
        let [primary] = primaries.as_slice() else { bail!("{} primaries", primaries.len()) };
        let address = self.node(*primary)?.address().to_string();
        for (index, role) in &roles {
            let direct = role.upstream.as_deref() == Some(&address);
            if index != primary
                && expected.contains(index)
                && !direct
                && !self.cascades(*index, &address, &roles)
            {
                bail!("{} streams from {:?}, not from {address}", self.node(*index)?.name(), role.upstream);
            }
        }
        let systems: BTreeSet<&str> = roles.values().map(|role| role.system.as_str()).collect();
        if systems.len() != 1 {
            bail!("{} different system identifiers", systems.len());
        }
        let streaming = roles.get(primary).map_or(0, |role| role.streaming);
        let cascading = roles.keys().filter(|index| self.cascades(**index, &address, &roles)).count();
        if streaming + cascading + 1 < expected.len() {
            bail!("the primary sees only {streaming} standbys streaming");
        }
        Ok(*primary)
    }

    /// Whether a member that is tagged to follow another standby streams from one that streams from
    /// the primary.
    fn cascades(&self, index: usize, primary: &str, roles: &BTreeMap<usize, Role>) -> bool {
        let tagged = self.node(index).is_ok_and(Node::is_tagged_to_cascade);
        let upstream = roles.get(&index).and_then(|role| role.upstream.as_deref());
        tagged
            && roles.iter().any(|(other, role)| {
                let address = self.node(*other).map(|node| node.address().to_string());
                role.upstream.as_deref() == Some(primary) && address.ok().as_deref() == upstream
            })
    }

    /// Waits until all members answer, one is primary, and all others stream from it.
    pub fn wait_whole(&self) -> Result<usize> {
        self.wait_whole_without(&[])
    }

    /// The same, when some members are away.
    pub fn wait_whole_without(&self, absent: &[usize]) -> Result<usize> {
        self.wait_until("one primary, all others streaming", || self.whole(absent))
    }

    /// Waits until all data members answer, one is primary, and all others stream from it.
    pub fn wait_whole_up_to(&self, limit: Duration) -> Result<usize> {
        self.wait_up_to(limit, "one primary, all others streaming", || self.whole(&[]))
    }

    /// Waits until Rhone says that a failover now would lose nothing: only then may the next fault of a
    /// synchronous cluster be expected to be answered by one. No evidence of anything.
    pub fn wait_secured(&self) -> Result<()> {
        self.wait_until("a failover now would lose nothing", || {
            let mut said = String::new();
            for index in 0..self.members() {
                let Ok(status) = self.status(index) else { continue };
                said = status.get("failover_would_lose").map(ToString::to_string).unwrap_or_default();
                // Who is missing is told behind it.
                if said.trim_matches('"').split(';').next() == Some("nothing") {
                    return Ok(());
                }
            }
            bail!("a failover now would lose {said}")
        })
    }

    /// Waits for a condition; when it does not come, says what the nodes said last.
    pub fn wait_until<T>(&self, what: &str, condition: impl Fn() -> Result<T>) -> Result<T> {
        self.wait_up_to(LIMIT, what, condition)
    }

    /// The same with another limit.
    pub fn wait_up_to<T>(&self, limit: Duration, what: &str, condition: impl Fn() -> Result<T>) -> Result<T> {
        let start = Moment::now();
        loop {
            match condition() {
                Ok(value) => return Ok(value),
                Err(reason) if start.elapsed() > limit => {
                    return Err(reason.context(format!("wait for: {what}; {}", self.dump())));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Reads the rows of all members that answer, once they have replayed what the primary has.
    /// Call it when no client writes.
    pub fn rows(&self, absent: &[usize]) -> Result<BTreeMap<usize, BTreeSet<Key>>> {
        let primary = self.wait_whole_without(absent)?;
        let limit = Duration::from_secs(30);
        // A client that gave up left its statement behind: a commit that still waits for a standby is
        // on the standbys, and not to be seen at the primary yet.
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chaos' \
                    AND state <> 'idle' AND pid <> pg_backend_pid()";
        let door = self.node(primary)?.door();
        self.wait_until("no statement of a client is left", || {
            let left = ask(&door, "postgres", busy, QUESTION)?.into_iter().flatten().flatten().next();
            ensure!(left.as_deref() == Some("0"), "{left:?} at work");
            Ok(())
        })?;
        let end = ask(&self.node(primary)?.door(), "postgres", "SELECT pg_current_wal_lsn()", limit)
            .with_context(|| self.dump())?;
        let end = end.into_iter().flatten().flatten().next().context("the primary's LSN")?;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
        let mut found = BTreeMap::new();
        for (index, node) in self.data_nodes().filter(|(index, _)| !absent.contains(index)) {
            let door = node.door();
            if index != primary {
                self.wait_until(&format!("{} has replayed {end}", node.name()), || {
                    match ask(&door, "postgres", &replayed, QUESTION)?.into_iter().flatten().flatten().next()
                    {
                        Some(answer) if answer == "t" => Ok(()),
                        other => bail!("replayed: {other:?}"),
                    }
                })?;
            }
            let rows = ask(&door, DATABASE, "SELECT client, seq FROM writes", limit)
                .with_context(|| format!("read the rows of {}: {}", node.name(), self.dump()))?;
            found.insert(index, keys(&rows));
        }
        Ok(found)
    }

    /// Reads the rows of one member now.
    pub fn rows_of(&self, index: usize) -> Result<BTreeSet<Key>> {
        let limit = Duration::from_secs(30);
        Ok(keys(&ask(&self.node(index)?.door(), DATABASE, "SELECT client, seq FROM writes", limit)?))
    }

    /// Says what the nodes said last, for a failure's message; the whole logs are kept.
    pub fn dump(&self) -> String {
        self.failed.store(true, Ordering::Relaxed);
        let mut text = format!("roles: {:?}; logs kept in {}", self.roles(), self.kept().display());
        for (index, node) in self.nodes.iter().enumerate() {
            text.push_str(&format!("\n--- {} ---\n{}", node.name(), node.log_tail(25)));
            match self.rhone(index, &["status", "-o", "json"], Duration::from_secs(5)) {
                Ok(output) => {
                    text.push_str(&format!("\nstatus: {}{}", output.stdout.trim(), output.stderr.trim()));
                }
                Err(error) => text.push_str(&format!("\nstatus: {error:#}")),
            }
        }
        text
    }

    /// Where files are kept; no later run removes them.
    fn kept(&self) -> PathBuf {
        self.folder.with_file_name(format!("kept-{}", self.id))
    }

    fn keep_logs(&self) {
        for node in &self.nodes {
            let to = self.kept().join(node.name());
            drop(std::fs::create_dir_all(&to));
            for from in [node.log(), node.config()] {
                let Some(name) = from.file_name() else { continue };
                drop(std::fs::copy(&from, to.join(name)));
            }
        }
    }

    /// Where the logs of a cluster that failed are.
    pub fn kept_logs(&self) -> PathBuf {
        self.failed.store(true, Ordering::Relaxed);
        self.kept()
    }

    /// Lets all supervisors, guardians and nodes that were stopped go on. What a guardian has
    /// frozen stays frozen.
    pub fn resume_all(&mut self) {
        for node in &mut self.nodes {
            drop(node.freeze(false));
            for pid in node.supervisor().into_iter().chain(node.guardians()) {
                process::signal(pid, Signal::CONT);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep && (self.failed.load(Ordering::Relaxed) || thread::panicking()) {
            self.keep_logs();
        }
        cleanup::remove(&self.id, self.keep);
        if self.keep {
            drop(std::fs::rename(&self.folder, self.kept()));
        }
    }
}

const ROLE: &str = "SELECT pg_is_in_recovery(), \
     (SELECT sender_host FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
     (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name <> 'pg_basebackup'), \
     (SELECT system_identifier FROM pg_control_system())";

fn role(rows: &Rows) -> Option<Role> {
    let [standby, upstream, streaming, system] = rows.first()?.as_slice() else { return None };
    Some(Role {
        standby: standby.as_deref()? == "t",
        upstream: upstream.clone(),
        streaming: streaming.as_deref()?.parse().ok()?,
        system: system.clone()?,
    })
}

fn keys(rows: &Rows) -> BTreeSet<Key> {
    rows.iter()
        .filter_map(|row| match row.as_slice() {
            [Some(client), Some(seq)] => Some(Key { client: client.parse().ok()?, seq: seq.parse().ok()? }),
            _ => None,
        })
        .collect()
}
