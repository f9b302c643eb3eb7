//! The configuration taken in while the cluster runs, and restarts of single servers.
//!
//! On many hosts the settings of servers are one value in the record, so that every server has the same whichever host
//! they were said on; what else is reloaded is each host's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_pg::Setting;

use super::{DRAIN_MAX, DRAIN_OF_REPLICA_MAX, Done, Supervisor};
use crate::{
    act,
    history::Event as Happening,
    observe,
    observed::{DataState, Intent, Policy},
    operate::Reply,
    spec::{ClusterSpec, Limits, NodeName},
};

/// Where servers have a setting from.
const WHY: &str = "from [postgres.settings] of millrace.toml";
/// Between tries to write a configuration.
const AGAIN: Duration = Duration::from_secs(1);

/// By name; of several of one name the last is in force.
fn by_name(settings: &[Setting]) -> BTreeMap<String, String> {
    settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect()
}

/// Names whose values differ on a server, the platform's own settings among them.
fn changed(from: &ClusterSpec, to: &ClusterSpec) -> Vec<String> {
    let of =
        |spec: &ClusterSpec| spec.nodes.first().map(|node| by_name(&spec.server(node).settings)).unwrap_or_default();
    let (from, to) = (of(from), of(to));
    let names: BTreeSet<&String> =
        from.keys().chain(to.keys()).filter(|name| from.get(*name) != to.get(*name)).collect();
    names.into_iter().cloned().collect()
}

impl Policy {
    pub(super) fn of(spec: &ClusterSpec) -> Self {
        let limits = &spec.limits;
        Self {
            failover: limits.failover,
            durability: limits.durability,
            not_streaming_max: limits.not_streaming_max,
            silent_max: limits.silent_max,
            start_max: limits.start_max,
            absent_max: limits.absent_max,
            hold: limits.hold,
        }
    }
}

impl Supervisor {
    /// Takes `wanted` for what the nodes and their servers are to be.
    pub(super) async fn reload(&mut self, wanted: ClusterSpec) -> Reply {
        if wanted.listen != self.spec.listen {
            return Err("[cluster] listen changes when the platform is started; nothing is reloaded".into());
        }
        let turnover = self.turnover(&wanted)?;
        let names = changed(&self.spec, &wanted);
        if self.others.is_some() {
            // heeded when it is heard, as it is everywhere
            let settings = Some(by_name(&wanted.settings));
            if settings != self.intent.said.settings {
                let happening = (!names.is_empty()).then(|| Happening::Settings { changed: names.clone() });
                let say = |intent: &mut Intent| {
                    intent.said.settings.clone_from(&settings);
                    Ok(())
                };
                self.written(say, happening).await?;
            }
        } else {
            self.spec.settings.clone_from(&wanted.settings);
            if !names.is_empty() {
                self.happened(Happening::Settings { changed: names.clone() });
            }
        }
        self.turn_over(&turnover, &wanted).await?;
        self.spec.limits = Limits { hold: self.spec.limits.hold, ..wanted.limits };
        self.spec.hba = wanted.hba;
        self.intent.policy = Policy::of(&self.spec);
        self.renew_servers();
        let given = (!names.is_empty()).then(|| format!("servers are given {}", names.join(", ")));
        let said: Vec<String> = [turnover.said(), given].into_iter().flatten().collect();
        Ok(match said.is_empty() {
            true => "reloaded; the settings of servers are as they were".to_owned(),
            false => said.join("; "),
        })
    }

    /// Every server of this supervisor is to be as the specification has it now; which settings wait for a restart the
    /// servers know.
    pub(super) fn renew_servers(&mut self) {
        for node in self.nodes.values_mut() {
            node.server = self.spec.server(&node.spec);
            node.unconfigured = Some(Duration::ZERO);
        }
    }

