//! A server whose backups and log go into a repository of the test's own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_backup::{
    BackupError, CreateOptions, Created, Kind, ProgressFn, Proof, ProveOptions, RestoreOptions, WalSource,
    contents::RecordOptions,
    create,
    plan::Target,
    prove,
    repo::{Location, Repository},
    restore,
    seal::{Encryption, Keys, Sealing},
    wal::{self, ReceiveOptions, ReceiveStatus},
};
use millrace_base::{Lsn, Secret, Tasks};
use millrace_pg::{ConnectParams, Connection, Postmaster, ServerSpec, connect};
use millrace_testkit::{Sandbox, TestServer, free_port};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(60);

pub fn quiet() -> Box<ProgressFn<'static>> {
    Box::new(|_| {})
}

pub struct Kept {
    pub repo: Repository,
    pub key: Secret,
    pub folder: PathBuf,
}

/// An encrypted repository in `folder`.
pub fn repository(folder: &Path) -> Kept {
    let (key, public) = Keys::generate();
    let sealing = Sealing::new(Encryption::to([public.as_str()]).unwrap());
    let location = Location::Folder(folder.to_owned());
    let repo = Repository::open(&location, sealing, Keys::parse(&key).unwrap()).unwrap();
    Kept { repo, key, folder: folder.to_owned() }
}

pub async fn system_id(client: &Connection) -> u64 {
    let row = client.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await.unwrap();
    row.get::<_, i64>(0).cast_unsigned()
}

/// A receiver that runs beside the test.
pub struct Receiver {
    tasks: Tasks,
    pub status: watch::Receiver<ReceiveStatus>,
}

impl Receiver {
    pub fn start(repo: &Repository, params: ConnectParams) -> Self {
        let mut tasks = Tasks::new(CancellationToken::new());
        let (tell, status) = watch::channel(ReceiveStatus::default());
        let options = ReceiveOptions {
            params,
            slot: "archive".to_owned(),
            flush_every: Duration::from_millis(500),
            uploads_max: 2,
        };
        let (repo, stop) = (repo.clone(), tasks.token().clone());
        tasks.spawn("receiver", async move { wal::receive(&repo, &options, &tell, &stop).await });
        Self { tasks, status }
    }

    /// Waits until everything before `lsn` is in the repository.
    pub async fn durable(&mut self, lsn: Lsn) {
        let waited = {
            let waiting = self.status.wait_for(|status| status.durable >= lsn);
            tokio::time::timeout(SOON, waiting).await.map(|ended| ended.is_err())
        };
        match waited {
            Ok(false) => {}
            Ok(true) => panic!("the receiver ended: {:?}", self.tasks.join_next().await),
            Err(_) => panic!("{lsn} is not archived in time: {:?}", self.status.borrow()),
        }
    }

    pub async fn stop(self) {
        let failed = self.tasks.shutdown(SOON).await;
        assert!(failed.is_empty(), "{failed:?}");
    }
}

pub async fn position(client: &Connection) -> Lsn {
    let sql = "SELECT pg_current_wal_flush_lsn()::text";
    client.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse().unwrap()
}

pub fn options(server: &TestServer, kind: Kind) -> CreateOptions {
    CreateOptions {
        params: server.params(),
        primary: None,
        data_dir: server.data_dir(),
        kind,
        threads: 2,
        bytes_per_second_max: None,
        fast_checkpoint: true,
        wal_wait: Some(SOON),
    }
}

pub fn record_options(server: &TestServer, within: Duration) -> RecordOptions {
    RecordOptions { primary: server.params(), within, wal_wait: SOON }
}

pub async fn back_up(repo: &Repository, server: &TestServer, kind: Kind) -> Created {
    let made = create(repo, &options(server, kind), &*quiet(), &CancellationToken::new()).await;
    made.unwrap_or_else(|error| panic!("{error}"))
}

/// The newest backup restored beside the server, and checked.
pub async fn proven(kept: &Kept, id: u64, server: &TestServer) -> Result<Proof, BackupError> {
    let options = ProveOptions {
        rules: Vec::new(),
        scratch: server.folder().parent().unwrap().join(format!("prove-{}", server.port())),
        binaries: server.spec().binaries.clone(),
        run_as: server.spec().run_as.clone(),
        superuser: "postgres".to_owned(),
        target: Target::Latest,
        backup: None,
        threads: 2,
        deadline: SOON,
        base: None,
    };
    prove(&kept.repo, id, &options, &*quiet(), &CancellationToken::new()).await
}

/// A server made from a repository.
pub struct Restored {
    _sandbox: Sandbox,
    pub spec: ServerSpec,
    postmaster: Postmaster,
    params: ConnectParams,
}

pub fn restore_options(spec: &ServerSpec, target: Target) -> RestoreOptions {
    RestoreOptions {
        data_dir: spec.data_dir(),
        delta: false,
        target,
        backup: None,
        timeline: None,
        threads: 2,
        owner: Some(spec.run_as.clone()),
        tablespaces: Default::default(),
        wal: WalSource::Prefetch,
        base: None,
    }
}

/// Where a copy of `server` can be made.
pub fn place_beside(server: &TestServer) -> (Sandbox, ServerSpec) {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("server");
    std::fs::create_dir(&folder).unwrap();
    server.spec().run_as.own(&folder).unwrap();
    let log_file = sandbox.path().join("server.log");
    let spec = ServerSpec { folder, log_file, port: free_port(), ..server.spec().clone() };
    (sandbox, spec)
}

pub async fn restore_to(
    repo: &Repository,
    system_id: u64,
    server: &TestServer,
    change: impl FnOnce(&mut RestoreOptions),
) -> Result<Restored, BackupError> {
    let (sandbox, spec) = place_beside(server);
    let mut options = restore_options(&spec, Target::Latest);
    change(&mut options);
    restore(repo, system_id, &options, &*quiet(), &CancellationToken::new()).await?;
    spec.configure(None).unwrap();
    let mut postmaster = spec.start().await.unwrap();
    if let Err(error) = postmaster.ready(SOON).await {
        panic!("{error}\n{}", std::fs::read_to_string(&spec.log_file).unwrap_or_default());
    }
    let params = ConnectParams { port: spec.port, ..server.params() };
    Ok(Restored { _sandbox: sandbox, spec, postmaster, params })
}

impl Restored {
    pub async fn client_to(&self, database: &str) -> Connection {
        assert!(self.postmaster.is_running());
        connect(&self.params.to_database(database), SOON).await.unwrap()
    }

    /// Once recovery is over.
    pub async fn promoted(&self, database: &str) -> Connection {
        let client = self.client_to(database).await;
        millrace_testkit::wait_until(SOON, || async {
            !client.query_one("SELECT pg_is_in_recovery()", &[]).await.unwrap().get::<_, bool>(0)
        })
        .await;
        client
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.spec.log_file).unwrap_or_default()
    }
}

pub async fn numbers(client: &Connection, sql: &str) -> Vec<i64> {
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// All files below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(walk(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}
