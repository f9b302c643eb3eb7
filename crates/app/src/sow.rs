//! Replicas made from the newest backup instead of their primary.
//!
//! Not here: how a restore is made, which the `backup` crate knows; when a replica is made, which the `cluster` crate does.

use std::{sync::Arc, time::Duration};

use anyhow::{anyhow, bail};
use futures::future::BoxFuture;
use millrace_backup::{
    BackupError, RestoreOptions, WalSource,
    plan::{Plan, PlanError, Target},
    plan_restore,
    repo::Repository,
    restore,
};
use millrace_cluster::seed::{Seed, Sown};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    explain::{Explained as _, chain},
    output::bytes_text,
};

/// The archive is seconds behind the primary; what it does not bring within this, the primary is asked for.
const ARCHIVE_WAIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

/// What the configuration allows.
pub(crate) fn seed(context: &Context) -> Option<Arc<dyn Seed>> {
    let wanted = context.config.backup.as_ref().is_some_and(|backup| backup.replicas);
    wanted.then(|| Arc::new(FromBackup(context.clone())) as Arc<dyn Seed>)
}

#[derive(Debug)]
struct FromBackup(Context);

impl Seed for FromBackup {
    fn sow(&self, wanted: Sown) -> BoxFuture<'static, Result<String, String>> {
        let context = self.0.clone();
        Box::pin(async move { made(&context, wanted).await.map_err(|error| chain(error.as_ref())) })
    }
}

async fn made(context: &Context, wanted: Sown) -> anyhow::Result<String> {
    let repo = crate::backup::open(context)?;
    let plan = reaching(&repo, &wanted).await?;
    let log_bytes = plan.window.to.0.saturating_sub(plan.start.0);
    if log_bytes > plan.data_bytes {
        bail!("the log since the newest backup is {}, more than the data", bytes_text(log_bytes));
    }
    let root = rustix::process::geteuid().is_root();
    let options = RestoreOptions {
        data_dir: wanted.data_dir,
        delta: false,
        target: Target::Latest,
        backup: plan.backups.last().cloned(),
        timeline: Some(wanted.timeline),
        threads: crate::backup::config(context)?.threads,
        owner: root.then_some(wanted.owner),
        tablespaces: Default::default(),
        wal: WalSource::Standby,
        base: None,
    };
    // whoever drops this wants nothing more to be written
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    let plan = restore(&repo, wanted.system_id, &options, &|_| {}, &stop).await.explained()?.plan;
    Ok(plan.backups.join(" + "))
}

/// The newest backup, once the archive has come to what the primary keeps.
async fn reaching(repo: &Repository, wanted: &Sown) -> anyhow::Result<Plan> {
    let planning = async {
        loop {
            let plan = plan_restore(repo, wanted.system_id, &Target::Latest, None, Some(wanted.timeline)).await;
            match plan {
                Ok(plan) if plan.window.to >= wanted.reach => return Ok(plan),
                Err(error @ BackupError::Plan(PlanError::NoBackup)) => return Err(error).explained(),
                // after a promotion the first log of the new timeline is on the way
                Ok(_) | Err(BackupError::Plan(_)) => tokio::time::sleep(LOOK).await,
                Err(error) => return Err(error).explained(),
            }
        }
    };
    let silent = || anyhow!("the archive has not come to {} within {} s", wanted.reach, ARCHIVE_WAIT.as_secs());
    tokio::time::timeout(ARCHIVE_WAIT, planning).await.map_err(|_| silent())?
}
