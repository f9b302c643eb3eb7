//! Nodes and replication slots.

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_contract::status::{NodeRole, NodeState, NodeStatus, PlatformStatus, SlotStatus};

use crate::{
    Shared, format,
    pages::{layout, layout::Page},
    session::Session,
};

/// `GET /topology`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
) -> Response {
    let status = console.state.operator.status().await;
    let body = html! {
        div.head { div { h1 { "Topology" } p.muted { "The PostgreSQL servers, who follows whom, and what each replication slot holds back." } } }
        div data-refresh="/topology" {
            (nodes(&status))
            (slots(&status.slots))
            section.panel aria-labelledby="listeners" {
                h2 id="listeners" { "Listeners" }
                dl.facts { @for listener in &status.listeners { div { dt { (listener.name) } dd { code { (listener.address) } } } } }
            }
        }
    };
    let page = Page { title: "Topology", current: "/topology", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

fn role(node: &NodeStatus) -> &'static str {
    match node.role {
        NodeRole::Primary => "primary",
        NodeRole::Replica => "replica",
    }
}

fn state(node: &NodeStatus) -> Markup {
    let (class, word) = match node.state {
        NodeState::Running if node.streaming == Some(false) => ("bad", "not streaming"),
        NodeState::Running => ("good", "running"),
        NodeState::Starting => ("busy", "starting"),
        NodeState::Unresponsive => ("bad", "unresponsive"),
        NodeState::Stopped => ("bad", "stopped"),
    };
    html! { span.state.(class) { (word) } }
}

/// The nodes as a table.
pub(crate) fn nodes(status: &PlatformStatus) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="nodes" tabindex="0" {
            h2 id="nodes" { "Nodes" }
            table {
                thead { tr { th scope="col" { "Node" } th scope="col" { "Role" } th scope="col" { "State" } th.num scope="col" { "Behind" }
                    th scope="col" { "Supervisor" } th scope="col" { "Up for" } th scope="col" { "Position" } th.num scope="col" { "Port" } } }
                tbody { @for node in &status.nodes { tr {
                    th scope="row" { (node.name) }
                    td { (role(node)) }
                    td { (state(node)) }
                    td.num { @match (node.role, node.lag_bytes) {
                        (NodeRole::Primary, _) => span.muted { "–" },
                        (NodeRole::Replica, Some(bytes)) => (format::bytes(bytes)),
                        (NodeRole::Replica, None) => "unknown",
                    } }
                    td.muted.text { (node.doing) }
                    td { @match node.since { Some(since) => (format::duration(status.now.since(since))), None => "–" } }
                    td { @match node.lsn { Some(lsn) => span.lsn { (lsn) }, None => "–" } }
                    td.num { (node.port) }
                } } }
            }
        }
    }
}

fn slots(slots: &[SlotStatus]) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="slots" tabindex="0" {
            h2 id="slots" { "Replication slots" }
            table {
                thead { tr { th scope="col" { "Slot" } th scope="col" { "Type" } th scope="col" { "Active" } th.num scope="col" { "Log kept" }
                    th.num scope="col" { "Until given up" } th scope="col" { "Log status" } } }
                tbody { @for slot in slots { tr {
                    th scope="row" { code { (slot.name) } }
                    td { (slot.slot_type) }
                    td { @if slot.active { span.state.good { "yes" } } @else { span.state.bad { "no" } } }
                    td.num { @match slot.retained_bytes { Some(bytes) => (format::bytes(bytes)), None => "–" } }
                    td.num { @match slot.safe_wal_bytes { Some(bytes) => (format::bytes(u64::try_from(bytes).unwrap_or(0))), None => "no limit" } }
                    td { (slot.wal_status.as_deref().unwrap_or("–")) }
                } } }
            }
        }
    }
}
