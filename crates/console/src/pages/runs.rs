//! Load runs, newest first.

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_contract::status::RunStatus;
use serde::Deserialize;

use crate::{
    Shared, format,
    pages::{layout, layout::Page, problem},
    session::Session,
};

const PAGE_RUNS: usize = 50;
const PAGES_MAX: usize = 200;

/// Which page of the list.
#[derive(Debug, Deserialize)]
pub(crate) struct Position {
    #[serde(default)]
    page: String,
}

/// `GET /runs`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Query(position): Query<Position>,
    headers: HeaderMap,
) -> Response {
    let page = position.page.parse::<usize>().unwrap_or(1).clamp(1, PAGES_MAX);
    let runs = console.state.operator.runs(page * PAGE_RUNS + 1).await;
    let body = html! {
        div.head { div { h1 { "Load runs" } p.muted { "Each run is one transaction in the warehouse: all of it is there, with its watermark, or nothing." } } }
        @match &runs {
            Err(error) => (problem(&error.to_string(), error.hint.as_deref())),
            Ok(runs) => {
                @let shown: Vec<_> = runs.iter().skip((page - 1) * PAGE_RUNS).take(PAGE_RUNS).collect();
                div.panel.scroll tabindex="0" role="region" aria-label="Load runs" { (table(&shown)) }
                @if shown.is_empty() { p.empty { "No runs here." } }
                nav.pager aria-label="Pages" {
                    @if page > 1 { a rel="prev" href={ "/runs?page=" (page - 1) } { "← Newer" } }
                    span.muted { "Page " (page) }
                    @if runs.len() > page * PAGE_RUNS && page < PAGES_MAX { a rel="next" href={ "/runs?page=" (page + 1) } { "Older →" } }
                }
            }
        }
    };
    let frame = Page { title: "Load runs", current: "/runs", charts: false };
    layout::page(&console, &session, &headers, &frame, &body).into_response()
}

/// A word with its colour; the word alone says it all.
pub(crate) fn status_word(status: &str) -> Markup {
    let class = match status {
        "succeeded" | "success" | "committed" | "done" => "good",
        "failed" | "error" => "bad",
        _ => "busy",
    };
    html! { span.state.(class) { (status) } }
}

fn table(runs: &[&RunStatus]) -> Markup {
    html! {
        table {
            caption.sr { "Load runs, newest first" }
            thead { tr {
                th scope="col" { "Run" } th scope="col" { "Kind" } th scope="col" { "Status" } th scope="col" { "Started (UTC)" }
                th.num scope="col" { "Duration" } th.num scope="col" { "Inserted" } th.num scope="col" { "Updated" } th.num scope="col" { "Deleted" }
                th scope="col" { "Watermark" } th scope="col" { "Error" }
            } }
            tbody { @for run in runs {
                tr id={ "run-" (run.run_id) } {
                    th scope="row" { (run.run_id) }
                    td { (run.kind.replace('_', " ")) }
                    td { (status_word(&run.status)) }
                    td { (run.started_at.to_string().replace('T', " ").trim_end_matches('Z')) }
                    td.num { @match run.duration_ms { Some(ms) => (format::duration(std::time::Duration::from_millis(ms))), None => "–" } }
                    td.num { (format::count(run.rows_inserted)) }
                    td.num { (format::count(run.rows_updated)) }
                    td.num { (format::count(run.rows_deleted)) }
                    td { span.lsn { (run.watermark) } }
                    td { @if let Some(error) = &run.error { (error) } @else { span.muted { "–" } } }
                }
            } }
        }
    }
}
