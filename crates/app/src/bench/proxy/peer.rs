//! The peer: PgBouncer, with a configuration that says what ours is told.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use millrace_base::{Secret, files};
use tokio::process::{Child, Command};

use super::{super::lab::Lab, POOL};

const START_MAX: Duration = Duration::from_secs(10);

/// A running PgBouncer; it ends with this value.
#[derive(Debug)]
pub(super) struct Bouncer {
    pub(super) address: SocketAddr,
    pub(super) pid: u32,
    pub(super) version: String,
    _process: Child,
}

impl Bouncer {
    pub(super) async fn start(lab: &Lab, server: SocketAddr, password: &Secret) -> anyhow::Result<Self> {
        let said = Command::new("pgbouncer").arg("--version").output().await;
        let said = said.context("PgBouncer was not found\n  hint: apt install pgbouncer")?;
        let version = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let folder = lab.folder().join("pgbouncer");
        files::create_dir_all(&folder, 0o755)?;
        let (config, users) = (folder.join("pgbouncer.ini"), folder.join("users.txt"));
        files::write_atomic(&users, format!("\"postgres\" \"{}\"\n", password.reveal()).as_bytes(), 0o600)?;
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {POOL}\nmax_client_conn = 2000\nlog_connections = 0\nlog_disconnections = 0\n",
            server.ip(),
            server.port(),
            users.display(),
        );
        files::write_atomic(&config, text.as_bytes(), 0o600)?;
        for path in [&folder, &config, &users] {
            lab.run_as().own(path)?;
        }
        let mut command = Command::new("pgbouncer");
        command.arg("--quiet").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        lab.run_as().apply(command.as_std_mut());
        let process = command.kill_on_drop(true).spawn().context("cannot run PgBouncer")?;
        let pid = process.id().context("PgBouncer has ended at once")?;
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let reached = tokio::time::timeout(START_MAX, async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if reached.await.is_err() {
            bail!("PgBouncer does not listen");
        }
        Ok(Self { address, pid, version, _process: process })
    }
}
