//! The examples of deploy/examples, each with the real driver, through a failover.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::node::POSTGRES_PORT;
use rhone_chaos::ports::{RW, until, with_ports};
use rhone_chaos::process::{self, Owned, Signal};
use rhone_chaos::scenario::report;
use rhone_chaos::sql::ask;

/// A client that runs, and the file of what it prints.
struct Client {
    name: &'static str,
    child: Owned,
    out: PathBuf,
}

impl Client {
    fn start(name: &'static str, cluster: &Cluster, mut command: Command) -> Result<Self> {
        let out = cluster.folder().join(format!("{name}.out"));
        command.stdin(Stdio::null()).stdout(std::fs::File::create(&out)?).stderr(Stdio::inherit());
        Ok(Self { name, child: Owned::spawn(&mut command)?, out })
    }

    /// The lines that are complete.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text.get(..end).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.child.ended().is_none() {
            process::signal(self.child.pid(), Signal::KILL);
            self.child.wait(Duration::from_secs(10));
        }
    }
}

fn works(program: &Path, arguments: &[&str], envs: &[(&str, &str)]) -> bool {
    let mut command = Command::new(program);
    process::run(command.args(arguments).envs(envs.iter().copied()), Duration::from_secs(60))
        .is_ok_and(|output| output.code == Some(0))
}

/// Every client whose driver is installed; says which are not.
fn clients(cluster: &Cluster) -> Result<Vec<Client>> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples");
    let hosts: Vec<String> =
        (0..3).map(|index| Ok(cluster.node(index)?.address().to_string())).collect::<Result<_>>()?;
    let hosts = hosts.join(",");
    let dsn = format!(
        "host={hosts} port={POSTGRES_PORT},{POSTGRES_PORT},{POSTGRES_PORT} user=chaos dbname=chaos \
         target_session_attrs=read-write"
    );
    let at = |program: &Path| cluster.network().command(Place::Client, program);
    let mut found = Vec::new();
    let missing = |name: &str, how: &str| report(&format!("SKIPPED: client {name} ({how})"));

    let mut psql = at(&examples.join("psql.sh"));
    let path = std::env::var("PATH").unwrap_or_default();
    psql.arg(&dsn).env("PATH", format!("{}:{path}", binary::postgres_folder()?.display()));
    found.push(Client::start("psql", cluster, psql)?);

    let port = POSTGRES_PORT.to_string();
    // Debian's modules belong to Debian's interpreter.
    let python = PathBuf::from("/usr/bin/python3");
    if works(&python, &["-c", "import psycopg"], &[]) {
        let mut command = at(&python);
        command.arg(examples.join("psycopg_hosts.py")).args([&hosts, &port, "chaos", "chaos"]);
        found.push(Client::start("psycopg", cluster, command)?);
    } else {
        missing("psycopg", "apt-get install python3-psycopg");
    }
    if works(&python, &["-c", "import asyncpg"], &[]) {
        let mut command = at(&python);
        command.arg(examples.join("asyncpg_hosts.py")).args([&hosts, &port, "chaos", "chaos"]);
        found.push(Client::start("asyncpg", cluster, command)?);
    } else {
        missing("asyncpg", "apt-get install python3-asyncpg");
    }
    let jar = "/usr/share/java/postgresql.jar";
    match binary::program("java") {
        Some(java) if Path::new(jar).is_file() && binary::program("javac").is_some() => {
            let mut command = at(&java);
            let url = format!("jdbc:postgresql://{hosts}/chaos?user=chaos&targetServerType=primary");
            command.args(["-cp", jar]).arg(examples.join("Example.java")).arg(url);
            found.push(Client::start("JDBC", cluster, command)?);
        }
        _ => missing("JDBC", "apt-get install default-jdk-headless libpostgresql-jdbc-java"),
    }
    let modules = std::env::var("HOME").unwrap_or_default() + "/.cache/rhone/node/node_modules";
    match binary::program("node") {
        Some(node) if works(&node, &["-e", "require('pg')"], &[("NODE_PATH", &modules)]) => {
            let mut command = at(&node);
            // Through the port of a member that stays.
            let standby = (0..3).find(|index| Some(*index) != cluster.primary()).context("a standby")?;
            let host = cluster.node(standby)?.address().to_string();
            command.arg(examples.join("node_postgres.js")).args([&host, &RW.to_string(), "chaos", "chaos"]);
            command.env("NODE_PATH", &modules);
            found.push(Client::start("node-postgres", cluster, command)?);
        }
        _ => missing("node-postgres", "deploy/install-deps.sh test installs it where there is npm"),
    }
    Ok(found)
}

#[test]
fn every_example_finds_the_next_primary() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&with_ports(3, "wait = \"60s\"\n"))?;
    let result = failover(&mut cluster);
    result.with_context(|| cluster.dump())
}

fn failover(cluster: &mut Cluster) -> Result<()> {
    let primary = cluster.wait_whole()?;
    let table = "CREATE TABLE example (client text); ALTER TABLE example OWNER TO chaos";
    ask(&cluster.node(primary)?.door(), "chaos", table, LIMIT).context("make the examples' table")?;
    let mut clients = clients(cluster)?;
    let before = cluster.node(primary)?.address().to_string();
    for client in &clients {
        until(&format!("{} has written a row", client.name), || Ok(!client.lines().is_empty()))?;
        ensure!(client.lines() == [before.clone()], "{} wrote to {:?}", client.name, client.lines());
    }
    let kind = match cluster.network().means() {
        Means::Loopback => PowerLoss::Resets,
        Means::Filter | Means::Port => PowerLoss::BlackHole,
    };
    cluster.power_loss(primary, kind)?;
    let next = cluster.wait_whole_without(&[primary])?;
    let after = cluster.node(next)?.address().to_string();
    for client in &mut clients {
        until(&format!("{} has found the next primary", client.name), || Ok(client.lines().len() == 2))?;
        ensure!(client.lines() == [before.clone(), after.clone()], "{}: {:?}", client.name, client.lines());
        let status = client.child.wait(LIMIT).with_context(|| format!("{} ends", client.name))?;
        ensure!(status.success(), "{} ended with {status}", client.name);
        report(&format!("{}: wrote to {before}, then to {after}", client.name));
    }
    Ok(())
}
