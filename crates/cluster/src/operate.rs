//! What an operator asks of a cluster.

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    spec::{ClusterSpec, NodeName},
    status::ClusterStatus,
};

/// What has been done, or why it was not.
pub type Reply = Result<String, String>;

#[derive(Debug)]
pub(crate) enum Order {
    Switchover { to: Option<NodeName>, reply: oneshot::Sender<Reply> },
    Failover { to: NodeName, reply: oneshot::Sender<Reply> },
    Pause { paused: bool, reply: oneshot::Sender<Reply> },
    Reinit { node: NodeName, reply: oneshot::Sender<Reply> },
    Reload { spec: Box<ClusterSpec>, reply: oneshot::Sender<Reply> },
    TurnOver { spec: Box<ClusterSpec>, reply: oneshot::Sender<Reply> },
    Restart { node: NodeName, reply: oneshot::Sender<Reply> },
}

/// A running supervisor, as others may ask it.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<ClusterStatus>,
}

impl Handle {
    pub(crate) fn new(orders: mpsc::Sender<Order>, status: watch::Receiver<ClusterStatus>) -> Self {
        Self { orders, status }
    }

    /// The cluster as it was seen last.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        self.status.borrow().clone()
    }

    /// Another primary, in order: clients wait for a moment, and none gets an error for a statement not yet sent. `to`:
    /// the most advanced replica if it is not said.
    ///
    /// # Errors
    /// Why it cannot be; then nothing has changed. This goes for all below.
    pub async fn switchover(&self, to: Option<NodeName>) -> Reply {
        self.ask(|reply| Order::Switchover { to, reply }).await
    }

    /// Another primary at once, even if commits are lost by it.
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn failover(&self, to: NodeName) -> Reply {
        self.ask(|reply| Order::Failover { to, reply }).await
    }

    /// No election until it is resumed; a crashed primary is restarted.
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn pause(&self, paused: bool) -> Reply {
        self.ask(|reply| Order::Pause { paused, reply }).await
    }

    /// A replica made anew from the primary.
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn reinit(&self, node: NodeName) -> Reply {
        self.ask(|reply| Order::Reinit { node, reply }).await
    }

    /// Every server is given what `spec` says: settings, who may come in, and how the cluster is run. On many hosts the
    /// settings go to all of them. Check them first: [`ClusterSpec::check_settings`].
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn reload(&self, spec: ClusterSpec) -> Reply {
        self.ask(|reply| Order::Reload { spec: Box::new(spec), reply }).await
    }

    /// As [`Handle::reload`], but for the nodes alone: for who listens beside an agent that has been told everything.
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn turn_over(&self, spec: ClusterSpec) -> Reply {
        self.ask(|reply| Order::TurnOver { spec: Box::new(spec), reply }).await
    }

    /// A server stopped and started again; answers when that has begun. The primary waits until no client has a
    /// transaction open, and stays the primary.
    ///
    /// # Errors
    /// See [`Handle::switchover`].
    pub async fn restart(&self, node: NodeName) -> Reply {
        self.ask(|reply| Order::Restart { node, reply }).await
    }

    async fn ask(&self, order: impl FnOnce(oneshot::Sender<Reply>) -> Order) -> Reply {
        let (reply, answer) = oneshot::channel();
        let ended = |_| "the cluster's supervisor has ended".to_owned();
        self.orders.send(order(reply)).await.map_err(|error| ended(error.to_string()))?;
        answer.await.map_err(|error| ended(error.to_string()))?
    }
}
