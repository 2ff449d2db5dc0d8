//! Random numbers that never change between versions, and the hash of a run.

use std::hash::Hasher;

/// SplitMix64. It stands here so that a seed means the same schedule for ever, whatever becomes of a crate.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True this often.
    pub fn chance(&mut self, rate: f64) -> bool {
        // 53 bits fit a double exactly.
        let drawn = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < rate
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, (low, high): (i64, i64)) -> i64 {
        let width = (high - low + 1).unsigned_abs().max(1);
        low.saturating_add_unsigned(self.next() % width)
    }

    /// A number from `low` to about `high` whose order of magnitude is drawn first, so that short ones are as frequent
    /// as long ones.
    pub fn spread(&mut self, (low, high): (i64, i64)) -> i64 {
        let low = low.max(1);
        let doublings = i64::from((high / low).max(1).ilog2());
        let scale = low << self.between((0, doublings));
        self.between((scale, (2 * scale).min(high.max(scale))))
    }
}

/// Takes in every step of a run. Two runs with the same hash took the same steps.
#[derive(Debug, Clone, Default)]
pub struct Trail(u64);

impl Trail {
    fn step(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

impl Hasher for Trail {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.step(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.step(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.step(number);
    }

    fn write_i64(&mut self, number: i64) {
        self.step(number.cast_unsigned());
    }

    fn write_usize(&mut self, number: usize) {
        self.step(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.step((number as i64).cast_unsigned());
    }
}
