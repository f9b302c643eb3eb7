//! The place of a benchmark: a temporary folder with a platform's configuration and throw-away servers.
//!
//! Invariant: [`Lab::close`] stops every server and removes the folder. Servers have the settings
//! that the platform gives its own ([`millrace_cluster::settings`]): `fsync` on, checksums, TLS, SCRAM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use millrace_base::{Clock, SystemClock, files};
use millrace_cluster::Limits;
use millrace_config::{InitOptions, Pack};
use millrace_pg::{
    Binaries, ConnectParams, Connection, HbaDatabase, HbaRule, HbaSource, Postmaster, RunAs, ServerSpec, Setting,
    StopMode, connect,
};

use crate::{context::Context, explain::Explained, output::Output};

const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// The pack that is measured with.
const PACK: &str = "loans";

/// A folder, a configuration, servers.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) output: Output,
    pub(crate) context: Context,
    /// Of everything that takes part, for the reader.
    pub(crate) versions: Vec<String>,
    folder: PathBuf,
    client_tls: Arc<rustls::ClientConfig>,
    binaries: Binaries,
    run_as: RunAs,
    running: Vec<(String, Postmaster)>,
}

/// A running server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// The superuser on database `postgres`.
    pub(crate) admin: ConnectParams,
    pub(crate) pid: u32,
}

impl Server {
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<Connection> {
        connect(&self.admin.to_database(database), CONNECT_MAX).await.explained()
    }
}

impl Lab {
    pub(crate) fn new(output: Output) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("millrace-bench-{}", std::process::id()));
        let made = Self::make(output, &folder);
        if made.is_err() {
            // the error says more than that its rest could not be cleared away
            _ = std::fs::remove_dir_all(&folder);
        }
        made
    }

    fn make(output: Output, folder: &Path) -> anyhow::Result<Self> {
        files::create_dir_all(folder, 0o755).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let platform = folder.join("platform");
        let pack = Pack::embedded(PACK).explained()?;
        millrace_config::init(&platform, &pack, &InitOptions::default(), SystemClock::new().wall()).explained()?;
        let context = Context::load(&platform, output)?;
        let binaries = Binaries::find(None).explained()?;
        let client_tls = context.config.tls().client_config()?;
        output.note(format!("works in {}", folder.display()));
        Ok(Self {
            output,
            context,
            versions: vec![
                format!("millrace {} ({})", env!("CARGO_PKG_VERSION"), profile()),
                format!("PostgreSQL {}", binaries.version()),
                machine(),
            ],
            folder,
            client_tls,
            binaries,
            run_as: RunAs::resolve(None).explained()?,
            running: Vec::new(),
        })
    }

    /// The folder itself, open to the servers' user.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// PostgreSQL's programs.
    pub(crate) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    pub(crate) fn run_as(&self) -> &RunAs {
        &self.run_as
    }

    /// Progress.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        self.output.note(text);
    }

    /// A server of this folder, not made yet; `settings` come after the platform's own and win.
    pub(crate) fn spec(&self, name: &str, settings: &[(&str, &str)]) -> anyhow::Result<ServerSpec> {
        let everyone = |database| HbaRule { databases: vec![database], users: Vec::new(), source: HbaSource::SameHost };
        let mut all = millrace_cluster::settings::of_platform(&Limits::default(), 1);
        all.extend(settings.iter().map(|(name, value)| Setting::new(*name, *value, "for this measurement")));
        Ok(ServerSpec {
            binaries: self.binaries.clone(),
            run_as: self.run_as.clone(),
            folder: self.folder.join(name),
            log_file: self.folder.join(format!("{name}.log")),
            listen: vec!["127.0.0.1".to_owned()],
            port: std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port(),
            tls: self.context.config.tls(),
            settings: all,
            hba: vec![everyone(HbaDatabase::All), everyone(HbaDatabase::Replication)],
        })
    }

    /// Makes and starts a server; `settings` come after the platform's own and win.
    pub(crate) async fn server(&mut self, name: &str, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        let spec = self.spec(name, settings)?;
        let port = spec.port;
        let password = self.context.secrets.superuser.clone();
        spec.initdb(&password).await.explained()?;
        let mut postmaster = spec.start().await.explained()?;
        let pid = postmaster.pid();
        let ready = postmaster.ready(START_MAX).await;
        self.running.push((name.to_owned(), postmaster));
        ready.explained()?;
        Ok(Server {
            admin: ConnectParams {
                host: "127.0.0.1".to_owned(),
                port,
                database: "postgres".to_owned(),
                user: "postgres".to_owned(),
                password,
                tls: Some(self.client_tls.clone()),
                application_name: "millrace bench".to_owned(),
            },
            pid,
        })
    }

    /// Stops the servers and removes the folder.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        for (name, mut postmaster) in self.running {
            // its data goes away with the folder
            if let Err(error) = postmaster.stop(StopMode::Immediate, STOP_MAX).await {
                self.output.note(format!("server {name}: {error}"));
            }
        }
        std::fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "development build, hot paths optimised" } else { "release build" }
}

/// `2 × AMD EPYC, 23 GiB`.
fn machine() -> String {
    let read = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let model = read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let kib = read("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{cores} × {model}, {} GiB", kib.unwrap_or(0) >> 20)
}
