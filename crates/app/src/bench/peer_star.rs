//! The peer of the reports: the same star in PostgreSQL, with the settings and indexes of one who means well.

use std::{
    io::Cursor,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::SinkExt as _;
use millrace_base::Ident;
use millrace_contract::{
    Query, Reader, Value,
    query::{ResultColumn, ValueType},
    report::{ParamType, Report},
};
use millrace_model::Model;
use millrace_pg::Connection;
use tokio_postgres::SimpleQueryMessage;

use super::{lab::Lab, ours::Ours};
use crate::explain::Explained;

/// Beyond the platform's own.
pub(crate) const SETTINGS: [(&str, &str); 9] = [
    ("shared_buffers", "2GB"),
    ("work_mem", "256MB"),
    ("maintenance_work_mem", "1GB"),
    ("effective_cache_size", "12GB"),
    ("max_parallel_workers_per_gather", "2"),
    ("max_parallel_maintenance_workers", "2"),
    ("random_page_cost", "1.1"),
    ("max_wal_size", "16GB"),
    ("wal_level", "minimal"),
];

const COPY_MAX: Duration = Duration::from_secs(3600);

/// The star on a server.
#[derive(Debug)]
pub(crate) struct PeerStar {
    client: Connection,
}

impl PeerStar {
    /// Copies every table of the warehouse into a new server, then makes indexes, views and statistics.
    pub(crate) async fn make(lab: &mut Lab, ours: &Ours) -> anyhow::Result<Self> {
        let mut settings = SETTINGS.to_vec();
        settings.extend([("max_wal_senders", "0"), ("max_slot_wal_keep_size", "-1")]);
        let server = lab.server("reports", &settings).await?;
        server.connect("postgres").await?.batch_execute("CREATE DATABASE star").await?;
        let client = server.connect("star").await?;
        client
            .batch_execute(
                "CREATE SCHEMA warehouse; ALTER DATABASE star SET search_path = warehouse; SET search_path = warehouse",
            )
            .await?;
        let start = Instant::now();
        for model in ours.models.iter().filter(|model| !matches!(model, Model::View(_))) {
            let rows = copy(ours, &client, model.name()).await?;
            lab.note(format!("  PostgreSQL: {rows} rows in {}", model.name()));
        }
        client.batch_execute(include_str!("../../sql/bench/star_indexes.sql")).await?;
        for model in ours.models.iter() {
            if let Model::View(view) = model {
                let sql = format!("CREATE VIEW {} AS {}", Ident(&view.name), view.declared);
                client.batch_execute(&sql).await.with_context(|| format!("view {} on PostgreSQL", view.name))?;
            }
        }
        client.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
        client.batch_execute("CHECKPOINT").await?;
        lab.note(format!(
            "PostgreSQL has the star, indexed and analysed, after {:.0} s",
            start.elapsed().as_secs_f64()
        ));
        Ok(Self { client })
    }

    /// The report with null for every parameter: its rows as texts, null is empty.
    pub(crate) async fn run(&self, report: &Report) -> anyhow::Result<Vec<Vec<String>>> {
        let messages = self.client.simple_query(&with_nulls(report)).await;
        let messages = messages.with_context(|| format!("report {} on PostgreSQL", report.name))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.map(|row| (0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect()).collect())
    }
}

/// `$n` as null literals of their types: the planner knows as much as it can.
fn with_nulls(report: &Report) -> String {
    let mut sql = report.sql.clone();
    // from the last, so that $1 is not found within $10
    for (i, param) in report.params.iter().enumerate().rev() {
        let name = match param.param_type {
            ParamType::Text => "text",
            ParamType::Integer => "bigint",
            ParamType::Decimal => "numeric",
            ParamType::Date => "date",
        };
        sql = sql.replace(&format!("${}", i + 1), &format!("CAST(NULL AS {name})"));
    }
    sql
}

/// Copies one table as a reader would read it; the number of rows.
async fn copy(ours: &Ours, client: &Connection, table: &str) -> anyhow::Result<u64> {
    let name = Ident(table);
    let sql = format!("select * from warehouse.{name}");
    let (columns, _) = ours.reader.describe(&sql).await.explained()?;
    let declared: Vec<String> = columns.iter().map(|c| format!("{} {}", Ident(&c.name), type_name(c))).collect();
    // a copy in the transaction that makes the table need not be logged
    client.batch_execute(&format!("BEGIN; CREATE TABLE {name} ({})", declared.join(", "))).await?;
    let sink = client.copy_in::<_, Cursor<Vec<u8>>>(&format!("COPY {name} FROM STDIN (FREEZE)")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut rows = ours.reader.query(Query { deadline: COPY_MAX, ..Query::new(sql) }).await.explained()?.rows;
    let mut sent = 0_u64;
    while let Some(chunk) = rows.recv().await {
        let chunk = chunk.explained()?;
        sent += u64::try_from(chunk.len())?;
        let mut text = Vec::new();
        for row in &chunk {
            line(&mut text, row);
        }
        sink.send(Cursor::new(text)).await?;
    }
    let stored = sink.finish().await.with_context(|| format!("table {table} on PostgreSQL"))?;
    client.batch_execute("COMMIT").await?;
    anyhow::ensure!(stored == sent, "table {table}: {stored} rows came into PostgreSQL instead of {sent}");
    Ok(stored)
}

/// A row in COPY's text format (PostgreSQL manual, "COPY", "Text Format").
fn line(text: &mut Vec<u8>, row: &[Value]) {
    for (i, value) in row.iter().enumerate() {
        if i > 0 {
            text.push(b'\t');
        }
        match value.to_text() {
            None => text.extend(b"\\N"),
            Some(value) => {
                for byte in value.bytes() {
                    match byte {
                        b'\\' => text.extend(b"\\\\"),
                        b'\t' => text.extend(b"\\t"),
                        b'\n' => text.extend(b"\\n"),
                        b'\r' => text.extend(b"\\r"),
                        other => text.push(other),
                    }
                }
            }
        }
    }
    text.push(b'\n');
}

fn type_name(column: &ResultColumn) -> String {
    match column.value_type {
        ValueType::Bool => "boolean".to_owned(),
        ValueType::Int2 => "smallint".to_owned(),
        ValueType::Int4 => "integer".to_owned(),
        ValueType::Int8 => "bigint".to_owned(),
        ValueType::HugeInt => "numeric(38,0)".to_owned(),
        ValueType::Float4 => "real".to_owned(),
        ValueType::Float8 => "double precision".to_owned(),
        ValueType::Decimal { precision, scale } => format!("numeric({precision},{scale})"),
        ValueType::Date => "date".to_owned(),
        ValueType::Time => "time".to_owned(),
        ValueType::Timestamp => "timestamp".to_owned(),
        ValueType::TimestampTz => "timestamptz".to_owned(),
        ValueType::Uuid => "uuid".to_owned(),
        ValueType::Bytes => "bytea".to_owned(),
        ValueType::Text | ValueType::Json | ValueType::Other => "text".to_owned(),
    }
}

/// Whether two results hold the same rows: texts exactly, numbers to nine digits (averages and quotients
/// are exact decimals on one side and floating-point numbers on the other).
pub(crate) fn same(ours: &[Vec<String>], theirs: &[Vec<String>]) -> bool {
    let equal = |ours: &[Vec<String>], theirs: &[Vec<String>]| {
        ours.len() == theirs.len() && ours.iter().flatten().zip(theirs.iter().flatten()).all(|(a, b)| same_value(a, b))
    };
    let sorted = |rows: &[Vec<String>]| {
        let mut rows = rows.to_vec();
        rows.sort_by_cached_key(|row| row.iter().map(|text| rounded(text)).collect::<Vec<_>>());
        rows
    };
    // rows that the report's order leaves equal may come in any order
    equal(ours, theirs) || equal(&sorted(ours), &sorted(theirs))
}

fn same_value(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        _ if a == b => true,
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
        _ => false,
    }
}

fn rounded(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| format!("{number:.6e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|text| (*text).to_owned()).collect()).collect()
    }

    #[test]
    fn copied_text_is_escaped() {
        let mut text = Vec::new();
        line(&mut text, &[Value::Int(7), Value::Null, Value::Text("a\tb\\c\nd".into())]);
        assert_eq!(text, b"7\t\\N\ta\\tb\\\\c\\nd\n");
    }

    #[test]
    fn results_are_compared_by_value() {
        let ours = rows(&[&["a", "0.3333333333333333"], &["b", "2"]]);
        assert!(same(&ours, &rows(&[&["b", "2.00"], &["a", "0.33333333333333333333"]])));
        assert!(!same(&ours, &rows(&[&["b", "2.00"], &["a", "0.3334"]])));
        assert!(!same(&ours, &rows(&[&["a", "0.3333333333333333"]])));
        assert!(!same(&rows(&[&["x"]]), &rows(&[&["y"]])));
    }
}
