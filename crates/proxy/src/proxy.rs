//! A proxy as a whole: listeners and logins on the runtime, workers on threads of their own, and what goes between.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use millrace_base::{Clock, SystemClock, Tasks};
use millrace_contract::topology::TopologyWatch;
use tokio::{
    net::TcpListener,
    sync::{Mutex as AsyncMutex, Notify, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Connected, Throttle},
    admin,
    backends::{Access, Backends, Node},
    catalogs, connect,
    handle::Handle,
    inbox::{Orders, Room, WorkerHandle},
    login,
    options::Options,
    pause::Gates,
    pool::{Counts, PoolKey, PoolShared},
    reload::Reread,
    users::Users,
    worker::{Inbox, NewServer, OpenError, Request, Seed},
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

/// Of a worker's thread: what it needs does not grow with its clients.
const STACK_BYTES: usize = 2 << 20;
/// What the console puts behind the name of a database's read-only part.
pub(crate) const READ_ONLY_SUFFIX: &str = ":ro";
/// A client that has logged in is told after this that its worker takes nobody.
const ROOM_MAX: Duration = Duration::from_secs(5);

/// What logins and workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    options: RwLock<Arc<Options>>,
    /// Set by who knows where the configuration is.
    pub(crate) reread: OnceLock<Reread>,
    /// Reloads come one after the other.
    pub(crate) reloading: AsyncMutex<()>,
    pub(crate) users: Users,
    pub(crate) throttle: Throttle,
    pub(crate) connected: Connected,
    pub(crate) greetings: Greetings,
    pub(crate) gates: watch::Sender<Gates>,
    pub(crate) clock: Arc<dyn Clock>,
    backends: watch::Receiver<Arc<Backends>>,
    pub(crate) workers: Vec<WorkerHandle>,
    next: AtomicUsize,
    pools: Mutex<HashMap<PoolKey, Arc<PoolShared>>>,
    /// A pool was made that was not there before.
    pub(crate) pool_made: Notify,
    pub(crate) lately: Mutex<Lately>,
}

/// Counts by the console's name of a database.
pub(crate) type Totals = BTreeMap<String, Counts>;

/// What happened in the last whole period, for averages.
#[derive(Debug, Default)]
pub(crate) struct Lately {
    /// Totals at the end of it, and when that was.
    totals: Totals,
    ended: Duration,
    pub(crate) counts: Totals,
    pub(crate) length: Duration,
}

