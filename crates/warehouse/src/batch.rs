//! A batch from its first step to its commit: one transaction of raw history, staging, models, run and watermark.
//!
//! Invariants: nothing of a failed batch stays, but for the rows of a first copy, which count for nothing and are copied anew;
//! changes of a key apply in `(commit_lsn, sequence)` order and only the last one reaches staging, while `raw` keeps all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Int64Array},
    datatypes::{DataType, Field, Schema},
    record_batch::RecordBatch,
};
use duckdb::Connection;
use millrace_base::{Ident, Lsn, Micros, failpoint};
use millrace_contract::{Applied, BatchEnd, RowHead, RunKind, SinkError, TableName, TableSchema};
use millrace_model::Models;

use crate::{
    build::{self, IncrementalError},
    convert::{Converted, RowFacts},
    error::{Trouble, WarehouseError, message},
    index::Taken,
    records::{self, Known, Run},
    schema_change,
    statement::{ONE_THREAD_ROWS_MAX, Runner, timed},
    table::Table,
    unchanged,
};

/// One step of a batch, ready to be stored.
#[derive(Debug)]
pub(crate) enum Prepared {
    Schema(Arc<TableSchema>),
    Rows(Converted),
    Truncate { table: TableName, head: RowHead },
}

/// What the writer knows beside the file.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) models: Arc<Models>,
    /// Source tables by bare name; what is committed.
    pub(crate) tables: BTreeMap<String, Known>,
    /// Names of the models that are built.
    pub(crate) built: BTreeSet<String>,
    pub(crate) last_run: i64,
    /// What the last batch took out of each table.
    pub(crate) taken: Taken,
    /// Tables with an index on their key, as statements write them, and up to how many keys are looked up in it.
    pub(crate) indexed: Vec<(String, u64)>,
}

impl State {
    /// Reads what the file remembers.
    pub(crate) fn read(connection: &Connection, models: Arc<Models>) -> Result<Self, WarehouseError> {
        Ok(Self {
            models,
            tables: records::tables(connection)?,
            built: records::built(connection)?.into_keys().collect(),
            last_run: records::last_run(connection)?,
            taken: Taken::new(),
            indexed: Vec::new(),
        })
    }

    /// Bare names of tables whose rows are in.
    pub(crate) fn copied(&self) -> BTreeSet<String> {
        self.tables.iter().filter(|(_, k)| k.copied).map(|(name, _)| name.clone()).collect()
    }
}

/// The open batch.
#[derive(Debug)]
pub(crate) struct Batch {
    kind: RunKind,
    system_id: u64,
    pub(crate) run_id: i64,
    pub(crate) started_at: Micros,
    /// As the batch leaves them.
    tables: BTreeMap<String, Known>,
    /// Tables with rows or truncations in this batch.
    touched: BTreeMap<String, Touched>,
    /// Models that read a column whose type changed: they are built anew.
    retyped: BTreeSet<String>,
    /// The rows of a first copy are committed before models are built of them: the engine reads what is committed with
    /// all its threads, and what is not with one. Nothing counts as copied before the models are there.
    rows_first: bool,
}

#[derive(Debug, Default)]
struct Touched {
    facts: RowFacts,
    truncated: bool,
    /// Where the copy stands, for the rows that a resync finds missing.
    copy_time: Option<Micros>,
}

/// What a first copy has left that did not come to its end counts for nothing, and takes room.
fn forget_leftovers(connection: &Connection) -> Result<(), BatchError> {
    let mut left = records::tables(connection)?;
    left.retain(|_, known| !known.copied);
    if left.is_empty() {
        return Ok(());
    }
    let drops: String = left.values().map(|known| Table(&known.schema).drop()).collect();
    connection
        .execute_batch(&format!("begin transaction; {drops} delete from audit.tables where not copied; commit"))?;
    // the room is free after it
    if let Err(error) = connection.execute_batch("checkpoint") {
        tracing::warn!(%error, "what a first copy has left keeps its room for now");
    }
    Ok(())
}

/// Why a batch failed, before it is known what the caller may do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
    #[error("table {table} cannot be applied: {reason}")]
    Table { table: TableName, reason: String },
    #[error("table {table} was altered between two of its changes")]
    Altered { table: TableName },
    #[error(transparent)]
    Failpoint(#[from] failpoint::Hit),
}

