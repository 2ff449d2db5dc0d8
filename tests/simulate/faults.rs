//! The faults of a run, and the change of the kept time by an operator.

use crate::random::Random;
use crate::settings::Settings;
use crate::table::Ms;

/// Decides on faults. They have random numbers of their own, so that leaving one out changes little else.
pub struct Faults {
    random: Random,
    pub on: bool,
    /// The number of faults so far.
    pub fired: u64,
    left_out: Vec<u64>,
}

impl Faults {
    pub fn new(seed: u64, left_out: Vec<u64>) -> Self {
        Self { random: Random::new(seed ^ 0x5bd1_e995_9d1b_3f2d), on: true, fired: 0, left_out }
    }

    /// Whether a fault with this rate happens now.
    pub fn hit(&mut self, rate: f64) -> bool {
        if !self.on || rate <= 0.0 || !self.random.chance(rate) {
            return false;
        }
        self.fired += 1;
        !self.left_out.contains(&self.fired)
    }
}

/// The kept time, which an operator may change while functions of both kinds run.
pub struct Kept {
    before: Ms,
    after: Ms,
    from: Ms,
    to: Ms,
}

impl Kept {
    pub fn new(random: &mut Random, settings: &Settings) -> Self {
        let Settings { kept: short, other_kept: long, kept_changes, .. } = *settings;
        let mut kept = Self { before: short, after: short, from: Ms::MAX, to: Ms::MAX };
        if random.chance(kept_changes) {
            kept.from = random.spread((short / 8, 4 * short));
            kept.to = kept.from + random.between((0, short / 4));
            if random.chance(0.5) {
                kept.after = long;
            } else {
                kept.before = long;
            }
        }
        kept
    }

    /// The one that a function starts with.
    pub fn at(&self, now: Ms, random: &mut Random) -> Ms {
        let changed = now >= self.to || (now >= self.from && random.chance(0.5));
        if changed { self.after } else { self.before }
    }
}
