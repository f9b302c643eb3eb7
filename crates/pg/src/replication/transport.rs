//! Bytes of one connection: plain or TLS, framed into the protocol's messages.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{
    backend::{self, ErrorResponseBody, Message},
    frontend,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{connect::ConnectParams, error::PgError};

/// Room for reading ahead.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// The longest message that PostgreSQL itself can make is 1 GiB; a longer one is damage.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + 64;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection's two directions.
pub(super) struct Transport {
    io: Box<dyn Duplex>,
    incoming: BytesMut,
    pub(super) outgoing: BytesMut,
    pub(super) address: String,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}

/// One message from the server: its type and its content.
pub(super) struct Raw {
    pub(super) tag: u8,
    pub(super) body: BytesMut,
}

impl Raw {
    /// What an ErrorResponse says.
    pub(super) fn into_error(self) -> PgError {
        let mut whole = BytesMut::with_capacity(self.body.len() + 5);
        whole.put_u8(self.tag);
        whole.put_u32(u32::try_from(self.body.len() + 4).unwrap_or(u32::MAX));
        whole.extend_from_slice(&self.body);
        match Message::parse(&mut whole) {
            Ok(Some(Message::ErrorResponse(body))) => server_error(&body),
            _ => PgError::Protocol("an error that could not be read".to_owned()),
        }
    }
}

impl Transport {
    /// Connects and, if wanted, starts TLS. The caller bounds the time.
    pub(super) async fn open(params: &ConnectParams) -> Result<Self, PgError> {
        let address = params.address();
        let unreachable = |source| PgError::Unreachable { address: address.clone(), source };
        let tcp = TcpStream::connect((params.host.as_str(), params.port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let io: Box<dyn Duplex> = match &params.tls {
            Some(config) => Box::new(start_tls(tcp, config.clone(), &params.host, &address).await?),
            None => Box::new(tcp),
        };
        Ok(Self { io, incoming: BytesMut::with_capacity(READ_BUFFER_BYTES), outgoing: BytesMut::new(), address })
    }

    /// Takes the next whole message out of what has been read, without waiting.
    pub(super) fn buffered(&mut self) -> Result<Option<Raw>, PgError> {
        let Some((tag, len)) = header(&self.incoming)? else { return Ok(None) };
        if self.incoming.len() < 1 + len {
            return Ok(None);
        }
        let mut body = self.incoming.split_to(1 + len);
        body.advance(5);
        Ok(Some(Raw { tag, body }))
    }

    /// The type of the first message, once its header has been read.
    pub(super) fn first_tag(&self) -> Result<Option<u8>, PgError> {
        Ok(header(&self.incoming)?.map(|(tag, _)| tag))
    }

    /// Reads some more. May be dropped and called again: nothing is lost.
    pub(super) async fn fill(&mut self) -> Result<(), PgError> {
        let wanted = match header(&self.incoming)? {
            Some((_, len)) => (1 + len).saturating_sub(self.incoming.len()),
            None => 0,
        };
        // gives back the room of messages that have been dropped since
        self.incoming.reserve(wanted.max(READ_BUFFER_BYTES / 4));
        match self.io.read_buf(&mut self.incoming).await {
            Ok(0) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(source) => Err(self.lost(source)),
        }
    }

    /// The next message. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Raw, PgError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message, parsed. May be dropped and called again.
    pub(super) async fn next_parsed(&mut self) -> Result<Message, PgError> {
        loop {
            // checks the length before the buffer is made that long
            header(&self.incoming)?;
            if let Some(message) = Message::parse(&mut self.incoming).map_err(|e| protocol(&e))? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Sends what has been put into `outgoing`.
    pub(super) async fn flush(&mut self) -> Result<(), PgError> {
        while self.outgoing.has_remaining() {
            let sent = self.io.write_buf(&mut self.outgoing).await.map_err(|source| self.lost(source))?;
            if sent == 0 {
                return Err(self.lost(io::ErrorKind::WriteZero.into()));
            }
        }
        self.io.flush().await.map_err(|source| self.lost(source))
    }

    /// Bounds a wait on this connection.
    pub(super) async fn within<T>(
        address: &str,
        deadline: Duration,
        wait: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, PgError> {
        timeout(deadline, wait)
            .await
            .unwrap_or_else(|_| Err(PgError::Timeout { address: address.to_owned(), deadline }))
    }

    fn lost(&self, source: io::Error) -> PgError {
        PgError::Unreachable { address: self.address.clone(), source }
    }
}

/// Type and length (without the type's byte) of the first message.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, PgError> {
    let header = backend::Header::parse(bytes).map_err(|e| protocol(&e))?;
    let Some(header) = header else { return Ok(None) };
    match usize::try_from(header.len()) {
        Ok(len) if len <= MESSAGE_BYTES_MAX => Ok(Some((header.tag(), len))),
        _ => Err(PgError::Protocol(format!("a message of {} bytes", header.len()))),
    }
}

async fn start_tls(
    mut tcp: TcpStream,
    config: Arc<rustls::ClientConfig>,
    host: &str,
    address: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, PgError> {
    let unreachable = |source| PgError::Unreachable { address: address.to_owned(), source };
    let refused = |reason: String| PgError::Tls { address: address.to_owned(), reason };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await.map_err(unreachable)?;
    // exactly one byte: what follows it must come through TLS
    if tcp.read_u8().await.map_err(unreachable)? != b'S' {
        return Err(refused("the server does not offer TLS".to_owned()));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| refused(e.to_string()))?;
    TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
        // a server that dies meanwhile is not one to distrust
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            refused(error.to_string())
        } else {
            unreachable(error)
        }
    })
}

pub(super) fn protocol(error: &io::Error) -> PgError {
    PgError::Protocol(error.to_string())
}

/// An ErrorResponse as an error.
pub(super) fn server_error(body: &ErrorResponseBody) -> PgError {
    let mut error = (String::new(), String::new(), None, None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.0 = value,
            b'M' => error.1 = value,
            b'D' => error.2 = Some(value),
            b'H' => error.3 = Some(value),
            _ => {}
        }
    }
    PgError::Server { sqlstate: error.0, message: error.1, detail: error.2, hint: error.3 }
}
