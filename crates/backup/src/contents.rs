//! What the tables held at one position of the log: the rows of each counted and digested on the primary after a backup, and
//! again by a proof on the restored server, replayed to that very position. So a page that a backup missed, or that a
//! replay got wrong, is found even where every page and index is well-formed.
//!
//! The position and the snapshot come from a temporary logical slot: the snapshot shows exactly the transactions whose
//! commit lies before the slot's consistent point (PostgreSQL 15, 55.4 `CREATE_REPLICATION_SLOT`), and a server that
//! replays up to there, and not the record that begins there, shows the same. What is not of a snapshot is left out:
//! sequences, and tables that were truncated, rewritten or given other columns while they were read.
//!
//! A digest is the sum of `hashtextextended` over the text of each row: it does not depend on the order of rows, and needs no
//! sorting.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_base::{
    Lsn,
    ident::{Ident, Literal},
};
use millrace_pg::{
    ConnectParams, Connection, PgError, connect,
    replication::{RawConnection, SESSION_SETTINGS},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    ProgressFn, Step, catalog,
    create::{label, wait_for_log},
    error::BackupError,
    manifest::{self, FORMAT, Manifest},
    repo::{Listed, Repository},
    seal, wal,
};

const CONNECT: Duration = Duration::from_secs(10);
/// A slot waits for every transaction that is open; so long for each.
const SLOT_MAX: Duration = Duration::from_secs(10);
const SLOT_MIN: Duration = Duration::from_secs(1);
/// And so long for a table that somebody has locked.
const LOCK_MAX: Duration = Duration::from_secs(1);
/// An object's name begins so.
const NAME: &str = "contents";
const NO_TIME: &str = "no time was left for it";
const LOCKED: &str = "it was locked";
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// Differences that are named.
const NAMED_MAX: usize = 3;

/// What was recorded with a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    pub(crate) format: u32,
    /// The backup's.
    pub label: String,
    /// Of each database that has tables, in the order of positions.
    pub databases: Vec<Database>,
    /// Databases that could not be read, and why.
    pub left_out: BTreeMap<String, String>,
}

/// The tables of a database at one position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub name: String,
    pub timeline: u32,
    /// Exactly the transactions whose commit record begins before this.
    pub at: Lsn,
    /// By quoted name with schema; a partition is a table by itself.
    pub tables: BTreeMap<String, Table>,
    /// Tables that were there and were not read, and why.
    pub left_out: BTreeMap<String, String>,
}

/// What a table held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub rows: u64,
    /// A decimal number.
    pub digest: String,
}

impl Contents {
    #[must_use]
    pub fn tables(&self) -> usize {
        self.databases.iter().map(|database| database.tables.len()).sum()
    }

    #[must_use]
    pub fn rows(&self) -> u64 {
        self.databases.iter().flat_map(|database| database.tables.values()).map(|table| table.rows).sum()
    }

    /// All that was not read, as `database` or `database: table`, each with the reason.
    #[must_use]
    pub fn all_left_out(&self) -> Vec<String> {
        let databases = self.left_out.iter().map(|(name, why)| format!("{name}: {why}"));
        let tables = self.databases.iter().flat_map(|database| {
            database.left_out.iter().map(|(table, why)| format!("{}: {table}: {why}", database.name))
        });
        databases.chain(tables).collect()
    }
}

/// A table as the catalogs have it. Whatever changes what its rows read as, other than changing rows, changes this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    name: String,
    oid: u32,
    /// Another one after a truncation or rewriting.
    file: u32,
    columns: String,
}

/// How tables are read.
#[derive(Debug, Clone)]
pub struct RecordOptions {
    /// Of a superuser, or one who may read every table and make slots.
    pub primary: ConnectParams,
    /// No longer than this; what there was no time for is named in the result.
    pub within: Duration,
    /// How long the log's archive may take to bring what a proof needs to compare. If that is too short, a proof that is made
    /// before it has come cannot.
    pub wal_wait: Duration,
}

