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
    /// It has been killed, and does nothing more of its own: it is on its way out, or sleeps in the kernel until a disk
    /// answers, and ends before it leaves the kernel.
    pub(crate) dying: bool,
}

/// `PF_EXITING` (include/linux/sched.h).
const EXITING: u64 = 0x4;

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
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    Some(Process { pid, parent, program, dying: is_dying(pid) })
}

/// Whether this holds of all its threads.
fn is_dying(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut threads = threads.peekable();
    threads.peek().is_some() && threads.all(|thread| thread.is_ok_and(|thread| thread_is_dying(&thread.path())))
}

fn thread_is_dying(thread: &Path) -> bool {
    // proc(5): state is the first field after the program's name, flags the seventh
    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, tail)| tail).split_whitespace().collect();
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    if flags & EXITING != 0 {
        return true;
    }
    // one that sleeps interruptibly, or runs, is gone in a moment
    fields.first() == Some(&"D") && fs::read_to_string(thread.join("status")).is_ok_and(|status| is_killed(&status))
}

/// `SIGKILL` is pending, by the text of `/proc/PID/status`.
fn is_killed(status: &str) -> bool {
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & (1 << (Signal::KILL.as_raw() - 1)) != 0)
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
        assert!(!look_at(own).unwrap().dying);
        let status = "SigQ:\t0/96\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\nSigBlk:\t0\n";
        assert!(is_killed(status));
        assert!(!is_killed(&status.replace("0100", "4000")), "asked to end");
    }
}
