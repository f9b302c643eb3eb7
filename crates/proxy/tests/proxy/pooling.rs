//! Many clients, few connections.

use std::time::Duration;

use futures::future::join_all;
use millrace_testkit::wait_until;

use crate::harness::{LONG, Raw, Rig, code, pool_of, query, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_share_a_few_connections() {
    let mut options = pool_of(25);
    options.workers = 2;
    let rig = Rig::start(options).await;
    let clients: Vec<_> = join_all((0..1_000).map(|_| rig.client())).await;
    let work = clients.iter().map(async |client| {
        for i in 0..10 {
            let row = client.query_one("SELECT $1::int, pg_backend_pid()", &[&i]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), i);
        }
    });
    tokio::time::timeout(LONG * 2, join_all(work)).await.unwrap();
    let servers: usize = rig.handle.view().await.iter().map(|v| v.servers.len()).sum();
    assert!((1..=25).contains(&servers), "{servers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_and_goes_on() {
    let mut options = pool_of(1);
    options.pool.wait = Duration::from_millis(300);
    let rig = Rig::start(options).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("BEGIN").await.unwrap();
    let refused = other.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(code(&refused), "53300");
    one.batch_execute("COMMIT").await.unwrap();
    assert_eq!(text(&other, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_statement_can_be_cancelled() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("BEGIN").await.unwrap();
    let waiting = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == 1);
    let cancel = async {
        wait_until(LONG, || async { waiting().await }).await;
        other.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (refused, ()) = tokio::join!(other.simple_query("SELECT 1"), cancel);
    assert_eq!(code(&refused.unwrap_err()), "57014");
    one.batch_execute("COMMIT").await.unwrap();
    assert_eq!(text(&other, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_queue_holds_nobody_up() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("BEGIN").await.unwrap();
    let mut gone = Raw::login(rig.address);
    gone.send(&query("SELECT 1"));
    let waiting = async |n| rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == n);
    wait_until(LONG, || async { waiting(1).await }).await;
    drop(gone);
    wait_until(LONG, || async { waiting(0).await }).await;
    one.batch_execute("COMMIT").await.unwrap();
    assert_eq!(text(&other, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pausing_waits_for_transactions_and_holds_back_new_ones() {
    let rig = Rig::start(pool_of(2)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("BEGIN").await.unwrap();
    let pid = Rig::pid(&one).await;
    let paused = rig.handle.pause(Some("postgres"));
    let commit = async { one.batch_execute("COMMIT").await };
    let (paused, committed) = tokio::join!(paused, commit);
    paused.unwrap();
    committed.unwrap();
    let held_back = async { Rig::pid(&other).await };
    let resume = async {
        let waiting =
            async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == 1 && p.paused);
        wait_until(LONG, || async { waiting().await }).await;
        rig.handle.reconnect(None);
        rig.handle.resume(Some("postgres"));
    };
    let (now, ()) = tokio::join!(held_back, resume);
    assert_ne!(now, pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_connections_are_replaced() {
    let mut options = pool_of(1);
    options.pool.lifetime = Duration::from_millis(1);
    let rig = Rig::start(options).await;
    let client = rig.client().await;
    let first = Rig::pid(&client).await;
    wait_until(LONG, || async { Rig::pid(&client).await != first }).await;
}
