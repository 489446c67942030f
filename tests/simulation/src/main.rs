//! `simulate --seed N` runs one seed aloud; without, as many as fit into `--seconds`, or `--runs`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rhone_simulation::{Mutant, run};

/// What is asked for.
struct Wish {
    seed: Option<u64>,
    from: Option<u64>,
    runs: u64,
    seconds: u64,
    mutant: Mutant,
}

fn main() -> ExitCode {
    let mut wish = Wish { seed: None, from: None, runs: u64::MAX, seconds: 60, mutant: Mutant::None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().unwrap_or_default();
        let known = match name.as_str() {
            "--seed" => value.parse().map(|n| wish.seed = Some(n)).is_ok(),
            "--from" => value.parse().map(|n| wish.from = Some(n)).is_ok(),
            "--runs" => value.parse().map(|n| wish.runs = n).is_ok(),
            "--seconds" => value.parse().map(|n| wish.seconds = n).is_ok(),
            "--mutant" => Mutant::named(&value).map(|m| wish.mutant = m).is_some(),
            _ => false,
        };
        if !known {
            eprintln!("error: `{name} {value}` is not understood");
            eprintln!("hint: simulate [--seed N | --from N --runs N --seconds N] [--mutant NAME]");
            return ExitCode::from(2);
        }
    }
    match wish.seed {
        Some(seed) => one(seed, wish.mutant),
        None => many(&wish),
    }
}

fn one(seed: u64, mutant: Mutant) -> ExitCode {
    let outcome = run(seed, mutant, true);
    println!(
        "seed {seed}: hash {:016x}, {} rows acknowledged, {} given up, {} s of its own time",
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

#[allow(clippy::disallowed_methods, reason = "how long the seeds take in truth; no run sees it")]
fn many(wish: &Wish) -> ExitCode {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = wish.from.unwrap_or(clock.as_secs() % 1_000_000 * 10_000);
    let limit = Duration::from_secs(wish.seconds);
    let begun = Instant::now();
    let (next, ran) = (AtomicU64::new(0), AtomicU64::new(0));
    let bad = Mutex::new(Vec::<u64>::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // A mutant is known once it is noticed.
                    let noticed = wish.mutant != Mutant::None && !bad.lock().is_ok_and(|bad| bad.is_empty());
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    if noticed || step >= wish.runs || begun.elapsed() >= limit {
                        return;
                    }
                    let seed = first + step;
                    let outcome = run(seed, wish.mutant, false);
                    ran.fetch_add(1, Ordering::Relaxed);
                    if let Some(violation) = outcome.violation {
                        println!("seed {seed} failed: {violation}");
                        let mutant = match wish.mutant {
                            Mutant::None => String::new(),
                            mutant => format!(" MUTANT={mutant:?}"),
                        };
                        println!("  its story, line by line: make sim SEED={seed}{mutant}");
                        bad.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let (ran, bad) = (ran.into_inner(), bad.into_inner().unwrap_or_default());
    let seconds = begun.elapsed().as_secs().max(1);
    println!("{ran} seeds from {first} in {seconds} s, {} a minute", ran * 60 / seconds);
    if bad.is_empty() {
        println!("held: nothing that must hold was broken");
        ExitCode::SUCCESS
    } else {
        println!("failed: {} of {ran} seeds", bad.len());
        ExitCode::FAILURE
    }
}
