//! One supervisor of several: what it hears of the others, what it says, and what it may do.
//!
//! Invariant: its server accepts writes only while its lease, by its own clock, is good and the office is its node's; a
//! task of its own sees to that, whatever else this supervisor waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_base::Clock;
use millrace_contract::status::Severity;
use millrace_pg::{
    ConnectParams, Connection, PgError, ServerSpec,
    catalog::{self, Slot},
    connect,
};
use tokio::{sync::watch, time::timeout};

use super::{Supervisor, vacancy};
use crate::{
    decide::choose_primary,
    error::ClusterError,
    history::{self, Entry, Event as Happening},
    node::Node,
    observe,
    observed::{DataState, Failure, FailureKind, Goal, Intent, NodeView, Observed, Office, ProcessState},
    plan::{Action, Change, NodePlan, Plan},
    promise::Promise,
    spec::{AgentSpec, ClusterSpec, NodeName},
    state::ClusterRecord,
    store::{
        Claim, Member, Shared, Validity,
        etcd::{Keeper, Store, open},
    },
};

/// An agent that has never been heard is waited for this long before its primary is taken for lost.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Between looks at how far a lease is from its end.
const LOOK: Duration = Duration::from_millis(50);
/// Between words that say nothing new but how far the log has come.
const SAY: Duration = Duration::from_secs(1);
/// What was written is heard within this, or something is wrong.
const CERTAIN: Duration = Duration::from_secs(1);
/// Between words that say nothing new at all.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What a supervisor has of the others.
#[derive(Debug)]
pub(super) struct Others {
    node: NodeName,
    pub(super) store: Store,
    pub(super) keeper: Option<Keeper>,
    /// As it was at the beginning of this cycle.
    shared: Shared,
    /// The record has been heard once.
    known: bool,
    /// The system identifier of the cluster that this one has made; the record does not have it yet.
    pub(super) made: Option<u64>,
    vacant_since: Option<Duration>,
    gone_since: BTreeMap<NodeName, Duration>,
    heard: BTreeSet<NodeName>,
    /// What was said last, but for what changes with every look; the whole of it; and when.
    said: Option<(NodeView, NodeView, Duration)>,
    /// The newest event of the history that this host's disk has.
    told_history: Option<String>,
    was_connected: bool,
    /// The node is to be killed when the lease ends.
    armed: watch::Sender<bool>,
    /// The promise of the record, as long as nobody can have changed it unheard.
    promise: watch::Sender<Option<Promise>>,
    /// A change of the record of this revision was asked for then, and whether it was made is not known.
    uncertain: Option<(i64, Duration)>,
    /// Who is to be the primary by an operator's word that has been written, and in which term it was.
    pub(super) awaited: Option<(NodeName, u64)>,
    /// What was seen in the cycle before.
    pub(super) seen: Option<Observed>,
}

impl Others {
    pub(super) fn new(agent: &AgentSpec, clock: Arc<dyn Clock>) -> Self {
        let (store, keeper) = open(agent.etcd.clone(), agent.node.clone(), clock);
        Self {
            node: agent.node.clone(),
            store,
            keeper: Some(keeper),
            shared: Shared::default(),
            known: false,
            made: None,
            vacant_since: None,
            gone_since: BTreeMap::new(),
            heard: BTreeSet::new(),
            said: None,
            told_history: None,
            was_connected: false,
            armed: watch::channel(false).0,
            promise: watch::channel(None).0,
            uncertain: None,
            awaited: None,
            seen: None,
        }
    }

    /// What goes on beside the supervisor's loop.
    pub(super) fn watchers(&self, spec: &ClusterSpec, own: &Node, clock: &Arc<dyn Clock>) -> (Guard, Proof) {
        // what an earlier supervisor left may be a primary
        let primary = matches!(observe::data_state(&own.server), DataState::Whole { standby: false, .. });
        self.armed.send_replace(primary);
        let (validity, armed) = (self.store.validity(), self.armed.subscribe());
        let guard = Guard {
            server: own.server.clone(),
            validity: validity.clone(),
            armed: armed.clone(),
            clock: clock.clone(),
        };
        let proof = Proof {
            params: ConnectParams { application_name: "millrace proof".to_owned(), ..own.params.clone() },
            others: spec.nodes.iter().map(|node| node.name.clone()).filter(|name| *name != self.node).collect(),
            promise: self.promise.subscribe(),
            validity,
            armed,
            hold: spec.limits.hold,
            clock: clock.clone(),
        };
        (guard, proof)
    }

