//! Finds and ends the processes of one demo member: only those, and only by number.
//!
//! Pid files are not believed: a guardian may run Postgres in a PID namespace, where the numbers
//! in `postmaster.pid` mean nothing to us. A process is the member's when its program is this
//! binary or one of Postgres', and it works in the member's folder or names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::guardian::of_process as cgroup_of;

/// One process of a member.
#[derive(Clone, Debug)]
struct Process {
    parent: i32,
    program: String,
}

/// How long a pass of waiting lasts.
const PAUSE: Duration = Duration::from_millis(50);
/// Passes after which Postgres' immediate shutdown is cut short (5 s).
const POLITE_PASSES: u32 = 100;
/// Passes after which ending by SIGKILL has failed (10 s).
const KILL_PASSES: u32 = 200;

/// What finds a member's processes.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    /// This binary.
    pub(super) own: PathBuf,
    /// The folder of Postgres' programs.
    pub(super) bin_dir: PathBuf,
}

impl Finder {
    /// Finds all processes that belong to the folder.
    fn find(&self, folder: &Path) -> BTreeMap<i32, Process> {
        let own_pid = rustix::process::getpid().as_raw_nonzero().get();
        let numbers = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        numbers
            .filter(|pid| *pid != own_pid)
            .filter_map(|pid| Some((pid, self.inspect(pid, folder)?)))
            .collect()
    }

    fn inspect(&self, pid: i32, folder: &Path) -> Option<Process> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let exe = fs::read_link(proc.join("exe")).ok()?;
        // An upgraded binary shows as "… (deleted)".
        let exe = PathBuf::from(exe.to_str()?.trim_end_matches(" (deleted)"));
        if exe != self.own && exe.parent() != Some(self.bin_dir.as_path()) {
            return None;
        }
        let works_there = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&command).into_owned();
        let named = folder.to_str()?;
        let names_it = text.split('\0').any(|argument| {
            // `-c FOLDER/rhone.toml`, `--state-dir=FOLDER/state`, never a longer name.
            argument.split('=').any(|part| Path::new(part).starts_with(named))
        });
        if !works_there && !names_it {
            return None;
        }
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // The name in parentheses may hold anything; the state and the parent follow it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if fields.next() == Some("Z") {
            return None;
        }
        let parent = fields.next()?.parse().ok()?;
        let program = exe.file_name()?.to_str()?.to_owned();
        Some(Process { parent, program })
    }

    /// Sends SIGKILL to all processes of the folder at once, as a power cut would; says to how many.
    pub(super) fn kill(&self, folder: &Path, segments: &mut BTreeSet<PathBuf>) -> usize {
        let processes = self.find(folder);
        remember_segments(&processes, segments);
        // A second look catches what was being forked.
        let first = processes.keys().filter(|pid| send(**pid, Signal::KILL)).count();
        let second = self.find(folder);
        first + second.keys().filter(|pid| !processes.contains_key(pid) && send(**pid, Signal::KILL)).count()
    }

    /// Ends everything in the folder: supervisors first, then Postgres by an immediate shutdown,
    /// which frees its shared memory, and what is left by SIGKILL. Says whether nothing is left.
    pub(super) async fn end(&self, folder: &Path, segments: &mut BTreeSet<PathBuf>) -> bool {
        let processes = self.find(folder);
        remember_segments(&processes, segments);
        let own_name = self.own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for pid in processes.iter().filter(|(_, p)| p.program == own_name).map(|(pid, _)| pid) {
            send(*pid, Signal::KILL);
        }
        for pass in 0..KILL_PASSES {
            let left = self.find(folder);
            if left.is_empty() {
                return true;
            }
            for (pid, process) in &left {
                let postmaster = process.program == "postgres" && !left.contains_key(&process.parent);
                if pass >= POLITE_PASSES || process.program == own_name {
                    send(*pid, Signal::KILL);
                } else if pass == 0 && postmaster {
                    send(*pid, Signal::QUIT);
                }
                // A frozen process must wake up to end.
                send(*pid, Signal::CONT);
            }
            tokio::time::sleep(PAUSE).await;
        }
        false
    }
}

fn send(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Notes the POSIX shared memory that these processes have mapped, and the cgroups they are in.
fn remember_segments(processes: &BTreeMap<i32, Process>, segments: &mut BTreeSet<PathBuf>) {
    for pid in processes.keys() {
        segments.extend(cgroup_of(*pid));
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mapped = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        segments.extend(mapped.filter(|path| path.starts_with("/dev/shm/PostgreSQL.")).map(PathBuf::from));
    }
}

/// Removes shared memory that no process has mapped any more, and cgroups that no process is in.
pub(super) fn remove_segments(segments: &BTreeSet<PathBuf>) {
    for segment in segments {
        // It is usually gone already: Postgres and the guardian remove their own.
        let _gone = if segment.is_dir() { fs::remove_dir(segment) } else { fs::remove_file(segment) };
    }
}
