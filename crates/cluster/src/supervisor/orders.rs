//! What operators want: begun if it can be, and answered when it has come true or cannot.

use std::time::Duration;

use millrace_pg::catalog;
use tokio::time::timeout;

use super::{CHECKPOINT_MAX, DRAIN_MAX, Done, Event, Supervisor};
use crate::{
    act,
    error::ClusterError,
    history::Event as Happening,
    observe,
    observed::{DiskView, Goal, Intent, Observed, Wish},
    operate::{Order, Reply},
    spec::NodeName,
    store::Claim,
};

/// A pause that was recorded is heard within this.
const PAUSED_MAX: Duration = Duration::from_secs(5);

/// Who was late for the record hears of the earlier change within this, or says so.
const LATE_MAX: Duration = Duration::from_secs(2);

/// How often others may be earlier.
const LATE_TIMES: usize = 5;

impl Supervisor {
    /// Tells whoever waits what became of the wish.
    pub(super) fn answer(&mut self, reply: Reply) {
        if let Some(wisher) = self.wisher.take() {
            // who asked may be gone
            wisher.send(reply).ok();
        }
    }

    /// Whoever wanted a pause, or its end, is answered once the status says so too.
    pub(super) fn answer_pausers(&mut self, now: Duration) {
        let paused = self.intent.paused;
        let is_due = |asked: Duration| now.saturating_sub(asked) >= PAUSED_MAX;
        for (wanted, _, reply) in self.pausers.extract_if(.., |(wanted, at, _)| *wanted == paused || is_due(*at)) {
            let said = match (wanted == paused, paused) {
                (true, true) => Ok("no failover until `cluster resume`".to_owned()),
                (true, false) => Ok("failover is on".to_owned()),
                (false, _) => Err("it was recorded, and is not so: someone else has said otherwise since".to_owned()),
            };
            // who asked may be gone
            reply.send(said).ok();
        }
    }

    /// Begins what an operator wants, or says why it cannot be.
    pub(super) async fn obey(&mut self, order: Order, observed: &Observed) {
        match order {
            Order::Switchover { to, reply } => match self.heir(to, observed) {
                Ok(to) => {
                    self.wisher = Some(reply);
                    self.prepare(to);
                }
                // who asked may be gone
                Err(why) => drop(reply.send(Err(why))),
            },
            Order::Failover { to, reply } if !self.may_lead(&to) => {
                drop(reply.send(Err(format!("{to} may not be the primary: its failover_priority is 0"))));
            }
            Order::Failover { to, reply } => {
                let answers = observed.nodes.get(&to).is_some_and(|view| view.server.is_some());
                // on many hosts whoever was elected may be gone
                let under_way = self.intent.promoting && self.others.is_none();
                if to == self.intent.primary || !answers || under_way {
                    drop(reply.send(Err(format!("{to} is no replica that answers, or a change is under way"))));
                    return;
                }
                // it does not wait for anything else
                self.answer(Err(format!("an operator wants {to} to be the primary at once")));
                if let Some(others) = &mut self.others {
                    // what that one waited for is no answer to this one
                    others.awaited = None;
                }
                self.wisher = Some(reply);
                self.wish(Wish::Failover { to }).await;
            }
            Order::Pause { paused, reply } => {
                if let Err(why) = self.hold_failover(paused).await {
                    drop(reply.send(Err(why)));
                    return;
                }
                self.pausers.push((paused, self.clock.monotonic(), reply));
            }
            Order::Reload { spec, reply } => {
                let answer = self.reload(*spec).await;
                // who asked may be gone
                reply.send(answer).ok();
            }
            Order::TurnOver { spec, reply } => {
                let answer = self.follow_nodes(&spec).await;
                reply.send(answer).ok();
            }
            Order::Restart { node, reply } => {
                let answer = self.restart(&node).await;
                reply.send(answer).ok();
            }
            Order::Reinit { node, reply } => {
                if node == self.intent.primary || self.spec.node(&node).is_none() {
                    drop(reply.send(Err(format!("{node} is no replica"))));
                    return;
                }
                if !self.nodes.contains_key(&node) {
                    drop(reply.send(Err(format!("{node} is on another host: say it there"))));
                    return;
                }
                if observed.slots.is_none() || self.intent.promoting || self.intent.wish.is_some() {
                    drop(reply.send(Err(format!("there is no primary that {node} could be copied from now"))));
                    return;
                }
                drop(reply.send(self.reinit(&node)));
            }
        }
    }

