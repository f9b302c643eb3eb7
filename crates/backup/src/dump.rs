//! Logical backups: what `pg_dump` says of one database, and `pg_dumpall` of roles and tablespaces, kept beside the others.
//!
//! They are for what the physical ones cannot do: another major version, one database or table of many, a look with
//! a text editor. They stand for the moment of `pg_dump`'s snapshot, and no log leads on from there.
//!
//! A file is stored in parts of at most [`PART`] bytes, each sealed by itself. Invariants: a dump counts once its
//! manifest is there, which is written last; a program that failed leaves none.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
    process::Stdio,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use millrace_base::Micros;
use millrace_pg::ServerError;
use serde::{Deserialize, Serialize};
use tokio::{
    fs,
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog,
    error::BackupError,
    manifest::{self, FORMAT, Object},
    repo::Repository,
    seal,
};

/// Before compression; as many are in memory as are on their way, and one.
pub const PART: usize = 32 << 20;
const ON_THEIR_WAY: usize = 2;
/// The file of roles and tablespaces.
pub const GLOBALS: &str = "globals.sql";
const DUMP: &str = "dump";
/// What is told of a program that failed.
const LINES: usize = 6;

/// How `pg_dump` writes (manual, "pg_dump", `--format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpFormat {
    /// One file for `pg_restore`.
    Custom,
    /// SQL for `psql`.
    Plain,
    /// A file a table for `pg_restore --jobs`; several tables are read at a time. Needs room for all of it meanwhile.
    Directory,
}

/// What a database like it is made with (manual, "CREATE DATABASE").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseTraits {
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// Of the provider `icu`; else libc's is used.
    pub icu_locale: Option<String>,
}

/// What is dumped.
#[derive(Debug, Clone)]
pub struct DumpOptions {
    pub system_id: u64,
    pub database: String,
    pub traits: DatabaseTraits,
    /// `server_version_num`.
    pub postgres_version: u32,
    pub format: DumpFormat,
    /// Patterns as `pg_dump --schema` takes them; none: all.
    pub schemas: Vec<String>,
    /// As `--table`.
    pub tables: Vec<String>,
    /// At a time, of the format [`DumpFormat::Directory`].
    pub jobs: usize,
    /// A folder of the caller's that files may lie in meanwhile.
    pub scratch: PathBuf,
    pub now: Micros,
}

/// One of PostgreSQL's client programs, made so that it reaches the database.
pub type ProgramFn<'a> = dyn Fn(&str) -> Command + Send + Sync + 'a;

/// One logical backup: its `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    pub format: u32,
    pub label: String,
    pub system_id: u64,
    pub database: String,
    pub traits: DatabaseTraits,
    pub postgres_version: u32,
    pub written_as: DumpFormat,
    pub schemas: Vec<String>,
    pub tables: Vec<String>,
    /// When `pg_dump` began.
    pub at: Micros,
    /// Before compression.
    pub data_bytes: u64,
    pub stored_bytes: u64,
    pub files: Vec<DumpFile>,
}

/// One file, in order of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpFile {
    /// `globals.sql`, `dump` or, of a directory, `dump/…`.
    pub name: String,
    pub bytes: u64,
    pub parts: Vec<Object>,
}

impl Dump {
    /// What `pg_restore` or `psql` is given, below the folder that [`fetch`] has written.
    #[must_use]
    pub fn file(&self) -> &'static str {
        DUMP
    }

    /// It is of the whole database.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }
}

/// A cluster's logical backups.
#[derive(Debug, Clone, Default)]
pub struct Dumps {
    /// By label, so by time.
    pub dumps: Vec<Dump>,
    /// Manifests that cannot be read: object and reason.
    pub damaged: Vec<(String, String)>,
    /// Folders without a manifest, with the time of their newest object.
    pub unfinished: Vec<(String, Micros)>,
}

fn shelf(system_id: u64) -> String {
    format!("{system_id}/dumps")
}

