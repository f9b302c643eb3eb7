//! What is wrong, and what to do: a pure reading of the platform's status.
//!
//! Non-goal: measuring. Everything judged here is in [`PlatformStatus`].

use std::{collections::BTreeMap, time::Duration};

use millrace_base::Micros;
use millrace_contract::status::{CaptureState, Finding, NodeRole, NodeState, PlatformStatus, Severity};

use millrace_warehouse::{HeldModel, Kept};

use crate::{
    output::bytes_text,
    platform::{ARCHIVE_SLOT, model_state as state},
};

/// Lag of a replica worth a warning, in bytes (64 MiB).
const REPLICA_LAG_BYTES_MAX: u64 = 64 << 20;
/// Age of the oldest unapplied change worth a warning, in milliseconds.
const CAPTURE_LAG_MS_MAX: u64 = 30_000;
/// Capture that fails for longer than this does not get over it by itself.
const RETRYING_MAX: Duration = Duration::from_secs(30);
/// A slot that may keep less log than this before the server gives it up is about to be lost (1 GiB).
const SAFE_WAL_BYTES_MIN: i64 = 1 << 30;
/// A client that waits for a connection longer than this meets a pool that is too small, or no server.
const POOL_WAIT_MS_MAX: u64 = 5_000;
/// Free space on a disk below which to warn, and below which to act now, in bytes.
const FREE_BYTES_WARN: u64 = 5 << 30;
const FREE_BYTES_CRITICAL: u64 = 1 << 30;

/// Log that is not in the backup repository worth a warning.
const BACKLOG_BYTES_MAX: u64 = 1 << 30;

/// All findings, worst first: those that parts have about themselves, and what the rest shows.
/// `since` is filled by [`Book`] where it is not known.
pub(crate) fn assess(status: &PlatformStatus, of_parts: Vec<Finding>) -> Vec<Finding> {
    let mut found = of_parts;
    lag(status, &mut found);
    slots(status, &mut found);
    capture(status, &mut found);
    disks(status, &mut found);
    pools(status, &mut found);
    backups(status, &mut found);
    if let Some(run) = &status.last_run
        && run.status == "failed"
    {
        found.push(finding(
            Severity::Warning,
            "last load run".into(),
            format!("run {} failed: {}", run.run_id, run.error.as_deref().unwrap_or("no reason kept")),
            "it is tried again by itself; if it fails again, see `millrace logs millrace`".into(),
        ));
    }
    found.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.subject.cmp(&b.subject)));
    found
}

fn finding(severity: Severity, subject: String, what: String, what_to_do: String) -> Finding {
    Finding { severity, subject, what, since: None, what_to_do }
}

/// A finding for each model that is not built as declared: a warning while it goes on as it was built before.
pub(crate) fn held_models(held: &[HeldModel]) -> Vec<Finding> {
    let found = held.iter().map(|model| Finding {
        severity: if model.kept == Kept::AsBuilt { Severity::Warning } else { Severity::Critical },
        subject: format!("model {}", model.name),
        what: format!("cannot be built as it is declared: {}; {}", model.reason, state(model)),
        since: Some(model.since),
        what_to_do: "correct it in the pack, or the source, then `millrace model build`".to_owned(),
    });
    found.collect()
}

fn lag(status: &PlatformStatus, found: &mut Vec<Finding>) {
    for node in status.nodes.iter().filter(|node| node.role == NodeRole::Replica && node.state == NodeState::Running) {
        let late = node.lag_bytes.filter(|lag| *lag > REPLICA_LAG_BYTES_MAX && node.apply_delay_s.is_none());
        if let Some(lag) = late {
            found.push(finding(
                Severity::Warning,
                format!("node {}", node.name),
                format!("is {} behind the primary", bytes_text(lag)),
                "wait if a large load runs; else look at the machine's disk".into(),
            ));
        }
    }
}

fn slots(status: &PlatformStatus, found: &mut Vec<Finding>) {
    for slot in &status.slots {
        let subject = format!("slot {}", slot.name);
        if slot.wal_status.as_deref() == Some("lost") {
            let what_to_do = if slot.slot_type == "logical" {
                "the warehouse needs a fresh copy: stop the platform and run `millrace up --recopy`"
            } else if slot.name == ARCHIVE_SLOT {
                "log is missing in the archive: `millrace backup create --full`"
            } else {
                "the replica is rebuilt from a base backup by itself"
            };
            found.push(finding(
                Severity::Critical,
                subject,
                "was given up by the server: it kept more log than slot_retention_max".into(),
                what_to_do.into(),
            ));
        } else if let Some(safe) = slot.safe_wal_bytes.filter(|safe| *safe < SAFE_WAL_BYTES_MIN) {
            found.push(finding(
                Severity::Critical,
                subject,
                format!(
                    "will be given up by the server after {} more log",
                    bytes_text(u64::try_from(safe).unwrap_or(0))
                ),
                "find out why its consumer is behind, or raise slot_retention_max in millrace.toml".into(),
            ));
        }
    }
}

