//! The record of a cluster on many hosts, changed while none of its agents runs: its data has been brought back from a
//! backup on one of them.
//!
//! Invariant: the record changes only if no agent has been there since it was looked at; what each node holds of before
//! has no part in the cluster from then on (see [`crate::Intent::restored`]).

use std::{sync::Arc, time::Duration};

use millrace_base::{Backoff, Clock};
use tokio::time::timeout;

use crate::{
    error::ClusterError,
    history::{Entry, Event},
    observe,
    spec::{NodeSpec, RestoreId},
    state::ClusterRecord,
    store::{
        Claim, EtcdSpec, Shared,
        etcd::{Store, open},
    },
};

/// Until one member of etcd answers.
const REACH: Duration = Duration::from_secs(10);
/// What was restored in hours is not given up at once for an etcd that is away.
const PATIENCE: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_millis(250);

/// A cluster of which no agent runs, as its record has it.
#[derive(Debug)]
pub struct Quiet {
    /// Of the record; 0: there is none.
    revision: i64,
    record: Option<ClusterRecord>,
}

/// Waits until nothing is left of agents that were killed.
///
/// # Errors
/// [`ClusterError::AgentsRun`] if some still run; if etcd is not reached, or its record is not understood.
pub async fn quiet(etcd: &EtcdSpec, clock: Arc<dyn Clock>) -> Result<Quiet, ClusterError> {
    asked(etcd, clock, async |store| {
        let empty = async {
            while !is_quiet(&store.shared()) {
                store.changed().await;
            }
        };
        // a lease ends with its time to live, and etcd looks for those that have ended now and then
        let ended = timeout(etcd.ttl * 2, empty).await.is_ok();
        let shared = store.shared();
        if shared.unreadable {
            let reason = "it is of another version".to_owned();
            return Err(ClusterError::Store { doing: "read the record", reason });
        }
        if !ended {
            return Err(ClusterError::AgentsRun(running(&shared)));
        }
        let (record, revision) = shared.record.unzip();
        Ok(Quiet { revision: revision.unwrap_or(0), record })
    })
    .await
}

impl Quiet {
    /// How the cluster was brought back before, if it was.
    #[must_use]
    pub fn restored(&self) -> Option<&RestoreId> {
        self.record.as_ref()?.restored.as_ref()
    }

    /// PostgreSQL's identifier of the cluster, if there is a record and it has one.
    #[must_use]
    pub fn system_id(&self) -> Option<u64> {
        self.record.as_ref().map(|record| record.system_id).filter(|id| *id != 0)
    }
}

