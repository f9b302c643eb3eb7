//! What a backup consists of: `manifest.json` (public, small, written last) and the sealed list of files.
//!
//! Both carry their own checksum. The manifest names every other object of the backup, but for the contents of tables that
//! are recorded afterwards, with size and checksum of its stored bytes, so that a repository can be verified without any key; names, checksums of contents and labels of
//! files are in the sealed list.

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::BackupError;

/// The layout that this version writes.
pub(crate) const FORMAT: u32 = 1;

/// How much a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Everything.
    Full,
    /// What has changed since the start of its parent.
    Incremental,
}

/// One backup: `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub label: String,
    pub kind: Kind,
    /// The backup that this one builds on.
    pub parent: Option<String>,
    pub system_id: u64,
    pub timeline: u32,
    /// Replay begins here.
    pub start: Lsn,
    /// From here on the restored data is consistent.
    pub stop: Lsn,
    /// By the server's clock.
    pub started_at: Micros,
    pub stopped_at: Micros,
    /// `server_version_num`.
    pub postgres_version: u32,
    pub wal_segment_bytes: u64,
    pub from_replica: bool,
    /// Pages were checked while they were read: the server has checksums on.
    pub pages_checked: bool,
    /// Pages whose checksum was wrong, as `file:block`; at most a hundred are named.
    pub pages_damaged: Vec<String>,
    pub tablespaces: Vec<Tablespace>,
    pub files: u64,
    /// Bytes of the data directory that was backed up.
    pub data_bytes: u64,
    /// Bytes read into this backup's packs, before compression.
    pub packed_bytes: u64,
    /// Bytes of this backup's objects.
    pub stored_bytes: u64,
    /// Every other object that a restore needs.
    pub objects: Vec<Object>,
}

impl Manifest {
    /// The object that lists the files.
    pub(crate) fn file_list(&self) -> Result<&Object, BackupError> {
        self.objects
            .iter()
            .find(|object| object.name.starts_with("files."))
            .ok_or_else(|| BackupError::damaged(&self.label, "its manifest names no list of files"))
    }
}

/// An object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Within the backup's folder.
    pub name: String,
    pub bytes: u64,
    /// Of the stored bytes.
    pub blake3: String,
}

/// A tablespace outside of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it was.
    pub path: String,
}

/// The sealed list of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileList {
    pub(crate) format: u32,
    /// As the server gave them; restored word by word.
    pub(crate) backup_label: String,
    pub(crate) tablespace_map: String,
    pub(crate) folders: Vec<Folder>,
    pub(crate) files: Vec<FileEntry>,
    /// Names of this backup's packs, by number.
    pub(crate) packs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folder {
    pub(crate) path: String,
    pub(crate) mode: u32,
}

/// One file of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub(crate) path: String,
    pub(crate) mode: u32,
    /// Its length once restored.
    pub(crate) bytes: u64,
    /// What is in no piece is as in the parent; otherwise it is zeros.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) on_parent: bool,
    /// Of a file read whole at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blake3: Option<String>,
    pub(crate) pieces: Vec<Piece>,
}

/// A part of a file and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    pub(crate) pack: usize,
    /// Within the pack's content.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Of these bytes.
    pub(crate) blake3: String,
    /// Where in the file; for pages, where the part begins that they were chosen from.
    pub(crate) at: u64,
    /// The pages that these bytes are, as (first block of the file, number); none: one run of bytes at `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pages: Option<Vec<(u64, u64)>>,
    /// Pages that are marked are kept as differences; the checksum is of what they were.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) steps: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

const OPENING: &str = "{\"blake3\":\"";
const MIDDLE: &str = "\",\"content\":";

/// A JSON object of two fields: the content, and the checksum of its very bytes.
pub(crate) fn to_document(content: &impl Serialize) -> Result<Vec<u8>, BackupError> {
    let content = serde_json::to_vec(content).map_err(|error| BackupError::Encrypt(error.to_string()))?;
    let hash = blake3::hash(&content).to_hex();
    Ok([OPENING.as_bytes(), hash.as_bytes(), MIDDLE.as_bytes(), &content, b"}\n"].concat())
}

/// Reads what [`to_document`] wrote; any changed bit is an error.
pub(crate) fn from_document<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T, BackupError> {
    let damaged = |reason: &str| BackupError::damaged(object, reason);
    let rest = bytes.strip_prefix(OPENING.as_bytes()).ok_or_else(|| damaged("it does not begin as it should"))?;
    let (hash, rest) = rest.split_at_checked(64).ok_or_else(|| damaged("it is cut short"))?;
    let content = rest
        .strip_prefix(MIDDLE.as_bytes())
        .and_then(|rest| rest.strip_suffix(b"}\n"))
        .ok_or_else(|| damaged("it is cut short"))?;
    if blake3::hash(content).to_hex().as_bytes() != hash {
        return Err(damaged("its checksum is wrong"));
    }
    #[derive(Deserialize)]
    struct Any {
        /// A proof has none.
        #[serde(default)]
        format: u32,
    }
    let format = serde_json::from_slice::<Any>(content).map_err(|error| BackupError::damaged(object, error))?.format;
    if format > FORMAT {
        return Err(BackupError::LaterFormat { object: object.to_owned(), format });
    }
    serde_json::from_slice(content).map_err(|error| BackupError::damaged(object, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> FileList {
        let piece = Piece {
            pack: 0,
            offset: 5,
            bytes: 8192,
            blake3: "00".to_owned(),
            at: 0,
            pages: Some(vec![(3, 1)]),
            steps: true,
        };
        let file = FileEntry {
            path: "base/1/2".to_owned(),
            mode: 0o600,
            bytes: 81_920,
            on_parent: true,
            blake3: None,
            pieces: vec![piece],
        };
        FileList { format: FORMAT, files: vec![file], packs: vec!["pack-00000.zst".to_owned()], ..FileList::default() }
    }

    #[test]
    fn documents_round_trip_and_any_changed_bit_is_found() {
        let bytes = to_document(&list()).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).expect("a document is JSON");
        assert_eq!(from_document::<FileList>("x", &bytes).unwrap(), list());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(from_document::<FileList>("x", &damaged).is_err(), "byte {at} bit {bit}");
            }
        }
        assert!(from_document::<FileList>("x", &bytes[..bytes.len() - 9]).is_err());
    }

    #[test]
    fn a_later_format_says_so() {
        let bytes = to_document(&FileList { format: FORMAT + 1, ..list() }).unwrap();
        let error = from_document::<FileList>("42/backups/a/files", &bytes).unwrap_err();
        assert!(matches!(error, BackupError::LaterFormat { format: 2, .. }), "{error}");
    }
}
