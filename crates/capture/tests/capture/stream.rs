//! Changes.

use std::time::Duration;

use millrace_base::Lsn;
use millrace_contract::{Op, RunKind, status::CaptureState};
use millrace_testkit::wait_until;

use crate::harness::{Harness, SOON, current_lsn, table};

fn ops(h: &Harness, name: &str) -> Vec<Op> {
    h.store.state().heads[&table(name)].iter().map(|head| head.op).collect()
}

#[tokio::test]
async fn unchanged_toast_key_changes_and_identities() {
    let sql = r#"
        CREATE TABLE small (id int PRIMARY KEY, n int, big text);
        CREATE TABLE whole (id int PRIMARY KEY, n int, big text);
        ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE indexed (id int PRIMARY KEY, code text NOT NULL, n int, big text);
        CREATE UNIQUE INDEX indexed_code ON indexed (code);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code;
        ALTER TABLE small ALTER big SET STORAGE EXTERNAL;
        ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
        ALTER TABLE indexed ALTER big SET STORAGE EXTERNAL;
        CREATE TABLE widekey (id text PRIMARY KEY, n int, big text);
        ALTER TABLE widekey ALTER id SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL;
    "#;
    let mut h = Harness::new(sql, &["small", "whole", "indexed", "widekey"]).await;
    h.start().await;
    h.caught_up().await;
    h.db.batch_execute(
        "INSERT INTO small VALUES (1, 1, repeat('a', 9000)), (2, 2, NULL);
         INSERT INTO whole VALUES (1, 1, repeat('b', 9000)), (2, NULL, NULL);
         INSERT INTO indexed VALUES (1, 'one', 1, repeat('c', 9000));
         INSERT INTO widekey VALUES (repeat('k', 2500), 1, repeat('d', 9000));",
    )
    .await
    .unwrap();
    h.same().await;
    // in one transaction, in separate ones, and the key together with what is unchanged
    h.db.batch_execute(
        "BEGIN; UPDATE small SET n = 10; UPDATE whole SET n = 10; UPDATE indexed SET n = 10; UPDATE widekey SET n = 10; COMMIT;
         UPDATE small SET id = 11 WHERE id = 1; UPDATE whole SET id = 11 WHERE id = 1; UPDATE indexed SET code = 'two';
         UPDATE small SET n = 12 WHERE id = 11; UPDATE indexed SET id = 5;
         UPDATE small SET big = 'short' WHERE id = 2;",
    )
    .await
    .unwrap();
    h.same().await;
    h.db.batch_execute("DELETE FROM small WHERE id = 11; DELETE FROM whole; DELETE FROM indexed; DELETE FROM widekey")
        .await
        .unwrap();
    h.same().await;
    use Op::{Delete, Insert, Update};
    assert_eq!(ops(&h, "whole"), [Insert, Insert, Update, Update, Delete, Insert, Delete, Delete]);
    assert_eq!(ops(&h, "indexed"), [Insert, Update, Delete, Insert, Update, Delete]);
    assert_eq!(ops(&h, "widekey"), [Insert, Update, Delete]);
    let keys = |name: &str| -> Vec<String> {
        let schemas = h.store.state().schemas[&table(name)].clone();
        schemas[0].columns.iter().filter(|c| c.key).map(|c| c.name.clone()).collect()
    };
    assert_eq!((keys("whole"), keys("indexed")), (vec!["id".to_owned()], vec!["code".to_owned()]));
    h.stop().await;
}

#[tokio::test]
async fn truncates_are_in_order() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a); INSERT INTO a VALUES (1)";
    let mut h = Harness::new(sql, &["a", "b"]).await;
    h.start().await;
    h.caught_up().await;
    h.db.batch_execute(
        "BEGIN; INSERT INTO a VALUES (2); TRUNCATE a CASCADE; INSERT INTO a VALUES (1), (3); INSERT INTO b VALUES (3); COMMIT",
    )
    .await
    .unwrap();
    h.same().await;
    h.db.batch_execute("TRUNCATE a, b").await.unwrap();
    h.same().await;
    assert!(h.store.table(&table("a")).is_empty());
    h.stop().await;
}

