//! A backup that has not been restored is not a backup: this restores one into a scratch folder, starts a server on it
//! that nobody else can reach, has it stop where what its tables held was recorded and compares, waits for the end of
//! recovery, has every table and index checked by `pg_amcheck`, and asks for rows that must not be.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use millrace_base::{Lsn, Secret};
use millrace_pg::{Binaries, ConnectParams, PgError, RunAs, connect};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;

use crate::{
    ProgressFn,
    base::BaseUse,
    catalog,
    contents::{self, Contents},
    error::BackupError,
    manifest::Manifest,
    plan::{Plan, Target},
    recovery::{self, WalSource},
    repo::Repository,
    restore::{AUTO_CONF, RestoreOptions, plan, restore},
    wal::{self, History},
};

/// SQLSTATE of a database, schema, table, column or function that does not exist.
const NOT_THERE: [&str; 5] = ["3D000", "3F000", "42P01", "42703", "42883"];
/// Between looks at how far it has got.
const LOOK: Duration = Duration::from_millis(50);
/// A replay that has not gone on for so long will not: one record takes no minute.
const STANDS_STILL_MAX: Duration = Duration::from_secs(120);
/// The scratch server has no network: the number only names its socket.
const PORT: u16 = 5432;
/// In a data directory: the server is a standby.
const STANDBY: &str = "standby.signal";
/// What makes a folder one of ours.
const HBA: &str = "hba.conf";
const HBA_LINES: &str = "# of a proof: this folder is removed\nlocal all all trust\n";
/// A socket's path is no longer than 107 bytes; `/.s.PGSQL.5432` is a part of it.
const SCRATCH_PATH_MAX: usize = 90;

/// What is proven, and where.
#[derive(Debug, Clone)]
pub struct ProveOptions {
    /// Made, and removed at the end; must be empty. Needs room for the data.
    pub scratch: PathBuf,
    pub binaries: Binaries,
    pub run_as: RunAs,
    /// A superuser's name; no password is needed.
    pub superuser: String,
    pub target: Target,
    pub backup: Option<String>,
    pub threads: usize,
    /// How long replay may take, and each check of tables.
    pub deadline: Duration,
    pub rules: Vec<Rule>,
    /// A base of the backup is left there, for copies: its files as they came out of the repository.
    pub base: Option<PathBuf>,
}

/// What must hold in a database, whoever has written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub database: String,
    /// One query: each row that it finds is one that must not be.
    pub sql: String,
}

/// A proof that came out well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub plan: Plan,
    pub restore_ms: u64,
    /// From the start of the server to its first write, without what was compared meanwhile.
    pub replay_ms: u64,
    /// `None`: there is no `pg_amcheck` on this machine.
    pub check_ms: Option<u64>,
    pub databases: usize,
    /// Rules that hold.
    #[serde(default)]
    pub rules: usize,
    /// Rules of databases, tables or columns that this backup does not have.
    #[serde(default)]
    pub rules_left_out: Vec<String>,
    /// Tables that held what they had held at the position where that was recorded.
    #[serde(default)]
    pub tables: usize,
    /// Of these tables.
    #[serde(default)]
    pub rows: u64,
    /// Databases and tables that could not be compared, and why.
    #[serde(default)]
    pub tables_left_out: Vec<String>,
}

impl Proof {
    /// How long another restore would take here, by what this one took: files by their bytes, replay by the log's files.
    #[must_use]
    pub fn would_take(&self, plan: &Plan) -> Duration {
        let scaled = |ms: u64, of: u64, than: u64| {
            u64::try_from(u128::from(ms) * u128::from(of) / u128::from(than.max(1))).unwrap_or(u64::MAX)
        };
        let log = |plan: &Plan| u64::try_from(plan.segments.len()).unwrap_or(u64::MAX);
        let copied = scaled(self.restore_ms, plan.data_bytes, self.plan.data_bytes);
        Duration::from_millis(copied.saturating_add(scaled(self.replay_ms, log(plan), log(&self.plan))))
    }
}

/// What was recorded with a backup, and where a restore of it goes.
struct Recorded {
    contents: Contents,
    timeline: u32,
    history: History,
    end: Lsn,
}

