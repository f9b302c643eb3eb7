//! What a server says of itself: typed reads of its catalogs, the SQL of each in `sql/`.
//!
//! Reads only, apart from [`create_physical_slot`], [`drop_slot`], [`promote`] and [`end_clients`].

use std::{net::SocketAddr, time::Duration};

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Row, types::PgLsn};

use crate::error::PgError;

/// What a server is and how far it has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    pub in_recovery: bool,
    pub system_id: u64,
    pub timeline: u32,
    /// Written (primary) or replayed (replica).
    pub lsn: Lsn,
    /// Replica: received and synced.
    pub received_lsn: Option<Lsn>,
    pub started_at: Micros,
    /// Replica: log arrives now.
    pub streaming: bool,
    /// Replica: it is set to receive log from nobody, and no process of it does.
    pub deaf: bool,
    /// Replica: the upstream's slot in use.
    pub receiver_slot: Option<String>,
    /// Whom commits wait for, as it is set.
    pub synchronous_standby_names: String,
    /// Settings that a restart would change.
    pub pending_restart: Vec<String>,
}

/// One replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    pub database: Option<String>,
    /// It goes with its session.
    pub temporary: bool,
    pub active: bool,
    pub active_pid: Option<u32>,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub retained_bytes: Option<u64>,
    /// What may still be written before the slot is given up; `None` without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved`, `lost`; `None` before the slot keeps anything.
    pub wal_status: Option<String>,
}

impl Slot {
    /// The log that its user needs is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }

    /// It is for decoding, outlives its session, and can still be used.
    #[must_use]
    pub fn is_kept_logical(&self) -> bool {
        // one without a confirmed position is still being made
        let made = self.confirmed_flush_lsn.is_some();
        self.slot_type == "logical" && made && !self.temporary && !self.is_lost()
    }
}

/// A receiver of log, as its sender sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standby {
    pub pid: u32,
    pub application_name: String,
    pub client_address: Option<String>,
    pub role: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    pub sync_state: Option<String>,
    pub sent_lsn: Option<Lsn>,
    pub write_lsn: Option<Lsn>,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    pub replay_lag_ms: Option<u64>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseSize {
    pub name: String,
    pub size_bytes: u64,
}

/// A client's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    pub pid: u32,
    pub database: Option<String>,
    pub role: Option<String>,
    pub application_name: Option<String>,
    pub client_address: Option<String>,
    pub state: Option<String>,
    pub wait_event_type: Option<String>,
    pub wait_event: Option<String>,
    pub transaction_age_ms: Option<u64>,
    pub statement_age_ms: Option<u64>,
    /// The running or last statement, its first 1,000 characters. It may hold values of rows: show
    /// it to administrators, never log it.
    pub statement: Option<String>,
    /// Sessions that this one waits for.
    pub blocked_by: Vec<u32>,
}

/// A lock that someone waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lock {
    pub pid: u32,
    pub lock_type: String,
    pub mode: String,
    pub granted: bool,
    /// If it is in the connected database.
    pub relation: Option<String>,
    pub waiting_ms: Option<u64>,
}

/// What the server is and how far it has got.
///
/// # Errors
/// [`PgError`]; this goes for every function here.
pub async fn server_state(client: &Client) -> Result<ServerState, PgError> {
    let row = client.query_one(include_str!("../sql/server_state.sql"), &[]).await?;
    Ok(ServerState {
        in_recovery: row.try_get("in_recovery")?,
        // PostgreSQL shows the unsigned identifier as a signed number
        system_id: row.try_get::<_, i64>("system_id")?.cast_unsigned(),
        timeline: row.try_get::<_, i32>("timeline")?.cast_unsigned(),
        lsn: lsn(&row, "lsn")?.unwrap_or_default(),
        received_lsn: lsn(&row, "received_lsn")?,
        started_at: Micros(row.try_get("started_at")?),
        streaming: row.try_get("streaming")?,
        deaf: row.try_get("deaf")?,
        receiver_slot: row.try_get("receiver_slot")?,
        synchronous_standby_names: row.try_get("synchronous_standby_names")?,
        pending_restart: row.try_get("pending_restart")?,
    })
}

