//! The loop: look, decide, do, tell.
//!
//! It wakes when a server ends, when a step is done, and at a fixed interval. Dropping it while
//! it runs leaves the servers running, as a `kill -9` of the platform would; the next supervisor
//! adopts them. Only cancelling the token stops them, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use millrace_base::{Clock, Lsn, Tasks};
use millrace_pg::{
    Postmaster,
    catalog::{self, ServerState},
    process::Exit,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    decide::{choose_primary, decide},
    disk::Disk,
    error::ClusterError,
    history::{self, Event as Happening},
    node::Node,
    observe,
    observed::{FailureKind, Goal, Intent, LogEnd, Observed, Office, Policy, ProcessState, Wish},
    operate::{Handle, Order, Reply},
    plan::{Change, Plan},
    promise::Promise,
    spec::{ClusterSpec, NodeName},
    state::{self, ClusterRecord},
    status::{self, ClusterStatus},
};

mod begin;
mod failures;
mod guard;
mod nodes;
mod orders;
mod reload;
mod shared;
mod vacancy;

use nodes::Leavers;
use shared::Others;
use vacancy::{Vacancy, elected, promoted};

/// Looks between the regular ones, while something is about to change.
const SOON: Duration = Duration::from_millis(50);
/// The same, while clients wait for another primary.
const VERY_SOON: Duration = Duration::from_millis(10);
/// A switchover waits this long for clients' transactions to end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// The same before a replica restarts: meanwhile it cannot vote.
const DRAIN_OF_REPLICA_MAX: Duration = Duration::from_secs(2);
const CHECKPOINT_MAX: Duration = Duration::from_secs(60);
/// SQLSTATE `object_not_in_prerequisite_state`.
const NOT_IN_RECOVERY: &str = "55000";
/// For how long that is, after a start or the loss of the upstream.
const SETTLING: Duration = Duration::from_secs(10);

/// Runs one cluster.
#[derive(Debug)]
pub struct Supervisor {
    spec: ClusterSpec,
    clock: Arc<dyn Clock>,
    intent: Intent,
    nodes: BTreeMap<NodeName, Node>,
    roles_ready: bool,
    /// If others decide for other nodes.
    others: Option<Others>,
    /// The end of the primary's log when it last answered.
    primary_lsn: Option<Lsn>,
    /// The primary's slots for decoding, as last seen.
    logical_slots: BTreeSet<String>,
    /// The primary has ended in order, with this as its last record.
    handed_over: Option<LogEnd>,
    /// What the primary acknowledged before its present setting has arrived where it says.
    arrived: bool,
    /// When a primary was last seen to accept writes.
    writable_at: Option<Duration>,
    /// Until the elected accepts writes; kept for the history.
    vacancy: Option<Vacancy>,
    orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    /// One is being written to see a setting in force.
    checkpointing: bool,
    /// Who waits for the wish to come true.
    wisher: Option<oneshot::Sender<Reply>>,
    leavers: Leavers,
    /// Who waits until failover is paused, or is not.
    pausers: Vec<(bool, Duration, oneshot::Sender<Reply>)>,
    /// Where the record is kept.
    disk: Disk,
    status: watch::Sender<ClusterStatus>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// Watchers of processes and steps under way.
    tasks: Tasks,
    /// Ends steps that a stop need not wait for.
    steps: CancellationToken,
}

#[derive(Debug)]
enum Event {
    Exited {
        node: NodeName,
        pid: u32,
    },
    Done {
        node: NodeName,
        result: Result<Done, ClusterError>,
    },
    /// The primary has written a checkpoint for the switchover to this node.
    Prepared {
        from: NodeName,
        to: NodeName,
        result: Result<(), ClusterError>,
    },
    /// One has been written under this setting; `None`: it failed.
    Checkpointed {
        node: NodeName,
        setting: Option<String>,
    },
}