/// Records that the cluster of `system_id` has been brought back to `node`: a new term, in which nothing is promised yet.
/// `event` happened. An answer that is lost is asked for again.
///
/// # Errors
/// [`ClusterError::AgentsRun`] if an agent has been started since: nothing has changed then. If etcd does not answer for
/// long: then it may be recorded all the same.
pub async fn restored(
    etcd: &EtcdSpec,
    clock: Arc<dyn Clock>,
    quiet: &Quiet,
    (node, system_id): (&NodeSpec, u64),
    (id, event): (RestoreId, Event),
) -> Result<(), ClusterError> {
    let path = || node.folder.clone();
    let vote =
        observe::vote(node).map_err(|source| ClusterError::Io { doing: "read the vote in", path: path(), source })?;
    let record = after(quiet.record.as_ref(), vote, (node, system_id), id);
    let entry = Entry { at: clock.wall(), term: record.term, event };
    let mut backoff = Backoff::new(AGAIN, AGAIN * 8);
    let writing = async {
        let mut refused = false;
        loop {
            let written = asked(etcd, clock.clone(), async |store| {
                let shared = store.shared();
                match &shared.record {
                    // of a try whose answer was lost
                    Some((there, _)) if there.restored == record.restored => Ok(()),
                    _ => match store.write(quiet.revision, &record, Claim::Quiet, Some(&entry)).await? {
                        true => Ok(()),
                        false => Err(ClusterError::AgentsRun(running(&store.shared()))),
                    },
                }
            });
            match written.await {
                Ok(()) => return Ok(()),
                // or it was this one's own try before, of which nobody had heard yet
                Err(ClusterError::AgentsRun(_)) if !refused => refused = true,
                Err(error @ ClusterError::AgentsRun(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "not known to be recorded: asked again"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    timeout(PATIENCE, writing).await.unwrap_or(Err(ClusterError::NotReached))
}

/// The record of a cluster that has been brought back to `node`.
fn after(
    before: Option<&ClusterRecord>,
    vote: Option<u64>,
    (node, system_id): (&NodeSpec, u64),
    id: RestoreId,
) -> ClusterRecord {
    // an etcd that has forgotten everything does not know how far the terms had come
    let term = before.map_or(0, |record| record.term).max(vote.unwrap_or(0)) + 1;
    let mut record = ClusterRecord { term, restored: Some(id), ..ClusterRecord::new(node.name.clone(), system_id) };
    if let Some(before) = before {
        record.paused = before.paused;
        record.said.settings.clone_from(&before.said.settings);
    }
    record
}

fn is_quiet(shared: &Shared) -> bool {
    shared.members.is_empty() && shared.officer.is_none()
}

/// The names of nodes whose agents are heard, or have been a moment ago.
fn running(shared: &Shared) -> Vec<String> {
    let mut names: Vec<String> = shared.members.keys().map(ToString::to_string).collect();
    names.extend(shared.officer.iter().map(|(officer, _)| officer.node.to_string()));
    names.sort();
    names.dedup();
    names
}

/// Asks etcd something over a connection that ends with it.
async fn asked<T>(
    etcd: &EtcdSpec,
    clock: Arc<dyn Clock>,
    ask: impl AsyncFnOnce(&mut Store) -> Result<T, ClusterError>,
) -> Result<T, ClusterError> {
    let (mut store, keeper) = open(etcd.clone(), None, clock);
    let asking = async {
        let reached = async {
            while !store.shared().connected {
                store.changed().await;
            }
        };
        timeout(REACH, reached).await.map_err(|_| ClusterError::NotReached)?;
        ask(&mut store).await
    };
    tokio::select! {
        answer = asking => answer,
        kept = keeper.keep() => kept.and(Err(ClusterError::NotReached)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::NodeName;

    #[test]
    fn the_term_is_later_than_all_that_is_known() {
        let node = NodeSpec {
            name: NodeName::new("b"),
            host: "127.0.0.1".to_owned(),
            port: 1,
            folder: "/nowhere".into(),
            priority: 1,
            apply_delay: None,
        };
        let before =
            ClusterRecord { term: 7, paused: true, resigned: true, ..ClusterRecord::new(NodeName::new("a"), 4) };
        let id = || RestoreId::after(None, millrace_base::Micros(7), &node.name);
        let record = after(Some(&before), Some(3), (&node, 5), id());
        let expected =
            ClusterRecord { term: 8, restored: Some(id()), paused: true, ..ClusterRecord::new(NodeName::new("b"), 5) };
        assert_eq!(record, expected);
        assert_eq!(after(Some(&before), Some(9), (&node, 5), id()).term, 10);
        assert_eq!(after(None, None, (&node, 5), id()).term, 1);
    }

    #[test]
    fn a_later_restore_is_greater_by_whatever_clock() {
        let id =
            |before: Option<&RestoreId>, at| RestoreId::after(before, millrace_base::Micros(at), &NodeName::new("b"));
        let first = id(None, 999);
        let second = id(Some(&first), 7);
        assert!(first < second && second < id(Some(&second), 7) && first < id(None, 1_000));
        assert_eq!(RestoreId::parse(&format!("{first}\n")), first);
    }
}
