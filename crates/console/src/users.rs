//! Who may log in.

use std::sync::Arc;

use futures::future::BoxFuture;
use millrace_base::Secret;

use crate::password;

/// The store of users could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct UsersError {
    pub message: String,
    pub hint: Option<String>,
}

/// Users and their password hashes, in the app's keeping. Names are compared exactly.
pub trait Users: Send + Sync + std::fmt::Debug {
    /// The stored hash ([`password::hash`]) of a user; `None` if there is no such user.
    fn password_hash(&self, name: &str) -> BoxFuture<'_, Result<Option<String>, UsersError>>;

    /// How many users there are.
    fn count(&self) -> BoxFuture<'_, Result<u64, UsersError>>;

    /// Adds a user, or gives an existing one a new hash.
    fn put(&self, name: &str, password_hash: String) -> BoxFuture<'_, Result<(), UsersError>>;
}

/// Adds a user with a password.
///
/// # Errors
/// If the password cannot be hashed or the store does not answer.
pub async fn create(users: &Arc<dyn Users>, name: &str, password: Secret) -> Result<(), UsersError> {
    let hash = password::hash(password).await.map_err(|e| UsersError { message: e.to_string(), hint: None })?;
    users.put(name, hash).await
}
