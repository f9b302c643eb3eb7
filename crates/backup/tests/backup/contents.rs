//! What tables held is recorded with a backup, and a proof compares it with what is restored.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_backup::{
    Kind, Manifest, Step,
    contents::{Contents, load, record},
};
use millrace_pg::Connection;
use millrace_testkit::{TestServer, wait_until};

use crate::common::*;

async fn recorded(kept: &Kept, backup: &Manifest, server: &TestServer, within: Duration) -> Contents {
    let contents = record(&kept.repo, backup, &record_options(server, within), &*quiet()).await.unwrap();
    assert_eq!(load(&kept.repo, backup).await.unwrap().as_ref(), Some(&contents));
    contents
}

/// Everything that changes rows and tables, again and again.
async fn change(client: &Connection, stop: &AtomicBool) {
    for round in 0i64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let sql = format!(
            "BEGIN; INSERT INTO t SELECT n, 'round {round}' FROM generate_series({round} * 100 + 1000000, {round} * 100 + 1000099) AS n;
             UPDATE t SET text = 'again' WHERE n % 1000 = {round} % 1000; COMMIT;
             BEGIN; DELETE FROM t WHERE n < 50; ROLLBACK;
             BEGIN; SAVEPOINT a; INSERT INTO part VALUES ({round}); ROLLBACK TO a; INSERT INTO part VALUES (-{round}); COMMIT"
        );
        client.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tables_held_under_load_is_what_is_restored() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client
        .batch_execute(
            "CREATE TABLE t (n bigint, text text);
             INSERT INTO t SELECT n, 'x' || n FROM generate_series(1, 50000) AS n;
             CREATE TABLE part (n bigint) PARTITION BY RANGE (n);
             CREATE TABLE part_old PARTITION OF part FOR VALUES FROM (MINVALUE) TO (0);
             CREATE TABLE part_new PARTITION OF part FOR VALUES FROM (0) TO (MAXVALUE);
             CREATE TABLE \"of a.column\" (t int, \"Other\" numeric, at timestamptz, j jsonb);
             INSERT INTO \"of a.column\" VALUES (1, 1.50, '2026-03-29 02:30+01', '{\"a\": [1, null]}'), (NULL, 'NaN', 'infinity', NULL);
             CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM t;
             CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n;
             CREATE TABLE nothing ();
             SELECT lo_from_bytea(0, 'large')",
        )
        .await
        .unwrap();
    let other = server.create_database("other").await;
    other.batch_execute("CREATE TABLE u AS SELECT n FROM generate_series(1, 10) AS n").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = async {
        let client = server.client_to("app").await;
        change(&client, &stop).await;
    };
    // a transaction that holds this lock has not ended at nearly any position: a standby keeps it for ever
    let locker = async {
        let client = server.client_to("app").await;
        while !stop.load(Ordering::SeqCst) {
            client.batch_execute("BEGIN; LOCK TABLE nothing; SELECT pg_sleep(0.01); COMMIT").await.unwrap();
        }
    };
    let work = async {
        back_up(&kept.repo, &server, Kind::Full).await;
        let made = back_up(&kept.repo, &server, Kind::Incremental).await;
        let contents = recorded(&kept, &made.manifest, &server, SOON).await;
        // so that the restore goes on past what is compared
        let rows = numbers(&client, "SELECT count(*) FROM t").await[0] + 500;
        wait_until(SOON, || async { numbers(&client, "SELECT count(*) FROM t").await[0] >= rows }).await;
        stop.store(true, Ordering::SeqCst);
        contents
    };
    let ((), (), contents) = tokio::join!(writer, locker, work);
    assert_eq!(contents.all_left_out(), [""; 0]);
    let databases: Vec<&str> = contents.databases.iter().map(|database| database.name.as_str()).collect();
    assert!(databases.len() == 2 && databases.contains(&"other"), "{databases:?}");
    let app = contents.databases.iter().find(|database| database.name == "app").unwrap();
    let tables: Vec<&str> = app.tables.keys().map(String::as_str).collect();
    assert_eq!(
        tables,
        [
            "pg_catalog.pg_largeobject",
            "public.\"of a.column\"",
            "public.nothing",
            "public.part_new",
            "public.part_old",
            "public.seen",
            "public.t"
        ]
    );
    receiver.durable(position(&client).await).await;
    let proof = proven(&kept, id, &server).await.unwrap();
    let locked: Vec<&String> = proof.tables_left_out.iter().collect();
    assert!(locked.iter().all(|what| what.starts_with("app: public.nothing: locked by")), "{locked:?}");
    assert_eq!((proof.tables + locked.len(), proof.rows), (8, contents.rows()));
    receiver.stop().await;
}

