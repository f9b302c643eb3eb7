//! The proxy: applications reach the cluster through it, share its connections, and need not know who is primary.
//!
//! ```text
//! listener ─▶ login (tasks)  ─▶ worker (a thread: clients + servers + pools)  ─▶ PostgreSQL
//!              TLS, SCRAM         walk: bytes ─▶ bytes     traffic: sockets
//! ```
//!
//! Invariants: nothing of one client is left in a connection when another gets it; a statement that was sent is never
//! sent again; the proxy follows [`millrace_contract::Topology`] and never guesses who is primary; what any client can
//! make grow has a limit.
//! Non-goals: changing SQL.

mod access;
mod admin;
mod backends;
mod catalog;
mod catalogs;
mod connect;
mod conversation;
mod extended;
mod frame;
#[cfg(test)]
mod fuzz;
mod grammar;
mod handle;
mod hint;
mod histogram;
mod inbox;
mod lifecycle;
mod link;
mod login;
mod message;
mod options;
mod pause;
mod peer;
mod pool;
mod proxy;
mod reload;
mod route;
mod routing;
mod scram;
mod settings;
mod startup;
mod statements;
mod traffic;
mod transport;
mod upkeep;
mod users;
mod view;
mod walk;
mod worker;

pub use crate::{
    access::{ClientLimits, Network, Rule, Rules},
    admin::DATABASE as CONSOLE_DATABASE,
    backends::{Access, Backends, Node},
    handle::{Handle, PauseError},
    histogram::{BOUNDS_US, Histogram},
    link::PoolMode,
    options::{ClientTls, Options, Routing},
    pool::{Counts, PoolKey, PoolLimits},
    proxy::{Proxy, ProxyError},
    reload::{Read, Reading, Reloaded},
    users::AuthQuery,
    view::{Activity, ClientView, PoolView, ServerView, WorkerView},
};
