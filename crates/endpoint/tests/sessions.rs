//! Many sessions, broken ones, slow ones; seen through tokio-postgres and bare sockets.

#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::cast_possible_wrap,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod common;

use std::time::Duration;

use common::Server;
use futures::{StreamExt, TryStreamExt, future::join_all, pin_mut};
use millrace_endpoint::Limits;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const WAIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_portals() {
    let server = Server::start().await;
    let (mut client, _tasks) = server.connect().await.unwrap();
    let statement = client
        .prepare("select payment_id, amount::text from fact_payments where payment_id = $1 and paid_at < $2")
        .await
        .unwrap();
    let types: Vec<&str> = statement.params().iter().map(|t| t.name()).collect();
    assert_eq!(types, ["int8", "timestamp"]);
    let statement =
        client.prepare("select payment_id, amount::text from fact_payments where payment_id = $1").await.unwrap();
    let row = client.query_one(&statement, &[&1_i64]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (1, "100.50"));
    // a portal in pieces
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("select g from generate_series(1, 10) g order by 1", &[]).await.unwrap();
    assert_eq!(transaction.query_portal(&portal, 3).await.unwrap().len(), 3);
    assert_eq!(transaction.query_portal(&portal, 3).await.unwrap()[0].get::<_, i64>(0), 4);
    assert_eq!(transaction.query_portal(&portal, 0).await.unwrap().len(), 4);
    transaction.commit().await.unwrap();
    // an error, and the session goes on
    let error = client.prepare("select nosuch from fact_payments").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42703");
    let error = client.query("select $1::int / 0", &[&1_i32]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    assert_eq!(client.query_one("select $1::text || 'b'", &[&"a"]).await.unwrap().get::<_, &str>(0), "ab");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections() {
    let server = Server::start_with(Limits { sessions: 200, ..Limits::default() }).await;
    let clients = join_all((0..200).map(|_| server.connect())).await;
    let clients: Vec<_> = clients.into_iter().map(Result::unwrap).collect();
    let refused = server.connect().await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "53300");
    let answers = join_all(clients.iter().enumerate().map(|(i, (client, _))| async move {
        let i = i64::try_from(i).unwrap();
        client.query_one("select $1::int8 + count(*) from fact_payments", &[&i]).await.unwrap().get::<_, i64>(0) - i
    }))
    .await;
    assert!(answers.iter().all(|count| *count == 3));
    drop(clients);
    // their places become free
    let deadline = tokio::time::Instant::now() + WAIT;
    while server.connect().await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_statement_along() {
    let server = Server::start().await;
    // in the middle of a result
    for _ in 0..8 {
        let (client, tasks) = server.connect().await.unwrap();
        let rows = client
            .query_raw("select g, repeat('x', 1000) from generate_series(1, 100000000) g", Vec::<i32>::new())
            .await
            .unwrap();
        pin_mut!(rows);
        assert!(rows.next().await.unwrap().is_ok());
        drop(tasks);
    }
    // before the first row
    let (client, tasks) = server.connect().await.unwrap();
    let query =
        client.simple_query("select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b");
    assert!(tokio::time::timeout(Duration::from_millis(300), query).await.is_err());
    assert!(server.reader.running() > 0);
    drop((client, tasks));
    server.wait_until_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_the_statement_and_not_the_memory() {
    let server = Server::start().await;
    let (client, _tasks) = server.connect().await.unwrap();
    let before = resident_bytes();
    let rows = client
        .query_raw("select g, repeat('x', 1000) from generate_series(1, 20000000) g", Vec::<i32>::new())
        .await
        .unwrap();
    pin_mut!(rows);
    // 20 GB are asked for and read one row at a time; the client's own channel is bounded by nothing but the socket
    for _ in 0..2_000 {
        rows.try_next().await.unwrap().unwrap();
        tokio::task::yield_now().await;
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 700 << 20, "{grown} bytes");
    server.stop().await;
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_needs_the_right_key() {
    let server = Server::start().await;
    let (client, _tasks) = server.connect().await.unwrap();
    let token = client.cancel_token();
    let query =
        client.simple_query("select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b");
    pin_mut!(query);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err());
    // someone else's key does nothing
    let mut stranger = TcpStream::connect(server.address).await.unwrap();
    let mut request = vec![0, 0, 0, 16, 4, 210, 22, 46];
    request.extend_from_slice(&1_i32.to_be_bytes());
    request.extend_from_slice(&12_345_i32.to_be_bytes());
    stranger.write_all(&request).await.unwrap();
    assert_eq!(stranger.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err());
    // the session's own does, unencrypted as libpq sends it
    token.cancel_query(tokio_postgres::NoTls).await.ok();
    let tls = millrace_base::tls::TlsFiles::in_folder(server.folder.path().join("tls")).client_config().unwrap();
    token.cancel_query(tokio_postgres_rustls::MakeRustlsConnect::new((*tls).clone())).await.unwrap();
    let error = tokio::time::timeout(WAIT, query).await.unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    assert_eq!(client.query_one("select 1::int8", &[]).await.unwrap().get::<_, i64>(0), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_statement_timeouts() {
    let limits =
        Limits { idle: Duration::from_millis(300), statement: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start_with(limits).await;
    let (client, mut tasks) = server.connect().await.unwrap();
    let error = client
        .simple_query("select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    // nothing is said for long: the server ends the session
    tokio::time::timeout(WAIT, tasks.join_next()).await.unwrap();
    assert!(client.is_closed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_is_told() {
    let server = Server::start().await;
    let (client, mut tasks) = server.connect().await.unwrap();
    assert!(client.simple_query("select 1").await.is_ok());
    server.stop().await;
    tokio::time::timeout(WAIT, tasks.join_next()).await.unwrap();
    assert!(client.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_on_the_listener() {
    let limits = Limits { startup: Duration::from_millis(500), ..Limits::default() };
    let server = Server::start_with(limits).await;
    let address = server.address;
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let start = prop::sample::select(vec![
            vec![],
            vec![0, 0, 0, 8, 4, 210, 22, 47],
            vec![0, 0, 0, 8, 4, 210, 22, 48],
            vec![0, 0, 0, 16, 4, 210, 22, 46],
            vec![0, 0, 0, 20, 0, 3, 0, 0],
            vec![0x16, 3, 1],
            vec![0x7F, 0xFF, 0xFF, 0xFF, 0, 3, 0, 0],
            vec![0, 0, 0, 0],
        ]);
        let bytes = (start, prop::collection::vec(any::<u8>(), 0..200));
        runner
            .run(&bytes, |(start, rest)| {
                runtime.block_on(async {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    // the server may close while we write: that is an answer
                    _ = stream.write_all(&start).await;
                    _ = stream.write_all(&rest).await;
                    _ = stream.shutdown().await;
                    let mut answer = Vec::new();
                    _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut answer)).await.unwrap();
                });
                Ok(())
            })
            .unwrap();
    })
    .await
    .unwrap();
    let (client, _tasks) = server.connect().await.unwrap();
    assert!(client.simple_query("select 1").await.is_ok());
    server.stop().await;
}
