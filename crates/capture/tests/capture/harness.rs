//! A server, a store, and capture between them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_base::{Lsn, SystemClock, Tasks};
use millrace_capture::{CaptureError, CaptureOptions, Command, prepare, run};
use millrace_contract::{
    TableName,
    status::{CaptureState, CaptureStatus},
};
use millrace_pg::Connection;
use millrace_testkit::{TestServer, wait_until};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, Table, Text};

pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Harness {
    pub(crate) server: TestServer,
    pub(crate) db: Connection,
    pub(crate) store: Store,
    pub(crate) options: CaptureOptions,
    pub(crate) tables: Vec<TableName>,
    gate: watch::Sender<bool>,
    running: Option<Running>,
}

struct Running {
    tasks: Tasks,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<CaptureStatus>,
}

pub(crate) fn table(name: &str) -> TableName {
    TableName::new("public", name)
}

impl Harness {
    /// A server with `sql` run on it; `tables` are to be captured.
    pub(crate) async fn new(sql: &str, tables: &[&str]) -> Self {
        Self::with(&[], sql, tables).await
    }

    pub(crate) async fn with(settings: &[(&str, &str)], sql: &str, tables: &[&str]) -> Self {
        let server = TestServer::with_settings(settings).await;
        let db = server.create_database("source").await;
        db.batch_execute(sql).await.expect("the test's schema");
        let tables: Vec<_> = tables.iter().map(|t| table(t)).collect();
        let source = server.params().to_database("source");
        let mut options = CaptureOptions::new(source, tables.clone(), server.folder().join("spill"));
        options.idle_advance = Duration::from_millis(100);
        options.batch_age = Duration::from_millis(100);
        let (gate, _) = watch::channel(true);
        Self { server, db, store: Store::default(), options, tables, gate, running: None }
    }

    /// A publication for all tables, then capture.
    pub(crate) async fn start(&mut self) {
        prepare(&self.db, &self.options.publication, &self.tables).await.expect("the publication");
        self.resume();
    }

    /// Capture alone.
    pub(crate) fn resume(&mut self) {
        let (commands, receiver) = mpsc::channel(4);
        let (sender, status) = watch::channel(CaptureStatus {
            state: CaptureState::Waiting { reason: "test".to_owned() },
            watermark: Lsn::INVALID,
            source_lsn: Lsn::INVALID,
            lag_bytes: 0,
            lag_ms: 0,
            changes_applied: 0,
            quarantined: Vec::new(),
        });
        let mut tasks = Tasks::new(CancellationToken::new());
        let sink = self.store.sink(self.gate.subscribe());
        let (options, token) = (self.options.clone(), tasks.token().clone());
        tasks.spawn("capture", run(options, sink, receiver, sender, Arc::new(SystemClock::new()), token));
        self.running = Some(Running { tasks, commands, status });
    }

    pub(crate) fn status(&self) -> CaptureStatus {
        self.running.as_ref().expect("capture runs").status.borrow().clone()
    }

    pub(crate) fn gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// As `kill -9` of the process would: nothing runs on, nothing is tidied.
    pub(crate) fn crash(&mut self) {
        self.running = None;
    }

    /// Stops capture in order.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().expect("capture runs");
        let failed = running.tasks.shutdown(SOON).await;
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// What capture ends with.
    pub(crate) async fn ended(&mut self) -> (String, String) {
        let mut running = self.running.take().expect("capture runs");
        let ended = tokio::time::timeout(SOON, running.tasks.join_next()).await.expect("capture ends");
        assert!(ended.expect("a task").is_err());
        match running.status.borrow().state.clone() {
            CaptureState::Stopped { error, hint, .. } => (error, hint),
            other => panic!("capture ended as {other:?}"),
        }
    }

