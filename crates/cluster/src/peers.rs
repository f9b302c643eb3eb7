//! What one supervisor of several knows of the others, and what it may do by that. Pure.
//!
//! Invariants: the record's word is the law, and until it has been heard nothing that runs is touched; what is heard of
//! others may be late, and counts for nothing that being late could make wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_contract::status::Severity;

use crate::{
    decide::choose_primary,
    error::ClusterError,
    history::Entry,
    observed::{
        DataState, DiskView, Failure, FailureKind, Goal, Intent, LogEnd, NodeView, Observed, Office, ProcessState,
    },
    plan::{Action, Change, NodePlan, Plan},
    promise::Promise,
    spec::NodeName,
    state::ClusterRecord,
    store::{Claim, Shared},
};

/// An agent that has never been heard is waited for this long before its primary is taken for lost.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// What was written is heard within this, or something is wrong.
const CERTAIN: Duration = Duration::from_secs(1);

/// What this supervisor's node may do by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leave {
    /// This supervisor's; 0: none.
    pub(crate) lease: i64,
    /// Its server may accept writes until then, if it is the primary. Monotonic.
    pub(crate) valid_until: Duration,
}

/// What the record says.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) intent: Intent,
    /// Nothing had been heard before.
    pub(crate) first: bool,
    /// The primary of this term has ended in order, with its last record here.
    pub(crate) handed_over: Option<LogEnd>,
}

/// The others, as far as they have been heard.
#[derive(Debug)]
pub(crate) struct Peers {
    /// `None`: this supervisor has no node, and listens.
    node: Option<NodeName>,
    /// As it was at the beginning of this cycle.
    shared: Shared,
    /// The record has been heard once.
    known: bool,
    /// The system identifier of the cluster that this one has made; the record does not have it yet.
    pub(crate) made: Option<u64>,
    vacant_since: Option<Duration>,
    gone_since: BTreeMap<NodeName, Duration>,
    heard: BTreeSet<NodeName>,
    /// A change of the record of this revision was asked for then, and whether it was made is not known.
    uncertain: Option<(i64, Duration)>,
    /// This supervisor gives the office up with a change of the record of this revision, and what came of it has not been
    /// heard: it may be another's already.
    leaves: Option<i64>,
}

impl Peers {
    pub(crate) fn new(node: Option<NodeName>) -> Self {
        Self {
            node,
            shared: Shared::default(),
            known: false,
            made: None,
            vacant_since: None,
            gone_since: BTreeMap::new(),
            heard: BTreeSet::new(),
            uncertain: None,
            leaves: None,
        }
    }

    /// The node of this supervisor.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    /// It is this supervisor's node.
    pub(crate) fn is_own(&self, name: &NodeName) -> bool {
        self.node.as_ref() == Some(name)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.shared.connected
    }

    /// The record has been heard.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Events of the cluster, oldest first.
    pub(crate) fn history(&self) -> &BTreeMap<String, Entry> {
        &self.shared.history
    }

