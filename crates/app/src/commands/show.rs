//! How status, checks and proofs look on a screen.

use millrace_base::Micros;
use millrace_contract::{
    operate::{Check, Proof},
    status::{CaptureState, Finding, NodeRole, NodeState, NodeStatus, PlatformStatus, Severity, Times},
};

use crate::{
    output::{Output, age_text, bytes_text, table},
    platform::ClusterView,
};

/// One screen: what is wrong comes first.
pub(crate) fn status(status: &PlatformStatus, output: Output) -> String {
    let mut text = String::new();
    let mut line = |content: String| {
        text.push_str(&content);
        text.push('\n');
    };
    let verdict = verdict(&status.findings, output);
    line(format!(
        "{}  {verdict}   {}",
        output.bold(&status.name),
        output.faint(&format!(
            "millrace {} · process {} · up {} · {} resident",
            status.version,
            status.pid,
            age_text(status.now.since(status.started_at)),
            bytes_text(status.memory_bytes)
        )),
    ));
    line(findings(&status.findings, status.now, output));
    line(nodes(&status.nodes));
    let slots: Vec<Vec<String>> = status
        .slots
        .iter()
        .map(|slot| {
            vec![
                slot.name.clone(),
                slot.slot_type.clone(),
                if slot.active { "yes" } else { "no" }.into(),
                slot.retained_bytes.map_or_else(String::new, bytes_text),
                slot.safe_wal_bytes.map_or_else(String::new, |bytes| bytes_text(u64::try_from(bytes).unwrap_or(0))),
                slot.wal_status.clone().unwrap_or_default(),
            ]
        })
        .collect();
    line(table(&["slot", "kind", "active", "retains", "may retain", "state"], &slots));
    let capture = &status.capture;
    line(format!(
        "capture    {}   watermark {} · {} behind · {} · {} changes since start",
        match &capture.state {
            CaptureState::Waiting { reason } => format!("waits: {reason}"),
            CaptureState::Copying { tables_done, tables, rows } =>
                format!("copies: {tables_done} of {tables} tables, {rows} rows"),
            CaptureState::Streaming => output.green("streaming"),
            CaptureState::Retrying { .. } => output.yellow("tries again"),
            CaptureState::Stopped { .. } => output.red("stopped"),
        },
        capture.watermark,
        bytes_text(capture.lag_bytes),
        age_text(std::time::Duration::from_millis(capture.lag_ms)),
        capture.changes_applied,
    ));
    if let Some(run) = &status.last_run {
        line(format!(
            "last run   {} {} {}   +{} ~{} -{} rows · {} ago{}",
            run.run_id,
            run.kind,
            run.status,
            run.rows_inserted,
            run.rows_updated,
            run.rows_deleted,
            age_text(status.now.since(run.started_at)),
            run.duration_ms.map_or_else(String::new, |ms| format!(" · took {ms} ms")),
        ));
    }
    if let Some(backup) = &status.backup {
        let last = backup.last.as_ref().map_or_else(
            || "none yet".to_owned(),
            |last| {
                let kind = if last.full { "full" } else { "incremental" };
                format!("last {} ago, {kind}, {}", age_text(status.now.since(last.at)), bytes_text(last.stored_bytes))
            },
        );
        line(format!(
            "backups    {}   {last}{} · log {} behind",
            backup.repository,
            backup.proven.as_ref().map_or_else(String::new, |(_, at)| {
                format!(", proven by restoring it {} ago", age_text(status.now.since(*at)))
            }),
            bytes_text(backup.backlog_bytes)
        ));
    }
    for disk in &status.disks {
        line(format!(
            "disk       {}   {} free of {} · {} used by the platform",
            disk.path,
            bytes_text(disk.free_bytes),
            bytes_text(disk.total_bytes),
            bytes_text(disk.used_bytes),
        ));
    }
    for listener in &status.listeners {
        line(format!("{:<10} {}", listener.name, listener.address));
    }
    text
}

fn verdict(findings: &[Finding], output: Output) -> String {
    match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Notice) => output.green("all is well"),
        Some(Severity::Warning) => output.yellow("needs attention"),
        Some(Severity::Critical) => output.red("needs action now"),
    }
}

/// Two lines for each, and what to do is the second.
pub(crate) fn findings(findings: &[Finding], now: Micros, output: Output) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.severity {
            Severity::Critical => output.red("✖"),
            Severity::Warning => output.yellow("▲"),
            Severity::Notice => output.faint("·"),
        };
        let since = finding.since.map_or_else(String::new, |since| format!(" (for {})", age_text(now.since(since))));
        text.push_str(&format!("{mark} {}: {}{since}\n", finding.subject, finding.what));
        text.push_str(&format!("  → {}\n", finding.what_to_do));
    }
    text
}

