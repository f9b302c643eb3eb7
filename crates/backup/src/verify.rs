//! Whether a repository holds what it says: every object against its checksum, every chain, every backup's log.
//!
//! Needs no key: checksums are of the stored bytes. With keys, `deep` opens everything too, which shows that the
//! keys at hand can.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    ProgressFn, Step,
    catalog::{self, Catalog, folder},
    contents,
    dump::{self, Dump},
    error::BackupError,
    manifest::Manifest,
    plan::{self, Window},
    repo::Repository,
    unpack,
    wal::{self, Inventory},
};

/// How thoroughly.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Objects at a time.
    pub threads: usize,
    /// Decrypts and unpacks everything as well, and checks each part of each file.
    pub deep: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    pub backups: usize,
    /// Logical ones.
    pub dumps: usize,
    pub objects: usize,
    pub bytes: u64,
    /// Empty: all is well.
    pub findings: Vec<Finding>,
    /// What can be restored, by backup.
    pub windows: Vec<Window>,
    /// Folders of runs that did not end: they count for nothing.
    pub unfinished: Vec<String>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// An object of the repository, a backup's label, or a file of the log.
    pub what: String,
    pub problem: String,
}

impl Finding {
    fn new(what: impl Into<String>, problem: impl ToString) -> Self {
        Self { what: what.into(), problem: problem.to_string() }
    }
}

const GONE: &str = "it is not there";

/// One object to be read.
#[derive(Debug, Clone)]
struct Check {
    name: String,
    bytes: u64,
    hash: String,
    /// What it is opened as.
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// Only its stored bytes matter: the list of files, which is read on its own.
    Bytes,
    /// Of what carries it in its name: the checksum of what is inside.
    Named(String),
    /// A part of a logical backup.
    Sealed,
    Pack(Vec<(String, crate::manifest::Piece)>),
}

