//! How a node starts a peer: a script in the node's folder that the node runs in place of `rhone`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::binary;
use crate::cluster::Cluster;
use crate::namespace::Place;
use crate::node::Node;
use crate::process::{self, Output};

/// Where `deploy/install-peers.sh` puts what it installs; `RHONE_PEERS` names another folder.
pub fn folder() -> PathBuf {
    std::env::var_os("RHONE_PEERS").map_or_else(|| PathBuf::from("/var/cache/rhone/peers"), PathBuf::from)
}

/// A program of a peer, `None` when it is not installed.
pub fn program(name: &str) -> Option<PathBuf> {
    let inside = [folder().join("bin").join(name), folder().join("debian/usr/bin").join(name)];
    inside.into_iter().find(|path| path.is_file()).or_else(|| binary::program(name))
}

/// A program of a peer, which has to be there.
pub fn needed(name: &str) -> Result<PathBuf> {
    program(name).with_context(|| format!("no {name} here; deploy/install-peers.sh installs it"))
}

/// What all commands of a peer run as and with: the user postgres, a home of its own, Postgres's programs on the path.
fn prefix(node: &Node) -> Result<Vec<String>> {
    let path = format!(
        "PATH={}:{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
        folder().join("bin").display(),
        folder().join("debian/usr/bin").display(),
        binary::postgres_folder()?.display()
    );
    let home = home(node);
    let words = [
        "setpriv".to_owned(),
        "--reuid=postgres".to_owned(),
        "--regid=postgres".to_owned(),
        "--init-groups".to_owned(),
        "env".to_owned(),
        "-i".to_owned(),
        path,
        format!("HOME={}", home.display()),
        format!("XDG_RUNTIME_DIR={}", home.display()),
        "LC_ALL=C.UTF-8".to_owned(),
    ];
    Ok(words.to_vec())
}

/// The folder of a node that belongs to the user postgres.
pub fn home(node: &Node) -> PathBuf {
    node.folder().join("home")
}

/// Writes the node's script: `before` is what it does first, as shell lines in which `as WORDS` runs something as
/// postgres; `last` is what it becomes.
pub fn script(node: &Node, before: &str, last: &str) -> Result<PathBuf> {
    let as_words: Vec<String> = prefix(node)?.iter().map(|word| format!("'{word}'")).collect();
    let text = format!(
        "#!/bin/sh\nset -eu\n[ \"$1\" = run ] || {{ echo 'this node runs no rhone' >&2; exit 2; }}\n\
         as() {{ {words} \"$@\"; }}\n\
         install -d -m 700 -o postgres -g postgres '{home}'\ncd '{home}'\n{before}\nexec {words} {last}\n",
        words = as_words.join(" "),
        home = home(node).display(),
    );
    let file = node.folder().join("peer.sh");
    fs::write(&file, text).context("write the node's script")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("make the script executable")?;
    Ok(file)
}

/// Runs a command of a peer on a node, as postgres.
pub fn command(cluster: &Cluster, index: usize, words: &[&str], limit: Duration) -> Result<Output> {
    let node = cluster.node(index)?;
    let prefix = prefix(node)?;
    let mut all = prefix.iter().map(String::as_str).chain(words.iter().copied());
    let first = all.next().context("a program")?;
    let mut command = cluster.network().command(Place::Node(index), Path::new(first));
    command.args(all).current_dir(home(node));
    process::run(&mut command, limit)
}

/// The same, and it has to succeed.
pub fn command_ok(cluster: &Cluster, index: usize, words: &[&str], limit: Duration) -> Result<String> {
    let output = command(cluster, index, words, limit)?;
    if output.code != Some(0) {
        bail!(
            "`{}` ended with {:?}: {} {}",
            words.join(" "),
            output.code,
            output.stdout.trim(),
            output.stderr.trim()
        );
    }
    Ok(output.stdout)
}
