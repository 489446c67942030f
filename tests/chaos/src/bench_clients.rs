//! What clients notice: of a switchover behind PgBouncer, and of a failover behind the members' rw ports.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::clock::Moment;
use crate::cluster::{Cluster, PowerLoss};
use crate::namespace::Means;
use crate::pooler;
use crate::ports::{Attempt, RW, Reconnecting, with_ports};
use crate::scenario::{hold, report};
use crate::stats::{Sample, seconds, table};

/// For so long pgbench runs at a time, until there were enough switchovers.
const UNDER_PGBENCH: Duration = Duration::from_secs(60);

/// How a primary is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    Resets,
    BlackHole,
    Postmaster,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Self::Resets => "power loss, resets",
            Self::BlackHole => "power loss, black hole",
            Self::Postmaster => "postmaster killed",
        }
    }
}

/// What clients of the rw ports saw of one kind of loss.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The loss.
    pub loss: &'static str,
    /// How many failovers.
    pub failovers: usize,
    /// How many clients over all of them, each beside a member that lives.
    pub clients: usize,
    /// Connections that were asked for, from before the loss to a second after the new primary served.
    pub connections: usize,
    /// How many of them came to nothing.
    pub refused: usize,
    /// Sessions that ended before their row was acknowledged.
    pub cut: usize,
    /// The longest time to connect of each client: median, in seconds.
    pub p50: Option<f64>,
    /// The same, 99th percentile by nearest rank.
    pub p99: Option<f64>,
    /// The longest.
    pub worst: Option<f64>,
    /// Why the first refused one was.
    pub why: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Switchovers under pgbench through PgBouncer without an error; none where it is not installed.
    pub switchovers: Option<u32>,
    /// Failovers, by loss, and the sum.
    pub figures: Vec<Figure>,
    /// Load average before and after.
    pub loads: [String; 2],
}

impl Findings {
    /// Whether no connection was refused.
    pub fn passed(&self) -> bool {
        self.figures.iter().all(|figure| figure.refused == 0)
    }

    /// The findings as a person reads them.
    pub fn text(&self) -> String {
        let mut text = match self.switchovers {
            Some(count) => format!("{count} switchovers under pgbench through PgBouncer: 0 errors\n"),
            None => "no PgBouncer here: switchovers through it are not measured\n".to_owned(),
        };
        let head =
            ["FAULT", "FAILOVERS", "CLIENTS", "CONNECTIONS", "REFUSED", "CUT", "WAIT P50", "P99", "WORST"];
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for figure in &self.figures {
            rows.push(vec![
                figure.loss.to_owned(),
                figure.failovers.to_string(),
                figure.clients.to_string(),
                figure.connections.to_string(),
                figure.refused.to_string(),
                figure.cut.to_string(),
                number(figure.p50),
                number(figure.p99),
                number(figure.worst),
            ]);
        }
        text.push_str(&table(&rows));
        text.push_str(
            "WAIT: the longest time to connect of each client in each failover, in seconds; P99 by nearest rank.\n\
             CUT: sessions that ended before their row was acknowledged\n",
        );
        for why in self.figures.iter().filter_map(|figure| figure.why.as_ref()) {
            text.push_str(&format!("refused: {why}\n"));
        }
        text.push_str(&format!("load average {} before, {} after\n", self.loads[0], self.loads[1]));
        text
    }
}

/// Runs `switchovers` through PgBouncer, then `failovers` under clients of the rw ports.
///
/// # Errors
/// When pgbench saw an error, or a cluster did not come back.
pub fn run(switchovers: u32, failovers: u32) -> Result<Findings> {
    let before = load_average();
    let done = if switchovers == 0 { Some(0) } else { through_pgbouncer(switchovers)? };
    let figures = if failovers == 0 { Vec::new() } else { through_ports(failovers)? };
    Ok(Findings { switchovers: done, figures, loads: [before, load_average()] })
}

fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn through_pgbouncer(rounds: u32) -> Result<Option<u32>> {
    let Some((cluster, poolers)) = pooler::start()? else { return Ok(None) };
    let mut done = 0;
    while done < rounds {
        done += pooler::switchovers(&cluster, UNDER_PGBENCH)
            .with_context(|| format!("{}\n{}", cluster.dump(), pooler::logs(&cluster)))?;
    }
    drop(poolers);
    Ok(Some(done))
}

