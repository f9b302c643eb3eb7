//! Nodes that come and go while the cluster runs.

use std::time::Duration;

use millrace_cluster::{ClusterSpec, ClusterStatus, NodeName, NodeSpec, history, topology::Teller};
use millrace_contract::topology::NodeHealth;
use millrace_pg::Setting;
use millrace_testkit::{free_port, wait_until};

use crate::{
    agents::Agents,
    harness::{Cluster, LONG, is_running},
};

fn another(spec: &ClusterSpec, name: &str) -> NodeSpec {
    let like = &spec.nodes[0];
    let folder = like.folder.parent().unwrap().join(name);
    NodeSpec { name: NodeName::new(name), port: free_port(), folder, priority: 1, ..like.clone() }
}

fn without(spec: &ClusterSpec, name: &str) -> ClusterSpec {
    let mut spec = spec.clone();
    spec.nodes.retain(|node| node.name.as_str() != name);
    spec
}

fn promised(status: &ClusterStatus) -> Vec<&str> {
    status.promise.members.iter().map(NodeName::as_str).collect()
}

fn has_slot(status: &ClusterStatus, slot: &str) -> bool {
    status.slots.iter().any(|of| of.name == slot)
}

impl Cluster {
    async fn nodes(&mut self, spec: ClusterSpec) -> Result<String, String> {
        let reply = self.handle.as_ref().unwrap().reload(spec.clone()).await;
        if reply.is_ok() {
            self.spec = spec;
        }
        reply
    }
}

#[tokio::test]
async fn a_replica_joins_and_another_leaves_and_commits_wait_for_those_there_are() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let mut more = cluster.spec.clone();
    more.nodes.push(another(&cluster.spec, "c"));
    assert_eq!(cluster.nodes(more).await.unwrap(), "c joins");
    cluster.ready().await;
    cluster.until("a promise of three", |status| promised(status) == ["b", "c"]).await;
    cluster.replicates(1).await;
    assert!(cluster.status.borrow().nodes.iter().all(|node| node.pending_restart.is_empty()), "no restart for it");

    let refused = cluster.nodes(without(&cluster.spec, "a")).await.unwrap_err();
    assert_eq!(refused, "a is the primary: `millrace cluster switchover` first");
    let mut moved = cluster.spec.clone();
    moved.nodes[2].port = free_port();
    let refused = cluster.nodes(moved).await.unwrap_err();
    assert!(refused.starts_with("c cannot move while the platform runs"), "{refused}");
    let mut taken = cluster.spec.clone();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    taken.nodes.push(NodeSpec { port, ..another(&cluster.spec, "d") });
    let refused = cluster.nodes(taken).await.unwrap_err();
    assert!(refused.contains("d") && refused.contains(&port.to_string()), "{refused}");
    assert_eq!(cluster.status.borrow().nodes.len(), 3, "nothing has come of any of these");

    // a commit at any time is on the primary and another
    let (stop, writer) = (tokio_util::sync::CancellationToken::new(), cluster.client("a").await);
    writer.batch_execute("CREATE TABLE w (i int)").await.unwrap();
    let writing = async {
        let mut written = 0_i64;
        while !stop.is_cancelled() {
            writer.execute("INSERT INTO w VALUES (1)", &[]).await.unwrap();
            written += 1;
        }
        written
    };
    let (pid, before) = (cluster.node("b").pid.unwrap(), cluster.pids());
    let removing = async {
        assert_eq!(cluster.nodes(without(&cluster.spec, "b")).await.unwrap(), "b leaves");
        cluster.until("b's end", |status| status.nodes.len() == 2 && !has_slot(status, "node_b")).await;
        cluster.until("a promise without it", |status| promised(status) == ["c"]).await;
        stop.cancel();
    };
    let (written, ()) = tokio::join!(writing, removing);
    assert!(written > 0 && !is_running(pid));
    assert!(cluster.folder("b").join("data/PG_VERSION").exists(), "what it had stays");
    cluster.ready().await;
    assert_eq!((cluster.pids()["a"], cluster.pids()["c"]), (before["a"], before["c"]));
    let events: Vec<String> =
        history::read(&cluster.spec.state_dir).unwrap().iter().map(|entry| entry.event.to_string()).collect();
    for said in ["c is a node of the cluster", "b is no node of the cluster any more"] {
        assert!(events.iter().any(|event| event == said), "{events:?}");
    }

    // and what was acknowledged is where the next primary comes from
    cluster.kill("a");
    cluster.until("c", |status| status.primary_ready && status.primary.as_deref() == Some("c")).await;
    let count = cluster.client("c").await.query_one("SELECT count(*) FROM w", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), written);
    // back again where its old data is
    let mut back = cluster.spec.clone();
    let old = cluster.folder("b");
    back.nodes.push(NodeSpec { folder: old, ..another(&cluster.spec, "b") });
    cluster.nodes(back).await.unwrap();
    cluster.ready().await;
    let client = cluster.client("b").await;
    let count = client.query_one("SELECT count(*) FROM w", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), written);
    cluster.stop().await;
}

