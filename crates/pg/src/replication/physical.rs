//! The stream of the write-ahead log itself (PostgreSQL manual, "Streaming Replication Protocol").

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use millrace_base::{Ident, Lsn};
use millrace_wire::stream::StandbyStatus;
use postgres_protocol::message::backend;

use super::{RawConnection, TextRow, transport::Transport};
use crate::error::PgError;

/// Which log to stream.
#[derive(Debug, Clone, Copy)]
pub struct PhysicalOptions<'a> {
    pub slot: &'a str,
    pub from: Lsn,
    pub timeline: u32,
}

impl PhysicalOptions<'_> {
    pub(super) fn to_command(self) -> String {
        format!("START_REPLICATION SLOT {} PHYSICAL {} TIMELINE {}", Ident(self.slot), self.from, self.timeline)
    }
}

/// The server has a newer timeline, which begins where the streamed one ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    pub timeline: u32,
    pub switch: Lsn,
}

/// What a start gives.
#[derive(Debug)]
pub enum PhysicalStart {
    Streaming(PhysicalStream),
    /// The timeline ends just there; the connection can go on.
    Ended(RawConnection, NextTimeline),
}

/// One thing of the stream.
#[derive(Debug)]
pub enum PhysicalItem {
    /// The content of a CopyData message: a `millrace_wire::stream::Frame`.
    Message(BytesMut),
    /// All of the timeline has been sent: [`PhysicalStream::finish`] says what comes next.
    End,
}

/// A running stream.
#[derive(Debug)]
pub struct PhysicalStream {
    pub(super) connection: RawConnection,
}

impl PhysicalStream {
    /// The next item that has been read already; `None` when more must be read first.
    ///
    /// # Errors
    /// The server's error.
    pub fn buffered(&mut self) -> Result<Option<PhysicalItem>, PgError> {
        while let Some(raw) = self.connection.transport.buffered()? {
            match raw.tag {
                backend::COPY_DATA_TAG => return Ok(Some(PhysicalItem::Message(raw.body))),
                backend::COPY_DONE_TAG => return Ok(Some(PhysicalItem::End)),
                backend::ERROR_RESPONSE_TAG => return Err(raw.into_error()),
                backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => {}
                // it shuts down: without the end of a copy before it (`WalSndDone`)
                backend::COMMAND_COMPLETE_TAG => return Err(PgError::stream_ended()),
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
        self.connection.transport.fill().await
    }

    /// Tells the server how far we are.
    ///
    /// # Errors
    /// If the connection is lost or the server takes nothing within `deadline`.
    pub async fn send_status(&mut self, status: &StandbyStatus, deadline: Duration) -> Result<(), PgError> {
        let transport = &mut self.connection.transport;
        transport.outgoing.put_u8(backend::COPY_DATA_TAG);
        transport.outgoing.put_u32(u32::try_from(4 + StandbyStatus::LEN).unwrap_or(u32::MAX));
        status.encode(&mut transport.outgoing);
        let address = transport.address.clone();
        Transport::within(&address, deadline, transport.flush()).await
    }

    /// After [`PhysicalItem::End`]: the connection again, and the timeline that follows. `None` if the server is only
    /// shutting down.
    ///
    /// # Errors
    /// If the connection is lost or the server says something else.
    pub async fn finish(mut self, deadline: Duration) -> Result<(RawConnection, Option<NextTimeline>), PgError> {
        let address = self.connection.transport.address.clone();
        Transport::within(&address, deadline, async {
            self.connection.transport.outgoing.put_slice(b"c\0\0\0\x04");
            self.connection.transport.flush().await?;
            // answers to our last reports may still be under way
            loop {
                match self.connection.transport.first_tag()? {
                    None => self.connection.transport.fill().await?,
                    Some(backend::COPY_DATA_TAG | backend::COPY_DONE_TAG) => {
                        drop(self.connection.transport.next().await?)
                    }
                    Some(_) => break,
                }
            }
            let rows = self.connection.rows_to_the_end().await?;
            let next = rows.first().map(next_timeline).transpose()?;
            Ok((self.connection, next))
        })
        .await
    }
}

pub(super) fn next_timeline(row: &TextRow) -> Result<NextTimeline, PgError> {
    let next = match row.as_slice() {
        [Some(timeline), Some(switch), ..] => timeline.parse().ok().zip(switch.parse().ok()),
        _ => None,
    };
    next.map(|(timeline, switch)| NextTimeline { timeline, switch })
        .ok_or_else(|| PgError::Protocol("the end of a timeline was told in another way".to_owned()))
}
