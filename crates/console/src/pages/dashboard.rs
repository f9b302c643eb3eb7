//! A dashboard: filters, tiles, each with its data as a table.
//!
//! Tiles that answer within [`BUDGET`] are in the page; the script fetches the others. Without script
//! a late tile links to its report's page.

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect, Response},
};
use futures::future::join_all;
use maud::{Markup, html};
use millrace_contract::report::{ChartKind, Dashboard, Format, Param, ParamType, Report, Tile};

use crate::{
    Shared, format,
    pages::{layout, layout::Page, not_found, problem, runs},
    params::{Filters, query_of},
    session::Session,
    table,
    tile::{self, Stamp, TileData, TileError},
};

/// How long the page waits for its tiles.
const BUDGET: Duration = Duration::from_millis(1200);

/// `GET /dashboards`: the one that the pack wants opened first.
pub(crate) async fn first(State(console): State<Shared>) -> Redirect {
    let home = console.state.catalog.home();
    Redirect::to(&home.map_or_else(|| "/reports".to_owned(), |d| format!("/dashboards/{}", d.slug)))
}

/// `GET /dashboards/{slug}`.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Path(slug): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let Some(dashboard) = console.state.catalog.dashboard(&slug).cloned() else {
        return not_found(&console, &session, &headers, &format!("There is no dashboard “{slug}”"));
    };
    let filters = Filters::new(pairs).with_defaults(&dashboard.filters);
    let query = query_of(&filters.for_params(&dashboard.filters));
    let origin = format!("/dashboards/{slug}{query}");
    let tiles = join_all(dashboard.tiles.iter().map(|tile| answer(&console, tile, &filters, &origin)));
    let path = format!("/dashboards/{slug}");
    let (form, tiles) = tokio::join!(filter_form(&console, &dashboard.filters, &filters, &path), tiles);
    let body = html! {
        div.head {
            div { h1 { (dashboard.title) } @if !dashboard.description.is_empty() { p.muted { (dashboard.description) } } }
            (form)
        }
        (filtered(&dashboard.filters, &filters))
        div.grid data-dashboard=(slug) {
            @for (position, (tile, answer)) in dashboard.tiles.iter().zip(&tiles).enumerate() {
                (draw(&console, &dashboard, position, tile, answer, &query))
            }
        }
    };
    let page = Page { title: &dashboard.title, current: &path, charts: true };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

/// What a tile has to show when the page is sent; `None` while it still runs.
type Answer = Option<Result<TileData, TileError>>;

async fn answer(console: &Shared, tile: &Tile, filters: &Filters, origin: &str) -> Answer {
    let report = console.state.catalog.report(&tile.report)?;
    tokio::time::timeout(BUDGET, tile::run(console, report, tile.title.as_deref(), filters, origin)).await.ok()
}

fn draw(console: &Shared, dashboard: &Dashboard, position: usize, tile: &Tile, answer: &Answer, query: &str) -> Markup {
    let Some(report) = console.state.catalog.report(&tile.report) else {
        return html! {
            section.tile.(format!("w{}", tile.width)) { (problem(&format!("there is no report `{}`", tile.report), Some("run `millrace check`"))) }
        };
    };
    let title = tile.title.as_deref().unwrap_or(&report.title);
    let id = format!("tile-{position}");
    let source = format!("/api/v1/dashboards/{}/tiles/{position}{query}", dashboard.slug);
    let page = format!("/reports/{}{query}", report.name);
    let kind = kind(report.chart);
    let state = match answer {
        Some(Ok(_)) => "ready",
        Some(Err(_)) => "error",
        None => "loading",
    };
    html! {
        section.tile.(format!("w{}", tile.width.clamp(1, 12))).(kind) id=(id) data-kind=(kind) data-src=(source) data-state=(state)
                aria-labelledby={ (id) "-title" } tabindex="-1" {
            header {
                h2 id={ (id) "-title" } { a href=(page) { (title) } }
                (actions(&report.name, query, report.chart, true))
            }
            (measures(report, console.state.catalog.currency.as_deref()))
            div.message { @match answer {
                Some(Err(error)) => (problem(&error.to_string(), Some(&error.hint()))),
                None => p.muted { "Still working… " a href=(page) { "Open the report" } },
                Some(Ok(_)) => {},
            } }
            @if report.chart == ChartKind::Number {
                div.numbers { @if let Some(Ok(data)) = answer { (table::numbers(data)) } }
            } @else {
                @if report.chart != ChartKind::Table { div.chart {} }
                div.data id={ (id) "-data" } role="region" aria-label={ (title) ": data" } tabindex="0" { @if let Some(Ok(data)) = answer { (table::table(data, None)) } }
            }
            footer { (badge(console, match answer { Some(Ok(data)) => Some(data.freshness), _ => None })) }
            @if let Some(Ok(data)) = answer { (embedded(data)) }
        }
    }
}

/// The data for the script, so that the first drawing needs no further request. Not executable.
pub(crate) fn embedded(data: &TileData) -> Markup {
    // `<` would let a value end the element
    let text = serde_json::to_string(data).unwrap_or_default().replace('<', "\\u003c");
    html! { script type="application/json" { (maud::PreEscaped(text)) } }
}

