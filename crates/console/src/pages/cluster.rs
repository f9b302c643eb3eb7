//! The cluster: who is the primary, what commits are on, the nodes, what has happened, and the slots.

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_base::Micros;
use millrace_contract::{
    cluster::{Entry, Event},
    operate::OperateError,
    status::{NodeRole, NodeState, NodeStatus, PlatformStatus, Severity, SlotStatus},
};
use serde::Deserialize;

use crate::{
    Shared, format,
    pages::{home, layout, layout::Page, problem, runs::utc},
    session::Session,
};

/// Events shown at first.
const EVENTS: usize = 20;
const EVENTS_MAX: usize = 1000;

/// How much of the history is shown.
#[derive(Debug, Deserialize)]
pub(crate) struct Extent {
    #[serde(default)]
    events: String,
}

/// `GET /cluster`, and `?events=all` for the whole history.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Query(extent): Query<Extent>,
    headers: HeaderMap,
) -> Response {
    let operator = &console.state.operator;
    let (status, events) = tokio::join!(operator.status(), operator.history(EVENTS_MAX));
    let all = extent.events == "all";
    let path = if all { "/cluster?events=all" } else { "/cluster" };
    let body = html! {
        div.head { div { h1 { "Cluster" } p.muted { "Who is the primary, what acknowledged commits are on, and what has happened to both." } } }
        div data-refresh=(path) {
            (standing(&status, events.as_deref().unwrap_or_default()))
            (nodes(&status))
            (history(&events, all, status.now))
            (slots(&status.slots))
            section.panel aria-labelledby="listeners" {
                h2 id="listeners" { "Listeners" }
                dl.facts { @for listener in &status.listeners { div { dt { (listener.name) } dd { code { (listener.address) } } } } }
            }
        }
    };
    let page = Page { title: "Cluster", current: "/cluster", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

/// The primary in a sentence, what holds, and what is wrong with the servers.
fn standing(status: &PlatformStatus, events: &[Entry]) -> Markup {
    let cluster = &status.cluster;
    let (of_cluster, of_others): (Vec<_>, Vec<_>) = status.findings.iter().partition(|finding| finding.is_of_cluster());
    let worst = of_cluster.iter().map(|finding| finding.severity).max();
    let level = match worst {
        _ if !cluster.primary_ready => "bad",
        Some(Severity::Critical) => "bad",
        Some(Severity::Warning) => "warn",
        _ if cluster.failover && cluster.paused => "warn",
        Some(Severity::Notice) | None => "good",
    };
    let for_how_long =
        |at: Micros| html! { (utc(at)) " UTC" span.muted { " · for " (format::duration(status.now.since(at))) } };
    let paused_at = events.iter().find(|entry| matches!(entry.event, Event::Paused { .. })).map(|entry| entry.at);
    let failover_class = match (cluster.failover, cluster.paused) {
        (true, false) => "good",
        (true, true) => "warn",
        (false, _) => "busy",
    };
    html! {
        section.panel.verdict.(level) aria-labelledby="standing" {
            h2 id="standing" { (headline(status, events)) }
            dl.facts {
                @if let Some(primary) = &cluster.primary {
                    div { dt { "Since" } dd { @match primary_since(events, primary) {
                        Some(at) => (for_how_long(at)),
                        None if cluster.term <= 1 => "the cluster was made",
                        None => span.muted { "longer ago than the history goes back" },
                    } } }
                }
                div { dt { "Term" } dd { (cluster.term) } }
                div { dt { "Promise" } dd { (cluster.promise_text()) } }
                div { dt { "Failover" } dd {
                    @let (word, what_follows) = cluster.failover_words();
                    span.state.(failover_class) { (word) } " " (what_follows)
                    @if let (true, true, Some(at)) = (cluster.failover, cluster.paused, paused_at) { span.muted { " · since " (for_how_long(at)) } }
                } }
            }
            @if !of_cluster.is_empty() {
                ul.findings { @for finding in of_cluster { (home::finding(finding, status)) } }
            }
            @if !of_others.is_empty() {
                p.more { a href="/" { (of_others.len()) @if of_others.len() == 1 { " finding" } @else { " findings" } " about other parts" } }
            }
        }
    }
}

fn headline(status: &PlatformStatus, events: &[Entry]) -> String {
    let cluster = &status.cluster;
    let Some(primary) = &cluster.primary else { return "No node is the primary".to_owned() };
    if cluster.primary_ready {
        return format!("{primary} is the primary and accepts writes");
    }
    let newest = events.iter().find_map(|entry| match &entry.event {
        Event::Elected { to, .. } => Some(to == primary),
        Event::Promoted { .. } | Event::TookOffice { .. } | Event::Restored { .. } => Some(false),
        Event::Promise { .. }
        | Event::Paused { .. }
        | Event::Resigned { .. }
        | Event::Settings { .. }
        | Event::Restarted { .. }
        | Event::Added { .. }
        | Event::Removed { .. } => None,
    });
    match newest {
        Some(true) => format!("{primary} was elected and does not accept writes yet"),
        Some(false) | None => format!("{primary} is the primary and does not accept writes now"),
    }
}

/// Since when it has been the primary, if the history goes back so far.
fn primary_since(events: &[Entry], primary: &str) -> Option<Micros> {
    let began = |entry: &&Entry| matches!(&entry.event, Event::Promoted { node, .. } | Event::TookOffice { node } | Event::Restored { node, .. } if node == primary);
    events.iter().find(began).map(|entry| entry.at)
}

/// How an event looks: those in which writes or the promise went away stand out.
fn class(event: &Event) -> &'static str {
    match event {
        Event::Elected { missing_bytes: Some(_), .. } => "bad",
        Event::Elected { .. } | Event::Resigned { .. } | Event::Restored { .. } | Event::Paused { paused: true } => {
            "warn"
        }
        Event::Promise { setting } if setting.is_empty() => "warn",
        Event::Promoted { .. } | Event::Paused { paused: false } => "good",
        Event::Promise { .. }
        | Event::TookOffice { .. }
        | Event::Settings { .. }
        | Event::Restarted { .. }
        | Event::Added { .. }
        | Event::Removed { .. } => "plain",
    }
}

fn history(events: &Result<Vec<Entry>, OperateError>, all: bool, now: Micros) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="history" tabindex="0" {
            h2 id="history" { "History" }
            @match events {
                Err(error) => (problem(&error.to_string(), error.hint.as_deref())),
                Ok(events) if events.is_empty() => p.muted { "Nothing has happened to the primary yet." },
                Ok(events) => {
                    (event_table(if all { events } else { events.get(..EVENTS).unwrap_or(events) }, now))
                    @if !all && events.len() > EVENTS { p.more { a href="/cluster?events=all" { "All events" } } }
                    @else if events.len() >= EVENTS_MAX { p.note { "Earlier ones: " code { "millrace cluster history" } } }
                }
            }
        }
    }
}