    async fn hold_failover(&mut self, paused: bool) -> Result<(), String> {
        let happening = Happening::Paused { paused };
        if self.others.is_some() {
            let pause = |intent: &mut Intent| {
                intent.paused = paused;
                Ok(())
            };
            return self.written(pause, Some(happening)).await;
        }
        let intent = Intent { paused, ..self.intent.clone() };
        self.keep_record(&intent).map_err(|error| error.to_string())?;
        self.intent = intent;
        self.happened(happening);
        Ok(())
    }

    /// An operator's word becomes what is wanted.
    pub(super) async fn wish(&mut self, wish: Wish) {
        if self.others.is_none() {
            self.intent.wish = Some(wish);
            return;
        }
        let (Wish::Switchover { to } | Wish::Failover { to }) = &wish;
        let awaited = (to.clone(), self.intent.term);
        let before = self.intent.wish.clone();
        let wanted = |intent: &mut Intent| {
            if intent.term != awaited.1 || intent.wish != before {
                return Err("another change came first".to_owned());
            }
            intent.wish = Some(wish.clone());
            Ok(())
        };
        match self.written(wanted, None).await {
            Ok(()) => {
                if let Some(others) = &mut self.others {
                    others.awaited = Some(awaited);
                }
            }
            Err(why) => self.answer(Err(why)),
        }
    }

    /// What an operator wanted cannot be.
    pub(super) async fn give_up(&mut self, why: String) {
        let given_up = self.intent.wish.take();
        let same = |intent: &mut Intent| {
            if intent.wish == given_up {
                intent.wish = None;
            }
            Ok(())
        };
        if self.others.is_some()
            && let Err(error) = self.written(same, None).await
        {
            tracing::warn!(error, "a switchover that failed is not recorded as such yet");
        }
        self.answer(Err(why));
    }

