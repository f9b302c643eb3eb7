//! Connections of one database and user, shared by its clients: who gets one, who waits, when one more is opened or one
//! is given up. Decisions only; sockets are the worker's.
//!
//! Each worker has its own part of a pool; what all parts together may hold is counted in [`PoolShared`].

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{backends::Access, catalog::Catalog, histogram::Histogram, link::PoolMode, statements::Definitions};

/// What makes clients share connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub access: Access,
}

/// How a pool behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    pub mode: PoolMode,
    /// Connections.
    pub size: usize,
    /// More of them, once a client has waited for `reserve_after`.
    pub reserve: usize,
    pub reserve_after: Duration,
    /// Kept open although nobody needs them.
    pub idle_min: usize,
    /// A connection is closed after this, when its transaction ends.
    pub lifetime: Duration,
    /// A connection unused for so long is closed.
    pub idle: Duration,
    /// A client waits for a connection so long at most.
    pub wait: Duration,
    /// Prepared statements on one connection.
    pub statements: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            mode: PoolMode::Transaction,
            size: 25,
            reserve: 5,
            reserve_after: Duration::from_secs(5),
            idle_min: 0,
            lifetime: Duration::from_secs(3_600),
            idle: Duration::from_secs(600),
            wait: Duration::from_secs(120),
            statements: 200,
        }
    }
}

/// What the workers' parts of one pool have in common.
#[derive(Debug, Default)]
pub(crate) struct PoolShared {
    /// Of its database: all pools of it have the same.
    pub(crate) definitions: Definitions,
    servers: AtomicUsize,
    /// Workers with clients that wait and with less than their share of the connections.
    starving: AtomicUsize,
    /// How many share it.
    workers: usize,
}

impl PoolShared {
    /// Of the database whose definitions these are; `workers` share it.
    pub(crate) fn new(definitions: Definitions, workers: usize) -> Self {
        Self { definitions, workers, ..Self::default() }
    }

    /// Takes the right to one more connection.
    pub(crate) fn reserve(&self, max: usize) -> bool {
        self.servers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
    }

    /// Gives it back.
    pub(crate) fn give_back(&self) {
        // never below zero: each was taken before
        let _previous = self.servers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// Some worker has clients that wait, and less than its share; `starves`: the asker itself is one.
    fn is_starving(&self, starves: bool) -> bool {
        self.starving.load(Ordering::Relaxed) > usize::from(starves)
    }

    pub(crate) fn note_starving(&self, starves: bool) {
        if starves {
            self.starving.fetch_add(1, Ordering::Relaxed);
        } else {
            self.starving.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many are taken.
    pub(crate) fn servers(&self) -> usize {
        self.servers.load(Ordering::Relaxed)
    }
}

/// In whole microseconds.
#[inline]
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Of a pool that `workers` share: what one of them may count on, and what it may keep while another has less.
fn shares(size: usize, workers: usize) -> (usize, usize) {
    let workers = workers.max(1);
    ((size / workers).max(1), size.div_ceil(workers).max(1))
}

/// One worker's part of a pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) limits: PoolLimits,
    pub(crate) shared: Arc<PoolShared>,
    /// The place of its database among the worker's [`crate::statements::Statements`].
    pub(crate) statements: usize,
    /// Unused connections; the last one used is used first, so that the others can grow old.
    pub(crate) idle: Vec<usize>,
    /// Clients, first come, first served.
    pub(crate) waiting: VecDeque<Waiting>,
    /// Connections of this worker, unused or not.
    pub(crate) owned: usize,
    /// Asked for and not yet there.
    pub(crate) opening: usize,
    /// After a failure, none is opened before this moment.
    pub(crate) retry_at: Duration,
    pub(crate) paused: bool,
    /// This worker is counted as one that starves.
    pub(crate) starves: bool,
    /// Connections opened before this number was reached are given up when their transaction ends.
    pub(crate) generation: u64,
    /// What the database's functions and relations do, once known.
    pub(crate) catalog: Option<Arc<Catalog>>,
    /// There may be more connections than the limit of now.
    shrinks: bool,
    pub(crate) counts: Counts,
    pub(crate) query_times: Histogram,
    /// Of everyone who asked for a connection; of those who got it at once, it is 0.
    pub(crate) wait_times: Histogram,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) client: usize,
    pub(crate) since: Duration,
}

/// What has happened in a worker's part of a pool since it began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub transactions: u64,
    /// Simple queries, and series of extended ones up to their Sync.
    pub queries: u64,
    pub query_us: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub waits: u64,
    pub wait_us: u64,
    pub transaction_us: u64,
    /// Reads that went to the primary, because no replica had replayed what their client wrote.
    pub behind: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            transactions: of(self.transactions, other.transactions),
            queries: of(self.queries, other.queries),
            query_us: of(self.query_us, other.query_us),
            received_bytes: of(self.received_bytes, other.received_bytes),
            sent_bytes: of(self.sent_bytes, other.sent_bytes),
            waits: of(self.waits, other.waits),
            wait_us: of(self.wait_us, other.wait_us),
            transaction_us: of(self.transaction_us, other.transaction_us),
            behind: of(self.behind, other.behind),
        }
    }
}

