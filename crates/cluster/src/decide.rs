//! The rules: from what was seen and what is wanted to what is done. Pure.
//!
//! Invariants, tested over random observations: a busy node is left alone; a node gets at most
//! one action that changes its process or data; a data directory that is or was a primary's is
//! never deleted; a new cluster is made only if none was known; only the primary is ever asked
//! to be other than a replica; another primary is elected only while no process of the present one can have a commit
//! acknowledged: none is left, or each has been killed and waits in the kernel for its disk ([`NodeView::may_write`]);
//! nothing is done that would write to a disk that takes nothing.
//! Where each host has a supervisor of its own, each decides for its own node alone, and nobody can be sure that the other
//! hosts' processes have been killed: see [`Office`]. Then a replica is elected only once so many replicas have turned
//! away from the present primary that it can have no commit acknowledged any more.
//!
//! An election changes [`Intent::primary`]; the same rules then promote it and make replicas of the others.

use std::{cell::OnceCell, collections::BTreeSet, time::Duration};

use millrace_base::Lsn;
use millrace_contract::status::Severity;
use millrace_pg::{
    StopMode,
    catalog::{ServerState, Slot},
};

use crate::{
    error::ClusterError,
    observed::{
        DataState, Durability, Failure, FailureKind, Goal, Intent, NodeView, Observed, Office, ProcessState, Wish,
    },
    plan::{Action, Discard, NodePlan, Plan, Trouble},
    promise::{self, Promise, PromiseStep},
    spec::NodeName,
};

mod succession;

use succession::Succession;

/// What to do now. `now` is monotonic.
#[must_use]
pub fn decide(observed: &Observed, intent: &Intent, now: Duration) -> Plan {
    let mut case = Case { observed, intent, now, succession: Succession::Stay, promising: OnceCell::new() };
    case.succession = case.succession();
    let nodes = observed.nodes.iter().map(|(name, view)| (name.clone(), case.node(name, view))).collect();
    Plan { nodes, change: case.change() }
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
            DataState::Absent | DataState::Past { .. } | DataState::Foreign { .. } | DataState::Denied { .. } => false,
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

/// Of data that has no part in the cluster any more.
const PAST: &str = "holds data of before the cluster was brought back from a backup";

struct Case<'a> {
    observed: &'a Observed,
    intent: &'a Intent,
    now: Duration,
    succession: Succession,
    promising: OnceCell<Promising>,
}

/// What is to be promised, and the way there.
struct Promising {
    wanted: Promise,
    step: PromiseStep,
}

