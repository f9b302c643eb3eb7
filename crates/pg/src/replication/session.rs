//! One connection of our own: authentication, simple queries, slots, copies.

use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use millrace_base::{Ident, Lsn};
use postgres_protocol::{
    authentication::sasl::{self, ChannelBinding, ScramSha256},
    message::{
        backend::{self, Message},
        frontend,
    },
};

use super::{
    PhysicalOptions, PhysicalStart, PhysicalStream, SESSION_SETTINGS, StreamOptions,
    physical::next_timeline,
    stream::LogicalStream,
    transport::{Transport, protocol, server_error},
};
use crate::{connect::ConnectParams, error::PgError};

/// How long a command may take that waits for nothing.
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
    /// The stream brings exactly the transactions whose commit record does not lie before this.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`, while the connection that made it runs nothing else.
    pub snapshot: String,
}

/// A row of a simple query's result, as text.
pub type TextRow = Vec<Option<String>>;

/// A connection that runs one thing at a time. Dropping it closes it.
#[derive(Debug)]
pub struct RawConnection {
    pub(super) transport: Transport,
}

impl RawConnection {
    /// An ordinary session.
    ///
    /// # Errors
    /// [`PgError`] by cause.
    pub async fn connect(params: &ConnectParams, deadline: Duration) -> Result<Self, PgError> {
        Self::open(params, false, deadline).await
    }

    /// A session that can also make slots and stream the changes of `params.database`.
    ///
    /// # Errors
    /// [`PgError`] by cause.
    pub async fn connect_replication(params: &ConnectParams, deadline: Duration) -> Result<Self, PgError> {
        Self::open(params, true, deadline).await
    }

    async fn open(params: &ConnectParams, replication: bool, deadline: Duration) -> Result<Self, PgError> {
        Transport::within(&params.address(), deadline, async {
            let mut connection = Self { transport: Transport::open(params).await? };
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
        let wrong = |what: &str| PgError::Protocol(format!("authentication: {what}"));
        let mut scram: Option<ScramSha256> = None;
        let mut proven = false;
        loop {
            let reply = match self.message().await? {
                Message::AuthenticationOk if scram.is_none() || proven => return Ok(()),
                Message::AuthenticationOk => return Err(wrong("the server did not prove that it knows the password")),
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut offered = false;
                    while let Some(mechanism) = mechanisms.next().map_err(|e| protocol(&e))? {
                        offered |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !offered {
                        return Err(wrong("the server does not offer SCRAM-SHA-256"));
                    }
                    let password = params.password.reveal().as_bytes();
                    let client = scram.insert(ScramSha256::new(password, ChannelBinding::unsupported()));
                    frontend::sasl_initial_response(sasl::SCRAM_SHA_256, client.message(), &mut self.transport.outgoing)
                }
                Message::AuthenticationSaslContinue(body) => {
                    let client = scram.as_mut().ok_or_else(|| wrong("a challenge before its time"))?;
                    client.update(body.data()).map_err(|e| wrong(&e.to_string()))?;
                    frontend::sasl_response(client.message(), &mut self.transport.outgoing)
                }
                Message::AuthenticationSaslFinal(body) => {
                    let client = scram.as_mut().ok_or_else(|| wrong("a proof before its time"))?;
                    client.finish(body.data()).map_err(|e| wrong(&e.to_string()))?;
                    proven = true;
                    Ok(())
                }
                _ => return Err(wrong("the server wants something other than SCRAM-SHA-256")),
            };
            reply.map_err(|e| protocol(&e))?;
            self.transport.flush().await?;
        }
    }

    /// The next message that means something here; an error of the server becomes one of ours.
    async fn message(&mut self) -> Result<Message, PgError> {
        loop {
            let message = self.transport.next_parsed().await?;
            match message {
                Message::ErrorResponse(body) => return Err(server_error(&body)),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) | Message::NotificationResponse(_) => {}
                other => return Ok(other),
            }
        }
    }

    /// Runs one statement without parameters; the rows of its last result.
    ///
    /// # Errors
    /// The server's error, after which the connection can go on; [`PgError::Timeout`], after which it cannot.
    pub async fn query(&mut self, sql: &str, deadline: Duration) -> Result<Vec<TextRow>, PgError> {
        let address = self.transport.address.clone();
        Transport::within(&address, deadline, async {
            self.send_query(sql).await?;
            self.rows_to_the_end().await
        })
        .await
    }

    /// The rows of the last result that a running command gives, up to where the next one may be sent.
    pub(super) async fn rows_to_the_end(&mut self) -> Result<Vec<TextRow>, PgError> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await {
                Ok(Message::DataRow(row)) => rows.push(text_row(&row)?),
                Ok(Message::RowDescription(_)) => rows.clear(),
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(Message::CommandComplete(_) | Message::EmptyQueryResponse) => {}
                Ok(_) => return Err(PgError::Protocol("an answer that a query does not have".to_owned())),
                Err(error @ PgError::Server { .. }) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(rows), Err)
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), PgError> {
        frontend::query(sql, &mut self.transport.outgoing).map_err(|e| protocol(&e))?;
        self.transport.flush().await
    }

