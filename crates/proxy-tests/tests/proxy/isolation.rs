//! What one client does to its session, no other client finds; and what it does follows it.

use std::time::Duration;

use millrace_proxy::{Options, PoolLimits, PoolMode};
use millrace_testkit::wait_until;

use millrace_proxy_tests::{LONG, Rig, code, connect, pool_of, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_follow_their_client_and_no_other() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    let before = text(&other, "SHOW work_mem").await;
    one.batch_execute("SET work_mem = '3MB'; SET search_path = pg_catalog, public; SET app.tenant = 'it''s \\ 7'")
        .await
        .unwrap();
    one.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.unwrap();
    assert_eq!(text(&other, "SHOW work_mem").await, before);
    assert_eq!(text(&other, "SELECT current_setting('app.tenant', true)").await, "");
    assert_eq!(text(&other, "SHOW search_path").await, "\"$user\", public");
    for (name, value) in [
        ("work_mem", "3MB"),
        ("search_path", "pg_catalog, public"),
        ("app.tenant", "it's \\ 7"),
        ("TimeZone", "Asia/Tokyo"),
    ] {
        assert_eq!(text(&one, &format!("SHOW {name}")).await, value);
    }
    assert_eq!(Rig::pid(&one).await, Rig::pid(&other).await);
    one.batch_execute("RESET ALL").await.unwrap();
    text(&other, "SELECT 1").await;
    assert_eq!(text(&one, "SHOW work_mem").await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_undone_or_local_do_not_follow() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    let before = text(&one, "SHOW work_mem").await;
    one.batch_execute("BEGIN; SET work_mem = '3MB'; ROLLBACK").await.unwrap();
    one.batch_execute("BEGIN; SET LOCAL work_mem = '3MB'; SELECT set_config('app.x', 'y', true); COMMIT")
        .await
        .unwrap();
    text(&other, "SELECT 1").await;
    assert_eq!(text(&one, "SHOW work_mem").await, before);
    assert_eq!(text(&other, "SELECT current_setting('app.x', true)").await, "");
    one.execute("SELECT set_config('work_mem', $1, false)", &[&"5MB"]).await.unwrap();
    assert_eq!(text(&other, "SHOW work_mem").await, before);
    assert_eq!(text(&one, "SHOW work_mem").await, "5MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_follows_its_client() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("CREATE ROLE lowly").await.unwrap();
    one.batch_execute("SET ROLE lowly").await.unwrap();
    assert_eq!(text(&other, "SELECT current_user").await, "postgres");
    assert_eq!(text(&one, "SELECT current_user").await, "lowly");
    one.batch_execute("RESET ROLE").await.unwrap();
    assert_eq!(text(&one, "SELECT current_user").await, "postgres");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn startup_settings_are_the_clients_own() {
    let rig = Rig::start(pool_of(1)).await;
    let other = rig.client().await;
    let one =
        connect(rig.config().application_name("mine").options("-c work_mem=7MB -c datestyle=sql,dmy")).await.unwrap();
    assert_eq!(text(&other, "SHOW application_name").await, "");
    assert_eq!(text(&one, "SHOW application_name").await, "mine");
    assert_eq!(text(&one, "SHOW work_mem").await, "7MB");
    assert_eq!(text(&one, "SHOW datestyle").await, "SQL, DMY");
    one.batch_execute("SET work_mem = '8MB'").await.unwrap();
    one.batch_execute("RESET work_mem").await.unwrap();
    text(&other, "SELECT 1").await;
    assert_eq!(text(&one, "SHOW work_mem").await, "7MB");
    // also at once, in a session of its own or where something ties it to its server
    one.batch_execute("SET work_mem = '8MB'; RESET ALL").await.unwrap();
    assert_eq!(text(&one, "SHOW work_mem").await, "7MB");
    one.batch_execute("CREATE TEMP TABLE own (i int); RESET work_mem").await.unwrap();
    assert_eq!(text(&one, "SHOW work_mem").await, "7MB");
    assert_eq!(text(&one, "SHOW datestyle").await, "SQL, DMY");
    let refused = connect(rig.config().options("-c no_such_setting=1")).await.expect_err("refused");
    assert_eq!(code(&refused), "42704");
}

/// What is made, how another client sees that it is not there, and how it is given up.
async fn pins(make: &str, look: &str, mine: &str, others: &str, end: &str) {
    let rig = Rig::start(pool_of(2)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute(make).await.unwrap();
    let pid = Rig::pid(&one).await;
    for _ in 0..5 {
        assert_ne!(Rig::pid(&other).await, pid, "{make}");
        assert_eq!(text(&one, look).await, mine, "{make}");
        assert_eq!(text(&other, look).await, others, "{make}");
    }
    one.batch_execute(end).await.unwrap();
    let pinned = async || rig.handle.view().await.iter().flat_map(|v| &v.servers).any(|s| s.pinned);
    wait_until(LONG, || async { !pinned().await }).await;
    one.batch_execute(make).await.unwrap();
    wait_until(LONG, || async { pinned().await }).await;
    drop(one);
    wait_until(LONG, || async { !pinned().await }).await;
    for _ in 0..5 {
        assert_eq!(text(&other, look).await, others, "{make}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_tables_stay_with_their_client() {
    let look = "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND relnamespace = pg_my_temp_schema()";
    pins("CREATE TEMP TABLE mine (i int)", look, "1", "0", "DROP TABLE mine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advisory_locks_stay_with_their_client() {
    let look = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    pins("SELECT pg_advisory_lock(42)", look, "1", "0", "SELECT pg_advisory_unlock(42)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_stays_with_its_client() {
    pins("LISTEN news", "SELECT count(*) FROM pg_listening_channels()", "1", "0", "UNLISTEN *").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_prepared_statements_stay_with_their_client() {
    let look = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql";
    pins("PREPARE mine AS SELECT 1", look, "1", "0", "DEALLOCATE mine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_with_hold_stay_with_their_client() {
    let look = "SELECT count(*) FROM pg_cursors WHERE is_holdable";
    pins("BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT", look, "1", "0", "CLOSE mine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_ends_with_its_client() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("CREATE TABLE kept (i int)").await.unwrap();
    one.batch_execute("BEGIN; INSERT INTO kept VALUES (1)").await.unwrap();
    drop(one);
    assert_eq!(text(&other, "SELECT count(*) FROM kept").await, "0");
    assert_eq!(text(&other, "SELECT now() = statement_timestamp()").await, "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_pools_hand_over_clean_sessions() {
    let options = Options {
        pool: PoolLimits { mode: PoolMode::Session, size: 1, reserve: 0, ..PoolLimits::default() },
        ..pool_of(1)
    };
    let rig = Rig::start(options).await;
    let one = rig.client().await;
    one.batch_execute("SET work_mem = '3MB'; CREATE TEMP TABLE mine (i int); PREPARE p AS SELECT 1").await.unwrap();
    let pid = Rig::pid(&one).await;
    assert_eq!(text(&one, "SHOW work_mem").await, "3MB");
    assert_eq!(text(&one, "EXECUTE p").await, "1");
    let other = rig.client().await;
    let waits = async { text(&other, "SHOW work_mem").await };
    let left = async {
        drop(one);
    };
    let (shown, ()) = tokio::join!(waits, left);
    assert_eq!(shown, "4MB");
    assert_eq!(Rig::pid(&other).await, pid);
    assert_eq!(text(&other, "SELECT count(*) FROM pg_prepared_statements").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statement_pools_refuse_blocks() {
    let options = Options { pool: PoolLimits { mode: PoolMode::Statement, ..PoolLimits::default() }, ..pool_of(1) };
    let rig = Rig::start(options).await;
    let client = rig.client().await;
    assert_eq!(text(&client, "SELECT 1").await, "1");
    client.batch_execute("BEGIN").await.ok();
    tokio::time::timeout(LONG, async { while client.simple_query("SELECT 1").await.is_ok() {} }).await.unwrap();
    wait_until(LONG, || async { client.is_closed() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_hits_only_ones_own_statement() {
    let rig = Rig::start(pool_of(3)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    let (cancel, idle) = (one.cancel_token(), rig.client().await);
    let sleeping = async |client: &tokio_postgres::Client, seconds: &str| {
        client.batch_execute(&format!("SELECT pg_sleep({seconds})")).await
    };
    let watcher = rig.server.client().await;
    let both =
        "SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND wait_event = 'PgSleep'";
    let cancelling = async {
        wait_until(LONG, || async { watcher.query_one(both, &[]).await.unwrap().get::<_, bool>(0) }).await;
        // of a client that does nothing: nothing happens
        idle.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (cancelled, slept, ()) = tokio::join!(sleeping(&one, "60"), sleeping(&other, "1"), cancelling);
    assert_eq!(code(&cancelled.unwrap_err()), "57014");
    slept.unwrap();
    assert_eq!(text(&one, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_reach_who_listens() {
    use futures::{StreamExt, stream};
    use tokio_postgres::AsyncMessage;
    let rig = Rig::start(pool_of(2)).await;
    let (client, mut connection) = rig.config().connect(tokio_postgres::NoTls).await.unwrap();
    let (sender, mut received) = tokio::sync::mpsc::channel(4);
    #[expect(clippy::disallowed_methods, reason = "it ends when the client is dropped")]
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(note) = message {
                sender.send(note.payload().to_owned()).await.ok();
            }
        }
    });
    client.batch_execute("LISTEN news").await.unwrap();
    rig.client().await.batch_execute("NOTIFY news, 'it rains'").await.unwrap();
    let note = tokio::time::timeout(Duration::from_secs(10), received.recv()).await.unwrap();
    assert_eq!(note.as_deref(), Some("it rains"));
}
