//! How long things take, counted by length. Pure; a count costs a few nanoseconds and no memory beyond the array.

use std::time::Duration;

/// Upper bounds of the counts, in microseconds; what is longer than all of them has a count of its own.
pub const BOUNDS_US: [u64; 20] = [
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
];

/// Times by length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By [`BOUNDS_US`]: how many were no longer than that, and longer than the bound before it.
    pub counts: [u64; BOUNDS_US.len() + 1],
}

impl Histogram {
    /// Notes `times` of the same length.
    #[inline]
    pub(crate) fn note(&mut self, us: u64, times: u64) {
        let at = BOUNDS_US.partition_point(|bound| us > *bound);
        if let Some(count) = self.counts.get_mut(at) {
            *count += times;
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut counts = self.counts;
        counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count = count.saturating_add(more));
        Self { counts }
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What `percent` of them do not exceed, as far as the bounds tell: evenly spread between two of them, as
    /// Prometheus assumes. Beyond the last bound it is that bound. `None` if there are none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let total = self.total();
        let rank = total.checked_mul(percent)?.div_ceil(100).max(1);
        let (mut below, mut from) = (0, 0);
        for (count, to) in self.counts.iter().zip(BOUNDS_US) {
            if below + count >= rank {
                let part = u128::from(to - from) * u128::from(rank - below) / u128::from(*count);
                return Some(Duration::from_micros(from + u64::try_from(part).unwrap_or(0)));
            }
            (below, from) = (below + count, to);
        }
        (total > 0).then_some(Duration::from_micros(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_up_to_their_bound() {
        let mut times = Histogram::default();
        assert_eq!(times.percentile(50), None);
        for us in [0, 50, 51, 120_000_000, 120_000_001, u64::MAX] {
            times.note(us, 1);
        }
        assert_eq!((times.counts[0], times.counts[1], times.counts[19], times.counts[20]), (2, 1, 1, 2));
        assert_eq!(times.plus(&times).total(), 12);
        assert_eq!(times.percentile(99), Some(Duration::from_secs(120)));
    }

    #[test]
    fn percentiles_lie_between_the_bounds() {
        let mut times = Histogram::default();
        times.note(60, 90);
        times.note(900_000, 10);
        let us = |percent| times.percentile(percent).unwrap().as_micros();
        assert_eq!((us(45), us(90)), (75, 100));
        assert_eq!((us(95), us(99)), (750_000, 950_000));
    }
}
