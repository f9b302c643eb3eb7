//! What a worker holds, for people and machines: the console and the metrics are made from this.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    backends::Node,
    histogram::Histogram,
    peer::ClientState,
    pool::{Counts, PoolKey, PoolLimits},
};

/// Everything at a moment.
#[derive(Debug, Clone, Default)]
pub struct WorkerView {
    pub pools: Vec<PoolView>,
    pub clients: Vec<ClientView>,
    pub servers: Vec<ServerView>,
}

/// One worker's part of a pool.
#[derive(Debug, Clone)]
pub struct PoolView {
    pub key: PoolKey,
    pub limits: PoolLimits,
    pub clients: usize,
    pub waiting: usize,
    pub longest_wait: Duration,
    pub servers: usize,
    pub idle: usize,
    pub opening: usize,
    pub paused: bool,
    pub counts: Counts,
    pub query_times: Histogram,
    /// Of everyone who asked for a connection; of those who got it at once, it is 0.
    pub wait_times: Histogram,
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Idle,
    Waiting,
    Active,
}

impl From<ClientState> for Activity {
    fn from(state: ClientState) -> Self {
        match state {
            ClientState::Idle => Self::Idle,
            ClientState::Waiting => Self::Waiting,
            ClientState::Preparing(_) | ClientState::Attached(_) => Self::Active,
        }
    }
}

/// An application's connection.
#[derive(Debug, Clone)]
pub struct ClientView {
    /// As the client was told.
    pub pid: i32,
    pub peer: SocketAddr,
    pub pool: Option<PoolKey>,
    pub state: Activity,
    pub in_state: Duration,
    pub application_name: String,
    pub statements: usize,
}

/// A connection to PostgreSQL.
#[derive(Debug, Clone)]
pub struct ServerView {
    /// The server process.
    pub pid: i32,
    pub node: Arc<Node>,
    pub pool: Option<PoolKey>,
    pub client: Option<i32>,
    /// It keeps something of its client's that cannot be moved.
    pub pinned: bool,
    pub age: Duration,
}
