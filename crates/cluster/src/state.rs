//! `cluster.json`: which node is the primary, of which cluster, and what is promised of its commits.
//!
//! One writer, the supervisor; written when a cluster is made or first met, and before anything is done that rests on
//! what it says. Versioned and checksummed: a damaged record stops the start with a hint, it is never guessed around.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use millrace_base::files;
use serde::{Deserialize, Serialize};

use crate::{
    error::ClusterError,
    observed::{LogEnd, Said, Wish},
    promise::Promise,
    spec::{NodeName, RestoreId},
};

const VERSION: u32 = 2;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub primary: NodeName,
    /// PostgreSQL's system identifier.
    pub system_id: u64,
    /// Grows with each election.
    pub term: u64,
    /// The primary has been elected and may still be a replica.
    pub promoting: bool,
    pub promise: Promise,
    /// No election, by an operator's word.
    pub paused: bool,
    /// What an operator wants. Kept where supervisors on several hosts share the record, not in the file.
    #[serde(default)]
    pub wish: Option<Wish>,
    /// As above.
    #[serde(default)]
    pub said: Said,
    /// The primary of this term has ended in order, with its last record here. As above.
    #[serde(default)]
    pub handed_over: Option<LogEnd>,
    /// The primary of this term has said that its server has ended. As above.
    #[serde(default)]
    pub resigned: bool,
    /// See [`crate::Intent::restored`]. As above.
    #[serde(default)]
    pub restored: Option<RestoreId>,
}

impl ClusterRecord {
    /// Of a cluster that has just been made or met: nothing is promised yet.
    #[must_use]
    pub fn new(primary: NodeName, system_id: u64) -> Self {
        let promise = Promise::none();
        Self {
            primary,
            system_id,
            term: 1,
            promoting: false,
            promise,
            paused: false,
            wish: None,
            said: Said::default(),
            handed_over: None,
            resigned: false,
            restored: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    primary: NodeName,
    /// As text: JSON numbers are not all 64 bits wide everywhere.
    system_id: String,
    // not in version 1
    #[serde(default = "first_term")]
    term: u64,
    #[serde(default)]
    promoting: bool,
    #[serde(default)]
    promise: Promise,
    #[serde(default)]
    paused: bool,
    checksum: String,
}

fn first_term() -> u64 {
    1
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

fn checksum(version: u32, record: &ClusterRecord) -> String {
    let mut text = format!("{version}\n{}\n{}", record.primary, record.system_id);
    if version > 1 {
        let ClusterRecord { term, promoting, promise, paused, .. } = record;
        // writing to a string cannot fail
        let _infallible = write!(text, "\n{term}\n{promoting}\n{}\n{paused}", promise.setting());
    }
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
    if !(1..=VERSION).contains(&envelope.version) {
        return Err(damaged(format!("it is of version {}, this program knows {VERSION}", envelope.version)));
    }
    let system_id = envelope.system_id.parse().map_err(|_| damaged("the system identifier is no number".to_owned()))?;
    let Envelope { version, primary, term, promoting, promise, paused, .. } = envelope;
    let record = ClusterRecord { term, promoting, promise, paused, ..ClusterRecord::new(primary, system_id) };
    if checksum(version, &record) != envelope.checksum {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    Ok(Some(record))
}

/// Records a cluster whose data has been brought back from a backup to `primary`: a new term, in which nothing is
/// promised yet, whatever was before. Returns the term.
///
/// # Errors
/// If the record of before is damaged, or the new one cannot be written.
pub fn restored(state_dir: &Path, primary: NodeName, system_id: u64) -> Result<u64, ClusterError> {
    let before = load(state_dir)?.map(|record| (record.term, record.paused));
    let (term, paused) = before.map_or((1, false), |(term, paused)| (term + 1, paused));
    save(state_dir, &ClusterRecord { term, paused, ..ClusterRecord::new(primary, system_id) })?;
    Ok(term)
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
        term: record.term,
        promoting: record.promoting,
        promise: record.promise.clone(),
        paused: record.paused,
        checksum: checksum(VERSION, record),
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
        let record = ClusterRecord {
            term: 7,
            promoting: true,
            promise: Promise::new([NodeName::new("b"), NodeName::new("c")].into(), 1),
            ..ClusterRecord::new(NodeName::new("a"), u64::MAX - 1)
        };
        save(folder.path(), &record).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(record));

        let file = path(folder.path());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"term\": 7", "\"term\": 8")).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("is damaged: its checksum is wrong"), "{error}");
        assert!(error.hint().is_some());
        let first = format!("1\n{}\n{}", "a", 5);
        let first = serde_json::json!({ "version": 1, "primary": "a", "system_id": "5",
            "checksum": blake3::hash(first.as_bytes()).to_hex().as_str() });
        std::fs::write(&file, first.to_string()).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(ClusterRecord::new(NodeName::new("a"), 5)), "of version 1");
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(load(folder.path()), Err(ClusterError::StateDamaged { .. })));
    }
}
