//! Clusters of real servers: made, broken in every way that is promised to be survived, stopped.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use millrace_base::{
    Clock, Secret, SystemClock, Tasks,
    tls::{TlsFiles, default_hosts},
};
use millrace_cluster::{ClusterError, ClusterSpec, ClusterStatus, Limits, NodeName, NodeSpec, Supervisor};
use millrace_contract::status::{NodeState, NodeStatus};
use millrace_pg::{Binaries, Connection, RunAs, ServerError, Setting, connect};
use millrace_testkit::{Sandbox, free_port, wait_until};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

struct Cluster {
    spec: ClusterSpec,
    status: watch::Receiver<ClusterStatus>,
    token: CancellationToken,
    tasks: Option<Tasks>,
    sandbox: Sandbox,
}

fn spec_in(folder: &Path, names: &[&str]) -> ClusterSpec {
    let tls = TlsFiles::in_folder(folder.join("tls"));
    tls.generate(&default_hosts(&[]), SystemClock::new().wall()).unwrap();
    let nodes =
        names.iter().map(|name| NodeSpec { name: NodeName::new(name), port: free_port(), folder: folder.join(name) });
    ClusterSpec {
        nodes: nodes.collect(),
        binaries: Binaries::find(None).unwrap(),
        run_as: RunAs::resolve(None).unwrap(),
        listen: vec!["127.0.0.1".into()],
        host: "127.0.0.1".into(),
        // so that many tests run beside one another; a disk is not what is tested here
        settings: vec![Setting::new("dynamic_shared_memory_type", "mmap", "")],
        hba: Vec::new(),
        superuser_password: Secret::generate(),
        replicator_password: Secret::generate(),
        tls,
        state_dir: folder.to_owned(),
        log_dir: folder.to_owned(),
        limits: Limits {
            shared_buffers_mb: 16,
            max_connections: 20,
            not_streaming_max: Duration::from_secs(3),
            ..Limits::default()
        },
    }
}

impl Cluster {
    async fn start(names: &[&str]) -> Self {
        Self::start_with(names, |_| ()).await
    }

    async fn start_with(names: &[&str], change: impl FnOnce(&mut Limits)) -> Self {
        let sandbox = Sandbox::new();
        let mut spec = spec_in(sandbox.path(), names);
        change(&mut spec.limits);
        let mut cluster = Self {
            spec,
            status: watch::channel(ClusterStatus::default()).1,
            token: CancellationToken::new(),
            tasks: None,
            sandbox,
        };
        cluster.supervise();
        cluster.ready().await;
        cluster
    }

    /// A (new) supervisor.
    fn supervise(&mut self) {
        let (supervisor, status) = Supervisor::new(self.spec.clone(), Arc::new(SystemClock::new())).unwrap();
        self.status = status;
        self.token = CancellationToken::new();
        let mut tasks = Tasks::new(self.token.clone());
        tasks.spawn("supervisor", supervisor.run(self.token.clone()));
        self.tasks = Some(tasks);
    }

