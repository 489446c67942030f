//! `rhone demo`: a throw-away cluster of real Postgres servers on loopback.
//!
//! It runs this same binary once per member, with a configuration of its own in a temporary
//! folder, and looks at the cluster only as any operator would. Whatever happens, it ends all
//! processes that it started and removes the folder.

mod cluster;
mod folder;
mod ports;
mod processes;
mod writer;

use std::cell::Cell;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use self::cluster::DemoCluster;
use self::writer::Writer;
use crate::cli::terminal::Terminal;
use crate::cli::{CliError, Exit, render_status};
use crate::status::ClusterStatus;

/// Founding on a small board with a slow card takes its time.
const FOUNDING_LIMIT: Duration = Duration::from_secs(180);
/// A failover that takes longer than this has failed.
const FAILOVER_LIMIT: Duration = Duration::from_secs(60);
/// A crash recovery, rewind or clone of a small database.
const REJOIN_LIMIT: Duration = Duration::from_secs(120);
/// The writer is at work for so long before the primary dies.
const WARM_UP: Duration = Duration::from_secs(3);

/// What the demo should show.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct DemoOptions {
    /// Members of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes: u8,
    /// Make the last member a witness
    #[arg(long)]
    pub witness: bool,
    /// Acknowledge commits only when a standby has them
    #[arg(long)]
    pub sync: bool,
    /// Kill the primary under a writer, and show what that costs
    #[arg(long)]
    pub kill_primary: bool,
    /// Leave the folder with logs and data there; the processes end all the same
    #[arg(long)]
    pub keep: bool,
}

/// What killing the primary cost; the last line with `-o json`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
struct Toll {
    write_gap_seconds: f64,
    rows_acknowledged: usize,
    rows_lost: usize,
    rejoined_seconds: f64,
}

/// Runs the demo.
///
/// # Errors
///
/// When the cluster cannot be started or does not do what it should; all is cleaned up then too.
pub async fn demo(options: DemoOptions, json: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    if options.kill_primary && options.nodes < 3 {
        return Err(CliError::new(Exit::Usage, "--kill-primary needs at least 3 members"));
    }
    if options.witness && options.nodes < 3 {
        let message = "--witness needs at least 3 members: two with data, and the witness";
        return Err(CliError::new(Exit::Usage, message));
    }
    let mut cluster = DemoCluster::prepare(options.nodes, options.witness, options.sync)?;
    let complete = Cell::new(false);
    let outcome = tokio::select! {
        outcome = show(&mut cluster, &options, json, terminal, &complete) => outcome,
        stopped = interrupted() => match stopped {
            // Ending by Ctrl-C is how a demo that has shown all is meant to end.
            Ok(()) if !complete.get() => Err(CliError::failed("interrupted")),
            other => other,
        },
    };
    terminal.talk("stopping all processes of the demo");
    let place = cluster.folder().display().to_string();
    let cleaned = cluster.clean_up(options.keep).await;
    if options.keep {
        terminal.talk(&format!("the folder {place} is kept"));
    }
    outcome.and(cleaned)
}

/// Waits for the operator to end the demo.
async fn interrupted() -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(|error| CliError::failed(format!("wait for signals: {error}")));
    let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hup = listen(SignalKind::hangup())?;
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
    Ok(())
}

async fn show(
    cluster: &mut DemoCluster,
    options: &DemoOptions,
    json: bool,
    terminal: &mut Terminal,
    complete: &Cell<bool>,
) -> Result<(), CliError> {
    terminal.talk(&format!("{} members start in {}", options.nodes, cluster.folder().display()));
    cluster.start_all()?;
    let status = cluster.wait_until_whole(FOUNDING_LIMIT, terminal).await?;
    print_status(&status, json, terminal)?;
    if options.kill_primary {
        return kill_primary(cluster, &status, json, terminal).await;
    }
    for line in cluster.instructions() {
        terminal.talk(&line);
    }
    terminal.talk("Ctrl-C ends the demo and removes everything");
    complete.set(true);
    std::future::pending().await
}

fn print_status(status: &ClusterStatus, json: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    if json {
        let text =
            serde_json::to_string(status).map_err(|e| CliError::failed(format!("print as JSON: {e}")))?;
        terminal.data(&format!("{text}\n"));
    } else {
        terminal.data(&format!("\n{}\n", render_status(status, terminal.colour())));
    }
    Ok(())
}

/// Kills the primary under a writer, and shows what that cost.
async fn kill_primary(
    cluster: &mut DemoCluster,
    status: &ClusterStatus,
    json: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let primary = status.primary.clone().ok_or_else(|| CliError::failed("there is no primary to kill"))?;
    terminal.talk("a writer begins: one row per commit, each acknowledged row is remembered");
    let writer = Writer::start(cluster.postgres_ports()).await?;
    tokio::time::sleep(WARM_UP).await;
    let before = writer.acknowledged();
    if before == 0 {
        return Err(CliError::failed(format!("the writer could not write: {}", writer.last_error())));
    }
    let pids = cluster.kill(&primary)?;
    writer.mark_kill();
    terminal.talk(&format!(
        "SIGKILL to postmaster, supervisor and guardian of {primary} ({pids} processes), {before} rows acknowledged so far"
    ));
    let gap = writer.wait_for_gap(FAILOVER_LIMIT).await.map_err(|why| {
        CliError::failed(why)
            .hint(format!("`rhone demo --keep` keeps the logs in {}", cluster.folder().display()))
    })?;
    terminal.talk(&format!("writes are back after {:.2} s", gap.as_secs_f64()));
    let restarted = tokio::time::Instant::now();
    cluster.start(&primary)?;
    terminal.talk(&format!("{primary} is started again"));
    let status = cluster.wait_until_whole(REJOIN_LIMIT, terminal).await?;
    let rejoined = restarted.elapsed();
    let (acknowledged, lost) = writer.finish().await?;
    print_status(&status, json, terminal)?;
    let toll = Toll {
        write_gap_seconds: rounded(gap),
        rows_acknowledged: acknowledged,
        rows_lost: lost,
        rejoined_seconds: rounded(rejoined),
    };
    if json {
        let text =
            serde_json::to_string(&toll).map_err(|e| CliError::failed(format!("print as JSON: {e}")))?;
        terminal.data(&format!("{text}\n"));
    } else {
        terminal.data(&format!(
            "writes were away for {:.2} s\n{acknowledged} rows acknowledged, {lost} lost\n\
             {primary} streams again as a standby {:.2} s after its start\n",
            toll.write_gap_seconds, toll.rejoined_seconds
        ));
    }
    Ok(())
}

/// Milliseconds are as exact as this is.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
#[path = "demo/live_tests.rs"]
mod live_tests;
