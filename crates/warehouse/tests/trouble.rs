//! What may go wrong around the file and its tables, and what is said about it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use loans::*;
use millrace_base::SystemClock;
use millrace_contract::{Column, ColumnType, Op, Rows, RunKind, Sink, SinkError, Step, TableSchema};
use millrace_model::Models;
use millrace_warehouse::{Engine, EngineOptions, Kept, WarehouseError, verify_models};

const FOLDER: &str = "MILLRACE_HOLD_FOLDER";

fn open(folder: &std::path::Path) -> Result<Arc<Engine>, WarehouseError> {
    let options = EngineOptions { memory_limit: "256MB".into(), threads: 2, temp_directory: folder.join("tmp") };
    Engine::open(&folder.join("warehouse.duckdb"), options)
}

#[test]
fn a_damaged_file_is_named_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warehouse.duckdb");
    std::fs::write(&path, b"this is not a database, and long enough to be looked at".repeat(400)).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, WarehouseError::Damaged { .. }), "{error:?}");
    assert!(error.hint().contains("warehouse.duckdb"), "{}", error.hint());

    std::fs::remove_file(&path).unwrap();
    drop(open(folder.path()).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in bytes.iter_mut().skip(4096).take(8192) {
        *byte ^= 0x5a;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, WarehouseError::Damaged { .. }), "{error:?}");
}

/// DuckDB's own sum over a block (`Checksum` in its sources): the header is checked by it before it is read.
fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words.fold(5381, |sum, word| sum ^ word.wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

#[test]
fn a_file_of_a_newer_version_is_told_from_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warehouse.duckdb");
    drop(open(folder.path()).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    // block: checksum, "DUCK", version
    assert_eq!((&bytes[..8], &bytes[8..12]), (&checksum(&bytes[8..4096]).to_le_bytes()[..], &b"DUCK"[..]));
    bytes[12..20].copy_from_slice(&99u64.to_le_bytes());
    let sum = checksum(&bytes[8..4096]).to_le_bytes();
    bytes[..8].copy_from_slice(&sum);
    std::fs::write(&path, &bytes).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, WarehouseError::Newer { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("warehouse.duckdb was written by a newer version") && text.contains("99"), "{text}");
    assert!(error.hint().contains("newer millrace"), "{}", error.hint());
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the file was touched");
}

const SMALL_DISK: &str = "MILLRACE_SMALL_DISK";

/// Runs `test` of this file with its folder on a file system of its own of `megabytes`. Fails if that cannot be had.
fn on_a_small_disk(test: &str, megabytes: u32) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={megabytes}m none \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--mount", "sh", "-c", &script])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(SMALL_DISK, folder.path())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("the small disk was full"), "{said}");
}

#[test]
fn a_full_disk_loses_nothing_and_is_got_over() {
    on_a_small_disk("full_disk", 48);
}

/// Not a test by itself: see [`a_full_disk_loses_nothing_and_is_got_over`].
#[tokio::test]
async fn full_disk() {
    let Some(folder) = std::env::var_os(SMALL_DISK).map(PathBuf::from) else { return };
    let engine = engine(&folder);
    let mut sink = copied(&engine).await;
    let batch = |number: u64| {
        let row = |i: u64| {
            let id = u32::try_from(number * 10_000 + i).unwrap();
            (head(Op::Insert, 20 + number, i), payment(id, 1, &format!("{}.17", id % 9973), "2024-02-01 00:00:00+00"))
        };
        vec![rows(&payments(), &(0..10_000).map(row).collect::<Vec<_>>())]
    };
    let full = |result: &Result<_, SinkError>| matches!(result, Err(SinkError::Full(_)));
    // something else takes the room
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![1; 28 << 20]).unwrap();
    let mut number = 1;
    let refused = loop {
        let result = apply(&mut sink, RunKind::Changes, batch(number), 20 + number).await;
        if result.is_err() {
            break result;
        }
        number += 1;
        assert!(number < 100, "the disk is never full");
    };
    assert!(full(&refused), "{refused:?}");
    #[expect(clippy::print_stdout, reason = "tells the outer test that this one was not passed over")]
    {
        println!("the small disk was full after {} batches", number - 1);
    }
    // nothing at all is left
    let mut more = std::fs::OpenOptions::new().append(true).open(&ballast).unwrap();
    while std::io::Write::write_all(&mut more, &[1; 4096]).is_ok() {}
    drop(more);
    // a failed checkpoint makes the engine give the whole file up
    let checkpoint = sink.handle().checkpoint().await;
    assert!(checkpoint.is_err(), "there was room for a checkpoint");
    assert!(query_fails(&engine), "the engine did not give up");
    // what comes then is either that the disk is full, or what is there, and nothing is half there
    for _ in 0..3 {
        match sink.resume().await {
            Ok(resume) => assert_eq!(resume.watermark, millrace_base::Lsn(19 + number)),
            Err(error) => assert!(matches!(error, SinkError::Full(_)), "{error:?}"),
        }
        let again = apply(&mut sink, RunKind::Changes, batch(number), 20 + number).await;
        assert!(full(&again), "{again:?}");
        sink.rollback().await.unwrap_or_default();
    }

    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(sink.resume().await.unwrap().watermark, millrace_base::Lsn(19 + number));
    apply(&mut sink, RunKind::Changes, batch(number), 20 + number).await.unwrap();
    let expected = i64::try_from(3 + number * 10_000).unwrap();
    assert_eq!(query::<i64>(&engine, "select count(*) from staging.payments"), [expected]);
    assert_eq!(query::<i64>(&engine, "select count(distinct payment_id) from staging.payments"), [expected]);
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.fact_payments"), [expected]);
    assert_verified(&engine);
    sink.close().await;
}