impl BatchError {
    /// It is no fault of what was to be stored.
    pub(crate) fn is_for_want_of_the_engine(&self) -> bool {
        matches!(self, Self::Warehouse(error) if matches!(error.trouble(), Trouble::Full | Trouble::Fatal))
    }
}

impl From<duckdb::Error> for BatchError {
    fn from(error: duckdb::Error) -> Self {
        Self::Warehouse(error.into())
    }
}

impl From<IncrementalError> for BatchError {
    fn from(error: IncrementalError) -> Self {
        match error {
            IncrementalError::Warehouse(e) => Self::Warehouse(e),
            IncrementalError::Failpoint(e) => Self::Failpoint(e),
        }
    }
}

impl From<BatchError> for SinkError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Warehouse(e) => e.into(),
            BatchError::Table { table, reason } => Self::Table { table, reason },
            BatchError::Altered { table } => Self::Altered { table },
            BatchError::Failpoint(hit) => Self::Retry(hit.to_string()),
        }
    }
}

impl Batch {
    /// Opens the transaction.
    pub(crate) fn begin(
        connection: &Connection,
        state: &State,
        kind: RunKind,
        system_id: u64,
        now: Micros,
    ) -> Result<Self, BatchError> {
        failpoint::pass("batch.begin")?;
        let mut tables = state.tables.clone();
        // else what is there would stay in force with other rows, should this die in between
        let rows_first = kind == RunKind::InitialCopy && state.copied().is_empty() && state.built.is_empty();
        if rows_first {
            forget_leftovers(connection)?;
            // what this copy does not bring is not there
            tables.clear();
        }
        connection.execute_batch("begin transaction")?;
        if kind == RunKind::InitialCopy {
            for known in tables.values_mut() {
                known.copied = false;
            }
        }
        Ok(Self {
            kind,
            system_id,
            run_id: state.last_run + 1,
            started_at: now,
            tables,
            touched: BTreeMap::new(),
            retyped: BTreeSet::new(),
            rows_first,
        })
    }

    /// So few changes that one engine thread is quicker than several. What a change of a shared row may reach is not
    /// known before.
    pub(crate) fn is_small(&self) -> bool {
        let rows: u64 = self.touched.values().map(|t| t.facts.rows).sum();
        let whole = !self.retyped.is_empty() || self.touched.values().any(|t| t.truncated);
        self.kind == RunKind::Changes && !whole && rows < ONE_THREAD_ROWS_MAX
    }

    pub(crate) fn kind(&self) -> &RunKind {
        &self.kind
    }

    /// Takes one step into the transaction.
    pub(crate) fn step(&mut self, connection: &Connection, models: &Models, step: Prepared) -> Result<(), BatchError> {
        match step {
            Prepared::Schema(schema) => self.schema(connection, models, &schema),
            Prepared::Rows(rows) => self.rows(connection, models, rows),
            Prepared::Truncate { table, head } => self.truncate(connection, &table, head),
        }
    }

    fn schema(
        &mut self,
        connection: &Connection,
        models: &Models,
        schema: &Arc<TableSchema>,
    ) -> Result<(), BatchError> {
        let name = &schema.table.name;
        let fail = |reason: String| BatchError::Table { table: schema.table.clone(), reason };
        if schema.key().next().is_none() {
            return Err(fail("it has no primary key or replica identity; give it one, then resync it".into()));
        }
        if let Some(column) = schema.columns.iter().find(|c| c.name.starts_with('_')) {
            return Err(fail(format!(
                "column {} begins with an underscore, which the warehouse keeps for itself",
                column.name
            )));
        }
        let copied = match self.tables.get(name) {
            Some(known) if known.schema.table != schema.table => {
                return Err(fail(format!("table {} has the same name; rename one of them", known.schema.table)));
            }
            Some(known) if known.schema == *schema && known.copied => return Ok(()),
            Some(known) if known.copied => {
                self.retyped.extend(schema_change::retyped(models, &known.schema, schema));
                let open = self.touched.contains_key(name);
                if self.kind == RunKind::Resync(schema.table.clone()) {
                    schema_change::force(connection, models, known, schema).map_err(fail_with(&schema.table))?;
                } else {
                    schema_change::apply(connection, models, known, schema, open).map_err(fail_with(&schema.table))?;
                }
                true
            }
            Some(_) | None => {
                connection.execute_batch(&Table(schema).create())?;
                self.kind == RunKind::Changes
            }
        };
        self.tables.insert(name.clone(), Known { schema: schema.clone(), copied });
        records::keep_table(connection, &Known { schema: schema.clone(), copied })?;
        Ok(())
    }

