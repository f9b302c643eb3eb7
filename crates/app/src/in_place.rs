//! The cluster brought back from its backups, in the place of what is there.
//!
//! Invariants: nothing that is there is touched before the restored server has replayed its log and takes writes; what
//! was there is kept aside, never deleted; wherever it is interrupted, `up` goes on with the old data or asks for this
//! again. Where the nodes are on many hosts, it happens on one of them, in its own node's place, and the record that all
//! share says so before anything there is touched.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_backup::{ProgressFn, RestoreOptions, WalSource, end_restore, plan::Plan, repo::Repository, restore};
use millrace_base::{Clock as _, SystemClock, failpoint, files};
use millrace_cluster::{
    ClusterError, ClusterSpec, EtcdSpec, NodeSpec, RestoreId, act,
    history::{self, Event},
    observe, state,
    takeover::{self, Quiet},
};
use millrace_pg::{ServerSpec, StopMode};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    clone,
    context::Context,
    explain::{Explained as _, Usage, explain},
    platform::set_warehouse_aside,
    recovered,
};

/// A server that runs on another host answers within this.
const KNOCK: Duration = Duration::from_secs(2);

/// What was done.
#[derive(Debug)]
pub(crate) struct InPlace {
    pub(crate) plan: Plan,
    pub(crate) primary: String,
    /// The last commit in it, if the log ended before the wanted time came up in it.
    pub(crate) ended_at: Option<String>,
    /// What was there before.
    pub(crate) aside: Vec<PathBuf>,
}

/// Where the restored data goes, and what of the cluster is on this host.
#[derive(Debug)]
pub(crate) struct Place {
    /// The node that becomes the primary.
    primary: NodeSpec,
    /// The others that are here.
    others: Vec<NodeSpec>,
    cluster: ClusterSpec,
    shared: Option<Shared>,
}

/// What the hosts of many nodes share.
#[derive(Debug)]
struct Shared {
    etcd: EtcdSpec,
    quiet: Quiet,
}

impl Shared {
    /// The record of all hosts says so from here on.
    async fn record(&self, place: &Place, system_id: u64, what: (RestoreId, Event)) -> anyhow::Result<()> {
        nobody_serves(place).await?;
        let clock = Arc::new(SystemClock::new());
        let recorded = takeover::restored(&self.etcd, clock, &self.quiet, (&place.primary, system_id), what).await;
        recorded.map_err(|error| match error {
            ClusterError::AgentsRun(_) => explain(&error, error.hint()),
            error => explain(&error, Some("it may be recorded, or not: say it again".to_owned())),
        })
    }
}

/// A server that an agent left behind when it was killed would go on taking writes.
async fn nobody_serves(place: &Place) -> anyhow::Result<Vec<String>> {
    let mut silent = Vec::new();
    for node in place.cluster.nodes.iter().filter(|node| node.name != place.primary.name) {
        match tokio::time::timeout(KNOCK, TcpStream::connect((node.host.as_str(), node.port))).await {
            Ok(Ok(_)) => bail!(
                "the server of {} still runs on {}\n  hint: `millrace down` there; it stops what a killed agent has left",
                node.name,
                node.host
            ),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Ok(Err(_)) | Err(_) => silent.push(node.host.clone()),
        }
    }
    Ok(silent)
}

impl Place {
    /// Finds out who becomes the primary: who was it, if all nodes are here; else this host's node.
    ///
    /// # Errors
    /// If `wanted` is no node of this host, or it is not clear which is; if agents run.
    pub(crate) async fn find(context: &Context, wanted: Option<&str>) -> anyhow::Result<Self> {
        let mut cluster = context.agent_spec(None)?;
        let Some(agent) = cluster.agent.take() else {
            if wanted.is_some() {
                return Err(Usage("--node is for nodes on many hosts; here all are made anew".to_owned()).into());
            }
            let record = state::load(&context.layout.cluster()).map_err(|error| explain(&error, error.hint()))?;
            let recorded = record.and_then(|record| cluster.nodes.iter().position(|node| node.name == record.primary));
            let mut others = cluster.nodes.clone();
            if others.is_empty() {
                bail!("the cluster has no nodes");
            }
            let primary = others.remove(recorded.unwrap_or(0));
            return Ok(Self { primary, others, cluster, shared: None });
        };
        let primary = of_this_host(&cluster, wanted)?;
        let quiet = takeover::quiet(&agent.etcd, Arc::new(SystemClock::new())).await;
        let quiet = quiet.map_err(|error| explain(&error, error.hint()))?;
        let shared = Some(Shared { etcd: agent.etcd, quiet });
        let place = Self { primary, others: Vec::new(), cluster, shared };
        let silent = nobody_serves(&place).await?;
        if !silent.is_empty() {
            context.output.note(format!(
                "{} cannot be reached: be sure that no server runs there, for applications could go on writing to it",
                silent.join(", ")
            ));
        }
        Ok(place)
    }

