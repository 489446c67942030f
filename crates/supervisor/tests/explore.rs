//! Random walks through the small world: what may never happen does not, and after the faults
//! stop everything streams again.
#![allow(
    clippy::pedantic,
    clippy::panic,
    clippy::double_ended_iterator_last,
    clippy::manual_is_multiple_of,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test over fixed small sets: what is out of range should panic"
)]

mod world;

use rhone_consensus::settings::SyncMode;
use world::{Mutant, World};

/// Runs one seed; returns what went wrong.
fn walk(mode: SyncMode, mutant: Mutant, seed: u64) -> Result<(), (String, Vec<String>)> {
    let (world, end) = walk_through(World::with(mode, mutant, Some(seed)), |_| {})?;
    if end { Ok(()) } else { Err(("does not come to rest".to_owned(), world.trace)) }
}

/// The same, while a person changes the synchronous mode again and again. Whether it comes to rest is not asked:
/// an asynchronous policy may have left more behind than its bound, and then a person decides.
fn walk_by_modes(mode: SyncMode, mutant: Mutant, seed: u64) -> Result<(), (String, Vec<String>)> {
    walk_through(World::with(mode, mutant, Some(seed)), |world| {
        let mode = match world.draw(45) {
            0 => SyncMode::Off,
            1 => SyncMode::Quorum,
            2 => SyncMode::Strict,
            _ => return,
        };
        world.set_mode(mode);
    })
    .map(drop)
}

/// Returns the world and whether it came to rest.
fn walk_through(
    mut world: World,
    mut besides: impl FnMut(&mut World),
) -> Result<(World, bool), (String, Vec<String>)> {
    for _ in 0..60 {
        world.tick();
    }
    for _ in 0..150 {
        besides(&mut world);
        fault(&mut world);
        for node in 0..3 {
            if world.draw(3) == 1 {
                world.write(node);
            }
        }
        world.tick();
        if let Some(violation) = &world.violation {
            return Err((violation.clone(), world.trace));
        }
    }
    world.cut.clear();
    world.calm();
    for node in 0..3 {
        if world.nodes[node].leaving {
            world.crash(node);
        }
        world.start(node);
    }
    for _ in 0..1500 {
        world.tick();
        if let Some(violation) = &world.violation {
            return Err((violation.clone(), world.trace));
        }
        if world.converged() {
            return Ok((world, true));
        }
    }
    let end = world.describe();
    world.trace.push(end);
    Ok((world, false))
}

fn fault(world: &mut World) {
    let node = world.draw(3) as usize;
    match world.draw(120) {
        0..2 => world.crash(node),
        2..8 => world.start(node),
        8..10 => world.kill_postgres(node),
        10..12 => world.restart_supervisor(node),
        12 => world.leave(node, false),
        13 if world.nodes[node].leaving => world.leave(node, true),
        14..16 => world.switchover(node),
        16..20 => {
            let other = (node + 1) % 3;
            world.cut.insert((node.min(other), node.max(other)));
        }
        20..22 => {
            for other in 0..3 {
                world.cut.insert((node.min(other), node.max(other)));
            }
        }
        22..27 => world.cut.clear(),
        27..30 => world.lead_by(node),
        30 => world.fail_over(),
        31 => world.lose_data(node, None),
        32 => {
            let lost = world.draw(4) + 1;
            world.lose_data(node, Some(lost));
        }
        _ => {}
    }
}

fn explore(
    mode: SyncMode,
    mutant: Mutant,
    seeds: std::ops::Range<u64>,
) -> Option<(u64, String, Vec<String>)> {
    seeds.into_iter().find_map(|seed| walk(mode, mutant, seed).err().map(|(what, trace)| (seed, what, trace)))
}

#[track_caller]
fn check(mode: SyncMode) {
    let seeds = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seeds.map_or(1..1000, |seed: u64| seed..seed + 1);
    if let Some((seed, what, trace)) = explore(mode, Mutant::None, seeds) {
        panic!("SEED={seed}: {what}\n{}", trace.join("\n"));
    }
}

#[test]
fn nothing_beyond_the_bound_is_lost_in_asynchronous_mode() {
    check(SyncMode::Off);
}

#[test]
fn no_acknowledged_commit_is_lost_in_synchronous_mode() {
    check(SyncMode::Quorum);
}

#[test]
fn no_acknowledged_commit_is_lost_in_strict_mode() {
    check(SyncMode::Strict);
}

/// From the moment on at which no asynchronous policy is open, nothing that was ever acknowledged is lost.
#[test]
fn the_mode_may_change_at_any_time() {
    let seeds = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seeds.map_or(1..300, |seed: u64| seed..seed + 1);
    for mode in [SyncMode::Off, SyncMode::Quorum] {
        for seed in seeds.clone() {
            if let Err((what, trace)) = walk_by_modes(mode, Mutant::None, seed) {
                panic!("SEED={seed} from {mode:?}: {what}\n{}", trace.join("\n"));
            }
        }
    }
    // An asynchronous policy that goes before the others have what it acknowledged is noticed.
    let noticed = (1..6000).find_map(|seed| walk_by_modes(SyncMode::Off, Mutant::NarrowsEarly, seed).err());
    let (what, _) = noticed.expect("a policy that is narrowed too early is noticed");
    println!("{what}");
}

/// The recorder leaves out what no decision looks at, and JSON changes nothing.
#[test]
fn what_is_recorded_is_decided_the_same_again() {
    let mut replayed = 0;
    for mode in [SyncMode::Off, SyncMode::Quorum, SyncMode::Strict] {
        for seed in 1..6 {
            let mut world = World::with(mode, Mutant::None, Some(seed));
            world.recording = true;
            match walk_through(world, |_| {}) {
                Ok((world, _)) => replayed += world.replayed,
                Err((what, trace)) => panic!("SEED={seed}: {what}\n{}", trace.join("\n")),
            }
        }
    }
    assert!(replayed > 500, "only {replayed} decisions were recorded");
    println!("{replayed} decisions");
}

#[test]
fn each_rule_left_out_is_noticed() {
    let mut unnoticed = Vec::new();
    for (mode, mutant) in [
        (SyncMode::Off, Mutant::LeaseIgnored),
        (SyncMode::Off, Mutant::NoLagGate),
        (SyncMode::Off, Mutant::AnswersStay),
        (SyncMode::Quorum, Mutant::NoCover),
        (SyncMode::Quorum, Mutant::StreamsOn),
        (SyncMode::Quorum, Mutant::NarrowsEarly),
        (SyncMode::Quorum, Mutant::NoIncarnation),
    ] {
        match explore(mode, mutant, 1..6000) {
            Some((seed, what, _)) => println!("{mutant:?}: seed {seed}: {what}"),
            None => unnoticed.push(mutant),
        }
    }
    assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:?}");
}
