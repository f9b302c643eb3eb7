//! How far replicas have replayed, asked many times a second and told in [`Replay`]'s rounds.
//!
//! Invariant: a round counts for a node only if the primary was asked after it began and the node has replayed at least
//! to the primary's answer.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::future::join_all;
use millrace_base::Lsn;
use millrace_contract::{
    status::{NodeRole, NodeStatus},
    topology::{Origin, Replay},
};
use millrace_pg::{
    Connection,
    catalog::{self, Standby},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{ClusterError, ClusterSpec, NodeName, Promise, asked::Asked, status::ClusterStatus};

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

/// How far acknowledged commits surely outlive the primary: the furthest that a quorum of the promise's members has on
/// disk; all of the log where nothing is promised.
fn kept(promise: &Promise, end: Lsn, standbys: &[Standby]) -> Lsn {
    if promise.is_none() {
        return end;
    }
    let flushed = |name: &NodeName| {
        let of = standbys.iter().filter(|standby| standby.application_name == name.as_str());
        of.filter_map(|standby| standby.flush_lsn).max().unwrap_or(Lsn::INVALID)
    };
    let mut all: Vec<Lsn> = promise.members.iter().map(flushed).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.get(promise.quorum - 1).copied().unwrap_or(Lsn::INVALID).min(end)
}

/// Whom to ask: the nodes that there are now, over the connections that are open already.
fn renew(nodes: &mut Vec<Asked>, spec: &ClusterSpec, now: &[NodeStatus]) -> Result<(), ClusterError> {
    nodes.retain(|asked| now.iter().any(|node| asked.is_of(node)));
    for node in now {
        if !nodes.iter().any(|asked| asked.is_of(node)) {
            nodes.push(Asked::new(spec, node, "millrace replay", ANSWER_MAX)?);
        }
    }
    Ok(())
}

/// Asks the cluster's nodes until `token` is cancelled. `origin` is told who writes the log, and how far it
/// surely outlives them.
///
/// # Errors
/// If the authority's certificate cannot be read.
pub async fn follow(
    spec: &ClusterSpec,
    status: watch::Receiver<ClusterStatus>,
    replay: Arc<Replay>,
    origin: watch::Sender<Option<Origin>>,
    token: CancellationToken,
) -> Result<(), ClusterError> {
    let mut nodes = Vec::new();
    let mut rounds = Rounds::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // neither loses anything when dropped
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.cancelled() => return Ok(()),
        }
        let (primary, promise, term) = {
            let status = status.borrow();
            renew(&mut nodes, spec, &status.nodes)?;
            let primary = status.nodes.iter().find(|n| n.role == NodeRole::Primary);
            (primary.map(|n| (n.name.clone(), n.timeline)), status.promise.clone(), status.term)
        };
        // a timeline that is not known yet may be another one
        let Some((name, Some(timeline))) = primary else { continue };
        let Some(safe) = round(&mut nodes, &mut rounds, (name.clone(), timeline), &replay, &promise).await else {
            continue;
        };
        let Some((host, port)) = nodes.iter().find(|node| node.name == name).map(Asked::place) else { continue };
        origin.send_if_modified(|known| {
            let before = known.as_ref().filter(|known| known.term == term).map(|known| known.kept);
            if before.is_some_and(|before| before >= safe) {
                return false;
            }
            *known = Some(Origin { term, host, port, kept: safe });
            true
        });
    }
}

async fn round(
    nodes: &mut [Asked],
    rounds: &mut Rounds,
    primary: (String, u32),
    replay: &Replay,
    promise: &Promise,
) -> Option<Lsn> {
    let (name, timeline) = primary;
    let of = Some((name.clone(), timeline));
    if rounds.of != of {
        *rounds = Rounds { of, ..Rounds::default() };
        replay.forget();
    }
    let begun = replay.begin();
    let primary = nodes.iter_mut().find(|node| node.name == name)?;
    let asked = async |client: &Connection| {
        // who has what first: the end of the log is at least as far
        let standbys = catalog::standbys(client).await?;
        let state = catalog::server_state(client).await?;
        Ok((state, standbys))
    };
    let safe = match primary.ask(asked).await {
        // an elected one that is still a replica says nothing of the log to come
        Ok((state, _)) if state.in_recovery || state.timeline != timeline => return None,
        Ok((state, standbys)) => {
            rounds.note(begun, state.lsn);
            // the record may be about to say what the setting says, or still say what an earlier one did
            let in_force = Promise::parse(&state.synchronous_standby_names);
            kept(promise, state.lsn, &standbys).min(kept(&in_force, state.lsn, &standbys))
        }
        Err(error) => {
            tracing::debug!(%error, node = name, "the primary does not tell its position");
            return None;
        }
    };
    let rounds = &*rounds;
    join_all(nodes.iter_mut().filter(|node| node.name != name).map(|node| async move {
        // a replica that has crashed can be further back than it was
        let reached = match node.ask(async |client| catalog::wal_position(client).await).await {
            Ok(replayed) => rounds.reached(replayed),
            Err(error) => {
                tracing::debug!(%error, node = node.name, "a replica does not tell its position");
                None
            }
        };
        replay.round_of(&node.name).store(reached.unwrap_or(0), std::sync::atomic::Ordering::SeqCst);
    }))
    .await;
    Some(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlives_the_primary() {
        let standby = |name: &str, flushed| Standby {
            pid: 1,
            application_name: name.into(),
            client_address: None,
            role: None,
            state: "streaming".into(),
            sync_state: Some("quorum".into()),
            sent_lsn: None,
            write_lsn: None,
            flush_lsn: Some(Lsn(flushed)),
            replay_lsn: None,
            replay_lag_ms: None,
        };
        let promise = |quorum| Promise::new([NodeName::new("b"), NodeName::new("c")].into(), quorum);
        let standbys = [standby("b", 70), standby("c", 90), standby("copy for b", 100)];
        assert_eq!(kept(&promise(1), Lsn(100), &standbys), Lsn(90));
        assert_eq!(kept(&promise(2), Lsn(100), &standbys), Lsn(70));
        assert_eq!(kept(&promise(2), Lsn(100), &standbys[..1]), Lsn::INVALID);
        assert_eq!(kept(&Promise::none(), Lsn(100), &standbys), Lsn(100));
    }

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
