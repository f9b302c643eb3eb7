//! One SQL for both engines: the same statements on PostgreSQL and on the warehouse, the same answers.
//! What differs is listed in `docs/sql-dialect.md` and tested in [`known_differences`].

#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::cast_possible_wrap,
    reason = "helpers of tests: a failure here is a failed test"
)]

use std::sync::Arc;

use millrace_contract::{Query, Reader};
use millrace_testkit::TestServer;
use millrace_warehouse::{
    Engine, EngineOptions,
    reader::{DuckReader, ReaderOptions},
};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

const DATA: &str = include_str!("parity.sql");

/// Equal to the letter, with the names of the columns.
const SAME: &str = include_str!("parity_same.sql");

/// Equal as numbers: what is numeric in PostgreSQL is double precision here.
const CLOSE: [&str; 9] = [
    "select avg(amount) from t",
    "select sum(amount) / count(*) from t",
    "select 10.0 / 3",
    "select amount / 7 from t where id = 1",
    "select k, avg(i) from t group by k order by k",
    "select stddev(amount), variance(amount) from t",
    "select extract(epoch from ts) from t where id = 1",
    "select 2 ^ 10, power(2.5, 2), sqrt(2), exp(1.0), ln(2.0)",
    "select sum(amount) filter (where k = 'a') / nullif(sum(amount), 0) from t",
];

struct Both {
    _folder: tempfile::TempDir,
    reader: Arc<DuckReader>,
    _server: TestServer,
    client: millrace_pg::Connection,
}

async fn both() -> Both {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { memory_limit: "256MB".into(), threads: 2, temp_directory: folder.path().join("tmp") };
    let engine = Engine::open(&folder.path().join("warehouse.duckdb"), options).unwrap();
    let writer = engine.connect().unwrap();
    writer.execute_batch("set schema = 'warehouse'").unwrap();
    writer.execute_batch(DATA).unwrap();
    let reader = DuckReader::new(engine, &ReaderOptions { concurrent: 2 }, &CancellationToken::new()).unwrap();
    let server = TestServer::start().await;
    let client = server.client().await;
    client.batch_execute(DATA).await.unwrap();
    Both { _folder: folder, reader, _server: server, client }
}

type Table = Vec<Vec<Option<String>>>;

impl Both {
    /// Names of the columns first, then the rows; or the SQLSTATE.
    async fn postgres(&self, sql: &str) -> Result<Table, String> {
        let messages =
            self.client.simple_query(sql).await.map_err(|e| e.code().map_or(e.to_string(), |c| c.code().to_owned()))?;
        let mut table = Vec::new();
        for message in &messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    table.push(columns.iter().map(|c| Some(c.name().to_owned())).collect());
                }
                SimpleQueryMessage::Row(row) => {
                    table.push((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect());
                }
                _ => {}
            }
        }
        Ok(table)
    }

    async fn warehouse(&self, sql: &str) -> Result<Table, String> {
        let rows = match self.reader.query(Query::new(sql)).await {
            Ok(stream) => stream.collect(10_000).await,
            Err(error) => Err(error),
        };
        let rows = rows.map_err(|e| if e.sqlstate == "XX000" { format!("{e:?}") } else { e.sqlstate.to_owned() })?;
        let mut table = vec![rows.columns.iter().map(|c| Some(c.name.clone())).collect()];
        table.extend(rows.rows.iter().map(|row| row.iter().map(millrace_contract::Value::to_text).collect()));
        Ok(table)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_equal() {
    let both = both().await;
    let mut differing = Vec::new();
    let mut count = 0;
    for sql in SAME.lines().filter(|line| !line.is_empty() && !line.starts_with("--")) {
        count += 1;
        let (theirs, ours) = (both.postgres(sql).await, both.warehouse(sql).await);
        if theirs != ours {
            differing.push(format!("{sql}\n  postgresql {theirs:?}\n  warehouse  {ours:?}"));
        }
    }
    assert!(differing.is_empty(), "{} of {count} differ:\n{}", differing.len(), differing.join("\n"));
    assert!(count >= 80, "only {count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_close() {
    let both = both().await;
    for sql in CLOSE {
        let (theirs, ours) = (both.postgres(sql).await.unwrap(), both.warehouse(sql).await.unwrap());
        assert_eq!(theirs.len(), ours.len(), "{sql}");
        assert_eq!(theirs[0], ours[0], "{sql}");
        for (their, our) in theirs.iter().skip(1).flatten().zip(ours.iter().skip(1).flatten()) {
            let number = |text: &Option<String>| text.as_ref().and_then(|t| t.parse::<f64>().ok());
            match (number(their), number(our)) {
                (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{sql}: {a} {b}"),
                _ => assert_eq!(their, our, "{sql}"),
            }
        }
    }
}

/// Each line of the list in `docs/sql-dialect.md`: if one becomes equal, the list is to be shortened.
#[tokio::test(flavor = "multi_thread")]
async fn known_differences() {
    let both = both().await;
    let cases = [
        // text is ordered by bytes; so is it in PostgreSQL with the C locale, so this one is about case only
        ("select round(2.5::float8)", "2", "3"),
        ("select 1.5::numeric", "1.5", "1.5000000000"),
        ("select 1 / 3.0", "0.33333333333333333333", "0.3333333333333333"),
        ("select age(date '2024-02-03', date '2023-01-01')", "1 year 1 mon 2 days", "1 year 1 mon 2 days"),
    ];
    for (sql, theirs, ours) in cases {
        assert_eq!(both.postgres(sql).await.unwrap()[1][0].as_deref(), Some(theirs), "{sql}");
        assert_eq!(both.warehouse(sql).await.unwrap()[1][0].as_deref(), Some(ours), "{sql}");
    }
}
