//! What is asked for, and the order of the runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bench;
use crate::clock::wall_seconds;
use crate::namespace::Means;
use crate::peers::fault::{self, Fault};
use crate::peers::record::{self, Place, Record};
use crate::peers::system::{Bed, System};
use crate::peers::{cost, launch, page};
use crate::process;
use crate::scenario::report;
use crate::stats::seconds;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Runs of each fault on each system.
    pub runs: u32,
    /// Which systems.
    pub systems: Vec<System>,
    /// Which faults.
    pub faults: Vec<Fault>,
    /// How long each system's cost is watched, idle and busy; zero for not at all.
    pub cost: Duration,
    /// Where the records are kept; what is in it already stays, and counts.
    pub records: PathBuf,
    /// The page whose part between the markers is written.
    pub page: Option<PathBuf>,
}

/// Measures what is asked for, then prints all records' tables and writes the page.
pub fn run(order: &Order) -> Result<String> {
    if Means::detect() != Means::Filter {
        bail!("comparing with peers needs root, iproute2 and nftables");
    }
    let keep = |record: &Record| record::append(&order.records, record);
    let mut systems = Vec::new();
    for &system in &order.systems {
        match system.missing() {
            Some(text) => keep(&Record::Skipped { text })?,
            None => systems.push(system),
        }
    }
    let measures = order.runs > 0 || !order.cost.is_zero();
    if measures {
        keep(&Record::Place(place()?))?;
    }
    for round in 0..order.runs {
        // Every second round goes the other way, so that no system always comes after the same one.
        let mut turn = systems.clone();
        if round % 2 == 1 {
            turn.reverse();
        }
        for system in turn {
            let title = format!("{}, run {}/{}", system.name(), round + 1, order.runs);
            if let Err(error) = measure(order, system, &title) {
                report(&format!("{title}: {error:#}"));
                keep(&Record::Skipped { text: format!("{title}: {}", first_line(&error)) })?;
            }
        }
    }
    if !order.cost.is_zero() {
        cost::watch_all(
            &systems,
            order.cost,
            |cost| keep(&Record::Cost(cost)),
            |text| {
                report(&text);
                keep(&Record::Skipped { text: text.lines().next().unwrap_or_default().to_owned() })
            },
        )?;
    }
    let text = page::text(&record::read(&order.records)?);
    if let Some(file) = &order.page {
        page::write(file, &text)?;
    }
    Ok(text)
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

/// All faults on one system; nodes that did not become whole again are replaced by new ones.
fn measure(order: &Order, system: System, title: &str) -> Result<()> {
    let mut bed = None;
    for &fault in order.faults.iter().filter(|fault| fault.applies(system)) {
        let nodes = match &mut bed {
            Some(nodes) => nodes,
            none @ None => none.insert(Bed::start(system)?),
        };
        match fault::once(nodes, fault).with_context(|| fault.name()) {
            Ok(run) => {
                let shown = |value: Option<f64>| seconds(value.map(Duration::from_secs_f64));
                report(&format!(
                    "{title}, {}: without writes {}, multi-host {}, rejoin {}, lost {} ({} inside), two primaries {:.1} s, load {:.1}{}",
                    fault.name(),
                    shown(run.gap),
                    shown(run.multi_host),
                    shown(run.rejoin),
                    run.lost,
                    run.lost_inside,
                    run.two_primaries,
                    run.load[1],
                    run.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default(),
                ));
                let whole = run.rejoin.is_some();
                record::append(&order.records, &Record::Run(run))?;
                if !whole {
                    bed = None;
                }
            }
            Err(error) => {
                report(&format!("{title}: {error:#}"));
                let text = format!("{title}, {}", first_line(&error));
                record::append(&order.records, &Record::Skipped { text })?;
                bed = None;
            }
        }
    }
    Ok(())
}

fn place() -> Result<Place> {
    let mut versions: Vec<String> =
        bench::versions()?.iter().map(|line| line.split(" (/").next().unwrap_or(line).to_owned()).collect();
    let mut ask = |name: &str, argument: &str| {
        let said = launch::program(name).and_then(|path| version(&path, argument));
        versions.extend(said.map(|line| if line.contains(name) { line } else { format!("{name} {line}") }));
    };
    ask("patroni", "--version");
    ask("etcd", "--version");
    ask("pg_autoctl", "version");
    Ok(Place { at: wall_seconds(), machine: bench::machine(), versions })
}

fn version(path: &Path, argument: &str) -> Option<String> {
    let text = process::run_ok(Command::new(path).arg(argument)).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}
