//! Timelines on disk: which numbers were ever seen, and how a promotion is made to take a planned one.
//!
//! A promotion takes the first number above its own that has no history file. Tombstones (history
//! files of timelines that never were) make it skip the numbers below the plan.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::error::PgError;
use crate::file;
use crate::user::OsUser;
use crate::wal::{Timeline, TimelineHistory, WalPosition, history_file_name, timeline_of_wal_file};

/// The most tombstones that one promotion may need; more means a wrong plan.
const TOMBSTONE_LIMIT: u32 = 10_000;

/// Reads the history of a timeline from `pg_wal`; `None` when there is no history file.
///
/// # Errors
/// [`PgError::Io`], or [`PgError::Unexpected`] when the file is damaged.
pub fn read_history(data_dir: &Path, timeline: Timeline) -> Result<Option<TimelineHistory>, PgError> {
    read_history_in(&data_dir.join("pg_wal"), timeline)
}

fn read_history_in(wal_dir: &Path, timeline: Timeline) -> Result<Option<TimelineHistory>, PgError> {
    let path = wal_dir.join(history_file_name(timeline));
    let Some(text) = file::read_optional(&path)? else { return Ok(None) };
    let bad = |error: crate::wal::ParseWalError| {
        PgError::unexpected(format!("read `{}`", path.display()), error.to_string())
    };
    TimelineHistory::parse(timeline, &text).map(Some).map_err(bad)
}

/// Lists every timeline number that a file in `pg_wal` names, tombstones included.
///
/// # Errors
/// [`PgError::Io`] when `pg_wal` cannot be listed.
pub fn seen_timelines(data_dir: &Path) -> Result<BTreeSet<Timeline>, PgError> {
    let wal_dir = data_dir.join("pg_wal");
    let entries = fs::read_dir(&wal_dir).map_err(PgError::io("list", &wal_dir))?;
    Ok(entries.flatten().filter_map(|entry| timeline_of_wal_file(entry.file_name().to_str()?)).collect())
}

/// Returns the newest history that `base` is part of, as recovery would follow it: the highest number
/// that is reached from `start` without a gap.
pub(crate) fn newest_history(
    wal_dir: &Path,
    start: Timeline,
    base: WalPosition,
) -> Result<TimelineHistory, PgError> {
    let own = read_history_in(wal_dir, start)?.unwrap_or_else(|| TimelineHistory::root(start));
    let mut newest = own;
    let mut number = start.next();
    while let Some(history) = read_history_in(wal_dir, number)? {
        // A timeline that left before the last checkpoint is not this server's; nor is a tombstone.
        if history.contains(base) && !history.is_tombstone() {
            newest = history;
        }
        number = number.next();
    }
    Ok(newest)
}

/// Makes the next promotion take timeline `plan`: writes a tombstone for each number between the
/// server's own timeline and the plan that has no history file yet.
///
/// A server that is stopped between this and its promotion must have
/// [`remove_leading_tombstones`] before it starts.
///
/// # Errors
/// [`PgError::Refused`] when the plan is not above the current timeline, or is taken already.
pub fn reserve_timelines(
    data_dir: &Path,
    current: Timeline,
    plan: Timeline,
    user: &OsUser,
) -> Result<(), PgError> {
    let refuse = |reason: String| PgError::Refused { what: format!("timeline {plan}"), reason };
    if plan <= current || plan.get() - current.get() > TOMBSTONE_LIMIT {
        return Err(refuse(format!("a promotion from timeline {current} cannot take it")));
    }
    let wal_dir = data_dir.join("pg_wal");
    let taken = seen_timelines(data_dir)?;
    if let Some(newer) = taken.range(plan..).next() {
        return Err(refuse(format!("timeline {newer} was seen already")));
    }
    for number in current.get() + 1..plan.get() {
        let tombstone = TimelineHistory::tombstone(Timeline::new(number));
        let path = wal_dir.join(tombstone.file_name());
        if !path.exists() {
            file::replace(&path, tombstone.render().as_bytes(), user, 0o600)?;
        }
    }
    Ok(())
}

/// Removes tombstones that no real timeline follows; says how many.
///
/// To be called before each start as a standby: such a start follows the highest number without a
/// gap, and fails (`requested timeline is not a child of this server's history`) when that is a tombstone.
///
/// # Errors
/// [`PgError::Io`] or [`PgError::Unexpected`] when `pg_wal` cannot be read or changed.
pub fn remove_leading_tombstones(data_dir: &Path) -> Result<usize, PgError> {
    let wal_dir = data_dir.join("pg_wal");
    let mut removed = 0;
    for timeline in seen_timelines(data_dir)?.into_iter().rev() {
        match read_history_in(&wal_dir, timeline)? {
            Some(history) if history.is_tombstone() => {
                file::remove(&wal_dir.join(history.file_name()))?;
                removed += 1;
            }
            Some(_) | None => break,
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(data_dir: &Path) -> Vec<u32> {
        seen_timelines(data_dir).unwrap().into_iter().map(Timeline::get).collect()
    }

    #[test]
    fn reserves_the_numbers_below_the_plan_and_takes_them_back() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("00000002.history"), "1\t0/3000000\tno recovery target specified\n").unwrap();
        fs::write(wal.join("000000020000000000000003"), "").unwrap();
        let (user, two) = (OsUser::current(), Timeline::new(2));
        assert!(reserve_timelines(dir.path(), two, two, &user).is_err());
        reserve_timelines(dir.path(), two, Timeline::new(6), &user).unwrap();
        reserve_timelines(dir.path(), two, Timeline::new(6), &user).unwrap();
        assert_eq!(numbers(dir.path()), [2, 3, 4, 5]);
        assert!(reserve_timelines(dir.path(), two, Timeline::new(5), &user).is_err());
        let base = "2:0/3000100".parse().unwrap();
        assert_eq!(newest_history(&wal, two, base).unwrap().timeline, two);
        assert_eq!(remove_leading_tombstones(dir.path()).unwrap(), 3);
        assert_eq!(numbers(dir.path()), [2]);
    }
}