    /// Makes the place for a table's changes on its first ones.
    fn touch(&mut self, connection: &Connection, table: &TableName) -> Result<&mut Touched, BatchError> {
        let Some(known) = self.tables.get(&table.name) else {
            return Err(BatchError::Table {
                table: table.clone(),
                reason: "its columns were never announced; resync it".into(),
            });
        };
        if !self.touched.contains_key(&table.name) {
            if self.kind != RunKind::InitialCopy {
                connection.execute_batch(&Table(&known.schema).create_batch())?;
            }
            self.touched.insert(table.name.clone(), Touched::default());
        }
        self.touched
            .get_mut(&table.name)
            .ok_or_else(|| BatchError::Table { table: table.clone(), reason: "it is not open".into() })
    }

    fn rows(&mut self, connection: &Connection, models: &Models, rows: Converted) -> Result<(), BatchError> {
        let table = rows.schema.table.clone();
        if self.tables.get(&table.name).is_none_or(|k| k.schema != rows.schema) {
            let schema = rows.schema.clone();
            self.schema(connection, models, &schema)?;
        }
        let initial = self.kind == RunKind::InitialCopy;
        let touched = self.touch(connection, &table)?;
        touched.facts.add(rows.facts);
        let columns = rows.batch.num_columns();
        if initial {
            // staging and history are filled straight from the copy
            let source = columns.saturating_sub(5);
            let part =
                |columns: Vec<usize>| rows.batch.project(&columns).map_err(|e| WarehouseError::Records(e.to_string()));
            let staging = part((0..source).chain([source, source + 1]).collect())?;
            connection.appender_to_db(&table.name, "staging")?.append_record_batch(staging)?;
            let history = with_run(&part((0..source + 4).collect())?, self.run_id)?;
            connection.appender_to_db(&table.name, "raw")?.append_record_batch(history)?;
            return Ok(());
        }
        if touched.copy_time.is_none() {
            touched.copy_time = first_time(&rows);
        }
        let names: Vec<String> = rows.batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        connection
            .appender_with_columns_to_catalog_and_db(&format!("batch_{}", table.name), "temp", "main", &names)?
            .append_record_batch(rows.batch)?;
        Ok(())
    }

    fn truncate(&mut self, connection: &Connection, table: &TableName, head: RowHead) -> Result<(), BatchError> {
        self.touch(connection, table)?.truncated = true;
        if let Some(known) = self.tables.get(&table.name) {
            connection.execute_batch(&Table(&known.schema).truncate(
                head.commit_lsn.0,
                head.sequence,
                head.commit_time.0,
            ))?;
        }
        Ok(())
    }

