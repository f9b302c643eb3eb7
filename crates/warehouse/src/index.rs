//! Indexes on the keys of large tables, so that a small batch finds its rows without scanning whole columns.
//!
//! DuckDB answers a join with few keys from an ART index once `dynamic_or_filter_threshold` lets the join hand
//! them down ([`crate::statement::Runner`]). In return taking a row out costs 5 to 10 µs more, and a checkpoint does not close
//! the gaps of an indexed table: the index is made anew around one when a quarter of the rows are gaps.
//!
//! Invariants: an index never changes a result; making and dropping happens between batches, on the writer's
//! thread. What to do is decided by [`Tended::decide`], which is pure.

use std::collections::BTreeMap;

use duckdb::Connection;
use millrace_base::Ident;
use millrace_model::{Model, Models};

use crate::{error::WarehouseError, records::Known};

/// Tables with fewer rows are scanned as quickly as looked up.
pub(crate) const ROWS_MIN: u64 = 2_000_000;
/// Up to so many keys of a join are looked up at all: DuckDB's `index_scan_max_count` is 2,048.
const LOOKUP_KEYS_MAX: u64 = 2_000;
/// As many at the least number of rows with an index, and more in proportion: a key costs about 35 µs, a scanned row 20 ns.
const LOOKUP_KEYS_AT_MIN: u64 = 1_000;
/// The tables are counted again after so many batches.
const COUNT_EVERY: u32 = 64;
/// A column is worth an index if a value of it stands for no more rows, on average.
const ROWS_PER_VALUE_MAX: u64 = 64;
/// Gaps that are never worth closing.
const GAPS_MIN: u64 = 10_000;

/// Rows taken out of a table by a batch, by `schema.table`.
pub(crate) type Taken = BTreeMap<(&'static str, String), u64>;

/// What is to be done for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Nothing,
    Create,
    /// Drop it, let a checkpoint close the gaps, create it.
    Renew,
}

/// A table that may have an index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tended {
    column: String,
    rows: u64,
    indexed: bool,
    /// Rows taken out since the index is there, or since the start.
    gaps: u64,
    /// Its column repeats too often, or the engine refused: not before the next count.
    refused: bool,
}

impl Tended {
    fn decide(&self, rows_min: u64) -> Deed {
        if self.indexed {
            if self.gaps > (self.rows / 4).max(GAPS_MIN) { Deed::Renew } else { Deed::Nothing }
        } else if self.rows >= rows_min && !self.refused {
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

    pub(crate) fn rows_min(&self) -> u64 {
        self.rows_min
    }

    /// The tables may be others now: they are counted before anything else is decided.
    pub(crate) fn recount(&mut self) {
        self.until_count = 0;
    }

    /// Tables that have an index, as statements write them, and up to how many keys a join looks up in it.
    pub(crate) fn indexed(&self) -> Vec<(String, u64)> {
        let indexed = self.tables.iter().filter(|(_, tended)| tended.indexed);
        let keys = |rows: u64| {
            (LOOKUP_KEYS_AT_MIN.saturating_mul(rows) / self.rows_min.max(1)).clamp(LOOKUP_KEYS_AT_MIN, LOOKUP_KEYS_MAX)
        };
        indexed.map(|((schema, table), tended)| (format!("{schema}.{}", Ident(table)), keys(tended.rows))).collect()
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
            tended.gaps += taken.get(table).copied().unwrap_or(0);
        }
        if self.until_count == 0 {
            self.count(connection, tables, models)?;
            self.until_count = COUNT_EVERY;
        }
        self.until_count -= 1;
        for ((schema, table), tended) in &mut self.tables {
            let deed = tended.decide(self.rows_min);
            if deed == Deed::Nothing {
                continue;
            }
            let start = std::time::Instant::now();
            if deed == Deed::Renew {
                connection.execute_batch(&format!("drop index if exists {schema}.{}; checkpoint", name(table)))?;
            }
            tended.gaps = 0;
            tended.refused = !create(connection, schema, table, tended)?;
            tended.indexed = !tended.refused;
            let took_ms = start.elapsed().as_millis();
            tracing::debug!(schema, table, rows = tended.rows, took_ms, made = tended.indexed, ?deed, "index");
            break;
        }
        Ok(())
    }

    /// Looks at the catalog: which tables there are, how large, and which have an index.
    pub(crate) fn count(
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
            let new = Tended { column, rows, indexed, gaps: 0, refused: false };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_made_for_many_rows_and_renewed_for_many_gaps() {
        let mut tended = Tended { column: "id".into(), rows: 100, indexed: false, gaps: 0, refused: false };
        assert_eq!(tended.decide(101), Deed::Nothing);
        assert_eq!(tended.decide(100), Deed::Create);
        tended.refused = true;
        assert_eq!(tended.decide(100), Deed::Nothing);
        tended = Tended { rows: 1_000_000, indexed: true, gaps: 250_000, ..tended };
        assert_eq!(tended.decide(100), Deed::Nothing);
        tended.gaps += 1;
        assert_eq!(tended.decide(100), Deed::Renew);
    }
}
