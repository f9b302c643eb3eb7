//! The one writer, as others see it: [`DuckSink`] for capture, [`WriterHandle`] for everyone else. The work is
//! done on a thread of its own, which is joined when the sink is closed or dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread::JoinHandle,
};

use millrace_base::Clock;
use millrace_contract::{
    Applied, BatchEnd, RunKind, Sink, SinkError, Step, TableName, operate::Compared, sink::Resume,
};
use millrace_model::{Change, Models, Source, plan};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    batch::Prepared,
    build,
    convert::convert,
    engine::{Engine, lock},
    error::WarehouseError,
    force::HeldModel,
    index, records,
    thread::Writer,
};

/// Steps that wait for the writer; each holds at most what capture puts into one.
const CHANNEL_STEPS: usize = 4;

pub(crate) type Reply<T> = oneshot::Sender<T>;

pub(crate) enum Command {
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
pub(crate) enum Outside {
    Rebuild(Reply<Result<Vec<String>, WarehouseError>>),
    Build { models: Arc<Models>, unfit: BTreeMap<String, String>, reply: Reply<Result<Built, WarehouseError>> },
    Checkpoint(Reply<Result<(), WarehouseError>>),
}

/// What became of declared models.
#[derive(Debug, Clone, Default)]
pub struct Built {
    /// What was done, or was to be done before a model turned out to be held.
    pub changes: Vec<Change>,
    /// Models that are not built as declared.
    pub held: Vec<HeldModel>,
    /// Tables that lack a column in the warehouse which a held model reads: a fresh copy brings it, if the source
    /// has it.
    pub lacking: BTreeSet<Source>,
}

/// The models as the writer works with them.
#[derive(Debug, Clone, Default)]
pub struct InForce {
    /// Declared models that are not built as declared.
    pub held: Vec<HeldModel>,
    /// The source tables that models in force need.
    pub sources: BTreeSet<Source>,
}

/// Where capture writes.
#[derive(Debug)]
pub struct DuckSink {
    commands: mpsc::Sender<Command>,
    in_force: watch::Receiver<InForce>,
    thread: Option<JoinHandle<()>>,
}

/// Asks the writer for what is not capture's business.
#[derive(Debug, Clone)]
pub struct WriterHandle {
    commands: mpsc::Sender<Command>,
    in_force: watch::Receiver<InForce>,
}

impl DuckSink {
    /// Starts the writer. Models are worked on as they were built, until [`WriterHandle::build`] takes what
    /// `declared` says of them; a warehouse without data takes it at once.
    ///
    /// # Errors
    /// If the file's own records are damaged, or no thread can be started.
    pub fn open(engine: Arc<Engine>, declared: Arc<Models>, clock: Arc<dyn Clock>) -> Result<Self, WarehouseError> {
        Self::open_indexing(engine, declared, clock, index::ROWS_MIN)
    }

    /// As [`DuckSink::open`]; tables get an index on their key from `index_rows_min` rows on.
    ///
    /// # Errors
    /// As [`DuckSink::open`].
    pub fn open_indexing(
        engine: Arc<Engine>,
        declared: Arc<Models>,
        clock: Arc<dyn Clock>,
        index_rows_min: u64,
    ) -> Result<Self, WarehouseError> {
        let (tell, in_force) = watch::channel(InForce::default());
        let writer = Writer::start(engine, declared, clock, tell, index_rows_min)?;
        let (commands, received) = mpsc::channel(CHANNEL_STEPS);
        let thread = std::thread::Builder::new()
            .name("warehouse-writer".into())
            .spawn(move || writer.run(received))
            .map_err(|e| WarehouseError::Records(format!("the writer's thread cannot start: {e}")))?;
        Ok(Self { commands, in_force, thread: Some(thread) })
    }

    /// For building models beside capture.
    #[must_use]
    pub fn handle(&self) -> WriterHandle {
        WriterHandle { commands: self.commands.clone(), in_force: self.in_force.clone() }
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

    /// Builds all models anew from raw and staging, in one transaction between two batches, as they were built
    /// before; their names.
    ///
    /// # Errors
    /// If a model cannot be built; nothing has changed then.
    pub async fn rebuild(&self) -> Result<Vec<String>, WarehouseError> {
        self.ask(Outside::Rebuild).await
    }

    /// Takes new declarations and does what their plan says. A model that cannot be built is held: it goes on
    /// as it was built before, and the others are built. `unfit` are models that need not be tried, with reasons.
    ///
    /// # Errors
    /// If the engine fails otherwise; what was built goes on then, and the declarations are tried again later.
    pub async fn build(&self, models: Arc<Models>, unfit: BTreeMap<String, String>) -> Result<Built, WarehouseError> {
        self.ask(|reply| Outside::Build { models, unfit, reply }).await
    }

    /// The models as they are worked with now.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.in_force.borrow().clone()
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
    let session = engine.connect()?;
    Ok(plan(&records::built(&session)?, models))
}

/// Compares each model with what its declaration makes of raw and staging, surrogate keys included:
/// in the pinned state `pinned`, or in the newest. Blocking; takes about as long as a rebuild.
///
/// # Errors
/// If there is no such pinned state, or the engine fails.
pub fn verify_models(engine: &Engine, models: &Models, pinned: Option<&str>) -> Result<Vec<Compared>, WarehouseError> {
    reading(engine, pinned, |connection| build::verify(connection, models))
}

/// As [`verify_models`], for the models as they were built, whatever is declared now.
///
/// # Errors
/// As [`verify_models`].
pub fn verify_built(engine: &Engine, pinned: Option<&str>) -> Result<Vec<Compared>, WarehouseError> {
    reading(engine, pinned, |connection| {
        let models: Models = records::built_models(connection)?.into_values().collect();
        build::verify(connection, &models)
    })
}

fn reading<T>(
    engine: &Engine,
    pinned: Option<&str>,
    read: impl FnOnce(&duckdb::Connection) -> Result<T, WarehouseError>,
) -> Result<T, WarehouseError> {
    match pinned {
        Some(name) => {
            let session =
                engine.pinned(name).ok_or_else(|| WarehouseError::Records(format!("nothing is pinned as {name}")))?;
            let session = lock(&session);
            read(&session)
        }
        None => {
            let session = engine.connect()?;
            session.execute_batch("begin transaction read only")?;
            read(&session)
        }
    }
}
