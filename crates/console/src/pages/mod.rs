//! The pages.

pub(crate) mod backups;
pub(crate) mod cluster;
pub(crate) mod dashboard;
pub(crate) mod home;
pub(crate) mod layout;
pub(crate) mod login;
pub(crate) mod proxy;
pub(crate) mod report;
pub(crate) mod runs;

use axum::{
    Extension,
    extract::{OriginalUri, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};

use crate::{Shared, session::Session};
use layout::Page;

/// Any path that leads nowhere: says what there is instead.
pub(crate) async fn missing(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    not_found(&console, &session, &headers, &format!("There is no page {}", uri.path()))
}

/// A page of status 404 that lists the dashboards and reports.
pub(crate) fn not_found(console: &Shared, session: &Session, headers: &HeaderMap, what: &str) -> Response {
    let catalog = &console.state.catalog;
    let body = html! {
        div.prose {
            h1 { (what) }
            p { "It may have been renamed or removed from the pack. Press " kbd { "/" } " to search, or go to one of these:" }
            h2 { "Dashboards" }
            ul { @for d in &catalog.dashboards { li { a href={ "/dashboards/" (d.slug) } { (d.title) } } } }
            h2 { "Reports" }
            ul { @for r in &catalog.reports { li { a href={ "/reports/" (r.name) } { (r.title) } } } }
        }
    };
    let page = Page { title: "Not found", current: "", charts: false };
    (StatusCode::NOT_FOUND, layout::page(console, session, headers, &page, &body)).into_response()
}

/// A message with what to do about it.
pub(crate) fn problem(message: &str, hint: Option<&str>) -> Markup {
    html! {
        div.problem role="alert" {
            p { strong { (message) } }
            @if let Some(hint) = hint { p { (hint) } }
        }
    }
}
