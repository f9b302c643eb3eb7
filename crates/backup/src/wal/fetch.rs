//! One file of the log for a server that asks for it.
//!
//! Only what is asked for is looked at: the archive may hold very many files, and the server waits.

use std::path::{Path, PathBuf};

use super::{
    archive::{self, Inventory, Stored, read, read_segment_now, write_file},
    segment::{Segment, parse_history_name},
};
use crate::{error::BackupError, repo::Repository};

/// A file of the log that is in the repository.
#[derive(Debug, Clone)]
pub struct Found(What);

#[derive(Debug, Clone)]
enum What {
    History(Stored),
    Segment { segment: Segment, inventory: Inventory },
}

/// Looks for a file of the log (a segment or a history, by PostgreSQL's name) and for so many segments after it.
///
/// # Errors
/// [`BackupError::WalAbsent`] if the repository does not have it: the end of the log, for a server.
pub async fn find(repo: &Repository, system_id: u64, name: &str, ahead: u32) -> Result<Found, BackupError> {
    let absent = || BackupError::WalAbsent { name: name.to_owned() };
    if let Some(timeline) = parse_history_name(name) {
        let stored = archive::listed_history(repo, system_id, timeline).await?;
        return Ok(Found(What::History(stored.ok_or_else(absent)?)));
    }
    let segment_bytes = archive::segment_bytes(repo, system_id).await?;
    let segment = Segment::parse(name, segment_bytes).ok_or_else(absent)?;
    let inventory = archive::listed_from(repo, system_id, segment_bytes, (segment, u64::from(ahead))).await?;
    inventory.reach(segment).ok_or_else(absent)?;
    Ok(Found(What::Segment { segment, inventory }))
}

impl Found {
    /// Whether the segment after it is there as a whole, if it was looked for.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        match &self.0 {
            What::History(_) => false,
            What::Segment { segment, inventory } => inventory.segments.contains_key(&segment.next()),
        }
    }

    /// Brings it to `to`. The file appears whole or not at all.
    ///
    /// # Errors
    /// If it cannot be read or is damaged, or there are two contents of it, or `to` cannot be written.
    pub async fn bring(self, repo: &Repository, system_id: u64, to: &Path) -> Result<(), BackupError> {
        let content = match self.0 {
            What::History(stored) => read(repo, &stored).await?,
            What::Segment { segment, inventory } => read_segment_now(repo, system_id, &inventory, segment).await?,
        };
        write_file(PathBuf::from(to), content).await
    }
}

/// Brings a file of the log (a segment or a history, by PostgreSQL's name) from the repository to `to`, for a
/// `restore_command`. The file appears whole or not at all.
///
/// # Errors
/// [`BackupError::WalAbsent`] if the repository does not have it: the end of the log, for a server.
pub async fn fetch(repo: &Repository, system_id: u64, name: &str, to: &Path) -> Result<(), BackupError> {
    find(repo, system_id, name, 0).await?.bring(repo, system_id, to).await
}