fn backups(status: &PlatformStatus, found: &mut Vec<Finding>) {
    let Some(backup) = &status.backup else { return };
    let subject = || "backups".to_owned();
    let repository = &backup.repository;
    if let Some(why) = &backup.failing {
        let what = format!("the log is not archived to {repository}: {why}");
        let what_to_do = "what is committed now is lost with the servers; is the repository there, and has it room?";
        found.push(finding(Severity::Critical, subject(), what, what_to_do.into()));
    } else if backup.backlog_bytes > BACKLOG_BYTES_MAX {
        let what = format!("{} of log are not in {repository} yet", bytes_text(backup.backlog_bytes));
        let what_to_do = "wait if a large load runs; else look at the way to the repository".into();
        found.push(finding(Severity::Warning, subject(), what, what_to_do));
    }
    if let Some(first) = backup.uncompared.first() {
        let others = match backup.uncompared.len() - 1 {
            0 => String::new(),
            others => format!(", and {others} more"),
        };
        let what = format!("the last proof of a backup could not compare all of its tables: {first}{others}");
        let what_to_do = "raise contents_seconds in [backup] if there was no time; 0 if you do not want it";
        found.push(finding(Severity::Notice, subject(), what, what_to_do.into()));
    }
    if let Some(unproven) = &backup.unproven {
        let what = format!("{} failed its proof: {}", unproven.label, unproven.why);
        let what_to_do = "make another: `millrace backup create --full`; `millrace backup verify` says what is damaged";
        let mut failed = finding(Severity::Critical, subject(), what, what_to_do.into());
        failed.since = Some(unproven.at);
        found.push(failed);
    }
    for away in &backup.away {
        let what = format!("{} gets nothing at present: {}", away.repository, away.why);
        let what_to_do = "is it there, and has it room? When it answers, it is brought what it lacks";
        found.push(finding(Severity::Warning, subject(), what, what_to_do.into()));
    }
    if let Some(why) = &backup.failed {
        let what = format!("the last one could not be made or proven: {why}");
        let what_to_do = "it is tried again; by hand: `millrace backup create`".into();
        found.push(finding(Severity::Critical, subject(), what, what_to_do));
    }
}

fn capture(status: &PlatformStatus, found: &mut Vec<Finding>) {
    match &status.capture.state {
        CaptureState::Stopped { error, hint, since } => {
            let mut stopped =
                finding(Severity::Critical, "capture".into(), format!("has stopped: {error}"), hint.clone());
            stopped.since = Some(*since);
            found.push(stopped);
        }
        CaptureState::Retrying { error, hint, since } => {
            let lasts = status.now.since(*since) > RETRYING_MAX;
            let mut retrying = finding(
                if lasts { Severity::Critical } else { Severity::Warning },
                "capture".into(),
                format!("applies nothing and tries again: {error}"),
                hint.clone(),
            );
            retrying.since = Some(*since);
            found.push(retrying);
        }
        CaptureState::Streaming if status.capture.lag_ms > CAPTURE_LAG_MS_MAX => {
            found.push(finding(
                Severity::Warning,
                "capture".into(),
                format!("is {} s behind ({})", status.capture.lag_ms / 1000, bytes_text(status.capture.lag_bytes)),
                "wait if a large load runs; `millrace status` shows whether it catches up".into(),
            ));
        }
        CaptureState::Waiting { .. } | CaptureState::Copying { .. } | CaptureState::Streaming => {}
    }
    for (table, reason) in &status.capture.quarantined {
        found.push(finding(
            Severity::Critical,
            format!("table {table}"),
            format!("is stopped, its changes are not applied: {reason}"),
            format!("mend the cause, then `millrace resync {table}`"),
        ));
    }
}

fn disks(status: &PlatformStatus, found: &mut Vec<Finding>) {
    for disk in &status.disks {
        let severity = if disk.free_bytes < FREE_BYTES_CRITICAL {
            Severity::Critical
        } else if disk.free_bytes < FREE_BYTES_WARN {
            Severity::Warning
        } else {
            continue;
        };
        found.push(finding(
            severity,
            format!("disk {}", disk.path),
            format!("has {} left", bytes_text(disk.free_bytes)),
            "free space or move data_dir to a larger disk".into(),
        ));
    }
}

fn pools(status: &PlatformStatus, found: &mut Vec<Finding>) {
    if !status.proxy.up {
        found.push(finding(
            Severity::Critical,
            "proxy".into(),
            "does not answer: applications may be cut off".into(),
            "`millrace logs millrace` says more; `millrace down`, then `up`, starts it anew".into(),
        ));
    }
    for pool in &status.proxy.pools {
        let port = if pool.read_only { ", read-only" } else { "" };
        let subject = format!("pool {} of {}{port}", pool.database, pool.user);
        if pool.paused {
            found.push(finding(
                Severity::Warning,
                subject,
                format!("is paused; {} clients wait", pool.waiting),
                "`millrace proxy resume` when the work is done".into(),
            ));
        } else if pool.longest_wait_ms > POOL_WAIT_MS_MAX {
            found.push(finding(
                Severity::Warning,
                subject,
                format!(
                    "has {} clients that wait for a connection, the first for {} s; {} of {} connections are in use",
                    pool.waiting,
                    pool.longest_wait_ms / 1000,
                    pool.servers - pool.idle.min(pool.servers),
                    pool.size
                ),
                "shorten transactions, or raise pool_size; if none can be opened, `millrace logs` says why".into(),
            ));
        }
    }
}

