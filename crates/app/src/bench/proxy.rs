//! `millrace bench proxy`: pgbench through our proxy and through PgBouncer, in turns, before the same server.
//!
//! Plain text and SCRAM on both sides of both: what is compared is the pooling. Processor time is the pooler's own: ours
//! runs in this process, which does nothing else meanwhile. pgbench takes its share of the same cores from both alike.

mod peer;

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use millrace_base::{Secret, Tasks, files};
use millrace_contract::{
    Topology, TopologyNode,
    status::NodeRole,
    topology::{NodeHealth, Replay},
};
use millrace_proxy::{Access, ClientLimits, Options, PoolLimits, Proxy, Routing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Measured, ROUNDS,
    figure::{Figure, median},
    lab::Lab,
    pgbench::{self, Load, Run},
    usage,
};
use peer::Bouncer;

/// Server connections of either pooler.
const POOL: usize = 20;
const SECONDS: u32 = 5;
/// Clients that only stay connected, for their memory.
const IDLE: u32 = 900;
const PEER: &str = "PgBouncer";

/// Where pgbench is sent.
struct Bed {
    programs: pgbench::Programs,
    ours: SocketAddr,
    password: Secret,
    peer: Bouncer,
    direct: SocketAddr,
}

pub(crate) async fn measure(lab: &mut Lab) -> anyhow::Result<Measured> {
    let server = lab.server("server", &[("max_connections", "300")]).await?;
    let folder = lab.folder().join("server");
    // the platform's servers want TLS; here neither side has it
    let hba = folder.join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, format!("host all all 127.0.0.1/32 scram-sha-256\n{rules}"))?;
    let client = server.connect("postgres").await?;
    client.batch_execute("CREATE DATABASE bench").await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    let direct: SocketAddr = ([127, 0, 0, 1], server.admin.port).into();
    let password = server.admin.password.clone();
    let passfile = lab.folder().join("bench.pgpass");
    files::write_atomic(&passfile, format!("127.0.0.1:*:*:postgres:{}\n", password.reveal()).as_bytes(), 0o600)?;
    let programs = pgbench::Programs { pgbench: lab.binaries().program("pgbench"), passfile };
    lab.note("pgbench makes its tables, scale 10");
    programs.initialize(direct, 10).await?;

    let peer = Bouncer::start(lab, direct, &password).await?;
    lab.versions.push(peer.version.clone());
    let mut tasks = Tasks::new(CancellationToken::new());
    let ours = start_ours(direct, &password, false, &mut tasks)?;
    let bed = Bed { programs, ours, password, peer, direct };
    let measured = bed.measure(lab).await;
    for error in tasks.shutdown(Duration::from_secs(10)).await {
        lab.note(format!("our proxy ended badly: {error}"));
    }
    Ok(Measured { figures: measured?, differences: Vec::new() })
}

/// With `routing`, the same server is a replica as well, one that is never behind: what is measured is the choice.
fn start_ours(server: SocketAddr, password: &Secret, routing: bool, tasks: &mut Tasks) -> anyhow::Result<SocketAddr> {
    const REPLICA: &str = "replica";
    let node = |name: &str, role| TopologyNode {
        name: name.to_owned(),
        role,
        address: server,
        host: "localhost".to_owned(),
        timeline: None,
        health: NodeHealth::Ready,
    };
    let mut nodes = vec![node("server", NodeRole::Primary)];
    let replay = Arc::new(Replay::default());
    if routing {
        nodes.push(node(REPLICA, NodeRole::Replica));
        replay.round_of(REPLICA).store(u64::MAX, Ordering::SeqCst);
    }
    let (topology, followed) = watch::channel(Arc::new(Topology { epoch: 1, nodes }));
    let options = Options {
        workers: 1,
        clients: ClientLimits { all: 2_000, ..ClientLimits::default() },
        pool: PoolLimits { size: POOL, reserve: 0, ..PoolLimits::default() },
        secrets: [("postgres".to_owned(), password.clone())].into(),
        routing: routing.then(|| Routing {
            replay,
            user: "postgres".to_owned(),
            password: password.clone(),
            tls: None,
        }),
        ..Options::default()
    };
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let proxy = Proxy::start([(listener, Access::ReadWrite)], options, followed)?;
    let token = tasks.token().clone();
    tasks.spawn("proxy", async move {
        let ended = proxy.run(token).await;
        drop(topology);
        ended
    });
    Ok(address)
}

/// One load on both sides: all rounds.
#[derive(Default)]
struct Pair {
    ours: Vec<Run>,
    peer: Vec<Run>,
}

impl Pair {
    fn figure(&self, what: &str, unit: &'static str, higher_is_better: bool, value: impl Fn(&Run) -> f64) -> Figure {
        let of = |runs: &[Run]| median(runs.iter().map(&value).collect());
        Figure {
            what: what.to_owned(),
            unit,
            ours: of(&self.ours),
            peer: Some(of(&self.peer)),
            peer_name: PEER.to_owned(),
            higher_is_better,
            settings: format!(
                "pgbench --select-only, scale 10, {SECONDS} s a round, median of {ROUNDS} in turns; transaction pooling, \
                 {POOL} server connections, one thread each, plain text, SCRAM; pgbench, pooler and server share the cores"
            ),
        }
    }
}

