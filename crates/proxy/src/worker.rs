//! One thread with its own clients and its own servers: an edge-triggered loop that never waits but for events.
//!
//! Invariants: nothing here blocks, and nothing in a turn of the loop takes a lock or wakes another thread, except where
//! a connection is opened, cancelled or handed over. Logging in, TLS handshakes and opening connections are done
//! elsewhere ([`crate::login`], [`crate::connect`]) and arrive as [`Inbox`] messages.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use millrace_base::Clock;
use millrace_contract::topology::Replay;
use mio::{Events, Poll, Token, Waker, event::Event};
use slab::Slab;
use tokio::sync::{mpsc as control, oneshot};

use crate::{
    backends::{Backends, Fit, Node},
    catalog::Catalog,
    inbox::{INBOX_MAX, OrderBook, WorkerHandle},
    link::{Link, Session},
    message::{self, Severity},
    options::Options,
    pause::{Kills, Pauses},
    peer::{CancelKey, Client, ClientState, Line, Server},
    pool::{Pool, PoolKey, PoolLimits, PoolShared},
    route::{Route, Texts},
    settings::Settings,
    statements::Statements,
    transport::Transport,
    view::WorkerView,
    walk::WHOLE_BYTES_MAX,
};

/// What reaches a worker from outside, beyond its orders ([`crate::inbox`]).
#[derive(Debug)]
pub(crate) enum Inbox {
    /// A client that has logged in.
    Client(Box<NewClient>),
    /// A connection that was asked for, or that a login made.
    Server(Box<NewServer>),
    /// A connection that was asked for and could not be had.
    OpenFailed { pool: PoolKey, error: OpenError },
    /// A client wants its statement cancelled; `done` is dropped when the server has been asked.
    Cancel { client: usize, secret: i32, done: control::Sender<()> },
    /// A cancel request has reached the server and done whatever it does.
    Cancelled { server: usize, serial: u64 },
    /// All that it holds, or the pools alone.
    Inspect { pools_alone: bool, answer: oneshot::Sender<WorkerView> },
}

/// What an operator asks for; for one database, or all.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// New statements wait; `done` is dropped when no server is in use, and told if they go on before.
    Pause {
        database: Option<Arc<str>>,
        done: control::Sender<()>,
    },
    Resume {
        database: Option<Arc<str>>,
    },
    /// Connections are replaced when their transactions end.
    Reconnect {
        database: Option<Arc<str>>,
    },
    /// Ends all clients and servers at once, and holds back those who come; `done` is dropped then.
    Kill {
        database: Option<Arc<str>>,
        done: control::Sender<()>,
    },
    /// Ends one client; `done` is told if there is one.
    KillClient {
        client: usize,
        done: control::Sender<()>,
    },
    /// Ends clients that do not hear any more, by where they come from.
    EndCutOff {
        peers: Arc<BTreeSet<SocketAddr>>,
    },
    /// `done` is dropped when all connections that are to be replaced have been.
    WaitClose {
        database: Option<Arc<str>>,
        done: control::Sender<()>,
    },
}

/// A client that has logged in, on its way to its worker.
#[derive(Debug)]
pub(crate) struct NewClient {
    /// Set when the conversation of the login is over.
    pub(crate) socket: Option<std::net::TcpStream>,
    pub(crate) tls: Option<rustls::Connection>,
    pub(crate) peer: SocketAddr,
    pub(crate) pool: PoolKey,
    pub(crate) limits: PoolLimits,
    pub(crate) shared: Arc<PoolShared>,
    /// The replicas' pool, if what the client reads may come from there.
    pub(crate) readers: Option<(PoolKey, Arc<PoolShared>)>,
    pub(crate) settings: Settings,
    /// All that a server says after a login, but for the key and ReadyForQuery.
    pub(crate) greeting: Vec<u8>,
    /// How often its database had been killed when a server was asked for it.
    pub(crate) kills: u64,
    /// What the client has sent already.
    pub(crate) early: Vec<u8>,
    /// Given back when the client leaves.
    pub(crate) permit: Permit,
}

