//! `millrace backup`.

use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use anyhow::bail;
use millrace_backup::{
    Kind, Manifest, RestoreOptions, Step, VerifyOptions, VerifyReport, WalSource, list,
    plan::{Plan, Target},
    proofs::{self, Proofs},
    repo::Repository,
    restore, retention,
};
use millrace_base::{Clock as _, Lsn, SystemClock};
use millrace_pg::{RunAs, StopMode};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{backup_info, client, dump, lifecycle, progress::Bar};
use crate::{
    backup::{self, Nodes, retention_of},
    cli::{BackupCommand, RestoreTo},
    clone,
    context::Context,
    explain::{Explained as _, Usage},
    in_place,
    output::{age_text, bytes_text, table},
    recovered,
};

pub(super) async fn run(context: &Context, only: Option<&str>, command: &BackupCommand) -> anyhow::Result<u8> {
    let repo = backup::open_only(context, only)?;
    let ended = match command {
        BackupCommand::Create { full } => {
            make(context, &repo, if *full { Kind::Full } else { Kind::Incremental }).await
        }
        BackupCommand::List => catalog(context, &repo).await,
        BackupCommand::Info { backup } => backup_info::info(context, &repo, backup.as_deref()).await,
        BackupCommand::Verify { quick } => verify(context, &repo, !quick).await,
        BackupCommand::Prove { backup } => prove(context, &repo, backup.clone()).await,
        BackupCommand::Hold { backup } => hold(context, &repo, backup).await,
        BackupCommand::Release { backup } => release(context, &repo, backup).await,
        BackupCommand::Expire { dry_run } => expire(context, &repo, *dry_run).await,
        BackupCommand::NewKey => new_key(context),
        BackupCommand::Restore(wanted) => back(context, &repo, wanted).await,
        BackupCommand::RestoreTable(wanted) => super::clone::restore_table(context, &repo, wanted).await,
        BackupCommand::RestoreDatabase(wanted) => dump::restore_database(context, &repo, wanted).await,
        BackupCommand::Dump(wanted) => dump::make(context, &repo, wanted).await,
        BackupCommand::Dumps => dump::list(context, &repo).await,
        BackupCommand::Fetch { dump, to } => dump::fetch(context, &repo, dump, to).await,
        BackupCommand::Load(wanted) => dump::load(context, &repo, wanted).await,
    };
    backup::tell_away(context, &repo);
    ended
}

/// Ctrl-C ends what goes on in order.
pub(super) fn stop_on_interrupt(tasks: &mut millrace_base::Tasks) -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tasks.spawn("interrupt", async move {
        // a terminal that goes away, and whoever ends this, mean the same as Ctrl-C
        let (mut ended, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        tokio::select! {
            heard = tokio::signal::ctrl_c() => heard?,
            _ = ended.recv() => {}
            _ = hung_up.recv() => {}
        }
        told.cancel();
        Ok::<_, std::io::Error>(())
    });
    stop
}

async fn make(context: &Context, repo: &Repository, kind: Kind) -> anyhow::Result<u8> {
    let api = client(&context.clone().of_cluster()?);
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let made = backup::make(context, repo, Nodes::Asked(&api), (kind, true), &|step| bar.tell(step), &stop).await;
    bar.end();
    let (made, node) = made?;
    let seconds = bar.seconds();
    let manifest = &made.manifest;
    if let Some(why) = &made.full_because {
        context.output.line(format!("a full backup, because {why}"));
    }
    context.output.line(format!(
        "{} ({}, of {}): {} of data, {} stored in {:.1} s",
        manifest.label,
        kind_name(manifest.kind),
        node.name,
        bytes_text(manifest.data_bytes),
        bytes_text(manifest.stored_bytes),
        seconds
    ));
    if made.taken_over_bytes > 0 {
        let bytes = bytes_text(made.taken_over_bytes);
        context.output.line(format!("{bytes} of it were in the repository already, from a backup that did not end"));
    }
    if !manifest.pages_damaged.is_empty() {
        context.output.json(manifest)?;
        bail!("pages of {} are damaged: {}", node.name, manifest.pages_damaged.join(", "));
    }
    let bar = Bar::new(context);
    let recorded = backup::record(context, repo, Nodes::Asked(&api), manifest, &|step| bar.tell(step), &stop).await;
    bar.end();
    let mut document = serde_json::to_value(manifest)?;
    let mut add = |name: &str, value| {
        if let Some(of) = document.as_object_mut() {
            of.insert(name.to_owned(), value);
        }
    };
    add("taken_over_bytes", made.taken_over_bytes.into());
    match recorded {
        Ok(None) => {}
        Ok(Some(contents)) => {
            let (tables, rows) = (contents.tables(), contents.rows());
            let left_out = contents.all_left_out();
            context
                .output
                .line(format!("{tables} tables with {rows} rows counted for proofs in {:.1} s", bar.seconds()));
            tell_left_out(context, "not counted", &left_out);
            add("counted", serde_json::json!({ "tables": tables, "rows": rows, "left_out": left_out }));
        }
        Err(error) => {
            context.output.note(format!("what its tables held is not recorded, for proofs to compare: {error:#}"));
        }
    }
    context.output.json(&document)?;
    Ok(0)
}

