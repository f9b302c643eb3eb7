//! Whether who is logged in still may be.
//!
//! A session carries a mark of the password that opened it; here the mark is compared with the store's,
//! which is asked at most every [`FRESH`] for a user. So a removed user and a changed password end the
//! sessions within half a minute, and at once when [`Accounts::forget`] says that something changed.
//!
//! When the store (on the primary) does not answer: whoever was found good before stays in, up to
//! [`GRACE`] after that, because the console is needed most when the primary is down, and because nobody
//! can be removed meanwhile. Whoever this process has not found good before is not let in. A user who was
//! removed without this process hearing of it, in the half minute before the primary went away, therefore
//! keeps what was had for at most [`GRACE`]; a restart of the platform ends it.
//!
//! No password and no stored hash is kept: a mark is a digest of the hash, a proof a digest of name and
//! password under a key of this process. Memory is bounded by [`KNOWN_MAX`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, Mac};
use millrace_base::{Clock, Secret};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{Users, UsersError, password, session};

/// How long an answer of the store is taken for true without asking again.
const FRESH: Duration = Duration::from_secs(25);
/// How long a page waits for the store; with [`FRESH`] less than half a minute.
const ASK_MAX: Duration = Duration::from_secs(3);
/// After a failure the store is left alone for this long.
const RETRY: Duration = Duration::from_secs(5);
/// How long an answer is honoured while the store is silent: as long as a session lives anyway.
const GRACE: Duration = session::LIFETIME;
const KNOWN_MAX: usize = 1000;

/// Tells one stored password hash from another, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark([u8; 32]);