impl Case<'_> {
    fn promising(&self, primary: &ServerState) -> &Promising {
        self.promising.get_or_init(|| {
            let (setting, wanted) = (&primary.synchronous_standby_names, self.wanted_promise(primary));
            let step = promise::step(&self.intent.promise, setting, &wanted, self.observed.arrived);
            Promising { wanted, step }
        })
    }

    /// Members are the replicas that receive the primary's log, and those that have not for a moment only.
    fn wanted_promise(&self, primary: &ServerState) -> Promise {
        let Durability::Quorum { quorum, strict } = self.intent.policy.durability else { return Promise::none() };
        let is_waited_for = |name: &NodeName| {
            self.intent.promise.members.contains(name)
                || primary.synchronous_standby_names.contains(&format!("\"{name}\""))
        };
        // one that still reads another history may claim what it does not have
        let same = |view: &NodeView| view.server.as_ref().is_none_or(|server| server.timeline == primary.timeline);
        let member = |name: &NodeName, view: &NodeView| match view.absent_since {
            None => same(view),
            Some(since) => is_waited_for(name) && self.now.saturating_sub(since) < self.intent.policy.absent_max,
        };
        let members: BTreeSet<NodeName> = self
            .observed
            .nodes
            .iter()
            .filter(|(name, view)| **name != self.intent.primary && view.may_lead() && member(name, view))
            .map(|(name, _)| name.clone())
            .collect();
        let replicas = self.members().map(|(name, _)| name);
        if strict && members.len() < quorum.min(replicas.clone().count()) {
            // commits wait until enough of them are back
            return Promise::new(replicas.cloned().collect(), quorum);
        }
        Promise::new(members, quorum)
    }

    /// A full disk is said, whatever else the node does.
    fn node(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        let mut plan = self.usual(name, view);
        if view.disk.full {
            plan.sentence.push_str("; its disk is full");
            let what_to_do =
                format!("free space on the disk of {name}, or give it a larger one; the rest follows by itself");
            plan.trouble = Some(Trouble { severity: Severity::Critical, what_to_do });
        }
        plan
    }

    fn usual(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if let Some((job, since)) = &view.busy {
            let seconds = self.now.saturating_sub(*since).as_secs();
            return NodePlan::wait(if seconds >= 2 { format!("{job}, {seconds} s so far") } else { job.clone() });
        }
        if let ProcessState::Unadopted { pid } = view.process {
            return NodePlan::act(Action::Adopt, format!("runs as process {pid} since before; is adopted"));
        }
        if *name == self.intent.primary && view.may_write && self.observed.office == Office::Unknown {
            let why = "is not sure to be the primary any more; is killed, so that it writes no more";
            return NodePlan::act(Action::Fence, why).trouble(Severity::Critical, "look at the network and at etcd");
        }
        let lives = view.may_write || view.process != ProcessState::None;
        if matches!(view.data, DataState::Past { .. }) && lives && self.intent.goal == Goal::Run {
            return match view.may_write {
                true => NodePlan::act(Action::Fence, format!("{PAST}: is killed")),
                false => NodePlan::wait(format!("{PAST}, and has been killed")),
            };
        }
        match self.intent.goal {
            Goal::Stop => self.stopping(name, view),
            Goal::Run if *name == self.intent.primary => match &self.succession {
                _ if self.has_handed_over() => NodePlan::wait("has ended in order; another node takes its place"),
                Succession::Stay | Succession::Impossible(_) if view.may_write && !self.holds_office() => {
                    NodePlan::wait("runs, and begins a term if nobody else has")
                }
                Succession::Stay => self.primary(name, view),
                Succession::Impossible(why) => {
                    let mut plan = self.primary(name, view);
                    plan.sentence = format!("{}; no other node can take its place: {why}", plan.sentence);
                    plan
                }
                Succession::Fence(why) => {
                    NodePlan::act(Action::Fence, format!("{why}; is killed, so that it writes no more"))
                        .trouble(Severity::Critical, "another node becomes the primary, or this one is started again")
                }
                Succession::Elect { node, why, .. } => NodePlan::wait(format!("{why}; {node} becomes the primary")),
            },
            Goal::Run => self.replica(name, view),
        }
    }

    /// The primary first: its orderly stop waits until the replicas have received everything.
    fn stopping(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if view.process == ProcessState::None {
            return NodePlan::wait("stopped");
        }
        let together = self.observed.office == Office::Undivided;
        let primary_is_up = together
            && self
                .observed
                .nodes
                .get(&self.intent.primary)
                .is_some_and(|primary| primary.process != ProcessState::None || primary.busy.is_some());
        if *name != self.intent.primary && primary_is_up {
            return NodePlan::wait(format!("receives the last log of {} before it stops", self.intent.primary));
        }
        NodePlan::act(Action::Stop(StopMode::Fast), "stops")
    }

    /// Whatever was begun would wait for the disk too, and the supervisor with it.
    fn held_up(&self, view: &NodeView) -> Option<NodePlan> {
        if let Some(stuck) = view.stuck_for(self.now) {
            let plan = NodePlan::wait(format!("its disk has taken nothing for {} s", stuck.as_secs()));
            let lasts = stuck >= self.intent.policy.silent_max;
            return Some(if lasts { plan.trouble(Severity::Critical, "look at the machine's disks") } else { plan });
        }
        let ends = view.dying && !view.may_write;
        let wait = || NodePlan::wait("has been killed, and ends when its disk answers");
        ends.then(|| wait().trouble(Severity::Critical, "look at the machine's disks"))
    }

    fn primary(&self, name: &NodeName, view: &NodeView) -> NodePlan {
        if let Some(wait) = self.held_up(view) {
            return wait;
        }
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
            (DataState::Absent, None) if self.holds_office() => {
                NodePlan::act(Action::Initdb, "a new cluster is made here")
            }
            (DataState::Absent, Some(_)) => NodePlan::wait("the primary's data directory is gone").trouble(
                Severity::Critical,
                format!("bring the data directory of {name} back, or restore a backup there"),
            ),
            (DataState::Past { .. }, _) => NodePlan::wait(format!("{PAST}; the restore has not ended")).trouble(
                Severity::Critical,
                format!("stop all agents, and on this host: millrace backup restore --in-place --node {name}"),
            ),
            (DataState::Whole { system_id, .. }, Some(known)) if *system_id != known => NodePlan::wait(
                "the data directory belongs to another cluster",
            )
            .trouble(Severity::Critical, format!("put this cluster's data directory back in the place of {name}")),
            (DataState::Absent, None) | (DataState::Whole { standby: false, .. }, _) if !self.holds_office() => {
                NodePlan::wait("waits to be the primary for sure")
            }
            (DataState::Whole { standby: true, .. }, _) if self.intent.promoting && !self.holds_office() => {
                NodePlan::wait("waits to be the primary for sure")
            }
            (DataState::Whole { standby: true, .. }, _) if self.intent.promoting => {
                NodePlan::act(Action::Start { from: None }, "was elected; starts to be promoted")
            }
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
        if server.in_recovery && self.intent.promoting {
            return match self.holds_office() {
                true => NodePlan::act(Action::Promote, "was elected; is promoted"),
                false => NodePlan::wait("was elected; waits to be the primary for sure"),
            };
        }
        if server.in_recovery {
            return NodePlan::wait("this is the primary, but it is in recovery and takes no writes")
                .trouble(Severity::Critical, "remove its standby.signal or recovery.signal and restart it");
        }
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        let mut actions = Vec::new();
        // the first commits may wait for replicas, and those for their slots
        if self.observed.slots.is_some() {
            actions.extend(self.missing_slots().map(|replica| Action::CreateSlot { replica }));
        }
        if !self.observed.roles_ready {
            actions.push(Action::EnsureRoles);
        }
        if let Some(Wish::Switchover { to }) = &self.intent.wish {
            actions.push(Action::HandOver);
            return NodePlan { actions, sentence: format!("is handed over to {to}"), trouble: None };
        }
        if let (PromiseStep::Set(promise), false) = (&self.promising(server).step, self.intent.promoting) {
            actions.push(Action::SetPromise(promise.clone()));
        }
        let plan = NodePlan { actions, sentence: "accepts writes".to_owned(), trouble: None };
        self.say_what_is_promised(plan, server)
    }

    /// A promise that is less than what is configured is said.
    fn say_what_is_promised(&self, plan: NodePlan, primary: &ServerState) -> NodePlan {
        let Durability::Quorum { quorum, .. } = self.intent.policy.durability else { return plan };
        let streaming = self.members().filter(|(_, view)| view.absent_since.is_none()).count();
        let needed = quorum.min(self.members().count());
        if streaming >= needed {
            return plan;
        }
        let sentence = match self.promising(primary).wanted.quorum {
            0 => "accepts writes; no replica has them yet".to_owned(),
            quorum => format!("commits wait for {quorum} of the replicas, and {streaming} receive its log"),
        };
        NodePlan { sentence, ..plan }.trouble(
            Severity::Warning,
            "a commit that is on one node only is lost with it: look at what the replicas say",
        )
    }

    /// Replicas that commits may wait for.
    fn members(&self) -> impl Iterator<Item = (&NodeName, &NodeView)> + Clone {
        self.observed.nodes.iter().filter(|(name, view)| **name != self.intent.primary && view.may_lead())
    }

    /// Those of replicas that are not about to be rebuilt, which makes the slot anew.
    fn missing_slots(&self) -> impl Iterator<Item = NodeName> {
        self.observed
            .nodes
            .iter()
            .filter(|(name, view)| {
                **name != self.intent.primary
                    && view.busy.is_none()
                    && matches!(view.data, DataState::Whole { standby: true, .. })
                    && self.slot(name).is_none()
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
        if let Some(wait) = self.held_up(view).or_else(|| self.backing_off(view)) {
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
                if self.turns_away(view) && view.vote != Some(self.intent.term) {
                    return self.vote();
                }
                let from = (view.vote != Some(self.intent.term)).then(|| primary.clone());
                NodePlan::act(Action::Start { from }, starting(view))
            }
            DataState::Whole { standby: false, system_id }
                if self.intent.system_id == Some(*system_id) && view.may_be_rewound() =>
            {
                self.rewind(view, format!("was the primary and is brought back to {primary}'s history"))
            }
            DataState::Whole { standby: false, system_id } if self.intent.system_id == Some(*system_id) => self
                .rebuild(
                    view,
                    Discard::MoveAside,
                    format!("holds a primary's data, which is kept aside, and is made anew from {primary}"),
                ),
            DataState::Past { .. } => self.rebuild(
                view,
                Discard::MoveAside,
                format!("{PAST}, which is kept aside, and is made anew from {primary}"),
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
        let primary = &self.intent.primary;
        // also one that does not answer: it would write when it wakes up
        let of_primary = matches!(view.data, DataState::Whole { standby: false, .. });
        let writes = view.server.as_ref().is_some_and(|server| !server.in_recovery);
        let deposed = view.was_primary && (of_primary || writes);
        if deposed && self.observed.office != Office::Undivided {
            return NodePlan::act(Action::Fence, format!("was the primary, and {primary} is: is killed"));
        }
        if let Some(wait) = self.held_up(view) {
            return wait;
        }
        let Some(server) = &view.server else { return self.unheard(name, view, ready) };
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
        if self.turns_away(view) && view.vote != Some(self.intent.term) {
            return self.vote();
        }
        if self.lets_go(view) {
            return NodePlan::act(
                Action::LetGo,
                format!("{primary} has had no agent for a while: takes no more log from it"),
            );
        }
        if view.vote == Some(self.intent.term) {
            let vacant = matches!(self.observed.office, Office::Vacant { .. });
            return match server.deaf || !vacant {
                true => NodePlan::wait(format!("waits for a successor of {primary}")),
                false => self.vote(),
            };
        }
        if view.follows.as_ref() != Some(primary) && self.primary_server().is_some() && self.slot(name).is_some() {
            return NodePlan::act(Action::Follow { from: primary.clone() }, format!("turns to {primary}"));
        }
        if server.streaming && self.lacks_slots(name, view) {
            let sentence = format!("gets the slots of {primary}, so that their users can go on after a failover");
            return match self.backing_off(view) {
                Some(wait) => wait,
                None => NodePlan::act(Action::CopySlots { from: primary.clone() }, sentence),
            };
        }
        if server.streaming {
            return NodePlan::wait(match self.lag(server) {
                Some(_) if view.part.delayed => format!("streams from {primary}, and applies it later, as configured"),
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
        if view.part.delayed {
            // a server asks for more log once it has applied what it has: until then the slot keeps it
            return NodePlan::wait(format!(
                "applies late what it has, as configured, and then asks {primary} for more"
            ));
        }
        let waited = view.not_streaming_since.map_or(Duration::ZERO, |since| self.now.saturating_sub(since));
        if waited < self.intent.policy.not_streaming_max {
            return NodePlan::wait(format!("connects to {primary}"));
        }
        // a server that waits for the rest of a record says that it is on the timeline where that began
        let within = view.within == Some(ahead.timeline);
        if server.timeline < ahead.timeline && !within && view.may_be_rewound() {
            return self.rewind(view, format!("holds log that {primary} does not, and is brought back to its history"));
        }
        if server.lsn > ahead.lsn || server.timeline != ahead.timeline && !within {
            return self.rebuild(
                view,
                Discard::MoveAside,
                format!("holds log that {primary} does not; it is kept aside, and the node made anew"),
            );
        }
        let received = server.received_lsn.unwrap_or(Lsn::INVALID).max(server.lsn);
        if received > ahead.lsn {
            // PostgreSQL asks for the rest of it for ever; a primary whose log finds no room ends within a record
            let sentence = format!(
                "has the first part of a record that {primary} does not have; it is kept aside, and the node made anew"
            );
            return self.rebuild(view, Discard::MoveAside, sentence);
        }
        if within && server.timeline != ahead.timeline && waited >= self.intent.policy.not_streaming_max * 4 {
            // it may have applied since what the primary does not have
            let sentence = format!("does not come to {primary}'s history; it is kept aside, and the node made anew");
            return self.rebuild(view, Discard::MoveAside, sentence);
        }
        let kept_from = slot.and_then(|slot| slot.restart_lsn);
        if kept_from.is_some_and(|kept_from| kept_from > received) {
            return self.rebuild(view, discard(view), format!("needs log that {primary} no longer has and is rebuilt"));
        }
        NodePlan::wait(format!("has received nothing from {primary} for {} s", waited.as_secs()))
            .trouble(Severity::Warning, format!("look at the log of {name}"))
    }

    /// A replica that does not answer. One that recovers may need log for it that the primary of now has, and not the one
    /// that it was started from.
    fn unheard(&self, name: &NodeName, view: &NodeView, ready: bool) -> NodePlan {
        let primary = &self.intent.primary;
        let replica = matches!(view.data, DataState::Whole { standby: true, .. });
        let awaited = self.primary_server().is_some() && self.slot(name).is_some();
        let turns = view.follows.as_ref() != Some(primary) && view.vote != Some(self.intent.term);
        match !ready && replica && awaited && turns {
            true => {
                NodePlan::act(Action::Follow { from: primary.clone() }, format!("recovers, and turns to {primary}"))
            }
            false => silent(view, ready),
        }
    }

    /// Logical slots of the primary are not here, and the server can be restarted to take them: one at a time, and only
    /// while everything else is well.
    fn lacks_slots(&self, name: &NodeName, view: &NodeView) -> bool {
        let (Some(primary), Some(own)) = (&self.observed.slots, &view.slots) else { return false };
        let changes = self.intent.promoting || self.intent.wish.is_some() || self.intent.goal == Goal::Stop;
        let well = |(other, view): (&NodeName, &NodeView)| {
            let replica = *other != self.intent.primary && other != name;
            let lacks = view.may_lead() && view.slots.as_ref().is_none_or(|own| missing_logical(primary, own));
            // the first by name that lacks them begins
            view.busy.is_none() && (!replica || view.absent_since.is_none() && (other > name || !lacks))
        };
        !changes && view.may_lead() && missing_logical(primary, own) && self.observed.nodes.iter().all(well)
    }

    /// A base backup, as soon as the primary can give one.
    fn rebuild(&self, view: &NodeView, discard: Discard, sentence: String) -> NodePlan {
        self.by_the_primary(view, sentence, |from| Action::MakeReplica { from, discard })
    }

    fn rewind(&self, view: &NodeView, sentence: String) -> NodePlan {
        self.by_the_primary(view, sentence, |from| Action::Rewind { from })
    }

    fn by_the_primary(&self, view: &NodeView, sentence: String, action: impl FnOnce(NodeName) -> Action) -> NodePlan {
        let from = self.intent.primary.clone();
        let asked = self.primary_server().is_some() && self.observed.slots.is_some();
        let changes = self.intent.promoting || self.intent.wish.is_some();
        if !asked || !self.observed.roles_ready || changes {
            return NodePlan::wait(format!("{sentence}, once {from} answers"));
        }
        if let Some(wait) = self.backing_off(view) {
            return wait;
        }
        if view.disk.full {
            // begun without room it would end halfway, and leave nothing that can be used
            return NodePlan::wait(format!("{sentence}, once there is room"));
        }
        NodePlan::act(action(from), sentence)
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
        let runs = matches!(primary.process, ProcessState::Running { .. });
        let past = matches!(primary.data, DataState::Past { .. });
        let usable = primary.busy.is_none() && runs && !past && self.holds_office();
        primary
            .server
            .as_ref()
            .filter(|server| usable && !server.in_recovery && self.intent.system_id == Some(server.system_id))
    }

    fn slot(&self, replica: &NodeName) -> Option<&Slot> {
        let name = replica.slot();
        self.observed.slots.as_ref()?.iter().find(|slot| slot.name == name)
    }

    fn lag(&self, replica: &ServerState) -> Option<u64> {
        Some(self.primary_server()?.lsn.bytes_since(replica.lsn))
    }

    fn lost_slot(&self) -> String {
        format!("was away for longer than {} keeps log and is rebuilt from it", self.intent.primary)
    }
}

/// Whether slots for decoding that outlive their session are on the primary and not here.
fn missing_logical(primary: &[Slot], own: &[Slot]) -> bool {
    primary
        .iter()
        .any(|slot| slot.is_kept_logical() && !own.iter().any(|other| other.name == slot.name && !other.is_lost()))
}

/// Deleting is only for what surely never was more than a replica.
fn discard(view: &NodeView) -> Discard {
    match &view.data {
        DataState::Absent => Discard::Nothing,
        DataState::Whole { standby: true, .. } | DataState::Damaged { standby: true, .. } if !view.was_primary => {
            Discard::Delete
        }
        DataState::Whole { .. }
        | DataState::Past { .. }
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
        DataState::Absent | DataState::Whole { .. } | DataState::Past { .. } | DataState::Damaged { .. } => {
            ("cannot be used".to_owned(), format!("look at the folder of {name}"))
        }
    };
    NodePlan::wait(what).trouble(Severity::Critical, what_to_do)
}

#[cfg(test)]
mod disks;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod recovering;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
