//! Lists that transactions append to and read: what was lost, came from nowhere, was reordered, and
//! whether an order of transactions explains what they saw (after Jepsen's append and Elle).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{End, Kind, Shared, Span};
use crate::random::Random;
use crate::sql::Rows;

/// Keys that are in use at a time: few, so that transactions meet.
const KEYS: usize = 4;
/// A key is left for a new one after about so many values.
const LENGTH: u64 = 400;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends the value, which no other step appends.
    Append(u64, u64),
    /// Reads the list; `None` until the answer is known.
    Read(u64, Option<Vec<u64>>),
}

/// One transaction and what became of it.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// What became of it.
    pub end: End,
    /// When and where.
    pub span: Span,
}

/// The workload.
#[derive(Debug, Default)]
pub struct Append {
    next: AtomicU64,
    drawn: Mutex<BTreeMap<u32, Vec<Step>>>,
    done: Shared<Transaction>,
}

impl Append {
    /// All transactions so far.
    pub fn history(&self) -> Vec<Transaction> {
        self.done.all()
    }
}

/// What reads all lists.
pub const FINAL: &str = "SELECT key, value FROM lists";

/// Reads the answer to [`FINAL`].
pub fn lists(rows: &Rows) -> BTreeMap<u64, Vec<u64>> {
    rows.iter()
        .filter_map(|row| match row.as_slice() {
            [Some(key), Some(value)] => Some((key.parse().ok()?, numbers(value))),
            _ => None,
        })
        .collect()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(',').filter_map(|word| word.parse().ok()).collect()
}

impl Kind for Append {
    fn schema(&self) -> String {
        "CREATE TABLE IF NOT EXISTS lists (key bigint PRIMARY KEY, value text NOT NULL); \
         GRANT SELECT, INSERT, UPDATE ON lists TO chaos"
            .to_owned()
    }

    fn next(&self, client: u32, random: &mut Random) -> String {
        let mut steps = Vec::new();
        let mut sql = "BEGIN ISOLATION LEVEL SERIALIZABLE;".to_owned();
        for _ in 0..=random.below(4) {
            let value = self.next.fetch_add(1, Ordering::Relaxed);
            let key = value / (LENGTH * 4) * 100 + u64::try_from(random.below(KEYS)).unwrap_or(0);
            if random.below(2) == 0 {
                steps.push(Step::Append(key, value));
                sql.push_str(&format!(
                    "INSERT INTO lists VALUES ({key}, '{value}') ON CONFLICT (key) \
                     DO UPDATE SET value = lists.value || ',{value}';"
                ));
            } else {
                steps.push(Step::Read(key, None));
                // One row also when there is no list yet.
                sql.push_str(&format!("SELECT coalesce((SELECT value FROM lists WHERE key = {key}), '');"));
            }
        }
        sql.push_str("COMMIT");
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).insert(client, steps);
        sql
    }

    fn note(&self, client: u32, end: End, span: Span, rows: &Rows) {
        let drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner).remove(&client);
        let mut answers = rows.iter();
        let mut steps = drawn.unwrap_or_default();
        for step in &mut steps {
            if let Step::Read(_, seen) = step
                && let Some(row) = answers.next()
            {
                *seen = row.first().and_then(|cell| cell.as_deref()).map(numbers);
            }
        }
        self.done.push(Transaction { steps, end, span });
    }
}

/// What is wrong with a history.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Transactions that clients were told of.
    pub committed: usize,
    /// Values of committed transactions that are in no list.
    pub lost: Vec<(u64, Span)>,
    /// Each violation in words: phantoms, duplicates, reads that no order explains, cycles.
    pub wrong: Vec<String>,
    /// Reads that missed what was committed before they were sent: of an old primary within its lease.
    pub stale: usize,
}

/// Judges a history against the lists of the primary at the end.
///
/// `excused` says of a committed transaction whether the bound of asynchronous mode covers its loss.
pub fn judge(
    history: &[Transaction],
    lists: &BTreeMap<u64, Vec<u64>>,
    excused: impl Fn(&Span) -> bool,
) -> Findings {
    let mut found = Findings::default();
    let mut writer: HashMap<u64, usize> = HashMap::new();
    for (number, transaction) in history.iter().enumerate() {
        for step in &transaction.steps {
            if let Step::Append(_, value) = step {
                writer.insert(*value, number);
            }
        }
    }
    let mut position: HashMap<u64, (u64, usize)> = HashMap::new();
    for (key, list) in lists {
        for (at, value) in list.iter().enumerate() {
            if position.insert(*value, (*key, at)).is_some() {
                found.wrong.push(format!("value {value} is there twice"));
            }
            match writer.get(value).and_then(|number| history.get(*number)) {
                None => found.wrong.push(format!("value {value} of list {key} was never sent")),
                Some(t) if t.end == End::Aborted => {
                    found.wrong.push(format!("value {value} of list {key} was aborted and is there"));
                }
                Some(_) => {}
            }
        }
    }
    let mut gone = BTreeSet::new();
    for (number, transaction) in history.iter().enumerate().filter(|(_, t)| t.end == End::Committed) {
        found.committed += 1;
        for step in &transaction.steps {
            if let Step::Append(_, value) = step
                && !position.contains_key(value)
            {
                gone.insert(number);
                if !excused(&transaction.span) {
                    found.lost.push((*value, transaction.span));
                }
            }
        }
    }
    all_or_nothing(history, &position, &mut found);
    reads(history, lists, &position, &gone, &excused, &mut found);
    if let Some(cycle) = cycle(history, lists, &position, &writer) {
        found.wrong.push(format!("no order explains transactions {cycle:?}"));
    }
    found
}

