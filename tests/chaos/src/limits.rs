//! What a node may use: CPU time and memory, by control groups of version 1 where its controllers are mounted, else of
//! version 2, in the very group that the node's processes are in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::{self, Group};

/// The groups of one node that can be limited.
#[derive(Clone, Debug, Default)]
pub enum Limits {
    /// There are none.
    #[default]
    None,
    /// Version 1: a group for each controller.
    One {
        /// CPU time.
        cpu: PathBuf,
        /// Memory.
        memory: PathBuf,
    },
    /// Version 2: the node's group.
    Two {
        /// Its folder.
        group: PathBuf,
    },
}

/// Where CPU and memory can be limited on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// Below these, one for each controller.
    One { cpu: PathBuf, memory: PathBuf },
    /// In the one hierarchy that there is.
    Two,
}

const PERIOD_US: u64 = 100_000;
/// What has to be passed on to the groups below.
const CONTROLLERS: [&str; 2] = ["cpu", "memory"];

impl Version {
    /// Reads `/proc/mounts`.
    fn of(mounts: &str) -> Option<Self> {
        let lines = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        });
        let mounted: Vec<(&str, &str, &str)> = lines.collect();
        let one = |controller: &str| {
            let has = |options: &str| options.split(',').any(|option| option == controller);
            let found = mounted.iter().find(|(_, kind, options)| *kind == "cgroup" && has(options));
            found.map(|(at, ..)| PathBuf::from(at))
        };
        match (one("cpu"), one("memory")) {
            (Some(cpu), Some(memory)) => Some(Self::One { cpu, memory }),
            (Some(_), None) | (None, Some(_) | None) => {
                mounted.iter().any(|(_, kind, _)| *kind == "cgroup2").then_some(Self::Two)
            }
        }
    }

    fn here() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/mounts").unwrap_or_default())
    }
}

/// Why nothing can be limited here, `None` when it can.
pub fn impossible() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("no cpu and memory control groups that this user may make");
    }
    match Version::here() {
        Some(Version::One { cpu, memory }) => {
            let able = [cpu, memory].iter().all(|root| root.join("cgroup.procs").is_file());
            if able { None } else { Some("no cpu and memory control groups that this user may make") }
        }
        Some(Version::Two) => {
            let able = cgroup::root().is_some_and(|root| pass_on(&root).is_ok());
            if able {
                None
            } else {
                Some("cgroup v2 passes cpu and memory on to no group that this user may make")
            }
        }
        None => Some("no cpu and memory control groups are mounted"),
    }
}

/// Whether groups below this one can limit CPU and memory.
pub(crate) fn passes_on(group: &Path) -> bool {
    let passed = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let passed: Vec<&str> = passed.split_whitespace().collect();
    CONTROLLERS.iter().all(|controller| passed.contains(controller))
}

/// Lets the groups below this one limit CPU and memory. The kernel refuses it to a group with processes of its own,
/// unless it is the topmost one.
fn pass_on(group: &Path) -> Result<()> {
    if passes_on(group) {
        return Ok(());
    }
    let wanted = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
    write(&group.join("cgroup.subtree_control"), &wanted)?;
    ensure!(passes_on(group), "{} passes nothing on", group.display());
    Ok(())
}

