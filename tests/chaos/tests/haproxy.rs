//! The real HAProxy with Patroni's published configuration (deploy/examples/haproxy.cfg), through ten failovers.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rhone_chaos::binary;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::node::{HTTP_PORT, POSTGRES_PORT};
use rhone_chaos::ports::{get, until, wait_for_checks};
use rhone_chaos::process::{self, Owned, Signal};
use rhone_chaos::scenario::report;
use rhone_chaos::sql::{Door, ask};
use serde_json::Value;

const FAILOVERS: usize = 10;
const TO_PRIMARY: u16 = 5000;
const TO_STANDBY: u16 = 5001;

struct HaProxy {
    child: Owned,
    address: Ipv4Addr,
}

impl HaProxy {
    /// The example as it is, but for the addresses.
    fn start(cluster: &Cluster, program: &Path) -> Result<Self> {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/haproxy.cfg");
        let mut text = std::fs::read_to_string(example).context("read the example")?;
        for index in 0..3 {
            let (example, real) = (format!("10.0.0.1{}:5432", index + 1), cluster.node(index)?.address());
            ensure!(text.matches(&example).count() == 2, "the example names {example} twice");
            text = text.replace(&example, &format!("{real}:{POSTGRES_PORT}"));
        }
        ensure!(text.contains(&format!("check port {HTTP_PORT}")), "the example asks Rhone's HTTP port");
        let address = cluster.network().address(Place::Client);
        let file = cluster.folder().join("haproxy.cfg");
        std::fs::write(&file, text.replace("bind *:", &format!("bind {address}:"))).context("write it")?;
        let mut command = cluster.network().command(Place::Client, program);
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(cluster.folder().join("haproxy.log"))?);
        Ok(Self { child: Owned::spawn(&mut command)?, address })
    }

    /// What a client hears through one of its ports.
    fn ask(&self, cluster: &Cluster, port: u16, statement: &str) -> Result<String> {
        let (door, statement) = (Door::Tcp { address: self.address, port }, statement.to_owned());
        let asked = cluster
            .network()
            .thread(Place::Client, move || ask(&door, "chaos", &statement, Duration::from_secs(10)));
        let rows = asked.join().map_err(|_| anyhow!("the client panicked"))??;
        Ok(rows.first().and_then(|row| row.first()?.clone()).unwrap_or_default())
    }

    /// Waits until a port leads to `members` and nobody else. HAProxy begins with every server in turn, and leaves
    /// out those that fail three checks: so each of them has to come round.
    fn leads_to(&self, cluster: &Cluster, port: u16, members: &[usize]) -> Result<()> {
        let addresses: Vec<String> = members
            .iter()
            .map(|&index| Ok(cluster.node(index)?.address().to_string()))
            .collect::<Result<_>>()?;
        until(&format!("HAProxy's port {port} leads to {addresses:?}"), || {
            let leads = |_| {
                let server = self.ask(cluster, port, "SELECT host(inet_server_addr())");
                server.is_ok_and(|server| addresses.contains(&server))
            };
            Ok((0..2 * cluster.members()).all(leads))
        })
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        process::signal(self.child.pid(), Signal::KILL);
        self.child.wait(Duration::from_secs(10));
    }
}

#[test]
fn haproxy_with_patronis_configuration_follows_ten_failovers() -> Result<()> {
    let _turn = take_turn()?;
    let Some(program) = binary::program("haproxy") else {
        report("SKIPPED: haproxy is not installed (apt-get install haproxy)");
        return Ok(());
    };
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    if cluster.network().means() == Means::Loopback {
        report("SKIPPED: no network namespaces here, and the example's ports may be taken");
        return Ok(());
    }
    let result = follow(&mut cluster, &program);
    result.with_context(|| cluster.dump())
}

