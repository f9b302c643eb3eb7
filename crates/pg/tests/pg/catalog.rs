//! What servers say of themselves.

use std::time::Duration;

use millrace_pg::{catalog, control_file};
use millrace_testkit::{TestServer, wait_until};

#[tokio::test]
async fn state_slots_and_sizes() {
    let server = TestServer::start().await;
    let client = server.create_database("loans").await;
    let state = catalog::server_state(&client).await.unwrap();
    assert!(!state.in_recovery && !state.streaming && state.lsn.is_valid());
    assert_eq!(state.timeline, 1);
    assert!(state.pending_restart.is_empty());
    let control = control_file::read(&server.data_dir()).unwrap();
    assert_eq!((control.system_id, control.timeline, control.shut_down), (state.system_id, 1, false));

    catalog::create_physical_slot(&client, "physical").await.unwrap();
    catalog::create_physical_slot(&client, "physical").await.unwrap();
    client.query("SELECT pg_create_logical_replication_slot('logical', 'pgoutput')", &[]).await.unwrap();
    let slots = catalog::slots(&client).await.unwrap();
    let brief: Vec<_> = slots.iter().map(|s| (s.name.as_str(), s.slot_type.as_str(), s.database.as_deref())).collect();
    assert_eq!(brief, [("logical", "logical", Some("loans")), ("physical", "physical", None)]);
    assert!(slots.iter().all(|slot| slot.retained_bytes.is_some() && !slot.active && !slot.is_lost()));
    for name in ["logical", "physical", "physical"] {
        catalog::drop_slot(&client, name).await.unwrap();
    }
    assert!(catalog::slots(&client).await.unwrap().is_empty());

    let sizes = catalog::database_sizes(&client).await.unwrap();
    assert!(sizes.iter().any(|database| database.name == "loans" && database.size_bytes > 1_000_000));
    assert!(catalog::standbys(&client).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_setting_that_waits_for_a_restart_is_named() {
    let mut server = TestServer::start().await;
    server.set(&[("max_connections", "37")]);
    let client = server.client().await;
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_until(Duration::from_secs(10), || async {
        catalog::server_state(&client).await.unwrap().pending_restart == ["max_connections"]
    })
    .await;
}

#[tokio::test]
async fn who_blocks_whom() {
    let server = TestServer::start().await;
    let mut holder = server.client().await;
    holder.batch_execute("CREATE TABLE contested (id int)").await.unwrap();
    let holding = holder.client_mut().transaction().await.unwrap();
    holding.batch_execute("LOCK contested").await.unwrap();
    let holder_pid: i32 = holding.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    let waiter = server.client().await;
    let watcher = server.client().await;
    let waiting = waiter.batch_execute("SELECT * FROM contested");
    let watching = async {
        wait_until(Duration::from_secs(10), || async {
            let sessions = catalog::sessions(&watcher).await.unwrap();
            sessions.iter().any(|session| session.blocked_by == [holder_pid.cast_unsigned()])
        })
        .await;
        let locks = catalog::locks(&watcher).await.unwrap();
        let brief: Vec<_> = locks.iter().map(|lock| (lock.relation.as_deref(), lock.granted)).collect();
        assert_eq!(brief, [(Some("contested"), true), (Some("contested"), false)]);
        holding.rollback().await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, watching);
    waited.unwrap();
}
