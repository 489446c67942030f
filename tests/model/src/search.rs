//! The search: breadth first, so that the first broken property is reached by a shortest trace.
//!
//! Only a 64-bit fingerprint of each state is kept, and the fingerprint it was reached from: with
//! ten million states the chance that two of them collide at all is about 3 in a million. A trace is
//! found again by walking the fingerprints back and the steps forward.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// A broken property: its name, and what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The property, as docs/safety.md 13 numbers it.
    pub property: &'static str,
    /// What happened.
    pub what: String,
}

/// A world with all that can happen in it.
pub trait World {
    /// One situation.
    type State: Clone + Hash + Eq;
    /// One thing that happens.
    type Step: Display;

    /// Returns where it begins.
    fn begin(&mut self) -> Self::State;

    /// Adds every situation that can come next.
    fn next(&mut self, state: &Self::State, out: &mut Vec<(Self::Step, Self::State)>);

    /// Returns the property that this situation breaks.
    fn broken(&mut self, state: &Self::State) -> Option<Broken>;
}

/// How far to search.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// At most so many steps from the beginning.
    pub depth: usize,
    /// At most about so many states.
    pub states: usize,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// How many different states were seen.
    pub states: usize,
    /// To which depth every state was seen.
    pub depth: usize,
    /// Whether there is nothing beyond.
    pub whole: bool,
    /// How long it took.
    pub took: Duration,
    /// The first broken property, and the steps to it.
    pub broken: Option<(Broken, Vec<String>)>,
}

/// Searches a world.
pub fn search<W: World>(world: &mut W, limit: Limit) -> Found {
    let begun = now();
    let first = world.begin();
    let mut seen: HashMap<u64, u64, BuildHasherDefault<Plain>> = HashMap::default();
    seen.insert(fingerprint(&first), 0);
    let mut frontier = vec![first];
    let mut depth = 0;
    let mut out = Vec::new();
    while depth < limit.depth && !frontier.is_empty() && seen.len() < limit.states {
        let mut next = Vec::new();
        for state in &frontier {
            let from = fingerprint(state);
            world.next(state, &mut out);
            for (_, to) in out.drain(..) {
                let print = fingerprint(&to);
                if seen.contains_key(&print) {
                    continue;
                }
                seen.insert(print, from);
                if let Some(broken) = world.broken(&to) {
                    let trace = trace(world, &seen, print);
                    let took = begun.elapsed();
                    let broken = Some((broken, trace));
                    return Found { states: seen.len(), depth: depth + 1, whole: false, took, broken };
                }
                next.push(to);
            }
        }
        frontier = next;
        depth += 1;
    }
    let whole = frontier.is_empty();
    Found { states: seen.len(), depth, whole, took: begun.elapsed(), broken: None }
}

fn trace<W: World>(
    world: &mut W,
    seen: &HashMap<u64, u64, BuildHasherDefault<Plain>>,
    end: u64,
) -> Vec<String> {
    let mut prints = vec![end];
    while let Some(from) = prints.last().and_then(|print| seen.get(print)).filter(|from| **from != 0) {
        prints.push(*from);
    }
    let mut state = world.begin();
    let mut steps = Vec::new();
    let mut out = Vec::new();
    for print in prints.iter().rev().skip(1) {
        world.next(&state, &mut out);
        let found = out.drain(..).find(|(_, to)| fingerprint(to) == *print);
        let Some((step, to)) = found else {
            steps.push("(the rest of the trace was not found again)".to_owned());
            break;
        };
        steps.push(step.to_string());
        state = to;
    }
    steps
}

/// Returns a state's fingerprint; never 0.
pub(crate) fn fingerprint<T: Hash>(state: &T) -> u64 {
    let mut hasher = Mixer(0x9E37_79B9_7F4A_7C15);
    state.hash(&mut hasher);
    hasher.finish().max(1)
}

/// A fast hasher: each word is mixed in by a 64-by-64-bit multiplication whose halves are folded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixer(u64);

/// A map that is quick to look into.
pub(crate) type Memo<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

impl Mixer {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a product are folded")]
    fn mix(&mut self, word: u64) {
        let product =
            u128::from(self.0 ^ word ^ 0xA076_1D64_78BD_642F) * u128::from(word ^ 0xE703_7ED1_A0B4_28DB);
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(29);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mut last = *self;
        last.mix(0x8EBC_6AF0_9C88_C6E3);
        last.0 ^ (last.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
}

/// Takes a fingerprint for the hash that it is.
#[derive(Clone, Copy, Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

#[expect(clippy::disallowed_methods, reason = "to say how long a search took")]
fn now() -> Instant {
    Instant::now()
}
