//! What may go wrong around the file and its tables, and what is said about it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use std::{
    io::Read as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use loans::*;
use millrace_contract::{Column, ColumnType, Op, Rows, RunKind, Sink, SinkError, Step, TableSchema};
use millrace_warehouse::{Engine, EngineOptions, WarehouseError, verify_models};

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
    let refused = sink.handle().build(models).await.unwrap_err();
    assert!(
        refused.to_string().contains(
            "its grain (payment_method) is not the key of operational.payments (payment_id): a fact has a row for each row of its source"
        ),
        "{refused}"
    );
    sink.close().await;
}