    /// Starts `COPY … TO STDOUT`; read it with [`RawConnection::copy_next`] to its end.
    ///
    /// # Errors
    /// The server's error.
    pub async fn copy_out(&mut self, sql: &str, deadline: Duration) -> Result<(), PgError> {
        let address = self.transport.address.clone();
        Transport::within(&address, deadline, async {
            self.send_query(sql).await?;
            match self.message().await {
                Ok(Message::CopyOutResponse(_)) => Ok(()),
                Ok(_) => Err(PgError::Protocol("the statement is not a COPY TO STDOUT".to_owned())),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The next piece of a running copy (one row, with its newline); `None` at its end.
    /// `deadline` bounds the wait for the next bytes, not the whole copy.
    ///
    /// # Errors
    /// The server's error; the connection is of no more use then.
    #[inline]
    pub async fn copy_next(&mut self, deadline: Duration) -> Result<Option<BytesMut>, PgError> {
        loop {
            while let Some(raw) = self.transport.buffered()? {
                match raw.tag {
                    backend::COPY_DATA_TAG => return Ok(Some(raw.body)),
                    backend::READY_FOR_QUERY_TAG => return Ok(None),
                    backend::ERROR_RESPONSE_TAG => return Err(raw.into_error()),
                    backend::COPY_DONE_TAG
                    | backend::COMMAND_COMPLETE_TAG
                    | backend::NOTICE_RESPONSE_TAG
                    | backend::PARAMETER_STATUS_TAG => {}
                    other => return Err(PgError::Protocol(format!("message {other:#04x} within a copy"))),
                }
            }
            let address = self.transport.address.clone();
            Transport::within(&address, deadline, self.transport.fill()).await?;
        }
    }

    /// Which server this is.
    ///
    /// # Errors
    /// [`PgError`]; the connection must be one for replication.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PgError> {
        let rows = self.query("IDENTIFY_SYSTEM", QUICK).await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let identity = match row {
            [Some(system_id), Some(timeline), Some(position), ..] => {
                system_id.parse().ok().zip(timeline.parse().ok()).zip(position.parse().ok())
            }
            _ => None,
        };
        let ((system_id, timeline), position) =
            identity.ok_or_else(|| PgError::Protocol("IDENTIFY_SYSTEM gave something else".to_owned()))?;
        Ok(SystemIdentity { system_id, timeline, position })
    }

    /// Makes a logical slot for `pgoutput` and exports the snapshot of its consistent point.
    ///
    /// The server waits for every transaction that is open at this moment, one after the other:
    /// `deadline` bounds each wait.
    ///
    /// # Errors
    /// The server's error (the name is taken, no slot is free, the role may not), or a timeout.
    pub async fn create_logical_slot(
        &mut self,
        name: &str,
        temporary: bool,
        deadline: Duration,
    ) -> Result<CreatedSlot, PgError> {
        let temporary = if temporary { "TEMPORARY " } else { "" };
        // a wait that the client has given up would hold the slot's name; each transaction is waited for by a lock
        self.query(&format!("SET lock_timeout = {}", deadline.as_millis()), QUICK).await?;
        // this form is understood by all versions from 10 on
        let sql = format!("CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput EXPORT_SNAPSHOT", Ident(name));
        let rows = self.query(&sql, deadline + QUICK).await?;
        let slot =
            match rows.into_iter().next().unwrap_or_default().as_slice() {
                [Some(name), Some(point), Some(snapshot), ..] => point.parse().ok().map(|consistent_point| {
                    CreatedSlot { name: name.clone(), consistent_point, snapshot: snapshot.clone() }
                }),
                _ => None,
            };
        slot.ok_or_else(|| PgError::Protocol("CREATE_REPLICATION_SLOT gave something else".to_owned()))
    }

    /// Drops a slot that no one uses.
    ///
    /// # Errors
    /// The server's error (there is none of that name, it is in use).
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", Ident(name)), QUICK).await.map(drop)
    }

    /// Begins to stream; the connection does nothing else from now on.
    ///
    /// # Errors
    /// The server's error (slot absent, in use or invalidated).
    pub async fn start_logical(
        mut self,
        options: &StreamOptions<'_>,
        deadline: Duration,
    ) -> Result<LogicalStream, PgError> {
        let address = self.transport.address.clone();
        Transport::within(&address, deadline, async {
            self.send_query(&options.to_command()).await?;
            loop {
                let raw = self.transport.next().await?;
                match raw.tag {
                    b'W' => break,
                    backend::ERROR_RESPONSE_TAG => return Err(raw.into_error()),
                    backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => {}
                    other => return Err(PgError::Protocol(format!("message {other:#04x} instead of a stream"))),
                }
            }
            Ok(LogicalStream::new(self.transport))
        })
        .await
    }
}

impl RawConnection {
    /// Begins to stream the log itself. At the very end of a timeline there is nothing to stream, and the server
    /// names the next one at once.
    ///
    /// # Errors
    /// The server's error (slot absent or in use, the log is not there any more, the timeline is not in its history).
    pub async fn start_physical(
        mut self,
        options: &PhysicalOptions<'_>,
        deadline: Duration,
    ) -> Result<PhysicalStart, PgError> {
        let address = self.transport.address.clone();
        Transport::within(&address, deadline, async {
            self.send_query(&options.to_command()).await?;
            loop {
                // looked at, not taken: the rows of an ended timeline are read as those of any command
                while self.transport.first_tag()?.is_none() {
                    self.transport.fill().await?;
                }
                match self.transport.first_tag()? {
                    Some(b'W') => {
                        self.transport.next().await?;
                        return Ok(PhysicalStart::Streaming(PhysicalStream { connection: self }));
                    }
                    Some(backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG) => {
                        self.transport.next().await?;
                    }
                    _ => {
                        let rows = self.rows_to_the_end().await?;
                        let row = rows.first().cloned().unwrap_or_default();
                        return Ok(PhysicalStart::Ended(self, next_timeline(&row)?));
                    }
                }
            }
        })
        .await
    }

    /// The history file of a timeline, as the server has it: its name and content.
    ///
    /// # Errors
    /// The server's error (timeline 1 has no history).
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<(String, String), PgError> {
        let mut rows = self.query(&format!("TIMELINE_HISTORY {timeline}"), QUICK).await?;
        match rows.pop().unwrap_or_default().as_slice() {
            [Some(name), Some(content)] => Ok((name.clone(), content.clone())),
            _ => Err(PgError::Protocol("TIMELINE_HISTORY gave something else".to_owned())),
        }
    }
}

fn text_row(row: &backend::DataRowBody) -> Result<TextRow, PgError> {
    let buffer = row.buffer();
    row.ranges()
        .map(|range| {
            Ok(range.and_then(|range| buffer.get(range)).map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
        })
        .collect()
        .map_err(|e| protocol(&e))
}
