//! Making logical backups, by hand or by schedule.
//!
//! Not here: what one is, which the `backup` crate knows.

use std::time::Duration;

use millrace_backup::{
    dump::{self, DatabaseTraits, Dump, DumpFormat, DumpOptions},
    repo::Repository,
};
use millrace_base::{Clock as _, SystemClock};
use millrace_contract::status::NodeStatus;
use millrace_pg::{Connection, connect};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    explain::Explained as _,
    programs::{self, Programs},
};

const SHORT: Duration = Duration::from_secs(10);

/// What one is to be of, and how it is written.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) database: String,
    pub(crate) format: DumpFormat,
    /// Patterns of `pg_dump`; both empty: everything.
    pub(crate) schemas: Vec<String>,
    pub(crate) tables: Vec<String>,
    pub(crate) jobs: usize,
}

/// Makes one, of a node of this host.
///
/// # Errors
/// If the node cannot be read, or the repository not written.
pub(crate) async fn make(
    context: &Context,
    repo: &Repository,
    node: &NodeStatus,
    wanted: Wanted,
    stop: &CancellationToken,
) -> anyhow::Result<Dump> {
    let params = context.superuser_at(node)?.to_database(&wanted.database);
    let client = connect(&params, SHORT).await.explained()?;
    let server = client.query_one(include_str!("../sql/database_traits.sql"), &[]).await?;
    drop(client);
    let scratch = programs::scratch(context)?;
    let options = DumpOptions {
        system_id: server.get::<_, i64>("system_identifier").cast_unsigned(),
        database: wanted.database,
        traits: traits(&server),
        postgres_version: u32::try_from(server.get::<_, i32>("version")).unwrap_or_default(),
        format: wanted.format,
        schemas: wanted.schemas,
        tables: wanted.tables,
        jobs: wanted.jobs,
        scratch: scratch.path().to_owned(),
        now: SystemClock::new().wall(),
    };
    let programs = Programs::new(context, scratch.path(), &[&params])?;
    dump::dump(repo, &options, &|program| programs.command(program, &params), stop).await.explained()
}

pub(crate) fn traits(row: &tokio_postgres::Row) -> DatabaseTraits {
    DatabaseTraits {
        owner: row.get("owner"),
        encoding: row.get("encoding"),
        collate: row.get("collate"),
        ctype: row.get("ctype"),
        icu_locale: row.get("icu_locale"),
    }
}

/// The databases of a node that have an owner's data in them.
///
/// # Errors
/// If the node cannot be asked.
pub(crate) async fn databases(context: &Context, node: &NodeStatus) -> anyhow::Result<Vec<String>> {
    let client: Connection = connect(&context.superuser_at(node)?, SHORT).await.explained()?;
    let rows = client.query(include_str!("../sql/databases_to_dump.sql"), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
