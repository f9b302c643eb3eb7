//! A cluster of real servers in a folder that goes away with the test.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use millrace_base::{
    Clock, Secret, SystemClock, Tasks,
    tls::{TlsFiles, default_hosts},
};
use millrace_cluster::{ClusterSpec, ClusterStatus, Limits, NodeName, NodeSpec, Supervisor, operate::Handle};
use millrace_contract::status::NodeStatus;
use millrace_pg::{Binaries, Connection, RunAs, Setting, connect};
use millrace_testkit::{Sandbox, free_port, wait_until};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) spec: ClusterSpec,
    pub(crate) status: watch::Receiver<ClusterStatus>,
    pub(crate) handle: Option<Handle>,
    pub(crate) token: CancellationToken,
    pub(crate) tasks: Option<Tasks>,
    pub(crate) sandbox: Sandbox,
}

pub(crate) fn spec_in(folder: &Path, names: &[&str]) -> ClusterSpec {
    let tls = TlsFiles::in_folder(folder.join("tls"));
    tls.generate(&default_hosts(&[]), SystemClock::new().wall()).unwrap();
    let nodes = names.iter().map(|name| NodeSpec {
        name: NodeName::new(name),
        host: "127.0.0.1".into(),
        port: free_port(),
        folder: folder.join(name),
        priority: 1,
        apply_delay: None,
    });
    ClusterSpec {
        nodes: nodes.collect(),
        binaries: Binaries::find(None).unwrap(),
        run_as: RunAs::resolve(None).unwrap(),
        listen: vec!["127.0.0.1".into()],
        agent: None,
        // so that many tests run beside one another; a disk is not what is tested here
        settings: vec![Setting::new("dynamic_shared_memory_type", "mmap", "")],
        hba: Vec::new(),
        superuser_password: Secret::generate(),
        replicator_password: Secret::generate(),
        tls,
        state_dir: folder.to_owned(),
        log_dir: folder.to_owned(),
        seed: None,
        limits: Limits {
            shared_buffers_mb: 16,
            max_connections: 20,
            not_streaming_max: Duration::from_secs(3),
            ..Limits::default()
        },
    }
}

impl Cluster {
    pub(crate) async fn start(names: &[&str]) -> Self {
        Self::start_with(names, |_| ()).await
    }

    pub(crate) async fn start_with(names: &[&str], change: impl FnOnce(&mut Limits)) -> Self {
        Self::start_as(names, |spec| change(&mut spec.limits)).await
    }

    pub(crate) async fn start_as(names: &[&str], change: impl FnOnce(&mut ClusterSpec)) -> Self {
        let sandbox = Sandbox::new();
        let mut spec = spec_in(sandbox.path(), names);
        change(&mut spec);
        let mut cluster = Self::supervised(sandbox, spec);
        cluster.ready().await;
        cluster
    }

    /// One that is about to come up.
    pub(crate) fn supervised(sandbox: Sandbox, spec: ClusterSpec) -> Self {
        let mut cluster = Self {
            spec,
            status: watch::channel(ClusterStatus::default()).1,
            handle: None,
            token: CancellationToken::new(),
            tasks: None,
            sandbox,
        };
        cluster.supervise();
        cluster
    }

    /// A (new) supervisor.
    pub(crate) fn supervise(&mut self) {
        let (supervisor, status) = Supervisor::new(self.spec.clone(), Arc::new(SystemClock::new())).unwrap();
        self.status = status;
        self.handle = Some(supervisor.handle());
        self.token = CancellationToken::new();
        let mut tasks = Tasks::new(self.token.clone());
        tasks.spawn("supervisor", supervisor.run(self.token.clone()));
        self.tasks = Some(tasks);
    }

    /// As a `kill -9` of the platform: the supervisor is gone from one moment to the next.
    pub(crate) fn drop_supervisor(&mut self) {
        self.tasks = None;
    }

    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&ClusterStatus) -> bool) {
        let waiting = self.status.wait_for(|status| condition(status));
        let came = tokio::time::timeout(LONG, waiting).await.is_ok_and(|waited| waited.is_ok());
        if !came {
            let status = self.status.borrow().clone();
            panic!("{what} did not come; {status:#?}\n{}", self.logs());
        }
    }

    pub(crate) async fn ready(&mut self) {
        let nodes = self.spec.nodes.len();
        self.until("a ready cluster", |status| status.all_ready && status.nodes.len() == nodes).await;
    }

    pub(crate) fn logs(&self) -> String {
        let log = |node: &NodeSpec| {
            let log = std::fs::read_to_string(self.spec.log_dir.join(format!("{}.log", node.name)));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- {}\n{}\n", node.name, lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        self.spec.nodes.iter().map(log).collect()
    }

    pub(crate) fn node(&self, name: &str) -> NodeStatus {
        self.status.borrow().nodes.iter().find(|node| node.name == name).unwrap().clone()
    }

    pub(crate) fn pids(&self) -> BTreeMap<String, u32> {
        self.status.borrow().nodes.iter().map(|node| (node.name.clone(), node.pid.unwrap())).collect()
    }

    pub(crate) fn folder(&self, name: &str) -> std::path::PathBuf {
        self.sandbox.path().join(name)
    }

    pub(crate) async fn client(&self, name: &str) -> Connection {
        let node = self.spec.node(&NodeName::new(name)).unwrap();
        match connect(&self.spec.superuser(node).unwrap(), Duration::from_secs(10)).await {
            Ok(connection) => connection,
            Err(error) => panic!("{error}; {:#?}\n{}", self.status.borrow(), self.logs()),
        }
    }

    pub(crate) fn kill(&self, name: &str) {
        let pid = i32::try_from(self.node(name).pid.unwrap()).unwrap();
        let killed = std::process::Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap();
        assert!(killed.success());
    }

    /// Kills a node's server and waits until another one runs and everything is well again.
    pub(crate) async fn kill_and_recover(&mut self, name: &str) {
        let before = self.node(name).pid;
        self.kill(name);
        self.until("another process", |status| {
            status.nodes.iter().any(|node| node.name == name && node.pid.is_some() && node.pid != before)
        })
        .await;
        self.ready().await;
    }

    /// What is written on the primary arrives on every replica.
    pub(crate) async fn replicates(&self, value: i32) {
        let primary = self.client("a").await;
        primary
            .batch_execute(&format!("CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES ({value})"))
            .await
            .unwrap();
        for node in self.spec.nodes.iter().skip(1) {
            let replica = self.client(node.name.as_str()).await;
            wait_until(LONG, || async {
                let there = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 't')";
                let there: bool = replica.query_one(there, &[]).await.unwrap().get(0);
                there && replica.query_opt("SELECT i FROM t WHERE i = $1", &[&value]).await.unwrap().is_some()
            })
            .await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        self.token.cancel();
        let tasks = self.tasks.take().unwrap();
        let failed = tasks.shutdown(LONG).await;
        assert!(failed.is_empty(), "{failed:?}");
    }
}

pub(crate) fn is_running(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}
