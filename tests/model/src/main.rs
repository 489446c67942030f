//! `make model`: every world as deep as it goes, and every mutant, in a table.
//!
//! `model [STATES]` gives each world of the data about that many states, by default a million, and each
//! of the lease twelve times as many, which is all that it has; it needs about 2 GB.

use std::process::ExitCode;

use rhone_model::search::Limit;
use rhone_model::suite::{self, Case, Outcome};

/// More than any world is deep.
const DEPTH: usize = 1000;

#[expect(clippy::print_stdout, reason = "the table is the point")]
fn main() -> ExitCode {
    let states = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let mut failed = 0;
    println!("{:<88} {:>5} {:>10} {:>7}  RESULT", "WORLD", "DEPTH", "STATES", "TIME");
    for case in suite::deep().into_iter().chain(suite::data_worlds()) {
        let outcome = case.run(limit(&case, states));
        failed += usize::from(outcome.found.broken.is_some() || outcome.grants == 0);
        row(&case.world(), &outcome, &result(&outcome));
    }
    println!("\n{:<88} {:>5} {:>10} {:>7}  RESULT", "RULE LEFT OUT", "DEPTH", "STATES", "TIME");
    let mut caught = 0;
    let mutants = suite::mutants();
    for case in &mutants {
        let Some((rule, property)) = case.mutant() else { continue };
        let outcome = case.run(limit(case, states));
        let by = outcome.found.broken.as_ref().map(|(broken, _)| broken.property);
        caught += usize::from(by == Some(property));
        let result = by.map_or("SURVIVES".to_owned(), |by| format!("breaks {by}"));
        row(&format!("{rule}, in {}", case.world()), &outcome, &result);
    }
    println!("\n{caught} of {} mutants break the property that their rule is for", mutants.len());
    if failed == 0 && caught == mutants.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn limit(case: &Case, states: usize) -> Limit {
    let many = if matches!(case, Case::Lease(..)) { 12 } else { 1 };
    Limit { depth: DEPTH, states: states.saturating_mul(many) }
}

fn result(outcome: &Outcome) -> String {
    match &outcome.found.broken {
        Some((broken, trace)) => {
            format!("BROKEN {}: {}\n    {}", broken.property, broken.what, trace.join("\n    "))
        }
        None if outcome.grants == 0 => "SHOWS NOTHING: no Grant was reached".to_owned(),
        None if outcome.found.whole => format!("holds, wholly; {} grants", outcome.grants),
        None => format!("holds to that depth; {} grants", outcome.grants),
    }
}

#[expect(clippy::print_stdout, reason = "the table is the point")]
fn row(world: &str, outcome: &Outcome, result: &str) {
    let found = &outcome.found;
    let seconds = found.took.as_secs_f32();
    println!("{world:<88} {:>5} {:>10} {seconds:>6.1}s  {result}", found.depth, found.states);
}
