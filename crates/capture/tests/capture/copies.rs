//! The first copy.

use millrace_capture::prepare;
use millrace_contract::{Column, ColumnType, Op, RunKind, status::CaptureState};
use millrace_testkit::wait_until;

use crate::harness::{Harness, SOON, table};

const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy');
    CREATE DOMAIN money2 AS numeric(12,2) CHECK (VALUE > -1000000);
    CREATE DOMAIN money3 AS money2;
    CREATE DOMAIN word AS varchar(20);
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE types (
        id bigint PRIMARY KEY, "b o" bool, i2 int2, i4 int4, f4 float4, f8 float8,
        d numeric(14,2), n numeric, wide numeric(50,10), neg numeric(5,-2),
        t text, v varchar(10), c char(5), nm name, ch "char",
        dt date, tm time, tmz timetz, ts timestamp, tsz timestamptz, iv interval,
        u uuid, j json, jb jsonb, by bytea, m mood, dom money3, w word,
        ia int[], ta text[], r int4range, ip inet, p pair, bits bit(3), x xml, o oid,
        doubled int GENERATED ALWAYS AS (i4 / 2) STORED);
"#;

const ROWS: &str = r#"
    INSERT INTO types SELECT $1 + 1, true, -32768, 2147483647, 'NaN', '-Infinity', 99999999.99, 'NaN',
        12345678901234567890123456789012345678.0123456789, 12300, E'tab\tnew\nline\\back\r\b\f\v', 'ünïcode', 'ab', 'a name', 'x',
        'infinity', '24:00:00', '12:00:00+05:30', '4713-01-01 BC', '-infinity', '1 year -2 mons 3 days 04:05:06.789',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a":  1}', '{"b": [1, null], "a": "\\"}', '\xdeadbeef00', 'so so', 12.30, 'word',
        '{1,NULL,3}', '{"a,b","c\"d",NULL}', '[1,5)', '10.0.0.0/8', '(1,"x y")', B'101', '<a/>', 4294967295;
    INSERT INTO types (id) SELECT $1 + 2;
    INSERT INTO types (id, f4, f8, n, t, ts, tsz, by, jb, d) SELECT $1 + 3, 1e-30, 0.1 + 0.2::float8, 'Infinity', '', '2024-02-29 23:59:59.999999',
        '1969-12-31 23:59:59.999999-08', '', 'null', -0.01;
    INSERT INTO types (id, f8, n, t, ta) SELECT $1 + 4, '-0', 0.000000000000000000000000000001, '\N', '{}';
    INSERT INTO types (id, t) SELECT $1 + 5, repeat(E'\\', 5000) || repeat(md5('x'), 3000);
"#;

#[tokio::test]
async fn every_type_comes_exactly_by_copy_and_by_stream() {
    let mut h = Harness::new(TYPES, &["types"]).await;
    h.db.batch_execute(&ROWS.replace("$1", "0")).await.unwrap();
    h.start().await;
    h.same().await;
    h.db.batch_execute(&ROWS.replace("$1", "100")).await.unwrap();
    h.db.batch_execute("UPDATE types SET i4 = 7 WHERE id = 5; UPDATE types SET id = 205 WHERE id = 105").await.unwrap();
    h.same().await;
    let state = h.store.state();
    assert_eq!(state.tables[&table("types")].len(), 10);

    // copy and stream agree on the schema
    let [schema] = state.schemas[&table("types")].as_slice() else { panic!("{:?}", state.schemas) };
    let kind = |name: &str| schema.columns.iter().find(|c| c.name == name).map(|c| c.column_type.clone());
    let decimal = |precision, scale| Some(ColumnType::Decimal { precision, scale });
    for (name, wanted) in [
        ("d", decimal(14, 2)),
        ("dom", decimal(12, 2)),
        ("n", Some(ColumnType::NumericText)),
        ("wide", Some(ColumnType::NumericText)),
        ("neg", Some(ColumnType::NumericText)),
        ("m", Some(ColumnType::Text)),
        ("w", Some(ColumnType::Text)),
        ("jb", Some(ColumnType::Json)),
        ("tsz", Some(ColumnType::TimestampTz)),
        ("tmz", Some(ColumnType::Other)),
        ("ia", Some(ColumnType::Other)),
        ("doubled", None),
    ] {
        assert_eq!(kind(name), wanted, "{name}");
    }
    let id = Column { name: "id".into(), column_type: ColumnType::Int8, declared: "bigint".into(), key: true };
    assert_eq!(schema.columns.first(), Some(&id));
    assert_eq!(schema.columns.iter().find(|c| c.name == "w").unwrap().declared, "word");
    h.stop().await;
}