impl Pool {
    /// Another worker needs a connection more than this one does.
    pub(crate) fn gives_up_one(&self) -> bool {
        let (_, most) = shares(self.limits.size, self.shared.workers);
        self.shared.is_starving(self.starves) && (self.waiting.len() < self.owned || self.owned > most)
    }

    /// Others may give up a connection for this worker.
    pub(crate) fn is_short(&self) -> bool {
        let (least, _) = shares(self.limits.size, self.shared.workers);
        let has = self.owned + self.opening;
        !self.waiting.is_empty() && has < least && (has == 0 || self.waiting.len() > has)
    }

    /// Connections that nobody uses are wanted by another worker.
    pub(crate) fn is_wanted_elsewhere(&self) -> bool {
        self.shared.is_starving(self.starves)
    }

    pub(crate) fn new(key: PoolKey, limits: PoolLimits, shared: Arc<PoolShared>, statements: usize) -> Self {
        Self {
            key,
            limits,
            shared,
            statements,
            idle: Vec::new(),
            waiting: VecDeque::new(),
            owned: 0,
            opening: 0,
            retry_at: Duration::ZERO,
            paused: false,
            starves: false,
            generation: 0,
            catalog: None,
            shrinks: false,
            counts: Counts::default(),
            query_times: Histogram::default(),
            wait_times: Histogram::default(),
        }
    }

    /// How many connections all workers together may hold now.
    fn max(&self, now: Duration) -> usize {
        let long = self.waiting.front().is_some_and(|w| now.saturating_sub(w.since) >= self.limits.reserve_after);
        self.limits.size + if long { self.limits.reserve } else { 0 }
    }

    /// Whether one more connection is to be opened; if so, the right to it is taken.
    pub(crate) fn wants_one_more(&mut self, now: Duration) -> bool {
        let wanted = self.waiting.len() > self.opening || self.owned + self.opening < self.limits.idle_min;
        let (_, most) = shares(self.limits.size, self.shared.workers);
        let enough = self.owned + self.opening >= most && self.is_wanted_elsewhere();
        if !wanted || enough || self.paused || now < self.retry_at || !self.shared.reserve(self.max(now)) {
            return false;
        }
        self.opening += 1;
        true
    }

    /// Whether a connection is to be given up rather than kept.
    pub(crate) fn is_spent(&self, age: Duration, unused: Duration, generation: u64) -> bool {
        let above_min = self.owned > self.limits.idle_min;
        age >= self.limits.lifetime
            || self.is_over()
            || generation < self.generation
            || (unused >= self.limits.idle && above_min)
    }

    /// A client has waited so long.
    pub(crate) fn note_wait(&mut self, waited: Duration) {
        let us = micros(waited);
        self.counts.waits += 1;
        self.counts.wait_us += us;
        self.wait_times.note(us, 1);
    }

    /// A client waits no more, and in vain.
    pub(crate) fn refused(&mut self, client: usize, now: Duration) {
        if let Some(at) = self.waiting.iter().position(|w| w.client == client)
            && let Some(waited) = self.waiting.remove(at)
        {
            self.note_wait(now.saturating_sub(waited.since));
        }
    }

    /// Other limits hold from now on.
    pub(crate) fn adapt(&mut self, limits: PoolLimits) {
        self.limits = limits;
        self.shrinks = true;
    }

