//! What a node may use: CPU time and memory, by control groups of version 1 or 2.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The groups of one node that can be limited.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    cpu: Option<PathBuf>,
    memory: Option<PathBuf>,
}

const PERIOD_US: u64 = 100_000;

fn root(controller: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(controller)
}

/// Why nothing can be limited here, `None` when it can.
pub fn impossible() -> Option<&'static str> {
    let able = rustix::process::geteuid().is_root()
        && root("cpu").join("cpu.cfs_quota_us").parent().is_some_and(Path::is_dir)
        && root("cpu").join("cgroup.procs").is_file()
        && root("memory").join("cgroup.procs").is_file();
    if able { None } else { Some("no cpu and memory control groups (version 1) that this user may make") }
}

impl Limits {
    /// Makes the groups `name`; nothing is limited yet.
    pub fn create(name: &str) -> Result<Self> {
        if impossible().is_some() {
            return Ok(Self::default());
        }
        let make = |controller| {
            let path = root(controller).join(name);
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        Ok(Self { cpu: Some(make("cpu")?), memory: Some(make("memory")?) })
    }

    /// The files that a process writes its pid to in order to join.
    pub fn doors(&self) -> Vec<PathBuf> {
        [&self.cpu, &self.memory].into_iter().flatten().map(|group| group.join("cgroup.procs")).collect()
    }

    /// Leaves so many percent of one core.
    pub fn starve(&self, percent: u64) -> Result<()> {
        let Some(cpu) = &self.cpu else { bail!("cannot limit: {}", impossible().unwrap_or_default()) };
        write(&cpu.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
        write(&cpu.join("cpu.cfs_quota_us"), &(PERIOD_US * percent / 100).to_string())
    }

    /// Leaves so many MiB more than what is in use now and cannot be reclaimed.
    pub fn squeeze(&self, mebibytes: u64) -> Result<()> {
        let Some(memory) = &self.memory else { bail!("cannot limit: {}", impossible().unwrap_or_default()) };
        let stat = fs::read_to_string(memory.join("memory.stat")).context("read memory.stat")?;
        let number = |name: &str| -> u64 {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let used = number("total_rss") + number("total_shmem");
        // The kernel refuses a limit below what it cannot reclaim at once: then a little more.
        let limit = (1..=40).map(|step| used + (mebibytes << 20) * step);
        let file = memory.join("memory.limit_in_bytes");
        let mut result = Ok(());
        for limit in limit {
            result = write(&file, &limit.to_string());
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn killed(&self) -> u64 {
        let Some(memory) = &self.memory else { return 0 };
        let text = fs::read_to_string(memory.join("memory.oom_control")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Ends all limits.
    pub fn lift(&self) -> Result<()> {
        if let Some(cpu) = &self.cpu {
            write(&cpu.join("cpu.cfs_quota_us"), "-1")?;
        }
        if let Some(memory) = &self.memory {
            write(&memory.join("memory.limit_in_bytes"), "-1")?;
        }
        Ok(())
    }
}

/// Removes the groups of a cluster; they must be empty.
pub fn remove_of(cluster: &str) {
    for controller in ["cpu", "memory"] {
        for entry in fs::read_dir(root(controller)).into_iter().flatten().flatten() {
            let named =
                entry.file_name().to_str().is_some_and(|name| name.starts_with(&format!("{cluster}-n")));
            if named {
                drop(fs::remove_dir(entry.path()));
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}
