//! Prepared statements, and results that are being sent.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use millrace_contract::{QueryError, RowStream, Value, query::Description};
use tokio::sync::mpsc;

use crate::{backend::Field, command::Command, types};

/// What a statement is.
#[derive(Debug)]
pub(crate) enum Kind {
    Empty,
    Command(Command),
    Query,
}

/// A prepared statement.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) kind: Kind,
    /// Types of parameters as the client declared them; 0 where it did not.
    pub(crate) declared: Vec<u32>,
    /// Set when the statement is first described.
    pub(crate) description: OnceLock<Description>,
}

impl Statement {
    /// The SQL that has the parameters.
    pub(crate) fn query(&self) -> Option<&str> {
        match &self.kind {
            Kind::Query => Some(&self.sql),
            Kind::Command(Command::Declare { sql, .. }) => Some(sql),
            Kind::Empty | Kind::Command(_) => None,
        }
    }

    /// The type of parameter `index`: declared, or found.
    pub(crate) fn param_oid(&self, index: usize) -> u32 {
        self.declared.get(index).copied().filter(|oid| *oid != 0).unwrap_or_else(|| {
            let found = self.description.get().and_then(|description| description.params.get(index));
            found.map_or(0, |value_type| types::oid(*value_type))
        })
    }
}

/// A bound statement.
#[derive(Debug)]
pub(crate) struct Portal {
    pub(crate) statement: Arc<Statement>,
    pub(crate) params: Vec<Value>,
    pub(crate) formats: Vec<i16>,
    pub(crate) cursor: Option<Cursor>,
    /// Ran to its end.
    pub(crate) done: bool,
}

/// A result on its way.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) fields: Vec<Field>,
    pub(crate) rows: mpsc::Receiver<Result<Vec<Vec<Value>>, QueryError>>,
    /// Received and not yet sent.
    pub(crate) waiting: VecDeque<Vec<Value>>,
}

impl Cursor {
    /// Columns keep the types that the client was told, if it was told any.
    pub(crate) fn new(stream: RowStream, described: Option<&Description>) -> Self {
        let columns = described
            .map(|description| &description.columns)
            .filter(|columns| columns.len() == stream.columns.len())
            .unwrap_or(&stream.columns);
        Self { fields: columns.iter().map(types::field).collect(), rows: stream.rows, waiting: VecDeque::new() }
    }
}
