//! A proxy as a whole: listeners and logins on the runtime, workers on threads of their own, and what goes between.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use millrace_base::{Clock, SystemClock, Tasks};
use millrace_contract::topology::TopologyWatch;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Connected, Throttle},
    admin,
    backends::{Access, Backends, Node},
    connect, login,
    options::Options,
    pool::{Counts, PoolKey, PoolShared},
    users::Users,
    view::WorkerView,
    worker::{Command, Inbox, NewClient, NewServer, OpenError, Request, Seed, WorkerHandle},
};

/// Why a proxy could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the proxy cannot use its listener")]
    Listen(#[source] io::Error),
    #[error("the proxy cannot start its workers")]
    Workers(#[source] io::Error),
    #[error("a worker of the proxy has stopped")]
    WorkerStopped,
}

/// Why a database is not paused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    #[error("no client has connected to a database \"{0}\"")]
    Unknown(String),
    #[error("it was resumed before the pause was complete")]
    Resumed,
}

/// What the console puts behind the name of a database's read-only part.
pub(crate) const READ_ONLY_SUFFIX: &str = ":ro";
/// A worker answers between two turns of its loop.
const INSPECT_MAX: Duration = Duration::from_secs(2);

/// What logins and workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) users: Users,
    pub(crate) throttle: Throttle,
    pub(crate) connected: Connected,
    pub(crate) greetings: Greetings,
    pub(crate) clock: Arc<dyn Clock>,
    backends: watch::Receiver<Arc<Backends>>,
    workers: Vec<WorkerHandle>,
    next: AtomicUsize,
    pools: Mutex<HashMap<PoolKey, Arc<PoolShared>>>,
    lately: Mutex<Lately>,
}

/// Counts by the console's name of a database.
type Totals = BTreeMap<String, Counts>;

/// What happened in the last whole period, for averages.
#[derive(Debug, Default)]
struct Lately {
    /// Totals at the end of it, and when that was.
    totals: Totals,
    ended: Duration,
    counts: Totals,
    length: Duration,
}

/// Settings by name, as they were written or reported.
pub(crate) type Pairs = Vec<(String, String)>;
type Greeted = (PoolKey, Pairs);

/// What servers said about their settings, by pool and by what was wished.
#[derive(Debug, Default)]
pub(crate) struct Greetings(Mutex<HashMap<Greeted, Arc<Pairs>>>);

impl Greetings {
    const MAX: usize = 1_000;

    pub(crate) fn get(&self, asked: &Greeted) -> Option<Arc<Pairs>> {
        lock(&self.0).get(asked).cloned()
    }

    pub(crate) fn put(&self, asked: Greeted, statuses: Arc<Pairs>) {
        let mut known = lock(&self.0);
        if known.len() >= Self::MAX {
            known.clear();
        }
        known.insert(asked, statuses);
    }

    fn clear(&self) {
        lock(&self.0).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing panics while one of these is held
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Leads a cancel request to the worker that the process number names, and waits until the server has been asked:
    /// as long as its connection is open, a client sends nothing that the request could hit instead.
    pub(crate) async fn cancel(&self, pid: i32, secret: i32) {
        let Ok(pid) = usize::try_from(pid) else { return };
        let (Some(worker), Some(client)) = (self.workers.get(pid & 63), (pid >> 6).checked_sub(1)) else { return };
        let (done, mut asked) = mpsc::channel(1);
        worker.send(Inbox::Cancel { client, secret, done });
        // nothing is sent: it ends when the sender is dropped
        let _none = asked.recv().await;
    }

    /// Gives a client to the next worker.
    pub(crate) fn hand_over(&self, client: Box<NewClient>) {
        let peer = client.peer;
        if self.next_worker().is_none_or(|worker| !worker.send(Inbox::Client(client))) {
            tracing::error!(%peer, "a client is lost: its worker is overwhelmed");
        }
    }

    pub(crate) fn give_server(&self, server: NewServer) {
        if let Some(worker) = self.next_worker() {
            worker.send(Inbox::Server(Box::new(server)));
        }
    }

    fn next_worker(&self) -> Option<&WorkerHandle> {
        self.workers.get(self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1))
    }

