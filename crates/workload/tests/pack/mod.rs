//! The loans pack on a throw-away server.

use std::time::Duration;

use millrace_base::Secret;
use millrace_config::{Pack, pack::MigrationKind};
use millrace_migrate::{Migration, up};
use millrace_pg::{ConnectParams, Connection, connect, roles::ensure_login_role};
use millrace_testkit::TestServer;

pub(crate) const APP_PASSWORD: &str = "app";

pub(crate) fn pack() -> Pack {
    Pack::embedded("loans").unwrap()
}

pub(crate) fn migrations(pack: &Pack) -> Vec<Migration> {
    let taken = pack.migrations.iter().filter_map(|migration| {
        let version = match &migration.kind {
            MigrationKind::Versioned(version) => Some(version.to_string()),
            MigrationKind::Repeatable => None,
            MigrationKind::Undo(_) => return None,
        };
        Some(Migration {
            version,
            description: migration.description.clone(),
            script: migration.script.clone(),
            sql: migration.sql.clone(),
        })
    });
    taken.collect()
}

/// A migrated database with its roles.
pub(crate) async fn migrated(server: &TestServer, database: &str) -> Connection {
    let mut client = server.create_database(database).await;
    for role in ["app_user", "readonly_user", "etl_reader"] {
        ensure_login_role(&*client, role, "", &Secret::new(APP_PASSWORD)).await.unwrap();
    }
    up(client.client_mut(), &migrations(&pack()), "tester").await.unwrap();
    client
}

pub(crate) fn params(server: &TestServer, database: &str) -> ConnectParams {
    server.params().to_database(database)
}

pub(crate) async fn as_role(server: &TestServer, database: &str, role: &str) -> Connection {
    let params = params(server, database).as_user(role, Secret::new(APP_PASSWORD));
    connect(&params, Duration::from_secs(10)).await.unwrap()
}

pub(crate) async fn number(client: &Connection, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

pub(crate) async fn text(client: &Connection, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

/// Loans whose status, balance and payments do not agree; nothing else may change a loan.
pub(crate) const INCONSISTENT: &str = "
    SELECT count(*) FROM operational.loans l
    LEFT JOIN (SELECT loan_id, count(*) AS payments, sum(principal_portion) AS principal
               FROM operational.payments GROUP BY loan_id) p USING (loan_id)
    WHERE l.outstanding_balance <> CASE WHEN l.status = 'pending' THEN 0 ELSE l.amount - coalesce(p.principal, 0) END
       OR (l.status = 'pending' AND p.payments > 0)";
