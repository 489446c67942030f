//! Control groups, version 2: a whole node is killed or frozen at once.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::Moment;
use crate::limits;

/// A cgroup that the harness made.
#[derive(Clone, Debug)]
pub struct Group {
    path: PathBuf,
}

/// Finds the folder in which this process may make cgroups, `None` when it may not.
pub fn root() -> Option<PathBuf> {
    let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|mount| mount.join("cgroup.controllers").is_file())?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let within = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut able = vec![mount.join(within), mount];
    able.dedup();
    able.retain(|root| is_able(root));
    // The own group of a login session has processes, so that it passes no controllers on; the topmost one does.
    let limiting = able.iter().find(|root| limits::passes_on(root));
    limiting.or(able.first()).cloned()
}

fn is_able(root: &Path) -> bool {
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let number = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = root.join(format!("rc-{}-probe{number}", std::process::id()));
    let able = fs::create_dir(&probe).is_ok()
        && probe.join("cgroup.kill").is_file()
        && probe.join("cgroup.freeze").is_file();
    fs::remove_dir(&probe).is_ok() && able
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {text} to {}", path.display()))
}

impl Group {
    /// Makes the cgroup `path`.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Names an existing cgroup.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The cgroup's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process writes its pid to in order to join.
    pub fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills all processes of this cgroup and those below, at once, and waits until they are gone.
    pub fn kill(&self) -> Result<()> {
        write(&self.path.join("cgroup.kill"), "1")?;
        self.wait_for("populated 0")
    }

    /// Freezes or thaws all processes of this cgroup and those below.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        self.wait_for(if frozen { "frozen 1" } else { "frozen 0" })
    }

    fn wait_for(&self, event: &str) -> Result<()> {
        let start = Moment::now();
        loop {
            let events = fs::read_to_string(self.path.join("cgroup.events")).context("read cgroup.events")?;
            if events.lines().any(|line| line == event) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(10) {
                bail!("{} did not reach `{event}`", self.path.display());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// All pids in this cgroup and those below.
    pub fn pids(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for folder in folders(&self.path) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found
    }

    /// Removes the cgroup and those below; they must be empty.
    pub fn remove(&self) {
        for folder in folders(&self.path).into_iter().rev() {
            drop(fs::remove_dir(folder));
        }
    }
}

/// The folder and all below, parents first.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders(&entry.path()));
        }
    }
    found
}
