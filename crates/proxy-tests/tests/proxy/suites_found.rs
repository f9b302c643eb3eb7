//! What other people's test suites have found (`docs/proxy-suites.md`).

use millrace_proxy::{Options, PoolLimits, PoolMode};
use millrace_testkit::wait_until;
use tokio_postgres::types::Type;

use millrace_proxy_tests::{LONG, Raw, Rig, cancel_request, code, connect, pool_of, query, text};

fn session_pool(size: usize) -> Options {
    let usual = pool_of(size);
    Options { pool: PoolLimits { mode: PoolMode::Session, ..usual.pool }, ..usual }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_proxy_has_asked_leaves_nothing() {
    let rig = Rig::start(pool_of(1)).await;
    let mut one = Raw::login(rig.address);
    one.send(&query("SELECT 1"));
    one.until_ready();
    // the question what the session keeps is answered when this is over
    let lock = rig.server.client().await;
    lock.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_prepared_statements").await.unwrap();
    one.send(&query("CREATE TEMP TABLE left_over ()"));
    one.until_ready();
    drop(one);
    wait_until(LONG, || async { rig.handle.view().await.iter().all(|worker| worker.clients.is_empty()) }).await;
    lock.batch_execute("COMMIT").await.unwrap();
    let other = rig.client().await;
    assert_eq!(text(&other, "SELECT count(*) FROM pg_class WHERE relname = 'left_over'").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_is_answered_when_it_has_been_carried_out() {
    let rig = Rig::start(session_pool(2)).await;
    let mut raw = Raw::login(rig.address);
    assert_ne!(raw.key[..4], [0; 4], "drivers take process 0 for none");
    for _ in 0..50 {
        raw.send(&query("SELECT pg_sleep(0.001)"));
        cancel_request(rig.address, &raw.key);
        raw.until_ready();
        raw.send(&query("SELECT pg_sleep(0.001)"));
        let tags = raw.until_ready();
        assert!(!tags.contains('E'), "{tags}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_last_word_is_the_last() {
    let rig = Rig::start(session_pool(1)).await;
    let mut raw = Raw::login(rig.address);
    raw.send(&query("SELECT pg_terminate_backend(pg_backend_pid())"));
    let rest = raw.rest();
    let told = rest.windows(6).filter(|w| *w == b"FATAL\0").count();
    // once localized, once not
    assert_eq!(told, 2, "{}", String::from_utf8_lossy(&rest));
    assert!(rest.windows(5).any(|w| w == b"57P01"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_goes_back_to_what_was_asked_for_at_the_login() {
    for options in [pool_of(2), session_pool(2)] {
        let rig = Rig::start(options).await;
        let mut config = rig.config();
        config.options("-c DateStyle=Postgres -c work_mem=3MB");
        let client = connect(&config).await.unwrap();
        for reset in ["RESET DateStyle", "RESET ALL", "DISCARD ALL", "SET DateStyle = 'Postgres, MDY'"] {
            client.batch_execute("SET DateStyle = 'ISO, YMD'").await.unwrap();
            client.batch_execute(reset).await.unwrap();
            assert_eq!(text(&client, "SHOW DateStyle").await, "Postgres, MDY", "{reset}");
            assert_eq!(text(&client, "SHOW work_mem").await, "3MB", "{reset}");
        }
        client.batch_execute("SET work_mem = '5MB'").await.unwrap();
        client.batch_execute("RESET DateStyle").await.unwrap();
        assert_eq!(text(&client, "SHOW work_mem").await, "5MB");
    }
    let rig = Rig::start(session_pool(2)).await;
    let mut config = rig.config();
    config.options("-c DateStyle=Postgres");
    let client = connect(&config).await.unwrap();
    client.batch_execute("SET DateStyle TO DEFAULT").await.unwrap();
    assert_eq!(text(&client, "SHOW DateStyle").await, "Postgres, MDY");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_after_a_change_has_its_types() {
    const INSERT: &str = "INSERT INTO changing VALUES ($1)";
    let rig = Rig::start(pool_of(2)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("CREATE TABLE changing (v int)").await.unwrap();
    // both servers hold it
    for client in [&one, &other] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    for client in [&one, &other] {
        assert_eq!(client.prepare(INSERT).await.unwrap().params(), [Type::INT4]);
    }
    for client in [&one, &other] {
        client.batch_execute("COMMIT").await.unwrap();
    }
    one.batch_execute("DROP TABLE changing; CREATE TABLE changing (v text)").await.unwrap();
    for client in [&one, &other] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    for client in [&one, &other] {
        assert_eq!(client.prepare(INSERT).await.unwrap().params(), [Type::TEXT]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_prepared_before_a_change_is_refused_by_the_server() {
    let rig = Rig::start(pool_of(1)).await;
    let client = rig.client().await;
    client.batch_execute("CREATE TABLE changing AS SELECT 1 AS v").await.unwrap();
    let prepared = client.prepare("SELECT v FROM changing").await.unwrap();
    client.query(&prepared, &[]).await.unwrap();
    client.batch_execute("ALTER TABLE changing ALTER v TYPE text").await.unwrap();
    // rows of another type than it was told would be read wrongly
    let refused = client.query(&prepared, &[]).await.unwrap_err();
    assert_eq!(code(&refused), "0A000");
    let row = client.query_one("SELECT v FROM changing", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "1");
}
