//! A supervisor for each node, meeting in a real etcd.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_base::{Secret, SystemClock, Tasks};
use millrace_cluster::{
    AgentSpec, ClusterSpec, ClusterStatus, EtcdSpec, NodeName, Supervisor, history, operate::Handle,
};
use millrace_pg::{Connection, connect};
use millrace_testkit::{Sandbox, free_port, wait_until};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::harness::{LONG, spec_in};

const TTL: Duration = Duration::from_secs(3);

/// One member of etcd.
struct Etcd {
    process: Child,
    endpoint: String,
    /// As whom agents come.
    user: Option<(String, Secret)>,
}

impl Etcd {
    fn start(sandbox: &Sandbox) -> Self {
        let (client, peer) = (free_port(), free_port());
        let endpoint = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let folder = sandbox.path().join("etcd");
        std::fs::create_dir_all(&folder).unwrap();
        let process = Command::new("etcd")
            .args(["--name", "e", "--data-dir"])
            .arg(folder.join("data"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("e={peers}"), "--log-level", "error"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("etcd: `make setup` installs it");
        Self { process, endpoint, user: None }
    }

    /// From now on it asks everyone who he is, and lets `agent` at what belongs to the cluster alone.
    async fn close(&mut self) {
        wait_until(Duration::from_secs(10), || async {
            let Ok(mut client) = etcd_client::Client::connect([&self.endpoint], None).await else { return false };
            client.status().await.is_ok_and(|status| status.leader() != 0)
        })
        .await;
        let mut client = etcd_client::Client::connect([&self.endpoint], None).await.unwrap();
        let own = etcd_client::Permission::read_write("/millrace/test/").with_prefix();
        client.user_add("root", "of root", None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.role_add("cluster").await.unwrap();
        client.role_grant_permission("cluster", own).await.unwrap();
        client.user_add("agent", "of the agent", None).await.unwrap();
        client.user_grant_role("agent", "cluster").await.unwrap();
        client.auth_enable().await.unwrap();
        let mut nobody = etcd_client::Client::connect([&self.endpoint], None).await.unwrap();
        nobody.get("/millrace/test/record", None).await.unwrap_err();
        self.user = Some(("agent".to_owned(), Secret::new("of the agent")));
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // the sandbox's watchdog does the same should this fail
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

pub(crate) struct Agent {
    pub(crate) status: watch::Receiver<ClusterStatus>,
    pub(crate) handle: Handle,
    token: CancellationToken,
    tasks: Tasks,
}

pub(crate) struct Agents {
    pub(crate) spec: ClusterSpec,
    pub(crate) running: BTreeMap<String, Agent>,
    etcd: Etcd,
    pub(crate) sandbox: Sandbox,
}

impl Agents {
    pub(crate) async fn start(names: &[&str]) -> Self {
        let mut agents = Self::at_rest(names);
        for name in names {
            agents.supervise(name);
        }
        agents.ready().await;
        agents
    }

    pub(crate) fn at_rest(names: &[&str]) -> Self {
        // shown with RUST_LOG, and if the test fails
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init().ok();
        let sandbox = Sandbox::new();
        let spec = spec_in(sandbox.path(), names);
        let etcd = Etcd::start(&sandbox);
        Self { spec, running: BTreeMap::new(), etcd, sandbox }
    }

    /// A (new) supervisor of a node.
    pub(crate) fn supervise(&mut self, name: &str) {
        let spec = self.of(name, &self.spec);
        std::fs::create_dir_all(&spec.state_dir).unwrap();
        let (supervisor, status) = Supervisor::new(spec, Arc::new(SystemClock::new())).unwrap();
        let handle = supervisor.handle();
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        tasks.spawn("supervisor", supervisor.run(token.clone()));
        self.running.insert(name.to_owned(), Agent { status, handle, token, tasks });
    }

    /// A cluster as the agent of this node has it.
    pub(crate) fn of(&self, name: &str, spec: &ClusterSpec) -> ClusterSpec {
        let mut spec = spec.clone();
        spec.state_dir = self.sandbox.path().join(format!("{name}.state"));
        spec.agent = Some(AgentSpec {
            node: Some(NodeName::new(name)),
            etcd: EtcdSpec {
                endpoints: vec![self.etcd.endpoint.clone()],
                ca: None,
                identity: None,
                user: self.etcd.user.clone(),
                prefix: "/millrace/test".into(),
                ttl: TTL,
            },
        });
        spec
    }

    /// What each supervisor that runs comes to say.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&ClusterStatus) -> bool) {
        for (name, agent) in &mut self.running {
            let waiting = agent.status.wait_for(|status| condition(status));
            let came = tokio::time::timeout(LONG, waiting).await.is_ok_and(|waited| waited.is_ok());
            if !came {
                let status = agent.status.borrow().clone();
                panic!("{what} did not come to {name}; {status:#?}\n{}", logs(&self.spec));
            }
        }
    }

    pub(crate) async fn ready(&mut self) {
        let nodes = self.spec.nodes.len();
        self.until("a ready cluster", |status| status.all_ready && status.nodes.len() == nodes).await;
        let setting = |status: &ClusterStatus| status.promise.members.len() == nodes - 1;
        self.until("a promise", setting).await;
    }

    pub(crate) fn any(&self) -> &Agent {
        self.running.values().next().unwrap()
    }

    pub(crate) fn primary(&self) -> String {
        self.any().status.borrow().primary.clone().unwrap()
    }

    pub(crate) async fn another_primary(&mut self, than: &str) -> String {
        self.until("another primary", |status| status.primary_ready && status.primary.as_deref() != Some(than)).await;
        self.primary()
    }

    /// As some come to say: one that hangs itself may not.
    pub(crate) async fn another_primary_by(&mut self, than: &str, by: &str) -> String {
        let agent = self.running.get_mut(by).unwrap();
        let is_another = |status: &ClusterStatus| status.primary_ready && status.primary.as_deref() != Some(than);
        let status = tokio::time::timeout(LONG, agent.status.wait_for(is_another)).await.unwrap();
        let primary = status.unwrap().primary.clone();
        primary.unwrap()
    }

    pub(crate) async fn client(&self, name: &str) -> Connection {
        let node = self.spec.node(&NodeName::new(name)).unwrap();
        connect(&self.spec.superuser(node).unwrap(), Duration::from_secs(10)).await.unwrap()
    }

    fn pid(&self, name: &str) -> u32 {
        let status = self.running[name].status.borrow();
        status.nodes.iter().find(|node| node.name == name).unwrap().pid.unwrap()
    }

    /// Stops one in order, and its server.
    pub(crate) async fn end(&mut self, name: &str) {
        let agent = self.running.remove(name).unwrap();
        agent.token.cancel();
        let failed = agent.tasks.shutdown(LONG).await;
        assert!(failed.is_empty(), "{failed:?}");
    }

    pub(crate) async fn stop(mut self) {
        for agent in self.running.values() {
            agent.token.cancel();
        }
        for (_, agent) in std::mem::take(&mut self.running) {
            let failed = agent.tasks.shutdown(LONG).await;
            assert!(failed.is_empty(), "{failed:?}");
        }
    }
}

fn logs(spec: &ClusterSpec) -> String {
    let log = |node: &millrace_cluster::NodeSpec| {
        let log = std::fs::read_to_string(spec.log_dir.join(format!("{}.log", node.name))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- {}\n{}\n", node.name, lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    spec.nodes.iter().map(log).collect()
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

async fn count(client: &Connection) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
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
async fn a_killed_server_is_replaced_at_once() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    assert_eq!(agents.primary(), "a");
    agents.client("a").await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    for round in 0..3 {
        let old = agents.primary();
        let client = agents.client(&old).await;
        let before = count(&client).await;
        let pid = agents.pid(&old);
        let killing = async {
            tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>()).await.unwrap_err();
            kill(pid);
            Instant::now()
        };
        let (acknowledged, killed) = tokio::join!(write_until_it_fails(&client), killing);
        let new = agents.another_primary(&old).await;
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(20), "round {round}: {new} was ready after {took:?}");
        let client = agents.client(&new).await;
        let found = count(&client).await - before;
        assert!((acknowledged..=acknowledged + 1).contains(&found), "{acknowledged} acknowledged, {found} found");
        agents.ready().await;
    }
    // not by leases that ended
    let history = history::read(&agents.sandbox.path().join("a.state")).unwrap();
    let resigned = |entry: &&history::Entry| matches!(entry.event, history::Event::Resigned { .. });
    assert_eq!(history.iter().filter(resigned).count(), 3);
    let away = history.iter().filter_map(|entry| match &entry.event {
        history::Event::Promoted { after_ms, away_ms, .. } => Some((after_ms.unwrap(), away_ms.unwrap())),
        _ => None,
    });
    assert_eq!(away.filter(|(after, away)| away >= after).count(), 3, "{history:?}");
    agents.stop().await;
}

/// Everything of a host ends at once: its supervisor and its server.
#[tokio::test]
async fn a_host_that_is_gone_is_replaced_when_its_lease_ends() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let client = agents.client("a").await;
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    let pid = agents.pid("a");
    drop(agents.running.remove("a"));
    kill(pid);
    let gone = Instant::now();
    let new = agents.another_primary("a").await;
    let took = gone.elapsed();
    assert!(took < Duration::from_secs(20), "{new} was ready after {took:?}");
    assert_eq!(count(&agents.client(&new).await).await, 1);

    agents.supervise("a");
    agents.ready().await;
    assert_eq!(agents.primary(), new);
    agents.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_started_again_goes_on_with_what_runs() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let (pid, term) = (agents.pid("a"), agents.any().status.borrow().term);
    let client = agents.client("a").await;
    for name in ["a", "b"] {
        drop(agents.running.remove(name));
        agents.supervise(name);
        agents.ready().await;
    }
    client.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    assert_eq!((agents.pid("a"), agents.any().status.borrow().term), (pid, term));
    agents.stop().await;
}

/// etcd does not answer for longer than the lease: as long as replicas receive its log, the primary stays.
#[tokio::test]
async fn a_primary_whose_replicas_receive_its_log_outlives_etcd() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let client = agents.client("a").await;
    client.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    let (pid, before) = (agents.pid("a"), agents.any().status.borrow().term);
    agents.etcd.signal("-STOP");
    let stopped = Instant::now();
    while stopped.elapsed() < 5 * TTL {
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    }
    agents.etcd.signal("-CONT");
    let went_on = Instant::now();
    while went_on.elapsed() < TTL {
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    }
    agents.ready().await;
    assert_eq!((agents.primary().as_str(), agents.pid("a")), ("a", pid));
    assert!(agents.any().status.borrow().term <= before + 1);
    agents.stop().await;
}

/// Neither etcd nor a replica: nobody can tell what the others do, so it stops before they may do anything.
#[tokio::test]
async fn a_primary_that_is_alone_is_killed() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let client = agents.client("a").await;
    client.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    for name in ["b", "c"] {
        let pid = agents.pid(name);
        drop(agents.running.remove(name));
        kill(pid);
    }
    agents.etcd.signal("-STOP");
    let stopped = Instant::now();
    client.batch_execute("SELECT pg_sleep(60)").await.unwrap_err();
    assert!(stopped.elapsed() < 2 * TTL, "{:?}", stopped.elapsed());
    agents.etcd.signal("-CONT");
    agents.supervise("b");
    agents.supervise("c");
    agents.ready().await;
    agents.stop().await;
}

#[tokio::test]
async fn a_switchover_is_asked_of_any_agent() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    agents.client("a").await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    let said = agents.running["c"].handle.switchover(Some(NodeName::new("b"))).await;
    assert_eq!(said, Ok("b is the primary".to_owned()));
    agents.until("b", |status| status.primary.as_deref() == Some("b") && status.primary_ready).await;
    assert_eq!(count(&agents.client("b").await).await, 1);
    agents.ready().await;
    assert!(agents.running["a"].handle.switchover(Some(NodeName::new("b"))).await.is_err());

