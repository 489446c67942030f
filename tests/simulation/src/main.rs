//! `simulate --seed N` runs one seed aloud; without, as many as fit into `--seconds`, or `--runs`, each in
//! a process of its own.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rhone_simulation::{Asked, Mutant, Outcome, run, run_apart};

/// What is asked for.
struct Wish {
    seed: Option<u64>,
    from: Option<u64>,
    runs: u64,
    seconds: u64,
    mutant: Mutant,
    shows: Option<Mutant>,
    chance: Option<u64>,
    quiet: bool,
    /// Whether a mutant's runs go on after it was noticed.
    all: bool,
    /// Whether each mutant is looked for.
    mutants: bool,
}

const HINT: &str =
    "simulate [--seed N | --from N --runs N --seconds N] [--mutant NAME] [--shows NAME] [--all]";

fn main() -> ExitCode {
    match wish(std::env::args().skip(1)) {
        Ok(wish) if wish.mutants => mutants(&wish),
        Ok(Wish { seed: Some(seed), mutant, shows, chance, quiet, .. }) => {
            one(Asked { seed, mutant, shows: shows.unwrap_or(mutant), chance }, quiet)
        }
        Ok(wish) => many(&wish),
        Err(words) => {
            eprintln!("error: `{words}` is not understood");
            eprintln!("hint: {HINT}");
            ExitCode::from(2)
        }
    }
}

fn wish(mut args: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut wish = Wish {
        seed: None,
        from: None,
        runs: u64::MAX,
        seconds: 60,
        mutant: Mutant::None,
        shows: None,
        chance: None,
        quiet: false,
        all: false,
        mutants: false,
    };
    while let Some(name) = args.next() {
        match name.as_str() {
            // For the process that runs this one: the story at its end, and what it came to.
            "--quiet" => wish.quiet = true,
            "--all" => wish.all = true,
            _ => {
                let value = args.next().unwrap_or_default();
                let number = value.parse::<u64>().ok();
                let known = match name.as_str() {
                    "--mutant" if value == "all" => {
                        wish.mutants = true;
                        Some(())
                    }
                    "--seed" => number.map(|n| wish.seed = Some(n)),
                    "--from" => number.map(|n| wish.from = Some(n)),
                    "--runs" => number.map(|n| wish.runs = n),
                    "--seconds" => number.map(|n| wish.seconds = n),
                    "--chance" => number.map(|n| wish.chance = Some(n)),
                    "--mutant" => Mutant::named(&value).map(|mutant| wish.mutant = mutant),
                    "--shows" => Mutant::named(&value).map(|shows| wish.shows = Some(shows)),
                    _ => None,
                };
                known.ok_or_else(|| format!("{name} {value}").trim_end().to_owned())?;
            }
        }
    }
    Ok(wish)
}

fn one(asked: Asked, quiet: bool) -> ExitCode {
    let outcome = run(asked, !quiet);
    if quiet {
        let lines = outcome.lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        println!("{lines}{}", outcome.last_line());
        return ExitCode::SUCCESS;
    }
    println!(
        "seed {}: hash {:016x}, {} rows acknowledged, {} given up, {} s of its own time",
        asked.seed,
        outcome.hash,
        outcome.acknowledged,
        outcome.given_up,
        outcome.virtual_ms / 1000
    );
    match outcome.violation {
        Some(violation) => {
            println!("failed: {violation}");
            ExitCode::FAILURE
        }
        None => {
            println!("held");
            ExitCode::SUCCESS
        }
    }
}

/// Looks for each mutant, in so many stories at the most; says after how many it was noticed, and by what.
fn mutants(wish: &Wish) -> ExitCode {
    let Ok(program) = std::env::current_exe() else { return ExitCode::FAILURE };
    let stories = if wish.runs == u64::MAX { STORIES } else { wish.runs };
    let first = wish.from.unwrap_or(1);
    let next = AtomicU64::new(0);
    let missed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some(mutant) = Mutant::ALL.get(at) else { return };
                    let found =
                        (first..).take(usize::try_from(stories).unwrap_or(usize::MAX)).find_map(|seed| {
                            let asked = Asked::without(*mutant, seed);
                            run_apart(&program, asked).violation.map(|violation| (asked, violation))
                        });
                    match found {
                        Some((asked, violation)) => {
                            let count = asked.seed - first + 1;
                            println!("{mutant:?}: noticed in story {count}: {violation}");
                        }
                        None => {
                            println!("{mutant:?}: not noticed in {stories} stories");
                            missed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (missed, all) = (missed.into_inner(), Mutant::ALL.len() as u64);
    println!("{} of {all} mutants noticed", all - missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// In how many stories a mutant is looked for.
const STORIES: u64 = 100;

/// What many seeds came to.
#[derive(Default)]
struct Sum {
    bad: Vec<u64>,
    acknowledged: u64,
    virtual_ms: u64,
}

impl Sum {
    fn take(&mut self, asked: Asked, outcome: &Outcome) {
        self.acknowledged += outcome.acknowledged;
        self.virtual_ms += outcome.virtual_ms;
        let Some(violation) = &outcome.violation else { return };
        println!("seed {} failed: {violation}", asked.seed);
        println!("  its story, line by line: {}", asked.again());
        self.bad.push(asked.seed);
    }
}

#[allow(clippy::disallowed_methods, reason = "how long the seeds take in truth; no run sees it")]
fn many(wish: &Wish) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("error: find this program: {error}");
            return ExitCode::FAILURE;
        }
    };
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = wish.from.unwrap_or(clock.as_secs() % 1_000_000 * 10_000);
    let begun = Instant::now();
    let (ran, sum) = run_many(wish, first, &program, begun);
    let seconds = begun.elapsed().as_secs_f64().max(0.1);
    println!(
        "{ran} seeds from {first} in {seconds:.0} s, {:.0} a minute; {} rows acknowledged in {} minutes of their own time",
        ran as f64 * 60.0 / seconds,
        sum.acknowledged,
        sum.virtual_ms / 60_000
    );
    if sum.bad.is_empty() {
        println!("held: nothing that must hold was broken");
        ExitCode::SUCCESS
    } else {
        println!("failed: {} of {ran} seeds", sum.bad.len());
        ExitCode::FAILURE
    }
}

fn run_many(wish: &Wish, first: u64, program: &Path, begun: Instant) -> (u64, Sum) {
    let limit = Duration::from_secs(wish.seconds);
    let (next, ran) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(Sum::default());
    let lock = || sum.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    // A mutant is known once it is noticed.
                    let noticed = wish.mutant != Mutant::None && !wish.all && !lock().bad.is_empty();
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    if noticed || step >= wish.runs || begun.elapsed() >= limit {
                        return;
                    }
                    let Wish { mutant, chance, .. } = *wish;
                    let shows = wish.shows.unwrap_or(mutant);
                    let asked = Asked { seed: first + step, mutant, shows, chance };
                    let outcome = run_apart(program, asked);
                    ran.fetch_add(1, Ordering::Relaxed);
                    lock().take(asked, &outcome);
                }
            });
        }
    });
    (ran.into_inner(), sum.into_inner().unwrap_or_default())
}
