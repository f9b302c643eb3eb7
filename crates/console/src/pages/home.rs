//! The platform at a glance: what is wrong, how fresh the data are, where to look.

use std::time::Duration;

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_contract::status::{CaptureState, Finding, NodeRole, NodeState, PlatformStatus, Severity};

use crate::{
    Shared, format,
    pages::{
        cluster, layout,
        layout::Page,
        runs::{self, status_word},
    },
    session::Session,
};

/// `GET /`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
) -> Response {
    let (status, freshness) = tokio::join!(console.state.operator.status(), console.pulse.newest(&console));
    let body = html! {
        div.head { div {
            h1 { (status.name) }
            p.muted { "Millrace " (status.version) " · up " (format::duration(status.now.since(status.started_at))) " · process " (status.pid) " · " (format::bytes(status.memory_bytes)) " of memory" }
        } }
        div.overview data-refresh="/" {
            (verdict(&status))
            (flow(&console, &status, freshness))
            (cluster::nodes(&status))
            div.columns {
                (last_run(&status))
                (disks(&status))
            }
            section.panel aria-labelledby="dashboards" {
                h2 id="dashboards" { "Dashboards" }
                ul.cards { @for d in &console.state.catalog.dashboards {
                    li { a href={ "/dashboards/" (d.slug) } { strong { (d.title) } span.muted { (d.description) } span.muted { (d.tiles.len()) " tiles" } } }
                } }
            }
        }
    };
    let page = Page { title: "Overview", current: "/", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

fn verdict(status: &PlatformStatus) -> Markup {
    html! {
        section.panel.verdict.(if status.is_healthy() { "good" } else { "bad" }) aria-labelledby="verdict" {
            h2 id="verdict" { @if status.is_healthy() { "Everything works" } @else { "Something needs you" } }
            @if status.findings.is_empty() { p.muted { "All servers answer, replicas stream, and changes reach the warehouse." } }
            @else { ul.findings { @for finding in &status.findings { (self::finding(finding, status)) } } }
        }
    }
}

pub(crate) fn finding(finding: &Finding, status: &PlatformStatus) -> Markup {
    let (class, word) = match finding.severity {
        Severity::Notice => ("busy", "notice"),
        Severity::Warning => ("warn", "warning"),
        Severity::Critical => ("bad", "critical"),
    };
    html! {
        li {
            span.state.(class) { (word) }
            div {
                p { strong { (finding.subject) } ": " (finding.what)
                    @if let Some(since) = finding.since { span.muted { " for " (format::duration(status.now.since(since))) } } }
                p.todo { "→ " (finding.what_to_do) }
            }
        }
    }
}

fn flow(console: &Shared, status: &PlatformStatus, freshness: Option<crate::tile::Stamp>) -> Markup {
    let capture = &status.capture;
    let source_answers = status.nodes.iter().any(|n| n.role == NodeRole::Primary && n.state == NodeState::Running);
    let (class, word, detail) = match &capture.state {
        CaptureState::Streaming if !source_answers => (
            "warn",
            "no answer",
            "The primary does not answer: what it holds beyond the watermark is not known.".to_owned(),
        ),
        CaptureState::Streaming => ("good", "streaming", String::new()),
        CaptureState::Waiting { reason } => ("busy", "waiting", reason.clone()),
        CaptureState::Copying { tables_done, tables, rows } => {
            ("busy", "initial copy", format!("{tables_done} of {tables} tables, {} rows", format::count(*rows)))
        }
        CaptureState::Retrying { error, .. } => ("warn", "retrying", error.clone()),
        CaptureState::Stopped { error, hint, .. } => ("bad", "stopped", format!("{error} → {hint}")),
    };
    html! {
        section.panel aria-labelledby="flow" {
            h2 id="flow" { "From the primary to the warehouse" }
            dl.figures {
                div.figure { dt { "Capture" } dd { span.state.(class) { (word) } } }
                div.figure { dt { "Data are" } dd { @match freshness {
                    Some(stamp) => span.fresh data-as-of=(stamp.as_of().0) { span.age { (format::duration(console.state.clock.wall().since(stamp.as_of()))) " old" } },
                    None => "unknown",
                } } }
                div.figure { dt { "Changes waiting" } dd {
                    @if source_answers { (format::bytes(capture.lag_bytes)) span.unit { " · " (format::duration(Duration::from_millis(capture.lag_ms))) } }
                    @else { "unknown" }
                } }
                div.figure { dt { "Applied since start" } dd { (format::count(capture.changes_applied)) } }
                div.figure { dt { "Watermark" } dd { span.lsn { (capture.watermark) } } }
            }
            @if !detail.is_empty() { p { (detail) } }
            @if !capture.quarantined.is_empty() {
                h3 { "Tables in quarantine" }
                ul { @for (table, reason) in &capture.quarantined { li { code { (table) } " " (reason) } } }
            }
        }
    }
}

fn last_run(status: &PlatformStatus) -> Markup {
    html! {
        section.panel aria-labelledby="last-run" {
            h2 id="last-run" { "Last load" }
            @match &status.last_run {
                None => p.muted { "None yet." },
                Some(run) => dl.facts {
                    div { dt { "Run" } dd { a href=(runs::link(run.run_id)) { (run.run_id) } " " (run.kind.replace('_', " ")) } }
                    div { dt { "Status" } dd { (status_word(&run.status)) } }
                    div { dt { "Started" } dd { (format::duration(status.now.since(run.started_at))) " ago"
                        @if let Some(ms) = run.duration_ms { ", took " (format::duration(Duration::from_millis(ms))) } } }
                    div { dt { "Rows" } dd { (format::count(run.rows_inserted)) " inserted, " (format::count(run.rows_updated)) " updated, " (format::count(run.rows_deleted)) " deleted" } }
                    @if let Some(error) = &run.error { div { dt { "Error" } dd { (error) } } }
                },
            }
            p.more { a href="/runs" { "All load runs" } }
        }
    }
}

fn disks(status: &PlatformStatus) -> Markup {
    html! {
        section.panel aria-labelledby="disks" {
            h2 id="disks" { "Disk" }
            dl.facts.stacked { @for disk in &status.disks {
                div { dt { code { (disk.path) } } dd {
                    meter min="0" max=(disk.total_bytes) value=(disk.total_bytes.saturating_sub(disk.free_bytes)) high=(disk.total_bytes / 10 * 9) aria-label={ "Used space of " (disk.path) } {}
                    " " (format::bytes(disk.free_bytes)) " free; the platform holds " (format::bytes(disk.used_bytes))
                } }
            } }
        }
    }
}
