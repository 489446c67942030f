//! The tables of all records, and the part of docs/benchmarks.md that is made of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::peers::fault::{Fault, STOPPED};
use crate::peers::record::{Cost, Place, Record, Run};
use crate::peers::system::{Part, System};
use crate::stats::table;

const BEGIN: &str = "<!-- written by `make bench PEERS=1`: begin -->";
const END: &str = "<!-- written by `make bench PEERS=1`: end -->";

/// Puts `text` between the markers of a page.
pub fn write(file: &Path, text: &str) -> Result<()> {
    let page = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let page =
        replaced(&page, text).with_context(|| format!("{}: no lines {BEGIN} and {END}", file.display()))?;
    fs::write(file, page).with_context(|| format!("write {}", file.display()))
}

fn replaced(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

/// All tables, as Markdown.
pub fn text(records: &[Record]) -> String {
    let runs: Vec<&Run> = records
        .iter()
        .filter_map(|record| if let Record::Run(run) = record { Some(run) } else { None })
        .collect();
    let costs: Vec<&Cost> = records
        .iter()
        .filter_map(|record| if let Record::Cost(cost) = record { Some(cost) } else { None })
        .collect();
    let places: Vec<&Place> = records
        .iter()
        .filter_map(|record| if let Record::Place(place) = record { Some(place) } else { None })
        .collect();
    let mut text = String::new();
    if let Some(place) = places.last() {
        text.push_str(&format!("{}; {}.\n", place.machine, place.versions.join("; ")));
    }
    for part in [gaps(&runs), partition(&runs), stopped(&runs), cost(&costs)].into_iter().flatten() {
        text.push_str(&format!("\n{part}"));
    }
    let skipped: BTreeSet<&str> = records
        .iter()
        .filter_map(|record| if let Record::Skipped { text } = record { Some(text.as_str()) } else { None })
        .collect();
    if !skipped.is_empty() {
        text.push_str("\nNot measured:\n\n");
        for line in skipped {
            text.push_str(&format!("- {line}\n"));
        }
    }
    text
}

/// `median (least to most)`, with so many digits; `-` for nothing.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return "-".to_owned() };
    let middle = median(&sorted);
    if sorted.len() == 1 {
        return format!("{middle:.digits$}");
    }
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}

/// The middle one, or the mean of the two in the middle, of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    let upper = sorted.get(half).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    sorted.get(half.wrapping_sub(1)).map_or(upper, |lower| f64::midpoint(*lower, upper))
}

/// The same, saying how often there was no value.
fn with_absent(values: &[Option<f64>]) -> String {
    let there: Vec<f64> = values.iter().copied().flatten().collect();
    match values.len() - there.len() {
        0 => spread(&there, 1),
        absent if there.is_empty() => format!("never, {absent} of {absent}"),
        absent => format!("{}; never in {absent}", spread(&there, 1)),
    }
}

fn loads<'a>(runs: impl IntoIterator<Item = &'a [f64; 2]>) -> String {
    let all: Vec<f64> = runs.into_iter().flatten().copied().collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    let most = all.iter().copied().fold(0.0, f64::max);
    format!("{least:.1} to {most:.1}")
}

#[expect(clippy::cast_precision_loss, reason = "rows of one run: far below 2^52")]
fn rows(count: u64) -> f64 {
    count as f64
}

/// Rows for each system that has runs of the fault.
fn each(
    runs: &[&Run],
    fault: Fault,
    mut row: impl FnMut(System, &[&Run]) -> Vec<String>,
) -> Vec<Vec<String>> {
    let systems: BTreeSet<System> =
        runs.iter().filter(|run| run.fault == fault).map(|run| run.system).collect();
    systems
        .into_iter()
        .map(|system| {
            let of: Vec<&Run> =
                runs.iter().copied().filter(|run| run.fault == fault && run.system == system).collect();
            row(system, &of)
        })
        .collect()
}

