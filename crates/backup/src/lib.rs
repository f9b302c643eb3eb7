//! Backups of a PostgreSQL cluster: stub.
mod catalog;
mod create;
mod error;
mod manifest;
mod pack;
mod page;
pub mod plan;
mod prove;
mod recovery;
pub mod repo;
mod restore;
pub mod retention;
mod scan;
pub mod seal;
mod session;
mod unpack;
mod verify;
pub mod wal;

pub use catalog::{Catalog, list};
pub use create::{CreateOptions, Created, create};
pub use error::BackupError;
pub use manifest::{Kind, Manifest, Object, Tablespace};
pub use prove::{Proof, ProveOptions, prove};
pub use recovery::WalSource;
pub use restore::{RestoreOptions, plan as plan_restore, restore};
pub use verify::{Finding, VerifyOptions, VerifyReport, verify};

/// Told while work goes on; called from the task that works, so it must return soon.
pub type ProgressFn<'a> = dyn Fn(Step) + Send + Sync + 'a;

/// What is done just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A backup waits for the server's checkpoint.
    Checkpoint,
    Copy {
        bytes: u64,
        bytes_total: u64,
    },
    /// The log's archive is waited for.
    WaitForLog {
        until: millrace_base::Lsn,
    },
    /// A restore brings log.
    Log {
        segments: usize,
        segments_total: usize,
    },
    Verify {
        objects: usize,
        objects_total: usize,
    },
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(BackupError::Panicked(error.to_string())),
        Err(_) => Err(BackupError::Cancelled),
    }
}