#[derive(Debug)]
enum Done {
    Initdb {
        system_id: u64,
    },
    Replica,
    Stopped(Exit),
    /// With what is left of the server, if it waits for its disk.
    Fenced(Option<Box<Postmaster>>),
    /// The primary's timeline, if there was nothing to undo.
    Rewound {
        within: Option<u32>,
    },
    /// The server of a node that is none any more has ended.
    Left,
    HandedOver,
    /// It runs on: clients' transactions did not end.
    NotHandedOver(Box<(Postmaster, String)>),
    /// As above.
    NotRestarted(Box<(Postmaster, String)>),
    Cancelled,
}

impl Supervisor {
    /// Checks everything that can be checked without changing anything, and finds out who the
    /// primary is.
    ///
    /// # Errors
    /// What would keep the cluster from starting: [`ClusterError::hint`] says what to do.
    pub fn new(
        spec: ClusterSpec,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, watch::Receiver<ClusterStatus>), ClusterError> {
        if let Some(error) = observe::preflight(&spec).into_iter().next() {
            return Err(error);
        }
        let steps = CancellationToken::new();
        let (sender, receiver) = watch::channel(ClusterStatus::default());
        let mut supervisor = Self {
            nodes: spec
                .own()
                .map(|node| Ok((node.name.clone(), Node::new(&spec, node, &clock)?)))
                .collect::<Result<_, ClusterError>>()?,
            intent: Intent {
                goal: Goal::Run,
                primary: spec.nodes.first().map_or_else(|| NodeName::new(""), |node| node.name.clone()),
                term: if spec.agent.is_some() { 0 } else { 1 },
                system_id: None,
                promoting: false,
                promise: Promise::none(),
                paused: false,
                wish: None,
                said: Default::default(),
                restored: None,
                policy: Policy::of(&spec),
            },
            others: spec.agent.as_ref().map(|agent| Others::new(agent, clock.clone())),
            disk: Disk::of_folder(spec.state_dir.clone(), clock.clone()).map_err(|source| ClusterError::Io {
                doing: "watch the disk of",
                path: spec.state_dir.clone(),
                source,
            })?,
            spec,
            clock,
            roles_ready: false,
            primary_lsn: None,
            logical_slots: BTreeSet::new(),
            handed_over: None,
            arrived: false,
            writable_at: None,
            vacancy: None,
            orders: mpsc::channel(16),
            checkpointing: false,
            wisher: None,
            leavers: Leavers::default(),
            pausers: Vec::new(),
            status: sender,
            events: mpsc::channel(256),
            tasks: Tasks::new(steps.clone()),
            steps,
        };
        if supervisor.others.is_none() {
            supervisor.settle_intent()?;
        }
        Ok((supervisor, receiver))
    }

