//! One throw-away server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use millrace_base::{
    Clock, Secret, SystemClock,
    ident::Ident,
    tls::{TlsFiles, default_hosts},
};
use millrace_pg::{
    Binaries, ConnectParams, Connection, HbaDatabase, HbaRule, HbaSource, Postmaster, RunAs, ServerError, ServerSpec,
    Setting, StopMode, catalog, connect, server::Upstream,
};

use crate::{PASSWORD, Sandbox, free_port, template};

const READY: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(20);

/// A running PostgreSQL that goes away when dropped.
#[derive(Debug)]
pub struct TestServer {
    spec: ServerSpec,
    postmaster: Option<Postmaster>,
    client_tls: Arc<rustls::ClientConfig>,
    sandbox: Sandbox,
}

/// How a [`TestServer`] is to be.
#[derive(Debug, Default)]
pub struct TestServerBuilder {
    settings: Vec<Setting>,
    own_identity: bool,
}

impl TestServerBuilder {
    /// Settings beyond the usual ones, or instead of them.
    #[must_use]
    pub fn settings(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|(name, value)| Setting::new(*name, *value, "")));
        self
    }

    /// A system identifier of its own (takes an initdb: some seconds). Other servers share the template's.
    #[must_use]
    pub fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    /// Makes and starts it.
    ///
    /// # Panics
    /// If it cannot be started: a test cannot go on.
    pub async fn start(self) -> TestServer {
        let sandbox = Sandbox::new();
        let tls = TlsFiles::in_folder(sandbox.path().join("tls"));
        tls.generate(&default_hosts(&[]), SystemClock::new().wall()).expect("certificates");
        let everyone = |database| HbaRule { databases: vec![database], users: Vec::new(), source: HbaSource::SameHost };
        let mut spec = ServerSpec {
            binaries: Binaries::find(None).expect("PostgreSQL"),
            run_as: RunAs::resolve(None).expect("a user for servers"),
            folder: sandbox.path().join("server"),
            log_file: sandbox.path().join("server.log"),
            listen: vec!["127.0.0.1".to_owned()],
            port: free_port(),
            tls: tls.clone(),
            settings: usual_settings().chain(self.settings).collect(),
            hba: vec![everyone(HbaDatabase::All), everyone(HbaDatabase::Replication)],
        };
        if self.own_identity {
            spec.initdb(&Secret::new(PASSWORD)).await.expect("initdb");
        } else {
            std::fs::create_dir(&spec.folder).expect("the server's folder");
            spec.run_as.own(&spec.folder).expect("the server's folder");
            template::copy(&spec).await;
        }
        let client_tls = tls.client_config().expect("TLS");
        let mut tries = 0;
        loop {
            tries += 1;
            spec.configure(None).expect("the configuration");
            match start(&spec).await {
                Ok(postmaster) => {
                    return TestServer { spec, postmaster: Some(postmaster), client_tls, sandbox };
                }
                // another test took the port in between
                Err(ServerError::PortInUse { .. }) if tries < 10 => spec.port = free_port(),
                Err(error) => panic!("the test server does not start: {error}"),
            }
        }
    }
}

async fn start(spec: &ServerSpec) -> Result<Postmaster, ServerError> {
    let mut postmaster = spec.start().await?;
    postmaster.ready(READY).await?;
    Ok(postmaster)
}

fn usual_settings() -> impl Iterator<Item = Setting> {
    [
        ("wal_level", "logical"),
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("shared_buffers", "32MB"),
        ("max_wal_senders", "10"),
        ("max_replication_slots", "20"),
        ("wal_sender_timeout", "30s"),
        ("wal_retrieve_retry_interval", "200ms"),
        // left-overs of a killed server stay in its own folder
        ("dynamic_shared_memory_type", "mmap"),
        ("log_line_prefix", "%m [%p] %q%u@%d %a "),
        ("log_statement", "none"),
    ]
    .into_iter()
    .map(|(name, value)| Setting::new(name, value, ""))
}

impl TestServer {
    /// A server with the usual settings.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with settings of the test's own.
    pub async fn with_settings(settings: &[(&str, &str)]) -> Self {
        Self::builder().settings(settings).start().await
    }

