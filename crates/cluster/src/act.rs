//! Doing: the long steps that a plan asks for, each as one future that owns what it works on.
//!
//! Invariant: before anything is deleted, the mark and the files are looked at again; what is in
//! doubt is moved aside.

use std::{fs, path::PathBuf, time::Duration};

use millrace_base::Micros;
use millrace_pg::{
    Connection, PgError, Postmaster, ServerError, StopMode, catalog, connect, control_file, process::Exit, roles,
};

use crate::{
    error::ClusterError,
    observe,
    plan::Discard,
    spec::{ClusterSpec, NodeName, NodeSpec, REPLICATOR},
};

/// Making a new cluster; returns its system identifier.
///
/// # Errors
/// If it cannot be made; then nothing is left but the folder.
pub async fn initdb(spec: ClusterSpec, node: NodeSpec) -> Result<u64, ClusterError> {
    let server = spec.server(&node);
    // an interrupted removal by hand may have left an empty folder
    remove_empty(&server.data_dir()).map_err(ClusterError::node(&node.name))?;
    server.initdb(&spec.superuser_password).await.map_err(ClusterError::node(&node.name))?;
    observe::mark_primary(&node).map_err(io("mark the data in", &node))?;
    let control = control_file::read(&server.data_dir()).map_err(ClusterError::node(&node.name))?;
    Ok(control.system_id)
}

/// A replica made anew: its server stopped, its data discarded, its slot renewed, a base backup taken.
///
/// # Errors
/// If a step fails; data moved aside stays there.
pub async fn make_replica(
    spec: ClusterSpec,
    node: NodeSpec,
    primary: NodeSpec,
    discard: Discard,
    postmaster: Option<Postmaster>,
    now: Micros,
) -> Result<(), ClusterError> {
    let server = spec.server(&node);
    if let Some(mut postmaster) = postmaster {
        postmaster.stop(StopMode::Fast, Duration::from_secs(10)).await.map_err(ClusterError::node(&node.name))?;
    }
    remove_discarded(&node).await?;
    discard_data(&node, server.data_dir(), discard, now).await?;

    let upstream = spec.upstream(&primary, &node.name);
    let params = spec.superuser(&primary)?;
    let client = connect(&params, Duration::from_secs(10)).await.map_err(ClusterError::sql(&primary.name))?;
    // a copy left by an earlier supervisor would hold the slot for ever
    server.end_copies();
    renew_slot(&client, &upstream.slot).await.map_err(ClusterError::sql(&primary.name))?;
    drop(client);

    server.base_backup(&upstream, spec.limits.base_backup_timeout).await.map_err(ClusterError::node(&node.name))
}

async fn renew_slot(client: &Connection, slot: &str) -> Result<(), PgError> {
    catalog::drop_slot(client, slot).await?;
    catalog::create_physical_slot(client, slot).await
}

/// Deleting goes by way of a rename, so that a half-deleted directory never passes for a damaged one.
async fn discard_data(node: &NodeSpec, data: PathBuf, discard: Discard, now: Micros) -> Result<(), ClusterError> {
    remove_empty(&data).map_err(ClusterError::node(&node.name))?;
    if !data.exists() {
        return observe::move_mark(node, "gone").map_err(io("rename the mark in", node));
    }
    let surely_replica = data.join("standby.signal").exists() && !observe::was_primary(node);
    if discard == Discard::Delete && surely_replica {
        let doomed = node.folder.join(DISCARDED);
        fs::rename(&data, &doomed).map_err(io("rename the data in", node))?;
        return remove_discarded(node).await;
    }
    let aside = format!("data.aside-{}", now.0);
    tracing::warn!(node = %node.name, kept = %node.folder.join(&aside).display(), "a data directory is moved aside");
    fs::rename(&data, node.folder.join(&aside)).map_err(io("rename the data in", node))?;
    observe::move_mark(node, &aside).map_err(io("rename the mark in", node))
}

const DISCARDED: &str = "data.discarded";

async fn remove_discarded(node: &NodeSpec) -> Result<(), ClusterError> {
    let doomed = node.folder.join(DISCARDED);
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(doomed)).await;
    match removed {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove discarded data in", node)(error))
        }
        Ok(_) => Ok(()),
        Err(join) => Err(io("remove discarded data in", node)(std::io::Error::other(join))),
    }
}

fn remove_empty(data: &std::path::Path) -> Result<(), ServerError> {
    match fs::remove_dir(data) {
        // not empty or not there
        Err(error) if matches!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(source) => Err(ServerError::Io { doing: "remove the empty", path: data.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

fn io(doing: &'static str, node: &NodeSpec) -> impl FnOnce(std::io::Error) -> ClusterError {
    let path = node.folder.clone();
    move |source| ClusterError::Io { doing, path, source }
}

/// Stops a server in the given way.
///
/// # Errors
/// If it cannot be stopped at all.
pub async fn stop(
    name: NodeName,
    mut postmaster: Postmaster,
    mode: StopMode,
    deadline: Duration,
) -> Result<Exit, ClusterError> {
    postmaster.stop(mode, deadline).await.map_err(ClusterError::node(&name))
}

/// The roles of the cluster itself.
///
/// # Errors
/// If the server refuses.
pub async fn ensure_roles(client: &Connection, spec: &ClusterSpec) -> Result<(), PgError> {
    roles::ensure_login_role(&**client, REPLICATOR, "REPLICATION", &spec.replicator_password).await
}
