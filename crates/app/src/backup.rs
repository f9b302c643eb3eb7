//! The platform's backup repository, opened from the configuration.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use millrace_backup::{
    BackupError, CreateOptions, Created, Kind, Manifest, ProgressFn, Proof, ProveOptions, Rule,
    contents::{self, Contents, RecordOptions},
    create,
    plan::Target,
    plan_restore,
    proofs::{self, Failure},
    prove,
    repo::{AzureLocation, GoogleLocation, Location, Repository, S3Location},
    retention::Retention,
    seal::{Encryption, Keys, Sealing},
};
use millrace_base::{Clock as _, Secret, SystemClock, files};
use millrace_cluster::{ClusterStatus, spec::SUPERUSER};
use millrace_config::{Backup, BackupRepository, Secrets};
use millrace_contract::status::{NodeRole, NodeState, NodeStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    control::Client,
    explain::{Explained, Usage, explain},
    platform::ClusterView,
};

/// The log's archive brings the end of a backup within this, or the backup is of no use.
const LOG_WAIT: Duration = Duration::from_secs(120);
/// In the folder of proofs, while one goes on.
pub(crate) const PROOF: &str = "copy";
const ASK_MAX: Duration = Duration::from_secs(5);
/// Of servers that go away while they are copied.
const ATTEMPTS_MAX: u32 = 3;
const ATTEMPT_AFTER: Duration = Duration::from_secs(2);
/// A server of this host is waited for so long.
const FIT_MAX: Duration = Duration::from_secs(30);
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

/// Opens the repository with all its places. A key is made, kept in secrets.toml and said if there is none.
///
/// # Errors
/// If it cannot be opened.
pub(crate) fn open(context: &Context) -> anyhow::Result<Repository> {
    open_only(context, None)
}