    #[must_use]
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder::default()
    }

    /// A streaming replica of this server, with the same certificates.
    ///
    /// # Panics
    /// If it cannot be made: a test cannot go on.
    pub async fn replica(&self) -> Self {
        let sandbox = Sandbox::new();
        let slot = format!("replica_{}", free_port());
        let client = self.client().await;
        catalog::create_physical_slot(&client, &slot).await.expect("a slot");
        let upstream = Upstream {
            host: "127.0.0.1".to_owned(),
            port: self.spec.port,
            user: "postgres".to_owned(),
            password: Secret::new(PASSWORD),
            application_name: slot.clone(),
            slot,
        };
        let folder = sandbox.path().join("server");
        std::fs::create_dir(&folder).expect("the replica's folder");
        self.spec.run_as.own(&folder).expect("the replica's folder");
        let log_file = sandbox.path().join("server.log");
        let mut spec = ServerSpec { folder, log_file, port: free_port(), ..self.spec.clone() };
        spec.base_backup(&upstream, READY).await.expect("a base backup");
        let mut tries = 0;
        loop {
            tries += 1;
            spec.configure(Some(&upstream)).expect("the configuration");
            match start(&spec).await {
                Ok(postmaster) => {
                    return Self { spec, postmaster: Some(postmaster), client_tls: self.client_tls.clone(), sandbox };
                }
                // another test took the port in between
                Err(ServerError::PortInUse { .. }) if tries < 10 => spec.port = free_port(),
                Err(error) => panic!("the replica does not start: {error}"),
            }
        }
    }

    /// The superuser on database `postgres`.
    #[must_use]
    pub fn params(&self) -> ConnectParams {
        ConnectParams {
            host: "127.0.0.1".to_owned(),
            port: self.spec.port,
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: Secret::new(PASSWORD),
            tls: Some(self.client_tls.clone()),
            application_name: "test".to_owned(),
        }
    }

    /// A connection of the superuser to database `postgres`.
    ///
    /// # Panics
    /// If the server does not let it in.
    pub async fn client(&self) -> Connection {
        self.client_to("postgres").await
    }

    /// A connection of the superuser to `database`.
    ///
    /// # Panics
    /// If the server does not let it in.
    pub async fn client_to(&self, database: &str) -> Connection {
        match connect(&self.params().to_database(database), CONNECT).await {
            Ok(connection) => connection,
            Err(error) => panic!("cannot connect to the test server: {error}; {:?}", error.hint()),
        }
    }

    /// Makes a database and connects to it as the superuser.
    ///
    /// # Panics
    /// If it exists.
    pub async fn create_database(&self, name: &str) -> Connection {
        let client = self.client().await;
        client.batch_execute(&format!("CREATE DATABASE {}", Ident(name))).await.expect("a new database");
        self.client_to(name).await
    }

    /// Stops the server in order.
    ///
    /// # Panics
    /// If it does not stop.
    pub async fn stop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.stop(StopMode::Fast, STOP).await.expect("the server's stop");
        }
    }

    /// Kills the server's main process, as a crash would, and waits until it is gone.
    pub async fn kill(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.kill();
            postmaster.exited().await;
        }
    }

    /// Starts the server again on its port, after [`TestServer::stop`] or [`TestServer::kill`].
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_again(&mut self) {
        assert!(self.postmaster.is_none(), "the server runs");
        self.postmaster = Some(start(&self.spec).await.expect("the server's start"));
    }

    /// Stops and starts.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Adds settings, in force after the next restart.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn set(&mut self, settings: &[(&str, &str)]) {
        self.spec.settings.extend(settings.iter().map(|(name, value)| Setting::new(*name, *value, "")));
        self.spec.configure(None).expect("the configuration");
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.spec.data_dir()
    }

    /// What the server is made from: for tests that make a second one beside it.
    #[must_use]
    pub fn spec(&self) -> &ServerSpec {
        &self.spec
    }

    /// The authority and certificates that the server presents.
    #[must_use]
    pub fn tls_files(&self) -> &TlsFiles {
        &self.spec.tls
    }

    /// Trusts this server's authority alone.
    #[must_use]
    pub fn client_tls(&self) -> Arc<rustls::ClientConfig> {
        self.client_tls.clone()
    }

    /// A folder for the test's own files, removed with the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.sandbox.path()
    }

    /// The process of the server's postmaster, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Postmaster::pid)
    }

    /// All that the server has written.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.spec.log_file).unwrap_or_default()).into_owned()
    }
}

/// A test that fails tells what its server has said last.
impl Drop for TestServer {
    #[expect(clippy::print_stdout, reason = "it belongs to what the test has printed")]
    fn drop(&mut self) {
        const LINES: usize = 40;
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().rev().take(LINES).collect::<Vec<_>>().into_iter().rev();
            println!("the server's log ends:\n{}", last.collect::<Vec<_>>().join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn runs_and_goes_away() {
        let server = TestServer::start().await;
        let client = server.client().await;
        let row = client
            .query_one(
                "SELECT current_setting('wal_level'), (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())",
                &[],
            )
            .await
            .unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), ("logical", true));
        let (folder, pid) = (server.folder().to_owned(), server.pid().unwrap());
        drop(client);
        drop(server);
        assert!(!folder.exists());
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"));
        assert!(cwd.is_err(), "the server still runs in {cwd:?}");
    }

    #[tokio::test]
    async fn survives_kill_and_restart() {
        let mut server = TestServer::start().await;
        let client = server.create_database("kept").await;
        client.batch_execute("CREATE TABLE t AS SELECT 1 AS one").await.unwrap();
        drop(client);
        server.kill().await;
        server.start_again().await;
        server.restart().await;
        let row = server.client_to("kept").await.query_one("SELECT one FROM t", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 1);
    }

    #[tokio::test]
    async fn own_settings_and_identity() {
        let id = "SELECT system_identifier FROM pg_control_system()";
        let server = TestServer::builder().settings(&[("work_mem", "3MB")]).own_identity().start().await;
        let other = TestServer::start().await;
        let client = server.client().await;
        let row = client.query_one("SHOW work_mem", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "3MB");
        let here: i64 = client.query_one(id, &[]).await.unwrap().get(0);
        let there: i64 = other.client().await.query_one(id, &[]).await.unwrap().get(0);
        assert_ne!(here, there);
    }
}