pub(crate) fn folder(system_id: u64, label: &str) -> String {
    format!("{}/{label}", shelf(system_id))
}

/// Lists them.
///
/// # Errors
/// If the repository cannot be read. A damaged manifest is told in the result.
pub async fn dumps(repo: &Repository, system_id: u64) -> Result<Dumps, BackupError> {
    let of = |dump: &Dump| (dump.label.clone(), dump.system_id);
    let (dumps, damaged, unfinished) = catalog::shelf(repo, system_id, &shelf(system_id), of).await?;
    Ok(Dumps { dumps, damaged, unfinished })
}

/// Makes one. A failure, or `stop`, removes what was written.
///
/// # Errors
/// If a program fails or the repository cannot be written.
pub async fn dump(
    repo: &Repository,
    options: &DumpOptions,
    program: &ProgramFn<'_>,
    stop: &CancellationToken,
) -> Result<Dump, BackupError> {
    let label = crate::create::label();
    let place = folder(options.system_id, &label);
    let writer = Writer { repo, place: &place };
    let made = tokio::select! {
        made = writer.files(options, program) => made,
        () = stop.cancelled() => Err(BackupError::Cancelled),
    };
    let made = match made {
        Ok(files) => {
            let parts = files.iter().flat_map(|file| &file.parts);
            let dump = Dump {
                format: FORMAT,
                label,
                system_id: options.system_id,
                database: options.database.clone(),
                traits: options.traits.clone(),
                postgres_version: options.postgres_version,
                written_as: options.format,
                schemas: options.schemas.clone(),
                tables: options.tables.clone(),
                at: options.now,
                data_bytes: files.iter().map(|file| file.bytes).sum(),
                stored_bytes: parts.map(|part| part.bytes).sum(),
                files,
            };
            repo.create(&format!("{place}/manifest.json"), manifest::to_document(&dump)?).await.map(|()| dump)
        }
        Err(error) => Err(error),
    };
    if made.is_err()
        && let Err(error) = catalog::clear(repo, &place).await
    {
        tracing::warn!(place, %error, "parts of a dump that failed are left in the repository until a day has passed");
    }
    made
}

struct Writer<'a> {
    repo: &'a Repository,
    place: &'a str,
}

