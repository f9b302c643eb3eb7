//! A source table's columns change while its changes flow.
//!
//! What can be followed without looking at the source again is: dropping a column that no model
//! needs, widening a type, and adding a column, whose old rows are null. (An addition whose old rows
//! hold a default, or a new name, is not sent here but as a fresh copy: capture asks the catalog.)

use std::collections::{BTreeMap, BTreeSet};

use duckdb::Connection;
use millrace_base::Ident;
use millrace_contract::{ColumnType, TableSchema};
use millrace_model::{Model, Models};

use crate::{convert::duckdb_type, error::WarehouseError, records::Known, table::Table};

/// Why a change was not followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Table(String),
    /// Only a fresh copy follows.
    #[error("its columns changed between two of its changes in one batch")]
    Altered,
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
}

impl From<duckdb::Error> for Refused {
    fn from(error: duckdb::Error) -> Self {
        Self::Warehouse(error.into())
    }
}

fn names(schema: &TableSchema) -> BTreeSet<&str> {
    schema.columns.iter().map(|c| c.name.as_str()).collect()
}

/// Models that need a column which is gone.
fn needed(models: &Models, schema: &TableSchema, gone: &str) -> Result<(), Refused> {
    let users = models.users_of(&schema.table.name, gone);
    if users.is_empty() {
        return Ok(());
    }
    Err(Refused::Table(format!(
        "column {gone} is gone from the source, but needed by {}; change the models, or bring it back, then resync the table",
        users.join(", ")
    )))
}

/// Whether every value of `from` is a value of `to`, and the same one.
fn widens(from: &ColumnType, to: &ColumnType) -> bool {
    use ColumnType::{Decimal, Float4, Float8, Int2, Int4, Int8};
    match (from, to) {
        (Int2, Int4 | Int8) | (Int4, Int8) | (Float4, Float8) => true,
        (Decimal { precision: p, scale: s }, Decimal { precision: q, scale: t }) => s <= t && p - s <= q - t,
        _ => duckdb_type(from) == duckdb_type(to),
    }
}

/// Follows a change in the stream.
pub(crate) fn apply(
    connection: &Connection,
    models: &Models,
    known: &Known,
    new: &TableSchema,
    open: bool,
) -> Result<(), Refused> {
    let old = &known.schema;
    let (before, after) = (names(old), names(new));
    for gone in before.difference(&after) {
        needed(models, new, gone)?;
    }
    for column in &new.columns {
        if let Some(was) = old.columns.iter().find(|c| c.name == column.name)
            && !widens(&was.column_type, &column.column_type)
        {
            return Err(Refused::Table(format!(
                "column {} changed its type from {} to {}; resync the table",
                column.name, was.declared, column.declared
            )));
        }
    }
    if open && duckdb_columns(old) != duckdb_columns(new) {
        return Err(Refused::Altered);
    }
    alter(connection, old, new, false)
}

/// Makes the tables fit before a whole copy is compared with them: nothing is refused but what models need.
pub(crate) fn force(connection: &Connection, models: &Models, known: &Known, new: &TableSchema) -> Result<(), Refused> {
    let (before, after) = (names(&known.schema), names(new));
    for gone in before.difference(&after) {
        needed(models, new, gone)?;
    }
    alter(connection, &known.schema, new, true)
}

/// Models whose columns have another type from now on, and the facts that look such dimensions up.
pub(crate) fn retyped(models: &Models, old: &TableSchema, new: &TableSchema) -> BTreeSet<String> {
    let was = duckdb_columns(old);
    let mut retyped: BTreeSet<String> = new
        .columns
        .iter()
        .filter(|c| old.position(&c.name).is_some() && !was.contains(&(c.name.clone(), duckdb_type(&c.column_type))))
        .flat_map(|c| models.users_of(&new.table.name, &c.name))
        .map(str::to_owned)
        .collect();
    let dimensions = retyped.clone();
    for model in models.iter() {
        if let Model::Fact(fact) = model
            && fact.lookups.iter().any(|l| dimensions.contains(&l.dimension))
        {
            retyped.insert(fact.name.clone());
        }
    }
    retyped
}

fn duckdb_columns(schema: &TableSchema) -> BTreeSet<(String, String)> {
    schema.columns.iter().map(|c| (c.name.clone(), duckdb_type(&c.column_type))).collect()
}

fn alter(connection: &Connection, old: &TableSchema, new: &TableSchema, force: bool) -> Result<(), Refused> {
    let raw_columns: BTreeMap<String, String> = {
        let mut statement = connection.prepare(
            "select column_name, data_type from duckdb_columns() \
             where database_name = current_database() and schema_name = 'raw' and table_name = ?",
        )?;
        let rows = statement.query_map([&new.table.name], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    for (relation, history) in [(Table(new).raw(), true), (Table(new).staging(), false)] {
        for column in &new.columns {
            let (name, kind) = (Ident(&column.name), duckdb_type(&column.column_type));
            match old.columns.iter().find(|c| c.name == column.name) {
                // dropped before, and back again
                None if history && raw_columns.contains_key(&column.name) => {
                    convert_history(connection, &relation, &raw_columns, &column.name, &kind)?;
                }
                None => connection.execute_batch(&format!("alter table {relation} add column {name} {kind}"))?,
                Some(was) if duckdb_type(&was.column_type) != kind => {
                    if history && force {
                        convert_history(connection, &relation, &raw_columns, &column.name, &kind)?;
                    } else {
                        // what does not fit in staging is about to be replaced by the copy
                        let cast = if force { "try_cast" } else { "cast" };
                        connection.execute_batch(&format!(
                            "alter table {relation} alter {name} type {kind} using {cast}({name} as {kind})"
                        ))?;
                    }
                }
                Some(_) => {}
            }
        }
        if !history {
            for gone in names(old).difference(&names(new)) {
                connection.execute_batch(&format!("alter table {relation} drop column {}", Ident(gone)))?;
            }
        }
    }
    Ok(())
}

/// Gives a column of the history another type. If any value would not be the same, the column stays as it is under
/// the name `<column>__was_<type>`, and the column of the new type has what can be converted.
fn convert_history(
    connection: &Connection,
    relation: &str,
    columns: &BTreeMap<String, String>,
    column: &str,
    kind: &str,
) -> Result<(), Refused> {
    let Some(was) = columns.get(column).filter(|was| !was.eq_ignore_ascii_case(kind)) else { return Ok(()) };
    let name = Ident(column);
    let other: i64 = connection.query_row(
        &format!(
            "select count(*) from {relation} where {name} is not null \
             and cast(try_cast({name} as {kind}) as {was}) is distinct from {name}"
        ),
        [],
        |row| row.get(0),
    )?;
    if other == 0 {
        connection
            .execute_batch(&format!("alter table {relation} alter {name} type {kind} using cast({name} as {kind})"))?;
        return Ok(());
    }
    let words = was.to_lowercase();
    let words: Vec<&str> = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut kept = format!("{column}__was_{}", words.join("_"));
    while columns.contains_key(&kept) {
        kept.push_str("_again");
    }
    tracing::info!(%relation, column, kept, values = other, "old values of a column that changed its type are kept");
    let kept = Ident(&kept);
    connection.execute_batch(&format!(
        "alter table {relation} rename column {name} to {kept}; alter table {relation} add column {name} {kind}; \
         update {relation} set {name} = try_cast({kept} as {kind})"
    ))?;
    Ok(())
}
