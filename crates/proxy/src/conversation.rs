//! A connection while someone logs in, one way or the other: messages, with waiting. Afterwards it is taken apart and goes
//! to a worker.
//!
//! Invariant: before the login is done, a message longer than [`MESSAGE_BYTES_MAX`] ends the connection.

use std::{io, sync::Arc};

use bytes::{Buf, BytesMut};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::frame;

/// Logins are short; an error of a server may be longer.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const BUFFER_BYTES: usize = 1 << 10;

/// One connection and what was received and not yet looked at.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: Stream,
    received: BytesMut,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    /// The other side began the handshake.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// We did.
    Connected(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// What a worker takes over.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) tls: Option<rustls::Connection>,
    pub(crate) early: Vec<u8>,
}

impl Conversation {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { stream: Stream::Plain(socket), received: BytesMut::new() }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        !matches!(self.stream, Stream::Plain(_))
    }

    /// Goes on in TLS, as the server of the handshake. Nothing may have been received beyond the request for it.
    pub(crate) async fn accept_tls(self, config: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        match self.stream {
            Stream::Plain(socket) if self.received.is_empty() => {
                let stream = TlsAcceptor::from(config).accept(socket).await?;
                Ok(Self { stream: Stream::Accepted(Box::new(stream)), received: self.received })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected bytes before the TLS handshake")),
        }
    }

    /// Goes on in TLS, as its client; the certificate must be for `host`.
    pub(crate) async fn connect_tls(self, config: Arc<rustls::ClientConfig>, host: &str) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        match self.stream {
            Stream::Plain(socket) if self.received.is_empty() => {
                let stream = TlsConnector::from(config).connect(name, socket).await?;
                Ok(Self { stream: Stream::Connected(Box::new(stream)), received: self.received })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected bytes before the TLS handshake")),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Accepted(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Stream::Connected(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// One byte: the answer to a request for TLS.
    pub(crate) async fn byte(&mut self) -> io::Result<u8> {
        self.fill(1).await?;
        Ok(self.received.get_u8())
    }

    /// The packet that a connection begins with: a length and what it counts.
    pub(crate) async fn packet(&mut self) -> io::Result<BytesMut> {
        self.fill(4).await?;
        let length = self.received.first_chunk().map_or(0, |length| u32::from_be_bytes(*length)) as usize;
        if !(8..=10_000).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "invalid length of startup packet"));
        }
        self.fill(length).await?;
        let mut packet = self.received.split_to(length);
        packet.advance(4);
        Ok(packet)
    }

    /// The next message: its type and body.
    pub(crate) async fn message(&mut self) -> io::Result<(u8, BytesMut)> {
        self.fill(frame::HEADER_BYTES).await?;
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let head = frame::header(&self.received).map_err(invalid)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if head.len > MESSAGE_BYTES_MAX {
            return Err(invalid(frame::Malformed::TooLong(head.len)));
        }
        self.fill(head.len).await?;
        let mut message = self.received.split_to(head.len);
        message.advance(frame::HEADER_BYTES);
        Ok((head.tag, message))
    }

    async fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.received.len() < wanted {
            self.received.reserve(wanted.saturating_sub(self.received.len()).max(BUFFER_BYTES));
            let read = match &mut self.stream {
                Stream::Plain(stream) => stream.read_buf(&mut self.received).await?,
                Stream::Accepted(stream) => stream.read_buf(&mut self.received).await?,
                Stream::Connected(stream) => stream.read_buf(&mut self.received).await?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// The socket, TLS and bytes not yet looked at.
    ///
    /// # Errors
    /// If the socket cannot be taken off the runtime.
    pub(crate) fn into_parts(self) -> io::Result<Parts> {
        let (socket, tls) = match self.stream {
            Stream::Plain(socket) => (socket, None),
            Stream::Accepted(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, Some(session.into()))
            }
            Stream::Connected(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, Some(session.into()))
            }
        };
        Ok(Parts { socket: socket.into_std()?, tls, early: self.received.to_vec() })
    }
}
