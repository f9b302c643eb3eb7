//! What can be restored, as the console shows it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_backup::{
    Kind, Manifest,
    dump::{self, Dump},
    list,
    plan::Target,
    plan_restore,
    proofs::{self, Proofs},
    repo::Repository,
    retention, wal,
};
use millrace_base::Micros;
use millrace_contract::{
    backups::{BackupEntry, Backups, DumpEntry, LogEntry, RestorePlan, WindowEntry},
    operate::OperateError,
};
use tokio::sync::Mutex;

use crate::{
    backup,
    context::Context,
    explain::{Explained as _, chain},
};

/// The repository is listed no more often: it may be a bucket, where that costs.
const FRESH: Duration = Duration::from_secs(20);

/// Looks into the repository, once for all who ask.
#[derive(Debug)]
pub(crate) struct Restorable {
    context: Arc<Context>,
    /// The one that the archive writes to: it knows which of its places do not answer.
    repo: Option<Repository>,
    seen: Mutex<Option<(Instant, Backups)>>,
}

impl Restorable {
    pub(crate) fn new(context: Arc<Context>, repo: Option<Repository>) -> Self {
        Self { context, repo, seen: Mutex::new(None) }
    }

    pub(crate) async fn backups(&self) -> Result<Option<Backups>, OperateError> {
        let Some(repo) = &self.repo else { return Ok(None) };
        let mut seen = self.seen.lock().await;
        if let Some((_, backups)) = seen.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(Some(backups.clone()));
        }
        let backups = look(&self.context, repo).await.map_err(|error| refused(&error))?;
        *seen = Some((Instant::now(), backups.clone()));
        Ok(Some(backups))
    }

    pub(crate) async fn plan(&self, at: Micros) -> Result<RestorePlan, OperateError> {
        let Some(repo) = &self.repo else { return Err(refused(&anyhow::anyhow!("there are no backups"))) };
        plan(&self.context, repo, at).await.map_err(|error| refused(&error))
    }
}

fn refused(error: &anyhow::Error) -> OperateError {
    OperateError { message: chain(error.as_ref()), hint: None }
}

async fn look(context: &Context, repo: &Repository) -> anyhow::Result<Backups> {
    let system_id = backup::system_id(context, repo).await?;
    let catalog = list(repo, system_id).await.explained()?;
    let inventory = wal::inventory(repo, system_id).await.explained()?;
    let status = wal::status(repo, system_id).await.explained()?;
    let (windows, unusable) = millrace_backup::plan::windows(&catalog.backups, &inventory);
    let damaged = catalog.damaged.iter().map(|(object, why)| format!("{object}: {why}"));
    let conflicts = status.conflicts.iter().map(|name| format!("{name} is there with two contents"));
    // labels are of a second
    let mut newest_first: Vec<&Manifest> = catalog.backups.iter().collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse((backup.stopped_at, backup.stop)));
    let proofs = proofs::list(repo, system_id).await.explained()?;
    let held = retention::held(repo, system_id).await.explained()?;
    let logical = dump::dumps(repo, system_id).await.explained()?;
    let mut dumps: Vec<DumpEntry> = logical.dumps.into_iter().map(dump_entry).collect();
    dumps.sort_by_key(|dump| std::cmp::Reverse(dump.at));
    let damaged = damaged.chain(logical.damaged.iter().map(|(object, why)| format!("{object}: {why}")));
    Ok(Backups {
        backups: newest_first.into_iter().map(|backup| entry(backup, &proofs, &held)).collect(),
        dumps,
        windows: windows
            .into_iter()
            .map(|of| WindowEntry { label: of.label, timeline: of.timeline, from: of.from_time, to: of.to_time })
            .collect(),
        timelines: status
            .timelines
            .into_iter()
            .map(|of| LogEntry {
                timeline: of.timeline,
                first: of.first,
                last: of.last,
                last_at: of.last_at,
                files: of.segments,
                stored_bytes: of.stored_bytes,
                gaps: of.gaps.into_iter().map(|gap| (gap.from, gap.to)).collect(),
            })
            .collect(),
        problems: unusable.iter().map(ToString::to_string).chain(damaged).chain(conflicts).collect(),
    })
}

fn dump_entry(dump: Dump) -> DumpEntry {
    DumpEntry {
        label: dump.label,
        database: dump.database,
        parts: dump.schemas.into_iter().chain(dump.tables).collect(),
        at: dump.at,
        data_bytes: dump.data_bytes,
        stored_bytes: dump.stored_bytes,
    }
}

fn entry(backup: &Manifest, proofs: &Proofs, held: &BTreeSet<String>) -> BackupEntry {
    BackupEntry {
        label: backup.label.clone(),
        full: backup.kind == Kind::Full,
        parent: backup.parent.clone(),
        from_replica: backup.from_replica,
        at: backup.stopped_at,
        data_bytes: backup.data_bytes,
        stored_bytes: backup.stored_bytes,
        timeline: backup.timeline,
        proven: proofs.proven_at(&backup.label),
        failed_proof: proofs.failed_at(&backup.label),
        held: held.contains(&backup.label),
    }
}

async fn plan(context: &Context, repo: &Repository, at: Micros) -> anyhow::Result<RestorePlan> {
    let system_id = backup::system_id(context, repo).await?;
    let target = Target::Time { at, inclusive: true };
    let plan = plan_restore(repo, system_id, &target, None, None).await.explained()?;
    let about = proofs::newest(repo, system_id).await.explained()?.map(|proof| proof.would_take(&plan));
    Ok(RestorePlan {
        about,
        backups: plan.backups,
        timeline: plan.timeline,
        log_files: plan.segments.len(),
        data_bytes: plan.data_bytes,
    })
}
