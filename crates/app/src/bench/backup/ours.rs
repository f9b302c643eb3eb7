//! Our side: an encrypted repository in a folder, and a receiver of the log.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_backup::{
    CreateOptions, Kind, RestoreOptions, WalSource, create,
    plan::Target,
    repo::{Location, Repository},
    restore,
    seal::{Encryption, Keys, Sealing},
    wal::{self, ReceiveOptions, ReceiveStatus},
};
use millrace_base::{Lsn, Tasks};
use millrace_pg::{Connection, ServerSpec};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    super::lab::{Lab, Server},
    How, LEVEL, THREADS,
};
use crate::explain::Explained as _;

/// The folder of our repository.
pub(super) const OURS: &str = "ours";
const LOG_MAX: Duration = Duration::from_secs(600);
const END_MAX: Duration = Duration::from_secs(60);

pub(super) struct Ours {
    repo: Repository,
    server: Server,
    data: PathBuf,
    system_id: u64,
    tasks: Option<Tasks>,
    status: watch::Receiver<ReceiveStatus>,
}

impl Ours {
    pub(super) async fn new(lab: &Lab, server: &Server, data: &Path, client: &Connection) -> anyhow::Result<Self> {
        let (key, public) = Keys::generate();
        let sealing = Sealing { level: LEVEL, encryption: Encryption::to([public.as_str()]).explained()? };
        let location = Location::Folder(lab.folder().join(OURS));
        let repo = Repository::open(&location, sealing, Keys::parse(&key).explained()?).explained()?;
        let row = client.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await?;
        let system_id = row.get::<_, i64>(0).cast_unsigned();
        let (_, status) = watch::channel(ReceiveStatus::default());
        let mut ours = Self { repo, server: server.clone(), data: data.to_owned(), system_id, tasks: None, status };
        ours.go_on();
        Ok(ours)
    }

    /// Begins to receive the log.
    pub(super) fn go_on(&mut self) {
        let mut tasks = Tasks::new(CancellationToken::new());
        let (tell, status) = watch::channel(ReceiveStatus::default());
        let options = ReceiveOptions {
            params: self.server.admin.clone(),
            slot: "ours".to_owned(),
            flush_every: Duration::from_secs(1),
            uploads_max: THREADS,
        };
        let (repo, stop) = (self.repo.clone(), tasks.token().clone());
        tasks.spawn("receiver", async move { wal::receive(&repo, &options, &tell, &stop).await });
        (self.tasks, self.status) = (Some(tasks), status);
    }

    /// Receives no more.
    pub(super) async fn pause(&mut self) -> anyhow::Result<()> {
        let Some(tasks) = self.tasks.take() else { return Ok(()) };
        match tasks.shutdown(END_MAX).await.first() {
            None => Ok(()),
            Some(error) => bail!("our receiver: {error}"),
        }
    }

    /// Waits until all log before `end` is in the repository.
    pub(super) async fn durable(&mut self, end: Lsn) -> anyhow::Result<()> {
        let waited = tokio::time::timeout(LOG_MAX, self.status.wait_for(|status| status.durable >= end)).await;
        waited.context("the log does not reach our repository")?.context("our receiver has ended")?;
        Ok(())
    }

    /// Makes a backup; says how many megabytes were stored.
    pub(super) async fn back_up(&self, full: bool) -> anyhow::Result<f64> {
        let options = CreateOptions {
            params: self.server.admin.clone(),
            primary: None,
            data_dir: self.data.clone(),
            kind: if full { Kind::Full } else { Kind::Incremental },
            threads: THREADS,
            bytes_per_second_max: None,
            fast_checkpoint: true,
            wal_wait: Some(LOG_MAX),
        };
        let made = create(&self.repo, &options, &|_| {}, &CancellationToken::new()).await.explained()?;
        if let Some(why) = made.full_because {
            bail!("our incremental backup is a full one, because {why}");
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        Ok(made.manifest.stored_bytes as f64 / 1e6)
    }

    pub(super) async fn restore(&self, place: &ServerSpec, lab: &Lab, how: How) -> anyhow::Result<()> {
        let options = RestoreOptions {
            data_dir: place.data_dir(),
            delta: how == How::Over,
            target: if how == How::Whole { Target::Latest } else { Target::Consistent },
            backup: None,
            timeline: None,
            threads: THREADS,
            owner: Some(lab.run_as().clone()),
            tablespaces: Default::default(),
            wal: WalSource::Prefetch,
            base: None,
        };
        restore(&self.repo, self.system_id, &options, &|_| {}, &CancellationToken::new()).await.explained()?;
        Ok(())
    }
}
