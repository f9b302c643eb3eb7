//! Looking: folders, processes, servers. Changes nothing.

use std::{fs, io, net::TcpListener, path::Path, time::Duration};

use millrace_pg::{
    ConnectParams, Connection, PgError, RunAs, ServerError, ServerSpec,
    catalog::{self, ServerState},
    connect, control_file,
};

use crate::{
    error::ClusterError,
    observed::DataState,
    spec::{ClusterSpec, NodeSpec, RestoreId},
};

/// Beside the data directory: it is or was a primary's.
const PRIMARY_MARK: &str = "was_primary";

/// What the node's data directory is, by its files.
#[must_use]
pub fn data_state(server: &ServerSpec) -> DataState {
    let data = server.data_dir();
    let denied = |error: &dyn std::fmt::Display| DataState::Denied { why: error.to_string() };
    let names = match file_names(&data) {
        Ok(names) if names.is_empty() => return DataState::Absent,
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return DataState::Absent,
        Err(error) => return denied(&format!("{} cannot be looked at: {error}", data.display())),
    };
    let has = |name: &str| names.iter().any(|n| n == name);
    if !["PG_VERSION", "global", "base", "pg_wal"].into_iter().any(has) {
        return DataState::Foreign { path: data };
    }
    if let Err(error) = server.run_as.check_owner(&data) {
        return denied(&error);
    }
    let standby = has("standby.signal");
    let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
    let version = version.trim();
    if version.is_empty() {
        return DataState::Damaged { why: "PG_VERSION is missing".to_owned(), standby };
    }
    if version != server.binaries.major().to_string() {
        return DataState::OtherVersion { found: version.to_owned() };
    }
    if server.folder.join(REWIND_MARK).exists() {
        return DataState::Damaged { why: "it was being rewound, and that did not end".to_owned(), standby };
    }
    match control_file::read(&data) {
        Ok(control) => DataState::Whole { system_id: control.system_id, standby },
        Err(ServerError::Damaged { line, .. }) => DataState::Damaged { why: line, standby },
        Err(error) => DataState::Damaged { why: error.to_string(), standby },
    }
}

fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Whether the node's data is marked as a primary's.
#[must_use]
pub fn was_primary(node: &NodeSpec) -> bool {
    node.folder.join(PRIMARY_MARK).exists()
}

/// Marks the node's data as a primary's; it is then never deleted.
///
/// # Errors
/// If the mark cannot be written.
pub fn mark_primary(node: &NodeSpec) -> io::Result<()> {
    if was_primary(node) {
        return Ok(());
    }
    let text = b"the data directory beside this file is or was a primary's: millrace never deletes it\n";
    millrace_base::files::write_atomic(&node.folder.join(PRIMARY_MARK), text, 0o644)
}

/// Beside the data directory: it was promoted by someone else.
const ROGUE_MARK: &str = "was_promoted";
/// Beside the data directory: it is being rewound.
const REWIND_MARK: &str = "is_rewound";

/// Whether what was written in the node's data is to be kept, because someone else made it a primary.
#[must_use]
pub fn is_rogue(node: &NodeSpec) -> bool {
    node.folder.join(ROGUE_MARK).exists()
}

/// # Errors
/// If the mark cannot be written.
pub fn mark_rogue(node: &NodeSpec) -> io::Result<()> {
    millrace_base::files::write_atomic(
        &node.folder.join(ROGUE_MARK),
        b"the server of the data directory beside this file was promoted by someone else\n",
        0o644,
    )
}

/// In the data directory, so that it goes with every copy: from which restore what it holds comes.
const RESTORED_MARK: &str = "millrace.restored";

