//! The web pages, their JSON and CSV, and the metrics of the platform.
//!
//! Everything shown comes through `millrace-contract`: a [`ReportCatalog`] says what there is, a
//! [`Reader`] answers the reports, an [`Operator`] tells the platform's state.
//!
//! Invariants: every page but `/login`, `/assets`, `/healthz` and `/readyz` needs a session (or HTTP
//! Basic for `/api` and `/metrics`), and the session's user must still be there with the same password; a page works without script, as tables; the whole state of a
//! page is in its URL; no value of a row and no secret is logged.
//! Non-goals: TLS and listening (the app does both), changing data.

pub mod password;
pub mod users;

mod accounts;
mod api;
mod assets;
mod cache;
mod catalog;
mod choices;
mod csv;
mod error;
mod format;
mod limit;
mod live;
mod metrics;
mod pages;
mod params;
mod security;
mod session;
mod table;
mod tile;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{get, post},
};
use millrace_base::{Clock, Secret};
use millrace_contract::{operate::Operator, query::Reader, report::ReportCatalog};
use tokio_util::sync::CancellationToken;
use tower_http::compression::{
    CompressionLayer,
    predicate::{DefaultPredicate, Predicate, SizeAbove},
};

pub use accounts::Accounts;
pub use users::{Users, UsersError};

/// What the console shows and whom it lets in.
#[derive(Debug, Clone)]
pub struct ConsoleState {
    pub catalog: Arc<ReportCatalog>,
    pub reader: Arc<dyn Reader>,
    pub operator: Arc<dyn Operator>,
    pub accounts: Arc<Accounts>,
    /// Signs sessions; a new one ends them all.
    pub session_key: Secret,
    pub clock: Arc<dyn Clock>,
    /// The platform's name, in titles.
    pub name: String,
    /// Whether the console is served over HTTPS: cookies are then `Secure`.
    pub tls: bool,
    /// Ends the live streams, so that a graceful stop of the server does not wait for them.
    pub shutdown: CancellationToken,
}

/// What all handlers share.
#[derive(Debug)]
struct Console {
    state: ConsoleState,
    sessions: session::Sessions,
    limits: limit::Limits,
    pulse: live::Pulse,
    cache: cache::Cache,
    choices: choices::Choices,
    assets: assets::Assets,
}

type Shared = Arc<Console>;

/// The console as a router. Serve it with
/// `into_make_service_with_connect_info::<SocketAddr>()`: failed logins are counted by address.
pub fn router(state: ConsoleState) -> Router {
    let console = Arc::new(Console {
        sessions: session::Sessions::new(&state.session_key, state.clock.clone(), state.tls),
        limits: limit::Limits::new(state.clock.clone()),
        pulse: live::Pulse::new(state.clock.clone()),
        cache: cache::Cache::default(),
        choices: choices::Choices::default(),
        assets: assets::Assets::new(),
        state,
    });
    let open = Router::new()
        .route("/login", get(pages::login::form).post(pages::login::submit))
        .route("/assets/{name}", get(assets::serve))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz));
    let pages = Router::new()
        .route("/", get(pages::home::show))
        .route("/dashboards", get(pages::dashboard::first))
        .route("/dashboards/{slug}", get(pages::dashboard::show))
        .route("/reports", get(pages::report::list))
        .route("/reports/{name}", get(pages::report::show))
        .route("/runs", get(pages::runs::show))
        .route("/cluster", get(pages::cluster::show))
        .route("/proxy", get(pages::proxy::show))
        .route("/backups", get(pages::backups::show))
        .route("/events", get(live::events))
        .route("/logout", post(pages::login::logout))
        .fallback(pages::missing)
        .layer(middleware::from_fn_with_state(console.clone(), security::require_session));
    let machines = Router::new()
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/catalog", get(catalog::show))
        .route("/api/v1/dashboards/{slug}/tiles/{position}", get(api::tile))
        .route("/api/v1/reports/{file}", get(api::report))
        .route("/api/{*rest}", get(api::missing))
        .route("/metrics", get(metrics::show))
        .route_layer(middleware::from_fn_with_state(console.clone(), security::require_login));
    open.merge(pages)
        .merge(machines)
        // what is small, an image, a stream of events or compressed already stays as it is
        .layer(CompressionLayer::new().gzip(true).compress_when(DefaultPredicate::new().and(SizeAbove::new(512))))
        .layer(middleware::from_fn(security::headers))
        .with_state(console)
}
