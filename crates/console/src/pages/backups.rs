//! Backups: which moments can be restored, what there is, and what a restore would take.

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use millrace_base::Micros;
use millrace_contract::{
    backups::{BackupEntry, Backups, DumpEntry, LogEntry, RestorePlan},
    operate::OperateError,
    status::{BackupStatus, PlatformStatus},
};
use serde::Deserialize;

use crate::{
    Shared, format,
    pages::{home, layout, layout::Page, problem, runs::utc},
    session::Session,
};

/// The drawing's own units, left to right.
const WIDE: i64 = 1000;

/// The moment that is asked for, as the browser's field gives it: `2026-11-23T02:40:00`, in UTC.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    at: String,
}

/// `GET /backups`, and `?at=` for what a restore to that moment would take.
pub(crate) async fn show(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let operator = &console.state.operator;
    let (status, found) = tokio::join!(operator.status(), operator.backups());
    let plan = match moment(&asked.at) {
        _ if asked.at.is_empty() => None,
        Some(at) => Some((at, operator.restore_plan(at).await)),
        None => {
            let message = format!("`{}` is no moment", asked.at);
            Some((status.now, Err(OperateError { message, hint: Some("2026-11-23T02:40:00, in UTC".to_owned()) })))
        }
    };
    let body = html! {
        div.head { div { h1 { "Backups" } p.muted { "Which moments can be restored, from what, and whether that has been proven." } } }
        @match (&found, &status.backup) {
            (Err(error), _) => (problem(&error.to_string(), error.hint.as_deref())),
            (Ok(None), _) | (_, None) => (none()),
            (Ok(Some(found)), Some(backup)) => {
                div data-refresh="/backups" { (standing(&status, backup, found)) }
                (timeline(found, status.now))
                (guide(&asked.at, plan.as_ref(), found, status.now))
                (backups(&found.backups, status.now))
                (dumps(&found.dumps, status.now))
                (log(&found.timelines))
            }
        }
    };
    let page = Page { title: "Backups", current: "/backups", charts: false };
    layout::page(&console, &session, &headers, &page, &body).into_response()
}

fn none() -> Markup {
    html! {
        section.panel.verdict.warn {
            h2 { "There are no backups" }
            p { "What is lost on every node at once is lost for good. Name a place for them in " code { "millrace.toml" } ", then start the platform again:" }
            pre { "[backup]\nrepository = \"/mnt/other-disk/backups\"      # or s3://BUCKET/PREFIX" }
        }
    }
}

/// `2026-11-23T02:40` or with seconds, as of UTC.
fn moment(text: &str) -> Option<Micros> {
    let civil: jiff::civil::DateTime = text.trim_end_matches('Z').parse().ok()?;
    Some(Micros(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond()))
}

/// A moment as the command line and the browser's field take it, to the second.
fn field(at: Micros) -> String {
    at.to_timestamp().map_or_else(String::new, |at| at.strftime("%Y-%m-%dT%H:%M:%S").to_string())
}

fn standing(status: &PlatformStatus, backup: &BackupStatus, found: &Backups) -> Markup {
    let covered = found.covered();
    let findings: Vec<_> = status.findings.iter().filter(|finding| finding.subject == "backups").collect();
    let level = match covered.last() {
        None => "bad",
        Some(_) if backup.failing.is_some() || backup.failed.is_some() || backup.unproven.is_some() => "bad",
        Some(_) if !found.problems.is_empty() || !findings.is_empty() || covered.len() > 1 => "warn",
        Some(_) => "good",
    };
    let ago =
        |at: Micros| html! { (utc(at)) " UTC" span.muted { " · " (format::duration(status.now.since(at))) " ago" } };
    // by hand, a moment ago; or of a backup that is not kept any more
    let here = found.backups.iter().filter_map(|backup| Some((backup.label.as_str(), backup.proven?)));
    let known = backup.proven.as_ref().map(|(label, at)| (label.as_str(), *at));
    let proven = here.chain(known).max_by_key(|(_, at)| *at);
    html! {
        section.panel.verdict.(level) aria-labelledby="standing" {
            h2 id="standing" { @match covered.last() {
                Some((from, to)) => { "Any moment from " (utc(*from)) " to " (utc(*to)) " UTC can be restored" },
                None => "Nothing can be restored yet",
            } }
            dl.facts {
                div { dt { "Repository" } dd { code { (backup.repository) } } }
                div { dt { "Log not archived yet" } dd { @match &backup.failing {
                    Some(why) => { span.state.bad { "stuck" } " " (format::bytes(backup.backlog_bytes)) ": " (why) },
                    None if !backup.connected => span.state.busy { "not connected" },
                    None => (format::bytes(backup.backlog_bytes)),
                } } }
                div { dt { "Newest backup" } dd { @match found.backups.first() { Some(newest) => (ago(newest.at)), None => "none" } } }
                div { dt { "Last proven by restoring it" } dd { @match proven {
                    Some((label, at)) => { span.state.good { (label) } " " (ago(at)) },
                    None => span.muted { "never; " code { "millrace backup prove" } },
                } } }
                @if let Some(why) = &backup.failed { div { dt { "The last try failed" } dd { (why) } } }
            }
            @if covered.len() > 1 { p.note { "Moments before that too, but for the holes below, where log is missing: no moment in a hole can be restored." } }
            @for problem in &found.problems { p.note { (problem) } }
            @if !findings.is_empty() { ul.findings { @for finding in findings { (home::finding(finding, status)) } } }
        }
    }
}

