//! Judges what clients saw. Pure: histories and rows in, verdicts out.
//!
//! Each checker is shown forged histories with the violation below, and catches it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::clock::Moment;
use crate::history::{Answer, History, Key, Operation};

/// The longest time in which no write was acknowledged anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// The last acknowledgement before it.
    pub before: Operation,
    /// The first one after it; `None` when writes never came back.
    pub after: Option<Operation>,
    /// From one to the other, or to the end of the observation.
    pub length: Duration,
}

/// Finds the longest gap that ends after `from` and begins before `until`.
///
/// `acknowledged` is ordered by time. Returns `None` when nothing was acknowledged before
/// `until`: then there is nothing to measure from.
pub fn write_gap(acknowledged: &[Operation], from: Moment, until: Moment) -> Option<Gap> {
    let mut longest: Option<Gap> = None;
    let mut keep = |gap: Gap| {
        if longest.is_none_or(|known| gap.length > known.length) {
            longest = Some(gap);
        }
    };
    for pair in acknowledged.windows(2) {
        let [before, after] = pair else { continue };
        if after.finished >= from && before.finished <= until {
            keep(Gap { before: *before, after: Some(*after), length: after.finished.since(before.finished) });
        }
    }
    if let Some(last) = acknowledged.last().filter(|last| last.finished <= until) {
        keep(Gap { before: *last, after: None, length: until.since(last.finished) });
    }
    // A gap up to the end of the observation is only "writes never came back" when it is the
    // longest by far; a run that ends while writing has a short one, which loses to any fault.
    longest
}

/// Which rows clients were told of, and which there are.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Inserts that were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged and absent, by the time of their acknowledgement.
    pub lost: Vec<Operation>,
    /// Present although no client ever sent them, or the server refused them.
    pub phantom: Vec<Key>,
    /// Left open, and present.
    pub unknown_present: usize,
}

/// Compares the evidence with the rows of the primary.
pub fn loss(history: &History, present: &BTreeSet<Key>) -> Loss {
    let mut result = Loss::default();
    let mut expected = BTreeSet::new();
    for operation in &history.operations {
        expected.insert(operation.key);
        let there = present.contains(&operation.key);
        if operation.acknowledged() {
            result.acknowledged += 1;
            if !there {
                result.lost.push(*operation);
            }
        } else if there {
            result.unknown_present += 1;
        }
    }
    result.lost.sort_by_key(|operation| operation.finished);
    result.phantom = present.difference(&expected).copied().collect();
    result
}

impl Loss {
    /// The lost rows that the stated bound of asynchronous mode does not excuse.
    ///
    /// Each fault excuses rows that were acknowledged from `tail` before it (not yet sent) and
    /// asked for until `lease` after it (the old primary was not yet fenced).
    pub fn beyond(&self, faults: &[Moment], tail: Duration, lease: Duration) -> Vec<Operation> {
        let excused = |operation: &Operation| {
            faults.iter().any(|fault| {
                operation.finished >= fault.before(tail) && operation.invoked <= fault.after(lease)
            })
        };
        self.lost.iter().copied().filter(|operation| !excused(operation)).collect()
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows acknowledged, {} lost, {} phantom, {} open and present",
            self.acknowledged,
            self.lost.len(),
            self.phantom.len(),
            self.unknown_present
        )
    }
}

/// A proof of two primaries.
#[derive(Clone, Copy, Debug)]
pub enum TwoPrimaries {
    /// The old primary acknowledged what it was asked after the new one had acknowledged.
    OldStillServed {
        /// The old primary's.
        old: Operation,
        /// The new one's first.
        new: Operation,
    },
    /// Two servers acknowledged on one timeline.
    SharedTimeline {
        /// One server's.
        one: Operation,
        /// The other's.
        other: Operation,
    },
}

impl fmt::Display for TwoPrimaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldStillServed { old, new } => write!(
                f,
                "member {} acknowledged {:?} (asked {:?} after member {}'s first acknowledgement)",
                old.server + 1,
                old.key,
                old.invoked.since(new.finished),
                new.server + 1
            ),
            Self::SharedTimeline { one, other } => write!(
                f,
                "members {} and {} both acknowledged on one timeline ({:?}, {:?})",
                one.server + 1,
                other.server + 1,
                one.key,
                other.key
            ),
        }
    }
}

