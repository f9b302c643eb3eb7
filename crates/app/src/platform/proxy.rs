//! The proxy as a part of the platform: what it is told from the configuration, and how its state is told on.

use std::{net::TcpListener, sync::Arc};

use anyhow::Context as _;
use millrace_cluster::{
    spec::{REPLICATOR, SUPERUSER},
    topology::Teller,
};
use millrace_contract::{
    status::{PoolStatus, ProxyStatus, Times},
    topology::Replay,
};
use millrace_proxy::{
    Access, AuthQuery, BOUNDS_US, ClientLimits, ClientTls, Handle, Histogram, Network, Options, PoolLimits, PoolMode,
    PoolView, Routing, Rule, Rules,
};

use super::serve;
use crate::context::Context;

/// Both ports, bound at once so that one in use is known before anything starts.
pub(super) fn bind(context: &Context) -> anyhow::Result<Vec<(TcpListener, Access)>> {
    let proxy = &context.config.proxy;
    Ok(vec![
        (serve::bind("proxy", (proxy.listen, proxy.port).into())?, Access::ReadWrite),
        (serve::bind("proxy", (proxy.listen, proxy.read_only_port).into())?, Access::ReadOnly),
    ])
}

/// What `[proxy]` says. The pack's roles log in with the platform's secrets. `replay` is kept by [`spawn`].
pub(super) fn options(context: &Context, replay: Arc<Replay>) -> anyhow::Result<Options> {
    let config = &context.config.proxy;
    let tls = context.config.tls();
    let server_tls = tls.client_config()?;
    let offered = tls.server_config(&[b"postgresql"])?;
    let mut secrets: std::collections::BTreeMap<_, _> =
        context.login_roles()?.into_iter().map(|(role, password, _)| (role, password)).collect();
    secrets.insert(SUPERUSER.to_owned(), context.secrets.superuser.clone());
    let routing = config.route_reads.then(|| Routing {
        replay,
        user: SUPERUSER.to_owned(),
        password: context.secrets.superuser.clone(),
        tls: Some(server_tls.clone()),
    });
    Ok(Options {
        routing,
        workers: config.workers,
        clients: ClientLimits {
            all: config.max_client_conn,
            user: config.max_user_connections,
            database: config.max_db_connections,
            users: config.users.iter().map(|user| (user.name.clone(), user.max_connections)).collect(),
            databases: config.databases.iter().filter_map(|of| Some((of.name.clone(), of.max_connections?))).collect(),
        },
        rules: rules(config)?,
        pool: pool_limits(&config.pool),
        databases: config.databases.iter().map(|of| (of.name.clone(), pool_limits(&of.pool))).collect(),
        certificate: std::fs::read(tls.server_cert()).context("cannot read the certificate")?,
        client_tls: if config.require_tls { ClientTls::Require(offered) } else { ClientTls::Offer(offered) },
        server_tls: Some(server_tls.clone()),
        secrets,
        admins: [SUPERUSER.to_owned()].into(),
        // otherwise the servers let nobody in but the pack's roles, whose passwords are known
        auth_query: config.auth_query.then(|| AuthQuery {
            user: SUPERUSER.to_owned(),
            password: context.secrets.superuser.clone(),
            database: context.pack.database.clone(),
            tls: Some(server_tls),
        }),
        ..Options::default()
    })
}

fn pool_limits(config: &millrace_config::PoolSettings) -> PoolLimits {
    PoolLimits {
        mode: match config.mode {
            millrace_config::PoolMode::Session => PoolMode::Session,
            millrace_config::PoolMode::Transaction => PoolMode::Transaction,
            millrace_config::PoolMode::Statement => PoolMode::Statement,
        },
        size: config.size,
        reserve: config.reserve,
        reserve_after: config.reserve_timeout,
        idle_min: config.min,
        lifetime: config.server_lifetime,
        idle: config.server_idle_timeout,
        wait: config.query_wait_timeout,
        statements: config.max_prepared_statements,
    }
}

