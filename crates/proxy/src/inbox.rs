//! How a worker is reached: messages, for which there may be no room, and orders, which are never lost.
//!
//! Invariants: a message that cannot be handed over stays with its sender, who knows what to do about it; an order
//! needs no room, because the newest of its kind replaces the one before, and commands come from operators alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mio::Waker;
use tokio::sync::mpsc;

use crate::{
    backends::Backends,
    catalog::Catalog,
    options::Options,
    worker::{Command, Inbox, NewServer},
};

/// Messages that wait for a worker.
pub(crate) const INBOX_MAX: usize = 4_096;

/// What a worker is to know, however busy it is.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) backends: Option<Arc<Backends>>,
    pub(crate) options: Option<Arc<Options>>,
    /// What databases' functions and relations do.
    pub(crate) catalogs: HashMap<Arc<str>, Arc<Catalog>>,
    pub(crate) commands: Vec<Command>,
    pub(crate) stop: bool,
}

/// The worker's side of its orders.
#[derive(Debug, Default)]
pub(crate) struct OrderBook(Arc<Mutex<Orders>>);

impl OrderBook {
    /// What was ordered since the last time.
    pub(crate) fn take(&self) -> Orders {
        std::mem::take(&mut *lock(&self.0))
    }
}

fn lock(orders: &Mutex<Orders>) -> std::sync::MutexGuard<'_, Orders> {
    // nothing panics while it is held
    orders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handle of a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHandle {
    inbox: mpsc::Sender<Inbox>,
    /// Gone when the worker is: what nobody will carry out is not kept.
    orders: Weak<Mutex<Orders>>,
    waker: Arc<Waker>,
}

impl WorkerHandle {
    pub(crate) fn new(inbox: mpsc::Sender<Inbox>, orders: &OrderBook, waker: Arc<Waker>) -> Self {
        Self { inbox, orders: Arc::downgrade(&orders.0), waker }
    }

    /// Hands over a message, as soon as there is room. `false`: the worker has stopped.
    pub(crate) async fn send(&self, message: Inbox) -> bool {
        let sent = self.inbox.send(message).await.is_ok();
        self.wake();
        sent
    }

    /// Room for one message, if there is some within `max`.
    pub(crate) async fn room(&self, max: Duration) -> Option<Room<'_>> {
        let permit = tokio::time::timeout(max, self.inbox.reserve()).await.ok()?.ok()?;
        Some(Room { permit, worker: self })
    }

    /// Gives a connection that nobody asked for; without room it is closed, and its place in the pool given back.
    pub(crate) fn offer(&self, server: NewServer) {
        let shared = server.shared.clone();
        if self.inbox.try_send(Inbox::Server(Box::new(server))).is_err() {
            shared.give_back();
        }
        self.wake();
    }

    /// Tells the worker something that it must know.
    pub(crate) fn order(&self, say: impl FnOnce(&mut Orders)) {
        if let Some(orders) = self.orders.upgrade() {
            say(&mut lock(&orders));
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a proxy worker");
        }
    }
}

/// Room for one message.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    permit: mpsc::Permit<'a, Inbox>,
    worker: &'a WorkerHandle,
}

impl Room<'_> {
    pub(crate) fn fill(self, message: Inbox) {
        self.permit.send(message);
        self.worker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use millrace_base::SystemClock;
    use millrace_contract::status::NodeRole;

    use super::*;

    fn a_cancel() -> Inbox {
        Inbox::Cancel { client: 0, secret: 0, done: mpsc::channel(1).0 }
    }
    use crate::{
        backends::{Access, Node},
        peer::CancelKey,
        pool::{PoolKey, PoolLimits, PoolShared},
        worker::Seed,
    };

    /// A worker that takes nothing, with an inbox that has no room.
    fn stalled() -> (Seed, WorkerHandle) {
        let (control, _requests) = mpsc::channel(1);
        let (seed, handle) = Seed::new(0, control, Arc::new(SystemClock::new()), None).unwrap();
        while handle.inbox.try_send(a_cancel()).is_ok() {}
        (seed, handle)
    }

    fn server(shared: &Arc<PoolShared>) -> (TcpStream, NewServer) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
        ours.set_nonblocking(true).unwrap();
        let server = NewServer {
            socket: ours,
            tls: None,
            pool: PoolKey { database: "d".into(), user: "u".into(), access: Access::ReadWrite },
            limits: PoolLimits::default(),
            shared: shared.clone(),
            node: Arc::new(Node {
                name: "a".to_owned(),
                address,
                host: "localhost".to_owned(),
                role: NodeRole::Primary,
                epoch: 1,
            }),
            key: CancelKey::default(),
            asked_for: false,
        };
        (theirs, server)
    }

    #[tokio::test]
    async fn a_connection_without_room_gives_its_place_back() {
        use std::io::Read;
        let (_seed, handle) = stalled();
        let shared = Arc::new(PoolShared::default());
        assert!(shared.reserve(1));
        let (mut theirs, server) = server(&shared);
        handle.offer(server);
        assert_eq!(shared.servers(), 0);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "it is closed");
    }

    #[tokio::test]
    async fn orders_need_no_room_and_messages_wait_for_it() {
        let (seed, handle) = stalled();
        assert!(handle.room(Duration::from_millis(1)).await.is_none());
        let (done, mut all) = mpsc::channel(1);
        handle.order(|orders| orders.commands.push(Command::Pause { database: None, done }));
        let (answer, inspected) = tokio::sync::oneshot::channel();
        let inspect = handle.send(Inbox::Inspect { pools_alone: true, answer });
        let worker = tokio::task::spawn_blocking(|| seed.run());
        // the message gets its turn once the worker takes what is before it
        assert!(inspect.await);
        inspected.await.unwrap();
        assert_eq!(all.recv().await, None, "the pause is complete");
        handle.order(|orders| orders.stop = true);
        worker.await.unwrap().unwrap();
        // nobody is left: the order is dropped, with whoever waits for it
        let (done, mut all) = mpsc::channel(1);
        handle.order(|orders| orders.commands.push(Command::Pause { database: None, done }));
        assert_eq!(all.recv().await, None);
        assert!(!handle.send(a_cancel()).await);
    }
}
