//! `millrace ps`: the platform's processes, read from `/proc`.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde::Serialize;

use crate::output::{Output, bytes_text, table};

/// A process of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) state: String,
    /// Memory of its own and shared, in bytes.
    pub(crate) resident_bytes: u64,
    pub(crate) command: String,
}

/// Reads one process; `None` if it is gone.
pub(crate) fn read(pid: u32, name: &str) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let field = |wanted: &str| status.lines().find_map(|line| line.strip_prefix(wanted)).map(str::trim);
    let kibibytes: u64 = field("VmRSS:").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    let command = fs::read(folder.join("cmdline")).ok()?;
    Some(Process {
        pid,
        name: name.to_owned(),
        uid: fs::metadata(&folder).ok()?.uid(),
        state: field("State:").unwrap_or_default().to_owned(),
        resident_bytes: kibibytes * 1024,
        command: String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
    })
}

/// This process's resident memory, in bytes.
pub(crate) fn own_memory_bytes() -> u64 {
    read(std::process::id(), "").map_or(0, |process| process.resident_bytes)
}

pub(crate) fn show(processes: &[Process], output: Output) -> anyhow::Result<()> {
    output.json(&processes)?;
    let rows: Vec<Vec<String>> = processes
        .iter()
        .map(|process| {
            vec![
                process.name.clone(),
                process.pid.to_string(),
                process.uid.to_string(),
                process.state.clone(),
                bytes_text(process.resident_bytes),
                process.command.clone(),
            ]
        })
        .collect();
    output.line(table(&["process", "pid", "uid", "state", "resident", "command"], &rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself() {
        let own = read(std::process::id(), "test").unwrap();
        assert!(own.resident_bytes > 1 << 20);
        assert!(own.command.contains("millrace"), "{}", own.command);
        assert_eq!(read(u32::MAX, "none"), None);
    }
}
