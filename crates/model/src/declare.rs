//! Declarations as written: TOML, strict. Nothing is resolved here.
//!
//! One file may declare any number of models, as `[[dimension]]`, `[[seed]]`, `[[date]]`, `[[fact]]`
//! and `[[view]]`. Expressions are PostgreSQL's SQL; a bare column is one of the model's own `source`,
//! another table's column is written `table.column`.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::error::ModelError;

/// A file of declarations.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub dimension: Vec<Dimension>,
    #[serde(default)]
    pub seed: Vec<Seed>,
    #[serde(default)]
    pub date: Vec<Date>,
    #[serde(default)]
    pub fact: Vec<Fact>,
    #[serde(default)]
    pub view: Vec<View>,
}

/// A dimension with one row for each row of a source table (type 1) or for each version of it (type 2).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dimension {
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: String,
    /// 1: the newest state. 2: all states since the first load, by tracked attributes.
    #[serde(rename = "type")]
    pub kind: Spanned<u8>,
    /// `schema.table` of the source.
    pub source: Spanned<String>,
    /// Columns of the source that identify a row.
    pub key: Vec<Spanned<String>>,
    /// Name of the surrogate key's column.
    pub surrogate: Spanned<String>,
    /// Name → expression over the source's columns.
    pub attributes: IndexMap<String, Spanned<String>>,
    /// Type 2: attributes whose change makes a new version; all of them if absent.
    pub tracked: Option<Vec<Spanned<String>>>,
    /// Attribute → text shown by the unknown member (key 0); null if absent.
    #[serde(default)]
    pub unknown: IndexMap<String, Spanned<Scalar>>,
}

/// A dimension whose rows are written here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seed {
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: String,
    pub surrogate: Spanned<String>,
    /// The column that facts look up.
    pub key: Spanned<String>,
    /// Rows; surrogate keys count from 1 in this order, so new ones go to the end.
    pub rows: Vec<Spanned<IndexMap<String, Scalar>>>,
    #[serde(default)]
    pub unknown: IndexMap<String, Spanned<Scalar>>,
}

/// A value in a seed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Bool(bool),
    Integer(i64),
    Text(String),
}

/// A calendar: a row a day.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Date {
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: String,
    pub first_year: Spanned<i32>,
    pub last_year: Spanned<i32>,
}

/// A fact table: a row for each row of its source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fact {
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: String,
    pub source: Spanned<String>,
    /// Columns of the source that identify a fact.
    pub grain: Vec<Spanned<String>>,
    #[serde(default)]
    pub join: Vec<Join>,
    #[serde(default)]
    pub aggregate: Vec<Aggregate>,
    #[serde(default)]
    pub lookup: Vec<Lookup>,
    /// Measures and degenerate columns: name → expression.
    #[serde(default)]
    pub columns: IndexMap<String, Spanned<String>>,
}

/// Another source table, at most one row of it for each fact.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    pub source: Spanned<String>,
    /// Column of the joined table → expression over the tables before it.
    pub on: IndexMap<String, Spanned<String>>,
}

/// Many rows of a source table gathered for each fact.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Aggregate {
    pub source: Spanned<String>,
    /// Column of the gathered table → expression over the fact's source and joins.
    pub on: IndexMap<String, Spanned<String>>,
    /// Fact column → aggregate over the gathered table.
    pub columns: IndexMap<String, Spanned<String>>,
}

/// A dimension's surrogate key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lookup {
    /// Name of the fact's column.
    pub column: Spanned<String>,
    pub dimension: Spanned<String>,
    /// One expression for each key column of the dimension; for a calendar, a date.
    pub key: Spanned<OneOrMany>,
    /// Type 2 only: the time whose version is meant.
    pub as_of: Option<Spanned<String>>,
}

/// `"a"` or `["a", "b"]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// A named query over models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct View {
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: String,
    pub sql: Spanned<String>,
}

/// A file's text and what it is called, for errors with lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
}

impl Text<'_> {
    /// Line of a byte position, from 1.
    fn line(&self, position: usize) -> usize {
        self.text.bytes().take(position).filter(|b| *b == b'\n').count() + 1
    }

    pub(crate) fn error<T>(&self, at: &Spanned<T>, message: impl Into<String>) -> ModelError {
        ModelError {
            file: self.file.to_owned(),
            line: Some(self.line(at.span().start)),
            message: message.into(),
            hint: None,
        }
    }
}

/// Reads one file.
pub(crate) fn parse(text: Text<'_>) -> Result<File, ModelError> {
    toml::from_str(text.text).map_err(|e| {
        let message = e.message().to_owned();
        ModelError {
            file: text.file.to_owned(),
            line: e.span().map(|span| text.line(span.start)),
            hint: suggestion(&message),
            message,
        }
    })
}

/// ``unknown field `nmae`, expected one of `name`, `key` `` → did you mean `name`?
fn suggestion(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2);
    nearest(unknown, known).map(|name| format!("did you mean `{name}`?"))
}

/// The most similar of some names, if any is similar enough to have been meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
