//! What a run found: one line of JSON each, from which the page is written.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::peers::fault::Fault;
use crate::peers::system::{Part, System};

/// One line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Where and with what was measured.
    Place(Place),
    /// One run of one fault.
    Run(Run),
    /// What runs beside one node's Postgres cost.
    Cost(Cost),
    /// What was asked for and could not be measured.
    Skipped {
        /// What, and why.
        text: String,
    },
}

/// Where and with what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The day, in seconds since the Unix epoch.
    pub at: u64,
    /// Kernel, processor, cores, memory.
    pub machine: String,
    /// What each program says of its version.
    pub versions: Vec<String>,
}

/// One run of one fault. Times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// On what.
    pub system: System,
    /// Which.
    pub fault: Fault,
    /// Without an acknowledged write, as a client beside each member saw it; `None` when writes did not come back.
    pub gap: Option<f64>,
    /// The same as the multi-host client saw it.
    pub multi_host: Option<f64>,
    /// From the end of the cause until one is primary and all others stream; `None` when that did not come.
    pub rejoin: Option<f64>,
    /// Acknowledged rows that are gone, of all clients.
    pub lost: u64,
    /// Those of them that were acknowledged to a client inside the primary's node.
    pub lost_inside: u64,
    /// From the new primary's first acknowledgement to the last request that the old one took and acknowledged.
    pub two_primaries: f64,
    /// Whether another member became primary.
    pub moved: bool,
    /// The machine's 1-minute load average before and after.
    pub load: [f64; 2],
    /// What went wrong, in one line.
    pub note: Option<String>,
}

/// What runs beside one node's Postgres cost. Memory in KiB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// On what.
    pub system: System,
    /// While a client inserted, or while nobody did.
    pub busy: bool,
    /// The node: `primary`, `standby`, `monitor`.
    pub role: String,
    /// Which part.
    pub part: Part,
    /// How many processes it is.
    pub processes: usize,
    /// Resident memory of all of them.
    pub rss_kib: u64,
    /// Proportional memory of all of them.
    pub pss_kib: u64,
    /// CPU time, in percent of one core.
    pub cpu_percent: f64,
    /// How often a thread went to sleep, a second.
    pub switches: f64,
    /// Bytes sent to the disk, a second.
    pub bytes: f64,
    /// fsync and its kin, a second; `None` without strace.
    pub syncs: Option<f64>,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Rows a second that were acknowledged meanwhile.
    pub rows: f64,
    /// The machine's 1-minute load average before and after.
    pub load: [f64; 2],
}

/// Adds a line.
pub fn append(file: &Path, record: &Record) -> Result<()> {
    let mut open = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("open {}", file.display()))?;
    writeln!(open, "{}", serde_json::to_string(record).context("render a record")?)
        .with_context(|| format!("write {}", file.display()))
}

/// Reads all lines; none when there is no file.
pub fn read(file: &Path) -> Result<Vec<Record>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display())))
        .collect()
}
