//! `cluster.history.jsonl`: what happened to the office of primary, a line each, appended.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use millrace_base::Micros;
pub use millrace_contract::cluster::{Entry, Event};

/// [`newest`] looks no further back than this.
const TAIL_BYTES_MAX: u64 = 256 << 10;

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

/// The last lines, at most `limit`, the newest first. It costs the same however long the history is.
///
/// # Errors
/// If the file cannot be read.
pub fn newest(state_dir: &Path, limit: usize) -> io::Result<Vec<Entry>> {
    let mut file = match File::open(path(state_dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut tail)?;
    // the first may be the end of a line
    let lines = tail.split(|byte| *byte == b'\n').skip(usize::from(start > 0));
    let mut entries: Vec<Entry> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    entries.reverse();
    entries.truncate(limit);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_in_order() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), []);
        let elected = Event::Elected {
            from: "a".into(),
            to: "b".into(),
            why: "the server was killed by signal 9".into(),
            missing_bytes: Some(7),
        };
        let promoted = Event::Promoted { node: "b".into(), after_ms: Some(210), away_ms: Some(460) };
        append(folder.path(), Micros(1), 2, elected.clone()).unwrap();
        append(folder.path(), Micros(2), 2, promoted.clone()).unwrap();
        let mut file = OpenOptions::new().append(true).open(path(folder.path())).unwrap();
        file.write_all(b"{\"at\":3,\"te").unwrap();
        let events: Vec<_> = read(folder.path()).unwrap().into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [elected, promoted.clone()]);
        let newest: Vec<_> = newest(folder.path(), 1).unwrap().into_iter().map(|entry| entry.event).collect();
        assert_eq!(newest, [promoted]);
    }

    #[test]
    fn a_long_history_is_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(folder.path(), 10).unwrap(), []);
        let mut text = String::new();
        let lines = 3 * usize::try_from(TAIL_BYTES_MAX).unwrap() / 50;
        for at in 0..lines {
            text.push_str(&format!("{{\"at\":{at},\"term\":1,\"event\":\"paused\",\"paused\":true}}\n"));
        }
        std::fs::write(path(folder.path()), text).unwrap();
        let at: Vec<_> = newest(folder.path(), usize::MAX).unwrap().iter().map(|entry| entry.at.0).collect();
        let last = i64::try_from(lines).unwrap() - 1;
        assert!(at.len() > 1_000 && at.len() < lines, "{}", at.len());
        assert!(at.iter().copied().eq((0..=last).rev().take(at.len())), "none is left out");
    }
}