/// The servers let their superuser and the replicator in from this host alone, and the proxy is on it: so it must be the
/// one to refuse them. From this host the superuser may use the proxy's console.
fn rules(config: &millrace_config::Proxy) -> anyhow::Result<Rules> {
    let network = |text: &str| Network::parse(text).with_context(|| format!("{text} is not a range of addresses"));
    let own = config.listen.to_string();
    let here = ["127.0.0.0/8", "::1", &own].map(network).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let allowed = config.allow.iter().map(|(address, prefix)| network(&format!("{address}/{prefix}")));
    let users = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Ok(Rules(vec![
        Rule {
            networks: here,
            databases: vec![millrace_proxy::CONSOLE_DATABASE.to_owned()],
            users: users(&[SUPERUSER]),
            allow: true,
        },
        Rule { users: users(&[SUPERUSER, REPLICATOR]), allow: false, ..Rule::default() },
        Rule { networks: allowed.collect::<anyhow::Result<_>>()?, allow: true, ..Rule::default() },
    ]))
}

/// What the proxy holds now.
pub(super) async fn status(handle: &Handle) -> ProxyStatus {
    let (clients, failed_logins) = handle.logins();
    let answered = handle.pools().await;
    let up = answered.is_some();
    let pools = answered.iter().flatten().map(pool).collect();
    let time_bounds_us = BOUNDS_US.to_vec();
    ProxyStatus { up, clients: clients as u64, failed_logins, pools, time_bounds_us }
}

fn pool(view: &PoolView) -> PoolStatus {
    let counts = &view.counts;
    PoolStatus {
        database: view.key.database.to_string(),
        user: view.key.user.to_string(),
        read_only: view.key.access == Access::ReadOnly,
        mode: view.limits.mode.name().to_owned(),
        size: view.limits.size as u64,
        clients: view.clients as u64,
        waiting: view.waiting as u64,
        longest_wait_ms: u64::try_from(view.longest_wait.as_millis()).unwrap_or(u64::MAX),
        servers: view.servers as u64,
        idle: view.idle as u64,
        paused: view.paused,
        transactions: counts.transactions,
        queries: counts.queries,
        query_us: counts.query_us,
        waits: counts.waits,
        behind: counts.behind,
        wait_us: counts.wait_us,
        query_times: times(&view.query_times),
        wait_times: times(&view.wait_times),
        received_bytes: counts.received_bytes,
        sent_bytes: counts.sent_bytes,
    }
}

fn times(of: &Histogram) -> Times {
    let us = |percent| of.percentile(percent).and_then(|time| u64::try_from(time.as_micros()).ok());
    Times { counts: of.counts.to_vec(), p50_us: us(50), p95_us: us(95), p99_us: us(99) }
}

/// Serves until the platform ends.
pub(super) fn spawn(
    proxy: millrace_proxy::Proxy,
    topology: tokio::sync::watch::Sender<Arc<millrace_contract::Topology>>,
    cluster: tokio::sync::watch::Receiver<millrace_cluster::ClusterStatus>,
    config: &millrace_config::Proxy,
    services: &mut millrace_base::Tasks,
) {
    let (replica_lag_max, ports) = (config.replica_lag_max_bytes, [config.port, config.read_only_port]);
    let token = services.token().clone();
    services.spawn("topology", async move {
        millrace_cluster::topology::publish(cluster, Teller::new(replica_lag_max), topology, token).await;
        Ok::<_, std::convert::Infallible>(())
    });
    let (handle, token) = (proxy.handle(), services.token().clone());
    services.spawn("proxy sockets", async move {
        handle.end_cut_off(&ports, token).await;
        Ok::<_, std::convert::Infallible>(())
    });
    let token = services.token().clone();
    services.spawn("proxy", proxy.run(token));
}
