//! Asking a warehouse.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use millrace_base::{Lsn, Micros};
use serde::Serialize;
use tokio::sync::mpsc;

/// A value of a result or a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Beyond 64 bits (`hugeint`, sums of integers).
    HugeInt(i128),
    Float(f64),
    /// `unscaled / 10^scale`.
    Decimal {
        unscaled: i128,
        scale: u8,
    },
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01, no zone.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 UTC.
    TimestampTz(i64),
    Uuid(u128),
}

/// The type of a result column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueType {
    Bool,
    Int2,
    Int4,
    Int8,
    HugeInt,
    Float4,
    Float8,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Text,
    Bytes,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Uuid,
    Json,
    /// Anything else, shown as text (lists, structs, intervals, …).
    Other,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResultColumn {
    pub name: String,
    pub value_type: ValueType,
}

/// A read-only statement.
#[derive(Debug, Clone)]
pub struct Query {
    pub sql: String,
    /// Bound to `$1`, `$2`, … in order.
    pub params: Vec<Value>,
    /// The statement is interrupted after this.
    pub deadline: Duration,
    /// The pinned state to read ([`crate::sink::Sink::pin`]); `None` reads the newest.
    pub pinned: Option<String>,
}

impl Query {
    /// A statement without parameters, one minute at most.
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), params: Vec::new(), deadline: Duration::from_secs(60), pinned: None }
    }

    #[must_use]
    pub fn with(mut self, params: Vec<Value>) -> Self {
        self.params = params;
        self
    }
}

/// How fresh what was read is: the watermark that the same snapshot saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Freshness {
    pub watermark: Lsn,
    /// Commit time on the source of the last transaction seen.
    pub commit_time: Micros,
    /// When the warehouse last heard from the source that nothing newer is waiting.
    pub confirmed_at: Micros,
    /// The load run that wrote it (`audit.etl_runs.run_id`).
    pub run_id: i64,
}

/// Why a statement failed; `sqlstate` is PostgreSQL's code (manual, appendix A).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    pub sqlstate: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

/// A result as it arrives: chunks of rows. Dropping it interrupts the statement.
#[derive(Debug)]
pub struct RowStream {
    pub columns: Vec<ResultColumn>,
    pub freshness: Freshness,
    pub rows: mpsc::Receiver<Result<Vec<Vec<Value>>, QueryError>>,
}

/// A whole result.
#[derive(Debug, Clone)]
pub struct RowSet {
    pub columns: Vec<ResultColumn>,
    pub freshness: Freshness,
    pub rows: Vec<Vec<Value>>,
    /// There were more rows than were asked for.
    pub truncated: bool,
}

impl RowStream {
    /// Collects at most `max_rows` rows.
    ///
    /// # Errors
    /// The statement's own error.
    pub async fn collect(mut self, max_rows: usize) -> Result<RowSet, QueryError> {
        let mut rows = Vec::new();
        let mut truncated = false;
        while let Some(chunk) = self.rows.recv().await {
            rows.extend(chunk?);
            if rows.len() > max_rows {
                rows.truncate(max_rows);
                truncated = true;
                break;
            }
        }
        Ok(RowSet { columns: self.columns, freshness: self.freshness, rows, truncated })
    }
}

/// What a statement takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub columns: Vec<ResultColumn>,
    /// Of `$1`, `$2`, … in order.
    pub params: Vec<ValueType>,
}

/// A warehouse as its readers see it. Statements that would change anything are refused
/// with SQLSTATE 25006.
pub trait Reader: Send + Sync + std::fmt::Debug {
    /// Runs one statement. Result and freshness come from one snapshot.
    fn query(&self, query: Query) -> BoxFuture<'_, Result<RowStream, QueryError>>;

    /// The columns a statement would return and its number of parameters, without running it.
    fn describe(&self, sql: &str) -> BoxFuture<'_, Result<(Vec<ResultColumn>, usize), QueryError>>;

    /// Like [`Reader::describe`], with the types of the parameters. `declared` are those that the
    /// client has named; the others are found from their use, or are text.
    fn prepare<'a>(
        &'a self,
        sql: &'a str,
        declared: &'a [Option<ValueType>],
    ) -> BoxFuture<'a, Result<Description, QueryError>> {
        Box::pin(async move {
            let (columns, count) = self.describe(sql).await?;
            let params = (0..count).map(|i| declared.get(i).copied().flatten().unwrap_or(ValueType::Text)).collect();
            Ok(Description { columns, params })
        })
    }

    /// The newest committed state.
    fn freshness(&self) -> BoxFuture<'_, Result<Freshness, QueryError>>;

    /// Ends a pinned state.
    fn release(&self, name: &str) -> BoxFuture<'_, ()>;
}
