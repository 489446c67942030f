//! `simulate --seed N` runs one seed aloud; without, as many as fit into `--minutes`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rhone_simulation::{Mutant, run};

fn main() -> ExitCode {
    let mut seed = None;
    let mut minutes = 5.0;
    let mut mutant = Mutant::None;
    let mut count = u64::MAX;
    let mut first = None;
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().unwrap_or_default();
        let known = match name.as_str() {
            "--seed" => value.parse().map(|n| seed = Some(n)).is_ok(),
            "--from" => value.parse().map(|n| first = Some(n)).is_ok(),
            "--count" => value.parse().map(|n| count = n).is_ok(),
            "--minutes" => value.parse().map(|n| minutes = n).is_ok(),
            "--mutant" => Mutant::named(&value).map(|m| mutant = m).is_some(),
            _ => false,
        };
        if !known {
            eprintln!("error: `{name} {value}` is not understood");
            eprintln!("hint: simulate [--seed N | --from N --count N --minutes M] [--mutant NAME]");
            return ExitCode::from(2);
        }
    }
    if let Some(seed) = seed {
        let outcome = run(seed, mutant, true);
        println!(
            "seed {seed}: hash {:016x}, {} rows acknowledged, {} given up, {} s of its own time",
            outcome.hash,
            outcome.acknowledged,
            outcome.given_up,
            outcome.virtual_ms / 1000
        );
        return if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    many(first, count, minutes, mutant)
}

fn many(first: Option<u64>, count: u64, minutes: f64, mutant: Mutant) -> ExitCode {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let first = first.unwrap_or(clock.as_secs() % 1_000_000 * 10_000);
    let limit = Duration::from_secs_f64(minutes * 60.0);
    let begun = Instant::now();
    let next = std::sync::atomic::AtomicU64::new(0);
    let bad = std::sync::Mutex::new(Vec::<u64>::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // A mutant is known once it is noticed.
                    let noticed = mutant != Mutant::None && !bad.lock().is_ok_and(|bad| bad.is_empty());
                    let step = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if noticed || step >= count || begun.elapsed() >= limit {
                        return;
                    }
                    let outcome = run(first + step, mutant, false);
                    if let Some(violation) = outcome.violation {
                        println!("SEED={}: {violation}", first + step);
                        bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(first + step);
                    }
                }
            });
        }
    });
    let ran = next.into_inner().saturating_sub(threads as u64);
    let bad = bad.into_inner().unwrap_or_default();
    println!("{ran} seeds from {first} in {} s, {} went wrong", begun.elapsed().as_secs(), bad.len());
    if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
