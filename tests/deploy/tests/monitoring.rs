//! The alerts and the dashboard: valid by Prometheus's own tools, with unit tests, and about metrics that there are.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rhone_deploy::{dashboard_queries, ends, folder, overlay, repository, succeeds, tool};

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = repository().join(path);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The values of a key in a file of ours, one a line.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key))
        .map(str::trim)
        .collect()
}

/// Every word that is a metric's name.
fn metrics(text: &str) -> BTreeSet<&str> {
    let part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    text.split(|char| !part(char)).filter(|word| word.starts_with("rhone_")).collect()
}

#[test]
fn the_rules_are_valid_and_each_alert_fires_when_it_should() -> Result<()> {
    let Some(promtool) = tool("promtool", "the alerts' rules") else { return Ok(()) };
    let rules = read(overlay("rules.yaml"))?;
    let (_, spec) = rules.split_once("\nspec:\n").context("a spec")?;
    let plain: Vec<&str> = spec.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    let plain = plain.join("\n");
    let folder = folder()?;
    std::fs::write(folder.path().join("rules_test.yaml"), read(overlay("rules_test.yaml"))?)?;
    let promtool = |verb: &str, file: &str| {
        let mut command = Command::new(&promtool);
        command.current_dir(folder.path()).args([verb, "rules", file]);
        command
    };
    let write = |text: &str| std::fs::write(folder.path().join("rules.yaml"), text);
    write(&plain)?;
    succeeds(&mut promtool("check", "rules.yaml"))?;
    succeeds(&mut promtool("test", "rules_test.yaml"))?;
    // They do look: an alert that never fires is noticed.
    let dead = plain.replace("(rhone_writable) == 0", "(rhone_writable) == 2");
    ensure!(dead != plain, "the rules have changed: change this test");
    write(&dead)?;
    let output = ends(&mut promtool("test", "rules_test.yaml"))?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(output.code != Some(0) && said.contains("RhoneNoPrimary"), "a dead alert passes: {said}");
    Ok(())
}

#[test]
fn each_alert_has_a_unit_test_and_its_section_in_the_runbook() -> Result<()> {
    let (rules, tests) = (read(overlay("rules.yaml"))?, read(overlay("rules_test.yaml"))?);
    let runbook = read("docs/runbook.md")?;
    let alerts = values(&rules, "alert:");
    ensure!(alerts.len() >= 15, "only {alerts:?}");
    let links = values(&rules, "runbook_url:");
    ensure!(links.len() == alerts.len(), "each alert has one link: {links:?}");
    for (alert, link) in alerts.iter().zip(links) {
        let anchor = alert.to_lowercase();
        ensure!(link.ends_with(&format!("/docs/runbook.md#{anchor}")), "{alert} links to {link}");
        ensure!(runbook.lines().any(|line| line == format!("### {alert}")), "no section of {alert}");
        ensure!(values(&tests, "alertname:").contains(alert), "no unit test of {alert}");
    }
    Ok(())
}

/// The codes of reasons, waits and effects, as labels, logs and `rhone explain` have them.
#[test]
fn each_code_is_in_the_runbook() -> Result<()> {
    let (decision, runbook) = (read("crates/supervisor/src/decide/decision.rs")?, read("docs/runbook.md")?);
    let codes: Vec<&str> = decision
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once("=> \"")?.1.strip_suffix("\","))
        .filter(|code| code.chars().all(|char| char.is_ascii_lowercase() || char == '_'))
        .collect();
    ensure!(codes.len() >= 60, "only {codes:?}");
    let missing: Vec<&&str> = codes.iter().filter(|code| !runbook.contains(&format!("`{code}`"))).collect();
    ensure!(missing.is_empty(), "docs/runbook.md does not explain {missing:?}");
    Ok(())
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_there_are() -> Result<()> {
    let api = Path::new("crates/supervisor/src");
    let mut sources = String::new();
    for file in ["api/metrics.rs", "api/metrics/figures.rs", "proxy/counters.rs"] {
        sources.push_str(&read(api.join(file))?);
    }
    let named = |name: &str| sources.contains(&format!("\"{name}\""));
    let rules = read(overlay("rules.yaml"))?;
    let expressions: Vec<String> = values(&rules, "expr:").into_iter().map(str::to_owned).collect();
    let queries: Vec<String> = dashboard_queries()?.into_iter().map(|(_, query)| query).collect();
    ensure!(!expressions.is_empty() && queries.len() >= 18, "{expressions:?} {queries:?}");
    for query in expressions.iter().chain(&queries) {
        for name in metrics(query) {
            let known = named(name) || name.strip_suffix("_bucket").is_some_and(named);
            ensure!(known, "nothing has {name}: {query}");
        }
    }
    ensure!(!named("rhone_unknown"), "this test cannot fail");
    Ok(())
}
