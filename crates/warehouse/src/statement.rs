//! How the statements of a batch are run: timed, and tuned to how few rows they touch.

use duckdb::Connection;

/// Batches of fewer changes are applied by one engine thread: handing their small pieces of work from thread to
/// thread costs more than it saves (300 ms of processor time instead of 170 for 1,000 scattered changes).
pub(crate) const ONE_THREAD_ROWS_MAX: u64 = 20_000;

/// The engine's own default.
pub(crate) const FILTER_KEYS_DEFAULT: u64 = 50;

/// Groups by a key whose range takes no more than so many bits are kept in an array rather than a hash table. Over ten million
/// rows and 200,000 keys that is twice as fast; it needs some 80 bytes for each possible key and thread, and 10 ms to make for
/// 200,000: so no more than a million, and not for batches of changes, whose keys are few and lie anywhere.
pub(crate) const ARRAY_BITS: u64 = 20;
/// The engine's own default.
const ARRAY_BITS_DEFAULT: u64 = 12;

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
        timed(self.connection, sql)?;
        // after an error it is set back with everything else, when the transaction has ended
        set_filter_keys(self.connection, FILTER_KEYS_DEFAULT)
    }
}

fn set_filter_keys(connection: &Connection, keys: u64) -> duckdb::Result<()> {
    connection.execute_batch(&format!("set dynamic_or_filter_threshold = {keys}"))
}

/// Has the engine work as is best for scattered keys, and with one thread if there are few; [`restore`] ends that.
pub(crate) fn for_changes(connection: &Connection, few: bool) -> duckdb::Result<()> {
    set_array_bits(connection, ARRAY_BITS_DEFAULT)?;
    if few { set_threads(connection, 1) } else { Ok(()) }
}

/// Sets back what a batch has changed, outside any transaction: in one that failed the engine takes no setting.
pub(crate) fn restore(connection: &Connection, threads: usize) -> duckdb::Result<()> {
    set_filter_keys(connection, FILTER_KEYS_DEFAULT)?;
    set_array_bits(connection, ARRAY_BITS)?;
    set_threads(connection, threads)
}

fn set_array_bits(connection: &Connection, bits: u64) -> duckdb::Result<()> {
    connection.execute_batch(&format!("set perfect_ht_threshold = {bits}"))
}

fn set_threads(connection: &Connection, threads: usize) -> duckdb::Result<()> {
    timed(connection, &format!("set threads = {}", threads.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(connection: &Connection, name: &str) -> String {
        let sql = format!("select cast(current_setting('{name}') as varchar)");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_statement_that_fails_says_why_and_leaves_nothing_set() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("create table t (i integer); create index k on t (i)").unwrap();
        let indexed = [("\"t\"".to_owned(), 1_234)];
        let runner = Runner { connection: &connection, indexed: &indexed };
        connection.execute_batch("begin transaction").unwrap();
        for_changes(&connection, true).unwrap();
        assert_eq!(setting(&connection, "perfect_ht_threshold"), ARRAY_BITS_DEFAULT.to_string());
        runner.run("insert into \"t\" values (1)").unwrap();
        assert_eq!(setting(&connection, "dynamic_or_filter_threshold"), FILTER_KEYS_DEFAULT.to_string());
        let error = runner.run("insert into \"t\" select cast(w as integer) from (values ('x')) as v(w)").unwrap_err();
        assert!(error.to_string().contains("Could not convert"), "{error}");
        connection.execute_batch("rollback").unwrap();
        restore(&connection, 3).unwrap();
        assert_eq!(setting(&connection, "dynamic_or_filter_threshold"), FILTER_KEYS_DEFAULT.to_string());
        assert_eq!(setting(&connection, "perfect_ht_threshold"), ARRAY_BITS.to_string());
        assert_eq!(setting(&connection, "threads"), "3");
    }
}
