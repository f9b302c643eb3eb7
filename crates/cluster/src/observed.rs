//! What was seen, and what is wanted: the two arguments of every decision.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use millrace_base::Lsn;
use millrace_pg::catalog::{ServerState, Slot};
use serde::{Deserialize, Serialize};

use crate::{
    plan::Change,
    promise::Promise,
    spec::{NodeName, RestoreId},
};

/// What a data directory is, by its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataState {
    /// Not there, or empty.
    Absent,
    /// Whole by its looks.
    Whole {
        system_id: u64,
        /// A replica's: `standby.signal` is there.
        standby: bool,
    },
    /// Of this cluster, as it was before it was brought back from a backup.
    Past { standby: bool },
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The data directory cannot be started from.
    Damaged,
    /// The server was ready and ended without being asked to.
    Crashed,
    /// It could not be brought back to where the primary's history left it.
    Rewind,
    /// Anything else; trying again may help.
    Other,
}

/// The last thing that went wrong on a node, until it has gone well for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a node is for, by the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Of those that have got equally far the greatest is elected. 0: it never becomes the primary, and no commit waits
    /// for it.
    pub priority: u32,
    /// It applies what it receives later.
    pub delayed: bool,
}

impl Default for Part {
    fn default() -> Self {
        Self { priority: 1, delayed: false }
    }
}

/// A node's disks, as writing to them showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// A small write has been waiting since, longer than one should. Monotonic.
    pub stuck_since: Option<Duration>,
    /// There is hardly room for another segment of log.
    pub full: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    #[serde(default)]
    pub part: Part,
    pub data: DataState,
    /// The data directory once was a primary's, by the mark beside it.
    pub was_primary: bool,
    pub process: ProcessState,
    /// Someone else promoted it; what was written there is kept.
    pub rogue: bool,
    /// See [`Intent::restored`]: of which restore the data is, by the mark in it.
    #[serde(default)]
    pub restored: Option<RestoreId>,
    /// Processes of a server work in the data directory, those of a killed server included: they may still write. Those
    /// that have been killed and wait in the kernel for a disk do not count: a commit is acknowledged by a program that
    /// goes on after its log is on the disk, and these do not. What their last write leaves there is undone by a rewind.
    pub may_write: bool,
    /// Such processes are there, and nobody else may work in the data directory.
    #[serde(default)]
    pub dying: bool,
    #[serde(default)]
    pub disk: DiskView,
    /// What the server answered just now; `None` if it did not.
    pub server: Option<ServerState>,
    /// Its slots; `None` if it did not answer.
    pub slots: Option<Vec<Slot>>,
    /// A server that runs has not answered since. Monotonic.
    pub silent_since: Option<Duration>,
    /// A replica that answers has received nothing since. Monotonic.
    pub not_streaming_since: Option<Duration>,
    /// A rewind found nothing to undo here: what it has is part of the history of the primary of this timeline.
    #[serde(default)]
    pub within: Option<u32>,
    /// It was last seen to have received something new. Monotonic.
    pub heard_at: Duration,
    /// Not among those who receive the primary's log since; `None` if it is. Monotonic.
    pub absent_since: Option<Duration>,
    /// The term whose primary it will take no log from any more; kept on its disk before anyone hears of it.
    pub vote: Option<u64>,
    /// Whose log it has been told to receive.
    pub follows: Option<NodeName>,
    /// What the executor is doing with the node, and since when (monotonic): hands off.
    pub busy: Option<(String, Duration)>,
    pub failure: Option<Failure>,
}

impl NodeView {
    /// What only this node has may be undone, and undoing it has not failed.
    pub(crate) fn may_be_rewound(&self) -> bool {
        !self.rogue && !self.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Rewind)
    }

    /// It may become the primary, and commits may wait for it.
    pub(crate) fn may_lead(&self) -> bool {
        self.part.priority > 0
    }

    /// How long its disk has taken nothing, if that is worth a word.
    pub(crate) fn stuck_for(&self, now: Duration) -> Option<Duration> {
        self.disk.stuck_since.map(|since| now.saturating_sub(since))
    }

    /// Data of before the cluster was brought back from a backup is so named.
    pub(crate) fn known_as(&mut self, restored: Option<&RestoreId>) {
        if restored.is_some()
            && self.restored.as_ref() != restored
            && let DataState::Whole { standby, .. } | DataState::Damaged { standby, .. } = self.data
        {
            self.data = DataState::Past { standby };
        }
    }

    /// Nothing can be added any more to what it has of the log of this term's primary.
    pub(crate) fn is_settled(&self, term: u64) -> bool {
        self.vote == Some(term) && self.server.as_ref().is_some_and(|server| server.deaf)
    }

    /// As seen by another clock: `shift` takes a time of the one to that of the other.
    pub(crate) fn shifted(mut self, shift: impl Fn(Duration) -> Duration) -> Self {
        let silent = [&mut self.silent_since, &mut self.not_streaming_since, &mut self.absent_since];
        for time in silent.into_iter().chain([&mut self.disk.stuck_since]) {
            *time = time.map(&shift);
        }
        self.heard_at = shift(self.heard_at);
        if let Some((_, since)) = &mut self.busy {
            *since = shift(*since);
        }
        if let Some(failure) = &mut self.failure {
            failure.at = shift(failure.at);
            failure.not_before = shift(failure.not_before);
        }
        self
    }
}