/// Changes a byte of a row on the disk, as if a write to it had been lost: no checksum tells, and no position.
async fn change_unseen(server: &mut TestServer, file: &str, from: &[u8], to: &[u8]) {
    server.stop().await;
    let checksums = |verb: &str| {
        let mut command = std::process::Command::new(server.spec().binaries.program("pg_checksums"));
        server.spec().run_as.apply(&mut command);
        let done = command.args([verb, "--pgdata"]).arg(server.data_dir()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    checksums("--disable");
    let path = server.data_dir().join(file);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(&path, bytes).unwrap();
    checksums("--enable");
    server.start_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_a_backup_does_not_have_is_found() {
    let mut server = TestServer::start().await;
    let client = server.create_database("app").await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT n, 'text ' || n AS text FROM generate_series(1, 1000) AS n; CHECKPOINT",
        )
        .await
        .unwrap();
    let id = system_id(&client).await;
    let file: String = client.query_one("SELECT pg_relation_filepath('t')", &[]).await.unwrap().get(0);
    drop(client);
    let kept = repository(&server.folder().join("repo"));
    let receiver = Receiver::start(&kept.repo, server.params());
    back_up(&kept.repo, &server, Kind::Full).await;
    change_unseen(&mut server, &file, b"text 777", b"text 778").await;
    let made = back_up(&kept.repo, &server, Kind::Incremental).await;
    let contents = recorded(&kept, &made.manifest, &server, SOON).await;
    assert_eq!((contents.tables(), contents.rows()), (1, 1000));
    let error = proven(&kept, id, &server).await.unwrap_err().to_string();
    assert!(error.contains("public.t has as many rows as it had, 1000, and not the same"), "{error}");

    // what was not recorded is not compared, and a proof says so by its numbers
    back_up(&kept.repo, &server, Kind::Full).await;
    assert_eq!(proven(&kept, id, &server).await.unwrap().tables, 0);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_as_it_was_is_left_out() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client
        .batch_execute(
            "CREATE TABLE small AS SELECT 1 AS n;
             CREATE TABLE truncated AS SELECT n FROM generate_series(1, 1000) AS n;
             CREATE TABLE widened AS SELECT n FROM generate_series(1, 2000) AS n;
             CREATE TABLE dropped AS SELECT n FROM generate_series(1, 3000) AS n;
             CREATE TABLE locked AS SELECT n FROM generate_series(1, 50000) AS n",
        )
        .await
        .unwrap();
    client.batch_execute("ANALYZE").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let receiver = Receiver::start(&kept.repo, server.params());
    let made = back_up(&kept.repo, &server, Kind::Full).await.manifest;
    let holder = server.client_to("app").await;
    // between the snapshot and the first table
    let meanwhile = |step| {
        if matches!(step, Step::Tables { done: 0, .. }) {
            let changes = async {
                let sql = "TRUNCATE truncated; ALTER TABLE widened ADD COLUMN more int DEFAULT 5; DROP TABLE dropped";
                client.batch_execute(sql).await.unwrap();
                holder.batch_execute("BEGIN; LOCK TABLE locked").await.unwrap();
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(changes));
        }
    };
    let contents = record(&kept.repo, &made, &record_options(&server, SOON), &meanwhile).await.unwrap();
    let app = &contents.databases[0];
    assert_eq!(app.tables.keys().collect::<Vec<_>>(), ["public.small"], "{contents:?}");
    let why: Vec<(&str, &str)> = app.left_out.iter().map(|(table, why)| (table.as_str(), why.as_str())).collect();
    assert!(why[0].0 == "public.dropped" && why[0].1.contains("does not exist"), "{why:?}");
    assert_eq!(why[1], ("public.locked", "it was locked"));
    let changed = "it was changed by more than its rows meanwhile";
    assert_eq!(why[2..], [("public.truncated", changed), ("public.widened", changed)]);
    holder.batch_execute("COMMIT").await.unwrap();
    let proof = proven(&kept, id, &server).await.unwrap();
    assert_eq!((proof.tables, proof.rows, proof.tables_left_out.len()), (1, 1, 4));

    // a transaction that does not end keeps the slot from being made: the backup is a whole one all the same
    client.batch_execute("BEGIN; INSERT INTO small VALUES (2)").await.unwrap();
    let made = back_up(&kept.repo, &server, Kind::Incremental).await.manifest;
    let contents = recorded(&kept, &made, &server, Duration::from_millis(10)).await;
    assert_eq!((contents.tables(), contents.left_out.len()), (0, 1), "{contents:?}");
    client.batch_execute("COMMIT").await.unwrap();
    let proof = proven(&kept, id, &server).await.unwrap();
    assert!(proof.tables == 0 && proof.tables_left_out[0].starts_with("app: "), "{proof:?}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    wait_until(SOON, || async { numbers(&client, slots).await == [0] }).await;
    receiver.stop().await;
}
