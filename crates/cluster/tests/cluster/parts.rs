//! Nodes that are not all alike: one that is preferred, one that applies late and never leads.

use std::time::Duration;

use millrace_cluster::NodeName;
use millrace_pg::Connection;

use crate::harness::Cluster;

async fn rows(client: &Connection) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn one_that_applies_late_shows_what_was_and_never_leads() {
    let mut cluster = Cluster::start_as(&["a", "b", "c"], |spec| {
        spec.nodes[2].priority = 0;
        spec.nodes[2].apply_delay = Some(Duration::from_secs(3600));
    })
    .await;
    // a commit waits for those alone that may go on with it
    cluster.until("a promise", |status| status.promise.setting() == "ANY 1 (\"b\")").await;
    let client = cluster.client("a").await;
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    let handle = cluster.handle.clone().unwrap();
    let refused = handle.switchover(Some(NodeName::new("c"))).await.unwrap_err();
    assert!(refused.contains("failover_priority is 0"), "{refused}");
    handle.failover(NodeName::new("c")).await.unwrap_err();

    let end: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let late = cluster.client("c").await;
    let received = format!("SELECT pg_last_wal_receive_lsn() >= '{end}'::pg_lsn");
    millrace_testkit::wait_until(crate::harness::LONG, || async {
        late.query_one(&received, &[]).await.unwrap().get::<_, bool>(0)
    })
    .await;
    let there = "SELECT to_regclass('t') IS NOT NULL";
    assert!(!late.query_one(there, &[]).await.unwrap().get::<_, bool>(0), "it is applied in an hour");
    let node = cluster.node("c");
    assert_eq!((node.failover_priority, node.apply_delay_s), (0, Some(3600)));
    assert!(node.doing.contains("applies it later"), "{}", node.doing);

    cluster.kill("a");
    cluster.until("b", |status| status.primary_ready && status.primary.as_deref() == Some("b")).await;
    cluster.ready().await;
    assert_eq!(rows(&cluster.client("b").await).await, 1);
    // it has no reason to ask for more, and nobody takes that for trouble
    cluster.until("patience", |status| status.nodes.iter().any(|node| node.doing.contains("applies late"))).await;
    tokio::time::timeout(2 * cluster.spec.limits.not_streaming_max, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(cluster.node("c").pid, node.pid, "it goes on as it was");
    assert!(!late.query_one(there, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn of_equals_the_preferred_one_is_elected() {
    let mut cluster = Cluster::start_as(&["a", "b", "c"], |spec| spec.nodes[2].priority = 2).await;
    cluster.until("a promise", |status| status.promise.members.len() == 2).await;
    // everything has arrived everywhere
    cluster.until("equals", |status| status.nodes.iter().all(|node| node.lag_bytes.unwrap_or(0) == 0)).await;
    cluster.kill("a");
    cluster.until("c", |status| status.primary_ready && status.primary.as_deref() != Some("a")).await;
    assert_eq!(cluster.status.borrow().primary.as_deref(), Some("c"));
}