/// The right to be connected; counts clients while it lives.
#[derive(Debug)]
pub(crate) struct Permit(pub(crate) Vec<Arc<std::sync::atomic::AtomicUsize>>);

impl Drop for Permit {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// A connection to a server that has said ReadyForQuery.
#[derive(Debug)]
pub(crate) struct NewServer {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) tls: Option<rustls::Connection>,
    pub(crate) pool: PoolKey,
    pub(crate) limits: PoolLimits,
    pub(crate) shared: Arc<PoolShared>,
    pub(crate) node: Arc<Node>,
    pub(crate) key: CancelKey,
    /// The worker asked for it.
    pub(crate) asked_for: bool,
}

/// Why a connection could not be had.
#[derive(Debug, Clone)]
pub(crate) struct OpenError {
    /// SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    /// Trying again does not help: those who wait are told at once.
    pub(crate) lasting: bool,
}

/// What a worker asks of the rest of the proxy.
#[derive(Debug)]
pub(crate) enum Request {
    Open {
        worker: usize,
        pool: PoolKey,
        node: Node,
    },
    Cancel {
        worker: usize,
        server: usize,
        serial: u64,
        node: Arc<Node>,
        key: CancelKey,
        /// Dropped when the server has been asked.
        done: Option<control::Sender<()>>,
    },
}

const WAKE: Token = Token(usize::MAX);
const EVENTS: usize = 1024;
/// What those are told whose database is killed.
pub(crate) const KILLED: (&str, &str) = ("57P01", "an operator has ended all connections to the database");
/// Deadlines are looked at so often.
const TICK: Duration = Duration::from_millis(250);

/// A worker, on its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) poll: Poll,
    inbox: control::Receiver<Inbox>,
    orders: OrderBook,
    pub(crate) control: control::Sender<Request>,
    clock: Arc<dyn Clock>,
    pub(crate) now: Duration,
    pub(crate) clients: Slab<Client>,
    pub(crate) servers: Slab<Server>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) pool_index: HashMap<PoolKey, usize>,
    /// One for each database.
    pub(crate) statements: Vec<Statements>,
    pub(crate) backends: Arc<Backends>,
    /// Room for what goes out, used again and again.
    pub(crate) out: Vec<u8>,
    pub(crate) replies: Vec<u8>,
    /// Clients (`false`) and servers (`true`) that are to be received from although no event tells so.
    pub(crate) again: VecDeque<(usize, bool)>,
    /// Servers without a client, for those who wait in their pools.
    pub(crate) freed: VecDeque<usize>,
    pub(crate) serial: u64,
    /// Who waits for a pause to be complete, and of which database; `None` is all.
    pub(crate) pausing: Vec<(Option<Arc<str>>, control::Sender<()>)>,
    pub(crate) pauses: Pauses,
    pub(crate) kills: Kills,
    /// Every node that there was a connection to; servers know theirs by its place here.
    node_names: Vec<String>,
    /// Room for counting by node.
    pub(crate) busy: Vec<u32>,
    pub(crate) replay: Option<Arc<Replay>>,
    /// How far those replicas are that take reads.
    pub(crate) replicas: Vec<Arc<AtomicU64>>,
    pub(crate) texts: Texts,
    catalogs: HashMap<Arc<str>, Arc<Catalog>>,
    /// Who waits for outdated connections to be gone.
    pub(crate) closing: Vec<(Option<Arc<str>>, control::Sender<()>)>,
    /// Since the first reload: what was handed over before it does not count.
    pub(crate) options: Option<Arc<Options>>,
}

/// A worker that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct Seed {
    index: usize,
    poll: Poll,
    inbox: control::Receiver<Inbox>,
    orders: OrderBook,
    control: control::Sender<Request>,
    clock: Arc<dyn Clock>,
    replay: Option<Arc<Replay>>,
}

