//! The reader: what it answers, what it refuses, and how statements end.

#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::cast_possible_wrap,
    reason = "helpers of tests: a failure here is a failed test"
)]

use std::{sync::Arc, time::Duration};

use millrace_base::{Lsn, Micros};
use millrace_contract::{Query, QueryError, Reader, Value, query::ValueType};
use millrace_warehouse::{
    Engine, EngineOptions,
    reader::{DuckReader, ReaderOptions},
};
use tokio_util::sync::CancellationToken;

struct Warehouse {
    _folder: tempfile::TempDir,
    engine: Arc<Engine>,
    reader: Arc<DuckReader>,
    token: CancellationToken,
}

fn warehouse(concurrent: usize) -> Warehouse {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { memory_limit: "256MB".into(), threads: 2, temp_directory: folder.path().join("tmp") };
    let engine = Engine::open(&folder.path().join("warehouse.duckdb"), options).unwrap();
    let token = CancellationToken::new();
    let reader = DuckReader::new(engine.clone(), &ReaderOptions { concurrent }, &token).unwrap();
    Warehouse { _folder: folder, engine, reader, token }
}

/// More than any test waits for.
const ENDLESS: &str = "select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b";

impl Warehouse {
    fn write(&self, sql: &str) {
        self.engine.connect().unwrap().execute_batch(sql).unwrap();
    }

    async fn rows(&self, query: Query) -> Result<Vec<Vec<Value>>, QueryError> {
        Ok(self.reader.query(query).await?.collect(1_000_000).await?.rows)
    }