fn block(title: &str, head: &[&str], body: Vec<Vec<String>>) -> Option<String> {
    if body.is_empty() {
        return None;
    }
    let head: Vec<String> = head.iter().map(|&word| word.to_owned()).collect();
    let all: Vec<Vec<String>> = [head].into_iter().chain(body).collect();
    Some(format!("{title}\n\n```\n{}```\n", table(&all)))
}

fn gaps(runs: &[&Run]) -> Option<String> {
    let faults = [Fault::PostmasterKilled, Fault::Switchover, Fault::PowerLoss, Fault::Partition];
    let mut body = Vec::new();
    for fault in faults {
        body.extend(each(runs, fault, |system, of| {
            let column = |read: fn(&Run) -> Option<f64>| {
                with_absent(&of.iter().map(|run| read(run)).collect::<Vec<_>>())
            };
            vec![
                format!("{}: {}", fault.name(), system.name()),
                of.len().to_string(),
                column(|run| run.gap),
                column(|run| run.multi_host),
                column(|run| run.rejoin),
                of.iter().map(|run| run.lost - run.lost_inside).sum::<u64>().to_string(),
                loads(of.iter().map(|run| &run.load)),
            ]
        }));
    }
    block(
        "Seconds without an acknowledged write, median (least to most): of a client beside each node, and of one that looks \
         for the primary as libpq does with several hosts (`connect_timeout` 2 s, an answer awaited for 3 s). REJOIN: from \
         the kill, the switchover's command, the power's return or the cut's end until one is primary and both \
         others stream. LOST: acknowledged rows of both clients that are gone, over all runs. LOAD: the machine's, 1-minute average.",
        &["FAULT: SYSTEM", "N", "NO WRITES s", "MULTI-HOST s", "REJOIN s", "LOST", "LOAD"],
        body,
    )
}

fn partition(runs: &[&Run]) -> Option<String> {
    let body = each(runs, Fault::Partition, |system, of| {
        let count =
            |read: fn(&Run) -> u64| spread(&of.iter().map(|run| rows(read(run))).collect::<Vec<_>>(), 0);
        vec![
            system.name().to_owned(),
            of.len().to_string(),
            count(|run| run.lost_inside),
            spread(&of.iter().map(|run| run.two_primaries).collect::<Vec<_>>(), 1),
        ]
    });
    block(
        "The primary's node cut off, with a client inside it that inserts up to some two hundred rows a second; the cut lasts until ten \
         seconds after the writes are back outside. Acknowledged rows of the client inside that are gone afterwards, and \
         seconds in which both sides acknowledged:",
        &["SYSTEM", "N", "LOST INSIDE", "TWO PRIMARIES s"],
        body,
    )
}

fn stopped(runs: &[&Run]) -> Option<String> {
    let mut body = Vec::new();
    for fault in [Fault::AgentStopped, Fault::AllAgentsStopped] {
        body.extend(each(runs, fault, |system, of| {
            let what = if fault == Fault::AllAgentsStopped { ", guardian too" } else { "" };
            vec![
                format!("{}{what}", system.name()),
                of.len().to_string(),
                of.iter().filter(|run| run.moved).count().to_string(),
                with_absent(&of.iter().map(|run| run.gap).collect::<Vec<_>>()),
                spread(&of.iter().map(|run| run.two_primaries).collect::<Vec<_>>(), 1),
                spread(&of.iter().map(|run| rows(run.lost)).collect::<Vec<_>>(), 0),
                loads(of.iter().map(|run| &run.load)),
            ]
        }));
    }
    block(
        &format!(
            "The primary's agent gets SIGSTOP for {} s, its Postgres goes on (no watchdog anywhere). Runs in which the primary moved, \
             seconds without any acknowledged write, seconds with two primaries that acknowledge, and acknowledged rows that are gone:",
            STOPPED.as_secs()
        ),
        &["SYSTEM", "N", "MOVED", "NO WRITES s", "TWO PRIMARIES s", "LOST ROWS", "LOAD"],
        body,
    )
}

