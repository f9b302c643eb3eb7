//! A source table as the capture sees it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `schema.name` of a source table, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Quoted for SQL: `"schema"."name"`.
    #[must_use]
    pub fn to_sql(&self) -> String {
        use millrace_base::Ident;
        format!("{}.{}", Ident(&self.schema), Ident(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// The text has no dot between a schema and a table.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a table; write schema.table")]
pub struct ParseTableError(String);

impl FromStr for TableName {
    type Err = ParseTableError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('.') {
            Some((schema, name)) if !schema.is_empty() && !name.is_empty() => Ok(Self::new(schema, name)),
            _ => Err(ParseTableError(text.to_owned())),
        }
    }
}

impl Serialize for TableName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a column's text means. Domains are resolved to their base type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// `numeric(precision, scale)` that a 128-bit decimal holds (precision ≤ 38, 0 ≤ scale ≤ precision).
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// `numeric` without a bound, or beyond 38 digits: kept as PostgreSQL's exact text.
    NumericText,
    /// `text`, `varchar`, `char`, `name`, `citext`, enums.
    Text,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Uuid,
    Json,
    Bytea,
    /// Every other type (arrays, ranges, intervals, network addresses, composites, …): PostgreSQL's exact text.
    Other,
}

/// One column of a source table, in the order of the replication stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub column_type: ColumnType,
    /// PostgreSQL's name of the declared type (`format_type`), for people.
    pub declared: String,
    /// Part of the replica identity (the primary key unless declared otherwise).
    pub key: bool,
}

/// A table's columns at one moment. Two are the same if they compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    pub table: TableName,
    /// The relation's oid on the source.
    pub oid: u32,
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// Positions of the key columns; never empty for a table that is captured.
    pub fn key(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().enumerate().filter(|(_, c)| c.key).map(|(i, _)| i)
    }

    /// Position of a column by name.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }
}
