//! What a member holds: nothing of it may grow from fault to fault.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::sql::ask;

/// What one member holds.
#[derive(Clone, Debug, Serialize)]
pub struct Holdings {
    /// The member.
    pub member: String,
    /// Processes of Rhone: a supervisor and a guardian (two where it is the init of a PID namespace).
    pub processes: usize,
    /// Their open files.
    pub files: usize,
    /// Their resident memory, KiB.
    pub rss_kib: u64,
    /// Replication slots.
    pub slots: u64,
    /// Bytes of WAL on disk.
    pub wal: u64,
    /// Data directories that were set aside and not removed.
    pub aside: usize,
}

/// Open files of a member that has been running for long: a few connections to each peer and operator.
const FILES: usize = 200;
/// Far above what a supervisor and a guardian need (some ten MiB).
const RSS_KIB: u64 = 150 << 10;
/// Far above `max_wal_size` and what slots of absent members may keep in a test.
const WAL: u64 = 2 << 30;
const LIMIT: Duration = Duration::from_secs(20);

/// Looks at every member; the cluster is whole.
pub fn look(cluster: &mut Cluster) -> Result<Vec<Holdings>> {
    let data = cluster.data_members();
    let mut found = Vec::new();
    for index in 0..cluster.members() {
        let node = cluster.node_mut(index)?;
        let mut pids = node.guardians();
        pids.extend(node.supervisor());
        let status = |pid: u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = |pid: u32| {
            let text = status(pid);
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        let files = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let parent = node.data().parent().map(ToOwned::to_owned).unwrap_or_default();
        let aside = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains("-old-"))
            .count();
        let mut holdings = Holdings {
            member: node.name(),
            processes: pids.len(),
            files: pids.iter().map(|&pid| files(pid)).sum(),
            rss_kib: pids.iter().map(|&pid| rss(pid)).sum(),
            slots: 0,
            wal: 0,
            aside,
        };
        if index < data {
            let sql = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE NOT temporary), \
                       (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())";
            let rows = ask(&node.door(), "postgres", sql, LIMIT)?;
            let number =
                |column: usize| rows.first().and_then(|row| row.get(column)?.as_deref()?.parse::<u64>().ok());
            holdings.slots = number(0).context("slots")?;
            holdings.wal = number(1).context("the size of the WAL")?;
        }
        found.push(holdings);
    }
    Ok(found)
}

/// What is more than a member may hold, each in words.
pub fn judge(found: &[Holdings], data_members: usize) -> Vec<String> {
    let slots = u64::try_from(data_members.saturating_sub(1)).unwrap_or(u64::MAX);
    let mut wrong = Vec::new();
    for one in found {
        let mut check = |bad: bool, what: String| {
            if bad {
                wrong.push(format!("{} holds {what}", one.member));
            }
        };
        check(one.processes > 3, format!("{} processes of Rhone", one.processes));
        check(one.files > FILES, format!("{} open files", one.files));
        check(one.rss_kib > RSS_KIB, format!("{} KiB of memory", one.rss_kib));
        check(one.slots > slots, format!("{} replication slots for {slots} others", one.slots));
        check(one.wal > WAL, format!("{} bytes of WAL", one.wal));
        check(one.aside > 1, format!("{} data directories that were set aside", one.aside));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_caught() {
        let fine = Holdings {
            member: "pg-1".to_owned(),
            processes: 2,
            files: 60,
            rss_kib: 40 << 10,
            slots: 2,
            wal: 64 << 20,
            aside: 0,
        };
        assert!(judge(std::slice::from_ref(&fine), 3).is_empty());
        let more = [
            Holdings { processes: 5, ..fine.clone() },
            Holdings { files: 900, ..fine.clone() },
            Holdings { rss_kib: 900 << 10, ..fine.clone() },
            Holdings { slots: 3, ..fine.clone() },
            Holdings { wal: 9 << 30, ..fine.clone() },
            Holdings { aside: 3, ..fine },
        ];
        assert_eq!(judge(&more, 3).len(), more.len());
    }
}