/// Reads everything of a cluster.
///
/// # Errors
/// If the repository cannot be read, or the work is cancelled. What is damaged is in the report, not an error.
pub async fn verify(
    repo: &Repository,
    system_id: u64,
    options: &VerifyOptions,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> Result<VerifyReport, BackupError> {
    let mut report = verify_listed(repo, system_id, options, progress, stop).await?;
    if report.findings.iter().any(|finding| finding.problem == GONE) {
        // the archive goes on, and so does retention: parts go when their segment is whole, and what nobody needs
        report.findings.retain(|finding| finding.problem != GONE);
        let catalog = catalog::list(repo, system_id).await?;
        let mut now = VerifyReport::default();
        let inventory = known_log(repo, system_id, &mut now).await?;
        judge(&catalog, &inventory, &mut now);
        let dumps = dump::dumps(repo, system_id).await?.dumps;
        missing(repo, (&catalog, &dumps), &mut now).await?;
        report.findings.extend(now.findings);
        report.findings.sort_by(|a, b| a.what.cmp(&b.what));
        report.findings.dedup();
    }
    for finding in &report.findings {
        tracing::error!(what = finding.what, problem = finding.problem, "the repository is not whole");
    }
    Ok(report)
}

/// The log that is there. Without the histories nothing can be said of it, but everything else can still be looked at.
async fn known_log(repo: &Repository, system_id: u64, report: &mut VerifyReport) -> Result<Inventory, BackupError> {
    match wal::inventory(repo, system_id).await {
        Err(BackupError::Damaged { object, reason }) => {
            report.findings.push(Finding::new(object, reason));
            wal::listed(repo, system_id).await
        }
        read => read,
    }
}

/// Objects that manifests name and that are not there.
async fn missing(
    repo: &Repository,
    (catalog, dumps): (&Catalog, &[Dump]),
    report: &mut VerifyReport,
) -> Result<(), BackupError> {
    let backups = catalog.backups.iter().map(|backup| {
        let names: Vec<&str> = backup.objects.iter().map(|object| object.name.as_str()).collect();
        (folder(backup.system_id, &backup.label), names)
    });
    let dumps = dumps.iter().map(|dump| {
        let parts = dump.files.iter().flat_map(|file| &file.parts);
        (dump::folder(dump.system_id, &dump.label), parts.map(|part| part.name.as_str()).collect())
    });
    for (place, names) in backups.chain(dumps) {
        let there: HashSet<String> = repo.list(&place).await?.into_iter().map(|listed| listed.name).collect();
        let names = names.into_iter().map(|name| format!("{place}/{name}"));
        report.findings.extend(names.filter(|name| !there.contains(name)).map(|name| Finding::new(name, GONE)));
    }
    Ok(())
}

async fn verify_listed(
    repo: &Repository,
    system_id: u64,
    options: &VerifyOptions,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> Result<VerifyReport, BackupError> {
    let catalog = catalog::list(repo, system_id).await?;
    let mut report = VerifyReport { backups: catalog.backups.len(), ..VerifyReport::default() };
    report.findings.extend(catalog.damaged.iter().map(|(object, reason)| Finding::new(object, reason)));
    report.unfinished = catalog.unfinished.iter().map(|(label, _)| label.clone()).collect();
    let inventory = known_log(repo, system_id, &mut report).await?;
    judge(&catalog, &inventory, &mut report);
    let logical = dump::dumps(repo, system_id).await?;
    report.dumps = logical.dumps.len();
    report.findings.extend(logical.damaged.iter().map(|(object, reason)| Finding::new(object, reason)));
    let checks = checks(repo, (&catalog, &logical.dumps), &inventory, options.deep, &mut report).await?;
    let objects_total = checks.len();
    let mut checked = futures::stream::iter(checks)
        .map(|check| async move {
            if stop.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            look(repo, check, options.deep, stop).await
        })
        .buffer_unordered(options.threads.max(1))
        .boxed();
    while let Some((bytes, finding)) = checked.try_next().await? {
        report.objects += 1;
        report.bytes += bytes;
        report.findings.extend(finding);
        progress(Step::Verify { objects: report.objects, objects_total });
    }
    report.findings.sort_by(|a, b| a.what.cmp(&b.what));
    report.findings.dedup();
    Ok(report)
}

/// What can be said without reading an object. Pure.
fn judge(catalog: &Catalog, inventory: &Inventory, report: &mut VerifyReport) {
    let (windows, errors) = plan::windows(&catalog.backups, inventory);
    report.windows = windows;
    for error in errors {
        let what = match &error {
            plan::PlanError::LogMissing { segment, .. } => segment.clone(),
            plan::PlanError::ChainBroken { label, .. } => label.clone(),
            plan::PlanError::NoBackup
            | plan::PlanError::NoSuchBackup(_)
            | plan::PlanError::OutsideWindow { .. }
            | plan::PlanError::NoSuchTimeline(_) => "backups".to_owned(),
        };
        report.findings.push(Finding::new(what, error));
    }
    let status = wal::describe(inventory);
    for timeline in &status.timelines {
        for gap in &timeline.gaps {
            let problem = format!("the log is missing up to {}, {} to {}", gap.last, gap.from, gap.to);
            report.findings.push(Finding::new(&gap.first, problem));
        }
    }
    for name in &status.conflicts {
        report.findings.push(Finding::new(name, "it is there with two contents: two servers archive to one place"));
    }
    for backup in catalog.backups.iter().filter(|backup| !backup.pages_damaged.is_empty()) {
        let problem = format!("pages were damaged when it was made: {}", backup.pages_damaged.join(", "));
        report.findings.push(Finding::new(&backup.label, problem));
    }
}

async fn checks(
    repo: &Repository,
    (catalog, dumps): (&Catalog, &[Dump]),
    inventory: &Inventory,
    deep: bool,
    report: &mut VerifyReport,
) -> Result<Vec<Check>, BackupError> {
    let mut checks: Vec<Check> = inventory.objects().cloned().map(of_name).collect();
    for backup in &catalog.backups {
        let mut pieces = if deep { pieces(repo, backup, report).await? } else { Vec::new() };
        for object in &backup.objects {
            let place = pieces.iter().position(|(name, _)| *name == object.name);
            checks.push(Check {
                name: format!("{}/{}", folder(backup.system_id, &backup.label), object.name),
                bytes: object.bytes,
                hash: object.blake3.clone(),
                content: place.map_or(Content::Bytes, |place| Content::Pack(pieces.swap_remove(place).1)),
            });
        }
    }
    for backup in &catalog.backups {
        checks.extend(contents::stored(repo, backup).await?.into_iter().map(of_name));
    }
    for dump in dumps {
        let place = dump::folder(dump.system_id, &dump.label);
        checks.extend(dump.files.iter().flat_map(|file| &file.parts).map(|part| Check {
            name: format!("{place}/{}", part.name),
            bytes: part.bytes,
            hash: part.blake3.clone(),
            content: Content::Sealed,
        }));
    }
    Ok(checks)
}

/// Its name says what it must be.
fn of_name(stored: wal::Stored) -> Check {
    Check {
        name: stored.object,
        bytes: stored.bytes,
        hash: stored.stored_hash,
        content: Content::Named(stored.content_hash),
    }
}

type PiecesOfPack = (String, Vec<(String, crate::manifest::Piece)>);

/// What should be in each pack of a backup.
async fn pieces(
    repo: &Repository,
    backup: &Manifest,
    report: &mut VerifyReport,
) -> Result<Vec<PiecesOfPack>, BackupError> {
    let list = match catalog::files(repo, backup).await {
        Ok(list) => list,
        Err(BackupError::Damaged { object, reason }) => {
            report.findings.push(Finding::new(object, reason));
            return Ok(Vec::new());
        }
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut packs: Vec<PiecesOfPack> = list.packs.iter().map(|name| (name.clone(), Vec::new())).collect();
    for (path, piece) in list.files.iter().flat_map(|file| file.pieces.iter().map(move |piece| (&file.path, piece))) {
        match packs.get_mut(piece.pack) {
            Some((_, pieces)) => pieces.push((path.clone(), piece.clone())),
            None => report.findings.push(Finding::new(&backup.label, format!("a part of {path} is in no pack"))),
        }
    }
    for (_, pieces) in &mut packs {
        pieces.sort_by_key(|(_, piece)| piece.offset);
    }
    Ok(packs)
}

/// Reads one object; how many bytes that were, and what is wrong with it.
async fn look(
    repo: &Repository,
    check: Check,
    deep: bool,
    stop: &CancellationToken,
) -> Result<(u64, Option<Finding>), BackupError> {
    let sealed = match repo.get(&check.name).await {
        Ok(sealed) => sealed,
        Err(error) if error.is_not_found() => return Ok((0, Some(Finding::new(check.name, GONE)))),
        Err(error) => return Err(error),
    };
    let (keys, stop) = (repo.keys.clone(), stop.clone());
    crate::blocking(move || {
        let bytes = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
        if bytes != check.bytes {
            let problem = format!("it has {bytes} bytes instead of {}", check.bytes);
            return Ok((bytes, Some(Finding::new(check.name, problem))));
        }
        // names of the log's files carry the first half of the checksum
        if !blake3::hash(&sealed).to_hex().starts_with(&check.hash) {
            return Ok((bytes, Some(Finding::new(check.name, "its checksum is wrong"))));
        }
        if !deep {
            return Ok((bytes, None));
        }
        let opened = match &check.content {
            Content::Bytes => Ok(()),
            Content::Named(hash) => crate::seal::unseal(&check.name, &sealed, &keys).and_then(|content| {
                if wal::short_hash(&content) == *hash {
                    return Ok(());
                }
                Err(BackupError::damaged(&check.name, "the checksum of its content is wrong"))
            }),
            Content::Sealed => crate::seal::unseal(&check.name, &sealed, &keys).map(drop),
            Content::Pack(pieces) => {
                let mut room = Vec::new();
                unpack::read(&check.name, &sealed, &keys, pieces, &stop, &mut room, |_, _, _| Ok(()))
            }
        };
        match opened {
            Ok(()) => Ok((bytes, None)),
            Err(BackupError::Damaged { object, reason }) => Ok((bytes, Some(Finding::new(object, reason)))),
            Err(error) => Err(error),
        }
    })
    .await
}