    /// Waits until everything that is committed now is in the store.
    pub(crate) async fn caught_up(&self) {
        let lsn = current_lsn(&self.db).await;
        let status = || self.running.as_ref().map(|r| r.status.borrow().clone());
        let deadline = tokio::time::Instant::now() + SOON;
        wait_until(SOON + Duration::from_secs(5), || async {
            assert!(tokio::time::Instant::now() < deadline, "{lsn} is not reached: {:?}", status());
            if let Some(CaptureStatus { state: CaptureState::Stopped { error, .. }, .. }) = status() {
                panic!("capture stopped: {error}");
            }
            self.store.watermark() >= lsn
        })
        .await;
    }

    /// Waits until nobody writes: a writer that was dropped leaves its last statement to the server.
    async fn quiet(&self) {
        let others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                      AND backend_type = 'client backend' AND state <> 'idle'";
        wait_until(SOON, || async { self.db.query(others, &[]).await.unwrap().is_empty() }).await;
    }

    /// Waits until everything is there, and compares every table with the source.
    pub(crate) async fn same(&self) {
        self.quiet().await;
        self.caught_up().await;
        for table in &self.tables {
            assert_same(&self.store.table(table), &source_table(&self.db, table).await, table);
        }
    }

    pub(crate) async fn barrier(&self, name: &str) -> Result<millrace_capture::Barrier, CaptureError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Barrier { name: name.to_owned(), reply }, answer).await
    }

    pub(crate) async fn resync(&self, table: &TableName) -> Result<(), CaptureError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Resync { table: table.clone(), reply }, answer).await.map(drop)
    }

    async fn ask<T>(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<T, CaptureError>>,
    ) -> Result<T, CaptureError> {
        self.running.as_ref().expect("capture runs").commands.send(command).await.expect("capture listens");
        tokio::time::timeout(SOON, answer).await.expect("an answer in time").unwrap_or(Err(CaptureError::Interrupted))
    }
}

pub(crate) async fn current_lsn(db: &Client) -> Lsn {
    let row = db.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
    row.get::<_, String>(0).parse().unwrap()
}

/// A table's rows in the session's snapshot, as the stream writes them.
pub(crate) async fn source_table(db: &Client, table: &TableName) -> Table {
    let settings = "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; \
                    SET extra_float_digits = 3; SET bytea_output = hex";
    db.batch_execute(settings).await.unwrap();
    let key = db
        .query(
            "SELECT a.attname::text FROM pg_index k JOIN pg_class c ON c.oid = k.indrelid \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.indkey::int2[]) \
             WHERE c.oid = $1::text::regclass \
               AND CASE c.relreplident WHEN 'i' THEN k.indisreplident ELSE k.indisprimary END ORDER BY a.attnum",
            &[&table.to_sql()],
        )
        .await
        .unwrap();
    let key: Vec<String> = key.iter().map(|row| row.get(0)).collect();
    let mut rows = Table::new();
    let columns = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                   WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''";
    let columns: String = db.query_one(columns, &[&table.to_sql()]).await.unwrap().get(0);
    for message in db.simple_query(&format!("SELECT {columns} FROM {}", table.to_sql())).await.unwrap() {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let value = |at: usize| row.get(at).map(|t| t.as_bytes().to_vec());
        let columns: BTreeMap<String, Text> =
            row.columns().iter().enumerate().map(|(at, c)| (c.name().to_owned(), value(at))).collect();
        rows.insert(key.iter().map(|k| columns[k].clone()).collect(), columns);
    }
    rows
}

fn shown(row: &BTreeMap<String, Text>) -> String {
    let texts = row.iter().map(|(name, text)| {
        let text = text.as_deref().map(|t| String::from_utf8_lossy(&t[..t.len().min(80)]).into_owned());
        format!("{name}={text:?}")
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[track_caller]
pub(crate) fn assert_same(found: &Table, wanted: &Table, table: &TableName) {
    for (key, row) in wanted {
        match found.get(key) {
            None => panic!("{table}: lost {}", shown(row)),
            Some(other) => assert!(other == row, "{table}: {} instead of {}", shown(other), shown(row)),
        }
    }
    if let Some((_, row)) = found.iter().find(|(key, _)| !wanted.contains_key(*key)) {
        panic!("{table}: too much: {}", shown(row));
    }
}
