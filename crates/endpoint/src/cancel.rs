//! Cancel requests: which session a client means, and its running statement.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rand::Rng;
use tokio_util::sync::CancellationToken;

/// All sessions by process number and secret.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    last_pid: i32,
    by_pid: HashMap<i32, (i32, Arc<Running>)>,
}

/// The statement that a session runs, if any.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<Option<CancellationToken>>);

/// A session's place in the registry; it leaves when dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    pub(crate) pid: i32,
    pub(crate) key: i32,
    pub(crate) running: Arc<Running>,
}

impl Registry {
    pub(crate) fn register(self: &Arc<Self>) -> Registered {
        let mut sessions = lock(&self.0);
        let mut pid = sessions.last_pid;
        loop {
            pid = if pid == i32::MAX { 1 } else { pid + 1 };
            if !sessions.by_pid.contains_key(&pid) {
                break;
            }
        }
        sessions.last_pid = pid;
        let key = rand::rng().random();
        let running = Arc::new(Running::default());
        sessions.by_pid.insert(pid, (key, running.clone()));
        Registered { registry: self.clone(), pid, key, running }
    }

    /// Cancels what the session runs; a wrong key does nothing, and says nothing.
    pub(crate) fn cancel(&self, pid: i32, key: i32) {
        let running =
            lock(&self.0).by_pid.get(&pid).filter(|(secret, _)| *secret == key).map(|(_, running)| running.clone());
        if let Some(running) = running
            && let Some(token) = lock(&running.0).as_ref()
        {
            token.cancel();
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.registry.0).by_pid.remove(&self.pid);
    }
}

impl Running {
    /// A new statement begins; the token is cancelled when the client asks for it.
    pub(crate) fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *lock(&self.0) = Some(token.clone());
        token
    }

    pub(crate) fn end(&self) {
        *lock(&self.0) = None;
    }
}

/// A poisoned lock guards plain data here: what it holds is still good.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