/// From which restore a data directory comes, if from one.
///
/// # Errors
/// If the mark cannot be read: then it is not known.
pub fn restored(data: &Path) -> io::Result<Option<RestoreId>> {
    match fs::read_to_string(data.join(RESTORED_MARK)) {
        Ok(text) => Ok(Some(RestoreId::parse(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Marks a data directory that does not serve yet.
///
/// # Errors
/// If the mark cannot be written.
pub fn mark_restored(data: &Path, owner: &RunAs, id: &RestoreId) -> Result<(), ServerError> {
    let mark = data.join(RESTORED_MARK);
    millrace_base::files::write_atomic(&mark, format!("{id}\n").as_bytes(), 0o600)
        .map_err(|source| ServerError::Io { doing: "write", path: mark.clone(), source })?;
    owner.own(&mark)
}

/// Notes that the data is about to be changed in a way that cannot be interrupted.
///
/// # Errors
/// If that has happened already, and was interrupted; if the mark cannot be written.
pub(crate) fn begin_rewind(node: &NodeSpec) -> io::Result<()> {
    let mark = node.folder.join(REWIND_MARK);
    if mark.exists() {
        return Err(io::Error::other("an earlier rewind was interrupted"));
    }
    millrace_base::files::write_atomic(&mark, b"pg_rewind works on the data directory beside this file\n", 0o644)
}

/// It is a replica's now, like any other.
pub(crate) fn end_rewind(node: &NodeSpec) -> io::Result<()> {
    remove_mark(node, PRIMARY_MARK)?;
    remove_mark(node, REWIND_MARK)
}

/// Beside the data directory: the term whose primary it takes no log from any more.
const VOTE: &str = "vote";

/// See [`crate::NodeView::vote`].
///
/// # Errors
/// If it cannot be read: whether there is one is not known then.
pub(crate) fn vote(node: &NodeSpec) -> io::Result<Option<u64>> {
    match fs::read_to_string(node.folder.join(VOTE)) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps a vote on the disk.
///
/// # Errors
/// If it cannot be written: then there is none.
pub(crate) fn keep_vote(node: &NodeSpec, term: u64) -> io::Result<()> {
    millrace_base::files::write_atomic(&node.folder.join(VOTE), format!("{term}\n").as_bytes(), 0o644)
}

/// A vote of a term that is none of this cluster's any more.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn forget_vote(node: &NodeSpec) -> io::Result<()> {
    remove_mark(node, VOTE)
}

fn remove_mark(node: &NodeSpec, mark: &str) -> io::Result<()> {
    match fs::remove_file(node.folder.join(mark)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The mark goes with the data that it speaks of.
pub(crate) fn move_mark(node: &NodeSpec, beside: &str) -> io::Result<()> {
    remove_mark(node, ROGUE_MARK)?;
    remove_mark(node, REWIND_MARK)?;
    match fs::rename(node.folder.join(PRIMARY_MARK), node.folder.join(format!("{beside}.{PRIMARY_MARK}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Asks the server what it is, over `connection`, which is opened or replaced as needed.
///
/// # Errors
/// If there is no answer within `timeout`; the connection is given up then.
pub async fn ask(
    connection: &mut Option<Connection>,
    params: &ConnectParams,
    timeout: Duration,
) -> Result<ServerState, PgError> {
    if connection.as_ref().is_some_and(|open| open.is_closed()) {
        *connection = None;
    }
    let asking = async {
        let open = match connection.take() {
            Some(open) => open,
            None => connect(params, timeout).await?,
        };
        let state = catalog::server_state(&open).await?;
        Ok((open, state))
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(Ok((open, state))) => {
            *connection = Some(open);
            Ok(state)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(PgError::Timeout { address: params.address(), deadline: timeout }),
    }
}

/// Everything that would keep the nodes from starting, found without changing anything.
#[must_use]
pub fn preflight(spec: &ClusterSpec) -> Vec<ClusterError> {
    let mut found: Vec<ClusterError> = spec.validate().err().into_iter().collect();
    for node in spec.own() {
        found.extend(check_node(spec, node).err().map(ClusterError::node(&node.name)));
    }
    found
}

pub(crate) fn check_node(spec: &ClusterSpec, node: &NodeSpec) -> Result<(), ServerError> {
    let server = spec.server(node);
    for folder in [node.folder.clone(), server.private_dir(), server.data_dir()] {
        if folder.exists() {
            spec.run_as.check_owner(&folder)?;
        }
    }
    spec.run_as.check_reachable(&node.folder)?;
    match data_state(&server) {
        DataState::Foreign { path } => return Err(ServerError::NotADataDirectory { path }),
        DataState::OtherVersion { found } => {
            let expected = spec.binaries.major();
            return Err(ServerError::WrongVersion { data_dir: server.data_dir(), found, expected });
        }
        DataState::Absent
        | DataState::Whole { .. }
        | DataState::Past { .. }
        | DataState::Damaged { .. }
        | DataState::Denied { .. } => {}
    }
    if server.running_pid().is_some() {
        return Ok(());
    }
    for address in &spec.listen {
        if let Err(error) = TcpListener::bind((address.as_str(), node.port))
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return Err(ServerError::PortInUse { port: node.port });
        }
    }
    Ok(())
}
