//! What becomes of the office of primary: who loses it, who takes it, who turns away from its holder. Pure.

use std::time::Duration;

use super::{Case, PromiseStep};
use crate::{
    election::{Election, elect},
    observed::{DataState, Goal, NodeView, Office, ProcessState, Wish},
    plan::{Action, Change, NodePlan},
    spec::NodeName,
};

/// A primary whose server has ended leaves it to others for this long to take its place.
const VOTING: Duration = Duration::from_secs(2);
/// Those who have turned away wait so long for the others that answer.
const GATHERING: Duration = Duration::from_secs(1);

/// What becomes of the office of primary.
pub(super) enum Succession {
    /// Its holder is treated as usual.
    Stay,
    /// Its holder is lost, and no one can take its place.
    Impossible(String),
    /// Its holder is lost and may still write.
    Fence(String),
    Elect {
        node: NodeName,
        missing: Option<u64>,
        why: String,
    },
}

impl Case<'_> {
    pub(super) fn succession(&self) -> Succession {
        let intent = self.intent;
        let Some(view) = self.observed.nodes.get(&intent.primary) else { return Succession::Stay };
        let Some(why) = self.loss(view) else { return Succession::Stay };
        match elect(self.observed, intent, self.now) {
            // no one else can do it: it is killed and started again
            Election::No(_) if view.may_write && self.hangs_for_good(view) => Succession::Fence(why),
            Election::No(why) => Succession::Impossible(why),
            Election::Elected { .. } if view.may_write => Succession::Fence(why),
            Election::Elected { node, missing } => match self.still_to_turn_away() {
                Some(other) => Succession::Impossible(format!("{other} has not turned away yet")),
                None => Succession::Elect { node, missing, why },
            },
        }
    }

    /// A replica that answers and may have more of the log than those who have turned away: it is waited for a little, so
    /// that the most advanced is elected, and none that is ahead of it follows it.
    fn still_to_turn_away(&self) -> Option<&NodeName> {
        let Office::Vacant { since, .. } = self.observed.office else { return None };
        if self.intent.wish.is_some() || self.now.saturating_sub(since) >= GATHERING {
            return None;
        }
        let replica = |view: &NodeView| view.server.as_ref().is_some_and(|server| server.in_recovery);
        let others = self.observed.nodes.iter().filter(|(name, _)| **name != self.intent.primary);
        let mut unsettled = others.filter(|(_, view)| replica(view) && !view.is_settled(self.intent.term));
        unsettled.next().map(|(name, _)| name)
    }

    /// Nobody can be served by it any more. An elected one that has not been promoted serves nobody yet.
    pub(super) fn hangs_for_good(&self, view: &NodeView) -> bool {
        let limit = match self.intent.promoting {
            true => self.intent.policy.silent_max,
            false => self.intent.policy.start_max,
        };
        let silent = view.silent_since.is_some_and(|since| self.now.saturating_sub(since) >= limit);
        silent && matches!(view.process, ProcessState::Running { ready: true, .. })
    }

    /// Why the primary is to have a successor, if it is.
    pub(super) fn loss(&self, view: &NodeView) -> Option<String> {
        let intent = self.intent;
        let vacant = matches!(self.observed.office, Office::Vacant { .. });
        let adopted = !matches!(view.process, ProcessState::Unadopted { .. });
        let in_work = !vacant && (view.busy.is_some() || !adopted);
        let alone = self.observed.nodes.len() < 2;
        if intent.goal == Goal::Stop || in_work || alone || self.observed.office == Office::Unknown {
            return None;
        }
        let running = matches!(view.process, ProcessState::Running { .. });
        match &intent.wish {
            Some(Wish::Failover { to }) => return Some(format!("an operator wants {to} to be the primary")),
            Some(Wish::Switchover { to }) if !running => return Some(format!("is handed over to {to}")),
            Some(Wish::Switchover { .. }) | None => {}
        }
        if !intent.policy.failover || intent.paused {
            return None;
        }
        if vacant && self.observed.handed_over.is_some() {
            return Some("has been stopped".to_owned());
        }
        if vacant && (view.may_write || running || view.busy.is_some()) {
            return Some("has lost its lease".to_owned());
        }
        // also one that has been killed for it, or has ended
        if let Some(stuck) = view.stuck_for(self.now).filter(|stuck| *stuck >= intent.policy.silent_max) {
            return Some(format!("its disk has taken nothing for {:.1} s", stuck.as_secs_f64()));
        }
        if let ProcessState::Running { ready, .. } = view.process {
            let limit = if ready { intent.policy.silent_max } else { intent.policy.start_max };
            let silent = self.now.saturating_sub(view.silent_since?);
            return (silent >= limit).then(|| format!("has not answered for {:.1} s", silent.as_secs_f64()));
        }
        match (&view.failure, &view.data) {
            // nothing is known to be wrong with it
            (None, DataState::Whole { standby: false, .. }) => None,
            (None, _) if intent.promoting => None,
            (None, DataState::Absent) if intent.system_id.is_none() => None,
            (None, _) => Some("its data cannot be used".to_owned()),
            // whoever is elected might lack commits: it gets two tries to come back
            (Some(failure), _) if intent.promise.is_none() && failure.next_try <= 2 => None,
            (Some(failure), _) => Some(failure.what.clone()),
        }
    }

    /// What is to be recorded now.
    pub(super) fn change(&self) -> Option<Change> {
        let vacant_for = match self.observed.office {
            Office::Vacant { since, .. } => Some(self.now.saturating_sub(since)),
            Office::Undivided | Office::Held | Office::Unknown => None,
        };
        // its log is complete: others know best whether they have it
        if self.has_handed_over() && self.intent.goal == Goal::Run {
            return Some(Change::Resign("has ended in order".to_owned()));
        }
        match &self.succession {
            Succession::Elect { node, .. } if self.observed.office == Office::Held => {
                return Some(Change::Resign(format!("{node} can take its place")));
            }
            Succession::Elect { node, missing, why } => {
                return Some(Change::Elect { node: node.clone(), missing: *missing, why: why.clone() });
            }
            Succession::Impossible(why)
                if self.intent.wish.is_some() && vacant_for.is_none_or(|vacant| vacant >= VOTING) =>
            {
                return Some(Change::GiveUp(why.clone()));
            }
            // one that still runs goes on, if nobody was earlier
            Succession::Impossible(_) if vacant_for.is_some() && self.primary_runs() => {}
            Succession::Fence(_) if vacant_for.is_some() => return None,
            Succession::Impossible(_) if vacant_for.is_some_and(|vacant| vacant < VOTING) => return None,
            Succession::Impossible(_) | Succession::Stay | Succession::Fence(_) => {}
        }
        if vacant_for.is_some() {
            return self.may_take_office().then_some(Change::TakeOffice);
        }
        let server = self.primary_server()?;
        if self.intent.promoting {
            return Some(Change::Promoted);
        }
        match &self.promising(server).step {
            PromiseStep::Record(promise) => Some(Change::Promise(promise.clone())),
            PromiseStep::Kept | PromiseStep::CatchingUp | PromiseStep::Set(_) => None,
        }
    }

    pub(super) fn has_handed_over(&self) -> bool {
        let ended = self.observed.nodes.get(&self.intent.primary).is_some_and(|view| !view.may_write);
        ended && self.observed.office == Office::Held && self.observed.handed_over.is_some()
    }

    pub(super) fn primary_runs(&self) -> bool {
        let view = self.observed.nodes.get(&self.intent.primary);
        view.is_some_and(|view| view.may_write && matches!(view.process, ProcessState::Running { .. }))
    }

    /// The primary's server runs, or there is something that it could be started from.
    pub(super) fn may_take_office(&self) -> bool {
        let Some(view) = self.observed.nodes.get(&self.intent.primary) else { return false };
        if matches!(view.process, ProcessState::Unadopted { .. }) {
            return false;
        }
        let usable = match view.data {
            DataState::Whole { standby, system_id } => {
                (!standby || self.intent.promoting) && self.intent.system_id.is_none_or(|known| known == system_id)
            }
            DataState::Absent => self.intent.system_id.is_none(),
            _ => false,
        };
        let writable = view.disk.stuck_since.is_none() && (view.may_write || !view.dying);
        usable && writable && view.busy.is_none() && self.intent.goal == Goal::Run
    }
    /// The primary may accept writes.
    pub(super) fn holds_office(&self) -> bool {
        matches!(self.observed.office, Office::Undivided | Office::Held)
    }
    /// The primary is lost, and nobody can be sure that it is dead.
    pub(super) fn turns_away(&self, view: &NodeView) -> bool {
        let Office::Vacant { resigned, .. } = self.observed.office else { return false };
        // the primary may count on those who have just received its log
        let holds = !resigned && self.now.saturating_sub(view.heard_at) < self.intent.policy.hold;
        let forced = matches!(self.intent.wish, Some(Wish::Failover { .. }));
        let primary = self.observed.nodes.get(&self.intent.primary);
        let lost = primary.is_some_and(|primary| self.loss(primary).is_some());
        !holds && !forced && view.busy.is_none() && lost
    }

    /// Its server lives on without an agent, and writes log of its own accord (vacuum does): whoever receives that would
    /// never vote. One that takes no more may vote when it has been so for a while. Not where too few are left to elect
    /// anybody: the primary may be able to prove what it is by those who follow it.
    pub(super) fn lets_go(&self, view: &NodeView) -> bool {
        let Office::Vacant { since, .. } = self.observed.office else { return false };
        let long = self.now.saturating_sub(since) >= self.intent.policy.silent_max;
        let lost = self.observed.nodes.get(&self.intent.primary).is_some_and(|primary| self.loss(primary).is_some());
        let answers =
            self.observed.nodes.iter().filter(|(_, view)| view.server.is_some()).map(|(name, _)| name.clone());
        let enough = self.intent.promise.still_to_see(&answers.collect()) == 0;
        long && lost && enough && view.follows.is_some() && view.busy.is_none() && view.vote != Some(self.intent.term)
    }

    pub(super) fn vote(&self) -> NodePlan {
        let primary = &self.intent.primary;
        NodePlan::act(Action::Vote { term: self.intent.term }, format!("{primary} is lost: turns away from it"))
    }
}
