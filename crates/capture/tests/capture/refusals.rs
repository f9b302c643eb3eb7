//! What must stop capture with a word that helps, and never with lost rows.

use millrace_base::{Lsn, Secret};
use millrace_capture::{CaptureError, prepare};
use millrace_testkit::wait_until;

use crate::harness::{Harness, SOON, table};

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')";

#[tokio::test]
async fn tables_without_a_key_are_named() {
    let sql = "CREATE TABLE none (id int); CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
               CREATE TABLE whole (id int); ALTER TABLE whole REPLICA IDENTITY FULL;
               CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
               CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); CREATE VIEW view AS SELECT 1 AS id";
    let h = Harness::new(sql, &[]).await;
    for name in ["none", "deferred", "whole", "nothing"] {
        let error = prepare(&h.db, "millrace", &[table(name)]).await.unwrap_err();
        assert!(matches!(&error, CaptureError::NoKey { table, .. } if table.name == name), "{error}");
        assert!(error.hint().contains(name), "{}", error.hint());
    }
    for (name, what) in [
        ("unlogged", "table public.unlogged is not logged, so it cannot be captured"),
        ("view", "table public.view is not an ordinary or partitioned table"),
        ("absent", "table public.absent does not exist"),
    ] {
        let error = prepare(&h.db, "millrace", &[table(name)]).await.unwrap_err();
        assert_eq!(error.to_string(), what);
    }
    assert!(h.db.query("SELECT FROM pg_publication", &[]).await.unwrap().is_empty(), "nothing is changed");
}

#[tokio::test]
async fn a_slot_that_was_dropped_is_not_made_anew() {
    let mut h = Harness::new(SQL, &["t"]).await;
    h.start().await;
    h.same().await;
    h.stop().await;
    let dropped = || async { h.db.execute("SELECT pg_drop_replication_slot('millrace')", &[]).await.is_ok() };
    wait_until(SOON, dropped).await;
    h.resume();
    let (error, hint) = h.ended().await;
    assert!(error.contains("replication slot millrace does not exist, but the warehouse goes on from"), "{error}");
    assert!(hint.contains("anew"), "{hint}");
    assert!(h.db.query("SELECT FROM pg_replication_slots", &[]).await.unwrap().is_empty());
    // made by hand at a later place
    h.db.execute("SELECT pg_create_logical_replication_slot('millrace', 'pgoutput')", &[]).await.unwrap();
    h.resume();
    let (error, _) = h.ended().await;
    assert!(error.contains("past the warehouse's"), "{error}");
}

#[tokio::test]
async fn a_slot_that_was_given_up_is_named() {
    let settings = [("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB"), ("max_wal_size", "48MB")];
    let mut h = Harness::with(&settings, SQL, &["t"]).await;
    h.start().await;
    h.same().await;
    h.stop().await;
    wait_until(SOON, || async {
        for _ in 0..4 {
            h.db.batch_execute("INSERT INTO t SELECT 2, 'y' WHERE false; SELECT pg_switch_wal(); CHECKPOINT")
                .await
                .unwrap();
            h.db.batch_execute("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 8000000))").await.unwrap();
        }
        let row = h.db.query_one("SELECT wal_status FROM pg_replication_slots", &[]).await.unwrap();
        row.get::<_, Option<&str>>(0) == Some("lost")
    })
    .await;
    h.resume();
    let (error, hint) = h.ended().await;
    assert_eq!(error, "the server has given up replication slot millrace: the log it needs is gone");
    assert!(hint.contains("anew"), "{hint}");
}

#[tokio::test]
async fn another_source_is_refused() {
    let mut h = Harness::new(SQL, &["t"]).await;
    h.start().await;
    h.same().await;
    h.stop().await;
    h.store.set_system_id(42);
    h.resume();
    let (error, _) = h.ended().await;
    assert!(error.contains("but the warehouse was loaded from 42"), "{error}");
}

#[tokio::test]
async fn a_warehouse_older_than_the_slot_is_refused() {
    let mut h = Harness::new(SQL, &["t"]).await;
    h.start().await;
    h.same().await;
    h.stop().await;
    h.store.set_watermark(Lsn(1));
    h.resume();
    let (error, _) = h.ended().await;
    assert!(error.contains("past the warehouse's 0/1: changes between them are gone"), "{error}");
}

#[tokio::test]
async fn the_server_and_the_publication_must_fit() {
    let mut h = Harness::new(SQL, &["t"]).await;
    h.resume();
    let (error, hint) = h.ended().await;
    assert_eq!(error, "publication millrace does not exist");
    assert!(hint.contains("set the publication up again"), "{hint}");

    h.db.batch_execute("CREATE PUBLICATION millrace FOR ALL TABLES").await.unwrap();
    h.resume();
    assert!(h.ended().await.0.contains("is for all tables"));
    assert!(matches!(prepare(&h.db, "millrace", &h.tables).await, Err(CaptureError::Publication { .. })));
    h.db.batch_execute("DROP PUBLICATION millrace; CREATE PUBLICATION millrace").await.unwrap();
    h.resume();
    assert!(h.ended().await.0.contains("does not publish partitions through their root"));
    h.db.batch_execute("ALTER PUBLICATION millrace SET (publish_via_partition_root = true)").await.unwrap();
    h.resume();
    assert_eq!(h.ended().await.0, "publication millrace does not have table public.t");

    prepare(&h.db, "millrace", &h.tables).await.unwrap();
    h.db.execute("SELECT pg_create_physical_replication_slot('millrace')", &[]).await.unwrap();
    h.resume();
    assert_eq!(h.ended().await.0, "replication slot millrace is a physical one");
    h.db.execute("SELECT pg_drop_replication_slot('millrace')", &[]).await.unwrap();

    let right = h.options.source.password.clone();
    h.options.source.password = Secret::new("wrong");
    h.resume();
    let (error, _) = h.ended().await;
    assert!(error.contains("password authentication failed"), "{error}");
    h.options.source.password = right;

    h.server.set(&[("wal_level", "replica")]);
    h.server.restart().await;
    h.resume();
    assert_eq!(h.ended().await.0, "the source's wal_level is replica, not logical");
}

#[tokio::test]
async fn a_publication_that_vanishes_stops_capture() {
    let mut h = Harness::new(SQL, &["t"]).await;
    h.start().await;
    h.same().await;
    h.db.batch_execute("DROP PUBLICATION millrace").await.unwrap();
    let (error, hint) = h.ended().await;
    assert!(
        error.contains("publication millrace does not exist")
            || error.contains("publication \"millrace\" does not exist"),
        "{error}"
    );
    assert!(!hint.is_empty());
}
