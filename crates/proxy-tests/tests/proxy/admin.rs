//! The administration console, as the tools that know PgBouncer's would use it.

use std::collections::BTreeMap;

use millrace_proxy::Options;
use millrace_testkit::wait_until;
use tokio_postgres::{Client, SimpleQueryMessage};

use millrace_proxy_tests::{LONG, Rig, code, connect, pool_of, text};

fn with_admin() -> Options {
    Options { admins: ["postgres".to_owned()].into(), ..pool_of(2) }
}

async fn console(rig: &Rig) -> Client {
    let mut config = rig.config();
    config.dbname("pgbouncer");
    connect(&config).await.unwrap()
}

/// The rows of a command, by column.
async fn rows(console: &Client, command: &str) -> Vec<BTreeMap<String, String>> {
    let messages = console.simple_query(command).await.unwrap();
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            Some(names.zip((0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned())).collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_clients_and_counts_are_shown() {
    let rig = Rig::start(with_admin()).await;
    let client = rig.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    text(&client, "SELECT 1").await;
    let console = console(&rig).await;
    let pools = rows(&console, "SHOW POOLS").await;
    assert_eq!(pools.len(), 1);
    for (name, value) in [("database", "postgres"), ("user", "postgres"), ("cl_active", "1"), ("sv_active", "1")] {
        assert_eq!(pools[0][name], value, "{name}");
    }
    let servers = rows(&console, "SHOW SERVERS;").await;
    let pid = text(&client, "SELECT pg_backend_pid()").await;
    assert_eq!((servers[0]["state"].as_str(), &servers[0]["remote_pid"]), ("active", &pid));
    client.batch_execute("COMMIT").await.unwrap();
    let stats = rows(&console, "show stats").await;
    assert_eq!(stats[0]["total_xact_count"], "1");
    assert_eq!(stats[0]["total_query_count"], "4");
    for command in
        ["SHOW VERSION", "SHOW LISTS", "SHOW CONFIG", "SHOW DATABASES", "SHOW USERS", "SHOW STATE", "SHOW HELP"]
    {
        assert!(!rows(&console, command).await.is_empty(), "{command}");
    }
    let clients = rows(&console, "SHOW CLIENTS").await;
    assert_eq!(clients[0]["state"], "active");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_waits_for_transactions_and_holds_back_new_ones() {
    let rig = Rig::start(with_admin()).await;
    let (client, console) = (rig.client().await, console(&rig).await);
    client.batch_execute("BEGIN").await.unwrap();
    let commit = async {
        let paused = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.paused);
        wait_until(LONG, || async { paused().await }).await;
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (paused, ()) = tokio::join!(console.batch_execute("PAUSE"), commit);
    paused.unwrap();
    let resume = async {
        let waits = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == 1);
        wait_until(LONG, || async { waits().await }).await;
        console.batch_execute("RESUME").await.unwrap();
    };
    let (one, ()) = tokio::join!(text(&client, "SELECT 1"), resume);
    assert_eq!(one, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_one_database_leaves_the_others_alone() {
    let rig = Rig::start(with_admin()).await;
    rig.server.client().await.batch_execute("CREATE DATABASE other").await.unwrap();
    let (client, console) = (rig.client().await, console(&rig).await);
    let mut config = rig.config();
    let other = connect(config.dbname("other")).await.unwrap();
    assert_eq!((text(&client, "SELECT 1").await, text(&other, "SELECT 1").await), ("1".to_owned(), "1".to_owned()));
    assert_eq!(code(&console.batch_execute("PAUSE nonsense").await.unwrap_err()), "55000");

    console.batch_execute("PAUSE postgres:ro").await.unwrap();
    let resume = async {
        let waits = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == 1);
        wait_until(LONG, || async { waits().await }).await;
        // others come and go meanwhile, and are resumed, paused or not
        console.batch_execute("RESUME other").await.unwrap();
        assert_eq!(text(&other, "SELECT 2").await, "2");
        assert!(waits().await);
        console.batch_execute("RESUME postgres").await.unwrap();
    };
    let (two, ()) = tokio::join!(text(&client, "SELECT 2"), resume);
    assert_eq!(two, "2");

    // a pause that is resumed before it is complete says so
    client.batch_execute("BEGIN").await.unwrap();
    let give_up = async {
        let paused = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.paused);
        wait_until(LONG, || async { paused().await }).await;
        rig.handle.resume(None);
    };
    let (paused, ()) = tokio::join!(console.batch_execute("PAUSE"), give_up);
    assert_eq!(code(&paused.unwrap_err()), "55000");
    client.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_named_may_use_it_and_only_as_it_is() {
    let rig = Rig::start(with_admin()).await;
    let console = console(&rig).await;
    assert_eq!(code(&console.batch_execute("DROP TABLE loans").await.unwrap_err()), "42601");
    assert_eq!(code(&console.query("SHOW POOLS", &[]).await.unwrap_err()), "0A000");
    assert_eq!(rows(&console, "SHOW VERSION").await.len(), 1);
    let rig = Rig::start(pool_of(2)).await;
    let mut config = rig.config();
    config.dbname("pgbouncer");
    assert_eq!(code(&connect(&config).await.unwrap_err()), "28000");
}
