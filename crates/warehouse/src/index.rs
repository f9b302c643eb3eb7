//! Indexes on the keys of large tables, so that a small batch finds its rows without scanning whole columns.
//!
//! DuckDB answers a join with few keys from an ART index once `dynamic_or_filter_threshold` lets the join hand
//! them down ([`LOOKUP_KEYS_MAX`]). In return each row that is taken out costs its removal from the index, about
//! as much as scanning two hundred rows, and a checkpoint does not close the gaps of an indexed table. So an index is there
//! while its table is large and its batches are small, and goes when bulk changes come or gaps have grown.
//!
//! Invariants: an index never changes a result; making and dropping happens between batches, on the writer's
//! thread. What to do is decided by [`Tended::decide`], which is pure.

use std::collections::BTreeMap;

use duckdb::Connection;
use millrace_base::Ident;
use millrace_model::{Model, Models};

use crate::{error::WarehouseError, records::Known};

/// Tables with fewer rows are scanned as quickly as looked up.
pub(crate) const ROWS_MIN: u64 = 500_000;
/// Up to so many keys of a join are looked up; beyond it DuckDB scans.
pub(crate) const LOOKUP_KEYS_MAX: u64 = 10_000;
/// Taking a row out of an index costs as much as indexing so many rows.
const ROWS_PER_REMOVAL: u64 = 250;
/// A batch that takes no more rows out is a small one.
const SMALL: u64 = 2_500;
/// So many small batches in a row before an index is made again.
const CALM: u32 = 10;
/// The tables are counted again after so many batches.
const COUNT_EVERY: u32 = 64;
/// A column is worth an index if a value of it stands for no more rows, on average.
const ROWS_PER_VALUE_MAX: u64 = 64;

/// Rows taken out of a table by a batch, by `schema.table`.
pub(crate) type Taken = BTreeMap<(&'static str, String), u64>;

/// What is to be done for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Nothing,
    Create,
    Drop,
}

/// A table that may have an index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tended {
    column: String,
    rows: u64,
    indexed: bool,
    /// Rows that large batches took out, until [`CALM`] batches in a row were small.
    restless: u64,
    calm: u32,
    /// Rows taken out since the index is there: gaps that no checkpoint closes.
    gaps: u64,
    /// Its column repeats too often, or the engine refused: not before the next count.
    refused: bool,
}

impl Tended {
    fn note(&mut self, taken: u64) {
        self.rows = self.rows.max(taken);
        if self.indexed {
            self.gaps += taken;
        }
        if taken > SMALL {
            self.calm = 0;
            self.restless += taken;
        } else {
            self.calm = self.calm.saturating_add(1);
            if self.calm >= CALM {
                self.restless = 0;
            }
        }
    }

    fn decide(&self, rows_min: u64) -> Deed {
        if self.indexed {
            let bulk = self.restless > (self.rows / ROWS_PER_REMOVAL).max(SMALL);
            if bulk || self.gaps > self.rows / 4 + SMALL { Deed::Drop } else { Deed::Nothing }
        } else if self.rows >= rows_min && self.restless == 0 && !self.refused {
            Deed::Create
        } else {
            Deed::Nothing
        }
    }
}

/// The writer's book of indexes.
#[derive(Debug)]
pub(crate) struct Indexes {
    rows_min: u64,
    tables: BTreeMap<(&'static str, String), Tended>,
    until_count: u32,
}

impl Indexes {
    pub(crate) fn new(rows_min: u64) -> Self {
        Self { rows_min, tables: BTreeMap::new(), until_count: 0 }
    }

    /// The tables may be others now: they are counted before anything else is decided.
    pub(crate) fn recount(&mut self) {
        self.until_count = 0;
    }

