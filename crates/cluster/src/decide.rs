//! The rules: from what was seen and what is wanted to what is done. Pure.
//!
//! Invariants, tested over random observations: a busy node is left alone; a node gets at most
//! one action that changes its process or data; a data directory that is or was a primary's is
//! never deleted; a new cluster is made only if none was known; only the primary is ever asked
//! to be other than a replica.
//!
//! A later election of the primary changes [`Intent::primary`] and leaves these rules alone.

use std::time::Duration;

use millrace_base::Lsn;
use millrace_contract::status::Severity;
use millrace_pg::{
    StopMode,
    catalog::{ServerState, Slot},
};

use crate::{
    error::ClusterError,
    observed::{DataState, Failure, FailureKind, Goal, Intent, NodeView, Observed, ProcessState},
    plan::{Action, Discard, NodePlan, Plan},
    spec::NodeName,
};

/// What to do now. `now` is monotonic.
#[must_use]
pub fn decide(observed: &Observed, intent: &Intent, now: Duration) -> Plan {
    let case = Case { observed, intent, now };
    let nodes = observed.nodes.iter().map(|(name, view)| (name.clone(), case.node(name, view))).collect();
    Plan { nodes }
}

/// Which node is the primary: the recorded one, else the one that holds a primary's data, else,
/// where there is no data at all, `first`.
///
/// # Errors
/// If the data contradicts itself; nothing is to be touched then.
pub fn choose_primary(
    observed: &Observed,
    recorded: Option<&NodeName>,
    first: &NodeName,
) -> Result<NodeName, ClusterError> {
    if let Some(name) = recorded {
        return match observed.nodes.contains_key(name) {
            true => Ok(name.clone()),
            false => Err(ClusterError::UnknownPrimary(name.to_string())),
        };
    }
    let holding = |wanted: bool| -> Vec<NodeName> {
        let holds = |view: &NodeView| match &view.data {
            DataState::Whole { standby, .. } | DataState::Damaged { standby, .. } => *standby == wanted,
            DataState::OtherVersion { .. } => !wanted,
            DataState::Absent | DataState::Foreign { .. } | DataState::Denied { .. } => false,
        };
        observed.nodes.iter().filter(|(_, view)| holds(view)).map(|(name, _)| name.clone()).collect()
    };
    let (primaries, replicas) = (holding(false), holding(true));
    match primaries.as_slice() {
        [one] => Ok(one.clone()),
        [] if replicas.is_empty() => Ok(first.clone()),
        [] => Err(ClusterError::NoPrimary(replicas)),
        _ => Err(ClusterError::TwoPrimaries(primaries)),
    }
}

struct Case<'a> {
    observed: &'a Observed,
    intent: &'a Intent,
    now: Duration,
}

