//! What all pages share: head, navigation, help, theme.

use axum::http::HeaderMap;
use maud::{DOCTYPE, Markup, html};

use crate::{Console, session, session::Session};

/// The cookie that keeps the reader's choice of light or dark; script sets it.
const THEME_COOKIE: &str = "millrace-theme";

/// What differs between pages' frames.
pub(crate) struct Page<'a> {
    pub(crate) title: &'a str,
    /// The navigation's entry, as a path.
    pub(crate) current: &'a str,
    /// Whether charts are drawn.
    pub(crate) charts: bool,
}

/// A chosen theme; without one the system's preference holds.
fn theme(headers: &HeaderMap) -> Option<&'static str> {
    match session::cookie(headers, THEME_COOKIE)?.as_str() {
        "dark" => Some("dark"),
        "light" => Some("light"),
        _ => None,
    }
}

fn head(console: &Console, title: &str, charts: bool) -> Markup {
    let assets = &console.assets;
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · " (console.state.name) }
            link rel="icon" type="image/svg+xml" href=(assets.url("icon.svg"));
            link rel="stylesheet" href=(assets.url("app.css"));
            script src=(assets.url("boot.js")) {}
            script type="module" src=(assets.url("app.js")) {}
            @if charts { script type="module" src=(assets.url("charts.js")) {} }
        }
    }
}

/// A page without navigation, for readers who are not logged in.
pub(crate) fn bare(console: &Console, headers: &HeaderMap, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" data-theme=[theme(headers)] {
            (head(console, title, false))
            body.bare { main { (body) } }
        }
    }
}

/// A whole page.
pub(crate) fn page(
    console: &Console,
    session: &Session,
    headers: &HeaderMap,
    page: &Page<'_>,
    body: &Markup,
) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" data-theme=[theme(headers)] {
            (head(console, page.title, page.charts))
            body {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.brand href="/" { img src=(console.assets.url("icon.svg")) alt="" width="22" height="22"; span { (console.state.name) } }
                    nav aria-label="Main" {
                        (entry("/", "Overview", page.current))
                        @for dashboard in &console.state.catalog.dashboards {
                            (entry(&format!("/dashboards/{}", dashboard.slug), &dashboard.title, page.current))
                        }
                        (entry("/reports", "Reports", page.current))
                        (entry("/runs", "Load runs", page.current))
                        (entry("/cluster", "Cluster", page.current))
                        (entry("/proxy", "Proxy", page.current))
                        (entry("/backups", "Backups", page.current))
                    }
                    div.tools {
                        span.live id="live" role="status" aria-live="off" { span.dot {} span.word { "offline" } }
                        button.quiet.js-only type="button" data-do="palette" title="Search (/)" { span aria-hidden="true" { "⌕" } span.sr { "Search" } kbd aria-hidden="true" { "/" } }
                        button.quiet.js-only type="button" data-do="theme" title="Light or dark (t)" { span aria-hidden="true" { "◐" } span.sr { "Switch between light and dark" } }
                        button.quiet.js-only type="button" data-do="help" title="Keyboard help (?)" { span aria-hidden="true" { "?" } span.sr { "Keyboard help" } }
                        form method="post" action="/logout" {
                            input type="hidden" name="token" value=(console.sessions.form_token(session));
                            button.quiet type="submit" title={ "Log out " (session.user) } { "Log out" }
                        }
                    }
                }
                p.offline id="offline" role="alert" hidden {}
                main id="main" tabindex="-1" { (body) }
                div.sr id="announce" role="status" aria-live="polite" {}
                (help())
                (palette())
            }
        }
    }
}

fn entry(path: &str, title: &str, current: &str) -> Markup {
    html! { a href=(path) aria-current=[(path == current).then_some("page")] { (title) } }
}

fn help() -> Markup {
    let keys = [
        ("/", "Search pages, dashboards and reports"),
        ("← → ↑ ↓", "Move between tiles; inside a chart, between its marks"),
        ("Enter", "Go into a tile; on a mark, open its rows"),
        ("Esc", "Leave a chart, close a dialog"),
        ("d", "Show or hide the data of the current tile"),
        ("f", "Go to the filters"),
        ("g, then o d r l c p b", "Go to overview, main dashboard, reports, load runs, cluster, proxy, backups"),
        ("t", "Light or dark"),
        ("?", "This help"),
    ];
    html! {
        dialog id="help" aria-labelledby="help-title" {
            h2 id="help-title" { "Keyboard" }
            dl.keys { @for (key, what) in keys { div { dt { kbd { (key) } } dd { (what) } } } }
            form method="dialog" { button type="submit" { "Close" } }
        }
    }
}

fn palette() -> Markup {
    html! {
        dialog id="palette" aria-label="Search" {
            input id="palette-input" type="text" role="combobox" aria-expanded="true" aria-controls="palette-list"
                  aria-autocomplete="list" aria-label="Search pages" placeholder="Search dashboards, reports, pages…"
                  autocomplete="off" spellcheck="false";
            ul id="palette-list" role="listbox" aria-label="Results" {}
        }
    }
}