impl Writer<'_> {
    async fn files(&self, options: &DumpOptions, program: &ProgramFn<'_>) -> Result<Vec<DumpFile>, BackupError> {
        let mut globals = program("pg_dumpall");
        globals.arg("--globals-only");
        let mut files = vec![self.output(globals, "pg_dumpall", GLOBALS).await?];
        let mut dump = program("pg_dump");
        // the repository compresses better, and what it is given need not be packed twice
        match options.format {
            DumpFormat::Custom => dump.args(["--format=custom", "--compress=0"]),
            // of the others `pg_restore` leaves them out: a second subscriber would take the slot of the first
            DumpFormat::Plain => dump.args(["--format=plain", "--no-publications", "--no-subscriptions"]),
            DumpFormat::Directory => dump.args(["--format=directory", "--compress=0"]),
        };
        dump.args(options.schemas.iter().map(|schema| format!("--schema={schema}")));
        dump.args(options.tables.iter().map(|table| format!("--table={table}")));
        if options.format != DumpFormat::Directory {
            files.push(self.output(dump, "pg_dump", DUMP).await?);
            return Ok(files);
        }
        let to = options.scratch.join(DUMP);
        dump.arg("--jobs").arg(options.jobs.max(1).to_string()).arg("--file").arg(&to);
        dump.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = dump.output().await.map_err(BackupError::io("run", "pg_dump"))?;
        if !output.status.success() {
            return Err(failed("pg_dump", &output.stderr));
        }
        let mut names = BTreeSet::new();
        let mut listing = fs::read_dir(&to).await.map_err(BackupError::io("read", &to))?;
        while let Some(entry) = listing.next_entry().await.map_err(BackupError::io("read", &to))? {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
        for name in names {
            let path = to.join(&name);
            let file = fs::File::open(&path).await.map_err(BackupError::io("open", &path))?;
            files.push(self.store(file, &format!("{DUMP}/{name}"), &path).await?);
            // so that the room that is needed shrinks
            fs::remove_file(&path).await.map_err(BackupError::io("remove", &path))?;
        }
        Ok(files)
    }

    /// Stores what a program prints, if it ends well.
    async fn output(&self, mut command: Command, program: &'static str, name: &str) -> Result<DumpFile, BackupError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(BackupError::io("run", program))?;
        let missing = || BackupError::Panicked(format!("{program} has no output"));
        let printed = child.stdout.take().ok_or_else(missing)?;
        let mut complaints = child.stderr.take().ok_or_else(missing)?;
        let mut said = Vec::new();
        let (stored, read) =
            tokio::join!(self.store(printed, name, Path::new(program)), complaints.read_to_end(&mut said));
        // a program whose output nobody takes any more ends
        let status = child.wait().await.map_err(BackupError::io("wait for", program))?;
        let file = stored?;
        read.map_err(BackupError::io("read from", program))?;
        if !status.success() {
            return Err(failed(program, &said));
        }
        Ok(file)
    }

    /// Stores a stream as a file in parts.
    async fn store(&self, mut from: impl AsyncRead + Unpin, name: &str, path: &Path) -> Result<DumpFile, BackupError> {
        let mut file = DumpFile { name: name.to_owned(), bytes: 0, parts: Vec::new() };
        let mut on_their_way = FuturesOrdered::new();
        for number in 0u32.. {
            let mut part = Vec::new();
            let limit = u64::try_from(PART).unwrap_or(u64::MAX);
            {
                let mut limited = (&mut from).take(limit);
                let mut reading = std::pin::pin!(limited.read_to_end(&mut part));
                // what is on its way goes on while the program is slow
                loop {
                    tokio::select! {
                        read = &mut reading => {
                            read.map_err(BackupError::io("read from", path))?;
                            break;
                        }
                        Some(part) = on_their_way.next() => file.parts.push(part?),
                    }
                }
            }
            // an empty file is one empty part
            if part.is_empty() && number > 0 {
                break;
            }
            let whole = part.len() < PART;
            file.bytes += u64::try_from(part.len()).unwrap_or(u64::MAX);
            let flat = name.replace('/', "_");
            on_their_way.push_back(self.part(format!("{flat}.{number:05}"), part));
            if on_their_way.len() > ON_THEIR_WAY
                && let Some(part) = on_their_way.next().await
            {
                file.parts.push(part?);
            }
            if whole {
                break;
            }
        }
        while let Some(part) = on_their_way.next().await {
            file.parts.push(part?);
        }
        Ok(file)
    }

    async fn part(&self, name: String, content: Vec<u8>) -> Result<Object, BackupError> {
        let sealing = self.repo.sealing.clone();
        let (sealed, blake3) = crate::blocking(move || {
            let sealed = sealing.seal(&content)?;
            let hash = blake3::hash(&sealed).to_hex().to_string();
            Ok((sealed, hash))
        })
        .await?;
        let name = format!("{name}.{}", self.repo.sealing.extension());
        let bytes = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
        self.repo.create(&format!("{}/{name}", self.place), sealed).await?;
        Ok(Object { name, bytes, blake3 })
    }
}

fn failed(program: &'static str, said: &[u8]) -> BackupError {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let output = lines.iter().skip(lines.len().saturating_sub(LINES)).map(|line| (*line).to_owned()).collect();
    BackupError::Server(ServerError::Program { program, output })
}