fn query_fails(engine: &Engine) -> bool {
    engine.connect().and_then(|c| Ok(c.execute_batch("select count(*) from staging.payments")?)).is_err()
}

/// Not a test by itself: holds the file open for [`a_locked_file_names_its_holder`] until its input ends.
#[test]
fn holder() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let _engine = open(&folder).unwrap();
    std::fs::write(folder.join("held"), b"").unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_locked_file_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !folder.path().join("held").exists() {
        assert!(std::time::Instant::now() < deadline, "the holder did not start");
        std::thread::yield_now();
    }
    let error = open(folder.path()).unwrap_err();
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    match error {
        WarehouseError::Locked { pid, .. } => assert_eq!(pid, Some(holder.id())),
        other => panic!("{other:?}"),
    }
    open(folder.path()).unwrap();
}

async fn copied(engine: &Arc<Engine>) -> millrace_warehouse::DuckSink {
    let mut sink = sink(engine);
    let source = history::Source::new();
    apply(&mut sink, RunKind::InitialCopy, source.copy(), 10).await.unwrap();
    sink
}

fn with_column(schema: &TableSchema, name: &str) -> Arc<TableSchema> {
    let mut schema = schema.clone();
    schema.columns.push(Column {
        name: name.into(),
        column_type: ColumnType::Text,
        declared: "text".into(),
        key: false,
    });
    Arc::new(schema)
}

fn without_column(schema: &TableSchema, name: &str) -> Arc<TableSchema> {
    let mut schema = schema.clone();
    schema.columns.retain(|c| c.name != name);
    Arc::new(schema)
}

#[tokio::test]
async fn a_table_altered_within_a_batch_is_copied_anew() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    let wider = with_column(&customers(), "language");
    let before = rows(&customers(), &[(head(Op::Update, 20, 0), customer(1, "sme"))]);
    let refused = apply(&mut sink, RunKind::Changes, vec![before, Step::Schema(wider.clone())], 20).await;
    let Err(SinkError::Altered { table }) = refused else { panic!("{refused:?}") };
    let reason = "altered".to_owned();
    assert_eq!(query::<String>(&engine, "select status from audit.etl_runs order by run_id"), ["committed", "failed"]);
    sink.quarantine(table.clone(), reason).await.unwrap();
    assert!(sink.resume().await.unwrap().quarantined.contains_key(&table));

    // meanwhile customer 1 changed, 2 went away and 4 came
    let mut values: Vec<_> = [customer(1, "sme"), customer(3, "retail"), customer(4, "retail")].into_iter().collect();
    for row in &mut values {
        row.push(Some("sw".into()));
    }
    let copy: Vec<_> = values.into_iter().enumerate().map(|(i, v)| (head(Op::Copy, 30, i as u64), v)).collect();
    let steps = vec![Step::Schema(wider.clone()), rows(&wider, &copy)];
    let applied = apply(&mut sink, RunKind::Resync(table), steps, 30).await.unwrap();
    assert_eq!((applied.rows_inserted, applied.rows_updated, applied.rows_deleted), (1, 2, 1));
    assert!(sink.resume().await.unwrap().quarantined.is_empty());
    assert_eq!(
        query::<String>(&engine, "select customer_id || language from staging.customers order by 1"),
        ["1sw", "3sw", "4sw"]
    );
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.dim_customer where customer_id = 1"), [2]);
    assert_verified(&engine);
    sink.close().await;
}