/// The first of them.
fn tell_left_out(context: &Context, how: &str, left_out: &[String]) {
    const MAX: usize = 5;
    for line in left_out.iter().take(MAX) {
        context.output.line(format!("  {how}: {line}"));
    }
    if left_out.len() > MAX {
        context.output.line(format!("  and {} more", left_out.len() - MAX));
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
    }
}

async fn catalog(context: &Context, repo: &Repository) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let catalog = list(repo, system_id).await.explained()?;
    let proofs = proofs::list(repo, system_id).await.explained()?;
    let held = retention::held(repo, system_id).await.explained()?;
    let mut document = Vec::new();
    for backup in &catalog.backups {
        let mut of = serde_json::to_value(backup)?;
        if let Some(of) = of.as_object_mut() {
            of.insert("proven".to_owned(), serde_json::to_value(proofs.proven_at(&backup.label))?);
            of.insert("failed_proof".to_owned(), serde_json::to_value(proofs.failed_at(&backup.label))?);
            of.insert("held".to_owned(), held.contains(&backup.label).into());
        }
        document.push(of);
    }
    context.output.json(&document)?;
    if catalog.backups.is_empty() {
        context.output.line(format!("no backups in {} yet: millrace backup create", repo.name()));
    } else {
        let rows: Vec<Vec<String>> = catalog.backups.iter().map(|of| row(of, &proofs, &held)).collect();
        let header = ["backup", "kind", "made", "data", "stored", "from", "consistent from", "proven", "builds on"];
        context.output.line(table(&header, &rows).trim_end());
    }
    for (object, reason) in &catalog.damaged {
        context.output.line(format!("damaged: {object}: {reason}"));
    }
    for (label, _) in &catalog.unfinished {
        context.output.line(format!("unfinished, or under way: {label}"));
    }
    Ok(u8::from(!catalog.damaged.is_empty()))
}

fn row(backup: &Manifest, proofs: &Proofs, held: &BTreeSet<String>) -> Vec<String> {
    let label = &backup.label;
    let proven = match (proofs.failed_at(label), proofs.proven_at(label)) {
        (Some(at), _) => format!("FAILED {at}"),
        (None, Some(at)) => at.to_string(),
        (None, None) => String::new(),
    };
    vec![
        if held.contains(label) { format!("{label} (held)") } else { label.clone() },
        kind_name(backup.kind).to_owned(),
        backup.stopped_at.to_string(),
        bytes_text(backup.data_bytes),
        bytes_text(backup.stored_bytes),
        if backup.from_replica { "replica" } else { "primary" }.to_owned(),
        backup.stop.to_string(),
        proven,
        backup.parent.clone().unwrap_or_default(),
    ]
}

/// Each place by itself: what one has lost another may still have, and nobody would notice.
async fn verify(context: &Context, repo: &Repository, deep: bool) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let options = VerifyOptions { threads: backup::config(context)?.threads, deep };
    let places = repo.alone();
    let several = places.len() > 1;
    let (mut whole, mut reports) = (true, Vec::new());
    for (name, place) in places {
        let bar = Bar::new(context);
        let read = async { millrace_backup::verify(&place?, system_id, &options, &|step| bar.tell(step), &stop).await };
        let report = read.await;
        bar.end();
        if several {
            context.output.line(format!("{name}:"));
        }
        let report = match report {
            Ok(report) => report,
            Err(error) if several && !stop.is_cancelled() => {
                whole = false;
                context.output.line(format!("✘ {error}"));
                reports.push(serde_json::json!({ "repository": name, "error": error.to_string() }));
                continue;
            }
            Err(error) => return Err(error).explained(),
        };
        whole &= report.findings.is_empty();
        tell_report(context, &report);
        let mut report = serde_json::to_value(&report)?;
        if let Some(report) = report.as_object_mut().filter(|_| several) {
            report.insert("repository".to_owned(), name.into());
        }
        reports.push(report);
    }
    match reports.as_slice() {
        [only] => context.output.json(only)?,
        several => context.output.json(&several)?,
    }
    Ok(u8::from(!whole))
}

