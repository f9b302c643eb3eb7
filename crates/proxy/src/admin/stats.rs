//! The console's counts and times, by database and by pool. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::tables::{Table, database_name};
use crate::{
    handle::Handle,
    histogram::{BOUNDS_US, Histogram},
    pool::Counts,
    view::PoolView,
};

/// Counts by database.
pub(crate) fn by_database(pools: &[PoolView]) -> BTreeMap<String, Counts> {
    let mut databases: BTreeMap<String, Counts> = BTreeMap::new();
    for pool in pools {
        let counts = databases.entry(database_name(&pool.key)).or_default();
        *counts = counts.plus(&pool.counts);
    }
    databases
}

const COUNTED: [&str; 7] = ["xact_count", "query_count", "received", "sent", "xact_time", "query_time", "wait_time"];

fn counted(counts: &Counts) -> [u64; 7] {
    [
        counts.transactions,
        counts.queries,
        counts.received_bytes,
        counts.sent_bytes,
        counts.transaction_us,
        counts.query_us,
        counts.wait_us,
    ]
}

/// Averages of a period: counts a second, times of one.
fn averaged(counts: &Counts, period: Duration) -> [u64; 7] {
    let a_second = |n: u64| u64::try_from(u128::from(n) * 1_000 / period.as_millis().max(1)).unwrap_or(u64::MAX);
    let each = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
    [
        a_second(counts.transactions),
        a_second(counts.queries),
        a_second(counts.received_bytes),
        a_second(counts.sent_bytes),
        each(counts.transaction_us, counts.transactions),
        each(counts.query_us, counts.queries),
        a_second(counts.wait_us),
    ]
}

pub(super) fn stats(pools: &[PoolView], handle: &Handle, with_totals: bool, with_averages: bool) -> Table {
    const TOTALS: [&str; 7] = [
        "total_xact_count",
        "total_query_count",
        "total_received",
        "total_sent",
        "total_xact_time",
        "total_query_time",
        "total_wait_time",
    ];
    const AVERAGES: [&str; 7] = [
        "avg_xact_count",
        "avg_query_count",
        "avg_recv",
        "avg_sent",
        "avg_xact_time",
        "avg_query_time",
        "avg_wait_time",
    ];
    let mut columns = vec!["database"];
    columns.extend(TOTALS.iter().filter(|_| with_totals));
    columns.extend(AVERAGES.iter().filter(|_| with_averages));
    let mut table = Table { columns, rows: Vec::new() };
    let (lately, period) = handle.lately();
    for (database, counts) in by_database(pools) {
        let average = averaged(&lately.get(&database).copied().unwrap_or_default(), period);
        let values = counted(&counts).into_iter().filter(|_| with_totals);
        let values = values.chain(average.into_iter().filter(|_| with_averages)).map(|n| n.to_string());
        table.row(std::iter::once(database).chain(values));
    }
    table
}

pub(super) fn totals(pools: &[PoolView]) -> Table {
    let mut table = Table::new(&["name", "value"]);
    let all = pools.iter().fold(Counts::default(), |all, pool| all.plus(&pool.counts));
    for (name, value) in COUNTED.iter().zip(counted(&all)) {
        table.row([(*name).to_owned(), value.to_string()]);
    }
    table
}

/// Not PgBouncer's: how long queries take and clients wait, by pool.
pub(super) fn histograms(pools: &[PoolView]) -> Table {
    let mut table = Table::new(&["database", "user", "what", "count", "p50_us", "p95_us", "p99_us", "counts"]);
    for pool in pools {
        for (what, times) in [("query", &pool.query_times), ("wait", &pool.wait_times)] {
            let us = |percent| times.percentile(percent).map(|time| time.as_micros().to_string());
            let first =
                [database_name(&pool.key), pool.key.user.to_string(), what.to_owned(), times.total().to_string()];
            let last = [us(50), us(95), us(99), Some(by_length(times))];
            table.rows.push(first.into_iter().map(Some).chain(last).collect());
        }
    }
    table
}

/// The counts that are not 0, with their upper bounds in microseconds: `<=50:12 <=100:3`.
fn by_length(times: &Histogram) -> String {
    let bounds = BOUNDS_US.iter().map(|bound| format!("<={bound}")).chain([">".to_owned()]);
    let counted = bounds.zip(times.counts).filter(|(_, count)| *count > 0);
    counted.map(|(bound, count)| format!("{bound}:{count}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        backends::Access,
        pool::{PoolKey, PoolLimits},
    };

    fn pool(database: &str, access: Access, transactions: u64) -> PoolView {
        PoolView {
            key: PoolKey { database: database.into(), user: Arc::from("app"), access },
            limits: PoolLimits::default(),
            clients: 1,
            waiting: 0,
            longest_wait: Duration::ZERO,
            servers: 1,
            idle: 1,
            opening: 0,
            paused: false,
            counts: Counts { transactions, ..Counts::default() },
            query_times: Histogram::default(),
            wait_times: Histogram::default(),
        }
    }

    #[test]
    fn the_read_only_part_has_a_name_of_its_own() {
        let both = [pool("loans", Access::ReadWrite, 5), pool("loans", Access::ReadOnly, 7)];
        let counts: Vec<_> = by_database(&both).into_iter().map(|(name, c)| (name, c.transactions)).collect();
        assert_eq!(counts, [("loans".to_owned(), 5), ("loans:ro".to_owned(), 7)]);
    }

    #[test]
    fn averages_are_of_the_period() {
        let counts = Counts { transactions: 120, transaction_us: 1_200, ..Counts::default() };
        let average = averaged(&counts, Duration::from_secs(60));
        assert_eq!((average[0], average[4]), (2, 10));
        assert_eq!(averaged(&Counts::default(), Duration::ZERO)[4], 0);
    }

    #[test]
    fn times_are_shown_by_length() {
        let mut loans = pool("loans", Access::ReadWrite, 1);
        loans.query_times.note(40, 12);
        loans.query_times.note(200_000_000, 1);
        let table = histograms(&[loans]);
        let texts =
            |at: usize| table.rows[at].iter().map(|text| text.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(" ");
        assert_eq!(texts(0), "loans app query 13 29 120000000 120000000 <=50:12 >:1");
        assert_eq!(texts(1), "loans app wait 0 - - - ");
    }
}