#[tokio::test]
async fn one_that_leaves_lets_its_readers_finish() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let reader = cluster.client("b").await;
    reader.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let fewer = without(&cluster.spec, "b");
    cluster.nodes(fewer.clone()).await.unwrap();
    cluster
        .until("it leaves", |status| status.nodes.iter().any(|node| node.leaving && node.doing.contains("leaves")))
        .await;
    assert_eq!(health(&cluster, "b"), NodeHealth::Draining, "nothing new is sent there");
    let mut again = fewer.clone();
    again.nodes.push(another(&cluster.spec, "b"));
    let refused = cluster.nodes(again).await.unwrap_err();
    assert_eq!(refused, "b is still leaving: say it again when it is gone");
    reader.batch_execute("COMMIT").await.unwrap();
    cluster.until("its end", |status| status.nodes.len() == 2).await;
    cluster.stop().await;
}

/// Its health as those who connect are told it.
fn health(cluster: &Cluster, name: &str) -> NodeHealth {
    let topology = Teller::new(1 << 20).tell(&cluster.status.borrow());
    topology.nodes.iter().find(|node| node.name == name).unwrap().health
}

#[tokio::test]
async fn a_replica_that_restarts_lets_its_readers_finish() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let reader = cluster.client("b").await;
    reader.batch_execute("BEGIN; SELECT 1").await.unwrap();
    cluster.handle.as_ref().unwrap().restart(NodeName::new("b")).await.unwrap();
    let does = |status: &ClusterStatus, name: &str, what: &str| {
        status.nodes.iter().any(|node| node.name == name && node.doing.contains(what))
    };
    cluster.until("a restart", |status| does(status, "b", "restarts")).await;
    assert_eq!(health(&cluster, "b"), NodeHealth::Draining, "nothing new is sent there");
    reader.batch_execute("COMMIT").await.unwrap();
    wait_until(LONG, || async { reader.batch_execute("SELECT 1").await.is_err() }).await;
    cluster.ready().await;

    // the same where nobody has asked for it: slots are given to one replica after the other
    let (on_b, on_c) = (cluster.client("b").await, cluster.client("c").await);
    for reader in [&on_b, &on_c] {
        reader.batch_execute("BEGIN; SELECT 1").await.unwrap();
    }
    let primary = cluster.client("a").await;
    primary.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    let slots = "restarts with the slots";
    cluster.until("slots", |status| does(status, "b", slots) || does(status, "c", slots)).await;
    let first = if does(&cluster.status.borrow(), "b", slots) { ("b", on_b) } else { ("c", on_c) };
    assert_eq!(health(&cluster, first.0), NodeHealth::Draining);
    first.1.batch_execute("COMMIT").await.unwrap();
    cluster.ready().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_server_that_is_no_node_any_more_is_stopped_by_the_next_supervisor() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let pid = cluster.node("b").pid.unwrap();
    cluster.drop_supervisor();
    cluster.spec = without(&cluster.spec, "b");
    cluster.supervise();
    wait_until(LONG, || async { !is_running(pid) }).await;
    cluster.ready().await;
    cluster.until("nothing kept for it", |status| !has_slot(status, "node_b")).await;
    cluster.replicates(1).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_joins_and_leaves_agents_each_by_its_own_files() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let d = another(&agents.spec, "d");
    let mut more = agents.spec.clone();
    more.nodes.push(d);
    more.settings.push(Setting::new("work_mem", "5MB", "a test"));
    // the newcomer may be the first to know
    agents.spec = more.clone();
    agents.supervise("d");
    // all at once: each changes the record that all share
    let reload = |name: &'static str| agents.running[name].handle.reload(agents.of(name, &more));
    let (a, b, c) = tokio::join!(reload("a"), reload("b"), reload("c"));
    for (name, said) in [("a", a), ("b", b), ("c", c)] {
        let said = said.unwrap();
        assert!(said.starts_with("d joins"), "{name}: {said}");
    }
    agents.ready().await;
    let primary = agents.client("a").await;
    primary.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    let newcomer = agents.client("d").await;
    wait_until(LONG, || async { newcomer.query_one("SELECT count(*) FROM t", &[]).await.is_ok() }).await;

    let fewer = without(&agents.spec, "b");
    let refused = agents.running["a"].handle.reload(agents.of("a", &fewer)).await.unwrap_err();
    assert_eq!(refused, "the agent of b still runs: stop it first");
    let refused = agents.running["b"].handle.reload(agents.of("b", &fewer)).await.unwrap_err();
    assert_eq!(refused, "this is the agent of b: stop it, and say it on the other hosts");
    agents.end("b").await;
    agents.until("a promise without it", |status| promised(status) == ["c", "d"]).await;
    agents.spec = fewer.clone();
    for name in ["d", "a", "c"] {
        assert_eq!(agents.running[name].handle.reload(agents.of(name, &fewer)).await.unwrap(), "b leaves");
    }
    agents.ready().await;
    agents.until("nothing kept for it", |status| !has_slot(status, "node_b")).await;

    // the newcomer is as good as any
    agents.any().handle.switchover(Some(NodeName::new("d"))).await.unwrap();
    agents.until("d", |status| status.primary_ready && status.primary.as_deref() == Some("d")).await;
    agents.ready().await;
    assert!(!agents.any().status.borrow().nodes.iter().any(|node| node.name == "b"));
    assert_eq!(agents.running.len(), 3);
    tokio::time::timeout(Duration::from_secs(60), agents.stop()).await.unwrap();
}
