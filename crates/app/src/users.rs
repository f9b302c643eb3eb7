//! Console users in the database `millrace` on the primary: replicated and backed up with the data.

use std::time::Duration;

use futures::future::BoxFuture;
use millrace_console::users::{Users, UsersError};
use millrace_pg::{Connection, PgError, connect};

use crate::context::{Context, PLATFORM_DATABASE};

const DEADLINE: Duration = Duration::from_secs(10);

/// Opens a connection for each call: logins are rare, and a connection kept would outlive a restart badly.
#[derive(Debug, Clone)]
pub(crate) struct UserStore {
    context: Context,
}

impl UserStore {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    /// Whoever is the primary now.
    async fn primary(&self) -> Result<Connection, PgError> {
        let primary = self.context.primary().map_err(|error| PgError::Unreachable {
            address: "the primary".to_owned(),
            source: std::io::Error::other(error),
        })?;
        connect(&primary.to_database(PLATFORM_DATABASE), DEADLINE).await
    }

    async fn hash(&self, name: &str) -> Result<Option<String>, PgError> {
        let client = self.primary().await?;
        let row = client.query_opt("SELECT password_hash FROM console_users WHERE name = $1", &[&name]).await?;
        row.map(|row| row.try_get(0)).transpose().map_err(PgError::from)
    }

    async fn number(&self) -> Result<u64, PgError> {
        let client = self.primary().await?;
        let row = client.query_one("SELECT count(*) FROM console_users", &[]).await?;
        Ok(u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0))
    }

    async fn store(&self, name: &str, hash: &str) -> Result<(), PgError> {
        let client = self.primary().await?;
        client
            .execute(
                "INSERT INTO console_users (name, password_hash) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET password_hash = excluded.password_hash, changed_at = now()",
                &[&name, &hash],
            )
            .await?;
        Ok(())
    }

    /// Names in order.
    ///
    /// # Errors
    /// If the primary does not answer.
    pub(crate) async fn names(&self) -> Result<Vec<String>, PgError> {
        let client = self.primary().await?;
        let rows = client.query("SELECT name FROM console_users ORDER BY name", &[]).await?;
        rows.iter().map(|row| row.try_get(0).map_err(PgError::from)).collect()
    }

    /// Whether there was one to remove.
    ///
    /// # Errors
    /// If the primary does not answer.
    pub(crate) async fn remove(&self, name: &str) -> Result<bool, PgError> {
        let client = self.primary().await?;
        Ok(client.execute("DELETE FROM console_users WHERE name = $1", &[&name]).await? > 0)
    }
}

fn store_error(error: &PgError) -> UsersError {
    tracing::warn!(%error, "the store of console users does not answer");
    UsersError {
        message: "the list of users cannot be read now".into(),
        hint: Some("the primary does not answer: see `millrace status`".into()),
    }
}

impl Users for UserStore {
    fn password_hash(&self, name: &str) -> BoxFuture<'_, Result<Option<String>, UsersError>> {
        let name = name.to_owned();
        Box::pin(async move { self.hash(&name).await.map_err(|e| store_error(&e)) })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, UsersError>> {
        Box::pin(async { self.number().await.map_err(|e| store_error(&e)) })
    }

    fn put(&self, name: &str, password_hash: String) -> BoxFuture<'_, Result<(), UsersError>> {
        let name = name.to_owned();
        Box::pin(async move { self.store(&name, &password_hash).await.map_err(|e| store_error(&e)) })
    }
}
