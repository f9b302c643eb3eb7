//! Which servers a pool may use now: the cluster's topology, as a proxy reads it. Pure.
//!
//! Invariant: a connection that was opened for writing under an earlier epoch is never used again.

use std::{net::SocketAddr, sync::Arc};

use millrace_contract::{Topology, TopologyNode, status::NodeRole, topology::NodeHealth};

/// What a client came for: it is told by the port that it connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// The primary.
    ReadWrite,
    /// Replicas; the primary if there is none.
    ReadOnly,
}

/// A server that connections can be opened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub address: SocketAddr,
    /// The name that its certificate is checked against.
    pub host: String,
    pub role: NodeRole,
    /// Of the topology under which it was chosen.
    pub epoch: u64,
}

/// What to do with a connection after the topology has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It goes on.
    Good,
    /// It ends when its transaction does.
    Retire,
    /// It ends now.
    Cut,
}

/// The topology, by use.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    topology: Arc<Topology>,
}

impl Backends {
    #[must_use]
    pub fn new(topology: Arc<Topology>) -> Self {
        Self { topology }
    }

    /// The node for a new connection: the primary, or the replica for which `load` says least.
    #[must_use]
    pub fn choose(&self, access: Access, load: impl Fn(&str) -> usize) -> Option<Node> {
        let primary = self.topology.primary();
        let chosen = match access {
            Access::ReadWrite => primary,
            Access::ReadOnly => self.replicas().min_by_key(|node| load(&node.name)).or(primary),
        };
        chosen.map(|node| Node {
            name: node.name.clone(),
            address: node.address,
            host: node.host.clone(),
            role: node.role,
            epoch: self.topology.epoch,
        })
    }

    /// Replicas that take reads.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = &TopologyNode> {
        self.topology.nodes.iter().filter(|n| n.role == NodeRole::Replica && n.health == NodeHealth::Ready)
    }

    /// Whether a connection to `node`, opened for `access`, may go on.
    pub(crate) fn fit(&self, access: Access, node: &Node) -> Fit {
        let Some(now) = self.topology.nodes.iter().find(|n| n.name == node.name && n.address == node.address) else {
            return Fit::Cut;
        };
        let writes_elsewhere = access == Access::ReadWrite
            && (now.role != NodeRole::Primary || (node.epoch != self.topology.epoch && node.role == NodeRole::Primary));
        match now.health {
            NodeHealth::Down => Fit::Cut,
            _ if writes_elsewhere => Fit::Cut,
            NodeHealth::Draining => Fit::Retire,
            // a stand-in is given up when there are replicas again; a promoted replica is a replica no more
            NodeHealth::Ready if access == Access::ReadOnly && now.role == NodeRole::Primary => {
                if self.replicas().next().is_some() { Fit::Retire } else { Fit::Good }
            }
            NodeHealth::Ready => Fit::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(epoch: u64, nodes: &[(&str, NodeRole, NodeHealth)]) -> Backends {
        let nodes = nodes.iter().zip(1..).map(|((name, role, health), port)| TopologyNode {
            name: (*name).to_owned(),
            role: *role,
            address: ([127, 0, 0, 1], port).into(),
            host: "localhost".to_owned(),
            timeline: None,
            health: *health,
        });
        Backends::new(Arc::new(Topology { epoch, nodes: nodes.collect() }))
    }

    use NodeHealth::{Down, Draining, Ready};
    use NodeRole::{Primary, Replica};

    #[test]
    fn writes_go_to_the_primary_alone() {
        let before = topology(1, &[("a", Primary, Ready), ("b", Replica, Ready)]);
        let node = before.choose(Access::ReadWrite, |_| 0).unwrap();
        assert_eq!((node.name.as_str(), before.fit(Access::ReadWrite, &node)), ("a", Fit::Good));
        let draining = topology(1, &[("a", Primary, Draining), ("b", Replica, Ready)]);
        assert_eq!(draining.choose(Access::ReadWrite, |_| 0), None);
        assert_eq!(draining.fit(Access::ReadWrite, &node), Fit::Retire);
        let after = topology(2, &[("a", Replica, Ready), ("b", Primary, Ready)]);
        assert_eq!(after.fit(Access::ReadWrite, &node), Fit::Cut);
        // the same node again, but in between another may have taken writes
        let back = topology(3, &[("a", Primary, Ready), ("b", Replica, Ready)]);
        assert_eq!(back.fit(Access::ReadWrite, &node), Fit::Cut);
    }

    #[test]
    fn reads_are_spread_and_fall_back() {
        let all = topology(1, &[("a", Primary, Ready), ("b", Replica, Ready), ("c", Replica, Ready)]);
        let least = all.choose(Access::ReadOnly, |name| usize::from(name == "b")).unwrap();
        assert_eq!(least.name, "c");
        let alone = topology(1, &[("a", Primary, Ready), ("b", Replica, Down), ("c", Replica, Draining)]);
        assert_eq!(alone.fit(Access::ReadOnly, &least), Fit::Retire);
        let stand_in = alone.choose(Access::ReadOnly, |_| 0).unwrap();
        assert_eq!((stand_in.name.as_str(), alone.fit(Access::ReadOnly, &stand_in)), ("a", Fit::Good));
        assert_eq!(all.fit(Access::ReadOnly, &stand_in), Fit::Retire);
    }
}
