//! From a new connection to a session: encryption, startup message, authentication.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Context, DATABASE, auth, backend,
    command::{REPORTED, Settings},
    error::{Ended, Refusal},
    frontend::{Message, STARTUP_BYTES_MAX, Startup, text},
    session::Session,
    wire::{Stream, Wire},
};

/// A message before authentication longer than this is not one.
const BEFORE_AUTH_BYTES_MAX: usize = 64 << 10;

/// Serves one connection to its end.
pub(crate) async fn serve(mut tcp: TcpStream, tls: Arc<ServerConfig>, context: Arc<Context>) {
    // small messages both ways; a connection without this is only slower
    _ = tcp.set_nodelay(true);
    let startup = context.limits.startup;
    let encrypted = tokio::select! {
        () = context.token.cancelled() => return,
        encrypted = tokio::time::timeout(startup, encrypt(&mut tcp, &context)) => encrypted,
    };
    if !matches!(encrypted, Ok(Ok(true))) {
        return;
    }
    let accepted = tokio::time::timeout(startup, TlsAcceptor::from(tls).accept(tcp)).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a client's TLS handshake failed"),
        Err(_) => return,
    };
    let mut wire = Wire::new(stream, BEFORE_AUTH_BYTES_MAX, context.limits.write);
    let begun = tokio::select! {
        () = context.token.cancelled() => return,
        begun = tokio::time::timeout(startup, begin(&mut wire, &context)) => begun,
    };
    match begun {
        Ok(Ok(Some((user, settings)))) => {
            let Ok(_room) = context.sessions.clone().try_acquire_owned() else {
                let refusal = Refusal::fatal("53300", "sorry, too many clients already")
                    .hint("close other sessions, or raise [warehouse] max_sessions");
                backend::refusal(&mut wire.out, &refusal);
                return wire.close().await;
            };
            wire.allow(context.limits.message_bytes);
            let registered = context.registry.register();
            greet(&mut wire.out, &settings, registered.pid, registered.key);
            tracing::debug!(user, "a warehouse session begins");
            Box::pin(Session::new(wire, context.clone(), settings, registered).run()).await;
        }
        Ok(Ok(None) | Err(Ended::Gone)) | Err(_) => {}
        Ok(Err(Ended::Refused(refusal))) => {
            if refusal.sqlstate == "28P01" {
                tracing::warn!(reason = refusal.message, "a warehouse login was refused");
            }
            backend::refusal(&mut wire.out, &refusal);
            wire.close().await;
        }
    }
}

/// Answers what comes before encryption; true when the client begins TLS now.
async fn encrypt(tcp: &mut TcpStream, context: &Context) -> Result<bool, Ended> {
    // SSL and GSS may both be asked for, once
    for _ in 0..3 {
        let mut first = [0];
        if tcp.peek(&mut first).await? == 0 {
            return Err(Ended::Gone);
        }
        if first == [0x16] {
            // TLS from the first byte (PostgreSQL 17 clients, sslnegotiation=direct)
            return Ok(true);
        }
        match read_startup(tcp).await {
            Ok(Startup::Ssl) => {
                tcp.write_all(b"S").await?;
                return Ok(true);
            }
            Ok(Startup::GssEncryption) => tcp.write_all(b"N").await?,
            Ok(Startup::Cancel { pid, key }) => {
                context.registry.cancel(pid, key);
                return Ok(false);
            }
            Ok(Startup::Session { .. }) => {
                let refusal = Refusal::fatal("28000", "the warehouse accepts encrypted connections only")
                    .hint("connect with sslmode=require, or with sslmode=verify-full and the platform's ca.crt");
                return plain_refusal(tcp, &refusal).await;
            }
            Err(Ended::Refused(refusal)) => return plain_refusal(tcp, &refusal).await,
            Err(gone) => return Err(gone),
        }
    }
    Ok(false)
}

async fn plain_refusal(tcp: &mut TcpStream, refusal: &Refusal) -> Result<bool, Ended> {
    let mut out = BytesMut::new();
    backend::refusal(&mut out, refusal);
    tcp.write_all(&out).await?;
    tcp.shutdown().await?;
    Ok(false)
}

/// Reads exactly one startup message and nothing behind it.
async fn read_startup(stream: &mut (impl AsyncRead + Unpin)) -> Result<Startup, Ended> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(0);
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(Refusal::fatal("08P01", "invalid length of startup packet").into());
    }
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await?;
    Ok(Startup::parse(body.into())?)
}

