//! Puts the parts' own status together into one screen.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_base::{Clock, Lsn, Micros};
use millrace_cluster::ClusterStatus;
use millrace_contract::{
    Query, QueryError, Reader, Value,
    query::RowSet,
    status::{BackupStatus, CaptureStatus, DiskStatus, ListenerStatus, PlatformStatus, RunStatus},
};
use millrace_warehouse::WriterHandle;
use tokio::sync::watch;

use crate::{commands::ps, findings};

/// The platform's files are counted at most this often: there may be many.
const DISK_AGE_MAX: Duration = Duration::from_secs(30);
const QUERY_DEADLINE: Duration = Duration::from_secs(5);

/// The parts that say how they are.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) cluster: watch::Receiver<ClusterStatus>,
    pub(crate) capture: watch::Receiver<CaptureStatus>,
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) writer: WriterHandle,
    pub(crate) proxy: millrace_proxy::Handle,
    /// If there are any.
    pub(crate) backup: Option<watch::Receiver<BackupStatus>>,
}

/// Puts together what they say.
#[derive(Debug)]
pub(crate) struct Observatory {
    pub(crate) name: String,
    pub(crate) started_at: Micros,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) parts: Parts,
    pub(crate) listeners: Vec<ListenerStatus>,
    /// Folders whose file systems matter; several on one count once.
    pub(crate) folders: Vec<PathBuf>,
    book: Mutex<findings::Book>,
    disks: Mutex<Option<(Duration, Vec<DiskStatus>)>>,
}

impl Observatory {
    pub(crate) fn new(
        name: String,
        clock: Arc<dyn Clock>,
        parts: Parts,
        listeners: Vec<ListenerStatus>,
        folders: Vec<PathBuf>,
    ) -> Self {
        let started_at = clock.wall();
        Self { name, started_at, clock, parts, listeners, folders, book: Mutex::default(), disks: Mutex::default() }
    }

    /// The whole platform now.
    pub(crate) async fn status(&self) -> PlatformStatus {
        let cluster = self.parts.cluster.borrow().clone();
        let capture = self.parts.capture.borrow().clone();
        let last_run = match self.runs(1).await {
            Ok(runs) => runs.into_iter().next(),
            Err(error) => {
                tracing::warn!(%error, "the load runs cannot be read");
                None
            }
        };
        let now = self.clock.wall();
        let mut status = PlatformStatus {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            now,
            cluster: super::cluster::summary(&cluster),
            nodes: cluster.nodes,
            slots: cluster.slots,
            capture,
            last_run,
            disks: self.disks().await,
            listeners: self.listeners.clone(),
            proxy: super::proxy::status(&self.parts.proxy).await,
            backup: self.parts.backup.as_ref().map(|backup| backup.borrow().clone()),
            memory_bytes: ps::own_memory_bytes(),
            findings: Vec::new(),
        };
        let mut of_others = cluster.findings;
        of_others.extend(findings::held_models(&self.parts.writer.in_force().held));
        let mut found = findings::assess(&status, of_others);
        self.book.lock().unwrap_or_else(PoisonError::into_inner).note(&mut found, now);
        status.findings = found;
        status
    }

    /// The newest load runs first.
    pub(crate) async fn runs(&self, limit: usize) -> Result<Vec<RunStatus>, QueryError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut query = Query::new(include_str!("../../sql/runs.sql")).with(vec![Value::Int(limit)]);
        query.deadline = QUERY_DEADLINE;
        let rows = self.parts.reader.query(query).await?.collect(10_000).await?;
        Ok(rows.rows.iter().map(|row| run(&rows, row)).collect())
    }

    async fn disks(&self) -> Vec<DiskStatus> {
        let now = self.clock.monotonic();
        if let Some((at, disks)) = self.disks.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && now.saturating_sub(*at) < DISK_AGE_MAX
        {
            return disks.clone();
        }
        let folders = self.folders.clone();
        let disks = tokio::task::spawn_blocking(move || disks(&folders)).await.unwrap_or_default();
        *self.disks.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, disks.clone()));
        disks
    }
}

fn run(set: &RowSet, row: &[Value]) -> RunStatus {
    let value =
        |name: &str| set.columns.iter().position(|column| column.name == name).and_then(|position| row.get(position));
    let text = |name: &str| value(name).and_then(Value::to_text);
    let integer = |name: &str| match value(name) {
        Some(Value::Int(number)) => Some(*number),
        Some(Value::HugeInt(number)) => i64::try_from(*number).ok(),
        _ => None,
    };
    let count = |name: &str| integer(name).and_then(|number| u64::try_from(number).ok());
    RunStatus {
        run_id: integer("run_id").unwrap_or(0),
        kind: text("kind").unwrap_or_default(),
        status: text("status").unwrap_or_default(),
        started_at: Micros(integer("started_micros").unwrap_or(0)),
        duration_ms: count("duration_ms"),
        rows_inserted: count("rows_inserted").unwrap_or(0),
        rows_updated: count("rows_updated").unwrap_or(0),
        rows_deleted: count("rows_deleted").unwrap_or(0),
        watermark: Lsn(count("watermark").unwrap_or(0)),
        error: text("error"),
    }
}

/// The file systems of some folders, each once.
fn disks(folders: &[PathBuf]) -> Vec<DiskStatus> {
    use std::os::unix::fs::MetadataExt;
    let mut seen = BTreeSet::new();
    let first_there = |folder: &&PathBuf| std::fs::metadata(folder).is_ok_and(|metadata| seen.insert(metadata.dev()));
    folders.iter().filter(first_there).filter_map(|folder| disk(folder)).collect()
}

/// The file system of `folder`, and what is used below `folder`.
fn disk(folder: &Path) -> Option<DiskStatus> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(DiskStatus {
        path: folder.display().to_string(),
        free_bytes: stat.f_bavail * stat.f_frsize,
        total_bytes: stat.f_blocks * stat.f_frsize,
        used_bytes: used_bytes(folder),
    })
}

/// Blocks of all files below; files that vanish while it looks count nothing.
fn used_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => used_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_and_counts_its_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        std::fs::write(folder.path().join("inner/file"), vec![7; 100_000]).unwrap();
        let disk = disk(folder.path()).unwrap();
        assert!(disk.free_bytes > 0 && disk.free_bytes <= disk.total_bytes);
        assert!((100_000..200_000).contains(&disk.used_bytes), "{}", disk.used_bytes);
    }
}