fn cost(costs: &[&Cost]) -> Option<String> {
    let mut body = Vec::new();
    let mut keys: Vec<(bool, System, &str)> = Vec::new();
    for cost in costs {
        let key = (cost.busy, cost.system, cost.role.as_str());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_unstable();
    for (busy, system, role) in keys {
        let of: Vec<&Cost> = costs
            .iter()
            .copied()
            .filter(|cost| (cost.busy, cost.system, cost.role.as_str()) == (busy, system, role))
            .collect();
        // Each node has one agent; all else is per node.
        let nodes =
            rows(u64::try_from(of.iter().filter(|cost| cost.part == Part::Agent).count()).unwrap_or(1))
                .max(1.0);
        let mean = |read: fn(&Cost) -> f64| of.iter().map(|cost| read(cost)).sum::<f64>() / nodes;
        let store: f64 =
            of.iter().filter(|cost| cost.part == Part::Store).map(|cost| rows(cost.rss_kib)).sum::<f64>()
                / nodes
                + 0.0;
        let syncs = if of.iter().all(|cost| cost.syncs.is_some()) {
            format!("{:.2}", mean(|cost| cost.syncs.unwrap_or_default()))
        } else {
            "-".to_owned()
        };
        body.push(vec![
            format!("{}: {}, {role}", if busy { "busy" } else { "idle" }, system.name()),
            format!("{:.1}", mean(|cost| rows(cost.rss_kib)) / 1024.0),
            format!("{:.1}", store / 1024.0),
            format!("{:.1}", mean(|cost| rows(cost.pss_kib)) / 1024.0),
            format!("{:.2}", mean(|cost| cost.cpu_percent)),
            format!("{:.0}", mean(|cost| cost.switches)),
            format!("{:.0}", mean(|cost| cost.bytes)),
            syncs,
            if busy { format!("{:.0}", of.first().map_or(0.0, |cost| cost.rows)) } else { String::new() },
            loads(of.iter().map(|cost| &cost.load)),
        ]);
    }
    let time = |busy: bool| {
        let times = costs.iter().filter(|cost| cost.busy == busy).map(|cost| cost.seconds);
        times.fold(f64::INFINITY, f64::min)
    };
    block(
        &format!(
            "What runs beside each node's Postgres costs, all of it together (Rhone: supervisor and guardian; Patroni: with its etcd member; \
             a monitor: with its Postgres), idle over {:.0} s, busy over {:.0} s; standbys: the mean of two. OF IT STORE: etcd, the monitor's Postgres. \
             Busy: a client inserts at ROWS/s. SWITCHES: how often a thread went to sleep. SYNCS: fsync and its kin, counted afterwards by strace.",
            time(false),
            time(true)
        ),
        &[
            "SYSTEM",
            "RSS MiB",
            "OF IT STORE",
            "PSS MiB",
            "CPU %",
            "SWITCHES/s",
            "WRITTEN B/s",
            "SYNCS/s",
            "ROWS/s",
            "LOAD",
        ],
        body,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(
            replaced(&page, "new\n").as_deref(),
            Some(format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n").as_str())
        );
        assert_eq!(replaced("no markers", "new"), None);
    }

    #[test]
    fn medians_ranges_and_what_never_came() {
        assert_eq!(spread(&[3.0, 1.0, 2.0], 1), "2.0 (1.0 to 3.0)");
        assert_eq!(spread(&[1.0, 2.0], 2), "1.50 (1.00 to 2.00)");
        assert_eq!(spread(&[], 1), "-");
        assert_eq!(with_absent(&[Some(1.0), None]), "1.0; never in 1");
        assert_eq!(with_absent(&[None, None]), "never, 2 of 2");
    }
}