#[tokio::test]
async fn an_added_column_is_null_in_older_rows() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    let wider = with_column(&customers(), "language");
    let mut row = customer(1, "sme");
    row.push(Some("sw".into()));
    let steps = vec![Step::Schema(wider.clone()), rows(&wider, &[(head(Op::Update, 20, 0), row)])];
    apply(&mut sink, RunKind::Changes, steps, 20).await.unwrap();
    assert_eq!(
        query::<Option<String>>(&engine, "select language from staging.customers order by customer_id"),
        [Some("sw".to_owned()), None, None]
    );
    assert_verified(&engine);
    sink.close().await;
}

#[tokio::test]
async fn a_dropped_column_goes_unless_a_model_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = sink(&engine);
    let source = history::Source::new();
    apply(&mut sink, RunKind::InitialCopy, source.copy(), 10).await.unwrap();
    let refused =
        apply(&mut sink, RunKind::Changes, vec![Step::Schema(without_column(&loans::loans(), "status"))], 20).await;
    let Err(SinkError::Table { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("status") && reason.contains("fact_loans") && reason.contains("dim_loan"), "{reason}");

    // widened is fine, and so is what nobody reads
    let mut wider = (*loans::loans()).clone();
    wider.columns[4].column_type = ColumnType::Int8;
    wider.columns[6].column_type = ColumnType::Decimal { precision: 18, scale: 4 };
    let wider = Arc::new(wider);
    let mut row = loan(1, 1, "active", "1.2345");
    row[4] = Some("5000000000".into());
    let steps = vec![Step::Schema(wider.clone()), rows(&wider, &[(head(Op::Update, 21, 0), row)])];
    apply(&mut sink, RunKind::Changes, steps, 21).await.unwrap();
    assert_eq!(query::<i64>(&engine, "select tenure_months from staging.loans where loan_id = 1"), [5_000_000_000]);
    sink.close().await;
}

fn retyped(schema: &TableSchema, name: &str, column_type: ColumnType) -> Arc<TableSchema> {
    let mut schema = schema.clone();
    let at = schema.position(name).unwrap();
    schema.columns[at].declared = format!("{column_type:?}");
    schema.columns[at].column_type = column_type;
    Arc::new(schema)
}

