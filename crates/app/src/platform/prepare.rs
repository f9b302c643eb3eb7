//! Makes the primary what the pack needs: roles, databases, schema. Every step may be repeated.
//!
//! The superuser makes login roles with generated passwords and the databases, closed to PUBLIC; the
//! pack's migrations grant rights to these roles. Changing a role's login or database in `pack.toml`
//! takes effect at the next start.

use std::time::Duration;

use anyhow::Context as _;
use millrace_base::{Ident, Secret};
use millrace_pg::{ConnectParams, Connection, connect, roles};

use crate::{
    context::{CAPTURE_ROLE, Context, PLATFORM_DATABASE},
    explain::{Explained, explain},
};

const DEADLINE: Duration = Duration::from_secs(20);
/// A migration may wait for a lock and work on a large table.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(3600);

/// Of the database `postgres`.
const LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// What was done, for the person who waits.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) migrations_applied: Vec<String>,
}

/// Does all of it on the primary.
pub(crate) async fn run(context: &Context, primary: &ConnectParams) -> anyhow::Result<Prepared> {
    let pack = &context.pack;
    let client = connect(primary, DEADLINE).await.explained()?;
    // an agent may do the same at the same moment; let go with the session
    execute(&client, &format!("SELECT pg_advisory_lock({LOCK})")).await?;
    for role in pack.roles.iter().filter(|role| !role.login) {
        no_login_role(&client, &role.name).await?;
    }
    for (role, password, _) in context.login_roles()? {
        login_role(&client, &role, &password).await?;
    }
    for database in [PLATFORM_DATABASE, pack.database.as_str()] {
        make_database(&client, database).await?;
    }
    // `postgres` and `template1` let everyone in by default
    for database in ["postgres", "template1", PLATFORM_DATABASE, &pack.database] {
        execute(&client, &format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", Ident(database))).await?;
    }
    for role in &pack.roles {
        for database in &role.connect {
            execute(&client, &format!("GRANT CONNECT ON DATABASE {} TO {}", Ident(database), Ident(&role.name)))
                .await?;
        }
    }
    let platform = connect(&primary.to_database(PLATFORM_DATABASE), DEADLINE).await.explained()?;
    platform
        .batch_execute(include_str!("../../sql/platform_schema.sql"))
        .await
        .context("cannot make the platform's own tables")?;
    let migrations_applied = migrate(context, primary).await?;
    Ok(Prepared { migrations_applied })
}

/// Applies what the pack has and the database has not.
pub(crate) async fn migrate(context: &Context, primary: &ConnectParams) -> anyhow::Result<Vec<String>> {
    let mut client = connect(&primary.to_database(&context.pack.database), DEADLINE).await.explained()?;
    let migrations = migrations(context);
    let work = millrace_migrate::up(client.client_mut(), &migrations, &primary.user);
    let report = tokio::time::timeout(MIGRATION_DEADLINE, work)
        .await
        .context("the migrations did not end within an hour")?
        .map_err(|error| explain(&error, error.hint()))?;
    Ok(report.applied)
}

/// The pack's migrations as the migrator takes them; undo scripts are a later version's.
pub(crate) fn migrations(context: &Context) -> Vec<millrace_migrate::Migration> {
    use millrace_config::pack::MigrationKind;
    context
        .pack
        .migrations
        .iter()
        .filter_map(|migration| {
            let version = match &migration.kind {
                MigrationKind::Versioned(version) => Some(version.to_string()),
                MigrationKind::Repeatable => None,
                MigrationKind::Undo(_) => return None,
            };
            Some(millrace_migrate::Migration {
                version,
                description: migration.description.clone(),
                script: migration.script.clone(),
                sql: migration.sql.clone(),
            })
        })
        .collect()
}

pub(super) async fn login_role(client: &Connection, role: &str, password: &Secret) -> anyhow::Result<()> {
    let attributes = if role == CAPTURE_ROLE {
        "NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS REPLICATION"
    } else {
        "NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOREPLICATION"
    };
    roles::ensure_login_role(&**client, role, attributes, password).await.explained()
}

async fn no_login_role(client: &Connection, role: &str) -> anyhow::Result<()> {
    let exists = client.query_opt("SELECT FROM pg_catalog.pg_roles WHERE rolname = $1", &[&role]).await?.is_some();
    if exists { Ok(()) } else { execute(client, &format!("CREATE ROLE {} NOLOGIN", Ident(role))).await }
}

async fn make_database(client: &Connection, database: &str) -> anyhow::Result<()> {
    let exists =
        client.query_opt("SELECT FROM pg_catalog.pg_database WHERE datname = $1", &[&database]).await?.is_some();
    if exists { Ok(()) } else { execute(client, &format!("CREATE DATABASE {}", Ident(database))).await }
}

async fn execute(client: &Connection, sql: &str) -> anyhow::Result<()> {
    client.batch_execute(sql).await.map_err(millrace_pg::PgError::from).explained()
}
