//! Some seeds, each a whole cluster's story: nothing that must hold is broken, the same seed tells
//! the same story, and each rule that is left out is noticed.
//!
//! `make sim` runs many more, in a faster build. `make sim SEED=n` tells one story line by line.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rhone_simulation::{Mutant, Outcome, run};

/// The seeds that every run of the tests takes.
const FIXED: std::ops::RangeInclusive<u64> = 1..=24;

/// How many more are drawn.
const DRAWN: u64 = 4;

/// No seed is begun after this long: on a machine that is busy with other things the rest is left out.
const ENOUGH: Duration = Duration::from_secs(60);

/// Runs the seeds on two threads; returns what went wrong, by seed.
fn all(seeds: &[u64]) -> Vec<(u64, Outcome)> {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let step = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some(seed) = seeds.get(step).copied() else { return };
                    if begun.elapsed() > ENOUGH {
                        println!("seed {seed} and those after it are left out: this machine is busy");
                        return;
                    }
                    let outcome = run(seed, Mutant::None, false);
                    if outcome.violation.is_some() {
                        wrong.lock().expect("no thread panics").push((seed, outcome));
                    }
                }
            });
        }
    });
    wrong.into_inner().expect("no thread panics")
}

#[test]
fn no_story_breaks_what_must_hold() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let seeds: Vec<u64> = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => FIXED.chain((0..DRAWN).map(|n| clock % 1_000_000 * 100 + 1000 + n)).collect(),
    };
    println!("seeds {seeds:?}");
    let wrong = all(&seeds);
    for (seed, outcome) in &wrong {
        println!("{}", outcome.lines.join("\n"));
        println!("SEED={seed}: {}", outcome.violation.clone().unwrap_or_default());
        println!("the same story again: make sim SEED={seed}");
    }
    assert!(wrong.is_empty(), "{} of {} seeds went wrong", wrong.len(), seeds.len());
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [3, 8, 17] {
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| run(seed, Mutant::None, false));
            let other = scope.spawn(|| run(seed, Mutant::None, false));
            (one.join().expect("it ran"), other.join().expect("it ran"))
        });
        let differs = one.lines.iter().zip(&other.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.hash, one.virtual_ms), (other.hash, other.virtual_ms), "seed {seed}");
    }
}
