//! Many histories of a model, one for each seed, on all cores. A seed that fails fails again, alone.

use std::{
    fmt::Display,
    ops::{AddAssign, Range},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// What happened in histories, so that a model in which nothing happens any more is noticed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) seeds: u64,
    pub(crate) acknowledged: u64,
    pub(crate) faults: u64,
    /// The office was left to others because its lease had ended.
    pub(crate) lost_leases: u64,
    /// A server was killed because its lease had ended.
    pub(crate) guarded: u64,
    /// A lease had nearly ended, and receivers of the log proved that nobody else had the office.
    pub(crate) proofs: u64,
    pub(crate) fences: u64,
    pub(crate) votes: u64,
    pub(crate) elections: u64,
    pub(crate) promotions: u64,
    /// Primaries that ended in order.
    pub(crate) handed_over: u64,
    /// Servers that were copied from another, or brought back to its history.
    pub(crate) rebuilt: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.acknowledged += other.acknowledged;
        self.faults += other.faults;
        self.lost_leases += other.lost_leases;
        self.guarded += other.guarded;
        self.proofs += other.proofs;
        self.fences += other.fences;
        self.votes += other.votes;
        self.elections += other.elections;
        self.promotions += other.promotions;
        self.handed_over += other.handed_over;
        self.rebuilt += other.rebuilt;
    }
}

/// A model, from its seed on.
pub(crate) trait History {
    fn new(seed: u64) -> Self;

    /// Panics if an invariant is broken.
    fn run(&mut self);

    fn counts(&self) -> Counts;

    fn trail(&mut self) -> &mut Trail;
}

/// What happened, for whoever reads a failure; `None`: nobody does.
#[derive(Debug, Default)]
pub(crate) struct Trail(Option<Vec<String>>);

impl Trail {
    pub(crate) fn note(&mut self, now: Duration, what: impl Display) {
        if let Some(notes) = &mut self.0 {
            notes.push(format!("{:.2} {what}", now.as_secs_f64() - 100.0));
        }
    }
}

/// Lines of a failure's history that are shown.
const SHOWN: usize = 80;

#[expect(clippy::disallowed_methods, reason = "for whoever runs more of them, or one again")]
fn seeds(usual: u64) -> Range<u64> {
    let Ok(text) = std::env::var("MILLRACE_SEEDS") else { return 0..usual };
    match text.split_once("..") {
        Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
        None => text.parse().unwrap()..text.parse::<u64>().unwrap() + 1,
    }
}

/// Runs the `usual` number of seeds, or those of `MILLRACE_SEEDS` (`SEED` or `FROM..TO`), for `test`.
pub(crate) fn run<H: History>(test: &str, usual: u64) -> Counts {
    let seeds = seeds(usual);
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || {
        let mut counts = Counts::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let mut history = H::new(seed);
            if catch_unwind(AssertUnwindSafe(|| history.run())).is_err() {
                failed.store(true, Ordering::Relaxed);
                return Err(seed);
            }
            counts += Counts { seeds: 1, ..history.counts() };
        }
        Ok(counts)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let ran: Vec<Result<Counts, u64>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    // of several the first, whichever thread was faster
    if let Some(seed) = ran.iter().filter_map(|of| of.as_ref().err()).min() {
        fail::<H>(test, *seed);
    }
    let mut counts = Counts::default();
    for of in ran.into_iter().flatten() {
        counts += of;
    }
    counts
}

/// Runs `seed` once more, and says what happened.
fn fail<H: History>(test: &str, seed: u64) -> ! {
    let mut history = H::new(seed);
    history.trail().0 = Some(Vec::new());
    let what = match catch_unwind(AssertUnwindSafe(|| history.run())) {
        Ok(()) => "it did not fail again".to_owned(),
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "no message".to_owned(),
        },
    };
    let notes = history.trail().0.take().unwrap_or_default();
    let last = notes[notes.len().saturating_sub(SHOWN)..].join("\n");
    panic!("seed {seed}: {what}\n{last}\nagain: MILLRACE_SEEDS={seed} cargo nextest run -p millrace-cluster {test}")
}
