//! Versioned migrations of a database.
//!
//! Scripts are applied in the order of their versions, then the repeatable ones whose text changed.
//! Invariants: a script and its row in the history are one transaction, so a failed script leaves
//! nothing; a script that was applied does not change; two runners never work on one database at
//! once; a script that waits for a lock gives way to the application and tries again.
//! The history is `public.flyway_schema_history`, laid out and checksummed as Flyway's, so that
//! either tool takes over from the other.
//! Non-goals: undo, repair, baselines of one's own, scripts outside a transaction.

mod checksum;
mod error;
mod history;
mod plan;
mod run;
mod script;
mod version;

use serde::Serialize;

pub use checksum::checksum;
pub use error::MigrateError;
pub use plan::{Entry, State};
pub use run::{Options, up, up_with};
pub use version::Version;

use history::History;
use tokio_postgres::Client;

/// A script as the pack has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// Numbers with dots; `None`: repeatable.
    pub version: Option<String>,
    pub description: String,
    /// The file's name: it identifies a repeatable script and appears in messages.
    pub script: String,
    #[serde(skip)]
    pub sql: String,
}

/// What [`up`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Scripts, in the order in which they ran.
    pub applied: Vec<String>,
}

/// Every script of the pack and of the history, in the order in which they run, each with its state.
///
/// # Errors
/// If a version is malformed or the history cannot be read.
pub async fn status(client: &Client, migrations: &[Migration]) -> Result<Vec<Entry>, MigrateError> {
    plan::entries(migrations, &History::read(client).await?)
}

/// Checks that what was applied is what the pack has.
///
/// # Errors
/// The first difference, by its script.
pub async fn validate(client: &Client, migrations: &[Migration]) -> Result<(), MigrateError> {
    pending(client, migrations).await.map(drop)
}

/// The scripts that [`up`] would run, after the checks of [`validate`].
///
/// # Errors
/// As [`validate`].
pub async fn pending(client: &Client, migrations: &[Migration]) -> Result<Vec<String>, MigrateError> {
    let history = History::read(client).await?;
    let pending = plan::pending(migrations, &history)?;
    Ok(pending.into_iter().map(|m| m.script.clone()).collect())
}