/// Reads the tables of one database of the primary after the other, the small ones of each first, and keeps what they held
/// with the backup. While it reads, rows that are deleted stay for vacuum to remove later, and whoever wants to truncate or
/// alter the table that is read waits.
///
/// # Errors
/// If the primary is not the backup's or cannot be reached at first, or the repository cannot be written.
pub async fn record(
    repo: &Repository,
    backup: &Manifest,
    options: &RecordOptions,
    progress: &ProgressFn<'_>,
) -> Result<Contents, BackupError> {
    let until = Instant::now() + options.within;
    let (mut databases, mut left_out) = (Vec::new(), BTreeMap::new());
    for name in names(&options.primary).await? {
        let params = options.primary.to_database(&name);
        let read = async {
            let client = session(&params).await?;
            if known(&client).await?.is_empty() {
                return Ok(None);
            }
            if left(until).is_zero() {
                return Ok(Some(Err(NO_TIME.to_owned())));
            }
            database(backup, (client, &params), until, progress).await.map(|read| Some(Ok(read)))
        };
        match read.await {
            Ok(Some(Ok(read))) => databases.push(read),
            Ok(Some(Err(why))) => _ = left_out.insert(name, why),
            Ok(None) => {}
            // whatever it is: what was read of others is kept
            Err(BackupError::Sql(error)) => _ = left_out.insert(name, error.to_string()),
            Err(error) => return Err(error),
        }
    }
    databases.sort_by_key(|database| database.at);
    let contents = Contents { format: FORMAT, label: backup.label.clone(), databases, left_out };
    keep(repo, backup, &contents).await?;
    let label = &backup.label;
    let (tables, rows, left_out) = (contents.tables(), contents.rows(), contents.all_left_out().len());
    tracing::info!(label, tables, rows, left_out, "what the tables held is recorded");
    if let Some(last) = contents.databases.last() {
        progress(Step::WaitForLog { until: last.at });
        let range = (last.timeline, backup.stop, last.at);
        match wait_for_log(repo, backup.system_id, range, options.wal_wait).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(label, until = %last.at, "the log up to where tables were read is not archived yet")
            }
            // it is kept, and the log may come all the same
            Err(error) => {
                tracing::warn!(label, %error, "whether the log up to where tables were read is archived is not known")
            }
        }
    }
    Ok(contents)
}

async fn names(primary: &ConnectParams) -> Result<Vec<String>, BackupError> {
    let client = connect(primary, CONNECT).await?;
    let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(PgError::from)?;
    if row.try_get(0).map_err(PgError::from)? {
        return Err(BackupError::Unfit(format!("the server at {} is a replica", primary.address())));
    }
    let sql = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname";
    let rows = client.query(sql, &[]).await.map_err(PgError::from)?;
    rows.iter().map(|row| Ok(row.try_get(0).map_err(PgError::from)?)).collect()
}

async fn database(
    backup: &Manifest,
    (client, params): (Connection, &ConnectParams),
    until: Instant,
    progress: &ProgressFn<'_>,
) -> Result<Database, BackupError> {
    let mut exporter = RawConnection::connect_replication(params, CONNECT).await?;
    let identity = exporter.identify_system().await?;
    if identity.system_id != backup.system_id {
        let what = format!("the server at {} is of another cluster than {}", params.address(), backup.label);
        return Err(BackupError::Unfit(what));
    }
    // never the same twice: a slot goes with its session, which the server ends some time after we do
    let name = format!("millrace_{NAME}_{}", label().to_ascii_lowercase().replace('-', "_"));
    let slot = exporter.create_logical_slot(&name, true, left(until).clamp(SLOT_MIN, SLOT_MAX)).await?;
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        Literal(&slot.snapshot)
    );
    client.batch_execute(&begin).await.map_err(PgError::from)?;
    // the snapshot is ours now, and the slot would keep log
    drop(exporter);
    let then = known(&client).await?;
    let (mut tables, mut left_out) = (BTreeMap::new(), BTreeMap::new());
    for (done, table) in then.iter().enumerate() {
        progress(Step::Tables { done, total: then.len() });
        match guarded(&client, table, until).await? {
            Ok(read) => _ = tables.insert(table.name.clone(), read),
            Err(why) => _ = left_out.insert(table.name.clone(), why),
        }
    }
    client.batch_execute("COMMIT").await.map_err(PgError::from)?;
    // reading saw columns and files of the moment, not of the snapshot
    let now: BTreeSet<Known> = known(&client).await?.into_iter().collect();
    for changed in then.iter().filter(|table| !now.contains(table)) {
        if tables.remove(&changed.name).is_some() {
            left_out.insert(changed.name.clone(), "it was changed by more than its rows meanwhile".to_owned());
        }
    }
    let name = params.database.clone();
    Ok(Database { name, timeline: identity.timeline, at: slot.consistent_point, tables, left_out })
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Texts of values do not depend on the server's settings, nor on who asks.
async fn session(params: &ConnectParams) -> Result<Connection, BackupError> {
    let client = connect(params, CONNECT).await?;
    let own = [("search_path", ""), ("jit", "off"), ("max_parallel_workers_per_gather", "0")];
    let set = SESSION_SETTINGS.iter().chain(&own).filter(|(name, _)| *name != "client_encoding");
    let set: String = set.map(|(name, value)| format!("SET {} = {};", Ident(name), Literal(value))).collect();
    client.batch_execute(&set).await.map_err(PgError::from)?;
    client.batch_execute(include_str!("../sql/no_timeouts.sql")).await.map_err(PgError::from)?;
    Ok(client)
}