    /// Neither the record has been heard, nor that there is none: nothing that runs is touched.
    fn is_ignorant(&self, intent: &Intent) -> bool {
        !self.known && (intent.term == 0 || !self.shared.connected || self.shared.unreadable)
    }

    /// Waits until something else has been heard.
    pub(super) async fn changed(others: &mut Option<Self>) {
        match others {
            Some(others) => others.store.changed().await,
            None => std::future::pending().await,
        }
    }

    fn office(&self, intent: &Intent, now: Duration) -> Office {
        let (Some((officer, lease)), Some((record, _))) = (&self.shared.officer, &self.shared.record) else {
            return match self.vacant_since {
                Some(since) if self.shared.connected => {
                    let resigned = self.shared.record.as_ref().is_some_and(|(record, _)| record.resigned);
                    Office::Vacant { since, resigned }
                }
                None if self.is_valid(intent, now) => Office::Held,
                _ => Office::Unknown,
            };
        };
        if officer.node != intent.primary || officer.term != intent.term || record.term != intent.term {
            return Office::Unknown;
        }
        match officer.node == self.node {
            true if self.is_valid(intent, now) && (*lease == self.store.lease() || !self.shared.connected) => {
                Office::Held
            }
            false if self.shared.connected => Office::Held,
            _ => Office::Unknown,
        }
    }

    /// This supervisor's node had the office, and has been the primary without a gap.
    fn is_valid(&self, intent: &Intent, now: Duration) -> bool {
        let validity = *self.store.validity().borrow();
        self.known && intent.primary == self.node && now < validity.until
    }

    /// When another host's agent was last heard.
    pub(super) fn heard_at(&self, name: &NodeName) -> Option<Duration> {
        let heard = self.shared.members.get(name).filter(|_| *name != self.node);
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
            heard_at: Duration::ZERO,
            process: ProcessState::None,
            may_write: primary && held,
            server: None,
            slots: None,
            silent_since: None,
            not_streaming_since: None,
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
}

impl Supervisor {
    /// Takes what has been heard for what is wanted. The record's word is the law.
    pub(super) fn hear(&mut self, now: Duration) {
        let Some(others) = &mut self.others else { return };
        others.store.turn(now);
        others.shared = others.store.shared();
        let shared = &others.shared;
        for node in &self.spec.nodes {
            if shared.members.contains_key(&node.name) {
                others.gone_since.remove(&node.name);
                others.heard.insert(node.name.clone());
            } else {
                others.gone_since.entry(node.name.clone()).or_insert(now);
            }
        }
        others.vacant_since = match (&shared.officer, shared.connected) {
            (None, true) => Some(others.vacant_since.unwrap_or(now)),
            (None, false) => others.vacant_since,
            (Some(_), _) => None,
        };
        let newest = shared.history.keys().next_back();
        if newest != others.told_history.as_ref()
            && history::replace(&self.spec.state_dir, shared.history.values()).is_ok()
        {
            others.told_history = newest.cloned();
        }
        let Some((record, revision)) = shared.record.clone() else { return };
        let before = self.intent.clone();
        self.intent = Intent {
            primary: record.primary.clone(),
            term: record.term,
            system_id: Some(record.system_id).filter(|id| *id != 0).or(others.made),
            promoting: record.promoting,
            promise: record.promise.clone(),
            paused: record.paused,
            wish: record.wish.clone(),
            ..before.clone()
        };
        let certain = others.uncertain.is_none_or(|(of, _)| of != revision);
        if certain {
            others.uncertain = None;
        }
        others.promise.send_replace(certain.then(|| record.promise.clone()));
        others.armed.send_if_modified(|armed| std::mem::replace(armed, record.primary == others.node) != *armed);
        let first_time = !std::mem::replace(&mut others.known, true);
        let first = match &others.seen {
            Some(seen) if record.promoting => before.first_promise(&record.primary, seen),
            _ => Promise::none(),
        };
        if first_time {
            // what is promised is in force from the first commit on
            if let Some(primary) = self.nodes.get_mut(&record.primary) {
                primary.promise = record.promise;
            }
        } else if record.term != before.term {
            self.new_term(&before, first, now);
        }
        self.handed_over = record.handed_over.or(self.handed_over.filter(|_| record.term == before.term));
        self.answer_if_come_true(&before);
    }