    /// The counts that all workers' parts of a pool have in common.
    pub(crate) fn pool(&self, key: &PoolKey) -> Arc<PoolShared> {
        lock(&self.pools).entry(key.clone()).or_default().clone()
    }

    /// A node for a new connection; while there is none, this waits.
    pub(crate) async fn node_for(&self, access: Access) -> Result<Node, OpenError> {
        let mut backends = self.backends.clone();
        let chosen = backends.wait_for(|backends| backends.choose(access, |_| 0).is_some()).await;
        chosen.ok().and_then(|backends| backends.choose(access, |_| 0)).ok_or_else(|| OpenError {
            code: "57P03".to_owned(),
            message: "the proxy knows no server for this".to_owned(),
            lasting: false,
        })
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    listeners: Vec<(TcpListener, Access)>,
    requests: mpsc::Receiver<Request>,
    topology: TopologyWatch,
    backends: watch::Sender<Arc<Backends>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Cancelled when any worker has ended.
    ended: CancellationToken,
}

/// What can be asked of a running proxy, from anywhere.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts the workers; nothing is served before [`Proxy::run`]. The listeners, each with what clients come to it
    /// for, must not block.
    ///
    /// # Errors
    /// If a listener is none, or a thread cannot be started.
    pub fn start(
        listening: impl IntoIterator<Item = (std::net::TcpListener, Access)>,
        options: Options,
        topology: TopologyWatch,
    ) -> Result<Self, ProxyError> {
        let mut listeners = Vec::new();
        for (listener, access) in listening {
            listeners.push((TcpListener::from_std(listener).map_err(ProxyError::Listen)?, access));
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (control, requests) = mpsc::channel(1_024);
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        let ended = CancellationToken::new();
        for index in 0..options.workers.clamp(1, 64) {
            let (worker, handle) = Seed::new(index, control.clone(), clock.clone()).map_err(ProxyError::Workers)?;
            let ended = ended.clone().drop_guard();
            let thread = std::thread::Builder::new().name(format!("proxy-{index}")).spawn(move || {
                // says so however it ends, a panic included
                let _ended = ended;
                worker.run()
            });
            threads.push(thread.map_err(ProxyError::Workers)?);
            workers.push(handle);
        }
        let begin = Arc::new(Backends::new(topology.borrow().clone()));
        let (backends, watched) = watch::channel(begin);
        let users = Users::new(&options.secrets, options.auth_query.clone(), watched.clone(), clock.clone());
        let shared = Arc::new(Shared {
            options,
            users,
            throttle: Throttle::default(),
            connected: Connected::default(),
            greetings: Greetings::default(),
            clock,
            backends: watched,
            workers,
            next: AtomicUsize::new(0),
            pools: Mutex::default(),
            lately: Mutex::default(),
        });
        Ok(Self { shared, listeners, requests, topology, backends, threads, ended })
    }

    /// For operating it while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { shared: self.shared.clone() }
    }

