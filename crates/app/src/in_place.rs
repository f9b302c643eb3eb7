//! The cluster brought back from its backups, in the place of what is there.
//!
//! Invariants: nothing that is there is touched before the restored server has replayed its log and takes writes; what
//! was there is kept aside, never deleted; wherever it is interrupted, `up` goes on with the old data or asks for this
//! again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use millrace_backup::{ProgressFn, RestoreOptions, WalSource, end_restore, plan::Plan, repo::Repository, restore};
use millrace_base::{Clock as _, SystemClock, failpoint, files};
use millrace_cluster::{
    ClusterSpec, NodeSpec, act,
    history::{self, Event},
    observe, state,
};
use millrace_pg::{ServerSpec, StopMode};
use tokio_util::sync::CancellationToken;

use crate::{
    clone, context::Context, explain::Explained as _, explain::explain, platform::set_warehouse_aside, recovered,
};

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

/// The node that becomes the primary: who was it, if that is known.
fn node(context: &Context, spec: &ClusterSpec) -> anyhow::Result<NodeSpec> {
    let record = state::load(&context.layout.cluster()).map_err(|error| explain(&error, error.hint()))?;
    let recorded = record.and_then(|record| spec.nodes.iter().find(|node| node.name == record.primary));
    recorded.or(spec.nodes.first()).cloned().context("the cluster has no nodes")
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
/// If the target cannot be reached or the server does not come up: nothing has changed then.
pub(crate) async fn run(
    context: &Context,
    repo: &Repository,
    (system_id, plan): (u64, &Plan),
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<InPlace> {
    let cluster = context.cluster_spec()?;
    let primary = node(context, &cluster)?;
    clear(context).await?;
    // what would fail at the end is better known now
    for node in &cluster.nodes {
        cluster.server(node).prepare_folder().explained()?;
    }
    let state_dir = context.layout.cluster();
    if state::load(&state_dir).map_err(|error| explain(&error, error.hint()))?.is_none() {
        // from here on `up` asks for a restore, and makes no new cluster
        begin_term(&state_dir, &primary, system_id)?;
    }
    let scratch = scratch(context, &primary)?;
    let made = made(context, &scratch, repo, (system_id, plan), progress, stop).await;
    let ended_at = match made {
        Ok(ended_at) => ended_at,
        Err(error) => {
            if let Err(problem) = recovered::clear(&scratch).await {
                context.output.note(format!("what was made could not be cleared away: {problem:#}"));
            }
            return Err(error);
        }
    };
    let mut aside = Vec::new();
    let mut kept = |path: PathBuf| {
        context.output.line(format!("kept as it was: {}", path.display()));
        aside.push(path);
    };
    failpoint::pass("in_place.replayed")?;
    let now = SystemClock::new().wall();
    let term = begin_term(&state_dir, &primary, system_id)?;
    failpoint::pass("in_place.after_term")?;
    // what it holds may never have happened
    set_warehouse_aside(context, &SystemClock::new())?.into_iter().for_each(&mut kept);
    // the primary's comes last: without it, `up` asks for a restore
    let others = cluster.nodes.iter().filter(|node| node.name != primary.name);
    for node in others.chain([&primary]) {
        failpoint::pass("in_place.before_aside")?;
        let data = cluster.server(node).data_dir();
        let moved = act::set_aside(node, &data, now).map_err(|error| explain(&error, error.hint()))?;
        moved.into_iter().for_each(&mut kept);
    }
    failpoint::pass("in_place.before_rename")?;
    observe::mark_primary(&primary).with_context(|| format!("cannot mark {}", primary.folder.display()))?;
    let (from, to) = (scratch.data_dir(), cluster.server(&primary).data_dir());
    std::fs::rename(&from, &to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    files::sync_dir(&primary.folder).with_context(|| format!("cannot sync {}", primary.folder.display()))?;
    failpoint::pass("in_place.after_rename")?;
    let event = Event::Restored {
        node: primary.name.to_string(),
        backup: plan.backups.last().cloned().unwrap_or_default(),
        target: plan.target.to_string(),
    };
    if let Err(error) = history::append(&state_dir, now, term, event) {
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
    };
    let plan = restore(repo, system_id, &options, progress, stop).await.explained()?;
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
