//! How the statements of a batch are run: timed, and tuned to how few rows they touch.

use duckdb::Connection;

/// Batches of fewer changes are applied by one engine thread: handing their small pieces of work from thread to
/// thread costs more than it saves (300 ms of processor time instead of 170 for 1,000 scattered changes).
pub(crate) const ONE_THREAD_ROWS_MAX: u64 = 20_000;

/// The engine's own default.
pub(crate) const FILTER_KEYS_DEFAULT: u64 = 50;

/// Runs a statement and traces how long it took.
pub(crate) fn timed(connection: &Connection, sql: &str) -> duckdb::Result<()> {
    let start = std::time::Instant::now();
    let result = connection.execute_batch(sql);
    tracing::trace!(took_us = start.elapsed().as_micros(), sql, "statement");
    result
}

/// A batch's connection, and which tables have an index on their key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner<'a> {
    pub(crate) connection: &'a Connection,
    /// As they are written in statements, `staging."payments"`, and up to how many keys are looked up in it.
    pub(crate) indexed: &'a [(String, u64)],
}

impl Runner<'_> {
    /// A join hands its keys down as a filter only up to a number of them. Where there is an index to look them up
    /// in, the number is raised; elsewhere so many would cost more than the scan they might save.
    pub(crate) fn run(&self, sql: &str) -> duckdb::Result<()> {
        let named = self.indexed.iter().filter(|(table, _)| sql.contains(table.as_str()));
        let Some(keys) = named.map(|(_, keys)| *keys).max().filter(|keys| *keys > FILTER_KEYS_DEFAULT) else {
            return timed(self.connection, sql);
        };
        set_filter_keys(self.connection, keys)?;
        let result = timed(self.connection, sql);
        set_filter_keys(self.connection, FILTER_KEYS_DEFAULT)?;
        result
    }
}

fn set_filter_keys(connection: &Connection, keys: u64) -> duckdb::Result<()> {
    connection.execute_batch(&format!("set dynamic_or_filter_threshold = {keys}"))
}

/// While it lives, the engine works with one thread.
pub(crate) struct OneThread<'a> {
    connection: &'a Connection,
    /// What it is set back to.
    threads: usize,
}

impl<'a> OneThread<'a> {
    pub(crate) fn hold(connection: &'a Connection, threads: usize) -> duckdb::Result<Self> {
        set_threads(connection, 1)?;
        Ok(Self { connection, threads })
    }
}

impl Drop for OneThread<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_threads(self.connection, self.threads) {
            // the engine has given up, or is about to: what opens it again sets it anew
            tracing::warn!(%error, "the engine stays at one thread");
        }
    }
}

fn set_threads(connection: &Connection, threads: usize) -> duckdb::Result<()> {
    timed(connection, &format!("set threads = {}", threads.max(1)))
}
