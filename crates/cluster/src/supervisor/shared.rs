//! One supervisor of several: how it hears the others and is heard by them.
//!
//! Invariant: its server accepts writes only while its lease, by its own clock, is good and the office is its node's; a
//! task of its own ([`Guard`]) sees to that, whatever else this supervisor waits for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use millrace_base::{Clock, Micros};
use millrace_contract::status::{Finding, Severity};
use millrace_pg::{ConnectParams, catalog::Slot};
use tokio::{sync::watch, time::timeout};

use super::{
    Supervisor,
    guard::{Guard, Proof},
    vacancy,
};
use crate::{
    error::ClusterError,
    history::{self, Entry, Event as Happening},
    node::Node,
    observe,
    observed::{DataState, Intent, NodeView, Observed, Office},
    peers::{Leave, Peers, record_of},
    plan::{Change, Plan},
    promise::Promise,
    spec::{AgentSpec, ClusterSpec, NodeName},
    store::{
        Claim, Member, Shared,
        etcd::{Keeper, Store, open},
    },
};

/// Between words that say nothing new but how far the log has come.
const SAY: Duration = Duration::from_secs(1);
/// Between words that say nothing new at all.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What a supervisor has of the others.
#[derive(Debug)]
pub(super) struct Others {
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) keeper: Option<Keeper>,
    /// What was said last, but for what changes with every look; the whole of it; and when.
    said: Option<(NodeView, NodeView, Duration)>,
    /// The newest event of the history that this host's disk has.
    told_history: Option<String>,
    /// What was heard of the record is not on this host's disk yet.
    untold: bool,
    was_connected: bool,
    /// Since when etcd has not been reached, if it is not.
    deaf_since: Option<Micros>,
    /// The node is to be killed when the lease ends.
    armed: watch::Sender<bool>,
    /// The promise of the record, as long as nobody can have changed it unheard.
    promise: watch::Sender<Option<Promise>>,
    /// The names of the other nodes.
    pub(super) names: watch::Sender<BTreeSet<NodeName>>,
    /// Who is to be the primary by an operator's word that has been written, and in which term it was.
    pub(super) awaited: Option<(NodeName, u64)>,
    /// What was seen in the cycle before.
    pub(super) seen: Option<Observed>,
}