    async fn code(&self, sql: &str) -> &'static str {
        self.rows(Query::new(sql)).await.map_or_else(|e| e.sqlstate, |_| "00000")
    }

    async fn until_idle(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.reader.running() > 0 {
            assert!(tokio::time::Instant::now() < deadline, "a statement still runs");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_all_types() {
    let warehouse = warehouse(2);
    let sql = "select true, 1::int2, 2::int4, 3::int8, sum(9223372036854775807::int8) over (), 1.5::float4, 0.1::float8,
        12.30::decimal(10,2), 'text', '\\x00'::text, date '2024-02-29', time '10:11:12.5', timestamp '2024-01-01 00:00:01',
        timestamptz '2024-01-01 00:00:01+00', '01234567-89ab-cdef-0123-456789abcdef'::uuid, '{\"a\":1}'::json, array['a', null, 'b c'],
        interval '1 day', null";
    let result = warehouse.reader.query(Query::new(sql)).await.unwrap();
    let types: Vec<ValueType> = result.columns.iter().map(|c| c.value_type).collect();
    use ValueType::*;
    assert_eq!(
        types[..15],
        [
            Bool,
            Int2,
            Int4,
            Int8,
            HugeInt,
            Float4,
            Float8,
            Decimal { precision: 10, scale: 2 },
            Text,
            Text,
            Date,
            Time,
            Timestamp,
            TimestampTz,
            Uuid
        ]
    );
    let rows = result.collect(10).await.unwrap().rows;
    let texts: Vec<Option<String>> = rows[0].iter().map(Value::to_text).collect();
    let texts: Vec<&str> = texts.iter().map(|t| t.as_deref().unwrap_or("null")).collect();
    assert_eq!(
        texts,
        [
            "t",
            "1",
            "2",
            "3",
            "9223372036854775807",
            "1.5",
            "0.1",
            "12.30",
            "text",
            "\\x00",
            "2024-02-29",
            "10:11:12.5",
            "2024-01-01 00:00:01",
            "2024-01-01 00:00:01+00",
            "01234567-89ab-cdef-0123-456789abcdef",
            "{\"a\":1}",
            "{a,NULL,\"b c\"}",
            "1 day",
            "null"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_bound() {
    let warehouse = warehouse(2);
    warehouse.write("create table warehouse.p (id bigint, n decimal(10,2), d date, s varchar); insert into warehouse.p values (1, 1.50, '2024-01-01', 'x')");
    let params = vec![
        Value::Int(1),
        Value::Decimal { unscaled: 150, scale: 2 },
        Value::Text("2024-01-01".into()),
        Value::Text("x' or 'a'='a".into()),
    ];
    let query = Query::new("select id from p where id = $1 and n = $2 and d = $3 and s <> $4").with(params);
    assert_eq!(warehouse.rows(query).await.unwrap(), [[Value::Int(1)]]);
    let array = Query::new("select id from p where id = any($1)").with(vec![Value::Text("{1,2}".into())]);
    assert_eq!(warehouse.rows(array).await.unwrap().len(), 1);
    assert_eq!(warehouse.rows(Query::new("select $1::int")).await.unwrap_err().sqlstate, "08P01");

    let description = warehouse
        .reader
        .prepare("select id, s || $3 as t from p where id = $1 and d > $2 limit $4", &[])
        .await
        .unwrap();
    assert_eq!(description.params, [ValueType::Int8, ValueType::Date, ValueType::Text, ValueType::Int8]);
    assert_eq!(description.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["id", "t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written() {
    let warehouse = warehouse(2);
    warehouse.write("create table warehouse.w (id bigint)");
    let cases = [
        ("insert into w values (1)", "25006"),
        ("with x as (select 1) insert into w select * from x", "25006"),
        ("with x as (insert into w values (1) returning id) select * from x", "25006"),
        ("update w set id = 1", "25006"),
        ("delete from w", "25006"),
        ("truncate w", "25006"),
        ("create table x (i int)", "25006"),
        ("create temp table x (i int)", "25006"),
        ("drop table w", "25006"),
        ("alter table w add column x int", "25006"),
        ("select * into x from w", "25006"),
        ("select * from w for update", "25006"),
        ("select * from (select * from w for update) x", "25006"),
        ("copy w to '/tmp/x.csv'", "25006"),
        ("copy (select 1) to '/tmp/x.csv'", "25006"),
        ("vacuum", "25006"),
        ("explain insert into w values (1)", "25006"),
        ("attach '/tmp/x.db'", "42501"),
        ("pragma database_list", "42501"),
        ("install httpfs", "42501"),
        ("load httpfs", "42501"),
        ("set threads = 1", "42501"),
        ("reset threads", "42501"),
        ("use memory", "42501"),
        ("checkpoint", "42501"),
        ("select * from read_csv('/etc/passwd')", "42501"),
        ("select * from read_text('/etc/passwd')", "42501"),
        ("select * from glob('/etc/*')", "42501"),
        ("select * from duckdb_settings()", "42501"),
        ("select * from query('drop table w')", "42501"),
        ("select getenv('HOME')", "42501"),
        ("select * from '/etc/passwd'", "42601"),
        ("select * from \"/etc/passwd\"", "42P01"),
        ("select * from \"/tmp/x.parquet\"", "42501"),
        ("select nextval('s')", "25006"),
        ("select 1; drop table w", "42601"),
        ("", "42601"),
        ("begin", "0A000"),
    ];
    for (sql, code) in cases {
        assert_eq!(warehouse.code(sql).await, code, "{sql}");
    }
    assert_eq!(warehouse.code("select count(*) from w").await, "00000");
    // and what the parser lets through, the engine's own transaction and settings hold back
    let connection = warehouse.engine.connect().unwrap();
    assert!(connection.execute_batch("copy (select 1) to '/tmp/millrace-reader-test.csv'").is_err());
    assert!(connection.execute_batch("set enable_external_access = true").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_and_length_are_limited() {
    let warehouse = warehouse(1);
    let deep = format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(warehouse.code(&deep).await, "54001");
    // as deep as they are long, without a parenthesis
    for terms in [3_000, 200_000] {
        for operator in ["+", " or 1=", "||", "::text||"] {
            assert_eq!(
                warehouse.code(&format!("select {}", vec!["1"; terms].join(operator))).await,
                "54001",
                "{operator}"
            );
        }
        assert_eq!(warehouse.code(&vec!["select 1"; terms].join(" union all ")).await, "54001");
        assert_eq!(warehouse.code(&format!("select 1{}", "::int".repeat(terms * 2))).await, "54001");
    }
    let long = format!("select count(*) from generate_series(1, 10) g where g in ({})", vec!["1"; 20_000].join(","));
    assert_eq!(warehouse.code(&long).await, "00000");
    assert_eq!(warehouse.code(&format!("select '{}'", "x".repeat(5 << 20))).await, "54000");
}

#[tokio::test(flavor = "multi_thread")]
async fn freshness_is_of_the_same_snapshot() {
    const STEP: u64 = 700_001;
    let warehouse = warehouse(4);
    warehouse.write(
        "create table warehouse.n (lsn ubigint); insert into warehouse.n values (0);
         insert into audit.watermarks values ('p', 1, 0, now(), 0, now())",
    );
    let writer = warehouse.engine.connect().unwrap();
    let writing = std::thread::spawn(move || {
        for run in 1..200 {
            // far apart: a plan made for a narrow range of positions must not outlive it
            let lsn = run * STEP;
            writer
                .execute_batch(&format!(
                    "begin; update warehouse.n set lsn = {lsn}; update audit.watermarks set watermark = {lsn}, run_id = {run}; commit"
                ))
                .unwrap();
        }
    });
    while !writing.is_finished() {
        let result = warehouse.reader.query(Query::new("select lsn from n")).await.unwrap();
        let seen = result.freshness;
        let rows = result.collect(1).await.unwrap().rows;
        assert_eq!(rows[0][0], Value::HugeInt(seen.watermark.0.into()));
        assert_eq!(i64::try_from(seen.watermark.0 / STEP).unwrap(), seen.run_id);
    }
    writing.join().unwrap();
    let newest = warehouse.reader.freshness().await.unwrap();
    assert_eq!((newest.watermark, newest.confirmed_at), (Lsn(199 * STEP), Micros(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_states_stay() {
    let warehouse = warehouse(2);
    warehouse.write("create table warehouse.n (i int); insert into warehouse.n values (1)");
    warehouse.engine.pin("p").unwrap();
    warehouse.write("insert into warehouse.n values (2)");
    let count = |pinned: Option<&str>| Query {
        pinned: pinned.map(str::to_owned),
        ..Query::new("select count(*) from warehouse.n")
    };
    assert_eq!(warehouse.rows(count(Some("p"))).await.unwrap(), [[Value::Int(1)]]);
    assert_eq!(warehouse.rows(count(None)).await.unwrap(), [[Value::Int(2)]]);
    warehouse.reader.release("p").await;
    assert_eq!(warehouse.rows(count(Some("p"))).await.unwrap_err().sqlstate, "3B001");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_end_statements() {
    let warehouse = warehouse(1);
    let query = Query { deadline: Duration::from_millis(200), ..Query::new(ENDLESS) };
    assert_eq!(warehouse.rows(query.clone()).await.unwrap_err().sqlstate, "57014");
    warehouse.until_idle().await;
    // the same connection goes on
    assert_eq!(warehouse.code("select 1").await, "00000");
    // a statement that waits for its turn has a deadline too
    let held = warehouse.reader.query(Query::new("select * from generate_series(1, 10000000)")).await.unwrap();
    let error =
        warehouse.rows(Query { deadline: Duration::from_millis(100), ..Query::new("select 1") }).await.unwrap_err();
    assert_eq!(error.sqlstate, "57014");
    drop(held);
    warehouse.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_result_ends_its_statement() {
    let warehouse = warehouse(2);
    for _ in 0..20 {
        let result = warehouse.reader.query(Query::new("select * from generate_series(1, 100000000)")).await.unwrap();
        drop(result);
    }
    // before the first row, too
    for _ in 0..4 {
        let waiting = warehouse.reader.query(Query::new(ENDLESS));
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    }
    warehouse.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_do_not_cost_memory_nor_rows() {
    let warehouse = warehouse(1);
    let query =
        Query { deadline: Duration::from_millis(500), ..Query::new("select g from generate_series(1, 100000000) g") };
    let mut result = warehouse.reader.query(query).await.unwrap();
    warehouse.until_idle().await;
    // the deadline has passed without anyone reading: what waits is little, and its end is an error
    let mut rows = 0;
    let end = loop {
        match result.rows.recv().await {
            Some(Ok(chunk)) => rows += chunk.len(),
            other => break other,
        }
    };
    assert!(rows <= 4 * 512, "{rows}");
    assert_eq!(end.unwrap().unwrap_err().sqlstate, "57014");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_statements() {
    let warehouse = warehouse(1);
    let reader = warehouse.reader.clone();
    let (ended, ()) = tokio::join!(reader.query(Query::new(ENDLESS)), async {
        while warehouse.reader.running() == 0 {
            tokio::task::yield_now().await;
        }
        warehouse.token.cancel();
    });
    assert_eq!(ended.unwrap_err().sqlstate, "57P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_reader_ends_statements() {
    let warehouse = warehouse(1);
    let mut result = warehouse.reader.query(Query::new("select g from generate_series(1, 100000000) g")).await.unwrap();
    drop(warehouse);
    let mut end = None;
    while let Some(chunk) = result.rows.recv().await {
        end = chunk.err();
    }
    assert_eq!(end.unwrap().sqlstate, "57P01");
}
