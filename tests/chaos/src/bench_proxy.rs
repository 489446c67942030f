//! What the rw port costs: pgbench direct, through Rhone, and through HAProxy, in turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::binary;
use crate::cluster::{Cluster, LIMIT, Spec};
use crate::namespace::Place;
use crate::node::POSTGRES_PORT;
use crate::ports::{IdleSession, RW, run_client, with_ports};
use crate::process::{self, Owned, Signal};
use crate::scenario::{hold, report};
use crate::stats::table;

/// Where HAProxy listens.
const HAPROXY: u16 = 5900;

/// For so long after a run its sessions end and are counted.
const SETTLE: Duration = Duration::from_millis(500);

/// Idle sessions that memory is measured with.
const IDLE: usize = 80;

/// What an idle connection may take of the supervisor's memory, in bytes.
const IDLE_LIMIT: i64 = 20_480;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Runs of each load on each way.
    pub rounds: u32,
    /// Seconds of each run.
    pub seconds: u64,
    /// pgbench's clients.
    pub clients: u32,
}

/// One way to the primary under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// `write` (pgbench's default script) or `select`.
    pub load: &'static str,
    /// `direct`, `rhone` or `haproxy`.
    pub way: &'static str,
    /// Transactions a second: the median of the rounds.
    pub tps: f64,
    /// The least and the most.
    pub range: [f64; 2],
    /// The median of the rounds' ratios to the direct run of the same round.
    pub of_direct: f64,
    /// The same of HAProxy's runs, where it is installed.
    pub of_haproxy: Option<f64>,
    /// How many rounds.
    pub n: usize,
    /// The medians of the CPU time for each transaction.
    pub cpu: Cpu,
}

/// CPU time for one transaction, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    /// pgbench's.
    pub client: f64,
    /// The proxy's: of Rhone's thread `proxy`, or of HAProxy; none on the direct way.
    pub proxy: Option<f64>,
    /// Postgres's: all its processes.
    pub server: f64,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Every way under every load.
    pub figures: Vec<Figure>,
    /// Memory of the supervisor for each idle connection, in bytes.
    pub idle_bytes: i64,
    /// Load average before and after.
    pub loads: [String; 2],
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

/// Transactions a second and CPU time for each, of each round, by load and way.
type Runs = BTreeMap<(&'static str, &'static str), Vec<(f64, Cpu)>>;

/// CPU time so far, in clock ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    client: u64,
    proxy: Option<u64>,
    server: u64,
}

impl Ticks {
    /// What is spent since `before` for each of so many transactions.
    fn since(self, before: Self, transactions: f64) -> Cpu {
        let each = |now: u64, before: u64| cpu_us(now.saturating_sub(before), transactions);
        Cpu {
            client: each(self.client, before.client),
            proxy: self.proxy.zip(before.proxy).map(|(now, before)| each(now, before)),
            server: each(self.server, before.server),
        }
    }
}

/// Runs the benchmark.
pub fn run(order: Order) -> Result<Findings> {
    let before = load_average();
    let mut cluster = Cluster::start(&Spec { ..with_ports(1, "") })?;
    let result = measure(&mut cluster, order).with_context(|| cluster.dump());
    let (figures, idle_bytes, skipped) = result?;
    Ok(Findings { figures, idle_bytes, loads: [before, load_average()], skipped })
}

fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn measure(cluster: &mut Cluster, order: Order) -> Result<(Vec<Figure>, i64, Vec<String>)> {
    let address = cluster.node(0)?.address().to_string();
    let supervisor = cluster.node_mut(0)?.supervisor().context("the supervisor")?;
    let postmaster = cluster.node(0)?.postmaster().context("the postmaster")?;
    let mut skipped = Vec::new();
    let haproxy = match binary::program("haproxy") {
        Some(program) => Some(start_haproxy(cluster, &program)?),
        None => {
            skipped.push("haproxy is not installed (apt-get install haproxy)".to_owned());
            None
        }
    };
    let ways: Vec<(&'static str, u16)> = [("direct", POSTGRES_PORT), ("rhone", RW)]
        .into_iter()
        .chain(haproxy.as_ref().map(|_| ("haproxy", HAPROXY)))
        .collect();
    let idle_bytes = idle_memory(cluster, supervisor)?;
    let port = RW.to_string();
    let prepare = ["-i", "-q", "-s", "10", "-h", &address, "-p", &port, "-U", "chaos", "chaos"];
    let output = run_client(cluster, "pgbench", &prepare, LIMIT)?;
    ensure!(output.code == Some(0), "pgbench -i: {output:?}");
    let mut runs = Runs::new();
    for round in 1..=order.rounds {
        for load in ["write", "select"] {
            // Each round begins with another way, so that none is always the first.
            let mut turn = ways.clone();
            turn.rotate_left(usize::try_from(round).unwrap_or(0) % ways.len());
            for (way, port) in turn {
                let proxy = || match (way, &haproxy) {
                    ("rhone", _) => thread_ticks(supervisor, "proxy"),
                    ("haproxy", Some(haproxy)) => process::stat(haproxy.pid()).map(|stat| stat.ticks),
                    _ => None,
                };
                let ticks = || -> Result<Ticks> {
                    let own = process::stat(std::process::id()).context("read own CPU time")?;
                    Ok(Ticks {
                        client: own.ticks_of_ended,
                        proxy: proxy(),
                        server: server_ticks(postmaster)?,
                    })
                };
                let before = ticks()?;
                let tps = pgbench(cluster, &address, port, load, order)?;
                // The last backends end.
                hold(SETTLE);
                let cpu = ticks()?.since(before, tps * seconds(order));
                report(&format!(
                    "{load} {way} {round}/{}: {tps:.0} tps, load {}",
                    order.rounds,
                    load_average()
                ));
                runs.entry((load, way)).or_default().push((tps, cpu));
            }
        }
    }
    if let Some(haproxy) = haproxy {
        process::signal(haproxy.pid(), Signal::TERM);
    }
    Ok((figures(&runs), idle_bytes, skipped))
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a run")]
fn seconds(order: Order) -> f64 {
    order.seconds as f64
}

#[expect(clippy::cast_precision_loss, reason = "clock ticks of a run")]
fn cpu_us(ticks: u64, transactions: f64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64 * 1e6 / transactions.max(1.0)
}

/// The median; of an even number the upper one.
fn middle(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn figures(all: &Runs) -> Vec<Figure> {
    all.iter()
        .map(|((load, way), runs)| {
            let tps = || runs.iter().map(|(tps, _)| *tps);
            let of = |other| {
                let others = all.get(&(*load, other)).map(Vec::as_slice).unwrap_or_default();
                middle(tps().zip(others).map(|(tps, (other, _))| tps / other))
            };
            let cpu = |part: fn(&Cpu) -> Option<f64>| middle(runs.iter().filter_map(|(_, cpu)| part(cpu)));
            Figure {
                load,
                way,
                tps: middle(tps()).unwrap_or(f64::NAN),
                range: [tps().fold(f64::INFINITY, f64::min), tps().fold(0.0, f64::max)],
                of_direct: of("direct").unwrap_or(f64::NAN),
                of_haproxy: of("haproxy"),
                n: runs.len(),
                cpu: Cpu {
                    client: cpu(|cpu| Some(cpu.client)).unwrap_or(f64::NAN),
                    proxy: cpu(|cpu| cpu.proxy),
                    server: cpu(|cpu| Some(cpu.server)).unwrap_or(f64::NAN),
                },
            }
        })
        .collect()
}

fn pgbench(cluster: &Cluster, address: &str, port: u16, load: &str, order: Order) -> Result<f64> {
    let (port, clients, time) = (port.to_string(), order.clients.to_string(), order.seconds.to_string());
    let mut arguments = vec!["-h", address, "-p", &port, "-U", "chaos", "-n", "-c", &clients, "-T", &time];
    if load == "select" {
        arguments.push("-S");
    }
    arguments.extend(["-M", "prepared", "chaos"]);
    let limit = LIMIT + Duration::from_secs(order.seconds);
    let output = run_client(cluster, "pgbench", &arguments, limit)?;
    ensure!(output.code == Some(0), "pgbench: {output:?}");
    let line = output.stdout.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|rest| rest.split_whitespace().next()).context("pgbench's tps")?;
    number.parse().context("read pgbench's tps")
}

/// CPU time of a postmaster and all its children, those that have ended too, in clock ticks.
fn server_ticks(postmaster: u32) -> Result<u64> {
    let own = process::stat(postmaster).context("read the postmaster's CPU time")?;
    let children = process::pids().into_iter().filter_map(process::stat);
    let live: u64 = children.filter(|stat| stat.parent == postmaster).map(|stat| stat.ticks).sum();
    Ok(own.ticks + own.ticks_of_ended + live)
}

/// CPU time of one thread of a process, by its name, in clock ticks.
fn thread_ticks(pid: u32, name: &str) -> Option<u64> {
    for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = text.rsplit_once(')')?;
        if head.split_once('(')?.1 == name {
            let fields: Vec<u64> =
                tail.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
            return Some(fields.iter().sum());
        }
    }
    None
}

fn start_haproxy(cluster: &Cluster, program: &Path) -> Result<Owned> {
    let (node, folder) = (cluster.node(0)?, cluster.folder().join("haproxy.cfg"));
    let address = node.address();
    let text = format!(
        "global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen rw\n  bind {address}:{HAPROXY}\n  server pg {address}:{POSTGRES_PORT}\n"
    );
    fs::write(&folder, text).context("write haproxy.cfg")?;
    let mut command = cluster.network().command(Place::Node(0), program);
    command.args(["-db", "-f"]).arg(&folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut haproxy = Owned::spawn(&mut command)?;
    hold(Duration::from_secs(1));
    if haproxy.ended().is_some() {
        bail!("haproxy does not start with {}", folder.display());
    }
    Ok(haproxy)
}

/// Opens idle sessions and looks at what they add to the supervisor's memory of its own.
fn idle_memory(cluster: &Cluster, supervisor: u32) -> Result<i64> {
    // One first, so that what is made once is not counted.
    let mut sessions = vec![IdleSession::open(cluster, 0, RW)?];
    hold(Duration::from_secs(1));
    let before = own_memory(supervisor);
    for _ in 0..IDLE {
        sessions.push(IdleSession::open(cluster, 0, RW)?);
    }
    hold(Duration::from_secs(1));
    let grown = own_memory(supervisor) - before;
    Ok(grown * 1024 / i64::try_from(IDLE).unwrap_or(i64::MAX))
}

/// `RssAnon` in KiB.
fn own_memory(pid: u32) -> i64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

impl Findings {
    /// What Rhone's port is to reach, with what was found, and whether it does.
    fn asked(&self) -> Vec<(String, bool)> {
        let of = |load: &str, ratio: fn(&Figure) -> Option<f64>| {
            let found = self.figures.iter().find(|figure| figure.load == load && figure.way == "rhone");
            found.and_then(ratio)
        };
        let ratios = [
            ("write load, at least 95 % of direct", 0.95, of("write", |figure| Some(figure.of_direct))),
            ("write load, no less than HAProxy", 1.0, of("write", |figure| figure.of_haproxy)),
            ("select load, no less than HAProxy", 1.0, of("select", |figure| figure.of_haproxy)),
        ];
        let mut asked: Vec<_> = ratios
            .into_iter()
            .filter_map(|(what, least, found)| {
                found.map(|found| (format!("{what}: {}", percent(found)), found >= least))
            })
            .collect();
        let idle = format!(
            "supervisor's memory for each idle connection, at most {IDLE_LIMIT} bytes: {}",
            self.idle_bytes
        );
        asked.push((idle, self.idle_bytes <= IDLE_LIMIT));
        asked
    }

    /// The findings as a person reads them.
    pub fn text(&self) -> String {
        let head = ["LOAD", "WAY", "N", "TPS", "LEAST", "MOST", "OF DIRECT", "OF HAPROXY"];
        let head = head.iter().chain(&["CLIENT", "PROXY", "SERVER"]).map(|&name| name.to_owned());
        let mut rows = vec![head.collect::<Vec<_>>()];
        for figure in &self.figures {
            rows.push(vec![
                figure.load.to_owned(),
                figure.way.to_owned(),
                figure.n.to_string(),
                format!("{:.0}", figure.tps),
                format!("{:.0}", figure.range[0]),
                format!("{:.0}", figure.range[1]),
                percent(figure.of_direct),
                figure.of_haproxy.map_or_else(|| "-".to_owned(), percent),
                format!("{:.1}", figure.cpu.client),
                figure.cpu.proxy.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}")),
                format!("{:.1}", figure.cpu.server),
            ]);
        }
        let mut text = table(&rows);
        text.push_str(
            "TPS: median of the rounds; OF DIRECT, OF HAPROXY: median of the ratios to that way in the same round;\n\
             CLIENT, PROXY, SERVER: CPU time for each transaction, in microseconds, medians\n",
        );
        for (what, met) in self.asked() {
            text.push_str(&format!("{what}: {}\n", if met { "met" } else { "MISSED" }));
        }
        text.push_str(&format!("load average {} before, {} after\n", self.loads[0], self.loads[1]));
        for skipped in &self.skipped {
            text.push_str(&format!("skipped: {skipped}\n"));
        }
        text
    }
}
