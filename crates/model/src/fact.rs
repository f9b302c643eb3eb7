//! SQL of facts.
//!
//! Invariant: full and incremental statements take their rows from one function, [`Fact::rows`]; only
//! the relation that stands for the fact's own source differs. Temporary tables in use:
//! `affected_<fact>` (grain, `_existed`, `_elsewhere`), and of each changed source `old_<table>`,
//! `new_<table>`, of each changed dimension `changed_<dim>`.

use std::collections::{BTreeMap, BTreeSet};

use millrace_base::Ident;

use crate::{
    dimension::{difference, keys_written, list_and, relation},
    expression::{Expression, qualified},
    star::{Aggregate, Fact, Join, Lookup, LookupInto},
    template::{fill, list},
};

/// Where the rows of the fact's own source come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// All of staging.
    All,
    /// Affected rows that this batch wrote: `new_<table>`.
    Written,
    /// Affected rows that this batch did not touch: staging.
    Elsewhere,
    /// Both of the former.
    Affected,
}

/// How an incremental load gets at aggregates.
#[derive(Debug, Clone, Copy)]
pub struct Incremental<'a> {
    pub base: Base,
    pub changes: &'a Changes,
    /// Additive aggregates are carried on from the fact's prior row instead of gathered again; needs
    /// `prior_<fact>` filled, and exact types.
    pub carry: bool,
}

/// Which relations joins and lookups read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Staging and the dimensions themselves.
    Whole,
    /// The few rows of them that the affected facts need, set aside by [`Fact::prepare`].
    Parts,
}

/// What a batch changed.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Bare names of source tables with `old_`, `new_` and `batch_` tables.
    pub tables: BTreeSet<String>,
    /// Dimensions with a `changed_` table that is not empty.
    pub dimensions: BTreeSet<String>,
}

impl Fact {
    #[must_use]
    pub fn table(&self) -> String {
        relation("warehouse", &self.name)
    }

    /// `affected_<fact>`.
    #[must_use]
    pub fn affected_table(&self) -> String {
        Ident(&format!("affected_{}", self.name)).to_string()
    }

    fn temporary(&self, purpose: &str) -> String {
        Ident(&format!("{purpose}_{}", self.name)).to_string()
    }

    fn keys(&self) -> String {
        list(self.grain.iter().map(|g| Ident(g).to_string()))
    }

    /// Makes the table, empty; needs staging and the dimensions' tables.
    #[must_use]
    pub fn create(&self) -> String {
        format!("create table if not exists {} as {} limit 0", self.table(), self.rows())
    }

    /// Builds it anew in its own table, in the order of staging: a copy comes about in the order of the source's
    /// pages, which is near enough to the keys' for what an order is good for, and sorting took a quarter of the time.
    #[must_use]
    pub fn rebuild(&self) -> Vec<String> {
        vec![format!("create or replace table {} as {}", self.table(), self.rows())]
    }

    fn base(&self, base: Base) -> String {
        let own = &self.source.table;
        let columns = list(self.row_columns(own).iter().map(|c| Ident(c).to_string()));
        let (affected, keys) = (self.affected_table(), self.keys());
        let staging = relation("staging", own);
        let written =
            format!("select {columns} from {} semi join {affected} using ({keys})", Ident(&format!("new_{own}")));
        let elsewhere = format!(
            "select {columns} from {staging} semi join (select {keys} from {affected} where _elsewhere) using ({keys})"
        );
        match base {
            Base::All => format!("{staging} as {}", Ident(own)),
            Base::Written => format!("({written}) as {}", Ident(own)),
            Base::Elsewhere => format!("({elsewhere}) as {}", Ident(own)),
            Base::Affected => format!("({written} union all {elsewhere}) as {}", Ident(own)),
        }
    }

