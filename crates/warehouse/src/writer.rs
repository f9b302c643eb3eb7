//! The one writer: a thread with its own connection, behind [`DuckSink`] and [`WriterHandle`].
//!
//! Invariants: all writing to the file happens on this thread, in the order of its bounded channel; work
//! that does not belong to the open batch waits until the batch has ended. The thread is joined when
//! the sink is closed or dropped.

use std::{collections::BTreeSet, sync::Arc, thread::JoinHandle};

use duckdb::Connection;
use millrace_base::Clock;
use millrace_contract::{
    Applied, BatchEnd, RunKind, Sink, SinkError, Step, TableName, operate::Compared, sink::Resume,
};
use millrace_model::{Change, Models, plan};
use tokio::sync::{mpsc, oneshot};

use crate::{
    batch::{self, Batch, BatchError, Prepared, State},
    build,
    convert::convert,
    engine::{Engine, lock},
    error::WarehouseError,
    index::{self, Indexes},
    records,
};

/// Steps that wait for the writer; each holds at most what capture puts into one.
const CHANNEL_STEPS: usize = 4;
/// The write-ahead log is folded into the file when it is larger than this and nothing is pinned.
const CHECKPOINT_WAL_BYTES: u64 = 256 << 20;

type Reply<T> = oneshot::Sender<T>;

enum Command {
    Resume(Reply<Result<Resume, SinkError>>),
    Begin { kind: RunKind, system_id: u64, reply: Reply<Result<(), SinkError>> },
    Step(Prepared),
    Commit { end: BatchEnd, reply: Reply<Result<Applied, SinkError>> },
    Rollback(Reply<Result<(), SinkError>>),
    Advance { end: BatchEnd, reply: Reply<Result<(), SinkError>> },
    Quarantine { table: TableName, reason: String, reply: Reply<Result<(), SinkError>> },
    Pin { name: String, reply: Reply<Result<(), SinkError>> },
    Outside(Outside),
    Close,
}

/// Work that belongs to no batch.
enum Outside {
    Rebuild(Reply<Result<(), WarehouseError>>),
    Build { models: Arc<Models>, reply: Reply<Result<Vec<Change>, WarehouseError>> },
    Checkpoint(Reply<Result<(), WarehouseError>>),
}

/// Where capture writes.
#[derive(Debug)]
pub struct DuckSink {
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// Asks the writer for what is not capture's business.
#[derive(Debug, Clone)]
pub struct WriterHandle {
    commands: mpsc::Sender<Command>,
}

impl DuckSink {
    /// Starts the writer. Models that were built otherwise than `models` declares are built anew first.
    ///
    /// # Errors
    /// If the file's own records are damaged, a model cannot be built, or no thread can be started.
    pub fn open(engine: Arc<Engine>, models: Arc<Models>, clock: Arc<dyn Clock>) -> Result<Self, WarehouseError> {
        Self::open_indexing(engine, models, clock, index::ROWS_MIN)
    }

    /// As [`DuckSink::open`]; tables get an index on their key from `index_rows_min` rows on.
    ///
    /// # Errors
    /// As [`DuckSink::open`].
    pub fn open_indexing(
        engine: Arc<Engine>,
        models: Arc<Models>,
        clock: Arc<dyn Clock>,
        index_rows_min: u64,
    ) -> Result<Self, WarehouseError> {
        let connection = engine.connect()?;
        let state = State::read(&connection, models)?;
        let indexes = Indexes::new(index_rows_min);
        let mut writer =
            Writer { engine, connection, state, indexes, clock, open: None, failed: None, waiting: Vec::new() };
        writer.build_declared()?;
        let (commands, received) = mpsc::channel(CHANNEL_STEPS);
        let thread = std::thread::Builder::new()
            .name("warehouse-writer".into())
            .spawn(move || writer.run(received))
            .map_err(|e| WarehouseError::Records(format!("the writer's thread cannot start: {e}")))?;
        Ok(Self { commands, thread: Some(thread) })
    }

    /// For building models beside capture.
    #[must_use]
    pub fn handle(&self) -> WriterHandle {
        WriterHandle { commands: self.commands.clone() }
    }

