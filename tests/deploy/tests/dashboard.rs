//! Every query of the dashboard and every rule, on a real Prometheus that scrapes a real cluster: `make dashboard`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::Place;
use rhone_chaos::node::HTTP_PORT;
use rhone_chaos::ports::with_ports;
use rhone_chaos::process::{Output, Owned, Signal, run, signal};
use rhone_chaos::scenario::report;
use rhone_deploy::{dashboard_queries, folder, overlay, repository, tool};
use serde_json::Value;

const SERVER: &str = "http://127.0.0.1:9090";

/// A Prometheus beside the clients of a cluster.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    promtool: std::path::PathBuf,
    server: Owned,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        signal(self.server.pid(), Signal::KILL);
        self.server.wait(LIMIT);
    }
}

impl Prometheus<'_> {
    fn ask(&self, query: &str) -> Result<Output> {
        let mut command: Command = self.cluster.network().command(Place::Client, &self.promtool);
        run(command.args(["query", "instant", "--format=json", SERVER, query]), Duration::from_secs(30))
    }

    /// Returns how many series answer a query that has to be valid.
    fn series(&self, query: &str) -> Result<usize> {
        let output = self.ask(query)?;
        ensure!(output.code == Some(0), "{query}: {}{}", output.stdout, output.stderr);
        let answer: Value = serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())?;
        Ok(answer.as_array().with_context(|| format!("{query}: {answer}"))?.len())
    }

    fn wait_for(&self, query: &str) -> Result<usize> {
        self.cluster.wait_up_to(LIMIT, query, || {
            let series = self.series(query)?;
            ensure!(series > 0, "no series");
            Ok(series)
        })
    }
}

#[test]
fn every_query_of_the_dashboard_has_data() -> Result<()> {
    let (Some(prometheus), Some(promtool)) =
        (tool("prometheus", "the dashboard"), tool("promtool", "the dashboard"))
    else {
        return Ok(());
    };
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&with_ports(3, ""))?;
    let primary = cluster.wait_whole()?;
    let to = (primary + 1) % 3;
    let supervisor = cluster.node_mut(to)?.supervisor().context("a supervisor")?;
    let folder = folder()?;
    let targets: Vec<String> = (0..cluster.members())
        .map(|index| Ok(format!("\"{}:{HTTP_PORT}\"", cluster.node(index)?.address())))
        .collect::<Result<_>>()?;
    let rules = std::fs::read_to_string(repository().join(overlay("rules.yaml")))?;
    let (_, spec) = rules.split_once("\nspec:\n").context("a spec")?;
    std::fs::write(folder.path().join("rules.yaml"), spec)?;
    let configuration = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yaml]\n\
         scrape_configs:\n  - job_name: rhone\n    static_configs: [{{targets: [{}]}}]\n",
        targets.join(", ")
    );
    std::fs::write(folder.path().join("prometheus.yml"), configuration)?;
    let mut command = cluster.network().command(Place::Client, &prometheus);
    command.arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    command.args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"]);
    let server = Owned::spawn(&mut command)?;
    let prometheus = Prometheus { cluster: &cluster, promtool, server };
    cluster.wait_up_to(LIMIT, "all members are scraped", || {
        ensure!(prometheus.series("rhone_build_info")? == 3, "not yet");
        Ok(())
    })?;
    // Something to count.
    cluster.switchover(to)?;
    cluster.wait_whole()?;
    let epoch = cluster.epoch()?;
    let name = cluster.status(to)?["cluster"].as_str().context("a name")?.to_owned();
    for (panel, query) in dashboard_queries()? {
        let query = query.replace("$cluster", &name);
        let series = prometheus.wait_for(&query)?;
        report(&format!("{panel}: {series} series"));
    }
    for counted in [
        "rhone_lease_renewals_total > 0",
        "rhone_promotions_total == 1",
        "rhone_primary_changes_total{reason=\"switchover\"} == 1",
        "rhone_effects_total{effect=\"promote\",outcome=\"done\"} >= 1",
        "rhone_effect_seconds_total{effect=\"promote\"} > 0",
        "rhone_clones_total >= 1",
        "sum(rhone_disk_free_bytes > 0)",
        "rhone_without_primary_seconds_total > 0",
        "rhone_walsender{state=\"streaming\"}",
    ] {
        report(&format!("{counted}: {} series", prometheus.wait_for(counted)?));
    }
    ensure!(prometheus.ask("max by (")?.code != Some(0), "a query that is none passes");
    let firing = prometheus.series("ALERTS{alertstate=\"firing\"}")?;
    ensure!(firing == 0, "{firing} alerts fire on a cluster that is well: {:?}", prometheus.ask("ALERTS")?);

    // A supervisor that stands still: its guardian freezes the primary, and counts that beside it.
    signal(supervisor, Signal::STOP);
    cluster.wait_until("another takes over", || {
        let status = cluster.status(primary)?;
        ensure!(status["writable"] == true && status["epoch"].as_u64() > Some(epoch), "{status}");
        Ok(())
    })?;
    signal(supervisor, Signal::CONT);
    cluster.wait_whole()?;
    for counted in [
        "rhone_freezes_total > 0",
        "rhone_fences_total > 0",
        "rhone_primary_changes_total{reason=\"owner_silent\"} == 1",
        "max(rhone_last_without_primary_seconds > 0)",
        "rhone_lease_renewals_total > 0",
    ] {
        report(&format!("{counted}: {} series", prometheus.wait_for(counted)?));
    }
    Ok(())
}
