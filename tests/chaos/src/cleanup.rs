//! Leaves nothing behind: at the end, on a panic, on a signal, and after runs that died.
//!
//! All names carry the harness's pid, so that a later run can tell what nobody owns any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use crate::cgroup::{self, Group};
use crate::process;
use crate::{disk, limits};

/// All that one cluster has put into the machine.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    /// `rc-PID-NUMBER`.
    pub id: String,
    /// Names of network namespaces.
    pub namespaces: Vec<String>,
    /// The cgroup that holds the nodes' cgroups.
    pub group: Option<PathBuf>,
    /// The folder with all files.
    pub folder: PathBuf,
    /// Shared memory of killed Postgres servers: files in /dev/shm.
    pub shared_files: Vec<PathBuf>,
    /// Shared memory of killed Postgres servers: System V ids.
    pub shared_ids: Vec<u32>,
}

static REGISTERED: Mutex<BTreeMap<String, Leftovers>> = Mutex::new(BTreeMap::new());
static NUMBER: AtomicU32 = AtomicU32::new(1);
static PREPARED: Once = Once::new();

fn registered() -> MutexGuard<'static, BTreeMap<String, Leftovers>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prepares this process once: adopts orphans, removes what dead runs left, cleans up on
/// SIGINT and SIGTERM.
pub fn prepare() {
    PREPARED.call_once(|| {
        process::adopt_orphans();
        remove_dead_runs();
        thread::spawn(clean_up_on_signals);
    });
}

/// A new name for a cluster of this process.
pub fn new_id() -> String {
    format!("rc-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Remembers what has to be removed; called before it is made.
pub fn register(leftovers: Leftovers) {
    registered().insert(leftovers.id.clone(), leftovers);
}

/// Notes the shared memory of what is about to be killed: the folder's Postgres servers.
pub fn note_shared_memory(id: &str, folder: &Path) {
    let (files, ids) = shared_memory(folder);
    if let Some(leftovers) = registered().get_mut(id) {
        leftovers.shared_files.extend(files);
        leftovers.shared_ids.extend(ids);
    }
}

/// Removes a cluster's traces; its files too unless `keep_files`.
pub fn remove(id: &str, keep_files: bool) {
    // It stays registered until it is gone: a signal meanwhile finds it, and erasing twice does no harm.
    let Some(mut leftovers) = registered().get(id).cloned() else { return };
    let (files, ids) = shared_memory(&leftovers.folder);
    leftovers.shared_files.extend(files);
    leftovers.shared_ids.extend(ids);
    erase(&leftovers, keep_files);
    registered().remove(id);
}

fn erase(leftovers: &Leftovers, keep_files: bool) {
    // What hangs in a frozen file system cannot be killed.
    disk::erase_below(&leftovers.folder, false);
    if let Some(group) = &leftovers.group {
        let group = Group::at(group.clone());
        drop(group.freeze(false));
        drop(group.kill());
        group.remove();
    }
    process::kill_of_folder(&leftovers.folder);
    disk::erase_below(&leftovers.folder, true);
    limits::remove_of(&leftovers.id);
    for file in &leftovers.shared_files {
        drop(fs::remove_file(file));
    }
    for id in unattached(&leftovers.shared_ids) {
        drop(process::run_ok(Command::new("ipcrm").args(["-m", &id.to_string()])));
    }
    for name in &leftovers.namespaces {
        if Path::new("/run/netns").join(name).exists() {
            drop(process::run_ok(Command::new("ip").args(["netns", "del", name])));
        }
    }
    if let Some(group) = &leftovers.group {
        Group::at(group.clone()).remove();
    }
    if !keep_files {
        drop(fs::remove_dir_all(&leftovers.folder));
    }
}

/// Shared memory that the folder's Postgres servers use now.
fn shared_memory(folder: &Path) -> (Vec<PathBuf>, Vec<u32>) {
    let mut files = Vec::new();
    let mut ids = Vec::new();
    for pid in process::of_folder(folder) {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in maps.lines() {
            let Some(path) = line.find("/dev/shm/PostgreSQL.").and_then(|at| line.get(at..)) else {
                continue;
            };
            let path = path.trim_end_matches(" (deleted)");
            files.push(PathBuf::from(path));
        }
    }
    for node in fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = fs::read_to_string(node.path().join("pg/data/postmaster.pid")).unwrap_or_default();
        // Line 7: System V key and id.
        let id: Option<u32> =
            text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        ids.extend(id);
    }
    let mapped = files.clone();
    files.extend(mapped.iter().flat_map(|file| named_by_control_segment(file)));
    files.sort();
    files.dedup();
    (files, ids)
}

/// The segments that a control segment lists: at this moment nobody may have them mapped.
///
/// Layout of `dsm_control_header` (PostgreSQL, dsm.c): a magic number, then items whose first
/// word names a file. Words that name none are skipped, so the item's size does not matter.
fn named_by_control_segment(file: &Path) -> Vec<PathBuf> {
    const MAGIC: [u8; 4] = 0x9a50_3d32_u32.to_ne_bytes();
    const LARGEST: u64 = 1 << 18;
    let small = fs::metadata(file).is_ok_and(|facts| facts.len() <= LARGEST);
    let bytes = if small { fs::read(file).unwrap_or_default() } else { Vec::new() };
    if !bytes.starts_with(&MAGIC) {
        return Vec::new();
    }
    let words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok().map(u32::from_ne_bytes));
    words
        .filter(|&word| word != 0)
        .map(|word| PathBuf::from(format!("/dev/shm/PostgreSQL.{word}")))
        .filter(|path| path.exists())
        .collect()
}