    /// Ends the writer after what it was given; an open batch is forgotten.
    pub async fn close(mut self) {
        if self.commands.send(Command::Close).await.is_err() {
            tracing::debug!("the warehouse writer had ended already");
        }
        if let Some(thread) = self.thread.take()
            && let Ok(Err(_)) = tokio::task::spawn_blocking(move || thread.join()).await
        {
            tracing::error!("the warehouse writer panicked");
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<Result<T, SinkError>>) -> Command) -> Result<T, SinkError> {
        let (reply, answer) = oneshot::channel();
        let closed = || SinkError::from(WarehouseError::Closed);
        self.commands.send(command(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for DuckSink {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // a full channel means that the writer is busy; it ends when the last sender is gone
            if self.commands.try_send(Command::Close).is_ok() && thread.join().is_err() {
                tracing::error!("the warehouse writer panicked");
            }
        }
    }
}

impl Sink for DuckSink {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        self.ask(Command::Resume).await
    }

    async fn begin(&mut self, kind: RunKind, system_id: u64) -> Result<(), SinkError> {
        self.ask(|reply| Command::Begin { kind, system_id, reply }).await
    }

    async fn append(&mut self, step: Step) -> Result<(), SinkError> {
        let prepared = match step {
            Step::Schema(schema) => Prepared::Schema(schema),
            Step::Truncate { table, head } => Prepared::Truncate { table, head },
            Step::Rows(rows) => {
                let table = rows.schema().table.clone();
                // parsing is processor work; while it runs, the writer stores the step before
                let converted = tokio::task::spawn_blocking(move || convert(&rows))
                    .await
                    .map_err(|e| SinkError::Retry(format!("a conversion was stopped: {e}")))?;
                Prepared::Rows(converted.map_err(|misfit| SinkError::Table { table, reason: misfit.to_string() })?)
            }
        };
        self.commands.send(Command::Step(prepared)).await.map_err(|_| WarehouseError::Closed.into())
    }

    async fn commit(&mut self, end: BatchEnd) -> Result<Applied, SinkError> {
        self.ask(|reply| Command::Commit { end, reply }).await
    }

    async fn rollback(&mut self) -> Result<(), SinkError> {
        self.ask(Command::Rollback).await
    }

    async fn advance(&mut self, end: BatchEnd) -> Result<(), SinkError> {
        self.ask(|reply| Command::Advance { end, reply }).await
    }

    async fn quarantine(&mut self, table: TableName, reason: String) -> Result<(), SinkError> {
        self.ask(|reply| Command::Quarantine { table, reason, reply }).await
    }

    async fn pin(&mut self, name: &str) -> Result<(), SinkError> {
        let name = name.to_owned();
        self.ask(|reply| Command::Pin { name, reply }).await
    }
}

impl WriterHandle {
    async fn ask<T>(
        &self,
        outside: impl FnOnce(Reply<Result<T, WarehouseError>>) -> Outside,
    ) -> Result<T, WarehouseError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Outside(outside(reply))).await.map_err(|_| WarehouseError::Closed)?;
        answer.await.map_err(|_| WarehouseError::Closed)?
    }

    /// Builds all models anew from raw and staging, in one transaction between two batches.
    ///
    /// # Errors
    /// If a model cannot be built; nothing has changed then.
    pub async fn rebuild(&self) -> Result<(), WarehouseError> {
        self.ask(Outside::Rebuild).await
    }

    /// Takes new declarations and does what their plan says, which is returned.
    ///
    /// # Errors
    /// If a model cannot be built; the old declarations stay in force then.
    pub async fn build(&self, models: Arc<Models>) -> Result<Vec<Change>, WarehouseError> {
        self.ask(|reply| Outside::Build { models, reply }).await
    }

    /// Folds the write-ahead log into the file.
    ///
    /// # Errors
    /// If the disk is full.
    pub async fn checkpoint(&self) -> Result<(), WarehouseError> {
        self.ask(Outside::Checkpoint).await
    }
}

/// What declared models would change in the warehouse, without changing it.
///
/// # Errors
/// If the records cannot be read.
pub fn plan_models(engine: &Engine, models: &Models) -> Result<Vec<Change>, WarehouseError> {
    Ok(plan(&records::built(&engine.connect()?)?, models))
}

