//! Opening connections to servers: TCP, TLS, login; and cancel requests.
//!
//! Invariant: with TLS configured, nothing but the request for it is sent in plain text.

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpStream;

use crate::{
    backends::Node,
    conversation::{Conversation, Parts},
    message,
    peer::CancelKey,
    scram::{self, ClientExchange, Credential},
    worker::OpenError,
};

const SSL_REQUEST: u32 = 80_877_103;
pub(crate) const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL: u32 = 196_608;

/// A connection that has said ReadyForQuery.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) parts: Parts,
    pub(crate) key: CancelKey,
    /// ParameterStatus, as the server sent them.
    pub(crate) statuses: Vec<(String, String)>,
}

/// Opens a connection within `deadline` and logs in.
pub(crate) async fn open(
    node: &Node,
    login: (&str, &str, Option<&Credential>),
    settings: &[(String, String)],
    tls: Option<Arc<rustls::ClientConfig>>,
    deadline: Duration,
) -> Result<Opened, OpenError> {
    let unreachable = |error: io::Error| OpenError {
        code: "08001".to_owned(),
        message: format!("server {} at {} cannot be reached: {error}", node.name, node.address),
        lasting: false,
    };
    let opening = async {
        let mut conversation = reach(node, tls).await.map_err(unreachable)?;
        log_in(&mut conversation, node, login, settings)
            .await
            .map_err(|error| match error {
                LoginError::Io(error) => unreachable(error),
                LoginError::Refused(error) => error,
            })
            .and_then(|(key, statuses)| {
                Ok(Opened { parts: conversation.into_parts().map_err(unreachable)?, key, statuses })
            })
    };
    match tokio::time::timeout(deadline, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(unreachable(io::ErrorKind::TimedOut.into())),
    }
}

async fn reach(node: &Node, tls: Option<Arc<rustls::ClientConfig>>) -> io::Result<Conversation> {
    let socket = TcpStream::connect(node.address).await?;
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    // a server that is cut off is given up soon, and with it what it was asked
    rustix::net::sockopt::set_tcp_keepidle(&socket, Duration::from_secs(4))?;
    rustix::net::sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(2))?;
    rustix::net::sockopt::set_tcp_keepcnt(&socket, 2)?;
    // this also counts while the server does not take what it is sent
    rustix::net::sockopt::set_tcp_user_timeout(&socket, 120_000)?;
    let mut conversation = Conversation::new(socket);
    let Some(tls) = tls else { return Ok(conversation) };
    let mut request = 8u32.to_be_bytes().to_vec();
    request.extend_from_slice(&SSL_REQUEST.to_be_bytes());
    conversation.send(&request).await?;
    match conversation.byte().await? {
        b'S' => conversation.connect_tls(tls, &node.host).await,
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the server offers no TLS")),
    }
}

enum LoginError {
    Io(io::Error),
    Refused(OpenError),
}

impl From<io::Error> for LoginError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn refused(code: &str, message: impl Into<String>) -> LoginError {
    LoginError::Refused(OpenError { code: code.to_owned(), message: message.into(), lasting: true })
}

