//! What processes used of the machine, from `/proc`.

use std::{collections::BTreeMap, fs};

/// Of Linux on every architecture that the platform runs on (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Fields of `/proc/<pid>/stat` (proc(5)).
struct Stat {
    parent: u32,
    /// Own time, in ticks.
    own: u64,
    /// Of children that have ended and were waited for, in ticks.
    children: u64,
}

fn stat(pid: &str) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the second field is the program's name, which may hold anything
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        children: number(13)? + number(14)?,
    })
}

/// Processor seconds of this process so far.
pub(crate) fn own_cpu_s() -> f64 {
    seconds(stat("self").map_or(0, |stat| stat.own))
}

/// Processor seconds so far of programs that this process has run and that have ended, with those that they ran.
pub(crate) fn programs_cpu_s() -> f64 {
    seconds(stat("self").map_or(0, |stat| stat.children))
}

/// Processor seconds so far of a server: its postmaster, its processes that live and those that have ended.
pub(crate) fn server_cpu_s(postmaster: u32) -> f64 {
    let Ok(entries) = fs::read_dir("/proc") else { return f64::NAN };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let all: BTreeMap<u32, Stat> = pids.filter_map(|pid| Some((pid, stat(&pid.to_string())?))).collect();
    let ticks = all
        .iter()
        .map(|(pid, stat)| match () {
            () if *pid == postmaster => stat.own + stat.children,
            () if stat.parent == postmaster => stat.own,
            () => 0,
        })
        .sum();
    seconds(ticks)
}

#[expect(clippy::cast_precision_loss, reason = "hundredths of seconds")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

/// Resident memory of a process now, in KiB.
#[expect(clippy::cast_precision_loss, reason = "a difference of them is shown with two digits")]
pub(crate) fn resident_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(f64::NAN, |kib| kib as f64)
}

/// The greatest resident memory of this process since the last [`forget_peak`], in MiB.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn peak_mib() -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(f64::NAN, |kib| kib as f64 / 1024.0)
}

/// Starts the peak anew (proc(5), `clear_refs`, value 5).
pub(crate) fn forget_peak() {
    // where the system does not allow it the peak is of the whole run, which is only less favourable
    _ = fs::write("/proc/self/clear_refs", "5");
}
