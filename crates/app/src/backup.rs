//! The platform's backup repository, opened from the configuration.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use millrace_backup::{
    BackupError, CreateOptions, Kind, ProveOptions,
    plan::Target,
    repo::{Location, Repository, S3Location},
    retention::Retention,
    seal::{Encryption, Keys, Sealing},
};
use millrace_base::Secret;
use millrace_cluster::spec::SUPERUSER;
use millrace_config::{Backup, BackupRepository, Secrets};
use millrace_contract::status::{NodeRole, NodeState, NodeStatus};

use crate::{
    context::Context,
    explain::{Explained, explain},
};

/// The log's archive brings the end of a backup within this, or the backup is of no use.
const LOG_WAIT: Duration = Duration::from_secs(120);
/// Replay and check of a large database.
const PROOF_MAX: Duration = Duration::from_secs(6 * 3600);

impl<T> Explained<T> for Result<T, BackupError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint()))
    }
}

/// What `[backup]` says.
///
/// # Errors
/// If there is none.
pub(crate) fn config(context: &Context) -> anyhow::Result<&Backup> {
    context.config.backup.as_ref().ok_or_else(|| {
        anyhow!("there are no backups: millrace.toml has no [backup]\n  hint: add it, with repository = \"FOLDER\" or \"s3://BUCKET\" (docs/backup.md)")
    })
}

/// Opens the repository. A key is made, kept in secrets.toml and said if there is none.
///
/// # Errors
/// If it cannot be opened.
pub(crate) fn open(context: &Context) -> anyhow::Result<Repository> {
    let backup = config(context)?;
    let key = match &context.secrets.backup_key {
        Some(key) => key.clone(),
        None => make_key(context)?,
    };
    let public = Keys::public(&key).explained()?;
    let encryption = Encryption::to(public.iter().map(String::as_str)).explained()?;
    let sealing = Sealing { level: backup.compression_level, encryption };
    Repository::open(&location(context, &backup.repository)?, sealing, Keys::parse(&key).explained()?).explained()
}

fn make_key(context: &Context) -> anyhow::Result<Secret> {
    let path = context.config.secrets_path();
    // another command may have made it a moment ago
    if let Some(key) = Secrets::load(&path).explained()?.backup_key {
        return Ok(key);
    }
    let (key, _) = Keys::generate();
    Secrets::add_backup_key(&path, &key).explained()?;
    context.output.note(format!(
        "a key for backups was made: `backup_key` in {}. Keep a copy elsewhere: without it no backup can be read",
        path.display()
    ));
    Ok(key)
}

fn location(context: &Context, repository: &BackupRepository) -> anyhow::Result<Location> {
    Ok(match repository {
        BackupRepository::Folder(folder) => Location::Folder(folder.clone()),
        BackupRepository::S3 { bucket, prefix, endpoint, region } => {
            let (access_key, secret_key) = context.secrets.s3.clone().with_context(|| {
                let path = context.config.secrets_path();
                format!("{} has no s3_access_key and s3_secret_key, which [backup] repository needs", path.display())
            })?;
            Location::S3(S3Location {
                endpoint: endpoint.clone(),
                region: region.clone(),
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                access_key,
                secret_key,
                allow_http: endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")),
            })
        }
    })
}

/// The cluster's identifier: of this platform's record, else of the only cluster in the repository.
///
/// # Errors
/// If it is not known.
pub(crate) async fn system_id(context: &Context, repo: &Repository) -> anyhow::Result<u64> {
    let record = millrace_cluster::state::load(&context.layout.cluster());
    if let Some(record) = record.map_err(|error| explain(&error, error.hint()))? {
        return Ok(record.system_id);
    }
    let clusters = repo.clusters().await.explained()?;
    match clusters.as_slice() {
        [only] => Ok(*only),
        [] => Err(anyhow!("there is nothing in {}", repo.name())),
        _ => Err(anyhow!(
            "{} holds several clusters, and this platform does not know which is its own\n  hint: --system-id, one of {}",
            repo.name(),
            clusters.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// The node that is copied: a replica on this host that streams, else the primary; and its data directory.
pub(crate) fn source(context: &Context, nodes: &[NodeStatus]) -> Option<(NodeStatus, PathBuf)> {
    let place = |node: &NodeStatus| {
        let known = context.config.cluster.nodes.iter().find(|known| known.name == node.name)?;
        Some(context.config.node_dir(known).join("data")).filter(|folder| folder.join("PG_VERSION").exists())
    };
    let runs = |node: &&NodeStatus| node.state == NodeState::Running && node.apply_delay_s.is_none() && !node.leaving;
    let fit = |node: &&NodeStatus| runs(node) && (node.role == NodeRole::Primary || node.streaming == Some(true));
    let mut nodes: Vec<&NodeStatus> = nodes.iter().filter(fit).collect();
    nodes.sort_by_key(|node| node.role == NodeRole::Primary);
    nodes.into_iter().find_map(|node| Some((node.clone(), place(node)?)))
}

/// How a backup of a node is made. `fast`: at once, rather than with the next checkpoint.
///
/// # Errors
/// If there is no `[backup]`, or the authority's certificate cannot be read.
pub(crate) fn options(
    context: &Context,
    node: &NodeStatus,
    data_dir: PathBuf,
    kind: Kind,
    fast: bool,
) -> anyhow::Result<CreateOptions> {
    let config = config(context)?;
    Ok(CreateOptions {
        params: context.superuser_at(node)?,
        data_dir,
        kind,
        threads: config.threads,
        bytes_per_second_max: config.bytes_per_second_max,
        fast_checkpoint: fast,
        wal_wait: Some(LOG_WAIT),
    })
}

/// What `[backup]` promises to keep.
pub(crate) fn retention_of(config: &Backup) -> Retention {
    Retention { full_backups: config.keep_full, window: config.window, ..Retention::default() }
}

/// How a backup is proven: restored beside the data, replayed and checked.
///
/// # Errors
/// If there is no `[backup]`, or PostgreSQL's programs are not found.
pub(crate) fn proof(context: &Context, label: Option<String>) -> anyhow::Result<ProveOptions> {
    let spec = context.cluster_spec()?;
    Ok(ProveOptions {
        scratch: context.layout.data().join("proof"),
        binaries: spec.binaries,
        run_as: spec.run_as,
        superuser: SUPERUSER.to_owned(),
        target: Target::Latest,
        backup: label,
        threads: config(context)?.threads,
        deadline: PROOF_MAX,
    })
}
