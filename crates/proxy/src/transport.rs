//! One connection's bytes, without waiting: plain TCP or TLS.
//!
//! Invariant: readiness is edge-triggered, so a receiver goes on until [`Received::drained`] or there is nothing more.

use std::io::{self, Read, Write};

use mio::{Interest, Registry, Token, net::TcpStream};

/// A socket, and TLS if it was agreed on.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsTransport>),
}

#[derive(Debug)]
pub(crate) struct TlsTransport {
    pub(crate) socket: TcpStream,
    pub(crate) session: rustls::Connection,
}

/// What one receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// 0: the other side has closed.
    pub(crate) bytes: usize,
    /// Nothing more is there now: the next edge will tell.
    pub(crate) drained: bool,
}

impl Transport {
    /// A connection that was opened elsewhere.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub(crate) fn new(socket: std::net::TcpStream, tls: Option<rustls::Connection>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = TcpStream::from_std(socket);
        Ok(match tls {
            None => Self::Plain(socket),
            Some(session) => Self::Tls(Box::new(TlsTransport { socket, session })),
        })
    }

    fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        }
    }

    /// Both edges, once for the connection's life.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.socket(), token, Interest::READABLE | Interest::WRITABLE)
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(self.socket())
    }

    /// Receives into `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; any other ends the connection.
    #[inline]
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        match self {
            Self::Plain(socket) => loop {
                match socket.read(buffer) {
                    Ok(bytes) => return Ok(Received { bytes, drained: bytes < buffer.len() }),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            },
            Self::Tls(tls) => tls.receive(buffer),
        }
    }

    /// Sends as much of `bytes` as the socket takes now; 0 if it takes nothing.
    ///
    /// # Errors
    /// If the connection is lost.
    #[inline]
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => loop {
                match socket.write(bytes) {
                    Ok(sent) => return Ok(sent),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                    Err(error) => return Err(error),
                }
            },
            Self::Tls(tls) => tls.send(bytes),
        }
    }

    /// Sends what TLS still holds.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Tells the other side that nothing more comes; errors do not matter any more.
    pub(crate) fn shutdown(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            let _gone = tls.flush();
        }
        let _gone = self.socket().shutdown(std::net::Shutdown::Both);
    }
}

impl TlsTransport {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match self.session.reader().read(buffer) {
                Ok(bytes) => return Ok(Received { bytes, drained: false }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // closed without a goodbye: as a closed socket
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Received { bytes: 0, drained: true });
                }
                Err(error) => return Err(error),
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(Received { bytes: 0, drained: true });
            }
            self.session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // a key update or an alert may want an answer
            self.flush()?;
        }
    }

    /// Goes on until the socket is full, not only rustls's own buffer: no edge would tell that there is room again.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        loop {
            self.flush()?;
            let rest = bytes.get(sent..).unwrap_or_default();
            if rest.is_empty() || self.session.wants_write() {
                return Ok(sent);
            }
            sent += self.session.writer().write(rest)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
