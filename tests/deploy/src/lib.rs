//! What the tests of `deploy/` share: where things are, which tools are here, and programs with a limit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::process::{self, Output};
pub use rhone_chaos::{binary, process::Signal};

/// No program of these tests takes so long, on however busy a machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The repository's folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// Finds a tool, or says that the test is skipped and how to change that.
pub fn tool(name: &str, test: &str) -> Option<PathBuf> {
    let found = binary::program(name);
    if found.is_none() {
        skipped(test, &format!("no {name} here (deploy/install-deps.sh test installs it)"));
    }
    found
}

/// Says on the test's output that it did not run.
pub fn skipped(test: &str, why: &str) {
    rhone_chaos::scenario::report(&format!("SKIPPED: {test}: {why}"));
}

/// Runs a program that has to succeed, and returns what it said.
#[track_caller]
pub fn succeeds(command: &mut Command) -> Result<Output> {
    let output = process::run(command, LIMIT)?;
    ensure!(
        output.code == Some(0),
        "{command:?} ended with {:?}:\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(output)
}

/// Runs a program, whatever its end.
pub fn ends(command: &mut Command) -> Result<Output> {
    process::run(command, LIMIT)
}

/// Starts a program in the background.
pub fn begins(command: &mut Command) -> Result<process::Owned> {
    process::Owned::spawn(command)
}

/// A folder that is removed at the end.
pub fn folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("rhone-deploy-").tempdir().context("make a folder")
}

/// The path of a file of the monitoring overlay, in the repository.
pub fn overlay(name: &str) -> PathBuf {
    Path::new("deploy/kubernetes/overlays/monitoring").join(name)
}

/// The dashboard's queries, each with its panel's title.
pub fn dashboard_queries() -> Result<Vec<(String, String)>> {
    let text =
        std::fs::read_to_string(repository().join(overlay("rhone.json"))).context("read the dashboard")?;
    let dashboard: serde_json::Value = serde_json::from_str(&text).context("parse the dashboard")?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a text");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            queries.push((text(&panel["title"])?, text(&target["expr"])?));
        }
    }
    Ok(queries)
}
