//! What travels in the CopyData messages of a replication connection
//! (PostgreSQL manual, "Streaming Replication Protocol").

use bytes::{BufMut, BytesMut};
use millrace_base::{Lsn, Micros};

use crate::cursor::{Cursor, DecodeError};

/// One message from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of the stream: for logical replication one message of the output plugin.
    XLogData {
        start: Lsn,
        /// The server's position when it sent this.
        server_end: Lsn,
        sent_at: Micros,
        payload: &'a [u8],
    },
    /// Everything before `server_end` has been sent.
    Keepalive {
        server_end: Lsn,
        sent_at: Micros,
        /// The server ends the connection if it hears nothing soon.
        reply_requested: bool,
    },
}

impl<'a> Frame<'a> {
    /// Decodes the content of one CopyData message.
    ///
    /// # Errors
    /// If it is cut short or of an unknown type.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u8("message type")? {
            b'w' => Ok(Self::XLogData {
                start: cursor.lsn("start")?,
                server_end: cursor.lsn("server end")?,
                sent_at: cursor.time("send time")?,
                payload: cursor.rest(),
            }),
            b'k' => {
                let server_end = cursor.lsn("server end")?;
                let sent_at = cursor.time("send time")?;
                let reply_requested = match cursor.u8("reply flag")? {
                    0 => false,
                    1 => true,
                    value => return Err(DecodeError::Unexpected { what: "reply flag", value }),
                };
                cursor.finish()?;
                Ok(Self::Keepalive { server_end, sent_at, reply_requested })
            }
            other => Err(DecodeError::UnknownMessage(other)),
        }
    }
}

/// How far the client is, for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received up to here.
    pub written: Lsn,
    /// Durable up to here: the server may forget what is before.
    pub flushed: Lsn,
    /// Visible to readers up to here.
    pub applied: Lsn,
    pub sent_at: Micros,
    /// Ask the server to answer at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    /// Length of the encoded message.
    pub const LEN: usize = 1 + 4 * 8 + 1;

    /// Appends the content of a CopyData message.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'r');
        for position in [self.written, self.flushed, self.applied] {
            out.put_u64(position.0);
        }
        out.put_i64(self.sent_at.to_postgres());
        out.put_u8(u8::from(self.reply_requested));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keepalive_and_data_decode() {
        let mut bytes = BytesMut::new();
        bytes.put_u8(b'k');
        bytes.put_u64(0x16_0000_0010);
        bytes.put_i64(0);
        bytes.put_u8(1);
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(
            frame,
            Frame::Keepalive {
                server_end: "16/10".parse().unwrap(),
                sent_at: Micros(946_684_800_000_000),
                reply_requested: true
            }
        );
        let mut bytes = BytesMut::new();
        bytes.put_u8(b'w');
        bytes.put_u64(1);
        bytes.put_u64(2);
        bytes.put_i64(3);
        bytes.put_slice(b"payload");
        assert!(matches!(
            Frame::decode(&bytes).unwrap(),
            Frame::XLogData { start: Lsn(1), server_end: Lsn(2), payload: b"payload", .. }
        ));
    }

    #[test]
    fn status_has_its_length() {
        let mut out = BytesMut::new();
        let at = Micros(946_684_800_000_007);
        StandbyStatus { written: Lsn(3), flushed: Lsn(2), applied: Lsn(1), sent_at: at, reply_requested: true }
            .encode(&mut out);
        assert_eq!(out.len(), StandbyStatus::LEN);
        assert_eq!(out.last(), Some(&1));
        assert_eq!(out.get(25..33), Some(&7i64.to_be_bytes()[..]));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Frame::XLogData { payload, .. }) = Frame::decode(&bytes) {
                prop_assert!(bytes.ends_with(payload));
            }
        }
    }
}
