//! Changes on the publisher: a backlog at full speed, or a steady load with markers.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use millrace_pg::Connection;
use tokio::time::MissedTickBehavior;

use super::source::Source;

/// Sessions that change rows at once.
const SESSIONS: u32 = 4;
/// Rows of one transaction ([`Changes`]' SQL), about.
const ROWS_PER_TRANSACTION: u32 = 10;
/// Between two markers.
const MARKER_EVERY: Duration = Duration::from_millis(100);

/// Makes changes.
#[derive(Debug)]
pub(crate) struct Changes {
    sessions: Vec<Connection>,
    marker: Connection,
    loans: i64,
    payments: i64,
}

/// When each marker was committed: `(number, instant)`.
pub(crate) type Markers = Vec<(u64, Instant)>;

impl Changes {
    pub(crate) async fn new(source: &Source) -> anyhow::Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            sessions.push(source.connect().await?);
        }
        let marker = source.connect().await?;
        let most = marker
            .query_one("SELECT (SELECT max(loan_id) FROM operational.loans), (SELECT max(payment_id) FROM operational.payments)", &[])
            .await?;
        Ok(Self { sessions, loans: most.get(0), payments: most.get(1), marker })
    }

    /// Changes at least `rows` rows as fast as it can; how many it were.
    pub(crate) async fn backlog(&self, rows: u64) -> anyhow::Result<u64> {
        let each = i32::try_from(rows.div_ceil(u64::from(SESSIONS)))?;
        let changed = try_join_all(self.sessions.iter().map(|session| async move {
            // how quickly the backlog is made is not measured
            session.batch_execute("SET synchronous_commit = off").await?;
            let row =
                session.query_one("CALL bench.backlog($1, $2, $3, 0)", &[&each, &self.loans, &self.payments]).await?;
            session.batch_execute("RESET synchronous_commit").await?;
            Ok::<i32, tokio_postgres::Error>(row.get(0))
        }))
        .await?;
        Ok(changed.into_iter().map(|n| u64::try_from(n).unwrap_or(0)).sum())
    }

    /// A last transaction, which both sides must show.
    pub(crate) async fn mark(&self, number: u64) -> anyhow::Result<()> {
        self.marker
            .execute(
                "UPDATE operational.customers SET phone = 'marker ' || $1 WHERE customer_id = 1",
                &[&number.to_string()],
            )
            .await?;
        Ok(())
    }

    /// About `rows_per_second` changed rows for `seconds`, and every 100 ms a marker, numbered from
    /// `first`, which `committed` is told of. How many rows changed in a second.
    pub(crate) async fn load(
        &self,
        rows_per_second: u32,
        seconds: u32,
        first: u64,
        mut committed: impl FnMut(u64, Instant),
    ) -> anyhow::Result<f64> {
        let transactions = rows_per_second * seconds / ROWS_PER_TRANSACTION / SESSIONS;
        let every = Duration::from_secs(u64::from(seconds)) / transactions;
        let start = Instant::now();
        let load = try_join_all(self.sessions.iter().map(|session| async move {
            let change = session.prepare("SELECT bench.change($1, $2)").await?;
            let mut ticks = tokio::time::interval(every);
            // a late session catches up: the rate is kept
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut changed = 0_i64;
            for _ in 0..transactions {
                ticks.tick().await;
                changed +=
                    i64::from(session.query_one(&change, &[&self.loans, &self.payments]).await?.get::<_, i32>(0));
            }
            Ok::<i64, tokio_postgres::Error>(changed)
        }));
        let markers = async {
            let mut ticks = tokio::time::interval(MARKER_EVERY);
            for number in (first..).take(usize::try_from(seconds * 10)?) {
                ticks.tick().await;
                self.mark(number).await?;
                committed(number, Instant::now());
            }
            Ok::<(), anyhow::Error>(())
        };
        let (changed, ()) = tokio::try_join!(async { Ok(load.await?) }, markers)?;
        let total = u32::try_from(changed.into_iter().sum::<i64>()).unwrap_or(u32::MAX);
        Ok(f64::from(total) / start.elapsed().as_secs_f64())
    }
}
