//! Models in the warehouse: building them whole, bringing them up to date, comparing both.

use std::collections::{BTreeMap, BTreeSet};

use duckdb::Connection;
use millrace_base::{Ident, Micros, failpoint};
use millrace_contract::operate::Compared;
use millrace_model::{Base, Change, ChangeKind, Changes, Dimension, Fact, Incremental, Model, Models, Scope, plan};

use crate::{
    error::{Trouble, WarehouseError, message, trouble},
    index::Taken,
    records::{self, Known},
    statement::{Runner, timed},
};

/// Differing rows that [`verify`] names of each model.
const EXAMPLES: usize = 5;

fn run(connection: &Connection, sql: &str) -> Result<(), WarehouseError> {
    Ok(timed(connection, sql)?)
}

/// Models whose sources and dimensions are all there, in build order.
pub(crate) fn ready<'a>(models: &'a Models, tables: &BTreeSet<String>) -> Vec<&'a Model> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut ready = Vec::new();
    for model in models.iter() {
        let sources = model.sources().into_iter().all(|s| tables.contains(&s.table));
        let needed = match model {
            Model::Fact(fact) => fact.lookups.iter().all(|l| names.contains(l.dimension.as_str())),
            Model::View(view) => view.reads.iter().all(|r| names.contains(r.as_str())),
            Model::Dimension(_) | Model::Seed(_) | Model::Date(_) => true,
        };
        if sources && needed {
            names.insert(model.name());
            ready.push(model);
        }
    }
    ready
}

/// Builds models anew in the open transaction: all that are ready, or those of them in `only`.
pub(crate) fn rebuild(
    connection: &Connection,
    models: &Models,
    tables: &BTreeSet<String>,
    only: Option<&BTreeSet<String>>,
    now: Micros,
) -> Result<(), WarehouseError> {
    let known = records::tables(connection)?;
    for model in ready(models, tables) {
        if only.is_some_and(|only| !only.contains(model.name())) {
            continue;
        }
        if let Model::Fact(fact) = model {
            has_the_grain_of_its_source(fact, &known)?;
        }
        for sql in statements(model) {
            run(connection, &sql).map_err(|e| describe(model, e))?;
        }
        records::keep_model(connection, model, now)?;
    }
    Ok(())
}

