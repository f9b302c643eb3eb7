//! Load runs, newest first.

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_base::Micros;
use millrace_contract::status::RunStatus;
use serde::Deserialize;

use crate::{
    Shared, format,
    pages::{layout, layout::Page, problem},
    session::Session,
};

const PAGE_RUNS: usize = 50;
const PAGES_MAX: usize = 200;

/// Which page of the list: by its number, or the one that shows a run.
#[derive(Debug, Deserialize)]
pub(crate) struct Position {
    #[serde(default)]
    page: String,
    #[serde(default)]
    run: String,
}

/// Where a run is shown; a freshness badge leads there.
pub(crate) fn link(run_id: i64) -> String {
    format!("/runs?run={run_id}#run-{run_id}")
}

/// `GET /runs`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Query(position): Query<Position>,
    headers: HeaderMap,
) -> Response {
    let page = page_number(&console, &position).await;
    let runs = console.state.operator.runs(page * PAGE_RUNS + 1).await;
    let now = console.state.clock.wall();
    let body = html! {
        div.head {
            div { h1 { "Load runs" } p.muted { "Each run is one transaction in the warehouse: all of it is there, with its watermark, or nothing." } }
            p.muted { "As of " (utc(now)) " UTC · " a href="/runs" { "Newest" } }
        }
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

/// The page asked for, by its number or by a run on it.
async fn page_number(console: &Shared, position: &Position) -> usize {
    let asked = position.page.parse::<usize>().unwrap_or(1);
    let Ok(wanted) = position.run.parse::<i64>() else { return asked.clamp(1, PAGES_MAX) };
    let operator = &console.state.operator;
    let newest = operator.runs(1).await.ok().and_then(|runs| runs.first().map(|run| run.run_id)).unwrap_or(wanted);
    // numbers rise, so no more runs than this are newer
    let newer_max = usize::try_from(newest.saturating_sub(wanted)).unwrap_or(0).min(PAGES_MAX * PAGE_RUNS);
    let runs = operator.runs(newer_max + 1).await.unwrap_or_default();
    let place = runs.iter().position(|run| run.run_id <= wanted).unwrap_or(0);
    (place / PAGE_RUNS + 1).clamp(1, PAGES_MAX)
}

pub(crate) fn utc(at: Micros) -> String {
    at.to_string().replace('T', " ").trim_end_matches('Z').to_owned()
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
                    td { (utc(run.started_at)) }
                    td.num { @match run.duration_ms { Some(ms) => (format::duration(std::time::Duration::from_millis(ms))), None => "–" } }
                    td.num { (format::count(run.rows_inserted)) }
                    td.num { (format::count(run.rows_updated)) }
                    td.num { (format::count(run.rows_deleted)) }
                    td { span.lsn { (run.watermark) } }
                    td.text { @if let Some(error) = &run.error { (error) } @else { span.muted { "–" } } }
                }
            } }
        }
    }
}
