//! Applying scripts.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use millrace_base::Backoff;
use millrace_pg::PgError;
use tokio_postgres::{Client, SimpleQueryMessage, Transaction, error::ErrorPosition};

use crate::{
    MigrateError, Migration, Report, Version,
    history::{self, History},
    plan,
    script::{self, Statement},
};

const HOLDER: &str = include_str!("../sql/lock_holder.sql");

/// The advisory lock of a database's migrations ("millrace" in ASCII).
const LOCK: i64 = 0x6d69_6c6c_7261_6365;
const LOCK_POLL: Duration = Duration::from_millis(100);
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// How long to wait for whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// For another runner to finish.
    pub runner_wait: Duration,
    /// For one lock on a table: while a script waits, the application's statements queue behind it.
    pub lock_timeout: Duration,
    /// How often a script that got no lock starts anew.
    pub lock_tries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { runner_wait: Duration::from_secs(60), lock_timeout: Duration::from_secs(3), lock_tries: 10 }
    }
}

/// Applies what is pending, with the usual waits. `installed_by` goes into the history.
///
/// # Errors
/// [`MigrateError`]; the scripts before the failed one stay applied, of the failed one nothing is kept.
pub async fn up(client: &mut Client, migrations: &[Migration], installed_by: &str) -> Result<Report, MigrateError> {
    up_with(client, migrations, installed_by, &Options::default()).await
}

/// [`up`] with waits of one's own.
///
/// # Errors
/// As [`up`].
pub async fn up_with(
    client: &mut Client,
    migrations: &[Migration],
    installed_by: &str,
    options: &Options,
) -> Result<Report, MigrateError> {
    for migration in migrations {
        check(migration)?;
    }
    lock(client, options.runner_wait).await?;
    let applied = apply(client, migrations, installed_by, options).await;
    // if the connection is lost, so is the lock; the first error says more
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await;
    let report = applied?;
    unlocked.map_err(|e| MigrateError::History(e.into()))?;
    Ok(report)
}

async fn apply(
    client: &mut Client,
    migrations: &[Migration],
    installed_by: &str,
    options: &Options,
) -> Result<Report, MigrateError> {
    History::ensure(client).await?;
    let history = History::read(client).await?;
    let mut report = Report::default();
    for migration in plan::pending(migrations, &history)? {
        patiently(client, migration, installed_by, options).await?;
        tracing::info!(script = migration.script, "migration applied");
        report.applied.push(migration.script.clone());
    }
    Ok(report)
}

/// Whatever would end the migrator's transaction, or wait for the client, is refused before anything runs.
fn check(migration: &Migration) -> Result<(), MigrateError> {
    for statement in script::statements(&migration.sql) {
        if let Some(what) = statement.forbidden() {
            return Err(MigrateError::Forbidden {
                script: migration.script.clone(),
                line: statement.line,
                what: what.to_owned(),
            });
        }
    }
    Ok(())
}

/// Polled, not waited for: a waiting lock would hold a snapshot that `CREATE INDEX CONCURRENTLY`
/// of the other runner waits for in turn.
async fn lock(client: &Client, runner_wait: Duration) -> Result<(), MigrateError> {
    let began = Instant::now();
    let failed = |e: tokio_postgres::Error| MigrateError::History(e.into());
    loop {
        let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(failed)?;
        if row.get::<_, bool>(0) {
            return Ok(());
        }
        if began.elapsed() >= runner_wait {
            let holder = client.query_opt(HOLDER, &[&LOCK]).await.map_err(failed)?;
            return Err(MigrateError::Locked { holder: holder.map(|row| row.get(0)), waited: runner_wait });
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// Gives way to the holders of locks and starts anew, some times.
async fn patiently(
    client: &mut Client,
    migration: &Migration,
    installed_by: &str,
    options: &Options,
) -> Result<(), MigrateError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match one(client, migration, installed_by, options).await {
            Err(MigrateError::Failed { source, .. })
                if source.sqlstate() == Some(LOCK_NOT_AVAILABLE) && backoff.tries() + 1 < options.lock_tries =>
            {
                tracing::info!(script = migration.script, "the migration got no lock in time and starts anew");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            ended => return ended,
        }
    }
}

/// A script and its row in the history: one transaction, rolled back when dropped.
async fn one(
    client: &mut Client,
    migration: &Migration,
    installed_by: &str,
    options: &Options,
) -> Result<(), MigrateError> {
    let failed = |line, source: PgError| MigrateError::Failed {
        script: migration.script.clone(),
        line,
        source: Box::new(source),
    };
    let version = match &migration.version {
        Some(version) => Some(Version::parse(version, &migration.script)?.to_string()),
        None => None,
    };
    let began = Instant::now();
    let transaction = client.transaction().await.map_err(|e| failed(None, e.into()))?;
    let lock_timeout = format!("SET LOCAL lock_timeout = {}", options.lock_timeout.as_millis());
    transaction.batch_execute(&lock_timeout).await.map_err(|e| failed(None, e.into()))?;
    execute(&transaction, &migration.sql).await.map_err(|(line, source)| failed(line, source))?;
    // what the script set for its session ends with it
    transaction.batch_execute("RESET ALL; RESET ROLE").await.map_err(|e| failed(None, e.into()))?;
    let took_ms = i32::try_from(began.elapsed().as_millis()).unwrap_or(i32::MAX);
    history::record(&transaction, migration, version.as_deref(), installed_by, took_ms)
        .await
        .map_err(|e| failed(None, e))?;
    // constraints that were deferred fail here
    transaction.commit().await.map_err(|e| failed(None, e.into()))
}

/// Runs the whole script as one message, and finds the line of what failed.
async fn execute(transaction: &Transaction<'_>, sql: &str) -> Result<(), (Option<usize>, PgError)> {
    let mut done = 0usize;
    let run = async {
        let messages = transaction.client().simple_query_raw(sql).await?;
        futures::pin_mut!(messages);
        while let Some(message) = messages.try_next().await? {
            if matches!(message, SimpleQueryMessage::CommandComplete(_)) {
                done += 1;
            }
        }
        Ok(())
    };
    let ended: Result<(), tokio_postgres::Error> = run.await;
    ended.map_err(|error| (line_of(&error, sql, done), error.into()))
}

/// Where the server points; else where the statement begins that was not done.
fn line_of(error: &tokio_postgres::Error, sql: &str, done: usize) -> Option<usize> {
    let db = error.as_db_error()?;
    if let Some(ErrorPosition::Original(position)) = db.position() {
        let before = usize::try_from(*position).ok()?.saturating_sub(1);
        return Some(1 + sql.chars().take(before).filter(|c| *c == '\n').count());
    }
    script::statements(sql).get(done).map(|Statement { line, .. }| *line)
}
