//! A client from its first byte to the worker that serves it: TLS, who it is, whether it may, what a server would greet
//! it with.
//!
//! Invariants: all of it within one deadline; nothing is revealed about users, databases or limits before the proof of
//! the password is right; a failure is counted and its answer delayed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpStream;

use crate::{
    admin,
    backends::Access,
    connect,
    conversation::Conversation,
    link::PoolMode,
    message::{self, Severity},
    options::ClientTls,
    pool::PoolKey,
    proxy::Shared,
    scram::{self, Credential, ScramError, ServerExchange},
    settings::Settings,
    startup::{self, Startup, Wish},
    worker::{Inbox, NewClient, NewServer, OpenError},
};

/// The session is refused; the client is told in these words.
#[derive(Debug)]
struct Refusal {
    code: String,
    text: String,
    hint: &'static str,
}

fn refusal(code: &str, text: impl Into<String>, hint: &'static str) -> Refusal {
    Refusal { code: code.to_owned(), text: text.into(), hint }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        Self { code: error.code, text: error.message, hint: "" }
    }
}

/// Serves one new connection until a worker has it or it is gone.
pub(crate) async fn serve(shared: Arc<Shared>, socket: TcpStream, peer: SocketAddr, access: Access) {
    let deadline = shared.options().login;
    let served = tokio::time::timeout(deadline, Box::pin(begin(&shared, socket, peer, access))).await;
    match served {
        Ok(Ok(None)) => {}
        Ok(Ok(Some((conversation, user)))) => {
            if let Err(error) = admin::serve(&shared, conversation, &user).await {
                tracing::debug!(%peer, %error, "a session of the console broke off");
            }
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a client left before it had logged in"),
        Err(_) => tracing::info!(%peer, "a client did not log in in time"),
    }
}

/// To the end of the login. What is left to be served here is a session of the console, and whose it is.
async fn begin(
    shared: &Shared,
    socket: TcpStream,
    peer: SocketAddr,
    access: Access,
) -> io::Result<Option<(Conversation, String)>> {
    socket.set_nodelay(true)?;
    // a client that was cut off within a transaction holds its locks no longer than these say
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&socket, Duration::from_secs(20))?;
    rustix::net::sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(5))?;
    rustix::net::sockopt::set_tcp_keepcnt(&socket, 2)?;
    let mut conversation = Conversation::new(socket);
    let wish = loop {
        let packet = conversation.packet().await?;
        match startup::parse(&packet) {
            Ok(Startup::Tls) => match (&shared.options().client_tls, conversation.is_encrypted()) {
                (ClientTls::Offer(config) | ClientTls::Require(config), false) => {
                    conversation.send(b"S").await?;
                    conversation = conversation.accept_tls(config.clone()).await?;
                }
                _ => conversation.send(b"N").await?,
            },
            Ok(Startup::Gss) => conversation.send(b"N").await?,
            Ok(Startup::Cancel { pid, secret }) => {
                shared.cancel(pid, secret).await;
                return Ok(None);
            }
            Ok(Startup::Session(wish)) => break wish,
            Err(error) => {
                let refused = refusal("08P01", error.to_string(), "");
                return refuse(&mut conversation, &refused).await.map(|()| None);
            }
        }
    };
    match admit(shared, &mut conversation, &wish, peer, access).await? {
        Ok(Admitted::Console(greeting)) => {
            conversation.send(&greeting).await?;
            Ok(Some((conversation, wish.user)))
        }
        Ok(Admitted::Client(mut new)) => {
            let Some(room) = shared.room().await else {
                tracing::error!(%peer, "a client is refused: its worker is overwhelmed");
                let refused = refusal("53300", "the proxy has no room for the client", "try again later");
                return refuse(&mut conversation, &refused).await.map(|()| None);
            };
            let parts = conversation.into_parts()?;
            (new.socket, new.tls, new.early) = (Some(parts.socket), parts.tls, parts.early);
            room.fill(Inbox::Client(new));
            Ok(None)
        }
        Err(refused) => {
            tracing::info!(%peer, user = wish.user, database = wish.database, code = refused.code, "login refused: {}", refused.text);
            refuse(&mut conversation, &refused).await.map(|()| None)
        }
    }
}