/// Those of `ids` that exist and that nobody is attached to.
fn unattached(ids: &[u32]) -> Vec<u32> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let id = fields.get(1)?.parse().ok()?;
            (*fields.get(6)? == "0").then_some(id)
        })
        .filter(|id| ids.contains(id))
        .collect()
}

/// The pid in `rc-PID-NUMBER…`, when it is a name of ours.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix("rc-")?.split('-');
    let pid = parts.next()?.parse().ok()?;
    parts.next().map(|_| pid)
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|pid| pid != std::process::id() && !process::alive(pid)))
        .collect()
}

/// Removes what runs left whose process is gone. Kept files (`CHAOS_KEEP`) carry another name.
fn remove_dead_runs() {
    let mut dead: BTreeMap<String, Leftovers> = BTreeMap::new();
    let cluster = |name: &str| name.splitn(4, '-').take(3).collect::<Vec<_>>().join("-");
    for name in names_in(Path::new("/run/netns")) {
        dead.entry(cluster(&name)).or_default().namespaces.push(name);
    }
    for name in names_in(&std::env::temp_dir()) {
        dead.entry(cluster(&name)).or_default();
    }
    if let Some(root) = cgroup::root() {
        for name in names_in(&root) {
            dead.entry(cluster(&name)).or_default().group = Some(root.join(&name));
        }
    }
    for (id, mut leftovers) in dead {
        leftovers.folder = std::env::temp_dir().join(&id);
        leftovers.id = id;
        let (files, ids) = shared_memory(&leftovers.folder);
        leftovers.shared_files = files;
        leftovers.shared_ids = ids;
        erase(&leftovers, false);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a signal ends the process from a side thread, after cleaning up"
)]
fn clean_up_on_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let code = runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return None;
        };
        tokio::select! {
            _ = interrupt.recv() => Some(130),
            _ = terminate.recv() => Some(143),
        }
    });
    let Some(code) = code else { return };
    let ids: Vec<String> = registered().keys().cloned().collect();
    for id in ids {
        remove(&id, false);
    }
    std::process::exit(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_runs_are_taken_for_leftovers() {
        assert_eq!(owner("rc-123-1"), Some(123));
        assert_eq!(owner("rc-123-1-n2"), Some(123));
        for other in ["rc-123", "rc-x-1", "rhone", "tb-sw", "rc--1"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
