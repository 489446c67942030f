//! Some seeds, each a whole cluster's story: nothing that must hold is broken, and rules that are left
//! out are noticed.
//!
//! `make sim` runs many more, in a faster build. `make sim SEED=n` tells one story line by line.

use rhone_simulation::{Mutant, run};

/// Runs these on two threads; returns what each came to, in their order.
fn on_two_threads(all: &[(Mutant, u64)]) -> Vec<Option<String>> {
    std::thread::scope(|scope| {
        let halves = [&all[..all.len() / 2], &all[all.len() / 2..]].map(|half| {
            scope.spawn(move || {
                let tell = |(mutant, seed): &(Mutant, u64)| {
                    let outcome = run(*seed, *mutant, false);
                    if *mutant == Mutant::None && outcome.violation.is_some() {
                        println!("{}", outcome.lines.join("\n"));
                    }
                    outcome.violation
                };
                half.iter().map(tell).collect::<Vec<_>>()
            })
        });
        halves.into_iter().flat_map(|half| half.join().expect("it ran")).collect()
    })
}

/// Both were found by a seed: a standby of the owner of two epochs that never promised the second (24), and
/// who may acknowledge while supervisor and guardian are both gone (9).
#[test]
fn no_story_breaks_what_must_hold() {
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![(Mutant::None, seed)],
        None => [1, 2, 3, 4, 9, 24].map(|seed| (Mutant::None, seed)).to_vec(),
    };
    let wrong: Vec<String> = seeds
        .iter()
        .zip(on_two_threads(&seeds))
        .filter_map(|((_, seed), violation)| {
            Some(format!("seed {seed}: {}; the same story again: make sim SEED={seed}", violation?))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How many stories a mutant may take: what a seed tells is not the same to the last message (decision 0018).
const STORIES: usize = 12;

#[test]
fn a_rule_that_is_left_out_is_noticed() {
    let all = [(Mutant::GateWithoutMarker, 1000, "I10"), (Mutant::NoFence, 1002, "I12")];
    std::thread::scope(|scope| {
        for (mutant, first, expected) in all {
            scope.spawn(move || {
                let found: Vec<String> = (first..)
                    .take(STORIES)
                    .map(|seed| run(seed, mutant, false).violation.unwrap_or_default())
                    .take_while(|violation| !violation.starts_with(expected))
                    .collect();
                assert!(found.len() < STORIES, "{mutant:?} is not noticed by {expected}: {found:?}");
            });
        }
    });
}