/// Tables with rows that are logged, the small ones first.
async fn known(client: &Connection) -> Result<Vec<Known>, BackupError> {
    let rows = client.query(include_str!("../sql/tables.sql"), &[]).await.map_err(PgError::from)?;
    let known = |row: &tokio_postgres::Row| {
        Ok(Known {
            name: row.try_get("name")?,
            oid: row.try_get("oid")?,
            file: row.try_get("file")?,
            columns: row.try_get("columns")?,
        })
    };
    Ok(rows.iter().map(known).collect::<Result<_, tokio_postgres::Error>>().map_err(PgError::from)?)
}

/// Reads a table within the transaction, which survives whatever comes of it; or why it could not be read. Its lock is
/// given back at once: whoever wants to change the table does not wait for the others.
async fn guarded(client: &Connection, table: &Known, until: Instant) -> Result<Result<Table, String>, BackupError> {
    let within = left(until);
    if within.is_zero() {
        return Ok(Err(NO_TIME.to_owned()));
    }
    let begin = format!(
        "SAVEPOINT table_read; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
        within.as_millis().max(1),
        LOCK_MAX.as_millis()
    );
    client.batch_execute(&begin).await.map_err(PgError::from)?;
    let found = match digest(client, &table.name).await {
        Ok(found) => Ok(found),
        Err(error) => match error.sqlstate() {
            // query_canceled: by its timeout, or by somebody
            Some("57014") if left(until).is_zero() => Err(NO_TIME.to_owned()),
            Some(LOCK_NOT_AVAILABLE) => Err(LOCKED.to_owned()),
            // an administrator ends the session, or the server ends
            Some(state) if !state.starts_with("57P") => Err(error.to_string()),
            _ => return Err(error.into()),
        },
    };
    client.batch_execute("ROLLBACK TO table_read; RELEASE table_read").await.map_err(PgError::from)?;
    Ok(found)
}

async fn digest(client: &Connection, table: &str) -> Result<Table, PgError> {
    // a column may have any name: `t.*` is the table's whatever it is
    let sql =
        format!("SELECT count(*), coalesce(sum(hashtextextended((t.*)::text, 0)), 0)::text FROM ONLY {table} AS t");
    let row = client.query_one(&sql, &[]).await?;
    Ok(Table { rows: row.try_get::<_, i64>(0)?.cast_unsigned(), digest: row.try_get(1)? })
}

/// The name tells the content, and what is stored, as those of the log's files do.
async fn keep(repo: &Repository, backup: &Manifest, contents: &Contents) -> Result<(), BackupError> {
    let document = manifest::to_document(contents)?;
    let sealed = repo.sealing.seal(&document)?;
    let (content, stored) = (wal::short_hash(&document), wal::short_hash(&sealed));
    let place = catalog::folder(backup.system_id, &backup.label);
    repo.create(&format!("{place}/{NAME}.{content}.{stored}.{}", repo.sealing.extension()), sealed).await
}

/// The objects of this kind among a backup's.
pub(crate) async fn stored(repo: &Repository, backup: &Manifest) -> Result<Vec<wal::Stored>, BackupError> {
    let listed = repo.list(&catalog::folder(backup.system_id, &backup.label)).await?;
    let named = |listed: &Listed| {
        let (what, stored) = wal::parse_name(listed.name.rsplit('/').next()?, listed)?;
        (what == NAME).then_some(stored)
    };
    Ok(listed.iter().filter_map(named).collect())
}

/// What was recorded with a backup, if anything was.
///
/// # Errors
/// If the repository cannot be read, or what was recorded is damaged.
pub async fn load(repo: &Repository, backup: &Manifest) -> Result<Option<Contents>, BackupError> {
    let Some(stored) = stored(repo, backup).await?.into_iter().max_by_key(|stored| stored.written) else {
        return Ok(None);
    };
    let sealed = repo.get_whole(&stored.object, &stored.stored_hash).await?;
    let document = seal::unseal(&stored.object, &sealed, &repo.keys)?;
    let contents: Contents = manifest::from_document(&stored.object, &document)?;
    match contents.label == backup.label {
        true => Ok(Some(contents)),
        false => Err(BackupError::damaged(stored.object, "it is of another backup")),
    }
}

