//! Who may log in, and with what the proxy logs in for them.
//!
//! Verifiers come from the secrets that the proxy was given, or from `pg_authid` on the primary, asked as superuser and
//! kept for a short time. Invariants: an unknown user costs a client the same exchange as a known one; a password that
//! is only known as a verifier opens servers by the keys that the client's own proof revealed, and those are kept in
//! memory alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use millrace_base::{Clock, Secret};
use millrace_pg::{ConnectParams, Connection, connect};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    backends::{Access, Backends},
    scram::{Credential, Verifier},
};

/// How long a verifier is believed.
const FRESH: Duration = Duration::from_secs(30);
/// Verifiers kept; unknown names are kept too, so that they do not ask the server each time.
const CACHED_MAX: usize = 10_000;
const DEADLINE: Duration = Duration::from_secs(10);
const QUERY: &str = include_str!("../sql/verifier.sql");

/// Where verifiers are asked for: a superuser's login on the primary.
#[derive(Debug, Clone)]
pub struct AuthQuery {
    pub user: String,
    pub password: Secret,
    pub database: String,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// What the proxy was told.
#[derive(Debug, Default)]
struct Known {
    secrets: BTreeMap<String, (Secret, Verifier)>,
    query: Option<AuthQuery>,
}

impl Known {
    /// Verifiers of passwords that `before` knows are not made again.
    fn new(secrets: &BTreeMap<String, Secret>, query: Option<AuthQuery>, before: &Self) -> Self {
        let with_verifier = |name: &String, secret: &Secret| match before.secrets.get(name) {
            Some((same, verifier)) if same == secret => (secret.clone(), verifier.clone()),
            _ => (secret.clone(), Verifier::of_password(secret.reveal())),
        };
        Self {
            secrets: secrets.iter().map(|(name, secret)| (name.clone(), with_verifier(name, secret))).collect(),
            query,
        }
    }
}

/// The users of the proxy.
#[derive(Debug)]
pub(crate) struct Users {
    known: RwLock<Arc<Known>>,
    /// With what it was opened by.
    connection: AsyncMutex<Option<(Arc<Known>, Connection)>>,
    backends: watch::Receiver<Arc<Backends>>,
    cache: Mutex<HashMap<String, Cached>>,
    mock: [u8; 32],
    clock: Arc<dyn Clock>,
}

/// Why nothing is known about a user now.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("there is no primary to ask")]
    NoPrimary,
    #[error(transparent)]
    Server(#[from] millrace_pg::PgError),
}

#[derive(Debug)]
struct Cached {
    /// `None`: there is no such user, or it may not log in by password.
    verifier: Option<Verifier>,
    at: Duration,
    credential: Option<Credential>,
}

impl Users {
    pub(crate) fn new(
        secrets: &BTreeMap<String, Secret>,
        query: Option<AuthQuery>,
        backends: watch::Receiver<Arc<Backends>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            known: RwLock::new(Arc::new(Known::new(secrets, query, &Known::default()))),
            connection: AsyncMutex::new(None),
            backends,
            cache: Mutex::default(),
            mock: rand::random(),
            clock,
        }
    }

    /// Other passwords hold from now on.
    pub(crate) fn adopt(&self, secrets: &BTreeMap<String, Secret>, query: Option<AuthQuery>) {
        let known = Arc::new(Known::new(secrets, query, &self.known()));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn known(&self) -> Arc<Known> {
        // nothing panics while it is held
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The verifier for `user`, and whether there is such a user; for one that is not, one that nothing opens.
    /// `anew`: what is kept is not believed.
    pub(crate) async fn verifier(&self, user: &str, anew: bool) -> (Verifier, bool) {
        if let Some((_, verifier)) = self.known().secrets.get(user) {
            return (verifier.clone(), true);
        }
        let now = self.clock.monotonic();
        let kept = self.lock().get(user).map(|c| (c.verifier.clone(), now.saturating_sub(c.at) < FRESH));
        let verifier = match kept {
            Some((verifier, true)) if !anew => verifier,
            kept => match self.ask(user).await {
                Ok(verifier) => {
                    self.keep(user, verifier.clone(), now);
                    verifier
                }
                // the primary is away: what was true a moment ago may serve until it is back
                Err(error) => {
                    tracing::warn!(%error, "the proxy cannot ask for a verifier");
                    kept.and_then(|(verifier, _)| verifier)
                }
            },
        };
        match verifier {
            Some(verifier) => (verifier, true),
            None => (Verifier::nobody(&self.mock, user), false),
        }
    }

    fn keep(&self, user: &str, verifier: Option<Verifier>, now: Duration) {
        let mut cache = self.lock();
        if cache.len() >= CACHED_MAX {
            cache.retain(|_, cached| cached.verifier.is_some() && now.saturating_sub(cached.at) < FRESH);
        }
        let entry = cache.entry(user.to_owned()).or_insert(Cached { verifier: None, at: now, credential: None });
        if entry.verifier != verifier {
            // another password: the keys of the old one open nothing
            entry.credential = None;
        }
        (entry.verifier, entry.at) = (verifier, now);
    }

    /// What opens a server for `user`, if it is known.
    pub(crate) fn credential(&self, user: &str) -> Option<Credential> {
        match self.known().secrets.get(user) {
            Some((secret, _)) => Some(Credential::Password(secret.clone())),
            None => self.lock().get(user).and_then(|cached| cached.credential.clone()),
        }
    }

    /// Keeps the keys that a client's proof revealed.
    pub(crate) fn learned(&self, user: &str, credential: Credential) {
        if let Some(cached) = self.lock().get_mut(user) {
            cached.credential = Some(credential);
        }
    }

    async fn ask(&self, user: &str) -> Result<Option<Verifier>, AskError> {
        let known = self.known();
        let Some(query) = &known.query else { return Ok(None) };
        let node = self.backends.borrow().choose(Access::ReadWrite, |_| 0);
        let Some(node) = node else { return Err(AskError::NoPrimary) };
        let mut connection = self.connection.lock().await;
        let kept = connection.as_ref().filter(|(by, open)| Arc::ptr_eq(by, &known) && !open.is_closed());
        if let Some((_, open)) = kept
            && let Ok(rows) = open.query(QUERY, &[&user]).await
        {
            return Ok(rows.first().and_then(|row| Verifier::parse(row.get(0))));
        }
        let params = ConnectParams {
            host: node.host,
            port: node.address.port(),
            database: query.database.clone(),
            user: query.user.clone(),
            password: query.password.clone(),
            tls: query.tls.clone(),
            application_name: "millrace proxy".to_owned(),
        };
        let (_, open) = connection.insert((known.clone(), connect(&params, DEADLINE).await?));
        let rows = open.query(QUERY, &[&user]).await.map_err(millrace_pg::PgError::from)?;
        Ok(rows.first().and_then(|row| Verifier::parse(row.get(0))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Cached>> {
        // nothing panics while it is held
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