    /// Applies everything and commits.
    pub(crate) fn commit(
        mut self,
        connection: &Connection,
        state: &mut State,
        end: &BatchEnd,
        clock: &dyn millrace_base::Clock,
    ) -> Result<Applied, BatchError> {
        let mut applied = Applied { run_id: self.run_id, ..Applied::default() };
        let mut counts = serde_json::Map::new();
        if self.rows_first {
            timed(connection, "commit")?;
            failpoint::pass("batch.after_copy")?;
            timed(connection, "begin transaction")?;
        }
        let fresh = match self.kind.clone() {
            RunKind::InitialCopy => self.finish_copy(connection, &mut applied, &mut counts)?,
            RunKind::Resync(table) => {
                self.finish_resync(connection, &table, end)?;
                false
            }
            RunKind::Changes => false,
        };
        let mut built = state.built.clone();
        let mut taken = Taken::new();
        if fresh {
            failpoint::pass("batch.after_staging")?;
            let copied: BTreeSet<String> = self.tables.keys().cloned().collect();
            records::clear_models(connection)?;
            build::rebuild(connection, &state.models, &copied, None, clock.wall())?;
            failpoint::pass("batch.after_dimensions")?;
            failpoint::pass("batch.after_facts")?;
            built = records::built(connection)?.into_keys().collect();
        } else {
            let mut changed = BTreeSet::new();
            let runner = Runner { connection, indexed: &state.indexed };
            for (name, touched) in &self.touched {
                let Some(known) = self.tables.get(name) else { continue };
                let written = apply_table(runner, &known.schema, &state.models, touched, self.run_id)?;
                applied.rows_inserted += written.inserted;
                applied.rows_updated += written.updated;
                applied.rows_deleted += written.deleted;
                counts.insert(name.clone(), written.to_json());
                taken.insert(("staging", name.clone()), written.updated + written.deleted);
                changed.insert(name.clone());
            }
            failpoint::pass("batch.after_staging")?;
            built.retain(|model| !self.retyped.contains(model));
            build::incremental(runner, &state.models, &built, changed, &mut taken)?;
            if !self.retyped.is_empty() {
                let copied = self.tables.iter().filter(|(_, k)| k.copied).map(|(n, _)| n.clone()).collect();
                build::rebuild(connection, &state.models, &copied, Some(&self.retyped), clock.wall())?;
                built = records::built(connection)?.into_keys().collect();
            }
            if let RunKind::Resync(_) = self.kind {
                let copied: BTreeSet<String> =
                    self.tables.iter().filter(|(_, k)| k.copied).map(|(n, _)| n.clone()).collect();
                build::reconcile(connection, &state.models, &copied, clock.wall())?;
                built = records::built(connection)?.into_keys().collect();
            }
        }
        let now = clock.wall();
        let empty =
            self.kind == RunKind::Changes && applied.rows_inserted + applied.rows_updated + applied.rows_deleted == 0;
        let run_id = if empty { state.last_run } else { self.run_id };
        if !empty {
            let run = Run {
                run_id,
                kind: self.kind.name(),
                status: "committed",
                started_at: self.started_at,
                finished_at: now,
                inserted: applied.rows_inserted,
                updated: applied.rows_updated,
                deleted: applied.rows_deleted,
                tables: serde_json::Value::Object(counts).to_string(),
                watermark: end.watermark,
                error: None,
            };
            records::keep_run(connection, &run)?;
        }
        records::keep_watermark(connection, self.system_id, end, run_id, now)?;
        failpoint::pass("batch.before_commit")?;
        timed(connection, "commit")?;
        state.tables = self.tables;
        state.built = built;
        state.taken = taken;
        state.last_run = run_id;
        applied.run_id = run_id;
        applied.duration_ms = u64::try_from(now.since(self.started_at).as_millis()).unwrap_or(u64::MAX);
        failpoint::pass("batch.after_commit")?;
        Ok(applied)
    }

    /// History of a first copy, and what was there of tables that are no longer copied goes.
    fn finish_copy(
        &mut self,
        connection: &Connection,
        applied: &mut Applied,
        counts: &mut serde_json::Map<String, serde_json::Value>,
    ) -> Result<bool, BatchError> {
        let announced: Vec<String> = self.tables.keys().cloned().collect();
        connection.execute_batch("delete from audit.tables; delete from audit.quarantine")?;
        for name in announced {
            let Some(known) = self.tables.get_mut(&name) else { continue };
            if known.copied
                || connection.query_row(
                    "select count(*) from duckdb_tables() where schema_name = 'staging' and table_name = ?",
                    [&name],
                    |r| r.get::<_, i64>(0),
                )? == 0
            {
                continue;
            }
            known.copied = true;
            let touched = self.touched.remove(&name).unwrap_or_default();
            records::keep_table(connection, known)?;
            applied.rows_inserted += touched.facts.rows;
            counts.insert(name, serde_json::json!({ "inserted": touched.facts.rows }));
        }
        failpoint::pass("batch.after_raw")?;
        Ok(true)
    }

    /// Turns the copy into changes.
    fn finish_resync(&mut self, connection: &Connection, name: &TableName, end: &BatchEnd) -> Result<(), BatchError> {
        self.touch(connection, name)?;
        let (Some(known), Some(touched)) = (self.tables.get_mut(&name.name), self.touched.get_mut(&name.name)) else {
            return Ok(());
        };
        known.copied = true;
        let table = Table(&known.schema);
        for sql in table.differences() {
            connection.execute_batch(&sql)?;
        }
        let time = touched.copy_time.unwrap_or(end.commit_time);
        connection.execute_batch(&table.missing(end.watermark.0, touched.facts.rows, time.0))?;
        // what remains are changes of any kind
        touched.facts = RowFacts { rows: 1, updates: 1, ..RowFacts::default() };
        records::keep_table(connection, known)?;
        records::release(connection, name)?;
        Ok(())
    }
}

/// The rows with one more column: the run that brings them.
fn with_run(rows: &RecordBatch, run_id: i64) -> Result<RecordBatch, WarehouseError> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("_run_id", DataType::Int64, false)));
    let runs: ArrayRef = Arc::new(Int64Array::from_value(run_id, rows.num_rows()));
    let columns = rows.columns().iter().cloned().chain([runs]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| WarehouseError::Records(e.to_string()))
}

