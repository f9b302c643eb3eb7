//! Our side as it is on many hosts: an agent for each node, meeting in etcd, and applications that come by the proxy of a
//! host that lives.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use millrace_base::files;
use millrace_contract::status::{NodeRole, NodeState};
use millrace_pg::{ConnectParams, connect};
use tokio::process::{Child, Command};

use super::{
    super::lab::Lab,
    platform::{LAG_BYTES_MAX, ROLE, admin_of, free_row, millrace, prepare_table},
    processes::Grounds,
    round::{Cluster, Member, whole},
};
use crate::{context::Context, platform::ClusterView};

const NODES: [&str; 3] = ["a", "b", "c"];
/// Ports beside the row of the platform's own.
const ETCD: u16 = 0;
const ETCD_PEER: u16 = 1;
const API: u16 = 2;

/// Three agents and a member of etcd; nothing of them runs any more once this is dropped.
#[derive(Debug)]
pub(super) struct Agents {
    folder: PathBuf,
    agents: Vec<Child>,
    _etcd: Child,
    /// By each host's proxy.
    entries: Vec<ConnectParams>,
    /// Whose proxy leads applications in: not that of the host which is to die.
    entry: usize,
    admin: ConnectParams,
    ports: Vec<u16>,
    _grounds: Grounds,
}

fn address(node: usize) -> String {
    format!("127.0.1.{}", node + 1)
}

impl Agents {
    pub(super) async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let folder = lab.folder().join("agents");
        let grounds = Grounds(folder.clone());
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (base_port, others) = (free_row()?, free_row()?);
        lab.note("our agents start: a node, a proxy and an agent for each of three hosts, and a member of etcd");
        let etcd = etcd(&folder, others)?;
        let first = dir(&folder, 0);
        let (base, endpoint) = (base_port.to_string(), format!("http://127.0.0.1:{}", others + ETCD));
        let mut arguments = vec!["init", "--pack", "loans", "--base-port", &base, "--etcd", &endpoint];
        let hosts: Vec<String> = (0..NODES.len()).map(address).collect();
        arguments.extend(hosts.iter().flat_map(|host| ["--host", host.as_str()]));
        arguments.push(first.to_str().context("the temporary folder's name is not text")?);
        millrace(&arguments).await?;
        for node in 1..NODES.len() {
            let copy = Command::new("cp").arg("-rp").args([&first, &dir(&folder, node)]).status().await?;
            if !copy.success() {
                bail!("cannot copy {}", first.display());
            }
        }
        let mut agents = Vec::new();
        for node in 0..NODES.len() {
            let file = dir(&folder, node).join("millrace.toml");
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let api = format!("api_port = {}", others + API);
            let text = text.replace("0.0.0.0", &address(node)).replace("# ttl_seconds = 3", &api);
            files::write_atomic(&file, text.as_bytes(), 0o600)?;
            agents.push(agent(&folder, node)?);
        }
        let context = Context::load(&first, lab.output)?;
        let admin = admin_of(&context)?;
        let password = context.secrets.roles.get(ROLE).cloned();
        let password = password.with_context(|| format!("the pack has no role {ROLE}"))?;
        let entry = |host| ConnectParams { host, ..admin.as_user(ROLE, password.clone()) };
        let entries = hosts.into_iter().map(entry).collect();
        let ports = context.config.cluster.nodes.iter().map(|node| node.port).collect();
        let mut agents = Self { folder, agents, _etcd: etcd, entries, entry: 0, admin, ports, _grounds: grounds };
        let (primary, _) = whole(&mut agents).await?;
        // the agent gives the pack's roles and schema to its primary by itself
        millrace(&["--dir", &agents.dir(0), "check"]).await?;
        prepare_table(&primary.admin).await?;
        Ok(agents)
    }

    fn dir(&self, node: usize) -> String {
        dir(&self.folder, node).to_string_lossy().into_owned()
    }

    /// Ends them as a user would.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for node in 0..NODES.len() {
            millrace(&["--dir", &self.dir(node), "down"]).await?;
        }
        for agent in &mut self.agents {
            agent.wait().await?;
        }
        Ok(())
    }

    /// A host whose agent runs.
    fn living(&mut self) -> anyhow::Result<usize> {
        let mut agents = self.agents.iter_mut();
        agents.position(|agent| matches!(agent.try_wait(), Ok(None))).context("no agent runs")
    }
}

