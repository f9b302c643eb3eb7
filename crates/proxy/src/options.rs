//! How a proxy is to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_base::Secret;
use millrace_contract::topology::Replay;

use crate::{
    access::{ClientLimits, Rules},
    pool::{PoolKey, PoolLimits},
    users::AuthQuery,
};

/// All that a proxy is told when it starts, and again by a reload.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that serve clients.
    pub workers: usize,
    pub clients: ClientLimits,
    pub rules: Rules,
    pub pool: PoolLimits,
    /// Instead of `pool`, for some databases.
    pub databases: BTreeMap<String, PoolLimits>,
    pub client_tls: ClientTls,
    /// What clients are shown in `client_tls`, as it is in its file: it tells whether a reload brings another.
    pub certificate: Vec<u8>,
    /// `Some`: servers must offer TLS with a certificate that this trusts.
    pub server_tls: Option<Arc<rustls::ClientConfig>>,
    /// Users whose password is known.
    pub secrets: BTreeMap<String, Secret>,
    /// Who may use the administration console; each needs an entry in `secrets`.
    pub admins: BTreeSet<String>,
    /// Where the verifiers of all others are asked for.
    pub auth_query: Option<AuthQuery>,
    /// `Some`: what reads goes to replicas, also of clients that came for the primary.
    pub routing: Option<Routing>,
    /// From a client's first byte to the end of its login.
    pub login: Duration,
    /// To open a connection to a server.
    pub connect: Duration,
}

/// What sending reads to replicas needs.
#[derive(Debug, Clone)]
pub struct Routing {
    /// How far replicas have come.
    pub replay: Arc<Replay>,
    /// Who may ask the primary for each database's functions and relations.
    pub user: String,
    pub password: Secret,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// TLS for clients.
#[derive(Debug, Clone)]
pub enum ClientTls {
    Off,
    Offer(Arc<rustls::ServerConfig>),
    Require(Arc<rustls::ServerConfig>),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            clients: ClientLimits::default(),
            rules: Rules::default(),
            pool: PoolLimits::default(),
            databases: BTreeMap::new(),
            client_tls: ClientTls::Off,
            certificate: Vec::new(),
            server_tls: None,
            secrets: BTreeMap::new(),
            admins: BTreeSet::new(),
            auth_query: None,
            routing: None,
            login: Duration::from_secs(30),
            connect: Duration::from_secs(15),
        }
    }
}

impl Options {
    /// What holds for one pool.
    pub(crate) fn limits(&self, pool: &PoolKey) -> PoolLimits {
        self.databases.get(&*pool.database).copied().unwrap_or(self.pool)
    }
}
