//! `millrace wal`: what log there is, and the `restore_command` of servers of a user's own.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use millrace_backup::{
    repo::Repository,
    wal::{self, Spool},
};
use millrace_pg::control_file;

use crate::{
    backup,
    cli::{WalCommand, WalFetch},
    context::Context,
    explain::Explained as _,
    output::bytes_text,
};

/// The spool, beside the file that is wanted.
const SPOOL: &str = "millrace-fetched";

pub(super) async fn run(context: &Context, only: Option<&str>, command: &WalCommand) -> anyhow::Result<u8> {
    match command {
        WalCommand::Status => {
            let repo = backup::open_only(context, only)?;
            let system_id = backup::system_id(context, &repo).await?;
            let ended = log_status(context, &repo, system_id).await;
            backup::tell_away(context, &repo);
            ended
        }
        WalCommand::Fetch(wanted) if wanted.background => fill(context, only, wanted).await,
        WalCommand::Fetch(wanted) => fetch(context, only, wanted).await,
    }
}

/// From the spool, or else from the repository; more is brought meanwhile.
async fn fetch(context: &Context, only: Option<&str>, wanted: &WalFetch) -> anyhow::Result<u8> {
    let known = match wanted.system_id.or_else(data_directory_here) {
        Some(id) => Some(id),
        None => backup::own_system_id(context)?,
    };
    if let Some(system_id) = known
        && taken(context, only, wanted, system_id).await
    {
        return told(context, wanted, "spool");
    }
    let repo = backup::open_only(context, only)?;
    let fetched = fetch_from(context, only, (&repo, known), wanted).await;
    backup::tell_away(context, &repo);
    told(context, wanted, fetched?)
}

/// Where it came from.
async fn fetch_from(
    context: &Context,
    only: Option<&str>,
    (repo, known): (&Repository, Option<u64>),
    wanted: &WalFetch,
) -> anyhow::Result<&'static str> {
    let system_id = match known {
        Some(id) => id,
        None => backup::system_id(context, repo).await?,
    };
    if known.is_none() && taken(context, only, wanted, system_id).await {
        return Ok("spool");
    }
    let found = wal::find(repo, system_id, &wanted.name, wanted.ahead.min(1)).await.explained()?;
    // before this one is read: both take their time
    if found.is_followed() {
        bring_more(context, only, wanted, system_id);
    }
    found.bring(repo, system_id, &wanted.to).await.explained()?;
    Ok("repository")
}

/// Whether it was in the spool and is in its place now.
async fn taken(context: &Context, only: Option<&str>, wanted: &WalFetch, system_id: u64) -> bool {
    if wanted.ahead == 0 {
        return false;
    }
    let took = async {
        let spool = Spool::new(&spool_folder(wanted)?, system_id);
        spool.take(&wanted.name, &wanted.to).await.explained()
    };
    match took.await {
        Ok(true) => bring_more(context, only, wanted, system_id),
        Ok(false) => return false,
        Err(error) => {
            // the repository has it too
            context.output.note(format!("nothing is taken from the spool: {error}"));
            return false;
        }
    }
    true
}

fn told(context: &Context, wanted: &WalFetch, from: &str) -> anyhow::Result<u8> {
    context.output.json(&serde_json::json!({ "fetched": wanted.name, "from": from }))?;
    Ok(0)
}

/// A `restore_command` runs in its server's data directory. Elsewhere, and where it cannot be read, this says nothing.
fn data_directory_here() -> Option<u64> {
    control_file::read(Path::new("")).ok().map(|control| control.system_id)
}

fn spool_folder(wanted: &WalFetch) -> io::Result<PathBuf> {
    let beside = || wanted.to.parent().unwrap_or(Path::new("")).join(SPOOL);
    std::path::absolute(wanted.spool.clone().unwrap_or_else(beside))
}

/// Starts a process that brings what comes next, if little of it is here and none runs. The file that is wanted does not
/// depend on it: what prevents it is said.
fn bring_more(context: &Context, only: Option<&str>, wanted: &WalFetch, system_id: u64) {
    let started = || -> anyhow::Result<()> {
        let folder = spool_folder(wanted)?;
        let spool = Spool::new(&folder, system_id);
        spool.make().explained()?;
        if spool.wants_more(&wanted.name, wanted.ahead).explained()? && !spool.is_filling() {
            start(context, only, wanted, (&folder, system_id)).context("cannot start this program")?;
        }
        Ok(())
    };
    if let Err(error) = started() {
        context.output.note(format!("nothing is brought beforehand: {error}"));
    }
}

/// It is not waited for: it outlives this process.
fn start(context: &Context, only: Option<&str>, wanted: &WalFetch, (spool, system_id): (&Path, u64)) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--dir").arg(&context.config.folder).arg("wal");
    if let Some(only) = only {
        command.args(["--repository", only]);
    }
    command.args(["fetch", "--background", "--ahead", &wanted.ahead.to_string()]);
    command.args(["--system-id", &system_id.to_string()]).arg("--spool").arg(spool);
    command.arg("--").arg(&wanted.name).arg(&wanted.to);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

/// What runs in the background. Nobody reads what it says: what it cannot bring is asked for again by its server, and then
/// the reason is told.
async fn fill(context: &Context, only: Option<&str>, wanted: &WalFetch) -> anyhow::Result<u8> {
    // a server that is stopped ends the session of its restore_command; one that was made by hand has its own already
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "no session of its own");
    }
    let system_id = wanted.system_id.context("--system-id is missing")?;
    let repo = backup::open_only(context, only)?;
    let spool = Spool::new(&spool_folder(wanted)?, system_id);
    let threads = backup::config(context)?.threads;
    let filled = spool.fill(&repo, &wanted.name, wanted.ahead, threads).await.explained()?;
    tracing::debug!(?filled, "the spool");
    Ok(0)
}

async fn log_status(context: &Context, repo: &Repository, system_id: u64) -> anyhow::Result<u8> {
    let status = wal::status(repo, system_id).await.explained()?;
    context.output.json(&status)?;
    if status.timelines.is_empty() {
        context.output.line(format!("no log in {} yet", repo.name()));
    }
    let mut whole = status.conflicts.is_empty();
    for timeline in &status.timelines {
        context.output.line(format!(
            "timeline {}: {} to {}, {} files, {}, the last at {}",
            timeline.timeline,
            timeline.first,
            timeline.last,
            timeline.segments,
            bytes_text(timeline.stored_bytes),
            timeline.last_at
        ));
        for gap in &timeline.gaps {
            whole = false;
            context.output.line(format!("✘ {} to {} are missing: no restore can pass them", gap.first, gap.last));
        }
    }
    for name in &status.conflicts {
        context.output.line(format!("✘ {name} is there with two contents: two servers archive to one place"));
    }
    Ok(u8::from(!whole))
}
