//! The warehouse behind PostgreSQL's wire protocol, version 3: for psql, drivers and BI tools.
//!
//! Invariants: TLS and SCRAM-SHA-256 or nothing; a session only reads; everything a client can make grow has a
//! limit ([`Limits`]); a client that goes away takes its statement with it.
//! Non-goals: SQL (the [`Reader`] knows it), writing, transactions as more than syntax: each statement has a
//! snapshot of its own.
//!
//! Why not a ready-made server: `pgwire` 0.42 was looked at. Its SCRAM is used here. Its session is not: it holds a
//! whole result in memory when a portal is executed without a row limit, panics on truncated messages, cancels only
//! until the first row, and has no idle timeout.

mod auth;
mod backend;
mod cancel;
mod command;
mod error;
mod frontend;
mod portal;
mod session;
mod split;
mod startup;
mod types;
mod wire;

use std::{sync::Arc, time::Duration};

use millrace_base::Tasks;
use millrace_contract::Reader;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

pub use crate::{auth::Users, error::EndpointError};

/// The only database.
pub const DATABASE: &str = "warehouse";

/// What clients may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sessions at once; one more gets 53300.
    pub sessions: usize,
    /// From the first byte to the end of authentication.
    pub startup: Duration,
    /// A session without a message for so long is ended.
    pub idle: Duration,
    /// Default and greatest `statement_timeout`.
    pub statement: Duration,
    /// A client that takes nothing for so long is gone.
    pub write: Duration,
    /// The longest message, in bytes: bounds a statement and its parameters.
    pub message_bytes: usize,
    /// Prepared statements, and portals, of one session.
    pub statements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 100,
            startup: Duration::from_secs(30),
            idle: Duration::from_secs(3_600),
            statement: Duration::from_secs(300),
            write: Duration::from_secs(300),
            message_bytes: 16 << 20,
            statements: 1_000,
        }
    }
}

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Context {
    users: Users,
    reader: Arc<dyn Reader>,
    limits: Limits,
    registry: Arc<cancel::Registry>,
    sessions: Arc<Semaphore>,
    token: CancellationToken,
}

/// The server.
#[derive(Debug)]
pub struct Endpoint;

/// A listener that fails for so many attempts in a row is given up.
const ACCEPT_FAILURES_MAX: u32 = 100;

impl Endpoint {
    /// Serves until `token` is cancelled; sessions are told and joined.
    ///
    /// # Errors
    /// If the listener fails for good.
    pub async fn serve(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        users: Users,
        reader: Arc<dyn Reader>,
        limits: Limits,
        token: CancellationToken,
    ) -> Result<(), EndpointError> {
        let sessions = Arc::new(Semaphore::new(limits.sessions));
        // refused sessions, cancel requests and those still authenticating need room beside the sessions
        let connections = Arc::new(Semaphore::new(limits.sessions.saturating_mul(2).saturating_add(64)));
        let context =
            Arc::new(Context { users, reader, limits, registry: Arc::default(), sessions, token: token.child_token() });
        let mut tasks = Tasks::new(context.token.clone());
        let mut failures = 0;
        let result = loop {
            // accept and join_next lose nothing when dropped
            tokio::select! {
                () = token.cancelled() => break Ok(()),
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a warehouse session ended abnormally");
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        failures = 0;
                        let Ok(room) = connections.clone().try_acquire_owned() else {
                            tracing::warn!(%peer, "too many connections to the warehouse: one was dropped");
                            continue;
                        };
                        let (context, tls) = (context.clone(), tls.clone());
                        tasks.spawn("warehouse-session", async move {
                            let _room = room;
                            Box::pin(startup::serve(stream, tls, context)).await;
                            Ok::<_, std::convert::Infallible>(())
                        });
                    }
                    Err(error) => {
                        failures += 1;
                        if failures >= ACCEPT_FAILURES_MAX {
                            break Err(EndpointError::Accept(error));
                        }
                        // out of file descriptors: give sessions time to end
                        tracing::warn!(%error, "the warehouse cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        for error in tasks.shutdown(Duration::from_secs(5)).await {
            tracing::error!(%error, "a warehouse session ended abnormally");
        }
        result
    }
}
