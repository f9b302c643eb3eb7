//! What was seen, and what is wanted: the two arguments of every decision.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use millrace_pg::catalog::{ServerState, Slot};

use crate::spec::NodeName;

/// What a data directory is, by its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataState {
    /// Not there, or empty.
    Absent,
    /// Whole by its looks.
    Whole {
        system_id: u64,
        /// A replica's: `standby.signal` is there.
        standby: bool,
    },
    /// A data directory, but parts are missing or unreadable.
    Damaged { why: String, standby: bool },
    /// Made by another version.
    OtherVersion { found: String },
    /// Files that are no data directory.
    Foreign { path: PathBuf },
    /// The servers' user cannot use it, or it cannot be looked at.
    Denied { why: String },
}

/// A node's server process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessState {
    None,
    /// A server of an earlier supervisor runs here; it is to be adopted.
    Unadopted {
        pid: u32,
    },
    Running {
        pid: u32,
        /// It accepts connections by its own word.
        ready: bool,
    },
}

/// Why something failed, as far as decisions care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The data directory cannot be started from.
    Damaged,
    /// The server was ready and ended without being asked to.
    Crashed,
    /// Anything else; trying again may help.
    Other,
}

/// The last thing that went wrong on a node, until it has gone well for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// `the server was killed by signal 9`.
    pub what: String,
    pub what_to_do: Option<String>,
    /// Monotonic.
    pub at: Duration,
    /// Nothing is tried before this. Monotonic.
    pub not_before: Duration,
    /// The next try is this one, from 1.
    pub next_try: u32,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub data: DataState,
    /// The data directory once was a primary's, by the mark beside it.
    pub was_primary: bool,
    pub process: ProcessState,
    /// What the server answered just now; `None` if it did not.
    pub server: Option<ServerState>,
    /// A replica that answers has received nothing since. Monotonic.
    pub not_streaming_since: Option<Duration>,
    /// What the executor is doing with the node, and since when (monotonic): hands off.
    pub busy: Option<(String, Duration)>,
    pub failure: Option<Failure>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// The primary's slots; `None` if it did not answer.
    pub slots: Option<Vec<Slot>>,
    /// The roles of the cluster itself have been made by this supervisor.
    pub roles_ready: bool,
}

/// Run or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Run,
    Stop,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub goal: Goal,
    pub primary: NodeName,
    /// The cluster's identity; `None` before it was first made.
    pub system_id: Option<u64>,
    /// See [`crate::Limits::not_streaming_max`].
    pub not_streaming_max: Duration,
}