    /// What asks this supervisor for what an operator wants.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.orders.0.clone(), self.status.subscribe())
    }

    /// Who the primary is, and of which cluster: the record's word, else the data's.
    fn settle_intent(&mut self) -> Result<(), ClusterError> {
        let record = state::load(&self.spec.state_dir)?;
        let seen = self.look(None);
        let first = self.intent.primary.clone();
        self.intent.primary = choose_primary(&seen, record.as_ref().map(|record| &record.primary), &first)?;
        match record {
            Some(record) => {
                self.intent.system_id = Some(record.system_id);
                self.intent.promoting = record.promoting;
                self.intent.promise = record.promise;
                self.intent.paused = record.paused;
                self.intent.term = record.term;
            }
            None => {
                if let Some(crate::DataState::Whole { system_id, .. }) =
                    seen.nodes.get(&self.intent.primary).map(|view| &view.data)
                {
                    self.intent.system_id = Some(*system_id);
                }
            }
        }
        // what is promised is in force from the first commit on
        if let Some(primary) = self.nodes.get_mut(&self.intent.primary) {
            primary.promise = self.intent.promise.clone();
        }
        self.keep_record(&self.intent.clone())
    }

    /// Whoever writes a record now waits, for nobody knows how long.
    fn disk_hangs(&mut self) -> bool {
        self.disk.look(self.clock.monotonic()).stuck_since.is_some()
    }

    /// Records what `intent` says, if it is not recorded already.
    fn keep_record(&mut self, intent: &Intent) -> Result<(), ClusterError> {
        let Some(system_id) = intent.system_id else { return Ok(()) };
        if self.disk_hangs() {
            let (path, source) = (self.spec.state_dir.clone(), std::io::Error::other("the disk takes nothing"));
            return Err(ClusterError::Io { doing: "write to", path, source });
        }
        let record = ClusterRecord {
            term: intent.term,
            promoting: intent.promoting,
            promise: intent.promise.clone(),
            paused: intent.paused,
            ..ClusterRecord::new(intent.primary.clone(), system_id)
        };
        if state::load(&self.spec.state_dir)?.as_ref() == Some(&record) {
            return Ok(());
        }
        state::save(&self.spec.state_dir, &record)
    }

    /// Runs the cluster until `token` is cancelled and every server has stopped.
    ///
    /// # Errors
    /// If the cluster's record cannot be written; trouble with nodes is dealt with and told in
    /// the status.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), ClusterError> {
        self.watch_over();
        self.find_strangers();
        loop {
            self.hear(self.clock.monotonic());
            self.heed().await;
            let observed = self.observe().await;
            let now = self.clock.monotonic();
            let observed = self.with_others(observed, now);
            let plan = self.restrained(decide(&observed, &self.intent, now));
            self.say(&observed, now);
            let mut told = status::assemble(&self.spec, &observed, &self.intent, &plan, (self.clock.wall(), now));
            if let Some(deaf) = self.deafness() {
                told.findings.insert(0, deaf);
            }
            told.findings.extend(self.disagreement());
            for node in told.nodes.iter_mut().filter(|node| self.leaves(&node.name)) {
                node.leaving = true;
            }
            if told.primary_ready {
                self.note_writable(&observed, now);
            }
            self.status.send_if_modified(|status| {
                let changed = *status != told;
                *status = told;
                changed
            });
            self.answer_pausers(now);
            let mut acted = self.act(&plan).await;
            match plan.change {
                Some(change) if self.others.is_some() => self.share(&change).await,
                Some(change) => acted |= self.change(change, &observed),
                None => {}
            }
            self.keep_made().await;
            self.part(&observed).await;
            if self.intent.goal == Goal::Stop && self.all_stopped() {
                self.leave().await;
                return Ok(());
            }
            let pause = if acted { Duration::ZERO } else { self.pause(&observed, now) };
            // dropping `recv`, `join_next` or `cancelled` loses nothing
            tokio::select! {
                Some(event) = self.events.1.recv() => self.take(event).await?,
                Some(order) = self.orders.1.recv() => self.obey(order, &observed).await,
                () = Others::changed(&mut self.others) => {}
                () = tokio::time::sleep(pause) => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a supervisor's task failed");
                    }
                }
                () = token.cancelled(), if self.intent.goal == Goal::Run => {
                    tracing::info!("the cluster stops");
                    self.intent.goal = Goal::Stop;
                    self.steps.cancel();
                }
            }
        }
    }

    /// Begins what goes on beside the loop.
    fn watch_over(&mut self) {
        let Some(others) = &mut self.others else { return };
        if let Some(keeper) = others.keeper.take() {
            self.tasks.spawn("etcd", keeper.keep());
        }
        for node in self.nodes.values() {
            let (guard, proof) = others.watchers(&self.spec, node, &self.clock);
            self.tasks.spawn("guard", guard.keep());
            self.tasks.spawn("proof", proof.keep());
        }
    }

    fn all_stopped(&self) -> bool {
        self.nodes.values().all(|node| node.pid.is_none() && node.busy.is_none() && node.server.running_pid().is_none())
    }

    /// Until when nothing is likely to change by itself.
    fn pause(&self, observed: &Observed, now: Duration) -> Duration {
        let mut pause = self.spec.limits.observe_interval;
        let lost = observed.nodes.get(&self.intent.primary).is_some_and(|view| view.silent_since.is_some());
        let stuck = observed.nodes.values().any(|view| view.disk.stuck_since.is_some());
        let vacant = matches!(observed.office, Office::Vacant { .. });
        if self.intent.promoting || self.intent.wish.is_some() || lost || vacant {
            pause = VERY_SOON;
        } else if stuck {
            pause = SOON;
        }
        let recently = |since: Duration| now.saturating_sub(since) < SETTLING;
        for (name, view) in &observed.nodes {
            let started = self.nodes.get(name).map_or(Duration::ZERO, |node| node.started);
            let settling = match view.process {
                ProcessState::Running { .. } => {
                    (view.server.is_none() && recently(started)) || view.not_streaming_since.is_some_and(recently)
                }
                ProcessState::Unadopted { .. } => true,
                ProcessState::None => false,
            };
            if settling {
                pause = pause.min(SOON);
            }
            if let Some(failure) = view.failure.as_ref().filter(|failure| failure.not_before > now) {
                pause = pause.min(failure.not_before.saturating_sub(now));
            }
        }
        pause
    }

    /// Files and processes, without asking servers. `answers` has what they said.
    fn look(&mut self, answers: Option<&BTreeMap<NodeName, ServerState>>) -> Observed {
        let (now, primary) = (self.clock.monotonic(), self.intent.primary.clone());
        let views = self.nodes.iter_mut().map(|(name, node)| {
            let answer = answers.and_then(|answers| answers.get(name)).cloned();
            (name.clone(), node.look(now, *name == primary, answer))
        });
        Observed {
            nodes: views.collect(),
            office: Office::Undivided,
            slots: None,
            roles_ready: self.roles_ready,
            primary_lsn: self.primary_lsn,
            logical_slots: self.logical_slots.clone(),
            handed_over: self.handed_over,
            arrived: self.arrived,
        }
    }

    async fn observe(&mut self) -> Observed {
        let now = self.clock.monotonic();
        self.arrived = false;
        let (limits, primary) = (&self.spec.limits, &self.intent.primary);
        let asked = self
            .nodes
            .iter_mut()
            .map(|(name, node)| async move { (name.clone(), node.ask(now, limits, name == primary).await) });
        let answers: BTreeMap<_, _> =
            join_all(asked).await.into_iter().filter_map(|(name, answer)| Some((name, answer?))).collect();
        // not when they were asked: something may have come since
        let answered = self.clock.monotonic();
        for node in self.nodes.values_mut() {
            if std::mem::take(&mut node.heard_new) {
                node.heard_at = answered;
            }
        }
        let slots = match answers.get(&self.intent.primary).filter(|server| !server.in_recovery) {
            Some(server) => self.ask_primary(now, server).await,
            None => None,
        };
        Observed { slots, ..self.look(Some(&answers)) }
    }

    /// The primary's slots, and who receives its log.
    async fn ask_primary(&mut self, now: Duration, server: &ServerState) -> Option<Vec<catalog::Slot>> {
        self.primary_lsn = Some(server.lsn);
        let patience = self.spec.limits.probe_timeout;
        let node = self.nodes.get_mut(&self.intent.primary)?;
        let connection = node.connection.as_ref()?;
        let standbys = match timeout(patience, catalog::standbys(connection)).await {
            Ok(Ok(standbys)) => standbys,
            Ok(Err(error)) => {
                tracing::debug!(%error, "who receives the primary's log cannot be read");
                return None;
            }
            Err(_) => return None,
        };
        let slots = node.slots.clone()?;
        self.logical_slots = slots.iter().filter(|slot| slot.is_kept_logical()).map(|slot| slot.name.clone()).collect();
        self.arrived = node.arrived(now, server, &standbys);
        if let Some(setting) = node.to_checkpoint().filter(|_| !self.checkpointing) {
            self.checkpoint(setting);
        }
        for (name, node) in &mut self.nodes {
            let receives = standbys.iter().any(|s| s.application_name == name.as_str() && s.state == "streaming");
            node.absent_since = if receives { None } else { Some(node.absent_since.unwrap_or(now)) };
        }
        Some(slots)
    }

    /// Records a change, then lets it be true. Returns whether that was possible.
    fn change(&mut self, change: Change, observed: &Observed) -> bool {
        let now = self.clock.monotonic();
        let intent = self.intent.after(&change);
        if let Err(error) = self.keep_record(&intent) {
            tracing::error!(%error, "what was decided cannot be recorded, and is not done");
            return false;
        }
        let before = std::mem::replace(&mut self.intent, intent);
        match change {
            Change::Elect { node, missing, why } => {
                tracing::warn!(from = %before.primary, to = %node, why, ?missing, term = self.intent.term, "another primary");
                self.primary_lsn = None;
                self.handed_over = None;
                self.arrived = false;
                self.vacancy = Some(self.vacated(now));
                let first = before.first_promise(&node, observed);
                for other in self.nodes.values_mut() {
                    other.promise = Promise::none();
                    other.absent_since = Some(now);
                }
                if let Some(elected) = self.nodes.get_mut(&node) {
                    elected.promise = first;
                }
                self.happened(elected(&before.primary, &node, why, missing));
            }
            Change::Promoted => {
                let node = self.intent.primary.clone();
                let vacancy = self.vacancy.take();
                self.happened(promoted(&node, vacancy.as_ref(), now));
                self.answer(Ok(format!("{node} is the primary")));
            }
            Change::Promise(promise) => self.happened(Happening::Promise { setting: promise.setting() }),
            Change::GiveUp(why) => {
                self.handed_over = None;
                self.answer(Err(why));
            }
            // one supervisor needs no leave
            Change::TakeOffice | Change::Resign(_) => {}
        }
        true
    }

    fn happened(&mut self, happening: Happening) {
        if self.disk_hangs() {
            tracing::warn!(?happening, "the history cannot be written: its disk takes nothing");
            return;
        }
        if let Err(error) = history::append(&self.spec.state_dir, self.clock.wall(), self.intent.term, happening) {
            tracing::warn!(%error, "the history cannot be written");
        }
    }

    /// Begins what the plan says. Returns whether anything of it succeeded.
    async fn act(&mut self, plan: &Plan) -> bool {
        let mut acted = false;
        for (name, planned) in &plan.nodes {
            let own = self.nodes.contains_key(name);
            for action in planned.actions.iter().filter(|_| own) {
                if self.is_left_alone(name, action) {
                    continue;
                }
                tracing::info!(node = %name, ?action, "{}", planned.sentence);
                match self.begin(name, action).await {
                    Ok(()) => acted = true,
                    Err(error) => self.failed(name, &error),
                }
            }
        }
        acted
    }

    /// A server of ours runs: watch it.
    fn took(&mut self, name: &NodeName, postmaster: Postmaster, now: Duration) -> Result<(), ClusterError> {
        let Some(node) = self.nodes.get_mut(name) else { return Ok(()) };
        let (pid, events) = (postmaster.pid(), self.events.0.clone());
        let watcher = postmaster.watcher().map_err(ClusterError::node(name))?;
        let watched = name.clone();
        self.tasks.spawn("server watch", async move {
            watcher.await;
            // no receiver: the supervisor is gone, and with it the interest
            let _gone = events.send(Event::Exited { node: watched, pid }).await;
            Ok::<_, ClusterError>(())
        });
        node.postmaster = Some(postmaster);
        node.pid = Some(pid);
        node.started = now;
        node.ready = false;
        node.forget();
        node.not_streaming_since = None;
        Ok(())
    }

    /// A step that takes time; its end is an event. A stop ends it early if it is `cancellable`.
    fn step(
        &mut self,
        what: &'static str,
        name: &NodeName,
        work: impl Future<Output = Result<Done, ClusterError>> + Send + 'static,
        cancellable: bool,
    ) {
        let (events, node, cancel) = (self.events.0.clone(), name.clone(), self.steps.clone());
        self.tasks.spawn(what, async move {
            let result = tokio::select! {
                // dropping the work kills its program; what it leaves has a name that tells so
                () = cancel.cancelled(), if cancellable => Ok(Done::Cancelled),
                result = work => result,
            };
            let _gone = events.send(Event::Done { node, result }).await;
            Ok::<_, ClusterError>(())
        });
    }

    async fn take(&mut self, event: Event) -> Result<(), ClusterError> {
        match event {
            Event::Exited { node, pid } => self.exited(&node, pid).await,
            Event::Checkpointed { node, setting } => {
                self.checkpointing = false;
                let now = self.clock.monotonic();
                if let (Some(setting), Some(node)) = (setting, self.nodes.get_mut(&node)) {
                    node.checkpointed(&setting, now);
                }
            }
            // who asked has given up, or something else came in between
            Event::Prepared { .. } if self.wisher.as_ref().is_none_or(oneshot::Sender::is_closed) => self.wisher = None,
            Event::Prepared { from, .. } if from != self.intent.primary || self.intent.promoting => {
                self.answer(Err(format!("{from} is not the primary any more")));
            }
            Event::Prepared { to, result, .. } => match result {
                Ok(()) if self.intent.goal == Goal::Run => self.wish(Wish::Switchover { to }).await,
                Ok(()) => self.answer(Err("the cluster stops".to_owned())),
                Err(error) => self.answer(Err(error.to_string())),
            },
            Event::Done { node: name, result } => {
                let Some(node) = self.nodes.get_mut(&name) else { return Ok(()) };
                node.busy = None;
                node.pid = None;
                match result {
                    Ok(Done::Initdb { system_id }) => {
                        self.intent.system_id = Some(system_id);
                        match &mut self.others {
                            Some(others) => others.peers.made = Some(system_id),
                            None => self.keep_record(&self.intent.clone())?,
                        }
                    }
                    Ok(Done::Replica) => node.is_well(),
                    Ok(Done::Rewound { within }) => {
                        node.within = within;
                        node.is_well();
                    }
                    Ok(Done::Left) => self.left(&name).await,
                    Ok(Done::Stopped(exit)) => tracing::info!(node = %name, %exit, "server stopped"),
                    Ok(Done::Fenced(left)) => self.killed(&name, left),
                    Ok(Done::HandedOver) => {
                        // one that had to be killed is treated as lost
                        let control = millrace_pg::control_file::read(&node.server.data_dir()).ok();
                        self.handed_over = control
                            .filter(|control| control.shut_down)
                            .map(|control| LogEnd { lsn: control.checkpoint, timeline: control.timeline });
                    }
                    Ok(Done::NotHandedOver(back)) => {
                        let (postmaster, why) = *back;
                        if postmaster.is_running() {
                            node.pid = Some(postmaster.pid());
                            node.postmaster = Some(postmaster);
                        } else {
                            self.record(
                                &name,
                                FailureKind::Crashed,
                                "the server ended while it handed over".into(),
                                None,
                            );
                        }
                        self.give_up(why).await;
                    }
                    Ok(Done::NotRestarted(back)) => {
                        let (postmaster, why) = *back;
                        tracing::warn!(node = %name, why, "the primary is not restarted");
                        if postmaster.is_running() {
                            node.pid = Some(postmaster.pid());
                            node.postmaster = Some(postmaster);
                        } else {
                            let what = "the server ended while it waited to be restarted".to_owned();
                            self.record(&name, FailureKind::Crashed, what, None);
                        }
                    }
                    Ok(Done::Cancelled) => {}
                    Err(error) => self.failed(&name, &error),
                }
            }
        }
        Ok(())
    }

    /// Nothing of a node's server can write any more.
    fn killed(&mut self, name: &NodeName, left: Option<Box<Postmaster>>) {
        if let Some(mut left) = left {
            // it is ours to reap
            self.tasks.spawn("end of a killed server", async move {
                left.exited().await;
                Ok::<_, ClusterError>(())
            });
        }
        let Some(node) = self.nodes.get(name) else { return };
        // what it died of before is the better reason
        if node.failure.is_some() {
            return;
        }
        let what = match node.took_nothing {
            true => "the server's disk took nothing, and it was killed",
            false => "the server did not answer and was killed",
        };
        self.record(name, FailureKind::Crashed, what.to_owned(), None);
    }
}
