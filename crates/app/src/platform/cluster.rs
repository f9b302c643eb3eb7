//! The cluster as the command line sees it and works on it.

use millrace_cluster::ClusterStatus;
use millrace_contract::{
    cluster::ClusterSummary,
    status::{Finding, NodeStatus},
};
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClusterWork {
    Switchover {
        to: Option<String>,
    },
    Failover {
        to: String,
    },
    Pause,
    Resume,
    Reinit {
        node: String,
    },
    Reload,
    /// The nodes alone: of a platform beside an agent that was told to reload.
    TurnOver,
    Restart {
        node: String,
    },
}

/// The whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterView {
    #[serde(flatten)]
    pub(crate) summary: ClusterSummary,
    pub(crate) nodes: Vec<NodeStatus>,
    /// Worst first.
    pub(crate) findings: Vec<Finding>,
}

impl ClusterView {
    pub(crate) fn of(status: &ClusterStatus) -> Self {
        Self { summary: summary(status), nodes: status.nodes.clone(), findings: status.findings.clone() }
    }
}

/// What is beyond the nodes themselves.
pub(super) fn summary(status: &ClusterStatus) -> ClusterSummary {
    ClusterSummary {
        primary: status.primary.clone(),
        primary_ready: status.primary_ready,
        term: status.term,
        members: status.promise.members.iter().map(ToString::to_string).collect(),
        quorum: status.promise.quorum,
        failover: status.failover,
        paused: status.paused,
    }
}
