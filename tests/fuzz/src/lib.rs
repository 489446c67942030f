//! Shows to a parser what a stranger could send: valid messages, changed by seed.
//!
//! [`Fuzz::run`] fails when a parser panics or takes memory out of proportion, and prints what it was shown, made as
//! small as still fails: those bytes become a case of the parser's own tests. `RHONE_FUZZ_SECONDS=60` (`make fuzz
//! SECONDS=60`) goes on for so long with a seed of its own, which is printed; `RHONE_FUZZ_SEED` draws the same again.

mod memory;
mod mutate;
mod quiet;
mod random;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use self::random::Random;

/// How many bytes a parser may hold at once, beside [`PER_BYTE`] for each byte that it is shown: what serde reserves
/// for a sequence before its elements are there (1 MiB each), a few levels deep.
const BASE: usize = 8 << 20;
/// How many bytes a parser may hold for each byte that it is shown.
const PER_BYTE: usize = 256;
/// The longest message that is shown.
const LONGEST: usize = 1 << 16;
/// The most messages that are kept to be changed further.
const POOL: usize = 512;
/// How often a failing message is made smaller at most.
const SHRINKS: usize = 2000;

/// A parser and what it is shown.
#[derive(Clone, Debug)]
pub struct Fuzz {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    cases: usize,
}

/// What became of one message.
enum Shown {
    /// The parser came to an end, with this hash of what it said.
    Done(u64),
    /// It did not, and why.
    Failed(String),
}

impl Fuzz {
    /// Takes the parser's name, and valid messages.
    pub fn new<T: Into<Vec<u8>>>(name: &'static str, corpus: impl IntoIterator<Item = T>) -> Self {
        let corpus: Vec<Vec<u8>> = corpus.into_iter().map(Into::into).collect();
        assert!(!corpus.is_empty(), "{name}: there is nothing to change");
        Self { name, corpus, words: Vec::new(), cases: 2000 }
    }

    /// Adds words that mean something to the parser.
    #[must_use]
    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// Shows so many messages where no time is set.
    #[must_use]
    pub fn cases(mut self, cases: usize) -> Self {
        self.cases = cases;
        self
    }

    /// Shows messages. What `parse` returns says what became of one: a message for which that is new is changed
    /// further.
    #[expect(clippy::disallowed_methods, reason = "how long to go on: no parser sees it")]
    pub fn run<R: Hash>(&self, parse: impl Fn(&[u8]) -> R) {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seconds = number("RHONE_FUZZ_SECONDS");
        let seed = number("RHONE_FUZZ_SEED").unwrap_or_else(|| match seconds {
            Some(_) => random::fresh(),
            None => random::hash(self.name.as_bytes()),
        });
        quiet::install();
        let (mut random, begun) = (Random::new(seed), Instant::now());
        let (mut pool, mut known) = (self.corpus.clone(), BTreeSet::new());
        let mut shown = 0;
        loop {
            let message = match self.corpus.get(shown) {
                Some(message) => message.clone(),
                None => mutate::change(&mut random, &pool, &self.words, LONGEST),
            };
            match show(&parse, &message) {
                Shown::Failed(why) => self.fail(&parse, message, &why, seed),
                Shown::Done(hash) => {
                    if known.insert(hash) && pool.len() < POOL {
                        pool.push(message);
                    }
                }
            }
            shown += 1;
            let over = match seconds {
                Some(seconds) => begun.elapsed() >= Duration::from_secs(seconds),
                None => shown >= self.cases,
            };
            if over && shown >= self.corpus.len() {
                break;
            }
        }
        println!("{}: {shown} messages, {} kinds of answer, seed {seed}", self.name, known.len());
    }

    fn fail<R: Hash>(&self, parse: &impl Fn(&[u8]) -> R, message: Vec<u8>, why: &str, seed: u64) {
        let message = smaller(parse, message);
        let name = self.name;
        let mut hex = String::new();
        for byte in &message {
            let _ = write!(hex, "\\x{byte:02x}");
        }
        let text = String::from_utf8_lossy(&message);
        panic!(
            "{name}: {why}\n{} bytes (seed {seed}): b\"{hex}\"\nas text: {text}\nmake it a case of the parser's own \
             tests",
            message.len()
        );
    }
}

/// Joins messages that are changed each for itself: a broken one breaks none of the others.
pub fn join(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        let length = u16::try_from(part.len()).expect("a part of less than 64 KiB");
        joined.extend(length.to_le_bytes());
        joined.extend(part);
    }
    joined
}

/// Takes apart what [`join`] joined, as far as there is something.
pub fn parts(mut joined: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = joined.split_first_chunk::<2>() {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))));
        parts.push(part);
        joined = rest;
    }
    parts
}

fn show<R: Hash>(parse: &impl Fn(&[u8]) -> R, message: &[u8]) -> Shown {
    let (told, held) =
        memory::most_held(|| quiet::quietly(|| catch_unwind(AssertUnwindSafe(|| parse(message)))));
    let told = match told {
        Ok(told) => told,
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            return Shown::Failed(format!("it panics: {}", text.unwrap_or("without a word")));
        }
    };
    let limit = message.len().saturating_mul(PER_BYTE).saturating_add(BASE);
    if held > limit {
        return Shown::Failed(format!("it holds {held} bytes for {} bytes, over {limit}", message.len()));
    }
    let mut hasher = DefaultHasher::new();
    told.hash(&mut hasher);
    Shown::Done(hasher.finish())
}

/// Leaves out of a failing message what it fails without.
fn smaller<R: Hash>(parse: &impl Fn(&[u8]) -> R, mut message: Vec<u8>) -> Vec<u8> {
    let mut left = SHRINKS;
    let mut step = message.len().next_power_of_two();
    while step > 0 {
        let mut at = 0;
        while at < message.len() && left > 0 {
            left -= 1;
            let mut shorter = message.clone();
            shorter.drain(at..message.len().min(at + step));
            if matches!(show(parse, &shorter), Shown::Failed(_)) {
                message = shorter;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(fuzz: &Fuzz, parse: impl Fn(&[u8]) -> usize) -> String {
        let payload = catch_unwind(AssertUnwindSafe(|| fuzz.run(parse))).expect_err("nothing was found");
        payload.downcast_ref::<String>().expect("words").clone()
    }

    #[test]
    fn a_parser_that_panics_is_found_with_the_bytes_that_it_takes() {
        let fuzz = Fuzz::new("panics", [b"hello, world".to_vec()]);
        let text = failure(&fuzz, |bytes| {
            assert!(!bytes.contains(&0xff), "a byte");
            bytes.len()
        });
        assert!(
            text.contains("it panics: a byte")
                && text.contains("1 bytes (seed")
                && text.contains("b\"\\xff\"")
        );
    }

    #[test]
    fn a_parser_that_believes_a_length_is_found() {
        let fuzz = Fuzz::new("believes", [vec![4, 0, 0, 0, 1, 2, 3, 4]]);
        let text = failure(&fuzz, |bytes| {
            let length = bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
            Vec::<u8>::with_capacity(length as usize).capacity()
        });
        assert!(text.contains("it holds "), "{text}");
    }

    #[test]
    fn what_leads_to_another_answer_is_changed_further() {
        // Four right bytes one after another: by chance alone once in four thousand million messages.
        let fuzz = Fuzz::new("deep", [vec![0; 4]]).cases(200_000);
        let text = failure(&fuzz, |bytes| {
            let right = bytes.iter().zip(b"RGST").take_while(|(one, other)| one == other).count();
            assert!(right < 4, "all four");
            right
        });
        assert!(text.contains("all four"));
    }
}