#[tokio::test]
async fn columns_come_and_go_under_load() {
    let sql = "CREATE TABLE t (id serial PRIMARY KEY, a text DEFAULT 'a', b int DEFAULT 1)";
    let mut h = Harness::new(sql, &["t"]).await;
    h.start().await;
    h.caught_up().await;
    let other = h.server.client_to("source").await;
    let load = async {
        for _ in 0..300 {
            other
                .batch_execute("INSERT INTO t DEFAULT VALUES; UPDATE t SET a = 'u' || id WHERE id % 10 = 0")
                .await
                .unwrap();
        }
    };
    let change = async {
        for ddl in [
            "ALTER TABLE t ADD c timestamptz DEFAULT now()",
            "ALTER TABLE t DROP b",
            "ALTER TABLE t RENAME a TO a2; ALTER TABLE t ADD a int; ALTER TABLE t RENAME a TO a3; ALTER TABLE t RENAME a2 TO a",
            "ALTER TABLE t ADD b numeric(10,3)",
            "ALTER TABLE t ALTER b TYPE numeric(20,4)",
        ] {
            h.db.batch_execute(ddl).await.unwrap();
            h.caught_up().await;
        }
    };
    tokio::join!(load, change);
    // a change of a table shows with the next row; what it did to older rows is not in the stream, but copied
    h.db.batch_execute("UPDATE t SET a = 'seen' WHERE id = 1").await.unwrap();
    h.caught_up().await;
    wait_until(SOON, || async { h.status().quarantined.is_empty() }).await;
    h.same().await;
    let copies = h.store.state().batches.iter().filter(|(kind, _)| matches!(kind, RunKind::Resync(_))).count();
    assert!((1..=4).contains(&copies), "{copies} copies");
    h.db.batch_execute("ALTER TABLE t ADD plain int; UPDATE t SET plain = id WHERE id < 10; ALTER TABLE t DROP plain")
        .await
        .unwrap();
    h.db.batch_execute("UPDATE t SET a = 'end'").await.unwrap();
    h.same().await;
    let again = h.store.state().batches.iter().filter(|(kind, _)| matches!(kind, RunKind::Resync(_))).count();
    assert_eq!(again, copies, "without a default nothing is copied");
    let schemas = h.store.state().schemas[&table("t")].clone();
    let names: Vec<Vec<String>> = schemas.iter().map(|s| s.columns.iter().map(|c| c.name.clone()).collect()).collect();
    assert_eq!(names.first().unwrap(), &["id", "a", "b"]);
    assert_eq!(names.last().unwrap(), &["id", "a", "c", "a3", "b"]);
    h.stop().await;
}

#[tokio::test]
async fn large_transactions_are_streamed_and_honour_savepoints() {
    let settings = [("logical_decoding_work_mem", "64kB")];
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id serial PRIMARY KEY)";
    let mut h = Harness::with(&settings, sql, &["t", "other"]).await;
    h.options.step_bytes = 100_000;
    h.start().await;
    h.caught_up().await;
    let mut second = h.server.client_to("source").await;
    h.db.batch_execute("BEGIN; INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i; SAVEPOINT a")
        .await
        .unwrap();
    let lost = second.client_mut().transaction().await.unwrap();
    lost.batch_execute("INSERT INTO t SELECT i, repeat('y', 200) FROM generate_series(100001, 105000) i")
        .await
        .unwrap();
    h.db.batch_execute(
        "INSERT INTO t SELECT i, 'gone' || repeat('g', 200) FROM generate_series(5001, 10000) i; UPDATE t SET v = 'gone';
         SAVEPOINT b; DELETE FROM t; ROLLBACK TO a;
         SAVEPOINT c; INSERT INTO t SELECT i, repeat('z', 200) FROM generate_series(5001, 8000) i; RELEASE c",
    )
    .await
    .unwrap();
    // both were sent by now
    lost.rollback().await.unwrap();
    h.db.batch_execute(
        "ALTER TABLE t ADD w int; INSERT INTO t SELECT i, 'w', i FROM generate_series(8001, 12000) i;
         SAVEPOINT d; ALTER TABLE t ADD gone int; INSERT INTO t VALUES (0, 'gone', 1, 1); ROLLBACK TO d;
         INSERT INTO t VALUES (0, 'here', 1)",
    )
    .await
    .unwrap();
    second.batch_execute("INSERT INTO other DEFAULT VALUES").await.unwrap();
    wait_until(SOON, || async { !h.store.table(&table("other")).is_empty() }).await;
    assert!(h.store.table(&table("t")).is_empty(), "nothing of an open transaction is applied");
    h.db.batch_execute("COMMIT").await.unwrap();
    h.same().await;
    let stats = "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = 'millrace'";
    let streamed: i64 = h.db.query_one(stats, &[]).await.unwrap().get(0);
    assert!(streamed > 0, "the test's transactions were too small");
    let state = h.store.state();
    let heads = &state.heads[&table("t")];
    assert_eq!(heads.len(), 12001);
    assert!(heads.iter().all(|head| head.commit_lsn == heads[0].commit_lsn), "one transaction");
    assert!(h.store.step_bytes_max() < 150_000);
    h.stop().await;
}

