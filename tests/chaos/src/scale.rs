//! What more members cost: failover, founding, CPU and network of each, with clusters of several sizes; and how long a copy of
//! so many megabytes and a rewind take.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::bench::{self, Fault, load};
use crate::clock::Moment;
use crate::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use crate::idle::{self, Idle};
use crate::scenario::{hold, report};
use crate::sql::ask;
use crate::stats::{Sample, table};
use crate::workload::{DATABASE, Plan};

/// Twelve copies at once on two cores, and a copy of gigabytes to a slow disk.
const LONG: Duration = Duration::from_secs(1800);

/// Founding, copying and what follows them have settled.
const SETTLED: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Sizes of clusters.
    pub members: Vec<usize>,
    /// Power losses of the primary at each size.
    pub runs: u32,
    /// How long each idles; zero for not at all.
    pub idle: Duration,
    /// Sizes of databases that are copied, in MB.
    pub megabytes: Vec<u64>,
    /// Primaries that lose their power and rejoin by a rewind.
    pub rewinds: u32,
}

/// A cluster of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Members.
    pub members: usize,
    /// Seconds from the start of all members until there is a primary, and until all stream.
    pub founded: [f64; 2],
    /// Seconds without writes after a power loss of the primary: median and longest; none without runs.
    pub failover: Option<[f64; 2]>,
    /// How many power losses.
    pub n: usize,
    /// Acknowledged rows that were lost. Synchronous: none may be.
    pub rows_lost: usize,
    /// Percent of a core, bytes sent a second and KiB resident, of an idle member: means.
    pub idle: Option<[f64; 3]>,
    /// The machine's 1-minute load average before the failovers and after them.
    pub load: [f64; 2],
}

/// A copy or a rewind.
#[derive(Clone, Debug, Serialize)]
pub struct Copy {
    /// What it is.
    pub what: String,
    /// Seconds until the member streams again: median and longest.
    pub seconds: [f64; 2],
    /// How many.
    pub n: usize,
    /// The machine's 1-minute load average after it.
    pub load: f64,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// The machine.
    pub machine: String,
    /// `rhone --version`, and the Postgres.
    pub versions: Vec<String>,
    /// By size.
    pub sizes: Vec<Size>,
    /// Copies and rewinds.
    pub copies: Vec<Copy>,
}

/// Runs the benchmark.
pub fn run(order: &Order) -> Result<Findings> {
    let (mut sizes, mut copies) = (Vec::new(), Vec::new());
    for &members in &order.members {
        let size = size(members, order).with_context(|| format!("{members} members"))?;
        report(&format!("{size:?}"));
        sizes.push(size);
    }
    for &megabytes in &order.megabytes {
        copies.push(copy(megabytes).with_context(|| format!("a copy of {megabytes} MB"))?);
    }
    if order.rewinds > 0 {
        copies.push(rewinds(order.rewinds)?);
    }
    Ok(Findings { machine: bench::machine(), versions: bench::versions()?, sizes, copies })
}

fn spec(members: usize) -> Spec {
    // Each member streams, and may be copied or rewound meanwhile: the default of 20 is for ten members.
    let postgres = "max_wal_senders = 40\nmax_replication_slots = 40\n".to_owned();
    Spec { sync: Sync::Quorum, postgres, ..Spec::asynchronous(members) }
}

fn size(members: usize, order: &Order) -> Result<Size> {
    let mut cluster = Cluster::create(&spec(members))?;
    let at = Moment::now();
    for index in 0..members {
        cluster.start_node(index)?;
    }
    let primary = |cluster: &Cluster| cluster.primary().context("no primary yet");
    cluster.wait_up_to(LONG, "a primary", || primary(&cluster))?;
    let first = at.elapsed();
    cluster.wait_whole_up_to(LONG)?;
    let founded = [first.as_secs_f64(), at.elapsed().as_secs_f64()];
    cluster.prepare_database()?;
    let idle = if order.idle.is_zero() {
        None
    } else {
        hold(SETTLED);
        let rows = idle::measure(&mut cluster, order.idle)?;
        report(&idle::text(&rows, order.idle.as_secs()));
        Some([
            mean(&rows, |idle| idle.cpu_percent),
            mean(&rows, |idle| idle.sent_bytes.unwrap_or(f64::NAN)),
            mean(&rows, resident),
        ])
    };
    let (mut sample, mut rows_lost) = (Sample::default(), 0);
    let before = load();
    for run in 1..=order.runs {
        cluster.wait_whole_up_to(LONG)?;
        cluster.wait_secured()?;
        let done = bench::once(&mut cluster, Fault::PowerLossResets).with_context(|| format!("run {run}"))?;
        rows_lost += done.rows_lost;
        // The first is the client beside each member.
        let (_, gap) = done.gaps.first().context("a gap")?;
        report(&format!("{members} members, power loss {run}/{}: {:.3} s", order.runs, gap.as_secs_f64()));
        sample.push(*gap);
    }
    let load = [before, load()];
    Ok(Size { members, founded, failover: both(&sample), n: sample.count(), rows_lost, idle, load })
}