    /// Takes what has been heard; says what is wanted by the record, if there is one.
    pub(crate) fn hear<'n>(
        &mut self,
        shared: Shared,
        nodes: impl Iterator<Item = &'n NodeName>,
        before: &Intent,
        now: Duration,
    ) -> Option<Word> {
        self.shared = shared;
        let shared = &self.shared;
        for node in nodes {
            if shared.members.contains_key(node) {
                self.gone_since.remove(node);
                self.heard.insert(node.clone());
            } else {
                self.gone_since.entry(node.clone()).or_insert(now);
            }
        }
        self.vacant_since = match (&shared.officer, shared.connected) {
            (None, true) => Some(self.vacant_since.unwrap_or(now)),
            (None, false) => self.vacant_since,
            (Some(_), _) => None,
        };
        let (record, revision) = shared.record.clone()?;
        if self.uncertain.is_some_and(|(of, _)| of != revision) {
            self.uncertain = None;
        }
        self.leaves = self.leaves.filter(|of| *of == revision);
        let first = !std::mem::replace(&mut self.known, true);
        let intent = Intent {
            primary: record.primary,
            term: record.term,
            system_id: Some(record.system_id).filter(|id| *id != 0).or(self.made),
            promoting: record.promoting,
            promise: record.promise,
            paused: record.paused,
            wish: record.wish,
            said: record.said,
            restored: record.restored,
            ..before.clone()
        };
        Some(Word { intent, first, handed_over: record.handed_over })
    }

    /// The record's promise, as long as nobody can have changed it unheard.
    pub(crate) fn promise(&self) -> Option<&Promise> {
        let certain = self.uncertain.is_none();
        self.shared.record.as_ref().filter(|_| certain).map(|(record, _)| &record.promise)
    }

    /// No one has the office.
    pub(crate) fn is_vacant(&self) -> bool {
        self.shared.connected && self.vacant_since.is_some()
    }

    /// Neither the record has been heard, nor that there is none.
    pub(crate) fn is_ignorant(&self, intent: &Intent) -> bool {
        !self.known && (intent.term == 0 || !self.shared.connected || self.shared.unreadable)
    }

    fn office(&self, intent: &Intent, leave: Leave, now: Duration) -> Office {
        let (Some((officer, lease)), Some((record, _))) = (&self.shared.officer, &self.shared.record) else {
            return match self.vacant_since {
                Some(since) if self.shared.connected => {
                    let resigned = self.shared.record.as_ref().is_some_and(|(record, _)| record.resigned);
                    Office::Vacant { since, resigned }
                }
                None if self.is_valid(intent, leave, now) => Office::Held,
                _ => Office::Unknown,
            };
        };
        if officer.node != intent.primary || officer.term != intent.term || record.term != intent.term {
            return Office::Unknown;
        }
        match self.is_own(&officer.node) {
            true if self.is_valid(intent, leave, now) && (*lease == leave.lease || !self.shared.connected) => {
                Office::Held
            }
            false if self.shared.connected => Office::Held,
            _ => Office::Unknown,
        }
    }

    /// This supervisor's node had the office, and has been the primary without a gap.
    fn is_valid(&self, intent: &Intent, leave: Leave, now: Duration) -> bool {
        // the record may be heard before the key of the office is
        let resigned = |(record, _): &(ClusterRecord, i64)| record.resigned && record.term == intent.term;
        let left = self.leaves.is_some() || self.shared.record.as_ref().is_some_and(resigned);
        self.known && !left && self.is_own(&intent.primary) && now < leave.valid_until
    }

    /// When another host's agent was last heard.
    pub(crate) fn heard_at(&self, name: &NodeName) -> Option<Duration> {
        let heard = self.shared.members.get(name).filter(|_| !self.is_own(name));
        heard.map(|heard| heard.at)
    }

    /// Another host's node, as its agent saw it, or as it is if that agent is silent.
    fn view(&self, name: &NodeName, intent: &Intent, held: bool, now: Duration) -> NodeView {
        let primary = *name == intent.primary;
        if let Some(heard) = self.shared.members.get(name) {
            let mut view = heard.view();
            // its own word may be late
            view.may_write = primary && held;
            let streams = view.server.as_ref().is_some_and(|server| server.streaming);
            view.absent_since = if streams { None } else { Some(view.not_streaming_since.unwrap_or(heard.at)) };
            return view;
        }
        let since = self.gone_since.get(name).copied().unwrap_or(now);
        let patience = if self.heard.contains(name) { Duration::ZERO } else { FIRST_WORD };
        let lost = now.saturating_sub(since) >= patience;
        let data = match (primary && !lost, intent.system_id) {
            (true, Some(system_id)) => DataState::Whole { system_id, standby: false },
            _ => DataState::Denied { why: "its agent is not heard".to_owned() },
        };
        NodeView {
            data,
            was_primary: primary,
            rogue: false,
            restored: intent.restored.clone(),
            heard_at: Duration::ZERO,
            part: Default::default(),
            process: ProcessState::None,
            may_write: primary && held,
            dying: false,
            disk: DiskView::default(),
            server: None,
            slots: None,
            silent_since: None,
            not_streaming_since: None,
            within: None,
            absent_since: Some(since),
            vote: None,
            follows: None,
            busy: None,
            failure: lost.then(|| Failure {
                kind: FailureKind::Other,
                what: "its agent is not heard".to_owned(),
                what_to_do: Some(format!("look at the host of {name}, its network and etcd's")),
                at: since,
                not_before: since,
                // whatever could be tried has been
                next_try: 9,
            }),
        }
    }

    /// Adds to what was seen here what others saw, and says who may do what.
    pub(crate) fn add<'n>(
        &mut self,
        observed: &mut Observed,
        nodes: impl Iterator<Item = &'n NodeName>,
        intent: &Intent,
        leave: Leave,
        now: Duration,
    ) {
        let office = self.office(intent, leave, now);
        observed.office = if self.is_ignorant(intent) { Office::Unknown } else { office };
        for name in nodes {
            if self.is_own(name) {
                continue;
            }
            let view = self.view(name, intent, observed.office == Office::Held, now);
            observed.nodes.insert(name.clone(), view);
        }
        observed.nodes.values_mut().for_each(|view| view.known_as(intent.restored.as_ref()));
        if self.is_own(&intent.primary) {
            let data = observed.nodes.get(&intent.primary).map(|view| &view.data);
            // it was made here, and whoever made it ended before the record had its identifier
            if let (true, None, Some(DataState::Whole { system_id, standby: false })) =
                (self.known, intent.system_id, data)
            {
                self.made = Some(*system_id);
            }
            return;
        }
        let Some(heard) = self.shared.members.get(&intent.primary) else { return };
        let view = &heard.member.view;
        let server = view.server.as_ref().filter(|server| !server.in_recovery);
        observed.roles_ready = heard.member.roles_ready;
        observed.slots = server.and(view.slots.clone());
        if let Some(server) = server {
            observed.primary_lsn = Some(server.lsn);
            let kept = view.slots.iter().flatten().filter(|slot| slot.is_kept_logical());
            observed.logical_slots = kept.map(|slot| slot.name.clone()).collect();
        }
    }

    /// Before there is a record: who its first primary is, once every one of `nodes` agents has said what data its node
    /// holds. `None`: it is not known yet.
    ///
    /// # Errors
    /// If the data contradicts itself.
    pub(crate) fn begin(
        &self,
        own: &Observed,
        nodes: usize,
        first: &NodeName,
        intent: &Intent,
    ) -> Option<Result<Intent, ClusterError>> {
        let shared = &self.shared;
        if self.known || !shared.connected || shared.unreadable || shared.members.len() != nodes {
            return None;
        }
        let mut all = own.clone();
        let others = shared.members.iter().filter(|(name, _)| !self.is_own(name));
        all.nodes.extend(others.map(|(name, heard)| (name.clone(), heard.view())));
        // a record that is gone said what is of before the last restore; the data of after says it too
        let restored = all.nodes.values().filter_map(|view| view.restored.clone()).max();
        all.nodes.values_mut().for_each(|view| view.known_as(restored.as_ref()));
        let chosen = choose_primary(&all, None, first).map(|primary| {
            let mut begun = intent.clone();
            if let Some(DataState::Whole { system_id, .. }) = all.nodes.get(&primary).map(|view| &view.data) {
                begun.system_id = Some(*system_id);
            }
            begun.primary = primary;
            begun.restored = restored;
            // a term of no record: the first that is taken is 1 more
            let votes = all.nodes.values().filter_map(|view| view.vote);
            begun.term = votes.fold(begun.term.max(1), u64::max);
            begun
        });
        Some(chosen)
    }

    /// What may be done of a plan by one who has not heard the record, or not what he has made of it himself.
    pub(crate) fn restrain(&self, mut plan: Plan, intent: &Intent) -> Plan {
        let Some(node) = &self.node else { return plan };
        if let Some(own) = plan.nodes.get_mut(node).filter(|_| self.uncertain.is_some()) {
            // what commits wait for rests on the record, and nobody knows what that says now
            own.actions.retain(|action| !matches!(action, Action::SetPromise(_)));
        }
        if !self.is_ignorant(intent) || intent.goal == Goal::Stop {
            return plan;
        }
        plan.change = None;
        if let Some(own) = plan.nodes.get_mut(node)
            && !matches!(own.actions.as_slice(), [Action::Adopt])
        {
            *own = NodePlan::wait("waits to hear of the cluster from etcd and the other agents")
                .trouble(Severity::Critical, "look at etcd and at the agents of the other nodes");
        }
        plan
    }

    /// What `change` needs, if it is this supervisor's to make.
    pub(crate) fn claim(&self, change: &Change, intent: &Intent) -> Option<Claim> {
        let node = self.node.as_ref()?;
        let own = *node == intent.primary;
        match change {
            Change::Elect { node: elected, .. } if elected == node => Some(Claim::Take(node.clone())),
            Change::TakeOffice if own => Some(Claim::Take(node.clone())),
            Change::Resign(_) if own => Some(Claim::Leave),
            Change::Promoted | Change::Promise(_) if own => Some(Claim::Hold),
            // its holder may be gone
            Change::GiveUp(_) if own || self.shared.officer.is_none() => Some(Claim::Word),
            _ => None,
        }
    }

    /// This supervisor holds the office on this lease, as far as it has heard.
    pub(crate) fn holds_office(&self, lease: i64) -> bool {
        self.shared.officer.as_ref().is_some_and(|(_, of)| *of == lease)
    }

    /// A change of the record is asked for that rests on `claim`; the revision that it is of.
    pub(crate) fn ask(&mut self, claim: &Claim) -> i64 {
        let revision = self.shared.record.as_ref().map_or(0, |(_, revision)| *revision);
        if *claim == Claim::Leave {
            self.leaves = Some(revision);
        }
        revision
    }

    /// What came of it; `None`: nobody knows.
    pub(crate) fn answered(&mut self, revision: i64, claim: &Claim, done: Option<bool>, now: Duration) {
        match done {
            // another change that was refused tells nothing of an earlier one of which nobody knows
            Some(false) if *claim == Claim::Leave => self.leaves = None,
            Some(false) => {}
            // until it is heard
            Some(true) | None => self.uncertain = Some((revision, now)),
        }
    }

    /// A record of which nobody knows whether it was changed is to be written once more as it was: one of both comes true.
    pub(crate) fn is_to_be_made_certain(&self, intent: &Intent, now: Duration) -> bool {
        let own = self.is_own(&intent.primary) && self.shared.connected;
        own && self.uncertain.is_some_and(|(_, since)| now.saturating_sub(since) >= CERTAIN)
    }

    /// The cluster that was made here has an identifier, and the record does not have it.
    pub(crate) fn lacks_system_id(&self, intent: &Intent) -> bool {
        let unknown = self.shared.record.as_ref().is_some_and(|(record, _)| record.system_id == 0);
        unknown && intent.system_id.is_some() && self.is_own(&intent.primary)
    }
}

/// The record that `intent` makes, while `present` is what is wanted.
pub(crate) fn record_of(
    intent: &Intent,
    present: &Intent,
    handed_over: Option<LogEnd>,
    claim: &Claim,
) -> ClusterRecord {
    ClusterRecord {
        term: intent.term,
        promoting: intent.promoting,
        promise: intent.promise.clone(),
        paused: intent.paused,
        wish: intent.wish.clone(),
        said: intent.said.clone(),
        restored: intent.restored.clone(),
        handed_over: handed_over.filter(|_| intent.term == present.term),
        resigned: *claim == Claim::Leave,
        ..ClusterRecord::new(intent.primary.clone(), intent.system_id.unwrap_or(0))
    }
}

#[cfg(test)]
mod begin_tests;
#[cfg(test)]
mod simulation;