/// A transaction's values are all there, or none of them.
fn all_or_nothing(history: &[Transaction], position: &HashMap<u64, (u64, usize)>, found: &mut Findings) {
    for transaction in history {
        let values: Vec<u64> = transaction
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Append(_, value) => Some(*value),
                Step::Read(..) => None,
            })
            .collect();
        let there = values.iter().filter(|value| position.contains_key(value)).count();
        if there != 0 && there != values.len() {
            found
                .wrong
                .push(format!("{there} of {} values of one transaction are there: {values:?}", values.len()));
        }
    }
}

/// Each read is a beginning of the list at the end, plus what the transaction itself had appended.
fn reads(
    history: &[Transaction],
    lists: &BTreeMap<u64, Vec<u64>>,
    position: &HashMap<u64, (u64, usize)>,
    gone: &BTreeSet<usize>,
    excused: &impl Fn(&Span) -> bool,
    found: &mut Findings,
) {
    // Per key: what had been committed by when, to find reads of the past.
    let mut committed: BTreeMap<u64, Vec<(crate::clock::Moment, usize)>> = BTreeMap::new();
    for transaction in history.iter().filter(|t| t.end == End::Committed) {
        for step in &transaction.steps {
            if let Step::Append(key, value) = step
                && let Some((_, at)) = position.get(value)
            {
                committed.entry(*key).or_default().push((transaction.span.finished, *at));
            }
        }
    }
    for (number, transaction) in history.iter().enumerate().filter(|(_, t)| t.end == End::Committed) {
        if gone.contains(&number) {
            continue;
        }
        for step in &transaction.steps {
            let Step::Read(key, Some(seen)) = step else { continue };
            let list = lists.get(key).map_or(&[][..], Vec::as_slice);
            if !list.starts_with(seen) {
                // What it read was given up by a failover, as the mode allows.
                if excused(&transaction.span) {
                    continue;
                }
                let at = seen.iter().zip(list).take_while(|(one, other)| one == other).count();
                found.wrong.push(format!(
                    "a read of list {key} on member {} is no beginning of it from place {at}: saw {:?}, is {:?}",
                    transaction.span.server + 1,
                    seen.get(at),
                    list.get(at)
                ));
                continue;
            }
            let before = committed.get(key).into_iter().flatten();
            if before.into_iter().any(|(when, at)| *when < transaction.span.invoked && *at >= seen.len()) {
                found.stale += 1;
            }
        }
    }
}

/// Looks for transactions of which each saw, or overwrote, what the next had or had not done.
fn cycle(
    history: &[Transaction],
    lists: &BTreeMap<u64, Vec<u64>>,
    position: &HashMap<u64, (u64, usize)>,
    writer: &HashMap<u64, usize>,
) -> Option<Vec<usize>> {
    let mut edges: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut edge = |from: Option<&usize>, to: Option<&usize>| {
        if let (Some(from), Some(to)) = (from, to)
            && from != to
        {
            edges.entry(*from).or_default().insert(*to);
        }
    };
    for list in lists.values() {
        for pair in list.windows(2) {
            if let [one, next] = pair {
                edge(writer.get(one), writer.get(next));
            }
        }
    }
    for (number, transaction) in history.iter().enumerate().filter(|(_, t)| t.end == End::Committed) {
        for step in &transaction.steps {
            let Step::Read(key, Some(seen)) = step else { continue };
            let list = lists.get(key).map_or(&[][..], Vec::as_slice);
            if seen.last().is_some_and(|value| !position.contains_key(value)) || !list.starts_with(seen) {
                continue;
            }
            edge(seen.last().and_then(|value| writer.get(value)), Some(&number));
            edge(Some(&number), list.get(seen.len()).and_then(|value| writer.get(value)));
        }
    }
    // Takes away what nothing leads to, until nothing is left, or only cycles and what follows them.
    let mut incoming: BTreeMap<usize, usize> = BTreeMap::new();
    for (from, to) in &edges {
        incoming.entry(*from).or_default();
        for to in to {
            *incoming.entry(*to).or_default() += 1;
        }
    }
    let mut free: Vec<usize> = incoming.iter().filter(|(_, n)| **n == 0).map(|(node, _)| *node).collect();
    while let Some(node) = free.pop() {
        incoming.remove(&node);
        for to in edges.get(&node).into_iter().flatten() {
            if let Some(count) = incoming.get_mut(to) {
                *count -= 1;
                if *count == 0 {
                    free.push(*to);
                }
            }
        }
    }
    if incoming.is_empty() { None } else { Some(walk(&edges, &incoming)) }
}

