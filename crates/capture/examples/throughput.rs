//! How many rows a second the first copy and the stream bring, into a sink that counts them.
//!
//! `cargo run -p millrace-capture --example throughput -- [ROWS]`: a throw-away server with
//! pgbench-like accounts; beside ours, a plain `COPY TO STDOUT` of the same table by `psql`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_base::{SystemClock, Tasks};
use millrace_capture::{CaptureOptions, prepare, run};
use millrace_contract::{
    Applied, BatchEnd, RunKind, Sink, SinkError, Step, TableName,
    sink::Resume,
    status::{CaptureState, CaptureStatus},
};
use millrace_testkit::{TestServer, wait_until};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
struct Counting {
    rows: Arc<AtomicU64>,
    open: u64,
    resume: Resume,
}

impl Sink for Counting {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(self.resume.clone())
    }

    async fn begin(&mut self, kind: RunKind, system_id: u64) -> Result<(), SinkError> {
        self.resume.system_id = Some(system_id);
        if kind == RunKind::InitialCopy {
            self.resume.tables = vec![TableName::new("public", "accounts")];
        }
        Ok(())
    }

    async fn append(&mut self, step: Step) -> Result<(), SinkError> {
        if let Step::Rows(rows) = step {
            self.open += rows.len() as u64;
        }
        Ok(())
    }

    async fn commit(&mut self, end: BatchEnd) -> Result<Applied, SinkError> {
        self.resume.watermark = end.watermark;
        self.rows.fetch_add(std::mem::take(&mut self.open), Ordering::Relaxed);
        Ok(Applied::default())
    }

    async fn rollback(&mut self) -> Result<(), SinkError> {
        self.open = 0;
        Ok(())
    }

    async fn advance(&mut self, end: BatchEnd) -> Result<(), SinkError> {
        self.resume.watermark = end.watermark;
        Ok(())
    }

    async fn quarantine(&mut self, table: TableName, reason: String) -> Result<(), SinkError> {
        Err(SinkError::Fatal { reason: format!("{table}: {reason}"), hint: String::new() })
    }

    async fn pin(&mut self, _: &str) -> Result<(), SinkError> {
        Ok(())
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, read by a person")]
async fn main() {
    let rows: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().unwrap());
    let server = TestServer::with_settings(&[("shared_buffers", "512MB"), ("max_wal_size", "8GB")]).await;
    let db = server.create_database("source").await;
    db.batch_execute(&format!(
        "CREATE TABLE accounts (aid int PRIMARY KEY, bid int NOT NULL, abalance numeric(12,2), opened timestamptz, note text, filler char(40));
         INSERT INTO accounts SELECT i, i % 100, i / 7.0, '2024-01-01'::timestamptz + i * interval '1 second',
             CASE WHEN i % 3 = 0 THEN NULL ELSE 'note ' || i END, 'x' FROM generate_series(1, {rows}) i;
         ANALYZE accounts; CREATE TABLE more (LIKE accounts)",
    ))
    .await
    .unwrap();
    db.batch_execute(&format!(
        "INSERT INTO more SELECT aid + {rows}, bid, abalance, opened, note, filler FROM accounts"
    ))
    .await
    .unwrap();
    let rate = |what: &str, begun: Instant| {
        let seconds = begun.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s, {:.0} rows/s", rows as f64 / seconds);
    };

    let begun = Instant::now();
    let copied = db.copy_out("COPY accounts TO STDOUT").await.unwrap();
    let lines = futures::StreamExt::count(copied).await;
    rate(&format!("tokio-postgres COPY of {lines} rows"), begun);

    let table = TableName::new("public", "accounts");
    prepare(&db, "millrace", std::slice::from_ref(&table)).await.unwrap();
    let counted = Arc::new(AtomicU64::new(0));
    let source = server.params().to_database("source");
    for connections in [1, 2] {
        let mut options = CaptureOptions::new(source.clone(), vec![table.clone()], server.folder().join("spill"));
        options.copy_connections = connections;
        counted.store(0, Ordering::Relaxed);
        let sink = Counting { rows: counted.clone(), ..Counting::default() };
        let (_commands, receiver) = mpsc::channel(1);
        let (status, _) = watch::channel(CaptureStatus {
            state: CaptureState::Streaming,
            watermark: millrace_base::Lsn::INVALID,
            source_lsn: millrace_base::Lsn::INVALID,
            lag_bytes: 0,
            lag_ms: 0,
            changes_applied: 0,
            quarantined: Vec::new(),
        });
        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token().clone();
        let begun = Instant::now();
        tasks.spawn("capture", run(options, sink, receiver, status, Arc::new(SystemClock::new()), token));
        wait_until(LONG, || async { counted.load(Ordering::Relaxed) >= rows }).await;
        rate(&format!("first copy, {connections} connection(s)"), begun);

        for (what, statement) in [
            ("one streamed transaction", "INSERT INTO accounts SELECT * FROM more".to_owned()),
            (
                "transactions of 1,000 rows",
                format!(
                    "DO $$ BEGIN FOR k IN 0..{} LOOP
                         INSERT INTO accounts SELECT aid + {rows}, bid, abalance, opened, note, filler FROM more
                          WHERE aid > {rows} + k * 1000 AND aid <= {rows} + (k + 1) * 1000; COMMIT; END LOOP; END $$",
                    rows / 1000 - 1
                ),
            ),
        ] {
            if connections == 1 {
                continue;
            }
            db.batch_execute("CREATE INDEX IF NOT EXISTS more_aid ON more (aid)").await.unwrap();
            let before = counted.load(Ordering::Relaxed);
            let begun = Instant::now();
            db.batch_execute(&statement).await.unwrap();
            rate(&format!("{what}: written by the source"), begun);
            wait_until(LONG, || async { counted.load(Ordering::Relaxed) >= before + rows }).await;
            rate(&format!("{what}: captured, from the first write"), begun);
        }
        tasks.shutdown(Duration::from_secs(10)).await;
    }
}