async fn log_in(
    conversation: &mut Conversation,
    node: &Node,
    (user, database, credential): (&str, &str, Option<&Credential>),
    settings: &[(String, String)],
) -> Result<(CancelKey, Vec<(String, String)>), LoginError> {
    conversation.send(&startup(user, database, settings)).await?;
    let mut exchange = ClientExchange::new();
    let (mut key, mut statuses) = (CancelKey::default(), Vec::new());
    loop {
        let (tag, body) = conversation.message().await?;
        match tag {
            b'R' => {
                let Some((kind, data)) = body.split_first_chunk() else {
                    return Err(refused("08P01", "malformed authentication request"));
                };
                let answer = authenticate(u32::from_be_bytes(*kind), data, &mut exchange, credential, user, node)?;
                if !answer.is_empty() {
                    conversation.send(&answer).await?;
                }
            }
            b'S' => {
                let mut rest = &body[..];
                if let (Ok(name), Ok(value)) = (message::read_cstr(&mut rest), message::read_cstr(&mut rest)) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    statuses.push((text(name), text(value)));
                }
            }
            b'K' => {
                let field =
                    |at: usize| body.get(at..at + 4).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b));
                key = CancelKey { pid: field(0).unwrap_or(0), secret: field(4).unwrap_or(0) };
            }
            b'Z' => return Ok((key, statuses)),
            b'E' => {
                let field = |name, otherwise: &str| message::error_field(&body, name).unwrap_or(otherwise).to_owned();
                let code = field(b'C', "08P01");
                // starting up, shutting down, too many: may pass
                let lasting = !matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "53300");
                return Err(LoginError::Refused(OpenError {
                    code,
                    message: field(b'M', "the server refused"),
                    lasting,
                }));
            }
            b'N' => {}
            other => {
                return Err(refused("08P01", format!("unexpected message {other:#04x} from server {}", node.name)));
            }
        }
    }
}

fn startup(user: &str, database: &str, settings: &[(String, String)]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend_from_slice(&PROTOCOL.to_be_bytes());
    let own = [("user", user), ("database", database)];
    let given = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.into_iter().chain(given) {
        message::cstr(&mut packet, name.as_bytes());
        message::cstr(&mut packet, value.as_bytes());
    }
    packet.push(0);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    if let Some(field) = packet.get_mut(..4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    packet
}

/// What to send in answer to an authentication request; empty for nothing.
fn authenticate(
    kind: u32,
    data: &[u8],
    exchange: &mut ClientExchange,
    credential: Option<&Credential>,
    user: &str,
    node: &Node,
) -> Result<Vec<u8>, LoginError> {
    let mut answer = Vec::new();
    let known = || {
        credential.ok_or_else(|| {
            refused("28000", format!("the proxy knows neither password nor keys of \"{user}\" on server {}", node.name))
        })
    };
    let text = || std::str::from_utf8(data).map_err(|_| refused("08P01", "malformed SCRAM message"));
    let failed =
        |error: scram::ScramError| refused("28P01", format!("login as \"{user}\" on server {}: {error}", node.name));
    match kind {
        0 => {}
        10 => {
            known()?;
            if !data.split(|b| *b == 0).any(|m| m == scram::MECHANISM.as_bytes()) {
                return Err(refused("28000", format!("server {} offers no SCRAM-SHA-256", node.name)));
            }
            let first = exchange.first();
            message::message(&mut answer, b'p', |out| {
                message::cstr(out, scram::MECHANISM.as_bytes());
                out.extend_from_slice(&u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
                out.extend_from_slice(first.as_bytes());
            });
        }
        11 => {
            let proof = exchange.prove(known()?, text()?).map_err(failed)?;
            message::message(&mut answer, b'p', |out| out.extend_from_slice(proof.as_bytes()));
        }
        12 => exchange.check(text()?).map_err(failed)?,
        _ => return Err(refused("28000", format!("server {} wants another method than SCRAM-SHA-256", node.name))),
    }
    Ok(answer)
}

/// Asks a server to cancel what the connection with this key does now, and waits until it has heard.
///
/// # Errors
/// If the server cannot be reached in time.
pub(crate) async fn cancel(
    node: &Node,
    key: CancelKey,
    tls: Option<Arc<rustls::ClientConfig>>,
    deadline: Duration,
) -> io::Result<()> {
    let asking = async {
        let mut conversation = reach(node, tls).await?;
        let mut request = 16u32.to_be_bytes().to_vec();
        request.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        request.extend_from_slice(&key.pid.to_be_bytes());
        request.extend_from_slice(&key.secret.to_be_bytes());
        conversation.send(&request).await?;
        // it says nothing, and closes when it has sent the signal
        match conversation.byte().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            other => other.map(drop),
        }
    };
    tokio::time::timeout(deadline, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
