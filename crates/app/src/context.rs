//! What every command starts from: the platform's folder, read and checked.

use std::path::PathBuf;

use anyhow::anyhow;
use millrace_base::Secret;
use millrace_cluster::{
    AgentSpec, Durability, EtcdSpec,
    spec::{ClusterSpec, Limits, NodeName, NodeSpec, SUPERUSER},
};
use millrace_config::{Config, ConfigError, Environment, Pack, Secrets};
use millrace_contract::status::NodeStatus;
use millrace_pg::{Binaries, ConnectParams, HbaDatabase, HbaRule, HbaSource, RunAs, Setting};

use crate::{
    explain::{Explained, explain},
    layout::Layout,
    lock,
    output::Output,
};

/// The database of the platform's own tables.
pub(crate) const PLATFORM_DATABASE: &str = "millrace";
/// The role as which capture reads.
pub(crate) const CAPTURE_ROLE: &str = "etl_reader";
/// The role at the warehouse's endpoint.
pub(crate) const WAREHOUSE_ROLE: &str = "warehouse_reader";
/// The database name at the warehouse's endpoint.
pub(crate) const WAREHOUSE_DATABASE: &str = "warehouse";

impl<T> Explained<T> for Result<T, ConfigError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint()))
    }
}

/// One platform, as its files describe it.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) output: Output,
    pub(crate) config: Config,
    pub(crate) secrets: Secrets,
    pub(crate) pack: Pack,
    pub(crate) layout: Layout,
}

/// The folder that a command means: the one given, the one of the environment, this one, or `platform` in it.
pub(crate) fn folder(given: Option<&PathBuf>, environment: &Environment) -> PathBuf {
    if let Some(folder) = given.or(environment.dir.as_ref()) {
        return folder.clone();
    }
    let here = PathBuf::from(".");
    let beside = here.join("platform");
    let is_platform = |folder: &PathBuf| folder.join("millrace.toml").is_file();
    if !is_platform(&here) && is_platform(&beside) { beside } else { here }
}

/// Connections that a server admits: room for four full pools, of the largest that there are, beside the platform's own.
pub(crate) fn max_connections(config: &Config) -> u32 {
    let databases = config.proxy.databases.iter().map(|database| database.pool);
    let pools = databases.chain([config.proxy.pool]).map(|pool| pool.size + pool.reserve);
    let pool = pools.max().unwrap_or_default();
    u32::try_from(40 + 4 * pool).unwrap_or(u32::MAX).max(100)
}

impl Context {
    pub(crate) fn load(folder: &std::path::Path, output: Output) -> anyhow::Result<Self> {
        // absolute, because a detached platform and its servers do not run where this command does
        let folder = std::path::absolute(folder)?;
        let config = Config::load(&folder).explained()?;
        let secrets = Secrets::load(&config.secrets_path()).explained()?;
        let pack = Pack::load(&config.pack_dir).explained()?;
        let layout = Layout::new(&config.platform.data_dir);
        Ok(Self { output, config, secrets, pack, layout })
    }

    /// Every role that may log in, with its password and the databases that it may reach.
    pub(crate) fn login_roles(&self) -> anyhow::Result<Vec<(String, Secret, Vec<String>)>> {
        self.pack
            .roles
            .iter()
            .filter(|role| role.login)
            .map(|role| {
                let password = self.secrets.roles.get(&role.name).cloned().ok_or_else(|| {
                    anyhow!(
                        "{} has no password for role `{}`\n  hint: add `{} = \"…\"` under [roles]",
                        self.config.secrets_path().display(),
                        role.name,
                        role.name
                    )
                })?;
                Ok((role.name.clone(), password, role.connect.clone()))
            })
            .collect()
    }

    /// What runs beside the agents, where the nodes are on many hosts; else it itself.
    pub(crate) fn of_platform(mut self) -> Self {
        if self.config.etcd.is_some() {
            self.layout = Layout::new(&self.config.platform.data_dir).beside_agents();
        }
        self
    }

    /// The agent of this host, or what runs all nodes.
    pub(crate) fn of_agent(mut self) -> Self {
        self.layout = Layout::new(&self.config.platform.data_dir);
        self
    }

    /// What knows the cluster on this host: an agent, if one runs, else the platform.
    pub(crate) fn of_cluster(self) -> anyhow::Result<Self> {
        let agent = self.of_agent();
        match agent.config.etcd.is_some() && lock::holder(&agent.layout.lock())?.is_none() {
            true => Ok(agent.of_platform()),
            false => Ok(agent),
        }
    }

