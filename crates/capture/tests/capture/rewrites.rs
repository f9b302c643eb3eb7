//! What changes rows without a row in the log: told by the event triggers, answered by a fresh copy.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use millrace_contract::RunKind;
use millrace_pg::{Connection, connect};
use millrace_testkit::wait_until;

use crate::harness::{Harness, SOON, table};

const SQL: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE t (id int PRIMARY KEY, v text, m mood, n int NOT NULL DEFAULT 0);
    INSERT INTO t SELECT i, 'Value ' || i, 'sad' FROM generate_series(1, 2000) i;
    CREATE TABLE other (id int PRIMARY KEY, v text);
    INSERT INTO other SELECT i, 'x' FROM generate_series(1, 100) i;
    CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
    CREATE TABLE parts_b (id int NOT NULL, at date NOT NULL);
    INSERT INTO parts SELECT i, '2024-01-15' FROM generate_series(1, 50) i;
    INSERT INTO parts_b SELECT i, '2024-02-15' FROM generate_series(1, 50) i;";

const TABLES: [&str; 3] = ["t", "other", "parts"];

/// Each leaves the columns as capture sees them next, and other values in old rows.
const CHANGES: [(&str, &[&str]); 7] = [
    ("t", &["ALTER TABLE t ALTER COLUMN v TYPE text USING upper(v)"]),
    (
        "t",
        &[
            "BEGIN; ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); ALTER TABLE t ALTER COLUMN r DROP DEFAULT; COMMIT",
        ],
    ),
    ("t", &["ALTER TABLE t ADD COLUMN d int DEFAULT 7", "ALTER TABLE t ALTER COLUMN d DROP DEFAULT", "VACUUM FULL t"]),
    ("t", &["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"]),
    (
        "t",
        &["ALTER PUBLICATION millrace DROP TABLE t; UPDATE t SET v = 'unseen' WHERE id < 10;
           ALTER PUBLICATION millrace ADD TABLE t"],
    ),
    ("parts", &["ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')"]),
    ("parts", &["DO $$ BEGIN EXECUTE 'ALTER TABLE parts DETACH PARTITION parts_a'; END $$"]),
];

async fn change(db: &Connection, statements: &[&str]) {
    for statement in statements {
        db.batch_execute(statement).await.unwrap();
    }
}

/// Writes the tables as customers would.
async fn load(db: &Connection) {
    static NEXT: AtomicU32 = AtomicU32::new(10_000);
    for i in 0..150 {
        let sql = format!(
            "UPDATE t SET n = n + 1 WHERE id % 37 = {}; INSERT INTO t (id, v) VALUES ({}, 'new');
             UPDATE other SET v = v || 'y' WHERE id = {}",
            i % 37,
            NEXT.fetch_add(1, Ordering::Relaxed),
            i % 100
        );
        db.batch_execute(&sql).await.unwrap();
    }
}

fn resyncs(h: &Harness, name: &str) -> usize {
    h.store.state().batches.iter().filter(|(kind, _)| *kind == RunKind::Resync(table(name))).count()
}

/// Everything is there, and nothing waits for a copy.
async fn settled(h: &Harness) {
    h.caught_up().await;
    wait_until(SOON, || async { h.store.state().resume.quarantined.is_empty() }).await;
    h.same().await;
}

#[tokio::test]
async fn rows_that_change_without_a_trace_are_copied_anew_under_load() {
    let mut h = Harness::new(SQL, &TABLES).await;
    h.start().await;
    h.same().await;
    let writer = connect(&h.options.source, Duration::from_secs(15)).await.unwrap();
    for (name, statements) in CHANGES {
        let before = resyncs(&h, name);
        tokio::join!(change(&h.db, statements), load(&writer));
        settled(&h).await;
        assert!(resyncs(&h, name) > before, "{statements:?} was not noticed");
    }
    assert_eq!(resyncs(&h, "other"), 0);
    h.stop().await;
}

#[tokio::test]
async fn rows_that_change_without_a_trace_while_capture_is_away_are_copied_anew() {
    let mut h = Harness::new(SQL, &TABLES).await;
    h.start().await;
    h.same().await;
    for (name, statements) in CHANGES {
        let before = resyncs(&h, name);
        h.stop().await;
        load(&h.db).await;
        change(&h.db, statements).await;
        load(&h.db).await;
        h.resume();
        settled(&h).await;
        assert!(resyncs(&h, name) > before, "{statements:?} was not noticed");
    }
    assert_eq!(resyncs(&h, "other"), 0);
    h.stop().await;
}

#[tokio::test]
async fn what_leaves_every_value_as_it_is_causes_no_copy() {
    let mut h = Harness::new(SQL, &TABLES).await;
    h.start().await;
    h.same().await;
    for statement in [
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "ALTER TABLE t ADD COLUMN later text",
        "ALTER TABLE t ALTER COLUMN n SET DEFAULT 5",
        "ALTER TYPE mood ADD VALUE 'glad'",
        "ALTER TABLE parts ADD COLUMN later text; INSERT INTO parts VALUES (99, '2024-01-20')",
        // rolled back, so it did not happen
        "BEGIN; ALTER TABLE t ALTER COLUMN v TYPE text USING lower(v); ROLLBACK",
        "BEGIN; SAVEPOINT s; ALTER TABLE t ALTER COLUMN v TYPE text USING lower(v); ROLLBACK TO s; UPDATE t SET n = 1; COMMIT",
    ] {
        h.db.batch_execute(statement).await.unwrap();
        load(&h.db).await;
        settled(&h).await;
    }
    for name in TABLES {
        assert_eq!(resyncs(&h, name), 0, "{name}");
    }
    h.stop().await;
}

#[tokio::test]
async fn a_rewrite_within_a_large_transaction_is_seen_when_it_commits() {
    let settings = [("logical_decoding_work_mem", "64kB")];
    let mut h = Harness::with(&settings, SQL, &TABLES).await;
    h.start().await;
    h.same().await;
    let rows = "INSERT INTO t (id, v) SELECT i, 'much ' || i FROM generate_series(100000, 120000) i";
    h.db.batch_execute(&format!("BEGIN; {rows}; SAVEPOINT s; ALTER TABLE t ALTER COLUMN v TYPE text USING v || '!'; ROLLBACK TO s; DELETE FROM t WHERE id > 110000; COMMIT")).await.unwrap();
    settled(&h).await;
    assert_eq!(resyncs(&h, "t"), 0, "what was rolled back did not happen");
    let rows = rows.replace("100000, 120000", "200000, 220000");
    h.db.batch_execute(&format!("BEGIN; {rows}; SAVEPOINT s; ALTER TABLE t ALTER COLUMN v TYPE text USING v || '?'; RELEASE s; DELETE FROM t WHERE id > 210000; COMMIT")).await.unwrap();
    settled(&h).await;
    assert_eq!(resyncs(&h, "t"), 1);
    h.stop().await;
}

#[tokio::test]
async fn a_table_that_left_is_copied_anew_when_it_is_back() {
    let mut h = Harness::new(SQL, &TABLES).await;
    h.start().await;
    h.same().await;
    h.db.batch_execute("ALTER PUBLICATION millrace DROP TABLE t; UPDATE t SET v = 'unseen'").await.unwrap();
    wait_until(SOON, || async { h.store.state().resume.quarantined.contains_key(&table("t")) }).await;
    load(&h.db).await;
    h.db.batch_execute("ALTER PUBLICATION millrace ADD TABLE t; UPDATE t SET n = 9 WHERE id < 9").await.unwrap();
    wait_until(SOON, || async { h.store.state().resume.quarantined.is_empty() }).await;
    settled(&h).await;
    assert_eq!((resyncs(&h, "t"), resyncs(&h, "other")), (1, 0));
    h.stop().await;
}