    /// Writes what servers have not been given yet, where that can be done now.
    fn configure(&mut self) {
        let now = self.clock.monotonic();
        for (name, node) in &mut self.nodes {
            // whom a standby is to follow is not known yet, or its disk takes nothing now
            let leads = *name == self.intent.primary && self.intent.system_id.is_some();
            let settled = leads || node.follows.is_some();
            let due = node.unconfigured.is_some_and(|not_before| now >= not_before);
            if !due || !settled || node.busy.is_some() || node.took_nothing {
                continue;
            }
            let Some(postmaster) = &node.postmaster else { continue };
            let of_primary = matches!(observe::data_state(&node.server), DataState::Whole { standby: false, .. });
            if of_primary && !leads {
                // one that was deposed is told nothing any more
                continue;
            }
            let from = node.follows.as_ref().filter(|_| !leads).and_then(|from| self.spec.node(from));
            let upstream = from.map(|from| self.spec.upstream(from, name));
            match node.configured().configure(upstream.as_ref()) {
                Ok(changed) => {
                    node.unconfigured = None;
                    if changed {
                        postmaster.reload();
                        // what its commits wait for may have been written anew as well
                        node.told(node.promise.clone());
                    }
                }
                Err(error) => {
                    tracing::warn!(node = %name, %error, "cannot write the configuration");
                    node.unconfigured = Some(now + AGAIN);
                }
            }
        }
    }

    /// Does what an operator has said on another host.
    pub(super) async fn heed(&mut self) {
        if let Some(settings) = self.intent.said.settings.as_ref().filter(|said| **said != by_name(&self.spec.settings))
        {
            self.spec.settings = settings.iter().map(|(name, value)| Setting::new(name, value, WHY)).collect();
            self.renew_servers();
        }
        self.configure();
        let Some(name) = self.intent.said.restart.clone().filter(|name| self.nodes.contains_key(name)) else { return };
        // heard once, whatever comes of it
        let heeded = |intent: &mut Intent| {
            if intent.promoting || intent.wish.is_some() {
                return Err("another primary is on its way: afterwards".to_owned());
            }
            let said = intent.said.restart.take_if(|said| *said == name);
            said.map(drop).ok_or_else(|| "someone else has said otherwise since".to_owned())
        };
        let happening = Happening::Restarted { node: name.to_string() };
        match self.written(heeded, Some(happening)).await {
            Ok(()) => {
                if let Err(why) = self.begin_restart(&name) {
                    tracing::warn!(node = %name, why, "a server is not restarted");
                }
            }
            Err(why) => tracing::debug!(node = %name, why, "is not restarted yet"),
        }
    }

    /// Restarts a server once no client has a transaction open there; a replica after two seconds whatever clients do.
    pub(super) async fn restart(&mut self, name: &NodeName) -> Reply {
        if self.intent.promoting || self.intent.wish.is_some() || self.wisher.is_some() {
            return Err("another change is under way".to_owned());
        }
        if self.spec.node(name).is_none() {
            return Err(format!("there is no node {name}"));
        }
        if self.nodes.contains_key(name) {
            let reply = self.begin_restart(name)?;
            let happening = Happening::Restarted { node: name.to_string() };
            match &self.others {
                None => self.happened(happening),
                // the history alone: that it could not be written changes nothing of the restart
                Some(_) => drop(self.written(|_same| Ok(()), Some(happening)).await),
            }
            return Ok(reply);
        }
        let say = |intent: &mut Intent| {
            if intent.promoting || intent.wish.is_some() {
                return Err("another change is under way".to_owned());
            }
            if let Some(other) = intent.said.restart.as_ref().filter(|other| *other != name) {
                return Err(format!("{other} is to restart first: say it again then"));
            }
            intent.said.restart = Some(name.clone());
            Ok(())
        };
        self.written(say, None).await?;
        Ok(format!("{name} is told to restart"))
    }

    fn begin_restart(&mut self, name: &NodeName) -> Reply {
        let (spec, now, primary) = (self.spec.clone(), self.clock.monotonic(), *name == self.intent.primary);
        let Some(node) = self.nodes.get_mut(name) else { return Err(format!("{name} is on another host")) };
        if node.busy.is_some() || node.vote == Some(self.intent.term) {
            return Err(format!("{name} is busy"));
        }
        let Some(postmaster) = node.postmaster.take() else { return Err(format!("{name} does not run")) };
        node.busy = Some(("restarts".to_owned(), now));
        node.forget();
        if primary {
            let handing = act::hand_over(spec, node.spec.clone(), postmaster, DRAIN_MAX);
            let restarting = async {
                Ok(match handing.await? {
                    Ok(exit) => Done::Stopped(exit),
                    Err(back) => Done::NotRestarted(Box::new(back)),
                })
            };
            self.step("restart", name, restarting, false);
        } else {
            let of = node.spec.clone();
            let stopping =
                async move { act::end(&spec, &of, postmaster, DRAIN_OF_REPLICA_MAX).await.map(Done::Stopped) };
            self.step("restart", name, stopping, false);
        }
        Ok(format!("{name} restarts"))
    }
}
