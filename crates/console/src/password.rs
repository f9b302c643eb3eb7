//! Argon2id hashes of passwords (RFC 9106), in the PHC string form.
//!
//! Parameters are the crate's defaults: 19 MiB, two passes, one lane (OWASP's first choice).
//! Hashing is CPU work and runs on the blocking pool.

use std::sync::OnceLock;

use argon2::{
    Argon2,
    password_hash::{self, PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use millrace_base::Secret;

/// A password could not be hashed or compared.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("the stored password hash is damaged: {0}")]
    Damaged(password_hash::Error),
    #[error("the password could not be hashed: {0}")]
    Hash(password_hash::Error),
    #[error("the hashing task was stopped")]
    Stopped,
}

fn hash_now(password: &Secret) -> Result<String, PasswordError> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(PasswordError::Hash)?;
    Argon2::default()
        .hash_password(password.reveal().as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(PasswordError::Hash)
}

/// A hash to be stored.
///
/// # Errors
/// [`PasswordError::Stopped`] while the process ends; otherwise none is expected.
pub async fn hash(password: Secret) -> Result<String, PasswordError> {
    tokio::task::spawn_blocking(move || hash_now(&password)).await.map_err(|_| PasswordError::Stopped)?
}

/// Whether `password` belongs to `stored`. Without a stored hash the same work is done against one
/// that no password has, so that the time does not tell whether a user exists.
///
/// # Errors
/// [`PasswordError::Damaged`] if `stored` is not a PHC string.
pub async fn verify(stored: Option<String>, password: Secret) -> Result<bool, PasswordError> {
    static NOBODY: OnceLock<String> = OnceLock::new();
    tokio::task::spawn_blocking(move || {
        let known = stored.is_some();
        let hash = match stored {
            Some(hash) => hash,
            None => match NOBODY.get() {
                Some(hash) => hash.clone(),
                None => {
                    let hash = hash_now(&Secret::generate())?;
                    NOBODY.get_or_init(|| hash).clone()
                }
            },
        };
        let hash = PasswordHash::new(&hash).map_err(PasswordError::Damaged)?;
        let good = Argon2::default().verify_password(password.reveal().as_bytes(), &hash).is_ok();
        Ok(good && known)
    })
    .await
    .map_err(|_| PasswordError::Stopped)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_passes() {
        let stored = hash(Secret::new("correct horse")).await.unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert!(verify(Some(stored.clone()), Secret::new("correct horse")).await.unwrap());
        assert!(!verify(Some(stored), Secret::new("wrong")).await.unwrap());
        assert!(!verify(None, Secret::new("any")).await.unwrap());
        assert!(matches!(verify(Some("md5".into()), Secret::new("x")).await, Err(PasswordError::Damaged(_))));
    }
}
