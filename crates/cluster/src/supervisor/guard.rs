//! What goes on beside the supervisor's loop and does not wait for it: a server that may not be the primary any more is
//! killed, and one that can prove that it is, without etcd, goes on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use millrace_base::Clock;
use millrace_pg::{ConnectParams, Connection, PgError, Processes, ServerSpec, catalog, connect};
use tokio::{sync::watch, time::timeout};

use crate::{error::ClusterError, promise::Promise, spec::NodeName, store::Validity};

/// Between looks at how far a lease is from its end.
const LOOK: Duration = Duration::from_millis(50);

/// Kills the node's server when it was the primary for longer than it might, whatever the supervisor waits for.
pub(super) struct Guard {
    pub(super) server: ServerSpec,
    pub(super) validity: Arc<watch::Sender<Validity>>,
    pub(super) armed: watch::Receiver<bool>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Guard {
    pub(super) async fn keep(mut self) -> Result<(), ClusterError> {
        let mut changes = self.validity.subscribe();
        let mut lapses = changes.borrow().lapses;
        loop {
            let valid = *changes.borrow_and_update();
            let is_armed = *self.armed.borrow_and_update();
            let left = valid.until.saturating_sub(self.clock.monotonic());
            let lapsed = left.is_zero() || valid.lapses != lapses;
            lapses = valid.lapses;
            if is_armed && lapsed && self.server.processes() == Processes::Alive {
                tracing::error!(
                    "nobody can be sure that this is still the primary: it is killed, so that it writes no more"
                );
                if let Err(error) = self.server.fence().await {
                    tracing::error!(%error, "a process survives being killed");
                }
            }
            // a timer does not count a suspended machine's sleep, as the lease does
            let pause = if left.is_zero() { LOOK * 4 } else { left.min(LOOK * 2) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                changed = self.armed.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

/// What proves without etcd that this is still the primary: replicas that have just received its log do not turn away
/// from it for a while, so if so many of them have that the rest could elect nobody, it is.
pub(super) struct Proof {
    pub(super) params: ConnectParams,
    pub(super) others: watch::Receiver<BTreeSet<NodeName>>,
    /// As it was recorded last; `None` if nobody can tell.
    pub(super) promise: watch::Receiver<Option<Promise>>,
    pub(super) validity: Arc<watch::Sender<Validity>>,
    pub(super) armed: watch::Receiver<bool>,
    pub(super) hold: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

impl Proof {
    /// Goes on for ever; does nothing while the lease is far from its end.
    pub(super) async fn keep(mut self) -> Result<(), ClusterError> {
        let mut connection = None;
        // so many tries fit into what is left that one may fail
        let early = self.hold / 2;
        loop {
            let left = self.validity.borrow().until.saturating_sub(self.clock.monotonic());
            if !*self.armed.borrow_and_update() || left > early {
                tokio::time::sleep(left.saturating_sub(early).max(LOOK)).await;
                continue;
            }
            let asked = self.clock.monotonic();
            match timeout(early, self.prove(&mut connection)).await {
                Ok(Ok(())) => {
                    let (until, now) = (asked + self.hold * 2 / 3, self.clock.monotonic());
                    self.validity.send_modify(|validity| validity.extend(until, now));
                    tokio::time::sleep(LOOK).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no proof that this is the primary");
                    connection = None;
                    tokio::time::sleep(LOOK).await;
                }
                Err(_) => connection = None,
            }
        }
    }

    async fn prove(&self, connection: &mut Option<Connection>) -> Result<(), PgError> {
        let client = match connection {
            Some(open) => open,
            None => connection.insert(connect(&self.params, self.hold / 2).await?),
        };
        let wanted = catalog::write_beat(client).await?;
        let (members, quorum) = match &*self.promise.borrow() {
            Some(promise) if !promise.is_none() => (promise.members.clone(), promise.quorum),
            // whoever turned away could be elected
            _ => {
                let others = self.others.borrow().clone();
                let all = others.len();
                (others, all)
            }
        };
        loop {
            let standbys = catalog::standbys(client).await?;
            let has = |name: &&NodeName| {
                let received = |s: &catalog::Standby| s.flush_lsn.is_some_and(|lsn| lsn >= wanted);
                standbys.iter().any(|s| s.application_name == name.as_str() && received(s))
            };
            if members.iter().filter(has).count() >= quorum {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