    /// As a `kill -9` of the platform: the supervisor is gone from one moment to the next.
    fn drop_supervisor(&mut self) {
        self.tasks = None;
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&ClusterStatus) -> bool) {
        let waiting = self.status.wait_for(|status| condition(status));
        let came = tokio::time::timeout(LONG, waiting).await.is_ok_and(|waited| waited.is_ok());
        if !came {
            let status = self.status.borrow().clone();
            panic!("{what} did not come; {status:#?}\n{}", self.logs());
        }
    }

    async fn ready(&mut self) {
        let nodes = self.spec.nodes.len();
        self.until("a ready cluster", |status| status.all_ready && status.nodes.len() == nodes).await;
    }

    fn logs(&self) -> String {
        let log = |node: &NodeSpec| {
            let log = std::fs::read_to_string(self.spec.log_dir.join(format!("{}.log", node.name)));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- {}\n{}\n", node.name, lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        self.spec.nodes.iter().map(log).collect()
    }

    fn node(&self, name: &str) -> NodeStatus {
        self.status.borrow().nodes.iter().find(|node| node.name == name).unwrap().clone()
    }

    fn pids(&self) -> BTreeMap<String, u32> {
        self.status.borrow().nodes.iter().map(|node| (node.name.clone(), node.pid.unwrap())).collect()
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        self.sandbox.path().join(name)
    }

    async fn client(&self, name: &str) -> Connection {
        let node = self.spec.node(&NodeName::new(name)).unwrap();
        match connect(&self.spec.superuser(node).unwrap(), Duration::from_secs(10)).await {
            Ok(connection) => connection,
            Err(error) => panic!("{error}; {:#?}\n{}", self.status.borrow(), self.logs()),
        }
    }

    fn kill(&self, name: &str) {
        let pid = i32::try_from(self.node(name).pid.unwrap()).unwrap();
        let killed = std::process::Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap();
        assert!(killed.success());
    }

    /// Kills a node's server and waits until another one runs and everything is well again.
    async fn kill_and_recover(&mut self, name: &str) {
        let before = self.node(name).pid;
        self.kill(name);
        self.until("another process", |status| {
            status.nodes.iter().any(|node| node.name == name && node.pid.is_some() && node.pid != before)
        })
        .await;
        self.ready().await;
    }

    /// What is written on the primary arrives on every replica.
    async fn replicates(&self, value: i32) {
        let primary = self.client("a").await;
        primary
            .batch_execute(&format!("CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES ({value})"))
            .await
            .unwrap();
        for node in self.spec.nodes.iter().skip(1) {
            let replica = self.client(node.name.as_str()).await;
            wait_until(LONG, || async {
                let row = replica.query_one("SELECT EXISTS (SELECT FROM pg_class WHERE relname = 't')", &[]).await;
                let there = row.is_ok_and(|row| row.get(0));
                there && replica.query_opt("SELECT i FROM t WHERE i = $1", &[&value]).await.unwrap().is_some()
            })
            .await;
        }
    }

    async fn stop(&mut self) {
        self.token.cancel();
        let tasks = self.tasks.take().unwrap();
        let failed = tasks.shutdown(LONG).await;
        assert!(failed.is_empty(), "{failed:?}");
    }
}

fn is_running(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}

#[tokio::test]
async fn a_cluster_is_made_and_stopped_in_order() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    cluster.replicates(1).await;

    let replica = cluster.client("b").await;
    let refused = replica.batch_execute("CREATE TABLE no (i int)").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "25006");

    let primary = cluster.client("a").await;
    let standbys = millrace_pg::catalog::standbys(&primary).await.unwrap();
    let names: Vec<_> = standbys.iter().map(|s| (s.application_name.as_str(), s.state.as_str())).collect();
    assert_eq!(names, [("b", "streaming"), ("c", "streaming")]);
    let slots = millrace_pg::catalog::slots(&primary).await.unwrap();
    assert!(slots.iter().all(|slot| slot.active && slot.safe_wal_bytes.is_some()), "{slots:?}");
    assert_eq!(slots.len(), 2);
    for (setting, value) in [("data_checksums", "on"), ("wal_level", "logical"), ("ssl", "on"), ("fsync", "on")] {
        let row = primary.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }
    drop((primary, replica));

    let pids = cluster.pids();
    cluster.stop().await;
    assert!(pids.values().all(|pid| !is_running(*pid)), "{pids:?}");
    for name in ["a", "b", "c"] {
        let log = std::fs::read_to_string(cluster.sandbox.path().join(format!("{name}.log"))).unwrap();
        assert!(log.contains("database system is shut down"), "{name}: {log}");
        assert!(!log.contains("was not properly shut down"), "{name}: {log}");
    }

    // and again, on what is there
    cluster.supervise();
    cluster.ready().await;
    cluster.replicates(2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn killed_servers_are_restarted() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    for name in ["b", "a", "b"] {
        cluster.kill_and_recover(name).await;
    }
    cluster.replicates(1).await;
    assert!(cluster.node("b").doing.starts_with("streams from a"), "{:?}", cluster.node("b"));
    cluster.stop().await;
}