async fn refuse(conversation: &mut Conversation, refused: &Refusal) -> io::Result<()> {
    let mut bytes = Vec::new();
    message::error(&mut bytes, Severity::Fatal, &refused.code, &refused.text, refused.hint);
    conversation.send(&bytes).await
}

/// What a client gets whose login is right.
enum Admitted {
    Client(Box<NewClient>),
    /// The administration console, with this greeting.
    Console(Vec<u8>),
}

/// Whether the client may have the session that it wishes.
async fn admit(
    shared: &Shared,
    conversation: &mut Conversation,
    wish: &Wish,
    peer: SocketAddr,
    access: Access,
) -> io::Result<Result<Admitted, Refusal>> {
    let options = shared.options();
    if matches!(options.client_tls, ClientTls::Require(_)) && !conversation.is_encrypted() {
        return Ok(Err(refusal(
            "28000",
            "connections without TLS are refused",
            "connect with sslmode=require or better",
        )));
    }
    if wish.replication {
        let text = "replication connections cannot be pooled";
        return Ok(Err(refusal("0A000", text, "connect to the server itself")));
    }
    if !options.rules.allows(peer.ip(), &wish.database, &wish.user) {
        let text =
            format!("user \"{}\" may not connect to database \"{}\" from {}", wish.user, wish.database, peer.ip());
        return Ok(Err(refusal("28000", text, "")));
    }
    if let Some(unknown) = &wish.unknown {
        conversation.send(&startup::negotiate(unknown)).await?;
    }
    let proven = match authenticate(shared, conversation, &wish.user).await? {
        Ok(last) => last,
        Err(refused) => {
            // the next guess from there waits longer
            tokio::time::sleep(shared.throttle.failed(peer.ip(), shared.clock.monotonic())).await;
            return Ok(Err(refused));
        }
    };
    if wish.database == admin::DATABASE {
        if !options.admins.contains(&wish.user) {
            let text = format!("user \"{}\" may not use the administration console", wish.user);
            return Ok(Err(refusal("28000", text, "")));
        }
        let mut greeting = proven;
        admin::greeting(&mut greeting);
        return Ok(Ok(Admitted::Console(greeting)));
    }
    if shared.gates.borrow().disabled.contains(wish.database.as_str()) {
        let text = format!("database \"{}\" is disabled", wish.database);
        return Ok(Err(refusal("57P03", text, "its operator enables it again")));
    }
    let permit = match shared.connected.admit(&wish.user, &wish.database, &options.clients) {
        Ok(permit) => permit,
        Err(limit) => return Ok(Err(refusal("53300", format!("too many clients: {limit} is reached"), ""))),
    };
    let pool = PoolKey { database: wish.database.as_str().into(), user: wish.user.as_str().into(), access };
    let (statuses, kills) = match greeting(shared, &pool, &wish.settings).await {
        Ok(greeted) => greeted,
        Err(error) => return Ok(Err(error.into())),
    };
    let routed =
        options.routing.is_some() && access == Access::ReadWrite && options.limits(&pool).mode != PoolMode::Session;
    let readers = routed.then(|| PoolKey { access: Access::ReadOnly, ..pool.clone() });
    let settings = Settings::new(wish.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut greeting = proven;
    authentication(&mut greeting, 0, b"");
    for (name, value) in statuses.iter() {
        let own = if name == "application_name" { settings.get(name) } else { None };
        message::parameter_status(&mut greeting, name, own.unwrap_or(value));
    }
    Ok(Ok(Admitted::Client(Box::new(NewClient {
        socket: None,
        tls: None,
        peer,
        limits: shared.options().limits(&pool),
        shared: shared.pool(&pool),
        readers: readers.map(|key| (key.clone(), shared.pool(&key))),
        pool,
        settings,
        greeting,
        kills,
        early: Vec::new(),
        permit,
    }))))
}

fn authentication(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    message::message(out, b'R', |out| {
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// SCRAM-SHA-256. What remains to be sent if the proof is right: it goes out with the greeting.
async fn authenticate(
    shared: &Shared,
    conversation: &mut Conversation,
    user: &str,
) -> io::Result<Result<Vec<u8>, Refusal>> {
    let failed = || refusal("28P01", format!("password authentication failed for user \"{user}\""), "");
    let mut offer = Vec::new();
    authentication(&mut offer, 10, &[scram::MECHANISM.as_bytes(), b"\0\0"].concat());
    conversation.send(&offer).await?;
    let Some(first) = initial_response(&conversation.message().await?) else { return Ok(Err(failed())) };
    let (verifier, known) = shared.users.verifier(user, false).await;
    let (answer, exchange) = match ServerExchange::begin(verifier, &first) {
        Ok(begun) => begun,
        Err(error @ ScramError::ChannelBinding) => {
            return Ok(Err(refusal("28000", error.to_string(), "connect with channel_binding=disable")));
        }
        Err(_) => return Ok(Err(failed())),
    };
    let mut bytes = Vec::new();
    authentication(&mut bytes, 11, answer.as_bytes());
    conversation.send(&bytes).await?;
    let (tag, proof) = conversation.message().await?;
    let proof = std::str::from_utf8(&proof).ok().filter(|_| tag == b'p');
    let Some(Ok((last, keys))) = proof.map(|proof| exchange.finish(proof)) else {
        // the password may have been changed: the next try is compared with what holds now
        let _anew = shared.users.verifier(user, true).await;
        return Ok(Err(failed()));
    };
    if !known {
        return Ok(Err(failed()));
    }
    if let Credential::Keys { .. } = keys {
        shared.users.learned(user, keys);
    }
    let mut bytes = Vec::new();
    authentication(&mut bytes, 12, last.as_bytes());
    Ok(Ok(bytes))
}

/// The first message of the client's exchange, if it chose our mechanism.
fn initial_response((tag, body): &(u8, bytes::BytesMut)) -> Option<String> {
    let mut rest = &body[..];
    let mechanism = message::read_cstr(&mut rest).ok()?;
    let data = rest.get(4..)?;
    let ours = *tag == b'p' && mechanism == scram::MECHANISM.as_bytes();
    ours.then(|| String::from_utf8(data.to_vec()).ok())?
}

/// While its database is paused, a client that would need a server to log in waits.
async fn resumed(shared: &Shared, pool: &PoolKey) -> Result<(), OpenError> {
    let mut gates = shared.gates.subscribe();
    // half of the time for all of the login: it must be told
    let wait = shared.options().login / 2;
    let resumed = gates.wait_for(|gates| !gates.pauses.holds(&pool.database));
    if tokio::time::timeout(wait, resumed).await.is_ok() {
        return Ok(());
    }
    let message = format!("database \"{}\" is paused", pool.database);
    Err(OpenError { code: "57P03".to_owned(), message, lasting: false })
}

/// What a server says about its settings to a client that wishes `settings`, and how often the database had been killed
/// then. Asked once for each combination; it also tells whether there is such a database, and whether the user may use it.
async fn greeting(
    shared: &Shared,
    pool: &PoolKey,
    settings: &[(String, String)],
) -> Result<(Arc<Vec<(String, String)>>, u64), OpenError> {
    let mut wished: Vec<(String, String)> = settings.iter().filter(|(n, _)| n != "application_name").cloned().collect();
    wished.sort();
    loop {
        let kills = || shared.gates.borrow().kills.of(&pool.database);
        let asked = (pool.clone(), kills(), wished.clone());
        if let Some(known) = shared.greetings.get(&asked) {
            return Ok((known, asked.1));
        }
        resumed(shared, pool).await?;
        let node = shared.node_for(pool.access).await?;
        let credential = shared.users.credential(&pool.user);
        let login = (&*pool.user, &*pool.database, credential.as_ref());
        let options = shared.options();
        let opened = connect::open(&node, login, &wished, options.server_tls.clone(), options.connect).await?;
        if kills() != asked.1 {
            // it was killed meanwhile: as if the client came now
            continue;
        }
        let (kills, statuses) = (asked.1, Arc::new(opened.statuses));
        shared.greetings.put(asked, statuses.clone());
        let counts = shared.pool(pool);
        let limits = options.limits(pool);
        if wished.is_empty() && counts.reserve(limits.size) {
            let server = NewServer {
                socket: opened.parts.socket,
                tls: opened.parts.tls,
                pool: pool.clone(),
                limits,
                shared: counts,
                node: Arc::new(node),
                key: opened.key,
                asked_for: false,
            };
            shared.give_server(server);
        }
        return Ok((statuses, kills));
    }
}
