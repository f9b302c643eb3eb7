//! What the caller says to capture.

use std::{path::PathBuf, time::Duration};

use millrace_base::Lsn;
use millrace_contract::{Applied, TableName, topology::Origin};
use millrace_pg::{ConnectParams, replication::RawConnection};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::CaptureError;

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The role needs REPLICATION and SELECT on the tables.
    pub source: ConnectParams,
    /// Where the source is now, if that changes, and how much of its log outlives it: nothing beyond is applied, since a
    /// failover could undo it. `None` as long as nothing is known.
    pub origin: Option<watch::Receiver<Option<Origin>>>,
    pub slot: String,
    pub publication: String,
    /// What the warehouse wants; what else is published is left out.
    pub tables: Vec<TableName>,
    /// Tables that [`crate::prepare`] has just put (back) into the publication: what changed while
    /// they were out was not streamed, so those copied before get a fresh copy.
    pub added: Vec<TableName>,
    /// Connections of a copy.
    pub copy_connections: usize,
    /// A batch is closed when its first change has waited this long.
    pub batch_age: Duration,
    /// A batch is closed at the first end of a transaction past this.
    pub batch_bytes_max: usize,
    /// Rows are handed to the sink in pieces of about this size.
    pub step_bytes: usize,
    /// Large transactions wait here for their commit. Made if absent; its files have no names.
    pub spill_folder: PathBuf,
    /// A barrier needs every transaction that is open on the source to end; changes wait meanwhile,
    /// but not longer than this.
    pub barrier_deadline: Duration,
    /// How often the watermark of an idle source moves.
    pub idle_advance: Duration,
}

impl CaptureOptions {
    /// The same for a session that begins now, and the term that it is of. Waits until it is known where the source is.
    ///
    /// # Errors
    /// If `token` is cancelled first.
    pub(crate) async fn now(&self, token: &CancellationToken) -> Result<(Self, u64), CaptureError> {
        let mut now = self.clone();
        let Some(mut origin) = self.origin.clone() else { return Ok((now, 0)) };
        // `wait_for` loses nothing when dropped; no sender: the platform ends
        let origin = tokio::select! {
            known = origin.wait_for(Option::is_some) => known.ok().and_then(|known| known.clone()),
            () = token.cancelled() => None,
        };
        let origin = origin.ok_or(CaptureError::Interrupted)?;
        now.source.host = origin.host;
        now.source.port = origin.port;
        Ok((now, origin.term))
    }

    /// Waits until the log of `term` up to `position` outlives the server that wrote it.
    ///
    /// # Errors
    /// If another server writes the log by then, or `token` is cancelled.
    pub(crate) async fn kept(&self, term: u64, position: Lsn, token: &CancellationToken) -> Result<(), CaptureError> {
        let Some(mut origin) = self.origin.clone() else { return Ok(()) };
        let decided = |origin: &Option<Origin>| match origin {
            Some(origin) => origin.term != term || origin.kept >= position,
            None => false,
        };
        // `wait_for` loses nothing when dropped; no sender: the platform ends
        tokio::select! {
            waited = origin.wait_for(decided) => match waited {
                Ok(origin) if origin.as_ref().is_some_and(|origin| origin.term == term) => Ok(()),
                Ok(_) | Err(_) => Err(CaptureError::Interrupted),
            },
            () = token.cancelled() => Err(CaptureError::Interrupted),
        }
    }

    /// The usual: batches of 1 s or 64 MB, two connections for copies.
    #[must_use]
    pub fn new(source: ConnectParams, tables: Vec<TableName>, spill_folder: PathBuf) -> Self {
        Self {
            source,
            origin: None,
            slot: "millrace".to_owned(),
            publication: "millrace".to_owned(),
            tables,
            added: Vec::new(),
            copy_connections: 2,
            batch_age: Duration::from_secs(1),
            batch_bytes_max: 64 << 20,
            step_bytes: 8 << 20,
            spill_folder,
            barrier_deadline: Duration::from_secs(30),
            idle_advance: Duration::from_secs(10),
        }
    }
}

/// A request to running capture. It is taken up between batches while streaming; the asker bounds its wait.
#[derive(Debug)]
pub enum Command {
    /// Applies exactly the transactions that a snapshot of the source sees, then pins the sink's state as `name`.
    Barrier { name: String, reply: oneshot::Sender<Result<Barrier, CaptureError>> },
    /// Copies one table anew, at a barrier. Ends its quarantine.
    Resync { table: TableName, reply: oneshot::Sender<Result<Applied, CaptureError>> },
}

/// A moment at which source and sink can be compared exactly.
#[derive(Debug)]
pub struct Barrier {
    /// Every transaction whose commit record lies before this, and no other, is in both.
    pub lsn: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`, as long as this value lives.
    pub snapshot: String,
    /// Keeps the snapshot and its temporary slot.
    #[expect(dead_code, reason = "held for what dropping it ends")]
    pub(crate) connection: RawConnection,
}