/// What came of reading the tables again.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// Tables and rows that are as they were.
    pub(crate) tables: usize,
    pub(crate) rows: u64,
    /// What is not, the first of it.
    pub(crate) differences: Vec<String>,
    /// Tables that are locked, for ever: by a transaction that had not ended at the position.
    pub(crate) locked: Vec<String>,
}

/// Reads the same tables of a server that stands at the database's position.
pub(crate) async fn again(params: &ConnectParams, then: &Database, within: Duration) -> Result<Again, BackupError> {
    let until = Instant::now() + within;
    let client = session(params).await?;
    let there: BTreeSet<String> = known(&client).await?.into_iter().map(|known| known.name).collect();
    let was = |name: &&String| then.tables.contains_key(*name) || then.left_out.contains_key(*name);
    let new = there.iter().filter(|name| !was(name)).take(NAMED_MAX);
    let mut found =
        Again { differences: new.map(|name| format!("{name} is there, and was not")).collect(), ..Again::default() };
    for (name, table) in &then.tables {
        if found.differences.len() >= NAMED_MAX {
            break;
        }
        if !there.contains(name) {
            found.differences.push(format!("{name} is not there, and had {} rows", table.rows));
            continue;
        }
        let (left, lock) = (left(until).as_millis().max(1), LOCK_MAX.as_millis());
        let set = format!("SET statement_timeout = {left}; SET lock_timeout = {lock}");
        client.batch_execute(&set).await.map_err(PgError::from)?;
        match digest(&client, name).await {
            Ok(now) if now == *table => {
                found.tables += 1;
                found.rows += now.rows;
            }
            Ok(now) if now.rows != table.rows => {
                found.differences.push(format!("{name} has {} rows, and had {}", now.rows, table.rows));
            }
            Ok(now) => {
                let rows = now.rows;
                found.differences.push(format!("{name} has as many rows as it had, {rows}, and not the same"));
            }
            Err(error) if error.sqlstate() == Some(LOCK_NOT_AVAILABLE) => found.locked.push(name.clone()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Why a restore along `timeline`, whose history is `history` and whose log ends at `end`, cannot be compared with what
/// was recorded. Pure.
pub(crate) fn unreachable(database: &Database, timeline: u32, history: &wal::History, end: Lsn) -> Option<String> {
    let Database { at, timeline: of, .. } = database;
    if *of != timeline && history.left(*of).is_none_or(|left| left < *at) {
        return Some(format!("it was read at {at} of timeline {of}, which is not on the way"));
    }
    (end < *at).then(|| format!("it was read at {at}, and the log ends at {end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(timeline: u32, at: u64) -> Database {
        Database { name: "app".into(), timeline, at: Lsn(at), tables: BTreeMap::new(), left_out: BTreeMap::new() }
    }

    #[test]
    fn only_what_lies_on_the_way_is_compared() {
        let none = wal::History::default();
        assert_eq!(unreachable(&database(1, 100), 1, &none, Lsn(100)), None, "the end itself is reached");
        assert!(unreachable(&database(1, 100), 1, &none, Lsn(99)).unwrap().contains("the log ends at 0/63"));
        let left_at_c8 = wal::History::parse("1\t0/C8\tx\n").unwrap();
        assert_eq!(unreachable(&database(1, 200), 2, &left_at_c8, Lsn(999)), None);
        assert!(unreachable(&database(1, 201), 2, &left_at_c8, Lsn(999)).unwrap().contains("not on the way"));
        assert!(unreachable(&database(3, 100), 2, &left_at_c8, Lsn(999)).is_some());
    }

    #[test]
    fn what_was_left_out_is_named() {
        let mut app = database(1, 1);
        app.tables.insert("public.t".into(), Table { rows: 3, digest: "5".into() });
        app.left_out.insert("public.u".into(), NO_TIME.into());
        let left_out = [("other".to_owned(), "no slot".to_owned())].into();
        let contents = Contents { format: FORMAT, label: "a".into(), databases: vec![app], left_out };
        assert_eq!((contents.tables(), contents.rows()), (1, 3));
        assert_eq!(contents.all_left_out(), ["other: no slot", "app: public.u: no time was left for it"]);
    }
}
