//! `cluster.json`: which node is the primary, and of which cluster.
//!
//! One writer, the supervisor; written when a cluster is made or first met. Versioned and
//! checksummed: a damaged record stops the start with a hint, it is never guessed around.

use std::path::{Path, PathBuf};

use millrace_base::files;
use serde::{Deserialize, Serialize};

use crate::{error::ClusterError, spec::NodeName};

const VERSION: u32 = 1;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub primary: NodeName,
    /// PostgreSQL's system identifier.
    pub system_id: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    primary: NodeName,
    /// As text: JSON numbers are not all 64 bits wide everywhere.
    system_id: String,
    checksum: String,
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

fn checksum(record: &ClusterRecord) -> String {
    let text = format!("{VERSION}\n{}\n{}", record.primary, record.system_id);
    blake3::hash(text.as_bytes()).to_hex().as_str().to_owned()
}

/// Reads the record; `None` before the cluster was made.
///
/// # Errors
/// If it is damaged or of another version.
pub fn load(state_dir: &Path) -> Result<Option<ClusterRecord>, ClusterError> {
    let path = path(state_dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ClusterError::Io { doing: "read", path, source }),
    };
    let damaged = |reason: String| ClusterError::StateDamaged { path: path.clone(), reason };
    let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if envelope.version != VERSION {
        return Err(damaged(format!("it is of version {}, this program knows {VERSION}", envelope.version)));
    }
    let system_id = envelope.system_id.parse().map_err(|_| damaged("the system identifier is no number".to_owned()))?;
    let record = ClusterRecord { primary: envelope.primary, system_id };
    if checksum(&record) != envelope.checksum {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    Ok(Some(record))
}

/// Writes the record, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn save(state_dir: &Path, record: &ClusterRecord) -> Result<(), ClusterError> {
    let path = path(state_dir);
    let envelope = Envelope {
        version: VERSION,
        primary: record.primary.clone(),
        system_id: record.system_id.to_string(),
        checksum: checksum(record),
    };
    let write = || {
        let text = serde_json::to_vec_pretty(&envelope).map_err(std::io::Error::other)?;
        files::write_atomic(&path, &text, 0o600)
    };
    write().map_err(|source| ClusterError::Io { doing: "write", path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
        let record = ClusterRecord { primary: NodeName::new("a"), system_id: u64::MAX - 1 };
        save(folder.path(), &record).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(record));

        let file = path(folder.path());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"a\"", "\"b\"")).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("is damaged: its checksum is wrong"), "{error}");
        assert!(error.hint().is_some());
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(load(folder.path()), Err(ClusterError::StateDamaged { .. })));
    }
}
