//! The list of reports, and one report with its rows.

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_contract::report::{ChartKind, Report};

use crate::{
    Shared,
    pages::{dashboard, layout, layout::Page, not_found, problem},
    params::{Filters, local_path, query_of},
    session::Session,
    table,
    tile::{self, TileError},
};

/// `GET /reports`.
pub(crate) async fn list(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
) -> Response {
    let body = html! {
        div.head { div { h1 { "Reports" } p.muted { "Each is a SQL file of the pack; its page shows the rows, and gives them as CSV and JSON." } } }
        ul.cards {
            @for report in &console.state.catalog.reports {
                li { a href={ "/reports/" (report.name) } { strong { (report.title) } span.muted { (report.description) } code { (report.name) } } }
            }
        }
        @if console.state.catalog.reports.is_empty() { p.empty { "This pack has no reports. A file reports/NAME.sql makes one." } }
    };
    let page = Page { title: "Reports", current: "/reports", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

/// `GET /reports/{name}`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let Some(report) = console.state.catalog.report(&name).cloned() else {
        return not_found(&console, &session, &headers, &format!("There is no report “{name}”"));
    };
    let filters = Filters::new(pairs);
    let path = format!("/reports/{name}");
    let origin = tile::report_origin(&report, &filters);
    let (form, answer) = tokio::join!(
        dashboard::filter_form(&console, &report.params, &filters, &path),
        tile::run(&console, &report, None, &filters, &origin),
    );
    let status = match &answer {
        Ok(_) => StatusCode::OK,
        Err(TileError::Param(_)) => StatusCode::BAD_REQUEST,
        Err(TileError::Query(_)) => StatusCode::BAD_GATEWAY,
        Err(TileError::Deadline(_)) => StatusCode::GATEWAY_TIMEOUT,
    };
    let body = html! {
        (breadcrumb(&console, &report, &filters))
        div.head { div { h1 { (report.title) } @if !report.description.is_empty() { p.muted { (report.description) } } } (form) }
        (dashboard::filtered(&report.params, &filters))
        @match &answer {
            Err(error) => (problem(&error.to_string(), Some(&error.hint()))),
            Ok(data) => (rows(&console, &report, &filters, data)),
        }
        details.sql { summary { "SQL" } pre tabindex="0" { code { (report.source_sql) } } }
    };
    let page = Page { title: &report.title, current: "/reports", charts: true };
    (status, layout::page(&console, &session, &headers, &page, &body)).into_response()
}

/// How many pages a breadcrumb names.
const CRUMBS_MAX: usize = 6;

/// The pages that the reader came through, outermost first: link and title.
fn trail(console: &Shared, filters: &Filters) -> Vec<(String, String)> {
    let catalog = &console.state.catalog;
    let mut trail = Vec::new();
    let mut back = filters.given("_back").and_then(local_path).map(str::to_owned);
    while let Some(link) = back.take().filter(|_| trail.len() < CRUMBS_MAX) {
        let path = link.split('?').next().unwrap_or_default();
        if let Some(dashboard) = path.strip_prefix("/dashboards/").and_then(|slug| catalog.dashboard(slug)) {
            trail.push((link, dashboard.title.clone()));
        } else if let Some(report) = path.strip_prefix("/reports/").and_then(|name| catalog.report(name)) {
            let pairs = link.parse().ok().and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
            let before = Filters::new(pairs.map(|Query(pairs)| pairs).unwrap_or_default());
            back = before.given("_back").and_then(local_path).map(str::to_owned);
            trail.push((link, report.title.clone()));
        }
    }
    if trail.is_empty() {
        trail.push(("/reports".to_owned(), "Reports".to_owned()));
    }
    trail.reverse();
    trail
}

fn breadcrumb(console: &Shared, report: &Report, filters: &Filters) -> Markup {
    html! {
        nav.crumbs aria-label="Breadcrumb" { ol {
            @for (link, title) in trail(console, filters) { li { a href=(link) rel="up" { (title) } } }
            li aria-current="page" { (report.title) }
        } }
    }
}

fn rows(console: &Shared, report: &Report, filters: &Filters, data: &tile::TileData) -> Markup {
    let kept = filters.given("_sort").map(|sort| ("_sort".to_owned(), sort.to_owned()));
    let query = query_of(&filters.for_params(&report.params).into_iter().chain(kept).collect::<Vec<_>>());
    let back = filters.given("_back").map(|back| ("_back".to_owned(), back.to_owned()));
    let source = query_of(&filters.for_params(&report.params).into_iter().chain(back).collect::<Vec<_>>());
    let drawn = !matches!(report.chart, ChartKind::Number | ChartKind::Table);
    let kind = dashboard::kind(report.chart);
    html! {
        section.tile.w12.open.(kind) id="tile-0" data-kind=(kind) data-src={ "/api/v1/reports/" (report.name) ".json" (source) } data-state="ready"
                data-static[filters.given("_sort").is_some()] aria-label=(report.title) tabindex="-1" {
            header {
                p.muted { (data.texts.len()) @if data.truncated { "+" } @if data.texts.len() == 1 { " row" } @else { " rows" } }
                (dashboard::actions(&report.name, &query, report.chart, false))
            }
            (dashboard::measures(report, data.currency.as_deref()))
            div.message {}
            @if drawn { div.chart {} }
            @if report.chart == ChartKind::Number { div.numbers { (table::numbers(data)) } }
            div.data role="region" aria-label={ (report.title) ": rows" } tabindex="0" { (table::table(data, Some(filters))) }
            footer { (dashboard::badge(console, Some(data.freshness))) }
            (dashboard::embedded(data))
        }
    }
}
