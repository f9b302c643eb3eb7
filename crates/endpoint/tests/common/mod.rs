//! An endpoint over a small warehouse, on a free port, for clients of all kinds.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "shared by test files that each use a part of it; a failure here is a failed test"
)]

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use millrace_base::{Clock, Secret, SystemClock, Tasks, tls::TlsFiles};
use millrace_contract::{Query, Reader};
use millrace_endpoint::{Endpoint, Limits, Users};
use millrace_warehouse::{
    Engine, EngineOptions,
    reader::{DuckReader, ReaderOptions},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const USER: &str = "warehouse_reader";

/// A running endpoint. Its files go with it.
pub struct Server {
    pub address: SocketAddr,
    pub password: Secret,
    pub reader: Arc<DuckReader>,
    pub folder: tempfile::TempDir,
    tasks: Tasks,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options =
            EngineOptions { memory_limit: "256MB".into(), threads: 2, temp_directory: folder.path().join("tmp") };
        let engine = Engine::open(&folder.path().join("warehouse.duckdb"), options).unwrap();
        engine.connect().unwrap().execute_batch(include_str!("warehouse.sql")).unwrap();
        let token = CancellationToken::new();
        let reader = DuckReader::new(engine, &ReaderOptions::default(), &token).unwrap();
        let tls = TlsFiles::in_folder(folder.path().join("tls"));
        tls.generate(&["localhost".into(), "127.0.0.1".into()], SystemClock::new().wall()).unwrap();
        let password = Secret::generate();
        let users = Users::default().with(USER, &password);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = Tasks::new(token.clone());
        let config = tls.server_config(&[b"postgresql"]).unwrap();
        tasks.spawn("endpoint", Endpoint::serve(listener, config, users, reader.clone(), limits, token));
        Self { address, password, reader, folder, tasks }
    }

    pub async fn stop(self) {
        assert!(self.tasks.shutdown(Duration::from_secs(20)).await.is_empty());
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("tls/ca.crt")
    }

    /// `name=value` pairs for libpq; the password comes by a file.
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={USER} dbname=warehouse sslmode=verify-full sslrootcert={} passfile={}",
            self.address.port(),
            self.ca().display(),
            self.passfile(self.password.reveal()).display()
        )
    }

    pub fn passfile(&self, password: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(format!("pgpass-{}", password.len()));
        std::fs::write(&path, format!("*:*:*:*:{password}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// psql, ready to be given `-c` and the like.
    pub fn psql(&self) -> Command {
        self.psql_at(&self.conninfo())
    }

    pub fn psql_at(&self, conninfo: &str) -> Command {
        let mut command = Command::new("/usr/lib/postgresql/15/bin/psql");
        command
            .args(["--no-psqlrc", "--no-password", "-v", "ON_ERROR_STOP=1", "-d", conninfo])
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PGHOST")
            .stdin(Stdio::null());
        command
    }

    /// Runs psql with these statements on a blocking thread.
    pub async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.psql();
        command.args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Waits until no statement runs: all reader connections are free.
    pub async fn wait_until_idle(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.reader.running() > 0 {
            assert!(tokio::time::Instant::now() < deadline, "a statement still runs");
            // yields to the runtime until the next look
            self.reader.query(Query::new("select 1")).await.unwrap().collect(1).await.unwrap();
        }
    }

    /// A tokio-postgres client; its connection ends with it.
    pub async fn connect(&self) -> Result<(tokio_postgres::Client, Tasks), tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.address.port())
            .user(USER)
            .password(self.password.reveal())
            .dbname("warehouse")
            .ssl_mode(tokio_postgres::config::SslMode::Require);
        let tls = TlsFiles::in_folder(self.folder.path().join("tls")).client_config().unwrap();
        let tls = tokio_postgres_rustls::MakeRustlsConnect::new((*tls).clone());
        let (client, connection) = config.connect(tls).await?;
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("connection", async move {
            // the server's goodbye is the business of the test
            _ = connection.await;
            Ok::<_, std::io::Error>(())
        });
        Ok((client, tasks))
    }
}