fn dir(folder: &Path, node: usize) -> PathBuf {
    folder.join(format!("host{node}"))
}

fn agent(folder: &Path, node: usize) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    let name = NODES.get(node).context("there is no such node")?;
    command.args(["agent", name, "--dir"]).arg(dir(folder, node));
    spawn(command, folder, &format!("agent-{name}.log"))
}

fn etcd(folder: &Path, ports: u16) -> anyhow::Result<Child> {
    let at = |port: u16| format!("http://127.0.0.1:{}", ports + port);
    let (client, peer) = (at(ETCD), at(ETCD_PEER));
    let mut command = Command::new("etcd");
    command.args(["--name", "e", "--data-dir", "etcd", "--log-level", "error"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("e={peer}")]);
    spawn(command, folder, "etcd.log").context("etcd is needed: apt install etcd-server")
}

/// In a group of its own: Ctrl-C is ours to handle.
fn spawn(mut command: Command, folder: &Path, log: &str) -> anyhow::Result<Child> {
    let log = folder.join(log);
    let file = File::options().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("cannot open {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.env_remove("MILLRACE_DIR").current_dir(folder).process_group(0).kill_on_drop(true);
    Ok(command.spawn()?)
}

impl Cluster for Agents {
    fn name(&self) -> &str {
        "ours"
    }

    fn entry(&self) -> &ConnectParams {
        self.entries.get(self.entry).unwrap_or(&self.admin)
    }

    async fn members(&mut self) -> anyhow::Result<Vec<Member>> {
        let host = self.living()?;
        let said = millrace(&["--dir", &self.dir(host), "cluster", "status", "--json"]).await?;
        let view: ClusterView = serde_json::from_str(&said)?;
        let primary = view.nodes.iter().position(|node| node.role == NodeRole::Primary);
        self.entry = primary.map_or(0, |primary| (primary + 1) % NODES.len());
        // of each host's own proxy too: it may have started a moment ago
        let proxy = connect(self.entry(), super::writer::CONNECT_MAX).await.is_ok();
        let ready = view.summary.primary_ready && !view.summary.members.is_empty();
        let mut members = Vec::new();
        for (at, node) in view.nodes.into_iter().enumerate() {
            let primary = node.role == NodeRole::Primary;
            let follows = node.streaming == Some(true) && node.lag_bytes.is_some_and(|lag| lag < LAG_BYTES_MAX);
            let port = *self.ports.get(at).context("a node without a port")?;
            members.push(Member {
                well: proxy && ready && node.state == NodeState::Running && (primary || follows),
                primary,
                admin: ConnectParams { host: address(at), port, ..self.admin.clone() },
                data: dir(&self.folder, at).join("data/nodes").join(&node.name).join("data"),
                name: node.name,
                agent: self.agents.get(at).and_then(Child::id),
            });
        }
        Ok(members)
    }

    async fn switch_over(&mut self) -> anyhow::Result<()> {
        let host = self.living()?;
        millrace(&["--dir", &self.dir(host), "cluster", "switchover", "--json"]).await.map(drop)
    }

    fn revive(&mut self, member: &Member) -> anyhow::Result<()> {
        let node = NODES.iter().position(|name| *name == member.name).context("there is no such node")?;
        let own = self.agents.get_mut(node).context("there is no such agent")?;
        if own.try_wait()?.is_some() {
            *own = agent(&self.folder, node)?;
        }
        Ok(())
    }
}
