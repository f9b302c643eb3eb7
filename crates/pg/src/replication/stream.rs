//! The stream of logical changes (PostgreSQL manual, "Logical Streaming Replication Protocol").

use std::{fmt::Write as _, time::Duration};

use bytes::{BufMut, BytesMut};
use millrace_base::{Ident, Lsn, ident::Literal};
use millrace_wire::stream::StandbyStatus;
use postgres_protocol::message::backend;

use super::transport::Transport;
use crate::error::PgError;

/// What to stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions<'a> {
    pub slot: &'a str,
    /// Transactions whose commit record lies before this are left out; the slot's own position
    /// counts if it is later.
    pub from: Lsn,
    pub publication: &'a str,
}

impl StreamOptions<'_> {
    /// Protocol version 2 (PostgreSQL 14): large transactions are sent while they run.
    pub(super) fn to_command(self) -> String {
        let mut command = format!("START_REPLICATION SLOT {} LOGICAL {} (", Ident(self.slot), self.from);
        let publication = Ident(self.publication).to_string();
        let options = [
            ("proto_version", "2"),
            ("streaming", "on"),
            ("messages", "true"),
            ("publication_names", publication.as_str()),
        ];
        for (i, (name, value)) in options.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            // writing to a String cannot fail
            _ = write!(command, "{comma}{name} {}", Literal(value));
        }
        command.push(')');
        command
    }
}

/// A running stream. The content of its messages is `millrace_wire::stream::Frame`.
#[derive(Debug)]
pub struct LogicalStream {
    transport: Transport,
}

impl LogicalStream {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport }
    }

    /// The next message that has been read already; `None` when more must be read first.
    ///
    /// # Errors
    /// The server's error, or that the stream has ended.
    #[inline]
    pub fn buffered(&mut self) -> Result<Option<BytesMut>, PgError> {
        while let Some(raw) = self.transport.buffered()? {
            match raw.tag {
                backend::COPY_DATA_TAG => return Ok(Some(raw.body)),
                backend::ERROR_RESPONSE_TAG => return Err(raw.into_error()),
                backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => {}
                backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG | backend::READY_FOR_QUERY_TAG => {
                    return Err(PgError::stream_ended());
                }
                other => return Err(PgError::Protocol(format!("message {other:#04x} within the stream"))),
            }
        }
        Ok(None)
    }

    /// Reads some more. May be dropped and called again: nothing is lost. The caller bounds the wait.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn fill(&mut self) -> Result<(), PgError> {
        self.transport.fill().await
    }

    /// Tells the server how far we are.
    ///
    /// # Errors
    /// If the connection is lost or the server takes nothing within `deadline`.
    pub async fn send_status(&mut self, status: &StandbyStatus, deadline: Duration) -> Result<(), PgError> {
        let out = &mut self.transport.outgoing;
        out.put_u8(backend::COPY_DATA_TAG);
        out.put_u32(u32::try_from(4 + StandbyStatus::LEN).unwrap_or(u32::MAX));
        status.encode(out);
        let address = self.transport.address.clone();
        Transport::within(&address, deadline, self.transport.flush()).await
    }
}
