//! A server, a proxy before it, and clients: for the tests of the proxy on real servers, which are in this crate.
//!
//! They are not in the proxy's own, because that is optimised as what applications wait for, and its tests, with many
//! drivers among them, need not be: they would take minutes to compile.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use millrace_base::Secret;
use millrace_contract::{Topology, TopologyNode, status::NodeRole, topology::NodeHealth};
use millrace_proxy::{Access, Handle, Options, PoolLimits, Proxy, Reloaded};
use millrace_testkit::{PASSWORD, TestServer};
use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything takes that works.
pub const LONG: Duration = Duration::from_secs(30);

/// A proxy that goes away when dropped.
#[derive(Debug)]
pub struct Rig {
    pub server: TestServer,
    pub address: SocketAddr,
    pub read_only: SocketAddr,
    pub handle: Handle,
    pub topology: watch::Sender<Arc<Topology>>,
    _stop: DropGuard,
    _run: JoinHandle<()>,
}

/// As many connections as a test wants, and the superuser's password known.
pub fn pool_of(size: usize) -> Options {
    Options {
        pool: PoolLimits { size, reserve: 0, ..PoolLimits::default() },
        secrets: [("postgres".to_owned(), Secret::new(PASSWORD))].into(),
        ..Options::default()
    }
}

pub fn node(server: &TestServer, role: NodeRole, health: NodeHealth) -> TopologyNode {
    TopologyNode {
        name: format!("n{}", server.port()),
        role,
        address: ([127, 0, 0, 1], server.port()).into(),
        host: "localhost".to_owned(),
        timeline: None,
        health,
    }
}

pub fn alone(server: &TestServer, epoch: u64, health: NodeHealth) -> Arc<Topology> {
    Arc::new(Topology { epoch, nodes: vec![node(server, NodeRole::Primary, health)] })
}

impl Rig {
    pub async fn start(options: Options) -> Self {
        Self::before(TestServer::start().await, options).await
    }

    pub async fn before(server: TestServer, mut options: Options) -> Self {
        let _already = tracing_subscriber::fmt().with_test_writer().try_init();
        options.server_tls = Some(server.client_tls());
        let (topology, watched) = watch::channel(alone(&server, 1, NodeHealth::Ready));
        let listeners = [Access::ReadWrite, Access::ReadOnly].map(|access| (listener(), access));
        let proxy = Proxy::start(listeners, options, watched).unwrap();
        let addresses = proxy.addresses();
        let (handle, token) = (proxy.handle(), CancellationToken::new());
        let running = token.clone();
        #[expect(clippy::disallowed_methods, reason = "a test's own runtime ends with the test")]
        let run = tokio::spawn(async move { proxy.run(running).await.unwrap() });
        Self {
            server,
            address: addresses[0],
            read_only: addresses.get(1).copied().unwrap_or(addresses[0]),
            handle,
            topology,
            _stop: token.drop_guard(),
            _run: run,
        }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("postgres").password(PASSWORD).dbname("postgres");
        config
    }

    /// Options with the way to this server.
    pub fn complete(&self, options: Options) -> Options {
        Options { server_tls: Some(self.server.client_tls()), ..options }
    }

    pub fn reload(&self, options: Options) -> Reloaded {
        self.handle.reload(self.complete(options))
    }

    pub async fn client(&self) -> Client {
        connect(&self.config()).await.unwrap()
    }

    /// The server process that serves a client now.
    pub async fn pid(client: &Client) -> i32 {
        client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
    }
}

fn listener() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "it ends when the client is dropped")]
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    Ok(client)
}

/// The first value of a simple query.
pub async fn text(client: &Client, query: &str) -> String {
    let messages = client.simple_query(query).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
    for message in &messages {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap_or("NULL").to_owned();
        }
    }
    String::new()
}

pub fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned())
}

/// A connection that speaks the protocol byte by byte: for what no driver does.
#[derive(Debug)]
pub struct Raw {
    pub socket: TcpStream,
    /// What a cancel request must carry.
    pub key: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, key: Vec::new() }
    }

    /// Logs in as the superuser of a [`TestServer`].
    pub fn login(address: SocketAddr) -> Self {
        Self::login_to(address, "postgres")
    }

    pub fn login_to(address: SocketAddr, database: &str) -> Self {
        use postgres_protocol::{authentication::sasl, message::frontend};
        let mut raw = Self::connect(address);
        let mut out = bytes::BytesMut::new();
        frontend::startup_message([("user", "postgres"), ("database", database)], &mut out).unwrap();
        raw.send(&out);
        assert_eq!(raw.message().0, b'R');
        let mut scram = sasl::ScramSha256::new(PASSWORD.as_bytes(), sasl::ChannelBinding::unsupported());
        out.clear();
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut out).unwrap();
        raw.send(&out);
        scram.update(&raw.message().1[4..]).unwrap();
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).unwrap();
        raw.send(&out);
        loop {
            match raw.message() {
                (b'K', key) => raw.key = key,
                (b'Z', _) => break,
                (tag, body) => assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(&body)),
            }
        }
        assert_eq!(raw.key.len(), 8);
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// One message: its type and body.
    pub fn message(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.socket.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.socket.read_exact(&mut body).unwrap();
        (head[0], body)
    }

    /// The types of all messages up to ReadyForQuery.
    pub fn until_ready(&mut self) -> String {
        let mut tags = String::new();
        while !tags.ends_with('Z') {
            tags.push(char::from(self.message().0));
        }
        tags
    }

    /// The first value of what comes up to ReadyForQuery; empty if there is none.
    pub fn value(&mut self) -> String {
        let mut value = String::new();
        loop {
            match self.message() {
                (b'Z', _) => return value,
                // one column: its number, its length, and itself
                (b'D', body) => value = String::from_utf8_lossy(&body[6..]).into_owned(),
                _ => {}
            }
        }
    }

    /// All that comes until the other side closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // a reset is an end as well
        let _reset = self.socket.read_to_end(&mut all);
        all
    }
}

/// A message of the client's.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out
}

pub fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), b"\0"].concat())
}

pub fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat())
}

pub fn bind(name: &str) -> Vec<u8> {
    message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat())
}

pub fn execute() -> Vec<u8> {
    message(b'E', b"\0\0\0\0\0")
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Asks for the cancellation of what a client does, and waits until that is done.
pub fn cancel_request(address: SocketAddr, key: &[u8]) {
    let mut raw = Raw::connect(address);
    raw.send(&[&16u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), key].concat());
    raw.rest();
}
