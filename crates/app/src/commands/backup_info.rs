//! `millrace backup info`: all that is known of one backup.

use millrace_backup::{Catalog, Manifest, contents, list, plan, proofs, repo::Repository, retention, wal};
use millrace_base::Micros;

use super::backup::kind_name;
use crate::{
    backup,
    context::Context,
    explain::{Explained as _, Usage},
    output::bytes_text,
};

/// One that nobody has named is the newest.
pub(super) async fn info(context: &Context, repo: &Repository, label: Option<&str>) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let catalog = list(repo, system_id).await.explained()?;
    let found = match label {
        Some(label) => catalog.backups.iter().find(|of| of.label == label),
        None => catalog.backups.iter().max_by_key(|of| (of.stopped_at, of.stop)),
    };
    let Some(of) = found else {
        let what =
            label.map_or_else(|| "there are no backups yet".to_owned(), |label| format!("there is no backup {label}"));
        return Err(Usage(format!("{what}\n  hint: millrace backup list")).into());
    };
    let inventory = wal::inventory(repo, system_id).await.explained()?;
    let (windows, problems) = plan::windows(&catalog.backups, &inventory);
    let windows: Vec<_> = windows.into_iter().filter(|window| window.label == of.label).collect();
    let proofs = proofs::list(repo, system_id).await.explained()?;
    let of_this = proofs.proven.iter().filter(|proven| proven.label == of.label);
    let proven: Vec<Micros> = of_this.map(|proven| proven.at).collect();
    let failure = proofs::why(repo, &proofs, &of.label).await.explained()?;
    let held = retention::held(repo, system_id).await.explained()?.contains(&of.label);
    let counted = contents::load(repo, of).await.explained()?;
    context.output.json(&serde_json::json!({
        "manifest": of,
        "rests_on": rests_on(&catalog, of),
        "built_upon": built_upon(&catalog, of),
        "windows": windows,
        "proven": proven,
        "failed_proof": failure,
        "held": held,
        "counted": counted,
    }))?;
    let line = |name: &str, value: String| context.output.line(format!("{name:<16}{value}"));
    line("backup", format!("{}, {}", of.label, kind_name(of.kind)));
    let from = if of.from_replica { "a replica" } else { "the primary" };
    line("made", format!("{} to {}, from {from} of cluster {system_id}", of.started_at, of.stopped_at));
    line("server", format!("PostgreSQL {}.{}", of.postgres_version / 10_000, of.postgres_version % 10_000));
    line("log", format!("from {}, consistent from {}, on timeline {}", of.start, of.stop, of.timeline));
    line("data", format!("{} in {} files", bytes_text(of.data_bytes), of.files));
    line(
        "stored",
        format!("{} of {} that were read into it", bytes_text(of.stored_bytes), bytes_text(of.packed_bytes)),
    );
    line(
        "pages",
        match (of.pages_checked, of.pages_damaged.as_slice()) {
            (false, _) => "not checked: the server has no checksums".to_owned(),
            (true, []) => "checked, none damaged".to_owned(),
            (true, damaged) => format!("DAMAGED: {}", damaged.join(", ")),
        },
    );
    for tablespace in &of.tablespaces {
        line("tablespace", format!("{} at {}", tablespace.oid, tablespace.path));
    }
    line("rests on", some(&rests_on(&catalog, of)));
    line("built upon by", some(&built_upon(&catalog, of)));
    for window in &windows {
        let (from, to) = ((window.from, window.from_time), (window.to, window.to_time));
        let timeline = window.timeline;
        line("can be restored", format!("to {} ({}) until {} ({}), timeline {timeline}", from.0, from.1, to.0, to.1));
    }
    if windows.is_empty() {
        let why = problems.iter().map(ToString::to_string).find(|problem| problem.contains(&of.label));
        line("can be restored", format!("NOT: {}", why.unwrap_or_else(|| "its log is not whole".to_owned())));
    }
    line(
        "counted",
        match &counted {
            None => "nothing that its tables held".to_owned(),
            Some(counted) => {
                let left_out = counted.all_left_out().len();
                let not = if left_out == 0 { String::new() } else { format!("; {left_out} left out") };
                format!("{} tables with {} rows, for proofs to compare{not}", counted.tables(), counted.rows())
            }
        },
    );
    line(
        "proven",
        match proven.as_slice() {
            [] => "not yet: millrace backup prove".to_owned(),
            [only] => format!("at {only}"),
            [.., last] => format!("{} times, the last at {last}", proven.len()),
        },
    );
    if let Some(failure) = &failure {
        line("FAILED ITS PROOF", format!("at {}: {}", failure.at, failure.why));
    }
    if held {
        line("held", "it stays until: millrace backup release".to_owned());
    }
    Ok(u8::from(windows.is_empty() || failure.is_some()))
}

fn some(labels: &[String]) -> String {
    if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }
}

/// Those that a restore of it needs, the full one first.
fn rests_on(catalog: &Catalog, of: &Manifest) -> Vec<String> {
    let mut all = Vec::new();
    let mut next = of.parent.as_ref();
    while let Some(label) = next.filter(|label| !all.contains(*label)) {
        all.insert(0, label.clone());
        next = catalog.backups.iter().find(|of| of.label == *label).and_then(|of| of.parent.as_ref());
    }
    all
}

/// Those that need it, directly.
fn built_upon(catalog: &Catalog, of: &Manifest) -> Vec<String> {
    let children = catalog.backups.iter().filter(|other| other.parent.as_ref() == Some(&of.label));
    children.map(|child| child.label.clone()).collect()
}
