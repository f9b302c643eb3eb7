//! The processes of a measurement: found, frozen, killed, cleared away.
//!
//! A postmaster and all its children work in the data directory, which names them more reliably than any pid file;
//! agents and proxies are started in the measurement's folder for the same reason.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// What is cleared away; nothing else may happen to work in the folder (a person's shell).
const PROGRAMS: [&str; 6] = ["postgres", "patroni", "python", "etcd", "haproxy", "millrace"];
const POSTGRES: &str = "postgres";
const LEAVE_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A folder in which nothing runs any more once this is dropped.
#[derive(Debug)]
pub(super) struct Grounds(pub(super) PathBuf);

impl Drop for Grounds {
    fn drop(&mut self) {
        clear(&self.0);
    }
}

/// A signal for each; that one has ended is no error.
pub(super) fn signal(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        // what may not be signalled will be seen to be there still
        _ = kill_process(pid, signal);
    }
}

/// Living processes that work in `folder` itself.
pub(super) fn working_in(folder: &Path) -> Vec<u32> {
    all().into_iter().filter(|process| process.folder == folder).map(|process| process.pid).collect()
}

/// The postmaster of a data directory, by its own word.
pub(super) fn postmaster(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

struct Process {
    pid: u32,
    parent: u32,
    program: String,
    folder: PathBuf,
}

/// Those that may be looked at; a zombie has no folder any more.
fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| look_at(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

fn look_at(pid: u32) -> Option<Process> {
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (program) state parent …; the program may itself contain parentheses
    let (head, rest) = stat.rsplit_once(')')?;
    let program = head.split_once('(')?.1.to_owned();
    let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
    Some(Process { pid, parent, program, folder })
}

/// What runs for `folder`: works in it or below, or is a platform that was told to.
fn of(folder: &Path) -> Vec<Process> {
    let told = |process: &Process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        process.program == "millrace" && String::from_utf8_lossy(&line).contains(&*folder.to_string_lossy())
    };
    let known = |process: &Process| {
        process.program.starts_with("pg_") || PROGRAMS.iter().any(|name| process.program.starts_with(name))
    };
    let own = std::process::id();
    let here = |process: &Process| process.pid != own && (process.folder.starts_with(folder) || told(process));
    all().into_iter().filter(|process| known(process) && here(process)).collect()
}

/// Agents first, lest they start anything again; then the servers, by an immediate shutdown that leaves no shared memory
/// behind. Blocks for some seconds at most: it is the last thing that a measurement does, after Ctrl-C too.
fn clear(folder: &Path) {
    let deadline = Instant::now() + LEAVE_MAX;
    loop {
        let processes = of(folder);
        if processes.is_empty() {
            return;
        }
        let (servers, agents): (Vec<_>, Vec<_>) = processes.into_iter().partition(|one| one.program == POSTGRES);
        let pids = |processes: &[Process]| processes.iter().map(|process| process.pid).collect::<Vec<_>>();
        signal(&pids(&agents), Signal::KILL);
        let all = pids(&servers);
        if Instant::now() > deadline {
            signal(&all, Signal::KILL);
            return;
        }
        let children: Vec<u32> = servers.iter().filter(|one| all.contains(&one.parent)).map(|one| one.pid).collect();
        let postmasters: Vec<u32> = all.iter().copied().filter(|pid| !children.contains(pid)).collect();
        signal(&postmasters, Signal::QUIT);
        signal(&all, Signal::CONT);
        std::thread::park_timeout(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_programs_of_the_folder_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let mut bystander = std::process::Command::new("sleep").arg("60").current_dir(&folder).spawn().unwrap();
        let found = working_in(&folder);
        clear(&folder);
        let lives = bystander.try_wait().unwrap().is_none();
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        assert_eq!(found, [bystander.id()]);
        assert!(lives);
    }
}
