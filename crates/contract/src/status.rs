//! What is going on, for people, machines and the console alike.

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterSummary;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; no one needs to act.
    Notice,
    /// Someone should act today.
    Warning,
    /// Someone must act now: a promise is broken or about to be.
    Critical,
}

/// Something that is wrong: what, where, since when, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// `node b`, `capture`, `table operational.loans`, `disk`, …
    pub subject: String,
    /// One sentence, lowercase, no full stop.
    pub what: String,
    pub since: Option<Micros>,
    /// A command to type or a thing to change.
    pub what_to_do: String,
}

impl Finding {
    /// It is about a server of the cluster, a slot of the primary, or where the cluster's state is kept.
    #[must_use]
    pub fn is_of_cluster(&self) -> bool {
        matches!(self.subject.split(' ').next(), Some("node" | "slot" | "etcd"))
    }
}

/// No finding is a warning or worse.
#[must_use]
pub fn is_healthy(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity < Severity::Warning)
}

/// What a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// No server process runs.
    Stopped,
    /// The server starts, recovers or is being made from a base backup.
    Starting,
    Running,
    /// The process is there but does not answer in time.
    Unresponsive,
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    Primary,
    Replica,
}

/// One PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    /// Where its server is reached: an address.
    #[serde(default)]
    pub host: String,
    pub port: u16,
    pub role: NodeRole,
    pub state: NodeState,
    pub pid: Option<u32>,
    pub since: Option<Micros>,
    pub timeline: Option<u32>,
    /// Written (primary) or replayed (replica) up to here.
    pub lsn: Option<Lsn>,
    /// Replica: bytes behind the primary; `None` if unknown.
    pub lag_bytes: Option<u64>,
    /// Replica: whether it streams from the primary now.
    pub streaming: Option<bool>,
    /// Of those that have got equally far the greatest is elected; 0: it never becomes the primary.
    #[serde(default = "one")]
    pub failover_priority: u32,
    /// Replica: it applies what it receives so much later, as configured.
    #[serde(default)]
    pub apply_delay_s: Option<u64>,
    /// It is no node of the configuration any more, and on its way out.
    #[serde(default)]
    pub leaving: bool,
    /// Settings that its server takes at its next start.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// What the supervisor does about it, as a sentence.
    pub doing: String,
}

fn one() -> u32 {
    1
}

/// A replication slot on the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    pub name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    pub active: bool,
    /// Log kept because of it.
    pub retained_bytes: Option<u64>,
    /// Log it may still cause to be kept before the server gives it up; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved`, `lost` (PostgreSQL manual, pg_replication_slots).
    pub wal_status: Option<String>,
}

/// Backups, and the log on its way to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Where they are.
    pub repository: String,
    /// The log is received.
    pub connected: bool,
    /// Log before this is in the repository.
    pub durable: Lsn,
    /// Log that the primary has and the repository has not.
    pub backlog_bytes: u64,
    /// Why the log is not archived, while that is so.
    pub failing: Option<String>,
    pub backups: usize,
    pub last: Option<LastBackup>,
    /// The last that was restored and checked, and when.
    pub proven: Option<(String, Micros)>,
    /// That the newest backup failed its last proof, and why.
    #[serde(default)]
    pub unproven: Option<Unproven>,
    /// What the last proof by schedule could not compare with what tables held after the backup, and why.
    #[serde(default)]
    pub uncompared: Vec<String>,
    /// Why the last try to make or prove one failed.
    pub failed: Option<String>,
    /// Of several places those that nothing is written to for the time being.
    #[serde(default)]
    pub away: Vec<AwayRepository>,
}

/// A backup that failed its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unproven {
    pub label: String,
    pub at: Micros,
    pub why: String,
}

/// A place of the repository that does not answer; others have what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwayRepository {
    pub repository: String,
    pub why: String,
}

/// The newest backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBackup {
    pub label: String,
    /// Else only what had changed.
    pub full: bool,
    /// When it was made.
    pub at: Micros,
    pub stored_bytes: u64,
}

