//! One statement on one connection, on a blocking thread.
//!
//! Invariants: result and freshness are read in one read-only transaction; rows leave through a bounded
//! channel, so a slow reader slows the statement and not the memory; nothing outlives the deadline.

use std::sync::Arc;

use duckdb::{Connection, types::Value as DuckValue};
use millrace_base::{Lsn, Micros};
use millrace_contract::{
    QueryError, Value,
    query::{Freshness, ResultColumn},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    error::{self, interrupted, translate},
    value,
    watch::Running,
};

/// Rows of a result, or the error that ends it.
pub(super) type Chunk = Result<Vec<Vec<Value>>, QueryError>;

/// Rows in one chunk at most.
const CHUNK_ROWS: usize = 512;

/// What is known before the first row.
pub(super) type Head = Result<(Vec<ResultColumn>, Freshness), QueryError>;

/// A statement, translated, with where its answer goes.
pub(super) struct Job {
    pub(super) sql: String,
    pub(super) params: Vec<Value>,
    pub(super) deadline: Instant,
    pub(super) confirmed_at: Micros,
    pub(super) head: oneshot::Sender<Head>,
    pub(super) rows: mpsc::Sender<Chunk>,
    pub(super) running: Arc<Running>,
    pub(super) runtime: Handle,
}

/// Runs the job in a transaction of its own. The connection is good for the next one if this returns true.
pub(super) fn in_own_transaction(connection: &Connection, job: Job) -> bool {
    let running = job.running.clone();
    if let Err(source) = connection.execute_batch("begin transaction read only") {
        // nobody left to tell is fine
        _ = job.head.send(Err(translate(&source, running.cause())));
        return false;
    }
    run(connection, job);
    connection.execute_batch("rollback").is_ok()
}

/// Runs the job in the connection's open transaction.
pub(super) fn run(connection: &Connection, job: Job) {
    let Job { sql, params, deadline, confirmed_at, head, rows, running, runtime } = job;
    let failed = |source: &duckdb::Error| translate(source, running.cause());
    let freshness = match freshness(connection, confirmed_at) {
        Ok(freshness) => freshness,
        Err(source) => return drop(head.send(Err(failed(&source)))),
    };
    let mut statement = match connection.prepare(&sql) {
        Ok(statement) => statement,
        Err(source) => return drop(head.send(Err(failed(&source)))),
    };
    let schema = match statement.stream_arrow(duckdb::params_from_iter(params.iter().map(bind))) {
        Ok(arrow) => arrow.get_schema(),
        Err(source) => return drop(head.send(Err(failed(&source)))),
    };
    let columns: Vec<ResultColumn> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| ResultColumn {
            name: field.name().clone(),
            value_type: value::value_type(&statement.column_logical_type(index)),
        })
        .collect();
    let types: Vec<_> = columns.iter().map(|column| column.value_type).collect();
    let Some(mut last) = Last::reserve(&rows) else {
        return drop(head.send(Err(error::error("XX000", "the statement's channel is full before its first row"))));
    };
    if head.send(Ok((columns, freshness))).is_err() {
        return last.disarm();
    }
    let send = |chunk: Chunk| {
        runtime.block_on(async {
            // the send is dropped only when the statement ends anyway
            tokio::select! {
                sent = rows.send(chunk) => sent.is_ok(),
                () = tokio::time::sleep_until(deadline) => false,
            }
        })
    };
    loop {
        match statement.step() {
            Ok(None) => return last.disarm(),
            Ok(Some(batch)) => {
                let mut start = 0;
                while start < arrow::array::Array::len(&batch) {
                    let length = CHUNK_ROWS.min(arrow::array::Array::len(&batch) - start);
                    let mut chunk: Vec<Vec<Value>> = (0..length).map(|_| Vec::with_capacity(types.len())).collect();
                    for (column, value_type) in batch.columns().iter().zip(&types) {
                        value::append(&column.slice(start, length), *value_type, &mut chunk);
                    }
                    if !send(Ok(chunk)) {
                        return last.send(interrupted(Some(super::watch::Cause::Deadline)));
                    }
                    start += length;
                }
            }
            Err(source) => {
                return last.send(failed(&source));
            }
        }
    }
}

