//! Nodes that come and go while the cluster runs.
//!
//! Invariants: a node goes only when no commit is promised to be on it any more; the primary never goes; a data
//! directory that is left behind is left as it is.
//!
//! On many hosts every supervisor has its own list, from its own host's files. That the lists differ for a while does no
//! harm: an election goes by the promise of the record, and a node that is promised of and not known counts as one that
//! has not been heard.

use std::{collections::BTreeSet, path::Path};

use millrace_contract::status::NodeStatus;
use millrace_pg::{
    Processes,
    catalog::{self, Slot},
    control_file,
};
use tokio::time::timeout;

use super::{DRAIN_MAX, Done, Supervisor};
use crate::{
    act,
    error::ClusterError,
    history::Event as Happening,
    node::Node,
    observe,
    observed::{Durability, Goal, Observed},
    operate::Reply,
    plan::Action,
    promise::Promise,
    spec::{ClusterSpec, NodeName, NodeSpec},
};

/// What another list of nodes changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turnover {
    pub(super) added: Vec<NodeName>,
    pub(super) removed: Vec<NodeName>,
    /// Their part in elections, or how late they apply.
    changed: Vec<NodeName>,
}

/// Nodes that are none any more.
#[derive(Debug, Default)]
pub(super) struct Leavers {
    /// Until no commit is promised to be on them.
    waiting: BTreeSet<NodeName>,
    /// Their slots are still to be removed from the primary.
    gone: BTreeSet<NodeName>,
}

/// From one list of nodes to another.
///
/// # Errors
/// If a node would be another server.
fn turnover(from: &[NodeSpec], to: &[NodeSpec]) -> Result<Turnover, String> {
    let find = |nodes: &[NodeSpec], name: &NodeName| nodes.iter().find(|node| node.name == *name).cloned();
    let mut turnover = Turnover::default();
    for node in to {
        let Some(before) = find(from, &node.name) else {
            turnover.added.push(node.name.clone());
            continue;
        };
        if (&before.host, before.port, &before.folder) != (&node.host, node.port, &node.folder) {
            return Err(format!(
                "{} cannot move while the platform runs: remove it and add it again, or stop the platform first",
                node.name
            ));
        }
        if (before.priority, before.apply_delay) != (node.priority, node.apply_delay) {
            turnover.changed.push(node.name.clone());
        }
    }
    turnover.removed = from.iter().map(|node| node.name.clone()).filter(|name| find(to, name).is_none()).collect();
    Ok(turnover)
}

