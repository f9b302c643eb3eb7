//! `global/pg_control` of a server that does not run: whose data it is.
//!
//! Layout: `ControlFileData` of PostgreSQL 14–17 (`catalog/pg_control.h`), little-endian 64-bit:
//! system identifier at 0, version at 8, state at 16, place of the last checkpoint at 32, its timeline at 48, and from 180
//! on the settings of the primary that a replica must not fall below.

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
    /// What the primary had of [`SHARED_SETTINGS`] when it wrote the log that has been replayed here.
    pub shared_settings: [u32; 5],
}

/// Settings that a replica must have no less of than its primary (manual, "Hot Standby"), and their defaults.
pub const SHARED_SETTINGS: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

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
        let mut shared_settings = [0; 5];
        for (at, setting) in (180..).step_by(4).zip(&mut shared_settings) {
            *setting = word(at)?;
        }
        let shut_down = SHUT_DOWN.contains(&word(16)?);
        Some(ControlFile { system_id, timeline: word(48)?, checkpoint, shut_down, shared_settings })
    })();
    parsed.ok_or_else(|| damaged("global/pg_control is not a control file of PostgreSQL 14 to 17".to_owned()))
}
