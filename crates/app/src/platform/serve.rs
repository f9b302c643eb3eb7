//! The listeners: the console over HTTPS, and the control socket for the command line.

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Path, Query as UrlQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use millrace_cluster::NodeName;
use millrace_contract::operate::{OperateError, Operator};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{ClusterView, ClusterWork},
    operator::{ModelWork, PlatformOperator},
};
use crate::{
    context::Context,
    explain::{chain, explain},
};

/// Binds a TCP port at once, so that a port in use is known before anything starts.
pub(crate) fn bind(name: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address) {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => anyhow::bail!(
            "port {} of the {name} is in use\n  hint: stop what listens there (ss -ltnp 'sport = :{}') or change [{name}] port in millrace.toml",
            address.port(),
            address.port()
        ),
        Err(error) => return Err(error).with_context(|| format!("the {name} cannot listen on {address}")),
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the console until the token is cancelled.
pub(crate) async fn console(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let handle = axum_server::Handle::new();
    let config = axum_server::tls_rustls::RustlsConfig::from_config(tls);
    let server = axum_server::from_tcp_rustls(listener, config)
        .context("the console cannot use its listener")?
        .handle(handle.clone())
        .serve(router.into_make_service_with_connect_info::<std::net::SocketAddr>());
    let mut server = std::pin::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.context("the console's server ended"),
        () = token.cancelled() => handle.graceful_shutdown(Some(Duration::from_secs(3))),
    }
    server.await.context("the console's server ended badly")
}

/// Serves the control socket until the token is cancelled.
pub(crate) async fn control(
    listener: UnixListener,
    operator: Arc<PlatformOperator>,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/runs", get(runs))
        .route("/verify", post(verify))
        .route("/prove", post(prove))
        .route("/resync/{table}", post(resync))
        .route("/model/{work}", post(model))
        .route("/cluster", get(cluster_view).post(cluster))
        .route("/proxy/reload", post(reload))
        .route("/proxy/{work}", post(proxy))
        .route("/report", post(report))
        .route("/user-changed", post(user_changed))
        .route("/down", post(down))
        .with_state(operator);
    axum::serve(listener, router)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .context("the control socket's server ended badly")
}

/// An error as JSON, which the command line reads back.
pub(super) struct Refused(OperateError);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, Json(self.0)).into_response()
    }
}

impl From<OperateError> for Refused {
    fn from(error: OperateError) -> Self {
        Self(error)
    }
}

type Shared = State<Arc<PlatformOperator>>;

async fn ready(State(operator): Shared) -> Json<bool> {
    Json(operator.is_ready())
}

async fn status(State(operator): Shared) -> Response {
    Json(operator.status().await).into_response()
}

#[derive(Deserialize)]
struct Limit {
    limit: usize,
}

async fn runs(State(operator): Shared, UrlQuery(limit): UrlQuery<Limit>) -> Result<Response, Refused> {
    Ok(Json(operator.runs(limit.limit).await?).into_response())
}

async fn verify(State(operator): Shared) -> Result<Response, Refused> {
    Ok(Json(operator.verify().await?).into_response())
}

async fn prove(State(operator): Shared) -> Result<Response, Refused> {
    Ok(Json(operator.prove().await?).into_response())
}

async fn resync(State(operator): Shared, Path(table): Path<String>) -> Result<Response, Refused> {
    Ok(Json(operator.resync(&table).await?).into_response())
}

async fn model(State(operator): Shared, Path(work): Path<ModelWork>) -> Result<Response, Refused> {
    Ok(Json(operator.model(work).await?).into_response())
}

/// What is asked of the proxy.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProxyWork {
    Pause,
    Resume,
    Reconnect,
    Kill,
}

/// A pause: undone when dropped before it is complete, as when the operator gives up.
struct Pause<'a> {
    proxy: &'a millrace_proxy::Handle,
    database: Option<&'a str>,
    complete: bool,
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.complete {
            self.proxy.resume(self.database);
        }
    }
}

/// A pause that transactions do not let happen is given up after this.
const PAUSE_MAX: Duration = Duration::from_secs(120);

async fn cluster_view(State(operator): Shared) -> Json<ClusterView> {
    Json(ClusterView::of(&operator.cluster.status()))
}

async fn cluster(State(operator): Shared, Json(work): Json<ClusterWork>) -> Result<Json<String>, Refused> {
    cluster_work(&operator.cluster, &operator.context, None, work).await
}

pub(super) async fn cluster_work(
    cluster: &millrace_cluster::operate::Handle,
    context: &Context,
    own: Option<&str>,
    work: ClusterWork,
) -> Result<Json<String>, Refused> {
    let node = |name: &str| NodeName::new(name);
    let reply = match work {
        ClusterWork::Switchover { to } => cluster.switchover(to.as_deref().map(node)).await,
        ClusterWork::Failover { to } => cluster.failover(node(&to)).await,
        ClusterWork::Pause => cluster.pause(true).await,
        ClusterWork::Resume => cluster.pause(false).await,
        ClusterWork::Reinit { node: name } => cluster.reinit(node(&name)).await,
        ClusterWork::Restart { node: name } => cluster.restart(node(&name)).await,
        ClusterWork::Reload => match reread(context, own).await {
            Ok(spec) => cluster.reload(spec).await,
            Err(error) => Err(chain(error.as_ref())),
        },
        ClusterWork::TurnOver => match read_spec(context, own).await {
            Ok(spec) => cluster.turn_over(spec).await,
            Err(error) => Err(chain(error.as_ref())),
        },
    };
    reply.map(Json).map_err(|message| {
        Refused(OperateError { message, hint: Some("`millrace cluster status` shows the nodes".to_owned()) })
    })
}

