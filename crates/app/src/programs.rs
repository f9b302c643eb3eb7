//! PostgreSQL's client programs: found, and told how to reach a server without a password on any command line.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use millrace_base::files;
use millrace_pg::{Binaries, ConnectParams};
use tokio::process::Command;

use crate::{commands::psql::pgpass_line, context::Context, explain::Explained as _};

/// The folders that a command keeps what it needs meanwhile in.
const SCRATCH: &str = "dump-";

/// A folder of a command's own, on the platform's disk; it goes with the command.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn scratch(context: &Context) -> anyhow::Result<tempfile::TempDir> {
    let folder = context.layout.data();
    let made = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(folder);
    made.with_context(|| format!("cannot make a folder in {}", folder.display()))
}

/// Removes those of commands that were killed. None of them works without a running platform.
pub(crate) fn clear(context: &Context) {
    let Ok(entries) = std::fs::read_dir(context.layout.data()) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH)) {
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "what a killed command left cannot be removed");
        }
    }
}

/// Programs of one version, and a file of passwords.
#[derive(Debug)]
pub(crate) struct Programs {
    binaries: Binaries,
    ca: PathBuf,
    passfile: PathBuf,
}

impl Programs {
    /// `folder` is the caller's, and goes with it: a file with the passwords of `servers` is written there.
    ///
    /// # Errors
    /// If PostgreSQL is not found, or the file cannot be written.
    pub(crate) fn new(context: &Context, folder: &Path, servers: &[&ConnectParams]) -> anyhow::Result<Self> {
        let binaries = Binaries::find(context.config.postgres.bin_dir.as_deref()).explained()?;
        let passfile = folder.join("pgpass");
        let lines: String = servers.iter().map(|params| pgpass_line(params)).collect();
        files::write_atomic(&passfile, lines.as_bytes(), 0o600)
            .with_context(|| format!("cannot write {}", passfile.display()))?;
        Ok(Self { binaries, ca: context.config.tls().ca_cert(), passfile })
    }

    /// A program that reaches the database of `params`.
    pub(crate) fn command(&self, program: &str, params: &ConnectParams) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        command
            .env("PGPASSFILE", &self.passfile)
            .env("PGHOST", &params.host)
            .env("PGPORT", params.port.to_string())
            .env("PGUSER", &params.user)
            .env("PGDATABASE", &params.database)
            .env("PGSSLMODE", "verify-ca")
            .env("PGSSLROOTCERT", &self.ca)
            .kill_on_drop(true);
        command
    }
}

/// Runs a program to its end.
///
/// # Errors
/// With what it said, if it failed.
pub(crate) async fn run(program: &str, mut command: Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().await.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