/// Compares each model with what its declaration makes of raw and staging, surrogate keys included:
/// in the pinned state `pinned`, or in the newest. Blocking; takes about as long as a rebuild.
///
/// # Errors
/// If there is no such pinned state, or the engine fails.
pub fn verify_models(engine: &Engine, models: &Models, pinned: Option<&str>) -> Result<Vec<Compared>, WarehouseError> {
    match pinned {
        Some(name) => {
            let connection =
                engine.pinned(name).ok_or_else(|| WarehouseError::Records(format!("nothing is pinned as {name}")))?;
            build::verify(&lock(&connection), models)
        }
        None => {
            let connection = engine.connect()?;
            connection.execute_batch("begin transaction read only")?;
            build::verify(&connection, models)
        }
    }
}

struct Writer {
    engine: Arc<Engine>,
    connection: Connection,
    state: State,
    indexes: Indexes,
    clock: Arc<dyn Clock>,
    open: Option<Batch>,
    /// The open batch has failed: its later steps are thrown away, its commit answers with this.
    failed: Option<BatchError>,
    waiting: Vec<Outside>,
}

impl Writer {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Resume(reply) => answer(reply, records::resume(&self.connection).map_err(Into::into)),
                Command::Begin { kind, system_id, reply } => answer(reply, self.begin(kind, system_id)),
                Command::Step(step) => self.step(step),
                Command::Commit { end, reply } => {
                    let result = self.commit(&end);
                    answer(reply, result);
                    self.after_batch();
                }
                Command::Rollback(reply) => {
                    self.rollback();
                    answer(reply, Ok(()));
                    self.after_batch();
                }
                Command::Advance { end, reply } => answer(reply, self.advance(&end)),
                Command::Quarantine { table, reason, reply } => {
                    let kept = self.transaction(|writer| {
                        records::quarantine(&writer.connection, &table, &reason, writer.clock.wall())
                    });
                    answer(reply, kept.map_err(Into::into));
                }
                Command::Pin { name, reply } => answer(reply, self.engine.pin(&name).map_err(Into::into)),
                Command::Outside(outside) if self.open.is_some() => self.waiting.push(outside),
                Command::Outside(outside) => self.outside(outside),
                Command::Close => break,
            }
        }
        self.rollback();
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "the warehouse was not checkpointed at its end");
        }
    }

    fn begin(&mut self, kind: RunKind, system_id: u64) -> Result<(), SinkError> {
        self.rollback();
        match Batch::begin(&self.connection, &self.state, kind, system_id, self.clock.wall()) {
            Ok(batch) => {
                self.open = Some(batch);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn step(&mut self, step: Prepared) {
        if self.failed.is_some() {
            return;
        }
        if let Some(batch) = &mut self.open
            && let Err(error) = batch.step(&self.connection, &self.state.models, step)
        {
            self.failed = Some(error);
        }
    }

    fn commit(&mut self, end: &BatchEnd) -> Result<Applied, SinkError> {
        let Some(batch) = self.open.take() else {
            return Err(SinkError::Fatal {
                reason: "commit without an open batch".into(),
                hint: "this is a bug: report it".into(),
            });
        };
        let (run_id, started_at, kind) = (batch.run_id, batch.started_at, batch.kind().clone());
        let result = match self.failed.take() {
            Some(error) => Err(error),
            None => batch.commit(&self.connection, &mut self.state, end, &*self.clock),
        };
        match result {
            Ok(applied) => {
                self.engine.confirm(self.clock.wall());
                if kind != RunKind::Changes {
                    self.indexes.recount();
                }
                if kind != RunKind::Changes
                    && let Err(error) = self.checkpoint()
                {
                    // what is committed is committed; the next checkpoint takes the log along
                    tracing::warn!(%error, "the warehouse could not be checkpointed after a copy");
                }
                Ok(applied)
            }
            Err(error) => {
                self.roll_back_transaction();
                let failure = batch::Failure { run_id, kind: kind.name(), started_at, error: batch::words(&error) };
                if let Err(problem) =
                    batch::record_failure(&self.connection, &mut self.state, &failure, self.clock.wall())
                {
                    tracing::warn!(error = %problem, "a failed load could not be recorded");
                }
                Err(error.into())
            }
        }
    }

    fn rollback(&mut self) {
        self.failed = None;
        if self.open.take().is_some() {
            self.roll_back_transaction();
        }
    }

    fn roll_back_transaction(&self) {
        // after some errors the engine has rolled back already
        if let Err(error) = self.connection.execute_batch("rollback") {
            tracing::debug!(%error, "nothing to roll back");
        }
    }

    /// What has waited for the batch to end.
    fn after_batch(&mut self) {
        if let Err(error) = batch::drop_temporary(&self.connection) {
            tracing::warn!(%error, "temporary tables stay until the next batch");
        }
        for outside in std::mem::take(&mut self.waiting) {
            self.outside(outside);
        }
        let taken = std::mem::take(&mut self.state.taken);
        if let Err(error) = self.indexes.tend(&self.connection, &self.state.tables, &self.state.models, &taken) {
            tracing::warn!(%error, "an index could not be made or dropped; results do not depend on it");
        }
        if self.wal_bytes() > CHECKPOINT_WAL_BYTES
            && !self.engine.has_pins()
            && let Err(error) = self.checkpoint()
        {
            tracing::warn!(%error, "the warehouse cannot be checkpointed now");
        }
    }

    fn wal_bytes(&self) -> u64 {
        let mut wal = self.engine.path().as_os_str().to_owned();
        wal.push(".wal");
        std::fs::metadata(wal).map_or(0, |m| m.len())
    }

    fn advance(&mut self, end: &BatchEnd) -> Result<(), SinkError> {
        if self.open.is_some() {
            return Err(SinkError::Fatal {
                reason: "the watermark cannot move inside a batch".into(),
                hint: "this is a bug: report it".into(),
            });
        }
        let resume = records::resume(&self.connection)?;
        let now = self.clock.wall();
        if let Some(system_id) = resume.system_id
            && resume.watermark < end.watermark
        {
            self.transaction(|writer| records::keep_watermark(&writer.connection, system_id, end, 0, now))?;
        }
        self.engine.confirm(now);
        Ok(())
    }

    /// Runs `work` in a transaction of its own.
    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, WarehouseError>,
    ) -> Result<T, WarehouseError> {
        self.connection.execute_batch("begin transaction")?;
        let result = work(self).and_then(|value| {
            self.connection.execute_batch("commit")?;
            Ok(value)
        });
        if result.is_err() {
            self.roll_back_transaction();
        }
        result
    }

    fn outside(&mut self, outside: Outside) {
        match outside {
            Outside::Rebuild(reply) => answer(reply, self.rebuild()),
            Outside::Build { models, reply } => answer(reply, self.build(models)),
            Outside::Checkpoint(reply) => answer(reply, self.checkpoint()),
        }
    }

    fn rebuild(&mut self) -> Result<(), WarehouseError> {
        let (models, tables, now) = (self.state.models.clone(), self.state.copied(), self.clock.wall());
        self.transaction(|writer| build::rebuild(&writer.connection, &models, &tables, None, now))?;
        self.read_built()
    }

    fn build(&mut self, models: Arc<Models>) -> Result<Vec<Change>, WarehouseError> {
        let (tables, now) = (self.state.copied(), self.clock.wall());
        let declared = models.clone();
        let changes = self.transaction(|writer| build::reconcile(&writer.connection, &declared, &tables, now))?;
        self.state.models = models;
        self.read_built()?;
        Ok(changes)
    }

    /// At the start: what is declared now must be what is built, once there is anything to build from.
    fn build_declared(&mut self) -> Result<(), WarehouseError> {
        if self.state.copied().is_empty() {
            return Ok(());
        }
        self.build(self.state.models.clone()).map(|_| ())
    }

    fn read_built(&mut self) -> Result<(), WarehouseError> {
        self.state.built = records::built(&self.connection)?.into_keys().collect::<BTreeSet<_>>();
        self.indexes.recount();
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), WarehouseError> {
        Ok(self.connection.execute_batch("checkpoint")?)
    }
}

/// The asker may have gone away; then nobody wants the answer.
fn answer<T>(reply: Reply<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::trace!("an answer of the warehouse writer was not waited for");
    }
}
