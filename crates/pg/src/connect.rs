//! One connection: TLS with verify-full, SCRAM, a deadline, and errors that say what to do.
//!
//! Invariant: with [`ConnectParams::tls`] set, nothing is ever sent in plain text but the request for TLS.

use std::{ops::Deref, sync::Arc, time::Duration};

use millrace_base::Secret;
use tokio_postgres::{Client, Config, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::PgError;

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub struct ConnectParams {
    pub host: String,
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: Secret,
    /// `Some`: TLS is required, certificate and host name are checked. `None`: plain text.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl ConnectParams {
    /// The same server and role, another database.
    #[must_use]
    pub fn to_database(&self, database: impl Into<String>) -> Self {
        Self { database: database.into(), ..self.clone() }
    }

    /// The same server and database, another role.
    #[must_use]
    pub fn as_user(&self, user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), password, ..self.clone() }
    }

    /// `host:port`, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// An open connection; used as the [`Client`] that it owns. Dropping it closes the connection,
/// in order if the server takes part, within a second in any case.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    tls: Option<MakeTls>,
    /// Dropped after the client.
    _open: DropGuard,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Connection {
    /// The client, mutable: for transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Asks the server to cancel the statement that runs on this connection now.
    ///
    /// # Errors
    /// If the server cannot be reached; that there was nothing to cancel is no error.
    pub async fn cancel(&self) -> Result<(), PgError> {
        let token = self.client.cancel_token();
        match &self.tls {
            Some(tls) => token.cancel_query(tls.0.clone()).await?,
            None => token.cancel_query(NoTls).await?,
        }
        Ok(())
    }
}

#[derive(Clone)]
struct MakeTls(MakeRustlsConnect);

impl std::fmt::Debug for MakeTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MakeTls")
    }
}

/// Opens a connection, all of it within `deadline`.
///
/// # Errors
/// [`PgError`] by cause; [`PgError::hint`] says what to do.
pub async fn connect(params: &ConnectParams, deadline: Duration) -> Result<Connection, PgError> {
    let mut config = Config::new();
    config
        .host(&params.host)
        .port(params.port)
        .dbname(&params.database)
        .user(&params.user)
        .password(params.password.reveal())
        .application_name(&params.application_name)
        .connect_timeout(deadline)
        .tcp_user_timeout(Duration::from_secs(30))
        .keepalives_idle(Duration::from_secs(30))
        .ssl_mode(if params.tls.is_some() { SslMode::Require } else { SslMode::Disable });

    let address = params.address();
    let opening = async {
        let open = CancellationToken::new();
        let (client, tls) = match &params.tls {
            Some(tls) => {
                let tls = MakeRustlsConnect::new(tls.as_ref().clone());
                let (client, connection) = config.connect(tls.clone()).await?;
                drive(connection, open.clone());
                (client, Some(MakeTls(tls)))
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                drive(connection, open.clone());
                (client, None)
            }
        };
        Ok(Connection { client, tls, _open: open.drop_guard() })
    };
    match tokio::time::timeout(deadline, opening).await {
        Ok(opened) => opened.map_err(|error| PgError::connecting(error, &address, &params.user, &params.database)),
        Err(_) => Err(PgError::Timeout { address, deadline }),
    }
}

/// How long a dropped connection may take to say goodbye.
const CLOSE: Duration = Duration::from_secs(1);

/// Runs the connection until it ends, at most [`CLOSE`] after its owner dropped it.
#[expect(
    clippy::disallowed_methods,
    reason = "it must outlive the drop of its owner by a moment, to end the session in order"
)]
fn drive(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    dropped: CancellationToken,
) {
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = dropped.cancelled() => tokio::time::timeout(CLOSE, connection).await.unwrap_or(Ok(())),
        };
        if let Err(error) = ended {
            // whoever uses the client is told by its own error
            tracing::debug!(%error, "connection lost");
        }
    });
}