/// What others ask: vip-manager (`dcs-type: patroni`) holds the address where `GET /leader` gives 200, and nowhere
/// else; check_patroni and its like read `/cluster`, `/patroni` and `/history`.
fn addresses_and_monitors(cluster: &Cluster, primary: usize) -> Result<()> {
    for index in 0..3 {
        let expected = if index == primary { "/leader 200" } else { "/leader 503" };
        wait_for_checks(cluster, index, &[expected, "/liveness 200", "/readiness 200"])?;
        cluster.wait_until("a monitor finds one leader and two standbys that follow it", || {
            let read = |path: &str| -> Result<Value> {
                let (status, body) = get(cluster, index, path)?;
                ensure!(status == 200, "{path}: {status}");
                serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
            };
            let told = read("/cluster")?;
            let members = told["members"].as_array().context("members")?;
            let name = format!("pg-{}", primary + 1);
            let leads = |m: &Value| m["role"] == "leader" && m["state"] == "running" && m["name"] == *name;
            let leader = members.iter().find(|m| leads(m)).with_context(|| format!("{name} in {told}"))?;
            let follows = |m: &Value| {
                m["role"] == "replica" && m["state"] == "streaming" && m["timeline"] == leader["timeline"]
            };
            let near = |m: &Value| m["replay_lag"].as_u64().is_some_and(|lag| lag < 1 << 20);
            let following = members.iter().filter(|m| follows(m) && near(m)).count();
            ensure!(members.len() == 3 && following == 2, "{following} follow in {told}");
            let own = read("/patroni")?;
            let role = if index == primary { "primary" } else { "replica" };
            ensure!(own["role"] == role && own["state"] == "running", "{own}");
            ensure!(own["timeline"] == leader["timeline"] && own.get("pending_restart").is_none(), "{own}");
            if index == primary {
                let by = |row: &Value| row["usename"] == "rhone_replicator" && row["sync_priority"] == 0;
                let rows = own["replication"].as_array().with_context(|| format!("{own}"))?;
                ensure!(rows.len() == 2 && rows.iter().all(by), "{own}");
            }
            let history = read("/history")?;
            let last = history.as_array().and_then(|rows| rows.last()).context("a change")?;
            ensure!(last[4] == *name && last[0].as_u64() < leader["timeline"].as_u64(), "{history}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The real check_patroni, where it is installed (`pip install check-patroni`).
fn monitored(cluster: &Cluster, primary: usize) -> Result<()> {
    let Some(program) = binary::program("check_patroni") else {
        report("SKIPPED: check_patroni is not installed (pip install check-patroni)");
        return Ok(());
    };
    let url = |index: usize| Ok(format!("http://{}:{HTTP_PORT}", cluster.node(index)?.address()));
    let run = |index: usize, check: &str| -> Result<()> {
        let mut command = cluster.network().command(Place::Client, &program);
        let url: Result<String> = url(index);
        command.args(["--timeout", "30", "-e", &url?]).args(check.split(' '));
        let output = process::run(&mut command, LIMIT)?;
        ensure!(output.code == Some(0), "{check}: {output:?}");
        Ok(())
    };
    for check in [
        "cluster_has_leader",
        "cluster_has_replica --warning @1 --critical @0 --max-lag 1MB",
        "cluster_node_count --healthy-critical @2",
        "cluster_is_in_maintenance",
        "cluster_has_scheduled_action",
        "node_is_alive",
        "node_is_primary",
        "node_is_pending_restart",
        "node_patroni_version --patroni-version 4.1.0",
    ] {
        run(primary, check)?;
    }
    run((primary + 1) % 3, "node_is_replica --max-lag 1MB")?;
    report("check_patroni is content");
    Ok(())
}

fn follow(cluster: &mut Cluster, program: &Path) -> Result<()> {
    let mut primary = cluster.wait_whole()?;
    let table = "CREATE TABLE followed (change int); ALTER TABLE followed OWNER TO chaos";
    ask(&cluster.node(primary)?.door(), "chaos", table, LIMIT).context("make the table")?;
    let haproxy = HaProxy::start(cluster, program)?;
    haproxy.leads_to(cluster, TO_PRIMARY, &[primary])?;
    for change in 1..=FAILOVERS {
        // By turns: by hand, and by the loss of the primary, which comes back meanwhile.
        let next = if change % 2 == 0 {
            cluster.power_loss(primary, PowerLoss::Resets)?;
            let next = cluster.wait_whole_without(&[primary])?;
            cluster.start_node(primary)?;
            next
        } else {
            let next = (primary + 1) % 3;
            cluster.switchover(next)?;
            next
        };
        ensure!(next != primary, "change {change}: the primary is the same");
        haproxy.leads_to(cluster, TO_PRIMARY, &[next])?;
        haproxy.ask(cluster, TO_PRIMARY, &format!("INSERT INTO followed VALUES ({change})"))?;
        let whole = cluster.wait_whole()?;
        ensure!(whole == next, "change {change}: another change came by itself");
        let standbys: Vec<usize> = (0..3).filter(|&index| index != next).collect();
        haproxy.leads_to(cluster, TO_STANDBY, &standbys)?;
        addresses_and_monitors(cluster, next)?;
        primary = next;
    }
    monitored(cluster, primary)?;
    let rows = haproxy.ask(cluster, TO_PRIMARY, "SELECT count(*) FROM followed")?;
    ensure!(rows == FAILOVERS.to_string(), "{rows} of {FAILOVERS} rows are there");
    report(&format!("{FAILOVERS} changes of primary followed, {rows} rows written through HAProxy"));
    Ok(())
}
