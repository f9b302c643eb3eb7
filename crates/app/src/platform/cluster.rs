//! The cluster as the command line sees it and works on it.

use millrace_cluster::ClusterStatus;
use millrace_contract::status::{Finding, NodeStatus};
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClusterWork {
    Switchover { to: Option<String> },
    Failover { to: String },
    Pause,
    Resume,
    Reinit { node: String },
}

/// What is beyond the nodes themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterView {
    pub(crate) primary: Option<String>,
    pub(crate) primary_ready: bool,
    pub(crate) term: u64,
    /// Replicas of which `quorum` have every acknowledged commit on disk.
    pub(crate) members: Vec<String>,
    pub(crate) quorum: usize,
    /// By the configuration.
    pub(crate) failover: bool,
    pub(crate) paused: bool,
    pub(crate) nodes: Vec<NodeStatus>,
    /// Worst first.
    pub(crate) findings: Vec<Finding>,
}

impl ClusterView {
    pub(crate) fn of(status: &ClusterStatus, failover: bool) -> Self {
        Self {
            primary: status.primary.clone(),
            primary_ready: status.primary_ready,
            term: status.term,
            members: status.promise.members.iter().map(ToString::to_string).collect(),
            quorum: status.promise.quorum,
            failover,
            paused: status.paused,
            nodes: status.nodes.clone(),
            findings: status.findings.clone(),
        }
    }

    pub(crate) fn promise_text(&self) -> String {
        match self.quorum {
            0 => "commits are on the primary alone".to_owned(),
            quorum => {
                format!("every acknowledged commit is on the primary and on {quorum} of {}", self.members.join(", "))
            }
        }
    }

    pub(crate) fn failover_text(&self) -> &'static str {
        match (self.failover, self.paused) {
            (false, _) => "off, by [cluster] failover",
            (true, true) => "paused; `millrace cluster resume` ends that",
            (true, false) => "by itself",
        }
    }
}
