//! What a cluster is to be: the immutable value that the configuration gives.

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration};

use millrace_base::{Micros, Secret, tls::TlsFiles};
use millrace_pg::{Binaries, ConnectParams, HbaRule, RunAs, ServerSpec, Setting, server::Upstream};
use serde::{Deserialize, Serialize};

use crate::{
    error::ClusterError,
    observed::{Durability, Part},
    seed::Seed,
    settings,
    store::EtcdSpec,
};

/// The platform's superuser on every server.
pub const SUPERUSER: &str = "postgres";
/// The role as which replicas receive log.
pub const REPLICATOR: &str = "replicator";

/// A node's name: lowercase letters, digits and `_`, so that it can be part of a slot's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(Arc<str>);

impl NodeName {
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The physical slot on the primary that this node, as a replica, uses.
    #[must_use]
    pub fn slot(&self) -> String {
        format!("node_{}", self.0)
    }

    fn is_valid(&self) -> bool {
        (1..=40).contains(&self.0.len())
            && self.0.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One server's place.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub name: NodeName,
    /// How the platform and the other nodes reach its server; the certificate names it.
    pub host: String,
    pub port: u16,
    /// Holds `data/` and what belongs to it ([`ServerSpec`]).
    pub folder: PathBuf,
    /// See [`crate::observed::Part::priority`].
    pub priority: u32,
    /// It applies what it receives so much later: there is a state to look at from before a mistake. Its priority is 0.
    pub apply_delay: Option<Duration>,
}

impl NodeSpec {
    pub(crate) fn part(&self) -> Part {
        Part { priority: self.priority, delayed: self.apply_delay.is_some() }
    }
}

/// Sizes and times.
#[derive(Debug, Clone)]
pub struct Limits {
    pub shared_buffers_mb: u32,
    pub max_connections: u32,
    /// Log that slots may keep before they are given up, in MB.
    pub max_slot_wal_keep_mb: u32,
    /// Another primary is elected when the present one is lost.
    pub failover: bool,
    pub durability: Durability,
    /// A primary that has not answered for this long is as good as dead.
    pub silent_max: Duration,
    /// A primary that is not ready this long after its start is as good as dead.
    pub start_max: Duration,
    /// A replica that has not received the primary's log for this long is not waited for any more.
    pub absent_max: Duration,
    /// Where a lost lease does not prove that its holder is dead: a replica does not turn away from a primary whose log
    /// it has received within this.
    pub hold: Duration,
    /// A server that does not answer a probe within this is unresponsive.
    pub probe_timeout: Duration,
    /// Between looks at everything when nothing happens.
    pub observe_interval: Duration,
    /// A server's orderly stop; after it an immediate one.
    pub stop_timeout: Duration,
    pub base_backup_timeout: Duration,
    /// A replica that answers but receives nothing for this long, and cannot, is rebuilt.
    pub not_streaming_max: Duration,
    pub restart_delay_first: Duration,
    pub restart_delay_max: Duration,
    /// A server that ran this long starts from the first delay again.
    pub stable_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shared_buffers_mb: 256,
            max_connections: 100,
            max_slot_wal_keep_mb: 8 * 1024,
            failover: true,
            durability: Durability::Quorum { quorum: 1, strict: false },
            silent_max: Duration::from_secs(3),
            start_max: Duration::from_secs(60),
            absent_max: Duration::from_secs(5),
            hold: Duration::from_millis(1500),
            probe_timeout: Duration::from_secs(2),
            observe_interval: Duration::from_secs(1),
            stop_timeout: Duration::from_secs(30),
            base_backup_timeout: Duration::from_secs(6 * 3600),
            not_streaming_max: Duration::from_secs(15),
            restart_delay_first: Duration::from_millis(200),
            restart_delay_max: Duration::from_secs(30),
            stable_after: Duration::from_secs(60),
        }
    }
}

/// One of several supervisors.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// The node that it decides for; `None`: it listens to the others, and passes an operator's word on.
    pub node: Option<NodeName>,
    pub etcd: EtcdSpec,
}

/// Which restore from a backup data comes from, where the nodes are on many hosts. A later one is greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RestoreId(String);

impl RestoreId {
    /// Of a restore on `node` at this time, after `before`. Clocks of hosts differ: what comes after is counted.
    #[must_use]
    pub fn after(before: Option<&Self>, at: Micros, node: &NodeName) -> Self {
        let number = |id: &Self| id.0.split('-').next().and_then(|number| number.parse::<u64>().ok());
        let number = before.and_then(number).unwrap_or(0) + 1;
        Self(format!("{number:010}-{:020}-{node}", at.0))
    }

    pub(crate) fn parse(text: &str) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Display for RestoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A cluster.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// The first becomes the primary of a new cluster.
    pub nodes: Vec<NodeSpec>,
    pub binaries: Binaries,
    pub run_as: RunAs,
    /// Addresses that the servers listen on.
    pub listen: Vec<String>,
    /// If each node has a supervisor of its own, on a host of its own: which node this one's is, and where they meet.
    pub agent: Option<AgentSpec>,
    /// The user's own, in force over the platform's.
    pub settings: Vec<Setting>,
    /// Who may come in besides the superuser and the replicas.
    pub hba: Vec<HbaRule>,
    pub superuser_password: Secret,
    pub replicator_password: Secret,
    pub tls: TlsFiles,
    /// Holds the cluster's record; exists.
    pub state_dir: PathBuf,
    /// Holds a log for each node; exists.
    pub log_dir: PathBuf,
    pub limits: Limits,
    /// Asked first when a replica is made.
    pub seed: Option<Arc<dyn Seed>>,
}