    /// Makes a change to what is wanted where all supervisors hear it. If others were earlier, it is made to what they have
    /// changed it to.
    ///
    /// # Errors
    /// What `change` says against it, or why it cannot be known to be written.
    pub(super) async fn written(
        &mut self,
        change: impl Fn(&mut Intent) -> Result<(), String>,
        happening: Option<Happening>,
    ) -> Result<(), String> {
        // else a word could be the first record, and name a primary that nobody has looked for
        if self.others.as_ref().is_some_and(|others| !others.peers.is_known()) {
            return Err("the cluster has not begun, or is not known yet".to_owned());
        }
        for _ in 0..LATE_TIMES {
            let mut intent = self.intent.clone();
            change(&mut intent)?;
            match self.write(&intent, Claim::Word, happening.clone()).await {
                Ok(true) => return Ok(()),
                Ok(false) if self.hear_newer(LATE_MAX).await => {}
                Ok(false) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("something else has changed at the same moment; say it again".to_owned())
    }

    fn may_lead(&self, name: &NodeName) -> bool {
        self.spec.node(name).is_none_or(|node| node.priority > 0)
    }

    /// Who a switchover goes to: the one named, else the most advanced; it must be fit for it.
    fn heir(&self, to: Option<NodeName>, observed: &Observed) -> Result<NodeName, String> {
        if self.wisher.is_some() || self.intent.promoting || self.intent.goal == Goal::Stop {
            return Err("another change is under way".to_owned());
        }
        let fit = |name: &NodeName| {
            let view = observed.nodes.get(name).filter(|_| *name != self.intent.primary)?;
            let view = Some(view).filter(|view| view.disk == DiskView::default())?;
            let server = view.server.as_ref().filter(|server| server.in_recovery && server.streaming)?;
            view.may_lead().then(|| (server.lsn, view.part.priority, name.clone()))
        };
        if self.primary_lsn.is_none() || observed.slots.is_none() {
            return Err(format!("{} does not answer; use `cluster failover`", self.intent.primary));
        }
        match to {
            Some(name) if !self.may_lead(&name) => {
                Err(format!("{name} may not be the primary: its failover_priority is 0"))
            }
            Some(name) => fit(&name)
                .map(|(.., name)| name)
                .ok_or_else(|| format!("{name} is no replica that streams and can write")),
            None => observed
                .nodes
                .keys()
                .filter_map(fit)
                .max()
                .map(|(.., name)| name)
                .ok_or_else(|| "no replica streams that may be the primary".to_owned()),
        }
    }

    /// Sees a setting of the primary in force.
    pub(super) fn checkpoint(&mut self, setting: String) {
        let name = self.intent.primary.clone();
        let Some(node) = self.nodes.get(&name) else { return };
        self.checkpointing = true;
        let (params, events) = (node.params.clone(), self.events.0.clone());
        self.tasks.spawn("checkpoint", async move {
            let checkpoint = async {
                let client = millrace_pg::connect(&params, DRAIN_MAX).await?;
                catalog::checkpoint(&client).await
            };
            let setting = match timeout(CHECKPOINT_MAX, checkpoint).await {
                Ok(Ok(())) => Some(setting),
                Ok(Err(_)) | Err(_) => None,
            };
            let _gone = events.send(Event::Checkpointed { node: name, setting }).await;
            Ok::<_, ClusterError>(())
        });
    }

    /// A checkpoint now makes the primary's shutdown short.
    fn prepare(&mut self, to: NodeName) {
        let name = self.intent.primary.clone();
        let params = self.spec.node(&name).ok_or("there is no primary".to_owned());
        let params = params.and_then(|node| self.spec.superuser(node).map_err(|error| error.to_string()));
        let params = match params {
            Ok(params) => params,
            Err(why) => return self.answer(Err(why)),
        };
        let events = self.events.0.clone();
        self.tasks.spawn("checkpoint", async move {
            let checkpoint = async {
                let client = millrace_pg::connect(&params, DRAIN_MAX).await?;
                catalog::checkpoint(&client).await
            };
            let result = match timeout(CHECKPOINT_MAX, checkpoint).await {
                Ok(result) => result.map_err(ClusterError::sql(&name)),
                Err(_) => Err(ClusterError::sql(&name)(millrace_pg::PgError::Timeout {
                    address: name.to_string(),
                    deadline: CHECKPOINT_MAX,
                })),
            };
            // no receiver: the supervisor is gone, and with it the interest
            let _gone = events.send(Event::Prepared { from: name, to, result }).await;
            Ok::<_, ClusterError>(())
        });
    }

    fn reinit(&mut self, name: &NodeName) -> Reply {
        let Some(primary) = self.spec.node(&self.intent.primary).cloned() else {
            return Err("there is no primary".into());
        };
        let (spec, wall, now) = (self.spec.clone(), self.clock.wall(), self.clock.monotonic());
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.busy.is_none()) else {
            return Err(format!("{name} is busy"));
        };
        node.busy = Some((format!("is made anew from {}", primary.name), now));
        node.forget();
        node.follows = Some(primary.name.clone());
        let postmaster = node.postmaster.take();
        let (data, node, of) = (node.server.data_dir(), node.spec.clone(), self.intent.restored.clone());
        // what is of before a restore is promised to be kept
        let past = of.is_some() && observe::restored(&data).ok().flatten() != of;
        let discard = if past { crate::Discard::MoveAside } else { crate::Discard::Delete };
        let making =
            async move { act::make_replica(spec, node, primary, discard, postmaster, (wall, of.as_ref())).await };
        self.step("base backup", name, async { making.await.map(|()| Done::Replica) }, true);
        Ok(format!("{name} is made anew"))
    }
}