/// The same with one place of several, as if there were no other.
///
/// # Errors
/// Also if there is none of that name.
pub(crate) fn open_only(context: &Context, only: Option<&str>) -> anyhow::Result<Repository> {
    let backup = config(context)?;
    let all = std::iter::once(&backup.repository).chain(&backup.copies);
    let mut locations = all.map(|of| location(context, of)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(only) = only {
        let names: Vec<String> = locations.iter().map(Location::name).collect();
        // a folder may be written as it is in the configuration
        let folder = context.config.folder.join(only).display().to_string();
        let wanted = |name: &String| [only, &folder].contains(&name.trim_end_matches('/'));
        let Some(at) = names.iter().position(wanted) else {
            let what = format!("[backup] names no repository {only}\n  hint: one of {}", names.join(", "));
            return Err(Usage(what).into());
        };
        locations = vec![locations.swap_remove(at)];
    }
    let key = match &context.secrets.backup_key {
        Some(key) => key.clone(),
        None => make_key(context)?,
    };
    // the newest comes first; the others only read
    let public = Keys::public(&key).explained()?;
    let encryption = Encryption::to(public.first().map(String::as_str)).explained()?;
    let sealing = Sealing { level: backup.compression_level, encryption };
    Repository::open_all(&locations, sealing, Keys::parse(&key).explained()?).explained()
}

/// That all places answer. What is restored as the latest while one does not may be older than what it alone has, and
/// another history of the same number may begin there.
///
/// # Errors
/// If one does not.
pub(crate) async fn all_there(repo: &Repository) -> anyhow::Result<()> {
    repo.clusters().await.explained()?;
    match repo.away().first() {
        None => Ok(()),
        Some(away) => Err(anyhow!(
            "{} does not answer, and may have what others lack: {}\n  hint: --repository PLACE takes one alone, with what it has",
            away.repository,
            away.why
        )),
    }
}

/// Says which places do not answer.
pub(crate) fn tell_away(context: &Context, repo: &Repository) {
    for away in repo.away() {
        context.output.note(format!("{} does not answer: {}", away.repository, away.why));
    }
}

/// A key for backups.
pub(crate) fn new_key() -> Secret {
    Keys::generate().0
}

/// Puts a new key before those that there are; how many there are now.
///
/// # Errors
/// If secrets.toml cannot be read or written.
pub(crate) fn change_key(context: &Context) -> anyhow::Result<usize> {
    let path = context.config.secrets_path();
    let before = Secrets::load(&path).explained()?.backup_key;
    let before = before.as_ref().map_or("", |key| key.reveal().trim_end());
    let all = Secret::new(format!("{}\n{before}\n", new_key().reveal()));
    Secrets::put_backup_key(&path, &all).explained()?;
    Ok(Keys::public(&all).explained()?.len())
}

/// For a platform that was made without one.
fn make_key(context: &Context) -> anyhow::Result<Secret> {
    let path = context.config.secrets_path();
    // another command may have made it a moment ago
    if let Some(key) = Secrets::load(&path).explained()?.backup_key {
        return Ok(key);
    }
    let key = new_key();
    Secrets::put_backup_key(&path, &key).explained()?;
    let hosts = if context.config.etcd.is_some() { ", and in the secrets.toml of every other host" } else { "" };
    context.output.note(format!(
        "a key for backups was made: `backup_key` in {}. Keep a copy elsewhere{hosts}: without it no backup can be read",
        path.display()
    ));
    Ok(key)
}

fn location(context: &Context, repository: &BackupRepository) -> anyhow::Result<Location> {
    let secrets = &context.secrets;
    let lacks = |what: &str, place: String| {
        let path = context.config.secrets_path();
        format!("{} has no {what}, which {place} needs", path.display())
    };
    Ok(match repository {
        BackupRepository::Folder(folder) => Location::Folder(folder.clone()),
        BackupRepository::S3 { bucket, prefix, endpoint, region } => {
            let keys = secrets.s3_of.get(bucket).or(secrets.s3.as_ref()).cloned();
            let (access_key, secret_key) =
                keys.with_context(|| lacks("s3_access_key and s3_secret_key", format!("s3://{bucket}")))?;
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
        BackupRepository::Azure { container, prefix, endpoint } => {
            let keys = secrets.azure_of.get(container).or(secrets.azure.as_ref()).cloned();
            let (account, key) =
                keys.with_context(|| lacks("azure_account and azure_key", format!("az://{container}")))?;
            Location::Azure(AzureLocation {
                endpoint: endpoint.clone(),
                container: container.clone(),
                prefix: prefix.clone(),
                account: account.reveal().to_owned(),
                key,
            })
        }
        BackupRepository::Google { bucket, prefix, service_account } => Location::Google(GoogleLocation {
            bucket: bucket.clone(),
            prefix: prefix.clone(),
            service_account: service_account.clone(),
        }),
    })
}

/// The cluster's identifier, if this platform has a record of it.
///
/// # Errors
/// If the record cannot be read.
pub(crate) fn own_system_id(context: &Context) -> anyhow::Result<Option<u64>> {
    let record = millrace_cluster::state::load(&context.layout.cluster());
    Ok(record.map_err(|error| explain(&error, error.hint()))?.map(|record| record.system_id))
}

/// The cluster's identifier: of this platform's record, else of the only cluster in the repository.
///
/// # Errors
/// If it is not known.
pub(crate) async fn system_id(context: &Context, repo: &Repository) -> anyhow::Result<u64> {
    if let Some(own) = own_system_id(context)? {
        return Ok(own);
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

/// Who says what the nodes do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Nodes<'a> {
    /// The running platform or agent, asked.
    Asked(&'a Client),
    /// The platform itself.
    Followed(&'a watch::Receiver<ClusterStatus>),
}

impl Nodes<'_> {
    async fn now(self) -> anyhow::Result<Vec<NodeStatus>> {
        match self {
            Self::Asked(client) => Ok(client.get::<ClusterView>("/cluster", ASK_MAX).await?.nodes),
            Self::Followed(status) => Ok(status.borrow().nodes.clone()),
        }
    }
}

/// Makes a backup of a node on this host. One whose server goes away meanwhile (a replica that restarts to get the slots
/// of its primary, a primary that fails) is left for another, or for later: `ATTEMPTS_MAX` times.
///
/// `fast`: at once, rather than with the next checkpoint.
///
/// # Errors
/// If no server on this host is fit, or the backup fails.
pub(crate) async fn make(
    context: &Context,
    repo: &Repository,
    nodes: Nodes<'_>,
    (kind, fast): (Kind, bool),
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<(Created, NodeStatus)> {
    let mut lost: Option<String> = None;
    let (mut attempt, begun) = (1, Instant::now());
    loop {
        let now = nodes.now().await?;
        let Some((node, data_dir)) = source(context, &now, lost.as_deref()) else {
            // one that restarts, or is made at this moment, is waited for
            if !now.iter().any(|node| data_dir(context, node).is_some()) || begun.elapsed() > FIT_MAX {
                bail!("no server that could be copied runs on this host\n  hint: millrace cluster status");
            }
            tokio::select! {
                () = stop.cancelled() => bail!("interrupted"),
                () = tokio::time::sleep(ATTEMPT_AFTER) => continue,
            }
        };
        let primary = now.iter().find(|other| other.role == NodeRole::Primary && other.name != node.name);
        let options = options(context, (&node, primary), data_dir, kind, fast)?;
        match create(repo, &options, progress, stop).await {
            Ok(created) => return Ok((created, node)),
            Err(error) if error.is_lost_server() && attempt < ATTEMPTS_MAX => {
                tracing::warn!(node = node.name, %error, "the server went away in the midst of its backup: begun anew");
                (lost, attempt) = (Some(node.name), attempt + 1);
                tokio::select! {
                    () = stop.cancelled() => return Err(error).explained(),
                    () = tokio::time::sleep(ATTEMPT_AFTER) => {}
                }
            }
            Err(error) => return Err(error).explained(),
        }
    }
}

/// Has the tables of the primary counted and digested, as long as `[backup]` says, for proofs of the backup to compare;
/// `None`: it says not to. A backup without this is a whole one.
///
/// # Errors
/// If the primary or the repository cannot be reached, or `stop` ends it.
pub(crate) async fn record(
    context: &Context,
    repo: &Repository,
    nodes: Nodes<'_>,
    backup: &Manifest,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Contents>> {
    let Some(within) = config(context)?.contents else { return Ok(None) };
    let now = nodes.now().await?;
    let primary = now.iter().find(|node| node.role == NodeRole::Primary && node.state == NodeState::Running);
    let primary = context.superuser_at(primary.context("there is no primary just now")?)?;
    let options = RecordOptions { primary, within, wal_wait: LOG_WAIT };
    tokio::select! {
        recorded = contents::record(repo, backup, &options, progress) => recorded.map(Some).explained(),
        () = stop.cancelled() => bail!("interrupted"),
    }
}

/// The node that is copied: a replica on this host that streams, else the primary; and its data directory. One that was
/// lost a moment ago comes last.
pub(crate) fn source(context: &Context, nodes: &[NodeStatus], lost: Option<&str>) -> Option<(NodeStatus, PathBuf)> {
    let runs = |node: &&NodeStatus| node.state == NodeState::Running && node.apply_delay_s.is_none() && !node.leaving;
    let fit = |node: &&NodeStatus| runs(node) && (node.role == NodeRole::Primary || node.streaming == Some(true));
    let mut nodes: Vec<&NodeStatus> = nodes.iter().filter(fit).collect();
    nodes.sort_by_key(|node| (lost == Some(node.name.as_str()), node.role == NodeRole::Primary));
    nodes.into_iter().find_map(|node| Some((node.clone(), data_dir(context, node)?)))
}

/// Its data directory, if that is on this host.
fn data_dir(context: &Context, node: &NodeStatus) -> Option<PathBuf> {
    let known = context.config.cluster.nodes.iter().find(|known| known.name == node.name)?;
    Some(context.config.node_dir(known).join("data")).filter(|folder| folder.join("PG_VERSION").exists())
}

fn options(
    context: &Context,
    (node, primary): (&NodeStatus, Option<&NodeStatus>),
    data_dir: PathBuf,
    kind: Kind,
    fast: bool,
) -> anyhow::Result<CreateOptions> {
    let config = config(context)?;
    Ok(CreateOptions {
        params: context.superuser_at(node)?,
        primary: primary.map(|primary| context.superuser_at(primary)).transpose()?,
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
    Retention {
        full_backups: config.keep_full,
        window: config.window,
        daily: config.keep_daily,
        weekly: config.keep_weekly,
        monthly: config.keep_monthly,
        yearly: config.keep_yearly,
        dumps: (config.keep_dumps > 0).then_some(config.keep_dumps),
        ..Retention::default()
    }
}

/// A proof that came out well, and why that is not remembered, if so.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) proof: Proof,
    pub(crate) forgotten: Option<BackupError>,
}

/// Proves a backup, which is the one that would be restored if `options` name none, and keeps the report, whether it comes
/// out well or the backup is not what it was. One place of several speaks only for itself: its failure is not kept.
///
/// # Errors
/// As [`prove`].
pub(crate) async fn prove_and_keep(
    context: &Context,
    (repo, system_id): (&Repository, u64),
    options: &ProveOptions,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> Result<Kept, BackupError> {
    let label = match &options.backup {
        Some(label) => label.clone(),
        None => {
            let plan = plan_restore(repo, system_id, &options.target, None, None).await?;
            plan.backups.last().cloned().unwrap_or_default()
        }
    };
    let options = ProveOptions { backup: Some(label.clone()), ..options.clone() };
    let proof = prove(repo, system_id, &options, progress, stop).await;
    let at = SystemClock::new().wall();
    match proof {
        Ok(proof) => {
            let forgotten = proofs::keep(repo, system_id, &proof, at).await.err();
            Ok(Kept { proof, forgotten })
        }
        Err(error) => {
            let places = context.config.backup.as_ref().map_or(1, |backup| 1 + backup.copies.len());
            if error.is_of_the_backup() && !stop.is_cancelled() && repo.alone().len() == places {
                let failure = Failure { label, at, why: error.to_string() };
                if let Err(error) = proofs::keep_failure(repo, system_id, &failure).await {
                    tracing::warn!(%error, "that a backup failed its proof is not remembered");
                }
            }
            Err(error)
        }
    }
}

/// How a backup is proven: restored beside the data, replayed and checked.
///
/// # Errors
/// If there is no `[backup]`, or PostgreSQL's programs are not found.
pub(crate) fn proof(context: &Context, label: Option<String>) -> anyhow::Result<ProveOptions> {
    let spec = context.cluster_spec()?;
    let rule = |check: &millrace_config::pack::TextFile| Rule {
        name: check.name.trim_end_matches(".sql").to_owned(),
        database: context.pack.database.clone(),
        sql: check.text.clone(),
    };
    let folder = context.layout.proof();
    files::create_dir_all(&folder, 0o711).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(ProveOptions {
        scratch: folder.join(PROOF),
        binaries: spec.binaries,
        run_as: spec.run_as,
        superuser: SUPERUSER.to_owned(),
        target: Target::Latest,
        backup: label,
        threads: config(context)?.threads,
        deadline: PROOF_MAX,
        rules: context.pack.checks.iter().map(rule).collect(),
        base: None,
    })
}

/// The same, which leaves a base for copies if `[backup]` wants it.
///
/// # Errors
/// As [`proof`].
pub(crate) fn proof_with_base(context: &Context, label: Option<String>) -> anyhow::Result<ProveOptions> {
    let base = config(context)?.clone_base.then(|| context.layout.clone_base());
    if base.is_some() {
        let folder = context.layout.clones();
        files::create_dir_all(&folder, 0o755).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(ProveOptions { base, ..proof(context, label)? })
}
