//! SQL of dimensions.
//!
//! Invariant: full and incremental statements take their rows from one function, [`Dimension::rows`],
//! with another scope. Temporary tables in use: `affected_<dim>` (natural keys), `versions_<dim>`
//! (type 2), `rows_<dim>`, `prior_<dim>`, `changed_<dim>` (keys whose facts must look again).

use std::collections::BTreeSet;

use millrace_base::Ident;

use crate::{
    expression::qualified,
    star::{Date, Dimension, Seed, Source},
    template::{fill, list},
};

/// Which rows a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Those of the temporary table `affected_<model>`.
    Affected,
}

/// `raw."table"`, `staging."table"`, `warehouse."table"`.
pub(crate) fn relation(schema: &str, table: &str) -> String {
    format!("{schema}.{}", Ident(table))
}

fn quoted(names: &[String]) -> String {
    list(names.iter().map(|n| Ident(n).to_string()))
}

impl Dimension {
    /// `audit.surrogate_keys_<dim>`.
    #[must_use]
    pub fn keys_table(&self) -> String {
        relation("audit", &format!("surrogate_keys_{}", self.name))
    }

    #[must_use]
    pub fn table(&self) -> String {
        relation("warehouse", &self.name)
    }

    /// The name of one of its temporary tables.
    #[must_use]
    pub fn temporary(&self, purpose: &str) -> String {
        Ident(&format!("{purpose}_{}", self.name)).to_string()
    }

    /// Columns that identify a surrogate key.
    fn identity(&self) -> String {
        let keys = quoted(&self.key);
        if self.historical { format!("{keys}, _first_lsn, _first_sequence") } else { keys }
    }

    /// Makes the table of surrogate keys; needs the source's raw table.
    #[must_use]
    pub fn create_keys(&self) -> String {
        let version = if self.historical { ", _commit_lsn as _first_lsn, _sequence as _first_sequence" } else { "" };
        format!(
            "create table if not exists {} as select {}{version}, cast(0 as bigint) as surrogate_key from {} limit 0",
            self.keys_table(),
            quoted(&self.key),
            relation("raw", &self.source.table)
        )
    }

    /// Makes the dimension's table, empty; needs the table of surrogate keys.
    #[must_use]
    pub fn create(&self) -> String {
        format!("create table if not exists {} as {} limit 0", self.table(), self.rows(Scope::All))
    }