fn tell_report(context: &Context, report: &VerifyReport) {
    for window in &report.windows {
        context.output.line(format!(
            "{}: can be restored to any point from {} ({}) to {} ({})",
            window.label, window.from, window.from_time, window.to, window.to_time
        ));
    }
    for finding in &report.findings {
        context.output.line(format!("✘ {}: {}", finding.what, finding.problem));
    }
    let (backups, objects, bytes) = (report.backups, report.objects, bytes_text(report.bytes));
    match report.findings.len() {
        0 => {
            let dumps = match report.dumps {
                0 => String::new(),
                dumps => format!("{dumps} logical ones, "),
            };
            let line = format!("✔ {backups} backups, {dumps}{objects} objects, {bytes}: all as they were written");
            context.output.line(line);
        }
        found => context.output.line(format!("{found} things are not as they should be")),
    }
}

async fn prove(context: &Context, repo: &Repository, label: Option<String>) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let options = backup::proof(context, label)?;
    let proof = backup::prove_and_keep(context, (repo, system_id), &options, &|step| bar.tell(step), &stop).await;
    bar.end();
    let backup::Kept { proof, forgotten } = proof.explained()?;
    if let Some(error) = forgotten {
        context.output.note(format!("the proof came out well, and is not remembered: {error}"));
    }
    context.output.json(&proof)?;
    tell(context, &proof.plan);
    let checked = match proof.check_ms {
        Some(ms) => format!("{} databases checked by pg_amcheck in {ms} ms", proof.databases),
        None => "not checked further: there is no pg_amcheck here".to_owned(),
    };
    let rules = match proof.rules {
        0 => String::new(),
        rules => format!(", {rules} rules of the pack hold"),
    };
    context
        .output
        .line(format!("✔ restored in {} ms, replayed in {} ms, {checked}{rules}", proof.restore_ms, proof.replay_ms));
    match proof.tables {
        0 if !proof.tables_left_out.is_empty() => {}
        0 => context.output.line("  nothing that its tables held was recorded with it, to be compared"),
        tables => {
            let rows = proof.rows;
            context.output.line(format!("✔ {tables} tables held the {rows} rows that were counted after the backup"));
        }
    }
    tell_left_out(context, "not compared", &proof.tables_left_out);
    if !proof.rules_left_out.is_empty() {
        context
            .output
            .line(format!("  of what is not in this backup, and left out: {}", proof.rules_left_out.join(", ")));
    }
    Ok(0)
}

fn new_key(context: &Context) -> anyhow::Result<u8> {
    let keys = backup::change_key(context)?;
    let path = context.config.secrets_path();
    context.output.json(&serde_json::json!({ "keys": keys }))?;
    context.output.line(format!(
        "a new key comes first in {}; {} before it still read what is older",
        path.display(),
        keys - 1
    ));
    let hosts = if context.config.etcd.is_some() { ", bring it to every other host" } else { "" };
    context.output.line(format!(
        "next: keep a copy of the file elsewhere{hosts}, start the platform anew (it archives the log with the key that it was \
         started with), then millrace backup create --full"
    ));
    Ok(0)
}

async fn hold(context: &Context, repo: &Repository, label: &str) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    retention::hold(repo, system_id, label).await.explained()?;
    context.output.json(&serde_json::json!({ "backup": label, "held": true }))?;
    context.output.line(format!(
        "{label} stays, with what it builds on and the log from it on, until: millrace backup release {label}"
    ));
    Ok(0)
}

async fn release(context: &Context, repo: &Repository, label: &str) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    // a mark that one of them keeps would come back
    backup::all_there(repo).await?;
    if !retention::release(repo, system_id, label).await.explained()? {
        return Err(Usage(format!("{label} is not held\n  hint: millrace backup list")).into());
    }
    context.output.json(&serde_json::json!({ "backup": label, "held": false }))?;
    context.output.line(format!("{label} goes when [backup] does not keep it any more"));
    Ok(0)
}