    /// Where it listens: of use if a port was 0.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|(listener, _)| listener.local_addr().ok()).collect()
    }

    /// Serves until `token` is cancelled. Clients are told, servers are left in order.
    ///
    /// # Errors
    /// If a listener or a worker fails for good.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), ProxyError> {
        let mut tasks = Tasks::new(token.child_token());
        for (listener, access) in std::mem::take(&mut self.listeners) {
            tasks.spawn("proxy-listener", accept(self.shared.clone(), listener, access, tasks.token().clone()));
        }
        tasks.spawn("proxy-servers", serve_requests(self.shared.clone(), self.requests, tasks.token().clone()));
        tasks.spawn("proxy-averages", average(self.shared.clone(), tasks.token().clone()));
        tasks.spawn("proxy-topology", follow(self.shared.clone(), self.topology, self.backends, tasks.token().clone()));
        let ended = tokio::select! {
            biased;
            () = token.cancelled() => Ok(()),
            () = self.ended.cancelled() => Err(ProxyError::WorkerStopped),
            // join_next loses nothing when dropped
            ended = tasks.join_next() => match ended {
                Some(Err(error)) => {
                    tracing::error!(%error, "the proxy stops");
                    Err(ProxyError::WorkerStopped)
                }
                _ => Ok(()),
            },
        };
        for error in tasks.shutdown(Duration::from_secs(5)).await {
            tracing::warn!(%error, "a task of the proxy failed");
        }
        for worker in &self.shared.workers {
            worker.send(Inbox::Stop);
        }
        let threads = self.threads;
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| matches!(thread.join(), Ok(Ok(())))));
        match (ended, joined.await) {
            (Ok(()), Ok(true)) => Ok(()),
            (Err(error), _) => Err(error),
            _ => Err(ProxyError::WorkerStopped),
        }
    }
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
            if worker.send(Inbox::Inspect { pools_alone, answer: sender }) {
                match tokio::time::timeout(INSPECT_MAX, answer).await {
                    Ok(answered) => views.extend(answered),
                    Err(_) => tracing::error!("a worker of the proxy does not answer"),
                }
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
        let database = database.map(|name| name.strip_suffix(READ_ONLY_SUFFIX).unwrap_or(name));
        if let Some(name) = database
            && !self.inspect(true).await.iter().flat_map(|v| &v.pools).any(|pool| *pool.key.database == *name)
        {
            return Err(PauseError::Unknown(name.to_owned()));
        }
        let (done, mut all) = mpsc::channel(1);
        for worker in &self.shared.workers {
            worker.send(Inbox::Command(Command::Pause { database: database.map(Into::into), done: done.clone() }));
        }
        drop(done);
        // ends when the last worker has dropped its sender
        match all.recv().await {
            None => Ok(()),
            Some(()) => Err(PauseError::Resumed),
        }
    }

    /// Lets statements go on.
    pub fn resume(&self, database: Option<&str>) {
        let database = database.map(|name| name.strip_suffix(READ_ONLY_SUFFIX).unwrap_or(name));
        self.command(&Command::Resume { database: database.map(Into::into) });
    }

    /// Replaces the connections to servers, each when its transaction ends.
    pub fn reconnect(&self, database: Option<&str>) {
        let database = database.map(|name| name.strip_suffix(READ_ONLY_SUFFIX).unwrap_or(name));
        self.command(&Command::Reconnect { database: database.map(Into::into) });
    }

    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How it was told to be.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
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

    fn command(&self, command: &Command) {
        for worker in &self.shared.workers {
            worker.send(Inbox::Command(command.clone()));
        }
    }
}

/// As PgBouncer's `stats_period`.
const PERIOD: Duration = Duration::from_secs(60);

/// Keeps what averages are made from.
async fn average(shared: Arc<Shared>, token: CancellationToken) -> Result<(), std::convert::Infallible> {
    let handle = Handle::of(shared.clone());
    loop {
        // neither loses anything when dropped
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(PERIOD) => {}
        }
        let Some(pools) = handle.pools().await else { continue };
        let totals = admin::by_database(&pools);
        let now = shared.clock.monotonic();
        let mut lately = lock(&shared.lately);
        let since = |(name, counts): (&String, &Counts)| {
            (name.clone(), counts.since(&lately.totals.get(name).copied().unwrap_or_default()))
        };
        let counts = totals.iter().map(since).collect();
        *lately = Lately { counts, length: now.saturating_sub(lately.ended), totals, ended: now };
    }
}

/// Logins at the same time: those that take longer than others are not to keep all others out.
const LOGINS_MAX: usize = 2_000;

