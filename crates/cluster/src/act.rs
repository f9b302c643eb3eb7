//! Doing: the long steps that a plan asks for, each as one future that owns what it works on.
//!
//! Invariant: before anything is deleted, the mark and the files are looked at again; what is in
//! doubt is moved aside.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_base::Micros;
use millrace_pg::{
    Connection, PgError, Postmaster, ServerError, ServerSpec, StopMode, catalog, connect, control_file, process::Exit,
    roles, server::Upstream,
};

use crate::{
    error::ClusterError,
    observe,
    plan::Discard,
    seed::{Seed, Sown},
    spec::{ClusterSpec, NodeName, NodeSpec, REPLICATOR, RestoreId},
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

/// A replica made anew: its server stopped, its data discarded, its slot renewed, its data copied from whoever has a copy, or
/// from the primary. `restored`: see [`crate::Intent::restored`]; a base backup brings the mark.
///
/// # Errors
/// If a step fails; data moved aside stays there.
pub async fn make_replica(
    spec: ClusterSpec,
    node: NodeSpec,
    primary: NodeSpec,
    discard: Discard,
    postmaster: Option<Postmaster>,
    (now, restored): (Micros, Option<&RestoreId>),
) -> Result<(), ClusterError> {
    let server = spec.server(&node);
    if let Some(mut postmaster) = postmaster {
        postmaster.stop(StopMode::Fast, Duration::from_secs(10)).await.map_err(ClusterError::node(&node.name))?;
    }
    let upstream = spec.upstream(&primary, &node.name);
    let params = spec.superuser(&primary)?;
    let client = connect(&params, Duration::from_secs(10)).await.map_err(ClusterError::sql(&primary.name))?;
    // a copy left by an earlier supervisor would hold the slot for ever
    server.end_copies();
    renew_slot(&client, &upstream.slot).await.map_err(ClusterError::sql(&primary.name))?;
    let begin = catalog::slot_begin(&client, &upstream.slot).await.map_err(ClusterError::sql(&primary.name))?;
    drop(client);
    // only now: what is there may be all that is left
    remove_discarded(&node).await?;
    discard_data(&node, server.data_dir(), discard, now).await?;

    let seeded = match spec.seed.as_deref().zip(begin) {
        Some((seed, begin)) => {
            sow(seed, &server, &upstream, begin, restored).await.map_err(ClusterError::node(&node.name))?
        }
        None => false,
    };
    if !seeded {
        server.base_backup(&upstream, spec.limits.base_backup_timeout).await.map_err(ClusterError::node(&node.name))?;
    }
    write_slots(&spec, &node, &primary).await
}

/// A replica's data from elsewhere; `false` if that was of no use.
async fn sow(
    seed: &dyn Seed,
    server: &ServerSpec,
    upstream: &Upstream,
    begin: catalog::SlotBegin,
    restored: Option<&RestoreId>,
) -> Result<bool, ServerError> {
    enum Unsown {
        Server(ServerError),
        Seed(String),
    }
    impl From<ServerError> for Unsown {
        fn from(error: ServerError) -> Self {
            Self::Server(error)
        }
    }
    let wanted = Sown {
        data_dir: server.incoming_dir(),
        owner: server.run_as.clone(),
        system_id: begin.system_id,
        timeline: begin.timeline,
        reach: begin.lsn,
    };
    let node = upstream.application_name.as_str();
    let copied = async {
        let of = seed.sow(wanted).await.map_err(Unsown::Seed)?;
        if let Some(restored) = restored {
            // the backup may be of before
            observe::mark_restored(&server.incoming_dir(), &server.run_as, restored)?;
        }
        tracing::info!(node, of, "made from a backup");
        Ok(())
    };
    match server.replica_from(upstream, copied).await {
        Ok(()) => Ok(true),
        Err(Unsown::Server(error)) => Err(error),
        Err(Unsown::Seed(why)) => {
            tracing::warn!(node, why, "not made from a backup: its primary is copied");
            Ok(false)
        }
    }
}

/// The logical slots of `primary` for a replica whose server does not run. One whose log does not reach back here is
/// copied later, when its user has moved on.
async fn write_slots(spec: &ClusterSpec, node: &NodeSpec, primary: &NodeSpec) -> Result<(), ClusterError> {
    if node.priority == 0 {
        // nobody will ever go on from them there
        return Ok(());
    }
    let server = spec.server(node);
    let (slots, snapshots) = logical_slots(spec, primary).await?;
    server.write_snapshots(&snapshots).map_err(ClusterError::node(&node.name))?;
    for (slot, file) in slots {
        match server.write_slot(&slot, &file) {
            Err(error @ ServerError::NoLog { .. }) => {
                tracing::info!(node = %node.name, %error, "a slot is not copied yet");
            }
            written => written.map_err(ClusterError::node(&node.name))?,
        }
    }
    Ok(())
}

type Slots = Vec<(catalog::Slot, Vec<u8>)>;
type Snapshots = Vec<(String, Vec<u8>)>;

async fn logical_slots(spec: &ClusterSpec, primary: &NodeSpec) -> Result<(Slots, Snapshots), ClusterError> {
    let client = connect(&spec.superuser(primary)?, Duration::from_secs(10)).await;
    let client = client.map_err(ClusterError::sql(&primary.name))?;
    let mut read = Vec::new();
    for slot in catalog::slots(&client).await.map_err(ClusterError::sql(&primary.name))? {
        if slot.is_kept_logical() {
            let file = catalog::slot_file(&client, &slot.name).await.map_err(ClusterError::sql(&primary.name))?;
            read.push((slot, file));
        }
    }
    // after the slots: those that they begin at are among them
    let snapshots = catalog::logical_snapshots(&client).await.map_err(ClusterError::sql(&primary.name))?;
    Ok((read, snapshots))
}

/// A replica takes the logical slots of its primary: it stops, once no client has a transaction open or after `drain`, and is
/// started by whoever sees that it does not run.
///
/// # Errors
/// If its log does not reach back far enough, which time mends; then it runs on. If it cannot be stopped or written to.
pub async fn copy_slots(
    spec: ClusterSpec,
    node: NodeSpec,
    primary: NodeSpec,
    postmaster: Postmaster,
    drain: Duration,
) -> Result<(), ClusterError> {
    let server = spec.server(&node);
    for (slot, _) in logical_slots(&spec, &primary).await?.0 {
        if !slot.restart_lsn.is_some_and(|from| server.has_log_from(from)) {
            let source = ServerError::NoLog { slot: slot.name, data_dir: server.data_dir() };
            return Err(ClusterError::Node { node: node.name, source });
        }
    }
    end(&spec, &node, postmaster, drain).await?;
    write_slots(&spec, &node, &primary).await
}

/// A killed server is seen to end within this, unless it waits for its disk.
const ENDING: Duration = Duration::from_secs(1);

/// Nothing of the server is left that could have a commit acknowledged. Gives it back if it has not ended: its disk does
/// not answer.
///
/// # Errors
/// If a process survives being killed.
pub async fn fence(
    name: NodeName,
    server: ServerSpec,
    postmaster: Option<Postmaster>,
) -> Result<Option<Postmaster>, ClusterError> {
    server.fence().await.map_err(ClusterError::node(&name))?;
    let Some(mut postmaster) = postmaster else { return Ok(None) };
    match tokio::time::timeout(ENDING, postmaster.exited()).await {
        Ok(exit) => {
            tracing::info!(node = %name, %exit, "server killed");
            Ok(None)
        }
        Err(_) => {
            tracing::warn!(node = %name, "server killed; it ends when its disk answers");
            Ok(Some(postmaster))
        }
    }
}

/// A data directory that went its own way becomes a replica's of `primary` again. The primary's timeline, if there
/// was nothing to undo.
///
/// # Errors
/// If it cannot be rewound, or an earlier try was interrupted and left it unusable: then only a base backup helps.
pub async fn rewind(
    spec: ClusterSpec,
    node: NodeSpec,
    primary: NodeSpec,
    postmaster: Option<Postmaster>,
) -> Result<Option<u32>, ClusterError> {
    let server = spec.server(&node);
    if let Some(mut postmaster) = postmaster {
        postmaster.stop(StopMode::Fast, Duration::from_secs(10)).await.map_err(ClusterError::node(&node.name))?;
    }
    let upstream = spec.upstream(&primary, &node.name);
    let params = spec.superuser(&primary)?;
    let client = connect(&params, Duration::from_secs(10)).await.map_err(ClusterError::sql(&primary.name))?;
    // without one since its promotion the primary looks as if its history were still the same
    catalog::checkpoint(&client).await.map_err(ClusterError::sql(&primary.name))?;
    let timeline = catalog::timeline(&client).await.map_err(ClusterError::sql(&primary.name))?;
    catalog::create_physical_slot(&client, &upstream.slot).await.map_err(ClusterError::sql(&primary.name))?;
    drop(client);
    server.end_copies();
    observe::begin_rewind(&node).map_err(io("mark the data in", &node))?;
    let undone = server
        .rewind(&upstream, &params, spec.limits.base_backup_timeout)
        .await
        .map_err(ClusterError::node(&node.name))?;
    observe::end_rewind(&node).map_err(io("unmark the data in", &node))?;
    write_slots(&spec, &node, &primary).await?;
    Ok((!undone).then_some(timeline))
}

/// Between looks at the transactions that are open.
const LOOK: Duration = Duration::from_millis(5);
/// Until everyone has heard that nothing new is to be sent.
const HEARD: Duration = Duration::from_millis(30);

/// Waits until no client of a node has a transaction open; nothing new is sent there.
async fn drained(spec: &ClusterSpec, node: &NodeSpec, patience: Duration) -> Result<Connection, ClusterError> {
    let client = connect(&spec.superuser(node)?, patience).await.map_err(ClusterError::sql(&node.name))?;
    tokio::time::sleep(HEARD).await;
    while catalog::open_transactions(&client).await.map_err(ClusterError::sql(&node.name))? > 0 {
        tokio::time::sleep(LOOK).await;
    }
    Ok(client)
}

/// The primary stops in order, once no client has a transaction open: then its log is complete and has been sent.
/// Gives the server back, and says why, if it cannot be.
///
/// # Errors
/// If it cannot be asked or stopped.
pub async fn hand_over(
    spec: ClusterSpec,
    node: NodeSpec,
    mut postmaster: Postmaster,
    drain: Duration,
) -> Result<Result<Exit, (Postmaster, String)>, ClusterError> {
    let drained = async {
        let client = drained(&spec, &node, drain).await?;
        catalog::end_logical_senders(&client).await.map_err(ClusterError::sql(&node.name))
    };
    match tokio::time::timeout(drain, drained).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(node = %node.name, %error, "the primary cannot be handed over");
            return Ok(Err((postmaster, format!("{error}; nothing has changed"))));
        }
        Err(_) => {
            let seconds = drain.as_secs();
            let why = format!("clients' transactions did not end within {seconds} s; nothing has changed");
            return Ok(Err((postmaster, why)));
        }
    }
    let stopped = postmaster.stop(StopMode::Fast, spec.limits.stop_timeout).await;
    stopped.map(Ok).map_err(ClusterError::node(&node.name))
}