/// The cluster alone, as one of its agents sees it.
pub(crate) fn cluster(name: &str, view: &ClusterView, now: Micros, output: Output) -> String {
    let (failover, what_follows) = view.summary.failover_words();
    format!(
        "{}  {}\n{}\n{}\npromise    {}\nfailover   {failover}: {what_follows}\nterm       {}\n",
        output.bold(name),
        verdict(&view.findings, output),
        findings(&view.findings, now, output),
        nodes(&view.nodes),
        view.summary.promise_text(),
        view.summary.term,
    )
}

/// The proxy's pools.
pub(crate) fn proxy(status: &PlatformStatus) -> String {
    let proxy = &status.proxy;
    let up = status.now.since(status.started_at).as_secs_f64().max(1.0);
    let ms = |us: Option<u64>| format!("{:.2}", us.unwrap_or(0) as f64 / 1_000.0);
    let percentiles = |times: &Times| match times.p50_us {
        None => String::new(),
        Some(_) => format!("{} · {} · {}", ms(times.p50_us), ms(times.p95_us), ms(times.p99_us)),
    };
    let pools: Vec<Vec<String>> = proxy
        .pools
        .iter()
        .map(|pool| {
            vec![
                pool.database.clone(),
                pool.user.clone(),
                if pool.read_only { "read-only" } else { "read-write" }.into(),
                if pool.paused { "paused".into() } else { pool.mode.clone() },
                pool.clients.to_string(),
                pool.waiting.to_string(),
                format!("{} of {}", pool.servers.saturating_sub(pool.idle), pool.size),
                pool.idle.to_string(),
                pool.transactions.to_string(),
                format!("{:.1}", pool.transactions as f64 / up),
                percentiles(&pool.query_times),
                percentiles(&pool.wait_times),
            ]
        })
        .collect();
    let mut text = table(
        &[
            "database",
            "user",
            "port",
            "mode",
            "clients",
            "waiting",
            "in use",
            "idle",
            "transactions",
            "a second",
            "a query, ms",
            "a wait, ms",
        ],
        &pools,
    );
    text.push_str(&format!(
        "times are p50 · p95 · p99 · {} clients · {} failed logins since the start",
        proxy.clients, proxy.failed_logins
    ));
    text
}

/// One line for each promise looked at.
pub(crate) fn checks(checks: &[Check], output: Output) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let mark = if check.passed { output.green("✔") } else { output.red("✖") };
        text.push_str(&format!("{mark} {:<width$}  {}\n", check.name, check.detail));
    }
    let failed = checks.iter().filter(|check| !check.passed).count();
    text.push_str(&match failed {
        0 => output.green(&format!("all {} checks passed\n", checks.len())),
        failed => output.red(&format!("{failed} of {} checks failed\n", checks.len())),
    });
    text
}

/// One line for each table and model, and the keys that differ.
pub(crate) fn proof(proof: &Proof, output: Output) -> String {
    let mut text = String::new();
    for (heading, compared) in [("source and warehouse", &proof.tables), ("models and their rebuild", &proof.models)] {
        text.push_str(&format!("{}\n", output.bold(heading)));
        for one in compared {
            let mark = if one.differing == 0 { output.green("✔") } else { output.red("✖") };
            text.push_str(&format!(
                "{mark} {:<32} {:>12} rows  {:>12} rows  {} differ\n",
                one.what, one.rows_source, one.rows_warehouse, one.differing
            ));
            for example in &one.examples {
                text.push_str(&format!("    {example}\n"));
            }
        }
    }
    for note in &proof.notes {
        text.push_str(&format!("{} {note}\n", output.yellow("▲")));
    }
    let verdict = if proof.is_clean() { output.green("identical") } else { output.red("they differ") };
    text.push_str(&format!("{verdict} as of {} · compared in {} ms\n", proof.lsn, proof.duration_ms));
    text
}

/// The servers of the cluster.
pub(super) fn nodes(nodes: &[NodeStatus]) -> String {
    let nodes: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                match node.role {
                    NodeRole::Primary => "primary".into(),
                    NodeRole::Replica => "replica".into(),
                },
                match node.state {
                    NodeState::Stopped => "stopped".into(),
                    NodeState::Starting => "starting".into(),
                    NodeState::Running => "running".into(),
                    NodeState::Unresponsive => "unresponsive".into(),
                },
                node.port.to_string(),
                node.pid.map_or_else(String::new, |pid| pid.to_string()),
                node.timeline.map_or_else(String::new, |timeline| timeline.to_string()),
                node.lsn.map_or_else(String::new, |lsn| lsn.to_string()),
                match (node.role, node.lag_bytes) {
                    (NodeRole::Replica, Some(lag)) => bytes_text(lag),
                    _ => String::new(),
                },
                node.doing.clone(),
            ]
        })
        .collect();
    table(&["node", "role", "state", "port", "pid", "tl", "lsn", "behind", "doing"], &nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_what_is_wrong_first() {
        let mut status_ = crate::findings::tests::healthy();
        status_.capture.quarantined.push(("operational.loans".into(), "NaN in amount".into()));
        status_.findings = crate::findings::assess(&status_, Vec::new());
        insta::assert_snapshot!(status(&status_, Output::new(false, true)));
    }
}