    /// After a batch: at most one index is made, so that the next batch does not wait long.
    pub(crate) fn tend(
        &mut self,
        connection: &Connection,
        tables: &BTreeMap<String, Known>,
        models: &Models,
        taken: &Taken,
    ) -> Result<(), WarehouseError> {
        for (table, tended) in &mut self.tables {
            tended.note(taken.get(table).copied().unwrap_or(0));
        }
        if self.until_count == 0 {
            self.count(connection, tables, models)?;
            self.until_count = COUNT_EVERY;
        }
        self.until_count -= 1;
        for ((schema, table), tended) in &mut self.tables {
            match tended.decide(self.rows_min) {
                Deed::Nothing => {}
                Deed::Drop => {
                    connection.execute_batch(&format!("drop index if exists {schema}.{}", name(table)))?;
                    tracing::debug!(schema, table, "index dropped before bulk changes, or to close gaps");
                    (tended.indexed, tended.gaps) = (false, 0);
                }
                Deed::Create => {
                    let start = std::time::Instant::now();
                    tended.refused = !create(connection, schema, table, tended)?;
                    tended.indexed = !tended.refused;
                    let took_ms = start.elapsed().as_millis();
                    tracing::debug!(schema, table, rows = tended.rows, took_ms, made = tended.indexed, "index");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Looks at the catalog: which tables there are, how large, and which have an index.
    fn count(
        &mut self,
        connection: &Connection,
        tables: &BTreeMap<String, Known>,
        models: &Models,
    ) -> Result<(), WarehouseError> {
        let mut statement = connection.prepare(
            "select t.schema_name, t.table_name, coalesce(t.estimated_size, 0), i.index_name is not null \
             from duckdb_tables() as t left join duckdb_indexes() as i \
               on i.database_name = t.database_name and i.schema_name = t.schema_name and i.table_name = t.table_name \
             where t.database_name = current_database() and not t.temporary",
        )?;
        let mut found: BTreeMap<(String, String), (u64, bool)> = BTreeMap::new();
        for row in statement.query_map([], |row| {
            Ok(((row.get(0)?, row.get(1)?), (u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0), row.get(3)?)))
        })? {
            let (table, facts) = row?;
            found.insert(table, facts);
        }
        let mut before = std::mem::take(&mut self.tables);
        for (schema, table, column) in candidates(tables, models) {
            let Some((rows, indexed)) = found.get(&(schema.to_owned(), table.clone())).copied() else { continue };
            let new = Tended { column, rows, indexed, restless: 0, calm: 0, gaps: 0, refused: false };
            let tended = match before.remove(&(schema, table.clone())) {
                Some(old) if old.column == new.column => Tended { rows, indexed, refused: false, ..old },
                _ => new,
            };
            self.tables.insert((schema, table), tended);
        }
        Ok(())
    }
}

/// Tables that batches find rows in by key, with the key's column; of several columns the first.
fn candidates(tables: &BTreeMap<String, Known>, models: &Models) -> Vec<(&'static str, String, String)> {
    let staging = tables.iter().filter(|(_, known)| known.copied).filter_map(|(name, known)| {
        let column = known.schema.key().next().and_then(|i| known.schema.columns.get(i))?;
        Some(("staging", name.clone(), column.name.clone()))
    });
    let models = models.iter().filter_map(|model| {
        let key = match model {
            Model::Fact(fact) => fact.grain.first(),
            Model::Dimension(dimension) => dimension.key.first(),
            Model::Seed(_) | Model::Date(_) | Model::View(_) => None,
        }?;
        Some(("warehouse", model.name().to_owned(), key.clone()))
    });
    staging.chain(models).collect()
}

fn name(table: &str) -> String {
    Ident(&format!("key_{table}")).to_string()
}

/// Makes the index; `false` if its column is not selective enough.
fn create(connection: &Connection, schema: &str, table: &str, tended: &Tended) -> Result<bool, WarehouseError> {
    let relation = format!("{schema}.{}", Ident(table));
    let column = Ident(&tended.column);
    let values: u64 =
        connection
            .query_row(&format!("select approx_count_distinct({column}) from {relation}"), [], |row| row.get(0))?;
    if values.saturating_mul(ROWS_PER_VALUE_MAX) < tended.rows {
        return Ok(false);
    }
    connection.execute_batch(&format!("create index if not exists {} on {relation} ({column})", name(table)))?;
    Ok(true)
}
