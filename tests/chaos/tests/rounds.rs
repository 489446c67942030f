//! A few rounds of the scenarios in `scenarios/`, with fixed seeds: what `make chaos` does for long.
//!
//! Durations are printed and not judged. A failure says how to run it again.

use anyhow::{Result, ensure};
use rhone_chaos::campaign::{Order, run};
use rhone_chaos::fault::Fault;
use rhone_chaos::lock::take_turn;
use rhone_chaos::outcome::Outcome;
use rhone_chaos::scenario::report;
use rhone_chaos::script::Script;

fn rounds(name: &str, script: Script, seed: u64, rounds: u32) -> Result<Outcome> {
    let _turn = take_turn()?;
    let mut outcome = run(&Order {
        name: name.to_owned(),
        script,
        seed,
        rounds: Some(rounds),
        time: None,
        strict: false,
        only: Vec::new(),
        resume: None,
        more: String::new(),
    })?;
    outcome.command = "cargo test -p rhone-chaos --test rounds -- --nocapture".to_owned();
    report(&outcome.to_string());
    ensure!(outcome.passed(), "{outcome}");
    Ok(outcome)
}

/// Steps, in order, in a small cluster; `None` where one of them cannot be done here.
fn steps(name: &str, topology: &str, steps: &[&str]) -> Result<Option<Outcome>> {
    let mut text =
        format!("about = \"{name}\"\n[topology]\n{topology}\n[schedule]\nrounds = {}\n", steps.len());
    for step in steps {
        text.push_str(&format!("[[step]]\n{step}\n"));
    }
    let script = Script::read(&text)?;
    let means = rhone_chaos::namespace::Means::detect();
    let strikes = script.step.iter().flat_map(|blow| &blow.strikes);
    if let Some(why) = strikes.into_iter().find_map(|strike| strike.fault.impossible(means)) {
        report(&format!("SKIPPED: {why}"));
        return Ok(None);
    }
    let count = u32::try_from(steps.len())?;
    rounds(name, script, 1, count).map(Some)
}

#[test]
fn a_member_whose_raft_store_or_data_is_gone_comes_back() -> Result<()> {
    steps(
        "wiped",
        "data = 3\nsync = \"off\"",
        &[
            "strikes = [{ fault = \"wiped_state\", on = \"standby\" }]\nhold = [\"500ms\", \"500ms\"]",
            "strikes = [{ fault = \"wiped_data\" }]\nhold = [\"500ms\", \"500ms\"]",
        ],
    )
    .map(drop)
}

#[test]
fn a_full_disk_under_a_standby_and_power_cuts_that_lose_what_was_not_fsynced() -> Result<()> {
    let outcome = steps(
        "disks",
        "data = 3\nsync = \"off\"",
        &[
            "strikes = [{ fault = \"full_data\", on = \"standby\" }]\nhold = [\"3s\", \"3s\"]",
            "strikes = [{ fault = \"power_cut\" }]\nhold = [\"1s\", \"1s\"]",
            "strikes = [{ fault = \"power_cut\", on = \"all\" }]\nhold = [\"0ms\", \"0ms\"]",
        ],
    )?;
    ensure!(outcome.is_none_or(|outcome| outcome.faults.get(&Fault::PowerCut) == Some(&2)));
    Ok(())
}

/// Nothing that was acknowledged is lost: looked for after each round.
#[test]
fn quorum_mode_with_three_members_loses_nothing() -> Result<()> {
    steps(
        "quorum",
        "data = 3\nsync = \"quorum\"",
        &[
            "strikes = [{ fault = \"power_loss\" }]\nhold = [\"1s\", \"1s\"]",
            "strikes = [{ fault = \"stop_both\" }]\nhold = [\"5s\", \"5s\"]",
            "strikes = [{ fault = \"stop_replication\", on = \"standbys\" }, \
             { fault = \"power_loss\", after = \"1s\" }]\nhold = [\"1s\", \"1s\"]",
        ],
    )
    .map(drop)
}

#[test]
fn quorum_mode_with_two_members_and_a_witness_loses_nothing() -> Result<()> {
    steps(
        "witness",
        "data = 2\nwitness = true\nsync = \"quorum\"",
        &[
            "strikes = [{ fault = \"cut\" }]\nhold = [\"3s\", \"3s\"]",
            "strikes = [{ fault = \"power_loss\", on = \"standby\" }, \
             { fault = \"power_loss\", after = \"50ms\" }]\nhold = [\"1s\", \"1s\"]",
        ],
    )
    .map(drop)
}