#[tokio::test]
async fn an_idle_source_lets_its_log_go() {
    let mut h = Harness::new("CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    h.start().await;
    h.same().await;
    let batches = h.store.state().batches.len();
    let elsewhere = h.server.create_database("elsewhere").await;
    elsewhere.batch_execute("CREATE TABLE x AS SELECT generate_series(1, 100000) i").await.unwrap();
    let lsn = current_lsn(&elsewhere).await;
    wait_until(SOON, || async { h.store.watermark() >= lsn }).await;
    wait_until(SOON, || async {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'millrace'";
        let confirmed: Lsn = h.db.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse().unwrap();
        confirmed >= lsn
    })
    .await;
    assert_eq!(h.store.state().batches.len(), batches, "without a batch");
    // with nothing waiting a stop of the source is not held up by us
    let begun = tokio::time::Instant::now();
    h.server.restart().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "the source's stop took {:?}", begun.elapsed());
    h.db = h.server.client_to("source").await;
    h.db.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    h.same().await;
    h.stop().await;
}

#[tokio::test]
async fn a_busy_sink_does_not_lose_the_connection() {
    let mut h =
        Harness::with(&[("wal_sender_timeout", "12s")], "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    h.options.batch_bytes_max = 1 << 20;
    h.options.step_bytes = 1 << 18;
    h.start().await;
    h.caught_up().await;
    let pid = "SELECT pid FROM pg_stat_replication";
    let before: i32 = h.db.query_one(pid, &[]).await.unwrap().get(0);
    h.gate(false);
    // more than fits on the way
    h.db.batch_execute("INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 30000) i")
        .await
        .unwrap();
    h.db.batch_execute("INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(30001, 60000) i")
        .await
        .unwrap();
    let begun = tokio::time::Instant::now();
    // longer than the server would wait for a silent client
    wait_until(SOON, || async { begun.elapsed() > Duration::from_secs(20) }).await;
    assert!(h.status().lag_ms > 10_000, "{:?}", h.status());
    h.gate(true);
    h.same().await;
    let after: i32 = h.db.query_one(pid, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "the same connection");
    h.stop().await;
}

#[tokio::test]
async fn batches_follow_age_and_quiet() {
    let mut h = Harness::new("CREATE TABLE t (id serial PRIMARY KEY)", &["t"]).await;
    h.options.batch_age = Duration::from_secs(1);
    h.start().await;
    h.caught_up().await;
    let count = |h: &Harness| h.store.state().batches.iter().filter(|(kind, _)| *kind == RunKind::Changes).count();
    // a lone change is not kept waiting
    let begun = tokio::time::Instant::now();
    h.db.batch_execute("INSERT INTO t DEFAULT VALUES").await.unwrap();
    wait_until(SOON, || async { count(&h) == 1 }).await;
    assert!(begun.elapsed() < Duration::from_millis(800), "a lone change took {:?}", begun.elapsed());
    // a steady flow comes in batches of that age
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(4500) {
        h.db.batch_execute("INSERT INTO t DEFAULT VALUES").await.unwrap();
    }
    h.same().await;
    let batches = count(&h) - 1;
    assert!((3..=7).contains(&batches), "{batches} batches in 4.5 s");
    assert_eq!(h.status().state, CaptureState::Streaming);
    h.stop().await;
}