/// Writes the files of a dump into a folder that is made, or is empty. Every part is checked before it is written.
///
/// # Errors
/// If there is none of that name, the folder is not empty, or something is damaged.
pub async fn fetch(
    repo: &Repository,
    system_id: u64,
    label: &str,
    to: &Path,
    stop: &CancellationToken,
) -> Result<Dump, BackupError> {
    let all = dumps(repo, system_id).await?;
    let dump = all.dumps.into_iter().find(|dump| dump.label == label);
    let dump = dump.ok_or_else(|| BackupError::NoSuchBackup(label.to_owned()))?;
    let refused = |reason: &str| BackupError::Target { path: to.to_owned(), reason: reason.to_owned() };
    if std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(refused("it is not empty"));
    }
    millrace_base::files::create_dir_all(to, 0o700).map_err(BackupError::io("make", to))?;
    for file in &dump.files {
        if !Path::new(&file.name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(BackupError::damaged(&dump.label, format!("it names a file {}", file.name)));
        }
        let path = to.join(&file.name);
        if let Some(parent) = path.parent() {
            millrace_base::files::create_dir_all(parent, 0o700).map_err(BackupError::io("make", parent))?;
        }
        let mut open = fs::OpenOptions::new();
        let open = open.write(true).create_new(true).mode(0o600);
        let mut written = open.open(&path).await.map_err(BackupError::io("make", &path))?;
        for part in &file.parts {
            if stop.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            let name = format!("{}/{}", folder(system_id, label), part.name);
            let sealed: Bytes = repo.get_whole(&name, &part.blake3).await?;
            let keys = repo.keys.clone();
            let content = crate::blocking(move || seal::unseal(&name, &sealed, &keys)).await?;
            written.write_all(&content).await.map_err(BackupError::io("write", &path))?;
        }
        written.sync_all().await.map_err(BackupError::io("write", &path))?;
        let length = written.metadata().await.map_err(BackupError::io("look at", &path))?.len();
        if length != file.bytes {
            return Err(BackupError::damaged(&dump.label, format!("{} has {length} bytes", file.name)));
        }
    }
    Ok(dump)
}

/// Which go, so that of each database the newest `keep` stay, and as many of each choice of its parts. Pure.
#[must_use]
pub fn superfluous(dumps: &[Dump], keep: usize) -> Vec<String> {
    let mut newest_first: Vec<&Dump> = dumps.iter().collect();
    newest_first.sort_by_key(|dump| std::cmp::Reverse((dump.at, dump.label.clone())));
    let mut seen: std::collections::BTreeMap<(&str, &[String], &[String]), usize> = std::collections::BTreeMap::new();
    let mut gone: Vec<String> = newest_first
        .into_iter()
        .filter(|dump| {
            let count = seen.entry((&dump.database, &dump.schemas, &dump.tables)).or_default();
            *count += 1;
            *count > keep
        })
        .map(|dump| dump.label.clone())
        .collect();
    gone.sort_unstable();
    gone
}

/// Removes one; its manifest goes first.
///
/// # Errors
/// If the repository cannot be written.
pub async fn remove(repo: &Repository, system_id: u64, label: &str) -> Result<(), BackupError> {
    catalog::clear(repo, &folder(system_id, label)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_database_the_newest_stay() {
        let dump = |label: &str, database: &str, at: i64| Dump {
            format: FORMAT,
            label: label.to_owned(),
            system_id: 1,
            database: database.to_owned(),
            traits: DatabaseTraits::default(),
            postgres_version: 150_000,
            written_as: DumpFormat::Custom,
            schemas: Vec::new(),
            tables: Vec::new(),
            at: Micros(at),
            data_bytes: 0,
            stored_bytes: 0,
            files: Vec::new(),
        };
        let part = Dump { tables: vec!["t".to_owned()], ..dump("e", "x", 9) };
        let all = [dump("a", "x", 1), dump("b", "x", 2), dump("c", "y", 1), dump("d", "x", 3), part];
        assert_eq!(superfluous(&all, 2), ["a"]);
        assert_eq!(superfluous(&all, 1), ["a", "b"]);
        assert_eq!(superfluous(&all, 9), [""; 0]);
    }
}