fn both(sample: &Sample) -> Option<[f64; 2]> {
    Some([sample.percentile(50)?.as_secs_f64(), sample.worst()?.as_secs_f64()])
}

#[expect(clippy::cast_precision_loss, reason = "a handful of members")]
fn mean(rows: &[Idle], value: impl Fn(&Idle) -> f64) -> f64 {
    rows.iter().map(value).sum::<f64>() / rows.len() as f64
}

#[expect(clippy::cast_precision_loss, reason = "KiB of a small process")]
fn resident(idle: &Idle) -> f64 {
    (idle.supervisor_rss_kib + idle.guardian_rss_kib) as f64
}

/// A standby is copied anew by `rhone reinit`.
fn copy(megabytes: u64) -> Result<Copy> {
    let cluster = Cluster::start(&Spec::asynchronous(2))?;
    let primary = cluster.wait_whole()?;
    let door = cluster.node(primary)?.door();
    // Eight sums of 32 digits and the row's head: some 300 bytes.
    let rows = megabytes.saturating_mul(1_000_000) / 300;
    let sums = (1..=8).map(|n| format!("md5((i * {n})::text)")).collect::<Vec<_>>().join(" || ");
    ask(
        &door,
        DATABASE,
        &format!("CREATE TABLE ballast AS SELECT {sums} AS x FROM generate_series(1, {rows}) i"),
        LONG,
    )?;
    ask(&door, "postgres", "CHECKPOINT", LONG)?;
    cluster.wait_whole_up_to(LONG)?;
    let size = ask(&door, DATABASE, "SELECT sum(pg_database_size(oid)) / 1000000 FROM pg_database", LIMIT)?;
    let size = size.first().and_then(|row| row.first().cloned().flatten()).context("the database's size")?;
    let standby = 1 - primary;
    let name = cluster.node(standby)?.name();
    let at = Moment::now();
    let output = cluster.rhone(primary, &["reinit", &name, "--yes"], LONG)?;
    ensure!(output.code == Some(0), "rhone reinit: {output:?}");
    cluster.wait_whole_up_to(LONG)?;
    let took = at.elapsed().as_secs_f64();
    report(&format!("copied {size} MB in {took:.1} s"));
    Ok(Copy { what: format!("a copy of {size} MB"), seconds: [took, took], n: 1, load: load() })
}

/// Primaries lose their power under writes, and come back with WAL that nobody else has.
fn rewinds(runs: u32) -> Result<Copy> {
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let (mut sample, mut others) = (Sample::default(), 0);
    for run in 1..=runs {
        let primary = cluster.wait_whole()?;
        let rewound = |cluster: &Cluster| -> Result<usize> {
            let log = std::fs::read_to_string(cluster.node(primary)?.log()).context("read a member's log")?;
            Ok(log.matches("done effect=\"rewind\"").count())
        };
        let before = rewound(&cluster)?;
        let workload = cluster.workload(&Plan { patient: false, ..Plan::default() });
        workload.wait_for(200, LIMIT)?;
        let at = Moment::now();
        cluster.power_loss(primary, PowerLoss::Resets)?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        workload.wait_for(200, LIMIT)?;
        let at = Moment::now();
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
        let took = at.elapsed();
        workload.stop()?;
        // Where nothing had diverged it just goes on.
        if rewound(&cluster)? > before {
            report(&format!("rewind {run}/{runs}: {:.3} s", took.as_secs_f64()));
            sample.push(took);
        } else {
            others += 1;
        }
    }
    let Some(seconds) = both(&sample) else { bail!("{others} rejoined, none by a rewind") };
    let what = format!("start of a lost primary, rewind, streaming ({others} more needed no rewind)");
    Ok(Copy { what, seconds, n: sample.count(), load: load() })
}