impl Bed {
    async fn measure(&self, lab: &Lab) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (mode, clients) in [("simple", 32), ("simple", 256), ("extended", 32)] {
            figures.extend(self.load(lab, mode, clients, self.ours, "").await?);
        }
        figures.extend(self.routed(lab).await?);
        figures.push(self.beside_direct(lab, "prepared", "direct connections (PgBouncer 1.18 cannot)").await?);
        figures.push(self.beside_direct(lab, "extended", "direct connections").await?);
        let load = Load { mode: "simple", clients: 8, seconds: SECONDS, connect_each: true };
        let pair = self.both(lab, &load, self.ours).await?;
        figures.push(pair.figure("connections, each with one transaction", "a second", true, |run| run.tps));
        figures.push(pair.figure("processor time of 100,000 connections", "cpu s", false, Run::cpu_of_100k));
        figures.push(self.idle(lab).await?);
        Ok(figures)
    }

    async fn load(
        &self,
        lab: &Lab,
        mode: &'static str,
        clients: u32,
        ours: SocketAddr,
        how: &str,
    ) -> anyhow::Result<Vec<Figure>> {
        let load = Load { mode, clients, seconds: SECONDS, connect_each: false };
        let pair = self.both(lab, &load, ours).await?;
        let name = |what: &str| format!("{what}, {mode}, {clients} clients{how}");
        Ok(vec![
            pair.figure(&name("throughput"), "tps", true, |run| run.tps),
            pair.figure(&name("latency p50"), "ms", false, |run| run.p50_ms),
            pair.figure(&name("latency p99"), "ms", false, |run| run.p99_ms),
            pair.figure(&name("processor time of 100,000 transactions"), "cpu s", false, Run::cpu_of_100k),
        ])
    }

    /// Through another proxy of ours, which sends reads to a replica.
    async fn routed(&self, lab: &Lab) -> anyhow::Result<Vec<Figure>> {
        let mut tasks = Tasks::new(CancellationToken::new());
        let ours = start_ours(self.direct, &self.password, true, &mut tasks)?;
        let mut figures = Vec::new();
        for mode in ["simple", "extended"] {
            figures.extend(self.load(lab, mode, 32, ours, ", reads routed").await?);
        }
        for error in tasks.shutdown(Duration::from_secs(10)).await {
            lab.note(format!("our routing proxy ended badly: {error}"));
        }
        Ok(figures)
    }

    /// Rounds of both, each beginning with the other one.
    async fn both(&self, lab: &Lab, load: &Load, address: SocketAddr) -> anyhow::Result<Pair> {
        let mut pair = Pair::default();
        for round in 1..=ROUNDS {
            for turn in 0..2 {
                let ours = (turn + round) % 2 == 0;
                let run = if ours { self.ours(load, address).await? } else { self.theirs(load).await? };
                let who = if ours { "ours" } else { PEER };
                lab.note(format!(
                    "{load}, round {round}, {who}: {:.0} tps, p99 {:.2} ms, {:.2} processor s for 100,000",
                    run.tps,
                    run.p99_ms,
                    run.cpu_of_100k()
                ));
                if ours { pair.ours.push(run) } else { pair.peer.push(run) }
            }
        }
        Ok(pair)
    }

    async fn ours(&self, load: &Load, address: SocketAddr) -> anyhow::Result<Run> {
        let before = usage::own_cpu_s();
        let mut run = self.programs.run(address, load).await?;
        run.cpu_s = usage::own_cpu_s() - before;
        Ok(run)
    }

    async fn theirs(&self, load: &Load) -> anyhow::Result<Run> {
        let before = usage::server_cpu_s(self.peer.pid);
        let mut run = self.programs.run(self.peer.address, load).await?;
        run.cpu_s = usage::server_cpu_s(self.peer.pid) - before;
        Ok(run)
    }

    /// Beside as many connections to the server itself as there are clients.
    async fn beside_direct(&self, lab: &Lab, mode: &'static str, peer: &str) -> anyhow::Result<Figure> {
        let load = Load { mode, clients: 32, seconds: SECONDS, connect_each: false };
        let mut pair = Pair::default();
        for round in 1..=ROUNDS {
            pair.ours.push(self.ours(&load, self.ours).await?);
            pair.peer.push(self.programs.run(self.direct, &load).await?);
            lab.note(format!("{load}, round {round}"));
        }
        let what = format!("throughput, {mode}, 32 clients, beside direct connections");
        let mut figure = pair.figure(&what, "tps", true, |run| run.tps);
        peer.clone_into(&mut figure.peer_name);
        Ok(figure)
    }

    /// What a client costs that does nothing.
    async fn idle(&self, lab: &Lab) -> anyhow::Result<Figure> {
        let each_kib = |before: f64, after: f64| (after - before).max(0.0) / f64::from(IDLE);
        let own = || usage::resident_kib(std::process::id());
        let theirs = || usage::resident_kib(self.peer.pid);
        let script: PathBuf = lab.folder().join("idle.sql");
        std::fs::write(&script, "\\sleep 600 s\n").context("cannot write a script for pgbench")?;
        let mut both = Vec::new();
        for (address, resident) in
            [(self.ours, &own as &dyn Fn() -> f64), (self.peer.address, &theirs as &dyn Fn() -> f64)]
        {
            let before = resident();
            let _clients = self.programs.hold(address, IDLE, &script).await?;
            both.push(each_kib(before, resident()));
        }
        Ok(Figure {
            what: "memory of an idle client".to_owned(),
            unit: "KiB",
            ours: both.first().copied().unwrap_or(f64::NAN),
            peer: both.get(1).copied(),
            peer_name: PEER.to_owned(),
            higher_is_better: false,
            settings: format!(
                "{IDLE} clients that have logged in and do nothing: growth of the pooler's resident memory"
            ),
        })
    }
}