#[tokio::test]
async fn tables_of_all_shapes_are_copied_while_they_change() {
    let sql = r#"
        CREATE TABLE "Od""d tab" ("a b" int, "C" text, PRIMARY KEY ("a b", "C"));
        CREATE TABLE empty (id int PRIMARY KEY);
        CREATE TABLE big (id int PRIMARY KEY, filler text);
        INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) i;
        DELETE FROM big WHERE id % 7 = 0;
        CREATE TABLE parts (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
        CREATE TABLE parts_b (note text, dropped int, at date NOT NULL, id int NOT NULL);
        ALTER TABLE parts_b DROP COLUMN dropped;
        ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
        INSERT INTO parts SELECT i, '2024-01-15'::date + i % 30, 'n' || i FROM generate_series(1, 100) i;
        CREATE TABLE unwanted (id int PRIMARY KEY);
    "#;
    let mut h = Harness::new(sql, &["Od\"d tab", "empty", "big", "parts"]).await;
    h.options.step_bytes = 1 << 20;
    h.start().await;
    for i in 0..50 {
        let change = format!(
            "INSERT INTO big VALUES ({}, 'new'); UPDATE big SET filler = 'changed' WHERE id = {}; DELETE FROM big WHERE id = {};
             INSERT INTO \"Od\"\"d tab\" VALUES ({i}, 'x'); INSERT INTO unwanted VALUES ({i})",
            100_000 + i, i * 7 + 1, i * 700 + 3,
        );
        h.db.batch_execute(&change).await.unwrap();
    }
    h.db.batch_execute(
        "UPDATE parts SET at = '2024-02-20' WHERE id = 5; INSERT INTO parts VALUES (1000, '2024-02-02', 'b')",
    )
    .await
    .unwrap();
    h.same().await;
    let state = h.store.state();
    assert!(matches!(&state.batches[0], (RunKind::InitialCopy, end) if end.watermark.is_valid()));
    assert_eq!(state.resume.tables.len(), 4);
    let largest = h.store.step_bytes_max();
    assert!(largest > 900_000 && largest < 1_200_000, "steps of up to {largest} bytes");
    wait_until(SOON, || async { h.status().lag_bytes == 0 && h.status().lag_ms == 0 }).await;
    assert_eq!(h.status().state, CaptureState::Streaming);
    h.stop().await;
}

#[tokio::test]
async fn a_slot_of_an_unfinished_copy_is_replaced() {
    let mut h = Harness::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", &["t"]).await;
    h.db.execute("SELECT pg_create_logical_replication_slot('millrace', 'pgoutput')", &[]).await.unwrap();
    h.db.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    h.start().await;
    h.same().await;
    h.stop().await;
}

#[tokio::test]
async fn a_copy_that_fails_begins_anew() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)";
    let mut h = Harness::new(sql, &["t"]).await;
    h.store.fail_commits(2);
    h.start().await;
    h.same().await;
    h.db.batch_execute("INSERT INTO t VALUES (0)").await.unwrap();
    h.same().await;
    h.stop().await;
}

#[tokio::test]
async fn the_publication_is_aligned_with_what_is_wanted() {
    let sql =
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
               CREATE PUBLICATION millrace FOR TABLE a, c WHERE (id > 5) WITH (publish = 'insert')";
    let h = Harness::new(sql, &["b", "c"]).await;
    let prepared = prepare(&h.db, "millrace", &h.tables).await.unwrap();
    assert_eq!(prepared.added, [table("b"), table("c")]);
    assert_eq!(prepared.removed, [table("a")]);
    let again = prepare(&h.db, "millrace", &h.tables).await.unwrap();
    assert!(again.added.is_empty() && again.removed.is_empty());
    let rows =
        h.db.query("SELECT tablename::text, rowfilter FROM pg_publication_tables ORDER BY 1", &[]).await.unwrap();
    let rows: Vec<(String, Option<String>)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(rows, [("b".to_owned(), None), ("c".to_owned(), None)]);
    let row = h.db.query_one("SELECT pubupdate AND pubtruncate AND pubviaroot FROM pg_publication", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
}

#[tokio::test]
async fn a_table_added_later_is_copied() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)";
    let mut h = Harness::new(sql, &["a"]).await;
    h.start().await;
    h.same().await;
    h.stop().await;
    h.db.batch_execute("INSERT INTO b VALUES (2); INSERT INTO a VALUES (1)").await.unwrap();
    h.tables = vec![table("a"), table("b")];
    h.options.tables = h.tables.clone();
    h.options.added = prepare(&h.db, "millrace", &h.tables).await.unwrap().added;
    assert_eq!(h.options.added, [table("b")]);
    h.db.batch_execute("INSERT INTO b VALUES (3)").await.unwrap();
    h.resume();
    h.db.batch_execute("INSERT INTO b VALUES (4); DELETE FROM b WHERE id = 1").await.unwrap();
    wait_until(SOON, || async { h.store.state().resume.tables.contains(&table("b")) }).await;
    h.same().await;
    let copies = h.store.state().heads.get(&table("b")).into_iter().flatten().filter(|h| h.op == Op::Copy).count();
    assert_eq!(copies, 0, "copies are not changes");
    h.stop().await;
}