    // a primary that is stopped in order is replaced at once
    agents.end("b").await;
    let stopped = Instant::now();
    let new = agents.another_primary("b").await;
    assert!(stopped.elapsed() < TTL, "{new} after {:?}", stopped.elapsed());
    agents.supervise("b");
    agents.ready().await;
    agents.stop().await;
}

#[tokio::test]
async fn nobody_is_elected_while_it_is_paused() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    agents.running["b"].handle.pause(true).await.unwrap();
    agents.until("a pause", |status| status.paused).await;
    let pid = agents.pid("a");
    kill(pid);
    agents
        .until("another process", |status| {
            status.nodes.iter().any(|node| node.name == "a" && node.pid.is_some_and(|now| now != pid))
        })
        .await;
    agents.ready().await;
    assert_eq!(agents.primary(), "a");
    agents.running["c"].handle.pause(false).await.unwrap();
    agents.until("its end", |status| !status.paused).await;
    agents.stop().await;
}

/// Its host does not come back: the others have everything, and are enough.
#[tokio::test]
async fn two_of_three_go_on_after_all_were_stopped() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    agents.client("a").await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    // the replicas first, so that nobody takes the primary's place
    for name in ["b", "c", "a"] {
        agents.end(name).await;
    }
    agents.supervise("b");
    agents.supervise("c");
    let new = agents.another_primary("a").await;
    assert_eq!(count(&agents.client(&new).await).await, 1);
    agents.supervise("a");
    agents.ready().await;
    agents.stop().await;
}

