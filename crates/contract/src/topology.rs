//! Which server is what: told by the one who decides it, followed by those who connect.
//!
//! Invariant: only the supervisor of a cluster writes it; a follower never guesses who is primary. At most one node is a
//! healthy primary, and `epoch` grows whenever that changes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use millrace_base::Lsn;
use tokio::sync::watch;

use crate::status::NodeRole;

/// The servers of one cluster at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Grows with each change of the primary. What was begun under an earlier one must not go on.
    pub epoch: u64,
    pub nodes: Vec<TopologyNode>,
}

/// One server, as others may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyNode {
    pub name: String,
    pub role: NodeRole,
    pub address: SocketAddr,
    /// The host name that the server's certificate is checked against.
    pub host: String,
    pub timeline: Option<u32>,
    pub health: NodeHealth,
}

/// Whether a node may be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeHealth {
    /// It answers, and a primary accepts writes.
    Ready,
    /// It finishes what it does and gets nothing new: maintenance, or an ordered change of roles.
    Draining,
    /// It must not be used.
    Down,
}

/// How a follower hears of it. The last value is always there; those in between may be skipped.
pub type TopologyWatch = watch::Receiver<Arc<Topology>>;

impl Topology {
    /// The node that takes writes, if there is one now.
    #[must_use]
    pub fn primary(&self) -> Option<&TopologyNode> {
        self.nodes.iter().find(|node| node.role == NodeRole::Primary && node.health == NodeHealth::Ready)
    }
}

/// Who writes the log now, and how much of it nobody can take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Grows with each election. A position of one term says nothing of another's log.
    pub term: u64,
    pub host: String,
    pub port: u16,
    /// The log up to here outlives the server that wrote it; what lies beyond may be undone by a failover.
    pub kept: Lsn,
}

/// How far replicas have come, so that who has written can read it from them. Counted in rounds: whoever asks the servers
/// begins one, asks the primary for its position in the log, then the replicas for what they have replayed.
///
/// Who notes [`Replay::begun`] after a commit may read it from a node whose round is greater: that round asked the
/// primary after the commit, and the node has replayed to where the primary was. Beside the topology, because it
/// changes all the time.
#[derive(Debug, Default)]
pub struct Replay {
    begun: AtomicU64,
    nodes: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

impl Replay {
    /// Begins a round: to be called before the primary is asked.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The round that was begun last.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The last round whose position of the primary this node has replayed; 0 if that is not known.
    #[must_use]
    pub fn round_of(&self, node: &str) -> Arc<AtomicU64> {
        self.nodes().entry(node.to_owned()).or_default().clone()
    }

    /// Positions of another primary say nothing about what was replayed before.
    pub fn forget(&self) {
        self.nodes().values().for_each(|round| round.store(0, Ordering::SeqCst));
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AtomicU64>>> {
        // nothing panics while it is held
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_primary_takes_writes() {
        let node = |role, health| TopologyNode {
            name: "a".to_owned(),
            role,
            address: ([127, 0, 0, 1], 5440).into(),
            host: "localhost".to_owned(),
            timeline: None,
            health,
        };
        let found = |role, health| Topology { epoch: 1, nodes: vec![node(role, health)] }.primary().is_some();
        assert!(found(NodeRole::Primary, NodeHealth::Ready));
        assert!(!found(NodeRole::Primary, NodeHealth::Draining));
        assert!(!found(NodeRole::Primary, NodeHealth::Down));
        assert!(!found(NodeRole::Replica, NodeHealth::Ready));
    }
}
