//! Logical slots on a replica that cannot make them itself (PostgreSQL before 16): the primary's file is written while the
//! replica is stopped.
//!
//! A slot's file holds its name, database, plugin and positions, with a checksum (`replication/slot.h`); it means the same
//! on every server that has the log from its position on. The replica then keeps that log, and tells its upstream which
//! catalog rows decoding needs (`hot_standby_feedback`).

use std::{fs, os::unix::fs::DirBuilderExt};

use millrace_base::{Lsn, files};

use crate::{
    catalog::Slot,
    error::ServerError,
    server::{ServerSpec, remove},
};

/// Bytes of a file of the log, as initdb makes it.
const SEGMENT: u64 = 16 << 20;

impl ServerSpec {
    /// Whether the log from `from` on begins in this data directory.
    #[must_use]
    pub fn has_log_from(&self, from: Lsn) -> bool {
        // a file's name ends with the upper half of its position and its number within it
        let end = format!("{:08X}{:08X}", from.0 >> 32, (from.0 & 0xffff_ffff) / SEGMENT);
        let names = fs::read_dir(self.data_dir().join("pg_wal")).into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .any(|name| name.len() == 24 && name.ends_with(&end))
    }

    /// Gives a stopped replica a slot: what [`crate::catalog::slot_file`] read on its primary. One of the same name is
    /// replaced.
    ///
    /// # Errors
    /// If the log from the slot's position on is not here, or it cannot be written.
    pub fn write_slot(&self, slot: &Slot, file: &[u8]) -> Result<(), ServerError> {
        if !slot.restart_lsn.is_some_and(|from| self.has_log_from(from)) {
            return Err(ServerError::NoLog { slot: slot.name.clone(), data_dir: self.data_dir() });
        }
        let slots = self.data_dir().join("pg_replslot");
        let (folder, making) = (slots.join(&slot.name), slots.join(format!("{}.tmp", slot.name)));
        // whole or not at all: PostgreSQL removes what ends with .tmp, and refuses a slot without its file
        remove(&making)?;
        fs::DirBuilder::new().mode(0o700).create(&making).map_err(ServerError::io("make", &making))?;
        self.run_as.own(&making)?;
        let path = making.join("state");
        files::write_atomic(&path, file, 0o600).map_err(ServerError::io("write", &path))?;
        self.run_as.own(&path)?;
        remove(&folder)?;
        fs::rename(&making, &folder).map_err(ServerError::io("rename", making))
    }

    /// Gives a stopped replica the snapshots that its slots begin with: without them decoding would begin later than
    /// the slot, and pass over what lies between in silence.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn write_snapshots(&self, snapshots: &[(String, Vec<u8>)]) -> Result<(), ServerError> {
        let folder = self.data_dir().join("pg_logical/snapshots");
        for (name, bytes) in snapshots {
            let path = folder.join(name);
            files::write_atomic(&path, bytes, 0o600).map_err(ServerError::io("write", &path))?;
            self.run_as.own(&path)?;
        }
        Ok(())
    }
}
