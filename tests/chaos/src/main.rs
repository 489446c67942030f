//! `chaos bench` measures; `chaos run` tries to break.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rhone_chaos::bench::{self, Fault, Timing};
use rhone_chaos::cluster::{Spec, Sync};
use rhone_chaos::lock::{take_machine, take_turn};
use rhone_chaos::resume::Resume;
use rhone_chaos::script::Script;
use rhone_chaos::{bench_clients, bench_proxy, campaign, cleanup, clock, fault, peers, scale};

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
    /// Measure what the rw port costs beside a direct connection and HAProxy, with a release binary in `RHONE_BIN`.
    BenchProxy(BenchProxy),
    /// Count what clients notice of switchovers behind PgBouncer and of failovers behind the rw ports.
    BenchClients(BenchClients),
    /// Measure Rhone and its peers under the same faults, and write the page of it.
    BenchPeers(BenchPeers),
    /// Measure what more members cost, and how long copies and rewinds take.
    BenchScale(BenchScale),
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
    /// Which faults; all when absent, that of a synchronous standby only where there are any.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// The preset of timings of `[bootstrap]`; the product's default when absent.
    #[arg(long, value_enum)]
    timing: Option<Timing>,
    /// Seconds to watch an idle cluster; 0 for not at all.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Args)]
struct BenchProxy {
    /// Runs of each load on each way.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// pgbench's clients.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Args)]
struct BenchClients {
    /// Switchovers under pgbench through PgBouncer.
    #[arg(long, default_value_t = 20)]
    switchovers: u32,
    /// Failovers under clients that connect anew for each row.
    #[arg(long, default_value_t = 20)]
    failovers: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Args)]
struct BenchPeers {
    /// Runs of each fault on each system.
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// Which systems; all when absent.
    #[arg(long, value_enum, value_delimiter = ',')]
    systems: Vec<peers::System>,
    /// Which faults; all when absent.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<peers::fault::Fault>,
    /// Seconds to watch each system's cost: idle, and half as long busy; 0 for not at all.
    #[arg(long, default_value_t = 120)]
    cost: u64,
    /// The records: what is in this file already stays, and counts.
    #[arg(long)]
    records: PathBuf,
    /// The page whose part between the markers is written.
    #[arg(long)]
    page: Option<PathBuf>,
}

#[derive(Args)]
struct BenchScale {
    /// Sizes of clusters.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 5, 7, 13])]
    members: Vec<usize>,
    /// Power losses of the primary at each size.
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// Seconds to watch each size idle; 0 for not at all.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Megabytes of databases that are copied.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    megabytes: Vec<u64>,
    /// Primaries that rejoin by a rewind.
    #[arg(long, default_value_t = 10)]
    rewinds: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Args)]
