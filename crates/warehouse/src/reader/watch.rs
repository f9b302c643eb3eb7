//! Ends statements whose time is over or whose reader has gone away.
//!
//! Invariant: an interrupt reaches only the statement it is meant for. The worker takes the handle away
//! (under the lock) before its connection can serve another statement. DuckDB forgets an interrupt that
//! falls between two statements of one job, so it is repeated until the worker says that it is done.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use duckdb::InterruptHandle;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::run::Chunk;
use crate::engine::lock;

/// How often an interrupt is repeated.
const REPEAT: Duration = Duration::from_millis(10);

/// Why a statement was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Deadline,
    Gone,
    Shutdown,
}

/// One running statement, shared by its worker and the watcher.
#[derive(Debug, Default)]
pub(super) struct Running {
    handle: Mutex<Option<Arc<Handle>>>,
    cause: AtomicU8,
    done: CancellationToken,
}

struct Handle(Arc<InterruptHandle>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Running {
    /// Called by the worker when its connection begins to work for this statement.
    pub(super) fn begin(&self, handle: Arc<InterruptHandle>) {
        *lock(&self.handle) = Some(Arc::new(Handle(handle)));
    }

    /// Called by the worker before its connection is free again.
    pub(super) fn end(&self) {
        *lock(&self.handle) = None;
        self.done.cancel();
    }

    /// Why the statement was interrupted, if it was.
    pub(super) fn cause(&self) -> Option<Cause> {
        match self.cause.load(Ordering::Acquire) {
            1 => Some(Cause::Deadline),
            2 => Some(Cause::Gone),
            3 => Some(Cause::Shutdown),
            _ => None,
        }
    }

    fn interrupt(&self, cause: Cause) {
        let number = match cause {
            Cause::Deadline => 1,
            Cause::Gone => 2,
            Cause::Shutdown => 3,
        };
        self.cause.store(number, Ordering::Release);
        if let Some(handle) = lock(&self.handle).as_ref() {
            handle.0.interrupt();
        }
    }
}

/// Ends the statement for the watcher however the worker leaves.
pub(super) struct EndOnDrop(pub(super) Arc<Running>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A statement to watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) running: Arc<Running>,
    pub(super) reader: mpsc::Sender<Chunk>,
    pub(super) deadline: Instant,
}

/// Watches the statements of a reader until the reader is gone and the last of them has ended. A cancelled `token`
/// ends those that run and those that come: the watch itself must outlive them all.
pub(super) async fn watch(mut new: mpsc::Receiver<Watched>, token: CancellationToken) {
    let mut all = FuturesUnordered::new();
    loop {
        // dropping these futures loses nothing: recv and next are cancel-safe
        tokio::select! {
            watched = new.recv() => match watched {
                Some(watched) => all.push(one(watched, token.clone())),
                None => break,
            },
            Some(()) = all.next(), if !all.is_empty() => {}
        }
    }
    while all.next().await.is_some() {}
}

async fn one(watched: Watched, token: CancellationToken) {
    let Watched { running, reader, deadline } = watched;
    let cause = tokio::select! {
        biased;
        () = running.done.cancelled() => return,
        () = reader.closed() => Cause::Gone,
        () = tokio::time::sleep_until(deadline) => Cause::Deadline,
        () = token.cancelled() => Cause::Shutdown,
    };
    drop(reader);
    loop {
        running.interrupt(cause);
        tokio::select! {
            () = running.done.cancelled() => return,
            () = tokio::time::sleep(REPEAT) => {}
        }
    }
}
