//! A source table in the warehouse: its names, its DDL and the statements of a batch.
//!
//! Temporary tables of a batch, for each changed table: `batch_<table>` (all changes as they came),
//! `old_<table>` (staging rows of the touched keys before) and `new_<table>` (after).

use millrace_base::Ident;
use millrace_contract::TableSchema;

use crate::convert::{HEAD_COLUMNS, duckdb_type};

/// Names and statements of one source table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a>(pub(crate) &'a TableSchema);

fn join(items: impl IntoIterator<Item = String>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

impl Table<'_> {
    fn name(&self) -> &str {
        &self.0.table.name
    }

    pub(crate) fn raw(&self) -> String {
        format!("raw.{}", Ident(self.name()))
    }

    pub(crate) fn staging(&self) -> String {
        format!("staging.{}", Ident(self.name()))
    }

    pub(crate) fn temporary(&self, purpose: &str) -> String {
        Ident(&format!("{purpose}_{}", self.name())).to_string()
    }

    pub(crate) fn columns(&self) -> String {
        join(self.0.columns.iter().map(|c| Ident(&c.name).to_string()), ", ")
    }

    pub(crate) fn keys(&self) -> String {
        join(self.0.key().filter_map(|i| self.0.columns.get(i)).map(|c| Ident(&c.name).to_string()), ", ")
    }

    fn typed(&self) -> String {
        join(self.0.columns.iter().map(|c| format!("{} {}", Ident(&c.name), duckdb_type(&c.column_type))), ", ")
    }

    fn head(&self) -> String {
        join(HEAD_COLUMNS.map(|(name, kind)| format!("{name} {kind}")), ", ")
    }

    /// Makes the table's history and current rows, empty; what is there goes away.
    pub(crate) fn create(&self) -> String {
        let (typed, head) = (self.typed(), self.head());
        format!(
            "create or replace table {} ({typed}, {head}, _run_id bigint); \
             create or replace table {} ({typed}, _commit_lsn ubigint, _sequence ubigint)",
            self.raw(),
            self.staging()
        )
    }

    /// Takes both away.
    pub(crate) fn drop(&self) -> String {
        format!("drop table if exists {}; drop table if exists {};", self.raw(), self.staging())
    }

    /// Makes the place where a batch's changes wait for its commit.
    pub(crate) fn create_batch(&self) -> String {
        format!(
            "create or replace temp table {} ({}, {}, _unchanged varchar)",
            self.temporary("batch"),
            self.typed(),
            self.head()
        )
    }

    /// Columns of `raw` rows, as the batch holds them: in the source's order.
    pub(crate) fn insert_raw(&self, run_id: i64) -> String {
        let columns = format!("{}, _commit_lsn, _sequence, _op, _commit_time", self.columns());
        format!(
            "insert into {} ({columns}, _run_id) select {columns}, {run_id} from {}",
            self.raw(),
            self.temporary("batch")
        )
    }

    /// The rows that the batch leaves: the last change of each key, unless it is a delete. The batch holds a table's
    /// changes in the source's order, so the greatest `rowid` is the last one; a window function takes five times as long.
    pub(crate) fn create_new(&self, distinct: bool) -> String {
        let batch = self.temporary("batch");
        let last = if distinct {
            String::new()
        } else {
            format!(" and rowid in (select max(rowid) from {batch} group by {})", self.keys())
        };
        format!(
            "create or replace temp table {} as select {}, _commit_lsn, _sequence from {batch} where _op <> 'D'{last}",
            self.temporary("new"),
            self.columns(),
        )
    }

    /// Sets aside the staging rows that the batch touches, with the columns whose old values matter; none if it only inserts.
    pub(crate) fn create_old(&self, needed: &[&str], only_inserts: bool) -> String {
        let columns = join(needed.iter().map(|c| Ident(c).to_string()), ", ");
        let scope = if only_inserts {
            " limit 0".to_owned()
        } else {
            format!(" semi join {} using ({})", self.temporary("batch"), self.keys())
        };
        format!(
            "create or replace temp table {} as select {columns} from {}{scope}",
            self.temporary("old"),
            self.staging()
        )
    }

    /// Takes the rows that the batch touches out of staging. Not `returning`: that fetches row by row, and took
    /// ten times as long as reading them before.
    pub(crate) fn delete_old(&self) -> String {
        let same = join(
            self.0
                .key()
                .filter_map(|i| self.0.columns.get(i))
                .map(|c| format!("_s.{0} = _touched.{0}", Ident(&c.name))),
            " and ",
        );
        format!("delete from {} as _s using {} as _touched where {same}", self.staging(), self.temporary("old"))
    }

    pub(crate) fn insert_new(&self) -> String {
        let columns = format!("{}, _commit_lsn, _sequence", self.columns());
        format!("insert into {} ({columns}) select {columns} from {}", self.staging(), self.temporary("new"))
    }

    /// Inserted, updated and deleted rows, by keys before and after.
    pub(crate) fn count(&self) -> String {
        let (old, new, keys) = (self.temporary("old"), self.temporary("new"), self.keys());
        format!(
            "select (select count(*) from {new}) as n, (select count(*) from {old}) as o, \
             (select count(*) from {new} semi join {old} using ({keys})) as b"
        )
    }

    /// Writes a truncation out as a delete of each key that lives at this point of the batch.
    pub(crate) fn truncate(&self, lsn: u64, sequence: u64, commit_time: i64) -> String {
        let (keys, batch, staging) = (self.keys(), self.temporary("batch"), self.staging());
        format!(
            "insert into {batch} by name \
             select {keys}, cast({lsn} as ubigint) as _commit_lsn, cast({sequence} as ubigint) as _sequence, 'D' as _op, \
               cast(make_timestamp({commit_time}) as timestamptz) as _commit_time \
             from (select {keys} from {staging} anti join {batch} using ({keys}) \
               union all select {keys} from (select {keys}, _op from {batch} \
                 qualify row_number() over (partition by {keys} order by _commit_lsn desc, _sequence desc) = 1) where _op <> 'D')"
        )
    }

    /// Replaces a whole copy in the batch by its differences from staging.
    pub(crate) fn differences(&self) -> Vec<String> {
        let (keys, batch, staging, copy) =
            (self.keys(), self.temporary("batch"), self.staging(), self.temporary("copy"));
        let columns = self.columns();
        let head = "_commit_lsn, _sequence, _commit_time";
        vec![
            format!("create or replace temp table {copy} as select * from {batch}"),
            self.create_batch(),
            format!(
                "insert into {batch} by name \
                 select {columns}, {head}, 'I' as _op from {copy} anti join {staging} using ({keys}) \
                 union all by name \
                 select {columns}, {head}, 'U' as _op from {copy} semi join ( \
                   select {keys} from (select {columns} from {copy} semi join {staging} using ({keys}) except select {columns} from {staging})) using ({keys})"
            ),
        ]
    }

    /// The deletes that [`Table::differences`] lacks: keys in staging that the copy does not have.
    pub(crate) fn missing(&self, lsn: u64, sequence: u64, commit_time: i64) -> String {
        let (keys, batch, staging, copy) =
            (self.keys(), self.temporary("batch"), self.staging(), self.temporary("copy"));
        format!(
            "insert into {batch} by name \
             select {keys}, cast({lsn} as ubigint) as _commit_lsn, cast({sequence} as ubigint) as _sequence, 'D' as _op, \
               cast(make_timestamp({commit_time}) as timestamptz) as _commit_time \
             from {staging} anti join {copy} using ({keys})"
        )
    }
}
