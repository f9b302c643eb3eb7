//! The writer's thread.
//!
//! Invariants: all writing to the file happens on this thread, in the order of its bounded channel; work
//! that does not belong to the open batch waits until the batch has ended. A model that fails never stops
//! the others: it is held, and the batch repeated without it. After a fatal error of the engine the file is
//! closed and opened again here; what was committed is read from it, nothing is taken from memory.

mod models;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_base::Clock;
use millrace_contract::{Applied, BatchEnd, RunKind, SinkError, TableSchema};
use millrace_model::{Change, Model, Models, Source};
use tokio::sync::{mpsc, watch};

use crate::{
    batch::{self, Batch, BatchError, Prepared, State},
    build,
    engine::{Engine, Session},
    error::{Trouble, WarehouseError},
    force::{Held, HeldModel, Kept, in_force},
    index::Indexes,
    records, statement,
    writer::{Built, Command, InForce, Outside, Reply},
};

/// The write-ahead log is folded into the file when it is larger than this and nothing is pinned.
const CHECKPOINT_WAL_BYTES: u64 = 256 << 20;
/// Statements of readers may hold the file open for so long after a fatal error.
const REOPEN_MAX: Duration = Duration::from_secs(30);
/// Fatal errors in a row, without a load between them, after which a person is asked.
const FATAL_IN_A_ROW_MAX: u32 = 3;
/// Declarations that could not be built for want of disk or memory are tried again after this.
const BUILD_AGAIN: Duration = Duration::from_secs(30);

/// The tables that models find, with their columns.
type Tables = Vec<Arc<TableSchema>>;

pub(crate) struct Writer {
    engine: Arc<Engine>,
    connection: Session,
    clock: Arc<dyn Clock>,
    declared: Arc<Models>,
    /// Models that are known to be unfit, from the source's catalog.
    unfit: BTreeMap<String, String>,
    held: BTreeMap<String, Held>,
    /// The tables when the held models were last tried.
    tried: Tables,
    /// Monotonic: when to try the declarations again although nothing changed.
    build_at: Option<Duration>,
    in_force: watch::Sender<InForce>,
    state: State,
    indexes: Indexes,
    open: Option<Batch>,
    /// The open batch has failed: its later steps are thrown away, its commit answers with this.
    failed: Option<BatchError>,
    waiting: Vec<Outside>,
    /// There was a copy since the last checkpoint.
    copied: bool,
    /// Something failed since it was last looked whether the engine is alive.
    suspect: bool,
    fatal_in_a_row: u32,
}

/// Why the writer stopped serving.
enum Ended {
    Closed,
    /// The engine answers nothing any more, in its own words.
    Broken(String),
}

