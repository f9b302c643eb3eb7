//! How far replicas have replayed, asked many times a second and told in [`Replay`]'s rounds.
//!
//! Invariant: a round counts for a node only if the primary was asked after it began and the node has replayed at least
//! to the primary's answer.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::future::join_all;
use millrace_base::Lsn;
use millrace_contract::{status::NodeRole, topology::Replay};
use millrace_pg::{ConnectParams, Connection, PgError, catalog, connect};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{ClusterError, ClusterSpec, status::ClusterStatus};

/// Between the beginnings of two rounds.
const INTERVAL: Duration = Duration::from_millis(100);
/// A server that takes longer is left out of the round.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Rounds that a replica can be behind and still be known to have reached one: a minute of them.
const ROUNDS_MAX: usize = 600;

/// Where the primary was in each of the last rounds.
#[derive(Debug, Default)]
struct Rounds {
    /// Of which positions are comparable: the primary's name and timeline.
    of: Option<(String, u32)>,
    positions: VecDeque<(u64, Lsn)>,
}

impl Rounds {
    fn note(&mut self, round: u64, position: Lsn) {
        if self.positions.len() >= ROUNDS_MAX {
            self.positions.pop_front();
        }
        self.positions.push_back((round, position));
    }

    /// The last round that whoever has replayed to `replayed` has reached.
    fn reached(&self, replayed: Lsn) -> Option<u64> {
        self.positions.iter().rev().find(|(_, position)| *position <= replayed).map(|(round, _)| *round)
    }
}

#[derive(Debug)]
struct Asked {
    name: String,
    params: ConnectParams,
    connection: Option<Connection>,
}

impl Asked {
    async fn position(&mut self) -> Result<Lsn, PgError> {
        let asking = async {
            let open = match self.connection.take() {
                Some(open) if !open.is_closed() => open,
                _ => connect(&self.params, ANSWER_MAX).await?,
            };
            let position = catalog::wal_position(&open).await?;
            Ok((open, position))
        };
        match timeout(ANSWER_MAX, asking).await {
            Ok(Ok((open, position))) => {
                self.connection = Some(open);
                Ok(position)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PgError::Timeout { address: self.params.address(), deadline: ANSWER_MAX }),
        }
    }
}

/// Asks the nodes of `spec` until `token` is cancelled.
///
/// # Errors
/// If the authority's certificate cannot be read.
pub async fn follow(
    spec: &ClusterSpec,
    status: watch::Receiver<ClusterStatus>,
    replay: Arc<Replay>,
    token: CancellationToken,
) -> Result<(), ClusterError> {
    let asked = |node| {
        let params = ConnectParams { application_name: "millrace replay".to_owned(), ..spec.superuser(node)? };
        Ok::<_, ClusterError>(Asked { name: node.name.to_string(), params, connection: None })
    };
    let mut nodes = spec.nodes.iter().map(asked).collect::<Result<Vec<_>, _>>()?;
    let mut rounds = Rounds::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // neither loses anything when dropped
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.cancelled() => return Ok(()),
        }
        let primary = {
            let status = status.borrow();
            status.nodes.iter().find(|n| n.role == NodeRole::Primary).map(|n| (n.name.clone(), n.timeline))
        };
        // a timeline that is not known yet may be another one
        let Some((name, Some(timeline))) = primary else { continue };
        round(&mut nodes, &mut rounds, (name, timeline), &replay).await;
    }
}

async fn round(nodes: &mut [Asked], rounds: &mut Rounds, primary: (String, u32), replay: &Replay) {
    let (name, timeline) = primary;
    let of = Some((name.clone(), timeline));
    if rounds.of != of {
        *rounds = Rounds { of, ..Rounds::default() };
        replay.forget();
    }
    let begun = replay.begin();
    let Some(primary) = nodes.iter_mut().find(|node| node.name == name) else { return };
    match primary.position().await {
        Ok(position) => rounds.note(begun, position),
        Err(error) => {
            tracing::debug!(%error, node = name, "the primary does not tell its position");
            return;
        }
    }
    let rounds = &*rounds;
    join_all(nodes.iter_mut().filter(|node| node.name != name).map(|node| async move {
        // a replica that has crashed can be further back than it was
        let reached = match node.position().await {
            Ok(replayed) => rounds.reached(replayed),
            Err(error) => {
                tracing::debug!(%error, node = node.name, "a replica does not tell its position");
                None
            }
        };
        replay.round_of(&node.name).store(reached.unwrap_or(0), std::sync::atomic::Ordering::SeqCst);
    }))
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_that_was_reached() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.reached(Lsn(100)), None);
        for (round, position) in [(1, 10), (2, 20), (3, 20), (4, 50)] {
            rounds.note(round, Lsn(position));
        }
        for (replayed, reached) in [(9, None), (10, Some(1)), (20, Some(3)), (49, Some(3)), (90, Some(4))] {
            assert_eq!(rounds.reached(Lsn(replayed)), reached, "{replayed}");
        }
        for round in 5..2_000 {
            rounds.note(round, Lsn(round * 10));
        }
        assert_eq!(rounds.positions.len(), ROUNDS_MAX);
        assert_eq!(rounds.reached(Lsn(20)), None);
    }
}
