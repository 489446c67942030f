//! Patroni, with etcd beside it on the same nodes or with its own raft mode.
//!
//! The configuration is the one that Patroni's documentation begins with (its `postgres0.yml`): pg_rewind on, slots on, the
//! lag limit, no watchdog. etcd keeps its own default timings.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::binary;
use crate::cluster::Cluster;
use crate::node::{HTTP_PORT, Node, POSTGRES_PORT};
use crate::peers::launch;

const ETCD_CLIENTS: u16 = 2379;
const ETCD_PEERS: u16 = 2380;
const RAFT: u16 = 2222;

/// What is chosen in Patroni's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Patroni's raft mode (pysyncobj) instead of etcd.
    pub raft: bool,
    /// `ttl`, `loop_wait`, `retry_timeout`, in seconds.
    pub timings: [u32; 3],
    /// `synchronous_mode: on`.
    pub synchronous: bool,
}

/// Patroni's own defaults.
pub const DEFAULT: [u32; 3] = [30, 10, 10];
/// The least that Patroni accepts: `loop_wait + 2 * retry_timeout <= ttl`, with `ttl` of 20 at least.
pub const LEAST: [u32; 3] = [20, 1, 3];

/// Writes the configuration of all nodes and tells them what to start.
pub fn prepare(cluster: &mut Cluster, choice: Choice) -> Result<()> {
    let members = cluster.members();
    for index in 0..members {
        let others: Vec<usize> = (0..members).filter(|other| *other != index).collect();
        let configuration = configuration(cluster, index, &others, choice)?;
        let node = cluster.node(index)?;
        let text = serde_json::to_string_pretty(&configuration).context("render patroni.yml")?;
        // JSON is YAML.
        fs::write(file(node), text).context("write patroni.yml")?;
        let before = if choice.raft { String::new() } else { etcd(cluster, index)? };
        let last = format!("'{}' '{}'", launch::needed("patroni")?.display(), file(node).display());
        let script = launch::script(node, &before, &last)?;
        cluster.node_mut(index)?.use_program(script);
    }
    Ok(())
}

fn file(node: &Node) -> std::path::PathBuf {
    node.folder().join("patroni.yml")
}

fn configuration(cluster: &Cluster, index: usize, others: &[usize], choice: Choice) -> Result<Value> {
    let node = cluster.node(index)?;
    let address = node.address();
    let (bin, range) = (binary::postgres_folder()?, cluster.network().client_range());
    let [ttl, loop_wait, retry_timeout] = choice.timings;
    let mut text = json!({
        "scope": "bench",
        "name": node.name(),
        "restapi": {
            "listen": format!("{address}:{HTTP_PORT}"),
            "connect_address": format!("{address}:{HTTP_PORT}"),
        },
        "bootstrap": {
            "dcs": {
                "ttl": ttl,
                "loop_wait": loop_wait,
                "retry_timeout": retry_timeout,
                "maximum_lag_on_failover": 1_048_576,
                "synchronous_mode": choice.synchronous,
                "postgresql": { "use_pg_rewind": true, "use_slots": true, "parameters": { "shared_buffers": "32MB" } },
            },
            "initdb": [{ "encoding": "UTF8" }, "data-checksums"],
        },
        "postgresql": {
            "listen": format!("{address}:{POSTGRES_PORT}"),
            "connect_address": format!("{address}:{POSTGRES_PORT}"),
            "data_dir": node.data(),
            "bin_dir": bin,
            "pgpass": launch::home(node).join("pgpass"),
            "authentication": {
                "superuser": { "username": "postgres" },
                "replication": { "username": "replicator" },
                "rewind": { "username": "rewinder" },
            },
            "parameters": { "unix_socket_directories": node.folder().join("s") },
            "pg_hba": [
                "local all all trust",
                format!("host replication all {range} trust"),
                format!("host all all {range} trust"),
            ],
        },
        "watchdog": { "mode": "off" },
    });
    let addresses = |port: u16, of: &[usize]| -> Result<Vec<String>> {
        of.iter().map(|&other| Ok(format!("{}:{port}", cluster.node(other)?.address()))).collect()
    };
    let map = text.as_object_mut().context("an object")?;
    if choice.raft {
        let raft = json!({
            "data_dir": launch::home(node).join("raft"),
            "self_addr": format!("{address}:{RAFT}"),
            "partner_addrs": addresses(RAFT, others)?,
        });
        map.insert("raft".to_owned(), raft);
    } else {
        let all: Vec<usize> = (0..cluster.members()).collect();
        map.insert("etcd3".to_owned(), json!({ "hosts": addresses(ETCD_CLIENTS, &all)? }));
    }
    Ok(text)
}

/// The line that starts etcd on a node.
fn etcd(cluster: &Cluster, index: usize) -> Result<String> {
    let node = cluster.node(index)?;
    let address = node.address();
    let all: Vec<String> = (0..cluster.members())
        .map(|other| {
            let other = cluster.node(other)?;
            Ok(format!("{}=http://{}:{ETCD_PEERS}", other.name(), other.address()))
        })
        .collect::<Result<_>>()?;
    Ok(format!(
        "as '{program}' --name {name} --data-dir etcd --initial-advertise-peer-urls http://{address}:{ETCD_PEERS} \
         --listen-peer-urls http://{address}:{ETCD_PEERS} --advertise-client-urls http://{address}:{ETCD_CLIENTS} \
         --listen-client-urls http://{address}:{ETCD_CLIENTS} --initial-cluster {all} --initial-cluster-token bench \
         >> ../etcd.log 2>&1 &",
        program = launch::needed("etcd")?.display(),
        name = node.name(),
        all = all.join(","),
    ))
}

/// `patronictl switchover`.
pub fn switchover(cluster: &Cluster, from: usize, to: usize) -> Result<()> {
    let node = cluster.node(to)?;
    let (program, file) = (launch::needed("patronictl")?, file(node));
    let (from, to_name) = (cluster.node(from)?.name(), node.name());
    let words = [
        &program.display().to_string(),
        "-c",
        &file.display().to_string(),
        "switchover",
        "bench",
        "--leader",
        &from,
        "--candidate",
        &to_name,
        "--force",
    ]
    .map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    launch::command_ok(cluster, to, &words, Duration::from_secs(120)).map(drop)
}

/// Whether Patroni itself counts every other member as one that streams, as `patronictl list` says.
pub fn ready(cluster: &Cluster, index: usize, synchronous: bool) -> Result<bool> {
    let (program, file) = (launch::needed("patronictl")?, file(cluster.node(index)?));
    let (program, file) = (program.display().to_string(), file.display().to_string());
    let words = [program.as_str(), "-c", &file, "list", "-f", "json"];
    let said = launch::command_ok(cluster, index, &words, Duration::from_secs(30))?;
    let members: Vec<Value> = serde_json::from_str(&said).context("read what patronictl list printed")?;
    let streaming = members.iter().filter(|member| member["State"] == "streaming").count();
    let sync = members.iter().any(|member| member["Role"] == "Sync Standby");
    Ok(streaming + 1 >= cluster.members() && (sync || !synchronous))
}
