//! The status page in a real browser, headless Chromium: before a failover, while nobody is primary, and after it.
//!
//! A browser is too large for what CI installs: `make test-page`, which keeps the pictures.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::binary;
use rhone_chaos::cluster::{Cluster, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::Place;
use rhone_chaos::node::HTTP_PORT;
use rhone_chaos::process;
use rhone_chaos::scenario::report;

/// A start of the browser on a busy machine.
const BROWSER: Duration = Duration::from_secs(120);

struct Browser {
    program: PathBuf,
    pictures: PathBuf,
}

impl Browser {
    fn find(cluster: &Cluster) -> Result<Self> {
        let program = binary::program("chromium").context("find chromium (apt-get install chromium)")?;
        let pictures = std::env::var_os("RHONE_SCREENSHOTS").map(PathBuf::from);
        let pictures = pictures.unwrap_or_else(|| cluster.folder().join("pictures"));
        std::fs::create_dir_all(&pictures).context("make a folder for the pictures")?;
        Ok(Self { program, pictures })
    }

    fn run(&self, cluster: &Cluster, index: usize, arguments: &[String]) -> Result<String> {
        let url = format!("http://{}:{HTTP_PORT}/", cluster.node(index)?.address());
        let mut command = cluster.network().command(Place::Client, &self.program);
        let profile = format!("--user-data-dir={}", cluster.folder().join("browser").display());
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            &profile,
        ]);
        command.args(arguments).arg(&url).stdin(Stdio::null());
        let output = process::run(&mut command, BROWSER)?;
        ensure!(output.code == Some(0), "chromium: {output:?}");
        Ok(output.stdout)
    }

    /// The document as it is once its scripts have run for some seconds of the browser's own time: it has asked again by then.
    fn document(&self, cluster: &Cluster, index: usize) -> Result<String> {
        self.run(cluster, index, &["--virtual-time-budget=9000".to_owned(), "--dump-dom".to_owned()])
    }

    /// Pictures as wide as a phone and as a desktop, light and dark.
    fn picture(&self, cluster: &Cluster, index: usize, name: &str) -> Result<()> {
        for (kind, size, scheme) in [("phone", "390,844", 1), ("desktop-dark", "1100,900", 0)] {
            let file = self.pictures.join(format!("{name}-{kind}.png"));
            self.run(
                cluster,
                index,
                &[
                    format!("--window-size={size}"),
                    format!("--blink-settings=preferredColorScheme={scheme}"),
                    "--virtual-time-budget=5000".to_owned(),
                    format!("--screenshot={}", file.display()),
                ],
            )?;
            ensure!(is_png(&file)?, "no picture in {}", file.display());
            report(&format!("picture: {}", file.display()));
        }
        Ok(())
    }
}

fn is_png(file: &Path) -> Result<bool> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(bytes.starts_with(b"\x89PNG") && bytes.len() > 2000)
}

#[test]
fn the_page_shows_a_failover_in_a_browser() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    let browser = Browser::find(&cluster)?;
    let primary = cluster.wait_whole()?;
    let other = (primary + 1) % 3;
    let name = cluster.node(primary)?.name();

    let shown = |cluster: &Cluster, what: &str, parts: &[String]| {
        cluster.wait_until(what, || {
            let document = browser.document(cluster, other)?;
            let missing = parts.iter().find(|part| !document.contains(part.as_str()));
            ensure!(missing.is_none(), "the page lacks {missing:?}:\n{document}");
            // The script has asked again, and was answered.
            let away = document.split("id=\"away\"").nth(1).and_then(|rest| rest.split('>').next());
            ensure!(
                away.is_some_and(|away| away.contains("hidden")),
                "the page lost its member:\n{document}"
            );
            Ok(())
        })
    };
    shown(
        &cluster,
        "the page shows the primary",
        &[format!("primary {name}, epoch"), format!("streaming</span> from {name}")],
    )?;
    browser.picture(&cluster, other, "1-before")?;

    // Without automatic failover it lasts until the pictures are there.
    cluster.operate(other, &["pause"])?;
    cluster.power_loss(primary, PowerLoss::Resets)?;
    shown(
        &cluster,
        "the page shows that there is none",
        &["no primary accepts writes".to_owned(), "automatic failover is off".to_owned()],
    )?;
    browser.picture(&cluster, other, "2-no-primary")?;

    cluster.operate(other, &["resume"])?;
    let next = cluster.wait_until("another primary", || {
        cluster.primary().filter(|index| *index != primary).context("none yet")
    })?;
    cluster.start_node(primary)?;
    cluster.wait_whole()?;
    let next = cluster.node(next)?.name();
    shown(
        &cluster,
        "the page shows the other primary, and the time without one",
        &[
            format!("primary {next}, epoch"),
            "class=\"gap\"".to_owned(),
            format!("{next} is primary in epoch"),
        ],
    )?;
    browser.picture(&cluster, other, "3-after")
}
