//! One connection's bytes: whole messages in, a buffer out.
//!
//! Invariants: a message is read only if it is no longer than the limit; what waits to be written is flushed at
//! [`FLUSH_BYTES`], so a slow client slows its statement and not the memory.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::{
    error::{Ended, Refusal},
    frontend::Message,
};

/// Output is handed to the socket from this size on.
const FLUSH_BYTES: usize = 64 << 10;

/// Read ahead of the message being worked on, at most, while a statement runs.
const AHEAD_BYTES: usize = 256 << 10;

/// A byte stream of any kind: TLS or, before that, TCP.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    input: BytesMut,
    pub(crate) out: BytesMut,
    message_bytes_max: usize,
    /// A client that takes nothing for so long is gone.
    write_timeout: Duration,
}

impl<S: Stream> Wire<S> {
    pub(crate) fn new(stream: S, message_bytes_max: usize, write_timeout: Duration) -> Self {
        Self {
            stream,
            input: BytesMut::with_capacity(8 << 10),
            out: BytesMut::with_capacity(8 << 10),
            message_bytes_max,
            write_timeout,
        }
    }

    /// The stream itself, while nothing of it is buffered.
    pub(crate) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Longer messages from now on.
    pub(crate) fn allow(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// The next message. Safe to drop: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Message, Ended> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Ended::Gone);
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Message>, Refusal> {
        let [kind, a, b, c, d, ..] = *self.input else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes([a, b, c, d])).unwrap_or(0);
        if length < 4 {
            return Err(Refusal::fatal("08P01", "invalid message length"));
        }
        if length > self.message_bytes_max {
            return Err(Refusal::fatal(
                "54000",
                format!("a message of {length} bytes is longer than the limit of {}", self.message_bytes_max),
            ));
        }
        if self.input.len() < length + 1 {
            return Ok(None);
        }
        self.input.advance(5);
        let body: Bytes = self.input.split_to(length - 4).freeze();
        Message::parse(kind, body).map(Some)
    }

    /// Returns when the client has hung up; never otherwise. Pipelined input is kept, up to a limit.
    /// Safe to drop.
    pub(crate) async fn hung_up(&mut self) {
        loop {
            if self.input.len() >= AHEAD_BYTES {
                std::future::pending::<()>().await;
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Whether the next message has to be waited for.
    pub(crate) fn is_idle(&self) -> bool {
        let [_, a, b, c, d, ..] = *self.input else { return true };
        let length = usize::try_from(i32::from_be_bytes([a, b, c, d])).unwrap_or(0);
        self.input.len() <= length
    }

    /// Whether the output should be flushed now.
    pub(crate) fn is_full(&self) -> bool {
        self.out.len() >= FLUSH_BYTES
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Ended> {
        let deadline = Instant::now() + self.write_timeout;
        let written = tokio::time::timeout_at(deadline, async {
            self.stream.write_all_buf(&mut self.out).await?;
            self.stream.flush().await
        });
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ended::Gone),
        }
    }

    /// Says goodbye: the rest of the output, then the end of the stream.
    pub(crate) async fn close(mut self) {
        if self.flush().await.is_ok() {
            // a client that has gone does not need the end of the stream
            _ = tokio::time::timeout(self.write_timeout, self.stream.shutdown()).await;
        }
    }
}
