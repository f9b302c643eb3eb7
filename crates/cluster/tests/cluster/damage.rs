//! Killed, damaged, left behind, promoted by hand: what the supervisor makes of it.

use std::{path::Path, time::Duration};

use millrace_cluster::{Durability, Limits};
use millrace_contract::status::{NodeState, SlotStatus};
use millrace_testkit::wait_until;

use crate::harness::{Cluster, LONG};

#[tokio::test]
async fn killed_servers_are_restarted() {
    let mut cluster = Cluster::start_with(&["a", "b"], |limits| limits.failover = false).await;
    for name in ["b", "a", "b"] {
        cluster.kill_and_recover(name).await;
    }
    cluster.replicates(1).await;
    assert!(cluster.node("b").doing.starts_with("streams from a"), "{:?}", cluster.node("b"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_damaged_replica_is_rebuilt() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    for damage in ["PG_VERSION", "global/pg_control", "pg_wal", "global"] {
        let path = cluster.folder("b").join("data").join(damage);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.unwrap();
        cluster.kill_and_recover("b").await;
    }
    std::fs::remove_dir_all(cluster.folder("b").join("data")).unwrap();
    cluster.kill_and_recover("b").await;
    cluster.replicates(7).await;
    let kept = kept_aside(&cluster.folder("b"));
    assert!(kept.is_empty(), "a replica's data is not kept: {kept:?}");
    cluster.stop().await;
}

fn kept_aside(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("data.aside-")).collect()
}

#[tokio::test]
async fn slots_are_made_again_and_a_replica_left_behind_is_rebuilt() {
    // commits must not wait for the replica that is away
    let asynchronous = |limits: &mut Limits| limits.durability = Durability::Asynchronous { loss_max: 0 };
    let mut cluster = Cluster::start_with(&["a", "b"], asynchronous).await;
    let primary = cluster.client("a").await;
    let drop_slot = || async {
        wait_until(LONG, || async {
            primary
                .batch_execute(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
                     SELECT pg_drop_replication_slot('node_b')",
                )
                .await
                .is_ok()
        })
        .await;
    };
    drop_slot().await;
    cluster
        .until("the slot again", |status| status.slots.iter().any(|slot| slot.name == "node_b" && slot.active))
        .await;
    cluster.replicates(1).await;

    // the slot is given up while the replica is away: its log is gone for good
    cluster.drop_supervisor();
    let before = cluster.pids();
    cluster.kill("b");
    for setting in
        ["max_slot_wal_keep_size = '16MB'", "wal_keep_size = 0", "max_wal_size = '48MB'", "min_wal_size = '32MB'"]
    {
        primary.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    primary.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_until(LONG, || async {
        primary.batch_execute("CREATE TABLE IF NOT EXISTS w (i int); INSERT INTO w VALUES (1)").await.unwrap();
        primary.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        primary.batch_execute("CHECKPOINT").await.unwrap();
        let slots = millrace_pg::catalog::slots(&primary).await.unwrap();
        slots.iter().any(millrace_pg::catalog::Slot::is_lost)
    })
    .await;
    cluster.supervise();
    // it runs, and answers, before it is made anew
    let follows = |slot: &SlotStatus| slot.active && slot.wal_status.as_deref() == Some("reserved");
    cluster.until("the slot of one that was made anew", |status| status.slots.iter().any(follows)).await;
    cluster.ready().await;
    assert_eq!(cluster.pids().get("a"), before.get("a"));
    cluster.replicates(2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_promoted_replica_is_stopped_kept_and_rebuilt() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let replica = cluster.client("b").await;
    millrace_pg::catalog::begin_promotion(&replica).await.unwrap();
    drop(replica);
    let folder = cluster.folder("b");
    cluster.until("the data kept aside", |_| !kept_aside(&folder).is_empty()).await;
    cluster.ready().await;
    cluster.replicates(3).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_lost_primary_is_never_made_anew() {
    let mut cluster = Cluster::start(&["a"]).await;
    cluster.stop().await;
    let data = cluster.folder("a").join("data");
    std::fs::rename(&data, cluster.folder("a").join("elsewhere")).unwrap();
    cluster.supervise();
    cluster
        .until("the trouble", |status| status.findings.iter().any(|f| f.what == "the primary's data directory is gone"))
        .await;
    assert!(!data.exists());
    cluster.stop().await;
    std::fs::rename(cluster.folder("a").join("elsewhere"), &data).unwrap();
    cluster.supervise();
    cluster.ready().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_port_taken_later_is_told_and_awaited() {
    // time enough to take the port before the restart
    let mut cluster = Cluster::start_with(&["a"], |limits| limits.restart_delay_first = Duration::from_secs(1)).await;
    let port = cluster.node("a").port;
    cluster.kill("a");
    let mut taken = None;
    wait_until(LONG, || {
        taken = taken.take().or_else(|| std::net::TcpListener::bind(("127.0.0.1", port)).ok());
        let done = taken.is_some();
        async move { done }
    })
    .await;
    let what = format!("port {port} is in use");
    cluster.until("the trouble", |status| status.findings.iter().any(|f| f.what.contains(&what))).await;
    drop(taken);
    cluster.ready().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_frozen_server_is_told_and_left_alone() {
    let mut cluster = Cluster::start_with(&["a", "b"], |limits| {
        limits.failover = false;
        limits.probe_timeout = Duration::from_millis(500);
    })
    .await;
    let pids = cluster.pids();
    let folder = cluster.folder("a").join("data").canonicalize().unwrap();
    let signal = |signal: &str| {
        // the server and all its sessions
        let found = std::process::Command::new("find")
            .args(["/proc", "-maxdepth", "2", "-name", "cwd", "-lname"])
            .arg(&folder)
            .output()
            .unwrap();
        let listed = String::from_utf8(found.stdout).unwrap();
        let mut kill = std::process::Command::new("kill");
        kill.arg(signal).args(listed.lines().filter_map(|line| line.split('/').nth(2)));
        assert!(kill.status().unwrap().success());
    };
    signal("-STOP");
    cluster.until("the trouble", |status| status.findings.iter().any(|f| f.what == "runs but does not answer")).await;
    assert_eq!(cluster.node("a").state, NodeState::Unresponsive);
    assert!(!cluster.status.borrow().primary_ready);
    signal("-CONT");
    cluster.ready().await;
    assert_eq!(cluster.pids(), pids);
    cluster.stop().await;
}
