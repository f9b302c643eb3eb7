//! What can be restored, for those who look.

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

/// Everything in the repository of backups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backups {
    /// The newest first.
    pub backups: Vec<BackupEntry>,
    /// What can be restored from each of them.
    pub windows: Vec<WindowEntry>,
    /// What of the log is there.
    pub timelines: Vec<LogEntry>,
    /// Logical ones, the newest first.
    pub dumps: Vec<DumpEntry>,
    /// What is damaged or of no use, and why.
    pub problems: Vec<String>,
}

/// A logical backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpEntry {
    pub label: String,
    pub database: String,
    /// Schemas and tables; empty: all.
    pub parts: Vec<String>,
    pub at: Micros,
    pub data_bytes: u64,
    pub stored_bytes: u64,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEntry {
    pub label: String,
    /// Else only what had changed since `parent`.
    pub full: bool,
    pub parent: Option<String>,
    pub from_replica: bool,
    pub at: Micros,
    pub data_bytes: u64,
    pub stored_bytes: u64,
    pub timeline: u32,
    /// When it was last restored and checked.
    pub proven: Option<Micros>,
    /// When it last failed that, if it was not proven since.
    #[serde(default)]
    pub failed_proof: Option<Micros>,
    /// It stays, whatever retention says.
    #[serde(default)]
    pub held: bool,
}

/// Between which moments a backup can be restored, with the log after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowEntry {
    pub label: String,
    pub timeline: u32,
    pub from: Micros,
    pub to: Micros,
}

/// The log of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    pub timeline: u32,
    pub first: Lsn,
    pub last: Lsn,
    /// When the last of it was written.
    pub last_at: Micros,
    pub files: u64,
    pub stored_bytes: u64,
    /// From and to, of what is missing in between.
    pub gaps: Vec<(Lsn, Lsn)>,
}

/// What a restore would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// Labels, the full one first.
    pub backups: Vec<String>,
    pub timeline: u32,
    /// Files of the log that are brought.
    pub log_files: usize,
    pub data_bytes: u64,
    /// What it would take, by the last proof; `None`: there was none yet.
    #[serde(default)]
    pub about: Option<std::time::Duration>,
}

impl Backups {
    /// Stretches of time any moment of which can be restored, the oldest first.
    #[must_use]
    pub fn covered(&self) -> Vec<(Micros, Micros)> {
        let mut windows: Vec<(Micros, Micros)> = self.windows.iter().map(|window| (window.from, window.to)).collect();
        windows.sort_unstable();
        let mut covered: Vec<(Micros, Micros)> = Vec::new();
        for (from, to) in windows {
            match covered.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => covered.push((from, to)),
            }
        }
        covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_touch_are_one_stretch() {
        let window =
            |(from, to): (i64, i64)| WindowEntry { label: "b".into(), timeline: 1, from: Micros(from), to: Micros(to) };
        let covered = |windows: &[(i64, i64)]| {
            let windows = windows.iter().copied().map(window).collect();
            Backups { windows, ..Backups::default() }.covered()
        };
        assert_eq!(covered(&[]), []);
        assert_eq!(covered(&[(5, 9), (1, 3)]), [(Micros(1), Micros(3)), (Micros(5), Micros(9))]);
        assert_eq!(covered(&[(1, 9), (2, 4), (9, 12)]), [(Micros(1), Micros(12))]);
    }
}
