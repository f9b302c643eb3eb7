//! Servers that backups gave: alone, out of the applications' sight, until they have replayed their log and take writes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_base::files;
use millrace_pg::{ConnectParams, Connection, Postmaster, ServerSpec, Setting, StopMode, connect};

use crate::{context::Context, explain::Explained as _};

pub(crate) const STOP_MAX: Duration = Duration::from_secs(30);
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Replay of all that a backup may need.
const OPEN_MAX: Duration = Duration::from_secs(6 * 3600);
const LOOK: Duration = Duration::from_millis(50);
/// What a server says that has replayed everything and met nothing at or after its target (`xlogrecovery.c`).
const NOTHING_LATER: &str = "recovery ended before configured recovery target was reached";

/// A server in `folder` that listens to this host alone and does nothing by itself.
pub(crate) fn private(context: &Context, folder: PathBuf, port: u16) -> anyhow::Result<ServerSpec> {
    let cluster = context.cluster_spec()?;
    let mut node = cluster.nodes.first().context("the cluster has no nodes")?.clone();
    node.apply_delay = None;
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

/// Access to it as superuser.
pub(crate) fn superuser(context: &Context, port: u16) -> anyhow::Result<ConnectParams> {
    Ok(ConnectParams { host: "127.0.0.1".to_owned(), ..context.superuser(port)? })
}

/// Ends whatever runs in a folder of ours, and removes it.
pub(crate) async fn clear(spec: &ServerSpec) -> anyhow::Result<()> {
    if !spec.folder.exists() {
        return Ok(());
    }
    spec.fence().await.explained()?;
    std::fs::remove_dir_all(&spec.folder).with_context(|| format!("cannot remove {}", spec.folder.display()))
}

/// What is to be said where the log ended before the wanted time came up in it.
pub(crate) fn ends_early(last_commit: &str) -> String {
    format!(
        "the log in the repository ends before that time came up in it: the last commit is of {last_commit}. That is the \
         state of that time only if the archive was not behind then (millrace wal status)"
    )
}

/// Starts the server and waits for the end of recovery. The last commit, if the log ended early.
pub(crate) async fn open(context: &Context, spec: &ServerSpec, ends_early: bool) -> anyhow::Result<Option<String>> {
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