#[tokio::test]
async fn history_of_a_column_that_changes_its_type_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = sink(&engine);
    let mut with_phones = history::Source::new().copy();
    let phone = |id: u32, phone: &str| {
        let mut row = customer(id, "sme");
        row[3] = Some(phone.to_owned());
        row
    };
    with_phones.push(rows(
        &customers(),
        &[(head(Op::Copy, 10, 9), phone(7, "0700")), (head(Op::Copy, 10, 10), phone(8, "+254 7"))],
    ));
    apply(&mut sink, RunKind::InitialCopy, with_phones, 10).await.unwrap();
    let numbers = retyped(&customers(), "phone", ColumnType::Int8);
    let copy = vec![
        (head(Op::Copy, 30, 0), customer(1, "sme")),
        (head(Op::Copy, 30, 1), phone(7, "700")),
        (head(Op::Copy, 30, 2), phone(8, "2547")),
    ];
    let steps = vec![Step::Schema(numbers.clone()), rows(&numbers, &copy)];
    apply(&mut sink, RunKind::Resync(numbers.table.clone()), steps, 30).await.unwrap();
    let history = "select concat_ws('|', customer_id, coalesce(phone__was_varchar, '-'), coalesce(phone::varchar, '-')) \
                   from raw.customers where customer_id > 6 order by customer_id, _commit_lsn";
    assert_eq!(query::<String>(&engine, history), ["7|0700|700", "8|+254 7|-", "8|-|2547"]);
    assert_eq!(
        query::<i64>(&engine, "select phone from staging.customers where customer_id > 6 order by 1"),
        [700, 2547]
    );
    assert_verified(&engine);

    // where every value is the same in the new type, the column is only converted
    let texts = customers();
    let copy = vec![(head(Op::Copy, 40, 0), customer(1, "sme")), (head(Op::Copy, 40, 1), phone(7, "700"))];
    let steps = vec![Step::Schema(texts.clone()), rows(&texts, &copy)];
    apply(&mut sink, RunKind::Resync(texts.table.clone()), steps, 40).await.unwrap();
    let columns = "select column_name from duckdb_columns() where schema_name = 'raw' and table_name = 'customers' \
                   and column_name like 'phone%' order by 1";
    assert_eq!(query::<String>(&engine, columns), ["phone", "phone__was_varchar"]);
    assert_verified(&engine);
    sink.close().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_built_is_held_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let sink = copied(&engine).await;
    let facts = include_str!("../../../packs/loans/models/facts.toml");
    let dimensions = include_str!("../../../packs/loans/models/dimensions.toml");
    let declare = |dimensions: &str, facts: &str| {
        Arc::new(Models::parse([("dimensions.toml", dimensions), ("facts.toml", facts)]).unwrap())
    };
    let column = |table: &str, column: &str| {
        let found = "select count(*) from duckdb_columns() where schema_name = 'warehouse'";
        query::<i64>(&engine, &format!("{found} and table_name = '{table}' and column_name = '{column}'")) == [1]
    };
    // a text that is no number: seen only when it runs; and a column that is not there
    let broken = facts
        .replace("principal_amount = \"amount\"", "principal_amount = \"amount\"\nofficer = \"loan_officer::bigint\"")
        .replace("branch_code = \"loans.branch_code\"", "branch_code = \"loans.branch_code\"\nfee = \"loans.fee\"");
    let better = dimensions.replace("country = \"country\"", "country = \"country\"\nnation = \"country\"");
    let built = sink.handle().build(declare(&better, &broken), BTreeMap::new()).await.unwrap();
    let held: Vec<_> = built.held.iter().map(|h| (h.name.as_str(), h.kept)).collect();
    // the dimension could be built, but the facts that stay as they were need it as it was
    assert_eq!(
        held,
        [("dim_customer", Kept::AsBuilt), ("fact_loans", Kept::AsBuilt), ("fact_payments", Kept::AsBuilt)]
    );
    assert!(built.held[0].reason.contains("stays as it was built"), "{:?}", built.held[0]);
    assert!(built.held[2].reason.contains("operational.loans has no column fee"), "{:?}", built.held[2]);
    assert_eq!(built.lacking.iter().map(ToString::to_string).collect::<Vec<_>>(), ["operational.loans"]);
    assert!(!column("dim_customer", "nation"));

    // all of them are kept up to date as they were, also after a restart
    sink.close().await;
    let mut sink =
        millrace_warehouse::DuckSink::open(engine.clone(), declare(&better, &broken), Arc::new(SystemClock::new()))
            .unwrap();
    assert_eq!(sink.handle().in_force().held.len(), 3);
    let changes =
        vec![rows(&payments(), &[(head(Op::Insert, 20, 0), payment(9, 1, "5.00", "2024-02-01 00:00:00+00"))])];
    apply(&mut sink, RunKind::Changes, changes, 20).await.unwrap();
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.fact_payments"), [4]);
    assert!(millrace_warehouse::verify_built(&engine, None).unwrap().iter().all(|c| c.differing == 0));

    // the column comes with a fresh copy: what waited for it is built by itself
    let wider = with_column(&loans::loans(), "fee");
    let mut row = loan(1, 1, "active", "900.00");
    row.push(Some("12".to_owned()));
    let steps = vec![Step::Schema(wider.clone()), rows(&wider, &[(head(Op::Copy, 30, 0), row)])];
    apply(&mut sink, RunKind::Resync(wider.table.clone()), steps, 30).await.unwrap();
    sink.resume().await.unwrap();
    let held = sink.handle().in_force().held;
    assert!(held.iter().any(|h| h.name == "fact_loans" && h.reason.contains("Officer")), "{held:?}");

    // and corrected, everything is as declared
    let right = broken.replace("loan_officer::bigint", "loan_officer");
    let built = sink.handle().build(declare(&better, &right), BTreeMap::new()).await.unwrap();
    assert!(built.held.is_empty(), "{:?}", built.held);
    assert!(column("dim_customer", "nation") && column("fact_payments", "fee") && column("fact_loans", "officer"));
    let compared = millrace_warehouse::verify_built(&engine, None).unwrap();
    assert!(compared.len() >= 6 && compared.iter().all(|c| c.differing == 0), "{compared:?}");
    sink.close().await;
}