impl Mark {
    pub(crate) fn of(hash: &str) -> Self {
        Self(Sha256::digest(hash.as_bytes()).into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What is known of a user.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    Known(Mark),
    /// There is no such user (any more).
    Gone,
    /// The store does not answer, and nothing recent enough is known.
    Unreachable(UsersError),
}

#[derive(Debug)]
struct Known {
    mark: Mark,
    /// When the store last said so.
    confirmed: Duration,
    /// When it is to be asked again.
    ask_at: Duration,
    /// Of the last password that was right.
    proof: Option<[u8; 32]>,
}

#[derive(Debug, Default)]
struct Kept {
    by_name: HashMap<String, Known>,
    /// Counts what was forgotten: an answer asked for before that is not kept.
    changes: u64,
}

/// The users and what was last heard of them. One for a process: whatever changes users through it
/// takes effect at once.
#[derive(Debug)]
pub struct Accounts {
    users: Arc<dyn Users>,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
    key: [u8; 32],
    /// Whether there ever was a user.
    peopled: AtomicBool,
}

impl Accounts {
    #[must_use]
    pub fn new(users: Arc<dyn Users>, clock: Arc<dyn Clock>) -> Self {
        Self { users, clock, kept: Mutex::default(), key: rand::random(), peopled: AtomicBool::new(false) }
    }

    /// A user was added, removed or got a new password: the store is asked before the next page.
    pub fn forget(&self, name: &str) {
        let mut kept = self.kept();
        kept.changes += 1;
        kept.by_name.remove(name);
    }

    /// Gives a user a new password, or makes one; sessions opened with another password end.
    ///
    /// # Errors
    /// If the password cannot be hashed or the store does not answer.
    pub async fn set_password(&self, name: &str, password: Secret) -> Result<(), UsersError> {
        let done = crate::users::create(&self.users, name, password).await;
        // after a failure too: it may have been done all the same
        self.forget(name);
        done
    }

    /// Whether there is nobody who could log in; `false` if the store does not say. Asked only until there
    /// was somebody.
    pub(crate) async fn is_empty(&self) -> bool {
        if self.peopled.load(Ordering::Relaxed) {
            return false;
        }
        let counted = tokio::time::timeout(ASK_MAX, self.users.count()).await;
        self.peopled.store(matches!(counted, Ok(Ok(1..))), Ordering::Relaxed);
        matches!(counted, Ok(Ok(0)))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of `name`.
    pub(crate) async fn standing(&self, name: &str) -> Standing {
        let changes = {
            let now = self.clock.monotonic();
            let mut kept = self.kept();
            let changes = kept.changes;
            if let Some(known) = kept.by_name.get_mut(name).filter(|known| now < known.confirmed + GRACE) {
                if now < known.ask_at {
                    return Standing::Known(known.mark);
                }
                // this one asks; the others go on with what was there
                known.ask_at = now + ASK_MAX;
            }
            changes
        };
        match self.ask(name).await {
            Ok(Some(hash)) => Standing::Known(self.keep(name, &hash, changes, None)),
            Ok(None) => {
                self.kept().by_name.remove(name);
                Standing::Gone
            }
            Err(error) => self.honoured(name).map_or(Standing::Unreachable(error), Standing::Known),
        }
    }

    /// The last answer, after the store failed to give a new one.
    fn honoured(&self, name: &str) -> Option<Mark> {
        let now = self.clock.monotonic();
        let mut kept = self.kept();
        let known = kept.by_name.get_mut(name).filter(|known| now < known.confirmed + GRACE)?;
        known.ask_at = now + RETRY;
        Some(known.mark)
    }

    async fn ask(&self, name: &str) -> Result<Option<String>, UsersError> {
        tokio::time::timeout(ASK_MAX, self.users.password_hash(name)).await.unwrap_or_else(|_| {
            Err(UsersError {
                message: format!("the list of users did not answer within {} s", ASK_MAX.as_secs()),
                hint: Some("the primary hangs or starts: see `millrace status`".to_owned()),
            })
        })
    }

    fn keep(&self, name: &str, hash: &str, changes: u64, proof: Option<[u8; 32]>) -> Mark {
        let (mark, now) = (Mark::of(hash), self.clock.monotonic());
        let mut kept = self.kept();
        if kept.changes != changes {
            return mark;
        }
        if kept.by_name.len() >= KNOWN_MAX
            && !kept.by_name.contains_key(name)
            && let Some(stalest) = kept.by_name.iter().min_by_key(|(_, k)| k.confirmed).map(|(name, _)| name.clone())
        {
            kept.by_name.remove(&stalest);
        }
        let before = kept.by_name.get(name).filter(|known| known.mark == mark).and_then(|known| known.proof);
        let known = Known { mark, confirmed: now, ask_at: now + FRESH, proof: proof.or(before) };
        kept.by_name.insert(name.to_owned(), known);
        mark
    }

    /// The mark of the user's password if `password` is it. Takes as long for a user that does not exist.
    ///
    /// # Errors
    /// If the store does not answer, or the stored hash is damaged.
    pub(crate) async fn verify(&self, name: &str, password: Secret) -> Result<Option<Mark>, UsersError> {
        let changes = self.kept().changes;
        let stored = self.ask(name).await?;
        let proof = self.proof(name, &password);
        let good = password::verify(stored.clone(), password).await.map_err(|e| UsersError {
            message: e.to_string(),
            hint: Some(format!("set a new password: millrace user reset-password {name}")),
        })?;
        Ok(stored.filter(|_| good).map(|hash| self.keep(name, &hash, changes, Some(proof))))
    }

    /// Whether the password is the one that was right last, and still is the user's. Spares machines that
    /// send it with each request the slow comparison, and lets them in while the primary is down.
    pub(crate) async fn was_right(&self, name: &str, password: &Secret) -> bool {
        let proof = self.proof(name, password);
        let mark = {
            let kept = self.kept();
            let Some(known) = kept.by_name.get(name) else { return false };
            let Some(last) = known.proof else { return false };
            if !bool::from(last.ct_eq(&proof)) {
                return false;
            }
            known.mark
        };
        matches!(self.standing(name).await, Standing::Known(now) if now == mark)
    }

    fn proof(&self, name: &str, password: &Secret) -> [u8; 32] {
        // HMAC takes a key of any length; the branch is never taken
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).unwrap_or_else(|_| Hmac::new(&Default::default()));
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(password.reveal().as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures::future::BoxFuture;
    use millrace_base::clock::ManualClock;

    use super::*;

    /// Everyone has the same hash; counts how often it is asked for it.
    #[derive(Debug, Default)]
    struct Counting(AtomicU64);

    impl Users for Counting {
        fn password_hash(&self, _: &str) -> BoxFuture<'_, Result<Option<String>, UsersError>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(Some("hash".to_owned())) })
        }

        fn count(&self) -> BoxFuture<'_, Result<u64, UsersError>> {
            Box::pin(async { Ok(1) })
        }

        fn put(&self, _: &str, _: String) -> BoxFuture<'_, Result<(), UsersError>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn the_store_is_asked_seldom_and_memory_is_bounded() {
        let (users, clock) = (Arc::new(Counting::default()), Arc::new(ManualClock::default()));
        let accounts = Accounts::new(users.clone(), clock.clone());
        for _ in 0..10 {
            accounts.standing("ann").await;
        }
        assert_eq!(users.0.load(Ordering::SeqCst), 1);
        clock.advance(FRESH);
        accounts.standing("ann").await;
        accounts.forget("ann");
        accounts.standing("ann").await;
        assert_eq!(users.0.load(Ordering::SeqCst), 3, "when it is old, and when it is forgotten");
        for i in 0..KNOWN_MAX + 5 {
            accounts.standing(&i.to_string()).await;
        }
        assert_eq!(accounts.kept().by_name.len(), KNOWN_MAX);
    }
}