impl Writer {
    pub(crate) fn start(
        engine: Arc<Engine>,
        declared: Arc<Models>,
        clock: Arc<dyn Clock>,
        in_force: watch::Sender<InForce>,
        index_rows_min: u64,
    ) -> Result<Self, WarehouseError> {
        let connection = engine.connect()?;
        let state = State::read(&connection, declared.clone())?;
        let mut writer = Self {
            engine,
            connection,
            clock,
            declared,
            unfit: BTreeMap::new(),
            held: BTreeMap::new(),
            tried: Tables::new(),
            build_at: None,
            in_force,
            state,
            indexes: Indexes::new(index_rows_min),
            open: None,
            failed: None,
            waiting: Vec::new(),
            copied: false,
            suspect: false,
            fatal_in_a_row: 0,
        };
        writer.take_as_built()?;
        writer.indexes.count(&writer.connection, &writer.state.tables, &writer.state.models)?;
        writer.state.indexed = writer.indexes.indexed();
        Ok(writer)
    }

    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            match self.serve(&mut commands) {
                Ended::Closed => break,
                Ended::Broken(reason) => match self.mend(&reason, &mut commands) {
                    Some(mended) => self = mended,
                    None => return,
                },
            }
        }
        self.rollback();
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "the warehouse was not checkpointed at its end");
        }
    }

    fn serve(&mut self, commands: &mut mpsc::Receiver<Command>) -> Ended {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Resume(reply) => {
                    let resume = records::resume(&self.connection).map_err(SinkError::from);
                    self.answer(reply, resume);
                }
                Command::Begin { kind, system_id, reply } => {
                    let begun = self.begin(kind, system_id);
                    self.answer(reply, begun);
                }
                Command::Step(step) => self.step(step),
                Command::Commit { end, reply } => {
                    let result = self.commit(&end);
                    self.answer(reply, result);
                    self.after_batch();
                }
                Command::Rollback(reply) => {
                    self.rollback();
                    self.answer(reply, Ok(()));
                    self.after_batch();
                }
                Command::Advance { end, reply } => {
                    let advanced = self.advance(&end);
                    self.answer(reply, advanced);
                }
                Command::Quarantine { table, reason, reply } => {
                    let kept = self.transaction(|writer| {
                        records::quarantine(&writer.connection, &table, &reason, writer.clock.wall())
                    });
                    self.answer(reply, kept.map_err(SinkError::from));
                }
                Command::Pin { name, reply } => {
                    let pinned = self.engine.pin(&name).map_err(SinkError::from);
                    self.answer(reply, pinned);
                }
                Command::Outside(outside) if self.open.is_some() => self.waiting.push(outside),
                Command::Outside(outside) => self.outside(outside),
                Command::Close => return Ended::Closed,
            }
            if std::mem::take(&mut self.suspect)
                && let Some(reason) = self.broken()
            {
                return Ended::Broken(reason);
            }
        }
        Ended::Closed
    }

    /// The asker may have gone away; then nobody wants the answer.
    fn answer<T, E>(&mut self, reply: Reply<Result<T, E>>, value: Result<T, E>) {
        self.suspect |= value.is_err();
        if reply.send(value).is_err() {
            tracing::trace!("an answer of the warehouse writer was not waited for");
        }
    }

    /// The engine's words if it has given up.
    fn broken(&self) -> Option<String> {
        let probe = self.connection.execute_batch("select count(*) from audit.watermarks");
        let error = WarehouseError::from(probe.err()?);
        (error.trouble() == Trouble::Fatal).then(|| error.words())
    }

    /// Closes the file and opens it again; until that succeeds every request is refused. `None`: the writer is
    /// to end.
    fn mend(self, reason: &str, commands: &mut mpsc::Receiver<Command>) -> Option<Self> {
        tracing::error!(reason, "the warehouse engine has given up; its file is closed and opened again");
        let full = crate::error::is_full(reason);
        let fatal_in_a_row = if full { self.fatal_in_a_row } else { self.fatal_in_a_row + 1 };
        let index_rows_min = self.indexes.rows_min();
        let Self { engine, connection, clock, declared, unfit, waiting, in_force, .. } = self;
        drop(connection);
        let mut refusal = if fatal_in_a_row > FATAL_IN_A_ROW_MAX {
            Err(SinkError::Fatal {
                reason: format!("the engine failed {fatal_in_a_row} times in a row: {reason}"),
                hint: "`millrace down`, then `millrace up`; if it comes back, report it with the log".to_owned(),
            })
        } else {
            Ok(())
        };
        loop {
            if refusal.is_ok() {
                let opened = engine.reopen(REOPEN_MAX).and_then(|()| {
                    let (engine, declared, clock) = (engine.clone(), declared.clone(), clock.clone());
                    Self::start(engine, declared, clock, in_force.clone(), index_rows_min)
                });
                match opened {
                    Ok(mut writer) => {
                        tracing::info!("the warehouse is open again");
                        writer.fatal_in_a_row = fatal_in_a_row;
                        writer.unfit = unfit;
                        // what was given up midway is taken up again after the next load
                        writer.build_at = Some(Duration::ZERO);
                        for outside in waiting {
                            writer.outside(outside);
                        }
                        return Some(writer);
                    }
                    Err(error) => {
                        tracing::warn!(error = %error.words(), "the warehouse cannot be opened again yet");
                        refusal =
                            Err(if full { SinkError::Full(error.words()) } else { SinkError::Retry(error.words()) });
                    }
                }
            }
            let again = matches!(refusal, Err(SinkError::Full(_) | SinkError::Retry(_)));
            let resume = refuse(commands.blocking_recv()?, &refusal)?;
            if again && resume {
                refusal = Ok(());
            }
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
            None => self.apply(batch, end),
        };
        match result {
            Ok(applied) => {
                self.restore();
                self.fatal_in_a_row = 0;
                self.engine.confirm(self.clock.wall());
                if kind != RunKind::Changes {
                    self.indexes.recount();
                    self.copied = true;
                }
                Ok(applied)
            }
            Err(error) => {
                self.roll_back_transaction();
                self.restore();
                let failure = batch::Failure { run_id, kind: kind.name(), started_at, error: batch::words(&error) };
                // where there is no room, no line a second about that
                if !error.is_for_want_of_the_engine()
                    && let Err(problem) =
                        batch::record_failure(&self.connection, &mut self.state, &failure, self.clock.wall())
                {
                    tracing::warn!(error = %problem.words(), "a failed load could not be recorded");
                }
                Err(self.refusal(error))
            }
        }
    }

    fn apply(&mut self, batch: Batch, end: &BatchEnd) -> Result<Applied, BatchError> {
        if *batch.kind() == RunKind::Changes {
            statement::for_changes(&self.connection, batch.is_small())?;
        }
        batch.commit(&self.connection, &mut self.state, end, &*self.clock)
    }

    /// Ends what a batch has set for itself.
    fn restore(&mut self) {
        if let Err(error) = statement::restore(&self.connection, self.engine.threads()) {
            tracing::warn!(%error, "the engine's settings stay those of a batch");
            self.suspect = true;
        }
    }

    /// What capture is told of a failed batch. A model at fault is held first, so that the next try goes without.
    fn refusal(&mut self, error: BatchError) -> SinkError {
        if let BatchError::Warehouse(WarehouseError::Build { model, reason }) = &error {
            match self.hold(model, reason) {
                Ok(()) => return SinkError::Retry(format!("model {model} is held: {reason}")),
                Err(problem) => tracing::error!(error = %problem.words(), model, "a model could not be held"),
            }
        }
        error.into()
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
            self.suspect = true;
        }
        for outside in std::mem::take(&mut self.waiting) {
            self.outside(outside);
        }
        self.build_if_it_may_help();
        let taken = std::mem::take(&mut self.state.taken);
        if let Err(error) = self.indexes.tend(&self.connection, &self.state.tables, &self.state.models, &taken) {
            tracing::warn!(error = %error.words(), "an index could not be made or dropped; results do not depend on it");
            self.suspect = true;
        }
        self.state.indexed = self.indexes.indexed();
        // what is committed is committed: nobody waits for this, and one that fails is made up for by the next
        let due = self.copied || self.wal_bytes() > CHECKPOINT_WAL_BYTES;
        if !due || self.engine.has_pins() {
            return;
        }
        self.copied = false;
        if let Err(error) = self.checkpoint() {
            tracing::warn!(error = %error.words(), "the warehouse cannot be checkpointed now");
            self.suspect = true;
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
            Outside::Rebuild(reply) => {
                let rebuilt = self.rebuild();
                self.answer(reply, rebuilt);
            }
            Outside::Build { models, unfit, reply } => {
                self.declared = models;
                self.unfit = unfit;
                let built = self.build();
                self.answer(reply, built);
            }
            Outside::Checkpoint(reply) => {
                let done = self.checkpoint();
                self.answer(reply, done);
            }
        }
    }

    fn checkpoint(&self) -> Result<(), WarehouseError> {
        Ok(self.connection.execute_batch("checkpoint")?)
    }
}

