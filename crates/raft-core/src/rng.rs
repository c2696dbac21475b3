//! The seeded generator of the protocol's only randomness: election timeouts.

/// SplitMix64: tiny, seedable, and good enough to spread timeouts. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole sequence follows from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `0..bound`.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The bias is below bound / 2^64.
        self.next_u64() % bound
    }

    /// A number from `low..=high`.
    ///
    /// # Panics
    /// When `low > high`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "empty interval");
        low + self.below((high - low).saturating_add(1))
    }

    /// True in `numerator` of `denominator` cases.
    ///
    /// # Panics
    /// When `denominator` is zero.
    pub const fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A generator of its own for a part of the work, so that drawing more numbers in one part does not
    /// shift the others.
    #[must_use]
    pub const fn split(&mut self, stream: u64) -> Self {
        Self::new(self.next_u64() ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }
}
