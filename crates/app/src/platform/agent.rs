//! One node of a cluster on many hosts: its server, its proxy, and what load balancers ask.
//!
//! Not here: the warehouse and what leads to it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use millrace_base::{Clock, SystemClock, Tasks};
use millrace_cluster::{ClusterStatus, Supervisor, operate::Handle};
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    api,
    cluster::{ClusterView, ClusterWork},
    prepare, proxy,
    run::{Start, finish, first_end, stop_on_signals, take_lock},
    serve::{self, Refused, cluster_work},
};
use crate::{context::Context, control, explain::explain, logging};

/// Between tries to make roles and schema on a primary that refuses.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs until asked to stop. `Ok(false)`: another process runs it already.
pub(crate) async fn run(context: Context, node: &str, start: &Start) -> anyhow::Result<bool> {
    let context = Arc::new(context);
    let layout = context.layout.clone();
    super::run::make_folders(&context)?;
    let Some(_lock) = take_lock(&context).await? else { return Ok(false) };
    logging::to_file(&layout.platform_log(), start.log_filter.as_deref(), start.foreground)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node, "agent starts");
    // of a restore that was killed
    crate::in_place::clear(&context).await?;
    let stop = CancellationToken::new();
    let mut cluster = Tasks::new(CancellationToken::new());
    let mut services = Tasks::new(CancellationToken::new());
    stop_on_signals(&mut services, &stop)?;
    let result = live(&context, node, &stop, &mut cluster, &mut services).await;
    finish(&context, cluster, services, result).await.map(|()| true)
}

async fn live(
    context: &Arc<Context>,
    node: &str,
    stop: &CancellationToken,
    cluster: &mut Tasks,
    services: &mut Tasks,
) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let etcd = context.config.etcd.as_ref().ok_or_else(|| {
        anyhow!("there is no [etcd] in millrace.toml\n  hint: nodes on one host need no agents: `millrace up`")
    })?;
    let spec = context.agent_spec(Some(node))?;
    let proxy_listeners = proxy::bind(context)?;
    let api_listener = serve::bind("etcd", (context.config.cluster.listen, etcd.api_port).into())?;
    let control_listener = control::bind(&context.layout.run())?;
    let (supervisor, mut status) =
        Supervisor::new(spec.clone(), clock).map_err(|error| explain(&error, error.hint()))?;
    let handle = supervisor.handle();
    let (topology, followed) = millrace_cluster::topology::channel();
    let replay = Arc::default();
    let proxy = millrace_proxy::Proxy::start(proxy_listeners, proxy::options(context, Arc::clone(&replay))?, followed)?;
    let token = cluster.token().clone();
    cluster.spawn("cluster", supervisor.run(token));
    let shared = Shared { handle, stop: stop.clone(), context: context.clone(), node: node.to_owned() };
    services.spawn("control", answer(control_listener, shared, services.token().clone()));
    services.spawn(
        "api",
        api::serve(api_listener, node.to_owned(), status.clone(), context.layout.cluster(), services.token().clone()),
    );
    let (origin, _) = watch::channel(None);
    let (of, seen, token) = (spec.clone(), status.clone(), services.token().clone());
    services.spawn("replay", async move { millrace_cluster::replay::follow(&of, seen, replay, origin, token).await });
    let (seen, token) = (status.clone(), services.token().clone());
    let of = spec.clone();
    services.spawn("slots", async move { millrace_cluster::logical::follow(&of, seen, token).await });
    let (seen, token) = (status.clone(), services.token().clone());
    services.spawn("sockets", async move { millrace_cluster::cut::follow(&spec, seen, token).await });
    proxy::spawn(proxy, topology, status.clone(), &context.config.proxy, services);
    let (of, own, seen, token) = (context.clone(), node.to_owned(), status.clone(), services.token().clone());
    services.spawn("schema", async move {
        // every step is a transaction: a stop leaves it undone
        tokio::select! {
            kept = keep_prepared(&of, &own, seen) => kept,
            () = token.cancelled() => Ok(()),
        }
    });

    context.output.line(format!("agent of node {node} runs; `millrace cluster status` shows the cluster"));
    let telling = tell(context, &mut status);
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = first_end(cluster, services) => Err(ended),
        told = telling => told,
    }
}

/// Says what the nodes do as it changes, apart from how far behind they are.
async fn tell(context: &Context, status: &mut watch::Receiver<ClusterStatus>) -> anyhow::Result<()> {
    let mut told = std::collections::BTreeMap::new();
    loop {
        let now = status.borrow_and_update().clone();
        for node in &now.nodes {
            let doing = node.doing.split(',').next().unwrap_or_default().to_owned();
            if told.get(&node.name) != Some(&doing) {
                context.output.line(format!("  node {}: {}", node.name, node.doing));
                told.insert(node.name.clone(), doing);
            }
        }
        status.changed().await.context("the cluster's supervisor ended")?;
    }
}

/// Whenever this node becomes the primary it is given what the pack needs, once in this life of the agent.
async fn keep_prepared(context: &Context, own: &str, mut status: watch::Receiver<ClusterStatus>) -> anyhow::Result<()> {
    loop {
        let due = |status: &ClusterStatus| status.primary_ready && status.primary.as_deref() == Some(own);
        status.wait_for(due).await.context("the cluster's supervisor ended")?;
        match prepare::run(context, &context.superuser_of(own)?).await {
            Ok(prepared) => {
                for script in prepared.migrations_applied {
                    context.output.line(format!("  migrated {script}"));
                }
                tracing::info!("roles and schema are there");
                std::future::pending::<()>().await;
            }
            Err(error) => {
                tracing::warn!(error = %crate::explain::chain(error.as_ref()), "roles and schema are not there yet");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Shared {
    handle: Handle,
    stop: CancellationToken,
    context: Arc<Context>,
    node: String,
}

/// The control socket, as far as an agent has what it asks for.
async fn answer(listener: UnixListener, shared: Shared, token: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/ready", get(|State(shared): State<Shared>| async move { Json(shared.handle.status().primary_ready) }))
        .route("/cluster", get(view).post(work))
        .route("/down", post(down))
        .with_state(shared);
    axum::serve(listener, router)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .context("the control socket's server ended badly")
}

async fn down(State(shared): State<Shared>) -> Json<()> {
    shared.stop.cancel();
    Json(())
}

async fn view(State(shared): State<Shared>) -> Json<ClusterView> {
    Json(ClusterView::of(&shared.handle.status()))
}

async fn work(State(shared): State<Shared>, Json(work): Json<ClusterWork>) -> Result<Json<String>, Refused> {
    cluster_work(&shared.handle, &shared.context, Some(&shared.node), work).await
}
