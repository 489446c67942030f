//! Certificates for a cluster under test, made with `rhone certs` itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cluster::Cluster;
use crate::namespace::Place;
use crate::node::HTTP_PORT;
use crate::process::{self, Output};

/// Making a key is quick; the machine may not be.
const LIMIT: Duration = Duration::from_secs(30);

/// What the supervisor says once it has read its files again.
const READ_AGAIN: &str = "certificates read again";

/// A CA and what it issued, in a folder.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
}

/// Whose certificate an outsider shows, and whom it believes.
#[derive(Clone, Copy, Debug)]
pub struct Show<'a> {
    /// The folder whose CA is believed.
    pub believe: &'a Pki,
    /// The folder and the name of the certificate.
    pub present: (&'a Pki, &'a str),
}

impl Pki {
    /// Makes a CA for a cluster.
    pub fn create(cluster: &Cluster, name: &str) -> Result<Self> {
        let pki = Self { folder: cluster.folder().join(name) };
        pki.run(cluster, &["init"])?;
        Ok(pki)
    }

    /// Copies the folder, as somebody would who is not told of what comes later.
    pub fn copy(&self, cluster: &Cluster, name: &str) -> Result<Self> {
        let copy = Self { folder: cluster.folder().join(name) };
        fs::create_dir_all(&copy.folder).context("make a folder")?;
        for entry in fs::read_dir(&self.folder).context("list certificates")? {
            let entry = entry?;
            fs::copy(entry.path(), copy.folder.join(entry.file_name())).context("copy a certificate")?;
        }
        Ok(copy)
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs `rhone certs` in the folder, with the first member's configuration.
    pub fn run(&self, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
        let folder = self.folder.to_str().context("a folder in UTF-8")?;
        let line = [&["certs"][..], arguments, &["--dir", folder]].concat();
        let output = cluster.rhone(0, &line, LIMIT)?;
        ensure!(output.code == Some(0), "rhone {}: {:?} {}", line.join(" "), output.code, output.stderr);
        Ok(output.stdout)
    }

    /// Issues a certificate for a person.
    pub fn person(&self, cluster: &Cluster, name: &str, role: &str) -> Result<()> {
        self.run(cluster, &["issue", name, "--role", role]).map(drop)
    }

    /// Issues a certificate for a member.
    pub fn member(&self, cluster: &Cluster, index: usize) -> Result<()> {
        let node = cluster.node(index)?;
        let (name, address) = (node.name(), node.address().to_string());
        self.run(cluster, &["issue", &name, "--host", &address]).map(drop)
    }

    /// Issues certificates for all members.
    pub fn members(&self, cluster: &Cluster) -> Result<()> {
        (0..cluster.members()).try_for_each(|index| self.member(cluster, index))
    }

    /// Makes all members of a cluster that has not been started use certificates of this CA.
    pub fn secure(&self, cluster: &Cluster) -> Result<()> {
        self.members(cluster)?;
        for index in 0..cluster.members() {
            let node = cluster.node(index)?;
            let text = fs::read_to_string(node.config()).context("read rhone.toml")?;
            let file = |name: &str| self.file(name).display().to_string();
            let tls = format!(
                "[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
                file("ca.crt"),
                file(&format!("{}.crt", node.name())),
                file(&format!("{}.key", node.name())),
            );
            ensure!(text.contains("[tls]\ninsecure = true\n"), "the harness writes [tls] otherwise");
            fs::write(node.config(), text.replace("[tls]\ninsecure = true\n", &tls))
                .context("write rhone.toml")?;
        }
        Ok(())
    }
}

/// Runs the CLI from the clients' place, without any configuration.
pub fn outside(
    cluster: &Cluster,
    index: usize,
    show: Option<Show<'_>>,
    arguments: &[&str],
) -> Result<Output> {
    let node = cluster.node(index)?;
    let mut command = cluster.network().command(Place::Client, node.program());
    command.args(["--host", &node.address().to_string()]).args(arguments).env("NO_COLOR", "1");
    if let Some(show) = show {
        let (pki, name) = show.present;
        command.arg("--ca").arg(show.believe.file("ca.crt"));
        command.arg("--cert").arg(pki.file(&format!("{name}.crt")));
        command.arg("--key").arg(pki.file(&format!("{name}.key")));
    }
    process::run(&mut command, Duration::from_secs(60))
}

/// How many TLS handshakes a member has had, by its metrics.
pub fn handshakes(cluster: &Cluster, index: usize) -> Result<u64> {
    let address = (cluster.node(index)?.address(), HTTP_PORT);
    let asked = cluster.network().thread(Place::Client, move || {
        let mut stream = TcpStream::connect_timeout(&address.into(), LIMIT).context("connect to HTTP")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page).context("read the metrics")?;
        Ok(page)
    });
    let page = asked.join().map_err(|_| anyhow!("the question panicked"))??;
    let line =
        page.lines().find(|line| line.starts_with("rhone_tls_handshakes_total")).context("the counter")?;
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).context("a number")
}

/// How often each member has read its certificates again so far.
pub fn times_read(cluster: &Cluster) -> Result<Vec<usize>> {
    let count = |path: &Path| fs::read_to_string(path).map(|text| text.matches(READ_AGAIN).count());
    (0..cluster.members()).map(|index| count(&cluster.node(index)?.log()).context("read the log")).collect()
}

/// Waits until every member has read its certificates once more than `before`.
pub fn wait_read(cluster: &Cluster, before: &[usize]) -> Result<()> {
    cluster.wait_until("every member has read the new certificates", || {
        let now = times_read(cluster)?;
        if now.iter().zip(before).all(|(now, before)| now > before) {
            return Ok(());
        }
        bail!("read {now:?} times, {before:?} before")
    })
}
