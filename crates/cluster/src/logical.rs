//! Logical slots on replicas keep up with the primary's, so that their users go on where they were after a failover.
//!
//! Invariant: a replica's slot is never ahead of the primary's, so nothing that its user has not confirmed is passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_base::Lsn;
use millrace_contract::status::{NodeRole, NodeStatus};
use millrace_pg::{
    PgError,
    catalog::{self, Slot},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{ClusterError, ClusterSpec, asked::Asked, status::ClusterStatus};

const INTERVAL: Duration = Duration::from_secs(1);
/// Moving a slot on reads the log that it passes.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What is to be done with a replica's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// In this database: before PostgreSQL 17 a slot moves only from within its own.
    Advance { slot: String, database: String, to: Lsn },
    /// A logical one that the primary had and has no more; a physical one from when this node was the primary, which
    /// would keep log and old rows for nobody.
    Drop(String),
}

/// From the primary's slots and a replica's, which has replayed to `replayed`. `known`: slots that this primary has had.
fn steps(primary: &[Slot], known: &BTreeSet<String>, replica: &[Slot], replayed: Lsn) -> Vec<Step> {
    let step = |slot: &Slot| {
        if slot.slot_type == "physical" {
            let ours = ["node_", "millrace_"].iter().any(|prefix| slot.name.starts_with(prefix));
            return (!slot.active && ours).then(|| Step::Drop(slot.name.clone()));
        }
        let Some(other) = primary.iter().find(|other| other.name == slot.name) else {
            return known.contains(&slot.name).then(|| Step::Drop(slot.name.clone()));
        };
        let to = other.confirmed_flush_lsn?.min(replayed);
        let database = slot.database.clone()?;
        (to > slot.confirmed_flush_lsn?).then(|| Step::Advance { slot: slot.name.clone(), database, to })
    };
    replica.iter().filter_map(step).collect()
}

/// Connections by node and database.
struct Nodes<'a> {
    spec: &'a ClusterSpec,
    now: Vec<NodeStatus>,
    asked: BTreeMap<(String, String), Asked>,
}

impl Nodes<'_> {
    /// The nodes that there are now.
    fn are(&mut self, now: &[NodeStatus]) {
        self.now = now.to_vec();
        self.asked.retain(|_, asked| now.iter().any(|node| asked.is_of(node)));
    }

    fn of(&mut self, name: &str, database: &str) -> Result<Option<&mut Asked>, ClusterError> {
        let Some(node) = self.now.iter().find(|node| node.name == name) else { return Ok(None) };
        let key = (name.to_owned(), database.to_owned());
        if !self.asked.contains_key(&key) {
            let asked = Asked::new(self.spec, node, "millrace slots", ANSWER_MAX)?.in_database(database);
            self.asked.insert(key.clone(), asked);
        }
        Ok(self.asked.get_mut(&key))
    }
}

/// Follows the primary's slots until `token` is cancelled.
///
/// # Errors
/// If the authority's certificate cannot be read.
pub async fn follow(
    spec: &ClusterSpec,
    status: watch::Receiver<ClusterStatus>,
    token: CancellationToken,
) -> Result<(), ClusterError> {
    let mut nodes = Nodes { spec, now: Vec::new(), asked: BTreeMap::new() };
    let mut known: (String, BTreeSet<String>) = Default::default();
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // neither loses anything when dropped
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.cancelled() => return Ok(()),
        }
        let (primary, replicas) = {
            let status = status.borrow();
            nodes.are(&status.nodes);
            let of = |role| status.nodes.iter().filter(move |node| node.role == role).map(|node| node.name.clone());
            let replicas = of(NodeRole::Replica).filter(|name| spec.is_own(name)).collect::<Vec<_>>();
            (of(NodeRole::Primary).next().filter(|_| status.primary_ready), replicas)
        };
        let Some(primary) = primary else { continue };
        let Some(asked) = nodes.of(&primary, "postgres")? else { continue };
        let slots = match asked.ask(async |client| catalog::slots(client).await).await {
            Ok(slots) => slots,
            Err(error) => {
                tracing::debug!(%error, node = primary, "the primary does not tell its slots");
                continue;
            }
        };
        if known.0 != primary {
            known = (primary, BTreeSet::new());
        }
        known.1.extend(slots.iter().map(|slot| slot.name.clone()));
        for replica in replicas {
            let said = match keep_up(&mut nodes, &replica, &slots, &known.1).await? {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            // what does not change is said once
            if !said.is_empty() && told.get(&replica) != Some(&said) {
                tracing::warn!(node = replica, error = said, "a replica's slots do not keep up");
            }
            told.insert(replica, said);
        }
    }
}

async fn keep_up(
    nodes: &mut Nodes<'_>,
    replica: &str,
    primary: &[Slot],
    known: &BTreeSet<String>,
) -> Result<Result<(), PgError>, ClusterError> {
    let Some(asked) = nodes.of(replica, "postgres")? else { return Ok(Ok(())) };
    let state =
        asked.ask(async |client| Ok((catalog::server_state(client).await?, catalog::slots(client).await?))).await;
    let (state, slots) = match state {
        Ok(state) => state,
        // it is away: the status says so
        Err(_) => return Ok(Ok(())),
    };
    if !state.in_recovery {
        return Ok(Ok(()));
    }
    for step in steps(primary, known, &slots, state.lsn) {
        let done = match &step {
            Step::Advance { slot, database, to } => match nodes.of(replica, database)? {
                Some(asked) => asked.ask(async |client| catalog::advance_slot(client, slot, *to).await).await,
                None => Ok(()),
            },
            Step::Drop(slot) => match nodes.of(replica, "postgres")? {
                Some(asked) => asked.ask(async |client| catalog::drop_slot(client, slot).await).await,
                None => Ok(()),
            },
        };
        if done.is_err() {
            return Ok(done);
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replicas_slot_is_never_ahead() {
        let slot = |name: &str, confirmed| Slot {
            name: name.into(),
            slot_type: "logical".into(),
            database: Some("d".into()),
            temporary: false,
            active: false,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            retained_bytes: None,
            safe_wal_bytes: None,
            wal_status: None,
        };
        let known: BTreeSet<String> = ["a".to_owned()].into();
        let of = |primary, own, replayed| steps(&[slot("a", primary)], &known, &[slot("a", own)], Lsn(replayed));
        let advance = |to| vec![Step::Advance { slot: "a".into(), database: "d".into(), to: Lsn(to) }];
        assert_eq!(of(10, 5, 20), advance(10));
        assert_eq!(of(10, 5, 7), advance(7));
        assert_eq!(of(10, 10, 20), []);
        assert_eq!(of(10, 12, 20), []);
        assert_eq!(steps(&[], &known, &[slot("a", 1)], Lsn(9)), [Step::Drop("a".into())]);
        // a primary that never had it may have been elected without it: the last one is kept
        assert_eq!(steps(&[], &BTreeSet::new(), &[slot("a", 1)], Lsn(9)), []);
        let physical = Slot { slot_type: "physical".into(), ..slot("node_b", 1) };
        assert_eq!(steps(&[], &known, std::slice::from_ref(&physical), Lsn(9)), [Step::Drop("node_b".into())]);
        assert_eq!(steps(&[], &known, &[Slot { active: true, ..physical }], Lsn(9)), []);
    }
}