impl Case<'_> {
    fn node(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if let Some((job, since)) = &view.busy {
            let seconds = self.now.saturating_sub(*since).as_secs();
            return NodePlan::wait(if seconds >= 2 { format!("{job}, {seconds} s so far") } else { job.clone() });
        }
        if let ProcessState::Unadopted { pid } = view.process {
            return NodePlan::act(Action::Adopt, format!("runs as process {pid} since before; is adopted"));
        }
        match self.intent.goal {
            Goal::Stop => self.stopping(name, view),
            Goal::Run if *name == self.intent.primary => self.primary(name, view),
            Goal::Run => self.replica(name, view),
        }
    }

    /// The primary first: its orderly stop waits until the replicas have received everything.
    fn stopping(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if view.process == ProcessState::None {
            return NodePlan::wait("stopped");
        }
        let primary_is_up = self
            .observed
            .nodes
            .get(&self.intent.primary)
            .is_some_and(|primary| primary.process != ProcessState::None || primary.busy.is_some());
        if *name != self.intent.primary && primary_is_up {
            return NodePlan::wait(format!("receives the last log of {} before it stops", self.intent.primary));
        }
        NodePlan::act(Action::Stop(StopMode::Fast), "stops")
    }

    fn primary(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        match &view.process {
            ProcessState::None => self.primary_down(name, view),
            ProcessState::Running { ready, .. } => self.primary_up(view, *ready),
            ProcessState::Unadopted { .. } => NodePlan::wait("is adopted"),
        }
    }

    fn primary_down(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        match (&view.data, self.intent.system_id) {
            (DataState::Absent, None) => NodePlan::act(Action::Initdb, "a new cluster is made here"),
            (DataState::Absent, Some(_)) => NodePlan::wait("the primary's data directory is gone").trouble(
                Severity::Critical,
                format!("bring the data directory of {name} back, or restore a backup there"),
            ),
            (DataState::Whole { system_id, .. }, Some(known)) if *system_id != known => NodePlan::wait(
                "the data directory belongs to another cluster",
            )
            .trouble(Severity::Critical, format!("put this cluster's data directory back in the place of {name}")),
            (DataState::Whole { standby: true, .. }, _) => NodePlan::wait(
                "this is the primary, but its data directory is a replica's",
            )
            .trouble(Severity::Critical, format!("bring the primary's data directory back in the place of {name}")),
            (DataState::Whole { standby: false, .. }, _) => NodePlan::act(Action::Start { from: None }, starting(view)),
            (DataState::Damaged { why, .. }, _) => NodePlan::wait(format!("the primary's data is damaged: {why}"))
                .trouble(Severity::Critical, format!("restore a backup in the place of {name}; nothing was touched")),
            (other, _) => unusable(other, name),
        }
    }

    fn primary_up(&self, view: &NodeView, ready: bool) -> NodePlan {
        let Some(server) = &view.server else { return silent(view, ready) };
        if let Some(plan) = self.stranger(server) {
            return plan;
        }
        if server.in_recovery {
            return NodePlan::wait("this is the primary, but it is in recovery and takes no writes")
                .trouble(Severity::Critical, "remove its standby.signal or recovery.signal and restart it");
        }
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        let mut actions = Vec::new();
        if !self.observed.roles_ready {
            actions.push(Action::EnsureRoles);
        }
        if let Some(slots) = &self.observed.slots {
            actions.extend(self.missing_slots(slots).map(|replica| Action::CreateSlot { replica }));
        }
        NodePlan { actions, sentence: "accepts writes".to_owned(), trouble: None }
    }

    /// Those of replicas that are not about to be rebuilt, which makes the slot anew.
    fn missing_slots<'s>(&'s self, slots: &'s [Slot]) -> impl Iterator<Item = NodeName> + 's {
        self.observed
            .nodes
            .iter()
            .filter(move |(name, view)| {
                **name != self.intent.primary
                    && view.busy.is_none()
                    && matches!(view.data, DataState::Whole { standby: true, .. })
                    && !slots.iter().any(|slot| slot.name == name.slot())
            })
            .map(|(name, _)| name.clone())
    }

    fn replica(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        match &view.process {
            ProcessState::None => self.replica_down(name, view),
            ProcessState::Running { ready, .. } => self.replica_up(name, view, *ready),
            ProcessState::Unadopted { .. } => NodePlan::wait("is adopted"),
        }
    }

    fn replica_down(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        let primary = &self.intent.primary;
        let broken_start = view.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Damaged);
        match &view.data {
            DataState::Absent => {
                self.rebuild(view, Discard::Nothing, format!("is made from a base backup of {primary}"))
            }
            DataState::Whole { .. } if broken_start => {
                self.rebuild(view, discard(view), format!("cannot start and is rebuilt from {primary}"))
            }
            DataState::Whole { standby: true, system_id } if self.intent.system_id == Some(*system_id) => {
                if self.slot(name).is_some_and(Slot::is_lost) {
                    return self.rebuild(view, discard(view), self.lost_slot());
                }
                NodePlan::act(Action::Start { from: Some(primary.clone()) }, starting(view))
            }
            DataState::Whole { standby: false, system_id } if self.intent.system_id == Some(*system_id) => self
                .rebuild(
                    view,
                    Discard::MoveAside,
                    format!("holds a primary's data, which is kept aside, and is made anew from {primary}"),
                ),
            DataState::Whole { .. } => self.rebuild(
                view,
                Discard::MoveAside,
                format!("holds another cluster's data, which is kept aside, and is made anew from {primary}"),
            ),
            DataState::Damaged { why, .. } => {
                self.rebuild(view, discard(view), format!("is damaged ({why}) and is rebuilt from {primary}"))
            }
            other => unusable(other, name),
        }
    }

    fn replica_up(&self, name: &NodeName, view: &NodeView, ready: bool) -> NodePlan {
        let Some(server) = &view.server else { return silent(view, ready) };
        let primary = &self.intent.primary;
        if !server.in_recovery {
            return NodePlan::act(
                Action::Stop(StopMode::Immediate),
                format!("accepts writes though {primary} is the primary; it is stopped"),
            )
            .trouble(Severity::Critical, "find out who promoted it; what was written there is kept aside");
        }
        if let Some(plan) = self.stranger(server) {
            return plan;
        }
        if server.streaming {
            return NodePlan::wait(match self.lag(server) {
                Some(0) => format!("streams from {primary}"),
                Some(bytes) => format!("streams from {primary}, {bytes} bytes behind"),
                None => format!("streams from {primary}, which does not answer"),
            });
        }
        let Some(ahead) = self.primary_server() else {
            return NodePlan::wait(format!("waits for {primary}"));
        };
        let slot = self.slot(name);
        if slot.is_some_and(Slot::is_lost) {
            return self.rebuild(view, discard(view), self.lost_slot());
        }
        let waited = view.not_streaming_since.map_or(Duration::ZERO, |since| self.now.saturating_sub(since));
        if waited < self.intent.not_streaming_max {
            return NodePlan::wait(format!("connects to {primary}"));
        }
        if server.lsn > ahead.lsn || server.timeline > ahead.timeline {
            return self.rebuild(
                view,
                Discard::MoveAside,
                format!("holds log that {primary} does not; it is kept aside, and the node made anew"),
            );
        }
        let kept_from = slot.and_then(|slot| slot.restart_lsn);
        if kept_from.is_some_and(|kept_from| kept_from > server.received_lsn.unwrap_or(Lsn::INVALID).max(server.lsn)) {
            return self.rebuild(view, discard(view), format!("needs log that {primary} no longer has and is rebuilt"));
        }
        NodePlan::wait(format!("has received nothing from {primary} for {} s", waited.as_secs()))
            .trouble(Severity::Warning, format!("look at the log of {name}"))
    }

    /// A base backup, as soon as the primary can give one.
    fn rebuild(&self, view: &NodeView, discard: Discard, sentence: String) -> NodePlan {
        let from = self.intent.primary.clone();
        if self.primary_server().is_none() || !self.observed.roles_ready || self.observed.slots.is_none() {
            return NodePlan::wait(format!("{sentence}, once {from} answers"));
        }
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        NodePlan::act(Action::MakeReplica { from, discard }, sentence)
    }

    /// A server of another cluster answers on our port: not ours to touch.
    fn stranger(&self, server: &ServerState) -> Option<NodePlan> {
        let known = self.intent.system_id?;
        (server.system_id != known).then(|| {
            NodePlan::wait("runs on data of another cluster")
                .trouble(Severity::Critical, "stop it and put this cluster's data directory back")
        })
    }

    fn backing_off(&self, view: &NodeView) -> Option<NodePlan> {
        let failure = view.failure.as_ref().filter(|failure| failure.not_before > self.now)?;
        Some(explain(failure, self.now))
    }

    /// The primary's state, if it can serve replicas.
    fn primary_server(&self) -> Option<&ServerState> {
        let primary = self.observed.nodes.get(&self.intent.primary)?;
        let usable = primary.busy.is_none() && matches!(primary.process, ProcessState::Running { .. });
        primary
            .server
            .as_ref()
            .filter(|server| usable && !server.in_recovery && self.intent.system_id == Some(server.system_id))
    }

    fn slot(&self, replica: &NodeName) -> Option<&Slot> {
        self.observed.slots.as_ref()?.iter().find(|slot| slot.name == replica.slot())
    }

    fn lag(&self, replica: &ServerState) -> Option<u64> {
        Some(self.primary_server()?.lsn.bytes_since(replica.lsn))
    }

    fn lost_slot(&self) -> String {
        format!("was away for longer than {} keeps log and is rebuilt from it", self.intent.primary)
    }
}