#[derive(Default)]
struct Compared {
    tables: usize,
    rows: u64,
    left_out: Vec<String>,
    /// To get to where they were recorded.
    replay_ms: u64,
}

/// What was found out of the restored server.
struct Found {
    compared: Compared,
    replay_ms: u64,
    check_ms: Option<u64>,
    databases: usize,
    rules: usize,
    rules_left_out: Vec<String>,
}

/// Restores, starts, checks, stops, removes.
///
/// # Errors
/// [`BackupError::Proof`] says at what it failed; others as [`restore`].
pub async fn prove(
    repo: &Repository,
    system_id: u64,
    options: &ProveOptions,
    progress: &ProgressFn<'_>,
    cancel: &CancellationToken,
) -> Result<Proof, BackupError> {
    let scratch = Scratch::make(options).await?;
    let plan = plan(repo, system_id, &options.target, options.backup.as_deref(), None).await?;
    let catalog = catalog::list(repo, system_id).await?;
    let label = plan.backups.last().cloned().unwrap_or_default();
    let backup = catalog.backups.iter().find(|backup| backup.label == label);
    let recorded = recorded(repo, backup, &plan).await?;
    let tablespaces = backup.into_iter().flat_map(|backup| &backup.tablespaces);
    let restore_options = RestoreOptions {
        data_dir: scratch.data(),
        delta: false,
        target: options.target.clone(),
        backup: Some(label),
        timeline: Some(plan.timeline),
        threads: options.threads,
        owner: Some(options.run_as.clone()),
        tablespaces: tablespaces.map(|t| (t.oid, options.scratch.join(format!("tablespace-{}", t.oid)))).collect(),
        wal: WalSource::Prefetch,
        // what is proven is the repository
        base: options.base.clone().map(|folder| BaseUse { folder, take: false }),
    };
    let begun = Instant::now();
    let plan = restore(repo, system_id, &restore_options, progress, cancel).await?.plan;
    let restore_ms = millis(begun);
    let server = Server { options, scratch: &scratch };
    let proven = tokio::select! {
        proven = server.run(recorded.as_ref()) => proven,
        () = cancel.cancelled() => Err(BackupError::Cancelled),
    };
    stop(options, &scratch.path).await?;
    let Found { compared, replay_ms, check_ms, databases, rules, rules_left_out } = proven?;
    let Compared { tables, rows, left_out: tables_left_out, replay_ms: before_ms } = compared;
    let replay_ms = before_ms + replay_ms;
    tracing::info!(label = ?plan.backups.last(), restore_ms, replay_ms, tables, "backup proven by restoring it");
    Ok(Proof { plan, restore_ms, replay_ms, check_ms, databases, rules, rules_left_out, tables, rows, tables_left_out })
}

/// Only a restore of the latest is sure to pass all that was recorded.
async fn recorded(repo: &Repository, backup: Option<&Manifest>, plan: &Plan) -> Result<Option<Recorded>, BackupError> {
    let Some(backup) = backup.filter(|_| plan.target == Target::Latest) else { return Ok(None) };
    let Some(contents) = contents::load(repo, backup).await? else { return Ok(None) };
    let history = wal::inventory(repo, backup.system_id).await?.history(plan.timeline);
    Ok(Some(Recorded { contents, timeline: plan.timeline, history, end: plan.window.to }))
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The folder, removed when dropped.
struct Scratch {
    path: PathBuf,
    /// Beside it, held as long as it is ours: what a killed proof has left is told from one that goes on.
    _lock: fs::File,
}

impl Scratch {
    async fn make(options: &ProveOptions) -> Result<Self, BackupError> {
        let path = options.scratch.clone();
        if path.as_os_str().len() > SCRATCH_PATH_MAX {
            let reason = format!("its name is longer than {SCRATCH_PATH_MAX} bytes, too long for a server's socket");
            return Err(BackupError::Target { path, reason });
        }
        let beside = path.with_extension("lock");
        let lock = fs::File::create(&beside).map_err(BackupError::io("make", &beside))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(BackupError::ProofRuns(path));
            }
            Err(fs::TryLockError::Error(error)) => return Err(BackupError::io("lock", beside)(error)),
        }
        // a folder of our own making, so that removing it can remove nothing else
        let make = || fs::DirBuilder::new().mode(0o700).create(&path);
        let mut made = make();
        if made.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists) {
            if fs::read(path.join(HBA)).is_ok_and(|text| text == HBA_LINES.as_bytes()) {
                tracing::info!(path = %path.display(), "what a proof that was killed has left is removed");
                stop(options, &path).await?;
                fs::remove_dir_all(&path).map_err(BackupError::io("remove", &path))?;
                made = make();
            } else if fs::remove_dir(&path).is_ok() {
                // it was empty
                made = make();
            }
        }
        made.map_err(BackupError::io("make", &path))?;
        let scratch = Self { path, _lock: lock };
        let hba = scratch.path.join(HBA);
        fs::write(&hba, HBA_LINES).map_err(BackupError::io("write", &hba))?;
        options.run_as.own(&hba)?;
        options.run_as.own(&scratch.path)?;
        options.run_as.check_reachable(&scratch.path)?;
        Ok(scratch)
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a scratch folder");
        }
    }
}

