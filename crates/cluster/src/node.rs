//! What the supervisor holds of one node between cycles.
//!
//! Invariant: while a step is under way (`busy`), it alone owns the node's process.

use std::{sync::Arc, time::Duration};

use millrace_base::{Backoff, Clock, Lsn};
use millrace_pg::{
    ConnectParams, Connection, PgError, Postmaster, Processes, ServerSpec, Setting,
    catalog::{self, ServerState, Slot, Standby},
};
use tokio::time::timeout;

use crate::{
    disk::Disk,
    error::ClusterError,
    observe,
    observed::{DataState, Failure, NodeView, ProcessState},
    promise::Promise,
    spec::{ClusterSpec, Limits, NodeName, NodeSpec, RestoreId},
};

/// A server is asked over a new connection this often: one that hangs may still serve those it has.
const RECONNECT: Duration = Duration::from_secs(2);
/// For a replica that has been silent: everyone else is asked in the same turn.
const SHORT: Duration = Duration::from_millis(500);
/// Until every process of a server that serves has taken a new setting for sure.
const IN_FORCE: Duration = Duration::from_secs(2);
/// SQLSTATE `cannot_connect_now`: it starts, recovers or stops.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// What the supervisor holds of a node between cycles.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) spec: NodeSpec,
    pub(crate) server: ServerSpec,
    pub(crate) params: ConnectParams,
    pub(crate) postmaster: Option<Postmaster>,
    /// Also while a step owns the process.
    pub(crate) pid: Option<u32>,
    pub(crate) started: Duration,
    pub(crate) ready: bool,
    pub(crate) connection: Option<Connection>,
    pub(crate) connected: Duration,
    silent_since: Option<Duration>,
    /// In a row.
    probes_failed: u32,
    pub(crate) absent_since: Option<Duration>,
    pub(crate) follows: Option<NodeName>,
    pub(crate) vote: Option<u64>,
    /// As it answered last.
    pub(crate) slots: Option<Vec<Slot>>,
    /// What its commits wait for, if it is the primary, as it was told.
    pub(crate) promise: Promise,
    setting: Option<InForce>,
    pub(crate) not_streaming_since: Option<Duration>,
    pub(crate) within: Option<u32>,
    pub(crate) heard_at: Duration,
    /// How far the log had come then.
    heard: Option<Lsn>,
    /// At the last look.
    deaf: bool,
    /// The latest that its server was seen on: what a replica without a receiver says of it may be older.
    timeline: u32,
    /// Something new has come since `heard_at` was set.
    pub(crate) heard_new: bool,
    /// When it was told last to turn away.
    pub(crate) voted_at: Option<Duration>,
    pub(crate) busy: Option<(String, Duration)>,
    pub(crate) failure: Option<Failure>,
    pub(crate) backoff: Backoff,
    disk: Disk,
    /// At the last look.
    pub(crate) took_nothing: bool,
    /// Its server has not been given the settings as they are now; they are written not before this. Monotonic.
    pub(crate) unconfigured: Option<Duration>,
    /// As they were seen last.
    files: Option<Files>,
}

/// What a node is by its files.
#[derive(Debug, Clone)]
struct Files {
    data: DataState,
    was_primary: bool,
    rogue: bool,
    restored: Option<RestoreId>,
}

/// A setting that the server has taken.
#[derive(Debug)]
struct InForce {
    text: String,
    /// The server has been told something since.
    stale: bool,
    since: Duration,
    /// Commits begin to wait when the checkpointer has taken the setting, which it does before a checkpoint it is asked
    /// for, but not during one: not before one has been written.
    checkpointed: bool,
    /// The end of the log once it was in force for sure.
    noted: Option<Lsn>,
}

fn is_an_answer(error: &PgError) -> bool {
    matches!(error, PgError::Tls { .. }) || error.sqlstate().is_some_and(|state| state != CANNOT_CONNECT_NOW)
}

