//! What load balancers and scripts ask an agent, under the names and with the answers of Patroni's REST API, so that a
//! HAProxy made for Patroni needs no change.
//!
//! Source: Patroni's documentation, "REST API". Plain HTTP and nothing but questions: a balancer has no secrets.

use std::{net::TcpListener, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use millrace_cluster::{ClusterStatus, history};
use millrace_contract::status::{NodeRole, NodeState, NodeStatus};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Api {
    node: String,
    status: watch::Receiver<ClusterStatus>,
    /// Holds the cluster's history.
    folder: PathBuf,
}

type Shared = State<Arc<Api>>;

/// Answers until the token is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    node: String,
    status: watch::Receiver<ClusterStatus>,
    folder: PathBuf,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = router(Arc::new(Api { node, status, folder }));
    axum::serve(listener, router)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .context("the agent's API ended badly")
}

fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for path in ["/", "/primary", "/master", "/leader", "/read-write"] {
        router = router.route(path, get(|State(api): Shared| async move { api.answer(Api::is_primary) }));
    }
    router
        .route("/replica", get(replica))
        .route(
            "/read-only",
            get(|State(api): Shared| async move { api.answer(|api| api.is_primary() || api.serves_reads(None)) }),
        )
        .route("/health", get(|State(api): Shared| async move { api.answer(Api::runs) }))
        .route("/liveness", get(|State(api): Shared| async move { api.answer(|_| true) }))
        .route(
            "/readiness",
            get(|State(api): Shared| async move { api.answer(|api| api.is_primary() || api.streams()) }),
        )
        .route("/patroni", get(|State(api): Shared| async move { Json(api.own()) }))
        .route("/cluster", get(|State(api): Shared| async move { Json(api.cluster()) }))
        .route("/history", get(|State(api): Shared| async move { Json(api.history()) }))
        .with_state(api)
}

#[derive(Debug, Deserialize)]
struct ReplicaQuery {
    /// Bytes, or with a unit as PostgreSQL writes it: `16MB`.
    lag: Option<String>,
}

async fn replica(State(api): Shared, Query(query): Query<ReplicaQuery>) -> Response {
    match query.lag.as_deref().map(bytes) {
        Some(None) => (StatusCode::BAD_REQUEST, "lag: a number of bytes, or with kB, MB or GB\n").into_response(),
        Some(max) => api.answer(|api| api.serves_reads(max)),
        None => api.answer(|api| api.serves_reads(None)),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..)?.trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

impl Api {
    /// 200 if it is so, else 503, with what this node is either way.
    fn answer(&self, is_so: impl FnOnce(&Self) -> bool) -> Response {
        let code = if is_so(self) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, Json(self.own())).into_response()
    }

    fn node(&self) -> Option<NodeStatus> {
        self.status.borrow().nodes.iter().find(|node| node.name == self.node).cloned()
    }

    fn is_primary(&self) -> bool {
        let status = self.status.borrow();
        status.primary_ready && status.primary.as_deref() == Some(&self.node)
    }

    fn runs(&self) -> bool {
        self.node().is_some_and(|node| node.state == NodeState::Running)
    }

    fn streams(&self) -> bool {
        self.node().is_some_and(|node| node.role == NodeRole::Replica && node.streaming == Some(true))
    }

    /// A replica that answers, and is not further behind than that. Without a primary nobody knows how far it is.
    fn serves_reads(&self, lag_max: Option<u64>) -> bool {
        let reads = |node: &NodeStatus| node.role == NodeRole::Replica && node.apply_delay_s.is_none();
        let replica = self.node().filter(|node| reads(node) && node.state == NodeState::Running);
        replica.is_some_and(|node| lag_max.is_none_or(|max| node.lag_bytes.is_some_and(|lag| lag <= max)))
    }

    fn own(&self) -> Value {
        let (status, node) = (self.status.borrow().clone(), self.node());
        let Some(node) = node else { return json!({ "state": "unknown" }) };
        let system_id = status.system_id.map(|id| id.to_string());
        let mut own = member(&node);
        own["database_system_identifier"] = json!(system_id);
        own["pause"] = json!(status.paused);
        own["patroni"] = json!({ "version": env!("CARGO_PKG_VERSION"), "name": node.name, "scope": "millrace" });
        own
    }

    fn cluster(&self) -> Value {
        let status = self.status.borrow();
        json!({ "members": status.nodes.iter().map(member).collect::<Vec<_>>(), "pause": status.paused })
    }

    fn history(&self) -> Value {
        match history::read(&self.folder) {
            Ok(entries) => json!(entries),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }
}

fn member(node: &NodeStatus) -> Value {
    let state = match node.state {
        NodeState::Running if node.streaming == Some(true) => "streaming",
        NodeState::Running => "running",
        NodeState::Starting => "starting",
        NodeState::Unresponsive => "crashed",
        NodeState::Stopped => "stopped",
    };
    let role = if node.role == NodeRole::Primary { "primary" } else { "replica" };
    json!({
        "name": node.name,
        "role": role,
        "state": state,
        "port": node.port,
        "timeline": node.timeline,
        "xlog": { "location": node.lsn.map(|lsn| lsn.0) },
        "lag": node.lag_bytes,
        "doing": node.doing,
        "pending_restart": !node.pending_restart.is_empty(),
        "tags": { "failover_priority": node.failover_priority, "nofailover": node.failover_priority == 0 },
    })
}
