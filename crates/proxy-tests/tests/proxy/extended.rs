//! The extended protocol: prepared statements that move between servers, pipelines, COPY.

use futures::{SinkExt, TryStreamExt, future::try_join_all};

use millrace_proxy_tests::{Raw, Rig, bind, code, execute, message, parse, pool_of, query, sync, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_statements_work_on_every_connection() {
    let rig = Rig::start(pool_of(2)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    let statement = one.prepare("SELECT $1::int + 1, pg_backend_pid()").await.unwrap();
    let first: i32 = one.query_one(&statement, &[&1]).await.unwrap().get(1);
    // the other client keeps the first one's connection to itself
    other.batch_execute("BEGIN").await.unwrap();
    assert_eq!(Rig::pid(&other).await, first);
    let row = one.query_one(&statement, &[&41]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 42);
    assert_ne!(row.get::<_, i32>(1), first);
    // one text is parsed once on each connection, whoever asks
    let again = other.prepare("SELECT $1::int + 1, pg_backend_pid()").await.unwrap();
    assert_eq!(other.query_one(&again, &[&1]).await.unwrap().get::<_, i32>(0), 2);
    let held = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%+ 1, pg_backend_pid()'";
    assert_eq!(text(&other, held).await, "1");
    other.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_statement_is_gone_for_its_client_alone() {
    let rig = Rig::start(pool_of(1)).await;
    let (mut one, mut other) = (Raw::login(rig.address), Raw::login(rig.address));
    for client in [&mut one, &mut other] {
        client.send(&[parse("s", "SELECT 1"), sync()].concat());
        assert_eq!(client.until_ready(), "1Z");
    }
    one.send(&query("DEALLOCATE s"));
    assert_eq!(one.until_ready(), "CZ");
    one.send(&[bind("s"), execute(), sync()].concat());
    assert_eq!(one.until_ready(), "EZ");
    other.send(&[bind("s"), execute(), sync()].concat());
    assert_eq!(other.until_ready(), "2DCZ");
    other.send(&[message(b'C', b"Ss\0"), bind("s"), sync()].concat());
    assert_eq!(other.until_ready(), "3EZ");
    other.send(&[parse("s", "SELECT 2"), parse("s", "SELECT 3"), sync()].concat());
    assert_eq!(other.message().0, b'1');
    let (tag, body) = other.message();
    assert!(tag == b'E' && String::from_utf8_lossy(&body).contains("42P05"));
    assert_eq!(other.until_ready(), "Z");
    // a name of the proxy's own opens nothing
    other.send(&[bind("millrace_1"), execute(), sync()].concat());
    assert_eq!(other.until_ready(), "EZ");
    other.send(&query("DISCARD ALL"));
    assert_eq!(other.until_ready(), "CZ");
    other.send(&[bind("s"), sync()].concat());
    assert_eq!(other.until_ready(), "EZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_in_order_in_pipelines() {
    let rig = Rig::start(pool_of(1)).await;
    let mut raw = Raw::login(rig.address);
    let describe = message(b'D', b"S\0");
    let round = [parse("", "SELECT 1"), describe, bind(""), execute()].concat();
    for _ in 0..3 {
        raw.send(&[round.clone(), round.clone(), sync(), query("SELECT 2"), round.clone(), sync()].concat());
        assert_eq!(raw.until_ready(), "1tT2DC1tT2DCZ");
        assert_eq!(raw.until_ready(), "TDCZ");
        assert_eq!(raw.until_ready(), "1tT2DCZ");
    }
    // an error skips to the Sync, also what the proxy would have said itself
    let wrong = parse("x", "SELECT nonsense");
    raw.send(&[round.clone(), wrong, round.clone(), parse("y", "SELECT 1"), sync(), round, sync()].concat());
    assert_eq!(raw.until_ready(), "1tT2DCEZ");
    assert_eq!(raw.until_ready(), "1tT2DCZ");
    for name in ["x", "y"] {
        raw.send(&[bind(name), sync()].concat());
        assert_eq!(raw.until_ready(), "EZ", "{name}");
    }
    // Flush instead of Sync
    raw.send(&[parse("z", "SELECT 1"), message(b'H', b"")].concat());
    assert_eq!(raw.message().0, b'1');
    raw.send(&[bind("z"), execute(), sync()].concat());
    assert_eq!(raw.until_ready(), "2DCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_may_come_in_any_pieces() {
    let rig = Rig::start(pool_of(1)).await;
    let mut raw = Raw::login(rig.address);
    let all = [parse("s", "SELECT 1"), bind("s"), execute(), sync(), query("SELECT 2; SELECT 3")].concat();
    for size in [1, 2, 3, 7, 11] {
        for piece in all.chunks(size) {
            raw.send(piece);
        }
        assert!(raw.until_ready().ends_with("2DCZ"));
        assert_eq!(raw.until_ready(), "TDCTDCZ");
        raw.send(&[message(b'C', b"Ss\0"), sync()].concat());
        assert_eq!(raw.until_ready(), "3Z");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_statements_than_a_connection_keeps() {
    let mut options = pool_of(1);
    options.pool.statements = 3;
    let rig = Rig::start(options).await;
    let client = rig.client().await;
    let mut statements = Vec::new();
    for i in 0..10 {
        statements.push(client.prepare(&format!("SELECT {i}")).await.unwrap());
    }
    for _ in 0..3 {
        for (i, statement) in statements.iter().enumerate() {
            assert_eq!(client.query_one(statement, &[]).await.unwrap().get::<_, i32>(0), i32::try_from(i).unwrap());
        }
    }
    let held: usize = text(&client, "SELECT count(*) FROM pg_prepared_statements").await.parse().unwrap();
    assert!(held <= 3, "{held}");
    // many at once, in a pipeline
    try_join_all(statements.iter().map(|statement| client.query_one(statement, &[]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_tables_are_read_as_they_are() {
    let rig = Rig::start(pool_of(2)).await;
    let client = rig.client().await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    for columns in 1..5 {
        let row = client.query_typed("SELECT * FROM t", &[]).await.unwrap().remove(0);
        assert_eq!(row.len(), columns);
        client.batch_execute(&format!("ALTER TABLE t ADD COLUMN c{columns} int")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_table_has_changed() {
    let rig = Rig::start(pool_of(2)).await;
    let (mut client, other) = (rig.client().await, rig.client().await);
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    // both connections hold the statement
    let held = client.prepare("SELECT * FROM t").await.unwrap();
    other.batch_execute("BEGIN").await.unwrap();
    other.query_one(&other.prepare("SELECT * FROM t").await.unwrap(), &[]).await.unwrap();
    client.query_one(&held, &[]).await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    // what is parsed anew in the transaction that changes it, and afterwards by anyone, is as it is now
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("ALTER TABLE t ADD COLUMN b text DEFAULT 'b'").await.unwrap();
    let now = transaction.prepare("SELECT * FROM t").await.unwrap();
    assert_eq!(transaction.query_one(&now, &[]).await.unwrap().len(), 2);
    transaction.commit().await.unwrap();
    for _ in 0..2 {
        let third = rig.client().await;
        third.batch_execute("BEGIN").await.unwrap();
        let now = third.prepare("SELECT * FROM t").await.unwrap();
        assert_eq!(third.query_one(&now, &[]).await.unwrap().len(), 2);
        third.batch_execute("COMMIT").await.unwrap();
    }
    // what a client holds from before is judged by the server, as without the proxy
    assert_eq!(code(&client.query_one(&held, &[]).await.unwrap_err()), "0A000");
    assert_eq!(client.query_one(&now, &[]).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_copied_both_ways() {
    const ROWS: usize = 200_000;
    let rig = Rig::start(pool_of(1)).await;
    let client = rig.client().await;
    client.batch_execute("CREATE TABLE t (i int, x text)").await.unwrap();
    let sink = client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap();
    futures::pin_mut!(sink);
    for i in 0..ROWS {
        sink.feed(bytes::Bytes::from(format!("{i}\tsome text to make it longer\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), ROWS as u64);
    let copied = client.copy_out("COPY t TO STDOUT").await.unwrap();
    let bytes: usize = copied.try_fold(0, |n, piece| async move { Ok(n + piece.len()) }).await.unwrap();
    assert!(bytes > ROWS * 28);
    // an error in the middle leaves the session usable
    let sink = client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap();
    futures::pin_mut!(sink);
    sink.feed(bytes::Bytes::from("not a number\tx\n")).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), "22P02");
    assert_eq!(text(&client, "SELECT count(*) FROM t").await, ROWS.to_string());
    // simple protocol, all sent before any answer
    let mut raw = Raw::login(rig.address);
    raw.send(&[query("COPY t FROM STDIN"), message(b'd', b"1\tx\n"), message(b'c', b""), query("SELECT 1")].concat());
    assert_eq!(raw.until_ready(), "GCZ");
    assert_eq!(raw.until_ready(), "TDCZ");
    let view = rig.handle.view().await;
    assert!(view.iter().flat_map(|v| &v.servers).all(|s| s.client.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_rows_and_statements_pass() {
    let rig = Rig::start(pool_of(1)).await;
    let client = rig.client().await;
    let row = client.query_one("SELECT repeat('x', 30000000)", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0).len(), 30_000_000);
    let long = "y".repeat(5_000_000);
    assert_eq!(text(&client, &format!("SELECT length('{long}')")).await, "5000000");
    let row = client.query_one("SELECT length($1::text)", &[&long]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 5_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_sync_has_ended_keeps_its_server() {
    let rig = Rig::start(pool_of(1)).await;
    let flush = message(b'H', b"");
    let other = rig.client().await;
    other.batch_execute("CREATE TABLE kept (i int)").await.unwrap();
    // a client that leaves before its Sync has done nothing
    let mut gone = Raw::login(rig.address);
    gone.send(&[parse("", "INSERT INTO kept VALUES (1)"), bind(""), execute(), flush.clone()].concat());
    for tag in *b"12C" {
        assert_eq!(gone.message().0, tag);
    }
    gone.send(&message(b'X', b""));
    drop(gone);
    assert_eq!(text(&other, "SELECT count(*) FROM kept").await, "0");
    // one that goes on asking gets its answers, and the next client its turn
    let mut raw = Raw::login(rig.address);
    raw.send(&[parse("", "INSERT INTO kept VALUES (2)"), bind(""), execute(), flush.clone()].concat());
    for tag in *b"12C" {
        assert_eq!(raw.message().0, tag);
    }
    raw.send(&flush);
    let counted = text(&other, "SELECT count(*) FROM kept");
    let synced = async { raw.send(&[flush.clone(), sync()].concat()) };
    let (counted, ()) = tokio::join!(counted, synced);
    assert_eq!(counted, "1");
    assert_eq!(raw.until_ready(), "Z");
    // after an error, all up to the Sync is ignored
    raw.send(&[parse("", "SELECT nonsense"), flush.clone()].concat());
    assert_eq!(raw.message().0, b'E');
    raw.send(&[parse("", "SELECT 1"), bind(""), flush].concat());
    let counted = text(&other, "SELECT count(*) FROM kept");
    let synced = async { raw.send(&[execute(), sync(), query("SELECT 3")].concat()) };
    let (counted, ()) = tokio::join!(counted, synced);
    assert_eq!(counted, "1");
    assert_eq!(raw.until_ready(), "Z");
    assert_eq!(raw.until_ready(), "TDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_one_database_is_none_in_another() {
    let rig = Rig::start(pool_of(1)).await;
    rig.server.client().await.batch_execute("CREATE DATABASE other").await.unwrap();
    let (here, mut there) = (rig.client().await, Raw::login_to(rig.address, "other"));
    let held = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 42'";
    // what a text is called on its server: another name is another statement there
    let names = |there: &mut Raw| {
        there.send(&[parse("", "SELECT 42"), sync()].concat());
        assert_eq!(there.until_ready(), "1Z");
        there.send(&query(held));
        there.value()
    };
    assert_eq!(names(&mut there), "1");
    here.batch_execute("CREATE TABLE t (i int); ALTER TABLE t ADD j int; DROP TABLE t").await.unwrap();
    assert_eq!(names(&mut there), "1");
    let change =
        "CREATE ROLE passing; DROP ROLE passing; CREATE TABLE t (i int); CREATE INDEX i ON t (i); DROP INDEX i";
    there.send(&query(change));
    there.until_ready();
    assert_eq!(names(&mut there), "1", "nothing has changed that a statement is made of");
    there.send(&query("DROP TABLE t"));
    there.until_ready();
    assert_eq!(names(&mut there), "2");
}