/// Deleting is only for what surely never was more than a replica.
fn discard(view: &NodeView) -> Discard {
    match &view.data {
        DataState::Absent => Discard::Nothing,
        DataState::Whole { standby: true, .. } | DataState::Damaged { standby: true, .. } if !view.was_primary => {
            Discard::Delete
        }
        DataState::Whole { .. }
        | DataState::Damaged { .. }
        | DataState::OtherVersion { .. }
        | DataState::Foreign { .. }
        | DataState::Denied { .. } => Discard::MoveAside,
    }
}

fn starting(view: &NodeView) -> String {
    match &view.failure {
        Some(failure) => format!("starts; before, {}", failure.what),
        None => "starts".to_owned(),
    }
}

fn silent(view: &NodeView, ready: bool) -> NodePlan {
    if !ready {
        return NodePlan::wait(match &view.failure {
            Some(failure) => format!("starts or recovers; before, {}", failure.what),
            None => "starts or recovers".to_owned(),
        });
    }
    NodePlan::wait("runs but does not answer")
        .trouble(Severity::Critical, "look at its log and at the machine's load and disks")
}

fn explain(failure: &Failure, now: Duration) -> NodePlan {
    let ago = now.saturating_sub(failure.at).as_secs_f64();
    let left = failure.not_before.saturating_sub(now).as_secs_f64();
    let plan = NodePlan::wait(format!("{} {ago:.0} s ago, try {} in {left:.1} s", failure.what, failure.next_try));
    // the first tries are the usual way of a short trouble
    let severity = if failure.next_try > 3 { Severity::Critical } else { Severity::Warning };
    plan.trouble(severity, failure.what_to_do.clone().unwrap_or_else(|| "look at its log".to_owned()))
}

fn unusable(data: &DataState, name: &NodeName) -> NodePlan {
    let (what, what_to_do) = match data {
        DataState::OtherVersion { found } => (
            format!("its data was made by PostgreSQL {found}"),
            format!("install PostgreSQL {found}, or upgrade the data with pg_upgrade"),
        ),
        DataState::Foreign { path } => (
            format!("{} holds files that are no data directory", path.display()),
            "choose another folder; nothing there was touched".to_owned(),
        ),
        DataState::Denied { why } => (why.clone(), format!("give the folder of {name} to the servers' user")),
        DataState::Absent | DataState::Whole { .. } | DataState::Damaged { .. } => {
            ("cannot be used".to_owned(), format!("look at the folder of {name}"))
        }
    };
    NodePlan::wait(what).trouble(Severity::Critical, what_to_do)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