    /// As [`Context::cluster_spec`], for the agent of one node, or for who only listens.
    pub(crate) fn agent_spec(&self, node: Option<&str>) -> anyhow::Result<ClusterSpec> {
        let mut spec = self.cluster_spec()?;
        let Some(etcd) = &self.config.etcd else { return Ok(spec) };
        for file in [&etcd.ca, &etcd.certificate, &etcd.key].into_iter().flatten() {
            if !file.exists() {
                let hint =
                    "hint: copy it there: the authority of etcd's certificates, or what this platform shows etcd";
                return Err(anyhow!("{}, which [etcd] names, is not there\n  {hint}", file.display()));
            }
        }
        let user = match (&etcd.user, &self.secrets.etcd) {
            (None, _) => None,
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (Some(user), None) => {
                let path = self.config.secrets_path();
                return Err(anyhow!(
                    "{} has no password for {user} of etcd\n  hint: add `etcd = \"…\"`",
                    path.display()
                ));
            }
        };
        spec.agent = Some(AgentSpec {
            node: node.map(NodeName::new),
            etcd: EtcdSpec {
                endpoints: etcd.endpoints.clone(),
                ca: etcd.ca.clone(),
                identity: etcd.certificate.clone().zip(etcd.key.clone()),
                user,
                prefix: etcd.prefix.clone(),
                ttl: etcd.ttl,
            },
        });
        spec.validate().map_err(|error| explain(&error, error.hint()))?;
        Ok(spec)
    }

    /// Superuser access to a node, wherever it is.
    pub(crate) fn superuser_of(&self, name: &str) -> anyhow::Result<ConnectParams> {
        let node = self.config.cluster.nodes.iter().find(|node| node.name == name);
        let node = node.ok_or_else(|| anyhow!("there is no node {name}"))?;
        let mut params = self.superuser(node.port)?;
        if let Some(host) = node.host {
            params.host = host.to_string();
        }
        Ok(params)
    }

    /// Superuser access to a node of the running cluster, where it is now.
    pub(crate) fn superuser_at(&self, node: &NodeStatus) -> anyhow::Result<ConnectParams> {
        Ok(ConnectParams { host: node.host.clone(), ..self.superuser(node.port)? })
    }

    /// What the servers are made and run from.
    pub(crate) fn cluster_spec(&self) -> anyhow::Result<ClusterSpec> {
        let config = &self.config;
        let binaries = Binaries::find(config.postgres.bin_dir.as_deref()).explained()?;
        let run_as = RunAs::resolve(self.wanted_user()).explained()?;
        let mut hba = Vec::new();
        for (role, _, databases) in self.login_roles()? {
            hba.push(HbaRule {
                databases: databases.into_iter().map(HbaDatabase::Named).collect(),
                users: vec![role],
                source: HbaSource::Anywhere,
            });
        }
        hba.retain(|rule| !rule.databases.is_empty());
        if config.proxy.auth_query {
            // whoever the proxy, which is on this host, has let in
            let mut databases = Vec::new();
            for database in hba.iter().flat_map(|rule| &rule.databases) {
                if !databases.contains(database) {
                    databases.push(database.clone());
                }
            }
            hba.push(HbaRule { databases, users: Vec::new(), source: HbaSource::SameHost });
            hba.retain(|rule| !rule.databases.is_empty());
        }
        let settings = config
            .postgres
            .settings
            .iter()
            .map(|(name, value)| Setting::new(name, value, "from [postgres.settings] of millrace.toml"))
            .collect();
        let mebibytes = config.capture.slot_retention_max_bytes.div_ceil(1 << 20);
        let cluster = &config.cluster;
        let limits = Limits {
            failover: cluster.failover,
            durability: match cluster.durability {
                millrace_config::Durability::Quorum => {
                    Durability::Quorum { quorum: cluster.quorum, strict: cluster.strict }
                }
                millrace_config::Durability::Asynchronous => {
                    Durability::Asynchronous { loss_max: cluster.loss_max_bytes }
                }
            },
            silent_max: cluster.silent_max,
            max_connections: max_connections(config),
            max_slot_wal_keep_mb: u32::try_from(mebibytes).unwrap_or(u32::MAX),
            ..Limits::default()
        };
        let spec = ClusterSpec {
            nodes: config
                .cluster
                .nodes
                .iter()
                .map(|node| NodeSpec {
                    name: NodeName::new(&node.name),
                    host: node.host.map_or_else(|| self.host(config.cluster.listen), |host| host.to_string()),
                    port: node.port,
                    folder: config.node_dir(node),
                    priority: node.failover_priority,
                    apply_delay: node.apply_delay,
                })
                .collect(),
            binaries,
            run_as,
            listen: vec![config.cluster.listen.to_string()],
            agent: None,
            settings,
            hba,
            superuser_password: self.secrets.superuser.clone(),
            replicator_password: self.secrets.replicator.clone(),
            tls: config.tls(),
            state_dir: self.layout.cluster(),
            log_dir: self.layout.logs(),
            limits,
            seed: crate::sow::seed(self),
        };
        spec.validate().map_err(|error| explain(&error, error.hint()))?;
        Ok(spec)
    }