impl Node {
    pub(crate) fn new(spec: &ClusterSpec, node: &NodeSpec, clock: &Arc<dyn Clock>) -> Result<Self, ClusterError> {
        let (server, now) = (spec.server(node), clock.monotonic());
        let disk = Disk::of_server(&server, clock.clone());
        Ok(Self {
            disk: disk.map_err(|source| ClusterError::Io {
                doing: "watch the disk of",
                path: node.folder.clone(),
                source,
            })?,
            took_nothing: false,
            unconfigured: None,
            files: None,
            server,
            params: spec.superuser(node)?,
            spec: node.clone(),
            postmaster: None,
            pid: None,
            started: Duration::ZERO,
            ready: false,
            connection: None,
            connected: Duration::ZERO,
            silent_since: None,
            probes_failed: 0,
            absent_since: Some(Duration::ZERO),
            follows: None,
            vote: observe::vote(node).map_err(|source| ClusterError::Io {
                doing: "read the vote in",
                path: node.folder.clone(),
                source,
            })?,
            slots: None,
            promise: Promise::none(),
            setting: None,
            not_streaming_since: None,
            within: None,
            heard_at: now,
            heard: None,
            deaf: false,
            timeline: 0,
            heard_new: false,
            voted_at: None,
            busy: None,
            failure: None,
            backoff: Backoff::new(spec.limits.restart_delay_first, spec.limits.restart_delay_max),
        })
    }

    fn read_files(&self) -> Files {
        let mut data = observe::data_state(&self.server);
        let restored = observe::restored(&self.server.data_dir()).unwrap_or_else(|error| {
            // of which restore it is cannot be said: it is let be
            data = DataState::Denied { why: format!("the mark of a restore in it cannot be read: {error}") };
            None
        });
        let (was_primary, rogue) = (observe::was_primary(&self.spec), observe::is_rogue(&self.spec));
        Files { data, was_primary, rogue, restored }
    }

    fn process(&self) -> ProcessState {
        match (self.pid, &self.busy) {
            (Some(pid), _) => ProcessState::Running { pid, ready: self.ready },
            (None, Some(_)) => ProcessState::None,
            (None, None) => self.server.running_pid().map_or(ProcessState::None, |pid| ProcessState::Unadopted { pid }),
        }
    }

    /// Files and processes, without asking the server, which said `answer`.
    pub(crate) fn look(&mut self, now: Duration, primary: bool, answer: Option<ServerState>) -> NodeView {
        let disk = self.disk.look(now);
        self.took_nothing = disk.stuck_since.is_some();
        let files = match self.files.take().filter(|_| self.took_nothing) {
            // looking again could wait for the disk
            Some(files) => files,
            None => self.read_files(),
        };
        let Files { data, was_primary, rogue, restored } = self.files.insert(files).clone();
        let process = self.process();
        let processes = if self.pid.is_some() { Processes::Alive } else { self.server.processes() };
        NodeView {
            part: self.spec.part(),
            data,
            was_primary,
            rogue,
            restored,
            process,
            may_write: processes == Processes::Alive,
            dying: processes == Processes::Dying,
            disk,
            server: answer,
            slots: self.slots.clone(),
            silent_since: self.silent_since(),
            not_streaming_since: if primary { None } else { self.not_streaming_since },
            within: self.within,
            absent_since: self.absent_since,
            heard_at: self.heard_at,
            vote: self.vote,
            follows: self.follows.clone(),
            busy: self.busy.clone(),
            failure: self.failure.clone(),
        }
    }

    /// Since when it has been silent. One probe that failed proves nothing: this process may have been stopped itself.
    fn silent_since(&self) -> Option<Duration> {
        self.silent_since.filter(|_| !self.ready || self.probes_failed > 1)
    }

    /// The server with what its commits wait for.
    pub(crate) fn configured(&self) -> ServerSpec {
        let mut server = self.server.clone();
        server.settings.push(Setting::new(
            "synchronous_standby_names",
            self.promise.setting(),
            "replicas that must have a commit on disk before it is acknowledged; changed as they come and go",
        ));
        server
    }

