//! Throw-away copies of the cluster as it was: restored from its backups, started on a port of this host alone.
//!
//! Invariant: a copy never touches the cluster. It has its own folder below the platform's data, listens to this host
//! only, archives nothing and follows nobody; roles and passwords are those of the time it is of. It stays until it is
//! removed, whatever becomes of the platform, except that `nuke` removes it too.
//!
//! Where the file system can share blocks, the first copy from a backup leaves a base (`millrace_backup::base`) for those
//! that come after it. It goes when its backup is not kept any more.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use millrace_backup::{
    Files, ProgressFn, RestoreOptions, Restored, WalSource,
    base::{self, Base, BaseUse},
    list as list_backups,
    plan::{Plan, Target},
    plan_restore,
    repo::Repository,
    restore,
};
use millrace_base::files;
use millrace_pg::ServerSpec;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    explain::{Explained as _, chain},
    recovered,
};

/// One copy, as `clone list` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cloned {
    pub(crate) port: u16,
    pub(crate) target: String,
    pub(crate) backup: String,
    #[serde(default)]
    pub(crate) running: bool,
}

fn folder(context: &Context, port: u16) -> PathBuf {
    context.layout.clones().join(port.to_string())
}

fn spec(context: &Context, port: u16) -> anyhow::Result<ServerSpec> {
    recovered::private(context, folder(context, port), port)
}

/// One command at a time for each copy: what a killed one has left is told from what another is at.
fn hold(context: &Context, port: u16) -> anyhow::Result<std::fs::File> {
    let folder = context.layout.clones();
    files::create_dir_all(&folder, 0o755).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{port}.lock"));
    let file = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!("another command is at work on the copy on port {port}"),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// A copy that takes writes.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) plan: Plan,
    /// The last commit in it, if the log ended before the wanted time came up in it: nothing was committed in between,
    /// or the repository was behind.
    pub(crate) ended_at: Option<String>,
    pub(crate) files: Files,
}

impl Made {
    /// What is to be said of a copy whose log ended early.
    pub(crate) fn warning(&self) -> Option<String> {
        self.ended_at.as_deref().map(recovered::ends_early)
    }
}