struct Server<'a> {
    options: &'a ProveOptions,
    scratch: &'a Scratch,
}

impl Server<'_> {
    async fn run(&self, recorded: Option<&Recorded>) -> Result<Found, BackupError> {
        let compared = match recorded {
            Some(recorded) => self.compared(recorded).await?,
            None => Compared::default(),
        };
        let begun = Instant::now();
        self.start().await?;
        let databases = self.recovered().await?;
        let replay_ms = millis(begun);
        let check_ms = self.checked().await?;
        let (rules, rules_left_out) = self.hold().await?;
        Ok(Found { compared, replay_ms, check_ms, databases, rules, rules_left_out })
    }

    /// Replays to each position of what was recorded, and compares.
    async fn compared(&self, recorded: &Recorded) -> Result<Compared, BackupError> {
        let Recorded { contents, timeline, history, end } = recorded;
        let mut compared = Compared { left_out: contents.all_left_out(), ..Compared::default() };
        let settings = self.scratch.data().join(AUTO_CONF);
        let usual = fs::read_to_string(&settings).map_err(BackupError::io("read", &settings))?;
        for database in &contents.databases {
            if let Some(why) = contents::unreachable(database, *timeline, history, *end) {
                compared.left_out.push(format!("{}: {why}", database.name));
                continue;
            }
            if database.tables.is_empty() {
                continue;
            }
            let begun = Instant::now();
            self.write(AUTO_CONF, &format!("{usual}{}", recovery::stand_at(database.at)))?;
            self.write(STANDBY, "")?;
            self.start().await?;
            self.stands_at(database.at).await?;
            compared.replay_ms += millis(begun);
            let again = contents::again(&self.params(&database.name), database, self.options.deadline)
                .await
                .map_err(|error| self.failed(&format!("{} cannot be compared: {error}", database.name)))?;
            if !again.differences.is_empty() {
                let (name, at, what) = (&database.name, database.at, again.differences.join(", "));
                return Err(self.failed(&format!("{name} is not as it was at {at}: {what}")));
            }
            compared.tables += again.tables;
            compared.rows += again.rows;
            let locked = again.locked.iter().map(|table| {
                format!("{}: {table}: locked by a transaction that had not ended at {}", database.name, database.at)
            });
            compared.left_out.extend(locked);
            shut(self.options, &self.scratch.path, "fast").await?;
            let signal = self.scratch.data().join(STANDBY);
            fs::remove_file(&signal).map_err(BackupError::io("remove", signal))?;
        }
        self.write(AUTO_CONF, &usual)?;
        Ok(compared)
    }

    /// Waits until the standby has replayed all that comes before `at`; it replays nothing that comes after.
    async fn stands_at(&self, at: Lsn) -> Result<(), BackupError> {
        let client = connect(&self.params("postgres"), Duration::from_secs(30)).await?;
        let (mut before, mut moved) = (None, Instant::now());
        loop {
            let sql = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()";
            let row = client.query_one(sql, &[]).await.map_err(PgError::from)?;
            if !row.try_get::<_, bool>(0).map_err(PgError::from)? {
                return Err(self.failed(&format!("it did not stop at {at}, where its tables were to be compared")));
            }
            let replayed: Option<PgLsn> = row.try_get(1).map_err(PgError::from)?;
            let replayed = replayed.map(|lsn| Lsn(lsn.into()));
            if replayed == Some(at) {
                return Ok(());
            }
            if replayed > Some(at) {
                return Err(self.failed(&format!("it was to stop at {at}, and went past it")));
            }
            if replayed > before {
                (before, moved) = (replayed, Instant::now());
            }
            // a standby waits for ever for a record that is not there, or is none
            if moved.elapsed() >= STANDS_STILL_MAX {
                let stands = before.map_or_else(|| "nowhere".to_owned(), |lsn| format!("at {lsn}"));
                return Err(self.failed(&format!("it was to replay up to {at}, and stands {stands}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A file of the data directory.
    fn write(&self, name: &str, text: &str) -> Result<(), BackupError> {
        let path = self.scratch.data().join(name);
        fs::write(&path, text).map_err(BackupError::io("write", &path))?;
        Ok(self.options.run_as.own(&path)?)
    }

    /// Every table and index, if there is a `pg_amcheck`.
    async fn checked(&self) -> Result<Option<u64>, BackupError> {
        let check = self.options.binaries.program("pg_amcheck");
        if !check.is_file() {
            return Ok(None);
        }
        let begun = Instant::now();
        let mut command = self.command("pg_amcheck");
        command
            .args(["--all", "--install-missing", "--heapallindexed", "--no-password"])
            .arg("--host")
            .arg(&self.scratch.path)
            .args(["--port", &PORT.to_string(), "--username", &self.options.superuser]);
        self.finish(command, "pg_amcheck").await?;
        Ok(Some(millis(begun)))
    }

    /// How many rules hold, and which are of what is not there.
    async fn hold(&self) -> Result<(usize, Vec<String>), BackupError> {
        let (mut rules, mut left_out) = (0, Vec::new());
        for rule in &self.options.rules {
            match tokio::time::timeout(self.options.deadline, self.broken(rule)).await {
                Err(_) => return Err(self.failed(&format!("the rule {} took too long", rule.name))),
                Ok(Ok(found)) if found.is_empty() => rules += 1,
                Ok(Ok(found)) => {
                    return Err(self.failed(&format!("the rule {} is broken, by {}", rule.name, found.join(", "))));
                }
                Ok(Err(error)) if error.sqlstate().is_some_and(|state| NOT_THERE.contains(&state)) => {
                    tracing::warn!(rule = rule.name, %error, "of what this backup does not have: it is not asked");
                    left_out.push(rule.name.clone());
                }
                Ok(Err(error)) => return Err(self.failed(&format!("the rule {} cannot be asked: {error}", rule.name))),
            }
        }
        Ok((rules, left_out))
    }

    /// The first rows that must not be.
    async fn broken(&self, rule: &Rule) -> Result<Vec<String>, PgError> {
        let client = connect(&self.params(&rule.database), Duration::from_secs(30)).await?;
        let sql = rule.sql.trim().trim_end_matches(';');
        let found =
            client.query(&format!("SELECT to_jsonb(found)::text FROM (\n{sql}\n) AS found LIMIT 3"), &[]).await?;
        found.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    fn params(&self, database: &str) -> ConnectParams {
        ConnectParams {
            host: self.scratch.path.display().to_string(),
            port: PORT,
            database: database.to_owned(),
            user: self.options.superuser.clone(),
            password: Secret::new(""),
            tls: None,
            application_name: "millrace prove".to_owned(),
        }
    }

    /// With nothing of the original's surroundings: no network, no TLS files, no libraries, no archive.
    async fn start(&self) -> Result<(), BackupError> {
        let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
        let scratch = &self.scratch.path;
        let mut settings = String::new();
        for (name, value) in [
            ("listen_addresses", "''".to_owned()),
            ("unix_socket_directories", quoted(scratch)),
            ("port", PORT.to_string()),
            ("hba_file", quoted(&scratch.join(HBA))),
            ("ssl", "off".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            ("shared_preload_libraries", "''".to_owned()),
            ("synchronous_standby_names", "''".to_owned()),
            ("max_logical_replication_workers", "0".to_owned()),
            ("fsync", "off".to_owned()),
        ] {
            settings.push_str(&format!("-c {name}={value} "));
        }
        let mut command = self.command("pg_ctl");
        command
            .args(["start", "--wait", "--silent", "--timeout"])
            .arg(self.options.deadline.as_secs().to_string())
            .arg("--pgdata")
            .arg(self.scratch.data())
            .arg("--log")
            .arg(scratch.join("log"))
            .arg("--options")
            .arg(settings);
        self.finish(command, "pg_ctl").await
    }

    /// Waits for the end of recovery, and counts the databases.
    async fn recovered(&self) -> Result<usize, BackupError> {
        let client = connect(&self.params("postgres"), Duration::from_secs(30)).await?;
        let until = Instant::now() + self.options.deadline;
        loop {
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(PgError::from)?;
            if !row.try_get::<_, bool>(0).map_err(PgError::from)? {
                break;
            }
            if Instant::now() >= until {
                return Err(self.failed("recovery did not end in time"));
            }
            tokio::time::sleep(LOOK).await;
        }
        let rows = client.query("SELECT FROM pg_database WHERE datallowconn", &[]).await.map_err(PgError::from)?;
        Ok(rows.len())
    }

    fn command(&self, program: &str) -> std::process::Command {
        command(self.options, &self.scratch.path, program)
    }

    async fn finish(&self, command: std::process::Command, program: &str) -> Result<(), BackupError> {
        finish(self.options, &self.scratch.path, command, program).await
    }

    fn failed(&self, what: &str) -> BackupError {
        failed(&self.scratch.path, what)
    }
}

/// Ends the server of a scratch folder; that none runs is no error.
async fn stop(options: &ProveOptions, scratch: &Path) -> Result<(), BackupError> {
    let data = scratch.join("data");
    if !data.join("postmaster.pid").exists() {
        return Ok(());
    }
    // the file alone proves nothing: after a crash of the host its number may be another process's
    let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let works_in = fs::read_link(format!("/proc/{}/cwd", pid.lines().next().unwrap_or_default().trim()));
    if works_in.ok() != data.canonicalize().ok() {
        return Ok(());
    }
    shut(options, scratch, "immediate").await
}

async fn shut(options: &ProveOptions, scratch: &Path, mode: &str) -> Result<(), BackupError> {
    let mut command = command(options, scratch, "pg_ctl");
    // its own minute is too short for a large cache that must be written
    let seconds = options.deadline.as_secs().to_string();
    command.args(["stop", "--wait", "--silent", "--mode", mode, "--timeout", &seconds, "--pgdata"]);
    command.arg(scratch.join("data"));
    finish(options, scratch, command, "pg_ctl").await
}

fn command(options: &ProveOptions, scratch: &Path, program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(options.binaries.program(program));
    options.run_as.apply(&mut command);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir(scratch)
        .stdin(Stdio::null())
        // a pipe would stay open in the server that pg_ctl leaves behind
        .stdout(Stdio::null());
    command
}

async fn finish(
    options: &ProveOptions,
    scratch: &Path,
    mut command: std::process::Command,
    program: &str,
) -> Result<(), BackupError> {
    let words = scratch.join(format!("{program}.out"));
    let file = fs::File::create(&words).map_err(BackupError::io("write", &words))?;
    let second = file.try_clone().map_err(BackupError::io("write", &words))?;
    command.stdout(file).stderr(second);
    let path = PathBuf::from(command.get_program());
    let mut command = tokio::process::Command::from(command);
    let run = command.kill_on_drop(true).status();
    let status = tokio::time::timeout(options.deadline + Duration::from_secs(30), run)
        .await
        .map_err(|_| failed(scratch, &format!("{program} did not end in time")))?
        .map_err(BackupError::io("run", path))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&words).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let first: Vec<&str> = text.lines().take(6).collect();
    Err(failed(scratch, &format!("{program} failed: {}", first.join("; "))))
}

/// With the last words of the server.
fn failed(scratch: &Path, what: &str) -> BackupError {
    let log = fs::read(scratch.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ");
    BackupError::Proof(format!("{what}; the server's log ends with: {last}"))
}
