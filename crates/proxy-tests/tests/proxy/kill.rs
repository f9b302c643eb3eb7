//! An operator ends connections, keeps clients out, and lets them in again.

use std::sync::atomic::{AtomicBool, Ordering};

use millrace_proxy::Options;
use millrace_testkit::wait_until;
use tokio_postgres::Client;

use millrace_proxy_tests::{LONG, Rig, code, connect, pool_of, text};

async fn console(rig: &Rig) -> Client {
    let mut config = rig.config();
    config.dbname("pgbouncer");
    connect(&config).await.unwrap()
}

fn with_admin(size: usize) -> Options {
    Options { admins: ["postgres".to_owned()].into(), ..pool_of(size) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_database_has_no_connections_until_it_is_resumed() {
    let rig = Rig::start(Options { workers: 2, ..with_admin(3) }).await;
    let admin = rig.server.client().await;
    admin.batch_execute("CREATE DATABASE other").await.unwrap();
    let to_other = || {
        let mut config = rig.config();
        config.dbname("other");
        config
    };
    let (idle, open, busy) =
        (connect(&to_other()).await.unwrap(), connect(&to_other()).await.unwrap(), connect(&to_other()).await.unwrap());
    let (unharmed, console) = (rig.client().await, console(&rig).await);
    unharmed.batch_execute("BEGIN").await.unwrap();
    open.batch_execute("BEGIN; SELECT 1").await.unwrap();
    text(&idle, "SELECT 1").await;
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other' AND query = 'SELECT pg_sleep(600)' AND wait_event = 'PgSleep'";
    let kill = async {
        wait_until(LONG, || async { text(&admin, sleeps).await == "1" }).await;
        assert_eq!(code(&console.batch_execute("KILL nonsense").await.unwrap_err()), "55000");
        console.batch_execute("KILL other").await.unwrap();
    };
    let (slept, ()) = tokio::join!(busy.batch_execute("SELECT pg_sleep(600)"), kill);
    assert_eq!(code(&slept.unwrap_err()), "57P01");
    assert!(idle.simple_query("SELECT 1").await.is_err() && open.simple_query("COMMIT").await.is_err());
    assert_eq!(text(&unharmed, "SELECT 'unharmed'").await, "unharmed");
    // a statement that ran is cancelled: nothing stands in the way of whoever replaces the database
    wait_until(LONG, || async {
        text(&admin, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'").await == "0"
    })
    .await;
    let come = async { connect(&to_other()).await.unwrap() };
    let replace = async {
        wait_until(LONG, || async { rig.handle.logins().0 == 2 }).await;
        admin.batch_execute("DROP DATABASE other").await.unwrap();
        admin.batch_execute("CREATE DATABASE other").await.unwrap();
        let shown = console.simple_query("SHOW DATABASES").await.unwrap();
        let paused = shown.iter().any(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                row.get("name") == Some("other") && row.get("paused") == Some("1")
            }
            _ => false,
        });
        assert!(paused);
        console.batch_execute("RESUME other").await.unwrap();
    };
    let (new, ()) = tokio::join!(come, replace);
    assert_eq!(text(&new, "SELECT current_database()").await, "other");
    unharmed.batch_execute("COMMIT").await.unwrap();
    console.batch_execute("KILL").await.unwrap();
    assert!(new.simple_query("SELECT 1").await.is_err() && unharmed.simple_query("SELECT 1").await.is_err());
    console.batch_execute("RESUME").await.unwrap();
    assert_eq!(text(&rig.client().await, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_logging_in_when_a_database_is_killed_does_not_get_in() {
    let rig = Rig::start(Options { workers: 2, ..with_admin(3) }).await;
    let admin = rig.server.client().await;
    admin.batch_execute("CREATE DATABASE other").await.unwrap();
    let mut config = rig.config();
    config.dbname("other");
    let known = connect(&config).await.unwrap();
    // what nobody has asked for yet, a server is asked, which cannot answer for now
    config.options("-c work_mem=3MB");
    admin.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_db_role_setting").await.unwrap();
    let count = |of: &str| format!("SELECT count(*) FROM pg_catalog.pg_locks WHERE {of}");
    let waits = count("NOT granted AND relation = 'pg_catalog.pg_db_role_setting'::regclass");
    let clients = async || {
        let views = rig.handle.view().await;
        views
            .iter()
            .flat_map(|v| &v.pools)
            .filter(|pool| &*pool.key.database == "other")
            .map(|p| p.clients)
            .sum::<usize>()
    };
    let resumed = AtomicBool::new(false);
    let login = async {
        let client = connect(&config).await.unwrap();
        assert!(resumed.load(Ordering::SeqCst), "it got in");
        client
    };
    let kill = async {
        wait_until(LONG, || async { text(&admin, &waits).await == "1" }).await;
        rig.handle.kill(Some("other")).await.unwrap();
        admin.batch_execute("COMMIT").await.unwrap();
        let connected = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'";
        wait_until(LONG, || async { text(&admin, connected).await == "0" }).await;
        // several turns of the workers' loops
        for _ in 0..50 {
            assert_eq!(clients().await, 0);
        }
        resumed.store(true, Ordering::SeqCst);
        rig.handle.resume(Some("other"));
    };
    let (client, ()) = tokio::join!(login, kill);
    assert_eq!(text(&client, "SHOW work_mem").await, "3MB");
    assert!(known.simple_query("SELECT 1").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_client_can_be_ended() {
    let rig = Rig::start(with_admin(2)).await;
    let (one, other, console) = (rig.client().await, rig.client().await, console(&rig).await);
    text(&one, "SET application_name = 'the one'").await;
    text(&other, "SELECT 1").await;
    let pid = async || {
        let views = rig.handle.view().await;
        views.iter().flat_map(|v| &v.clients).find(|c| c.application_name == "the one").map(|c| c.pid)
    };
    // the proxy asks the server for the name after it has answered the client
    wait_until(LONG, || async { pid().await.is_some() }).await;
    let pid = pid().await.unwrap();
    let kill = format!("KILL_CLIENT {pid}");
    console.batch_execute(&kill).await.unwrap();
    assert_eq!(code(&console.batch_execute(&kill).await.unwrap_err()), "55000");
    assert!(one.simple_query("SELECT 1").await.is_err());
    assert_eq!(text(&other, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_database_keeps_who_is_there_and_lets_nobody_in() {
    let rig = Rig::start(with_admin(2)).await;
    let (client, console) = (rig.client().await, console(&rig).await);
    console.batch_execute("DISABLE postgres").await.unwrap();
    assert_eq!(code(&connect(&rig.config()).await.unwrap_err()), "57P03");
    assert_eq!(text(&client, "SELECT 1").await, "1");
    console.batch_execute("ENABLE postgres").await.unwrap();
    assert_eq!(text(&rig.client().await, "SELECT 1").await, "1");
    for command in ["SUSPEND", "SHUTDOWN", "DISABLE"] {
        assert_eq!(code(&console.batch_execute(command).await.unwrap_err()), "42601", "{command}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_old_connections_to_close_is_told_when_they_are() {
    let rig = Rig::start(Options { workers: 2, ..with_admin(2) }).await;
    let (client, console) = (rig.client().await, console(&rig).await);
    client.batch_execute("BEGIN").await.unwrap();
    let pid = Rig::pid(&client).await;
    console.batch_execute("RECONNECT").await.unwrap();
    let commit = async {
        assert_eq!(Rig::pid(&client).await, pid);
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (closed, ()) = tokio::join!(console.batch_execute("WAIT_CLOSE"), commit);
    closed.unwrap();
    let old = rig.handle.view().await.iter().flat_map(|view| &view.servers).any(|server| server.pid == pid);
    assert!(!old);
    assert_ne!(Rig::pid(&client).await, pid);
}
