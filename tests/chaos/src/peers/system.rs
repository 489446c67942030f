//! What is compared, and three running nodes of it.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::cluster::{Cluster, Spec, Sync};
use crate::node::Node;
use crate::peers::patroni::{self, Choice};
use crate::peers::{autofailover, launch};
use crate::process;
use crate::sql::ask;

/// Founding may take several of a peer's rounds of ten seconds.
const FOUNDING: Duration = Duration::from_secs(240);

/// A product in one configuration.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Rhone, `sync = "off"`, default timings.
    RhoneAsync,
    /// Rhone, `sync = "quorum"`, default timings.
    RhoneQuorum,
    /// Patroni and etcd, default timings.
    PatroniEtcd,
    /// Patroni and etcd, the lowest timings that Patroni accepts.
    PatroniEtcdLow,
    /// Patroni and etcd, default timings, `synchronous_mode: on`.
    PatroniEtcdSync,
    /// Patroni in its own raft mode (pysyncobj), default timings.
    PatroniRaft,
    /// pg_auto_failover with a monitor, its defaults.
    PgAutoFailover,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RhoneAsync,
        Self::RhoneQuorum,
        Self::PatroniEtcd,
        Self::PatroniEtcdLow,
        Self::PatroniEtcdSync,
        Self::PatroniRaft,
        Self::PgAutoFailover,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::RhoneAsync => "Rhone, async",
            Self::RhoneQuorum => "Rhone, quorum",
            Self::PatroniEtcd => "Patroni + etcd, async",
            Self::PatroniEtcdLow => "Patroni + etcd, async, lowest timings",
            Self::PatroniEtcdSync => "Patroni + etcd, synchronous_mode",
            Self::PatroniRaft => "Patroni, raft mode, async",
            Self::PgAutoFailover => "pg_auto_failover (sync by default)",
        }
    }

    /// Whether a commit waits for a standby.
    pub fn synchronous(self) -> bool {
        match self {
            Self::RhoneQuorum | Self::PatroniEtcdSync | Self::PgAutoFailover => true,
            Self::RhoneAsync | Self::PatroniEtcd | Self::PatroniEtcdLow | Self::PatroniRaft => false,
        }
    }

    /// Whether it is Rhone.
    pub fn is_rhone(self) -> bool {
        matches!(self, Self::RhoneAsync | Self::RhoneQuorum)
    }

    /// How it is configured, beyond its name.
    fn patroni(self) -> Option<Choice> {
        let choice = |raft, timings, synchronous| Some(Choice { raft, timings, synchronous });
        match self {
            Self::PatroniEtcd => choice(false, patroni::DEFAULT, false),
            Self::PatroniEtcdLow => choice(false, patroni::LEAST, false),
            Self::PatroniEtcdSync => choice(false, patroni::DEFAULT, true),
            Self::PatroniRaft => choice(true, patroni::DEFAULT, false),
            Self::RhoneAsync | Self::RhoneQuorum | Self::PgAutoFailover => None,
        }
    }

    /// The programs that it needs beside Postgres.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::RhoneAsync | Self::RhoneQuorum => &[],
            Self::PatroniEtcd | Self::PatroniEtcdLow | Self::PatroniEtcdSync => {
                &["etcd", "patroni", "patronictl"]
            }
            Self::PatroniRaft => &["patroni", "patronictl"],
            Self::PgAutoFailover => &["pg_autoctl"],
        }
    }

    /// What of it is not installed here.
    pub fn missing(self) -> Option<String> {
        let missing = self.programs().iter().find(|name| launch::program(name).is_none());
        missing.map(|name| format!("{}: no {name} here; deploy/install-peers.sh installs it", self.name()))
    }

    fn spec(self) -> Spec {
        let base = Spec::asynchronous(3);
        // Replaced by a script for each node.
        let program = Some(PathBuf::from("/bin/false"));
        match self {
            Self::RhoneAsync => base,
            Self::RhoneQuorum => Spec { sync: Sync::Quorum, ..base },
            Self::PatroniEtcd | Self::PatroniEtcdLow | Self::PatroniEtcdSync | Self::PatroniRaft => {
                Spec { program, ..base }
            }
            // The monitor's node is one that holds none of the cluster's data.
            Self::PgAutoFailover => Spec { program, ..Spec::asynchronous(4).with_witness() },
        }
    }
}

