//! How long to wait before the next try.

use std::time::Duration;

/// Doubling delays between a first and a greatest one, with up to a fifth taken off at random
/// so that many waiters do not return together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, tries: 0 }
    }

    /// Failures since the last [`Backoff::reset`].
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The wait before the next try; each call doubles it up to the greatest.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1u32.checked_shl(self.tries.min(20)).unwrap_or(u32::MAX));
        self.tries = self.tries.saturating_add(1);
        full.min(self.max).mul_f64(rand::random_range(0.8..=1.0))
    }

    /// After a success that lasted.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_greatest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay()).collect();
        for (delay, full_ms) in delays.iter().zip([100u64, 200, 400, 800, 1000, 1000]) {
            let full = Duration::from_millis(full_ms);
            assert!(*delay <= full && *delay >= full.mul_f64(0.79), "{delay:?} of {full:?}");
        }
        assert!(delays[39] <= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