    /// The left joins that expressions ask for, and those that these hang on, in order.
    fn joins_for<'a>(&self, expressions: impl IntoIterator<Item = &'a Expression>, reach: Reach) -> String {
        let mut needed: BTreeSet<&str> =
            expressions.into_iter().flat_map(|e| e.columns.iter().map(|(table, _)| table.as_str())).collect();
        for join in self.joins.iter().rev() {
            if needed.contains(join.source.table.as_str()) {
                needed.extend(join.on.iter().flat_map(|(_, e)| e.columns.iter().map(|(table, _)| table.as_str())));
            }
        }
        let wanted: Vec<&Join> = self.joins.iter().filter(|j| needed.contains(j.source.table.as_str())).collect();
        wanted.iter().filter(|j| j.hangs_on(&wanted).is_none()).map(|j| self.join_tree(j, &wanted, reach)).collect()
    }

    /// One join, with those that hang on it joined to it first: `loans left join customers` is much smaller than
    /// `payments left join loans left join customers`, and each of the many rows is then joined once.
    fn join_tree(&self, join: &Join, wanted: &[&Join], reach: Reach) -> String {
        let table = &join.source.table;
        let on = list_and(join.on.iter().map(|(column, e)| format!("{} = {}", qualified(table, column), e.sql)));
        let relation = match reach {
            Reach::Whole => relation("staging", table),
            Reach::Parts => self.temporary(&format!("part_{table}")),
        };
        let own: String = wanted
            .iter()
            .filter(|j| j.hangs_on(wanted) == Some(table))
            .map(|j| self.join_tree(j, wanted, reach))
            .collect();
        let alias = Ident(table);
        if own.is_empty() {
            format!(" left join {relation} as {alias} on {on}")
        } else {
            format!(" left join ({relation} as {alias}{own}) on {on}")
        }
    }

    /// All of the fact's rows.
    #[must_use]
    pub fn rows(&self) -> String {
        self.rows_of(&self.base(Base::All), Reach::Whole, |aggregate| self.gathered(aggregate, Base::All))
    }

    /// The template: what a row is, wherever the rows of its source come from.
    fn rows_of(&self, base: &str, reach: Reach, gather: impl Fn(&Aggregate) -> String) -> String {
        let own = &self.source.table;
        let mut columns: Vec<String> = self.grain.iter().map(|g| qualified(own, g)).collect();
        let mut from = format!("{base}{}", self.joins_for(self.row_expressions(), reach));
        for (i, lookup) in self.lookups.iter().enumerate() {
            let dimension = match (&lookup.into, reach) {
                (LookupInto::Dimension { .. }, Reach::Parts) => self.temporary(&format!("look{i}")),
                _ => relation("warehouse", &lookup.dimension),
            };
            let (column, join) = lookup.sql(i, &dimension);
            columns.push(format!("{column} as {}", Ident(&lookup.column)));
            from.push_str(&join);
        }
        for (i, aggregate) in self.aggregates.iter().enumerate() {
            let on = list_and(aggregate.on.iter().map(|(column, e)| format!("_a{i}.{} = {}", Ident(column), e.sql)));
            // what the aggregates are over no rows at all
            let none = format!(
                "select {} from {} as {} where false",
                aggregate.values(),
                relation("staging", &aggregate.source.table),
                Ident(&aggregate.source.table)
            );
            from.push_str(&format!(" left join ({}) as _a{i} on {on} cross join ({none}) as _e{i}", gather(aggregate)));
            columns.extend(aggregate.columns.iter().map(|(name, _)| {
                let name = Ident(name);
                format!("case when _a{i}._found then _a{i}.{name} else _e{i}.{name} end as {name}")
            }));
        }
        columns.extend(self.columns.iter().map(|(name, e)| format!("{} as {}", e.sql, Ident(name))));
        format!("select {} from {from}", columns.join(", "))
    }

    /// An aggregate gathered from staging for all facts, or for the affected ones.
    fn gathered(&self, aggregate: &Aggregate, base: Base) -> String {
        let scope = if base == Base::All {
            String::new()
        } else {
            let wanted = list(aggregate.on.iter().map(|(column, e)| format!("{} as {}", e.sql, Ident(column))));
            let joins = self.joins_for(aggregate.on.iter().map(|(_, e)| e), Reach::Parts);
            format!(
                " semi join (select {wanted} from {}{joins}) as _wanted using ({})",
                self.prepared(),
                aggregate.keys()
            )
        };
        aggregate.grouped(&relation("staging", &aggregate.source.table), &scope)
    }

    /// An aggregate carried on from the prior rows by what the batch changed, and gathered for new facts only.
    fn carried(&self, aggregate: &Aggregate, changes: &Changes) -> String {
        let (prior, affected) = (self.temporary("prior"), self.affected_table());
        let keys = aggregate.keys();
        let child = &aggregate.source.table;
        let to_child = list(
            self.grain_pairs(aggregate).into_iter().map(|(g, column)| format!("{} as {}", Ident(g), Ident(column))),
        );
        let known = if changes.tables.contains(child) {
            let of = |table: &str, sign: &str| {
                let values =
                    list(aggregate.columns.iter().map(|(name, e)| format!("{sign}{} as {}", e.sql, Ident(name))));
                format!(
                    "select {keys}, {values} from {} as {} group by {keys}",
                    Ident(&format!("{table}_{child}")),
                    Ident(child)
                )
            };
            let sums = list(aggregate.columns.iter().map(|(name, _)| format!("sum({0}) as {0}", Ident(name))));
            let values = list(
                aggregate
                    .columns
                    .iter()
                    .map(|(name, _)| format!("_prior.{0} + coalesce(_delta.{0}, 0) as {0}", Ident(name))),
            );
            format!(
                "select {keys}, true as _found, {values} from _prior left join \
                 (select {keys}, {sums} from ({} union all {}) group by {keys}) as _delta using ({keys})",
                of("new", ""),
                of("old", "-")
            )
        } else {
            let values = list(aggregate.columns.iter().map(|(name, _)| Ident(name).to_string()));
            format!("select {keys}, true as _found, {values} from _prior")
        };
        let values = list(aggregate.columns.iter().map(|(name, _)| Ident(name).to_string()));
        let scope = format!(
            " semi join (select {to_child} from {affected} anti join {prior} using ({})) as _wanted using ({keys})",
            self.keys()
        );
        format!(
            "with _prior as (select {to_child}, {values} from {prior}) {known} union all {}",
            aggregate.grouped(&relation("staging", child), &scope)
        )
    }

    /// Whether aggregates can be carried on, were their types exact: all additive, each by the grain itself.
    #[must_use]
    pub fn carries(&self) -> bool {
        !self.aggregates.is_empty()
            && self.aggregates.iter().all(|a| self.grain_of(a).is_some() && a.columns.iter().all(|(_, e)| e.additive))
    }

    /// The aggregates' column names.
    #[must_use]
    pub fn aggregate_columns(&self) -> Vec<&str> {
        self.aggregates.iter().flat_map(|a| a.columns.iter().map(|(name, _)| name.as_str())).collect()
    }

    /// Aggregates cast to a decimal, with the gathered table's column that they sum: the cast must keep its scale
    /// for them to be carried on.
    #[must_use]
    pub fn cast_sums(&self) -> Vec<(&str, &str, &str)> {
        let columns = self.aggregates.iter().flat_map(|a| &a.columns);
        columns
            .filter_map(|(name, e)| {
                e.cast_sum_of.as_ref().map(|(table, column)| (name.as_str(), table.as_str(), column.as_str()))
            })
            .collect()
    }

    /// Sets aside the aggregates of the affected facts, before [`Fact::delete`]: `prior_<fact>`.
    #[must_use]
    pub fn create_prior(&self, any: bool) -> String {
        let columns =
            list(self.grain.iter().map(String::as_str).chain(self.aggregate_columns()).map(|c| Ident(c).to_string()));
        let scope = if any {
            format!(" semi join ({}) as _gone using ({})", self.existing(), self.keys())
        } else {
            " limit 0".to_owned()
        };
        format!(
            "create or replace temp table {} as select {columns} from {}{scope}",
            self.temporary("prior"),
            self.table()
        )
    }

    /// Notes which facts the batch touches; `None` if none can be.
    #[must_use]
    pub fn affected(&self, changes: &Changes) -> Option<String> {
        let own = &self.source.table;
        let keys = self.keys();
        let grain = list(self.grain.iter().map(|g| qualified(own, g)));
        let staging = format!("{} as {}", relation("staging", own), Ident(own));
        let changed = |table: &str| changes.tables.contains(table);
        let mut parts = Vec::new();
        for join in self.joins.iter().filter(|j| changed(&j.source.table)) {
            let changed = difference(&join.source, &self.row_columns(&join.source.table));
            parts.push(self.reached(&grain, &staging, &join.on, &changed));
        }
        for aggregate in self.aggregates.iter().filter(|a| changed(&a.source.table)) {
            let changed = difference(&aggregate.source, &aggregate.referenced());
            parts.push(match self.grain_of(aggregate) {
                Some(columns) => format!("select {columns} from {changed}"),
                None => self.reached(&grain, &staging, &aggregate.on, &changed),
            });
        }
        for lookup in self.lookups.iter().filter(|l| changes.dimensions.contains(&l.dimension)) {
            let LookupInto::Dimension { key, .. } = &lookup.into else { continue };
            let mut on: Vec<String> = key
                .iter()
                .zip(&lookup.key)
                .map(|(column, e)| format!("_changed.{} = {}", Ident(column), e.sql))
                .collect();
            if let Some(as_of) = &lookup.as_of {
                let time = format!("epoch_us({})", as_of.sql);
                on.push(format!("{time} >= epoch_us(_changed._from) and {time} < epoch_us(_changed._to)"));
            }
            let joins = self.joins_for(lookup.key.iter().chain(&lookup.as_of), Reach::Whole);
            parts.push(format!(
                "select {grain} from {staging}{joins} semi join {} as _changed on {}",
                Ident(&format!("changed_{}", lookup.dimension)),
                on.join(" and ")
            ));
        }
        let others = parts.join(" union all ");
        let affected = self.affected_table();
        if !changed(own) {
            return (!parts.is_empty()).then(|| {
                format!(
                    "create or replace temp table {affected} as \
                     select {keys}, true as _existed, true as _elsewhere from (select distinct {keys} from ({others}))"
                )
            });
        }
        let written = format!(
            "select {keys}, _before as _existed, false as _elsewhere from {}",
            keys_written(&self.source, &self.grain)
        );
        if parts.is_empty() {
            return Some(format!("create or replace temp table {affected} as {written}"));
        }
        let row = if self.grain.len() == 1 { keys.clone() } else { format!("({keys})") };
        let (old, new) = (Ident(&format!("old_{own}")).to_string(), Ident(&format!("new_{own}")).to_string());
        Some(fill(
            include_str!("../sql/affected_fact.sql"),
            &[
                ("affected", &affected),
                ("keys", &keys),
                ("row", &row),
                ("written", &written),
                ("old", &old),
                ("new", &new),
                ("others", &others),
            ],
        ))
    }

    /// Grains of the facts that reach a changed row through `on`.
    fn reached(&self, grain: &str, staging: &str, on: &[(String, Expression)], changed: &str) -> String {
        let joins = self.joins_for(on.iter().map(|(_, e)| e), Reach::Whole);
        let on = list_and(on.iter().map(|(column, e)| format!("_changed.{} = {}", Ident(column), e.sql)));
        format!("select {grain} from {staging}{joins} semi join {changed} as _changed on {on}")
    }

    /// Pairs of a grain column and the aggregate's own column that equals it.
    fn grain_pairs<'a>(&'a self, aggregate: &'a Aggregate) -> Vec<(&'a str, &'a str)> {
        let by_base: BTreeMap<&str, &str> = aggregate
            .on
            .iter()
            .filter_map(|(column, e)| {
                let (table, base_column) = e.bare.as_ref()?;
                (*table == self.source.table).then_some((base_column.as_str(), column.as_str()))
            })
            .collect();
        self.grain.iter().filter_map(|g| by_base.get(g.as_str()).map(|column| (g.as_str(), *column))).collect()
    }

    /// The aggregate's own columns as the grain, if they are the grain.
    fn grain_of(&self, aggregate: &Aggregate) -> Option<String> {
        let pairs = self.grain_pairs(aggregate);
        let whole = pairs.len() == self.grain.len() && aggregate.on.len() == self.grain.len();
        whole.then(|| list(pairs.into_iter().map(|(g, column)| format!("{} as {}", Ident(column), Ident(g)))))
    }

    /// Takes away what may be there of the affected facts.
    #[must_use]
    pub fn delete(&self) -> String {
        let keys = list_and(self.grain.iter().map(|g| format!("_f.{0} = _gone.{0}", Ident(g))));
        format!("delete from {} as _f using ({}) as _gone where {keys}", self.table(), self.existing())
    }

    fn existing(&self) -> String {
        format!("select {} from {} where _existed", self.keys(), self.affected_table())
    }

    /// The affected rows of the fact's source, set aside.
    fn prepared(&self) -> String {
        format!("{} as {}", self.temporary("base"), Ident(&self.source.table))
    }

    /// Sets aside what the affected facts need of each table. The planner then knows how little it is;
    /// left joins with whole tables it takes for large, and hashes the tables.
    #[must_use]
    pub fn prepare(&self, base: Base) -> Vec<String> {
        let mut statements = vec![format!(
            "create or replace temp table {} as select * from {}",
            self.temporary("base"),
            self.base(base)
        )];
        let part = |name: &str, columns: &str, from: &str, wanted: &[(String, &Expression)]| {
            let keys = list(wanted.iter().map(|(column, _)| Ident(column).to_string()));
            let values = list(wanted.iter().map(|(column, e)| format!("{} as {}", e.sql, Ident(column))));
            let joins = self.joins_for(wanted.iter().map(|(_, e)| *e), Reach::Parts);
            format!(
                "create or replace temp table {} as select {columns} from {from} \
                 semi join (select {values} from {}{joins}) as _wanted using ({keys})",
                self.temporary(name),
                self.prepared()
            )
        };
        for join in &self.joins {
            let table = &join.source.table;
            let columns = list(self.row_columns(table).iter().map(|c| Ident(c).to_string()));
            let wanted: Vec<_> = join.on.iter().map(|(column, e)| (column.clone(), e)).collect();
            statements.push(part(&format!("part_{table}"), &columns, &relation("staging", table), &wanted));
        }
        for (i, lookup) in self.lookups.iter().enumerate() {
            let LookupInto::Dimension { surrogate, key, historical } = &lookup.into else { continue };
            let mut columns = list(std::iter::once(surrogate).chain(key).map(|c| Ident(c).to_string()));
            if *historical {
                columns.push_str(", valid_from, valid_to");
            }
            let wanted: Vec<_> = key.iter().cloned().zip(&lookup.key).collect();
            statements.push(part(&format!("look{i}"), &columns, &relation("warehouse", &lookup.dimension), &wanted));
        }
        statements
    }

    /// Puts the affected facts in, after [`Fact::prepare`].
    #[must_use]
    pub fn insert(&self, how: Incremental<'_>) -> String {
        let rows = self.rows_of(&self.prepared(), Reach::Parts, |aggregate| {
            if how.carry { self.carried(aggregate, how.changes) } else { self.gathered(aggregate, how.base) }
        });
        format!("insert into {} {rows}", self.table())
    }
}

