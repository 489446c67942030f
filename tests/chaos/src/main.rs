//! `chaos bench` measures; `chaos run` tries to break.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rhone_chaos::bench::{self, Fault};
use rhone_chaos::cluster::{Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::{cleanup, clock, nemesis};

/// Clusters of real processes, faults, and the checkers that judge them.
#[derive(Parser)]
#[command(name = "chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure write gaps and the cost of idling, with a release binary in `RHONE_BIN`.
    Bench(Bench),
    /// Run random faults under clients and judge what the clients saw.
    Run(Run),
}

#[derive(Args)]
struct Common {
    /// Members.
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// The last of them is a witness.
    #[arg(long)]
    witness: bool,
    /// The replicated `sync` setting.
    #[arg(long, value_enum, default_value_t = SyncMode::Off)]
    sync: SyncMode,
}

#[derive(Args)]
struct Bench {
    #[command(flatten)]
    common: Common,
    /// Runs of each fault.
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// Which faults; all when absent.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Seconds to watch an idle cluster; 0 for not at all.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    common: Common,
    /// Which faults: all, power, network, process, switchover.
    #[arg(long, default_value = "all")]
    scenario: String,
    /// The seed; drawn from the clock when absent, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Minutes of faults.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum SyncMode {
    Off,
    Quorum,
    Strict,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Common {
    fn spec(&self) -> Spec {
        let sync = match self.sync {
            SyncMode::Off => Sync::Off,
            SyncMode::Quorum => Sync::Quorum,
            SyncMode::Strict => Sync::Strict,
        };
        Spec { sync, witness: self.witness, ..Spec::asynchronous(self.members) }
    }
}

fn main() -> ExitCode {
    match act(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(cli: &Cli) -> Result<bool> {
    cleanup::prepare();
    let _turn = take_turn()?;
    match &cli.command {
        Action::Bench(bench) => measure(bench),
        Action::Run(run) => {
            let seed = run.seed.unwrap_or_else(|| clock::Moment::now().0 % 1_000_000);
            let outcome = nemesis::run(&nemesis::Order {
                scenario: run.scenario.clone(),
                seed,
                time: Duration::from_secs(run.minutes * 60),
                spec: run.common.spec(),
            })
            .with_context(|| format!("seed {seed}"))?;
            print(&format!("{outcome}\n"))?;
            Ok(outcome.passed())
        }
    }
}

fn measure(asked: &Bench) -> Result<bool> {
    let faults = if asked.faults.is_empty() { Fault::ALL.to_vec() } else { asked.faults.clone() };
    let findings = bench::run(&bench::Order {
        runs: asked.runs,
        faults,
        spec: asked.common.spec(),
        idle: Duration::from_secs(asked.idle),
    })?;
    match asked.output {
        Format::Text => print(&findings.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&findings).context("print JSON")?))?,
    }
    Ok(true)
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")
}
