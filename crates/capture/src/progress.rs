//! How far capture is, for those who watch. Written by the reader (what came) and by the applier
//! (what is durable); nothing decides by it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_base::{Clock, Lsn, Micros};
use millrace_contract::{
    TableName,
    status::{CaptureState, CaptureStatus},
};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Progress {
    clock: Arc<dyn Clock>,
    status: watch::Sender<CaptureStatus>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// First commit time of each batch that is open or on its way.
    waiting: VecDeque<Micros>,
    /// Nothing before this is missing, though the watermark may not have moved.
    caught_up: Lsn,
    /// The sink refused the last batch. Set with the state `Retrying`; ends with the next thing made durable, so that
    /// what is shown does not flicker with each try.
    refused: bool,
}

impl Progress {
    pub(crate) fn new(clock: Arc<dyn Clock>, status: watch::Sender<CaptureStatus>) -> Self {
        Self { clock, status, inner: Mutex::default() }
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self, state: CaptureState) {
        self.status.send_modify(|s| s.state = state);
    }

    /// The stream has begun.
    pub(crate) fn streams(&self) {
        if !self.inner().refused {
            self.state(CaptureState::Streaming);
        }
    }

    /// Waits to try again; `refused` if it was the sink that took nothing.
    pub(crate) fn retries(&self, error: String, hint: String, since: Micros, refused: bool) {
        self.inner().refused = refused;
        self.state(CaptureState::Retrying { error, hint, since });
    }

    /// The sink refuses what it is given, try after try.
    pub(crate) fn is_refused(&self) -> bool {
        self.inner().refused
    }

    /// The sink took something.
    pub(crate) fn made_durable(&self) {
        if std::mem::take(&mut self.inner().refused) {
            self.state(CaptureState::Streaming);
        }
    }

    /// Changes the state in place while copying.
    pub(crate) fn copied(&self, more_rows: u64, more_tables: usize) {
        self.status.send_modify(|s| {
            if let CaptureState::Copying { rows, tables_done, .. } = &mut s.state {
                *rows += more_rows;
                *tables_done += more_tables;
            }
        });
    }

    /// A session begins at what the sink holds.
    pub(crate) fn resumed(&self, watermark: Lsn, quarantined: Vec<(String, String)>) {
        let mut inner = self.inner();
        *inner = Inner { waiting: VecDeque::new(), caught_up: watermark, refused: inner.refused };
        drop(inner);
        self.status.send_modify(|s| {
            s.watermark = watermark;
            s.quarantined = quarantined;
        });
    }

    /// A batch has its first change.
    pub(crate) fn batch_begun(&self, commit_time: Micros) {
        self.inner().waiting.push_back(commit_time);
    }

    /// A batch is durable.
    pub(crate) fn applied(&self, watermark: Lsn, changes: u64) {
        self.inner().waiting.pop_front();
        self.made_durable();
        self.status.send_modify(|s| {
            s.watermark = watermark;
            s.changes_applied += changes;
        });
        self.tick();
    }

    /// A table was copied anew at `lsn`.
    pub(crate) fn resynced(&self, lsn: Lsn, table: &TableName) {
        self.made_durable();
        let name = table.to_string();
        self.status.send_modify(|s| {
            s.watermark = s.watermark.max(lsn);
            s.quarantined.retain(|(quarantined, _)| *quarantined != name);
        });
    }

    /// The watermark moved without a batch.
    pub(crate) fn advanced(&self, watermark: Lsn) {
        self.made_durable();
        self.status.send_modify(|s| s.watermark = s.watermark.max(watermark));
        self.tick();
    }

    /// The source's position was heard.
    pub(crate) fn heard(&self, source_lsn: Lsn) {
        self.status.send_if_modified(|s| {
            s.source_lsn = s.source_lsn.max(source_lsn);
            // not worth waking anyone: `tick` does
            false
        });
    }

    /// Everything before `lsn` has been taken, and nothing of it waits.
    pub(crate) fn caught_up(&self, lsn: Lsn) {
        let mut inner = self.inner();
        inner.caught_up = inner.caught_up.max(lsn);
    }

    /// Ages what is shown.
    pub(crate) fn tick(&self) {
        let (oldest, caught_up) = {
            let inner = self.inner();
            (inner.waiting.front().copied(), inner.caught_up)
        };
        let age = oldest.map_or(0, |oldest| self.clock.wall().since(oldest).as_millis());
        self.status.send_modify(|s| {
            s.lag_ms = u64::try_from(age).unwrap_or(u64::MAX);
            let done = if oldest.is_none() { s.watermark.max(caught_up) } else { s.watermark };
            s.lag_bytes = s.source_lsn.bytes_since(done);
        });
    }
}
