//! The loop: look, decide, do, tell.
//!
//! It wakes when a server ends, when a step is done, and at a fixed interval. Dropping it while
//! it runs leaves the servers running, as a `kill -9` of the platform would; the next supervisor
//! adopts them. Only cancelling the token stops them, in order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use millrace_base::{Clock, Tasks};
use millrace_pg::{Postmaster, ServerError, catalog::ServerState, process::Exit};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    act,
    decide::{choose_primary, decide},
    error::ClusterError,
    node::Node,
    observe,
    observed::{Failure, FailureKind, Goal, Intent, NodeView, Observed, ProcessState},
    plan::{Action, Plan},
    spec::{ClusterSpec, NodeName},
    state::{self, ClusterRecord},
    status::{self, ClusterStatus},
};

/// Looks between the regular ones, while something is about to change.
const SOON: Duration = Duration::from_millis(50);
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
    status: watch::Sender<ClusterStatus>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// Watchers of processes and steps under way.
    tasks: Tasks,
    /// Ends steps that a stop need not wait for.
    steps: CancellationToken,
}

#[derive(Debug)]
enum Event {
    Exited { node: NodeName, pid: u32 },
    Done { node: NodeName, result: Result<Done, ClusterError> },
}

#[derive(Debug)]
enum Done {
    Initdb { system_id: u64 },
    Replica,
    Stopped(Exit),
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
                .nodes
                .iter()
                .map(|node| Ok((node.name.clone(), Node::new(&spec, node)?)))
                .collect::<Result<_, ClusterError>>()?,
            intent: Intent {
                goal: Goal::Run,
                primary: spec.nodes.first().map_or_else(|| NodeName::new(""), |node| node.name.clone()),
                system_id: None,
                not_streaming_max: spec.limits.not_streaming_max,
            },
            spec,
            clock,
            roles_ready: false,
            status: sender,
            events: mpsc::channel(256),
            tasks: Tasks::new(steps.clone()),
            steps,
        };
        supervisor.settle_intent()?;
        Ok((supervisor, receiver))
    }

    /// Who the primary is, and of which cluster: the record's word, else the data's.
    fn settle_intent(&mut self) -> Result<(), ClusterError> {
        let record = state::load(&self.spec.state_dir)?;
        let seen = self.look(None);
        let first = self.intent.primary.clone();
        self.intent.primary = choose_primary(&seen, record.as_ref().map(|record| &record.primary), &first)?;
        self.intent.system_id = match record {
            Some(record) => Some(record.system_id),
            None => match seen.nodes.get(&self.intent.primary).map(|view| &view.data) {
                Some(crate::DataState::Whole { system_id, .. }) => Some(*system_id),
                _ => None,
            },
        };
        self.keep_record()
    }

    fn keep_record(&self) -> Result<(), ClusterError> {
        let Some(system_id) = self.intent.system_id else { return Ok(()) };
        let record = ClusterRecord { primary: self.intent.primary.clone(), system_id };
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
        loop {
            let observed = self.observe().await;
            let now = self.clock.monotonic();
            let plan = decide(&observed, &self.intent, now);
            let told = status::assemble(&self.spec, &observed, &self.intent, &plan, (self.clock.wall(), now));
            self.status.send_if_modified(|status| {
                let changed = *status != told;
                *status = told;
                changed
            });
            let acted = self.act(&plan).await;
            if self.intent.goal == Goal::Stop && self.all_stopped() {
                return Ok(());
            }
            let pause = if acted { Duration::ZERO } else { self.pause(&observed, now) };
            // dropping `recv`, `join_next` or `cancelled` loses nothing
            tokio::select! {
                Some(event) = self.events.1.recv() => self.handle(event).await?,
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

    fn all_stopped(&self) -> bool {
        self.nodes.values().all(|node| node.pid.is_none() && node.busy.is_none() && node.server.running_pid().is_none())
    }

    /// Until when nothing is likely to change by itself.
    fn pause(&self, observed: &Observed, now: Duration) -> Duration {
        let mut pause = self.spec.limits.observe_interval;
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
        let primary = self.intent.primary.clone();
        let views = self.nodes.iter_mut().map(|(name, node)| {
            let view = NodeView {
                data: observe::data_state(&node.server),
                was_primary: observe::was_primary(&node.spec),
                process: node.process(),
                server: answers.and_then(|answers| answers.get(name)).cloned(),
                not_streaming_since: if *name == primary { None } else { node.not_streaming_since },
                busy: node.busy.clone(),
                failure: node.failure.clone(),
            };
            (name.clone(), view)
        });
        Observed { nodes: views.collect(), slots: None, roles_ready: self.roles_ready }
    }

    async fn observe(&mut self) -> Observed {
        let now = self.clock.monotonic();
        let probe = self.spec.limits.probe_timeout;
        let stable = self.spec.limits.stable_after;
        let asked =
            self.nodes.iter_mut().map(|(name, node)| async move { (name.clone(), node.ask(now, probe, stable).await) });
        let answers: BTreeMap<_, _> =
            join_all(asked).await.into_iter().filter_map(|(name, answer)| Some((name, answer?))).collect();

        let mut observed = self.look(Some(&answers));
        if let Some(node) = self.nodes.get(&self.intent.primary)
            && answers.contains_key(&self.intent.primary)
            && let Some(connection) = &node.connection
        {
            match observe::slots(connection, node.params.address(), probe).await {
                Ok(slots) => observed.slots = Some(slots),
                Err(error) => tracing::debug!(%error, "the primary's slots cannot be read"),
            }
        }
        observed
    }

    /// Begins what the plan says. Returns whether anything of it succeeded.
    async fn act(&mut self, plan: &Plan) -> bool {
        let mut acted = false;
        for (name, planned) in &plan.nodes {
            for action in &planned.actions {
                tracing::info!(node = %name, ?action, "{}", planned.sentence);
                match self.begin(name, action).await {
                    Ok(()) => acted = true,
                    Err(error) => self.failed(name, &error),
                }
            }
        }
        acted
    }

    async fn begin(&mut self, name: &NodeName, action: &Action) -> Result<(), ClusterError> {
        let now = self.clock.monotonic();
        let spec = self.spec.clone();
        let upstream = (*name != self.intent.primary)
            .then(|| spec.node(&self.intent.primary).map(|primary| spec.upstream(primary, name)))
            .flatten();
        let Some(node) = self.nodes.get_mut(name) else { return Ok(()) };
        match action {
            Action::Adopt => {
                let Some(postmaster) = node.server.adopt().map_err(ClusterError::node(name))? else { return Ok(()) };
                // a damaged directory under a living server is the next start's trouble
                match node.server.configure(upstream.as_ref()) {
                    Ok(true) => postmaster.reload(),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(node = %name, %error, "cannot write the configuration"),
                }
                self.took(name, postmaster, now)
            }
            Action::Start { from } => {
                let upstream = upstream.filter(|_| from.is_some());
                node.server.configure(upstream.as_ref()).map_err(ClusterError::node(name))?;
                let postmaster = node.server.start().await.map_err(ClusterError::node(name))?;
                if from.is_none() {
                    observe::mark_primary(&node.spec).map_err(|source| ClusterError::Io {
                        doing: "mark",
                        path: node.spec.folder.clone(),
                        source,
                    })?;
                }
                self.took(name, postmaster, now)
            }
            Action::Stop(mode) => {
                // the only server stopped unasked is one that accepted writes; stopping it comes first
                if self.intent.goal == Goal::Run
                    && let Err(error) = observe::mark_primary(&node.spec)
                {
                    tracing::warn!(node = %name, %error, "cannot mark the data as a primary's");
                }
                let Some(postmaster) = node.postmaster.take() else { return Ok(()) };
                node.connection = None;
                node.busy = Some(("stops".to_owned(), now));
                let stopping = act::stop(name.clone(), postmaster, *mode, spec.limits.stop_timeout);
                self.step("stop", name, async { stopping.await.map(Done::Stopped) }, false);
                Ok(())
            }
            Action::Initdb => {
                node.busy = Some(("a new cluster is made here".to_owned(), now));
                let making = act::initdb(spec, node.spec.clone());
                self.step("initdb", name, async { Ok(Done::Initdb { system_id: making.await? }) }, true);
                Ok(())
            }
            Action::MakeReplica { from, discard } => {
                let Some(primary) = spec.node(from).cloned() else { return Ok(()) };
                node.busy = Some((format!("is made from a base backup of {from}"), now));
                node.connection = None;
                let (wall, postmaster) = (self.clock.wall(), node.postmaster.take());
                let making = act::make_replica(spec, node.spec.clone(), primary, *discard, postmaster, wall);
                self.step("base backup", name, async { making.await.map(|()| Done::Replica) }, true);
                Ok(())
            }
            Action::EnsureRoles => {
                if let Some(connection) = &node.connection {
                    ask_for(name, spec.limits.probe_timeout, act::ensure_roles(connection, &spec)).await?;
                    self.roles_ready = true;
                }
                Ok(())
            }
            Action::CreateSlot { replica } => {
                if let Some(connection) = &node.connection {
                    let slot = replica.slot();
                    let making = millrace_pg::catalog::create_physical_slot(connection, &slot);
                    ask_for(name, spec.limits.probe_timeout, making).await?;
                }
                Ok(())
            }
        }
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
        node.connection = None;
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

    async fn handle(&mut self, event: Event) -> Result<(), ClusterError> {
        match event {
            Event::Exited { node, pid } => self.exited(&node, pid).await,
            Event::Done { node: name, result } => {
                let Some(node) = self.nodes.get_mut(&name) else { return Ok(()) };
                node.busy = None;
                node.pid = None;
                match result {
                    Ok(Done::Initdb { system_id }) => {
                        self.intent.system_id = Some(system_id);
                        self.keep_record()?;
                    }
                    Ok(Done::Replica) => {
                        node.failure = None;
                        node.backoff.reset();
                    }
                    Ok(Done::Stopped(exit)) => tracing::info!(node = %name, %exit, "server stopped"),
                    Ok(Done::Cancelled) => {}
                    Err(error) => self.failed(&name, &error),
                }
            }
        }
        Ok(())
    }

    /// A server ended. If a step owns its process, the step knows.
    async fn exited(&mut self, name: &NodeName, pid: u32) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(mut postmaster) = node.postmaster.take_if(|postmaster| postmaster.pid() == pid) else { return };
        let exit = postmaster.exited().await;
        node.pid = None;
        node.connection = None;
        if self.intent.goal == Goal::Stop {
            return;
        }
        if node.ready {
            self.record(name, FailureKind::Crashed, format!("the server {exit}"), None);
        } else {
            let error = ClusterError::Node { node: name.clone(), source: postmaster.cause_of_end() };
            self.failed(name, &error);
        }
    }

    fn failed(&mut self, name: &NodeName, error: &ClusterError) {
        let kind = match error {
            ClusterError::Node { source: ServerError::Damaged { .. }, .. } => FailureKind::Damaged,
            _ => FailureKind::Other,
        };
        let whole = match error {
            ClusterError::Node { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let (what, said) = whole.split_once('\n').unwrap_or((&whole, ""));
        if !said.is_empty() {
            tracing::warn!(node = %name, said, "a server's last lines");
        }
        self.record(name, kind, what.trim_end_matches("; it said:").to_owned(), error.hint());
    }

    fn record(&mut self, name: &NodeName, kind: FailureKind, what: String, what_to_do: Option<String>) {
        let at = self.clock.monotonic();
        let Some(node) = self.nodes.get_mut(name) else { return };
        let not_before = at + node.backoff.next_delay();
        tracing::warn!(node = %name, next_try = node.backoff.tries(), "{what}");
        node.failure = Some(Failure { kind, what, what_to_do, at, not_before, next_try: node.backoff.tries() });
    }
}

async fn ask_for(
    name: &NodeName,
    deadline: Duration,
    asking: impl Future<Output = Result<(), millrace_pg::PgError>>,
) -> Result<(), ClusterError> {
    match timeout(deadline, asking).await {
        Ok(answer) => answer.map_err(ClusterError::sql(name)),
        Err(_) => Err(ClusterError::sql(name)(millrace_pg::PgError::Timeout { address: name.to_string(), deadline })),
    }
}
