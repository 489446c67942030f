//! Noise in which no failover may come: whether one came, from what clients saw and who is primary.

use std::collections::BTreeSet;

use crate::history::{Answer, History};
use crate::outcome::Round;

/// Says whether somebody was promoted.
pub fn judge(rounds: &[Round], history: &History) -> Vec<String> {
    moved(rounds).into_iter().chain(promoted(history)).collect()
}

/// Names the rounds after which another member was primary.
fn moved(rounds: &[Round]) -> Vec<String> {
    let moved = rounds.iter().filter(|round| round.whole.is_some() && round.primary[0] != round.primary[1]);
    moved
        .map(|Round { number, primary: [from, to], .. }| {
            format!("round {number}: the primary moved in noise, {from} -> {to}")
        })
        .collect()
}

/// Says when somebody was promoted, be it the same member: acknowledgements of more than one timeline.
fn promoted(history: &History) -> Option<String> {
    let timelines: BTreeSet<u32> = history
        .operations
        .iter()
        .filter_map(|operation| match operation.answer {
            Answer::Acknowledged { timeline } => Some(timeline),
            Answer::Unknown => None,
        })
        .collect();
    (timelines.len() > 1).then(|| format!("a primary was promoted in noise: timelines {timelines:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::history::{Key, Operation};

    #[test]
    fn a_primary_that_moves_in_noise_is_caught() {
        let round = |number, whole, primary: [&str; 2]| Round {
            number,
            at: 0.0,
            faults: Vec::new(),
            held: 0.1,
            gap: 0.1,
            whole,
            primary: primary.map(str::to_owned),
            load: 1.0,
        };
        let mut rounds = vec![round(1, Some(0.1), ["n1", "n1"]), round(2, Some(0.2), ["n1", "n1"])];
        assert_eq!(moved(&rounds), Vec::<String>::new());
        rounds.push(round(3, Some(0.1), ["n1", "n2"]));
        // Never whole is a violation of its own.
        rounds.push(round(4, None, ["n2", "?"]));
        assert_eq!(moved(&rounds), ["round 3: the primary moved in noise, n1 -> n2"]);
    }

    #[test]
    fn a_primary_that_was_promoted_again_in_noise_is_caught() {
        let mut history = History::default();
        let mut acknowledge = |timeline| {
            let key = Key { client: 1, seq: 1 };
            let (invoked, finished) = (Moment(1), Moment(2));
            let answer = Answer::Acknowledged { timeline };
            history.operations.push(Operation { key, server: 0, invoked, finished, answer });
            promoted(&history)
        };
        assert_eq!(acknowledge(1), None);
        assert_eq!(acknowledge(1), None);
        assert_eq!(acknowledge(2).as_deref(), Some("a primary was promoted in noise: timelines {1, 2}"));
    }
}
