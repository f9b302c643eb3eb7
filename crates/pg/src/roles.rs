//! Login roles: made or brought up to date; the server gets a SCRAM verifier, never the password.

use millrace_base::{
    Secret,
    ident::{Ident, Literal},
};
use tokio_postgres::GenericClient;

use crate::error::PgError;

/// Creates `name` if absent and sets its attributes (`LOGIN REPLICATION …`) and password.
/// `attributes` is SQL of the caller's own, never input.
///
/// # Errors
/// If the server refuses.
pub async fn ensure_login_role(
    client: &impl GenericClient,
    name: &str,
    attributes: &str,
    password: &Secret,
) -> Result<(), PgError> {
    let verifier = postgres_protocol::password::scram_sha_256(password.reveal().as_bytes());
    let exists = client.query_opt("SELECT FROM pg_catalog.pg_roles WHERE rolname = $1", &[&name]).await?.is_some();
    let verb = if exists { "ALTER" } else { "CREATE" };
    let sql = format!("{verb} ROLE {} WITH LOGIN {attributes} PASSWORD {}", Ident(name), Literal(&verifier));
    Ok(client.batch_execute(&sql).await?)
}