/// Startup message and authentication; `None` when there is no session to begin.
async fn begin<S: Stream>(wire: &mut Wire<S>, context: &Context) -> Result<Option<(String, Settings)>, Ended> {
    let (minor, params) = match read_startup(wire.stream()).await? {
        Startup::Cancel { pid, key } => {
            context.registry.cancel(pid, key);
            return Ok(None);
        }
        Startup::Session { minor, params } => (minor, params),
        Startup::Ssl | Startup::GssEncryption => {
            return Err(Refusal::fatal("08P01", "the connection is encrypted already").into());
        }
    };
    let get = |wanted: &str| params.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let user = get("user")
        .filter(|user| !user.is_empty())
        .ok_or_else(|| Refusal::fatal("28000", "no PostgreSQL user name specified in startup packet"))?;
    let unknown: Vec<&str> =
        params.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_.")).collect();
    if minor > 0 || !unknown.is_empty() {
        backend::negotiate_version(&mut wire.out, &unknown);
    }
    authenticate(wire, context, user).await?;
    let database = get("database").filter(|name| !name.is_empty()).unwrap_or(user);
    if database != DATABASE {
        return Err(Refusal::fatal("3D000", format!("database \"{database}\" does not exist"))
            .hint(format!("the only database here is \"{DATABASE}\""))
            .into());
    }
    if get("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(Refusal::fatal("0A000", "the warehouse has no replication").into());
    }
    let mut settings = Settings::new(user, context.limits.statement);
    let fatal = |refusal: Refusal| Refusal { severity: "FATAL", ..refusal };
    for (name, value) in &params {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => options(value, &mut settings).map_err(fatal)?,
            name if name.starts_with("_pq_.") => {}
            name => {
                settings.set(name, value).map_err(fatal)?;
            }
        }
    }
    settings.keep();
    Ok(Some((user.to_owned(), settings)))
}

/// `-c name=value` or `--name=value`, as servers take them.
fn options(text: &str, settings: &mut Settings) -> Result<(), Refusal> {
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|rest| !rest.is_empty()))
        {
            Some(setting) => setting,
            None if word == "-c" => words.next().unwrap_or_default(),
            None => {
                return Err(Refusal::error(
                    "42601",
                    format!("invalid command-line argument for server process: {word}"),
                ));
            }
        };
        let (name, value) =
            setting.split_once('=').ok_or_else(|| Refusal::error("42601", format!("-c {setting} requires a value")))?;
        settings.set(&name.replace('-', "_"), value)?;
    }
    Ok(())
}

/// SCRAM-SHA-256 in four messages.
async fn authenticate<S: Stream>(wire: &mut Wire<S>, context: &Context, user: &str) -> Result<(), Ended> {
    const SASL: i32 = 10;
    const SASL_CONTINUE: i32 = 11;
    const SASL_FINAL: i32 = 12;
    let bad = || Refusal::fatal("08P01", "malformed SASL message");
    backend::authentication(&mut wire.out, SASL, format!("{}\0\0", auth::MECHANISM).as_bytes());
    wire.flush().await?;
    let mut initial = password(wire).await?;
    let mechanism = text(&mut initial)?;
    if mechanism != auth::MECHANISM {
        return Err(Refusal::fatal("08P01", "client selected an invalid SASL authentication mechanism").into());
    }
    initial.try_get_i32().map_err(|_| bad())?;
    let (first, exchange) = context.users.begin(user, &initial)?;
    backend::authentication(&mut wire.out, SASL_CONTINUE, first.as_bytes());
    wire.flush().await?;
    let proof = password(wire).await?;
    let last = exchange.finish(&proof)?;
    backend::authentication(&mut wire.out, SASL_FINAL, last.as_bytes());
    backend::authentication(&mut wire.out, 0, &[]);
    Ok(())
}

async fn password<S: Stream>(wire: &mut Wire<S>) -> Result<Bytes, Ended> {
    match wire.next().await? {
        Message::Password(body) => Ok(body),
        Message::Terminate => Err(Ended::Gone),
        _ => Err(Refusal::fatal("08P01", "expected SASL response").into()),
    }
}

fn greet(out: &mut BytesMut, settings: &Settings, pid: i32, key: i32) {
    for name in REPORTED {
        if let Ok(value) = settings.get(name) {
            backend::parameter_status(out, name, value);
        }
    }
    backend::backend_key(out, pid, key);
    backend::ready(out, b'I');
}