async fn read_spec(context: &Context, own: Option<&str>) -> anyhow::Result<millrace_cluster::ClusterSpec> {
    let (folder, output) = (context.config.folder.clone(), context.output);
    let files = tokio::task::spawn_blocking(move || Context::load(&folder, output)).await??;
    files.agent_spec(own)
}

/// What the files say now, once a server's own program has agreed to it.
async fn reread(context: &Context, own: Option<&str>) -> anyhow::Result<millrace_cluster::ClusterSpec> {
    let spec = read_spec(context, own).await?;
    spec.check_settings().await.map_err(|error| explain(&error, error.hint()))?;
    Ok(spec)
}

async fn proxy(
    State(operator): Shared,
    Path(work): Path<ProxyWork>,
    Json(database): Json<Option<String>>,
) -> Result<Json<()>, Refused> {
    let proxy = &operator.observatory.parts.proxy;
    let database = database.as_deref();
    match work {
        ProxyWork::Pause => {
            let mut pause = Pause { proxy, database, complete: false };
            let paused = tokio::time::timeout(PAUSE_MAX, proxy.pause(database)).await;
            let message = match paused {
                Ok(Ok(())) => {
                    pause.complete = true;
                    return Ok(Json(()));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("transactions still run after {} s; they go on", PAUSE_MAX.as_secs()),
            };
            let hint = "`millrace psql pgbouncer -- -c 'SHOW SERVERS'` shows who uses which connection".to_owned();
            return Err(Refused(OperateError { message, hint: Some(hint) }));
        }
        ProxyWork::Resume => proxy.resume(database),
        ProxyWork::Reconnect => proxy.reconnect(database),
        ProxyWork::Kill => {
            let killed = proxy.kill(database).await;
            return killed.map(Json).map_err(|error| Refused(OperateError { message: error.to_string(), hint: None }));
        }
    }
    Ok(Json(()))
}

/// What a reload has come to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReloadAnswer {
    /// In force now.
    pub(crate) changed: Vec<String>,
    /// In force from the next start.
    pub(crate) waits: Vec<String>,
}

async fn reload(State(operator): Shared) -> Result<Json<ReloadAnswer>, Refused> {
    match operator.observatory.parts.proxy.reread().await {
        Ok(reloaded) => Ok(Json(ReloadAnswer { changed: reloaded.changed, waits: reloaded.waits })),
        Err(error) => {
            let (message, hint) =
                error.split_once("\n  hint: ").map_or((&*error, None), |(text, hint)| (text, Some(hint)));
            Err(Refused(OperateError { message: message.to_owned(), hint: hint.map(str::to_owned) }))
        }
    }
}

/// A console user was added, removed or got a new password: open sessions are checked at once.
async fn user_changed(State(operator): Shared, Json(name): Json<String>) -> Json<()> {
    if let Some(accounts) = operator.accounts.get() {
        accounts.forget(&name);
    }
    Json(())
}

async fn down(State(operator): Shared) -> Json<()> {
    operator.stop();
    Json(())
}

/// A report to run, its parameters as texts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReportRequest {
    pub(crate) name: String,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) limit: usize,
}

/// A report's rows as PostgreSQL's texts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReportAnswer {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Option<String>>>,
    pub(crate) truncated: bool,
    pub(crate) watermark: millrace_base::Lsn,
    pub(crate) commit_time: millrace_base::Micros,
}

async fn report(State(operator): Shared, Json(request): Json<ReportRequest>) -> Result<Json<ReportAnswer>, Refused> {
    let catalog = operator.catalog();
    let report = catalog.report(&request.name).ok_or_else(|| OperateError {
        message: format!("there is no report called `{}`", request.name),
        hint: Some("`millrace report list` names them".to_owned()),
    })?;
    for (name, _) in &request.params {
        if !report.params.iter().any(|param| param.name == *name) {
            let known: Vec<_> = report.params.iter().map(|param| param.name.as_str()).collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            return Err(OperateError {
                message: format!("report {} has no parameter `{name}`", report.name),
                hint: Some(known),
            }
            .into());
        }
    }
    let given = |name: &str| request.params.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str());
    let values = report.bind(given);
    let values = values.map_err(|error| OperateError { message: error.to_string(), hint: None })?;
    let rows = operator.query(report.sql.clone(), values, request.limit).await?;
    Ok(Json(ReportAnswer {
        columns: rows.columns.into_iter().map(|column| column.name).collect(),
        rows: rows.rows.iter().map(|row| row.iter().map(millrace_contract::Value::to_text).collect()).collect(),
        truncated: rows.truncated,
        watermark: rows.freshness.watermark,
        commit_time: rows.freshness.commit_time,
    }))
}
