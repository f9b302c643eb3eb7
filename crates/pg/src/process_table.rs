//! Reading `/proc`: which processes belong to a data directory.
//!
//! A postmaster and all its children have the data directory as their working directory,
//! which names them more reliably than any pid file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal};

/// One living process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// Name of the program, at most 15 bytes.
    pub(crate) program: String,
}

/// The living processes whose working directory is `folder`.
pub(crate) fn working_in(folder: &Path) -> Vec<Process> {
    let Ok(folder) = folder.canonicalize() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| working_folder(*pid).as_deref() == Some(folder.as_path()))
        .filter_map(look_at)
        .collect()
}

/// The process, unless it is gone or a zombie.
pub(crate) fn look_at(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (program) state ppid …; the program may itself contain parentheses
    let (head, tail) = stat.rsplit_once(')')?;
    let program = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(Process { pid, parent, program })
}

pub(crate) fn working_folder(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Sends a signal; that the process is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        && let Err(error) = rustix::process::kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = pid.as_raw_pid(), %error, "cannot signal a process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let own = std::process::id();
        let folder = std::env::current_dir().unwrap();
        assert!(working_in(&folder).iter().any(|p| p.pid == own));
        assert_eq!(look_at(own).unwrap().pid, own);
        assert!(look_at(u32::MAX).is_none());
    }
}
