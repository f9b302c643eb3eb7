//! The log's archive and the backups by schedule, as long as the platform runs.
//!
//! Not here: what a backup is, which the `backup` crate knows.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_backup::{
    BackupError, Kind, Manifest,
    dump::{self, DumpFormat},
    list, plan, proofs,
    repo::Repository,
    retention,
    wal::{self, ReceiveOptions, ReceiveStatus},
};
use millrace_base::{Clock, Micros, Tasks};
use millrace_cluster::ClusterStatus;
use millrace_config::Backup;
use millrace_contract::status::{AwayRepository, BackupStatus, LastBackup, NodeRole, NodeStatus, Unproven};
use millrace_pg::ConnectParams;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::{self, Nodes, retention_of},
    clone,
    context::Context,
    dumps::{self, Wanted},
    explain::{Explained as _, chain},
};

/// The slot on the primary.
pub(crate) const SLOT: &str = "millrace_archive";
/// What may be lost with the whole cluster.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Files of log on their way at a time.
const UPLOADS_MAX: usize = 2;
/// Between looks at whether a backup is due.
const LOOK: Duration = Duration::from_secs(30);
/// Between comparisons of several places, and of those of which one was away.
const COMPARE: Duration = Duration::from_secs(3_600);
const COMPARE_AWAY: Duration = Duration::from_secs(15);
const TELL_AWAY: Duration = Duration::from_secs(2);
/// After one that failed.
const AGAIN: Duration = Duration::from_secs(600);
/// After a proof that failed: it reads everything.
const PROVE_AGAIN: Duration = Duration::from_secs(3_600);
/// Whoever makes a backup by hand may prove it by hand as well.
const PROVE_BY_HAND: Duration = Duration::from_secs(600);

/// Begins both, if there is a `[backup]`; the open repository, and how it stands with it.
///
/// # Errors
/// If the repository cannot be opened.
pub(super) fn spawn(
    context: &Arc<Context>,
    cluster: watch::Receiver<ClusterStatus>,
    clock: Arc<dyn Clock>,
    services: &mut Tasks,
) -> anyhow::Result<Option<(Repository, watch::Receiver<BackupStatus>)>> {
    let Some(config) = context.config.backup.clone() else { return Ok(None) };
    let repo = backup::open(context)?;
    let (status, told) = watch::channel(BackupStatus { repository: repo.name().to_owned(), ..BackupStatus::default() });
    let status = Arc::new(status);
    let opened = repo.clone();
    let archive = Archive { context: context.clone(), repo: repo.clone(), status: status.clone() };
    let (of, token) = (cluster.clone(), services.token().clone());
    services.spawn("log archive", async move { archive.follow(of, token).await });
    if !config.copies.is_empty() {
        let copies = Copies { repo: repo.clone(), status: status.clone() };
        let token = services.token().clone();
        services.spawn("repositories", async move { copies.keep(token).await });
    }
    let schedule = Schedule { context: context.clone(), config, repo, status, clock, tried: Mutex::default() };
    let token = services.token().clone();
    services.spawn("backups", async move { schedule.keep(cluster, token).await });
    Ok(Some((opened, told)))
}

struct Archive {
    context: Arc<Context>,
    repo: Repository,
    status: Arc<watch::Sender<BackupStatus>>,
}

impl Archive {
    /// Receives the log of whoever is the primary.
    async fn follow(self, mut cluster: watch::Receiver<ClusterStatus>, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            let is_ready = |status: &ClusterStatus| status.primary_ready && primary(status).is_some();
            let found = tokio::select! {
                // neither loses anything when dropped
                () = token.cancelled() => return Ok(()),
                found = cluster.wait_for(is_ready) => match found {
                    Ok(status) => primary(&status).cloned(),
                    Err(_) => return Ok(()),
                },
            };
            let Some(node) = found else { continue };
            let ends = token.child_token();
            let other = async {
                // one that only restarts is waited for by the receiver itself
                let other = |status: &ClusterStatus| primary(status).is_some_and(|now| now.name != node.name);
                // the supervisor has ended: so will this
                if cluster.wait_for(other).await.is_err() {
                    token.cancelled().await;
                }
                ends.cancel();
            };
            let receiving = self.receive(&node, &ends);
            tokio::pin!(receiving);
            tokio::select! {
                ended = &mut receiving => ended,
                () = other => receiving.await,
            }
            // what waiting cannot mend is told, and tried again
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(5)), if !ends.is_cancelled() => {}
                () = ends.cancelled() => {}
            }
        }
    }

    async fn receive(&self, node: &NodeStatus, ends: &CancellationToken) {
        // the servers admit the replicator to no database, and the receiver asks a few things of one
        let superuser = match self.context.superuser_at(node) {
            Ok(superuser) => superuser,
            Err(error) => return self.fails(chain(error.as_ref())),
        };
        let params = ConnectParams { application_name: "millrace archive".to_owned(), ..superuser };
        let options =
            ReceiveOptions { params, slot: SLOT.to_owned(), flush_every: FLUSH_EVERY, uploads_max: UPLOADS_MAX };
        let (tell, mut told) = watch::channel(ReceiveStatus::default());
        let following = async {
            while told.changed().await.is_ok() {
                let now = told.borrow_and_update().clone();
                self.status.send_modify(|status| {
                    status.connected = now.connected;
                    status.durable = now.durable;
                    status.backlog_bytes = now.backlog_bytes();
                    status.failing.clone_from(&now.failing);
                });
            }
            std::future::pending::<()>().await;
        };
        tracing::info!(node = node.name, repository = self.repo.name(), "the log is archived");
        tokio::select! {
            ended = wal::receive(&self.repo, &options, &tell, ends) => {
                if let Err(error) = ended.explained() {
                    tracing::error!(error = chain(error.as_ref()), "the log is not archived");
                    self.fails(chain(error.as_ref()));
                }
            }
            () = following => {}
        }
        self.status.send_modify(|status| status.connected = false);
    }

    fn fails(&self, why: String) {
        self.status.send_modify(|status| status.failing = Some(why));
    }
}