/// Leave to be the primary, where supervisors on several hosts decide each for its own node.
///
/// Invariant: a server accepts writes only while its supervisor is sure to hold it; each time that it is taken the term
/// grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Office {
    /// One supervisor decides for all nodes.
    Undivided,
    /// The recorded primary has it.
    Held,
    /// No one has had it since (monotonic). `resigned`: whoever had it has said that its server has ended.
    Vacant { since: Duration, resigned: bool },
    /// Nobody can tell now.
    Unknown,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub nodes: BTreeMap<NodeName, NodeView>,
    pub office: Office,
    /// The primary's slots; `None` if it did not answer.
    pub slots: Option<Vec<Slot>>,
    /// The roles of the cluster itself have been made by this supervisor.
    pub roles_ready: bool,
    /// The end of the primary's log when it last answered.
    pub primary_lsn: Option<Lsn>,
    /// Slots for decoding that the primary was seen to have: their users cannot go on without.
    pub logical_slots: BTreeSet<String>,
    /// The primary has ended in order: the last record of its log begins here.
    pub handed_over: Option<LogEnd>,
    /// What was acknowledged before the primary's present setting was in force is on a quorum of its members.
    pub arrived: bool,
}

/// Where the last record of a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    pub lsn: Lsn,
    pub timeline: u32,
}

impl LogEnd {
    /// Who has received to `received` on `timeline` has all of that log: further than its end on another timeline says
    /// nothing.
    pub(crate) fn is_within(self, received: Lsn, timeline: u32) -> bool {
        received > self.lsn && timeline == self.timeline
    }
}

/// Run or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Run,
    Stop,
}

/// What a commit waits for before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The disks of the primary and of `quorum` replicas.
    Quorum {
        quorum: usize,
        /// If no replica is there commits wait; else they go on without, and it is said so.
        strict: bool,
    },
    /// The primary's disk. Whoever is elected may lack up to `loss_max` bytes of log.
    Asynchronous { loss_max: u64 },
}

/// How the cluster is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Another primary is elected when the present one is lost.
    pub failover: bool,
    pub durability: Durability,
    /// See [`crate::Limits`]; this goes for all below.
    pub not_streaming_max: Duration,
    pub silent_max: Duration,
    pub start_max: Duration,
    pub absent_max: Duration,
    /// A replica does not turn away from a primary whose log it has received within this.
    pub hold: Duration,
}

/// A person's word on who is to be the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// In order, with nothing lost and no error for clients.
    Switchover { to: NodeName },
    /// Whatever is lost.
    Failover { to: NodeName },
}

/// What an operator has said that has nothing to do with who is the primary; kept in the record that supervisors on
/// several hosts share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The user's own settings of every server; `None`: each host's own configuration says them.
    pub settings: Option<BTreeMap<String, String>>,
    /// The node whose server is to be restarted, until its supervisor has begun.
    pub restart: Option<NodeName>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub goal: Goal,
    pub primary: NodeName,
    /// Grows with each election, and each time that an office is taken.
    pub term: u64,
    /// The cluster's identity; `None` before it was first made.
    pub system_id: Option<u64>,
    /// The primary has been elected and may still be a replica.
    pub promoting: bool,
    /// What surely holds of acknowledged commits.
    pub promise: Promise,
    /// No election, by an operator's word.
    pub paused: bool,
    pub wish: Option<Wish>,
    pub said: Said,
    /// How the cluster was last brought back from a backup, on one of many hosts: data of before has no part in it any
    /// more.
    pub restored: Option<RestoreId>,
    pub policy: Policy,
}

impl Intent {
    /// What is wanted once `change` has been recorded.
    pub(crate) fn after(&self, change: &Change) -> Self {
        let mut intent = self.clone();
        match change {
            Change::Elect { node, .. } => {
                intent.primary = node.clone();
                intent.term += 1;
                intent.promoting = true;
                // what was promised holds until the elected one accepts writes
                intent.wish = None;
            }
            Change::Promoted => {
                intent.promoting = false;
                // it surely has everything; of the others nobody knows
                intent.promise = Promise::none();
            }
            Change::Promise(promise) => intent.promise = promise.clone(),
            Change::GiveUp(_) => intent.wish = None,
            Change::TakeOffice => intent.term += 1,
            Change::Resign(_) => {}
        }
        intent
    }

    /// What commits on `elected` are to wait for from the first on: those that answer besides it.
    pub(crate) fn first_promise(&self, elected: &NodeName, observed: &Observed) -> Promise {
        let Durability::Quorum { quorum, strict } = self.policy.durability else { return Promise::none() };
        let received = |view: &NodeView| view.server.as_ref().map(|s| s.received_lsn.unwrap_or(s.lsn).max(s.lsn));
        let end = observed.nodes.get(elected).and_then(received);
        let answers = |(name, view): (&NodeName, &NodeView)| {
            // who is ahead has log that the elected one has not, and is no witness of what that one writes
            let settled = observed.office == Office::Undivided || view.is_settled(self.term);
            let there = *name != self.primary && settled && received(view).is_some_and(|other| Some(other) <= end);
            (name != elected && view.may_lead() && (strict || there)).then(|| name.clone())
        };
        Promise::new(observed.nodes.iter().filter_map(answers).collect(), quorum)
    }
}
