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
    /// Logical backups of all databases.
    pub dump_every: Option<Duration>,
    /// The newest is restored and checked.
    pub prove: bool,
    /// And again, as long as it is the newest.
    pub prove_every: Option<Duration>,
    /// A proof leaves its files for copies.
    pub clone_base: bool,
    /// So long the tables are read after a backup, for proofs to compare.
    pub contents: Option<Duration>,
    /// Replicas are made from the newest backup.
    pub replicas: bool,
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
    S3 {
        bucket: String,
        prefix: String,
        endpoint: Option<String>,
        region: String,
    },
    Azure {
        container: String,
        prefix: String,
        endpoint: Option<String>,
    },
    Google {
        bucket: String,
        prefix: String,
        /// The JSON file of a service account.
        service_account: PathBuf,
    },
}

/// What is written before a bucket's name.
const SCHEMES: [&str; 3] = ["s3://", "az://", "gs://"];

/// What `repository` alone says: the scheme, the bucket and the prefix; without a scheme a folder.
fn written(value: &toml::de::DeValue<'_>) -> Result<(Option<&'static str>, String, String), Problem> {
    let written = text(value)?;
    let Some(scheme) = SCHEMES.into_iter().find(|scheme| written.starts_with(scheme)) else {
        if written.contains("://") {
            let hint = "a folder, s3://BUCKET/PREFIX with `endpoint` for what speaks S3, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX";
            return Err(Problem::new("only folders, s3://, az:// and gs:// are known", hint));
        }
        if written.is_empty() {
            return Err(Problem::new("must not be empty", "name a folder, or s3://BUCKET"));
        }
        return Ok((None, written, String::new()));
    };
    let rest = written.strip_prefix(scheme).unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Problem::new("there is no bucket in it", format!("{scheme}BUCKET or {scheme}BUCKET/PREFIX")));
    }
    Ok((Some(scheme), bucket.to_owned(), prefix.trim_matches('/').to_owned()))
}

/// What `repository`, `endpoint`, `region` and `service_account` of a table say.
fn repository(table: &Reader<'_>, folder: &Path) -> BackupRepository {
    let (endpoint, region) = (table.text_maybe("endpoint"), table.text_maybe("region"));
    let service_account = table.text_maybe("service_account");
    let Some(read) = table.read("repository", written) else {
        // which has been said
        return BackupRepository::Folder(PathBuf::new());
    };
    let (scheme, bucket, prefix) = read.value;
    let of = |what: &str, schemes: &str| {
        let hint = Some(format!("remove it, or write {schemes} as the repository"));
        table.wrong(None, format!("`{what}` is for {schemes}, which the repository is not"), hint);
    };
    if endpoint.is_some() && !matches!(scheme, Some("s3://" | "az://")) {
        of("endpoint", "s3:// and az://");
    }
    if region.is_some() && scheme != Some("s3://") {
        of("region", "s3://");
    }
    if service_account.is_some() && scheme != Some("gs://") {
        of("service_account", "gs://");
    }
    match scheme {
        Some("s3://") => {
            let region = region.unwrap_or_else(|| "us-east-1".to_owned());
            BackupRepository::S3 { bucket, prefix, endpoint, region }
        }
        Some("az://") => BackupRepository::Azure { container: bucket, prefix, endpoint },
        Some(_) => {
            let Some(file) = service_account else {
                let hint = Some("service_account = \"FILE.json\", the key of a service account".to_owned());
                table.wrong(None, "a bucket of gs:// needs `service_account`", hint);
                return BackupRepository::Folder(PathBuf::new());
            };
            BackupRepository::Google { bucket, prefix, service_account: folder.join(file) }
        }
        None => BackupRepository::Folder(folder.join(bucket)),
    }
}

/// Also if they are the same.
fn is_within(inner: &BackupRepository, outer: &BackupRepository) -> bool {
    use BackupRepository::{Azure, Folder, Google, S3};
    // components leave `.` out
    let parts = |folder: &PathBuf| folder.components().collect::<PathBuf>();
    // what it is in, and where
    let place = |of: &'_ BackupRepository| match of {
        Folder(folder) => (None, parts(folder)),
        S3 { bucket, prefix, endpoint, .. } => (Some(("s3", bucket.clone(), endpoint.clone())), PathBuf::from(prefix)),
        Azure { container, prefix, endpoint } => {
            (Some(("az", container.clone(), endpoint.clone())), PathBuf::from(prefix))
        }
        Google { bucket, prefix, .. } => (Some(("gs", bucket.clone(), None)), PathBuf::from(prefix)),
    };
    let ((inner, within), (outer, without)) = (place(inner), place(outer));
    inner == outer && within.starts_with(without)
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
    let contents = table.integer("contents_seconds", 0..=86_400);
    let (prove, clone_base) = (table.boolean("prove"), table.boolean("clone_base"));
    if clone_base && !prove {
        let hint = Some("remove one of both".to_owned());
        table.wrong(None, "`clone_base` needs the proofs that `prove = false` turns off", hint);
    }
    Backup {
        repository,
        copies,
        compression_level: i32::try_from(table.integer("compression_level", 1..=19)).unwrap_or(3),
        threads: usize::try_from(table.integer("threads", 1..=64)).unwrap_or(1),
        bytes_per_second_max: table.size_maybe("throttle", 1 << 20..=u64::MAX >> 1),
        full_every: hours("full_every_hours"),
        incremental_every: hours("incremental_every_hours"),
        dump_every: hours("dump_every_hours"),
        prove,
        prove_every: hours("prove_every_hours"),
        clone_base,
        contents: (contents > 0).then(|| Duration::from_secs(contents)),
        replicas: table.boolean("replicas_from_backup"),
        keep_full: count("keep_full", 1..=1_000),
        keep_daily: count("keep_daily", 0..=1_000),
        keep_weekly: count("keep_weekly", 0..=1_000),
        keep_monthly: count("keep_monthly", 0..=1_000),
        keep_yearly: count("keep_yearly", 0..=1_000),
        keep_dumps: count("keep_dumps", 0..=1_000),
        window: (days > 0).then(|| Duration::from_secs(days * 86_400)),
    }
}