impl Seed {
    /// A worker to be, and its handle.
    ///
    /// # Errors
    /// If the system gives no more pollers.
    pub(crate) fn new(
        index: usize,
        control: control::Sender<Request>,
        clock: Arc<dyn Clock>,
        replay: Option<Arc<Replay>>,
    ) -> io::Result<(Self, WorkerHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (sender, inbox) = control::channel(INBOX_MAX);
        let orders = OrderBook::default();
        let handle = WorkerHandle::new(sender, &orders, waker);
        Ok((Self { index, poll, inbox, orders, control, clock, replay }, handle))
    }

    /// Runs the worker on this thread until it is told to stop.
    ///
    /// # Errors
    /// If the poller fails, which it does not while the process has memory.
    pub(crate) fn run(self) -> io::Result<()> {
        let now = self.clock.monotonic();
        let worker = Worker {
            index: self.index,
            poll: self.poll,
            inbox: self.inbox,
            orders: self.orders,
            control: self.control,
            clock: self.clock,
            now,
            clients: Slab::new(),
            servers: Slab::new(),
            pools: Vec::new(),
            pool_index: HashMap::new(),
            statements: Vec::new(),
            backends: Arc::default(),
            out: Vec::new(),
            replies: Vec::new(),
            again: VecDeque::new(),
            freed: VecDeque::new(),
            serial: 0,
            pausing: Vec::new(),
            pauses: Pauses::default(),
            kills: Kills::default(),
            node_names: Vec::new(),
            busy: Vec::new(),
            replay: self.replay,
            replicas: Vec::new(),
            texts: Texts::default(),
            catalogs: HashMap::new(),
            closing: Vec::new(),
            options: None,
        };
        worker.run()
    }
}