    /// Nothing that was known of the term before holds any more.
    fn new_term(&mut self, before: &Intent, first: Promise, now: Duration) {
        let primary = self.intent.primary.clone();
        tracing::warn!(from = %before.primary, to = %primary, term = self.intent.term, "a new term");
        (self.primary_lsn, self.handed_over, self.arrived) = (None, None, false);
        if primary == before.primary {
            // it is to be started, whatever it died of
            if let Some(node) = self.nodes.get_mut(&primary) {
                node.failure = None;
            }
            return;
        }
        self.vacancy = Some(self.vacated(now));
        for (name, node) in &mut self.nodes {
            node.promise = if *name == primary { first.clone() } else { Promise::none() };
            node.absent_since = Some(now);
        }
    }

    fn answer_if_come_true(&mut self, before: &Intent) {
        let Some(others) = &mut self.others else { return };
        let Some((to, term)) = others.awaited.clone() else { return };
        let intent = &self.intent;
        let reply = if intent.primary == to && intent.term > term && !intent.promoting {
            Ok(format!("{to} is the primary"))
        } else if before.wish.is_some() && intent.wish.is_none() && intent.primary != to {
            Err("it could not be done; `cluster history` says more".to_owned())
        } else {
            return;
        };
        others.awaited = None;
        self.answer(reply);
    }

    /// Adds what others saw, and says who may do what.
    pub(super) fn with_others(&mut self, mut observed: Observed, now: Duration) -> Observed {
        let Some(others) = &mut self.others else { return observed };
        let all = others.shared.members.len() == self.spec.nodes.len() && !others.shared.unreadable;
        if !others.known && others.shared.connected && all {
            self.begin_cluster(&observed, now);
        }
        let Some(others) = &mut self.others else { return observed };
        let office = others.office(&self.intent, now);
        observed.office = if others.is_ignorant(&self.intent) { Office::Unknown } else { office };
        for node in &self.spec.nodes {
            if node.name != others.node {
                let view = others.view(&node.name, &self.intent, observed.office == Office::Held, now);
                observed.nodes.insert(node.name.clone(), view);
            }
        }
        // it was made here, and whoever made it ended before the record had its identifier
        let made = observed.nodes.get(&others.node).map(|view| &view.data);
        if let (true, None, Some(DataState::Whole { system_id, standby: false })) =
            (others.known && self.intent.primary == others.node, self.intent.system_id, made)
        {
            others.made = Some(*system_id);
        }
        let primary = self.intent.primary.clone();
        if primary != others.node
            && let Some(heard) = others.shared.members.get(&primary)
        {
            let view = &heard.member.view;
            let server = view.server.as_ref().filter(|server| !server.in_recovery);
            observed.roles_ready = heard.member.roles_ready;
            observed.slots = server.and(view.slots.clone());
            if let Some(server) = server {
                self.primary_lsn = Some(server.lsn);
                let kept = view.slots.iter().flatten().filter(|slot| slot.is_kept_logical());
                self.logical_slots = kept.map(|slot| slot.name.clone()).collect();
            }
            observed.primary_lsn = self.primary_lsn;
            observed.logical_slots = self.logical_slots.clone();
        }
        others.seen = Some(observed.clone());
        observed
    }

