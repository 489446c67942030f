//! What a member holds: nothing of it may be too much, nor grow from fault to fault.

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
/// Open files that a member may have more at the end than after the first round: connections come and go.
const MORE_FILES: usize = 50;
/// Resident memory that it may have more: pages of the program that were not in use before, and buffers.
const MORE_RSS_KIB: u64 = 30 << 10;
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

/// What a member holds more than it may since `began`, after the first round, each in words.
///
/// Slots, WAL and what was set aside change with who is primary, and have limits of their own.
pub fn growth(began: &[Holdings], found: &[Holdings]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (member, files, rss_kib) in grown(began, found) {
        let mut check = |bad: bool, what: String| {
            if bad {
                wrong.push(format!("{member} holds {what} more than after the first round"));
            }
        };
        check(files > MORE_FILES, format!("{files} open files"));
        check(rss_kib > MORE_RSS_KIB, format!("{rss_kib} KiB of memory"));
    }
    wrong
}

/// By how many open files and KiB of memory each member grew.
fn grown<'a>(began: &[Holdings], found: &'a [Holdings]) -> Vec<(&'a str, usize, u64)> {
    let more = |one: &'a Holdings| {
        // One whose guardian was just being replaced had less than it needs.
        let same = |first: &&Holdings| first.member == one.member && first.processes >= one.processes;
        let first = began.iter().find(same)?;
        let files = one.files.saturating_sub(first.files);
        Some((one.member.as_str(), files, one.rss_kib.saturating_sub(first.rss_kib)))
    };
    found.iter().filter_map(more).collect()
}

/// What the members with most hold, and by how much those grew that grew most.
pub fn text(began: &[Holdings], found: &[Holdings]) -> String {
    let most = found.iter().map(|one| (one.files, one.rss_kib / 1024, one.wal >> 20)).max();
    let grown = grown(began, found);
    let files = grown.iter().map(|(_, files, _)| *files).max().unwrap_or(0);
    let memory = grown.iter().map(|(.., rss_kib)| rss_kib / 1024).max().unwrap_or(0);
    format!(
        "open files, MiB of memory, MiB of WAL of the member with most: {most:?}; \
         since the first round at most {files} files and {memory} MiB more"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Holdings {
        Holdings {
            member: "pg-1".to_owned(),
            processes: 2,
            files: 60,
            rss_kib: 40 << 10,
            slots: 2,
            wal: 64 << 20,
            aside: 0,
        }
    }

    #[test]
    fn what_is_too_much_is_caught() {
        assert!(judge(&[fine()], 3).is_empty());
        let more = [
            Holdings { processes: 5, ..fine() },
            Holdings { files: 900, ..fine() },
            Holdings { rss_kib: 900 << 10, ..fine() },
            Holdings { slots: 3, ..fine() },
            Holdings { wal: 9 << 30, ..fine() },
            Holdings { aside: 3, ..fine() },
        ];
        assert_eq!(judge(&more, 3).len(), more.len());
    }

    #[test]
    fn what_grows_is_caught_long_before_it_is_too_much() {
        let began = [fine()];
        let grown = |one: Holdings| {
            assert!(judge(std::slice::from_ref(&one), 3).is_empty(), "{one:?}");
            growth(&began, &[one])
        };
        // As much as it may, and less than before.
        assert_eq!(grown(Holdings { files: 110, rss_kib: 70 << 10, ..fine() }), Vec::<String>::new());
        assert_eq!(grown(Holdings { files: 5, rss_kib: 1, ..fine() }), Vec::<String>::new());
        assert_eq!(
            grown(Holdings { files: 111, rss_kib: (70 << 10) + 1, ..fine() }),
            [
                "pg-1 holds 51 open files more than after the first round",
                "pg-1 holds 30721 KiB of memory more than after the first round"
            ]
        );
        // Who was not there after the first round has nothing to be compared with.
        let full = [Holdings { files: 190, ..fine() }];
        assert!(growth(&[], &full).is_empty());
        assert!(growth(&[Holdings { processes: 1, files: 9, ..fine() }], &full).is_empty());
        assert!(text(&began, &full).ends_with("since the first round at most 130 files and 0 MiB more"));
    }
}
