//! Star schemas: declarations → plan → SQL. Pure: no file, no database, no clock.
//!
//! Invariants: what an incremental load computes comes from the same template as a rebuild, restricted
//! to affected keys; every dimension has the unknown member with key 0; surrogate keys are integers
//! that `audit.surrogate_keys_<dim>` remembers and that are never reused.
//! Non-goals: running the SQL, and knowing a domain.

mod declare;
mod dimension;
mod error;
mod expression;
mod fact;
mod plan;
mod resolve;
mod star;
mod template;

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

pub use dimension::Scope;
pub use error::ModelError;
pub use expression::{AGGREGATE, Expression, SCALAR, TranslatedQuery, translate_query};
pub use fact::{Base, Changes, Incremental};
pub use plan::{Change, ChangeKind, plan};
pub use star::{Aggregate, Date, Dimension, Fact, Join, Lookup, LookupInto, Model, Seed, Source, View};

/// A pack's models, resolved, in an order in which they can be built.
#[derive(Debug, Default)]
pub struct Models {
    models: IndexMap<String, Model>,
    uses: Vec<resolve::Use>,
}

impl FromIterator<Model> for Models {
    /// Models that were resolved before, in an order in which they can be built. Where they use columns is
    /// not known of these: [`Models::check_columns`] finds nothing.
    fn from_iter<I: IntoIterator<Item = Model>>(models: I) -> Self {
        Self { models: models.into_iter().map(|m| (m.name().to_owned(), m)).collect(), uses: Vec::new() }
    }
}

impl Models {
    /// Reads files given as `(name for errors, text)`.
    ///
    /// # Errors
    /// All that is wrong with them, each with file and line.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<ModelError>> {
        let mut parsed = Vec::new();
        let mut errors = Vec::new();
        for (file, text) in files {
            let text = declare::Text { file, text };
            match declare::parse(text) {
                Ok(file) => parsed.push((text, file)),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let resolved = resolve::resolve(&parsed)?;
        Ok(Self { models: resolved.models, uses: resolved.uses })
    }

    /// Checks every use of a source's column against the source: `schema.table` → columns.
    ///
    /// # Errors
    /// Each table that is not there and each column that it does not have.
    pub fn check_columns(&self, tables: &BTreeMap<String, BTreeSet<String>>) -> Result<(), Vec<ModelError>> {
        let mut errors: Vec<ModelError> = Vec::new();
        for used in &self.uses {
            let mut error = used.at.clone();
            match tables.get(&used.source.to_string()) {
                None => {
                    error.message = format!("there is no source table `{}`", used.source);
                    error = error.near(&used.source.to_string(), tables.keys().map(String::as_str));
                }
                Some(columns) if !columns.contains(&used.column) => {
                    error.message = format!("`{}` has no column `{}`", used.source, used.column);
                    error = error.near(&used.column, columns.iter().map(String::as_str));
                }
                Some(_) => continue,
            }
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The source tables that the models need: what a publication has to hold.
    #[must_use]
    pub fn sources(&self) -> BTreeSet<Source> {
        self.models.values().flat_map(|m| m.sources().into_iter().cloned()).collect()
    }

    /// All models in build order.
    pub fn iter(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// Columns of a source table (bare name) whose values before a batch any model compares.
    #[must_use]
    pub fn columns_before(&self, table: &str) -> BTreeSet<String> {
        let compared = self.iter().flat_map(|m| {
            m.sources().into_iter().filter(|s| s.table == table).flat_map(|s| m.columns_before(s)).collect::<Vec<_>>()
        });
        compared.collect()
    }

    /// The names of models that read a column of a source table (bare name).
    #[must_use]
    pub fn users_of(&self, table: &str, column: &str) -> Vec<&str> {
        self.iter()
            .filter(|m| m.sources().into_iter().any(|s| s.table == table && m.columns_of(s).contains(column)))
            .map(Model::name)
            .collect()
    }
}
