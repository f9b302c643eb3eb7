//! `[[cluster.nodes]]`: where the servers are, and which of them may become the primary.

use std::{net::IpAddr, time::Duration};

use super::{Ports, Taken};
use crate::{schema, table::Reader};

/// `[[cluster.nodes]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub port: u16,
    /// There with [`crate::Config::etcd`].
    pub host: Option<IpAddr>,
    /// 0: it never becomes the primary.
    pub failover_priority: u32,
    pub apply_delay: Option<Duration>,
}

impl Node {
    fn new(name: &str, port: u16, host: Option<IpAddr>) -> Self {
        Self { name: name.to_owned(), port, host, failover_priority: 1, apply_delay: None }
    }
}

pub(super) fn nodes(cluster: &Reader<'_>, ports: &mut Ports<'_>) -> Vec<Node> {
    let Some(tables) = cluster.tables("nodes", &schema::NODE) else {
        let defaults = [("a", 5440), ("b", 5441), ("c", 5442)];
        for (name, port) in defaults {
            ports.taken.push(Taken { port, by: format!("node {name}"), span: None });
        }
        return defaults.map(|(name, port)| Node::new(name, port, None)).to_vec();
    };
    if tables.is_empty() {
        cluster.wrong(
            None,
            "`nodes`: a cluster has at least one node",
            Some("remove the key for three, or add a [[cluster.nodes]]".to_owned()),
        );
    }
    let mut nodes: Vec<Node> = Vec::new();
    for table in &tables {
        let name = table.name("name", 30, "");
        if !name.is_empty() && nodes.iter().any(|n| n.name == name) {
            table.wrong(None, format!("two nodes are called `{name}`"), Some("give each its own name".to_owned()));
        }
        let host = table.address("host");
        // on another host the same port is another port
        let first_here = nodes.iter().all(|node| node.host.is_none() || node.host == host);
        let port = match host.is_none() || first_here {
            true => ports.take(table, "port", || format!("node {name}")),
            false => table.port("port").map_or(0, |at| at.value),
        };
        let apply_delay = table.integer_maybe("apply_delay_seconds", 1..=30 * 86_400).map(Duration::from_secs);
        let failover_priority = match apply_delay {
            Some(_) => 0,
            None => u32::try_from(table.integer("failover_priority", 0..=100)).unwrap_or(1),
        };
        if failover_priority == 0 && nodes.is_empty() {
            table.wrong(
                None,
                format!("node `{name}` is to be the first primary, and may never be one"),
                Some("list another node first".to_owned()),
            );
        }
        nodes.push(Node { failover_priority, apply_delay, ..Node::new(&name, port, host) });
    }
    nodes
}