/// Room in the channel kept for the error that may end the result, so that rows never end early without
/// one: not for a slow reader, and not after a panic.
struct Last(Option<mpsc::OwnedPermit<Chunk>>);

impl Last {
    fn reserve(rows: &mpsc::Sender<Chunk>) -> Option<Self> {
        rows.clone().try_reserve_owned().ok().map(|permit| Self(Some(permit)))
    }

    fn send(&mut self, error: QueryError) {
        if let Some(permit) = self.0.take() {
            permit.send(Err(error));
        }
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        self.send(error::error("XX000", "the statement ended unexpectedly"));
    }
}

/// The watermark that the connection's transaction sees.
///
/// Prepared anew each time: DuckDB plans with the statistics of the moment (a sorted column is packed
/// into the bits that its range needs), and a plan kept from before the row moved on reads it wrongly.
pub(super) fn freshness(connection: &Connection, confirmed_at: Micros) -> duckdb::Result<Freshness> {
    let mut statement = connection.prepare("select watermark, epoch_us(commit_time), run_id from audit.watermarks")?;
    let mut rows = statement.query([])?;
    Ok(match rows.next()? {
        None => Freshness { confirmed_at, ..Freshness::default() },
        Some(row) => Freshness {
            watermark: Lsn(row.get(0)?),
            commit_time: Micros(row.get(1)?),
            confirmed_at,
            run_id: row.get(2)?,
        },
    })
}

/// A parameter as DuckDB takes it.
pub(super) fn bind(value: &Value) -> DuckValue {
    use duckdb::types::TimeUnit::Microsecond;
    match value {
        Value::Null => DuckValue::Null,
        Value::Bool(value) => DuckValue::Boolean(*value),
        Value::Int(value) => DuckValue::BigInt(*value),
        Value::HugeInt(value) => DuckValue::HugeInt(*value),
        Value::Float(value) => DuckValue::Double(*value),
        Value::Decimal { unscaled, scale } => duckdb::types::Decimal::new(38, *scale, *unscaled)
            .map_or_else(|_| DuckValue::Text(value.to_text().unwrap_or_default()), DuckValue::Decimal),
        Value::Uuid(_) => DuckValue::Text(value.to_text().unwrap_or_default()),
        Value::Text(text) => DuckValue::Text(text.to_string()),
        Value::Bytes(bytes) => DuckValue::Blob(bytes.to_vec()),
        Value::Date(days) => DuckValue::Date32(*days),
        Value::Time(micros) => DuckValue::Time64(Microsecond, *micros),
        Value::Timestamp(micros) | Value::TimestampTz(micros) => DuckValue::Timestamp(Microsecond, *micros),
    }
}

/// What a statement would return, by DuckDB's own `DESCRIBE`, with nulls for the parameters.
pub(super) fn describe(
    connection: &Connection,
    sql: &str,
    params: &[DuckValue],
) -> Result<Vec<ResultColumn>, QueryError> {
    let failed = |source: duckdb::Error| translate(&source, None);
    let mut statement = connection.prepare(&format!("DESCRIBE {sql}")).map_err(failed)?;
    let mut rows = statement.query(duckdb::params_from_iter(params.iter())).map_err(failed)?;
    let mut columns = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let name: String = row.get(0).map_err(failed)?;
        let type_name: String = row.get(1).map_err(failed)?;
        columns.push(ResultColumn { name, value_type: value::value_type_named(&type_name) });
    }
    if columns.is_empty() {
        return Err(error::error("XX000", "the statement has no result columns"));
    }
    Ok(columns)
}