    /// What may be done of a plan by one who has not heard the record yet.
    pub(super) fn restrained(&self, mut plan: Plan) -> Plan {
        let Some(others) = &self.others else { return plan };
        if let Some(own) = plan.nodes.get_mut(&others.node).filter(|_| others.uncertain.is_some()) {
            // what commits wait for rests on the record, and nobody knows what that says now
            own.actions.retain(|action| !matches!(action, Action::SetPromise(_)));
        }
        if !others.is_ignorant(&self.intent) || self.intent.goal == Goal::Stop {
            return plan;
        }
        plan.change = None;
        if let Some(own) = plan.nodes.get_mut(&others.node)
            && !matches!(own.actions.as_slice(), [Action::Adopt])
        {
            *own = NodePlan::wait("waits to hear of the cluster from etcd and the other agents")
                .trouble(Severity::Critical, "look at etcd and at the agents of the other nodes");
        }
        plan
    }

    /// Before there is a record: who its first primary is, once every agent has said what data its node holds.
    fn begin_cluster(&mut self, own: &Observed, now: Duration) {
        let Some(others) = &self.others else { return };
        let mut all = own.clone();
        all.nodes.extend(
            (others.shared.members.iter())
                .filter(|(name, _)| **name != others.node)
                .map(|(n, h)| (n.clone(), h.view())),
        );
        let first = self.spec.nodes.first().map_or_else(|| NodeName::new(""), |node| node.name.clone());
        match choose_primary(&all, None, &first) {
            Ok(primary) => {
                if let Some(DataState::Whole { system_id, .. }) = all.nodes.get(&primary).map(|view| &view.data) {
                    self.intent.system_id = Some(*system_id);
                }
                self.intent.primary = primary;
                // a term of no record: the first that is taken is 1 more
                let votes = all.nodes.values().filter_map(|view| view.vote);
                self.intent.term = votes.fold(self.intent.term.max(1), u64::max);
            }
            Err(error) => {
                if others.said.as_ref().is_none_or(|(_, _, at)| now.saturating_sub(*at) >= SAY) {
                    tracing::error!(%error, hint = error.hint(), "the cluster cannot begin");
                }
            }
        }
    }

    /// Says what was seen of this supervisor's node, at once if it is news.
    pub(super) fn say(&mut self, observed: &Observed, now: Duration) {
        let Some(others) = &mut self.others else { return };
        let Some(view) = observed.nodes.get(&others.node) else { return };
        let mut news = view.clone();
        for slot in news.slots.iter_mut().flatten() {
            *slot = Slot { active_pid: None, restart_lsn: None, confirmed_flush_lsn: None, ..slot.clone() };
            (slot.retained_bytes, slot.safe_wal_bytes) = (None, None);
        }
        news.heard_at = Duration::ZERO;
        if let Some(server) = &mut news.server {
            (server.lsn, server.received_lsn) = Default::default();
        }
        let mut exactly = view.clone();
        exactly.heard_at = Duration::ZERO;
        let urgent = self.intent.wish.is_some() || matches!(observed.office, Office::Vacant { .. });
        let connected = others.shared.connected;
        let again = connected && !std::mem::replace(&mut others.was_connected, connected);
        let due = again
            || others.said.as_ref().is_none_or(|(said, said_exactly, at)| {
                let moved = *said_exactly != exactly;
                let pause = if moved { SAY } else { SAY_AGAIN };
                *said != news || (moved && urgent) || now.saturating_sub(*at) >= pause
            });
        if !due {
            return;
        }
        let member = Member { view: view.clone(), now, roles_ready: self.roles_ready };
        if let Err(error) = others.store.say(&member) {
            tracing::warn!(%error, "what is seen cannot be told");
        }
        others.said = Some((news, exactly, now));
    }

    /// The record that `intent` makes.
    fn record_of(&self, intent: &Intent) -> ClusterRecord {
        ClusterRecord {
            term: intent.term,
            promoting: intent.promoting,
            promise: intent.promise.clone(),
            paused: intent.paused,
            wish: intent.wish.clone(),
            handed_over: self.handed_over.filter(|_| intent.term == self.intent.term),
            resigned: false,
            ..ClusterRecord::new(intent.primary.clone(), intent.system_id.unwrap_or(0))
        }
    }

