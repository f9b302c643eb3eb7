//! Resolved models: every name found, every expression parsed, in an order in which they can be built.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::expression::Expression;

/// A source table, `schema.table`; in the warehouse it goes by `table` alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    pub schema: String,
    pub table: String,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// A dimension fed from a source table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dimension {
    pub name: String,
    pub description: String,
    /// Type 2: a row for each version.
    pub historical: bool,
    pub source: Source,
    pub key: Vec<String>,
    pub surrogate: String,
    pub attributes: Vec<(String, Expression)>,
    /// Type 2: names of the attributes that make versions.
    pub tracked: BTreeSet<String>,
    /// Column → SQL literal of the unknown member.
    pub unknown: Vec<(String, String)>,
}

/// A dimension whose rows are part of the declaration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seed {
    pub name: String,
    pub description: String,
    pub surrogate: String,
    pub key: String,
    pub columns: Vec<String>,
    /// SQL literals in the order of `columns`.
    pub rows: Vec<Vec<String>>,
    pub unknown: Vec<String>,
}

/// A calendar; its key is the day as YYYYMMDD.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Date {
    pub name: String,
    pub description: String,
    pub first_year: i32,
    pub last_year: i32,
}

/// A fact table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fact {
    pub name: String,
    pub description: String,
    pub source: Source,
    pub grain: Vec<String>,
    pub joins: Vec<Join>,
    pub aggregates: Vec<Aggregate>,
    pub lookups: Vec<Lookup>,
    pub columns: Vec<(String, Expression)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    pub source: Source,
    pub on: Vec<(String, Expression)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Aggregate {
    pub source: Source,
    pub on: Vec<(String, Expression)>,
    pub columns: Vec<(String, Expression)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lookup {
    pub column: String,
    pub dimension: String,
    pub into: LookupInto,
    /// As many as the dimension has key columns.
    pub key: Vec<Expression>,
    pub as_of: Option<Expression>,
}

/// What a lookup needs to know of its dimension.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LookupInto {
    Dimension { surrogate: String, key: Vec<String>, historical: bool },
    Seed { surrogate: String, key: String },
    Date { first_year: i32, last_year: i32 },
}

/// A query kept under a name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct View {
    pub name: String,
    pub description: String,
    /// DuckDB's SQL.
    pub sql: String,
    /// As declared.
    pub declared: String,
    /// Models that it reads.
    pub reads: BTreeSet<String>,
}

/// Any model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Model {
    Dimension(Dimension),
    Seed(Seed),
    Date(Date),
    Fact(Fact),
    View(View),
}

impl Model {
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Dimension(m) => &m.name,
            Self::Seed(m) => &m.name,
            Self::Date(m) => &m.name,
            Self::Fact(m) => &m.name,
            Self::View(m) => &m.name,
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dimension(m) if m.historical => "dimension (type 2)",
            Self::Dimension(_) => "dimension (type 1)",
            Self::Seed(_) => "seeded dimension",
            Self::Date(_) => "calendar",
            Self::Fact(_) => "fact",
            Self::View(_) => "view",
        }
    }

    #[must_use]
    pub fn description(&self) -> &str {
        match self {
            Self::Dimension(m) => &m.description,
            Self::Seed(m) => &m.description,
            Self::Date(m) => &m.description,
            Self::Fact(m) => &m.description,
            Self::View(m) => &m.description,
        }
    }

    /// Source tables whose changes may change it.
    #[must_use]
    pub fn sources(&self) -> BTreeSet<&Source> {
        match self {
            Self::Dimension(m) => BTreeSet::from([&m.source]),
            Self::Fact(m) => std::iter::once(&m.source)
                .chain(m.joins.iter().map(|j| &j.source))
                .chain(m.aggregates.iter().map(|a| &a.source))
                .collect(),
            Self::Seed(_) | Self::Date(_) | Self::View(_) => BTreeSet::new(),
        }
    }

    /// Columns of `source` that it reads.
    #[must_use]
    pub fn columns_of(&self, source: &Source) -> BTreeSet<String> {
        self.columns(source, false)
    }

    /// Columns of `source` whose values before a batch are compared with those after it. A fact's own rows are not
    /// compared: each one that was written is made anew.
    #[must_use]
    pub fn columns_before(&self, source: &Source) -> BTreeSet<String> {
        self.columns(source, true)
    }

    fn columns(&self, source: &Source, before: bool) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        let mut take = |expressions: &mut dyn Iterator<Item = &Expression>| {
            for (table, column) in expressions.flat_map(|e| &e.columns) {
                if *table == source.table {
                    used.insert(column.clone());
                }
            }
        };
        match self {
            Self::Dimension(m) if m.source == *source => {
                take(&mut m.attributes.iter().map(|(_, e)| e));
                used.extend(m.key.iter().cloned());
            }
            Self::Fact(m) => {
                if !before || m.source != *source {
                    take(&mut m.row_expressions());
                }
                if m.source == *source {
                    used.extend(m.grain.iter().cloned());
                }
                for join in m.joins.iter().filter(|j| j.source == *source) {
                    used.extend(join.on.iter().map(|(column, _)| column.clone()));
                }
                for aggregate in m.aggregates.iter().filter(|a| a.source == *source) {
                    used.extend(aggregate.referenced());
                }
            }
            Self::Dimension(_) | Self::Seed(_) | Self::Date(_) | Self::View(_) => {}
        }
        used
    }
}

impl Fact {
    /// Expressions over the fact's own row: its source and joins, not what aggregates gather.
    pub(crate) fn row_expressions(&self) -> impl Iterator<Item = &Expression> {
        let on = self.joins.iter().flat_map(|j| &j.on).chain(self.aggregates.iter().flat_map(|a| &a.on));
        on.map(|(_, e)| e)
            .chain(self.lookups.iter().flat_map(|l| l.key.iter().chain(&l.as_of)))
            .chain(self.columns.iter().map(|(_, e)| e))
    }

    /// Columns that the fact's own row needs of one of its tables.
    pub(crate) fn row_columns(&self, table: &str) -> BTreeSet<String> {
        let mut used: BTreeSet<String> = self
            .row_expressions()
            .flat_map(|e| &e.columns)
            .filter(|(t, _)| t == table)
            .map(|(_, column)| column.clone())
            .collect();
        if self.source.table == table {
            used.extend(self.grain.iter().cloned());
        }
        for join in self.joins.iter().filter(|j| j.source.table == table) {
            used.extend(join.on.iter().map(|(column, _)| column.clone()));
        }
        used
    }
}

impl Aggregate {
    /// Columns of the gathered table.
    pub(crate) fn referenced(&self) -> BTreeSet<String> {
        let gathered = self.columns.iter().flat_map(|(_, e)| e.columns.iter().map(|(_, column)| column.clone()));
        gathered.chain(self.on.iter().map(|(column, _)| column.clone())).collect()
    }
}
