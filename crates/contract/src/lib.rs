//! What the capabilities say to each other.
//!
//! Types and traits only: capture hands a warehouse its changes through [`sink::Sink`], readers ask
//! it through [`query::Reader`], everything that is watched answers with [`status`] types.
//! Invariant: no implementation lives here, and no capability crate imports another one.

pub mod backups;
pub mod batch;
pub mod cluster;
pub mod operate;
pub mod param;
pub mod query;
pub mod report;
pub mod schema;
pub mod sink;
pub mod status;
mod text;
pub mod topology;

pub use batch::{Cell, Op, RowHead, Rows, Step};
pub use query::{Query, QueryError, Reader, RowStream, Value};
pub use schema::{Column, ColumnType, TableName, TableSchema};
pub use sink::{Applied, BatchEnd, RunKind, Sink, SinkError};
pub use topology::{Topology, TopologyNode};
