//! What goes wrong with capture, by cause, each with what to do about it.

use millrace_base::{Lsn, failpoint::Hit, task::TaskError};
use millrace_contract::{SinkError, TableName};
use millrace_pg::PgError;
use millrace_wire::DecodeError;

/// Why capture stopped, or a request to it failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("source: {0}")]
    Source(#[from] PgError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("the source's wal_level is {found}, not logical")]
    WalLevel { found: String },
    #[error("the source's version is {found}; capture needs 14 or later")]
    Version { found: i32 },
    #[error("the source is a replica")]
    Replica,
    #[error("publication {publication} does not exist")]
    NoPublication { publication: String },
    #[error("publication {publication} {what}")]
    Publication { publication: String, what: String },
    #[error("table {table} {what}")]
    Table { table: TableName, what: String },
    #[error("table {table} has no key: {what}")]
    NoKey { table: TableName, what: &'static str },
    /// The publication no longer has, or for a while did not have, a table: what changed meanwhile was not streamed.
    #[error("table {table} left publication {publication}")]
    TableLeft { table: TableName, publication: String },
    /// Its older rows may differ now from what was streamed.
    #[error("table {table} was altered in a way that its older rows show")]
    Altered { table: TableName },
    #[error("replication slot {slot} does not exist, but the warehouse goes on from {watermark}")]
    NoSlot { slot: String, watermark: Lsn },
    #[error("the server has given up replication slot {slot}: the log it needs is gone")]
    SlotLost { slot: String },
    #[error("replication slot {slot} {what}")]
    SlotUnfit { slot: String, what: String },
    #[error(
        "replication slot {slot} stands at {confirmed}, past the warehouse's {watermark}: changes between them are gone"
    )]
    SlotAhead { slot: String, confirmed: Lsn, watermark: Lsn },
    #[error("the source's system identifier is {found}, but the warehouse was loaded from {expected}")]
    OtherSource { found: u64, expected: u64 },
    #[error("table {table} was rewritten while its copy began")]
    Moved { table: TableName },
    #[error("the stream was not understood")]
    Decode(#[from] DecodeError),
    #[error("the stream was not understood: {0}")]
    Stream(String),
    #[error("nothing came from the source for {seconds} s")]
    Silent { seconds: u64 },
    #[error("cannot keep a large transaction in {folder}")]
    Spill {
        folder: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Failpoint(#[from] Hit),
    /// Capture ended or began anew before it came to a request.
    #[error("capture was interrupted")]
    Interrupted,
    #[error("table {table} is not captured")]
    NotCaptured { table: TableName },
}

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Begin anew from the watermark after a while.
    Retry,
    /// A person must act.
    Stop,
}

impl CaptureError {
    pub(crate) fn next(&self) -> Next {
        match self {
            // the slot may still be held by our own connection of before
            Self::Source(error) if error.is_transient() || error.sqlstate() == Some("55006") => Next::Retry,
            // also what a server looks like that dies during the handshake
            Self::Source(PgError::Tls { .. })
            | Self::Sink(
                SinkError::Retry(_) | SinkError::Full(_) | SinkError::Table { .. } | SinkError::Altered { .. },
            )
            | Self::TableLeft { .. }
            | Self::Altered { .. }
            | Self::Moved { .. }
            | Self::Silent { .. }
            | Self::Spill { .. }
            | Self::Replica
            | Self::Failpoint(_)
            | Self::Interrupted => Next::Retry,
            Self::Source(_)
            | Self::Sink(SinkError::Fatal { .. })
            | Self::WalLevel { .. }
            | Self::Version { .. }
            | Self::NoPublication { .. }
            | Self::Publication { .. }
            | Self::Table { .. }
            | Self::NoKey { .. }
            | Self::NoSlot { .. }
            | Self::SlotLost { .. }
            | Self::SlotUnfit { .. }
            | Self::SlotAhead { .. }
            | Self::OtherSource { .. }
            | Self::Decode(_)
            | Self::Stream(_)
            | Self::Task(_)
            | Self::NotCaptured { .. } => Next::Stop,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Source(error) => error.hint().unwrap_or_else(|| "look at the source's log".to_owned()),
            Self::Sink(SinkError::Fatal { hint, .. }) => hint.clone(),
            Self::Sink(SinkError::Table { table, .. }) => format!("correct the data, then: millrace resync {table}"),
            Self::Sink(SinkError::Retry(_)) => "it is tried again by itself; if it lasts, see the log".to_owned(),
            Self::Sink(SinkError::Full(_)) => {
                "make room on the warehouse's disk: it then goes on by itself, and until then the slot keeps the changes".to_owned()
            }
            Self::WalLevel { .. } => "set wal_level = logical and restart the source".to_owned(),
            Self::Version { .. } => "upgrade the source".to_owned(),
            Self::Replica => "capture reads the primary; it is tried again".to_owned(),
            Self::NoPublication { .. } | Self::Publication { .. } => {
                "let the platform set the publication up again (restart it); tables that were out get a fresh copy"
                    .to_owned()
            }
            Self::Table { .. } | Self::NotCaptured { .. } => {
                "name tables that exist in the source's database".to_owned()
            }
            Self::NoKey { table, .. } => format!(
                "add a primary key, or: ALTER TABLE {} REPLICA IDENTITY USING INDEX <a unique index on columns that are not null>",
                table.to_sql()
            ),
            Self::TableLeft { table, publication } => format!(
                "put it back, or restart the platform, which does: ALTER PUBLICATION {} ADD TABLE {}; it is then copied anew by itself",
                millrace_base::Ident(publication),
                table.to_sql()
            ),
            Self::NoSlot { .. } | Self::SlotLost { .. } | Self::SlotAhead { .. } => {
                "changes may be missing: copy everything anew with `millrace up --recopy`".to_owned()
            }
            Self::SlotUnfit { slot, .. } => {
                format!("choose another slot name, or drop the slot: SELECT pg_drop_replication_slot('{slot}')")
            }
            Self::OtherSource { .. } => {
                "connect to the database that the warehouse was loaded from, or load it anew".to_owned()
            }
            Self::Spill { folder, .. } => format!("free space in {folder}"),
            Self::Altered { .. } | Self::Sink(SinkError::Altered { .. }) => "it is copied anew by itself".to_owned(),
            Self::Moved { .. } | Self::Silent { .. } | Self::Failpoint(_) | Self::Interrupted => {
                "it is tried again".to_owned()
            }
            Self::Decode(_) | Self::Stream(_) | Self::Task(_) => {
                "this is a defect of Millrace: report it with the log".to_owned()
            }
        }
    }
}

impl From<tokio_postgres::Error> for CaptureError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Source(error.into())
    }
}
