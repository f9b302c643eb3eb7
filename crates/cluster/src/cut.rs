//! Clients that the network has taken away from a server of this host in the midst of an answer are ended, and with them
//! the locks that they hold: see [`millrace_base::sockets`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_base::sockets::Unanswered;
use millrace_contract::status::{NodeState, NodeStatus};
use millrace_pg::catalog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{ClusterError, ClusterSpec, asked::Asked, status::ClusterStatus};

const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Ends such clients of this host's servers until `token` is cancelled.
///
/// # Errors
/// If the authority's certificate cannot be read.
pub async fn follow(
    spec: &ClusterSpec,
    status: watch::Receiver<ClusterStatus>,
    token: CancellationToken,
) -> Result<(), ClusterError> {
    let mut servers: BTreeMap<String, Asked> = BTreeMap::new();
    let mut sockets = Unanswered::default();
    let mut told = BTreeSet::new();
    loop {
        let lasting = tokio::select! {
            lasting = sockets.next() => lasting,
            () = token.cancelled() => return Ok(()),
        };
        if lasting.is_empty() {
            told.clear();
            continue;
        }
        let nodes = status.borrow().nodes.clone();
        servers.retain(|_, asked| nodes.iter().any(|node| asked.is_of(node)));
        let own = |node: &&NodeStatus| spec.is_own(&node.name) && node.state == NodeState::Running;
        for node in nodes.iter().filter(own) {
            let clients: Vec<_> =
                lasting.iter().filter(|(port, _)| *port == node.port).map(|(_, client)| *client).collect();
            if clients.is_empty() {
                continue;
            }
            if !servers.contains_key(&node.name) {
                servers.insert(node.name.clone(), Asked::new(spec, node, "millrace sockets", ANSWER_MAX)?);
            }
            let Some(asked) = servers.get_mut(&node.name) else { continue };
            let ending = asked.ask(async |server| catalog::end_clients(server, &clients).await);
            let ended = tokio::select! {
                ended = ending => ended,
                () = token.cancelled() => return Ok(()),
            };
            match ended {
                Ok(ended) => {
                    // one that waits for its disk is there for longer
                    for of in ended.into_iter().filter(|of| told.insert(of.pid)) {
                        let (client, pid, program) = (of.from, of.pid, of.application_name);
                        tracing::warn!(node = node.name, client, pid, program, "a client is cut off, and ended");
                    }
                }
                Err(error) => tracing::debug!(node = node.name, %error, "clients that are cut off cannot be ended"),
            }
        }
    }
}