/// Remembers since when each finding holds.
#[derive(Debug, Default)]
pub(crate) struct Book {
    since: BTreeMap<(String, Severity), Micros>,
}

impl Book {
    /// Fills `since` of `found` and forgets what is over.
    pub(crate) fn note(&mut self, found: &mut [Finding], now: Micros) {
        let before = std::mem::take(&mut self.since);
        for finding in found {
            let key = (finding.subject.clone(), finding.severity);
            let since = finding.since.or_else(|| before.get(&key).copied()).unwrap_or(now);
            finding.since = Some(since);
            self.since.insert(key, since);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use millrace_base::Lsn;
    use millrace_contract::status::{CaptureStatus, DiskStatus, NodeStatus, SlotStatus};

    use super::*;

    pub(crate) fn healthy() -> PlatformStatus {
        let node = |name: &str, port, role| NodeStatus {
            name: name.into(),
            host: "127.0.0.1".into(),
            port,
            role,
            state: NodeState::Running,
            pid: Some(1),
            since: None,
            timeline: Some(1),
            lsn: Some(Lsn(100)),
            lag_bytes: Some(0),
            streaming: Some(true),
            failover_priority: 1,
            apply_delay_s: None,
            leaving: false,
            pending_restart: Vec::new(),
            doing: "runs".into(),
        };
        PlatformStatus {
            name: "loans".into(),
            version: "0".into(),
            pid: 1,
            started_at: Micros(0),
            now: Micros(5_000_000),
            cluster: Default::default(),
            nodes: vec![node("a", 5440, NodeRole::Primary), node("b", 5441, NodeRole::Replica)],
            slots: vec![SlotStatus {
                name: "millrace".into(),
                slot_type: "logical".into(),
                active: true,
                retained_bytes: Some(0),
                safe_wal_bytes: Some(8 << 30),
                wal_status: Some("reserved".into()),
            }],
            capture: CaptureStatus {
                state: CaptureState::Streaming,
                watermark: Lsn(100),
                source_lsn: Lsn(100),
                lag_bytes: 0,
                lag_ms: 0,
                changes_applied: 0,
                quarantined: vec![],
            },
            last_run: None,
            disks: vec![DiskStatus { path: "/".into(), free_bytes: 50 << 30, total_bytes: 100 << 30, used_bytes: 0 }],
            listeners: vec![],
            proxy: millrace_contract::status::ProxyStatus { up: true, ..Default::default() },
            backup: None,
            memory_bytes: 0,
            findings: vec![],
        }
    }

    fn subjects(status: &PlatformStatus) -> Vec<(Severity, String)> {
        assess(status, Vec::new()).into_iter().map(|f| (f.severity, f.subject)).collect()
    }

    #[test]
    fn a_proxy_that_is_silent_is_found() {
        let mut status = healthy();
        status.proxy.up = false;
        assert_eq!(subjects(&status), [(Severity::Critical, "proxy".to_owned())]);
    }

    #[test]
    fn nothing_wrong_nothing_found() {
        assert_eq!(subjects(&healthy()), []);
    }

    #[test]
    fn each_fault_is_found_and_the_worst_comes_first() {
        let mut status = healthy();
        status.nodes[1].lag_bytes = Some(1 << 30);
        status.slots[0].wal_status = Some("lost".into());
        status.capture.quarantined.push(("operational.loans".into(), "NaN".into()));
        status.disks[0].free_bytes = 2 << 30;
        assert_eq!(
            subjects(&status),
            [
                (Severity::Critical, "slot millrace".to_owned()),
                (Severity::Critical, "table operational.loans".to_owned()),
                (Severity::Warning, "disk /".to_owned()),
                (Severity::Warning, "node b".to_owned()),
            ]
        );
    }

    #[test]
    fn since_is_kept_until_it_is_over() {
        let mut book = Book::default();
        let mut status = healthy();
        status.disks[0].free_bytes = 0;
        for (now, since) in [(10, 10), (20, 10)] {
            let mut found = assess(&status, Vec::new());
            book.note(&mut found, Micros(now));
            assert_eq!(found[0].since, Some(Micros(since)));
        }
        book.note(&mut [], Micros(30));
        let mut found = assess(&status, Vec::new());
        book.note(&mut found, Micros(40));
        assert_eq!(found[0].since, Some(Micros(40)));
    }
}
