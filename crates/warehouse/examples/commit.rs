//! Measures commits against a large star: `commit FOLDER PAYMENTS` fills raw and staging by SQL, builds
//! the models, then times batches of 1,000 and 50,000 scattered and recent changes.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Instant};

use millrace_base::{Lsn, Micros, SystemClock};
use millrace_contract::{
    BatchEnd, Cell, Column, ColumnType, Op, RowHead, Rows, RunKind, Sink, Step, TableName, TableSchema,
};
use millrace_model::Models;
use millrace_warehouse::{DuckSink, Engine, EngineOptions};
use rand::{Rng as _, SeedableRng, rngs::StdRng};

type Error = Box<dyn std::error::Error>;

const MONEY: ColumnType = ColumnType::Decimal { precision: 14, scale: 2 };

fn table(name: &str, columns: &[(&str, ColumnType)]) -> Arc<TableSchema> {
    let column = |(i, (name, column_type)): (usize, &(&str, ColumnType))| Column {
        name: (*name).to_owned(),
        column_type: column_type.clone(),
        declared: format!("{column_type:?}"),
        key: i == 0,
    };
    let columns = columns.iter().enumerate().map(column).collect();
    Arc::new(TableSchema { table: TableName::new("operational", name), oid: 1, columns })
}

fn schemas() -> [Arc<TableSchema>; 3] {
    use ColumnType::{Int4, Int8, Text, TimestampTz};
    [
        table(
            "customers",
            &[
                ("customer_id", Int8),
                ("full_name", Text),
                ("email", Text),
                ("phone", Text),
                ("city", Text),
                ("country", Text),
                ("segment", Text),
            ],
        ),
        table(
            "loans",
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
        ),
        table(
            "payments",
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
        ),
    ]
}

fn fill(engine: &Engine, payments: u64) -> Result<(), Error> {
    let (loans, customers) = (payments / 25, payments / 50);
    let connection = engine.connect()?;
    connection.execute_batch(&format!(
        "begin;
        insert into staging.customers select i, 'Customer ' || i, i || '@example.com', null, 'City ' || (i % 50), 'Kenya', ['retail', 'sme', 'corporate'][1 + i % 3], 10, i from range(1, {customers} + 1) t(i);
        insert into staging.loans select i, 1 + i % {customers}, 1000, 12.5, 24, ['active', 'repaid', 'defaulted'][1 + i % 3], 500, 'B' || (i % 40), 'O' || (i % 200), timestamptz '2018-02-01' + interval 1 minute * (i % 3000000), 10, i from range(1, {loans} + 1) t(i);
        insert into staging.payments select i, 1 + hash(i) % {loans}, (hash(i * 7) % 100000) / 100.0, 5, 1, 0, ['mpesa', 'cash', 'online'][1 + i % 3], timestamptz '2018-03-01' + interval 1 second * (i * 8 % 240000000), 10, i from range(1, {payments} + 1) t(i);
        insert into raw.customers select * exclude (_commit_lsn, _sequence), _commit_lsn, _sequence, 'C', timestamptz '2024-01-01', 1 from staging.customers;
        insert into raw.loans select * exclude (_commit_lsn, _sequence), _commit_lsn, _sequence, 'C', timestamptz '2024-01-01', 1 from staging.loans;
        insert into raw.payments select * exclude (_commit_lsn, _sequence), _commit_lsn, _sequence, 'C', timestamptz '2024-01-01', 1 from staging.payments;
        commit; checkpoint;"
    ))?;
    Ok(())
}

struct Changes {
    random: StdRng,
    lsn: u64,
    payments: u64,
    /// Payments at the start.
    filled: u64,
}

impl Changes {
    /// `count` payments corrected anywhere, each with its loan's balance as an application would.
    fn scattered(&mut self, count: usize) -> Result<Vec<Step>, Error> {
        let ids: Vec<u64> = (0..count).map(|_| self.random.random_range(1..=self.payments)).collect();
        self.steps(&ids, Op::Update)
    }

    fn recent(&mut self, count: usize) -> Result<Vec<Step>, Error> {
        let first = self.payments + 1;
        self.payments += count as u64;
        let ids: Vec<u64> = (first..=self.payments).collect();
        self.steps(&ids, Op::Insert)
    }

