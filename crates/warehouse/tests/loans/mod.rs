//! A loans-like source without a server: tables, rows as text, the pack's models.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod history;

use std::{path::Path, sync::Arc};

use millrace_base::{Clock, Lsn, Micros, SystemClock};
use millrace_contract::{
    BatchEnd, Cell, Column, ColumnType, Op, RowHead, Rows, Sink, SinkError, Step, TableName, TableSchema,
};
use millrace_model::Models;
use millrace_warehouse::{DuckSink, Engine, EngineOptions};

pub(crate) fn models() -> Arc<Models> {
    let files = [
        ("dimensions.toml", include_str!("../../../../packs/loans/models/dimensions.toml")),
        ("facts.toml", include_str!("../../../../packs/loans/models/facts.toml")),
        ("views.toml", include_str!("../../../../packs/loans/models/views.toml")),
    ];
    Arc::new(Models::parse(files).unwrap())
}

pub(crate) fn engine(folder: &Path) -> Arc<Engine> {
    let options = EngineOptions { memory_limit: "512MB".into(), threads: 2, temp_directory: folder.join("tmp") };
    Engine::open(&folder.join("warehouse.duckdb"), options).unwrap()
}

pub(crate) fn sink(engine: &Arc<Engine>) -> DuckSink {
    DuckSink::open(engine.clone(), models(), Arc::new(SystemClock::new())).unwrap()
}

/// A sink that gives every table an index, however small.
pub(crate) fn indexing_sink(engine: &Arc<Engine>) -> DuckSink {
    DuckSink::open_indexing(engine.clone(), models(), Arc::new(SystemClock::new()), 0).unwrap()
}

fn table(name: &str, oid: u32, columns: &[(&str, ColumnType)]) -> Arc<TableSchema> {
    let columns = columns
        .iter()
        .enumerate()
        .map(|(i, (name, column_type))| Column {
            name: (*name).to_owned(),
            column_type: column_type.clone(),
            declared: format!("{column_type:?}"),
            key: i == 0,
        })
        .collect();
    Arc::new(TableSchema { table: TableName::new("operational", name), oid, columns })
}

const MONEY: ColumnType = ColumnType::Decimal { precision: 14, scale: 2 };

pub(crate) fn customers() -> Arc<TableSchema> {
    use ColumnType::{Int8, Text};
    let text = |name| (name, Text);
    table(
        "customers",
        1,
        &[
            ("customer_id", Int8),
            text("full_name"),
            text("email"),
            text("phone"),
            text("city"),
            text("country"),
            text("segment"),
        ],
    )
}

pub(crate) fn loans() -> Arc<TableSchema> {
    use ColumnType::{Int4, Int8, Text, TimestampTz};
    table(
        "loans",
        2,
        &[
            ("loan_id", Int8),
            ("customer_id", Int8),
            ("amount", MONEY),
            ("interest_rate", ColumnType::Decimal { precision: 6, scale: 3 }),
            ("tenure_months", Int4),
            ("status", Text),
            ("outstanding_balance", MONEY),
            ("branch_code", Text),
            ("loan_officer", Text),
            ("created_at", TimestampTz),
        ],
    )
}

pub(crate) fn payments() -> Arc<TableSchema> {
    use ColumnType::{Int8, Text, TimestampTz};
    table(
        "payments",
        3,
        &[
            ("payment_id", Int8),
            ("loan_id", Int8),
            ("amount", MONEY),
            ("principal_portion", MONEY),
            ("interest_portion", MONEY),
            ("penalty_portion", MONEY),
            ("payment_method", Text),
            ("payment_date", TimestampTz),
        ],
    )
}

pub(crate) fn schemas() -> [Arc<TableSchema>; 3] {
    [customers(), loans(), payments()]
}

/// A cell in tests: `None` is null.
pub(crate) type Text = Option<String>;

pub(crate) fn head(op: Op, lsn: u64, sequence: u64) -> RowHead {
    RowHead { op, commit_lsn: Lsn(lsn), commit_time: time_of(lsn), sequence }
}

/// A day for each position from 2024 on.
pub(crate) fn time_of(lsn: u64) -> Micros {
    Micros(1_704_067_200_000_000 + i64::try_from(lsn).unwrap() * 86_400_000_000)
}

pub(crate) fn day_of(lsn: u64) -> String {
    time_of(lsn).to_timestamp().unwrap().strftime("%Y-%m-%d %H:%M:%S+00").to_string()
}

pub(crate) fn cells(values: &[Text]) -> Vec<Cell<'_>> {
    values.iter().map(|v| v.as_ref().map_or(Cell::Null, |t| Cell::Text(t.as_bytes()))).collect()
}

pub(crate) fn rows(schema: &Arc<TableSchema>, changes: &[(RowHead, Vec<Text>)]) -> Step {
    let mut rows = Rows::new(schema.clone());
    for (head, values) in changes {
        assert!(rows.push(*head, cells(values)));
    }
    Step::Rows(rows)
}

pub(crate) fn end(lsn: u64) -> BatchEnd {
    BatchEnd { watermark: Lsn(lsn), commit_time: time_of(lsn), transactions: 1 }
}

pub(crate) fn texts(values: &[&str]) -> Vec<Text> {
    values.iter().map(|v| (!v.is_empty()).then(|| (*v).to_owned())).collect()
}

pub(crate) fn customer(id: u32, segment: &str) -> Vec<Text> {
    texts(&[&id.to_string(), &format!("Customer {id}"), &format!("c{id}@example.com"), "", "Nairobi", "Kenya", segment])
}

pub(crate) fn loan(id: u32, customer: u32, status: &str, balance: &str) -> Vec<Text> {
    texts(&[
        &id.to_string(),
        &customer.to_string(),
        "1000.00",
        "12.500",
        "12",
        status,
        balance,
        "B1",
        "Officer",
        "2024-01-05 10:00:00+00",
    ])
}

pub(crate) fn payment(id: u32, loan: u32, amount: &str, date: &str) -> Vec<Text> {
    texts(&[&id.to_string(), &loan.to_string(), amount, amount, "0.00", "0.00", "mpesa", date])
}

/// Commits steps as one batch.
pub(crate) async fn apply(
    sink: &mut DuckSink,
    kind: millrace_contract::RunKind,
    steps: Vec<Step>,
    lsn: u64,
) -> Result<millrace_contract::Applied, SinkError> {
    sink.begin(kind, 42).await?;
    for step in steps {
        sink.append(step).await?;
    }
    sink.commit(end(lsn)).await
}

pub(crate) fn query<T: duckdb::types::FromSql>(engine: &Engine, sql: &str) -> Vec<T> {
    let connection = engine.connect().unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Every built model equals what its template makes of raw and staging.
pub(crate) fn assert_verified(engine: &Engine) {
    for compared in millrace_warehouse::verify_models(engine, &models(), None).unwrap() {
        assert_eq!(compared.differing, 0, "{compared:?}");
    }
}

pub(crate) fn now() -> Micros {
    SystemClock::new().wall()
}
