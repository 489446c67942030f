//! Accounts between which money moves: whoever reads them all sees what there always was.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{End, Kind, Shared, Span};
use crate::random::Random;
use crate::sql::Rows;

const ACCOUNTS: usize = 8;
const EACH: i64 = 100;

/// The workload.
#[derive(Debug, Default)]
pub struct Bank {
    drawn: Mutex<BTreeMap<u32, bool>>,
    totals: Shared<(i64, Span)>,
}

/// What sums all accounts.
pub const TOTAL: &str = "SELECT sum(balance) FROM accounts";

/// What there always is.
pub fn total() -> i64 {
    i64::try_from(ACCOUNTS).unwrap_or(0) * EACH
}

impl Bank {
    /// What each committed read saw, and when.
    pub fn totals(&self) -> Vec<(i64, Span)> {
        self.totals.all()
    }
}

impl Kind for Bank {
    fn schema(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS accounts (id int PRIMARY KEY, balance bigint NOT NULL); \
             INSERT INTO accounts SELECT id, {EACH} FROM generate_series(1, {ACCOUNTS}) id ON CONFLICT DO NOTHING; \
             GRANT SELECT, UPDATE ON accounts TO chaos"
        )
    }

    fn next(&self, client: u32, random: &mut Random) -> String {
        let reads = random.below(3) == 0;
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).insert(client, reads);
        if reads {
            return format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {TOTAL}; COMMIT");
        }
        let (from, amount) = (1 + random.below(ACCOUNTS), 1 + random.below(5));
        let to = 1 + (from + random.below(ACCOUNTS - 1)) % ACCOUNTS;
        format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; \
             UPDATE accounts SET balance = balance - {amount} WHERE id = {from}; \
             UPDATE accounts SET balance = balance + {amount} WHERE id = {to}; COMMIT"
        )
    }

    fn note(&self, client: u32, end: End, span: Span, rows: &Rows) {
        let read = self.drawn.lock().unwrap_or_else(PoisonError::into_inner).remove(&client);
        if read == Some(true) && end == End::Committed {
            let seen = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
            self.totals.push((seen.unwrap_or(i64::MIN), span));
        }
    }
}

/// The reads that saw another total than there always is.
pub fn judge(totals: &[(i64, Span)]) -> Vec<String> {
    let wrong = totals.iter().filter(|(seen, _)| *seen != total());
    wrong
        .map(|(seen, span)| format!("a read on member {} saw {seen} of {}", span.server + 1, total()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    #[test]
    fn half_a_transfer_is_caught() {
        let span = Span { invoked: Moment(0), finished: Moment(1), server: 1 };
        assert!(judge(&[(800, span), (800, span)]).is_empty());
        assert_eq!(judge(&[(800, span), (797, span)]), ["a read on member 2 saw 797 of 800"]);
    }

    #[test]
    fn a_transfer_moves_between_two_accounts_that_exist() {
        let (bank, mut random) = (Bank::default(), Random::new(1));
        for _ in 0..500 {
            let sql = bank.next(1, &mut random);
            let ids: Vec<usize> = sql
                .split("id = ")
                .skip(1)
                .filter_map(|rest| rest.split([';', ' ']).next()?.parse().ok())
                .collect();
            assert!(ids.is_empty() || ids.len() == 2 && ids[0] != ids[1], "{sql}");
            assert!(ids.iter().all(|id| (1..=ACCOUNTS).contains(id)), "{sql}");
        }
    }
}
