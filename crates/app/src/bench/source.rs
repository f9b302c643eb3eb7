//! The publisher: the pack's database with sample data, as `up` and `load sample` make it.

use std::time::Duration;

use millrace_contract::TableName;
use millrace_pg::{ConnectParams, Connection, connect};

use super::lab::{Lab, Server};
use crate::{
    commands::load,
    context::CAPTURE_ROLE,
    explain::{Explained, explain},
    platform::prepare,
};

/// Payments of the generator at scale 1, about.
const PAYMENTS_PER_SCALE: u64 = 100_000;
const SEED: u64 = 1;
/// Both ways of replication read the same one.
pub(crate) const PUBLICATION: &str = "millrace";

/// A database that is captured.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) server: Server,
    /// The superuser in the pack's database.
    pub(crate) admin: ConnectParams,
    /// As capture and the native subscription read.
    pub(crate) reader: ConnectParams,
    pub(crate) tables: Vec<TableName>,
    /// In all tables.
    pub(crate) rows: u64,
}

impl Source {
    /// A server with about `payments` payments in it.
    pub(crate) async fn make(lab: &mut Lab, payments: u64) -> anyhow::Result<Self> {
        let server = lab.server("publisher", &[]).await?;
        prepare::run(&lab.context, &server.admin).await?;
        let scale = u32::try_from(payments.div_ceil(PAYMENTS_PER_SCALE).max(1))?;
        lab.note(format!("publisher: generates sample data at scale {scale}"));
        load::sample(&lab.context, &server.admin, scale, SEED).await.explained()?;

        let models = crate::platform::models(&lab.context)?;
        let tables: Vec<TableName> = models.sources().into_iter().map(|s| TableName::new(s.schema, s.table)).collect();
        let admin = server.admin.to_database(&lab.context.pack.database);
        let password = lab
            .context
            .login_roles()?
            .into_iter()
            .find(|(name, ..)| name == CAPTURE_ROLE)
            .map(|(_, password, _)| password);
        let password = password.ok_or_else(|| anyhow::anyhow!("the pack has no role {CAPTURE_ROLE}"))?;
        let mut source = Self { reader: admin.as_user(CAPTURE_ROLE, password), server, admin, tables, rows: 0 };
        let client = source.connect().await?;
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
        client.batch_execute(include_str!("../../sql/bench/changes.sql")).await?;
        millrace_capture::prepare(&client, PUBLICATION, &source.tables)
            .await
            .map_err(|error| explain(&error, Some(error.hint())))?;
        for table in &source.tables {
            let count: i64 = client.query_one(&format!("SELECT count(*) FROM {}", table.to_sql()), &[]).await?.get(0);
            lab.note(format!("  {table}: {count} rows"));
            source.rows += u64::try_from(count)?;
        }
        Ok(source)
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        connect(&self.admin, Duration::from_secs(20)).await.explained()
    }

    /// A position that the next commit lies past.
    pub(crate) async fn position(&self, client: &Connection) -> anyhow::Result<millrace_base::Lsn> {
        let text: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        Ok(text.parse()?)
    }
}

/// What both sides must hold at the end: counts and sums of money, the same text everywhere.
pub(crate) const SUMMARY: &str = include_str!("../../sql/bench/summary.sql");

/// [`SUMMARY`] of a server's database.
pub(crate) async fn summary(client: &Connection) -> anyhow::Result<Vec<String>> {
    let row = client.query_one(&SUMMARY.replace("SCHEMA", "operational"), &[]).await?;
    (0..row.len()).map(|i| Ok(row.try_get::<_, String>(i)?)).collect()
}
