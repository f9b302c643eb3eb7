//! SQL of facts.
//!
//! Invariant: full and incremental statements take their rows from one function, [`Fact::rows`]; only
//! the relation that stands for the fact's own source differs. Temporary tables in use:
//! `affected_<fact>` (grain, `_existed`, `_elsewhere`), and of each changed source `old_<table>`,
//! `new_<table>`, of each changed dimension `changed_<dim>`.

use std::collections::{BTreeMap, BTreeSet};

use millrace_base::Ident;

use crate::{
    dimension::{difference, list_and, relation},
    expression::{Expression, qualified},
    star::{Aggregate, Fact, Lookup, LookupInto},
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

    fn keys(&self) -> String {
        list(self.grain.iter().map(|g| Ident(g).to_string()))
    }

    /// Makes the table, empty; needs staging and the dimensions' tables.
    #[must_use]
    pub fn create(&self) -> String {
        format!("create table if not exists {} as {} limit 0", self.table(), self.rows(Base::All))
    }

    /// Builds it anew in its own table, in the order of its grain.
    #[must_use]
    pub fn rebuild(&self) -> Vec<String> {
        vec![format!(
            "create or replace table {} as {} order by {}",
            self.table(),
            self.rows(Base::All),
            list((1..=self.grain.len()).map(|i| i.to_string()))
        )]
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

    /// Joins that `needed` tables ask for, themselves and those that they hang on, in order.
    fn joins_for<'a>(&self, expressions: impl IntoIterator<Item = &'a Expression>, kind: &str) -> String {
        let mut needed: BTreeSet<&str> =
            expressions.into_iter().flat_map(|e| e.columns.iter().map(|(table, _)| table.as_str())).collect();
        for join in self.joins.iter().rev() {
            if needed.contains(join.source.table.as_str()) {
                needed.extend(join.on.iter().flat_map(|(_, e)| e.columns.iter().map(|(table, _)| table.as_str())));
            }
        }
        let wanted = self.joins.iter().filter(|j| needed.contains(j.source.table.as_str()));
        wanted
            .map(|join| {
                let table = &join.source.table;
                let on =
                    list_and(join.on.iter().map(|(column, e)| format!("{} = {}", qualified(table, column), e.sql)));
                format!(" {kind} join {} as {} on {on}", relation("staging", table), Ident(table))
            })
            .collect()
    }

    /// The fact's rows.
    #[must_use]
    pub fn rows(&self, base: Base) -> String {
        let own = &self.source.table;
        let mut columns: Vec<String> = self.grain.iter().map(|g| qualified(own, g)).collect();
        let mut from = format!("{}{}", self.base(base), self.joins_for(self.row_expressions(), "left"));
        for (i, lookup) in self.lookups.iter().enumerate() {
            let (column, join) = lookup.sql(i);
            columns.push(format!("{column} as {}", Ident(&lookup.column)));
            from.push_str(&join);
        }
        for (i, aggregate) in self.aggregates.iter().enumerate() {
            let (gathered, none) = (format!("_a{i}"), format!("_e{i}"));
            from.push_str(&self.gather(aggregate, base, &gathered, &none));
            columns.extend(aggregate.columns.iter().map(|(name, _)| {
                let name = Ident(name);
                format!("case when {gathered}._found then {gathered}.{name} else {none}.{name} end as {name}")
            }));
        }
        columns.extend(self.columns.iter().map(|(name, e)| format!("{} as {}", e.sql, Ident(name))));
        format!("select {} from {from}", columns.join(", "))
    }

    /// The joins that bring an aggregate: what was gathered, and what it is over no rows.
    fn gather(&self, aggregate: &Aggregate, base: Base, gathered: &str, none: &str) -> String {
        let child = &aggregate.source.table;
        let (staging, alias) = (relation("staging", child), Ident(child));
        let keys = list(aggregate.on.iter().map(|(column, _)| Ident(column).to_string()));
        let columns = list(aggregate.columns.iter().map(|(name, e)| format!("{} as {}", e.sql, Ident(name))));
        let scope = if base == Base::All {
            String::new()
        } else {
            let wanted = list(aggregate.on.iter().map(|(column, e)| format!("{} as {}", e.sql, Ident(column))));
            let joins = self.joins_for(aggregate.on.iter().map(|(_, e)| e), "left");
            format!(" semi join (select {wanted} from {}{joins}) as _wanted using ({keys})", self.base(base))
        };
        let on = list_and(aggregate.on.iter().map(|(column, e)| format!("{gathered}.{} = {}", Ident(column), e.sql)));
        format!(
            " left join (select {keys}, true as _found, {columns} from {staging} as {alias}{scope} group by {keys}) as {gathered} on {on} \
             cross join (select {columns} from {staging} as {alias} where false) as {none}"
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
        if changed(own) {
            parts.push(format!("select {keys} from {}", difference(&self.source, &self.row_columns(own))));
        }
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
                let time = format!("cast({} as timestamptz)", as_of.sql);
                on.push(format!("{time} >= _changed._from and {time} < _changed._to"));
            }
            let joins = self.joins_for(lookup.key.iter().chain(&lookup.as_of), "left");
            parts.push(format!(
                "select {grain} from {staging}{joins} semi join {} as _changed on {}",
                Ident(&format!("changed_{}", lookup.dimension)),
                on.join(" and ")
            ));
        }
        if parts.is_empty() {
            return None;
        }
        let row = if self.grain.len() == 1 { keys.clone() } else { format!("({keys})") };
        let (old, new) = (Ident(&format!("old_{own}")).to_string(), Ident(&format!("new_{own}")).to_string());
        let (existed, elsewhere) = if changed(own) {
            (
                format!("{row} not in (select {keys} from {new}) or {row} in (select {keys} from {old})"),
                format!("{row} not in (select {keys} from {new}) and {row} not in (select {keys} from {old})"),
            )
        } else {
            ("true".to_owned(), "true".to_owned())
        };
        Some(fill(
            include_str!("../sql/affected_fact.sql"),
            &[
                ("affected", &self.affected_table()),
                ("keys", &keys),
                ("existed", &existed),
                ("elsewhere", &elsewhere),
                ("parts", &parts.join(" union all ")),
            ],
        ))
    }

    /// Grains of the facts that reach a changed row through `on`.
    fn reached(&self, grain: &str, staging: &str, on: &[(String, Expression)], changed: &str) -> String {
        let joins = self.joins_for(on.iter().map(|(_, e)| e), "left");
        let on = list_and(on.iter().map(|(column, e)| format!("_changed.{} = {}", Ident(column), e.sql)));
        format!("select {grain} from {staging}{joins} semi join {changed} as _changed on {on}")
    }

    /// The aggregate's own columns in the order of the grain, if they are the grain.
    fn grain_of(&self, aggregate: &Aggregate) -> Option<String> {
        let by_base: BTreeMap<&str, &str> = aggregate
            .on
            .iter()
            .filter_map(|(column, e)| {
                let (table, base_column) = e.bare.as_ref()?;
                (*table == self.source.table).then_some((base_column.as_str(), column.as_str()))
            })
            .collect();
        let columns: Option<Vec<String>> = self
            .grain
            .iter()
            .map(|g| by_base.get(g.as_str()).map(|column| format!("{} as {}", Ident(column), Ident(g))))
            .collect();
        columns.filter(|_| aggregate.on.len() == self.grain.len()).map(list)
    }

    /// Takes away what may be there of the affected facts.
    #[must_use]
    pub fn delete(&self) -> String {
        let keys = list_and(self.grain.iter().map(|g| format!("_f.{0} = _gone.{0}", Ident(g))));
        format!(
            "delete from {} as _f using (select {} from {} where _existed) as _gone where {keys}",
            self.table(),
            self.keys(),
            self.affected_table()
        )
    }

    /// Puts the affected facts in.
    #[must_use]
    pub fn insert(&self, base: Base) -> String {
        format!("insert into {} {}", self.table(), self.rows(base))
    }
}

impl Lookup {
    /// The column's expression and the join that it needs.
    fn sql(&self, i: usize) -> (String, String) {
        let alias = format!("_l{i}");
        let on = |columns: &[String]| {
            list_and(columns.iter().zip(&self.key).map(|(c, e)| format!("{alias}.{} = {}", Ident(c), e.sql)))
        };
        match &self.into {
            LookupInto::Dimension { surrogate, key, historical } => {
                let mut on = on(key);
                if let (true, Some(as_of)) = (*historical, &self.as_of) {
                    let time = format!("cast({} as timestamptz)", as_of.sql);
                    on = format!("{on} and {time} >= {alias}.valid_from and {time} < {alias}.valid_to");
                }
                let join = format!(" left join {} as {alias} on {on}", relation("warehouse", &self.dimension));
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
                let date = self.key.first().map(|e| format!("cast({} as date)", e.sql)).unwrap_or_default();
                let column = format!(
                    "cast(case when year({date}) between {first_year} and {last_year} \
                     then year({date}) * 10000 + month({date}) * 100 + day({date}) else 0 end as integer)"
                );
                (column, String::new())
            }
        }
    }
}