    /// Records a change that is this supervisor's to make. What follows from it follows when it is heard, as for all others.
    pub(super) async fn share(&mut self, change: &Change) {
        let Some(others) = &self.others else { return };
        let own = others.node == self.intent.primary;
        let node = others.node.clone();
        let claim = match change {
            Change::Elect { node: elected, .. } if *elected == node => Claim::Take(node.clone()),
            Change::TakeOffice if own => Claim::Take(node.clone()),
            Change::Resign(_) if own => Claim::Leave,
            Change::Promoted | Change::Promise(_) if own => Claim::Hold,
            // its holder may be gone
            Change::GiveUp(_) if own || others.shared.officer.is_none() => Claim::Word,
            _ => return,
        };
        let happening = match change.clone() {
            Change::Elect { node, missing, why } => Some(vacancy::elected(&self.intent.primary, &node, why, missing)),
            Change::Promoted => Some(vacancy::promoted(&node, self.vacancy.as_ref(), self.clock.monotonic())),
            Change::Promise(promise) => Some(Happening::Promise { setting: promise.setting() }),
            Change::TakeOffice => Some(Happening::TookOffice { node: node.to_string() }),
            Change::Resign(why) => Some(Happening::Resigned { node: node.to_string(), why }),
            Change::GiveUp(_) => None,
        };
        let intent = self.intent.after(change);
        match self.write(&intent, claim, happening).await {
            Ok(true) => tracing::info!(?change, "recorded"),
            // what was heard meanwhile decides
            Ok(false) => tracing::info!(?change, "not recorded: others were earlier"),
            Err(error) => tracing::warn!(%error, ?change, "not known to be recorded"),
        }
    }

    /// A record of which nobody knows whether it was changed is written once more as it was: one of both comes true.
    async fn make_certain(&mut self) {
        let Some(others) = &self.others else { return };
        let own = others.node == self.intent.primary && others.shared.connected;
        let long = others.uncertain.is_some_and(|(_, since)| self.clock.monotonic().saturating_sub(since) >= CERTAIN);
        if !own || !long {
            return;
        }
        if let Err(error) = self.write(&self.intent.clone(), Claim::Hold, None).await {
            tracing::debug!(%error, "still uncertain");
        }
    }

    pub(super) async fn write(
        &mut self,
        intent: &Intent,
        claim: Claim,
        happening: Option<Happening>,
    ) -> Result<bool, ClusterError> {
        let Some(others) = &self.others else { return Ok(false) };
        let revision = others.shared.record.as_ref().map_or(0, |(_, revision)| *revision);
        let record = ClusterRecord { resigned: claim == Claim::Leave, ..self.record_of(intent) };
        let entry = happening.map(|event| Entry { at: self.clock.wall(), term: intent.term, event });
        let written = others.store.write(revision, &record, claim, entry.as_ref()).await;
        if let Some(others) = &mut self.others
            && !matches!(written, Ok(false) | Err(ClusterError::NotReached))
        {
            // until it is heard
            others.uncertain = Some((revision, self.clock.monotonic()));
            others.promise.send_replace(None);
        }
        written
    }

    /// The identifier of the cluster that was made here belongs into the record.
    pub(super) async fn keep_made(&mut self) {
        self.make_certain().await;
        let Some(others) = &self.others else { return };
        let unknown = others.shared.record.as_ref().is_some_and(|(record, _)| record.system_id == 0);
        if !unknown || self.intent.system_id.is_none() || self.intent.primary != others.node {
            return;
        }
        if let Err(error) = self.write(&self.intent.clone(), Claim::Hold, None).await {
            tracing::warn!(%error, "the cluster's identifier is not recorded yet");
        }
    }