#[tokio::test]
async fn a_model_that_a_change_breaks_is_held_and_capture_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let facts = include_str!("../../../packs/loans/models/facts.toml").replace(
        "principal_amount = \"amount\"",
        "principal_amount = \"amount\"\nbranch = \"replace(branch_code, 'B', '')::bigint\"",
    );
    let dimensions = include_str!("../../../packs/loans/models/dimensions.toml");
    let declared = Arc::new(Models::parse([("dimensions.toml", dimensions), ("facts.toml", facts.as_str())]).unwrap());
    let mut sink =
        millrace_warehouse::DuckSink::open(engine.clone(), declared.clone(), Arc::new(SystemClock::new())).unwrap();
    apply(&mut sink, RunKind::InitialCopy, history::Source::new().copy(), 10).await.unwrap();
    let mut odd = loan(1, 1, "active", "1.00");
    odd[7] = Some("Harbour".to_owned());
    let batch = || vec![rows(&loans::loans(), &[(head(Op::Update, 20, 0), odd.clone())])];
    let refused = apply(&mut sink, RunKind::Changes, batch(), 20).await;
    assert!(matches!(&refused, Err(SinkError::Retry(reason)) if reason.contains("fact_loans")), "{refused:?}");
    apply(&mut sink, RunKind::Changes, batch(), 20).await.unwrap();
    let held = sink.handle().in_force().held;
    assert_eq!(held.iter().map(|h| (h.name.as_str(), h.kept)).collect::<Vec<_>>(), [("fact_loans", Kept::Stale)]);
    assert_eq!(query::<String>(&engine, "select branch_code from staging.loans where loan_id = 1"), ["Harbour"]);
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.dim_loan where branch_code = 'Harbour'"), [1]);
    // the rows are mended, the model is built again when asked for
    apply(
        &mut sink,
        RunKind::Changes,
        vec![rows(&loans::loans(), &[(head(Op::Update, 21, 0), loan(1, 1, "active", "1.00"))])],
        21,
    )
    .await
    .unwrap();
    assert!(sink.handle().build(declared, BTreeMap::new()).await.unwrap().held.is_empty());
    let compared = millrace_warehouse::verify_built(&engine, None).unwrap();
    assert!(
        compared.iter().any(|c| c.what == "fact_loans") && compared.iter().all(|c| c.differing == 0),
        "{compared:?}"
    );
    sink.close().await;
}

#[tokio::test]
async fn a_pinned_state_stays_while_batches_commit() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    sink.pin("proof").await.unwrap();
    let steps = vec![rows(&payments(), &[(head(Op::Insert, 20, 0), payment(9, 1, "1.00", "2024-02-01 00:00:00+00"))])];
    apply(&mut sink, RunKind::Changes, steps, 20).await.unwrap();
    let count = "select count(*) from staging.payments";
    {
        let pinned = engine.pinned("proof").unwrap();
        let pinned = pinned.lock().unwrap();
        assert_eq!(pinned.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 3);
    }
    assert_eq!(query::<i64>(&engine, count), [4]);
    let compared = verify_models(&engine, &models(), Some("proof")).unwrap();
    assert!(compared.iter().all(|c| c.differing == 0), "{compared:?}");
    assert_eq!(compared.iter().find(|c| c.what == "fact_payments").unwrap().rows_warehouse, 3);
    engine.release("proof");
    assert!(engine.pinned("proof").is_none());
    sink.close().await;
}

#[tokio::test]
async fn tampering_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let sink = copied(&engine).await;
    engine
        .connect()
        .unwrap()
        .execute_batch("update warehouse.fact_loans set total_paid = 0 where loan_id = 2")
        .unwrap();
    let compared = verify_models(&engine, &models(), None).unwrap();
    let fact = compared.iter().find(|c| c.what == "fact_loans").unwrap();
    assert_eq!(fact.differing, 2);
    assert!(fact.examples.iter().all(|e| e.starts_with("2 ")), "{fact:?}");
    sink.close().await;
}

