//! The model as `make test` runs it: small worlds to the depth that is written here, and every mutant.

use rhone_model::search::Limit;
use rhone_model::suite::{self, Case};

/// Every step of a world, up to so many states: what is cut is cut at a whole depth, and told.
#[track_caller]
fn holds(case: &Case, states: usize) {
    let outcome = case.run(Limit { depth: 1000, states });
    let (found, world) = (&outcome.found, case.world());
    if let Some((broken, trace)) = &found.broken {
        panic!("{world}: {} is broken: {}\n{}", broken.property, broken.what, trace.join("\n"));
    }
    let how = if found.whole { "wholly" } else { "to that depth" };
    println!("{world}: {how}, depth {}, {} states, {:?}", found.depth, found.states, found.took);
    assert!(outcome.grants > 0, "{world}: no Grant was reached, so nothing was shown");
    assert!(outcome.acks != Some(0), "{world}: nothing was acknowledged, so nothing was shown");
}

#[test]
fn the_lease_never_lets_two_owners_acknowledge() {
    for case in suite::lease_worlds() {
        holds(&case, 400_000);
    }
}

#[test]
fn no_failover_loses_what_it_may_not() {
    for case in suite::data_worlds() {
        holds(&case, 150_000);
    }
}

#[test]
fn each_rule_left_out_breaks_the_property_that_it_is_for() {
    let mut wrong = Vec::new();
    for case in suite::mutants() {
        let Some((rule, property)) = case.mutant() else { continue };
        let found = case.run(Limit { depth: 1000, states: 2_000_000 }).found;
        let by = found.broken.map(|(broken, _)| broken.property);
        println!("{rule}: {by:?} at depth {}, {} states, {:?}", found.depth, found.states, found.took);
        if by != Some(property) {
            wrong.push((rule, property, by));
        }
    }
    assert!(wrong.is_empty(), "not caught, or by another property: {wrong:?}");
}