/// Follows what is left backwards until a transaction comes again.
fn walk(edges: &BTreeMap<usize, BTreeSet<usize>>, left: &BTreeMap<usize, usize>) -> Vec<usize> {
    let before = |node: usize| {
        edges.iter().find(|(from, to)| left.contains_key(from) && to.contains(&node)).map(|(from, _)| *from)
    };
    let mut path: Vec<usize> = left.keys().take(1).copied().collect();
    while let Some(node) = path.last().and_then(|node| before(*node)) {
        if let Some(at) = path.iter().position(|known| *known == node) {
            return path.split_off(at);
        }
        path.push(node);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    /// Reads `a1.7 r1=7,8 !` per transaction: appends 7 to list 1, reads list 1; `!` aborted, `?` open.
    fn forge(text: &str) -> Vec<Transaction> {
        text.split('|')
            .enumerate()
            .map(|(number, line)| {
                let mut end = End::Committed;
                let mut steps = Vec::new();
                for word in line.split_whitespace() {
                    let (kind, rest) = word.split_at(1);
                    match kind {
                        "!" => end = End::Aborted,
                        "?" => end = End::Open,
                        "a" => {
                            let (key, value) = rest.split_once('.').expect("key.value");
                            steps
                                .push(Step::Append(key.parse().expect("key"), value.parse().expect("value")));
                        }
                        _ => {
                            let (key, seen) = rest.split_once('=').expect("key=values");
                            steps.push(Step::Read(key.parse().expect("key"), Some(numbers(seen))));
                        }
                    }
                }
                let at = u64::try_from(number).expect("small") * 1000;
                Transaction {
                    steps,
                    end,
                    span: Span { invoked: Moment(at), finished: Moment(at + 10), server: 0 },
                }
            })
            .collect()
    }

    /// Lists at the end: `1=7,8 2=9`.
    fn is(text: &str) -> BTreeMap<u64, Vec<u64>> {
        text.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(key, values)| (key.parse().expect("key"), numbers(values)))
            .collect()
    }

    #[track_caller]
    fn check(history: &str, end: &str, expected: &str) {
        let found = judge(&forge(history), &is(end), |_| false);
        let said = format!("lost {}, wrong {:?}, stale {}", found.lost.len(), found.wrong, found.stale);
        assert!(said.contains(expected), "{history}: {said}");
    }

    const FINE: &str = "lost 0, wrong [], stale 0";

    #[test]
    fn a_history_that_an_order_explains_is_fine() {
        check("a1.1 a2.2|r1=1 a1.3|r1=1,3 r2=2", "1=1,3 2=2", FINE);
        // An open one may be there, and may be read.
        check("a1.1 ?|r1=1", "1=1", FINE);
        check("a1.1 ?|r1=", "", FINE);
    }

    #[test]
    fn each_violation_is_caught() {
        check("a1.1|a1.2", "1=1", "lost 1");
        check("a1.1", "1=1,9", "never sent");
        check("a1.1 !", "1=1", "aborted and is there");
        check("a1.1|a1.2", "1=1,2,1", "twice");
        check("a1.1 a2.2 ?", "1=1", "1 of 2 values");
        // Reordered: it was read the other way round.
        check("a1.1|a1.2|r1=2", "1=1,2", "no beginning");
        // A read that later vanishes.
        check("a1.1 ?|r1=1", "", "no beginning");
        check("a1.1|r1=", "1=1", "stale 1");
    }

    #[test]
    fn reads_that_no_order_explains_are_caught() {
        // Write skew: each read what the other had not yet written.
        check("a1.1 r2=|a2.2 r1=", "1=1 2=2", "no order explains");
        // A fractured read: it saw the second value of one transaction and not the first.
        check("a1.1 a2.2|r1= r2=2", "1=1 2=2", "no order explains");
        // The same over three.
        check("a1.1|r1=1 a2.2|r2=2 r1=", "1=1 2=2", "no order explains");
    }

    #[test]
    fn what_asynchronous_mode_may_lose_is_excused_and_nothing_more() {
        let history = forge("a1.1|a1.2|a1.3");
        let found = judge(&history, &is("1=1"), |span| span.invoked == Moment(1000));
        assert_eq!(found.lost.iter().map(|(value, _)| *value).collect::<Vec<_>>(), [3]);
    }
}