async fn expire(context: &Context, repo: &Repository, dry_run: bool) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let now = SystemClock::new().wall();
    let expired =
        retention::expire(repo, system_id, &retention_of(backup::config(context)?), now, dry_run).await.explained()?;
    if !dry_run {
        clone::base_of_kept(context, |label| expired.decision.kept.contains_key(label));
    }
    context.output.json(&expired)?;
    for (label, why) in &expired.decision.kept {
        context.output.line(format!("keeps {label}: {why}"));
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    for label in expired.decision.expired.iter().chain(&expired.dumps) {
        context.output.line(format!("{verb} {label}"));
    }
    context.output.line(format!("{verb} {} files of log, {}", expired.log_objects, bytes_text(expired.log_bytes)));
    Ok(0)
}

/// Which point is meant; at most one is said.
fn target(wanted: &RestoreTo) -> anyhow::Result<Target> {
    let inclusive = !wanted.before;
    let wrong = |what: &str| Usage(format!("{what}\n  hint: --time 2026-11-22T10:00:00Z, --lsn 0/3000148"));
    Ok(if let Some(time) = &wanted.time {
        let Target::Time { at, .. } = super::clone::moment(time)? else {
            return Err(wrong(&format!("`{time}` is no time")).into());
        };
        Target::Time { at, inclusive }
    } else if let Some(lsn) = &wanted.lsn {
        Target::Lsn { at: lsn.parse::<Lsn>().map_err(|_| wrong(&format!("`{lsn}` is no position")))?, inclusive }
    } else if let Some(xid) = wanted.xid {
        Target::Xid { xid, inclusive }
    } else if let Some(name) = &wanted.name {
        Target::Name(name.clone())
    } else {
        Target::Latest
    })
}

async fn back(context: &Context, repo: &Repository, wanted: &RestoreTo) -> anyhow::Result<u8> {
    let target = target(wanted)?;
    let label = wanted.backup.as_deref();
    if wanted.in_place || wanted.to.is_some() {
        backup::all_there(repo).await?;
    }
    if wanted.in_place {
        return Box::pin(in_place(context, repo, wanted, target)).await;
    }
    let system_id = match wanted.system_id {
        Some(id) => id,
        None => backup::system_id(context, repo).await?,
    };
    let Some(to) = &wanted.to else {
        let plan = millrace_backup::plan_restore(repo, system_id, &target, label, wanted.timeline).await.explained()?;
        let about = about(repo, system_id, &plan).await?;
        let mut document = serde_json::to_value(&plan)?;
        if let Some(document) = document.as_object_mut() {
            document.insert("about_seconds".to_owned(), about.map(|about| about.as_secs_f64()).into());
        }
        context.output.json(&document)?;
        tell(context, &plan);
        tell_about(context, about);
        context.output.line("nothing was restored; --to FOLDER does it, or --in-place for this platform's cluster");
        return Ok(0);
    };
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let data_dir = std::path::absolute(to)?;
    let root = rustix::process::geteuid().is_root();
    let owner = RunAs::resolve(root.then_some(context.config.platform.user.as_str())).explained()?;
    let options = RestoreOptions {
        data_dir: data_dir.clone(),
        delta: wanted.delta,
        target,
        backup: wanted.backup.clone(),
        timeline: wanted.timeline,
        threads: backup::config(context)?.threads,
        owner: root.then_some(owner),
        tablespaces: Default::default(),
        wal: WalSource::Prefetch,
        base: None,
    };
    let kept = Mutex::new(None);
    let progress = |step: Step| {
        if let (Step::Kept { bytes }, Ok(mut kept)) = (step, kept.lock()) {
            *kept = Some(bytes);
        }
        bar.tell(step);
    };
    let restored = restore(repo, system_id, &options, &progress, &stop).await;
    bar.end();
    let plan = restored.explained()?.plan;
    let kept = kept.into_inner().ok().flatten();
    let mut document = serde_json::to_value(&plan)?;
    if let (Some(document), Some(bytes)) = (document.as_object_mut(), kept) {
        document.insert("kept_bytes".to_owned(), bytes.into());
    }
    context.output.json(&document)?;
    tell(context, &plan);
    let stayed = kept.map_or_else(String::new, |bytes| format!(", {} were there already", bytes_text(bytes)));
    context.output.line(format!("restored to {} in {:.1} s{stayed}", data_dir.display(), bar.seconds()));
    context.output.line(format!(
        "next: as {}: {} -D {} -o '-p 5499 -k /tmp' start; it replays the log, and then takes writes",
        context.config.platform.user,
        program(context, "pg_ctl"),
        data_dir.display()
    ));
    Ok(0)
}

