//! How often a password may be tried.
//!
//! Failures are counted by address and user name together and by address alone, over a window.
//! Counting by user name alone would let anyone lock a user out. Memory is bounded.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_base::Clock;
use tokio::sync::{Semaphore, SemaphorePermit};

const WINDOW: Duration = Duration::from_secs(300);
/// Failures of one user from one address within the window.
const USER_MAX: usize = 8;
/// Failures of one address within the window, whatever the user.
const ADDRESS_MAX: usize = 40;
/// Keys remembered; beyond it the stalest goes.
const KEYS_MAX: usize = 10_000;

/// Passwords compared at the same time; each takes 19 MiB.
const COMPARED_MAX: usize = 4;

type Key = (Option<IpAddr>, Option<String>);

#[derive(Debug)]
pub(crate) struct Limits {
    clock: Arc<dyn Clock>,
    failures: Mutex<HashMap<Key, Vec<Duration>>>,
    turns: Semaphore,
}

fn keys(address: Option<IpAddr>, user: &str) -> [(Key, usize); 2] {
    let user: String = user.chars().take(64).collect();
    [((address, Some(user)), USER_MAX), ((address, None), ADDRESS_MAX)]
}

impl Limits {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, failures: Mutex::default(), turns: Semaphore::new(COMPARED_MAX) }
    }

    /// A turn to compare a password; `None` only while the process ends.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// How long to wait before the next try; `None` if it may be made now.
    pub(crate) fn wait(&self, address: Option<IpAddr>, user: &str) -> Option<Duration> {
        let now = self.clock.monotonic();
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        keys(address, user)
            .iter()
            .filter_map(|(key, max)| {
                let recent: Vec<_> = failures.get(key)?.iter().filter(|at| now.saturating_sub(**at) < WINDOW).collect();
                let earliest = recent.len().checked_sub(*max).and_then(|i| recent.get(i))?;
                Some((**earliest + WINDOW).saturating_sub(now))
            })
            .max()
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, address: Option<IpAddr>, user: &str) {
        let now = self.clock.monotonic();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() + 2 > KEYS_MAX {
            failures.retain(|_, times| times.last().is_some_and(|at| now.saturating_sub(*at) < WINDOW));
        }
        // a failure has two keys, and both may be new
        while failures.len() + 2 > KEYS_MAX
            && let Some(stalest) =
                failures.iter().min_by_key(|(_, times)| times.last().copied()).map(|(k, _)| k.clone())
        {
            failures.remove(&stalest);
        }
        for (key, max) in keys(address, user) {
            let times = failures.entry(key).or_default();
            times.push(now);
            if times.len() > max {
                times.remove(0);
            }
        }
    }

    /// Forgets a user's failures after a success.
    pub(crate) fn passed(&self, address: Option<IpAddr>, user: &str) {
        let [(key, _), _] = keys(address, user);
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use millrace_base::clock::ManualClock;

    use super::*;

    #[test]
    fn tries_are_limited_for_a_while() {
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(clock.clone());
        let here = Some(IpAddr::from([127, 0, 0, 1]));
        for _ in 0..USER_MAX {
            assert_eq!(limits.wait(here, "ann"), None);
            limits.failed(here, "ann");
        }
        assert_eq!(limits.wait(here, "ann"), Some(WINDOW));
        assert_eq!(limits.wait(here, "bob"), None, "another user");
        assert_eq!(limits.wait(Some(IpAddr::from([10, 0, 0, 1])), "ann"), None, "another address");
        clock.advance(WINDOW);
        assert_eq!(limits.wait(here, "ann"), None);
        limits.failed(here, "ann");
        limits.passed(here, "ann");
        assert_eq!(limits.wait(here, "ann"), None);
    }

    #[test]
    fn an_address_is_limited_over_all_users() {
        let limits = Limits::new(Arc::new(ManualClock::default()));
        for i in 0..ADDRESS_MAX {
            limits.failed(None, &format!("user{i}"));
        }
        assert!(limits.wait(None, "someone").is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Limits::new(Arc::new(ManualClock::default()));
        for i in 0..KEYS_MAX + 100 {
            limits.failed(None, &i.to_string());
        }
        assert!(limits.failures.lock().unwrap().len() <= KEYS_MAX);
    }
}
