//! `millrace cluster restart`: servers one after the other, so that readers and writers are served throughout.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use millrace_contract::status::{NodeRole, NodeState, NodeStatus};
use millrace_pg::control_file::SHARED_SETTINGS;

use super::{LONG, SHORT, SWITCHOVER_MAX, client};
use crate::{
    context::Context,
    explain::Usage,
    platform::{ClusterView, ClusterWork},
};

/// A server that has not come back within this is left to whoever is watching.
const BACK_MAX: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(200);

/// Others turn to a new primary, and come back, within this.
const WELL_MAX: Duration = Duration::from_secs(30);
/// Changes of settings have reached all hosts after this.
const HEARD: Duration = Duration::from_secs(3);
/// A primary whose clients' transactions do not end is not restarted.
const CALLED_OFF: Duration = Duration::from_secs(30);

/// `only`: this one; else all that wait for it, or `all`.
pub(super) async fn run(context: &Context, only: Option<&str>, all: bool) -> anyhow::Result<u8> {
    let rolling = Rolling { context };
    let view = rolling.view().await?;
    let mut restarted = Vec::new();
    if let Some(name) = only {
        let Some(node) = view.nodes.iter().find(|node| node.name == name) else {
            let names: Vec<_> = view.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(Usage(format!("there is no node {name}\n  hint: one of {}", names.join(", "))).into());
        };
        ensure!(
            node.role == NodeRole::Replica || !waits_for_replicas(node, &view),
            "replicas need no less than their primary, and wait for a restart themselves\n  hint: `millrace cluster restart` restarts them first"
        );
        rolling.restart(node).await?;
        restarted.push(name.to_owned());
    } else {
        while let Some(node) = rolling.next(all, &restarted).await? {
            match node.role {
                NodeRole::Replica => rolling.restart(&node).await?,
                NodeRole::Primary => rolling.primary(&node, view.nodes.len()).await?,
            }
            restarted.push(node.name);
        }
    }
    context.output.json(&serde_json::json!({ "restarted": restarted }))?;
    if restarted.is_empty() {
        context.output.line("no server waits for a restart; --all restarts every one");
    }
    Ok(0)
}

fn is_shared(setting: &String) -> bool {
    SHARED_SETTINGS.iter().any(|(shared, _)| setting == shared)
}

/// The primary would have more of something than a replica that has not been restarted.
fn waits_for_replicas(primary: &NodeStatus, view: &ClusterView) -> bool {
    let waits = |node: &NodeStatus| node.pending_restart.iter().any(is_shared);
    waits(primary) && view.nodes.iter().any(|node| node.role == NodeRole::Replica && waits(node))
}

pub(super) fn is_back(node: &NodeStatus) -> bool {
    node.state == NodeState::Running && (node.streaming != Some(false) || node.apply_delay_s.is_some())
}

struct Rolling<'a> {
    context: &'a Context,
}

impl Rolling<'_> {
    async fn view(&self) -> anyhow::Result<ClusterView> {
        client(self.context).get("/cluster", SHORT).await
    }

    /// Who is next: replicas before the primary, which must have no more of some settings than they. Nobody while
    /// something is not well: it may have come of the restart before.
    async fn next(&self, all: bool, restarted: &[String]) -> anyhow::Result<Option<NodeStatus>> {
        let due = |node: &&NodeStatus| !restarted.contains(&node.name) && (all || !node.pending_restart.is_empty());
        let (began, mut waited) = (Instant::now(), false);
        loop {
            let view = self.view().await?;
            let of = |role: NodeRole| view.nodes.iter().filter(move |node| node.role == role).find(due);
            let (replica, primary) = (of(NodeRole::Replica), of(NodeRole::Primary));
            let well = view.summary.primary_ready && view.nodes.iter().all(is_back);
            if replica.is_none() && primary.is_none() {
                return Ok(None);
            }
            if !well {
                ensure!(
                    began.elapsed() < WELL_MAX,
                    "not every server is well, and nothing more is restarted\n  hint: `millrace cluster status`; `millrace cluster restart NODE` restarts one"
                );
                tokio::time::sleep(LOOK).await;
            } else if replica.is_none() && !std::mem::replace(&mut waited, true) {
                tokio::time::sleep(HEARD).await;
            } else {
                return Ok(replica.or(primary).cloned());
            }
        }
    }

    /// Restarts one where it is, and waits until it is back.
    async fn restart(&self, node: &NodeStatus) -> anyhow::Result<()> {
        let work = ClusterWork::Restart { node: node.name.clone() };
        let _said: String = client(self.context).post("/cluster", &work, LONG).await?;
        self.back(node).await
    }

    /// Another node takes its place first, so that writes wait for a moment only. Not where there is no other, nor for
    /// settings that replicas keep as long as their primary has them.
    async fn primary(&self, primary: &NodeStatus, nodes: usize) -> anyhow::Result<()> {
        if nodes == 1 || primary.pending_restart.iter().any(is_shared) {
            return self.restart(primary).await;
        }
        let said: String =
            client(self.context).post("/cluster", &ClusterWork::Switchover { to: None }, SWITCHOVER_MAX).await?;
        self.context.output.line(format!("  {said}"));
        self.back(primary).await
    }

    async fn back(&self, before: &NodeStatus) -> anyhow::Result<()> {
        let name = &before.name;
        let began = Instant::now();
        while began.elapsed() < BACK_MAX {
            let view = self.view().await?;
            let node = view.nodes.iter().find(|node| node.name == *name);
            if node.is_some_and(|node| node.since != before.since && is_back(node)) && view.summary.primary_ready {
                self.context.output.line(format!("  {name} runs again"));
                return Ok(());
            }
            ensure!(
                began.elapsed() < CALLED_OFF || !node.is_some_and(|node| node.since == before.since && is_back(node)),
                "{name} was not restarted, and runs as it did\n  hint: a primary waits 10 s until no client has a transaction open; `millrace logs` says more"
            );
            tokio::time::sleep(LOOK).await;
        }
        bail!(
            "{name} has not come back within {} s; nothing else is restarted\n  hint: `millrace logs` says why; if it is a setting, put the old value back and say `millrace cluster reload`",
            BACK_MAX.as_secs()
        )
    }
}