/// Where the server is in the log: the end of it on a primary, what is replayed on a replica.
///
/// # Errors
/// See [`server_state`].
pub async fn wal_position(client: &Client) -> Result<Lsn, PgError> {
    let row = client.query_one(include_str!("../sql/wal_position.sql"), &[]).await?;
    Ok(lsn(&row, "lsn")?.unwrap_or_default())
}

/// All replication slots, by name.
///
/// # Errors
/// See [`server_state`].
pub async fn slots(client: &Client) -> Result<Vec<Slot>, PgError> {
    all(client, include_str!("../sql/replication_slots.sql"), |row| {
        Ok(Slot {
            name: row.try_get("slot_name")?,
            slot_type: row.try_get("slot_type")?,
            database: row.try_get("database")?,
            temporary: row.try_get("temporary")?,
            active: row.try_get("active")?,
            active_pid: pid(row, "active_pid")?,
            restart_lsn: lsn(row, "restart_lsn")?,
            confirmed_flush_lsn: lsn(row, "confirmed_flush_lsn")?,
            retained_bytes: unsigned(row, "retained_bytes")?,
            safe_wal_bytes: row.try_get("safe_wal_size")?,
            wal_status: row.try_get("wal_status")?,
        })
    })
    .await
}

/// All receivers of log, by name.
///
/// # Errors
/// See [`server_state`].
pub async fn standbys(client: &Client) -> Result<Vec<Standby>, PgError> {
    all(client, include_str!("../sql/replication.sql"), |row| {
        Ok(Standby {
            pid: pid(row, "pid")?.unwrap_or_default(),
            application_name: row.try_get("application_name")?,
            client_address: row.try_get("client_address")?,
            role: row.try_get("role")?,
            state: row.try_get("state")?,
            sync_state: row.try_get("sync_state")?,
            sent_lsn: lsn(row, "sent_lsn")?,
            write_lsn: lsn(row, "write_lsn")?,
            flush_lsn: lsn(row, "flush_lsn")?,
            replay_lsn: lsn(row, "replay_lsn")?,
            replay_lag_ms: unsigned(row, "replay_lag_ms")?,
        })
    })
    .await
}

/// All databases that can be connected to, by name.
///
/// # Errors
/// See [`server_state`].
pub async fn database_sizes(client: &Client) -> Result<Vec<DatabaseSize>, PgError> {
    all(client, include_str!("../sql/database_sizes.sql"), |row| {
        Ok(DatabaseSize { name: row.try_get("name")?, size_bytes: unsigned(row, "size_bytes")?.unwrap_or_default() })
    })
    .await
}

/// Clients' sessions, the oldest transaction first.
///
/// # Errors
/// See [`server_state`].
pub async fn sessions(client: &Client) -> Result<Vec<Session>, PgError> {
    all(client, include_str!("../sql/sessions.sql"), |row| {
        let blocked_by: Vec<i32> = row.try_get("blocked_by")?;
        Ok(Session {
            pid: pid(row, "pid")?.unwrap_or_default(),
            database: row.try_get("database")?,
            role: row.try_get("role")?,
            application_name: row.try_get("application_name")?,
            client_address: row.try_get("client_address")?,
            state: row.try_get("state")?,
            wait_event_type: row.try_get("wait_event_type")?,
            wait_event: row.try_get("wait_event")?,
            transaction_age_ms: unsigned(row, "transaction_age_ms")?,
            statement_age_ms: unsigned(row, "statement_age_ms")?,
            statement: row.try_get("statement")?,
            // 0 stands for a prepared transaction
            blocked_by: blocked_by.into_iter().filter(|pid| *pid > 0).map(i32::cast_unsigned).collect(),
        })
    })
    .await
}

/// Locks that are waited for, with those that hold the same.
///
/// # Errors
/// See [`server_state`].
pub async fn locks(client: &Client) -> Result<Vec<Lock>, PgError> {
    all(client, include_str!("../sql/locks.sql"), |row| {
        Ok(Lock {
            pid: pid(row, "pid")?.unwrap_or_default(),
            lock_type: row.try_get("lock_type")?,
            mode: row.try_get("mode")?,
            granted: row.try_get("granted")?,
            relation: row.try_get("relation")?,
            waiting_ms: unsigned(row, "waiting_ms")?,
        })
    })
    .await
}