/// The agent ends between its vote and what follows from it.
#[tokio::test]
async fn a_vote_outlives_the_agent_that_gave_it() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    agents.client("a").await.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    let (term, pid) = (agents.any().status.borrow().term, agents.pid("a"));
    // only one is left to vote, and one is not enough if another has to be asked
    for name in ["a", "c"] {
        let pid = agents.pid(name);
        drop(agents.running.remove(name));
        kill(pid);
    }
    let voted = agents.sandbox.path().join("b").join("vote");
    wait_until(LONG, || async { std::fs::read_to_string(&voted).is_ok() }).await;
    assert_eq!(std::fs::read_to_string(&voted).unwrap().trim(), term.to_string());
    drop(agents.running.remove("b"));
    agents.supervise("b");
    agents.supervise("c");
    let new = agents.another_primary("a").await;
    assert_eq!(count(&agents.client(&new).await).await, 1);
    agents.supervise("a");
    agents.ready().await;
    assert_ne!(agents.pid("a"), pid);
    agents.stop().await;
}

#[tokio::test]
async fn etcd_asks_who_comes() {
    let mut agents = Agents::at_rest(&["a", "b"]);
    agents.etcd.close().await;
    agents.supervise("a");
    agents.supervise("b");
    agents.ready().await;
    let pid = agents.pid("a");
    kill(pid);
    assert_eq!(agents.another_primary("a").await, "b");
    agents.ready().await;
    agents.stop().await;
}

/// Vacuum, checkpoints: a server has things to write of its own accord.
#[tokio::test]
async fn a_primary_whose_agent_is_gone_is_replaced_though_its_log_goes_on() {
    let mut agents = Agents::start(&["a", "b", "c"]).await;
    let client = agents.client("a").await;
    client.batch_execute("SET synchronous_commit = off").await.unwrap();
    drop(agents.running.remove("a"));
    let stop = CancellationToken::new();
    let writing = async {
        // until it is stopped, or its server is killed by the agent that comes back
        while !stop.is_cancelled()
            && client.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'of its own accord')").await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let electing = async {
        let gone = Instant::now();
        let new = agents.another_primary("a").await;
        stop.cancel();
        assert!(gone.elapsed() < Duration::from_secs(30), "{new} after {:?}", gone.elapsed());
    };
    tokio::join!(writing, electing);
    agents.supervise("a");
    agents.ready().await;
    agents.stop().await;
}