impl Limits {
    /// Makes the groups `name`, or takes the node's own group where that can be limited; nothing is limited yet.
    pub fn create(name: &str, group: Option<&Group>) -> Result<Self> {
        if impossible().is_some() {
            return Ok(Self::None);
        }
        let make = |root: PathBuf| {
            let path = root.join(name);
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        match Version::here() {
            Some(Version::One { cpu, memory }) => Ok(Self::One { cpu: make(cpu)?, memory: make(memory)? }),
            Some(Version::Two) => {
                let Some(group) = group.map(Group::path) else { return Ok(Self::None) };
                pass_on(group.parent().context("the cluster's group")?)?;
                Ok(Self::Two { group: group.to_owned() })
            }
            None => Ok(Self::None),
        }
    }

    /// The files that a process writes its pid to in order to join, beside that of the node's own group.
    pub fn doors(&self) -> Vec<PathBuf> {
        match self {
            Self::One { cpu, memory } => [cpu, memory].map(|group| group.join("cgroup.procs")).to_vec(),
            Self::None | Self::Two { .. } => Vec::new(),
        }
    }

    /// Leaves so many percent of one core.
    pub fn starve(&self, percent: u64) -> Result<()> {
        let quota = PERIOD_US * percent / 100;
        match self {
            Self::None => bail!("cannot limit: {}", impossible().unwrap_or_default()),
            Self::One { cpu, .. } => {
                write(&cpu.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())
            }
            Self::Two { group } => write(&group.join("cpu.max"), &format!("{quota} {PERIOD_US}")),
        }
    }

    /// Leaves so many MiB more than what is in use now and cannot be reclaimed.
    pub fn squeeze(&self, mebibytes: u64) -> Result<()> {
        let read = |group: &Path| fs::read_to_string(group.join("memory.stat")).context("read memory.stat");
        match self {
            Self::None => bail!("cannot limit: {}", impossible().unwrap_or_default()),
            Self::One { memory, .. } => {
                let used = sum(&read(memory)?, &["total_rss", "total_shmem"]);
                let file = memory.join("memory.limit_in_bytes");
                // The kernel refuses a limit below what it cannot reclaim at once: then a little more.
                let mut result = Ok(());
                for limit in (1..=40).map(|step| used + (mebibytes << 20) * step) {
                    result = write(&file, &limit.to_string());
                    if result.is_ok() {
                        break;
                    }
                }
                result
            }
            Self::Two { group } => {
                let used = sum(&read(group)?, &IN_USE);
                write(&group.join("memory.max"), &(used + (mebibytes << 20)).to_string())
            }
        }
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn killed(&self) -> u64 {
        let events = match self {
            Self::None => return 0,
            Self::One { memory, .. } => memory.join("memory.oom_control"),
            Self::Two { group } => group.join("memory.events"),
        };
        sum(&fs::read_to_string(events).unwrap_or_default(), &["oom_kill"])
    }

    /// Ends all limits.
    pub fn lift(&self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::One { cpu, memory } => {
                write(&cpu.join("cpu.cfs_quota_us"), "-1")?;
                write(&memory.join("memory.limit_in_bytes"), "-1")
            }
            Self::Two { group } => {
                write(&group.join("cpu.max"), &format!("max {PERIOD_US}"))?;
                write(&group.join("memory.max"), "max")
            }
        }
    }
}

/// Fields of version 2's memory.stat that are counted and cannot be reclaimed.
const IN_USE: [&str; 7] =
    ["anon", "shmem", "kernel_stack", "pagetables", "percpu", "sock", "slab_unreclaimable"];

/// Adds up these fields of a file with a name and a number in each line; what is not there counts as 0.
fn sum(text: &str, names: &[&str]) -> u64 {
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    let wanted = fields.filter(|(name, _)| names.contains(name));
    wanted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
}

/// Removes the groups of a cluster; they must be empty. Those of version 2 go with the nodes' own.
pub fn remove_of(cluster: &str) {
    let Some(Version::One { cpu, memory }) = Version::here() else { return };
    for root in [cpu, memory] {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_used_where_both_controllers_are_mounted_and_version_2_elsewhere() {
        let two = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n";
        let one = "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n\
                   cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                   cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                   cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let folders = Version::One {
            cpu: PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"),
            memory: PathBuf::from("/sys/fs/cgroup/memory"),
        };
        assert_eq!(Version::of(one), Some(folders));
        assert_eq!(Version::of(two), Some(Version::Two));
        // One controller alone is not enough, and cpuset is not cpu.
        let memory_only = one.replace("cpu,cpuacct 0", "cpuset 0");
        assert_eq!(Version::of(&memory_only), Some(Version::Two));
        assert_eq!(Version::of(&memory_only.replace("cgroup2", "tmpfs")), None);
        assert_eq!(Version::of("proc /proc proc rw,relatime 0 0\nodd\n"), None);
    }

    #[test]
    fn what_cannot_be_reclaimed_is_added_up() {
        let stat = "anon 1000\nfile 900000\nkernel_stack 20\npagetables 3\nshmem 500\nanon_thp 7\nsock x\n";
        assert_eq!(sum(stat, &IN_USE), 1523);
        assert_eq!(sum("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", &["oom_kill"]), 4);
        assert_eq!(sum("", &IN_USE), 0);
    }

    #[test]
    fn a_group_of_version_2_is_limited_and_let_go() {
        let folder = std::env::temp_dir().join(format!("{}-limits", crate::cleanup::new_id()));
        fs::create_dir_all(&folder).expect("a folder");
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("a file");
        let passed = |text: &str| {
            fs::write(folder.join("cgroup.subtree_control"), text).expect("written");
            passes_on(&folder)
        };
        assert!(passed("io memory cpu\n"));
        assert!(!passed("cpuset memory\n") && !passed(""));
        let limits = Limits::Two { group: folder.clone() };
        assert_eq!((limits.doors().len(), limits.killed()), (0, 0));
        fs::write(folder.join("memory.stat"), "anon 4096\n").expect("written");
        fs::write(folder.join("memory.events"), "oom 3\noom_kill 2\n").expect("written");
        limits.starve(10).expect("starved");
        limits.squeeze(4).expect("squeezed");
        assert_eq!((read("cpu.max").as_str(), read("memory.max").as_str()), ("10000 100000", "4198400"));
        assert_eq!(limits.killed(), 2);
        limits.lift().expect("lifted");
        assert_eq!((read("cpu.max").as_str(), read("memory.max").as_str()), ("max 100000", "max"));
        fs::remove_dir_all(&folder).expect("removed");
    }
}