impl Worker {
    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; WHOLE_BYTES_MAX];
        let mut events = Events::with_capacity(EVENTS);
        let mut next_tick = self.now + TICK;
        loop {
            let wait = if self.again.is_empty() { next_tick.saturating_sub(self.now) } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            self.now = self.clock.monotonic();
            let mut woken = false;
            for event in &events {
                match event.token() {
                    WAKE => woken = true,
                    Token(at) if at & 1 == 0 => self.client_event(at >> 1, event, &mut buffer),
                    Token(at) => self.server_event(at >> 1, event, &mut buffer),
                }
                self.hand_on();
            }
            // last, so that no new connection gets an event of one that was closed in this turn
            if (woken || self.now >= next_tick) && !self.take_in() {
                self.stop();
                return Ok(());
            }
            self.hand_on();
            for _ in 0..self.again.len() {
                match self.again.pop_front() {
                    Some((client, false)) => self.client_readable(client, &mut buffer),
                    Some((server, true)) => self.server_readable(server, &mut buffer),
                    None => break,
                }
                self.hand_on();
            }
            if self.now >= next_tick {
                next_tick = self.now + TICK;
                self.tick();
                self.hand_on();
            }
        }
    }

    /// Carries out orders and takes messages in; whether the worker is to go on.
    fn take_in(&mut self) -> bool {
        let orders = self.orders.take();
        if let Some(backends) = orders.backends {
            self.follow(backends);
        }
        if let Some(options) = orders.options {
            self.adapt(options);
        }
        for (database, catalog) in orders.catalogs {
            for pool in self.pools.iter_mut().filter(|pool| pool.key.database == database) {
                pool.catalog = Some(catalog.clone());
            }
            self.catalogs.insert(database, catalog);
        }
        for command in orders.commands {
            self.command(command);
        }
        if orders.stop {
            return false;
        }
        loop {
            match self.inbox.try_recv() {
                Ok(message) => {
                    self.handle(message);
                    self.hand_on();
                }
                Err(control::error::TryRecvError::Empty) => return true,
                // nobody is left who could say it
                Err(control::error::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn client_event(&mut self, at: usize, event: &Event, buffer: &mut [u8]) {
        let Some(client) = self.clients.get_mut(at) else { return };
        client.line.hung_up |= event.is_read_closed();
        if event.is_writable() {
            self.client_writable(at);
        }
        if event.is_readable() || event.is_read_closed() {
            self.client_readable(at, buffer);
        }
    }

    fn server_event(&mut self, at: usize, event: &Event, buffer: &mut [u8]) {
        let Some(server) = self.servers.get_mut(at) else { return };
        server.line.hung_up |= event.is_read_closed();
        if event.is_writable() {
            self.server_writable(at);
        }
        if event.is_readable() || event.is_read_closed() {
            self.server_readable(at, buffer);
        }
    }

    fn handle(&mut self, message: Inbox) {
        match message {
            Inbox::Client(client) => self.adopt_client(*client),
            Inbox::Server(server) => self.adopt_server(*server),
            Inbox::OpenFailed { pool, error } => self.open_failed(&pool, &error),
            Inbox::Cancel { client, secret, done } => self.cancel(client, secret, done),
            Inbox::Cancelled { server, serial } => self.cancelled(server, serial),
            Inbox::Inspect { pools_alone, answer } => {
                // whoever asked may have given up
                let _gone = answer.send(self.view(pools_alone));
            }
        }
    }

    /// The worker's part of a pool.
    pub(crate) fn pool_of(&mut self, key: &PoolKey, limits: PoolLimits, shared: &Arc<PoolShared>) -> usize {
        if let Some(at) = self.pool_index.get(key) {
            return *at;
        }
        let limits = self.options.as_ref().map_or(limits, |options| options.limits(key));
        let sibling = self.pools.iter().find(|pool| pool.key.database == key.database).map(|pool| pool.statements);
        let statements = sibling.unwrap_or_else(|| {
            self.statements.push(Statements::new(shared.definitions.clone()));
            self.statements.len() - 1
        });
        let mut pool = Pool::new(key.clone(), limits, shared.clone(), statements);
        pool.paused = self.pauses.holds(&key.database);
        pool.catalog = self.catalogs.get(&key.database).cloned();
        self.pools.push(pool);
        self.pool_index.insert(key.clone(), self.pools.len() - 1);
        self.pools.len() - 1
    }

    fn adopt_client(&mut self, new: NewClient) {
        let pool = self.pool_of(&new.pool, new.limits, &new.shared);
        let mode = new.limits.mode;
        let Some(Ok(mut io)) = new.socket.map(|socket| Transport::new(socket, new.tls)) else { return };
        if new.kills < self.kills.of(&new.pool.database) {
            // it would be there already, had it been a moment faster
            let mut bytes = Vec::new();
            message::error(&mut bytes, Severity::Fatal, KILLED.0, KILLED.1, "");
            // it is closed either way
            let _gone = io.send(&bytes);
            return io.shutdown();
        }
        let readers = new.readers.map(|(key, shared)| self.pool_of(&key, new.limits, &shared));
        let route = readers.map(|readers| Route::new(pool, readers, self.round()));
        let secret = rand::random();
        let client = Client {
            line: Line::new(io),
            state: ClientState::Idle,
            pool,
            mode,
            secret,
            session: Session::new(self.shared_settings(new.settings)),
            route,
            cancelled: false,
            peer: new.peer,
            _permit: new.permit,
            since: self.now,
        };
        let at = self.clients.insert(client);
        let pid = self.client_pid(at);
        let Some(client) = self.clients.get_mut(at) else { return };
        let mut greeting = new.greeting;
        message::message(&mut greeting, b'K', |out| {
            out.extend_from_slice(&pid.to_be_bytes());
            out.extend_from_slice(&secret.to_be_bytes());
        });
        message::ready(&mut greeting, b'I');
        let begun = client.line.send(&greeting).and_then(|()| {
            client.line.stash = new.early;
            client.line.io.register(self.poll.registry(), Token(at << 1))
        });
        match begun {
            Ok(()) => self.resume_client(at),
            Err(_) => self.drop_client(at),
        }
    }

    /// Settings are the same for most clients: they share one copy.
    fn shared_settings(&self, settings: Settings) -> std::rc::Rc<Settings> {
        let known = self.clients.iter().take(64).find(|(_, client)| *client.session.startup == settings);
        known.map_or_else(|| settings.into(), |(_, client)| client.session.startup.clone())
    }

    /// The process number that a client is told: it leads a cancel request back here. Never 0, which drivers take for none.
    pub(crate) fn client_pid(&self, client: usize) -> i32 {
        i32::try_from(((client + 1) << 6) | (self.index & 63)).unwrap_or(i32::MAX)
    }

    /// How many nodes there were connections to.
    pub(crate) fn nodes(&self) -> usize {
        self.node_names.len()
    }

    fn adopt_server(&mut self, new: NewServer) {
        let at_pool = self.pool_of(&new.pool, new.limits, &new.shared);
        let replayed = self.round_of(&new.node);
        let node_at = self.node_names.iter().position(|name| *name == new.node.name).unwrap_or_else(|| {
            self.node_names.push(new.node.name.clone());
            self.node_names.len() - 1
        });
        let Some(pool) = self.pools.get_mut(at_pool) else { return };
        if new.asked_for {
            pool.opening = pool.opening.saturating_sub(1);
        }
        // the world may have changed while it was opened
        if pool.paused || self.backends.fit(pool.key.access, &new.node) == Fit::Cut {
            return pool.shared.give_back();
        }
        let Ok(io) = Transport::new(new.socket, new.tls) else { return pool.shared.give_back() };
        pool.owned += 1;
        pool.retry_at = Duration::ZERO;
        self.serial += 1;
        let server = Server {
            line: Line::new(io),
            link: Link::new(pool.limits.statements, pool.shared.definitions.clone()),
            pool: at_pool,
            client: None,
            replayed,
            node_at,
            node: new.node,
            key: new.key,
            serial: self.serial,
            opened: self.now,
            since: self.now,
            asked: self.now,
            began: self.now,
            generation: pool.generation,
            cancelling: false,
            free: false,
            retire: false,
        };
        let at = self.servers.insert(server);
        let registered = self.servers.get_mut(at).map(|s| s.line.io.register(self.poll.registry(), Token(at << 1 | 1)));
        match registered {
            Some(Ok(())) => self.server_free(at),
            _ => self.drop_server(at),
        }
    }

    fn open_failed(&mut self, key: &PoolKey, error: &OpenError) {
        const RETRY: Duration = Duration::from_millis(200);
        let Some(at) = self.pool_index.get(key).copied() else { return };
        let Some(pool) = self.pools.get_mut(at) else { return };
        pool.opening = pool.opening.saturating_sub(1);
        pool.shared.give_back();
        pool.retry_at = self.now + RETRY;
        self.leave_replicas(at);
        let Some(pool) = self.pools.get(at) else { return };
        if error.lasting && pool.owned == 0 {
            self.tell_waiting(at, error);
        }
        self.note_starving(at);
    }

    /// Opens as many connections as the pool wants and may have.
    pub(crate) fn open_more(&mut self, at: usize) {
        let (now, worker) = (self.now, self.index);
        loop {
            let Some(pool) = self.pools.get_mut(at) else { return };
            if !pool.wants_one_more(now) {
                return;
            }
            let access = pool.key.access;
            let load = |name: &str| self.servers.iter().filter(|(_, s)| s.pool == at && s.node.name == name).count();
            let node = self.backends.choose(access, load);
            let asked = node.is_some_and(|node| {
                self.control.try_send(Request::Open { worker, pool: pool.key.clone(), node }).is_ok()
            });
            if !asked {
                // no server now: the next topology or tick asks again
                pool.opening -= 1;
                pool.shared.give_back();
                return;
            }
        }
    }
}