    /// The unprivileged user to switch to; none when this process is not root.
    fn wanted_user(&self) -> Option<&str> {
        rustix::process::geteuid().is_root().then_some(self.config.platform.user.as_str())
    }

    /// How to reach a listener of this host: a wildcard address is reached by the loopback.
    fn host(&self, listen: std::net::IpAddr) -> String {
        match listen {
            std::net::IpAddr::V4(address) if address.is_unspecified() => "127.0.0.1".to_owned(),
            std::net::IpAddr::V6(address) if address.is_unspecified() => "::1".to_owned(),
            other => other.to_string(),
        }
    }

    /// Superuser access to a node's database `postgres`.
    pub(crate) fn superuser(&self, port: u16) -> anyhow::Result<ConnectParams> {
        Ok(ConnectParams {
            host: self.host(self.config.cluster.listen),
            port,
            database: "postgres".to_owned(),
            user: SUPERUSER.to_owned(),
            password: self.secrets.superuser.clone(),
            tls: Some(self.config.tls().client_config()?),
            application_name: "millrace".to_owned(),
        })
    }

    /// Superuser access to the primary, as the cluster's record names it; before there is one, to the first node.
    pub(crate) fn primary(&self) -> anyhow::Result<ConnectParams> {
        let load = |layout: &Layout| {
            millrace_cluster::state::load(&layout.cluster()).map_err(|error| explain(&error, error.hint()))
        };
        let mut record = load(&self.layout)?;
        if self.config.etcd.is_some() {
            // whoever of both has heard of the later term
            let agent = Layout::new(&self.config.platform.data_dir);
            let others = [load(&agent)?, load(&agent.beside_agents())?];
            record = others.into_iter().flatten().max_by_key(|record| record.term);
        }
        let mut nodes = self.config.cluster.nodes.iter();
        let node = match &record {
            Some(record) => nodes.find(|node| node.name == record.primary.as_str()),
            None => nodes.next(),
        };
        let node = node.ok_or_else(|| {
            anyhow!("the cluster's primary is not in millrace.toml\n  hint: put its [[cluster.nodes]] back")
        })?;
        self.superuser_of(&node.name)
    }

    /// Access to the pack's database on the primary as one of its roles.
    pub(crate) fn as_role(&self, role: &str) -> anyhow::Result<ConnectParams> {
        let password = self.login_roles()?.into_iter().find(|(name, ..)| name == role).map(|(_, password, _)| password);
        let password = password.ok_or_else(|| {
            anyhow!("the pack has no role `{role}` that may log in\n  hint: add it to [[roles]] in pack.toml")
        })?;
        Ok(self.primary()?.to_database(&self.pack.database).as_user(role, password))
    }

    /// The read-only way into the warehouse.
    pub(crate) fn warehouse(&self) -> anyhow::Result<ConnectParams> {
        Ok(ConnectParams {
            host: self.host(self.config.warehouse.listen),
            port: self.config.warehouse.port,
            database: WAREHOUSE_DATABASE.to_owned(),
            user: WAREHOUSE_ROLE.to_owned(),
            password: self.secrets.warehouse_reader.clone(),
            tls: Some(self.config.tls().client_config()?),
            application_name: "millrace".to_owned(),
        })
    }

    /// Where applications connect.
    pub(crate) fn proxy_host(&self) -> String {
        self.host(self.config.proxy.listen)
    }

    /// The proxy's administration console.
    pub(crate) fn proxy_console(&self) -> anyhow::Result<ConnectParams> {
        let mut params = self.superuser(self.config.proxy.port)?;
        params.host = self.proxy_host();
        Ok(params.to_database(millrace_proxy::CONSOLE_DATABASE))
    }

    /// Where the console is.
    pub(crate) fn console_url(&self) -> String {
        let host = self.host(self.config.console.listen);
        let host = if host == "127.0.0.1" { "localhost".to_owned() } else { host };
        format!("https://{host}:{}/", self.config.console.port)
    }
}