/// A chart's name for style and script.
pub(crate) fn kind(chart: ChartKind) -> &'static str {
    match chart {
        ChartKind::Number => "number",
        ChartKind::Bar => "bar",
        ChartKind::HorizontalBar => "horizontal_bar",
        ChartKind::Line => "line",
        ChartKind::Pie => "pie",
        ChartKind::Table => "table",
    }
}

/// What a chart's lengths and places mean: "Total paid (KES) by customer".
pub(crate) fn measures(report: &Report, currency: Option<&str>) -> Markup {
    if matches!(report.chart, ChartKind::Number | ChartKind::Table) || report.y.is_empty() {
        return html! {};
    }
    let money = |name: &String| format::of_column(report, name) == Format::Money;
    let mut text = report.y.iter().map(|name| format::label(name)).collect::<Vec<_>>().join(", ");
    if let (true, Some(currency)) = (report.y.iter().all(money), currency) {
        text.push_str(&format!(" ({currency})"));
    }
    if let Some(x) = &report.x {
        text.push_str(&format!(" by {}", format::label(x).to_lowercase()));
    }
    // nothing that the title says already
    html! { @if text.to_lowercase() != report.title.to_lowercase() { p.measure { (text) } } }
}

/// What can be done with a tile. Those that need script are hidden without it. Where the data are shown
/// anyway there is nothing to `unfold`.
pub(crate) fn actions(report: &str, query: &str, chart: ChartKind, unfold: bool) -> Markup {
    let drawn = !matches!(chart, ChartKind::Number | ChartKind::Table);
    html! {
        div.actions {
            @if drawn && unfold { button.quiet.js-only type="button" data-do="data" aria-expanded="false" title="Show data (d)" { "Data" } }
            a.quiet href={ "/api/v1/reports/" (report) ".csv" (query) } download title="Download the rows as CSV" { "CSV" }
            @if drawn { button.quiet.js-only type="button" data-do="png" title="Download the chart as an image" { "PNG" } }
            button.quiet.js-only type="button" data-do="sql" title="Copy the report's SQL" { "SQL" }
        }
    }
}

/// How fresh the data are; script keeps the age going.
pub(crate) fn badge(console: &Shared, stamp: Option<Stamp>) -> Markup {
    let Some(stamp) = stamp else { return html! { span.fresh data-as-of="" {} } };
    let as_of = stamp.as_of();
    let age = console.state.clock.wall().since(as_of);
    html! {
        span.fresh data-as-of=(as_of.0) title={ "Everything committed on the primary up to log position " (stamp.lsn) ", confirmed " (as_of) " (load run " (stamp.run_id) ")" } {
            span.dot {} " " span.age { (format::duration(age)) " old" } span.when.print-only { "as of " (as_of) } " · "
            a href=(runs::link(stamp.run_id)) aria-label={ "Log position " (stamp.lsn) ", load run " (stamp.run_id) } { span.lsn { (stamp.lsn) } }
        }
    }
}

/// The filters as a form that works without script: its values are the page's URL.
pub(crate) async fn filter_form(console: &Shared, params: &[Param], filters: &Filters, path: &str) -> Markup {
    if params.is_empty() {
        return html! {};
    }
    let choices = join_all(params.iter().map(|param| console.choices.of(console, param))).await;
    html! {
        form.filters method="get" action=(path) aria-label="Filters" {
            @for name in ["_back", "_sort"] {
                @if let Some(value) = filters.given(name) { input type="hidden" name=(name) value=(value); }
            }
            @for (param, choices) in params.iter().zip(&choices) {
                @let value = filters.effective(param).unwrap_or_default();
                label { span { (param.label) }
                    @if choices.is_empty() {
                        @match param.param_type {
                            ParamType::Date => input type="date" name=(param.name) value=(value) data-default=[param.default.as_deref()];,
                            ParamType::Integer => input type="number" step="1" name=(param.name) value=(value) data-default=[param.default.as_deref()];,
                            ParamType::Decimal => input type="number" step="any" name=(param.name) value=(value) data-default=[param.default.as_deref()];,
                            ParamType::Text => input type="text" name=(param.name) value=(value) data-default=[param.default.as_deref()]
                                placeholder=[param.choices_sql.is_some().then_some("type a value")];,
                        }
                    } @else {
                        select name=(param.name) data-default=[param.default.as_deref()] {
                            option value="" selected[value.is_empty()] { "All" }
                            @if !value.is_empty() && !choices.iter().any(|c| c == value) { option value=(value) selected { (value) } }
                            @for choice in choices.iter() { option value=(choice) selected[choice == value] { (choice) } }
                        }
                    }
                }
            }
            button type="submit" { "Apply" }
            a.quiet.clear href=(path) hidden[!filters.any_given(params)] { "Clear" }
        }
    }
}

/// The filters in words, for paper.
pub(crate) fn filtered(params: &[Param], filters: &Filters) -> Markup {
    let words: Vec<String> =
        params.iter().filter_map(|param| Some(format!("{}: {}", param.label, filters.effective(param)?))).collect();
    html! { p.filtered.print-only { (words.join(" · ")) } }
}
