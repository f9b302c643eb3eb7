//! Time as an argument. The only place that reads the wall clock.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01 UTC (PostgreSQL's own resolution).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// Microseconds between 1970-01-01 and PostgreSQL's epoch 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

impl Micros {
    /// From a timestamp of the replication protocol: microseconds since 2000-01-01 UTC.
    #[must_use]
    pub fn from_postgres(since_2000: i64) -> Self {
        Self(since_2000.saturating_add(POSTGRES_EPOCH_MICROS))
    }

    /// As the replication protocol wants it: microseconds since 2000-01-01 UTC.
    #[must_use]
    pub fn to_postgres(self) -> i64 {
        self.0.saturating_sub(POSTGRES_EPOCH_MICROS)
    }

    /// Time passed since `earlier`; zero when `earlier` lies ahead (a clock set back).
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// For people and JSON; `None` outside the years -9999 to 9999.
    #[must_use]
    pub fn to_timestamp(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0).ok()
    }
}

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_timestamp() {
            Some(timestamp) => write!(f, "{timestamp:.0}"),
            None => write!(f, "{} µs", self.0),
        }
    }
}

/// Where decisions get the time from.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Wall-clock time: for people and records, never for deadlines, since it can be set back.
    fn wall(&self) -> Micros;
    /// Monotonic time since an arbitrary start, the machine's own sleep included: for deadlines and ages.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Duration,
}

/// Since the machine was booted. Unlike `Instant`'s, this clock goes on while the machine is suspended: a lease does too.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

impl SystemClock {
    #[must_use]
    pub fn new() -> Self {
        Self { start: since_boot() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn wall(&self) -> Micros {
        Micros(Timestamp::now().as_microsecond())
    }

    fn monotonic(&self) -> Duration {
        since_boot().saturating_sub(self.start)
    }
}

/// A clock that moves only when told to; both of its faces move together.
#[derive(Debug, Default)]
pub struct ManualClock {
    micros: AtomicI64,
}

impl ManualClock {
    /// Moves both faces forward.
    pub fn advance(&self, by: Duration) {
        self.micros.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Micros {
        Micros(self.micros.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.micros.load(Ordering::SeqCst)).unwrap_or(0))
    }
}
