//! `cluster.history.jsonl`: what happened to the office of primary, a line each, appended.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use millrace_base::Micros;
use serde::{Deserialize, Serialize};

use crate::spec::NodeName;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Elected {
        from: NodeName,
        to: NodeName,
        why: String,
        /// Bytes of log that `from` was seen to have and `to` has not: they may be lost.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        missing_bytes: Option<u64>,
    },
    Promoted {
        node: NodeName,
        /// Since the election.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after_ms: Option<u64>,
    },
    /// What acknowledged commits are on from now on; empty: on the primary alone.
    Promise {
        setting: String,
    },
    Paused {
        paused: bool,
    },
    /// The node begins a term without an election.
    TookOffice {
        node: NodeName,
    },
    /// Its server has ended, and others may take its place.
    Resigned {
        node: NodeName,
        why: String,
    },
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Micros,
    pub term: u64,
    #[serde(flatten)]
    pub event: Event,
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.history.jsonl")
}

/// Adds a line, and sees it onto the disk.
///
/// # Errors
/// If it cannot be written.
pub fn append(state_dir: &Path, at: Micros, term: u64, event: Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Entry { at, term, event }).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut file = OpenOptions::new().append(true).create(true).open(path(state_dir))?;
    file.write_all(&line)?;
    file.sync_data()
}

/// Writes all lines anew, as others on other hosts know them.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn replace<'a>(state_dir: &Path, entries: impl Iterator<Item = &'a Entry>) -> io::Result<()> {
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, entry).map_err(io::Error::other)?;
        text.push(b'\n');
    }
    millrace_base::files::write_atomic(&path(state_dir), &text, 0o600)
}

/// All lines, the oldest first; one that was cut off by a crash is left out.
///
/// # Errors
/// If the file cannot be read.
pub fn read(state_dir: &Path) -> io::Result<Vec<Entry>> {
    match std::fs::read_to_string(path(state_dir)) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_in_order() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), []);
        let (a, b) = (NodeName::new("a"), NodeName::new("b"));
        let elected = Event::Elected {
            from: a,
            to: b.clone(),
            why: "the server was killed by signal 9".into(),
            missing_bytes: Some(7),
        };
        let promoted = Event::Promoted { node: b, after_ms: Some(210) };
        append(folder.path(), Micros(1), 2, elected.clone()).unwrap();
        append(folder.path(), Micros(2), 2, promoted.clone()).unwrap();
        let mut file = OpenOptions::new().append(true).open(path(folder.path())).unwrap();
        file.write_all(b"{\"at\":3,\"te").unwrap();
        let events: Vec<_> = read(folder.path()).unwrap().into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [elected, promoted]);
    }
}
