//! What the command palette offers, and what the API lists.

use axum::{Json, extract::State};
use serde::Serialize;

use crate::Shared;

#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    kind: &'static str,
    title: String,
    description: String,
    url: String,
}

/// `GET /api/v1/catalog`: every page there is.
pub(crate) async fn show(State(console): State<Shared>) -> Json<Vec<Entry>> {
    let fixed = [
        ("Overview", "health, freshness and findings", "/"),
        ("Reports", "all reports", "/reports"),
        ("Load runs", "what was loaded, when, and what failed", "/runs"),
        ("Cluster", "the primary, nodes, lag, failover, what happened, slots", "/cluster"),
        ("Proxy", "pools, who waits, how long statements take", "/proxy"),
        ("Backups", "what can be restored, whether that is proven, how to go back", "/backups"),
    ];
    let pages = fixed.map(|(title, description, url)| Entry {
        kind: "page",
        title: title.to_owned(),
        description: description.to_owned(),
        url: url.to_owned(),
    });
    let catalog = &console.state.catalog;
    let dashboards = catalog.dashboards.iter().map(|d| Entry {
        kind: "dashboard",
        title: d.title.clone(),
        description: d.description.clone(),
        url: format!("/dashboards/{}", d.slug),
    });
    let reports = catalog.reports.iter().map(|r| Entry {
        kind: "report",
        title: r.title.clone(),
        description: r.description.clone(),
        url: format!("/reports/{}", r.name),
    });
    Json(pages.into_iter().chain(dashboards).chain(reports).collect())
}