#[tokio::test]
async fn servers_of_a_killed_supervisor_are_adopted() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let before = cluster.pids();
    cluster.drop_supervisor();
    assert!(before.values().all(|pid| is_running(*pid)));
    cluster.supervise();
    cluster.ready().await;
    assert_eq!(cluster.pids(), before);
    // adopted servers are watched and stopped as own ones are
    cluster.kill_and_recover("a").await;
    cluster.stop().await;
    assert!(before.values().all(|pid| !is_running(*pid)));
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
    let mut cluster = Cluster::start(&["a", "b"]).await;
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
    cluster.ready().await;
    assert_eq!(cluster.pids().get("a"), before.get("a"));
    cluster.replicates(2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_promoted_replica_is_stopped_kept_and_rebuilt() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let replica = cluster.client("b").await;
    assert!(millrace_pg::catalog::promote(&replica, LONG).await.unwrap());
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
async fn an_interrupted_bootstrap_is_finished() {
    let sandbox = Sandbox::new();
    let spec = spec_in(sandbox.path(), &["a", "b"]);
    let mut cluster = Cluster {
        spec,
        status: watch::channel(ClusterStatus::default()).1,
        token: CancellationToken::new(),
        tasks: None,
        sandbox,
    };
    cluster.supervise();
    cluster.until("initdb", |status| status.nodes.iter().any(|n| n.state == NodeState::Starting)).await;
    cluster.drop_supervisor();
    cluster.supervise();
    let incoming = cluster.folder("b").join("data.incoming");
    wait_until(LONG, || async { incoming.exists() }).await;
    cluster.drop_supervisor();
    cluster.supervise();
    cluster.ready().await;
    cluster.replicates(1).await;
    cluster.stop().await;
}

fn refusal(spec: &ClusterSpec) -> ClusterError {
    match Supervisor::new(spec.clone(), Arc::new(SystemClock::new())) {
        Ok(_) => panic!("it was let through"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn bad_places_are_refused_with_words() {
    let sandbox = Sandbox::new();
    let spec = spec_in(sandbox.path(), &["a", "b"]);

    let taken = std::net::TcpListener::bind(("127.0.0.1", spec.nodes[1].port)).unwrap();
    let error = refusal(&spec);
    assert_eq!(error.to_string(), format!("node b: port {} is in use", spec.nodes[1].port));
    assert!(error.hint().unwrap().contains("ss -ltnp"));
    drop(taken);

    let folder = spec.nodes[0].folder.clone();
    std::fs::create_dir(&folder).unwrap();
    if RunAs::resolve(None).unwrap().name() == "postgres" {
        // root's folder, where servers run as postgres
        let error = refusal(&spec);
        assert!(error.to_string().contains("belongs to root, not to \"postgres\""), "{error}");
        assert!(error.hint().unwrap().contains("chown -R postgres"));
        spec.run_as.own(&folder).unwrap();
    }

    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    spec.run_as.own(&data).unwrap();
    std::fs::write(data.join("holiday.jpg"), "x").unwrap();
    let error = refusal(&spec);
    assert!(error.to_string().ends_with("is not empty and not a PostgreSQL data directory"), "{error}");

    std::fs::create_dir(data.join("base")).unwrap();
    std::fs::write(data.join("PG_VERSION"), "9.6\n").unwrap();
    let error = refusal(&spec);
    assert!(matches!(error, ClusterError::Node { source: ServerError::WrongVersion { .. }, .. }), "{error}");
    assert!(data.join("holiday.jpg").exists(), "nothing there was touched");

    let mut same = spec.clone();
    same.nodes[1].port = same.nodes[0].port;
    assert!(refusal(&same).to_string().contains("two nodes use port"));
    let mut reserved = spec;
    reserved.settings.push(Setting::new("WAL_level", "minimal", ""));
    assert!(refusal(&reserved).to_string().contains("the setting WAL_level is the platform's to decide"));
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
