//! The writer: an application with some connections that inserts single rows and notes which were acknowledged, when.
//!
//! Invariants: an id is sent once, whatever became of it; an id counts as acknowledged only when the server
//! has said so. A connection is replaced after every error, at once; an insert waits for as long as its connection stands.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use millrace_base::Tasks;
use millrace_pg::{ConnectParams, Connection, connect};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

/// Between an answer and the connection's next insert: the load leaves the machine time for what is measured.
pub(super) const PACE: Duration = Duration::from_millis(2);
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between a refused connection and the next attempt.
const RETRY: Duration = Duration::from_millis(10);
const POLL: Duration = Duration::from_millis(20);
const STOP_MAX: Duration = Duration::from_secs(5);
const STEADY_MAX: Duration = Duration::from_secs(60);
/// Writes are back when they have flowed for so long …
const CALM: Duration = Duration::from_secs(3);
/// … without a longer pause than this.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A row that the server said it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) at: Instant,
    pub(super) id: i64,
    connection: usize,
}

/// What happened to a writer.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// In order of time.
    pub(super) acks: Vec<Ack>,
    /// Inserts that failed: an application would have had to send them again.
    pub(super) failed: Vec<(Instant, String)>,
    /// Connections that could not be made.
    pub(super) refused: Vec<(Instant, String)>,
}

impl Log {
    /// The longest time without an acknowledgement from the last one before `from`, until `to`.
    pub(super) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(self.acks.iter().map(|ack| ack.at), from, to)
    }

    /// Connections that had no acknowledgement since `from`.
    pub(super) fn silent_since(&self, from: Instant, connections: usize) -> usize {
        let heard = |k| self.acks.iter().rev().take_while(|ack| ack.at >= from).any(|ack| ack.connection == k);
        (0..connections).filter(|k| !heard(*k)).count()
    }

    fn calm(&self, from: Instant, now: Instant) -> bool {
        let begin = now.checked_sub(CALM).unwrap_or(from).max(from);
        now.duration_since(from) >= CALM && self.longest_gap_within(begin, now) < PAUSE_MAX
    }

    fn longest_gap_within(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(self.acks.iter().map(|ack| ack.at).filter(|at| *at >= from), from, to)
    }
}

fn longest_gap(acks: impl Iterator<Item = Instant>, from: Instant, to: Instant) -> Duration {
    let (mut last, mut longest) = (from, Duration::ZERO);
    for at in acks {
        if at > from {
            longest = longest.max(at.min(to).saturating_duration_since(last));
        }
        last = at;
    }
    longest.max(to.saturating_duration_since(last))
}

type Shared = Arc<Mutex<Log>>;

/// Connections that insert until [`Writer::stop`].
#[derive(Debug)]
pub(super) struct Writer {
    log: Shared,
    tasks: Tasks,
    connections: usize,
}

impl Writer {
    /// Ids begin with `first`.
    pub(super) fn start(entry: &ConnectParams, connections: usize, first: i64) -> Self {
        let log = Shared::default();
        let mut tasks = Tasks::new(CancellationToken::new());
        for connection in 0..connections {
            let (entry, log, token) = (entry.clone(), log.clone(), tasks.token().clone());
            let step = i64::try_from(connections).unwrap_or(1);
            let ids = (0..).map(move |n: i64| first + n * step + i64::try_from(connection).unwrap_or(0));
            tasks.spawn("writer", async move {
                let writing = write(&entry, connection, ids, &log);
                // an insert that is dropped here was not acknowledged
                tokio::select! {
                    () = writing => {}
                    () = token.cancelled() => {}
                }
                Ok::<_, Infallible>(())
            });
        }
        Self { log, tasks, connections }
    }

    fn look<T>(&self, at: impl FnOnce(&Log) -> T) -> T {
        at(&self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until every connection writes.
    ///
    /// # Errors
    /// If they do not within a minute; says why.
    pub(super) async fn steady(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let now = Instant::now();
            let all = now.checked_sub(PAUSE_MAX).is_some_and(|since| {
                self.look(|log| log.calm(started, now) && log.silent_since(since, self.connections) == 0)
            });
            if all {
                return Ok(());
            }
            if now > started + STEADY_MAX {
                let last = self.look(|log| log.failed.last().or(log.refused.last()).map(|(_, text)| text.clone()));
                bail!("the writer cannot write steadily: {}", last.as_deref().unwrap_or("too slow"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until writes have flowed again for some time after `from`, at most `deadline`; whether they did.
    pub(super) async fn back(&self, from: Instant, deadline: Duration) -> bool {
        loop {
            let now = Instant::now();
            if self.look(|log| log.calm(from, now)) {
                return true;
            }
            if now > from + deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it.
    pub(super) async fn stop(self) -> Log {
        let log = self.log.clone();
        // its tasks cannot fail
        self.tasks.shutdown(STOP_MAX).await;
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *log)
    }
}

async fn write(entry: &ConnectParams, connection: usize, mut ids: impl Iterator<Item = i64>, log: &Shared) {
    let note = |what: &dyn Fn(&mut Log)| what(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
    loop {
        let open = match connect(entry, CONNECT_MAX).await {
            Ok(open) => open,
            Err(error) => {
                let text = crate::explain::chain(&error);
                note(&|log| log.refused.push((Instant::now(), text.clone())));
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        for id in ids.by_ref() {
            match insert(&open, id).await {
                Ok(()) => note(&|log| log.acks.push(Ack { at: Instant::now(), id, connection })),
                Err(text) => {
                    note(&|log| log.failed.push((Instant::now(), text.clone())));
                    break;
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

async fn insert(open: &Connection, id: i64) -> Result<(), String> {
    const INSERT: &str = "INSERT INTO bench_writes (id, at) VALUES ($1, clock_timestamp())";
    match open.execute_typed(INSERT, &[(&id, Type::INT8)]).await {
        Ok(1) => Ok(()),
        Ok(rows) => Err(format!("an insert of one row made {rows}")),
        Err(error) => Err(crate::explain::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(start: Instant, acks_ms: &[u64]) -> Log {
        let ack = |ms: &u64| Ack { at: start + Duration::from_millis(*ms), id: 0, connection: 0 };
        Log { acks: acks_ms.iter().map(ack).collect(), ..Log::default() }
    }

    #[test]
    fn a_gap_begins_with_the_last_acknowledgement_before_the_fault() {
        let start = Instant::now();
        let ms = |ms| Duration::from_millis(ms);
        let gap = |acks: &[u64], from, to| log(start, acks).longest_gap(start + ms(from), start + ms(to));
        assert_eq!(gap(&[10, 90, 2_000, 2_100], 100, 2_200), ms(1_910));
        // an answer was on its way when the fault came
        assert_eq!(gap(&[10, 90, 105, 2_000], 100, 2_010), ms(1_895));
        // what was slow before the fault does not count
        assert_eq!(gap(&[10, 900, 1_100, 1_200], 1_000, 1_210), ms(200));
        // never again
        assert_eq!(gap(&[10, 90], 100, 5_000), ms(4_910));
        assert_eq!(gap(&[], 100, 500), ms(400));
    }

    #[test]
    fn writes_are_back_when_they_flow() {
        let start = Instant::now();
        let flow: Vec<u64> = (0..40).map(|n| 2_000 + n * 100).collect();
        let log = log(start, &flow);
        let calm_at = |ms| log.calm(start, start + Duration::from_millis(ms));
        assert!(!calm_at(1_000) && !calm_at(4_000));
        assert!(calm_at(5_500));
        assert!(!calm_at(7_000), "they have ended");
    }
}
