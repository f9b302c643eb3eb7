//! Many clients, few connections.

use std::time::{Duration, Instant};

use futures::future::join_all;
use millrace_proxy::Options;
use millrace_testkit::wait_until;

use millrace_proxy_tests::{LONG, Raw, Rig, code, connect, message, pool_of, query, text};

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

/// Two workers and a queue that never empties: nobody fails, and nobody is kept waiting for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_work_for_a_minute_and_none_is_favoured() {
    let rig = Rig::start(Options { workers: 2, ..pool_of(25) }).await;
    let clients: Vec<_> = join_all((0..1_000).map(|_| rig.client())).await;
    let end = Instant::now() + Duration::from_secs(60);
    let work = clients.iter().map(async |client| {
        let (mut done, mut longest) = (0u32, Duration::ZERO);
        while Instant::now() < end {
            let begun = Instant::now();
            client.simple_query("SELECT 1").await.unwrap();
            (done, longest) = (done + 1, longest.max(begun.elapsed()));
        }
        (done, longest)
    });
    let mut done: Vec<_> = join_all(work).await;
    done.sort();
    let (fewest, median, most) = (done[0].0, done[500].0, done[999].0);
    let longest = done.iter().map(|(_, longest)| *longest).max().unwrap();
    let shares = format!("{fewest} {median} {most}, the longest {longest:?}: {:?}", &done[..20]);
    // workers have the same number of clients, and may have had one connection more or less
    assert!(f64::from(fewest) > 0.6 * f64::from(median), "{shares}");
    assert!(f64::from(most) < 1.6 * f64::from(median), "{shares}");
    assert!(longest < Duration::from_secs(5), "{shares}");
    let pools = rig.handle.pools().await.unwrap();
    assert_eq!(
        pools.iter().map(|pool| pool.counts.queries).sum::<u64>(),
        done.iter().map(|(n, _)| u64::from(*n)).sum::<u64>()
    );
}

/// A connection goes through many hands in one turn of the loop: each gives it back at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_handed_on_however_many_wait_for_it() {
    const CLIENTS: usize = 2_000;
    let mut options = pool_of(1);
    options.clients.all = CLIENTS + 1;
    let rig = Rig::start(options).await;
    let holder = rig.client().await;
    holder.batch_execute("BEGIN").await.unwrap();
    let address = rig.address;
    let logins = (0..8).map(|_| {
        tokio::task::spawn_blocking(move || {
            let mut clients: Vec<Raw> = (0..CLIENTS / 8).map(|_| Raw::login(address)).collect();
            // no message of the protocol: it is refused when there is a server for it
            clients.iter_mut().for_each(|client| client.send(&message(b'z', b"")));
            clients
        })
    });
    let clients: Vec<Raw> = join_all(logins).await.into_iter().flat_map(Result::unwrap).collect();
    let waiting =
        async || rig.handle.view().await.iter().flat_map(|v| &v.pools).map(|pool| pool.waiting).sum::<usize>();
    wait_until(LONG, || async { waiting().await == CLIENTS }).await;
    holder.batch_execute("COMMIT").await.unwrap();
    for mut client in clients {
        let told = client.rest();
        assert!(told.windows(5).any(|code| code == b"08P01"), "{}", String::from_utf8_lossy(&told));
    }
    assert_eq!(text(&holder, "SELECT 1").await, "1");
}

/// Far more clients than connections, most of which do nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_clients_are_no_burden() {
    let mut options = pool_of(5);
    options.clients.all = 8_000;
    let rig = Rig::start(options).await;
    let mut clients = Vec::new();
    for _ in 0..80 {
        clients.extend(join_all((0..100).map(|_| rig.client())).await);
    }
    // both ends are in this process, and it may have some 20,000 files
    assert_eq!(rig.handle.logins(), (8_000, 0));
    let refused = connect(&rig.config()).await.unwrap_err();
    assert_eq!(code(&refused), "53300");
    for client in clients.iter().step_by(97) {
        assert_eq!(text(client, "SELECT 1").await, "1");
    }
    let servers: usize = rig.handle.view().await.iter().map(|v| v.servers.len()).sum();
    assert!(servers <= 5, "{servers}");
    drop(clients);
    wait_until(LONG, || async { rig.handle.logins().0 == 0 }).await;
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