async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    access: Access,
    token: CancellationToken,
) -> Result<(), ProxyError> {
    let mut tasks = Tasks::new(token.clone());
    let (mut logins, mut failures) = (0, 0u64);
    loop {
        // accept and join_next lose nothing when dropped
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            Some(ended) = tasks.join_next() => {
                logins -= 1;
                if let Err(error) = ended {
                    tracing::error!(%error, "a login ended abnormally");
                }
            }
            accepted = listener.accept(), if logins < LOGINS_MAX => match accepted {
                Ok((socket, peer)) => {
                    failures = 0;
                    logins += 1;
                    let shared = shared.clone();
                    tasks.spawn("proxy-login", async move {
                        login::serve(shared, socket, peer, access).await;
                        Ok::<_, std::convert::Infallible>(())
                    });
                }
                Err(error) => {
                    failures += 1;
                    // out of file descriptors, or a client that has gone: others must have time to end
                    if failures == 1 {
                        tracing::error!(%error, "the proxy cannot accept connections for now");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Opens connections and sends cancel requests for the workers.
async fn serve_requests(
    shared: Arc<Shared>,
    mut requests: mpsc::Receiver<Request>,
    token: CancellationToken,
) -> Result<(), ProxyError> {
    let mut tasks = Tasks::new(token.clone());
    loop {
        // recv and join_next lose nothing when dropped
        let request = tokio::select! {
            () = token.cancelled() => return Ok(()),
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "opening a connection ended abnormally");
                }
                continue;
            }
            request = requests.recv() => match request {
                Some(request) => request,
                None => return Err(ProxyError::WorkerStopped),
            },
        };
        let shared = shared.clone();
        tasks.spawn("proxy-server", async move {
            let (worker, answer) = match request {
                Request::Open { worker, pool, node } => (worker, open(&shared, pool, node).await),
                Request::Cancel { worker, server, serial, node, key, done: _done } => {
                    let tls = shared.options.server_tls.clone();
                    if let Err(error) = connect::cancel(&node, key, tls, shared.options.connect).await {
                        tracing::warn!(%error, node = %node.name, "a cancel request did not reach the server");
                    }
                    (worker, Inbox::Cancelled { server, serial })
                }
            };
            if let Some(worker) = shared.workers.get(worker) {
                worker.send(answer);
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }
}

async fn open(shared: &Shared, pool: PoolKey, node: Node) -> Inbox {
    let credential = shared.users.credential(&pool.user);
    let login = (&*pool.user, &*pool.database, credential.as_ref());
    let tls = shared.options.server_tls.clone();
    match connect::open(&node, login, &[], tls, shared.options.connect).await {
        Ok(opened) => Inbox::Server(Box::new(NewServer {
            socket: opened.parts.socket,
            tls: opened.parts.tls,
            limits: shared.options.limits(&pool),
            shared: shared.pool(&pool),
            pool,
            node: Arc::new(node),
            key: opened.key,
            asked_for: true,
        })),
        Err(error) => {
            tracing::warn!(node = %node.name, database = %pool.database, user = %pool.user, code = error.code, "no connection to a server: {}", error.message);
            Inbox::OpenFailed { pool, error }
        }
    }
}

/// Tells everyone of each change of the topology.
async fn follow(
    shared: Arc<Shared>,
    mut topology: TopologyWatch,
    backends: watch::Sender<Arc<Backends>>,
    token: CancellationToken,
) -> Result<(), ProxyError> {
    loop {
        let now = Arc::new(Backends::new(topology.borrow_and_update().clone()));
        // another server may have other settings
        shared.greetings.clear();
        for worker in &shared.workers {
            worker.send(Inbox::Backends(now.clone()));
        }
        // there is always a receiver: `shared` has one
        let _received = backends.send(now);
        // changed loses nothing when dropped
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            changed = topology.changed() => if changed.is_err() {
                // whoever told us is gone: what was told last holds
                token.cancelled().await;
                return Ok(());
            },
        }
    }
}
