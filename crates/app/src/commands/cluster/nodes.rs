//! `millrace cluster add-node` and `remove-node`: millrace.toml changed, and the running platform told.

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use millrace_base::{Clock as _, SystemClock, files, tls::default_hosts};
use millrace_config::{
    Config, FILE_NAME,
    edit::{self, NewNode},
};

use super::{SHORT, client, confirm, restart::is_back};
use crate::{
    cli::AddNode,
    context::Context,
    explain::{Explained as _, Usage},
    lock,
    platform::{ClusterView, ClusterWork},
};

const LOOK: Duration = Duration::from_millis(200);
/// A base backup of a large database takes longer: it goes on unwatched.
const WATCHED_MAX: Duration = Duration::from_secs(600);
/// Ten seconds for clients' transactions, and a server's stop.
const GONE_MAX: Duration = Duration::from_secs(90);

pub(super) async fn add(context: &Context, wanted: &AddNode) -> anyhow::Result<u8> {
    let many = context.config.etcd.is_some();
    match (many, wanted.host) {
        (true, None) => {
            return Err(Usage(
                "nodes are on many hosts\n  hint: say where this one is to be: --host ADDRESS".to_owned(),
            )
            .into());
        }
        (false, Some(_)) => {
            return Err(Usage(
                "all nodes are on this host\n  hint: leave --host out; for many hosts see docs/many-hosts.md"
                    .to_owned(),
            )
            .into());
        }
        _ => {}
    }
    let name = &wanted.node;
    if context.config.cluster.nodes.iter().any(|node| node.name == *name) {
        return Err(Usage(format!("there is a node {name} already")).into());
    }
    let new = NewNode {
        name: name.clone(),
        host: wanted.host,
        port: wanted.port,
        failover_priority: wanted.failover_priority,
        apply_delay: wanted.apply_delay.map(Duration::from_secs),
    };
    let file = File::read(context)?;
    let text = edit::add_node(&file.path, &file.text, &new).explained()?;
    let said = file.change(context, &text).await?;
    if let Some(host) = wanted.host {
        certify(context, host)?;
    }
    context.output.json(&serde_json::json!({ "added": name, "done": said }))?;
    let Some(said) = said else {
        context.output.line(format!("{name} is in millrace.toml; it is made when the platform starts"));
        return Ok(0);
    };
    context.output.line(said);
    if let Some(host) = wanted.host {
        context.output.line(format!(
            "next: the same command on the hosts of the other nodes; copy this folder to {host}, and start there: millrace agent {name}"
        ));
        return Ok(0);
    }
    watch(context, name).await
}

/// A certificate that names the new host too; those before stay good.
fn certify(context: &Context, host: IpAddr) -> anyhow::Result<()> {
    let hosts = context.config.cluster.nodes.iter().filter_map(|node| node.host).chain([host]);
    let hosts: Vec<String> = hosts.map(|host| host.to_string()).collect();
    let renewed = context.config.tls().renew(&default_hosts(&hosts), SystemClock::new().wall());
    renewed.with_context(|| format!("cannot make a certificate that names {host}"))
}

/// Until it streams.
async fn watch(context: &Context, name: &str) -> anyhow::Result<u8> {
    let (began, mut told) = (Instant::now(), String::new());
    while began.elapsed() < WATCHED_MAX {
        let view: ClusterView = client(context).get("/cluster", SHORT).await?;
        if let Some(node) = view.nodes.iter().find(|node| node.name == name) {
            if is_back(node) {
                context.output.line(format!("  {name} streams"));
                return Ok(0);
            }
            if told != node.doing {
                context.output.line(format!("  {}", node.doing));
                told.clone_from(&node.doing);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    context.output.line(format!("{name} is still being made; `millrace cluster status` shows it"));
    Ok(0)
}

pub(super) async fn remove(context: &Context, name: &str, yes: bool) -> anyhow::Result<u8> {
    let Some(node) = context.config.cluster.nodes.iter().find(|node| node.name == name) else {
        let names: Vec<_> = context.config.cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(Usage(format!("there is no node {name}\n  hint: one of {}", names.join(", "))).into());
    };
    let record = millrace_cluster::state::load(&context.layout.cluster());
    if let Some(record) = record.map_err(|error| crate::explain::explain(&error, error.hint()))? {
        ensure!(record.primary.as_str() != name, "{name} is the primary\n  hint: first: millrace cluster switchover");
        let idle = lock::holder(&context.layout.lock())?.is_none();
        let promised = record.promise.members.iter().any(|member| member.as_str() == name);
        ensure!(
            !idle || !promised || ended_in_order(context, record.primary.as_str()),
            "{name} may be the only one besides the primary that has some commits, for the primary did not stop in order\n  hint: start the platform, and say it then"
        );
    }
    if !yes {
        confirm(context, name, "its server ends for good; its data stays where it is")?;
    }
    let file = File::read(context)?;
    let text = edit::remove_node(&file.path, &file.text, name).explained()?;
    let said = file.change(context, &text).await?;
    context.output.json(&serde_json::json!({ "removed": name, "done": said }))?;
    let Some(said) = said else {
        context.output.line(format!("{name} is not in millrace.toml any more"));
        return Ok(0);
    };
    context.output.line(said);
    if node.host.is_some() {
        context.output.line("next: the same command on the hosts of the other nodes");
        return Ok(0);
    }
    let began = Instant::now();
    loop {
        let view: ClusterView = client(context).get("/cluster", SHORT).await?;
        if !view.nodes.iter().any(|node| node.name == name) {
            break;
        }
        ensure!(
            began.elapsed() < GONE_MAX,
            "{name} is still there: some commits may be on no other replica\n  hint: `millrace cluster status` says what it waits for; it leaves when that is over"
        );
        tokio::time::sleep(LOOK).await;
    }
    let folder = context.config.node_dir(node);
    context.output.line(format!("{name} has left; delete {} when nothing of it is needed any more", folder.display()));
    Ok(0)
}

/// A primary that ended so has every commit itself.
fn ended_in_order(context: &Context, primary: &str) -> bool {
    let node = context.config.cluster.nodes.iter().find(|node| node.name == primary);
    let control = node.map(|node| millrace_pg::control_file::read(&context.config.node_dir(node).join("data")));
    control.and_then(Result::ok).is_some_and(|control| control.shut_down)
}

/// millrace.toml, as it was.
struct File {
    path: PathBuf,
    text: String,
}

impl File {
    fn read(context: &Context) -> anyhow::Result<Self> {
        let path = context.config.folder.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, text })
    }

    /// Writes another text and tells the running platform; what it refuses is as if it had not been written. `None`: none
    /// runs.
    async fn change(&self, context: &Context, text: &str) -> anyhow::Result<Option<String>> {
        // what other programs would read must be good as a whole
        Config::parse(&self.path, text).explained()?;
        self.write(text)?;
        match super::reload(context, ClusterWork::TurnOver).await {
            Ok(said) => Ok(said),
            Err(error) => {
                let now = std::fs::read_to_string(&self.path).unwrap_or_default();
                if now != text {
                    bail!(
                        "{error:#}\nand {} has been changed by somebody else meanwhile: look at it",
                        self.path.display()
                    );
                }
                if let Err(left) = self.write(&self.text) {
                    bail!("{error:#}\nand {} is left changed: {left:#}", self.path.display());
                }
                Err(error)
            }
        }
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&self.path)?.permissions());
        files::write_atomic(&self.path, text.as_bytes(), mode & 0o777)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}
