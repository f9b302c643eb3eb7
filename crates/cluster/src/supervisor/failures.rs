//! What went wrong with a node: kept, with when it is tried again, until it has gone well for a while.

use millrace_pg::ServerError;

use super::Supervisor;
use crate::{
    error::ClusterError,
    observed::{Failure, FailureKind, Goal},
    spec::NodeName,
};

impl Supervisor {
    /// A server ended. If a step owns its process, the step knows.
    pub(super) async fn exited(&mut self, name: &NodeName, pid: u32) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(mut postmaster) = node.postmaster.take_if(|postmaster| postmaster.pid() == pid) else { return };
        let exit = postmaster.exited().await;
        node.pid = None;
        node.forget();
        if self.intent.goal == Goal::Stop {
            return;
        }
        let source = postmaster.cause_of_end();
        match (node.ready, &source) {
            // it ended itself, for a reason that is known
            (true, ServerError::DiskFull { .. }) => {
                self.record(name, FailureKind::Crashed, format!("the server {exit}: {source}"), source.hint());
            }
            (true, _) => self.record(name, FailureKind::Crashed, format!("the server {exit}"), None),
            (false, _) => self.failed(name, &ClusterError::Node { node: name.clone(), source }),
        }
    }

    pub(super) fn failed(&mut self, name: &NodeName, error: &ClusterError) {
        let kind = match error {
            ClusterError::Node { source: ServerError::Damaged { .. }, .. } => FailureKind::Damaged,
            ClusterError::Node {
                source:
                    ServerError::Program { program: "pg_rewind", .. }
                    | ServerError::ProgramTimeout { program: "pg_rewind", .. },
                ..
            } => FailureKind::Rewind,
            ClusterError::Io { doing: "mark the data in", .. } => FailureKind::Rewind,
            _ => FailureKind::Other,
        };
        let whole = match error {
            ClusterError::Node { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let (what, said) = whole.split_once('\n').unwrap_or((&whole, ""));
        if !said.is_empty() {
            tracing::warn!(node = %name, said, "a server's last lines");
        }
        self.record(name, kind, what.trim_end_matches("; it said:").to_owned(), error.hint());
    }

    pub(super) fn record(&mut self, name: &NodeName, kind: FailureKind, what: String, what_to_do: Option<String>) {
        let at = self.clock.monotonic();
        let Some(node) = self.nodes.get_mut(name) else { return };
        let not_before = at + node.backoff.next_delay();
        tracing::warn!(node = %name, next_try = node.backoff.tries(), "{what}");
        node.failure = Some(Failure { kind, what, what_to_do, at, not_before, next_try: node.backoff.tries() });
    }
}