    pub(crate) fn is_one_of_many(&self) -> bool {
        self.shared.is_some()
    }

    /// Of the cluster by the record of all hosts.
    pub(crate) fn system_id(&self) -> Option<u64> {
        self.shared.as_ref()?.quiet.system_id()
    }

    pub(crate) fn node(&self) -> &str {
        self.primary.name.as_str()
    }

    fn nodes(&self) -> impl Iterator<Item = &NodeSpec> {
        self.others.iter().chain([&self.primary])
    }
}

/// The node of many that is on this host.
fn of_this_host(cluster: &ClusterSpec, wanted: Option<&str>) -> anyhow::Result<NodeSpec> {
    let here: Vec<&NodeSpec> = match wanted {
        Some(wanted) => cluster.nodes.iter().filter(|node| node.name.as_str() == wanted).collect(),
        None => cluster.nodes.iter().filter(|node| cluster.server(node).data_dir().exists()).collect(),
    };
    let node = match here.as_slice() {
        [one] => *one,
        [] if wanted.is_some() => {
            let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(Usage(format!("there is no such node: {}", names.join(", "))).into());
        }
        _ => return Err(Usage("say which node this host has: --node NAME".to_owned()).into()),
    };
    if let Err(error) = TcpListener::bind((node.host.as_str(), 0))
        && error.kind() == std::io::ErrorKind::AddrNotAvailable
    {
        bail!("node {} is on {}, which is not this host", node.name, node.host);
    }
    Ok(node.clone())
}

/// Where all of it happens before it takes the place of anything: beside the node's data, on the same disk.
fn scratch(context: &Context, node: &NodeSpec) -> anyhow::Result<ServerSpec> {
    recovered::private(context, node.folder.join("restoring"), clone::free_port()?)
}

/// Ends what a killed one has left, whichever node it was for.
///
/// # Errors
/// If a process or a folder of it cannot be removed.
pub(crate) async fn clear(context: &Context) -> anyhow::Result<()> {
    for node in &context.cluster_spec()?.nodes {
        recovered::clear(&scratch(context, node)?).await?;
    }
    Ok(())
}

