//! `[backup]`: where backups and the log are kept, and when they are made.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    schema,
    table::{Problem, Reader, text},
};

/// `[backup]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub repository: BackupRepository,
    /// Others that have the same.
    pub copies: Vec<BackupRepository>,
    /// zstd's, 1 to 19.
    pub compression_level: i32,
    pub threads: usize,
    /// Read no more than this from the disk.
    pub bytes_per_second_max: Option<u64>,
    /// `None`: only by hand.
    pub full_every: Option<Duration>,
    pub incremental_every: Option<Duration>,
    /// Each of these is restored and checked.
    pub prove: bool,
    /// So many full backups stay.
    pub keep_full: usize,
    /// The last backup of so many of the latest days, ISO weeks, months and years that have one.
    pub keep_daily: usize,
    pub keep_weekly: usize,
    pub keep_monthly: usize,
    pub keep_yearly: usize,
    /// So many logical backups of each database stay; 0: all.
    pub keep_dumps: usize,
    /// Any point so far back can be restored.
    pub window: Option<Duration>,
}

/// Where backups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupRepository {
    Folder(PathBuf),
    S3 { bucket: String, prefix: String, endpoint: Option<String>, region: String },
}

/// What `repository`, `endpoint` and `region` of a table say.
fn repository(table: &Reader<'_>, folder: &Path) -> BackupRepository {
    let endpoint = table.text_maybe("endpoint");
    let region = table.text_maybe("region").unwrap_or_else(|| "us-east-1".to_owned());
    let repository = table.read("repository", |value| {
        let written = text(value)?;
        match written.strip_prefix("s3://") {
            None if written.contains("://") => Err(Problem::new(
                "only folders and s3:// are known",
                "a folder, or s3://BUCKET/PREFIX with `endpoint` for what speaks S3",
            )),
            None if written.is_empty() => Err(Problem::new("must not be empty", "name a folder, or s3://BUCKET")),
            None => Ok(BackupRepository::Folder(folder.join(written))),
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(Problem::new("there is no bucket in it", "s3://BUCKET or s3://BUCKET/PREFIX"));
                }
                let prefix = prefix.trim_matches('/').to_owned();
                Ok(BackupRepository::S3 { bucket: bucket.to_owned(), prefix, endpoint: None, region: String::new() })
            }
        }
    });
    match repository.map(|at| at.value) {
        Some(BackupRepository::S3 { bucket, prefix, .. }) => BackupRepository::S3 { bucket, prefix, endpoint, region },
        Some(folder) => {
            if endpoint.is_some() {
                let hint = Some("remove it, or write s3://BUCKET as the repository".to_owned());
                table.wrong(None, "`endpoint` is for s3://, and the repository is a folder", hint);
            }
            folder
        }
        // which has been said
        None => BackupRepository::Folder(PathBuf::new()),
    }
}

/// Also if they are the same.
fn is_within(inner: &BackupRepository, outer: &BackupRepository) -> bool {
    use BackupRepository::{Folder, S3};
    // components leave `.` out
    let parts = |folder: &PathBuf| folder.components().collect::<PathBuf>();
    match (inner, outer) {
        (Folder(inner), Folder(outer)) => parts(inner).starts_with(parts(outer)),
        (S3 { bucket, prefix, endpoint, .. }, S3 { bucket: other, prefix: outer, endpoint: of, .. }) => {
            (bucket, endpoint) == (other, of) && Path::new(prefix).starts_with(outer)
        }
        (Folder(_), S3 { .. }) | (S3 { .. }, Folder(_)) => false,
    }
}

/// The same place twice would be no copy.
fn copies(table: &Reader<'_>, folder: &Path, first: &BackupRepository) -> Vec<BackupRepository> {
    let mut copies = Vec::new();
    for copy in table.tables("copies", &schema::BACKUP_COPY).unwrap_or_default() {
        let found = repository(&copy, folder);
        if std::iter::once(first).chain(&copies).any(|other| is_within(&found, other) || is_within(other, &found)) {
            let hint = Some("name another folder or bucket, best at another place".to_owned());
            copy.wrong(None, "`repository` is one that is named already, or lies within one", hint);
        }
        copies.push(found);
    }
    copies
}

pub(super) fn backup(table: &Reader<'_>, folder: &Path) -> Backup {
    let repository = repository(table, folder);
    let copies = copies(table, folder, &repository);
    let hours = |name| {
        let hours = table.integer(name, 0..=8_760);
        (hours > 0).then(|| Duration::from_secs(hours * 3600))
    };
    let count = |name, range| usize::try_from(table.integer(name, range)).unwrap_or(1);
    let days = table.integer("window_days", 0..=3_650);
    Backup {
        repository,
        copies,
        compression_level: i32::try_from(table.integer("compression_level", 1..=19)).unwrap_or(3),
        threads: usize::try_from(table.integer("threads", 1..=64)).unwrap_or(1),
        bytes_per_second_max: table.size_maybe("throttle", 1 << 20..=u64::MAX >> 1),
        full_every: hours("full_every_hours"),
        incremental_every: hours("incremental_every_hours"),
        prove: table.boolean("prove"),
        keep_full: count("keep_full", 1..=1_000),
        keep_daily: count("keep_daily", 0..=1_000),
        keep_weekly: count("keep_weekly", 0..=1_000),
        keep_monthly: count("keep_monthly", 0..=1_000),
        keep_yearly: count("keep_yearly", 0..=1_000),
        keep_dumps: count("keep_dumps", 0..=1_000),
        window: (days > 0).then(|| Duration::from_secs(days * 86_400)),
    }
}