impl Join {
    /// The joined table that this one is found by, if by plain columns of it alone: where that has no row, this has none.
    fn hangs_on<'a>(&self, wanted: &[&'a Join]) -> Option<&'a String> {
        let mut tables = self.on.iter().map(|(_, e)| e.bare.as_ref().map(|(table, _)| table));
        let first = tables.next()??;
        let parent = wanted.iter().map(|j| &j.source.table).find(|table| *table == first)?;
        tables.all(|table| table == Some(first)).then_some(parent)
    }
}

impl Aggregate {
    fn keys(&self) -> String {
        list(self.on.iter().map(|(column, _)| Ident(column).to_string()))
    }

    fn values(&self) -> String {
        list(self.columns.iter().map(|(name, e)| format!("{} as {}", e.sql, Ident(name))))
    }

    /// A group for each key, from `relation` restricted by `scope`.
    fn grouped(&self, relation: &str, scope: &str) -> String {
        let keys = self.keys();
        format!(
            "select {keys}, true as _found, {} from {relation} as {}{scope} group by {keys}",
            self.values(),
            Ident(&self.source.table)
        )
    }
}

impl Lookup {
    /// The column's expression and the join that it needs.
    fn sql(&self, i: usize, dimension: &str) -> (String, String) {
        let alias = format!("_l{i}");
        let on = |columns: &[String]| {
            list_and(columns.iter().zip(&self.key).map(|(c, e)| format!("{alias}.{} = {}", Ident(c), e.sql)))
        };
        match &self.into {
            LookupInto::Dimension { surrogate, key, historical } => {
                let mut on = on(key);
                if let (true, Some(as_of)) = (*historical, &self.as_of) {
                    // as numbers: casts to and from timestamptz go through the ICU library, value by value
                    let time = format!("epoch_us({})", as_of.sql);
                    on = format!(
                        "{on} and {time} >= epoch_us({alias}.valid_from) and {time} < epoch_us({alias}.valid_to)"
                    );
                }
                let join = format!(" left join {dimension} as {alias} on {on}");
                (format!("coalesce({alias}.{}, 0)", Ident(surrogate)), join)
            }
            LookupInto::Seed { surrogate, key } => {
                let join = format!(
                    " left join {} as {alias} on {}",
                    relation("warehouse", &self.dimension),
                    on(std::slice::from_ref(key))
                );
                (format!("coalesce({alias}.{}, 0)", Ident(surrogate)), join)
            }
            LookupInto::Date { first_year, last_year } => {
                let day = |e: &Expression| format!("cast(make_timestamp(epoch_us({})) as date)", e.sql);
                let date = self.key.first().map(day).unwrap_or_default();
                let column = format!(
                    "cast(case when year({date}) between {first_year} and {last_year} \
                     then year({date}) * 10000 + month({date}) * 100 + day({date}) else 0 end as integer)"
                );
                (column, String::new())
            }
        }
    }
}
