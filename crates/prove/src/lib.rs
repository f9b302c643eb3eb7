//! Compares a source table with its copy in the warehouse, row by row and value by value.
//!
//! Both sides are read in key order: the source as PostgreSQL's own text (`COPY … TO STDOUT`) inside a
//! snapshot at a known log position, the warehouse as typed values at the same position, written as
//! text here. So a value that was decoded wrongly on its way differs, even though the way is our own.
//!
//! Invariants: memory does not grow with the table; nothing is sampled.
//! Non-goals: choosing the position (capture's barrier), comparing models (the warehouse's own).

mod merge;

use futures::{StreamExt, pin_mut};
use millrace_base::Ident;
use millrace_contract::{
    Query, QueryError, Reader, Value,
    operate::Compared,
    schema::{ColumnType, TableSchema},
};
use std::{collections::VecDeque, time::Duration};

use merge::{Merge, Row};

/// Differing keys named in a result.
const EXAMPLES_MAX: usize = 10;
/// A table of any size must have been compared by then.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Why a comparison could not be made; a difference is not an error.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error("cannot read {table} on the source")]
    Source {
        table: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("cannot read {table} in the warehouse")]
    Warehouse {
        table: String,
        #[source]
        source: QueryError,
    },
    #[error("the source sent a line of {table} that has not {columns} columns")]
    Line { table: String, columns: usize },
    #[error("the rows of {table} did not arrive in key order from the {side}")]
    Order { table: String, side: &'static str },
}

/// Compares one table. `client` is inside a transaction whose snapshot is the position that the
/// warehouse state `pinned` stands at.
///
/// # Errors
/// If either side cannot be read.
pub async fn compare_table(
    client: &tokio_postgres::Client,
    reader: &dyn Reader,
    pinned: &str,
    schema: &TableSchema,
) -> Result<Compared, ProveError> {
    let table = schema.table.to_string();
    let (source_sql, warehouse_sql) = statements(schema);

    let on_source = |source| ProveError::Source { table: table.clone(), source };
    let on_warehouse = |source| ProveError::Warehouse { table: table.clone(), source };
    let copy = client.copy_out(&source_sql).await.map_err(on_source)?;
    pin_mut!(copy);
    let query = Query { sql: warehouse_sql, params: Vec::new(), deadline: DEADLINE, pinned: Some(pinned.to_owned()) };
    let mut stream = reader.query(query).await.map_err(on_warehouse)?;

    let mut merge = Merge::new(schema, EXAMPLES_MAX);
    let mut lines = Lines::default();
    let mut left: VecDeque<Row> = VecDeque::new();
    let mut right: VecDeque<Row> = VecDeque::new();
    let (mut left_ended, mut right_ended) = (false, false);
    loop {
        while left.is_empty() && !left_ended {
            match copy.next().await {
                Some(chunk) => lines
                    .push(&chunk.map_err(on_source)?, schema.columns.len(), &mut left)
                    .map_err(|()| ProveError::Line { table: table.clone(), columns: schema.columns.len() })?,
                None => left_ended = true,
            }
        }
        while right.is_empty() && !right_ended {
            match stream.rows.recv().await {
                Some(chunk) => right.extend(chunk.map_err(on_warehouse)?.into_iter().map(warehouse_row)),
                None => right_ended = true,
            }
        }
        if left.is_empty() && right.is_empty() {
            break;
        }
        merge
            .step(&mut left, left_ended, &mut right, right_ended)
            .map_err(|side| ProveError::Order { table: table.clone(), side })?;
    }
    Ok(merge.finish(table))
}

/// The two statements: all columns in order, sorted by the key. Integer keys sort as numbers on both
/// sides; every other key sorts by the bytes of its text, which both sides agree on.
fn statements(schema: &TableSchema) -> (String, String) {
    let numeric = merge::has_integer_key(schema);
    let names: Vec<String> = schema.columns.iter().map(|c| Ident(&c.name).to_string()).collect();
    let order = |cast: fn(&str, &ColumnType) -> String| {
        schema
            .columns
            .iter()
            .filter(|c| c.key)
            .map(|c| {
                let name = Ident(&c.name).to_string();
                if numeric { name } else { cast(&name, &c.column_type) }
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let source = format!(
        "COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT",
        names.join(", "),
        schema.table.to_sql(),
        order(|name, _| format!("{name}::text COLLATE \"C\"")),
    );
    let warehouse = format!(
        "SELECT {} FROM staging.{} ORDER BY {}",
        names.join(", "),
        Ident(&schema.table.name),
        order(|name, _| format!("CAST({name} AS VARCHAR)")),
    );
    (source, warehouse)
}

fn warehouse_row(values: Vec<Value>) -> Row {
    values.into_iter().map(|value| value.to_text().map(String::into_bytes)).collect()
}

/// Cuts COPY's data messages into rows; one message is one line in practice, but nothing promises it.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, data: &[u8], columns: usize, rows: &mut VecDeque<Row>) -> Result<(), ()> {
        self.rest.extend_from_slice(data);
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', self.rest.get(start..).unwrap_or_default()) {
            let line = self.rest.get(start..start + length).unwrap_or_default();
            let row: Row = line.split(|byte| *byte == b'\t').map(unescape).collect();
            if row.len() != columns {
                return Err(());
            }
            rows.push_back(row);
            start += length + 1;
        }
        self.rest.drain(..start);
        Ok(())
    }
}

/// A field of COPY's text format (PostgreSQL manual, COPY, "Text Format").
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    if field == b"\\N" {
        return None;
    }
    if memchr::memchr(b'\\', field).is_none() {
        return Some(field.to_vec());
    }
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            text.push(*byte);
            continue;
        }
        text.extend(bytes.next().map(|escaped| match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => *other,
        }));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_messages_end() {
        let data = b"1\ta\\tb\t\\N\n2\t\\\\N\t\n";
        let expected: VecDeque<Row> = [
            vec![Some(b"1".to_vec()), Some(b"a\tb".to_vec()), None],
            vec![Some(b"2".to_vec()), Some(b"\\N".to_vec()), Some(Vec::new())],
        ]
        .into();
        for cut in 0..data.len() {
            let mut lines = Lines::default();
            let mut rows = VecDeque::new();
            lines.push(&data[..cut], 3, &mut rows).unwrap();
            lines.push(&data[cut..], 3, &mut rows).unwrap();
            assert_eq!(rows, expected, "cut at {cut}");
        }
        assert!(Lines::default().push(data, 2, &mut VecDeque::new()).is_err());
    }
}
