//! A proxy before a server, for other people's programs: `scripts/suites.sh` runs test suites against it.
//!
//! ```text
//! serve HOST:PORT MODE SIZE                 before a server that runs
//! serve new[,SETTING=VALUE...] MODE SIZE    before a throw-away one
//! ```
//!
//! `MODE` is transaction, session, statement, or direct: without a proxy. The superuser's password comes on the first
//! line of standard input (the throw-away server has its own, and prints it); everything goes away when that input ends.
//! Printed: `server PORT`, `proxy PORT`, `password TEXT`.

use std::{
    io::{self, BufRead as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use millrace_base::{Secret, tls::TlsFiles};
use millrace_contract::{Topology, TopologyNode, status::NodeRole, topology::NodeHealth};
use millrace_proxy::{Access, ClientTls, Options, PoolLimits, PoolMode, Proxy};
use millrace_testkit::{PASSWORD, TestServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const USAGE: &str = "usage: serve HOST:PORT|new[,SETTING=VALUE...] transaction|session|statement|direct SIZE";

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [before, mode, size] = arguments.as_slice() else { return Err(USAGE.into()) };
    let mode = match mode.as_str() {
        "transaction" => Some(PoolMode::Transaction),
        "session" => Some(PoolMode::Session),
        "statement" => Some(PoolMode::Statement),
        "direct" => None,
        _ => return Err(USAGE.into()),
    };
    let mut input = io::BufReader::new(io::stdin()).lines();
    let (server, address, password) = match before.strip_prefix("new") {
        Some(settings) => {
            let settings: Vec<_> = settings.split(',').filter_map(|setting| setting.split_once('=')).collect();
            let server = TestServer::with_settings(&settings).await;
            let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
            (Some(server), address, PASSWORD.to_owned())
        }
        None => (None, before.parse()?, input.next().ok_or("the password is missing")??),
    };
    let stop = CancellationToken::new();
    let proxy = match mode {
        Some(mode) => Some(start(address, server.as_ref(), &password, mode, size.parse()?)?),
        None => None,
    };
    let port = proxy.as_ref().map_or(address.port(), |proxy| proxy.addresses()[0].port());
    writeln!(io::stdout(), "server {}\nproxy {port}\npassword {password}", address.port())?;

    let ended = stop.clone();
    std::thread::spawn(move || {
        input.for_each(drop);
        ended.cancel();
    });
    match proxy {
        Some(proxy) => proxy.run(stop).await?,
        None => stop.cancelled().await,
    }
    Ok(())
}

fn start(
    address: SocketAddr,
    server: Option<&TestServer>,
    password: &str,
    mode: PoolMode,
    size: usize,
) -> Result<Proxy, Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let client_tls = match server {
        Some(server) => ClientTls::Offer(TlsFiles::in_folder(server.folder().join("tls")).server_config(&[])?),
        None => ClientTls::Off,
    };
    let options = Options {
        workers: 2,
        pool: PoolLimits { mode, size, reserve: 0, ..PoolLimits::default() },
        client_tls,
        server_tls: server.map(TestServer::client_tls),
        secrets: [("postgres".to_owned(), Secret::new(password))].into(),
        ..Options::default()
    };
    let node = TopologyNode {
        name: "server".to_owned(),
        role: NodeRole::Primary,
        address,
        host: "localhost".to_owned(),
        timeline: None,
        health: NodeHealth::Ready,
    };
    // the proxy goes on with what it was told when the sender is gone
    let (_topology, watched) = watch::channel(Arc::new(Topology { epoch: 1, nodes: vec![node] }));
    Ok(Proxy::start([(listener, Access::ReadWrite)], options, watched)?)
}
