//! The cluster as those who connect to it may use it: made from the supervisor's status, followed by the proxy.
//!
//! Invariants: `epoch` grows with each other primary or timeline; a replica that fell behind comes back only when it
//! has caught up to half of what is allowed, so that it does not come and go.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use millrace_contract::{
    Topology, TopologyNode,
    status::{NodeRole, NodeState, NodeStatus},
    topology::{NodeHealth, TopologyWatch},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::ClusterStatus;

/// Makes topologies, one after the other.
#[derive(Debug)]
pub struct Teller {
    /// Bytes.
    replica_lag_max: u64,
    epoch: u64,
    /// Name and timeline of the primary of `epoch`.
    primary: Option<(String, u32)>,
    /// Replicas that fell behind.
    behind: BTreeSet<String>,
}

impl Teller {
    /// Replicas more than `replica_lag_max` bytes behind get nothing new.
    #[must_use]
    pub fn new(replica_lag_max: u64) -> Self {
        Self { replica_lag_max, epoch: 0, primary: None, behind: BTreeSet::new() }
    }

    /// What is true now.
    pub fn tell(&mut self, status: &ClusterStatus) -> Topology {
        let primary = status.nodes.iter().find(|node| node.role == NodeRole::Primary);
        if let Some((name, timeline)) = primary.and_then(|node| Some((&node.name, node.timeline?)))
            && self.primary.as_ref().is_none_or(|(n, t)| n != name || *t != timeline)
        {
            self.primary = Some((name.clone(), timeline));
            self.epoch += 1;
        }
        self.behind.retain(|name| status.nodes.iter().any(|node| node.name == *name));
        // the configuration lets no host in that is not an address
        let places = status.nodes.iter().filter_map(|node| Some((node, node.host.parse::<IpAddr>().ok()?)));
        let nodes = places.map(|(node, host)| TopologyNode {
            name: node.name.clone(),
            role: node.role,
            address: (host, node.port).into(),
            host: node.host.clone(),
            timeline: node.timeline,
            health: match node.role {
                NodeRole::Primary => of_primary(node, status.primary_ready),
                NodeRole::Replica => self.of_replica(node),
            },
        });
        let nodes = nodes.collect();
        Topology { epoch: self.epoch, nodes }
    }

    fn of_replica(&mut self, node: &NodeStatus) -> NodeHealth {
        let asked = node.streaming.is_some();
        if (node.apply_delay_s.is_some() || node.leaving || !asked) && node.state == NodeState::Running {
            // what is read there is old on purpose, or it ends soon: one that is not asked any more is on its way out
            return NodeHealth::Draining;
        }
        let before = self.behind.contains(&node.name);
        let max = if before { self.replica_lag_max / 2 } else { self.replica_lag_max };
        match (node.state, node.lag_bytes) {
            (NodeState::Stopped | NodeState::Starting, _) => NodeHealth::Down,
            (NodeState::Running, Some(lag)) if lag <= max && node.streaming == Some(true) => {
                self.behind.remove(&node.name);
                NodeHealth::Ready
            }
            // without a primary nobody knows how far it is behind: it stays what it was
            (NodeState::Running, None) if !before => NodeHealth::Ready,
            _ => {
                self.behind.insert(node.name.clone());
                NodeHealth::Draining
            }
        }
    }
}

fn of_primary(node: &NodeStatus, ready: bool) -> NodeHealth {
    match node.state {
        NodeState::Stopped | NodeState::Starting => NodeHealth::Down,
        NodeState::Running if ready => NodeHealth::Ready,
        // it does not answer now: nothing new goes there, and what is there may come to its end
        NodeState::Running | NodeState::Unresponsive => NodeHealth::Draining,
    }
}

