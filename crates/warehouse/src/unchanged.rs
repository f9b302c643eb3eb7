//! Values that the stream left out because an update did not touch them (TOAST).
//!
//! Such a value is what it was: in the batch's earlier change of the same row, else in staging. An
//! insert with left-out values is the second half of a key change; its row was the one that the delete
//! before it took away.

use duckdb::Connection;
use millrace_base::Ident;
use millrace_contract::TableSchema;

use crate::{error::WarehouseError, table::Table};

/// Key changes of one row within a batch that are followed.
const KEY_CHANGES_MAX: usize = 64;

/// Why a value stays unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfilled {
    #[error("{0}")]
    Missing(String),
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
}

impl From<duckdb::Error> for Unfilled {
    fn from(error: duckdb::Error) -> Self {
        Self::Warehouse(error.into())
    }
}

/// Fills the batch's left-out values.
pub(crate) fn fill(connection: &Connection, schema: &TableSchema) -> Result<(), Unfilled> {
    let table = Table(schema);
    let batch = table.temporary("batch");
    let left = || -> Result<i64, duckdb::Error> {
        connection.query_row(&format!("select count(*) from {batch} where _unchanged is not null"), [], |r| r.get(0))
    };
    let mut before = left()?;
    for _ in 0..KEY_CHANGES_MAX {
        for query in [within_the_batch(schema), from_before(schema)] {
            let filled = table.temporary("filled");
            connection.execute_batch(&format!(
                "create or replace temp table {filled} as {query}; {}; \
                 insert into {batch} by name select * from {filled} order by _commit_lsn, _sequence; drop table {filled}",
                table.create_batch()
            ))?;
        }
        let after = left()?;
        if after == 0 {
            return Ok(());
        }
        if after == before {
            break;
        }
        before = after;
    }
    Err(Unfilled::Missing("an update left out a large value that the warehouse does not have; resync the table".into()))
}

fn is_left_out(relation: &str, position: usize) -> String {
    format!("contains(coalesce({relation}_unchanged, ''), ',{position},')")
}

/// `,3,7,` of the positions that `still` says are unknown; null if none is.
fn still_left_out(schema: &TableSchema, still: impl Fn(usize) -> String) -> String {
    let parts: Vec<String> =
        (0..schema.columns.len()).map(|i| format!("case when {} then '{i},' else '' end", still(i))).collect();
    format!("nullif(',' || {}, ',') as _unchanged", parts.join(" || "))
}

/// Takes each left-out value from the nearest earlier change of the same row that has it. A row's life
/// under a key begins with an insert and ends with a delete.
fn within_the_batch(schema: &TableSchema) -> String {
    let table = Table(schema);
    let (batch, keys) = (table.temporary("batch"), table.keys());
    let known: Vec<String> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(i, c)| {
            format!(
                "last_value(case when not {} then {{'v': {}}} end ignore nulls) over a_life as _known{i}",
                is_left_out("", i),
                Ident(&c.name)
            )
        })
        .collect();
    let columns: Vec<String> =
        schema.columns.iter().enumerate().map(|(i, c)| format!("_known{i}.v as {}", Ident(&c.name))).collect();
    let still = still_left_out(schema, |i| format!("_known{i} is null"));
    format!(
        "with _lives as (select *, count(*) filter (where _op <> 'U') \
           over (partition by {keys} order by _commit_lsn, _sequence rows unbounded preceding) as _life from {batch}), \
         _known as (select _commit_lsn, _sequence, _op, _commit_time, {known} from _lives \
           window a_life as (partition by {keys}, _life order by _commit_lsn, _sequence rows unbounded preceding)) \
         select {columns}, _commit_lsn, _sequence, _op, _commit_time, {still} from _known",
        known = known.join(", "),
        columns = columns.join(", "),
    )
}

/// Takes what the batch does not know of a row: an insert's from the life that the delete just before
/// it ended, everything else from staging.
fn from_before(schema: &TableSchema) -> String {
    let table = Table(schema);
    let (batch, staging) = (table.temporary("batch"), table.staging());
    let keys: Vec<String> =
        schema.key().filter_map(|i| schema.columns.get(i)).map(|c| Ident(&c.name).to_string()).collect();
    let continues = "_op = 'I' and _unchanged is not null";
    let origin: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| format!("case when {continues} then lag({key}) over (order by _commit_lsn, _sequence, _op) else {key} end as _origin{i}"))
        .collect();
    let on = |relation: &str| {
        keys.iter()
            .enumerate()
            .map(|(i, k)| format!("{relation}.{k} = _b._origin{i}"))
            .collect::<Vec<_>>()
            .join(" and ")
    };
    let columns: Vec<String> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let name = Ident(&c.name);
            format!(
                "case when not {} then _b.{name} when _p._at is not null then _p.{name} else _s.{name} end as {name}",
                is_left_out("_b.", i)
            )
        })
        .collect();
    let still = still_left_out(schema, |i| {
        format!(
            "{} and ((_p._at is not null and {}) or (_p._at is null and _s._commit_lsn is null))",
            is_left_out("_b.", i),
            is_left_out("_p.", i)
        )
    });
    format!(
        "with _numbered as (select *, row_number() over (order by _commit_lsn, _sequence, _op) as _at from {batch}), \
         _b as (select *, {continues} as _continues, {origin} from _numbered), \
         _p as (select * from _numbered where _op <> 'D') \
         select {columns}, _b._commit_lsn, _b._sequence, _b._op, _b._commit_time, {still} \
         from _b asof left join _p on {on_p} and _b._at > _p._at and (_b._continues or _b._unchanged is not null) \
         left join {staging} as _s on {on_s} and _b._unchanged is not null",
        origin = origin.join(", "),
        columns = columns.join(", "),
        on_p = on("_p"),
        on_s = on("_s"),
    )
}
