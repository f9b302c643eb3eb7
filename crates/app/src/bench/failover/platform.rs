//! Our side: a whole platform, run by this same binary as anyone would run it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_contract::status::{NodeRole, NodeState, PlatformStatus};
use millrace_pg::{ConnectParams, connect};
use tokio::process::Command;

use super::{
    super::lab::Lab,
    processes::Grounds,
    round::{Cluster, Member, whole},
    writer::CONNECT_MAX,
};
use crate::{context::Context, explain::Explained};

/// What makes the planned change of the primary.
const SWITCH_OVER: [&str; 3] = ["cluster", "switchover", "--json"];
const COMMAND_MAX: Duration = Duration::from_secs(180);
/// Nodes, warehouse, console and proxy take seven in a row.
const PORTS: u16 = 8;
/// Of the pack: may write, as an application does.
pub(super) const ROLE: &str = "app_user";
/// A replica further behind is not well.
pub(super) const LAG_BYTES_MAX: u64 = 1 << 20;

/// A running platform; nothing of it runs any more once this is dropped.
#[derive(Debug)]
pub(super) struct Platform {
    folder: PathBuf,
    entry: ConnectParams,
    admin: ConnectParams,
    data: PathBuf,
    _grounds: Grounds,
}

impl Platform {
    pub(super) async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let folder = lab.folder().join("ours");
        let grounds = Grounds(folder.clone());
        let base_port = free_row()?.to_string();
        let path = folder.to_str().context("the temporary folder's name is not text")?;
        lab.note("our platform starts: three nodes and everything else");
        millrace(&["init", "--pack", "loans", "--base-port", &base_port, path]).await?;
        millrace(&["--dir", path, "up", "--detach"]).await?;
        let context = Context::load(&folder, lab.output)?;
        let password = context.secrets.roles.get(ROLE).cloned();
        let password = password.with_context(|| format!("the pack has no role {ROLE}"))?;
        let admin = admin_of(&context)?;
        let entry = admin.as_user(ROLE, password);
        let data = context.config.platform.data_dir.join("nodes");
        let mut platform = Self { folder, entry, admin, data, _grounds: grounds };
        let (primary, _) = whole(&mut platform).await?;
        prepare_table(&primary.admin).await?;
        Ok(platform)
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let folder = self.folder.to_string_lossy();
        let all: Vec<&str> = ["--dir", &*folder].into_iter().chain(arguments.iter().copied()).collect();
        millrace(&all).await
    }

    /// Ends it as a user would.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.run(&["down"]).await.map(drop)
    }
}

impl Cluster for Platform {
    fn name(&self) -> &str {
        "ours"
    }

    fn entry(&self) -> &ConnectParams {
        &self.entry
    }

    async fn members(&mut self) -> anyhow::Result<Vec<Member>> {
        let status: PlatformStatus = serde_json::from_str(&self.run(&["status", "--json"]).await?)?;
        let proxy = status.proxy.up;
        let member = |node: millrace_contract::status::NodeStatus| {
            let primary = node.role == NodeRole::Primary;
            let follows = node.streaming == Some(true) && node.lag_bytes.is_some_and(|lag| lag < LAG_BYTES_MAX);
            Member {
                well: proxy && node.state == NodeState::Running && (primary || follows),
                primary,
                admin: ConnectParams { port: node.port, ..self.admin.clone() },
                data: self.data.join(&node.name).join("data"),
                name: node.name,
                agent: None,
            }
        };
        Ok(status.nodes.into_iter().map(member).collect())
    }

    async fn switch_over(&mut self) -> anyhow::Result<()> {
        self.run(&SWITCH_OVER).await.map(drop)
    }

    /// The platform brings its nodes back itself.
    fn revive(&mut self, _: &Member) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The superuser by the proxy of this host.
pub(super) fn admin_of(context: &Context) -> anyhow::Result<ConnectParams> {
    Ok(ConnectParams {
        host: "127.0.0.1".to_owned(),
        port: context.config.proxy.port,
        database: context.pack.database.clone(),
        user: "postgres".to_owned(),
        password: context.secrets.superuser.clone(),
        tls: Some(context.config.tls().client_config()?),
        application_name: "millrace bench".to_owned(),
    })
}

pub(super) async fn prepare_table(admin: &ConnectParams) -> anyhow::Result<()> {
    let admin = connect(admin, CONNECT_MAX).await.explained()?;
    let grants = format!("GRANT USAGE ON SCHEMA public TO {ROLE}; GRANT ALL ON bench_writes TO {ROLE}");
    admin.batch_execute(&format!("{}; {grants}", super::TABLE)).await?;
    Ok(())
}

/// Runs this binary; what it said.
pub(super) async fn millrace(arguments: &[&str]) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(arguments).env("NO_COLOR", "1").env_remove("MILLRACE_DIR").current_dir(Path::new("/"));
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let said = tokio::time::timeout(COMMAND_MAX, command.output()).await;
    let shown = format!("millrace {}", arguments.join(" "));
    let said = said.with_context(|| format!("{shown}: no end after {} s", COMMAND_MAX.as_secs()))?;
    let said = said.with_context(|| format!("cannot run {shown}"))?;
    if !said.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&said.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The first of some ports in a row that are free now.
pub(super) fn free_row() -> anyhow::Result<u16> {
    let room = (32_000 - 11_000) / PORTS;
    let begin = u16::try_from(std::process::id() % u32::from(room))?;
    let row = (0..room).map(|step| 11_000 + ((begin + step) % room) * PORTS);
    let mut free =
        row.filter(|first| (*first..first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()));
    free.next().context("there are no free ports in a row")
}