/// Makes a copy as of `target` and waits until it takes writes.
///
/// # Errors
/// If the port is taken, the target cannot be reached, or the server does not come up. Nothing is left then.
pub(crate) async fn make(
    context: &Context,
    repo: &Repository,
    system_id: u64,
    (target, port): (Target, u16),
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Made> {
    let _held = hold(context, port)?;
    let spec = spec(context, port)?;
    if about(&spec.folder).exists() {
        bail!("there is a copy on port {port} already\n  hint: another port, or millrace clone remove {port}");
    }
    // what killed commands have left
    recovered::clear(&spec).await?;
    clear_unfinished(context).await?;
    drop(std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port} is in use"))?);
    let made = restored(context, &spec, repo, system_id, target, progress, stop).await;
    if made.is_err()
        && let Err(error) = recovered::clear(&spec).await
    {
        context.output.note(format!("what was made could not be cleared away: {error:#}"));
    }
    made
}

async fn restored(
    context: &Context,
    spec: &ServerSpec,
    repo: &Repository,
    system_id: u64,
    target: Target,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Made> {
    crate::backup::all_there(repo).await?;
    let plan = plan_restore(repo, system_id, &target, None, None).await.explained()?;
    let label = plan.backups.last().cloned().unwrap_or_default();
    let all = list_backups(repo, system_id).await.explained()?.backups;
    base_of_kept(context, |label| all.iter().any(|backup| backup.label == label));
    let of_backup = all.iter().filter(|backup| backup.label == label).flat_map(|backup| &backup.tablespaces);
    files::create_dir_all(&spec.folder, 0o700)?;
    spec.run_as.own(&spec.folder).explained()?;
    let root = rustix::process::geteuid().is_root();
    let options = RestoreOptions {
        data_dir: spec.data_dir(),
        delta: false,
        target,
        backup: Some(label.clone()),
        timeline: Some(plan.timeline),
        threads: crate::backup::config(context)?.threads,
        owner: root.then(|| spec.run_as.clone()),
        tablespaces: of_backup.map(|of| (of.oid, spec.folder.join(format!("tablespace-{}", of.oid)))).collect(),
        wal: WalSource::Prefetch,
        base: Some(BaseUse { folder: context.layout.clone_base(), take: true }),
    };
    let Restored { plan, files } = restore(repo, system_id, &options, progress, stop).await.explained()?;
    spec.configure(None).explained()?;
    let ends_early = matches!(plan.target, Target::Time { .. });
    let ended_at = tokio::select! {
        opened = recovered::open(context, spec, ends_early) => opened?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let cloned = Cloned { port: spec.port, target: plan.target.to_string(), backup: label, running: false };
    files::write_atomic(&about(&spec.folder), &serde_json::to_vec_pretty(&cloned)?, 0o600)?;
    Ok(Made { plan, ended_at, files })
}

fn about(folder: &Path) -> PathBuf {
    folder.join("clone.json")
}

/// All copies of this platform.
pub(crate) fn list(context: &Context) -> anyhow::Result<Vec<Cloned>> {
    let folder = context.layout.clones();
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
    };
    let mut all = Vec::new();
    for entry in entries {
        let Ok(port) = entry?.file_name().to_string_lossy().parse::<u16>() else { continue };
        let told = std::fs::read(about(&folder.join(port.to_string()))).ok();
        let told = told.and_then(|text| serde_json::from_slice::<Cloned>(&text).ok());
        let unfinished = || Cloned { port, target: "not finished".to_owned(), backup: String::new(), running: false };
        all.push(Cloned { running: spec(context, port)?.running_pid().is_some(), ..told.unwrap_or_else(unfinished) });
    }
    all.sort_by_key(|cloned| cloned.port);
    Ok(all)
}

/// Stops a copy and removes its folder; says whether there was one.
pub(crate) async fn remove(context: &Context, port: u16) -> anyhow::Result<bool> {
    if !folder(context, port).exists() {
        return Ok(false);
    }
    let _held = hold(context, port)?;
    recovered::clear(&spec(context, port)?).await?;
    Ok(true)
}

/// Removes copies that were never finished and that nobody is at.
async fn clear_unfinished(context: &Context) -> anyhow::Result<()> {
    for cloned in list(context)? {
        let spec = spec(context, cloned.port)?;
        if about(&spec.folder).exists() {
            continue;
        }
        let Ok(_held) = hold(context, cloned.port) else { continue };
        // it may have been finished a moment ago
        if !about(&spec.folder).exists() {
            recovered::clear(&spec).await?;
        }
    }
    Ok(())
}

/// The base that copies share the blocks of, if there is one.
pub(crate) fn base(context: &Context) -> anyhow::Result<Option<Base>> {
    base::look(&context.layout.clone_base()).explained()
}

/// Removes the base, or what is left of one; says whether there was anything.
pub(crate) fn remove_base(context: &Context) -> anyhow::Result<bool> {
    base::remove(&context.layout.clone_base()).explained()
}

/// Removes the base of a backup that is not kept any more. If that does not work now, it is for the next time.
pub(crate) fn base_of_kept(context: &Context, is_kept: impl Fn(&str) -> bool) {
    let removed = match base(context) {
        Ok(Some(base)) if !is_kept(&base.label) => remove_base(context),
        other => other.map(|_| false),
    };
    if let Err(error) = removed {
        tracing::warn!(error = chain(error.as_ref()), "the base of a backup that has expired was not removed");
    }
}

/// Ends all copies, and the servers of a proof and of a restore that were killed, before their folders go.
pub(crate) async fn end_all(context: &Context) -> anyhow::Result<()> {
    for cloned in list(context)? {
        remove(context, cloned.port).await?;
    }
    crate::in_place::clear(context).await?;
    let proof = ServerSpec { folder: context.layout.proof().join(crate::backup::PROOF), ..spec(context, 0)? };
    proof.fence().await.explained()
}

/// A port of this host that nobody listens to.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