/// Settings that the platform's own working rests on.
const RESERVED: [&str; 18] = [
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "ssl",
    "ssl_cert_file",
    "ssl_key_file",
    "password_encryption",
    "lc_messages",
    "logging_collector",
    "log_destination",
    "primary_conninfo",
    "primary_slot_name",
    "wal_level",
    "hot_standby",
    "fsync",
    "full_page_writes",
    "synchronous_standby_names",
    "synchronous_commit",
];

impl ClusterSpec {
    /// Whether it can be a cluster at all.
    ///
    /// # Errors
    /// [`ClusterError::Spec`] names what is wrong.
    pub fn validate(&self) -> Result<(), ClusterError> {
        let wrong = |text: String| Err(ClusterError::Spec(text));
        if self.nodes.is_empty() {
            return wrong("it has no nodes".to_owned());
        }
        let (mut names, mut ports, mut folders) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for node in &self.nodes {
            if !node.name.is_valid() {
                return wrong(format!(
                    "`{}` is no name for a node; use at most 40 lowercase letters, digits and _",
                    node.name
                ));
            }
            if !names.insert(&node.name) {
                return wrong(format!("two nodes are named {}", node.name));
            }
            if !ports.insert((&node.host, node.port)) {
                return wrong(format!("two nodes use port {}", node.port));
            }
            if !folders.insert((self.agent.as_ref().map(|_| &node.host), &node.folder)) {
                return wrong(format!("two nodes use the folder {}", node.folder.display()));
            }
        }
        let of_agent = self.agent.as_ref().and_then(|agent| agent.node.as_ref());
        if let Some(name) = of_agent.filter(|name| self.node(name).is_none()) {
            return wrong(format!("there is no node {name}"));
        }
        if self.nodes.first().is_some_and(|first| first.priority == 0) {
            return wrong("the first node is the primary of a new cluster, and its failover_priority is 0".to_owned());
        }
        if let Some(node) = self.nodes.iter().find(|node| node.apply_delay.is_some() && node.priority > 0) {
            return wrong(format!("node {} applies late, so its failover_priority is 0", node.name));
        }
        match self.settings.iter().find(|s| RESERVED.contains(&s.name.to_ascii_lowercase().as_str())) {
            Some(setting) => wrong(format!("the setting {} is the platform's to decide", setting.name)),
            None => Ok(()),
        }
    }

    /// The nodes that this supervisor decides for.
    pub fn own(&self) -> impl Iterator<Item = &NodeSpec> {
        self.nodes.iter().filter(|node| self.is_own(node.name.as_str()))
    }

    /// This supervisor decides for the node of this name, if there is one.
    #[must_use]
    pub fn is_own(&self, name: &str) -> bool {
        let is_agents = |agent: &AgentSpec| agent.node.as_ref().is_some_and(|node| node.as_str() == name);
        self.agent.as_ref().is_none_or(is_agents)
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// What the node's server is made and started from.
    #[must_use]
    pub fn server(&self, node: &NodeSpec) -> ServerSpec {
        let mut all = settings::of_platform(&self.limits, self.nodes.len());
        all.push(Setting::new("cluster_name", format!("millrace {}", node.name), "shown in the process list"));
        all.extend(self.settings.iter().cloned());
        if let Some(delay) = node.apply_delay {
            let delay = format!("{}ms", delay.as_millis());
            all.push(Setting::new("recovery_min_apply_delay", delay, "there is a state from before a mistake"));
            let why = "what is read here is old: the primary need not keep its dead rows for it";
            all.push(Setting::new("hot_standby_feedback", "off", why));
        }
        ServerSpec {
            binaries: self.binaries.clone(),
            run_as: self.run_as.clone(),
            folder: node.folder.clone(),
            log_file: self.log_dir.join(format!("{}.log", node.name)),
            listen: self.listen.clone(),
            port: node.port,
            tls: self.tls.clone(),
            settings: all,
            hba: settings::hba(self),
        }
    }

    /// Whether a server would start with these settings, by its own program; nothing is changed.
    ///
    /// # Errors
    /// The server's words, if it would not, or if none of this supervisor's nodes has data to try it with.
    pub async fn check_settings(&self) -> Result<(), ClusterError> {
        let made = |node: &&NodeSpec| self.server(node).data_dir().join("PG_VERSION").exists();
        let Some(node) = self.own().find(made) else {
            return Err(ClusterError::Spec("no node here could try the settings; say it on a node's host".to_owned()));
        };
        self.server(node).check_settings().await.map_err(ClusterError::node(&node.name))
    }

    /// Where `replica` gets its log from.
    #[must_use]
    pub fn upstream(&self, primary: &NodeSpec, replica: &NodeName) -> Upstream {
        Upstream {
            host: primary.host.clone(),
            port: primary.port,
            user: REPLICATOR.to_owned(),
            password: self.replicator_password.clone(),
            slot: replica.slot(),
            application_name: replica.to_string(),
        }
    }

    /// How the superuser reaches a node's database `postgres`.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn superuser(&self, node: &NodeSpec) -> Result<ConnectParams, ClusterError> {
        self.superuser_at(&node.host, node.port)
    }

    /// As [`ClusterSpec::superuser`], of a node by its place.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn superuser_at(&self, host: &str, port: u16) -> Result<ConnectParams, ClusterError> {
        let tls = self.tls.client_config().map_err(|error| ClusterError::Spec(error.to_string()))?;
        Ok(ConnectParams {
            host: host.to_owned(),
            port,
            database: "postgres".to_owned(),
            user: SUPERUSER.to_owned(),
            password: self.superuser_password.clone(),
            tls: Some(tls),
            application_name: "millrace supervisor".to_owned(),
        })
    }
}