    /// Asks a server that is up, and keeps what only time tells.
    pub(crate) async fn ask(&mut self, now: Duration, limits: &Limits, primary: bool) -> Option<ServerState> {
        let postmaster = self.postmaster.as_mut()?;
        self.ready = self.ready || postmaster.is_ready();
        if !self.ready {
            self.silent_since = Some(self.started);
            return None;
        }
        if now.saturating_sub(self.started) >= limits.stable_after && self.failure.is_some() {
            self.failure = None;
            self.backoff.reset();
        }
        if now.saturating_sub(self.connected) >= RECONNECT {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connected = now;
        }
        let silent = self.silent_since.map(|since| now.saturating_sub(since));
        let patience = match silent {
            None => limits.probe_timeout,
            Some(silent) if primary => limits.silent_max.saturating_sub(silent).clamp(SHORT, limits.probe_timeout),
            Some(_) => SHORT.min(limits.probe_timeout),
        };
        self.slots = None;
        match observe::ask(&mut self.connection, &self.params, patience).await {
            Ok(mut state) => {
                // what it has is read before it is known to be deaf: only the next look counts
                let deaf = std::mem::replace(&mut self.deaf, state.deaf);
                state.deaf = state.deaf && deaf;
                state.timeline = state.timeline.max(self.timeline);
                self.timeline = state.timeline;
                self.silent_since = None;
                self.probes_failed = 0;
                if let Some(connection) = &self.connection {
                    self.slots = match timeout(patience, catalog::slots(connection)).await {
                        Ok(Ok(slots)) => Some(slots),
                        Ok(Err(_)) | Err(_) => None,
                    };
                }
                if state.received_lsn != self.heard {
                    (self.heard, self.heard_new) = (state.received_lsn, true);
                }
                let waits = state.in_recovery && !state.streaming;
                self.not_streaming_since = waits.then(|| self.not_streaming_since.unwrap_or(now));
                Some(state)
            }
            // it is there, and says why it cannot be asked: killing it would not help
            Err(error) if is_an_answer(&error) => {
                self.silent_since = None;
                self.probes_failed = 0;
                tracing::warn!(%error, "a server answers, and cannot be asked");
                None
            }
            Err(error) => {
                self.silent_since = Some(self.silent_since.unwrap_or(now));
                self.probes_failed += 1;
                tracing::debug!(%error, "a server does not answer");
                None
            }
        }
    }

    /// Whether what this primary acknowledged before its present setting is on a quorum of its members.
    pub(crate) fn arrived(&mut self, now: Duration, server: &ServerState, standbys: &[Standby]) -> bool {
        let text = &server.synchronous_standby_names;
        if self.setting.as_ref().is_none_or(|setting| setting.stale || setting.text != *text) {
            // commits that wait already go on waiting
            let waited = self.setting.as_ref().is_some_and(|before| before.checkpointed && !before.text.is_empty());
            self.setting = Some(InForce {
                text: text.clone(),
                stale: false,
                since: now,
                checkpointed: waited || text.is_empty(),
                noted: None,
            });
        }
        let Some(setting) = &mut self.setting else { return false };
        if setting.noted.is_none() && setting.checkpointed && now.saturating_sub(setting.since) >= IN_FORCE {
            setting.noted = Some(server.lsn);
        }
        let Some(noted) = setting.noted else { return false };
        let promise = Promise::parse(text);
        let has = |name: &NodeName| {
            standbys.iter().any(|s| s.application_name == name.as_str() && s.flush_lsn.is_some_and(|lsn| lsn >= noted))
        };
        *text == promise.setting() && promise.members.iter().filter(|name| has(name)).count() >= promise.quorum
    }

    /// The setting that waits for a checkpoint to be in force for sure.
    pub(crate) fn to_checkpoint(&self) -> Option<String> {
        self.setting.as_ref().filter(|setting| !setting.checkpointed).map(|setting| setting.text.clone())
    }

    /// A checkpoint that was asked for under this setting has been written.
    pub(crate) fn checkpointed(&mut self, text: &str, now: Duration) {
        if let Some(setting) = self.setting.as_mut().filter(|setting| setting.text == text) {
            (setting.checkpointed, setting.since) = (true, now);
        }
    }

    /// It has been told something else to wait for.
    pub(crate) fn told(&mut self, promise: Promise) {
        self.promise = promise;
        if let Some(setting) = &mut self.setting {
            setting.stale = true;
        }
    }

    /// What went wrong before is over.
    pub(crate) fn is_well(&mut self) {
        self.failure = None;
        self.backoff.reset();
    }

    /// Nothing that was known of its server holds any more.
    pub(crate) fn forget(&mut self) {
        self.connection = None;
        self.silent_since = None;
        self.deaf = false;
        self.timeline = 0;
        self.probes_failed = 0;
        self.setting = None;
        self.slots = None;
    }
}
