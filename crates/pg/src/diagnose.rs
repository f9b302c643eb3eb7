//! Why a server did not start: from the lines of its log to a cause.
//!
//! Works on the English messages; servers are started with `lc_messages = C`.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use crate::error::ServerError;

const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 8;

/// The last lines of a log written from `offset` on, at most 8.
#[must_use]
pub fn log_tail(log: &Path, offset: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(offset.max(length.saturating_sub(TAIL_BYTES)).min(length)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|line| (*line).to_owned()).collect()
}

/// The error that the log tells of.
#[must_use]
pub fn cause(data_dir: &Path, port: u16, log_tail: Vec<String>) -> ServerError {
    let line_with = |texts: &[&str]| {
        log_tail.iter().find(|line| texts.iter().any(|text| line.contains(text))).map(|line| message_of(line))
    };
    if line_with(&["Address already in use"]).is_some() {
        return ServerError::PortInUse { port };
    }
    if line_with(&["No space left on device"]).is_some() {
        return ServerError::DiskFull { path: data_dir.to_owned() };
    }
    if let Some(line) = line_with(&[
        "unrecognized configuration parameter",
        "invalid value for parameter",
        "configuration file \"",
        "is outside the valid range",
    ]) {
        return ServerError::BadSetting { line };
    }
    if let Some(line) = line_with(&[
        "could not locate a valid checkpoint",
        "invalid checkpoint record",
        "invalid primary checkpoint record",
        "incorrect checksum in control file",
        "could not open file \"",
        "could not read file \"",
        "could not find the database system",
        "is missing",
        "PANIC:",
        "invalid page in block",
        "is not a valid data directory",
        "could not open directory",
        "could not access directory",
        "pg_filenode.map",
        "required WAL directory",
    ]) {
        return ServerError::Damaged { data_dir: data_dir.to_owned(), line };
    }
    ServerError::Ended { data_dir: data_dir.to_owned(), log_tail }
}

/// A log line without its prefix: what follows the severity.
fn message_of(line: &str) -> String {
    ["FATAL:", "PANIC:", "ERROR:", "LOG:"]
        .iter()
        .find_map(|severity| line.split_once(severity).map(|(_, message)| message.trim().to_owned()))
        .unwrap_or_else(|| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caused_by(line: &str) -> ServerError {
        cause(Path::new("/data"), 5440, vec!["LOG:  starting".into(), line.into()])
    }

    #[test]
    fn causes_are_told_apart() {
        assert!(matches!(
            caused_by("LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use"),
            ServerError::PortInUse { port: 5440 }
        ));
        assert!(matches!(
            caused_by("PANIC:  could not write to file \"pg_wal/xlogtemp.9\": No space left on device"),
            ServerError::DiskFull { .. }
        ));
        match caused_by("2026-01-01 [9] FATAL:  could not open directory \"pg_notify\": No such file or directory") {
            ServerError::Damaged { line, .. } => {
                assert!(line.starts_with("could not open directory"), "{line}")
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            caused_by("LOG:  unrecognized configuration parameter \"wal_lvl\" in file \"x\" line 3"),
            ServerError::BadSetting { .. }
        ));
        assert!(matches!(caused_by("something new"), ServerError::Ended { .. }));
    }

    #[test]
    fn only_the_new_lines_are_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "old\nnew\n\nnewer\n").unwrap();
        assert_eq!(log_tail(file.path(), 4), ["new", "newer"]);
        assert!(log_tail(Path::new("/nonexistent"), 0).is_empty());
    }
}
