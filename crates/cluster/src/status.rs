//! What the supervisor tells everyone else, after each cycle.

use std::time::Duration;

use millrace_base::{Lsn, Micros};
use millrace_contract::status::{Finding, NodeRole, NodeState, NodeStatus, Severity, SlotStatus};
use millrace_pg::catalog::Slot;
use serde::Serialize;

use crate::{
    observed::{Goal, Intent, NodeView, Observed, ProcessState},
    plan::Plan,
    promise::Promise,
    spec::ClusterSpec,
};

/// The cluster at the end of a cycle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The primary's name, once known.
    pub primary: Option<String>,
    /// The primary answers, accepts writes and has its own roles.
    pub primary_ready: bool,
    /// Every node runs and every replica streams.
    pub all_ready: bool,
    /// PostgreSQL's identifier of the cluster, once made.
    pub system_id: Option<u64>,
    /// Grows with each election.
    pub term: u64,
    /// What acknowledged commits are surely on besides the primary.
    pub promise: Promise,
    /// A lost primary is replaced, by the configuration.
    pub failover: bool,
    /// No election, by an operator's word.
    pub paused: bool,
    pub nodes: Vec<NodeStatus>,
    /// The primary's slots, as last seen.
    pub slots: Vec<SlotStatus>,
    /// Worst first.
    pub findings: Vec<Finding>,
}

/// Puts what was seen and decided into words and numbers.
pub(crate) fn assemble(
    spec: &ClusterSpec,
    observed: &Observed,
    intent: &Intent,
    plan: &Plan,
    now: (Micros, Duration),
) -> ClusterStatus {
    let primary_view = observed.nodes.get(&intent.primary);
    let primary_server = primary_view.and_then(|view| view.server.as_ref()).filter(|server| !server.in_recovery);
    let primary_lsn = primary_server.map(|server| server.lsn);
    let mut status = ClusterStatus {
        primary: Some(intent.primary.to_string()),
        // one that hands over finishes what it does and gets nothing new
        primary_ready: intent.goal == Goal::Run
            && intent.wish.is_none()
            && primary_server.is_some()
            && observed.roles_ready,
        term: intent.term,
        promise: intent.promise.clone(),
        failover: intent.policy.failover,
        paused: intent.paused,
        system_id: intent.system_id,
        slots: observed.slots.iter().flatten().map(slot_status).collect(),
        ..ClusterStatus::default()
    };
    for node in &spec.nodes {
        let (Some(view), Some(planned)) = (observed.nodes.get(&node.name), plan.nodes.get(&node.name)) else {
            continue;
        };
        let role = if node.name == intent.primary { NodeRole::Primary } else { NodeRole::Replica };
        let server = view.server.as_ref();
        let replica = role == NodeRole::Replica;
        status.nodes.push(NodeStatus {
            name: node.name.to_string(),
            host: node.host.clone(),
            port: node.port,
            role,
            state: state_of(view),
            pid: match view.process {
                ProcessState::None => None,
                ProcessState::Unadopted { pid } | ProcessState::Running { pid, .. } => Some(pid),
            },
            since: server.map(|server| server.started_at),
            timeline: server.map(|server| server.timeline),
            lsn: server.map(|server| server.lsn),
            lag_bytes: replica.then(|| lag(primary_lsn, server.map(|server| server.lsn))).flatten(),
            streaming: replica.then(|| server.map(|server| server.streaming)).flatten(),
            failover_priority: node.priority,
            apply_delay_s: node.apply_delay.map(|delay| delay.as_secs()),
            leaving: false,
            pending_restart: server.map(|server| server.pending_restart.clone()).unwrap_or_default(),
            doing: planned.sentence.clone(),
        });
        if let Some(server) = server.filter(|server| !server.pending_restart.is_empty()) {
            status.findings.push(Finding {
                severity: Severity::Notice,
                subject: format!("node {}", node.name),
                what: format!("settings wait for a restart: {}", server.pending_restart.join(", ")),
                since: None,
                what_to_do: "millrace cluster restart".to_owned(),
            });
        }
        if let Some(trouble) = &planned.trouble {
            let since = view.failure.as_ref().map(|failure| {
                let ago = i64::try_from(now.1.saturating_sub(failure.at).as_micros()).unwrap_or(i64::MAX);
                Micros(now.0.0.saturating_sub(ago))
            });
            status.findings.push(Finding {
                severity: trouble.severity,
                subject: format!("node {}", node.name),
                what: planned.sentence.clone(),
                since,
                what_to_do: trouble.what_to_do.clone(),
            });
        }
    }
    status.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.subject.cmp(&b.subject)));
    status.all_ready = status.primary_ready
        && observed.nodes.values().all(|view| view.busy.is_none())
        && status.nodes.iter().all(|node| {
            let streams = node.streaming == Some(true) || node.apply_delay_s.is_some();
            node.state == NodeState::Running && (node.role == NodeRole::Primary || streams)
        });
    status
}

fn lag(primary: Option<Lsn>, replica: Option<Lsn>) -> Option<u64> {
    Some(primary?.bytes_since(replica?))
}

fn state_of(view: &NodeView) -> NodeState {
    match (&view.process, &view.busy) {
        (ProcessState::None, None) => NodeState::Stopped,
        (ProcessState::Unadopted { .. } | ProcessState::Running { ready: false, .. }, _)
        | (ProcessState::None, Some(_)) => NodeState::Starting,
        (ProcessState::Running { ready: true, .. }, _) if view.server.is_some() => NodeState::Running,
        // on its way out: not asked any more
        (ProcessState::Running { .. }, Some(_)) => NodeState::Running,
        (ProcessState::Running { .. }, None) => NodeState::Unresponsive,
    }
}

fn slot_status(slot: &Slot) -> SlotStatus {
    SlotStatus {
        name: slot.name.clone(),
        slot_type: slot.slot_type.clone(),
        active: slot.active,
        retained_bytes: slot.retained_bytes,
        safe_wal_bytes: slot.safe_wal_bytes,
        wal_status: slot.wal_status.clone(),
    }
}