/// Finds every request *invoked* on an old primary after the new one's first acknowledgement
/// that was nevertheless acknowledged; and timelines shared by two servers.
///
/// The order of primaries is the order of their WAL timelines, which only rise. An answer that
/// was merely late (it sat in a cut socket, or in a stopped process) does not count: the request
/// was invoked before.
pub fn two_primaries(history: &History) -> Vec<TwoPrimaries> {
    // Per timeline: its first acknowledgement, from the first server that gave one.
    let mut first: BTreeMap<u32, Operation> = BTreeMap::new();
    let acknowledged: Vec<(u32, Operation)> = history
        .acknowledged()
        .into_iter()
        .filter_map(|operation| match operation.answer {
            Answer::Acknowledged { timeline } => Some((timeline, operation)),
            Answer::Unknown => None,
        })
        .collect();
    let mut found = Vec::new();
    for (timeline, operation) in &acknowledged {
        let known = first.entry(*timeline).or_insert(*operation);
        if known.server != operation.server {
            found.push(TwoPrimaries::SharedTimeline { one: *known, other: *operation });
        }
    }
    for (timeline, operation) in &acknowledged {
        let newer = first
            .range(timeline.saturating_add(1)..)
            .map(|(_, new)| new)
            .filter(|new| new.server != operation.server && operation.invoked > new.finished)
            .min_by_key(|new| new.finished);
        if let Some(new) = newer {
            found.push(TwoPrimaries::OldStillServed { old: *operation, new: *new });
        }
    }
    found
}

