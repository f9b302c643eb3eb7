//! Throw-away copies of the cluster as it was: restored from its backups, started on a port of this host alone.
//!
//! Invariant: a copy never touches the cluster. It has its own folder below the platform's data, listens to this host
//! only, archives nothing and follows nobody; roles and passwords are those of the time it is of. It stays until it is
//! removed, whatever becomes of the platform, except that `nuke` removes it too.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_backup::{
    ProgressFn, RestoreOptions, WalSource, list as list_backups,
    plan::{Plan, Target},
    plan_restore,
    repo::Repository,
    restore,
};
use millrace_base::files;
use millrace_pg::{ConnectParams, Connection, Postmaster, ServerSpec, Setting, StopMode, connect};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{context::Context, explain::Explained as _};

const STOP_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Replay of all that a backup may need.
const OPEN_MAX: Duration = Duration::from_secs(6 * 3600);
const LOOK: Duration = Duration::from_millis(50);
/// What a server says that has replayed everything and met nothing at or after its target (`xlogrecovery.c`).
const NOTHING_LATER: &str = "recovery ended before configured recovery target was reached";

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
    let cluster = context.cluster_spec()?;
    let mut node = cluster.nodes.first().context("the cluster has no nodes")?.clone();
    node.apply_delay = None;
    let folder = folder(context, port);
    let log_file = folder.join("server.log");
    let mut server = cluster.server(&node);
    for (name, value, why) in [
        ("max_logical_replication_workers", "0", "a subscription here would take the slot of the real one"),
        ("shared_preload_libraries", "", "nothing runs by itself in a copy"),
    ] {
        server.settings.push(Setting::new(name, value, why));
    }
    Ok(ServerSpec { listen: vec!["127.0.0.1".to_owned()], port, folder, log_file, ..server })
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
}

impl Made {
    /// What is to be said of a copy whose log ended early.
    pub(crate) fn warning(&self) -> Option<String> {
        let at = self.ended_at.as_ref()?;
        Some(format!(
            "the log in the repository ends before that time came up in it: the last commit is of {at}. That is the state of \
             that time only if the archive was not behind then (millrace wal status)"
        ))
    }
}

/// Access to a copy as superuser.
pub(crate) fn superuser(context: &Context, port: u16) -> anyhow::Result<ConnectParams> {
    Ok(ConnectParams { host: "127.0.0.1".to_owned(), ..context.superuser(port)? })
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
    // what a killed command has left
    clear(&spec).await?;
    drop(std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port} is in use"))?);
    let made = restored(context, &spec, repo, system_id, target, progress, stop).await;
    if made.is_err()
        && let Err(error) = clear(&spec).await
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
    let plan = plan_restore(repo, system_id, &target, None, None).await.explained()?;
    let label = plan.backups.last().cloned().unwrap_or_default();
    let all = list_backups(repo, system_id).await.explained()?.backups;
    let of_backup = all.iter().filter(|backup| backup.label == label).flat_map(|backup| &backup.tablespaces);
    files::create_dir_all(&spec.folder, 0o700)?;
    spec.run_as.own(&spec.folder).explained()?;
    let root = rustix::process::geteuid().is_root();
    let options = RestoreOptions {
        data_dir: spec.data_dir(),
        target,
        backup: Some(label.clone()),
        timeline: Some(plan.timeline),
        threads: crate::backup::config(context)?.threads,
        owner: root.then(|| spec.run_as.clone()),
        tablespaces: of_backup.map(|of| (of.oid, spec.folder.join(format!("tablespace-{}", of.oid)))).collect(),
        wal: WalSource::Prefetch,
    };
    let plan = restore(repo, system_id, &options, progress, stop).await.explained()?;
    spec.configure(None).explained()?;
    let ends_early = matches!(plan.target, Target::Time { .. });
    let ended_at = tokio::select! {
        opened = open(context, spec, ends_early) => opened?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let cloned = Cloned { port: spec.port, target: plan.target.to_string(), backup: label, running: false };
    files::write_atomic(&about(&spec.folder), &serde_json::to_vec_pretty(&cloned)?, 0o600)?;
    Ok(Made { plan, ended_at })
}

fn about(folder: &Path) -> PathBuf {
    folder.join("clone.json")
}

/// Starts the server and waits for the end of recovery. The last commit, if the log ended early.
async fn open(context: &Context, spec: &ServerSpec, ends_early: bool) -> anyhow::Result<Option<String>> {
    let Err(error) = writable(context, spec).await else { return Ok(None) };
    let log = std::fs::read_to_string(&spec.log_file).unwrap_or_default();
    if !ends_early || !log.contains(NOTHING_LATER) {
        return Err(error);
    }
    let conf = spec.data_dir().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf)?;
    files::write_atomic(&conf, format!("{text}recovery_target_time = ''\n").as_bytes(), 0o600)?;
    spec.run_as.own(&conf).explained()?;
    writable(context, spec).await?;
    let client = connect(&superuser(context, spec.port)?, CONNECT_MAX).await.explained()?;
    let sql = "SELECT coalesce(pg_last_xact_replay_timestamp()::text, 'before its backup')";
    Ok(Some(client.query_one(sql, &[]).await?.get(0)))
}

async fn writable(context: &Context, spec: &ServerSpec) -> anyhow::Result<()> {
    let mut postmaster = spec.start().await.explained()?;
    let opened = opened(context, &mut postmaster, spec.port).await;
    if opened.is_err() {
        // it may be about to end by itself, and another is started only when it has
        postmaster.stop(StopMode::Immediate, STOP_MAX).await.explained()?;
    }
    opened
}

async fn opened(context: &Context, postmaster: &mut Postmaster, port: u16) -> anyhow::Result<()> {
    postmaster.ready(OPEN_MAX).await.explained()?;
    let client = connect(&superuser(context, port)?, CONNECT_MAX).await.explained()?;
    let until = Instant::now() + OPEN_MAX;
    while recovers(&client).await? {
        if Instant::now() > until {
            bail!("recovery does not end");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn recovers(client: &Connection) -> anyhow::Result<bool> {
    Ok(client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0))
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
    clear(&spec(context, port)?).await?;
    Ok(true)
}

/// Ends whatever runs in a folder of ours, and removes it.
async fn clear(spec: &ServerSpec) -> anyhow::Result<()> {
    if !spec.folder.exists() {
        return Ok(());
    }
    spec.fence().await.explained()?;
    std::fs::remove_dir_all(&spec.folder).with_context(|| format!("cannot remove {}", spec.folder.display()))
}

/// Ends all copies, and the server of a proof that was killed, before their folders go.
pub(crate) async fn end_all(context: &Context) -> anyhow::Result<()> {
    for cloned in list(context)? {
        remove(context, cloned.port).await?;
    }
    let proof = ServerSpec { folder: context.layout.proof().join(crate::backup::PROOF), ..spec(context, 0)? };
    proof.fence().await.explained()
}

/// A port of this host that nobody listens to.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
