//! The two kinds of connection that a worker holds, with their sockets.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use crate::{
    backends::Node,
    link::{Link, PoolMode, Session},
    route::Route,
    transport::Transport,
    worker::Permit,
};

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientState {
    /// Between transactions. Set at login and when a server is given back.
    Idle,
    /// In its pool's queue, with its statement in `stash`. Ends with a server or the deadline.
    Waiting,
    /// Has a server that is being given the client's settings. Ends when it has them.
    Preparing(usize),
    /// Has a server.
    Attached(usize),
}

/// An application's connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) line: Line,
    pub(crate) state: ClientState,
    pub(crate) pool: usize,
    /// As it was when the client came: a reload changes it for others.
    pub(crate) mode: PoolMode,
    /// With the key that the client was told, this lets it cancel its statements.
    pub(crate) secret: i32,
    pub(crate) session: Session,
    /// Of a client whose reads may go to replicas; `pool` is where it is now, or was last.
    pub(crate) route: Option<Route>,
    /// It has asked for a cancellation while it was [`ClientState::Preparing`].
    pub(crate) cancelled: bool,
    pub(crate) peer: SocketAddr,
    pub(crate) _permit: Permit,
    /// Since when it is in `state`.
    pub(crate) since: Duration,
}

impl Client {
    /// The pool that it came for.
    pub(crate) fn home(&self) -> usize {
        self.route.as_ref().map_or(self.pool, |route| route.writers)
    }
}

/// A connection to PostgreSQL.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) line: Line,
    pub(crate) link: Link,
    pub(crate) pool: usize,
    pub(crate) client: Option<usize>,
    pub(crate) node: Arc<Node>,
    /// Its place among the worker's nodes.
    pub(crate) node_at: usize,
    /// Of a replica: the last round that it has reached.
    pub(crate) replayed: Option<Arc<AtomicU64>>,
    /// What cancels its statement.
    pub(crate) key: CancelKey,
    /// Different for each connection of a worker.
    pub(crate) serial: u64,
    pub(crate) opened: Duration,
    pub(crate) since: Duration,
    /// When its client asked for what it does now.
    pub(crate) asked: Duration,
    /// When its client asked for the first of the transaction.
    pub(crate) began: Duration,
    pub(crate) generation: u64,
    /// A cancel request is on its way: it must not hit the next client.
    pub(crate) cancelling: bool,
    /// It is among the unused, or those that have become free: there once, or two clients would get it.
    pub(crate) free: bool,
    /// Close it when its transaction ends.
    pub(crate) retire: bool,
}

/// What a server asks for before it cancels a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CancelKey {
    pub(crate) pid: i32,
    pub(crate) secret: i32,
}

/// A socket with what could not be handled at once. Both buffers are empty and without memory when nothing is going on.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) io: Transport,
    /// Received and not yet passed on: part of a message, or what waits for a server.
    pub(crate) stash: Vec<u8>,
    /// To be sent when the socket takes more.
    pub(crate) unsent: Vec<u8>,
    /// There may be more to receive: the edge came when nothing could be taken.
    pub(crate) readable: bool,
    /// The other side has closed its direction.
    pub(crate) hung_up: bool,
}

impl Line {
    pub(crate) fn new(io: Transport) -> Self {
        Self { io, stash: Vec::new(), unsent: Vec::new(), readable: false, hung_up: false }
    }

    /// Sends at once; what the socket does not take waits for its readiness.
    #[inline]
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = if self.unsent.is_empty() { self.io.send(bytes)? } else { 0 };
        if let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            self.unsent.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Sends what waits; whether all is sent.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let mut at = 0;
        while let Some(rest) = self.unsent.get(at..).filter(|rest| !rest.is_empty()) {
            let sent = self.io.send(rest)?;
            if sent == 0 {
                self.unsent.drain(..at);
                return Ok(false);
            }
            at += sent;
        }
        self.unsent = Vec::new();
        self.io.flush()?;
        Ok(true)
    }
}
