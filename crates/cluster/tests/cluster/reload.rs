//! Settings given to a running cluster, and servers restarted for them.

use millrace_cluster::{ClusterSpec, NodeName, history};
use millrace_pg::{Connection, Setting};

use crate::{agents::Agents, harness::Cluster};

fn with(spec: &ClusterSpec, settings: &[(&str, &str)]) -> ClusterSpec {
    let mut spec = spec.clone();
    spec.settings.extend(settings.iter().map(|(name, value)| Setting::new(*name, *value, "")));
    spec
}

async fn setting(client: &Connection, name: &str) -> String {
    client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap().get(0)
}

impl Cluster {
    async fn reload(&self, settings: &[(&str, &str)]) -> String {
        let spec = with(&self.spec, settings);
        spec.check_settings().await.unwrap();
        self.handle.as_ref().unwrap().reload(spec).await.unwrap()
    }

    /// Restarts a server and waits until it is back.
    async fn restart(&mut self, name: &str) {
        let since = |status: &millrace_cluster::ClusterStatus| {
            status.nodes.iter().find(|node| node.name == name).and_then(|node| node.since)
        };
        let before = since(&self.status.borrow());
        self.handle.as_ref().unwrap().restart(NodeName::new(name)).await.unwrap();
        self.until("a restart", |status| since(status).is_some_and(|now| Some(now) != before) && status.all_ready)
            .await;
    }

    fn pending(&self) -> Vec<(String, Vec<String>)> {
        let status = self.status.borrow();
        status.nodes.iter().map(|node| (node.name.clone(), node.pending_restart.clone())).collect()
    }

    async fn each_has(&self, name: &str, value: &str) {
        for node in &self.spec.nodes {
            let client = self.client(node.name.as_str()).await;
            assert_eq!(setting(&client, name).await, value, "{name} on {}", node.name);
        }
    }
}

#[tokio::test]
async fn settings_reach_every_server_and_wait_for_restarts_where_they_must() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    for (wrong, words) in [("shared_buffers", "plenty"), ("no_such_setting", "1")] {
        let error = with(&cluster.spec, &[(wrong, words)]).check_settings().await.unwrap_err();
        assert!(format!("{error}").contains(wrong), "{error}");
    }
    let said = cluster.reload(&[("work_mem", "9MB"), ("max_connections", "30")]).await;
    assert_eq!(said, "servers are given max_connections, work_mem");
    let waits = vec!["max_connections".to_owned()];
    cluster.until("settings that wait", |status| status.nodes.iter().all(|node| node.pending_restart == waits)).await;
    cluster.each_has("work_mem", "9MB").await;
    cluster.each_has("max_connections", "20").await;
    let finding = cluster.status.borrow().findings.first().cloned().unwrap();
    assert_eq!((finding.subject.as_str(), finding.what_to_do.as_str()), ("node a", "millrace cluster restart"));

    cluster.restart("b").await;
    cluster.restart("a").await;
    cluster.each_has("max_connections", "30").await;
    assert_eq!(cluster.status.borrow().primary.as_deref(), Some("a"));
    assert_eq!((cluster.status.borrow().term, cluster.pending().iter().map(|(_, names)| names.len()).sum()), (1, 0));

    // fewer: a replica keeps what its primary has, and starts
    cluster.reload(&[("work_mem", "9MB"), ("max_connections", "25")]).await;
    cluster.until("settings that wait", |status| status.nodes.iter().any(|node| node.pending_restart == waits)).await;
    cluster.restart("b").await;
    assert_eq!(setting(&cluster.client("b").await, "max_connections").await, "30");
    cluster.restart("a").await;
    cluster.restart("b").await;
    cluster.each_has("max_connections", "25").await;

    let history = history::read(&cluster.spec.state_dir).unwrap();
    let told: Vec<String> = history.iter().map(|entry| entry.event.to_string()).collect();
    for line in ["servers are given max_connections, work_mem", "an operator wants b restarted"] {
        assert!(told.iter().any(|said| said == line), "{told:#?}");
    }
}

/// A transaction that does not end keeps the primary from its restart, and nothing is lost by having tried.
#[tokio::test]
async fn a_primary_restarts_between_transactions() {
    let mut cluster = Cluster::start(&["a"]).await;
    let client = cluster.client("a").await;
    client.batch_execute("CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let handle = cluster.handle.clone().unwrap();
    handle.restart(NodeName::new("a")).await.unwrap();
    cluster
        .until("a server that is held back", |status| status.nodes.iter().any(|node| node.doing.contains("restarts")))
        .await;
    cluster.until("the server as it was", |status| status.all_ready).await;
    client.batch_execute("COMMIT").await.unwrap();
    cluster.restart("a").await;
    let count: i64 = cluster.client("a").await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
}

#[tokio::test]
async fn settings_and_restarts_are_said_on_any_host() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let handle = agents.any().handle.clone();
    let spec = with(&agents.spec, &[("work_mem", "9MB"), ("max_connections", "30")]);
    handle.reload(spec).await.unwrap();
    let waits = |node: &millrace_contract::status::NodeStatus| node.pending_restart == ["max_connections"];
    agents.until("settings that wait everywhere", |status| status.nodes.iter().all(waits)).await;
    for name in ["c", "b"] {
        handle.restart(NodeName::new(name)).await.unwrap();
        agents
            .until("a restarted server", |status| {
                status.all_ready && status.nodes.iter().any(|node| node.name == name && node.pending_restart.is_empty())
            })
            .await;
        let client = agents.client(name).await;
        assert_eq!(
            (setting(&client, "work_mem").await.as_str(), setting(&client, "max_connections").await.as_str()),
            ("9MB", "30")
        );
    }
    let term = agents.any().status.borrow().term;
    handle.restart(NodeName::new("a")).await.unwrap();
    agents.until("no settings that wait", |status| status.all_ready && !status.nodes.iter().any(waits)).await;
    assert_eq!((agents.primary(), agents.any().status.borrow().term), ("a".to_owned(), term), "it stays the primary");

    // an agent that is started again has what the cluster has, whatever its own file says
    drop(agents.running.remove("b"));
    agents.supervise("b");
    agents.ready().await;
    assert_eq!(setting(&agents.client("b").await, "work_mem").await, "9MB");
    agents.stop().await;
}
