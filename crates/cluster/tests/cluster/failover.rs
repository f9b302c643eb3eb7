//! Another primary: elected when the present one is lost, or wished for.

use std::time::{Duration, Instant};

use millrace_cluster::{
    Durability, NodeName,
    history::{self, Event},
};
use millrace_contract::status::NodeState;
use millrace_pg::Connection;

use crate::harness::Cluster;

/// A cluster whose commits are on a quorum, with a table to write to.
async fn promised() -> Cluster {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    cluster.until("a promise", |status| status.promise.setting() == "ANY 1 (\"b\", \"c\")").await;
    cluster.client("a").await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    cluster
}

async fn count(client: &Connection) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

impl Cluster {
    fn primary(&self) -> String {
        self.status.borrow().primary.clone().unwrap()
    }

    async fn another_primary(&mut self, than: &str) -> String {
        self.until("another primary", |status| status.primary_ready && status.primary.as_deref() != Some(than)).await;
        self.primary()
    }
}

/// Writes rows one by one until the server is gone; how many were acknowledged.
async fn write_until_it_fails(client: &Connection) -> i64 {
    let mut acknowledged = 0;
    while client.batch_execute("INSERT INTO t VALUES (1)").await.is_ok() {
        acknowledged += 1;
    }
    acknowledged
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let mut cluster = promised().await;
    for round in 0..3 {
        let old = cluster.primary();
        let client = cluster.client(&old).await;
        let before = count(&client).await;
        let killing = async {
            tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>()).await.unwrap_err();
            cluster.kill(&old);
            Instant::now()
        };
        let (acknowledged, killed) = tokio::join!(write_until_it_fails(&client), killing);
        let new = cluster.another_primary(&old).await;
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(20), "round {round}: {new} was ready after {took:?}");
        let client = cluster.client(&new).await;
        let found = count(&client).await - before;
        // the last one may have been written without being acknowledged
        assert!((acknowledged..=acknowledged + 1).contains(&found), "{acknowledged} acknowledged, {found} found");
        client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
        cluster.ready().await;
        let back = cluster.client(&old).await;
        cluster
            .until("the old one to have it all", |status| {
                status.nodes.iter().all(|node| node.name == new || node.lag_bytes == Some(0))
            })
            .await;
        assert_eq!(count(&back).await, count(&client).await);
        cluster.until("a promise", |status| status.promise.members.contains(&NodeName::new(&old))).await;
    }
}

#[tokio::test]
async fn a_frozen_primary_is_killed_and_replaced() {
    let mut cluster = promised().await;
    let pid = cluster.node("a").pid.unwrap();
    let frozen = Instant::now();
    let stop = format!("kill -STOP {pid} $(pgrep -P {pid})");
    assert!(std::process::Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    let new = cluster.another_primary("a").await;
    let took = frozen.elapsed();
    assert!(took < Duration::from_secs(30), "{new} was ready after {took:?}");
    cluster.client(&new).await.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    cluster.ready().await;
    assert_ne!(cluster.node("a").pid, Some(pid));
    // the silence counts, which is longer than the election takes
    let events = history::newest(&cluster.spec.state_dir, 100).unwrap().into_iter().map(|entry| entry.event);
    let promoted: Vec<_> = events
        .filter_map(|event| match event {
            Event::Promoted { node, after_ms, away_ms } => Some((node, after_ms.unwrap(), away_ms.unwrap())),
            _ => None,
        })
        .collect();
    let silent_ms = u64::try_from(cluster.spec.limits.silent_max.as_millis()).unwrap();
    assert!(promoted.len() == 1 && promoted[0].0 == new, "{promoted:?}");
    assert!(promoted[0].2 >= promoted[0].1 + silent_ms, "{promoted:?}");
}

#[tokio::test]
async fn a_switchover_loses_nothing_and_takes_a_moment() {
    let mut cluster = promised().await;
    for to in ["b", "c", "a"] {
        let handle = cluster.handle.clone().unwrap();
        let begun = Instant::now();
        handle.switchover(Some(NodeName::new(to))).await.unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{to} was the primary after {took:?}");
        assert_eq!(cluster.primary(), to);
        cluster.client(to).await.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        cluster.ready().await;
    }
    assert_eq!(count(&cluster.client("a").await).await, 3);
    let refused = cluster.handle.clone().unwrap().switchover(Some(NodeName::new("a"))).await.unwrap_err();
    assert!(refused.contains("no replica that streams"), "{refused}");
    let lines = history::read(&cluster.spec.state_dir).unwrap();
    assert!(lines.iter().filter(|entry| matches!(entry.event, Event::Elected { .. })).count() == 3);
}

/// With a member of the quorum away nobody surely has everything: the primary is started again.
#[tokio::test]
async fn without_a_quorum_nobody_is_elected() {
    let mut cluster = promised().await;
    let before = cluster.node("a").pid;
    let frozen = cluster.node("b").pid.unwrap().to_string();
    let signal = |signal: &str| {
        let done = std::process::Command::new("kill").args([signal, &frozen]).status().unwrap();
        assert!(done.success());
    };
    // the postmaster alone: its sessions go on, and it receives log
    signal("-STOP");
    cluster
        .until("silence", |status| {
            status.nodes.iter().any(|node| node.name == "b" && node.state == NodeState::Unresponsive)
        })
        .await;
    cluster.kill("a");
    cluster
        .until("the same primary", |status| {
            status.primary_ready && status.nodes.iter().any(|node| node.name == "a" && node.pid != before)
        })
        .await;
    assert_eq!((cluster.primary(), cluster.status.borrow().term), ("a".to_owned(), 1));
    signal("-CONT");
    cluster.ready().await;
}

#[tokio::test]
async fn asynchronous_clusters_restart_their_primary_first() {
    let mut cluster =
        Cluster::start_with(&["a", "b"], |limits| limits.durability = Durability::Asynchronous { loss_max: 1 << 20 })
            .await;
    assert!(cluster.status.borrow().promise.is_none());
    cluster.kill_and_recover("a").await;
    assert_eq!(cluster.primary(), "a");
}
