//! The history table.

use millrace_pg::PgError;
use tokio_postgres::{Client, GenericClient};

use crate::{MigrateError, Migration, checksum::checksum};

const TABLE: &str = include_str!("../sql/history_table.sql");
const READ: &str = include_str!("../sql/history_read.sql");
const INSERT: &str = include_str!("../sql/history_insert.sql");

/// A row of the history.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    pub(crate) version: Option<String>,
    pub(crate) description: String,
    /// `SQL` for scripts; Flyway knows others.
    pub(crate) kind: String,
    pub(crate) script: String,
    pub(crate) checksum: Option<i32>,
    pub(crate) installed_on: String,
    pub(crate) execution_time_ms: i32,
    pub(crate) success: bool,
}

/// All rows, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(pub(crate) Vec<Applied>);

impl History {
    /// Makes the table if it is absent.
    pub(crate) async fn ensure(client: &Client) -> Result<(), MigrateError> {
        client.batch_execute(TABLE).await.map_err(failed)
    }

    /// Reads it; a database without the table has an empty one.
    pub(crate) async fn read(client: &Client) -> Result<Self, MigrateError> {
        let exists = client
            .query_one("SELECT to_regclass('public.flyway_schema_history') IS NOT NULL", &[])
            .await
            .map_err(failed)?;
        if !exists.get::<_, bool>(0) {
            return Ok(Self::default());
        }
        let rows = client.query(READ, &[]).await.map_err(failed)?;
        let applied = |row: &tokio_postgres::Row| {
            Ok(Applied {
                version: row.try_get("version")?,
                description: row.try_get("description")?,
                kind: row.try_get("type")?,
                script: row.try_get("script")?,
                checksum: row.try_get("checksum")?,
                installed_on: row.try_get("installed_on")?,
                execution_time_ms: row.try_get("execution_time")?,
                success: row.try_get("success")?,
            })
        };
        rows.iter().map(applied).collect::<Result<_, _>>().map(Self).map_err(failed)
    }
}

/// Adds a script's row, within its transaction.
pub(crate) async fn record(
    transaction: &impl GenericClient,
    migration: &Migration,
    version: Option<&str>,
    installed_by: &str,
    execution_time_ms: i32,
) -> Result<(), PgError> {
    let checksum = checksum(&migration.sql);
    transaction
        .execute(
            INSERT,
            &[&version, &migration.description, &migration.script, &checksum, &installed_by, &execution_time_ms],
        )
        .await?;
    Ok(())
}

fn failed(error: tokio_postgres::Error) -> MigrateError {
    MigrateError::History(error.into())
}