/// Finds the members whose rows differ from the first one's, with how many rows each way.
pub fn differing(rows: &BTreeMap<usize, BTreeSet<Key>>) -> Vec<String> {
    let Some((base, expected)) = rows.iter().next() else { return Vec::new() };
    rows.iter()
        .skip(1)
        .filter(|(_, found)| *found != expected)
        .map(|(member, found)| {
            format!(
                "member {}: {} rows that member {} lacks, {} rows missing",
                member + 1,
                found.difference(expected).count(),
                base + 1,
                expected.difference(found).count()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::ClientKind;

    /// Reads `client.seq server timeline|? invoked-finished` per operation, times in ms.
    fn forge(text: &str) -> History {
        let mut history = History::default();
        for line in text.split('|').map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("a word");
            let (client, seq) = word().split_once('.').expect("client.seq");
            let key = Key { client: client.parse().expect("client"), seq: seq.parse().expect("seq") };
            let server: usize = word().parse().expect("server");
            let answer = match word() {
                "?" => Answer::Unknown,
                timeline => Answer::Acknowledged { timeline: timeline.parse().expect("timeline") },
            };
            let (invoked, finished) = word().split_once('-').expect("invoked-finished");
            let moment = |ms: &str| Moment(ms.parse::<u64>().expect("ms") * 1_000_000);
            history.operations.push(Operation {
                key,
                server,
                invoked: moment(invoked),
                finished: moment(finished),
                answer,
            });
            history.kinds.insert(key.client, ClientKind::Member);
        }
        history
    }

    fn ms(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    fn keys(text: &str) -> BTreeSet<Key> {
        text.split_whitespace()
            .map(|word| {
                let (client, seq) = word.split_once('.').expect("client.seq");
                Key { client: client.parse().expect("client"), seq: seq.parse().expect("seq") }
            })
            .collect()
    }

    const FAILOVER: &str =
        "1.1 0 1 10-12 | 1.2 0 1 15-18 | 1.3 0 ? 20-900 | 2.1 1 2 800-818 | 2.2 1 2 820-822";

    #[test]
    fn the_gap_runs_from_the_last_acknowledgement_to_the_next_one_anywhere() {
        let acknowledged = forge(FAILOVER).acknowledged();
        let gap = write_gap(&acknowledged, ms(19), ms(830)).expect("a gap");
        assert_eq!(gap.length, Duration::from_millis(800));
        assert_eq!((gap.before.server, gap.after.map(|after| after.server)), (0, Some(1)));
    }

    #[test]
    fn a_gap_that_ended_before_the_fault_is_not_the_faults() {
        let acknowledged =
            forge("1.1 0 1 1-2 | 1.2 0 1 500-502 | 1.3 0 1 503-504 | 1.4 0 1 520-530").acknowledged();
        let gap = write_gap(&acknowledged, ms(503), ms(531)).expect("a gap");
        assert_eq!(gap.length, Duration::from_millis(26));
    }

    #[test]
    fn writes_that_never_came_back_are_an_open_gap() {
        let acknowledged = forge("1.1 0 1 1-2 | 1.2 0 1 3-4").acknowledged();
        let gap = write_gap(&acknowledged, ms(5), ms(60_004)).expect("a gap");
        assert!(gap.after.is_none());
        assert_eq!(gap.length, Duration::from_secs(60));
    }

    #[test]
    fn an_acknowledged_row_that_is_gone_is_lost() {
        let history = forge(FAILOVER);
        let fine = loss(&history, &keys("1.1 1.2 2.1 2.2"));
        assert!(fine.lost.is_empty() && fine.phantom.is_empty());
        let bad = loss(&history, &keys("1.1 2.1 2.2"));
        assert_eq!(bad.lost.iter().map(|operation| operation.key.seq).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn an_open_insert_may_be_there_or_not() {
        let history = forge(FAILOVER);
        assert_eq!(loss(&history, &keys("1.1 1.2 1.3 2.1 2.2")).unknown_present, 1);
        assert_eq!(loss(&history, &keys("1.1 1.2 2.1 2.2")).unknown_present, 0);
    }

    #[test]
    fn a_row_that_nobody_sent_is_a_phantom() {
        assert_eq!(loss(&forge(FAILOVER), &keys("1.1 1.2 2.1 2.2 9.9")).phantom.len(), 1);
    }

    #[test]
    fn only_the_tail_before_a_fault_and_the_lease_after_it_excuse_a_loss() {
        let history = forge("1.1 0 1 10-12 | 1.2 0 1 4990-4995 | 1.3 0 1 6000-6002 | 1.4 0 1 7000-7005");
        let all = loss(&history, &BTreeSet::new());
        let beyond = all.beyond(&[ms(5000)], Duration::from_secs(1), Duration::from_millis(1500));
        assert_eq!(beyond.iter().map(|operation| operation.key.seq).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn a_proper_failover_has_one_primary() {
        assert!(two_primaries(&forge(FAILOVER)).is_empty());
    }

    #[test]
    fn a_late_answer_to_an_early_request_is_no_second_primary() {
        // Invoked at 20 on the old one; the answer came at 5000 out of a stopped process.
        let history = forge("1.1 0 1 10-12 | 2.1 1 2 800-818 | 1.2 0 1 20-5000");
        assert!(two_primaries(&history).is_empty());
    }

    #[test]
    fn an_old_primary_that_goes_on_serving_is_caught() {
        let history = forge("1.1 0 1 10-12 | 2.1 1 2 800-818 | 1.2 0 1 819-820");
        let found = two_primaries(&history);
        assert!(matches!(found.as_slice(), [TwoPrimaries::OldStillServed { old, new }]
            if old.key.seq == 2 && new.server == 1));
    }

    #[test]
    fn going_back_on_a_new_timeline_is_no_violation_and_on_an_old_one_is() {
        check_back("1.2 0 3 900-905 | 1.3 0 3 910-915", 0);
        check_back("1.2 0 1 900-905 | 1.3 0 1 910-915", 2);
    }

    #[track_caller]
    fn check_back(later: &str, expected: usize) {
        let history = forge(&format!("1.1 0 1 10-12 | 2.1 1 2 800-818 | {later}"));
        assert_eq!(two_primaries(&history).len(), expected, "{later}");
    }

    #[test]
    fn two_servers_on_one_timeline_are_caught_even_when_they_never_overlap() {
        let history = forge("1.1 0 2 10-12 | 2.1 1 2 800-818");
        assert!(matches!(two_primaries(&history).as_slice(), [TwoPrimaries::SharedTimeline { .. }]));
    }

    #[test]
    fn members_with_other_rows_are_named() {
        let rows =
            |third: &str| BTreeMap::from([(0, keys("1.1 1.2")), (1, keys("1.1 1.2")), (2, keys(third))]);
        assert!(differing(&rows("1.1 1.2")).is_empty());
        let found = differing(&rows("1.1 1.3"));
        assert_eq!(found, ["member 3: 1 rows that member 1 lacks, 1 rows missing"]);
    }
}