/// The cluster as it was, in its own place.
async fn in_place(context: &Context, repo: &Repository, wanted: &RestoreTo, target: Target) -> anyhow::Result<u8> {
    // the agent's first: the platform's folders are in its own
    let agent = context.config.etcd.is_some().then(|| context.clone().of_agent());
    let mut locks = Vec::new();
    for context in agent.iter().chain([context]) {
        crate::platform::make_folders(context)?;
        locks.push(lifecycle::alone(context).await?);
    }
    let place = in_place::Place::find(context, wanted.node.as_deref()).await?;
    let system_id = match wanted.system_id.or(place.system_id()) {
        Some(id) => id,
        None => backup::system_id(context, repo).await?,
    };
    let label = wanted.backup.as_deref();
    let plan = millrace_backup::plan_restore(repo, system_id, &target, label, wanted.timeline).await.explained()?;
    context.output.line(match place.system_id().filter(|known| *known != system_id) {
        Some(known) => format!("cluster   {system_id}, in the place of another, {known}"),
        None => format!("cluster   {system_id}"),
    });
    if place.is_one_of_many() {
        context.output.line(format!("node      {}", place.node()));
    }
    tell(context, &plan);
    tell_about(context, about(repo, system_id, &plan).await?);
    if !wanted.yes {
        let what = format!(
            "{} becomes what it was at {}; what was committed since is kept aside.",
            context.config.platform.name, plan.target
        );
        if !lifecycle::confirmed(context, &what)? {
            return Err(Usage("nothing was restored".to_owned()).into());
        }
    }
    let stopped = lifecycle::stop_left_over(context, StopMode::Fast).await?;
    if stopped > 0 {
        context.output.line(format!("stopped {stopped} servers that a killed platform had left"));
    }
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let done = in_place::run(context, &place, repo, (system_id, &plan), &|step| bar.tell(step), &stop).await;
    bar.end();
    let done = done?;
    context.output.json(&serde_json::json!({
        "plan": done.plan, "primary": done.primary, "ended_at": done.ended_at, "aside": done.aside,
    }))?;
    if let Some(at) = &done.ended_at {
        context.output.note(recovered::ends_early(at));
    }
    context.output.line(format!("{} is restored, in {:.1} s", done.primary, bar.seconds()));
    context.output.line(match place.is_one_of_many() {
        false => {
            "next: millrace up, which makes the replicas and the warehouse anew; then millrace backup create --full".into()
        }
        true => format!(
            "next: millrace agent {} on this host, then the agents of the others, which keep what they have aside and are \
             made anew;\n      then millrace up --recopy where the platform is, and millrace backup create --full",
            place.node()
        ),
    });
    Ok(0)
}

fn program(context: &Context, name: &str) -> String {
    let binaries = millrace_pg::Binaries::find(context.config.postgres.bin_dir.as_deref());
    binaries.map_or_else(|_| name.to_owned(), |binaries| binaries.program(name).display().to_string())
}

fn tell(context: &Context, plan: &Plan) {
    let output = context.output;
    output.line(format!("backups   {}", plan.backups.join(" + ")));
    output.line(format!("log       {} files, from {} on timeline {}", plan.segments.len(), plan.start, plan.timeline));
    output.line(format!("data      {}", bytes_text(plan.data_bytes)));
    output.line(format!("target    {}", plan.target));
    let window = &plan.window;
    output.line(format!("window    {} ({}) to {} ({})", window.from, window.from_time, window.to, window.to_time));
}

/// How long it would take, by the last proof.
async fn about(repo: &Repository, system_id: u64, plan: &Plan) -> anyhow::Result<Option<Duration>> {
    Ok(proofs::newest(repo, system_id).await.explained()?.map(|proof| proof.would_take(plan)))
}

fn tell_about(context: &Context, about: Option<Duration>) {
    context.output.line(match about {
        Some(about) => format!("takes     about {}, by the last proof", age_text(about)),
        None => "takes     not known before the first proof: millrace backup prove".to_owned(),
    });
}