    fn steps(&mut self, ids: &[u64], op: Op) -> Result<Vec<Step>, Error> {
        self.lsn += 1;
        let [_, loans, payments] = schemas();
        let mut balances = Rows::new(loans);
        let mut rows = Rows::new(payments);
        for (i, id) in ids.iter().enumerate() {
            let head = |op, sequence| RowHead {
                op,
                commit_lsn: Lsn(self.lsn),
                commit_time: Micros(1_750_000_000_000_000),
                sequence,
            };
            let loan = self.random.random_range(1..=self.filled / 25);
            let sequence = i as u64 * 2;
            let texts = [id.to_string(), loan.to_string(), format!("{}.50", self.random.random_range(1..900))];
            let cell = |text: &'static str| Cell::Text(text.as_bytes());
            let own = |i: usize| texts.get(i).map_or(Cell::Null, |t| Cell::Text(t.as_bytes()));
            if !rows.push(
                head(op, sequence),
                [
                    own(0),
                    own(1),
                    own(2),
                    cell("5.00"),
                    cell("1.00"),
                    cell("0.00"),
                    cell("mpesa"),
                    cell("2024-05-05 10:00:00+00"),
                ],
            ) {
                return Err("too many cells".into());
            }
            // the status stays what `fill` made it
            let status = ["active", "repaid", "defaulted"].get(usize::try_from(loan % 3)?).copied().unwrap_or_default();
            let customer = (1 + loan % (self.filled / 50)).to_string();
            let branch = format!("B{}", loan % 40);
            let officer = format!("O{}", loan % 200);
            let created = Micros(1_517_443_200_000_000 + i64::try_from(loan % 3_000_000)? * 60_000_000);
            let created =
                created.to_timestamp().map(|t| t.strftime("%Y-%m-%d %H:%M:%S+00").to_string()).unwrap_or_default();
            let text = |t: &'_ str| -> Vec<u8> { t.as_bytes().to_vec() };
            let values = [
                text(&texts[1]),
                text(&customer),
                text("1000.00"),
                text("12.500"),
                text("24"),
                text(status),
                text(&texts[2]),
                text(&branch),
                text(&officer),
                text(&created),
            ];
            if !balances.push(head(Op::Update, sequence + 1), values.iter().map(|v| Cell::Text(v))) {
                return Err("too many cells".into());
            }
        }
        Ok(vec![Step::Rows(rows), Step::Rows(balances)])
    }

    fn end(&self) -> BatchEnd {
        BatchEnd { watermark: Lsn(self.lsn), commit_time: Micros(1_750_000_000_000_000), transactions: 1 }
    }
}

/// Processor time of this process so far, in ticks of 10 ms.
fn cpu_time_ms() -> Result<u64, Error> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(") ").next().ok_or("no stat")?.split(' ').skip(11).take(2);
    Ok(fields.map(str::parse::<u64>).sum::<Result<u64, _>>()? * 10)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("FOLDER PAYMENTS [THREADS]")?);
    let payments: u64 = arguments.next().and_then(|a| a.to_str()?.parse().ok()).ok_or("FOLDER PAYMENTS [THREADS]")?;
    let threads = arguments.next().and_then(|a| a.to_str()?.parse().ok()).unwrap_or(2);
    let mut out = std::io::stdout().lock();
    let files = [
        ("dimensions.toml", include_str!("../../../packs/loans/models/dimensions.toml")),
        ("facts.toml", include_str!("../../../packs/loans/models/facts.toml")),
        ("views.toml", include_str!("../../../packs/loans/models/views.toml")),
    ];
    let models = Arc::new(Models::parse(files).map_err(|e| format!("{e:?}"))?);
    let options = EngineOptions { memory_limit: "800MB".into(), threads, temp_directory: folder.join("tmp") };
    let engine = Engine::open(&folder.join("warehouse.duckdb"), options)?;
    let mut sink = DuckSink::open(engine.clone(), models.clone(), Arc::new(SystemClock::new()))?;
    if !sink.resume().await?.watermark.is_valid() {
        sink.begin(RunKind::InitialCopy, 1).await?;
        for schema in schemas() {
            sink.append(Step::Schema(schema)).await?;
        }
        sink.commit(BatchEnd { watermark: Lsn(10), commit_time: Micros(0), transactions: 1 }).await?;
        let start = Instant::now();
        fill(&engine, payments)?;
        writeln!(out, "filled in {:.1} s", start.elapsed().as_secs_f64())?;
        let start = Instant::now();
        sink.handle().rebuild().await?;
        sink.handle().checkpoint().await?;
        writeln!(out, "models built in {:.1} s", start.elapsed().as_secs_f64())?;
    }
    let watermark = sink.resume().await?.watermark.0;
    let random = StdRng::seed_from_u64(watermark);
    let connection = engine.connect()?;
    let filled = payments;
    let payments: u64 = connection.query_row("select max(payment_id) from staging.payments", [], |row| row.get(0))?;
    drop(connection);
    let mut changes = Changes { random, lsn: watermark, payments, filled };
    for (what, count, scattered, rounds) in [
        ("1,000 scattered", 1_000, true, 12),
        ("1,000 recent", 1_000, false, 8),
        ("50,000 scattered", 50_000, true, 3),
        ("50,000 recent", 50_000, false, 3),
    ] {
        let mut took_ms = Vec::new();
        let mut cpu_ms = Vec::new();
        for _ in 0..rounds {
            let steps = if scattered { changes.scattered(count)? } else { changes.recent(count)? };
            let (start, cpu) = (Instant::now(), cpu_time_ms()?);
            sink.begin(RunKind::Changes, 1).await?;
            for step in steps {
                sink.append(step).await?;
            }
            sink.commit(changes.end()).await?;
            took_ms.push(start.elapsed().as_millis());
            cpu_ms.push(cpu_time_ms()? - cpu);
        }
        took_ms.sort_unstable();
        cpu_ms.sort_unstable();
        writeln!(
            out,
            "{what}: median {} ms of {took_ms:?}; processor time {} ms of {cpu_ms:?}",
            took_ms.get(took_ms.len() / 2).copied().unwrap_or_default(),
            cpu_ms.get(cpu_ms.len() / 2).copied().unwrap_or_default()
        )?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS")) {
        writeln!(out, "{line}")?;
    }
    let different: u64 = millrace_warehouse::verify_models(&engine, &models, None)?.iter().map(|c| c.differing).sum();
    writeln!(out, "rows that differ from a rebuild: {different}")?;
    sink.close().await;
    Ok(())
}