/// A replica stops, once no client has a transaction open, or after `drain`.
///
/// # Errors
/// If it cannot be stopped.
pub async fn end(
    spec: &ClusterSpec,
    node: &NodeSpec,
    mut postmaster: Postmaster,
    drain: Duration,
) -> Result<Exit, ClusterError> {
    match tokio::time::timeout(drain, drained(spec, node, drain)).await {
        Ok(Ok(_client)) => {}
        Ok(Err(error)) => {
            tracing::warn!(node = %node.name, %error, "it does not say whether clients have transactions open")
        }
        Err(_) => tracing::warn!(node = %node.name, ?drain, "clients' transactions did not end, and are ended"),
    }
    postmaster.stop(StopMode::Fast, spec.limits.stop_timeout).await.map_err(ClusterError::node(&node.name))
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
    set_aside(node, &data, now).map(drop)
}

/// Keeps a node's data directory under another name, with its marks; returns where. `None`: there is none.
///
/// # Errors
/// If it cannot be renamed.
pub fn set_aside(node: &NodeSpec, data: &Path, now: Micros) -> Result<Option<PathBuf>, ClusterError> {
    if !data.exists() {
        return observe::move_mark(node, "gone").map(|()| None).map_err(io("rename the mark in", node));
    }
    let aside = format!("data.aside-{}", now.0);
    let kept = node.folder.join(&aside);
    tracing::warn!(node = %node.name, kept = %kept.display(), "a data directory is moved aside");
    fs::rename(data, &kept).map_err(io("rename the data in", node))?;
    observe::move_mark(node, &aside).map_err(io("rename the mark in", node))?;
    Ok(Some(kept))
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

/// The roles of the cluster itself. Replicas need one of them to come, so it is not waited for replicas.
///
/// # Errors
/// If the server refuses.
pub async fn ensure_roles(client: &Connection, spec: &ClusterSpec) -> Result<(), PgError> {
    client.batch_execute("SET synchronous_commit = local").await?;
    roles::ensure_login_role(&**client, REPLICATOR, "REPLICATION", &spec.replicator_password).await
}
