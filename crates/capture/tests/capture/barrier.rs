//! Exact moments: comparisons and fresh copies under concurrent writers.

use std::time::Duration;

use millrace_base::{Tasks, ident::Literal};
use millrace_capture::CaptureError;
use millrace_testkit::wait_until;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, SOON, assert_same, source_table, table};

/// Writers that change two tables together until dropped.
async fn writers(h: &Harness) -> Tasks {
    let mut tasks = Tasks::new(CancellationToken::new());
    for writer in 0..2 {
        let client = h.server.client_to("source").await;
        tasks.spawn("writer", async move {
            let mut i = 0;
            loop {
                i += 1;
                let sql = format!(
                    "BEGIN; INSERT INTO a (w, n) VALUES ({writer}, {i}); UPDATE b SET n = n + 1 WHERE id = {i} % 10 + {writer} * 10;
                     DELETE FROM a WHERE w = {writer} AND n < {i} - 100; COMMIT",
                );
                client.batch_execute(&sql).await?;
            }
            #[expect(unreachable_code, reason = "gives the task its type")]
            Ok::<(), tokio_postgres::Error>(())
        });
    }
    tasks
}

const SQL: &str = "CREATE TABLE a (id serial PRIMARY KEY, w int, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
                   INSERT INTO b SELECT i, 0 FROM generate_series(0, 19) i";

#[tokio::test]
async fn barriers_are_exact_under_writers() {
    let mut h = Harness::new(SQL, &["a", "b"]).await;
    h.start().await;
    h.caught_up().await;
    let load = writers(&h).await;
    for round in 0..5 {
        let name = format!("round {round}");
        let barrier = h.barrier(&name).await.unwrap();
        let reader = h.server.client_to("source").await;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            Literal(&barrier.snapshot)
        );
        reader.batch_execute(&begin).await.unwrap();
        let pinned = h.store.pinned(&name);
        for table in &h.tables {
            assert_same(&pinned.tables[table], &source_table(&reader, table).await, table);
        }
        assert!(pinned.resume.watermark <= barrier.lsn);
    }
    drop(load);
    h.same().await;
    // the temporary slots go with their barriers
    wait_until(SOON, || async {
        h.db.query("SELECT FROM pg_replication_slots WHERE temporary", &[]).await.unwrap().is_empty()
    })
    .await;
    // and with an idle source
    h.barrier("idle").await.unwrap();
    h.stop().await;
}

#[tokio::test]
async fn a_table_is_copied_anew_under_writers() {
    let mut h = Harness::new(SQL, &["a", "b"]).await;
    h.start().await;
    h.caught_up().await;
    let load = writers(&h).await;
    for _ in 0..3 {
        h.resync(&table("b")).await.unwrap();
    }
    drop(load);
    h.same().await;
    assert!(matches!(h.resync(&table("c")).await, Err(CaptureError::NotCaptured { .. })));
    h.stop().await;
}

#[tokio::test]
async fn a_table_that_cannot_be_stored_waits_alone() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)";
    let mut h = Harness::new(sql, &["a", "b"]).await;
    h.start().await;
    h.caught_up().await;
    h.store.poison(Some("poison"));
    h.db.batch_execute(
        "BEGIN; INSERT INTO a VALUES (1, 'good'), (2, 'poison'); INSERT INTO b VALUES (1, 'good'); COMMIT;
         INSERT INTO b VALUES (2, 'more'); INSERT INTO a VALUES (3, 'after')",
    )
    .await
    .unwrap();
    h.caught_up().await;
    assert_eq!(h.store.table(&table("b")).len(), 2);
    assert!(h.store.table(&table("a")).is_empty());
    assert_eq!(h.status().quarantined, [("public.a".to_owned(), "poison".to_owned())]);
    // still so after a restart
    h.stop().await;
    h.resume();
    h.db.batch_execute("INSERT INTO a VALUES (4, 'later')").await.unwrap();
    h.caught_up().await;
    assert!(h.store.table(&table("a")).is_empty());
    // a copy meets the same row
    assert!(h.resync(&table("a")).await.is_err());
    wait_until(SOON, || async { h.status().quarantined.len() == 1 }).await;
    h.db.batch_execute("UPDATE a SET v = 'cured' WHERE v = 'poison'; ALTER TABLE a ADD w int").await.unwrap();
    h.resync(&table("a")).await.unwrap();
    assert!(h.status().quarantined.is_empty());
    h.db.batch_execute("INSERT INTO a VALUES (5, 'last', 1)").await.unwrap();
    h.same().await;
    h.stop().await;
}

#[tokio::test]
async fn a_table_that_left_the_publication_needs_a_copy() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)";
    let mut h = Harness::new(sql, &["a", "b"]).await;
    h.start().await;
    h.caught_up().await;
    // out and in between two looks
    h.db.batch_execute(
        "ALTER PUBLICATION millrace DROP TABLE a; INSERT INTO a VALUES (1); ALTER PUBLICATION millrace ADD TABLE a",
    )
    .await
    .unwrap();
    wait_until(SOON, || async { h.status().quarantined.len() == 1 }).await;
    h.db.batch_execute("INSERT INTO b VALUES (1); INSERT INTO a VALUES (2)").await.unwrap();
    h.resync(&table("a")).await.unwrap();
    h.same().await;
    // renamed: not the wanted one any more
    h.db.batch_execute("ALTER TABLE b RENAME TO c; INSERT INTO c VALUES (2)").await.unwrap();
    wait_until(SOON, || async { h.status().quarantined.len() == 1 }).await;
    assert!(matches!(h.resync(&table("b")).await, Err(CaptureError::TableLeft { .. })));
    h.db.batch_execute("ALTER TABLE c RENAME TO b").await.unwrap();
    h.resync(&table("b")).await.unwrap();
    h.same().await;
    // out while capture was away
    h.stop().await;
    h.db.batch_execute("ALTER PUBLICATION millrace DROP TABLE a; INSERT INTO a VALUES (3)").await.unwrap();
    h.options.added = millrace_capture::prepare(&h.db, "millrace", &h.tables).await.unwrap().added;
    h.resume();
    wait_until(SOON, || async { h.store.table(&table("a")).len() == 3 }).await;
    h.same().await;
    h.stop().await;
}

#[tokio::test]
async fn a_long_transaction_delays_a_barrier_but_not_the_stream_for_ever() {
    let mut h = Harness::new("CREATE TABLE a (id int PRIMARY KEY)", &["a"]).await;
    h.options.barrier_deadline = Duration::from_secs(2);
    h.start().await;
    h.caught_up().await;
    let other = h.server.client_to("source").await;
    other.batch_execute("BEGIN; INSERT INTO a VALUES (1)").await.unwrap();
    let refused = h.barrier("late").await;
    assert!(matches!(refused, Err(CaptureError::Source(_))), "{refused:?}");
    h.db.batch_execute("INSERT INTO a VALUES (2)").await.unwrap();
    wait_until(SOON, || async { h.store.table(&table("a")).len() == 1 }).await;
    other.batch_execute("COMMIT").await.unwrap();
    h.same().await;
    h.barrier("now").await.unwrap();
    h.stop().await;
}
