//! Chance, all of it from one seed.

/// A small generator (xorshift64*): the same seed, the same numbers, for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed; another `stream` of the same seed is independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self((seed ^ stream.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    /// Draws a number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Draws a number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    /// Draws a number from `low` up to and without `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// Says yes so many times out of a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// Draws an index below `length`.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
}