/// Makes a physical slot that keeps log from now on. That it exists is no error.
///
/// # Errors
/// See [`server_state`].
pub async fn create_physical_slot(client: &Client, name: &str) -> Result<(), PgError> {
    match client.execute("SELECT pg_create_physical_replication_slot($1, true)", &[&name]).await {
        Err(error) if error.code() != Some(&tokio_postgres::error::SqlState::DUPLICATE_OBJECT) => Err(error.into()),
        _ => Ok(()),
    }
}

/// A client that has been ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub application_name: String,
    /// Where it came from: `10.0.0.7:40216`.
    pub from: String,
}

/// Ends the clients that connect from there, apart from those whose commit waits for a replica.
///
/// # Errors
/// See [`server_state`].
pub async fn end_clients(client: &Client, from: &[SocketAddr]) -> Result<Vec<Ended>, PgError> {
    let addresses: Vec<String> = from.iter().map(|from| from.ip().to_string()).collect();
    let ports: Vec<i32> = from.iter().map(|from| i32::from(from.port())).collect();
    let rows = client.query(include_str!("../sql/end_clients.sql"), &[&addresses, &ports]).await?;
    let ended = |row: &Row| {
        let (address, port): (String, i32) = (row.try_get("address")?, row.try_get("port")?);
        let (pid, application_name) = (row.try_get("pid")?, row.try_get("application_name")?);
        Ok(Ended { pid, application_name, from: format!("{address}:{port}") })
    };
    rows.iter().map(ended).collect()
}

/// Where a slot begins to keep log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotBegin {
    pub system_id: u64,
    /// The primary's, at this moment.
    pub timeline: u32,
    pub lsn: Lsn,
}

/// Where a slot of a primary begins; `None` if it keeps nothing, or does not exist.
///
/// # Errors
/// See [`server_state`].
pub async fn slot_begin(client: &Client, name: &str) -> Result<Option<SlotBegin>, PgError> {
    let Some(row) = client.query_opt(include_str!("../sql/slot_begin.sql"), &[&name]).await? else { return Ok(None) };
    let system_id: String = row.try_get("system_id")?;
    let timeline: String = row.try_get("timeline")?;
    let parsed = system_id.parse().ok().zip(u32::from_str_radix(&timeline, 16).ok());
    let lsn: PgLsn = row.try_get("restart_lsn")?;
    Ok(parsed.map(|(system_id, timeline)| SlotBegin { system_id, timeline, lsn: Lsn(lsn.into()) }))
}

/// Moves a logical slot on, on a replica too: what lies before `to` is not needed from it any more.
///
/// # Errors
/// See [`server_state`]; if the slot is in use, or the log from its position on is not there.
pub async fn advance_slot(client: &Client, name: &str, to: Lsn) -> Result<(), PgError> {
    client.query_one("SELECT pg_replication_slot_advance($1, $2)", &[&name, &PgLsn::from(to.0)]).await?;
    Ok(())
}

/// What the server keeps of a slot on its disk, for [`crate::ServerSpec::write_slot`] of another server.
///
/// # Errors
/// See [`server_state`].
pub async fn slot_file(client: &Client, name: &str) -> Result<Vec<u8>, PgError> {
    let row = client.query_one("SELECT pg_read_binary_file('pg_replslot/' || $1 || '/state')", &[&name]).await?;
    Ok(row.try_get(0)?)
}

/// The snapshots that decoding begins with, by the names of their files: a slot begins at one of them.
///
/// # Errors
/// See [`server_state`].
pub async fn logical_snapshots(client: &Client) -> Result<Vec<(String, Vec<u8>)>, PgError> {
    all(client, include_str!("../sql/logical_snapshots.sql"), |row| Ok((row.try_get("name")?, row.try_get("bytes")?)))
        .await
}

