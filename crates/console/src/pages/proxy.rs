//! The proxy's pools.

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_contract::status::{PlatformStatus, PoolStatus, Times};

use crate::{
    Shared, format,
    pages::{layout, layout::Page},
    session::Session,
};

/// `GET /proxy`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
) -> Response {
    let status = console.state.operator.status().await;
    let body = html! {
        div.head { div { h1 { "Proxy" } p.muted {
            "Where applications connect: who shares connections to the servers, who waits for one, and how long statements take."
        } } }
        div data-refresh="/proxy" {
            (facts(&status))
            (pools(&status))
        }
    };
    let page = Page { title: "Proxy", current: "/proxy", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

fn facts(status: &PlatformStatus) -> Markup {
    let proxy = &status.proxy;
    let waiting: u64 = proxy.pools.iter().map(|pool| pool.waiting).sum();
    let addresses = status.listeners.iter().filter(|l| matches!(l.name.as_str(), "proxy" | "read-only"));
    html! {
        section.panel aria-labelledby="clients" {
            h2 id="clients" { "Clients" }
            dl.facts {
                div { dt { "Connected" } dd { (proxy.clients) } }
                div { dt { "Waiting" } dd { @if waiting > 0 { span.state.busy { (waiting) } } @else { "0" } } }
                div { dt { "Failed logins" } dd { (proxy.failed_logins) } }
                @for listener in addresses {
                    div { dt { @if listener.name == "proxy" { "Read-write" } @else { "Read-only" } } dd { code { (listener.address) } } }
                }
            }
        }
    }
}

fn state(pool: &PoolStatus) -> Markup {
    match (pool.paused, pool.waiting) {
        (true, _) => html! { span.state.busy { "paused" } },
        (false, 0) => html! { span.state.good { "serving" } },
        (false, _) => html! { span.state.busy { "clients wait" } },
    }
}

/// Half of the times at most, and most of them, in milliseconds; nothing if nothing happened.
fn percentiles(times: &Times) -> Markup {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let ms = |us: Option<u64>| format!("{:.2}", us.unwrap_or(0) as f64 / 1_000.0);
    html! {
        @if times.p50_us.is_none() { span.muted { "–" } }
        @else { (ms(times.p50_us)) span.muted { " · " (ms(times.p95_us)) " · " (ms(times.p99_us)) " ms" } }
    }
}

fn pools(status: &PlatformStatus) -> Markup {
    let proxy = &status.proxy;
    html! {
        section.panel.scroll aria-labelledby="pools" tabindex="0" {
            h2 id="pools" { "Pools" }
            @if proxy.pools.is_empty() {
                p.muted { "No application has connected yet. The first login makes the pool of its database and user." }
            } @else {
                table {
                    thead { tr { th scope="col" { "Database" } th scope="col" { "User" } th scope="col" { "Address" } th scope="col" { "State" }
                        th.num scope="col" { "Clients" } th.num scope="col" { "Waiting" } th.num scope="col" { "Connections in use" }
                        th.num scope="col" { "Unused" } th.num scope="col" { "Transactions" } th.num scope="col" { "A query takes" br; span.muted { "p50 · p95 · p99" } }
                        th.num scope="col" { "A wait" br; span.muted { "p50 · p95 · p99" } }
                        th.num scope="col" { "In and out" } } }
                    tbody { @for pool in &proxy.pools { tr {
                        th scope="row" { (pool.database) }
                        td { (pool.user) }
                        td { @if pool.read_only { "read-only" } @else { "read-write" } }
                        td { (state(pool)) }
                        td.num { (pool.clients) }
                        td.num { (pool.waiting) @if pool.waiting > 0 { span.muted { " for " (pool.longest_wait_ms / 1000) " s" } } }
                        td.num { (pool.servers.saturating_sub(pool.idle)) span.muted { " of " (pool.size) } }
                        td.num { (pool.idle) }
                        td.num { (pool.transactions) }
                        td.num { (percentiles(&pool.query_times)) }
                        td.num { (percentiles(&pool.wait_times)) }
                        td.num { (format::bytes(pool.received_bytes)) span.muted { " / " (format::bytes(pool.sent_bytes)) } }
                    } } }
                }
            }
        }
    }
}
