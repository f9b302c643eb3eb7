//! What the warehouse remembers of itself: `audit`.

use std::{collections::BTreeMap, sync::Arc};

use duckdb::{Connection, params};
use millrace_base::{Lsn, Micros, ident::Literal};
use millrace_contract::{BatchEnd, TableName, TableSchema, sink::Resume};
use millrace_model::{Model, Models};

use crate::{error::WarehouseError, force::Held};

/// A time as SQL.
pub(crate) fn time(at: Micros) -> String {
    format!("cast(make_timestamp({}) as timestamptz)", at.0)
}

/// A table that the warehouse holds.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) schema: Arc<TableSchema>,
    /// Its copy is in.
    pub(crate) copied: bool,
}

/// All tables, by bare name.
pub(crate) fn tables(connection: &Connection) -> Result<BTreeMap<String, Known>, WarehouseError> {
    let mut statement = connection.prepare("select table_name, schema_json, copied from audit.tables")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, bool>(2)?)))?;
    let mut tables = BTreeMap::new();
    for row in rows {
        let (name, json, copied) = row?;
        let schema: TableSchema =
            serde_json::from_str(&json).map_err(|e| WarehouseError::Records(format!("audit.tables, {name}: {e}")))?;
        tables.insert(schema.table.name.clone(), Known { schema: Arc::new(schema), copied });
    }
    Ok(tables)
}

/// Keeps a table's columns.
pub(crate) fn keep_table(connection: &Connection, known: &Known) -> Result<(), WarehouseError> {
    let json = serde_json::to_string(&*known.schema).map_err(|e| WarehouseError::Records(e.to_string()))?;
    connection.execute("delete from audit.tables where table_name = ?", [&known.schema.table.to_string()])?;
    connection.execute(
        "insert into audit.tables values (?, ?, ?)",
        params![known.schema.table.to_string(), json, known.copied],
    )?;
    Ok(())
}

/// What is durable.
pub(crate) fn resume(connection: &Connection) -> Result<Resume, WarehouseError> {
    let mut resume = Resume::default();
    let mut statement = connection.prepare("select system_id, watermark from audit.watermarks")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)))? {
        let (system_id, watermark) = row?;
        resume.system_id = Some(system_id);
        resume.watermark = Lsn(watermark);
    }
    let mut statement = connection.prepare("select table_name, reason from audit.quarantine")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
        let (name, reason) = row?;
        let table = name.parse().map_err(|e| WarehouseError::Records(format!("audit.quarantine: {e}")))?;
        resume.quarantined.insert(table, reason);
    }
    resume.schemas = tables(connection)?.into_values().filter(|k| k.copied).map(|k| k.schema).collect();
    resume.tables = resume.schemas.iter().map(|schema| schema.table.clone()).collect();
    Ok(resume)
}

/// Moves the watermark, never back.
pub(crate) fn keep_watermark(
    connection: &Connection,
    system_id: u64,
    end: &BatchEnd,
    run_id: i64,
    now: Micros,
) -> Result<(), WarehouseError> {
    let moved = connection.execute(
        &format!(
            "update audit.watermarks set system_id = {system_id}, watermark = greatest(watermark, {}), \
             commit_time = greatest(commit_time, {}), run_id = greatest(run_id, {run_id}), updated_at = {}",
            end.watermark.0,
            time(end.commit_time),
            time(now)
        ),
        [],
    )?;
    if moved == 0 {
        connection.execute_batch(&format!(
            "insert into audit.watermarks values ('primary', {system_id}, {}, {}, {run_id}, {})",
            end.watermark.0,
            time(end.commit_time),
            time(now)
        ))?;
    }
    Ok(())
}

/// One load, for `audit.etl_runs`.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) run_id: i64,
    pub(crate) kind: &'a str,
    pub(crate) status: &'a str,
    pub(crate) started_at: Micros,
    pub(crate) finished_at: Micros,
    pub(crate) inserted: u64,
    pub(crate) updated: u64,
    pub(crate) deleted: u64,
    /// JSON: table → counts.
    pub(crate) tables: String,
    pub(crate) watermark: Lsn,
    pub(crate) error: Option<&'a str>,
}

