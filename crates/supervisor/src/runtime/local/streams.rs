//! Who streams from this primary, as its own server says it.
//!
//! The Raft leader lets commits go on alone when nobody streams (docs/safety.md 6). So nothing here may make a primary
//! that is dying, silent or just back look like one whose standbys have left.

use std::collections::BTreeMap;
use std::time::Duration;

use rhone_consensus::ids::DataId;

use crate::runtime::clock::BootTime;
use crate::view::Stream;

/// A standby whose word is older is not heard: it says how far it is once a second, unless the fsync
/// of a slow card holds it up.
const LIVE: Duration = Duration::from_secs(2);

/// A walsender that ended is held to be on its way back for this long: its standby connects within 0.2 s.
/// Counted from the first answer without it: a server that was silent itself has missed nobody.
const RECONNECT: Duration = Duration::from_secs(1);

/// What a primary's own server says of one walsender.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// Whose data it feeds.
    pub data: DataId,
    /// The standby's clock at its last word.
    pub said: f64,
    /// Whether it has flushed nearly all that the primary has.
    pub caught_up: bool,
}

/// What is known of the standbys. It outlives the instance: a report that still tells of a primary which has
/// ended meanwhile must not say that nobody streamed from it.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    known: BTreeMap<DataId, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    said: f64,
    /// When that was news.
    heard: BootTime,
    caught_up: bool,
    absent_since: Option<BootTime>,
    live: bool,
}

impl Streams {
    /// Forgets all: another instance answers for the first time.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Takes note of all walsenders, as the server lists them at `now`.
    pub fn note(&mut self, words: &[Word], now: BootTime) {
        for word in words {
            let before = self.known.get(&word.data);
            let heard = match before {
                Some(known) if (known.said - word.said).abs() < f64::EPSILON => known.heard,
                Some(_) | None => now,
            };
            let live = now.saturating_since(heard) < LIVE;
            let (said, caught_up) = (word.said, word.caught_up);
            self.known.insert(word.data, Known { said, heard, caught_up, absent_since: None, live });
        }
        self.known.retain(|data, known| {
            if words.iter().any(|word| word.data == *data) {
                return true;
            }
            let since = *known.absent_since.get_or_insert(now);
            (known.live, known.caught_up) = (true, false);
            now.saturating_since(since) < RECONNECT
        });
    }

    /// What the Raft leader is told.
    pub fn told(&self) -> BTreeMap<DataId, Stream> {
        let stream = |known: &Known| Stream { live: known.live, caught_up: known.caught_up };
        self.known.iter().map(|(data, known)| (*data, stream(known))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: DataId = DataId(1);
    const TWO: DataId = DataId(2);

    fn at(milliseconds: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + milliseconds * 1_000_000)
    }

    fn word(data: DataId, said: f64) -> Word {
        Word { data, said, caught_up: true }
    }

    fn live(streams: &Streams) -> Vec<DataId> {
        streams.told().iter().filter(|(_, stream)| stream.live).map(|(data, _)| *data).collect()
    }

    #[test]
    fn a_standby_that_says_nothing_new_is_no_longer_live() {
        let mut streams = Streams::default();
        streams.note(&[word(ONE, 1.0), word(TWO, 1.0)], at(0));
        streams.note(&[word(ONE, 2.0), word(TWO, 1.0)], at(1000));
        assert_eq!(live(&streams), [ONE, TWO]);
        streams.note(&[word(ONE, 3.0), word(TWO, 1.0)], at(2000));
        assert_eq!(live(&streams), [ONE]);
        assert_eq!(streams.told().len(), 2, "it is still connected");
    }

    #[test]
    fn a_standby_whose_connection_ended_may_come_back() {
        let mut streams = Streams::default();
        streams.note(&[word(ONE, 1.0)], at(0));
        streams.note(&[], at(500));
        assert_eq!(streams.told().get(&ONE), Some(&Stream { live: true, caught_up: false }));
        streams.note(&[word(ONE, 2.0)], at(900));
        streams.note(&[], at(1000));
        streams.note(&[], at(1999));
        assert_eq!(live(&streams), [ONE], "counted anew");
        streams.note(&[], at(2000));
        assert!(streams.told().is_empty());
    }

    #[test]
    fn a_server_that_was_silent_itself_has_missed_nobody() {
        let mut streams = Streams::default();
        streams.note(&[word(ONE, 1.0), word(TWO, 1.0)], at(0));
        // Nine seconds of crash recovery.
        streams.note(&[], at(9000));
        assert_eq!(live(&streams), [ONE, TWO]);
        streams.note(&[word(TWO, 9.2)], at(9200));
        streams.note(&[word(TWO, 10.0)], at(10_000));
        assert_eq!(live(&streams), [TWO]);
    }
}
