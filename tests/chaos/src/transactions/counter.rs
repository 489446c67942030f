//! Counters that are read back: what any client read on a primary is never absent later (I11).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{End, Kind, Shared, Span};
use crate::random::Random;
use crate::sql::Rows;

/// One transaction on a client's own counter.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Whose counter.
    pub client: u32,
    /// Whether it counted up, or only read.
    pub adds: bool,
    /// What it read, or what it had become; `None` where the answer is not known.
    pub value: Option<u64>,
    /// What became of it.
    pub end: End,
    /// When and where.
    pub span: Span,
}

/// The workload.
#[derive(Debug, Default)]
pub struct Counter {
    drawn: Mutex<BTreeMap<u32, bool>>,
    seen: Shared<Seen>,
}

/// What reads all counters.
pub const FINAL: &str = "SELECT id, n FROM counters";

/// Reads the answer to [`FINAL`].
pub fn counters(rows: &Rows) -> BTreeMap<u32, u64> {
    rows.iter()
        .filter_map(|row| match row.as_slice() {
            [Some(id), Some(n)] => Some((id.parse().ok()?, n.parse().ok()?)),
            _ => None,
        })
        .collect()
}

impl Counter {
    /// All that clients saw.
    pub fn history(&self) -> Vec<Seen> {
        self.seen.all()
    }
}

impl Kind for Counter {
    fn schema(&self) -> String {
        "CREATE TABLE IF NOT EXISTS counters (id int PRIMARY KEY, n bigint NOT NULL); \
         INSERT INTO counters SELECT id, 0 FROM generate_series(0, 9) id ON CONFLICT DO NOTHING; \
         GRANT SELECT, UPDATE ON counters TO chaos"
            .to_owned()
    }

    fn next(&self, client: u32, random: &mut Random) -> String {
        let adds = random.below(2) == 0;
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).insert(client, adds);
        if adds {
            format!("UPDATE counters SET n = n + 1 WHERE id = {client} RETURNING n")
        } else {
            format!("SELECT n FROM counters WHERE id = {client}")
        }
    }

    fn note(&self, client: u32, end: End, span: Span, rows: &Rows) {
        let adds = self.drawn.lock().unwrap_or_else(PoisonError::into_inner).remove(&client) == Some(true);
        let value = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        self.seen.push(Seen { client, adds, value, end, span });
    }
}

/// What is wrong with what clients saw, each in words. `excused` as in `append`.
pub fn judge(history: &[Seen], end: &BTreeMap<u32, u64>, excused: impl Fn(&Span) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let clients: std::collections::BTreeSet<u32> = history.iter().map(|seen| seen.client).collect();
    for client in clients {
        let own: Vec<&Seen> = history.iter().filter(|seen| seen.client == client).collect();
        let count =
            |keep: fn(&&&Seen) -> bool| u64::try_from(own.iter().filter(keep).count()).unwrap_or(u64::MAX);
        let told = count(|seen| seen.adds && seen.end == End::Committed);
        let sent = count(|seen| seen.adds && seen.end != End::Aborted);
        let forgiven = own.iter().any(|seen| excused(&seen.span));
        let last = end.get(&client).copied().unwrap_or(0);
        if last > sent || (last < told && !forgiven) {
            wrong.push(format!("counter {client} is {last}: {told} were acknowledged, {sent} sent"));
        }
        // One client, one step after the other: what it saw never shrinks.
        let mut highest = 0;
        for seen in own.iter().filter(|seen| seen.end == End::Committed) {
            let Some(value) = seen.value else { continue };
            if value < highest && !forgiven {
                wrong.push(format!(
                    "counter {client} was {highest}, and {value} when member {} was asked later",
                    seen.span.server + 1
                ));
            }
            highest = highest.max(value);
        }
        if last < highest && !forgiven {
            wrong.push(format!("counter {client} is {last}, and was {highest} when it was read"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    /// Reads `+3 =3 +?`: counted up to 3, read 3, counted up without an answer.
    #[track_caller]
    fn check(history: &str, end: u64, expected: &[&str]) {
        let history: Vec<Seen> = history
            .split_whitespace()
            .map(|word| {
                let (kind, value) = word.split_at(1);
                let value = value.parse().ok();
                Seen {
                    client: 0,
                    adds: kind == "+",
                    value,
                    end: if value.is_some() { End::Committed } else { End::Open },
                    span: Span { invoked: Moment(0), finished: Moment(1), server: 0 },
                }
            })
            .collect();
        assert_eq!(judge(&history, &BTreeMap::from([(0, end)]), |_| false), expected);
    }

    #[test]
    fn what_was_read_never_vanishes() {
        check("+1 =1 +2 =2", 2, &[]);
        check("+1 +? =2", 2, &[]);
        check("+1 +? =1", 1, &[]);
        check(
            "+1 +2",
            1,
            &["counter 0 is 1: 2 were acknowledged, 2 sent", "counter 0 is 1, and was 2 when it was read"],
        );
        // An unacknowledged step was read, and is gone.
        check(
            "+1 +? =2 =1",
            1,
            &[
                "counter 0 was 2, and 1 when member 1 was asked later",
                "counter 0 is 1, and was 2 when it was read",
            ],
        );
        check("+1", 2, &["counter 0 is 2: 1 were acknowledged, 1 sent"]);
    }
}
