//! Some seeds, each a whole cluster's story: nothing that must hold is broken, rules that are left
//! out are noticed, and each story replays to the last message.
//!
//! `make sim` runs many more, in a faster build. `make sim SEED=n` tells one story line by line.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rhone_simulation::{Asked, Mutant, Outcome, run_apart};

fn tell(asked: Asked) -> Outcome {
    run_apart(Path::new(env!("CARGO_BIN_EXE_simulate")), asked)
}

/// Does this for each on two threads; returns what each came to, in their order.
fn on_two_threads<A: Copy + Sync, B: Send>(all: &[A], work: impl Fn(A) -> B + Sync) -> Vec<B> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = all.get(at) else { return };
                    let result = work(*one);
                    done.lock().expect("nobody panicked").push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panicked");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn no_story_breaks_what_must_hold() {
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=4).collect(),
    };
    let wrong: Vec<String> = on_two_threads(&seeds, |seed| {
        let asked = Asked::of(seed);
        let outcome = tell(asked);
        let violation = outcome.violation?;
        println!("{}", outcome.lines.join("\n"));
        Some(format!("seed {seed}: {violation}; the same story again: {}", asked.again()))
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each in two processes. That the comparison can fail: with the operating system's chance begun elsewhere
/// (`simulate --chance`) two stories in ten send their messages in another order, 6 and 9 among them.
#[test]
fn a_story_replays_to_the_last_message() {
    let asked = [6, 9].map(Asked::of);
    let twice = [asked[0], asked[0], asked[1], asked[1]];
    let told = on_two_threads(&twice, tell);
    for (pair, Asked { seed, .. }) in told.chunks(2).zip(asked) {
        assert!(pair[0].hash != 0, "seed {seed} was not told: {:?}", pair[0].violation);
        assert_eq!(pair[0].lines, pair[1].lines, "seed {seed} told another story");
        assert_eq!(pair[0].hash, pair[1].hash, "seed {seed} sent other messages");
    }
    assert_ne!(told[0].hash, told[2].hash, "the hash holds nothing");
}

/// What each of these rules keeps from happening, and in how many of the stories 1 to 8 of its world it
/// happened without it when that was last counted.
const NOTICED: [(Mutant, &str, u32); 4] = [
    (Mutant::GateWithoutMarker, "I10", 8),
    (Mutant::NoFence, "I12", 7),
    (Mutant::EmptyNames, "I3", 7),
    (Mutant::StrangerCounts, "I3", 8),
];

/// How many stories a mutant may take: what a seed tells is the same until the code changes, so that each has
/// room.
const STORIES: u64 = 8;

#[test]
fn a_rule_that_is_left_out_is_noticed() {
    let missed: Vec<String> = on_two_threads(&NOTICED, |(mutant, expected, _)| {
        let told: Vec<String> = (1..=STORIES)
            .map(|seed| tell(Asked::without(mutant, seed)).violation.unwrap_or_default())
            .take_while(|violation| !violation.starts_with(expected))
            .collect();
        (told.len() as u64 == STORIES).then(|| format!("{mutant:?} is not noticed by {expected}: {told:?}"))
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
