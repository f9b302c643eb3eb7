//! Our side: a warehouse in the lab's folder and capture into it, wired as the platform wires them.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_base::{Clock, Lsn, SystemClock, Tasks};
use millrace_capture::CaptureOptions;
use millrace_contract::{
    Query, Reader,
    status::{CaptureState, CaptureStatus},
};
use millrace_model::Models;
use millrace_warehouse::{
    DuckSink, Engine, EngineOptions,
    reader::{DuckReader, ReaderOptions},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    lab::Lab,
    source::{PUBLICATION, SUMMARY, Source},
};
use crate::explain::{Explained, explain};

const WAIT_MAX: Duration = Duration::from_secs(3600);
const STOP_MAX: Duration = Duration::from_secs(60);
const SLOT: &str = "millrace";

/// An open warehouse. Dropping it closes the file, which stays.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) engine: Arc<Engine>,
    pub(crate) reader: Arc<DuckReader>,
    pub(crate) models: Arc<Models>,
    pub(crate) clock: Arc<dyn Clock>,
    folder: PathBuf,
}

impl Ours {
    /// A new warehouse in a folder of its own, with the memory and threads that a platform has.
    pub(crate) fn open(lab: &Lab, name: &str) -> anyhow::Result<Self> {
        let folder = lab.folder().join(name);
        let config = &lab.context.config.warehouse;
        let options = EngineOptions {
            memory_limit: format!("{}MiB", config.memory_limit_bytes >> 20),
            threads: config.threads,
            temp_directory: folder.join("temp"),
        };
        let engine = Engine::open(&folder.join("warehouse.duckdb"), options)
            .map_err(|error| explain(&error, Some(error.hint())))?;
        let reader =
            DuckReader::new(engine.clone(), &ReaderOptions::default(), &CancellationToken::new()).explained()?;
        let models = Arc::new(crate::platform::models(&lab.context)?);
        Ok(Self { engine, reader, models, clock: Arc::new(SystemClock::new()), folder })
    }

    /// The way in.
    pub(crate) fn sink(&self) -> anyhow::Result<DuckSink> {
        DuckSink::open(self.engine.clone(), self.models.clone(), self.clock.clone())
            .map_err(|error| explain(&error, Some(error.hint())))
    }

    /// Starts capture as configured for a platform.
    pub(crate) fn capture(&self, lab: &Lab, source: &Source) -> anyhow::Result<Running> {
        let config = &lab.context.config.capture;
        let mut options = CaptureOptions::new(source.reader.clone(), source.tables.clone(), self.folder.join("spill"));
        options.slot = SLOT.to_owned();
        options.publication = PUBLICATION.to_owned();
        options.copy_connections = config.copy_workers;
        options.batch_age = config.batch_interval;
        options.batch_bytes_max = usize::try_from(config.batch_bytes_max)?;
        let (status, watched) = watch::channel(CaptureStatus {
            state: CaptureState::Waiting { reason: "the benchmark starts it".to_owned() },
            watermark: Lsn::INVALID,
            source_lsn: Lsn::INVALID,
            lag_bytes: 0,
            lag_ms: 0,
            changes_applied: 0,
            quarantined: Vec::new(),
        });
        let (commands, received) = mpsc::channel(1);
        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token().clone();
        let (sink, clock) = (self.sink()?, self.clock.clone());
        tasks.spawn("capture", millrace_capture::run(options, sink, received, status, clock, token));
        Ok(Running { status: watched, tasks, _commands: commands })
    }

    /// The same as [`super::source::summary`].
    pub(crate) async fn summary(&self) -> anyhow::Result<Vec<String>> {
        let rows = self.rows(&SUMMARY.replace("SCHEMA", "staging")).await?;
        rows.into_iter().next().context("the summary has no row")
    }

    /// A small result as PostgreSQL's texts; null is empty.
    pub(crate) async fn rows(&self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let set = self.reader.query(Query::new(sql)).await.explained()?.collect(100_000).await.explained()?;
        Ok(set.rows.iter().map(|row| row.iter().map(|value| value.to_text().unwrap_or_default()).collect()).collect())
    }

    /// Closes the file and removes it.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        let folder = self.folder.clone();
        drop(self);
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }
}

/// Capture at work.
#[derive(Debug)]
pub(crate) struct Running {
    status: watch::Receiver<CaptureStatus>,
    tasks: Tasks,
    _commands: mpsc::Sender<millrace_capture::Command>,
}

impl Running {
    /// Waits until the initial copy is committed.
    pub(crate) async fn copied(&mut self) -> anyhow::Result<()> {
        self.until(|status| status.watermark.is_valid() && status.state == CaptureState::Streaming).await
    }

    /// Waits until a transaction past `position` is committed.
    pub(crate) async fn applied_past(&mut self, position: Lsn) -> anyhow::Result<()> {
        self.until(|status| status.watermark > position).await
    }

    async fn until(&mut self, reached: impl Fn(&CaptureStatus) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            {
                let status = self.status.borrow_and_update();
                if reached(&status) {
                    return Ok(());
                }
                if let CaptureState::Stopped { error, hint, .. } = &status.state {
                    bail!("capture stopped: {error}\n  hint: {hint}");
                }
                if let Some((table, reason)) = status.quarantined.first() {
                    bail!("table {table} is quarantined: {reason}");
                }
            }
            // both may be dropped: the status is looked at again
            tokio::select! {
                changed = tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), self.status.changed()) => {
                    changed.context("capture did not get there within an hour")?.context("capture ended")?;
                }
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(name) => bail!("{name} ended"),
                    Err(error) => return Err(explain(&error, None)),
                },
            }
        }
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        match self.tasks.shutdown(STOP_MAX).await.into_iter().next() {
            Some(error) => Err(explain(&error, None)),
            None => Ok(()),
        }
    }
}

/// Removes our slot from the publisher, for a fresh start.
pub(crate) async fn drop_slot(publisher: &millrace_pg::Connection) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOP_MAX;
    let active = "SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active";
    while publisher.query_opt(active, &[&SLOT]).await?.is_some() {
        if Instant::now() > deadline {
            bail!("the server does not let our slot go");
        }
        tokio::time::sleep(super::native::POLL).await;
    }
    publisher
        .execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", &[&SLOT])
        .await?;
    Ok(())
}