/// The commit time that a copy's rows carry.
fn first_time(rows: &Converted) -> Option<Micros> {
    use arrow::array::{Array, TimestampMicrosecondArray};
    let column = rows.batch.column_by_name("_commit_time")?;
    let times = column.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
    (!times.is_empty()).then(|| Micros(times.value(0)))
}

fn fail_with(table: &TableName) -> impl Fn(schema_change::Refused) -> BatchError {
    let table = table.clone();
    move |refused| match refused {
        schema_change::Refused::Table(reason) => BatchError::Table { table: table.clone(), reason },
        schema_change::Refused::Altered => BatchError::Altered { table: table.clone() },
        schema_change::Refused::Warehouse(error) => BatchError::Warehouse(error),
    }
}

/// The table's columns whose values before the batch matter to models, and its key.
fn needed<'a>(models: &Models, schema: &'a TableSchema) -> Vec<&'a str> {
    let read = models.columns_before(&schema.table.name);
    schema.columns.iter().filter(|c| c.key || read.contains(&c.name)).map(|c| c.name.as_str()).collect()
}

/// What a table's changes came to, by keys before and after.
#[derive(Debug, Clone, Copy)]
struct Written {
    inserted: u64,
    updated: u64,
    deleted: u64,
}

impl Written {
    fn to_json(self) -> serde_json::Value {
        serde_json::json!({ "inserted": self.inserted, "updated": self.updated, "deleted": self.deleted })
    }
}

/// Writes a table's changes into history and staging.
fn apply_table(
    runner: Runner<'_>,
    schema: &TableSchema,
    models: &Models,
    touched: &Touched,
    run_id: i64,
) -> Result<Written, BatchError> {
    let connection = runner.connection;
    let table = Table(schema);
    if touched.facts.unchanged > 0 {
        unchanged::fill(connection, schema).map_err(|e| match e {
            unchanged::Unfilled::Missing(reason) => BatchError::Table { table: schema.table.clone(), reason },
            unchanged::Unfilled::Warehouse(e) => e.into(),
        })?;
    }
    runner.run(&table.insert_raw(run_id))?;
    failpoint::pass("batch.after_raw")?;
    let only_inserts = touched.facts.rows == touched.facts.inserts && !touched.truncated;
    runner.run(&table.create_new(only_inserts))?;
    let needed = needed(models, schema);
    runner.run(&table.create_old(&needed, only_inserts))?;
    let (new, old, both): (u64, u64, u64) =
        connection.query_row(&table.count(), [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if old > 0 {
        runner.run(&table.delete_old())?;
    }
    if new > 0 {
        runner.run(&table.insert_new())?;
    }
    Ok(Written { inserted: new - both, updated: both, deleted: old - both })
}

/// A load that failed.
#[derive(Debug)]
pub(crate) struct Failure<'a> {
    pub(crate) run_id: i64,
    pub(crate) kind: &'a str,
    pub(crate) started_at: Micros,
    pub(crate) error: String,
}

/// Keeps a failed load in `audit.etl_runs`, in a transaction of its own, once its batch is rolled back.
pub(crate) fn record_failure(
    connection: &Connection,
    state: &mut State,
    failure: &Failure<'_>,
    now: Micros,
) -> Result<(), WarehouseError> {
    let run = Run {
        run_id: failure.run_id,
        kind: failure.kind,
        status: "failed",
        started_at: failure.started_at,
        finished_at: now,
        inserted: 0,
        updated: 0,
        deleted: 0,
        tables: "{}".into(),
        watermark: Lsn::INVALID,
        error: Some(&failure.error),
    };
    records::keep_run(connection, &run)?;
    state.last_run = failure.run_id;
    Ok(())
}

/// Frees what the batch's temporary tables held.
pub(crate) fn drop_temporary(connection: &Connection) -> Result<(), WarehouseError> {
    let mut statement = connection.prepare("select table_name from duckdb_tables() where temporary")?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in names {
        connection.execute_batch(&format!("drop table if exists temp.{}", Ident(&name)))?;
    }
    Ok(())
}

/// The engine's words, for a run's record.
pub(crate) fn words(error: &BatchError) -> String {
    match error {
        BatchError::Warehouse(WarehouseError::Engine(source)) => message(source),
        other => other.to_string(),
    }
}
