//! A proxy by itself, for measuring: `cargo run -p millrace-proxy --example pooler -- LISTEN SERVER USER PASSWORD [WORKERS]`.
//!
//! It pools 20 connections to one server in transaction mode, in plain text on both sides, until it is killed.

use std::sync::Arc;

use millrace_base::Secret;
use millrace_contract::{Topology, TopologyNode, status::NodeRole, topology::NodeHealth};
use millrace_proxy::{Access, ClientLimits, Options, PoolLimits, Proxy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &'static str| arguments.next().ok_or_else(|| anyhow::anyhow!("{what} is missing"));
    let listen: std::net::SocketAddr = next("LISTEN")?.parse()?;
    let address = next("SERVER")?.parse()?;
    let (user, password) = (next("USER")?, Secret::new(next("PASSWORD")?));
    let workers = next("WORKERS").map_or(Ok(1), |n| n.parse())?;
    let node = TopologyNode {
        name: "a".to_owned(),
        role: NodeRole::Primary,
        address,
        host: "localhost".to_owned(),
        timeline: None,
        health: NodeHealth::Ready,
    };
    let (_keep, topology) = watch::channel(Arc::new(Topology { epoch: 1, nodes: vec![node] }));
    let options = Options {
        workers,
        clients: ClientLimits { all: 20_000, user: None, database: None },
        pool: PoolLimits { size: 20, reserve: 0, ..PoolLimits::default() },
        secrets: [(user, password)].into(),
        ..Options::default()
    };
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    Proxy::start([(listener, Access::ReadWrite)], options, topology)?.run(CancellationToken::new()).await?;
    Ok(())
}
