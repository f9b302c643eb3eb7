//! `global/pg_control` of a server that does not run: whose data it is.
//!
//! Layout: `ControlFileData` of PostgreSQL 14–17 (`catalog/pg_control.h`), little-endian 64-bit:
//! system identifier at 0, version at 8, state at 16, place of the last checkpoint at 32, its timeline at 48.

use std::{fs, path::Path};

use millrace_base::Lsn;

use crate::error::ServerError;

/// What is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// Made at initdb, shared by all copies of a cluster.
    pub system_id: u64,
    pub timeline: u32,
    /// Where the record of the last checkpoint begins: after an orderly end it is the last record of the log.
    pub checkpoint: Lsn,
    /// The server ended in order: there is nothing to recover.
    pub shut_down: bool,
}

/// `DB_SHUTDOWNED` and `DB_SHUTDOWNED_IN_RECOVERY`.
const SHUT_DOWN: [u32; 2] = [1, 2];

/// Reads it.
///
/// # Errors
/// [`ServerError::Damaged`] if it is absent, too short or of an unknown layout.
pub fn read(data_dir: &Path) -> Result<ControlFile, ServerError> {
    let damaged = |line: String| ServerError::Damaged { data_dir: data_dir.to_owned(), line };
    let bytes = fs::read(data_dir.join("global/pg_control"))
        .map_err(|error| damaged(format!("global/pg_control cannot be read: {error}")))?;
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let parsed = (|| {
        let system_id = u64::from_le_bytes(bytes.get(0..8)?.try_into().ok()?);
        let version = word(8)?;
        if !(1300..1800).contains(&version) || system_id == 0 {
            return None;
        }
        let checkpoint = Lsn(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?));
        Some(ControlFile { system_id, timeline: word(48)?, checkpoint, shut_down: SHUT_DOWN.contains(&word(16)?) })
    })();
    parsed.ok_or_else(|| damaged("global/pg_control is not a control file of PostgreSQL 14 to 17".to_owned()))
}