    /// More connections than an operator wants by now. The reserve is not counted: it goes as it came.
    fn is_over(&self) -> bool {
        self.shrinks && self.shared.servers() > self.limits.size
    }

    /// Looks no more for connections beyond the limit when there are none.
    pub(crate) fn note_shrunk(&mut self) {
        self.shrinks = self.is_over();
    }

    /// Clients whose time to wait is over.
    pub(crate) fn overdue(&self, now: Duration) -> Vec<usize> {
        // one that came from another pool stands behind younger ones
        let late = self.waiting.iter().filter(|w| now.saturating_sub(w.since) >= self.limits.wait);
        late.map(|w| w.client).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(size: usize, shared: &Arc<PoolShared>) -> Pool {
        let key = PoolKey { database: "d".into(), user: "u".into(), access: Access::ReadWrite };
        Pool::new(key, PoolLimits { size, reserve: 1, ..PoolLimits::default() }, shared.clone(), 0)
    }

    fn wait(pool: &mut Pool, client: usize, since: u64) {
        pool.waiting.push_back(Waiting { client, since: Duration::from_secs(since) });
    }

    #[test]
    fn a_worker_gives_up_what_is_beyond_its_share() {
        let shared = Arc::new(PoolShared::new(Definitions::default(), 2));
        let (mut rich, mut poor) = (pool(25, &shared), pool(25, &shared));
        (rich.owned, poor.owned) = (17, 8);
        for client in 0..30 {
            wait(&mut rich, client, 0);
            wait(&mut poor, client, 0);
        }
        assert!(!rich.gives_up_one(), "nobody has said that there is too little");
        assert!(poor.is_short() && !rich.is_short());
        shared.note_starving(true);
        poor.starves = true;
        assert!(rich.gives_up_one() && !poor.gives_up_one());
        // down to its share, rounded up, and not beyond
        (rich.owned, poor.owned) = (13, 11);
        assert!(!rich.gives_up_one() && poor.is_short());
        poor.owned = 12;
        assert!(!poor.is_short());
        // who has few clients that wait is not short
        poor.owned = 3;
        poor.waiting.truncate(2);
        assert!(!poor.is_short());
        let alone = Arc::new(PoolShared::new(Definitions::default(), 1));
        let mut all = pool(25, &alone);
        all.owned = 3;
        (0..30).for_each(|client| wait(&mut all, client, 0));
        alone.note_starving(true);
        all.starves = true;
        assert!(!all.gives_up_one(), "not for itself");
    }

    #[test]
    fn workers_share_the_limit() {
        let shared = Arc::new(PoolShared::default());
        let (mut one, mut other) = (pool(3, &shared), pool(3, &shared));
        for client in 0..3 {
            wait(&mut one, client, 0);
            wait(&mut other, client, 0);
        }
        let now = Duration::from_secs(1);
        let opened: Vec<bool> = (0..3).flat_map(|_| [one.wants_one_more(now), other.wants_one_more(now)]).collect();
        assert_eq!(opened, [true, true, true, false, false, false]);
        shared.give_back();
        assert!(other.wants_one_more(now));
    }

    #[test]
    fn the_reserve_is_for_those_who_wait_long() {
        let shared = Arc::default();
        let mut pool = pool(1, &shared);
        wait(&mut pool, 0, 10);
        wait(&mut pool, 1, 10);
        assert!(pool.wants_one_more(Duration::from_secs(11)));
        assert!(!pool.wants_one_more(Duration::from_secs(11)));
        assert!(pool.wants_one_more(Duration::from_secs(15)));
        assert_eq!(shared.servers(), 2);
    }

    #[test]
    fn old_unused_and_recalled_ones_are_spent() {
        let mut pool = pool(2, &Arc::default());
        pool.owned = 1;
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(4_000));
        assert!(!pool.is_spent(short, short, 0));
        assert!(pool.is_spent(long, short, 0));
        assert!(pool.is_spent(short, long, 0));
        pool.limits.idle_min = 1;
        assert!(!pool.is_spent(short, long, 0));
        pool.generation = 1;
        assert!(pool.is_spent(short, short, 0));
        assert!(pool.overdue(long).is_empty());
        wait(&mut pool, 7, 0);
        assert_eq!(pool.overdue(long), [7]);
    }
}