#[tokio::test]
async fn every_type_arrives_and_stays_itself() {
    use ColumnType::*;
    let types: [(&str, ColumnType, &str, &str); 17] = [
        ("id", Int8, "1", "1"),
        ("b", Bool, "t", "true"),
        ("i2", Int2, "-32768", "-32768"),
        ("i4", Int4, "2147483647", "2147483647"),
        ("f4", Float4, "NaN", "nan"),
        ("f8", Float8, "-Infinity", "-inf"),
        (
            "d",
            Decimal { precision: 38, scale: 10 },
            "-1234567890123456789012345678.0000000001",
            "-1234567890123456789012345678.0000000001",
        ),
        ("n", NumericText, "1e-400", "1e-400"),
        ("t", Text, "naïve 'quote'\n", "naïve 'quote'\n"),
        ("day", Date, "0044-03-15 BC", "0044-03-15 (BC)"),
        ("tm", Time, "23:59:59.999999", "23:59:59.999999"),
        ("ts", Timestamp, "infinity", "infinity"),
        ("tz", TimestampTz, "2024-02-29 12:00:00.5+00", "2024-02-29 12:00:00.5+00"),
        ("u", Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("j", Json, r#"{"a": [1, null]}"#, r#"{"a": [1, null]}"#),
        ("by", Bytea, "\\x00ff41", "\\x00\\xFFA"),
        ("o", Other, "{1,2}", "{1,2}"),
    ];
    let columns = types.iter().map(|(name, column_type, _, _)| Column {
        name: (*name).into(),
        column_type: column_type.clone(),
        declared: "t".into(),
        key: *name == "id",
    });
    let schema = Arc::new(TableSchema {
        table: millrace_contract::TableName::new("operational", "things"),
        oid: 9,
        columns: columns.collect(),
    });
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = sink(&engine);
    let values: Vec<loans::Text> = types.iter().map(|(_, _, text, _)| Some((*text).to_owned())).collect();
    let seen = || {
        types
            .iter()
            .map(|(name, ..)| {
                query::<String>(&engine, &format!("select cast(\"{name}\" as varchar) from staging.things")).remove(0)
            })
            .collect::<Vec<_>>()
    };
    let expected: Vec<String> = types.iter().map(|(_, _, _, shown)| (*shown).to_owned()).collect();
    apply(
        &mut sink,
        RunKind::InitialCopy,
        vec![Step::Schema(schema.clone()), rows(&schema, &[(head(Op::Copy, 10, 0), values.clone())])],
        10,
    )
    .await
    .unwrap();
    assert_eq!(seen(), expected);
    // an update that leaves everything out, after one that sets everything, in one batch
    let mut update = Rows::new(schema.clone());
    assert!(update.push(head(Op::Update, 11, 0), cells(&values)));
    let left_out: Vec<_> = cells(&values)
        .into_iter()
        .enumerate()
        .map(|(i, c)| if i == 0 { c } else { millrace_contract::Cell::Unchanged })
        .collect();
    assert!(update.push(head(Op::Update, 12, 0), left_out.clone()));
    apply(&mut sink, RunKind::Changes, vec![Step::Rows(update)], 12).await.unwrap();
    assert_eq!(seen(), expected);
    // from staging alone
    let mut update = Rows::new(schema.clone());
    assert!(update.push(head(Op::Update, 13, 0), left_out.clone()));
    apply(&mut sink, RunKind::Changes, vec![Step::Rows(update)], 13).await.unwrap();
    assert_eq!(seen(), expected);
    // nowhere to be found
    let mut update = Rows::new(schema.clone());
    let mut other = left_out;
    other[0] = millrace_contract::Cell::Text(b"2");
    assert!(update.push(head(Op::Update, 14, 0), other));
    let refused = apply(&mut sink, RunKind::Changes, vec![Step::Rows(update)], 14).await;
    assert!(matches!(&refused, Err(SinkError::Table { reason, .. }) if reason.contains("resync")), "{refused:?}");
    sink.close().await;
}

#[tokio::test]
async fn a_grain_other_than_the_sources_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let sink = copied(&engine).await;
    let declared = "[[fact]]\nname = \"fact_methods\"\nsource = \"operational.payments\"\ngrain = [\"payment_method\"]\n\
                    [fact.columns]\namount = \"amount\"\n";
    let models = Arc::new(millrace_model::Models::parse([("methods.toml", declared)]).unwrap());
    let built = sink.handle().build(models, std::collections::BTreeMap::new()).await.unwrap();
    let [held] = built.held.as_slice() else { panic!("{built:?}") };
    assert_eq!(
        held.reason,
        "its grain (payment_method) is not the key of operational.payments (payment_id): a fact has a row for each row of its source"
    );
    sink.close().await;
}
