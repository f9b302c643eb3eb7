//! What is counted, and how long it takes.

use std::time::Duration;

use millrace_proxy::{PoolMode, PoolView};
use millrace_testkit::wait_until;

use millrace_proxy_tests::{LONG, Raw, Rig, code, pool_of, query, text};

async fn pool(rig: &Rig) -> PoolView {
    rig.handle.pools().await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_transaction_is_counted_when_it_ends() {
    let mut options = pool_of(2);
    options.pool.mode = PoolMode::Session;
    for options in [options, pool_of(2)] {
        let rig = Rig::start(options).await;
        let client = rig.client().await;
        // in transaction mode this pins: the client keeps its connection, as it does in session mode
        client.batch_execute("LISTEN news").await.unwrap();
        assert_eq!(pool(&rig).await.counts.transactions, 1);
        client.batch_execute("BEGIN").await.unwrap();
        text(&client, "SELECT 1").await;
        assert_eq!(pool(&rig).await.counts.transactions, 1);
        client.batch_execute("COMMIT").await.unwrap();
        text(&client, "SELECT 1").await;
        let counts = pool(&rig).await.counts;
        assert_eq!((counts.transactions, counts.queries), (3, 5));
        drop(client);
        let gone = async || pool(&rig).await.clients == 0;
        wait_until(LONG, || async { gone().await }).await;
        assert_eq!(pool(&rig).await.counts.transactions, 3);
    }
    // several at once are several
    let rig = Rig::start(pool_of(1)).await;
    let mut raw = Raw::login(rig.address);
    raw.send(&[query("SELECT 1"), query("BEGIN"), query("COMMIT"), query("SELECT 1")].concat());
    for _ in 0..4 {
        raw.until_ready();
    }
    assert_eq!((pool(&rig).await.counts.transactions, pool(&rig).await.query_times.total()), (3, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_counted_by_length() {
    let mut options = pool_of(1);
    options.pool.wait = Duration::from_millis(300);
    let rig = Rig::start(options).await;
    let (one, other) = (rig.client().await, rig.client().await);
    // the first has to wait until the connection is there
    for _ in 0..9 {
        text(&one, "SELECT 1").await;
    }
    text(&one, "SELECT pg_sleep(0.25)").await;
    let now = pool(&rig).await;
    assert_eq!((now.query_times.total(), now.counts.queries), (10, 10));
    assert!(now.query_times.percentile(50).unwrap() < Duration::from_millis(200));
    assert!(now.query_times.percentile(99).unwrap() > Duration::from_millis(200));
    // whoever got a connection at once has waited for no time
    assert_eq!((now.wait_times.counts[0], now.wait_times.total(), now.counts.waits), (9, 10, 1));
    one.batch_execute("BEGIN").await.unwrap();
    assert_eq!(code(&other.simple_query("SELECT 1").await.unwrap_err()), "53300");
    let now = pool(&rig).await;
    assert_eq!((now.wait_times.total(), now.counts.waits), (12, 2));
    assert!(now.wait_times.percentile(99).unwrap() > Duration::from_millis(200));
    assert!(now.counts.wait_us >= 300_000);
}