    /// After an orderly end: others may take this node's place at once.
    pub(super) async fn leave(&mut self) {
        let Some(others) = &self.others else { return };
        let node = others.node.clone();
        let holds = others.shared.officer.as_ref().is_some_and(|(_, of)| *of == others.store.lease());
        // its word first: without it, and with the office left, others know that it is gone. What fails here ends with the
        // lease
        if let Err(error) = others.store.forget().await {
            tracing::warn!(%error, "the others are not told that this one ends");
        }
        if !holds || self.intent.primary != node {
            return;
        }
        let resigned = Happening::Resigned { node: node.to_string(), why: "is stopped".to_owned() };
        if let Err(error) = self.write(&self.intent.clone(), Claim::Leave, Some(resigned)).await {
            tracing::warn!(%error, "the office could not be left in order");
        }
    }
}

/// Kills the node's server when it was the primary for longer than it might, whatever the supervisor waits for.
pub(super) struct Guard {
    server: ServerSpec,
    validity: Arc<watch::Sender<Validity>>,
    armed: watch::Receiver<bool>,
    clock: Arc<dyn Clock>,
}

impl Guard {
    pub(super) async fn keep(mut self) -> Result<(), ClusterError> {
        let mut changes = self.validity.subscribe();
        let mut lapses = changes.borrow().lapses;
        loop {
            let valid = *changes.borrow_and_update();
            let is_armed = *self.armed.borrow_and_update();
            let left = valid.until.saturating_sub(self.clock.monotonic());
            let lapsed = left.is_zero() || valid.lapses != lapses;
            lapses = valid.lapses;
            if is_armed && lapsed && self.server.has_processes() {
                tracing::error!(
                    "nobody can be sure that this is still the primary: it is killed, so that it writes no more"
                );
                if let Err(error) = self.server.fence().await {
                    tracing::error!(%error, "a process survives being killed");
                }
            }
            let pause = if left.is_zero() { Duration::from_millis(200) } else { left };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                changed = self.armed.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

/// What proves without etcd that this is still the primary: replicas that have just received its log do not turn away
/// from it for a while, so if so many of them have that the rest could elect nobody, it is.
pub(super) struct Proof {
    params: ConnectParams,
    others: BTreeSet<NodeName>,
    /// As it was recorded last; `None` if nobody can tell.
    promise: watch::Receiver<Option<Promise>>,
    validity: Arc<watch::Sender<Validity>>,
    armed: watch::Receiver<bool>,
    hold: Duration,
    clock: Arc<dyn Clock>,
}

impl Proof {
    /// Goes on for ever; does nothing while the lease is far from its end.
    pub(super) async fn keep(mut self) -> Result<(), ClusterError> {
        let mut connection = None;
        // so many tries fit into what is left that one may fail
        let early = self.hold / 2;
        loop {
            let left = self.validity.borrow().until.saturating_sub(self.clock.monotonic());
            if !*self.armed.borrow_and_update() || left > early {
                tokio::time::sleep(left.saturating_sub(early).max(LOOK)).await;
                continue;
            }
            let asked = self.clock.monotonic();
            match timeout(early, self.prove(&mut connection)).await {
                Ok(Ok(())) => {
                    let (until, now) = (asked + self.hold * 2 / 3, self.clock.monotonic());
                    self.validity.send_modify(|validity| validity.extend(until, now));
                    tokio::time::sleep(LOOK).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no proof that this is the primary");
                    connection = None;
                    tokio::time::sleep(LOOK).await;
                }
                Err(_) => connection = None,
            }
        }
    }

    async fn prove(&self, connection: &mut Option<Connection>) -> Result<(), PgError> {
        let client = match connection {
            Some(open) => open,
            None => connection.insert(connect(&self.params, self.hold / 2).await?),
        };
        let wanted = catalog::write_beat(client).await?;
        let (members, quorum) = match &*self.promise.borrow() {
            Some(promise) if !promise.is_none() => (promise.members.clone(), promise.quorum),
            // whoever turned away could be elected
            _ => (self.others.clone(), self.others.len()),
        };
        loop {
            let standbys = catalog::standbys(client).await?;
            let has = |name: &&NodeName| {
                let received = |s: &catalog::Standby| s.flush_lsn.is_some_and(|lsn| lsn >= wanted);
                standbys.iter().any(|s| s.application_name == name.as_str() && received(s))
            };
            if members.iter().filter(has).count() >= quorum {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
