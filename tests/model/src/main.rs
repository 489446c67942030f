//! `make model`: every world, every mutant, in a table.

use rhone_model::data::{self, DataWorld};
use rhone_model::lease::{LeaseWorld, Mutant, Setup};
use rhone_model::search::{Found, Limit, search};

#[expect(clippy::print_stdout, reason = "the table is the point")]
fn show(name: &str, setup: &str, found: &Found, seen: &str) {
    println!("{name:<22} {setup:<32} depth {:>3}{} states {:>10} {:?} {seen}", found.depth, if found.whole { " whole" } else { "" }, found.states, found.took);
    if let Some((broken, trace)) = &found.broken { println!("    {} {}", broken.property, broken.what); if std::env::var("TRACE").is_ok() { for s in trace { println!("        {s}"); } } }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let states = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    let limit = Limit { depth: 200, states };
    let what = args.get(1).map(String::as_str).unwrap_or("all");
    if what == "lease" {
    for setup in Setup::ALL {
        let mut world = LeaseWorld::new(setup, Mutant::None);
        let found = search(&mut world, limit);
        show("None", setup.name, &found, &format!("grants {}", world.grants_seen));
    }
    for mutant in Mutant::ALL {
        let mut world = LeaseWorld::new(mutant.shown_in(), mutant);
        let found = search(&mut world, limit);
        show(&format!("{mutant:?}"), mutant.shown_in().name, &found, "");
    } }
    if what == "data" {
        let only = args.get(3).cloned();
        for mutant in std::iter::once(data::Mutant::None).chain(data::Mutant::ALL) {
            if only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) { continue; }
            let mut setup = mutant.shown_in();
            if mutant == data::Mutant::None { if let Ok(text) = std::env::var("SETUP") { let n: Vec<u8> = text.split(' ').map(|n| n.parse().expect("a number")).collect(); setup = data::Setup { epochs: n[0], writes: n[1], faults: n[2], changes: n[3], restores: n[4], delays: n[5], mode: [data::Mode::Quorum, data::Mode::Two, data::Mode::Strict, data::Mode::Async][n[6] as usize], ..setup }; } }
            let mut world = DataWorld::<3>::new(setup, mutant);
            let found = search(&mut world, limit);
            show(&format!("{mutant:?}"), setup.name, &found, &format!("grants {} acks {}", world.grants_seen, world.acks_seen));
        }
    }
}