/// What capture is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CaptureState {
    /// Set by the supervisor before the primary is ready. Not persisted.
    Waiting {
        reason: String,
    },
    /// Set during the initial copy.
    Copying {
        tables_done: usize,
        tables: usize,
        rows: u64,
    },
    Streaming,
    /// Waits to try again after an error.
    Retrying {
        error: String,
        /// What would help.
        hint: String,
        since: Micros,
    },
    /// A person must act.
    Stopped {
        error: String,
        hint: String,
        since: Micros,
    },
}

/// Capture and warehouse together: how far the data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    #[serde(flatten)]
    pub state: CaptureState,
    /// Applied up to here.
    pub watermark: Lsn,
    /// The primary's log position when last heard.
    pub source_lsn: Lsn,
    pub lag_bytes: u64,
    /// Age of the oldest change not yet applied; 0 when everything is applied.
    pub lag_ms: u64,
    /// Changes applied since the platform started.
    pub changes_applied: u64,
    pub quarantined: Vec<(String, String)>,
}

/// A finished or failed load (`audit.etl_runs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    pub run_id: i64,
    pub kind: String,
    pub status: String,
    pub started_at: Micros,
    pub duration_ms: Option<u64>,
    pub rows_inserted: u64,
    pub rows_updated: u64,
    pub rows_deleted: u64,
    pub watermark: Lsn,
    pub error: Option<String>,
}

/// A file system that the platform writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub path: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Used by the platform's own files there.
    pub used_bytes: u64,
}

/// A listener of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `console`, `warehouse`, …
    pub name: String,
    pub address: String,
}

/// The whole platform on one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformStatus {
    pub name: String,
    pub version: String,
    pub pid: u32,
    pub started_at: Micros,
    pub now: Micros,
    pub cluster: ClusterSummary,
    pub nodes: Vec<NodeStatus>,
    pub slots: Vec<SlotStatus>,
    pub capture: CaptureStatus,
    pub last_run: Option<RunStatus>,
    pub disks: Vec<DiskStatus>,
    pub listeners: Vec<ListenerStatus>,
    pub proxy: ProxyStatus,
    /// `None`: none are configured.
    #[serde(default)]
    pub backup: Option<BackupStatus>,
    /// Resident memory of the platform process.
    pub memory_bytes: u64,
    /// Worst first.
    pub findings: Vec<Finding>,
}

/// What the proxy holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Every thread that serves clients answers.
    pub up: bool,
    /// Applications' connections.
    pub clients: u64,
    /// Since the start.
    pub failed_logins: u64,
    pub pools: Vec<PoolStatus>,
    /// Upper bounds of the counts in [`Times`].
    pub time_bounds_us: Vec<u64>,
}

/// Connections to servers that the clients of one database and user share. Counts are since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub database: String,
    pub user: String,
    /// It came by the read-only port.
    pub read_only: bool,
    /// `session`, `transaction` or `statement`.
    pub mode: String,
    /// Connections that it may have.
    pub size: u64,
    pub clients: u64,
    /// Clients that wait for a connection.
    pub waiting: u64,
    pub longest_wait_ms: u64,
    /// Connections that it has, and those of them that are unused.
    pub servers: u64,
    pub idle: u64,
    pub paused: bool,
    pub transactions: u64,
    pub queries: u64,
    /// Time in queries.
    pub query_us: u64,
    /// How often a client had to wait for a connection, and how long all did together.
    pub waits: u64,
    /// Reads that went to the primary, because no replica had replayed what their client wrote.
    pub behind: u64,
    pub wait_us: u64,
    /// Of queries.
    pub query_times: Times,
    /// Of everyone who asked for a connection; of those who got it at once, it is 0.
    pub wait_times: Times,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// How long things took since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// By [`ProxyStatus::time_bounds_us`]; the last are those beyond all bounds.
    pub counts: Vec<u64>,
    /// What so many in a hundred do not exceed; nothing if nothing happened.
    pub p50_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
}

impl PlatformStatus {
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        is_healthy(&self.findings)
    }
}