/// Settings by name, as they were written or reported.
pub(crate) type Pairs = Vec<(String, String)>;
/// With how often the database had been killed when it was asked.
type Greeted = (PoolKey, u64, Pairs);

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

    /// Forgets a database, or all.
    pub(crate) fn forget(&self, database: Option<&str>) {
        lock(&self.0).retain(|(pool, ..), _| database.is_some_and(|database| *pool.database != *database));
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing panics while one of these is held
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// How the proxy is to be now.
    pub(crate) fn options(&self) -> Arc<Options> {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another way to be: for logins from now on, and for the workers as soon as they hear of it.
    pub(crate) fn adopt(&self, options: Options) {
        self.users.adopt(&options.secrets, options.auth_query.clone());
        // begun with the workers, and no later
        let options = Arc::new(Options { routing: self.options().routing.clone(), ..options });
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options.clone();
        self.order(|orders| orders.options = Some(options.clone()));
    }

    /// Leads a cancel request to the worker that the process number names, and waits until the server has been asked:
    /// as long as its connection is open, a client sends nothing that the request could hit instead.
    pub(crate) async fn cancel(&self, pid: i32, secret: i32) {
        let Some((worker, client)) = self.place_of(pid) else { return };
        let (done, mut asked) = mpsc::channel(1);
        worker.send(Inbox::Cancel { client, secret, done }).await;
        // nothing is sent: it ends when the sender is dropped
        let _none = asked.recv().await;
    }

    /// The worker and the place of the client that a process number stands for.
    pub(crate) fn place_of(&self, pid: i32) -> Option<(&WorkerHandle, usize)> {
        let pid = usize::try_from(pid).ok()?;
        self.workers.get(pid & 63).zip((pid >> 6).checked_sub(1))
    }

    /// A place for one more client at the next worker; none if that is overwhelmed.
    pub(crate) async fn room(&self) -> Option<Room<'_>> {
        self.next_worker()?.room(ROOM_MAX).await
    }

    /// Gives a connection that a login has made to the next worker.
    pub(crate) fn give_server(&self, server: NewServer) {
        if let Some(worker) = self.next_worker() {
            worker.offer(server);
        }
    }

    pub(crate) fn order(&self, say: impl Fn(&mut Orders)) {
        self.workers.iter().for_each(|worker| worker.order(&say));
    }

    fn next_worker(&self) -> Option<&WorkerHandle> {
        self.workers.get(self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1))
    }

    /// The counts that all workers' parts of a pool have in common.
    pub(crate) fn pool(&self, key: &PoolKey) -> Arc<PoolShared> {
        let mut pools = lock(&self.pools);
        if let Some(known) = pools.get(key) {
            return known.clone();
        }
        self.pool_made.notify_one();
        let sibling = pools.iter().find(|(other, _)| other.database == key.database);
        let definitions = sibling.map(|(_, shared)| shared.definitions.clone()).unwrap_or_default();
        pools.entry(key.clone()).or_insert_with(|| Arc::new(PoolShared::new(definitions, self.workers.len()))).clone()
    }

    /// The databases that clients have come for.
    pub(crate) fn databases(&self) -> BTreeSet<Arc<str>> {
        lock(&self.pools).keys().map(|key| key.database.clone()).collect()
    }

    /// The node for a new connection, if there is one now.
    pub(crate) fn backend(&self, access: Access) -> Option<Node> {
        self.backends.borrow().choose(access, |_| 0)
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
            let replay = options.routing.as_ref().map(|routing| routing.replay.clone());
            let (worker, handle) =
                Seed::new(index, control.clone(), clock.clone(), replay).map_err(ProxyError::Workers)?;
            let ended = ended.clone().drop_guard();
            let thread =
                std::thread::Builder::new().name(format!("proxy-{index}")).stack_size(STACK_BYTES).spawn(move || {
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
            options: RwLock::new(Arc::new(options)),
            reread: OnceLock::new(),
            reloading: AsyncMutex::new(()),
            users,
            throttle: Throttle::default(),
            connected: Connected::default(),
            greetings: Greetings::default(),
            gates: watch::Sender::default(),
            clock,
            backends: watched,
            workers,
            next: AtomicUsize::new(0),
            pools: Mutex::default(),
            pool_made: Notify::new(),
            lately: Mutex::default(),
        });
        Ok(Self { shared, listeners, requests, topology, backends, threads, ended })
    }

    /// For operating it while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::of(self.shared.clone())
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
        if let Some(routing) = self.shared.options().routing.clone() {
            tasks.spawn("proxy-catalogs", catalogs::follow(self.shared.clone(), routing, tasks.token().clone()));
        }
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
        self.shared.order(|orders| orders.stop = true);
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
            let mut asked = None;
            let (worker, answer) = match request {
                Request::Open { worker, pool, node } => (worker, open(&shared, pool, node).await),
                Request::Cancel { worker, server, serial, node, key, done } => {
                    let tls = shared.options().server_tls.clone();
                    if let Err(error) = connect::cancel(&node, key, tls, shared.options().connect).await {
                        tracing::warn!(%error, node = %node.name, "a cancel request did not reach the server");
                    }
                    asked = done;
                    (worker, Inbox::Cancelled { server, serial })
                }
            };
            if let Some(worker) = shared.workers.get(worker) {
                worker.send(answer).await;
            }
            // the client hears of it when the server can be asked again
            drop(asked);
            Ok::<_, std::convert::Infallible>(())
        });
    }
}

async fn open(shared: &Shared, pool: PoolKey, node: Node) -> Inbox {
    let credential = shared.users.credential(&pool.user);
    let login = (&*pool.user, &*pool.database, credential.as_ref());
    let tls = shared.options().server_tls.clone();
    match connect::open(&node, login, &[], tls, shared.options().connect).await {
        Ok(opened) => Inbox::Server(Box::new(NewServer {
            socket: opened.parts.socket,
            tls: opened.parts.tls,
            limits: shared.options().limits(&pool),
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
        shared.order(|orders| orders.backends = Some(now.clone()));
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