/// Moments from left to right: what can be restored, and a mark for each backup.
fn timeline(found: &Backups, now: Micros) -> Markup {
    let covered = found.covered();
    let first = covered.iter().map(|(from, _)| *from).chain(found.backups.iter().map(|backup| backup.at)).min();
    let Some(first) = first.filter(|first| *first < now) else { return html! {} };
    let span = (now.0 - first.0).max(1);
    let place = |at: Micros| (at.0 - first.0).clamp(0, span).saturating_mul(WIDE) / span;
    html! {
        section.panel aria-labelledby="timeline" {
            h2 id="timeline" { "What can be restored" }
            svg.coverage viewBox={ "-8 0 " (WIDE + 16) " 56" } role="img" aria-label="Backups and the moments that can be restored, from the oldest to now" preserveAspectRatio="none" {
                rect.none x="0" y="30" width=(WIDE) height="16" rx="2" {}
                @for (from, to) in &covered {
                    rect.whole x=(place(*from)) y="30" width=((place(*to) - place(*from)).max(2)) height="16" rx="2" { title { (utc(*from)) " to " (utc(*to)) " UTC" } }
                }
                @for backup in &found.backups {
                    rect.(if backup.full { "full" } else { "part" }) x=(place(backup.at) - 2) y=(if backup.full { 4 } else { 14 }) width="4" height=(if backup.full { 22 } else { 12 }) {
                        title { (if backup.full { "full" } else { "incremental" }) " " (backup.label) ", " (utc(backup.at)) " UTC" }
                    }
                }
            }
            div.ends { span { (utc(first)) " UTC" } span { "now" } }
            p.legend {
                @for (class, what) in [("whole", "can be restored"), ("none", "cannot"), ("full", "full backup"), ("part", "incremental backup")] {
                    span { span.key.(class) {} (what) }
                }
            }
        }
    }
}

/// What a restore to a moment would take, and the commands for it.
fn guide(
    asked: &str,
    plan: Option<&(Micros, Result<RestorePlan, OperateError>)>,
    found: &Backups,
    now: Micros,
) -> Markup {
    let suggested = found.covered().last().map_or(now, |(_, to)| *to);
    let value = if asked.is_empty() { field(suggested) } else { asked.to_owned() };
    html! {
        section.panel aria-labelledby="guide" id="restore" {
            h2 id="guide" { "Go back to a moment" }
            form.filters method="get" action="/backups#restore" {
                label { span { "Moment (UTC)" } input type="datetime-local" name="at" step="1" value=(value) required; }
                button type="submit" { "What would it take?" }
            }
            @match plan {
                None => p.muted.takes { "It says which backup and log a restore would take, and the commands. Nothing is changed by asking." },
                Some((_, Err(error))) => (problem(&error.to_string(), error.hint.as_deref())),
                Some((at, Ok(plan))) => (steps(*at, plan)),
            }
        }
    }
}

fn steps(at: Micros, plan: &RestorePlan) -> Markup {
    let moment = format!("{}Z", field(at));
    html! {
        p.takes { "It takes " @for (i, label) in plan.backups.iter().enumerate() { @if i > 0 { " + " } code { (label) } }
            " and " (plan.log_files) @if plan.log_files == 1 { " file" } @else { " files" } " of the log on timeline " (plan.timeline) "; " (format::bytes(plan.data_bytes)) " are written"
            @if let Some(about) = plan.about { ", which takes about " (format::duration(about)) " by the last proof" } "." }
        dl.steps {
            dt { "Look first: a throw-away copy as of then, beside everything" }
            dd { pre { "millrace clone make --at '" (moment) "'" } }
            dt { "Bring one table back, beside the live one" }
            dd { pre { "millrace backup restore-table SCHEMA.TABLE --at '" (moment) "'" } }
            dt { "Bring everything back; what is there is kept aside" }
            dd { pre { "millrace down\nmillrace backup restore --in-place --time '" (moment) "'\nmillrace up" } }
        }
    }
}