/// How much `value` grows with each further member: least squares.
#[expect(clippy::cast_precision_loss, reason = "a handful of members")]
fn slope(points: &[(usize, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), (members, value)| (x + *members as f64, y + value));
    let (x, y) = (x / n, y / n);
    let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), (members, value)| {
        let away = *members as f64 - x;
        (over + away * (value - y), under + away * away)
    });
    (under > 0.0).then(|| over / under)
}

impl Findings {
    /// The findings as a person reads them.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.machine, self.versions.join("\n"));
        if !self.sizes.is_empty() {
            text.push_str(&self.sizes_text());
        }
        if !self.copies.is_empty() {
            let head = ["WHAT", "N", "MEDIAN s", "WORST s", "LOAD"].map(str::to_owned).to_vec();
            let rows = self.copies.iter().map(|copy| {
                let [median, worst] = copy.seconds;
                vec![
                    copy.what.clone(),
                    copy.n.to_string(),
                    format!("{median:.1}"),
                    format!("{worst:.1}"),
                    format!("{:.1}", copy.load),
                ]
            });
            text.push('\n');
            text.push_str(&table(&[head].into_iter().chain(rows).collect::<Vec<_>>()));
        }
        text
    }

    fn sizes_text(&self) -> String {
        let head = [
            "MEMBERS",
            "PRIMARY s",
            "WHOLE s",
            "FAILOVER s",
            "WORST s",
            "N",
            "LOST",
            "CPU %",
            "SENT B/s",
            "MiB",
            "LOAD",
        ];
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let values: [fn(&Size) -> Option<f64>; 7] = [
            |size| Some(size.founded[0]),
            |size| Some(size.founded[1]),
            |size| size.failover.map(|[median, _]| median),
            |size| size.failover.map(|[_, worst]| worst),
            |size| size.idle.map(|[cpu, _, _]| cpu),
            |size| size.idle.map(|[_, sent, _]| sent),
            |size| size.idle.map(|[_, _, kib]| kib / 1024.0),
        ];
        let digits = [1, 1, 3, 3, 2, 0, 1];
        let line = |name: String, values: Vec<String>, counts: [String; 2], load: String| {
            let (times, costs) = values.split_at(4.min(values.len()));
            [vec![name], times.to_vec(), counts.to_vec(), costs.to_vec(), vec![load]].concat()
        };
        let rows = self.sizes.iter().map(|size| {
            let cells =
                values.iter().zip(digits).map(|(value, digits)| number(value(size), digits)).collect();
            let [before, after] = size.load;
            let counts = [size.n.to_string(), size.rows_lost.to_string()];
            line(size.members.to_string(), cells, counts, format!("{before:.1}-{after:.1}"))
        });
        let slopes = values.iter().zip(digits).map(|(value, digits)| {
            let points: Vec<_> =
                self.sizes.iter().filter_map(|size| Some((size.members, value(size)?))).collect();
            number(slope(&points), digits + 1)
        });
        let last =
            line("each more".to_owned(), slopes.collect(), [String::new(), String::new()], String::new());
        let rows: Vec<_> = [head.map(str::to_owned).to_vec()].into_iter().chain(rows).chain([last]).collect();
        format!(
            "\nquorum mode; seconds from the start of all until there is a primary, and until all stream; seconds without writes\n\
             after a power loss of the primary, median and worst; what an idle member costs, supervisor and guardian, means\n{}",
            table(&rows)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line() {
        assert_eq!(slope(&[(3, 1.0), (5, 2.0), (13, 6.0)]), Some(0.5));
        assert_eq!(slope(&[(3, 1.0)]), None);
        assert_eq!(slope(&[]), None);
    }

    #[test]
    fn a_size_without_runs_shows_none() {
        let size = |members, failover| Size {
            members,
            founded: [2.0, 10.0],
            failover,
            n: 0,
            rows_lost: 0,
            idle: None,
            load: [1.0, 2.0],
        };
        let sizes = vec![size(3, Some([1.0, 2.0])), size(5, None)];
        let findings =
            Findings { machine: "m".into(), versions: vec!["v".into()], sizes, copies: Vec::new() };
        let text = findings.text();
        let five = text.lines().find(|line| line.starts_with("5 ")).unwrap();
        let cells: Vec<&str> = five.split_whitespace().collect();
        assert_eq!(cells, ["5", "2.0", "10.0", "-", "-", "0", "0", "-", "-", "-", "1.0-2.0"]);
    }
}