struct Run {
    /// A scenario that comes with the harness, or a TOML file.
    #[arg(long, default_value = "all")]
    scenario: String,
    /// The seed; drawn from the clock when absent, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Minutes of rounds, also 1.5, instead of what the scenario says.
    #[arg(long)]
    minutes: Option<f64>,
    /// Rounds, instead of what the scenario says.
    #[arg(long)]
    rounds: Option<u32>,
    /// The replicated `sync` setting, instead of what the scenario says.
    #[arg(long, value_enum)]
    sync: Option<SyncMode>,
    /// Two data members and a witness, instead of what the scenario says.
    #[arg(long)]
    witness: bool,
    /// With `postgres.dead-man = "nftables"`, and no excuse for a primary that nobody fences.
    #[arg(long)]
    dead_man: bool,
    /// Keep what is behind in this file, and go on from there when the run was broken off.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Only rounds of these faults.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<fault::Fault>,
    /// Judge the scenario's durations too: on a machine that does nothing else.
    #[arg(long)]
    strict: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
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

impl SyncMode {
    fn setting(self) -> Sync {
        match self {
            Self::Off => Sync::Off,
            Self::Quorum => Sync::Quorum,
            Self::Strict => Sync::Strict,
        }
    }
}

impl Common {
    fn spec(&self) -> Spec {
        Spec { sync: self.sync.setting(), witness: self.witness, ..Spec::asynchronous(self.members) }
    }
}

impl Run {
    /// The words that change what a scenario says, with a blank before each.
    fn more(&self) -> String {
        let sync = self.sync.map(|sync| format!(" --sync {}", sync.setting().name()));
        let flags =
            [(self.witness, " --witness"), (self.dead_man, " --dead-man"), (self.strict, " --strict")];
        let flags = flags.iter().filter(|(given, _)| *given).map(|(_, word)| *word);
        sync.unwrap_or_default() + &flags.collect::<String>()
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
    let _turn = match &cli.command {
        Action::Run(_) => take_turn(),
        Action::Bench(_)
        | Action::BenchProxy(_)
        | Action::BenchClients(_)
        | Action::BenchPeers(_)
        | Action::BenchScale(_) => take_machine(),
    }?;
    match &cli.command {
        Action::Bench(bench) => measure(bench),
        Action::BenchProxy(asked) => measure_proxy(asked),
        Action::BenchClients(asked) => measure_clients(asked),
        Action::BenchPeers(asked) => measure_peers(asked),
        Action::BenchScale(asked) => measure_scale(asked),
        Action::Run(run) => run_rounds(run),
    }
}

fn run_rounds(run: &Run) -> Result<bool> {
    let seed = run.seed.unwrap_or_else(|| clock::Moment::now().0 % 1_000_000);
    let mut script = Script::load(&run.scenario)?;
    script.topology.dead_man |= run.dead_man;
    if let Some(sync) = run.sync {
        script.topology.sync = sync.setting();
    }
    if run.witness {
        (script.topology.data, script.topology.witness) = (2, true);
    }
    let time = run.minutes.map(|minutes| Duration::try_from_secs_f64(minutes * 60.0)).transpose();
    let outcome = campaign::run(&campaign::Order {
        name: run.scenario.clone(),
        script,
        seed,
        rounds: run.rounds,
        time: time.context("read --minutes")?,
        strict: run.strict,
        only: run.only.clone(),
        resume: run.resume.as_deref().map(|path| Resume::open(path, &run.scenario)).transpose()?,
        more: run.more(),
    })
    .with_context(|| format!("seed {seed}"))?;
    match run.output {
        Format::Text => print(&format!("{outcome}\n"))?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&outcome).context("print JSON")?))?,
    }
    Ok(outcome.passed())
}

fn measure(asked: &Bench) -> Result<bool> {
    let spec = asked.common.spec();
    let faults = if asked.faults.is_empty() { Fault::all(spec.sync) } else { asked.faults.clone() };
    let findings = bench::run(&bench::Order {
        runs: asked.runs,
        faults,
        spec,
        timing: asked.timing,
        idle: Duration::from_secs(asked.idle),
    })?;
    match asked.output {
        Format::Text => print(&findings.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&findings).context("print JSON")?))?,
    }
    Ok(true)
}

fn measure_proxy(asked: &BenchProxy) -> Result<bool> {
    let order = bench_proxy::Order { rounds: asked.rounds, seconds: asked.seconds, clients: asked.clients };
    let findings = bench_proxy::run(order)?;
    match asked.output {
        Format::Text => print(&findings.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&findings).context("print JSON")?))?,
    }
    Ok(true)
}

fn measure_clients(asked: &BenchClients) -> Result<bool> {
    let findings = bench_clients::run(asked.switchovers, asked.failovers)?;
    match asked.output {
        Format::Text => print(&findings.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&findings).context("print JSON")?))?,
    }
    Ok(findings.passed())
}

fn measure_scale(asked: &BenchScale) -> Result<bool> {
    let findings = scale::run(&scale::Order {
        members: asked.members.clone(),
        runs: asked.runs,
        idle: Duration::from_secs(asked.idle),
        megabytes: asked.megabytes.clone(),
        rewinds: asked.rewinds,
    })?;
    match asked.output {
        Format::Text => print(&findings.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string(&findings).context("print JSON")?))?,
    }
    Ok(true)
}

fn measure_peers(asked: &BenchPeers) -> Result<bool> {
    let all = |chosen: &[peers::fault::Fault]| {
        if chosen.is_empty() { peers::fault::Fault::ALL.to_vec() } else { chosen.to_vec() }
    };
    let systems = if asked.systems.is_empty() { peers::System::ALL.to_vec() } else { asked.systems.clone() };
    let text = peers::run(&peers::Order {
        runs: asked.runs,
        systems,
        faults: all(&asked.faults),
        cost: Duration::from_secs(asked.cost),
        records: asked.records.clone(),
        page: asked.page.clone(),
    })?;
    print(&text)?;
    Ok(true)
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")
}