/// Incremental loads find a fact's row by the key of its source's row.
fn has_the_grain_of_its_source(fact: &Fact, known: &BTreeMap<String, Known>) -> Result<(), WarehouseError> {
    let Some(table) = known.get(&fact.source.table) else { return Ok(()) };
    let key: BTreeSet<&str> =
        table.schema.key().filter_map(|i| table.schema.columns.get(i)).map(|c| c.name.as_str()).collect();
    if fact.grain.iter().map(String::as_str).collect::<BTreeSet<_>>() == key {
        return Ok(());
    }
    Err(WarehouseError::Build {
        model: fact.name.clone(),
        reason: format!(
            "its grain ({}) is not the key of {} ({}): a fact has a row for each row of its source",
            fact.grain.join(", "),
            fact.source,
            key.into_iter().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// What building a model anew takes.
fn statements(model: &Model) -> Vec<String> {
    match model {
        Model::Dimension(d) => std::iter::once(d.create_keys()).chain(d.rebuild()).collect(),
        Model::Seed(s) => vec![format!("create or replace table {} as {}", s.table(), s.rows())],
        Model::Date(d) => vec![format!("create or replace table {} as {}", d.table(), d.rows())],
        Model::Fact(f) => f.rebuild(),
        Model::View(v) => vec![format!("create or replace view warehouse.{} as {}", Ident(&v.name), v.sql)],
    }
}

/// A declaration may be wrong in ways that only the engine sees (types): say which model it was.
fn describe(model: &Model, error: WarehouseError) -> WarehouseError {
    match error {
        WarehouseError::Engine(source) if trouble(&source) == Trouble::Statement => {
            WarehouseError::Build { model: model.name().to_owned(), reason: message(&source) }
        }
        other => other,
    }
}

/// Does what [`plan`] says: drops what is no longer declared, builds what is new or changed.
pub(crate) fn reconcile(
    connection: &Connection,
    models: &Models,
    tables: &BTreeSet<String>,
    now: Micros,
) -> Result<Vec<Change>, WarehouseError> {
    let changes = plan(&records::built(connection)?, models);
    let only: BTreeSet<String> = changes
        .iter()
        .filter(|c| matches!(c.kind, ChangeKind::Create | ChangeKind::Rebuild))
        .map(|c| c.model.clone())
        .collect();
    for gone in changes.iter().filter(|c| c.kind == ChangeKind::Drop) {
        drop_relation(connection, &gone.model)?;
        records::forget_model(connection, &gone.model)?;
    }
    // a view may become a table and the other way round
    for model in &only {
        let wanted = matches!(models.get(model), Some(Model::View(_)));
        if is_view(connection, model)?.is_some_and(|view| view != wanted) {
            drop_relation(connection, model)?;
        }
    }
    if !only.is_empty() {
        rebuild(connection, models, tables, Some(&only), now)?;
    }
    Ok(changes)
}

pub(crate) fn is_view(connection: &Connection, name: &str) -> Result<Option<bool>, WarehouseError> {
    let mut statement = connection.prepare(
        "select table_type = 'VIEW' from information_schema.tables where table_schema = 'warehouse' and table_name = ?",
    )?;
    let mut rows = statement.query([name])?;
    Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
}

pub(crate) fn drop_relation(connection: &Connection, name: &str) -> Result<(), WarehouseError> {
    match is_view(connection, name)? {
        Some(true) => run(connection, &format!("drop view warehouse.{}", Ident(name))),
        Some(false) => run(connection, &format!("drop table warehouse.{}", Ident(name))),
        None => Ok(()),
    }
}

/// Brings all models up to date with a batch whose staging changes are in; `tables` are those it changed.
pub(crate) fn incremental(
    runner: Runner<'_>,
    models: &Models,
    built: &BTreeSet<String>,
    tables: BTreeSet<String>,
    taken: &mut Taken,
) -> Result<(), IncrementalError> {
    let mut changes = Changes { tables, dimensions: BTreeSet::new() };
    for model in models.iter().filter(|m| built.contains(m.name())) {
        if let Model::Dimension(dimension) = model
            && changes.tables.contains(&dimension.source.table)
            && update_dimension(runner, dimension, taken).map_err(|e| describe(model, e))?
        {
            changes.dimensions.insert(dimension.name.clone());
        }
    }
    failpoint::pass("batch.after_dimensions")?;
    for model in models.iter().filter(|m| built.contains(m.name())) {
        if let Model::Fact(fact) = model {
            update_fact(runner, fact, &changes, taken).map_err(|e| describe(model, e))?;
        }
    }
    failpoint::pass("batch.after_facts")?;
    Ok(())
}

/// Why models could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncrementalError {
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
    #[error(transparent)]
    Failpoint(#[from] failpoint::Hit),
}

fn count(connection: &Connection, relation: &str) -> Result<i64, WarehouseError> {
    Ok(connection.query_row(&format!("select count(*) from {relation}"), [], |row| row.get(0))?)
}

/// Whether facts that look the dimension up may have to change.
fn update_dimension(runner: Runner<'_>, dimension: &Dimension, taken: &mut Taken) -> Result<bool, WarehouseError> {
    runner.run(&dimension.affected())?;
    let affected = count(runner.connection, &dimension.temporary("affected"))?;
    if affected == 0 {
        return Ok(false);
    }
    taken.insert(("warehouse", dimension.name.clone()), u64::try_from(affected).unwrap_or(0));
    for sql in dimension.incremental() {
        runner.run(&sql)?;
    }
    Ok(count(runner.connection, &dimension.temporary("changed"))? > 0)
}

fn update_fact(runner: Runner<'_>, fact: &Fact, changes: &Changes, taken: &mut Taken) -> Result<(), WarehouseError> {
    let Some(affected) = fact.affected(changes) else { return Ok(()) };
    runner.run(&affected)?;
    let (all, existed, elsewhere): (i64, i64, i64) = runner.connection.query_row(
        &format!(
            "select count(*), count(*) filter (where _existed), count(*) filter (where _elsewhere) from {}",
            fact.affected_table()
        ),
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    taken.insert(("warehouse", fact.name.clone()), u64::try_from(existed).unwrap_or(0));
    let carry = fact.carries() && is_exact(runner.connection, fact)?;
    if carry {
        runner.run(&fact.create_prior(existed > 0))?;
    }
    if existed > 0 {
        runner.run(&fact.delete())?;
    }
    if all == 0 {
        return Ok(());
    }
    let written = changes.tables.contains(&fact.source.table);
    let base = match (written, elsewhere > 0) {
        (true, true) => Base::Affected,
        (true, false) => Base::Written,
        (false, _) => Base::Elsewhere,
    };
    for sql in fact.prepare(base) {
        runner.run(&sql)?;
    }
    Ok(runner.run(&fact.insert(Incremental { base, changes, carry }))?)
}

/// Whether a fact's aggregates can be added and taken away without losing digits.
fn is_exact(connection: &Connection, fact: &Fact) -> Result<bool, WarehouseError> {
    let mut statement = connection.prepare(
        "select data_type, numeric_scale from duckdb_columns() where database_name = current_database() \
         and schema_name = ? and table_name = ? and column_name = ?",
    )?;
    let mut column = |schema: &str, table: &str, column: &str| -> Result<(String, Option<i32>), WarehouseError> {
        Ok(statement.query_row([schema, table, column], |row| Ok((row.get(0)?, row.get(1)?)))?)
    };
    for name in fact.aggregate_columns() {
        let (kind, _) = column("warehouse", &fact.name, name)?;
        if kind == "FLOAT" || kind == "DOUBLE" {
            return Ok(false);
        }
    }
    for (name, table, summed) in fact.cast_sums() {
        let (_, kept) = column("warehouse", &fact.name, name)?;
        let (kind, scale) = column("staging", table, summed)?;
        if kind == "FLOAT" || kind == "DOUBLE" || kept < scale {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares each built model with what its template says, reading only; works in a pinned state too.
pub(crate) fn verify(connection: &Connection, models: &Models) -> Result<Vec<Compared>, WarehouseError> {
    let built: BTreeMap<String, String> = records::built(connection)?;
    let mut compared = Vec::new();
    for model in models.iter().filter(|m| built.contains_key(m.name())) {
        let (table, rows) = match model {
            Model::Dimension(d) => (d.table(), d.rows(Scope::All)),
            Model::Seed(s) => (s.table(), s.rows()),
            Model::Date(d) => (d.table(), d.rows()),
            Model::Fact(f) => (f.table(), f.rows()),
            Model::View(_) => continue,
        };
        compared.push(compare(connection, model.name(), &table, &rows).map_err(|e| describe(model, e))?);
    }
    Ok(compared)
}

fn compare(connection: &Connection, name: &str, table: &str, rows: &str) -> Result<Compared, WarehouseError> {
    let count = |sql: &str| -> Result<u64, WarehouseError> {
        Ok(connection.query_row(&format!("select count(*) from ({sql})"), [], |row| row.get(0))?)
    };
    let missing = format!("select * from ({rows}) except all select * from {table}");
    let extra = format!("select * from {table} except all select * from ({rows})");
    let mut compared = Compared {
        what: name.to_owned(),
        rows_source: count(rows)?,
        rows_warehouse: count(&format!("select * from {table}"))?,
        differing: 0,
        examples: Vec::new(),
    };
    for (how, sql) in [("missing or other", missing), ("extra or other", extra)] {
        let differing = count(&sql)?;
        compared.differing += differing;
        if differing > 0 {
            let key = format!("select cast(#1 as varchar) from ({sql}) order by 1 limit {EXAMPLES}");
            let mut statement = connection.prepare(&key)?;
            for value in statement.query_map([], |row| row.get::<_, Option<String>>(0))? {
                compared.examples.push(format!("{} {how}", value?.unwrap_or_default()));
            }
        }
    }
    Ok(compared)
}
