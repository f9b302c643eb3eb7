//! One connection of our own: authentication, simple queries, slots, copies.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use fallible_iterator::FallibleIterator;
use millrace_base::{Ident, Lsn};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, ChannelBinding, ScramSha256},
    },
    message::{
        backend::{self, COPY_DATA_TAG, COPY_DONE_TAG, Message, NOTICE_RESPONSE_TAG, PARAMETER_STATUS_TAG},
        frontend,
    },
};

use super::{
    SESSION_SETTINGS, StreamOptions,
    stream::LogicalStream,
    transport::{Raw, Transport, protocol, server_error},
};
use crate::{connect::ConnectParams, error::PgError};

/// How long a query may take that only reads or sets something.
const QUICK: Duration = Duration::from_secs(15);

/// `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made at initdb; the same on a primary and its replicas.
    pub system_id: u64,
    pub timeline: u32,
    /// Flushed up to here.
    pub position: Lsn,
}

/// A new slot and the snapshot that shows the database as it was at its consistent point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    pub name: String,
    /// The stream will bring exactly the transactions whose commit record is not before this.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`, while the connection that made it runs nothing else.
    pub snapshot: String,
}

/// A connection that runs one thing at a time. Dropping it closes it.
#[derive(Debug)]
pub struct RawConnection {
    transport: Transport,
    copying: bool,
}

impl RawConnection {
    /// An ordinary session.
    ///
    /// # Errors
    /// [`PgError`] by cause.
    pub async fn connect(params: &ConnectParams, deadline: Duration) -> Result<Self, PgError> {
        Self::open(params, false, deadline).await
    }

    /// A session that can also make slots and stream changes of `params.database`.
    ///
    /// # Errors
    /// [`PgError`] by cause.
    pub async fn connect_replication(params: &ConnectParams, deadline: Duration) -> Result<Self, PgError> {
        Self::open(params, true, deadline).await
    }

    async fn open(params: &ConnectParams, replication: bool, deadline: Duration) -> Result<Self, PgError> {
        Transport::within(&params.address(), deadline, async {
            let mut connection = Self { transport: Transport::open(params).await?, copying: false };
            connection.start_up(params, replication).await?;
            Ok(connection)
        })
        .await
    }

    async fn start_up(&mut self, params: &ConnectParams, replication: bool) -> Result<(), PgError> {
        let own = [
            ("user", params.user.as_str()),
            ("database", params.database.as_str()),
            ("application_name", params.application_name.as_str()),
        ];
        let mode = replication.then_some(("replication", "database"));
        let settings = own.into_iter().chain(SESSION_SETTINGS).chain(mode);
        frontend::startup_message(settings, &mut self.transport.outgoing).map_err(|e| protocol(&e))?;
        self.transport.flush().await?;
        self.authenticate(params).await?;
        while !matches!(self.message().await?, Message::ReadyForQuery(_)) {}
        Ok(())
    }

    async fn authenticate(&mut self, params: &ConnectParams) -> Result<(), PgError> {
        let password = params.password.reveal().as_bytes();
        let mut scram: Option<ScramSha256> = None;
        let refused = |what: &str| PgError::Protocol(format!("the server's {what} is wrong: it may not know the password"));
        loop {
            let out = &mut self.transport.outgoing;
            match (self_message(&mut self.transport_in(), None), ()) {
                _ if false => {}
                _ => {}
            }
            let _ = out;
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut offered = false;
                    while let Some(mechanism) = mechanisms.next().map_err(|e| protocol(&e))? {
                        offered |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !offered {
                        return Err(PgError::Protocol("the server does not offer SCRAM-SHA-256".to_owned()));
                    }
                    let client = ScramSha256::new(password, ChannelBinding::unsupported());
                    frontend::sasl_initial_response(sasl::SCRAM_SHA_256, client.message(), &mut self.transport.outgoing)
                        .map_err(|e| protocol(&e))?;
                    scram = Some(client);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let client = scram.as_mut().ok_or_else(|| refused("order of authentication"))?;
                    client.update(body.data()).map_err(|_| refused("SCRAM challenge"))?;
                    frontend::sasl_response(client.message(), &mut self.transport.outgoing).map_err(|e| protocol(&e))?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let client = scram.as_mut().ok_or_else(|| refused("order of authentication"))?;
                    client.finish(body.data()).map_err(|_| refused("SCRAM proof"))?;
                }
                _ => {
                    let what = "the server wants a way of authentication other than SCRAM-SHA-256";
                    return Err(PgError::Protocol(what.to_owned()));
                }
            }
            self.transport.flush().await?;
        }
    }
}