impl Turnover {
    /// In words; `None`: nothing changes.
    pub(super) fn said(&self) -> Option<String> {
        let of = |names: &[NodeName], what: &str| {
            let names: Vec<&str> = names.iter().map(NodeName::as_str).collect();
            (!names.is_empty()).then(|| format!("{} {what}", names.join(", ")))
        };
        let said = [of(&self.added, "joins"), of(&self.removed, "leaves"), of(&self.changed, "plays another part")];
        let said: Vec<String> = said.into_iter().flatten().collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

impl Supervisor {
    /// What the nodes of `wanted` would change here. Nothing is changed.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn turnover(&self, wanted: &ClusterSpec) -> Result<Turnover, String> {
        if self.intent.goal == Goal::Stop {
            return Err("the cluster stops: what is written is taken at the next start".to_owned());
        }
        let leaves = |name: &NodeName| self.nodes.get(name).is_some_and(|node| node.busy.is_some());
        if let Some(node) = wanted.nodes.iter().find(|node| self.leaves(node.name.as_str()) && leaves(&node.name)) {
            return Err(format!("{} is still leaving: say it again when it is gone", node.name));
        }
        let turnover = turnover(&self.spec.nodes, &wanted.nodes)?;
        if turnover.added.is_empty() && turnover.removed.is_empty() {
            return Ok(turnover);
        }
        if self.intent.promoting || self.intent.wish.is_some() || self.wisher.is_some() {
            return Err("another primary is on its way: say it again when it is there".to_owned());
        }
        for name in &turnover.removed {
            self.may_go(name)?;
        }
        self.may_do_without(&turnover.removed)?;
        for name in &turnover.added {
            if let Some(node) = wanted.node(name).filter(|_| self.spec.is_own(name.as_str())) {
                observe::check_node(wanted, node).map_err(|error| ClusterError::node(name)(error).to_string())?;
            }
        }
        Ok(turnover)
    }

    /// Where commits wait for replicas whatever happens, there must be enough others.
    fn may_do_without(&self, removed: &[NodeName]) -> Result<(), String> {
        let Durability::Quorum { quorum, strict: true } = self.spec.limits.durability else { return Ok(()) };
        let status = self.status.borrow();
        let stays = |name: &str| !removed.iter().any(|gone| gone.as_str() == name) && !self.leaves(name);
        let streams = |node: &&NodeStatus| node.streaming == Some(true) && node.failover_priority > 0;
        let left = status.nodes.iter().filter(streams).filter(|node| stays(&node.name)).count();
        match left < quorum && !removed.is_empty() {
            true => Err(format!("commits wait for {quorum} replicas (wait_for_replicas), and {left} others stream")),
            false => Ok(()),
        }
    }

    fn may_go(&self, name: &NodeName) -> Result<(), String> {
        if *name == self.intent.primary {
            return Err(format!("{name} is the primary: `millrace cluster switchover` first"));
        }
        let Some(others) = &self.others else { return Ok(()) };
        if others.peers.is_own(name) {
            return Err(format!("this is the agent of {name}: stop it, and say it on the other hosts"));
        }
        if others.peers.heard_at(name).is_some() {
            return Err(format!("the agent of {name} still runs: stop it first"));
        }
        if self.status.borrow().slots.iter().any(|slot| slot.active && slot.name == name.slot()) {
            return Err(format!("the server of {name} still receives the primary's log: stop it first"));
        }
        if self.intent.promise.members.contains(name) {
            return Err(format!(
                "{name} may be the only one besides the primary that has some commits: say it again when \
                 `millrace cluster status` does not name it any more"
            ));
        }
        Ok(())
    }

    /// The nodes are those of `wanted` from now on. One whose server is here leaves later, in order.
    ///
    /// # Errors
    /// If a node that comes cannot be watched; then none has come or gone.
    pub(super) async fn turn_over(&mut self, turnover: &Turnover, wanted: &ClusterSpec) -> Result<(), String> {
        let own = |name: &&NodeName| self.spec.is_own(name.as_str());
        let comes = turnover.added.iter().filter(own).filter_map(|name| Some((name.clone(), wanted.node(name)?)));
        let comes: Vec<(NodeName, Node)> = comes
            .map(|(name, node)| Ok((name, Node::new(wanted, node, &self.clock)?)))
            .collect::<Result<_, ClusterError>>()
            .map_err(|error| error.to_string())?;
        let is_here = |name: &NodeName| self.nodes.contains_key(name);
        let (waiting, gone): (Vec<_>, Vec<_>) = turnover.removed.iter().cloned().partition(is_here);
        // until it has left it is seen to, and no commit waits for it
        let stays = self.spec.nodes.iter().filter(|node| waiting.contains(&node.name));
        let stays: Vec<NodeSpec> = stays.map(|node| NodeSpec { priority: 0, ..node.clone() }).collect();
        self.spec.nodes = wanted.nodes.iter().cloned().chain(stays).collect();
        self.nodes.extend(comes);
        for node in &wanted.nodes {
            // it comes back, or stays after all
            self.leavers.gone.remove(&node.name);
            self.leavers.waiting.remove(&node.name);
        }
        for node in &self.spec.nodes {
            if let Some(held) = self.nodes.get_mut(&node.name) {
                held.spec = node.clone();
            }
        }
        self.leavers.waiting.extend(waiting);
        self.leavers.gone.extend(gone.iter().cloned());
        let added = turnover.added.iter().map(|node| Happening::Added { node: node.to_string() });
        let removed = gone.iter().map(|node| Happening::Removed { node: node.to_string() });
        for happening in added.chain(removed) {
            self.note(happening).await;
        }
        Ok(())
    }

    /// Takes the nodes of `wanted`, and nothing else.
    pub(super) async fn follow_nodes(&mut self, wanted: &ClusterSpec) -> Reply {
        let turnover = self.turnover(wanted)?;
        self.turn_over(&turnover, wanted).await?;
        self.renew_servers();
        Ok(turnover.said().unwrap_or_else(|| "the nodes are as they were".to_owned()))
    }

    /// The primary's supervisor writes the history where there are many.
    async fn note(&mut self, happening: Happening) {
        match &self.others {
            None => self.happened(happening),
            Some(others) if others.peers.is_own(&self.intent.primary) => {
                // that it is not written changes nothing
                drop(self.written(|_same| Ok(()), Some(happening)).await);
            }
            Some(_) => {}
        }
    }

    /// Whether a node is on its way out.
    pub(super) fn leaves(&self, name: &str) -> bool {
        self.leavers.waiting.iter().any(|waiting| waiting.as_str() == name)
    }

    /// Lets those go whom nothing holds any more, and removes what the primary kept for them.
    pub(super) async fn part(&mut self, observed: &Observed) {
        let told = self.nodes.get(&self.intent.primary).map(|primary| &primary.promise);
        let promises: Vec<&Promise> = [Some(&self.intent.promise), told].into_iter().flatten().collect();
        let free = |name: &&NodeName| {
            let idle = self.nodes.get(*name).is_none_or(|node| node.busy.is_none());
            let promised = promises.iter().any(|promise| promise.members.contains(*name));
            idle && !promised && **name != self.intent.primary && !self.intent.promoting
        };
        let free: Vec<NodeName> = match self.intent.goal {
            Goal::Run => self.leavers.waiting.iter().filter(free).cloned().collect(),
            Goal::Stop => Vec::new(),
        };
        for name in free {
            let (spec, now) = (self.spec.clone(), self.clock.monotonic());
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            let Some(postmaster) = node.postmaster.take() else {
                // one that runs is taken first
                if node.server.processes() == Processes::None {
                    self.left(&name).await;
                }
                continue;
            };
            node.busy = Some(("leaves the cluster, once its clients' transactions have ended".to_owned(), now));
            node.forget();
            let of = node.spec.clone();
            let ending = async move { act::end(&spec, &of, postmaster, DRAIN_MAX).await.map(|_exit| Done::Left) };
            self.step("leave", &name, ending, false);
        }
        self.drop_slots(observed).await;
    }

    /// Nothing of a node runs any more.
    pub(super) async fn left(&mut self, name: &NodeName) {
        self.leavers.waiting.remove(name);
        self.nodes.remove(name);
        self.spec.nodes.retain(|node| node.name != *name);
        self.leavers.gone.insert(name.clone());
        self.note(Happening::Removed { node: name.to_string() }).await;
    }

    /// What is not to be done to a node that leaves: its data stays as it is, unless a commit may be there alone.
    pub(super) fn is_left_alone(&self, name: &NodeName, action: &Action) -> bool {
        let makes = matches!(
            action,
            Action::MakeReplica { .. } | Action::Rewind { .. } | Action::CopySlots { .. } | Action::Start { .. }
        );
        makes && self.leaves(name.as_str()) && !self.intent.promise.members.contains(name)
    }

    /// A slot of a node that is gone would keep log for nobody.
    async fn drop_slots(&mut self, observed: &Observed) {
        let Some(slots) = &observed.slots else { return };
        let Some(primary) = self.nodes.get(&self.intent.primary) else { return };
        let Some(connection) = &primary.connection else { return };
        let slot_of = |name: &NodeName| slots.iter().find(|slot| slot.name == name.slot());
        self.leavers.gone.retain(|name| slot_of(name).is_some());
        // who decides for all knows all; of several each knows whom it was told to remove
        let known = |slot: &Slot| self.spec.nodes.iter().any(|node| node.name.slot() == slot.name);
        let gone = |slot: &Slot| match &self.others {
            None => slot.slot_type == "physical" && slot.name.starts_with("node_"),
            Some(_) => self.leavers.gone.iter().any(|name| name.slot() == slot.name),
        };
        // one that is active is on its way out
        for slot in slots.iter().filter(|slot| !slot.active && !known(slot) && gone(slot)) {
            match timeout(self.spec.limits.probe_timeout, catalog::drop_slot(connection, &slot.name)).await {
                Ok(Ok(())) => tracing::info!(slot = slot.name, "the slot of a node that left is removed"),
                Ok(Err(error)) => tracing::debug!(%error, slot = slot.name, "a slot is not removed yet"),
                Err(_) => return,
            }
        }
    }

    /// Servers of this cluster that run here and are no nodes, because the list was changed while nobody looked, or the
    /// supervisor killed: they leave like others.
    pub(super) fn find_strangers(&mut self) {
        let Some(like) = self.spec.own().next().cloned().filter(|_| self.others.is_none()) else { return };
        let Some(entries) = like.folder.parent().and_then(|folder| std::fs::read_dir(folder).ok()) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let Some(name) = entry.file_name().to_str().map(NodeName::new) else { continue };
            if self.spec.node(&name).is_some() {
                continue;
            }
            let mut spec =
                NodeSpec { name: name.clone(), folder: entry.path(), priority: 0, apply_delay: None, ..like.clone() };
            let server = self.spec.server(&spec);
            let control = control_file::read(&server.data_dir());
            let ours = control.is_ok_and(|control| self.intent.system_id == Some(control.system_id));
            let Some(port) = port_of(&server.data_dir()).filter(|_| ours && server.processes() == Processes::Alive)
            else {
                continue;
            };
            spec.port = port;
            tracing::warn!(node = %name, "its server runs, and it is no node any more: it leaves");
            match Node::new(&self.spec, &spec, &self.clock) {
                Ok(node) => {
                    self.nodes.insert(name.clone(), node);
                    self.spec.nodes.push(spec);
                    self.leavers.waiting.insert(name);
                }
                Err(error) => tracing::error!(node = %name, %error, "the server of a node that left is not stopped"),
            }
        }
    }
}

