//! What the supervisor holds of one node between cycles.
//!
//! Invariant: while a step is under way (`busy`), it alone owns the node's process.

use std::time::Duration;

use millrace_base::Backoff;
use millrace_pg::{ConnectParams, Connection, Postmaster, ServerSpec, catalog::ServerState};

use crate::{
    error::ClusterError,
    observe,
    observed::{Failure, ProcessState},
    spec::{ClusterSpec, NodeSpec},
};

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
    pub(crate) not_streaming_since: Option<Duration>,
    pub(crate) busy: Option<(String, Duration)>,
    pub(crate) failure: Option<Failure>,
    pub(crate) backoff: Backoff,
}

impl Node {
    pub(crate) fn new(spec: &ClusterSpec, node: &NodeSpec) -> Result<Self, ClusterError> {
        Ok(Self {
            server: spec.server(node),
            params: spec.superuser(node)?,
            spec: node.clone(),
            postmaster: None,
            pid: None,
            started: Duration::ZERO,
            ready: false,
            connection: None,
            not_streaming_since: None,
            busy: None,
            failure: None,
            backoff: Backoff::new(spec.limits.restart_delay_first, spec.limits.restart_delay_max),
        })
    }

    pub(crate) fn process(&mut self) -> ProcessState {
        match (self.pid, &self.busy) {
            (Some(pid), _) => ProcessState::Running { pid, ready: self.ready },
            (None, Some(_)) => ProcessState::None,
            (None, None) => self.server.running_pid().map_or(ProcessState::None, |pid| ProcessState::Unadopted { pid }),
        }
    }

    /// Asks a server that is up, and keeps what only time tells.
    pub(crate) async fn ask(&mut self, now: Duration, probe: Duration, stable: Duration) -> Option<ServerState> {
        let postmaster = self.postmaster.as_mut()?;
        self.ready = self.ready || postmaster.is_ready();
        if !self.ready {
            return None;
        }
        if now.saturating_sub(self.started) >= stable && self.failure.is_some() {
            self.failure = None;
            self.backoff.reset();
        }
        match observe::ask(&mut self.connection, &self.params, probe).await {
            Ok(state) => {
                let waits = state.in_recovery && !state.streaming;
                self.not_streaming_since = waits.then(|| self.not_streaming_since.unwrap_or(now));
                Some(state)
            }
            Err(error) => {
                tracing::debug!(%error, "a server does not answer");
                None
            }
        }
    }
}