/// Refuses one request while the file is closed. Whether it was one after which to try again; `None` to end.
fn refuse(command: Command, refusal: &Result<(), SinkError>) -> Option<bool> {
    let because = || match refusal {
        Err(SinkError::Fatal { reason, hint }) => SinkError::Fatal { reason: reason.clone(), hint: hint.clone() },
        Err(SinkError::Full(reason)) => SinkError::Full(reason.clone()),
        Err(SinkError::Retry(reason)) => SinkError::Retry(reason.clone()),
        Err(other) => SinkError::Retry(other.to_string()),
        Ok(()) => SinkError::Retry("the warehouse is closed".to_owned()),
    };
    let mut resume = false;
    // an asker who has gone away needs no answer
    match command {
        Command::Resume(reply) => {
            resume = true;
            drop(reply.send(Err(because())));
        }
        Command::Begin { reply, .. } | Command::Rollback(reply) => drop(reply.send(Err(because()))),
        Command::Advance { reply, .. } | Command::Quarantine { reply, .. } | Command::Pin { reply, .. } => {
            drop(reply.send(Err(because())));
        }
        Command::Commit { reply, .. } => drop(reply.send(Err(because()))),
        Command::Step(_) => {}
        Command::Outside(outside) => match outside {
            Outside::Rebuild(reply) => drop(reply.send(Err(WarehouseError::Closed))),
            Outside::Build { reply, .. } => drop(reply.send(Err(WarehouseError::Closed))),
            Outside::Checkpoint(reply) => drop(reply.send(Err(WarehouseError::Closed))),
        },
        Command::Close => return None,
    }
    Some(resume)
}