/// A part of what runs on a node beside its Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What decides: `rhone run`, patroni, pg_autoctl.
    Agent,
    /// Rhone's second process.
    Guardian,
    /// What keeps the cluster's state elsewhere than in the agent: etcd, or the monitor's Postgres.
    Store,
}

/// Three running nodes of one system.
#[derive(Debug)]
pub struct Bed {
    system: System,
    /// The nodes.
    pub cluster: Cluster,
}

impl Bed {
    /// Starts the nodes, waits until all stream, and makes the clients' table.
    pub fn start(system: System) -> Result<Self> {
        let mut cluster = Cluster::create(&system.spec())?;
        if let Some(choice) = system.patroni() {
            patroni::prepare(&mut cluster, choice)?;
        } else if system == System::PgAutoFailover {
            autofailover::prepare(&mut cluster)?;
        }
        for index in 0..cluster.members() {
            cluster.start_node(index)?;
        }
        cluster.wait_whole_up_to(FOUNDING).with_context(|| format!("found {}", system.name()))?;
        cluster.prepare_database()?;
        Ok(Self { system, cluster })
    }

    /// What is running.
    pub fn system(&self) -> System {
        self.system
    }

    /// Waits until one is primary, all others stream, and the system itself would fail over to one of them.
    pub fn wait_ready(&self, limit: Duration) -> Result<usize> {
        let start = Moment::now();
        let primary = self.cluster.wait_whole_up_to(limit)?;
        loop {
            match self.ready(primary) {
                Ok(true) => return Ok(primary),
                said if start.elapsed() > limit => {
                    bail!("{} does not become ready: {said:?}", self.system.name())
                }
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn ready(&self, primary: usize) -> Result<bool> {
        if let Some(choice) = self.system.patroni() {
            return patroni::ready(&self.cluster, primary, choice.synchronous);
        }
        match self.system {
            System::RhoneQuorum => self.cluster.wait_secured().map(|()| true),
            System::PgAutoFailover => {
                let question =
                    "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
                let limit = Duration::from_secs(5);
                let rows = ask(&self.cluster.node(primary)?.door(), "postgres", question, limit)?;
                let count = rows.into_iter().flatten().flatten().next().context("a count")?;
                Ok(count != "0")
            }
            System::RhoneAsync
            | System::PatroniEtcd
            | System::PatroniEtcdLow
            | System::PatroniEtcdSync
            | System::PatroniRaft => Ok(true),
        }
    }

    /// Moves the primary by the system's own command.
    pub fn switchover(&self, from: usize, to: usize) -> Result<()> {
        match self.system {
            System::RhoneAsync | System::RhoneQuorum => self.cluster.switchover(to),
            System::PgAutoFailover => autofailover::switchover(&self.cluster, to),
            System::PatroniEtcd | System::PatroniEtcdLow | System::PatroniEtcdSync | System::PatroniRaft => {
                patroni::switchover(&self.cluster, from, to)
            }
        }
    }

    /// What runs on a node beside its Postgres.
    pub fn parts(&mut self, index: usize) -> Result<Vec<(Part, Vec<u32>)>> {
        let system = self.system;
        let node = self.cluster.node_mut(index)?;
        if system.is_rhone() {
            let supervisor =
                node.supervisor().with_context(|| format!("{} has no supervisor", node.name()))?;
            return Ok(vec![(Part::Agent, vec![supervisor]), (Part::Guardian, node.guardians())]);
        }
        let (mut agents, mut stores) = (Vec::new(), Vec::new());
        for pid in node.processes() {
            if is_postgres(node, pid) {
                // A monitor's Postgres is its store.
                if node.is_witness() {
                    stores.push(pid);
                }
            } else if process::stat(pid).is_some_and(|stat| stat.name == "etcd") {
                stores.push(pid);
            } else {
                agents.push(pid);
            }
        }
        let parts = [(Part::Agent, agents), (Part::Store, stores)];
        Ok(parts.into_iter().filter(|(_, pids)| !pids.is_empty()).collect())
    }
}

fn is_postgres(node: &Node, pid: u32) -> bool {
    process::stat(pid).is_some_and(|stat| stat.name == "postgres")
        && process::working_directory(pid).is_some_and(|folder| folder == node.data())
}