/// What each client of each failover saw.
type Seen = BTreeMap<Loss, Vec<Vec<Vec<Attempt>>>>;

fn through_ports(failovers: u32) -> Result<Vec<Figure>> {
    // As long as a change of primary may take on a loaded machine.
    let mut cluster = Cluster::start(&with_ports(3, "wait = \"60s\"\n"))?;
    let mut seen = Seen::new();
    for round in 0..failovers {
        let (loss, clients) = fail_over(&mut cluster, round).with_context(|| cluster.dump())?;
        seen.entry(loss).or_default().push(clients);
    }
    let all: Vec<_> = seen.values().flatten().cloned().collect();
    let figures = seen.iter().map(|(loss, rounds)| figure(loss.name(), rounds));
    Ok(figures.chain([figure("all", &all)]).collect())
}

/// Loses the primary under a client of each member that lives on, and brings it back.
fn fail_over(cluster: &mut Cluster, round: u32) -> Result<(Loss, Vec<Vec<Attempt>>)> {
    let kinds = match cluster.network().means() {
        Means::Loopback => vec![Loss::Resets, Loss::Postmaster],
        Means::Filter | Means::Port => vec![Loss::Resets, Loss::BlackHole, Loss::Postmaster],
    };
    let kind = usize::try_from(round).unwrap_or(0) % kinds.len();
    let loss = kinds.get(kind).copied().context("a kind of loss")?;
    let primary = cluster.wait_whole()?;
    let epoch = cluster.epoch()?;
    // A member whose Postgres alone is gone goes on leading clients to the next primary.
    let living = (0..3).filter(|index| *index != primary || loss == Loss::Postmaster);
    let clients = living
        .map(|index| Reconnecting::start(cluster, index, RW, 1000 + round * 3 + index as u32))
        .collect::<Result<Vec<_>>>()?;
    hold(Duration::from_secs(1));
    let at = Moment::now();
    match loss {
        Loss::Resets => cluster.power_loss(primary, PowerLoss::Resets)?,
        Loss::BlackHole => cluster.power_loss(primary, PowerLoss::BlackHole)?,
        Loss::Postmaster => cluster.node(primary)?.kill_postmaster()?,
    }
    cluster.wait_until("another epoch", || {
        let now = cluster.epoch()?;
        ensure!(now > epoch, "still epoch {epoch}");
        Ok(())
    })?;
    match loss {
        Loss::Postmaster => cluster.wait_whole()?,
        Loss::Resets | Loss::BlackHole => cluster.wait_whole_without(&[primary])?,
    };
    hold(Duration::from_secs(1));
    let clients = clients.into_iter().map(Reconnecting::stop).collect::<Result<Vec<_>>>()?;
    if loss != Loss::Postmaster {
        cluster.network().heal()?;
        cluster.start_node(primary)?;
    }
    for client in &clients {
        ensure!(
            client.iter().any(|attempt| attempt.at > at && attempt.written),
            "a client wrote nothing after the failover: {:?}",
            client.last()
        );
    }
    let waits: Vec<String> = clients.iter().map(|client| seconds(longest(client))).collect();
    report(&format!("failover {} ({}): waited {} s", round + 1, loss.name(), waits.join(", ")));
    Ok((loss, clients))
}

fn longest(client: &[Attempt]) -> Option<Duration> {
    client.iter().map(|attempt| attempt.connecting).max()
}

fn figure(loss: &'static str, rounds: &[Vec<Vec<Attempt>>]) -> Figure {
    let mut waits = Sample::default();
    for wait in rounds.iter().flatten().filter_map(|client| longest(client)) {
        waits.push(wait);
    }
    let attempts: Vec<&Attempt> = rounds.iter().flatten().flatten().collect();
    let refused: Vec<&&Attempt> = attempts.iter().filter(|attempt| attempt.refused.is_some()).collect();
    let secs = |value: Option<Duration>| value.map(|value| value.as_secs_f64());
    Figure {
        loss,
        failovers: rounds.len(),
        clients: rounds.iter().map(Vec::len).sum(),
        connections: attempts.len(),
        refused: refused.len(),
        cut: attempts.iter().filter(|attempt| attempt.refused.is_none() && !attempt.written).count(),
        p50: secs(waits.percentile(50)),
        p99: secs(waits.percentile(99)),
        worst: secs(waits.worst()),
        why: refused.first().and_then(|attempt| attempt.refused.clone()),
    }
}
