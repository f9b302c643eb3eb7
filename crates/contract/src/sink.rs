//! Where changes go: one transaction for each batch, watermark included.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

use crate::{
    batch::Step,
    schema::{TableName, TableSchema},
};

/// Why a batch is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunKind {
    /// The first copy of every table. What the sink holds of them is emptied first.
    InitialCopy,
    /// Changes since the last watermark.
    Changes,
    /// A fresh copy of one table, to be compared with what is there: the sink turns the
    /// differences into changes at the copy's position. Ends the table's quarantine.
    Resync(TableName),
}

impl RunKind {
    /// As kept in `audit.etl_runs`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::InitialCopy => "initial_copy",
            Self::Changes => "changes",
            Self::Resync(_) => "resync",
        }
    }
}

/// What a batch's commit makes durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchEnd {
    /// End of the last transaction in the batch: where the stream resumes. For copies the consistent point.
    pub watermark: Lsn,
    /// Commit time of the last transaction, for freshness.
    pub commit_time: Micros,
    /// Transactions in the batch.
    pub transactions: u64,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub run_id: i64,
    pub rows_inserted: u64,
    pub rows_updated: u64,
    pub rows_deleted: u64,
    pub duration_ms: u64,
}

/// What the sink remembers of a source from earlier commits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The last batch's end; [`Lsn::INVALID`] before the initial copy has committed.
    pub watermark: Lsn,
    /// The source that the watermark belongs to: its system identifier; `None` before the first copy.
    pub system_id: Option<u64>,
    /// Tables stopped with an error; their changes are to be left out until a resync.
    pub quarantined: BTreeMap<TableName, String>,
    /// Tables whose initial copy is in the warehouse.
    pub tables: Vec<TableName>,
    /// Their columns as the warehouse holds them.
    pub schemas: Vec<Arc<TableSchema>>,
}

/// Why a batch was not written. Nothing of it is.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// One table's rows cannot be stored; the others can. The caller quarantines it and repeats the batch without it.
    #[error("table {table} cannot be applied: {reason}")]
    Table { table: TableName, reason: String },
    /// The table's columns changed in the middle of a batch: only a fresh copy follows. The caller makes one by itself.
    #[error("table {table} was altered between two of its changes")]
    Altered { table: TableName },
    /// The warehouse's disk has no room. Trying again helps once someone has made some.
    #[error("the warehouse's disk is full: {0}")]
    Full(String),
    /// Trying again later may help (no memory, …).
    #[error("the warehouse cannot commit now: {0}")]
    Retry(String),
    /// A person must act; the hint says how.
    #[error("the warehouse is unusable: {reason}")]
    Fatal { reason: String, hint: String },
}

/// A warehouse as capture writes it. One writer at a time; calls come in this order:
/// `begin (append)* (commit | rollback)`.
pub trait Sink: Send {
    /// What is durable now.
    fn resume(&mut self) -> impl Future<Output = Result<Resume, SinkError>> + Send;

    /// Opens the batch's transaction. `system_id` is the source's, kept with the watermark.
    fn begin(&mut self, kind: RunKind, system_id: u64) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes one step. Backpressure: returns when there is room for the next.
    fn append(&mut self, step: Step) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Applies and commits all appended steps together with the watermark. After an error nothing is kept.
    fn commit(&mut self, end: BatchEnd) -> impl Future<Output = Result<Applied, SinkError>> + Send;

    /// Forgets the open batch.
    fn rollback(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// The watermark moves without changes (idle source, heartbeat).
    fn advance(&mut self, end: BatchEnd) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Keeps a table's quarantine durable, with its reason, before the batch is repeated without it.
    fn quarantine(&mut self, table: TableName, reason: String) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Pins what the warehouse holds at this moment for an exact comparison ([`crate::query::Query::pinned`]):
    /// readers that name `name` see this state until it is released.
    fn pin(&mut self, name: &str) -> impl Future<Output = Result<(), SinkError>> + Send;
}
