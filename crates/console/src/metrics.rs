//! `/metrics` in Prometheus' text format 0.0.4.
//!
//! Names follow postgres_exporter where it has one; no label is unbounded.

use std::fmt::Write;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use millrace_base::Micros;
use millrace_contract::status::{CaptureState, NodeRole, NodeState, PlatformStatus, PoolStatus, Severity};

use crate::Shared;

/// `GET /metrics`.
pub(crate) async fn show(State(console): State<Shared>) -> Response {
    let status = console.state.operator.status().await;
    let freshness = console.pulse.newest(&console).await;
    let text = render(&status, freshness.map(|stamp| stamp.as_of()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // writing to a String does not fail
        let _written = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _written = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    /// Counts by length and the sum of all, in microseconds, of each pool.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        bounds_us: &[u64],
        pools: &[PoolStatus],
        of: impl Fn(&PoolStatus) -> (Vec<u64>, u64),
    ) {
        if pools.is_empty() {
            return;
        }
        // writing to a String does not fail
        let _written = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for pool in pools {
            let ((counts, sum_us), database) = (of(pool), database(pool));
            let own = [("database", database.as_str()), ("user", pool.user.as_str())];
            let bounds = bounds_us.iter().map(|us| (float(*us) / 1e6).to_string()).chain(["+Inf".to_owned()]);
            let mut so_far = 0;
            for (bound, count) in bounds.zip(&counts) {
                so_far += count;
                let labels = labels(&[own[0], own[1], ("le", &bound)]);
                let _written = writeln!(self.0, "{name}_bucket{labels} {so_far}");
            }
            let labels = labels(&own);
            let _written =
                writeln!(self.0, "{name}_sum{labels} {}\n{name}_count{labels} {so_far}", float(sum_us) / 1e6);
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.metric(name, kind, help, [(String::new(), value)]);
    }
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| {
            format!("{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' samples are doubles")]
fn float(number: u64) -> f64 {
    number as f64
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn render(status: &PlatformStatus, as_of: Option<Micros>) -> String {
    let mut page = Page(String::new());
    page.metric(
        "millrace_info",
        "gauge",
        "Version of the platform.",
        [(labels(&[("name", &status.name), ("version", &status.version)]), 1.0)],
    );
    nodes(&mut page, status);
    capture(&mut page, status, as_of);
    proxy(&mut page, status);
    page.metric(
        "millrace_disk_free_bytes",
        "gauge",
        "Free space where the platform writes.",
        status.disks.iter().map(|d| (labels(&[("path", &d.path)]), float(d.free_bytes))),
    );
    page.metric(
        "millrace_disk_used_bytes",
        "gauge",
        "Space used by the platform's own files.",
        status.disks.iter().map(|d| (labels(&[("path", &d.path)]), float(d.used_bytes))),
    );
    let severities = [("notice", Severity::Notice), ("warning", Severity::Warning), ("critical", Severity::Critical)];
    page.metric(
        "millrace_findings",
        "gauge",
        "What is wrong now, by severity.",
        severities.map(|(name, severity)| {
            let count = status.findings.iter().filter(|f| f.severity == severity).count();
            (labels(&[("severity", name)]), float(u64::try_from(count).unwrap_or(u64::MAX)))
        }),
    );
    page.one(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory of the platform process.",
        float(status.memory_bytes),
    );
    page.one(
        "process_start_time_seconds",
        "gauge",
        "Start of the platform process.",
        float(u64::try_from(status.started_at.0 / 1_000_000).unwrap_or(0)),
    );
    page.0
}

fn nodes(page: &mut Page, status: &PlatformStatus) {
    let role = |role| match role {
        NodeRole::Primary => "primary",
        NodeRole::Replica => "replica",
    };
    page.metric(
        "pg_up",
        "gauge",
        "Whether the server runs and answers.",
        status
            .nodes
            .iter()
            .map(|n| (labels(&[("node", &n.name), ("role", role(n.role))]), flag(n.state == NodeState::Running))),
    );
    page.metric(
        "pg_replication_lag_bytes",
        "gauge",
        "Bytes that a replica is behind the primary.",
        status.nodes.iter().filter_map(|n| Some((labels(&[("node", &n.name)]), float(n.lag_bytes?)))),
    );
    page.metric(
        "pg_replication_is_streaming",
        "gauge",
        "Whether a replica streams from the primary.",
        status.nodes.iter().filter_map(|n| Some((labels(&[("node", &n.name)]), flag(n.streaming?)))),
    );
    page.metric(
        "pg_replication_slots_active",
        "gauge",
        "Whether a replication slot is in use.",
        status.slots.iter().map(|s| (labels(&[("slot_name", &s.name), ("slot_type", &s.slot_type)]), flag(s.active))),
    );
    page.metric(
        "pg_replication_slots_retained_bytes",
        "gauge",
        "Log kept because of a replication slot.",
        status.slots.iter().filter_map(|s| Some((labels(&[("slot_name", &s.name)]), float(s.retained_bytes?)))),
    );
}

/// Under the names of pgbouncer_exporter, and what it does not have under our own.
fn proxy(page: &mut Page, status: &PlatformStatus) {
    let proxy = &status.proxy;
    page.one("pgbouncer_up", "gauge", "Whether every thread of the proxy answers.", flag(proxy.up));
    page.one("pgbouncer_used_clients", "gauge", "Clients connected.", float(proxy.clients));
    page.one("millrace_proxy_failed_logins_total", "counter", "Logins refused.", float(proxy.failed_logins));
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&PoolStatus) -> f64| {
        let samples = proxy
            .pools
            .iter()
            .map(|pool| (labels(&[("database", &database(pool)), ("user", &pool.user)]), value(pool)));
        page.metric(name, kind, help, samples);
    };
    each("pgbouncer_pools_client_active_connections", "gauge", "Clients served or at rest.", &|p| {
        float(p.clients.saturating_sub(p.waiting))
    });
    each("pgbouncer_pools_client_waiting_connections", "gauge", "Clients that wait for a connection.", &|p| {
        float(p.waiting)
    });
    each("pgbouncer_pools_client_maxwait_seconds", "gauge", "How long the first of them has waited.", &|p| {
        float(p.longest_wait_ms) / 1e3
    });
    each("pgbouncer_pools_server_active_connections", "gauge", "Connections in use.", &|p| {
        float(p.servers.saturating_sub(p.idle))
    });
    each("pgbouncer_pools_server_idle_connections", "gauge", "Connections unused.", &|p| float(p.idle));
    each("pgbouncer_databases_pool_size", "gauge", "Connections that the pool may have.", &|p| float(p.size));
    each("pgbouncer_databases_paused", "gauge", "Whether the pool is paused.", &|p| flag(p.paused));
    each("pgbouncer_stats_sql_transactions_pooled_total", "counter", "Transactions.", &|p| float(p.transactions));
    each("pgbouncer_stats_queries_pooled_total", "counter", "Queries.", &|p| float(p.queries));
    each("pgbouncer_stats_queries_duration_seconds_total", "counter", "Time in queries.", &|p| float(p.query_us) / 1e6);
    each("pgbouncer_stats_client_wait_seconds_total", "counter", "Time that clients waited for a connection.", &|p| {
        float(p.wait_us) / 1e6
    });
    each("millrace_proxy_waits_total", "counter", "How often a client had to wait for a connection.", &|p| {
        float(p.waits)
    });
    let behind = "Reads that went to the primary, because no replica had replayed what their client wrote.";
    each("millrace_proxy_reads_behind_total", "counter", behind, &|p| float(p.behind));
    each("pgbouncer_stats_received_bytes_total", "counter", "Bytes from clients.", &|p| float(p.received_bytes));
    each("pgbouncer_stats_sent_bytes_total", "counter", "Bytes to clients.", &|p| float(p.sent_bytes));
    let (bounds, pools) = (&proxy.time_bounds_us, &proxy.pools);
    let times = |p: &'_ PoolStatus| (p.query_times.counts.clone(), p.query_us);
    page.histogram("millrace_proxy_query_seconds", "How long queries took.", bounds, pools, times);
    let times = |p: &'_ PoolStatus| (p.wait_times.counts.clone(), p.wait_us);
    let help = "How long whoever asked for a connection waited, those who did not have to included.";
    page.histogram("millrace_proxy_wait_seconds", help, bounds, pools, times);
}

/// The pools of the read-only address have `:ro` behind the database's name.
fn database(pool: &PoolStatus) -> String {
    if pool.read_only { format!("{}:ro", pool.database) } else { pool.database.clone() }
}

fn capture(page: &mut Page, status: &PlatformStatus, as_of: Option<Micros>) {
    let capture = &status.capture;
    page.one(
        "millrace_capture_streaming",
        "gauge",
        "Whether changes are being captured.",
        flag(capture.state == CaptureState::Streaming),
    );
    page.one(
        "millrace_capture_lag_bytes",
        "gauge",
        "Log between the primary and the warehouse.",
        float(capture.lag_bytes),
    );
    page.one(
        "millrace_capture_lag_seconds",
        "gauge",
        "Age of the oldest change not yet in the warehouse.",
        float(capture.lag_ms) / 1000.0,
    );
    page.one(
        "millrace_capture_changes_total",
        "counter",
        "Changes applied since the start.",
        float(capture.changes_applied),
    );
    let quarantined = u64::try_from(capture.quarantined.len()).unwrap_or(u64::MAX);
    page.one("millrace_capture_quarantined_tables", "gauge", "Tables stopped with an error.", float(quarantined));
    page.metric(
        "asset_freshness_seconds",
        "gauge",
        "Age of what the warehouse shows.",
        as_of.map(|as_of| (labels(&[("asset", "warehouse")]), status.now.since(as_of).as_secs_f64())),
    );
    if let Some(run) = &status.last_run {
        let pipeline = labels(&[("pipeline", "capture")]);
        page.metric(
            "pipeline_run_duration_seconds",
            "gauge",
            "Duration of the last load.",
            run.duration_ms.map(|ms| (pipeline, float(ms) / 1000.0)),
        );
        page.metric(
            "pipeline_last_run_rows",
            "gauge",
            "Rows of the last load.",
            [("inserted", run.rows_inserted), ("updated", run.rows_updated), ("deleted", run.rows_deleted)]
                .map(|(outcome, rows)| (labels(&[("pipeline", "capture"), ("outcome", outcome)]), float(rows))),
        );
    }
}
