//! `make model`: every world, every mutant, in a table.

use rhone_model::lease::{LeaseWorld, Mutant, Setup};
use rhone_model::search::{Limit, search};

#[expect(clippy::print_stdout, reason = "the table is the point")]
fn main() {
    let limit = Limit { depth: 200, states: 60_000_000 };
    for setup in Setup::ALL.into_iter().rev() {
        let mut world = LeaseWorld::new(setup, Mutant::None);
        let found = search(&mut world, limit);
        println!(
            "{:<32} depth {:>3} states {:>10} whole {} grants {} {:?}",
            setup.name, found.depth, found.states, found.whole, world.grants_seen, found.took
        );
        if let Some((broken, trace)) = found.broken {
            println!("BROKEN {} {}", broken.property, broken.what);
            for s in trace {
                println!("    {s}");
            }
        }
    }
    for mutant in Mutant::ALL {
        let mut world = LeaseWorld::new(mutant.shown_in(), mutant);
        let found = search(&mut world, limit);
        println!(
            "{:<24} {:<32} depth {:>3} states {:>10} {:?} {:?}",
            format!("{mutant:?}"),
            mutant.shown_in().name,
            found.depth,
            found.states,
            found.took,
            found.broken.map(|b| b.0.property)
        );
    }
}