/// Tells each change of `status` until `token` is cancelled or the supervisor has ended.
pub async fn publish(
    mut status: watch::Receiver<ClusterStatus>,
    mut teller: Teller,
    topology: watch::Sender<Arc<Topology>>,
    token: CancellationToken,
) {
    loop {
        let told = teller.tell(&status.borrow_and_update());
        topology.send_if_modified(|known| {
            let changed = **known != told;
            *known = Arc::new(told);
            changed
        });
        // `changed` loses nothing when dropped
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = token.cancelled() => return,
        }
    }
}

/// A sender, and what the proxy follows.
#[must_use]
pub fn channel() -> (watch::Sender<Arc<Topology>>, TopologyWatch) {
    watch::channel(Arc::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: NodeRole, state: NodeState, lag_bytes: Option<u64>) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            host: "127.0.0.1".into(),
            port: 5440,
            role,
            state,
            pid: None,
            since: None,
            timeline: Some(1),
            lsn: None,
            lag_bytes,
            streaming: (role == NodeRole::Replica).then_some(true),
            failover_priority: 1,
            apply_delay_s: None,
            leaving: false,
            pending_restart: Vec::new(),
            doing: String::new(),
        }
    }

    fn told(teller: &mut Teller, primary_ready: bool, nodes: Vec<NodeStatus>) -> (u64, Vec<NodeHealth>) {
        let topology = teller.tell(&ClusterStatus { primary_ready, nodes, ..ClusterStatus::default() });
        (topology.epoch, topology.nodes.iter().map(|node| node.health).collect())
    }

    #[test]
    fn the_primary_is_ready_when_the_supervisor_says_so() {
        let mut teller = Teller::new(100);
        let primary = |state| vec![node("a", NodeRole::Primary, state, None)];
        assert_eq!(told(&mut teller, true, primary(NodeState::Running)), (1, vec![NodeHealth::Ready]));
        assert_eq!(told(&mut teller, false, primary(NodeState::Running)), (1, vec![NodeHealth::Draining]));
        assert_eq!(told(&mut teller, false, primary(NodeState::Unresponsive)), (1, vec![NodeHealth::Draining]));
        assert_eq!(told(&mut teller, false, primary(NodeState::Stopped)), (1, vec![NodeHealth::Down]));
        let mut other = primary(NodeState::Running);
        other[0].timeline = Some(2);
        assert_eq!(told(&mut teller, true, other), (2, vec![NodeHealth::Ready]));
    }

    #[test]
    fn a_replica_that_fell_behind_comes_back_once_it_has_caught_up() {
        let mut teller = Teller::new(100);
        let mut health = |lag, streaming| {
            let mut replica = node("b", NodeRole::Replica, NodeState::Running, lag);
            replica.streaming = streaming;
            told(&mut teller, true, vec![replica]).1[0]
        };
        assert_eq!(health(Some(100), Some(true)), NodeHealth::Ready);
        assert_eq!(health(None, Some(false)), NodeHealth::Ready);
        assert_eq!(health(Some(101), Some(true)), NodeHealth::Draining);
        assert_eq!(health(Some(60), Some(true)), NodeHealth::Draining);
        assert_eq!(health(None, Some(true)), NodeHealth::Draining);
        assert_eq!(health(Some(50), Some(true)), NodeHealth::Ready);
        assert_eq!(health(Some(0), Some(false)), NodeHealth::Draining);
    }

    #[test]
    fn a_replica_that_is_not_asked_any_more_gets_nothing_new() {
        let mut replica = node("b", NodeRole::Replica, NodeState::Running, Some(0));
        replica.streaming = Some(true);
        let mut teller = Teller::new(100);
        assert_eq!(told(&mut teller, true, vec![replica.clone()]).1, [NodeHealth::Ready]);
        (replica.lag_bytes, replica.streaming) = (None, None);
        assert_eq!(told(&mut teller, true, vec![replica.clone()]).1, [NodeHealth::Draining]);
        // asked again, without a primary: it was never behind
        replica.streaming = Some(false);
        assert_eq!(told(&mut teller, true, vec![replica]).1, [NodeHealth::Ready]);
    }
}
