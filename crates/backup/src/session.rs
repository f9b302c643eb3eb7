//! The SQL session of a backup: open from before its start until after its stop, because the server ends the backup
//! with it; and so the lock that keeps a second one away can never be left behind.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_base::{Lsn, Micros};
use millrace_pg::{ConnectParams, Connection, PgError, connect};

use crate::error::BackupError;

const CONNECT: Duration = Duration::from_secs(10);
/// For a replica to replay a checkpoint that was asked for.
const REPLAY_MAX: Duration = Duration::from_secs(30);
/// `hashtext('millrace backup')` would do as well: any number that no one else takes.
const LOCK: i64 = 0x6d69_6c6c_6261_636b;

/// What is to be known of a server.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) version: u32,
    pub(crate) system_id: u64,
    pub(crate) checksums: bool,
    pub(crate) wal_segment_bytes: u64,
    pub(crate) data_directory: String,
    pub(crate) in_recovery: bool,
}

/// The end of a backup, as the server says it.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) lsn: Lsn,
    pub(crate) at: Micros,
    pub(crate) backup_label: String,
    pub(crate) tablespace_map: String,
}

#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    pub(crate) facts: Facts,
}

impl Session {
    /// Connects, takes the lock and looks whether the server can be backed up at all.
    pub(crate) async fn open(params: &ConnectParams) -> Result<Self, BackupError> {
        let connection = connect(params, CONNECT).await?;
        connection
            .batch_execute("SET statement_timeout = 0; SET idle_session_timeout = 0; SET lock_timeout = 0")
            .await
            .map_err(PgError::from)?;
        let row = connection.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(PgError::from)?;
        if !row.try_get::<_, bool>(0).map_err(PgError::from)? {
            return Err(BackupError::Busy);
        }
        let row = connection.query_one(include_str!("../sql/facts.sql"), &[]).await.map_err(PgError::from)?;
        let unfit = |reason: String| Err(BackupError::Unfit(reason));
        let number = |name: &str| row.try_get::<_, i64>(name).map_err(PgError::from);
        let (version, block_bytes): (i32, i32) =
            (row.try_get("version").map_err(PgError::from)?, row.try_get("block_bytes").map_err(PgError::from)?);
        let wal_level: String = row.try_get("wal_level").map_err(PgError::from)?;
        if version < 150_000 {
            return unfit(format!("it is PostgreSQL {}; backups need 15 or later", version / 10_000));
        }
        if wal_level == "minimal" {
            return unfit("its wal_level is minimal: the log does not hold all changes".to_owned());
        }
        if block_bytes != 8192 || number("file_blocks")? != 131_072 {
            return unfit("it was built with other sizes of blocks or files than usual".to_owned());
        }
        let facts = Facts {
            version: u32::try_from(version).unwrap_or(0),
            // PostgreSQL shows the 64 bits as a signed number
            system_id: number("system_id")?.cast_unsigned(),
            checksums: row.try_get("checksums").map_err(PgError::from)?,
            wal_segment_bytes: number("wal_segment_bytes")?.cast_unsigned(),
            data_directory: row.try_get("data_directory").map_err(PgError::from)?,
            in_recovery: row.try_get("in_recovery").map_err(PgError::from)?,
        };
        Ok(Self { connection, facts })
    }

    /// Asks the primary for a checkpoint and waits until this replica has replayed it, so that it can be its restart point.
    /// Only the backup's length depends on it: what fails is told and no more.
    pub(crate) async fn catch_up_with_checkpoint(&self, primary: &ConnectParams) -> Result<(), BackupError> {
        if !self.facts.in_recovery {
            return Ok(());
        }
        let asked = async {
            let primary = connect(primary, CONNECT).await?;
            primary.batch_execute("CHECKPOINT").await.map_err(PgError::from)?;
            let row = primary.query_one(include_str!("../sql/end.sql"), &[]).await.map_err(PgError::from)?;
            row.try_get::<_, tokio_postgres::types::PgLsn>("lsn").map_err(PgError::from)
        };
        let end = match asked.await {
            Ok(end) => end,
            Err(error) => {
                tracing::warn!(%error, "the primary gave no checkpoint: the backup begins where the replica's last one was");
                return Ok(());
            }
        };
        let until = tokio::time::Instant::now() + REPLAY_MAX;
        while tokio::time::Instant::now() < until {
            let row =
                self.connection.query_one(include_str!("../sql/replayed.sql"), &[&end]).await.map_err(PgError::from)?;
            if row.try_get("reached").map_err(PgError::from)? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::warn!("the replica has not replayed the primary's checkpoint in time");
        Ok(())
    }

    /// Begins the backup: where replay starts, on which timeline, and when.
    pub(crate) async fn start(&self, label: &str, fast: bool) -> Result<(Lsn, u32, Micros), BackupError> {
        let row = self
            .connection
            .query_one(include_str!("../sql/start.sql"), &[&label, &fast])
            .await
            .map_err(PgError::from)?;
        let lsn: tokio_postgres::types::PgLsn = row.try_get("lsn").map_err(PgError::from)?;
        let at: SystemTime = row.try_get("at").map_err(PgError::from)?;
        let sql = include_str!("../sql/checkpoint_timeline.sql");
        let row = self.connection.query_one(sql, &[]).await.map_err(PgError::from)?;
        let timeline: i32 = row.try_get(0).map_err(PgError::from)?;
        Ok((Lsn(lsn.into()), timeline.cast_unsigned(), micros(at)))
    }

    pub(crate) async fn stop(&self) -> Result<Stopped, BackupError> {
        let row = self.connection.query_one(include_str!("../sql/stop.sql"), &[]).await.map_err(PgError::from)?;
        let lsn: tokio_postgres::types::PgLsn = row.try_get("lsn").map_err(PgError::from)?;
        Ok(Stopped {
            lsn: Lsn(lsn.into()),
            at: micros(row.try_get("at").map_err(PgError::from)?),
            backup_label: row.try_get("labelfile").map_err(PgError::from)?,
            tablespace_map: row.try_get::<_, Option<String>>("spcmapfile").map_err(PgError::from)?.unwrap_or_default(),
        })
    }

    /// Gives the lock back: the server ends a session some time after its connection is closed, and until then the next
    /// backup would be told that this one goes on.
    pub(crate) async fn release(self) {
        let unlock = self.connection.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]);
        match tokio::time::timeout(CONNECT, unlock).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the session of a backup is gone, and its lock with it"),
            Err(_) => tracing::warn!("the server does not answer: the lock of a backup goes with its session"),
        }
    }
}

fn micros(at: SystemTime) -> Micros {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The timeline in a backup_label, which is the one that counts.
pub(crate) fn timeline_of(backup_label: &str) -> Option<u32> {
    backup_label.lines().find_map(|line| line.strip_prefix("START TIMELINE: "))?.trim().parse().ok()
}
