//! Clients and servers that misbehave or go away: the others are unharmed.

use millrace_testkit::wait_until;

use millrace_proxy_tests::{LONG, Raw, Rig, code, message, pool_of, query, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_protocol_ends_the_connection_with_an_error() {
    let rig = Rig::start(pool_of(1)).await;
    let good = rig.client().await;
    for wrong in [
        b"Q\0\0\0\x03".to_vec(),
        b"Q\xff\xff\xff\xff".to_vec(),
        message(b'!', b"x"),
        message(b'B', b"no end"),
        message(b'D', b""),
        b"P\x7f\0\0\0".to_vec(),
    ] {
        let mut raw = Raw::login(rig.address);
        raw.send(&wrong);
        let said = raw.rest();
        assert!(String::from_utf8_lossy(&said).contains("08P01"), "{wrong:?}: {said:?}");
        assert_eq!(text(&good, "SELECT 1").await, "1");
    }
    // in the middle of a pipeline, with an answer on its way
    let mut raw = Raw::login(rig.address);
    raw.send(&[query("SELECT 1"), b"Q\0\0\0\0".to_vec()].concat());
    raw.rest();
    assert_eq!(text(&good, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_before_a_login_is_refused() {
    let rig = Rig::start(pool_of(1)).await;
    for wrong in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\x08\0\x02\0\0",
        b"\0\0\0\x09\0\x03\0\0\0",
        b"\0\0\0\x04",
        b"\xff\xff\xff\xff",
    ] {
        let mut raw = Raw::connect(rig.address);
        raw.send(wrong);
        raw.rest();
    }
    assert_eq!(text(&rig.client().await, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_takes_its_statement_with_it() {
    let rig = Rig::start(pool_of(1)).await;
    let watcher = rig.server.client().await;
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND wait_event = 'PgSleep'";
    let mut raw = Raw::login(rig.address);
    raw.send(&query("SELECT pg_sleep(60)"));
    let count = async || watcher.query_one(active, &[]).await.unwrap().get::<_, i64>(0);
    wait_until(LONG, || async { count().await == 1 }).await;
    drop(raw);
    wait_until(LONG, || async { count().await == 0 }).await;
    assert_eq!(text(&rig.client().await, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_only_itself() {
    let rig = Rig::start(pool_of(2)).await;
    let mut slow = Raw::login(rig.address);
    slow.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)"));
    let client = rig.client().await;
    for _ in 0..100 {
        assert_eq!(text(&client, "SELECT 1").await, "1");
    }
    assert_eq!(slow.until_ready().len(), 100_003);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_server_is_told_to_who_used_it_and_to_nobody_else() {
    let rig = Rig::start(pool_of(2)).await;
    let (idle, busy, open) = (rig.client().await, rig.client().await, rig.client().await);
    let admin = rig.server.client().await;
    text(&idle, "SELECT 1").await;
    open.batch_execute("BEGIN; SELECT 1 AS open").await.unwrap();
    let kill = async {
        // one after the other: the first is still listed while it dies
        for query in ["SELECT pg_sleep", "BEGIN; SELECT 1 AS open"] {
            let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE starts_with(query, $1)";
            while admin.query_one(kill, &[&query]).await.unwrap().get::<_, i64>(0) == 0 {}
        }
    };
    let (slept, ()) = tokio::join!(busy.batch_execute("SELECT pg_sleep(60)"), kill);
    assert_eq!(code(&slept.unwrap_err()), "57P01");
    // alone in its statement, the client goes on; within a transaction it does not
    assert_eq!(text(&busy, "SELECT 2").await, "2");
    assert_eq!(text(&idle, "SELECT 2").await, "2");
    assert!(open.batch_execute("COMMIT").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_is_found_again() {
    let mut rig = Rig::start(pool_of(2)).await;
    let client = rig.client().await;
    assert_eq!(text(&client, "SELECT 1").await, "1");
    rig.server.restart().await;
    assert_eq!(text(&client, "SELECT 2").await, "2");
}
