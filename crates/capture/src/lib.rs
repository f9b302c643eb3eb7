//! Changes of a PostgreSQL database, from its log into a [`millrace_contract::Sink`].
//!
//! First a copy of every table in the snapshot of a replication slot's consistent point, then the
//! stream of changes from that point on, in commit order, in batches of whole transactions.
//!
//! Invariants: the server hears of a position only after the sink has committed it; a slot that was
//! lost is never made anew in silence; no row is skipped but those of a table that the sink holds
//! as quarantined; memory is bounded (a batch, a few steps on their way, nothing of a streamed transaction).
//! Non-goals: knowing what the sink is; what tables a model needs.
//!
//! What changes rows without a row in the log (a rewrite, partitions that come and go, …) is told by event
//! triggers, in messages within the log; the table is then copied anew.
//!
//! Partitioned tables are published through their root (`publish_via_partition_root`) and copied
//! leaf by leaf. The server does not send a TRUNCATE or DROP of a single partition then
//! (PostgreSQL manual, CREATE PUBLICATION): such a table needs a resync.

mod apply;
mod assemble;
mod copy;
mod error;
mod options;
mod progress;
mod reader;
mod run;
mod schema;
mod source;
mod spill;
mod told;

pub use error::CaptureError;
pub use options::{Barrier, CaptureOptions, Command};
pub use run::run;
pub use source::{Prepared, columns, prepare, unfit};