fn primary(status: &ClusterStatus) -> Option<&NodeStatus> {
    status.nodes.iter().find(|node| node.role == NodeRole::Primary)
}

/// Several places that are to have the same.
struct Copies {
    repo: Repository,
    status: Arc<watch::Sender<BackupStatus>>,
}

impl Copies {
    /// Says who is away, and brings each what it lacks: of those that were away soon, of what others than the platform
    /// left out (a backup by hand) now and then.
    async fn keep(self, token: CancellationToken) -> anyhow::Result<()> {
        let comparing = async {
            loop {
                match self.repo.catch_up(&token).await {
                    Ok(brought) if brought.objects > 0 => {
                        tracing::info!(brought.objects, brought.bytes, "copies were brought what they lacked");
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "copies were not brought what they lack"),
                }
                let compared = tokio::time::Instant::now();
                let pause = || if self.repo.away().is_empty() { COMPARE } else { COMPARE_AWAY };
                while compared.elapsed() < pause() {
                    tokio::time::sleep(TELL_AWAY).await;
                }
            }
        };
        let telling = async {
            loop {
                let away = self.repo.away().into_iter();
                let away = away.map(|away| AwayRepository { repository: away.repository, why: away.why });
                let away: Vec<AwayRepository> = away.collect();
                self.status.send_if_modified(|status| {
                    let changed = status.away != away;
                    status.away = away;
                    changed
                });
                tokio::time::sleep(TELL_AWAY).await;
            }
        };
        tokio::select! {
            // an object that is on its way is brought again
            () = token.cancelled() => Ok(()),
            () = comparing => Ok(()),
            () = telling => Ok(()),
        }
    }
}

fn newest_of(backups: &[Manifest], full: bool) -> Option<&Manifest> {
    let wanted = backups.iter().filter(|backup| !full || backup.kind == Kind::Full);
    wanted.max_by_key(|backup| backup.stopped_at)
}

struct Schedule {
    context: Arc<Context>,
    config: Backup,
    repo: Repository,
    status: Arc<watch::Sender<BackupStatus>>,
    clock: Arc<dyn Clock>,
    tried: Mutex<Option<Tried>>,
}

/// The last proof of this process: also where its report could not be kept, it is not made again at once.
#[derive(Clone)]
struct Tried {
    label: String,
    at: Micros,
    /// `None`: it came out well, or said nothing of the backup.
    failure: Option<String>,
    again: Option<Duration>,
}

