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
    ProgressFn, RestoreOptions, WalSource,
    plan::{Plan, Target},
    repo::Repository,
    restore,
};
use millrace_base::files;
use millrace_pg::{ConnectParams, Connection, Postmaster, ServerSpec, StopMode, connect};
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
    Ok(ServerSpec { listen: vec!["127.0.0.1".to_owned()], port, folder, log_file, ..cluster.server(&node) })
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
) -> anyhow::Result<Plan> {
    let spec = spec(context, port)?;
    if spec.running_pid().is_some() {
        bail!("a copy runs on port {port} already\n  hint: another port, or millrace clone remove {port}");
    }
    drop(std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port} is in use"))?);
    remove(context, port).await?;
    let made = restored(context, &spec, repo, system_id, target, progress, stop).await;
    if made.is_err() {
        // the error says more than that what it left could not be cleared away
        _ = remove(context, port).await;
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
) -> anyhow::Result<Plan> {
    files::create_dir_all(&context.layout.clones(), 0o755)?;
    files::create_dir_all(&spec.folder, 0o700)?;
    spec.run_as.own(&spec.folder).explained()?;
    let root = rustix::process::geteuid().is_root();
    let options = RestoreOptions {
        data_dir: spec.data_dir(),
        target,
        backup: None,
        timeline: None,
        threads: crate::backup::config(context)?.threads,
        owner: root.then(|| spec.run_as.clone()),
        tablespaces: Default::default(),
        wal: WalSource::Prefetch,
    };
    let plan = restore(repo, system_id, &options, progress, stop).await.explained()?;
    spec.configure(None).explained()?;
    let ends_early = matches!(plan.target, Target::Time { .. });
    tokio::select! {
        opened = open(context, spec, ends_early) => opened?,
        () = stop.cancelled() => bail!("interrupted"),
    }
    let cloned = Cloned {
        port: spec.port,
        target: plan.target.to_string(),
        backup: plan.backups.last().cloned().unwrap_or_default(),
        running: false,
    };
    files::write_atomic(&about(&spec.folder), &serde_json::to_vec_pretty(&cloned)?, 0o600)?;
    Ok(plan)
}

fn about(folder: &Path) -> PathBuf {
    folder.join("clone.json")
}

/// Starts the server and waits for the end of recovery.
async fn open(context: &Context, spec: &ServerSpec, ends_early: bool) -> anyhow::Result<()> {
    let Err(error) = writable(context, spec).await else { return Ok(()) };
    let log = std::fs::read_to_string(&spec.log_file).unwrap_or_default();
    if !ends_early || !log.contains(NOTHING_LATER) {
        return Err(error);
    }
    // the repository has the log beyond that time, and no commit is in the rest of it: its end is that moment
    let conf = spec.data_dir().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf)?;
    files::write_atomic(&conf, format!("{text}recovery_target_time = ''\n").as_bytes(), 0o600)?;
    spec.run_as.own(&conf).explained()?;
    writable(context, spec).await
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
    let folder = folder(context, port);
    if !folder.exists() {
        return Ok(false);
    }
    if let Some(mut server) = spec(context, port)?.adopt().explained()? {
        server.stop(StopMode::Immediate, STOP_MAX).await.explained()?;
    }
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(true)
}

/// A port of this host that nobody listens to.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