/// Restores, replays, and puts the outcome into the place of the primary. The caller holds the platform's lock, and
/// no server of the platform runs.
///
/// # Errors
/// If the target cannot be reached or the server does not come up: nothing has changed then. If agents were started
/// meanwhile: as above.
pub(crate) async fn run(
    context: &Context,
    place: &Place,
    repo: &Repository,
    (system_id, plan): (u64, &Plan),
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<InPlace> {
    let Place { primary, cluster, .. } = place;
    clear(context).await?;
    // what would fail at the end is better known now
    for node in place.nodes() {
        cluster.server(node).prepare_folder().explained()?;
    }
    let state_dir = context.layout.cluster();
    let unknown = state::load(&state_dir).map_err(|error| explain(&error, error.hint()))?.is_none();
    if unknown && !place.is_one_of_many() {
        // from here on `up` asks for a restore, and makes no new cluster
        begin_term(&state_dir, primary, system_id)?;
    }
    let scratch = scratch(context, primary)?;
    let event = Event::Restored {
        node: primary.name.to_string(),
        backup: plan.backups.last().cloned().unwrap_or_default(),
        target: plan.target.to_string(),
    };
    let made = async {
        let ended_at = made(context, &scratch, repo, (system_id, plan), progress, stop).await?;
        if let Some(shared) = &place.shared {
            // of whatever is known here of earlier ones
            let own = observe::restored(&cluster.server(primary).data_dir()).ok().flatten();
            let before = shared.quiet.restored().max(own.as_ref());
            let id = RestoreId::after(before, SystemClock::new().wall(), &primary.name);
            // it goes with the data from here on
            observe::mark_restored(&scratch.data_dir(), &scratch.run_as, &id).explained()?;
            failpoint::pass("in_place.replayed")?;
            tokio::select! {
                recorded = shared.record(place, system_id, (id, event.clone())) => recorded?,
                () = stop.cancelled() => bail!("interrupted; it may be recorded, or not: say it again"),
            }
            // its history is recorded with it
            return anyhow::Ok((ended_at, None));
        }
        failpoint::pass("in_place.replayed")?;
        anyhow::Ok((ended_at, Some(begin_term(&state_dir, primary, system_id)?)))
    };
    let (ended_at, term) = match made.await {
        Ok(made) => made,
        Err(error) => {
            if let Err(problem) = recovered::clear(&scratch).await {
                context.output.note(format!("what was made could not be cleared away: {problem:#}"));
            }
            return Err(error);
        }
    };
    failpoint::pass("in_place.after_term")?;
    let now = SystemClock::new().wall();
    let mut aside = Vec::new();
    let mut kept = |path: PathBuf| {
        context.output.line(format!("kept as it was: {}", path.display()));
        aside.push(path);
    };
    // what it holds may never have happened
    set_warehouse_aside(context, &SystemClock::new())?.into_iter().for_each(&mut kept);
    // the primary's comes last: without it, `up` asks for a restore
    for node in place.nodes() {
        failpoint::pass("in_place.before_aside")?;
        let data = cluster.server(node).data_dir();
        let moved = act::set_aside(node, &data, now).map_err(|error| explain(&error, error.hint()))?;
        moved.into_iter().for_each(&mut kept);
    }
    failpoint::pass("in_place.before_rename")?;
    observe::mark_primary(primary).with_context(|| format!("cannot mark {}", primary.folder.display()))?;
    let (from, to) = (scratch.data_dir(), cluster.server(primary).data_dir());
    std::fs::rename(&from, &to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    files::sync_dir(&primary.folder).with_context(|| format!("cannot sync {}", primary.folder.display()))?;
    failpoint::pass("in_place.after_rename")?;
    if let Some(term) = term
        && let Err(error) = history::append(&state_dir, now, term, event)
    {
        context.output.note(format!("the cluster's history does not say so: {error}"));
    }
    recovered::clear(&scratch).await?;
    Ok(InPlace { plan: plan.clone(), primary: primary.name.to_string(), ended_at, aside })
}

fn begin_term(state_dir: &Path, primary: &NodeSpec, system_id: u64) -> anyhow::Result<u64> {
    state::restored(state_dir, primary.name.clone(), system_id).map_err(|error| explain(&error, error.hint()))
}

/// A stopped primary's data directory as of the target, in the scratch folder.
async fn made(
    context: &Context,
    scratch: &ServerSpec,
    repo: &Repository,
    (system_id, plan): (u64, &Plan),
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<String>> {
    files::create_dir_all(&scratch.folder, 0o700)?;
    scratch.run_as.own(&scratch.folder).explained()?;
    let owner = rustix::process::geteuid().is_root().then(|| scratch.run_as.clone());
    let options = RestoreOptions {
        data_dir: scratch.data_dir(),
        delta: false,
        target: plan.target.clone(),
        backup: plan.backups.last().cloned(),
        timeline: Some(plan.timeline),
        threads: crate::backup::config(context)?.threads,
        owner: owner.clone(),
        tablespaces: Default::default(),
        wal: WalSource::Prefetch,
        base: None,
    };
    let plan = restore(repo, system_id, &options, progress, stop).await.explained()?.plan;
    scratch.configure(None).explained()?;
    let ends_early = matches!(plan.target, millrace_backup::plan::Target::Time { .. });
    let ended_at = tokio::select! {
        opened = recovered::open(context, scratch, ends_early) => opened?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let Some(mut server) = scratch.adopt().explained()? else { bail!("the restored server has ended by itself") };
    server.stop(StopMode::Fast, recovered::STOP_MAX).await.explained()?;
    end_restore(&scratch.data_dir(), owner.as_ref()).explained()?;
    Ok(ended_at)
}
