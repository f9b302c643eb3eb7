//! What a plan asks for, begun: short questions to a server are asked here, long steps become tasks that own what they
//! work on.

use std::time::Duration;

use millrace_pg::catalog;
use tokio::time::timeout;

use super::{DRAIN_MAX, DRAIN_OF_REPLICA_MAX, Done, NOT_IN_RECOVERY, Supervisor};
use crate::{
    act,
    error::ClusterError,
    observe,
    observed::{DataState, Goal},
    plan::Action,
    spec::NodeName,
};

/// A server that has been told to turn away and has not is told again after this.
const VOTE_AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) async fn begin(&mut self, name: &NodeName, action: &Action) -> Result<(), ClusterError> {
        let now = self.clock.monotonic();
        let spec = self.spec.clone();
        let upstream = (*name != self.intent.primary)
            .then(|| spec.node(&self.intent.primary).map(|primary| spec.upstream(primary, name)))
            .flatten();
        let Some(node) = self.nodes.get_mut(name) else { return Ok(()) };
        match action {
            Action::Adopt => {
                let Some(postmaster) = node.server.adopt().map_err(ClusterError::node(name))? else { return Ok(()) };
                // who has turned away does not turn back, and before the record is heard nobody knows to whom to turn
                let known = self.intent.system_id.is_some();
                let upstream = upstream.filter(|_| known && node.vote != Some(self.intent.term));
                node.follows = upstream.is_some().then(|| self.intent.primary.clone());
                // one that was deposed keeps what its commits wait for until it is killed: told anything else it would
                // acknowledge those that wait
                let of_primary = matches!(observe::data_state(&node.server), DataState::Whole { standby: false, .. });
                let deposed = *name != self.intent.primary && of_primary;
                // a damaged directory under a living server is the next start's trouble
                let configured =
                    if known && !deposed { node.configured().configure(upstream.as_ref()) } else { Ok(false) };
                node.unconfigured = (!known).then_some(Duration::ZERO);
                match configured {
                    Ok(true) => postmaster.reload(),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(node = %name, %error, "cannot write the configuration"),
                }
                self.took(name, postmaster, now)
            }
            Action::Start { from } => {
                let upstream = upstream.filter(|_| from.is_some());
                node.follows.clone_from(from);
                node.configured().configure(upstream.as_ref()).map_err(ClusterError::node(name))?;
                let postmaster = node.server.start().await.map_err(ClusterError::node(name))?;
                if *name == self.intent.primary && !self.intent.promoting {
                    self.handed_over = None;
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
                    && let Err(error) = observe::mark_primary(&node.spec).and_then(|()| observe::mark_rogue(&node.spec))
                {
                    tracing::warn!(node = %name, %error, "cannot mark the data as a primary's");
                }
                let Some(postmaster) = node.postmaster.take() else { return Ok(()) };
                node.forget();
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
                node.forget();
                node.follows = Some(from.clone());
                let (wall, postmaster) = (self.clock.wall(), node.postmaster.take());
                let (node, discard, of) = (node.spec.clone(), *discard, self.intent.restored.clone());
                let making = async move {
                    act::make_replica(spec, node, primary, discard, postmaster, (wall, of.as_ref())).await
                };
                self.step("base backup", name, async { making.await.map(|()| Done::Replica) }, true);
                Ok(())
            }
            Action::Fence => {
                let server = node.server.clone();
                node.busy = Some(("is killed with everything it left".to_owned(), now));
                node.forget();
                // its end is no event of its own any more
                let fencing = act::fence(name.clone(), server, node.postmaster.take());
                self.step("fence", name, async { fencing.await.map(|left| Done::Fenced(left.map(Box::new))) }, false);
                Ok(())
            }
            Action::Rewind { from } => {
                let Some(primary) = spec.node(from).cloned() else { return Ok(()) };
                node.busy = Some((format!("is brought back to {from}'s history"), now));
                node.forget();
                node.follows = Some(from.clone());
                let rewinding = act::rewind(spec, node.spec.clone(), primary, node.postmaster.take());
                // an interrupted rewind costs a base backup
                self.step("rewind", name, async { rewinding.await.map(|within| Done::Rewound { within }) }, false);
                Ok(())
            }
            Action::CopySlots { from } => {
                let (Some(primary), Some(postmaster)) = (spec.node(from).cloned(), node.postmaster.take()) else {
                    return Ok(());
                };
                node.busy = Some((format!("restarts with the slots of {from}"), now));
                node.forget();
                let copying = act::copy_slots(spec, node.spec.clone(), primary, postmaster, DRAIN_OF_REPLICA_MAX);
                self.step("copy of slots", name, async { copying.await.map(|()| Done::Replica) }, false);
                Ok(())
            }
            Action::HandOver => {
                let Some(postmaster) = node.postmaster.take() else { return Ok(()) };
                node.busy = Some(("hands over".to_owned(), now));
                node.forget();
                let handing = act::hand_over(spec, node.spec.clone(), postmaster, DRAIN_MAX);
                let handing = async {
                    Ok(match handing.await? {
                        Ok(_exit) => Done::HandedOver,
                        Err(back) => Done::NotHandedOver(Box::new(back)),
                    })
                };
                self.step("switchover", name, handing, false);
                Ok(())
            }
            Action::Promote => {
                observe::mark_primary(&node.spec).map_err(|source| ClusterError::Io {
                    doing: "mark",
                    path: node.spec.folder.clone(),
                    source,
                })?;
                node.follows = None;
                if node.configured().configure(None).map_err(ClusterError::node(name))?
                    && let Some(postmaster) = &node.postmaster
                {
                    postmaster.reload();
                }
                if let Some(connection) = &node.connection {
                    let promotion = catalog::begin_promotion(connection);
                    match ask_for(name, spec.limits.probe_timeout, promotion).await {
                        // it has become one meanwhile
                        Err(ClusterError::Sql { source, .. }) if source.sqlstate() == Some(NOT_IN_RECOVERY) => {}
                        asked => asked?,
                    }
                }
                Ok(())
            }
            Action::Vote { term } => {
                if node.voted_at.is_some_and(|at| now.saturating_sub(at) < VOTE_AGAIN) {
                    return Ok(());
                }
                observe::keep_vote(&node.spec, *term).map_err(|source| ClusterError::Io {
                    doing: "keep the vote in",
                    path: node.spec.folder.clone(),
                    source,
                })?;
                node.follows = None;
                node.configured().configure(None).map_err(ClusterError::node(name))?;
                if let Some(postmaster) = &node.postmaster {
                    postmaster.reload();
                }
                (node.vote, node.voted_at) = (Some(*term), Some(now));
                Ok(())
            }
            Action::LetGo => {
                node.follows = None;
                node.configured().configure(None).map_err(ClusterError::node(name))?;
                if let Some(postmaster) = &node.postmaster {
                    postmaster.reload();
                }
                Ok(())
            }
            Action::Follow { from } => {
                node.follows = Some(from.clone());
                if node.configured().configure(upstream.as_ref()).map_err(ClusterError::node(name))?
                    && let Some(postmaster) = &node.postmaster
                {
                    postmaster.reload();
                }
                Ok(())
            }
            Action::SetPromise(promise) => {
                node.told(promise.clone());
                if node.configured().configure(None).map_err(ClusterError::node(name))?
                    && let Some(postmaster) = &node.postmaster
                {
                    postmaster.reload();
                } else if let Some(connection) = &node.connection {
                    // the file says so already: someone has said otherwise by ALTER SYSTEM
                    let reset = catalog::reset_setting(connection, "synchronous_standby_names");
                    ask_for(name, spec.limits.probe_timeout, reset).await?;
                }
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