impl Others {
    pub(super) fn new(agent: &AgentSpec, clock: Arc<dyn Clock>) -> Self {
        let (store, keeper) = open(agent.etcd.clone(), agent.node.clone(), clock);
        Self {
            peers: Peers::new(agent.node.clone()),
            store,
            keeper: Some(keeper),
            said: None,
            told_history: None,
            untold: false,
            was_connected: false,
            deaf_since: None,
            armed: watch::channel(false).0,
            promise: watch::channel(None).0,
            names: watch::channel(BTreeSet::new()).0,
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
        self.are(known(spec, &self.store.shared()));
        let proof = Proof {
            params: ConnectParams { application_name: "millrace proof".to_owned(), ..own.params.clone() },
            others: self.names.subscribe(),
            promise: self.promise.subscribe(),
            validity,
            armed,
            hold: spec.limits.hold,
            clock: clock.clone(),
        };
        (guard, proof)
    }

    /// Who there is, this one among them.
    fn are(&self, mut names: BTreeSet<NodeName>) {
        names.retain(|name| !self.peers.is_own(name));
        self.names.send_if_modified(|known| std::mem::replace(known, names.clone()) != names);
    }

    /// Waits until something else has been heard.
    pub(super) async fn changed(others: &mut Option<Self>) {
        match others {
            Some(others) => others.store.changed().await,
            None => std::future::pending().await,
        }
    }

    fn leave(&self) -> Leave {
        Leave { lease: self.store.lease(), valid_until: self.store.validity().borrow().until }
    }
}

/// The nodes of this host's list, and all whose agents are heard: another host's list may have more.
fn known(spec: &ClusterSpec, shared: &Shared) -> BTreeSet<NodeName> {
    spec.nodes.iter().map(|node| &node.name).chain(shared.members.keys()).cloned().collect()
}

impl Supervisor {
    /// Takes what has been heard for what is wanted. The record's word is the law.
    pub(super) fn hear(&mut self, now: Duration) {
        let hangs = self.disk_hangs();
        let Some(others) = &mut self.others else { return };
        others.store.turn(now);
        let shared = others.store.shared();
        let names = known(&self.spec, &shared);
        others.are(names.clone());
        let word = others.peers.hear(shared, names.iter(), &self.intent, now);
        others.deaf_since = match others.peers.is_connected() {
            true => None,
            false => Some(others.deaf_since.unwrap_or_else(|| self.clock.wall())),
        };
        let history = others.peers.history();
        let newest = history.keys().next_back();
        if newest != others.told_history.as_ref()
            && !hangs
            && history::replace(&self.spec.state_dir, history.values()).is_ok()
        {
            others.told_history = newest.cloned();
        }
        let Some(word) = word else { return };
        let before = std::mem::replace(&mut self.intent, word.intent);
        let intent = &self.intent;
        others.promise.send_replace(others.peers.promise().cloned());
        let own = others.peers.is_own(&intent.primary);
        others.armed.send_if_modified(|armed| std::mem::replace(armed, own) != own);
        // an end in order that others have not heard of in time is like any other: it is started again
        let unheard = intent.term != before.term || others.peers.is_vacant();
        let handed_over = word.handed_over.or(self.handed_over.filter(|_| !unheard));
        if word.first {
            // what is promised is in force from the first commit on
            if let Some(primary) = self.nodes.get_mut(&intent.primary) {
                primary.promise = intent.promise.clone();
            }
        } else if intent.term != before.term {
            let first = match &others.seen {
                Some(seen) if intent.promoting => before.first_promise(&intent.primary, seen),
                _ => Promise::none(),
            };
            self.new_term(&before, first, now);
        }
        self.handed_over = handed_over;
        if word.first || before.restored != self.intent.restored {
            self.forget_votes_of_before();
        }
        let is_news = word.first || before != self.intent;
        if is_news || self.others.as_ref().is_some_and(|others| others.untold) {
            let kept = self.keep_record(&self.intent.clone());
            if let (true, Err(error)) = (is_news, &kept) {
                // only programs on this host that look for the primary read it
                tracing::warn!(%error, "what was heard of the primary is not kept");
            }
            if let Some(others) = &mut self.others {
                others.untold = kept.is_err();
            }
        }
        self.answer_if_come_true(&before);
    }

    /// Terms are counted anew where etcd was lost with everything: a vote beside data of before a restore says nothing.
    fn forget_votes_of_before(&mut self) {
        let restored = &self.intent.restored;
        for node in self.nodes.values_mut().filter(|_| restored.is_some()) {
            let data = node.server.data_dir();
            let of = match observe::restored(&data) {
                Ok(of) if data.exists() => of,
                Ok(_) | Err(_) => continue,
            };
            if of == *restored || node.vote.is_none() {
                continue;
            }
            match observe::forget_vote(&node.spec) {
                Ok(()) => node.vote = None,
                Err(error) => tracing::warn!(node = %node.spec.name, %error, "an old vote cannot be removed"),
            }
        }
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
        let first = self.spec.nodes.first().map_or_else(|| NodeName::new(""), |node| node.name.clone());
        match others.peers.begin(&observed, self.spec.nodes.len(), &first, &self.intent) {
            Some(Ok(begun)) => self.intent = begun,
            Some(Err(error)) if others.said.as_ref().is_none_or(|(_, _, at)| now.saturating_sub(*at) >= SAY) => {
                tracing::error!(%error, hint = error.hint(), "the cluster cannot begin");
            }
            Some(Err(_)) | None => {}
        }
        let leave = others.leave();
        others.peers.add(&mut observed, others.names.borrow().iter(), &self.intent, leave, now);
        self.primary_lsn = observed.primary_lsn;
        self.logical_slots.clone_from(&observed.logical_slots);
        others.seen = Some(observed.clone());
        observed
    }

    /// What is told of the others is old while they cannot be heard.
    pub(super) fn deafness(&self) -> Option<Finding> {
        let since = self.others.as_ref()?.deaf_since?;
        Some(Finding {
            severity: Severity::Critical,
            subject: "etcd".to_owned(),
            what: "is not reached; what is shown of other hosts is as it was last heard".to_owned(),
            since: Some(since),
            what_to_do: "look at etcd and at this host's network".to_owned(),
        })
    }