/// Records a load.
pub(crate) fn keep_run(connection: &Connection, run: &Run<'_>) -> Result<(), WarehouseError> {
    connection.execute_batch(&format!(
        "insert into audit.etl_runs values ({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})",
        run.run_id,
        Literal(run.kind),
        Literal(run.status),
        time(run.started_at),
        time(run.finished_at),
        run.inserted,
        run.updated,
        run.deleted,
        Literal(&run.tables),
        run.watermark.0,
        run.error.map_or_else(|| "null".to_owned(), |e| Literal(e).to_string()),
    ))?;
    Ok(())
}

/// The greatest run id given so far.
pub(crate) fn last_run(connection: &Connection) -> Result<i64, WarehouseError> {
    Ok(connection.query_row("select coalesce(max(run_id), 0) from audit.etl_runs", [], |row| row.get(0))?)
}

/// Keeps a quarantine.
pub(crate) fn quarantine(
    connection: &Connection,
    table: &TableName,
    reason: &str,
    now: Micros,
) -> Result<(), WarehouseError> {
    release(connection, table)?;
    connection.execute(
        &format!("insert into audit.quarantine values (?, ?, {})", time(now)),
        params![table.to_string(), reason],
    )?;
    Ok(())
}

/// Ends a quarantine.
pub(crate) fn release(connection: &Connection, table: &TableName) -> Result<(), WarehouseError> {
    connection.execute("delete from audit.quarantine where table_name = ?", [&table.to_string()])?;
    Ok(())
}

/// What was built: model → declaration.
pub(crate) fn built(connection: &Connection) -> Result<BTreeMap<String, String>, WarehouseError> {
    let mut statement = connection.prepare("select name, declaration from audit.models")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The models as they were built. One that this version cannot read any more is left out.
pub(crate) fn built_models(connection: &Connection) -> Result<BTreeMap<String, Model>, WarehouseError> {
    let mut statement = connection.prepare("select name, model from audit.models where model is not null")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut models = BTreeMap::new();
    for row in rows {
        let (name, json) = row?;
        match serde_json::from_str(&json) {
            Ok(model) => drop(models.insert(name, model)),
            Err(error) => tracing::warn!(model = name, %error, "what was built of a model is not understood"),
        }
    }
    Ok(models)
}

/// Notes that a model was built.
pub(crate) fn keep_model(connection: &Connection, model: &Model, now: Micros) -> Result<(), WarehouseError> {
    forget_model(connection, model.name())?;
    let json = serde_json::to_string(model).map_err(|e| WarehouseError::Records(e.to_string()))?;
    connection.execute(
        &format!("insert into audit.models (name, declaration, built_at, model) values (?, ?, {}, ?)", time(now)),
        params![model.name(), model.declaration(), json],
    )?;
    Ok(())
}

/// Fills in the models of those that an earlier version noted without.
pub(crate) fn complete(connection: &Connection, models: &Models, now: Micros) -> Result<(), WarehouseError> {
    let mut statement = connection.prepare("select name, declaration from audit.models where model is null")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for row in rows {
        let (name, declaration) = row?;
        if let Some(model) = models.get(&name).filter(|m| m.declaration() == declaration) {
            keep_model(connection, model, now)?;
        }
    }
    Ok(())
}

/// Notes that a model is gone, or is not kept up to date any more.
pub(crate) fn forget_model(connection: &Connection, name: &str) -> Result<(), WarehouseError> {
    connection.execute("delete from audit.models where name = ?", [name])?;
    Ok(())
}

/// Forgets all models, before all are built anew.
pub(crate) fn clear_models(connection: &Connection) -> Result<(), WarehouseError> {
    connection.execute_batch("delete from audit.models")?;
    Ok(())
}

/// Declared models that are not built as declared.
pub(crate) fn held(connection: &Connection) -> Result<BTreeMap<String, Held>, WarehouseError> {
    let mut statement = connection.prepare("select name, reason, epoch_us(since), stale from audit.models_held")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, Held { reason: row.get(1)?, since: Micros(row.get(2)?), stale: row.get(3)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keeps which models are held.
pub(crate) fn keep_held(connection: &Connection, held: &BTreeMap<String, Held>) -> Result<(), WarehouseError> {
    connection.execute_batch("delete from audit.models_held")?;
    for (name, one) in held {
        connection.execute(
            &format!("insert into audit.models_held values (?, ?, {}, ?)", time(one.since)),
            params![name, one.reason, one.stale],
        )?;
    }
    Ok(())
}
