//! Changes on their way from a source to a warehouse: columns of PostgreSQL text, without an
//! allocation for each value.

use std::sync::Arc;

use millrace_base::{Lsn, Micros};

use crate::schema::{TableName, TableSchema};

/// What happened to a row.
///
/// A change of the key arrives as [`Op::Delete`] of the old key and [`Op::Insert`] of the new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Part of a copy of the whole table; the key is not there before.
    Copy,
    Insert,
    Update,
    /// Only the key columns are set.
    Delete,
}

impl Op {
    /// The letter kept in `raw` tables.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Copy => "C",
            Self::Insert => "I",
            Self::Update => "U",
            Self::Delete => "D",
        }
    }
}

/// Where in the source's history a row stands. `(commit_lsn, sequence)` orders all changes of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowHead {
    pub op: Op,
    /// The transaction's commit record (`final_lsn` of pgoutput's Begin); for copies the consistent point.
    pub commit_lsn: Lsn,
    /// Commit time on the source; for copies the time at which the copy began.
    pub commit_time: Micros,
    /// Position within the transaction, from 0; over all tables.
    pub sequence: u64,
}

/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// The stream left it out because the update did not touch a TOASTed value: it is what it was.
    Unchanged,
    /// PostgreSQL's text output, without a terminator.
    Text(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Unchanged,
    Text,
}

/// One column of many rows: all texts end to end.
#[derive(Debug, Clone, Default)]
pub struct ColumnData {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<Kind>,
}

impl ColumnData {
    /// Appends a value.
    pub fn push(&mut self, cell: Cell<'_>) {
        let kind = match cell {
            Cell::Null => Kind::Null,
            Cell::Unchanged => Kind::Unchanged,
            Cell::Text(text) => {
                self.bytes.extend_from_slice(text);
                Kind::Text
            }
        };
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    /// The value of row `row`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn cell(&self, row: usize) -> Cell<'_> {
        match self.kinds[row] {
            Kind::Null => Cell::Null,
            Kind::Unchanged => Cell::Unchanged,
            Kind::Text => {
                let start = if row == 0 { 0 } else { self.ends[row - 1] };
                Cell::Text(&self.bytes[start..self.ends[row]])
            }
        }
    }

    /// All values in order.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = Cell<'_>> + '_ {
        (0..self.kinds.len()).map(|row| self.cell(row))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

/// Changed or copied rows of one table under one schema, in source order.
#[derive(Debug, Clone)]
pub struct Rows {
    schema: Arc<TableSchema>,
    heads: Vec<RowHead>,
    columns: Vec<ColumnData>,
    bytes: usize,
}

impl Rows {
    #[must_use]
    pub fn new(schema: Arc<TableSchema>) -> Self {
        let columns = schema.columns.iter().map(|_| ColumnData::default()).collect();
        Self { schema, heads: Vec::new(), columns, bytes: 0 }
    }

    /// Appends a row. Values that `cells` does not give are null; values beyond the schema are a
    /// bug of the caller and are refused by the return value.
    #[must_use]
    pub fn push<'a>(&mut self, head: RowHead, cells: impl IntoIterator<Item = Cell<'a>>) -> bool {
        let mut cells = cells.into_iter();
        self.bytes += size_of::<RowHead>();
        for column in &mut self.columns {
            let cell = cells.next().unwrap_or(Cell::Null);
            if let Cell::Text(text) = cell {
                self.bytes += text.len();
            }
            self.bytes += size_of::<usize>() + 1;
            column.push(cell);
        }
        self.heads.push(head);
        cells.next().is_none()
    }

    #[must_use]
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    #[must_use]
    pub fn heads(&self) -> &[RowHead] {
        &self.heads
    }

    /// A column's values; `None` beyond the schema.
    #[must_use]
    pub fn column(&self, position: usize) -> Option<&ColumnData> {
        self.columns.get(position)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Memory held, in bytes, about.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }
}

/// One step of a batch. Steps of one table are in source order; steps of different tables need not be.
#[derive(Debug, Clone)]
pub enum Step {
    /// The table's columns from here on; comes before its first rows and at each change.
    Schema(Arc<TableSchema>),
    Rows(Rows),
    /// All rows of the table went away.
    Truncate {
        table: TableName,
        head: RowHead,
    },
}

impl Step {
    #[must_use]
    pub fn table(&self) -> &TableName {
        match self {
            Self::Schema(schema) => &schema.table,
            Self::Rows(rows) => &rows.schema.table,
            Self::Truncate { table, .. } => table,
        }
    }
}