    /// Agents are heard of nodes that this host's list does not have.
    pub(super) fn disagreement(&self) -> Option<Finding> {
        let others = self.others.as_ref()?;
        let names = others.names.borrow();
        let unknown: Vec<&str> =
            names.iter().filter(|name| self.spec.node(name).is_none()).map(NodeName::as_str).collect();
        let first = *unknown.first()?;
        Some(Finding {
            severity: Severity::Critical,
            subject: format!("node {first}"),
            what: format!(
                "{} on other hosts, and not in millrace.toml of this one",
                match unknown.len() {
                    1 => "is a node".to_owned(),
                    _ => format!("and {} are nodes", unknown[1..].join(", ")),
                }
            ),
            since: None,
            what_to_do: format!("millrace cluster add-node {first} --host …, on this host; or stop its agent"),
        })
    }

    /// What may be done of a plan by one who has not heard all.
    pub(super) fn restrained(&self, plan: Plan) -> Plan {
        match &self.others {
            Some(others) => others.peers.restrain(plan, &self.intent),
            None => plan,
        }
    }

    /// Says what was seen of this supervisor's node, at once if it is news.
    pub(super) fn say(&mut self, observed: &Observed, now: Duration) {
        let Some(others) = &mut self.others else { return };
        let Some(view) = others.peers.node().and_then(|node| observed.nodes.get(node)) else { return };
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
        let connected = others.peers.is_connected();
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

    /// Records a change that is this supervisor's to make. What follows from it follows when it is heard, as for all others.
    pub(super) async fn share(&mut self, change: &Change) {
        let Some(others) = &self.others else { return };
        let Some(claim) = others.peers.claim(change, &self.intent) else { return };
        let Some(node) = others.peers.node().cloned() else { return };
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

    pub(super) async fn write(
        &mut self,
        intent: &Intent,
        claim: Claim,
        happening: Option<Happening>,
    ) -> Result<bool, ClusterError> {
        let Some(others) = &mut self.others else { return Ok(false) };
        let revision = others.peers.ask(&claim);
        let record = record_of(intent, &self.intent, self.handed_over, &claim);
        let entry = happening.map(|event| Entry { at: self.clock.wall(), term: intent.term, event });
        let written = others.store.write(revision, &record, claim.clone(), entry.as_ref()).await;
        let done = match written {
            Ok(done) => Some(done),
            Err(ClusterError::NotReached) => Some(false),
            Err(_) => None,
        };
        others.peers.answered(revision, &claim, done, self.clock.monotonic());
        if done != Some(false) {
            others.promise.send_replace(None);
        }
        written
    }

    /// Hears the record that was earlier than a change of this supervisor. Says whether it came in time.
    pub(super) async fn hear_newer(&mut self, max: Duration) -> bool {
        let Some(others) = &mut self.others else { return false };
        let known = others.peers.ask(&Claim::Word);
        let newer = async {
            while others.store.shared().record.is_none_or(|(_, revision)| revision <= known) {
                others.store.changed().await;
            }
        };
        let came = timeout(max, newer).await.is_ok();
        self.hear(self.clock.monotonic());
        came
    }

    /// What the record lacks, or may lack, is written into it.
    pub(super) async fn keep_made(&mut self) {
        let Some(others) = &self.others else { return };
        let uncertain = others.peers.is_to_be_made_certain(&self.intent, self.clock.monotonic());
        if !uncertain && !others.peers.lacks_system_id(&self.intent) {
            return;
        }
        if let Err(error) = self.write(&self.intent.clone(), Claim::Hold, None).await {
            tracing::debug!(%error, "the record is not as it should be yet");
        }
    }

    /// After an orderly end: others may take this node's place at once.
    pub(super) async fn leave(&mut self) {
        let Some(others) = &self.others else { return };
        // who has no node has nothing there
        let Some(node) = others.peers.node().cloned() else { return };
        let holds = others.peers.holds_office(others.store.lease());
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
