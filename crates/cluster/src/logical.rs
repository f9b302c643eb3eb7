//! Logical slots on replicas keep up with the primary's, so that their users go on where they were after a failover.
//!
//! Invariant: a replica's slot is never ahead of the primary's, so nothing that its user has not confirmed is passed over.

use std::time::Duration;

use futures::future::join_all;
use millrace_base::Lsn;
use millrace_contract::status::NodeRole;
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
    Advance(String, Lsn),
    /// The primary has none of this name any more.
    Drop(String),
}

/// From the primary's slots and a replica's, which has replayed to `replayed`.
fn steps(primary: &[Slot], replica: &[Slot], replayed: Lsn) -> Vec<Step> {
    let logical = replica.iter().filter(|slot| slot.slot_type == "logical");
    let step = |slot: &Slot| match primary.iter().find(|other| other.name == slot.name) {
        None => Some(Step::Drop(slot.name.clone())),
        Some(other) => {
            let to = other.confirmed_flush_lsn?.min(replayed);
            (to > slot.confirmed_flush_lsn?).then(|| Step::Advance(slot.name.clone(), to))
        }
    };
    logical.filter_map(step).collect()
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
    let asked = |node| Asked::new(spec, node, "millrace slots", ANSWER_MAX);
    let mut nodes = spec.nodes.iter().map(asked).collect::<Result<Vec<_>, _>>()?;
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
            let of = |role| status.nodes.iter().filter(move |node| node.role == role).map(|node| node.name.clone());
            (of(NodeRole::Primary).next().filter(|_| status.primary_ready), of(NodeRole::Replica).collect::<Vec<_>>())
        };
        let Some(primary) = primary else { continue };
        let Some(asked) = nodes.iter_mut().find(|node| node.name == primary) else { continue };
        let slots = match asked.ask(async |client| catalog::slots(client).await).await {
            Ok(slots) => slots,
            Err(error) => {
                tracing::debug!(%error, node = primary, "the primary does not tell its slots");
                continue;
            }
        };
        let slots = &slots;
        join_all(nodes.iter_mut().filter(|node| replicas.contains(&node.name)).map(|node| async move {
            if let Err(error) = keep_up(node, slots).await {
                tracing::debug!(%error, node = node.name, "a replica's slots do not keep up");
            }
        }))
        .await;
    }
}

async fn keep_up(node: &mut Asked, primary: &[Slot]) -> Result<(), PgError> {
    node.ask(async |client| {
        let state = catalog::server_state(client).await?;
        if !state.in_recovery {
            return Ok(());
        }
        for step in steps(primary, &catalog::slots(client).await?, state.lsn) {
            match step {
                Step::Advance(name, to) => catalog::advance_slot(client, &name, to).await?,
                Step::Drop(name) => catalog::drop_slot(client, &name).await?,
            }
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replicas_slot_is_never_ahead() {
        let slot = |name: &str, confirmed| Slot {
            name: name.into(),
            slot_type: "logical".into(),
            database: None,
            temporary: false,
            active: false,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            retained_bytes: None,
            safe_wal_bytes: None,
            wal_status: None,
        };
        let of = |primary, own, replayed| steps(&[slot("a", primary)], &[slot("a", own)], Lsn(replayed));
        assert_eq!(of(10, 5, 20), [Step::Advance("a".into(), Lsn(10))]);
        assert_eq!(of(10, 5, 7), [Step::Advance("a".into(), Lsn(7))]);
        assert_eq!(of(10, 10, 20), []);
        assert_eq!(of(10, 12, 20), []);
        assert_eq!(steps(&[], &[slot("a", 1)], Lsn(9)), [Step::Drop("a".into())]);
        let physical = Slot { slot_type: "physical".into(), ..slot("b", 1) };
        assert_eq!(steps(&[], &[physical], Lsn(9)), []);
    }
}
