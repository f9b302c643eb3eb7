//! A running proxy in its operator's hands.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use millrace_base::sockets::Unanswered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    options::Options,
    proxy::{READ_ONLY_SUFFIX, Shared, Totals, lock},
    reload::{self, Reading, Reloaded, Reread},
    view::WorkerView,
    worker::{Command, Inbox},
};

/// A worker answers between two turns of its loop.
const INSPECT_MAX: Duration = Duration::from_secs(2);

/// Why a database is not paused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    #[error("no client has connected to a database \"{0}\"")]
    Unknown(String),
    #[error("it was resumed before the pause was complete")]
    Resumed,
}

/// What can be asked of a running proxy, from anywhere.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// What each worker holds now; nothing of one that does not answer.
    pub async fn view(&self) -> Vec<WorkerView> {
        self.inspect(false).await
    }

    async fn inspect(&self, pools_alone: bool) -> Vec<WorkerView> {
        let mut views = Vec::new();
        for worker in &self.shared.workers {
            let (sender, answer) = oneshot::channel();
            let asking = async {
                worker.send(Inbox::Inspect { pools_alone, answer: sender }).await;
                answer.await
            };
            match tokio::time::timeout(INSPECT_MAX, asking).await {
                Ok(answered) => views.extend(answered),
                Err(_) => tracing::error!("a worker of the proxy does not answer"),
            }
        }
        views
    }

    /// Holds back statements for a database, or all, and waits until no server is in use: clients that keep their
    /// connection are waited for until they leave.
    ///
    /// # Errors
    /// If nobody has connected to such a database, or if it is resumed before the pause is complete.
    pub async fn pause(&self, database: Option<&str>) -> Result<(), PauseError> {
        let database = self.known(database).await?;
        self.shared.gates.send_modify(|gates| gates.pauses.pause(database.as_ref()));
        let (done, mut all) = mpsc::channel(1);
        self.command(Command::Pause { database, done });
        // ends when the last worker has dropped its sender
        match all.recv().await {
            None => Ok(()),
            Some(()) => Err(PauseError::Resumed),
        }
    }

    /// Lets statements go on, and clients in that waited to log in.
    pub fn resume(&self, database: Option<&str>) {
        let database = named(database);
        self.shared.gates.send_modify(|gates| gates.pauses.resume(database.as_ref()));
        self.command(Command::Resume { database });
    }

    /// Replaces the connections to servers, each when its transaction ends.
    pub fn reconnect(&self, database: Option<&str>) {
        self.command(Command::Reconnect { database: named(database) });
    }

    /// Waits until the connections that are to be replaced have been.
    pub async fn wait_close(&self, database: Option<&str>) {
        let (done, mut all) = mpsc::channel(1);
        self.command(Command::WaitClose { database: named(database), done });
        // ends when the last worker has dropped its sender
        let _none = all.recv().await;
    }

    /// Ends all clients and servers of a database, or of all, at once: statements that run are cancelled. Those who
    /// come wait until it is resumed.
    ///
    /// # Errors
    /// If nobody has connected to such a database.
    pub async fn kill(&self, database: Option<&str>) -> Result<(), PauseError> {
        let database = self.known(database).await?;
        // whoever logs in waits: what is remembered from before does not count any more
        self.shared.gates.send_modify(|gates| {
            gates.pauses.pause(database.as_ref());
            gates.kills.kill(database.as_ref());
        });
        self.shared.greetings.forget(database.as_deref());
        let (done, mut all) = mpsc::channel(1);
        self.command(Command::Kill { database, done });
        // ends when the last worker has dropped its sender
        let _none = all.recv().await;
        Ok(())
    }

    /// Ends the client with this number, as [`crate::ClientView`] has it; whether there is one.
    pub async fn kill_client(&self, pid: i32) -> bool {
        let Some((worker, client)) = self.shared.place_of(pid) else { return false };
        let (done, mut told) = mpsc::channel(1);
        worker.order(|orders| orders.commands.push(Command::KillClient { client, done }));
        told.recv().await.is_some()
    }

    /// Ends clients that the network has taken away in the midst of an answer, until `token` is cancelled: whoever has a
    /// transaction open would keep its server and its locks for a quarter of an hour ([`millrace_base::sockets`]).
    /// `ports`: where the proxy listens.
    pub async fn end_cut_off(&self, ports: &[u16], token: CancellationToken) {
        let mut sockets = Unanswered::default();
        loop {
            let lasting = tokio::select! {
                lasting = sockets.next() => lasting,
                () = token.cancelled() => return,
            };
            let peers: BTreeSet<SocketAddr> =
                lasting.into_iter().filter(|(port, _)| ports.contains(port)).map(|(_, peer)| peer).collect();
            if !peers.is_empty() {
                self.command(Command::EndCutOff { peers: Arc::new(peers) });
            }
        }
    }

    /// Lets no new clients in to a database; those connected stay.
    pub fn disable(&self, database: &str) {
        self.shared.gates.send_modify(|gates| gates.disabled.extend(named(Some(database))));
    }

    /// Lets clients in again.
    pub fn enable(&self, database: &str) {
        let database = database.strip_suffix(READ_ONLY_SUFFIX).unwrap_or(database);
        self.shared.gates.send_modify(|gates| _ = gates.disabled.remove(database));
    }

    /// Databases that let no new clients in.
    #[must_use]
    pub fn disabled(&self) -> BTreeSet<Arc<str>> {
        self.shared.gates.borrow().disabled.clone()
    }

    /// A database that someone has connected to, or all.
    async fn known(&self, database: Option<&str>) -> Result<Option<Arc<str>>, PauseError> {
        let database = named(database);
        if let Some(name) = &database
            && !self.inspect(true).await.iter().flat_map(|v| &v.pools).any(|pool| pool.key.database == *name)
        {
            return Err(PauseError::Unknown(name.to_string()));
        }
        Ok(database)
    }

    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How it was told to be.
    #[must_use]
    pub fn options(&self) -> Arc<Options> {
        self.shared.options()
    }

    /// Makes the proxy be another way. Clients stay, and so do their transactions; pools shrink as connections
    /// become free. The number of workers stays as it is.
    pub fn reload(&self, mut options: Options) -> Reloaded {
        let now = self.shared.options();
        let reloaded = reload::compare(&now, &options);
        options.workers = now.workers;
        self.shared.adopt(options);
        tracing::info!(changed = ?reloaded.changed, waits = ?reloaded.waits, "proxy reloaded");
        reloaded
    }

    /// Says how the configuration is read anew. The first word holds.
    pub fn reread_with(&self, reread: impl Fn() -> Reading + Send + Sync + 'static) {
        // whoever comes later finds it set
        drop(self.shared.reread.set(Reread(Box::new(reread))));
    }

    /// Reads the configuration anew and reloads.
    ///
    /// # Errors
    /// If it cannot be read or is wrong: then nothing has changed.
    pub async fn reread(&self) -> Result<Reloaded, String> {
        let _one = self.shared.reloading.lock().await;
        let Some(reread) = self.shared.reread.get() else {
            return Err("this proxy has no configuration that could be read again".to_owned());
        };
        let read = (reread.0)().await?;
        let mut reloaded = self.reload(read.options);
        reloaded.waits.extend(read.waits);
        Ok(reloaded)
    }

    /// Counts by database in the last whole period, and how long that was.
    pub(crate) fn lately(&self) -> (Totals, Duration) {
        let lately = lock(&self.shared.lately);
        (lately.counts.clone(), lately.length)
    }

    /// The pools, each put together from the workers' parts; `None` if a worker does not answer.
    pub async fn pools(&self) -> Option<Vec<crate::PoolView>> {
        let views = self.inspect(true).await;
        (views.len() == self.shared.workers.len()).then(|| admin::merged(&views))
    }

    /// Clients connected, and logins failed since the start.
    #[must_use]
    pub fn logins(&self) -> (usize, u64) {
        (self.shared.connected.all(), self.shared.throttle.total())
    }

    fn command(&self, command: Command) {
        self.shared.order(|orders| orders.commands.push(command.clone()));
    }
}

/// A database as operators name it, with or without the mark of its read-only part.
fn named(database: Option<&str>) -> Option<Arc<str>> {
    database.map(|name| name.strip_suffix(READ_ONLY_SUFFIX).unwrap_or(name).into())
}