/// The port of a server that runs, as its `postmaster.pid` has it (fourth line; src/include/utils/pidfile.h).
fn port_of(data: &Path) -> Option<u16> {
    std::fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().nth(3)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node(name: &str, port: u16) -> NodeSpec {
        NodeSpec {
            name: NodeName::new(name),
            host: "127.0.0.1".into(),
            port,
            folder: name.into(),
            priority: 1,
            apply_delay: None,
        }
    }

    #[test]
    fn who_comes_and_who_goes() {
        let (a, b, c) = (node("a", 1), node("b", 2), node("c", 3));
        let of = |from: &[&NodeSpec], to: &[&NodeSpec]| {
            let list = |nodes: &[&NodeSpec]| nodes.iter().map(|node| (*node).clone()).collect::<Vec<_>>();
            turnover(&list(from), &list(to))
        };
        assert_eq!(of(&[&a, &b], &[&a, &b]).unwrap().said(), None);
        assert_eq!(of(&[&a, &b], &[&a, &c]).unwrap().said().as_deref(), Some("c joins; b leaves"));
        let last = NodeSpec { priority: 0, ..b.clone() };
        assert_eq!(of(&[&a, &b], &[&a, &last]).unwrap().said().as_deref(), Some("b plays another part"));
        let late = NodeSpec { apply_delay: Some(Duration::from_secs(60)), ..last.clone() };
        assert_eq!(of(&[&a, &last], &[&a, &late]).unwrap().said().as_deref(), Some("b plays another part"));
        let moved = of(&[&a, &b], &[&a, &node("b", 9)]).unwrap_err();
        assert!(moved.starts_with("b cannot move while the platform runs"), "{moved}");
    }
}
