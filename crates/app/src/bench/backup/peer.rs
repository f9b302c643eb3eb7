//! The peer: pgBackRest of the system's packages, and pg_basebackup.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_base::{Lsn, files};
use millrace_pg::Connection;
use tokio::process::Command;

use super::{
    super::{
        lab::{Lab, Server},
        pgbench::Programs,
    },
    How, LEVEL, LOOK, THREADS,
};
use crate::explain::Explained as _;

/// The folder of pgBackRest's repository.
pub(super) const REPO: &str = "pgbackrest/repo";
/// The folder of pg_basebackup's copy.
pub(super) const PLAIN: &str = "plain";
const STANZA: &str = "bench";
const LOG_MAX: Duration = Duration::from_secs(600);
const SEGMENT: u64 = 16 << 20;

pub(super) struct Peer {
    pub(super) version: String,
    config: PathBuf,
    passfile: PathBuf,
    server: Server,
    run_as: millrace_pg::RunAs,
}

impl Peer {
    pub(super) async fn new(lab: &Lab, server: &Server, data: &Path, sockets: &Path) -> anyhow::Result<Self> {
        let said = Command::new("pgbackrest").arg("version").output().await;
        let said = said.context("pgBackRest was not found\n  hint: scripts/peers.sh backup")?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        let folder = lab.folder().join("pgbackrest");
        for name in ["", "repo", "log", "lock", "spool"] {
            files::create_dir_all(&folder.join(name), 0o750)?;
            lab.run_as().own(&folder.join(name)).explained()?;
        }
        let place = folder.display();
        let text = format!(
            "[global]\nrepo1-path={place}/repo\nrepo1-bundle=y\nrepo1-retention-full=9\nlog-path={place}/log\nlock-path={place}/lock\n\
             spool-path={place}/spool\nlog-level-console=error\nlog-level-file=off\ncompress-type=zst\ncompress-level={LEVEL}\n\
             process-max={THREADS}\nstart-fast=y\narchive-async=y\n[{STANZA}]\npg1-path={}\npg1-port={}\npg1-socket-path={}\n\
             pg1-user=postgres\n",
            data.display(),
            server.admin.port,
            sockets.display(),
        );
        let (config, passfile) = (folder.join("pgbackrest.conf"), folder.join("pgpass"));
        files::write_atomic(&config, text.as_bytes(), 0o640)?;
        let line = format!("*:*:*:postgres:{}\n", server.admin.password.reveal());
        files::write_atomic(&passfile, line.as_bytes(), 0o600)?;
        for file in [&config, &passfile] {
            lab.run_as().own(file).explained()?;
        }
        Ok(Self { version, config, passfile, server: server.clone(), run_as: lab.run_as().clone() })
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("pgbackrest");
        command.arg(format!("--config={}", self.config.display())).arg(format!("--stanza={STANZA}")).args(arguments);
        command.env("PGPASSFILE", &self.passfile).stdin(Stdio::null()).kill_on_drop(true);
        self.run_as.apply(command.as_std_mut());
        let output = command.output().await.context("cannot run pgBackRest")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("pgbackrest {}: {said}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(said)
    }

    pub(super) async fn create_stanza(&self) -> anyhow::Result<()> {
        self.run(&["stanza-create"]).await.map(drop)
    }

    /// Lets the server hand its log over, or keep it.
    pub(super) async fn archives(&self, client: &Connection, on: bool) -> anyhow::Result<()> {
        let push = format!("pgbackrest --config={} --stanza={STANZA} archive-push %p", self.config.display());
        let command = millrace_base::ident::Literal(if on { &push } else { "" }).to_string();
        client.batch_execute(&format!("ALTER SYSTEM SET archive_command = {command}")).await?;
        client.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// Waits until the files of log that end at or before `end`'s have been taken.
    pub(super) async fn archived(&self, client: &Connection, end: &Lsn) -> anyhow::Result<()> {
        let last = end.0.saturating_sub(1) / SEGMENT;
        let per_id = (1 << 32) / SEGMENT;
        let name = format!("{:08X}{:08X}{:08X}", 1, last / per_id, last % per_id);
        let sql = "SELECT last_archived_wal >= $1, failed_count FROM pg_stat_archiver";
        let deadline = Instant::now() + LOG_MAX;
        loop {
            let row = client.query_one(sql, &[&name]).await?;
            if row.get::<_, Option<bool>>(0) == Some(true) {
                return Ok(());
            }
            // one that failed is tried again by the server
            if Instant::now() > deadline {
                let failed: i64 = row.get(1);
                bail!("pgBackRest did not take the log up to {name}; {failed} tries failed");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn back_up(&self, full: bool) -> anyhow::Result<()> {
        self.run(&["backup", if full { "--type=full" } else { "--type=incr" }]).await.map(drop)
    }

    /// What the newest backup takes in the repository.
    pub(super) async fn stored_mb(&self) -> anyhow::Result<f64> {
        let info: serde_json::Value = serde_json::from_str(&self.run(&["info", "--output=json"]).await?)?;
        let newest = info.pointer("/0/backup").and_then(|all| all.as_array()?.last());
        let bytes = newest.and_then(|backup| backup.pointer("/info/repository/delta")?.as_f64());
        Ok(bytes.context("pgBackRest says no size of its backup")? / 1e6)
    }

    pub(super) async fn restore(&self, data: &Path, lab: &Lab, how: How) -> anyhow::Result<()> {
        files::create_dir_all(data, 0o700)?;
        lab.run_as().own(data).explained()?;
        let to = format!("--pg1-path={}", data.display());
        let delta = if how == How::Over { "--delta" } else { "--no-delta" };
        let target = if how == How::Whole { "--type=default" } else { "--type=immediate" };
        self.run(&[&to, target, delta, "restore"]).await.map(drop)
    }

    /// Copies the server to a folder with PostgreSQL's own program.
    pub(super) async fn base_backup(&self, lab: &Lab, programs: &Programs) -> anyhow::Result<()> {
        let folder = lab.folder().join(PLAIN);
        let mut command = Command::new(lab.binaries().program("pg_basebackup"));
        command.args(["--host", "127.0.0.1", "--username", "postgres", "--wal-method", "none", "--checkpoint", "fast"]);
        command.args(["--port", &self.server.admin.port.to_string(), "--no-password", "--pgdata"]).arg(&folder);
        command.env("PGPASSFILE", &programs.passfile).env("PGSSLMODE", "disable").stdin(Stdio::null());
        let output = command.kill_on_drop(true).output().await.context("cannot run pg_basebackup")?;
        if !output.status.success() {
            bail!("pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