/// Takes back what was said of a setting by `ALTER SYSTEM`: the configuration file holds again.
///
/// # Errors
/// See [`server_state`].
pub async fn reset_setting(client: &Client, name: &str) -> Result<(), PgError> {
    client.batch_execute(&format!("ALTER SYSTEM RESET \"{name}\"")).await?;
    client.query_one("SELECT pg_reload_conf()", &[]).await?;
    Ok(())
}

/// Drops a slot. That it does not exist is no error; that it is in use is.
///
/// # Errors
/// See [`server_state`].
pub async fn drop_slot(client: &Client, name: &str) -> Result<(), PgError> {
    match client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await {
        Err(error) if error.code() != Some(&tokio_postgres::error::SqlState::UNDEFINED_OBJECT) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes a replica a primary and waits until it is one; `false` if it was not after `deadline`.
///
/// # Errors
/// See [`server_state`].
pub async fn promote(client: &Client, deadline: Duration) -> Result<bool, PgError> {
    let seconds = i32::try_from(deadline.as_secs().max(1)).unwrap_or(i32::MAX);
    Ok(client.query_one("SELECT pg_promote(true, $1)", &[&seconds]).await?.try_get(0)?)
}

/// Writes a little to the log, and sees it onto this server's disk alone; where it ends.
///
/// # Errors
/// See [`server_state`].
pub async fn write_beat(client: &Client) -> Result<Lsn, PgError> {
    client
        .batch_execute("SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'millrace', '')")
        .await?;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn() AS lsn", &[]).await?;
    Ok(lsn(&row, "lsn")?.unwrap_or_default())
}

/// Asks a replica to become a primary, and does not wait for it.
///
/// # Errors
/// See [`server_state`].
pub async fn begin_promotion(client: &Client) -> Result<(), PgError> {
    client.query_one("SELECT pg_promote(false)", &[]).await?;
    Ok(())
}

/// Writes everything to disk now, so that the shutdown that follows is short.
///
/// # Errors
/// See [`server_state`].
pub async fn checkpoint(client: &Client) -> Result<(), PgError> {
    client.batch_execute("CHECKPOINT").await?;
    Ok(())
}

/// The timeline of a primary's newest checkpoint, which is its own once there has been one since its promotion.
///
/// # Errors
/// See [`server_state`].
pub async fn timeline(client: &Client) -> Result<u32, PgError> {
    let row = client.query_one("SELECT timeline_id FROM pg_control_checkpoint()", &[]).await?;
    Ok(row.try_get::<_, i32>("timeline_id")?.cast_unsigned())
}

/// Clients' transactions that are open, those of this session excepted.
///
/// # Errors
/// See [`server_state`].
pub async fn open_transactions(client: &Client) -> Result<u64, PgError> {
    let row = client.query_one(include_str!("../sql/open_transactions.sql"), &[]).await?;
    Ok(unsigned(&row, "open")?.unwrap_or_default())
}

/// Ends the sessions that receive decoded changes: a server that stops waits for them otherwise.
///
/// # Errors
/// See [`server_state`].
pub async fn end_logical_senders(client: &Client) -> Result<(), PgError> {
    client.query(include_str!("../sql/end_logical_senders.sql"), &[]).await?;
    Ok(())
}

async fn all<T>(client: &Client, sql: &str, read: impl Fn(&Row) -> Result<T, PgError>) -> Result<Vec<T>, PgError> {
    client.query(sql, &[]).await?.iter().map(read).collect()
}

fn lsn(row: &Row, column: &str) -> Result<Option<Lsn>, PgError> {
    Ok(row.try_get::<_, Option<PgLsn>>(column)?.map(|lsn| Lsn(lsn.into())))
}

fn pid(row: &Row, column: &str) -> Result<Option<u32>, PgError> {
    Ok(row.try_get::<_, Option<i32>>(column)?.map(i32::cast_unsigned))
}

/// Negative sizes and ages (a clock set back) count as 0.
fn unsigned(row: &Row, column: &str) -> Result<Option<u64>, PgError> {
    Ok(row.try_get::<_, Option<i64>>(column)?.map(|value| u64::try_from(value).unwrap_or(0)))
}