fn event_table(events: &[Entry], now: Micros) -> Markup {
    html! {
        table.log {
            caption.sr { "What happened, newest first" }
            thead { tr { th scope="col" { "When (UTC)" } th.num scope="col" { "Ago" } th.num scope="col" { "Term" } th scope="col" { "Event" } th scope="col" { "What happened" } } }
            tbody { @for entry in events { tr {
                td { (utc(entry.at)) }
                td.num { (format::duration(now.since(entry.at))) }
                td.num { span.narrow { "term " } (entry.term) }
                td { span.state.(class(&entry.event)) { (entry.event.kind()) } }
                td.text { (entry.event) }
            } } }
        }
    }
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
            table.stack {
                thead { tr { th scope="col" { "Node" } th scope="col" { "Role" } th scope="col" { "State" } th.num scope="col" { "Behind" }
                    th scope="col" { "Doing" } th scope="col" { "Up for" } th.num scope="col" { "Timeline" } th scope="col" { "Position" } th.num scope="col" { "Port" } } }
                tbody { @for node in &status.nodes { tr {
                    th scope="row" { (node.name) }
                    td data-label="Role" { @if node.role == NodeRole::Primary { strong { (role(node)) } } @else { (role(node)) } }
                    td data-label="State" { (state(node)) }
                    td.num data-label="Behind" { @match (node.role, node.lag_bytes) {
                        (NodeRole::Primary, _) => span.muted { "–" },
                        (NodeRole::Replica, Some(bytes)) => (format::bytes(bytes)),
                        (NodeRole::Replica, None) => "unknown",
                    } }
                    td.text data-label="Doing" { (node.doing) }
                    td data-label="Up for" { @match node.since { Some(since) => (format::duration(status.now.since(since))), None => "–" } }
                    td.num data-label="Timeline" { @match node.timeline { Some(timeline) => (timeline), None => "–" } }
                    td data-label="Position" { @match node.lsn { Some(lsn) => span.lsn { (lsn) }, None => "–" } }
                    td.num data-label="Port" { (node.port) }
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
