//! Another way to a replica's data than a base backup of its primary: what a platform keeps elsewhere, as a trait so that this
//! crate need not know of it.

use std::{fmt, path::PathBuf};

use futures::future::BoxFuture;
use millrace_base::Lsn;
use millrace_pg::RunAs;

/// Has copies of the cluster's data.
pub trait Seed: fmt::Debug + Send + Sync {
    /// Makes the data directory of a standby; in the end, says what of. A copy that is dropped stops writing soon.
    ///
    /// The error is why it cannot; what it has written is then removed, and a base backup taken.
    fn sow(&self, wanted: Sown) -> BoxFuture<'static, Result<String, String>>;
}

/// What a copy is to be.
#[derive(Debug, Clone)]
pub struct Sown {
    /// Not there yet.
    pub data_dir: PathBuf,
    pub owner: RunAs,
    pub system_id: u64,
    /// The timeline of the primary.
    pub timeline: u32,
    /// The primary keeps its log from here on: what comes before must be in the copy.
    pub reach: Lsn,
}