    /// A query for what the dimension holds of its source, before surrogate keys.
    fn versions(&self, scope: Scope) -> String {
        let own = &self.source.table;
        let alias = Ident(own).to_string();
        let on = list_and(self.key.iter().map(|k| format!("_affected.{} = {}", Ident(k), qualified(own, k))));
        let semi = match scope {
            Scope::All => String::new(),
            Scope::Affected => format!(" semi join {} as _affected on {on}", self.temporary("affected")),
        };
        let own_keys = list(self.key.iter().map(|k| qualified(own, k)));
        let attributes = list(self.attributes.iter().map(|(name, e)| format!("{} as {}", e.sql, Ident(name))));
        let columns = if attributes.is_empty() { own_keys.clone() } else { format!("{own_keys}, {attributes}") };
        if !self.historical {
            return format!("select {columns} from {} as {alias}{semi}", relation("staging", own));
        }
        let keys = quoted(&self.key);
        let tracked = self.attributes.iter().filter(|(name, _)| self.tracked.contains(name));
        let state = list(
            std::iter::once("_gone".to_owned())
                .chain(tracked.map(|(name, _)| format!("case when not _gone then {} end", Ident(name)))),
        );
        let names = quoted(&self.attributes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        let version_columns = if names.is_empty() { keys.clone() } else { format!("{keys}, {names}") };
        fill(
            include_str!("../sql/type2_versions.sql"),
            &[
                ("history_columns", &columns),
                ("own_keys", &own_keys),
                ("own", &alias),
                ("raw", &relation("raw", own)),
                ("scope", &semi),
                ("state", &format!("row({state})")),
                ("version_columns", &version_columns),
                ("keys", &keys),
            ],
        )
    }

    /// All columns of the dimension in order, given a relation `_v` of its versions and `_k` of its keys.
    fn columns(&self) -> String {
        let validity = ["effective_date", "valid_from", "valid_to", "is_current"].map(str::to_owned);
        let names = self.key.iter().cloned().chain(self.attributes.iter().map(|(name, _)| name.clone()));
        let names = names.chain(validity.into_iter().filter(|_| self.historical));
        let columns = list(names.map(|n| format!("_v.{}", Ident(&n))));
        format!("_k.surrogate_key as {}, {columns}", Ident(&self.surrogate))
    }

    fn rows_from(&self, versions: &str) -> String {
        format!(
            "select {} from {versions} as _v join {} as _k using ({})",
            self.columns(),
            self.keys_table(),
            self.identity()
        )
    }

    /// The dimension's rows; all of them include the unknown member.
    #[must_use]
    pub fn rows(&self, scope: Scope) -> String {
        let rows = self.rows_from(&format!("({})", self.versions(scope)));
        match scope {
            Scope::All => format!("{rows} union all by name {}", self.unknown_row()),
            Scope::Affected => rows,
        }
    }

    fn unknown_row(&self) -> String {
        let mut columns = vec![format!("cast(0 as bigint) as {}", Ident(&self.surrogate))];
        columns.extend(self.unknown.iter().map(|(name, value)| format!("{value} as {}", Ident(name))));
        if self.historical {
            columns.push(
                "date '1900-01-01' as effective_date, timestamptz '1900-01-01 00:00:00+00' as valid_from, \
                 timestamptz '9999-12-31 00:00:00+00' as valid_to, true as is_current"
                    .into(),
            );
        }
        format!("select {}", columns.join(", "))
    }

    /// Gives new rows of a relation of versions their surrogate keys, in the order of what identifies them.
    fn allot(&self, versions: &str) -> String {
        let identity = self.identity();
        let order = if self.historical {
            format!("_first_lsn, _first_sequence, {}", quoted(&self.key))
        } else {
            quoted(&self.key)
        };
        format!(
            "insert into {keys} by name select {identity}, row_number() over (order by {order}) \
             + (select coalesce(max(surrogate_key), 0) from {keys}) as surrogate_key \
             from {versions} as _v anti join {keys} using ({identity})",
            keys = self.keys_table()
        )
    }

    /// Builds it anew in its own table. Surrogate keys given before stay.
    #[must_use]
    pub fn rebuild(&self) -> Vec<String> {
        let versions = self.temporary("versions");
        vec![
            format!("create or replace temp table {versions} as {}", self.versions(Scope::All)),
            self.allot(&versions),
            format!(
                "create or replace table {} as select * from ({} union all by name {}) order by 1",
                self.table(),
                self.rows_from(&versions),
                self.unknown_row()
            ),
            format!("drop table {versions}"),
        ]
    }

    /// Notes the natural keys that a batch touches: type 1 where what is read of the row differs at the
    /// batch's end, type 2 all that were written, since versions in between count.
    #[must_use]
    pub fn affected(&self) -> String {
        let keys = quoted(&self.key);
        let touched = if self.historical {
            format!("select distinct {keys} from {}", Ident(&format!("batch_{}", self.source.table)))
        } else {
            let used: BTreeSet<String> = crate::star::Model::Dimension(self.clone()).columns_of(&self.source);
            format!("select distinct {keys} from {}", keyed_difference(&self.source, &self.key, &used))
        };
        format!("create or replace temp table {} as {touched}", self.temporary("affected"))
    }

    /// Brings the affected keys up to date, after [`Dimension::affected`]; leaves `changed_<dim>`.
    #[must_use]
    pub fn incremental(&self) -> Vec<String> {
        let (table, rows, prior) = (self.table(), self.temporary("rows"), self.temporary("prior"));
        let (versions, affected, changed) =
            (self.temporary("versions"), self.temporary("affected"), self.temporary("changed"));
        let keys = quoted(&self.key);
        vec![
            format!("create or replace temp table {versions} as {}", self.versions(Scope::Affected)),
            self.allot(&versions),
            format!("create or replace temp table {rows} as {}", self.rows_from(&versions)),
            format!(
                "create or replace temp table {prior} as select * from {table} semi join {affected} using ({keys})"
            ),
            format!(
                "delete from {table} as _d using {affected} as _gone where {}",
                list_and(self.key.iter().map(|k| format!("_d.{0} = _gone.{0}", Ident(k))))
            ),
            format!("insert into {table} select * from {rows}"),
            format!("create or replace temp table {changed} as {}", self.changed(&rows, &prior)),
        ]
    }

    /// Keys (type 2: and times) at which the dimension answers otherwise than before.
    fn changed(&self, rows: &str, prior: &str) -> String {
        let keys = quoted(&self.key);
        let surrogate = Ident(&self.surrogate);
        if !self.historical {
            let columns = format!("{surrogate}, {keys}");
            return format!(
                "select distinct {keys} from ((select {columns} from {rows} except select {columns} from {prior}) \
                 union all (select {columns} from {prior} except select {columns} from {rows}))"
            );
        }
        format!(
            "select {keys}, \
               case when _n.valid_from = _o.valid_from then least(_n.valid_to, _o.valid_to) \
                    else least(coalesce(_n.valid_from, _o.valid_from), coalesce(_o.valid_from, _n.valid_from)) end as _from, \
               greatest(coalesce(_n.valid_to, _o.valid_to), coalesce(_o.valid_to, _n.valid_to)) as _to \
             from (select {surrogate}, {keys}, valid_from, valid_to from {rows}) as _n \
             full join (select {surrogate}, {keys}, valid_from, valid_to from {prior}) as _o using ({surrogate}, {keys}) \
             where _n.valid_from is distinct from _o.valid_from or _n.valid_to is distinct from _o.valid_to"
        )
    }
}

/// A relation of the rows of `source` before and after the batch that differ in `columns`. Each row counts: of
/// two equal instalments one may go while the other stays.
pub(crate) fn difference(source: &Source, columns: &BTreeSet<String>) -> String {
    let columns = list(columns.iter().map(|c| Ident(c).to_string()));
    let old = Ident(&format!("old_{}", source.table)).to_string();
    let new = Ident(&format!("new_{}", source.table)).to_string();
    // what `except all` both ways gives, without the window functions that DuckDB makes of it
    format!(
        "(select {columns} from (select {columns}, 1 as _n from {old} union all select {columns}, -1 as _n from {new}) \
         group by {columns} having sum(_n) <> 0)"
    )
}

/// A relation of the keys of `source` whose rows before and after the batch differ in `columns`. `keys` are the
/// source's own.
pub(crate) fn keyed_difference(source: &Source, keys: &[String], columns: &BTreeSet<String>) -> String {
    let names = list(keys.iter().chain(columns.iter().filter(|c| !keys.contains(c))).map(|c| Ident(c).to_string()));
    let differ: String = columns
        .iter()
        .filter(|c| !keys.contains(c))
        .map(|c| format!(" or _n.{0} is distinct from _o.{0}", Ident(c)))
        .collect();
    let keys = quoted(keys);
    format!(
        "(select {keys} from (select {names}, true as _is from {}) as _n full join (select {names}, true as _is from {}) as _o using ({keys}) \
         where _n._is is null or _o._is is null{differ})",
        Ident(&format!("new_{}", source.table)),
        Ident(&format!("old_{}", source.table))
    )
}

/// A relation of the keys of `source` that the batch wrote or took away, and of `_before`: whether there was a row before.
pub(crate) fn keys_written(source: &Source, keys: &[String]) -> String {
    let keys = quoted(keys);
    format!(
        "(select {keys}, _o._is is not null as _before \
         from (select {keys} from {}) as _n full join (select {keys}, true as _is from {}) as _o using ({keys}))",
        Ident(&format!("new_{}", source.table)),
        Ident(&format!("old_{}", source.table))
    )
}

/// Joins conditions with `and`.
pub(crate) fn list_and(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(" and ")
}

impl Seed {
    #[must_use]
    pub fn table(&self) -> String {
        relation("warehouse", &self.name)
    }

    /// All rows, unknown member included.
    #[must_use]
    pub fn rows(&self) -> String {
        let columns = list(std::iter::once(&self.surrogate).chain(&self.columns).map(|c| Ident(c).to_string()));
        let unknown = format!("(0, {})", self.unknown.join(", "));
        let rows = self.rows.iter().enumerate().map(|(i, row)| format!("({}, {})", i + 1, row.join(", ")));
        let values = list(std::iter::once(unknown).chain(rows));
        format!("select * from (values {values}) as _seed({columns})")
    }
}

impl Date {
    #[must_use]
    pub fn table(&self) -> String {
        relation("warehouse", &self.name)
    }

    /// All rows, unknown member included.
    #[must_use]
    pub fn rows(&self) -> String {
        let (first, last) = (format!("{:04}", self.first_year), format!("{:04}", self.last_year));
        fill(include_str!("../sql/date.sql"), &[("first", &first), ("last", &last)])
    }
}