impl Schedule {
    async fn keep(self, cluster: watch::Receiver<ClusterStatus>, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            let (system_id, pause) = {
                let status = cluster.borrow();
                (status.system_id.filter(|_| status.primary_ready), LOOK)
            };
            let mut pause = pause;
            if let Some(system_id) = system_id {
                match self.look(system_id, &cluster, &token).await {
                    Ok(()) => {}
                    Err(_) if token.is_cancelled() => return Ok(()),
                    Err(error) => {
                        let why = chain(error.as_ref());
                        tracing::error!(error = why, "no backup was made, or not proven");
                        self.status.send_modify(|status| status.failed = Some(why));
                        pause = AGAIN;
                    }
                }
            }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(if system_id.is_some() { pause } else { Duration::from_secs(1) }) => {}
            }
        }
    }

    /// Makes the backups that are due, removes what is kept no longer, and proves the newest.
    async fn look(
        &self,
        system_id: u64,
        cluster: &watch::Receiver<ClusterStatus>,
        token: &CancellationToken,
    ) -> anyhow::Result<()> {
        let live = self.tell(system_id, cluster).await?;
        let newest = |full: bool| newest_of(&live, full);
        if backup::source(&self.context, &cluster.borrow().nodes, None).is_none() {
            // none of this host, or not yet
            return Ok(());
        }
        let now = self.clock.wall();
        let due = |every: Option<Duration>, full: bool| {
            every.is_some_and(|every| newest(full).is_none_or(|backup| now.since(backup.stopped_at) >= every))
        };
        let kind = match (due(self.config.full_every, true), due(self.config.incremental_every, false)) {
            (true, _) => Some(Kind::Full),
            (false, true) => Some(Kind::Incremental),
            (false, false) => None,
        };
        let made = match kind {
            Some(kind) => self.physical(kind, cluster, token).await.map(Some),
            None => Ok(None),
        };
        // one that fails is no reason to go without the other
        let dumped = self.logical(system_id, cluster, token).await;
        let any = kind.is_some() || dumped.as_ref().is_ok_and(|made| *made);
        let expired = match any {
            // a host without room for a proof must not keep backups for ever
            true => {
                let retention = retention_of(&self.config);
                retention::expire(&self.repo, system_id, &retention, self.clock.wall(), false).await.map(Some)
            }
            false => Ok(None),
        };
        let told = if any { self.tell(system_id, cluster).await.map(Some) } else { Ok(None) };
        let made = made?;
        let live = told?.unwrap_or(live);
        self.prove_newest(system_id, newest_of(&live, false), made.as_deref(), token).await?;
        dumped?;
        if any {
            self.status.send_modify(|status| status.failed = None);
        }
        if let Some(expired) = expired.explained()? {
            clone::base_of_kept(&self.context, |label| expired.decision.kept.contains_key(label));
        }
        Ok(())
    }

    /// Says in the status what there is; the backups that the primary has come from.
    async fn tell(&self, system_id: u64, cluster: &watch::Receiver<ClusterStatus>) -> anyhow::Result<Vec<Manifest>> {
        let mut backups = list(&self.repo, system_id).await.explained()?.backups;
        let proofs = proofs::list(&self.repo, system_id).await.explained()?;
        let count = backups.len();
        let left = self.left_behind(system_id, &backups, cluster).await?;
        backups.retain(|backup| !left.contains(&backup.label));
        let newest = newest_of(&backups, false);
        let failure = match newest {
            Some(newest) => proofs::why(&self.repo, &proofs, &newest.label).await.explained()?,
            None => None,
        };
        let unkept = self.tried().filter(|tried| {
            newest.is_some_and(|newest| newest.label == tried.label)
                && proofs.proven_at(&tried.label).is_none_or(|proven| proven < tried.at)
        });
        let unkept = unkept.and_then(|tried| Some(Unproven { label: tried.label, at: tried.at, why: tried.failure? }));
        self.status.send_modify(|status| {
            status.last = newest.map(|backup| LastBackup {
                label: backup.label.clone(),
                full: backup.kind == Kind::Full,
                at: backup.stopped_at,
                stored_bytes: backup.stored_bytes,
            });
            status.backups = count;
            status.proven = proofs.proven.last().map(|proven| (proven.label.clone(), proven.at));
            status.unproven = failure.map(|of| Unproven { label: of.label, at: of.at, why: of.why }).or(unkept);
        });
        Ok(backups)
    }

    /// Makes a backup; its label.
    async fn physical(
        &self,
        kind: Kind,
        cluster: &watch::Receiver<ClusterStatus>,
        token: &CancellationToken,
    ) -> anyhow::Result<String> {
        let nodes = Nodes::Followed(cluster);
        let (made, node) = backup::make(&self.context, &self.repo, nodes, (kind, false), &|_| {}, token).await?;
        tracing::info!(label = made.manifest.label, node = node.name, "a backup was made");
        if let Err(error) = backup::record(&self.context, &self.repo, nodes, &made.manifest, &|_| {}, token).await {
            let error = chain(error.as_ref());
            tracing::warn!(
                label = made.manifest.label,
                error,
                "what its tables held is not recorded: proofs cannot compare"
            );
        }
        Ok(made.manifest.label)
    }

    /// Every database of which there is no whole logical backup young enough; whether one was made.
    async fn logical(
        &self,
        system_id: u64,
        cluster: &watch::Receiver<ClusterStatus>,
        token: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let Some(every) = self.config.dump_every else { return Ok(false) };
        let source = backup::source(&self.context, &cluster.borrow().nodes, None);
        let Some((node, _)) = source else { return Ok(false) };
        let all = dump::dumps(&self.repo, system_id).await.explained()?.dumps;
        let now = self.clock.wall();
        let mut made = false;
        for database in dumps::databases(&self.context, &node).await? {
            let whole = all.iter().filter(|dump| dump.database == database && dump.is_whole());
            if whole.map(|dump| dump.at).max().is_some_and(|at| now.since(at) < every) {
                continue;
            }
            let wanted = Wanted { database, format: DumpFormat::Custom, schemas: vec![], tables: vec![], jobs: 1 };
            let dump = dumps::make(&self.context, &self.repo, &node, wanted, token).await;
            let dump = dump.context("a logical backup was not made")?;
            tracing::info!(label = dump.label, dump.database, node = node.name, "a logical backup was made");
            made = true;
        }
        Ok(made)
    }

    /// Backups that the primary has not come from, because the cluster was restored to the past: they do not count as
    /// what is due. The log is looked through only while the newest backup is of an older timeline.
    async fn left_behind(
        &self,
        system_id: u64,
        backups: &[Manifest],
        cluster: &watch::Receiver<ClusterStatus>,
    ) -> anyhow::Result<BTreeSet<String>> {
        let timeline = primary(&cluster.borrow()).and_then(|node| node.timeline);
        let newest = backups.iter().max_by_key(|backup| backup.stopped_at);
        if newest.zip(timeline).is_none_or(|(newest, timeline)| newest.timeline >= timeline) {
            return Ok(BTreeSet::new());
        }
        let inventory = wal::inventory(&self.repo, system_id).await.explained()?;
        Ok(plan::left_behind(&inventory, backups))
    }

    /// Proves the newest backup, if that is due; `made`: the one that was made a moment ago.
    async fn prove_newest(
        &self,
        system_id: u64,
        newest: Option<&Manifest>,
        made: Option<&str>,
        token: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(newest) = newest.filter(|_| self.config.prove) else { return Ok(()) };
        let now: Micros = self.clock.wall();
        if made != Some(&newest.label) && now.since(newest.stopped_at) < PROVE_BY_HAND {
            return Ok(());
        }
        let tried = self.tried().filter(|tried| tried.label == newest.label);
        if tried.is_some_and(|tried| tried.again.is_none_or(|again| now.since(tried.at) < again)) {
            return Ok(());
        }
        let proofs = proofs::list(&self.repo, system_id).await.explained()?;
        match proofs.is_due(&newest.label, self.config.prove_every, PROVE_AGAIN, now) {
            true => self.prove(system_id, newest.label.clone(), token).await,
            false => Ok(()),
        }
    }

    fn tried(&self) -> Option<Tried> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_tried(&self, label: &str, failure: Option<String>, again: Option<Duration>) {
        let tried = Tried { label: label.to_owned(), at: self.clock.wall(), failure, again };
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(tried);
    }

    async fn prove(&self, system_id: u64, label: String, token: &CancellationToken) -> anyhow::Result<()> {
        let options = backup::proof_with_base(&self.context, Some(label.clone()))?;
        let kept = loop {
            let of = (&self.repo, system_id);
            match backup::prove_and_keep(&self.context, of, &options, &|_| {}, token).await {
                Ok(kept) => break kept,
                // one by hand
                Err(BackupError::ProofRuns(_)) => {}
                Err(error) if error.is_of_the_backup() => {
                    let why = error.to_string();
                    self.has_tried(&label, Some(why.clone()), Some(PROVE_AGAIN));
                    tracing::error!(label, why, "the backup failed its proof");
                    let unproven = Some(Unproven { label, at: self.clock.wall(), why });
                    self.status.send_modify(|status| status.unproven = unproven);
                    return Ok(());
                }
                Err(other) => {
                    self.has_tried(&label, None, Some(PROVE_AGAIN));
                    return Err(other).explained().with_context(|| format!("backup {label} is not proven"));
                }
            }
            tokio::select! {
                () = token.cancelled() => bail!("interrupted"),
                () = tokio::time::sleep(LOOK) => {}
            }
        };
        let backup::Kept { proof, forgotten } = kept;
        self.has_tried(&label, None, self.config.prove_every);
        tracing::info!(label, "the backup was restored and checked");
        if let Some(error) = forgotten {
            tracing::warn!(label, %error, "that is not remembered");
        }
        let mut uncompared = proof.tables_left_out;
        if proof.tables == 0 && uncompared.is_empty() && self.config.contents.is_some() {
            uncompared.push("what its tables held was not recorded".to_owned());
        }
        let at = self.clock.wall();
        self.status.send_modify(|status| {
            status.proven = Some((label, at));
            status.unproven = None;
            status.failed = None;
            status.uncompared = uncompared;
        });
        Ok(())
    }
}