fn backups(backups: &[BackupEntry], now: Micros) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="backups" tabindex="0" {
            h2 id="backups" { "Backups" }
            @if backups.is_empty() { p.muted { "None yet: " code { "millrace backup create" } } } @else {
                table {
                    thead { tr { th scope="col" { "Backup" } th scope="col" { "Kind" } th scope="col" { "When (UTC)" } th.num scope="col" { "Ago" }
                        th.num scope="col" { "Data" } th.num scope="col" { "Stored" } th scope="col" { "Copied from" } th.num scope="col" { "Timeline" } th scope="col" { "Builds on" } th scope="col" { "Proven (UTC)" } } }
                    tbody { @for backup in backups { tr {
                        th scope="row" { code { (backup.label) } @if backup.held { " " span.muted { "held" } } }
                        td { (if backup.full { "full" } else { "incremental" }) }
                        td { (utc(backup.at)) }
                        td.num { (format::duration(now.since(backup.at))) }
                        td.num { (format::bytes(backup.data_bytes)) }
                        td.num { (format::bytes(backup.stored_bytes)) }
                        td { (if backup.from_replica { "a replica" } else { "the primary" }) }
                        td.num { (backup.timeline) }
                        td { @match &backup.parent { Some(parent) => code { (parent) }, None => span.muted { "–" } } }
                        td { @match (backup.failed_proof, backup.proven) {
                            (Some(at), _) => span.state.bad { "failed " (utc(at)) },
                            (None, Some(at)) => span.state.good { (utc(at)) },
                            (None, None) => span.muted { "–" },
                        } }
                    } } }
                }
            }
        }
    }
}

fn dumps(dumps: &[DumpEntry], now: Micros) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="dumps" tabindex="0" {
            h2 id="dumps" { "Logical backups" }
            @if dumps.is_empty() {
                p.muted { "None: " code { "millrace backup dump" } ", or " code { "dump_every_hours" } " in " code { "[backup]" } " of " code { "millrace.toml" } }
            } @else {
                table {
                    thead { tr { th scope="col" { "Backup" } th scope="col" { "Database" } th scope="col" { "Of it" } th scope="col" { "When (UTC)" }
                        th.num scope="col" { "Ago" } th.num scope="col" { "Data" } th.num scope="col" { "Stored" } } }
                    tbody { @for dump in dumps { tr {
                        th scope="row" { code { (dump.label) } }
                        td { (dump.database) }
                        td { @if dump.parts.is_empty() { "all" } @else { (dump.parts.join(", ")) } }
                        td { (utc(dump.at)) }
                        td.num { (format::duration(now.since(dump.at))) }
                        td.num { (format::bytes(dump.data_bytes)) }
                        td.num { (format::bytes(dump.stored_bytes)) }
                    } } }
                }
            }
        }
    }
}

fn log(timelines: &[LogEntry]) -> Markup {
    html! {
        section.panel.scroll aria-labelledby="log" tabindex="0" {
            h2 id="log" { "The log" }
            @if timelines.is_empty() { p.muted { "None in the repository yet." } } @else {
                table {
                    thead { tr { th scope="col" { "Timeline" } th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "Last written (UTC)" }
                        th.num scope="col" { "Files" } th.num scope="col" { "Stored" } th scope="col" { "Missing" } } }
                    tbody { @for log in timelines { tr {
                        th scope="row" { (log.timeline) }
                        td { span.lsn { (log.first) } }
                        td { span.lsn { (log.last) } }
                        td { (utc(log.last_at)) }
                        td.num { (log.files) }
                        td.num { (format::bytes(log.stored_bytes)) }
                        td { @if log.gaps.is_empty() { span.state.good { "nothing" } } @else {
                            @for (from, to) in &log.gaps { span.state.bad { (from) " to " (to) } " " }
                        } }
                    } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_the_field_come_back() {
        let at = moment("2026-11-23T02:40:07").unwrap();
        assert_eq!(at.0, 1_795_401_607_000_000);
        assert_eq!(field(at), "2026-11-23T02:40:07");
        assert_eq!(moment("2026-11-23T02:40"), Some(Micros(at.0 - 7_000_000)));
        assert_eq!(moment("2026-11-23T02:40:07Z"), Some(at));
        for wrong in ["yesterday", "2026-13-01T00:00", "10:00"] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
    }
}
